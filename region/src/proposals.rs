//! Proposals that wait for their entry to commit.
//!
//! A proposal enters with the index and term of its entry and leaves in one of four ways: its entry
//! commits; another entry commits in its place, or before it could have (stale, it did not happen);
//! the peer has not led for so long that nobody knows (unknown); the region ends (unknown).
//!
//! A peer that loses its leadership keeps waiting for a while, since the entry may still commit,
//! and often does.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::answer::{Answer, Callback};
use crate::description::RegionEpoch;
use crate::error::ProposeError;
use crate::ids::{Index, RegionId, Term};

/// A command on its way into the log.
pub struct Proposal {
    /// The user's bytes.
    pub payload: Bytes,
    /// The epoch that the proposer believes the region to have; without one it is taken to be the
    /// current epoch.
    pub epoch: Option<RegionEpoch>,
    /// Told the outcome.
    pub callback: Callback,
    /// The caller's nanoseconds, carried along for its latency metrics and never looked at.
    pub stamp: u64,
}

/// A proposal whose entry has committed.
pub(crate) struct Committed {
    pub(crate) callback: Callback,
    pub(crate) stamp: u64,
}

struct Waiting {
    index: Index,
    term: Term,
    callback: Callback,
    stamp: u64,
}

/// The proposals of one region, oldest entry first.
///
/// Invariant: terms never decrease and, within a term, indexes increase. (Across terms an index may
/// return: the entry of the earlier term is then overwritten, though not yet known to be.)
/// Invariant: every proposal that enters is answered exactly once.
pub(crate) struct ProposalQueue {
    region_id: RegionId,
    waiting: VecDeque<Waiting>,
    capacity: usize,
    ticks_not_leading: usize,
}

impl ProposalQueue {
    pub(crate) fn new(region_id: RegionId, capacity: usize) -> Self {
        Self { region_id, waiting: VecDeque::new(), capacity, ticks_not_leading: 0 }
    }

    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// How many more proposals may enter.
    pub(crate) fn room(&self) -> usize {
        self.capacity.saturating_sub(self.waiting.len())
    }

    /// Takes in a proposal whose entry was appended.
    pub(crate) fn push(&mut self, index: Index, term: Term, callback: Callback, stamp: u64) {
        debug_assert!(self.waiting.len() < self.capacity, "the proposer asks for room first");
        debug_assert!(self
            .waiting
            .back()
            .is_none_or(|last| (last.term, last.index) < (term, index)));
        self.waiting.push_back(Waiting { index, term, callback, stamp });
    }

    /// An entry has committed: returns the proposal that it belongs to. Those that it shows to be
    /// stale are answered on the way.
    ///
    /// A committed entry decides about everything in front of it: an entry of a lower index can
    /// only have been passed over because another one committed there, and so has an entry of an
    /// older term at the same or a higher index, since terms never decrease along a log.
    pub(crate) fn committed(
        &mut self,
        index: Index,
        term: Term,
        answers: &mut Vec<(Callback, Answer)>,
    ) -> Option<Committed> {
        loop {
            let front = self.waiting.front()?;
            if front.term == term && front.index > index || front.term > term {
                return None;
            }
            let front = self.waiting.pop_front()?;
            if front.term == term && front.index == index {
                self.release();
                return Some(Committed { callback: front.callback, stamp: front.stamp });
            }
            let stale = ProposeError::Stale { region_id: self.region_id };
            answers.push((front.callback, Err(stale)));
            self.release();
        }
    }

    /// Counts a tick. After `limit` of them without leadership everything is answered unknown.
    pub(crate) fn tick(
        &mut self,
        leading: bool,
        limit: usize,
        answers: &mut Vec<(Callback, Answer)>,
    ) {
        if leading || self.waiting.is_empty() {
            self.ticks_not_leading = 0;
            return;
        }
        self.ticks_not_leading += 1;
        if self.ticks_not_leading >= limit {
            self.answer_unknown("leadership lost before the entry committed", answers);
        }
    }

