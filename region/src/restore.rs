//! From what is on disk to a region, or to the reason why not.
//!
//! Three things are read back: the record and the log with its hard state, from the log store, and
//! the applied state, from the state machine. They are written by different hands at different
//! times, so they are compared before anything is built on them:
//!
//! - The state machine need not sync. After a crash it may be *behind*, as far back as the
//!   truncated index (the log is cut only up to what it has flushed), and the log is replayed to it.
//! - It is never *ahead* of the log: commands are applied only after their entry is persisted here.
//! - The hard state's commit index is written late and may lie behind the applied index; the greater
//!   of the two counts.
//!
//! Anything else is damage, and is named, with its figures.

use std::sync::Arc;

use raft::eraftpb::HardState;

use crate::description::{Peer, RegionDescription, INITIAL_TERM};
use crate::effects::RegionFailure;
use crate::ids::{Index, RegionId, StoreId};
use crate::log_reader::LogReader;
use crate::records::{AppliedState, RegionRecord, TruncatedState};
use crate::term_runs::TermRuns;

/// What is on disk about a region.
///
/// Of a region that is just being created: a record, [`TruncatedState::INITIAL`] with its index as
/// `last_index`, and nothing else.
#[derive(Clone, Debug)]
pub struct RestoredState {
    /// From the log store.
    pub record: RegionRecord,
    /// From the log store; `None` if none was ever written.
    pub hard_state: Option<HardState>,
    /// From the log store.
    pub truncated: TruncatedState,
    /// Last entry of the log; the truncated index if there is none.
    pub last_index: Index,
    /// From the state machine; `None` if it never stored one.
    pub applied: Option<AppliedState>,
}

/// Checked.
pub(crate) struct SoundState {
    pub(crate) description: Arc<RegionDescription>,
    pub(crate) me: Peer,
    /// As on disk, for the comparison with later ones.
    pub(crate) written: HardState,
    /// With the commit index moved up to the applied one.
    pub(crate) current: HardState,
    pub(crate) terms: TermRuns,
    pub(crate) applied: Index,
    /// For so many ticks an earlier promise to a leader may still stand.
    pub(crate) no_vote_ticks: usize,
    /// What is known to be committed.
    pub(crate) replay_to: Index,
    /// The contents are still in the parent of a split.
    pub(crate) awaits_split: bool,
}

/// Compares what is on disk, and completes it.
pub(crate) fn check(
    state: RestoredState,
    store_id: StoreId,
    election_ticks: usize,
    reader: &dyn LogReader,
) -> Result<SoundState, RegionFailure> {
    let region_id = state.record.description.id;
    if !state.record.description.is_initialised() {
        return check_uninitialised(state, store_id, election_ticks);
    }
    let (description, me) = check_description(&state, store_id)?;
    let applied = check_positions(region_id, &state)?;
    let terms = TermRuns::load(region_id, state.truncated, state.last_index, reader)?;
    let term_at = |index: Index| terms.term(index.get()).unwrap_or(0);
    if let Some(applied) = &state.applied {
        if term_at(applied.index) != applied.term.get() {
            let rule =
                format!("the log has term {} at index {}", term_at(applied.index), applied.index);
            return inconsistent(region_id, "the applied term", applied.term.get(), rule);
        }
    }
    let written = check_hard_state(region_id, &state, term_at(state.last_index))?;
    let mut current = written.clone();
    current.commit = current.commit.max(applied.get());
    Ok(SoundState {
        no_vote_ticks: no_vote_ticks(state.hard_state.as_ref(), election_ticks),
        replay_to: Index::new(current.commit),
        awaits_split: state.applied.is_none() && state.record.origin.is_some(),
        description,
        me,
        written,
        current,
        terms,
        applied,
    })
}

