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

/// Before the first time for heartbeats: nobody has an entry of after it.
pub(crate) const NO_BEAT: Index = Index::new(u64::MAX);

impl Region {
    /// A leader's tick has passed: takes back those of its heartbeats, behind the messages that waited before, that
    /// would tell a peer nothing.
    pub(crate) fn spare_heartbeats(&mut self, waiting: usize) {
        let last = self.last_index();
        let raft = &mut self.raw.raft;
        let beats = |message: &Message| message.get_msg_type() == MessageType::MsgHeartbeat;
        if !raft.msgs.iter().skip(waiting).any(beats) {
            return;
        }
        let before = std::mem::replace(&mut self.beat, last).get();
        let mut messages = std::mem::take(&mut raft.msgs);
        let replicates = |progress: &Progress| progress.state == ProgressState::Replicate;
        let told = |message: &Message| {
            let progress = raft.prs().get(message.to).filter(|progress| replicates(progress));
            progress.is_some_and(|progress| progress.committed_index > before)
        };
        let mut at = 0;
        messages.retain(|message| {
            at += 1;
            at <= waiting || !beats(message) || !message.context.is_empty() || !told(message)
        });
        raft.msgs = messages;
    }
}
