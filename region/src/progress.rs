//! How the peers of a region follow, as its leader sees it.

use raft::ProgressState;
use serde::{Deserialize, Serialize};

use crate::ids::{Index, PeerId};
use crate::region::Region;

/// How a peer follows its leader.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PeerProgress {
    /// The peer.
    pub peer_id: PeerId,
    /// How far its log is known to equal the leader's.
    pub matched: Index,
    /// Entries of the leader's log that it is not known to have.
    pub lag: u64,
    /// Whether it is being sent a snapshot.
    pub in_snapshot: bool,
    /// Ticks since the leader has last heard of it, or since it leads. Of the leader itself 0.
    pub silent_ticks: u64,
}

impl Region {
    /// How each peer of the description follows, in its order. Empty on a peer that does not lead.
    pub fn progress(&self) -> impl Iterator<Item = PeerProgress> + '_ {
        let peers = match self.is_leader() {
            true => &self.description.peers[..],
            false => &[],
        };
        let last = self.last_index();
        peers.iter().map(move |peer| {
            let progress = self.raw.raft.prs().get(peer.id.get());
            let matched = Index::new(progress.map_or(0, |progress| progress.matched));
            let own = peer.id == self.peer.id;
            PeerProgress {
                peer_id: peer.id,
                matched,
                lag: last.get().saturating_sub(matched.get()),
                in_snapshot: progress.is_some_and(|pr| pr.state == ProgressState::Snapshot),
                silent_ticks: if own { 0 } else { self.book.quiet_ticks(peer.id) },
            }
        })
    }
}
