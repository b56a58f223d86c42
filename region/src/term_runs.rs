//! The term of every entry of the log, in memory.
//!
//! raft-rs looks up terms in the middle of a step and gives the process up if that fails. Terms
//! never decrease along a log, so those of a whole log are a few runs of equal terms, one a leader:
//! 16 bytes each. Kept here, no term is ever read from disk after a restart, and no look-up fails.
//!
//! A restart finds the runs by bisection, since only the ends of the log are known: about log₂ of
//! its length reads a run, and none for a log that is fully truncated or of one term.

use crate::ids::{Index, RegionId, Term};
use crate::log_reader::{LogReadError, LogReader};
use crate::records::TruncatedState;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Run {
    first: u64,
    term: u64,
}

/// Terms of the entries from the truncated one to the last.
///
/// Invariant: `runs` is not empty, both its columns strictly increase, and its first run begins at
/// the truncated index. `last` is not before the beginning of the last run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct TermRuns {
    runs: Vec<Run>,
    last: u64,
}

impl TermRuns {
    /// Of a log without entries.
    pub(crate) fn new(truncated: TruncatedState) -> Self {
        let first = truncated.index.get();
        Self { runs: vec![Run { first, term: truncated.term.get() }], last: first }
    }

    /// Of a persisted log that ends with `last`.
    pub(crate) fn load(
        region_id: RegionId,
        truncated: TruncatedState,
        last: Index,
        reader: &dyn LogReader,
    ) -> Result<Self, LogReadError> {
        let mut terms = Self::new(truncated);
        if last == truncated.index {
            return Ok(terms);
        }
        let fail = |index: u64, cause: String| LogReadError {
            region_id,
            low: Index::new(index),
            high: Index::new(index + 1),
            cause,
        };
        let read = |index: u64, least: u64| -> Result<u64, LogReadError> {
            match reader.term(region_id, Index::new(index))?.map(Term::get) {
                None => Err(fail(index, "missing from the log".into())),
                Some(term) if term < least => {
                    Err(fail(index, format!("its term {term} is below {least}, the one before")))
                }
                Some(term) => Ok(term),
            }
        };
        let last_term = read(last.get(), truncated.term.get())?;
        terms.last = last.get();
        // Each pass finds where the current run ends. The entry after the truncated one is looked
        // at like any other, so a run may begin right there.
        let mut run = terms.runs[0];
        while run.term < last_term {
            let (mut within, mut beyond, mut beyond_term) = (run.first, last.get(), last_term);
            while beyond - within > 1 {
                let middle = within + (beyond - within) / 2;
                let term = read(middle, run.term)?;
                if term > last_term {
                    return Err(fail(middle, format!("its term {term} is above the last one's")));
                }
                if term == run.term {
                    within = middle;
                } else {
                    (beyond, beyond_term) = (middle, term);
                }
            }
            run = Run { first: beyond, term: beyond_term };
            terms.runs.push(run);
        }
        Ok(terms)
    }

    /// Index of the last entry, or the truncated index.
    pub(crate) fn last_index(&self) -> u64 {
        self.last
    }

    /// Index of the truncated entry.
    pub(crate) fn truncated_index(&self) -> u64 {
        self.runs[0].first
    }

    /// Term of the entry at `index`, which lies in the log or is the truncated one.
    pub(crate) fn term(&self, index: u64) -> Option<u64> {
        if index < self.truncated_index() || index > self.last {
            return None;
        }
        // Nearly always the question is about the last run.
        let at = match self.runs.last() {
            Some(run) if run.first <= index => self.runs.len(),
            _ => self.runs.partition_point(|run| run.first <= index),
        };
        Some(self.runs[at - 1].term)
    }

    /// Puts an entry at `index`, which replaces everything from there on.
    pub(crate) fn append(&mut self, index: u64, term: u64) {
        debug_assert!(index > self.truncated_index() && index <= self.last + 1);
        if index <= self.last {
            let keep = self.runs.partition_point(|run| run.first < index);
            self.runs.truncate(keep);
        }
        self.last = index;
        let run = self.runs[self.runs.len() - 1];
        debug_assert!(run.term <= term, "term {term} after {} at {index}", run.term);
        if run.term != term {
            self.runs.push(Run { first: index, term });
        }
    }

