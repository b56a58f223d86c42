//! Which writes are under way, and which messages may leave before they are done.
//!
//! raft-rs speaks of a `Ready`'s messages as either free (a leader's) or to be sent after the Ready
//! is persisted. Two cases are finer than that, and decided here.
//!
//! **Nothing to write, but an earlier write under way.** A Ready without entries or a new vote may
//! carry a response that rests on an entry of the Ready before it. It waits: an empty [`LogWrite`]
//! takes its place in the line and returns in order.
//!
//! **A leader whose term is not durable.** A peer that is alone in the quorum elects itself in one
//! step, and raft-rs sends its first appends (to learners) at once. If the process dies before the
//! new term is durable, the next incarnation may take the same term and write other entries under
//! it: two leaders in one term. So a leader's messages wait as well until its term is durable. With
//! more voters this has happened before it became leader, since its vote requests had to wait.
//!
//! A hard state whose commit index alone moved is not written: it promises nothing to anybody, and
//! the log and its leader know it anyway. It goes along with the next write that has to be made.

use raft::eraftpb::{Entry, HardState};
use raft::RawNode;

use crate::effects::{Effects, HeldMessages, LogWrite};
use crate::envelope::Envelope;
use crate::ids::RegionId;
use crate::records::{RegionRecord, TruncatedState};
use crate::storage::RegionStorage;

/// raft-rs's hard state without what its encoding needs.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct Hard {
    pub(crate) term: u64,
    pub(crate) vote: u64,
    pub(crate) commit: u64,
}

impl Hard {
    pub(crate) fn of(state: &HardState) -> Self {
        Self { term: state.term, vote: state.vote, commit: state.commit }
    }

    /// As raft-rs has it now.
    pub(crate) fn now(raw: &RawNode<RegionStorage>) -> Self {
        let raft = &raw.raft;
        Self { term: raft.term, vote: raft.vote, commit: raft.raft_log.committed }
    }

    pub(crate) fn whole(self) -> HardState {
        let Self { term, vote, commit } = self;
        HardState { term, vote, commit, ..HardState::default() }
    }

    /// Whether both promise the same.
    pub(crate) fn promises(self, other: Self) -> bool {
        (self.term, self.vote) == (other.term, other.vote)
    }
}

/// Writes of one region.
///
/// Invariant: `persisted <= issued <= seen`, and none of them goes back. Writes are under way
/// exactly if `persisted < issued`.
pub(crate) struct Writes {
    /// Number of the last Ready.
    seen: u64,
    /// Number of the last write handed out.
    issued: u64,
    /// Number up to which writes are durable.
    persisted: u64,
    /// Number of the last write with a new term or vote, or with a change of peers.
    term_write: u64,
    /// As last handed out to be written.
    hard_state: Hard,
    /// Ticks since a write was last reported durable, while one is under way.
    stalled_ticks: usize,
}

/// What a Ready holds, apart from its committed entries.
pub(crate) struct ReadyParts {
    pub(crate) number: u64,
    pub(crate) entries: Vec<Entry>,
    pub(crate) hard_state: Hard,
    pub(crate) leading: bool,
    pub(crate) messages: Vec<Box<Envelope>>,
    /// The log begins anew after this one.
    pub(crate) snapshot: Option<TruncatedState>,
    pub(crate) records: Vec<RegionRecord>,
    /// A change of peers has taken effect: that it is committed must be durable before anybody is told.
    /// Whoever has left is soon gone, and could not vote for a peer that has forgotten it.
    pub(crate) peers_changed: bool,
}

impl ReadyParts {
    /// A Ready without what is still to be found out about it.
    pub(crate) fn new(number: u64, entries: Vec<Entry>, leading: bool) -> Self {
        Self {
            number,
            entries,
            leading,
            hard_state: Hard::default(),
            messages: Vec::new(),
            snapshot: None,
            records: Vec::new(),
            peers_changed: false,
        }
    }
}

impl Writes {
    pub(crate) fn new(hard_state: Hard) -> Self {
        Self { seen: 0, issued: 0, persisted: 0, term_write: 0, hard_state, stalled_ticks: 0 }
    }

    /// The hard state that was handed out to be written last.
    pub(crate) fn written(&self) -> Hard {
        self.hard_state
    }

    /// Whether a write is under way.
    pub(crate) fn outstanding(&self) -> bool {
        self.persisted < self.issued
    }

    /// Counts a tick. Returns for how many ticks now no write has become durable.
    pub(crate) fn tick(&mut self) -> usize {
        self.stalled_ticks = if self.outstanding() { self.stalled_ticks + 1 } else { 0 };
        self.stalled_ticks
    }

    /// Decides about a Ready: its messages leave now, or with its write. Says whether it counts as persisted at once.
    pub(crate) fn plan(
        &mut self,
        region_id: RegionId,
        parts: &mut ReadyParts,
        effects: &mut Effects,
    ) -> bool {
        let number = parts.number;
        debug_assert!(number > self.seen);
        self.seen = number;
        let promises = !parts.hard_state.promises(self.hard_state);
        let must_sync = promises
            || parts.peers_changed
            || !parts.entries.is_empty()
            || parts.snapshot.is_some()
            || !parts.records.is_empty();
        if promises || parts.peers_changed {
            self.term_write = number;
        }
        let free =
            parts.leading && self.term_write <= self.persisted || !must_sync && !self.outstanding();
        if free {
            effects.messages.append(&mut parts.messages);
        }
        if !must_sync && parts.messages.is_empty() {
            let persisted_now = !self.outstanding();
            if persisted_now {
                self.issued = number;
                self.persisted = number;
            }
            return persisted_now;
        }
        let moved = must_sync && parts.hard_state != self.hard_state;
        if moved {
            self.hard_state = parts.hard_state;
        }
        self.issued = number;
        let held = std::mem::take(&mut parts.messages);
        effects.write = Some(LogWrite {
            region_id,
            number,
            entries: std::mem::take(&mut parts.entries),
            hard_state: moved.then(|| self.hard_state.whole()),
            snapshot: parts.snapshot,
            records: std::mem::take(&mut parts.records),
            held: HeldMessages { region_id, number, messages: held },
            must_sync,
        });
        false
    }