/// Of a peer that was told of its region and had nothing of it. It may have voted all the same.
fn check_uninitialised(
    state: RestoredState,
    store_id: StoreId,
    election_ticks: usize,
) -> Result<SoundState, RegionFailure> {
    let (record, nothing) = (&state.record, TruncatedState::NOTHING);
    let region_id = record.description.id;
    if state.last_index > TruncatedState::INITIAL.index {
        let rule = "the region is not initialised";
        return inconsistent(region_id, "the last index", state.last_index.get(), rule);
    }
    if let Some(applied) = &state.applied {
        let rule = "the region is not initialised";
        return inconsistent(region_id, "the applied index", applied.index.get(), rule);
    }
    let hard_state = state.hard_state.clone().unwrap_or_default();
    if hard_state.commit != 0 {
        let rule = "the region is not initialised";
        return inconsistent(region_id, "the commit index", hard_state.commit, rule);
    }
    Ok(SoundState {
        description: record.description.clone(),
        me: Peer::learner(record.peer_id, store_id),
        no_vote_ticks: no_vote_ticks(state.hard_state.as_ref(), election_ticks),
        written: hard_state.clone(),
        current: hard_state,
        terms: TermRuns::new(nothing),
        applied: nothing.index,
        replay_to: nothing.index,
        awaits_split: false,
    })
}

/// A peer that has never spoken to a leader owes nothing.
fn no_vote_ticks(hard_state: Option<&HardState>, election_ticks: usize) -> usize {
    let spoke = hard_state.is_some_and(|hard_state| hard_state.term > INITIAL_TERM.get());
    if spoke {
        election_ticks
    } else {
        0
    }
}

fn inconsistent<T>(
    region_id: RegionId,
    what: &'static str,
    value: u64,
    rule: impl Into<String>,
) -> Result<T, RegionFailure> {
    Err(RegionFailure::Inconsistent { region_id, what, value, rule: rule.into() })
}

fn check_description(
    state: &RestoredState,
    store_id: StoreId,
) -> Result<(Arc<RegionDescription>, Peer), RegionFailure> {
    let record = &state.record;
    let region_id = record.description.id;
    let description = match &state.applied {
        Some(applied) => applied.description.clone(),
        None => record.description.clone(),
    };
    description.validate().map_err(|cause| RegionFailure::Description { region_id, cause })?;
    if description.id != region_id {
        let rule = format!("the record is of region {region_id}");
        return inconsistent(region_id, "the applied state's region", description.id.get(), rule);
    }
    if record.tombstone {
        let rule = "it is destroyed and may never return";
        return inconsistent(region_id, "the peer", record.peer_id.get(), rule);
    }
    match description.peer(record.peer_id) {
        Some(peer) if peer.store == store_id => Ok((description.clone(), *peer)),
        _ => Err(RegionFailure::NotOurs { region_id, peer_id: record.peer_id, store_id }),
    }
}

/// Returns the applied index.
fn check_positions(region_id: RegionId, state: &RestoredState) -> Result<Index, RegionFailure> {
    let (truncated, last) = (state.truncated, state.last_index);
    let initial = TruncatedState::INITIAL;
    if truncated.index < initial.index || truncated.term < initial.term {
        let rule = "a region's log begins at 5, in term 5";
        return inconsistent(region_id, "the truncated index", truncated.index.get(), rule);
    }
    if last < truncated.index {
        let rule = format!("the log is truncated at {}", truncated.index);
        return inconsistent(region_id, "the last index", last.get(), rule);
    }
    let Some(applied) = &state.applied else {
        if truncated != initial {
            let rule = "the state machine has no applied state to go on from";
            return inconsistent(region_id, "the truncated index", truncated.index.get(), rule);
        }
        return Ok(initial.index);
    };
    if applied.index < truncated.index {
        let rule = format!("the log that it needs is truncated at {}", truncated.index);
        return inconsistent(region_id, "the applied index", applied.index.get(), rule);
    }
    if applied.index > last {
        let rule = format!("the log ends at {last}");
        return inconsistent(region_id, "the applied index", applied.index.get(), rule);
    }
    Ok(applied.index)
}