    /// Forgets everything before `index`, which becomes the truncated one.
    pub(crate) fn truncate_to(&mut self, index: u64) {
        debug_assert!(index >= self.truncated_index() && index <= self.last);
        let at = self.runs.partition_point(|run| run.first <= index);
        self.runs.drain(..at - 1);
        self.runs[0].first = index;
        self.runs.shrink_to_fit();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use raft::eraftpb::Entry;
    use std::cell::Cell;
    use std::sync::Mutex;

    struct Terms(Vec<u64>, Mutex<Cell<usize>>);

    impl LogReader for Terms {
        fn entries(
            &self,
            _: RegionId,
            _: Index,
            _: Index,
            _: usize,
        ) -> Result<Vec<Entry>, LogReadError> {
            unreachable!("terms are enough")
        }

        fn term(&self, _: RegionId, index: Index) -> Result<Option<Term>, LogReadError> {
            let reads = self.1.lock().unwrap();
            reads.set(reads.get() + 1);
            Ok(self.0.get(index.get() as usize - 6).copied().map(Term::new))
        }
    }

    fn load(terms: &[u64]) -> (Result<TermRuns, LogReadError>, usize) {
        let reader = Terms(terms.to_vec(), Mutex::default());
        let last = Index::new(5 + terms.len() as u64);
        let runs = TermRuns::load(RegionId::new(1), TruncatedState::INITIAL, last, &reader);
        let reads = reader.1.lock().unwrap().get();
        (runs, reads)
    }

    #[test]
    fn bisection_finds_every_run() {
        let mut cases = vec![vec![], vec![5], vec![6], vec![5, 6], vec![6, 7, 8, 9]];
        cases.push([vec![5; 40], vec![6; 1], vec![9; 100], vec![11; 3]].concat());
        cases.push((6..60).collect());
        for terms in cases {
            let runs = load(&terms).0.unwrap();
            assert_eq!(runs.term(5), Some(5));
            for (at, term) in terms.iter().enumerate() {
                assert_eq!(runs.term(6 + at as u64), Some(*term), "{terms:?}");
            }
            assert_eq!(runs.term(4), None);
            assert_eq!(runs.term(6 + terms.len() as u64), None);
            let mut appended = TermRuns::new(TruncatedState::INITIAL);
            for (at, term) in terms.iter().enumerate() {
                appended.append(6 + at as u64, *term);
            }
            assert_eq!(appended, runs);
        }
    }

    #[test]
    fn a_long_log_of_few_terms_is_not_read_entry_by_entry() {
        let (_, reads) = load(&[vec![6; 50_000], vec![7; 50_000]].concat());
        assert!(reads < 50, "{reads} reads");
    }

    #[test]
    fn a_log_whose_terms_fall_is_refused() {
        assert!(load(&[7, 6]).0.is_err());
        assert!(load(&[4]).0.is_err());
        assert!(load(&[6, 6, 9, 6, 8]).0.is_err());
    }

    #[test]
    fn appending_replaces_the_tail_and_truncating_the_head() {
        let mut runs = TermRuns::new(TruncatedState::INITIAL);
        for (index, term) in [(6, 6), (7, 6), (8, 7), (9, 8), (8, 9)] {
            runs.append(index, term);
        }
        let terms = |runs: &TermRuns| (5..11).map(|i| runs.term(i)).collect::<Vec<_>>();
        assert_eq!(terms(&runs), [Some(5), Some(6), Some(6), Some(9), None, None]);
        runs.truncate_to(7);
        assert_eq!(terms(&runs), [None, None, Some(6), Some(9), None, None]);
        runs.truncate_to(8);
        assert_eq!(terms(&runs), [None, None, None, Some(9), None, None]);
        runs.append(9, 9);
        assert_eq!(runs.runs.len(), 1);
    }
}