    /// Whether everything up to this number is durable.
    pub(crate) fn is_persisted(&self, number: u64) -> bool {
        number <= self.persisted
    }

    /// Write `number` is durable. Returns the number up to which raft-rs may be told so: Readys
    /// without a write that followed the last one count as well.
    pub(crate) fn persisted(&mut self, number: u64) -> Option<u64> {
        if number <= self.persisted || number > self.issued {
            return None;
        }
        self.stalled_ticks = 0;
        if number == self.issued {
            self.issued = self.seen;
            self.persisted = self.seen;
        } else {
            self.persisted = number;
        }
        Some(self.persisted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::description::{Peer, RegionEpoch};
    use crate::effects::Persisted;
    use crate::ids::{PeerId, StoreId};

    const REGION: RegionId = RegionId::new(1);

    fn hard_state(term: u64, commit: u64) -> Hard {
        Hard { term, vote: 0, commit }
    }

    struct Plan {
        free: Vec<Box<Envelope>>,
        write: Option<LogWrite>,
        persisted_now: bool,
    }

    fn plan(writes: &mut Writes, mut parts: ReadyParts) -> Plan {
        let mut effects = Effects::default();
        let persisted_now = writes.plan(REGION, &mut parts, &mut effects);
        Plan { free: effects.messages, write: effects.write, persisted_now }
    }

    fn ready(number: u64, entries: usize, hard_state: Hard, leading: bool) -> ReadyParts {
        let peer = Peer::voter(PeerId::new(1), StoreId::new(1));
        let envelope = Envelope {
            cluster_id: 1,
            region_id: REGION,
            from: peer,
            to: peer,
            epoch: RegionEpoch::default(),
            message: Default::default(),
            description: None,
        };
        ReadyParts {
            hard_state,
            messages: vec![Box::new(envelope)],
            ..ReadyParts::new(number, vec![Entry::default(); entries], leading)
        }
    }

    #[test]
    fn a_response_without_a_write_leaves_at_once() {
        let mut writes = Writes::new(hard_state(6, 5));
        let plan = plan(&mut writes, ready(1, 0, hard_state(6, 9), false));
        assert!(plan.write.is_none() && plan.persisted_now && plan.free.len() == 1);
    }

    #[test]
    fn a_response_without_a_write_waits_behind_an_earlier_one() {
        let mut writes = Writes::new(hard_state(6, 5));
        let first = plan(&mut writes, ready(1, 1, hard_state(6, 5), false)).write.unwrap();
        let plan = plan(&mut writes, ready(2, 0, hard_state(6, 5), false));
        assert!(plan.free.is_empty() && !plan.persisted_now);
        let mut second = plan.write.unwrap();
        assert!(second.is_empty() && !second.needs_sync());
        let proof = Persisted::after_sync(&first);
        assert_eq!(writes.persisted(proof.number()), Some(1));
        assert!(writes.outstanding());
        let proof = Persisted::after_sync(&second);
        assert_eq!(second.take_held().release(&proof).len(), 1);
        assert_eq!(writes.persisted(2), Some(2));
        assert!(!writes.outstanding());
    }

    #[test]
    #[should_panic(expected = "does not prove")]
    fn an_earlier_proof_does_not_release_a_later_promise() {
        let mut writes = Writes::new(hard_state(6, 5));
        let first = plan(&mut writes, ready(1, 1, hard_state(6, 5), false)).write.unwrap();
        let mut second = plan(&mut writes, ready(2, 1, hard_state(6, 5), false)).write.unwrap();
        second.take_held().release(&Persisted::after_sync(&first));
    }

    #[test]
    fn a_leaders_messages_leave_before_its_write_but_not_before_its_term_is_durable() {
        let mut writes = Writes::new(hard_state(6, 5));
        let elected = plan(&mut writes, ready(1, 1, hard_state(7, 5), true));
        assert!(elected.free.is_empty() && elected.write.is_some());
        let early = plan(&mut writes, ready(2, 0, hard_state(7, 5), true));
        assert!(early.free.is_empty() && early.write.is_some());
        writes.persisted(1);
        let later = plan(&mut writes, ready(3, 1, hard_state(7, 5), true));
        assert_eq!(later.free.len(), 1);
        assert!(later.write.unwrap().needs_sync());
    }

    #[test]
    fn a_moved_commit_index_goes_along_with_the_next_write() {
        let mut writes = Writes::new(hard_state(6, 5));
        assert!(plan(&mut writes, ready(1, 0, hard_state(6, 9), false)).write.is_none());
        let write = plan(&mut writes, ready(2, 1, hard_state(6, 9), false)).write.unwrap();
        assert_eq!(write.hard_state.unwrap().commit, 9);
        let write = plan(&mut writes, ready(3, 1, hard_state(6, 9), false)).write.unwrap();
        assert!(write.hard_state.is_none());
    }

    #[test]
    fn persisting_the_last_write_covers_the_readys_after_it() {
        let mut writes = Writes::new(hard_state(6, 5));
        plan(&mut writes, ready(1, 1, hard_state(6, 5), true));
        assert!(plan(&mut writes, ready(2, 0, hard_state(6, 6), true)).write.is_none());
        assert_eq!(writes.persisted(1), Some(2));
        assert_eq!(writes.persisted(1), None);
    }
}
