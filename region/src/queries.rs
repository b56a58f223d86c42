//! What can be asked of a region. Nothing here changes it.

use std::sync::Arc;

use raft::StateRole;

use crate::description::{Peer, RegionDescription};
use crate::effects::{RegionStatus, Role};
use crate::ids::{Index, PeerId, RegionId, Term};
use crate::records::TruncatedState;
use crate::region::Region;

impl Region {
    /// The region's id.
    pub fn id(&self) -> RegionId {
        self.description.id
    }

    /// The description as of the last applied entry.
    pub fn description(&self) -> &Arc<RegionDescription> {
        &self.description
    }

    /// Whether the region has a range here. One that waits for the split of its parent to be applied again
    /// has none yet: the parent has it still.
    pub fn has_range(&self) -> bool {
        self.description.is_initialised() && !self.pending.awaits_split
    }

    /// The snapshot that is in the log and not yet in the state machine, by its index.
    pub fn installs_up_to(&self) -> Option<Index> {
        self.pending.installing
    }

    /// Whether the next [`collect`](Region::collect) begins with the snapshot up to this index.
    pub fn takes_snapshot(&self, index: Index) -> bool {
        let pending = self.raw.raft.snap();
        pending.is_some_and(|snapshot| snapshot.get_metadata().index == index.get())
    }

    /// This store's peer.
    pub fn peer(&self) -> Peer {
        self.peer
    }

    /// What the peer is.
    pub fn role(&self) -> Role {
        match self.raw.raft.state {
            StateRole::Follower => Role::Follower,
            StateRole::PreCandidate => Role::PreCandidate,
            StateRole::Candidate => Role::Candidate,
            StateRole::Leader => Role::Leader,
        }
    }

    /// Whether the peer leads.
    pub fn is_leader(&self) -> bool {
        self.raw.raft.state == StateRole::Leader
    }

    /// The peer's term.
    pub fn term(&self) -> Term {
        Term::new(self.raw.raft.term)
    }

    /// Who leads, as far as the peer knows.
    pub fn leader(&self) -> Option<Peer> {
        self.description.peer(PeerId::new(self.raw.raft.leader_id)).copied()
    }

    /// Term of an entry of the log, or of the last one that was cut off; `None` of those before and behind.
    pub fn term_at(&self, index: Index) -> Option<Term> {
        self.raw.store().term_at(index)
    }

    /// Last entry of the log.
    pub fn last_index(&self) -> Index {
        Index::new(self.raw.raft.raft_log.last_index())
    }

    /// Last entry known to be committed.
    pub fn committed(&self) -> Index {
        Index::new(self.raw.raft.raft_log.committed)
    }

    /// Last entry that the caller reported as applied.
    pub fn applied_index(&self) -> Index {
        self.applying.applied()
    }

    /// Last entry known to be persisted here.
    pub fn persisted_index(&self) -> Index {
        Index::new(self.raw.raft.raft_log.persisted)
    }

    /// Where the log begins.
    pub fn truncated(&self) -> TruncatedState {
        self.raw.store().truncated()
    }

    /// Proposals that wait for their entry to commit.
    pub fn pending_proposals(&self) -> usize {
        self.proposals.len()
    }

    /// Bytes handed out to be applied and not reported as applied.
    pub fn unapplied_bytes(&self) -> usize {
        self.applying.bytes()
    }

    /// Bytes of entries in memory.
    pub fn cached_bytes(&self) -> usize {
        self.raw.store().cached_bytes()
    }

    /// Whether a write that was handed out is not reported as persisted.
    pub fn has_outstanding_write(&self) -> bool {
        self.writes.outstanding()
    }

    /// All figures.
    pub fn status(&self) -> RegionStatus {
        let mut matched = Vec::new();
        if self.is_leader() {
            let peers = self.raw.raft.prs().iter();
            matched.extend(peers.map(|(id, pr)| (PeerId::new(*id), Index::new(pr.matched))));
            matched.sort_unstable();
        }
        let store = self.raw.store();
        RegionStatus {
            description: self.description.clone(),
            peer_id: self.peer.id,
            role: self.role(),
            term: self.term(),
            leader: self.leader().map(|peer| peer.id),
            truncated: self.truncated().index,
            installing: self.pending.installing,
            applied: self.applying.applied(),
            emitted: self.applying.emitted(),
            committed: self.committed(),
            persisted: self.persisted_index(),
            last: self.last_index(),
            pending_proposals: self.proposals.len(),
            unapplied_bytes: self.applying.bytes(),
            cached_bytes: store.cached_bytes(),
            cached_entries: store.cached_entries(),
            asleep: self.is_asleep(),
            matched,
        }
    }
}
