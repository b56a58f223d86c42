//! Heartbeats that need not be sent.
//!
//! A heartbeat tells a peer that its leader lives, and what is committed. Appends tell the same. Who has answered
//! that it knows an entry of after the last heartbeats to be committed has heard its leader several times since, and
//! lacks nothing of before. What it lacks of now comes with the next append, or with the next heartbeat, which is one
//! interval later than without this.

use raft::eraftpb::{Message, MessageType};
use raft::{Progress, ProgressState};

use crate::ids::Index;
use crate::region::Region;

/// Before the first time for heartbeats: nobody knows of a commit after it.
pub(crate) const NO_BEAT: Index = Index::new(u64::MAX);

impl Region {
    /// A leader's tick has passed: takes back those of its heartbeats that would tell a peer nothing.
    pub(crate) fn spare_heartbeats(&mut self) {
        let last = self.last_index();
        let raft = &mut self.raw.raft;
        if raft.heartbeat_elapsed() > 0 {
            return;
        }
        let before = std::mem::replace(&mut self.beat, last).get();
        let mut messages = std::mem::take(&mut raft.msgs);
        let replicates = |progress: &Progress| progress.state == ProgressState::Replicate;
        let told = |peer: u64| {
            let progress = raft.prs().get(peer).filter(|progress| replicates(progress));
            progress.is_some_and(|progress| progress.committed_index > before)
        };
        // With a context it asks on behalf of a read.
        let spared = |message: &Message| {
            message.get_msg_type() == MessageType::MsgHeartbeat
                && message.context.is_empty()
                && told(message.to)
        };
        messages.retain(|message| !spared(message));
        raft.msgs = messages;
    }
}