fn check_hard_state(
    region_id: RegionId,
    state: &RestoredState,
    last_term: u64,
) -> Result<HardState, RegionFailure> {
    let Some(hard_state) = &state.hard_state else {
        // A peer writes its first term before, or together with, its first entry.
        if state.last_index != TruncatedState::INITIAL.index {
            let rule = "there is no hard state";
            return inconsistent(region_id, "the last index", state.last_index.get(), rule);
        }
        return Ok(HardState {
            term: INITIAL_TERM.get(),
            commit: state.truncated.index.get(),
            ..HardState::default()
        });
    };
    if hard_state.term < last_term || hard_state.term > u64::MAX / 2 {
        let rule = format!("the last entry's is {last_term}");
        return inconsistent(region_id, "the term", hard_state.term, rule);
    }
    if hard_state.commit > state.last_index.get() {
        let rule = format!("the log ends at {}", state.last_index);
        return inconsistent(region_id, "the commit index", hard_state.commit, rule);
    }
    Ok(hard_state.clone())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::description::tests::description;
    use crate::ids::{PeerId, Term};
    use crate::log_reader::LogReadError;
    use raft::eraftpb::Entry;

    pub(crate) struct TermSix;

    impl LogReader for TermSix {
        fn entries(
            &self,
            _: RegionId,
            _: Index,
            _: Index,
            _: usize,
        ) -> Result<Vec<Entry>, LogReadError> {
            Ok(Vec::new())
        }

        fn term(&self, _: RegionId, _: Index) -> Result<Option<Term>, LogReadError> {
            Ok(Some(Term::new(6)))
        }
    }

    pub(crate) fn state() -> RestoredState {
        RestoredState {
            record: RegionRecord::new(description(3, 3), PeerId::new(2)),
            hard_state: Some(HardState { term: 6, vote: 1, commit: 8, ..HardState::default() }),
            truncated: TruncatedState { index: Index::new(7), term: Term::new(6) },
            last_index: Index::new(12),
            applied: Some(AppliedState {
                index: Index::new(9),
                term: Term::new(6),
                description: Arc::new(description(3, 3)),
            }),
        }
    }

    fn failure(spoil: impl FnOnce(&mut RestoredState)) -> String {
        let mut state = state();
        spoil(&mut state);
        match check(state, StoreId::new(2), 10, &TermSix) {
            Ok(_) => panic!("accepted"),
            Err(failure) => failure.to_string(),
        }
    }

    #[test]
    fn the_commit_index_is_moved_up_to_the_applied_one() {
        let sound = check(state(), StoreId::new(2), 10, &TermSix).unwrap();
        assert_eq!((sound.written.commit, sound.current.commit), (8, 9));
        assert_eq!(sound.applied, Index::new(9));
        assert_eq!((sound.terms.last_index(), sound.terms.term(12)), (12, Some(6)));
    }

    #[test]
    fn a_new_region_needs_nothing_but_its_record() {
        let mut state = state();
        state.hard_state = None;
        state.truncated = TruncatedState::INITIAL;
        state.last_index = state.truncated.index;
        state.applied = None;
        let sound = check(state, StoreId::new(2), 10, &TermSix).unwrap();
        assert_eq!((sound.current.term, sound.current.commit), (5, 5));
    }

    #[test]
    fn damage_is_named_with_its_figures() {
        let expected = [
            (
                failure(|s| s.hard_state.as_mut().unwrap().commit = 13),
                "region 3: the commit index is 13, but the log ends at 12",
            ),
            (
                failure(|s| s.last_index = Index::new(8)),
                "region 3: the applied index is 9, but the log ends at 8",
            ),
            (
                failure(|s| s.truncated.index = Index::new(10)),
                "region 3: the applied index is 9, but the log that it needs is truncated at 10",
            ),
            (
                failure(|s| s.applied = None),
                "region 3: the truncated index is 7, but the state machine has no applied state \
                 to go on from",
            ),
            (
                failure(|s| s.applied.as_mut().unwrap().term = Term::new(7)),
                "region 3: the applied term is 7, but the log has term 6 at index 9",
            ),
            (
                failure(|s| s.hard_state = None),
                "region 3: the last index is 12, but there is no hard state",
            ),
            (
                failure(|s| s.hard_state.as_mut().unwrap().term = 5),
                "region 3: the term is 5, but the last entry's is 6",
            ),
            (
                failure(|s| s.record.tombstone = true),
                "region 3: the peer is 2, but it is destroyed and may never return",
            ),
            (failure(|s| s.record.peer_id = PeerId::new(1)), "region 3: peer 1 is not on store 2"),
        ];
        for (actual, expected) in expected {
            assert_eq!(actual, expected);
        }
    }
}