    /// Answers everything that waits.
    pub(crate) fn answer_unknown(
        &mut self,
        reason: &'static str,
        answers: &mut Vec<(Callback, Answer)>,
    ) {
        let region_id = self.region_id;
        let waiting = std::mem::take(&mut self.waiting);
        answers.extend(
            waiting.into_iter().map(|waiting| {
                (waiting.callback, Err(ProposeError::Unknown { region_id, reason }))
            }),
        );
        self.ticks_not_leading = 0;
    }

    /// An idle region keeps no buffer.
    fn release(&mut self) {
        if self.waiting.is_empty() && self.waiting.capacity() > 64 {
            self.waiting = VecDeque::new();
        }
    }

    /// Gives all unused memory back.
    pub(crate) fn shrink(&mut self) {
        self.waiting.shrink_to_fit();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn push(queue: &mut ProposalQueue, index: u64, term: u64) {
        queue.push(Index::new(index), Term::new(term), Callback::new(|_| ()), index);
    }

    fn committed(queue: &mut ProposalQueue, index: u64, term: u64) -> (Option<u64>, usize) {
        let mut answers = Vec::new();
        let found = queue.committed(Index::new(index), Term::new(term), &mut answers);
        assert!(answers.iter().all(|(_, a)| matches!(a, Err(ProposeError::Stale { .. }))));
        (found.map(|committed| committed.stamp), answers.len())
    }

    fn queue() -> ProposalQueue {
        ProposalQueue::new(RegionId::new(1), 100)
    }

    #[test]
    fn entries_return_their_proposals_in_order() {
        let mut queue = queue();
        for index in 6..9 {
            push(&mut queue, index, 6);
        }
        assert_eq!(committed(&mut queue, 5, 6), (None, 0));
        assert_eq!(committed(&mut queue, 6, 6), (Some(6), 0));
        assert_eq!(committed(&mut queue, 7, 6), (Some(7), 0));
        assert_eq!(queue.len(), 1);
    }

    #[test]
    fn another_term_at_the_same_index_means_stale() {
        let mut queue = queue();
        push(&mut queue, 6, 6);
        assert_eq!(committed(&mut queue, 6, 7), (None, 1));
    }

    #[test]
    fn an_overwritten_tail_is_stale_at_once_when_a_newer_term_commits() {
        let mut queue = queue();
        for index in 6..10 {
            push(&mut queue, index, 6);
        }
        // Entry 7 of term 7 committed: entries 7, 8 and 9 of term 6 cannot follow it any more.
        assert_eq!(committed(&mut queue, 6, 6), (Some(6), 0));
        assert_eq!(committed(&mut queue, 7, 7), (None, 3));
    }

    #[test]
    fn a_leader_again_may_reuse_indexes_under_a_newer_term() {
        let mut queue = queue();
        push(&mut queue, 9, 6);
        push(&mut queue, 8, 8);
        assert_eq!(committed(&mut queue, 6, 6), (None, 0));
        assert_eq!(committed(&mut queue, 7, 8), (None, 1));
        assert_eq!(committed(&mut queue, 8, 8), (Some(8), 0));
    }

    #[test]
    fn unknown_is_answered_only_after_the_limit_without_leadership() {
        let mut queue = queue();
        push(&mut queue, 6, 6);
        let mut answers = Vec::new();
        queue.tick(false, 3, &mut answers);
        queue.tick(false, 3, &mut answers);
        queue.tick(true, 3, &mut answers);
        queue.tick(false, 3, &mut answers);
        queue.tick(false, 3, &mut answers);
        assert!(answers.is_empty());
        queue.tick(false, 3, &mut answers);
        assert!(matches!(answers.as_slice(), [(_, Err(ProposeError::Unknown { .. }))]));
        assert_eq!(queue.len(), 0);
    }
}
