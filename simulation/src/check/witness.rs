//! Linearizability by a witness: the committed log is the order, and it only has to be confirmed.
//!
//! To find an order is NP-complete in general (Gibbons and Korach, "Testing shared memories", 1997). To
//! confirm a given total order is not: sort by it, and walk it once. Real time needs no comparison of
//! pairs. If an operation was answered before another was invoked that stands
//! ahead of it in the log, then it was also answered before the *latest* invocation among all that stand
//! ahead of it; so the walk carries that one moment along. With the sort that is n log n, and where the
//! log comes in the order of its indexes, as state machines apply it, it is n.

use std::error::Error;
use std::fmt;

use rustc_hash::FxHashMap;

use super::history::{shown, Moment, Operation, OperationId, Outcome, Register, Through};

/// An operation in a region's committed log, as the state machines applied it. Entries that are no
/// operation of a client, such as those by which a new leader begins, are left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogEntry {
    /// Its index in the region's log.
    pub index: u64,
    /// Its term.
    pub term: u64,
    /// The operation.
    pub operation: OperationId,
}

/// How much a log was the witness of. Whoever expected more than this has checked too little.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Witnessed {
    /// Answered operations, all of which are in the log.
    pub answered: usize,
    /// Operations in the log of which nobody was told.
    pub silent: usize,
}

/// What a history and a log contradict each other in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WitnessError {
    /// Two operations of the history have the same id: the history is unusable.
    SameId {
        /// The id.
        operation: OperationId,
    },
    /// An operation was answered before it was invoked: the history is unusable.
    AnsweredBeforeInvoked {
        /// The operation.
        operation: OperationId,
        /// When it was invoked.
        invoked_at: Moment,
        /// When it was answered.
        answered_at: Moment,
    },
    /// The log has an operation that no client asked for.
    Unknown {
        /// Its entry.
        entry: LogEntry,
    },
    /// Two entries have the same index.
    IndexTwice {
        /// One of them.
        first: LogEntry,
        /// The other.
        second: LogEntry,
    },
    /// An entry has a lower term than one ahead of it.
    TermFalls {
        /// The one ahead.
        before: LogEntry,
        /// The one with the lower term.
        entry: LogEntry,
    },
    /// An operation was applied twice.
    Doubled {
        /// The index at which it was applied first.
        first_index: u64,
        /// The entry that applies it again.
        again: LogEntry,
    },
    /// An operation was applied of which the client had been told that it never would be.
    RefusedButApplied {
        /// Its entry.
        entry: LogEntry,
    },
    /// An answered operation is elsewhere in the log than its client was told.
    Elsewhere {
        /// The term of which its client was told.
        told_term: u64,
        /// The index of which its client was told.
        told_index: u64,
        /// Its entry.
        entry: LogEntry,
    },
    /// An answered operation is not in the log.
    Lost {
        /// The operation.
        operation: OperationId,
        /// The term of which its client was told.
        told_term: u64,
        /// The index of which its client was told.
        told_index: u64,
    },
    /// An operation was answered before another was invoked, and yet stands behind it in the log.
    RealTime {
        /// The entry of the one that was answered.
        answered: LogEntry,
        /// When it was answered.
        answered_at: Moment,
        /// The entry, further ahead in the log, of the one that was invoked later.
        invoked: LogEntry,
        /// When that was invoked.
        invoked_at: Moment,
    },
    /// An operation's answer is not what its register held.
    WrongOutput {
        /// Its entry.
        entry: LogEntry,
        /// The register.
        register: Register,
        /// What the register held before the operation, going by the log.
        held: Option<u64>,
        /// What its client was told.
        told: Option<u64>,
    },
    /// A stale read shows less than it was asked to.
    TooOld {
        /// Its place in the log.
        entry: LogEntry,
        /// Up to where it was to show the log.
        at_least: u64,
    },
}

impl fmt::Display for LogEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at index {} of term {}", self.operation, self.index, self.term)
    }
}

impl fmt::Display for WitnessError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SameId { operation } => write!(f, "two operations are called {operation}"),
            Self::AnsweredBeforeInvoked { operation, invoked_at, answered_at } => {
                write!(f, "{operation} was answered at {answered_at}, ")?;
                write!(f, "before it was invoked at {invoked_at}")
            }
            Self::Unknown { entry } => write!(f, "no client asked for {entry}"),
            Self::IndexTwice { first, second } => write!(f, "one index twice: {first}; {second}"),
            Self::TermFalls { before, entry } => write!(f, "the term falls: {before}; {entry}"),
            Self::Doubled { first_index, again } => {
                write!(f, "applied at index {first_index}, and again: {again}")
            }
            Self::RefusedButApplied { entry } => write!(f, "refused, but applied: {entry}"),
            Self::Elsewhere { told_term, told_index, entry } => {
                write!(f, "answered with index {told_index} of term {told_term}, but it is {entry}")
            }
            Self::Lost { operation, told_term, told_index } => {
                write!(
                    f,
                    "{operation} was answered with index {told_index} of term {told_term}, "
                )?;
                write!(f, "but is not in the log")
            }
            Self::RealTime { answered, answered_at, invoked, invoked_at } => {
                write!(f, "{answered} was answered at {answered_at}, before the invocation at ")?;
                write!(f, "{invoked_at} of one ahead of it: {invoked}")
            }
            Self::WrongOutput { entry, register, held, told } => {
                write!(f, "{register} held {} before {entry}, ", shown(*held))?;
                write!(f, "but its client was told {}", shown(*told))
            }
            Self::TooOld { entry, at_least } => write!(f, "asked for index {at_least}: {entry}"),
        }
    }
}

impl Error for WitnessError {}

/// A walk along the committed log of a region, confirming the region's history.
///
/// 1. [`new`](Self::new), with all operations of the region.
/// 2. [`apply`](Self::apply) for each entry, in the order of indexes: an error comes with the entry that
///    shows it.
/// 3. [`finish`](Self::finish), which finds what was answered and never came.
///
/// Memory: some 40 bytes for each operation beside the history, which is borrowed, and 16 for each key.
#[derive(Debug)]
pub struct Witness<'a> {
    operations: &'a [Operation],
    places: FxHashMap<OperationId, usize>,
    /// By place: the index at which the operation was applied.
    applied: Vec<Option<u64>>,
    /// What each register holds after the entries so far.
    values: FxHashMap<Register, u64>,
    last: Option<LogEntry>,
    /// The latest invocation among the entries so far.
    latest: Option<(Moment, LogEntry)>,
    witnessed: Witnessed,
}

impl<'a> Witness<'a> {
    /// Takes a region's history, in any order. Says if ids or times of it are impossible.
    ///
    /// # Panics
    ///
    /// If the operations are of several regions.
    pub fn new(operations: &'a [Operation]) -> Result<Self, WitnessError> {
        let mut places = FxHashMap::default();
        places.reserve(operations.len());
        for (place, operation) in operations.iter().enumerate() {
            let (id, region) = (operation.id, operation.register.region);
            let first = operations[0].register.region;
            assert!(region == first, "{id} is of region {region}, others are of region {first}");
            if places.insert(id, place).is_some() {
                return Err(WitnessError::SameId { operation: id });
            }
            let invoked_at = operation.invoked_at;
            match operation.outcome {
                Outcome::Done { at: answered_at, .. } if answered_at < invoked_at => {
                    let operation = id;
                    return Err(WitnessError::AnsweredBeforeInvoked {
                        operation,
                        invoked_at,
                        answered_at,
                    });
                }
                _ => {}
            }
        }
        Ok(Self {
            operations,
            places,
            applied: vec![None; operations.len()],
            values: FxHashMap::default(),
            last: None,
            latest: None,
            witnessed: Witnessed::default(),
        })
    }

    /// Registers that hold something before the first entry.
    pub fn hold(&mut self, values: impl IntoIterator<Item = (Register, u64)>) {
        self.values.extend(values);
    }

    /// The region parts with registers.
    pub fn part_with(&mut self, gone: impl Fn(&Register) -> bool) {
        self.values.retain(|register, _| !gone(register));
    }

    /// The next entry of the log.
    ///
    /// # Panics
    ///
    /// If its index is lower than that of the entry before.
    pub fn apply(&mut self, entry: LogEntry) -> Result<(), WitnessError> {
        if let Some(before) = self.last.replace(entry) {
            assert!(entry.index >= before.index, "not in the order of indexes: {before}; {entry}");
            if entry.index == before.index {
                return Err(WitnessError::IndexTwice { first: before, second: entry });
            }
            if entry.term < before.term {
                return Err(WitnessError::TermFalls { before, entry });
            }
        }
        let Some(&place) = self.places.get(&entry.operation) else {
            return Err(WitnessError::Unknown { entry });
        };
        if let Some(first_index) = self.applied[place].replace(entry.index) {
            return Err(WitnessError::Doubled { first_index, again: entry });
        }
        let operation = &self.operations[place];
        let held = self.values.get(&operation.register).copied();
        self.compare(operation, entry, held)?;
        if let Some(value) = operation.kind.after(held) {
            self.values.insert(operation.register, value);
        }
        self.note_invocation(operation.invoked_at, entry);
        Ok(())
    }

    /// A read that went beside the log, after the last entry that it saw. Reads of the same index come in the
    /// order of their invocations.
    ///
    /// # Panics
    ///
    /// If the history has no such read with an answer.
    pub fn look(&mut self, read: OperationId) -> Result<(), WitnessError> {
        let place = self.places[&read];
        let operation = &self.operations[place];
        let Outcome::Done { at: answered_at, term, index, output: told } = operation.outcome else {
            panic!("{operation:?} was not answered");
        };
        let entry = LogEntry { index, term, operation: read };
        let known = self.last.map_or(0, |last| last.index);
        assert!(known <= index, "{read} comes after index {known}, and saw no more than {index}");
        self.applied[place] = Some(index);
        match operation.through {
            Through::Log => panic!("{operation:?} went through the log"),
            Through::StaleRead { at_least } if index < at_least => {
                return Err(WitnessError::TooOld { entry, at_least });
            }
            Through::StaleRead { .. } => {}
            Through::Read => {
                let ahead = self.latest.filter(|(latest, _)| answered_at < *latest);
                if let Some((invoked_at, invoked)) = ahead {
                    let answered = entry;
                    return Err(WitnessError::RealTime {
                        answered,
                        answered_at,
                        invoked,
                        invoked_at,
                    });
                }
                self.note_invocation(operation.invoked_at, entry);
            }
        }
        let held = self.values.get(&operation.register).copied();
        if held != told {
            let register = operation.register;
            return Err(WitnessError::WrongOutput { entry, register, held, told });
        }
        self.witnessed.answered += 1;
        Ok(())
    }

    fn note_invocation(&mut self, at: Moment, entry: LogEntry) {
        if self.latest.is_none_or(|(latest, _)| latest < at) {
            self.latest = Some((at, entry));
        }
    }

    /// Compares what a client was told with an entry and with what the register held ahead of it.
    fn compare(
        &mut self,
        operation: &Operation,
        entry: LogEntry,
        held: Option<u64>,
    ) -> Result<(), WitnessError> {
        let (answered_at, told_term, told_index, told) = match operation.outcome {
            Outcome::Pending => {
                self.witnessed.silent += 1;
                return Ok(());
            }
            Outcome::Refused => return Err(WitnessError::RefusedButApplied { entry }),
            Outcome::Done { at, term, index, output } => (at, term, index, output),
        };
        if (told_term, told_index) != (entry.term, entry.index) {
            return Err(WitnessError::Elsewhere { told_term, told_index, entry });
        }
        if let Some((invoked_at, invoked)) = self.latest.filter(|(latest, _)| answered_at < *latest)
        {
            let answered = entry;
            return Err(WitnessError::RealTime { answered, answered_at, invoked, invoked_at });
        }
        if held != told {
            let register = operation.register;
            return Err(WitnessError::WrongOutput { entry, register, held, told });
        }
        self.witnessed.answered += 1;
        Ok(())
    }

    /// The end of the log.
    pub fn finish(self) -> Result<Witnessed, WitnessError> {
        for (operation, applied) in self.operations.iter().zip(&self.applied) {
            match operation.outcome {
                Outcome::Done { term: told_term, index: told_index, .. } if applied.is_none() => {
                    let operation = operation.id;
                    return Err(WitnessError::Lost { operation, told_term, told_index });
                }
                _ => {}
            }
        }
        Ok(self.witnessed)
    }
}

/// Confirms a region's history by its whole committed log; both may come in any order.
///
/// # Panics
///
/// If the operations are of several regions.
pub fn check_log(operations: &[Operation], log: &[LogEntry]) -> Result<Witnessed, WitnessError> {
    let mut witness = Witness::new(operations)?;
    if log.is_sorted_by_key(|entry| entry.index) {
        log.iter().try_for_each(|entry| witness.apply(*entry))?;
    } else {
        let mut log = log.to_vec();
        log.sort_by_key(|entry| entry.index);
        log.iter().try_for_each(|entry| witness.apply(*entry))?;
    }
    witness.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::{ClientId, Kind};

    fn at(sequence: u64) -> Moment {
        Moment { sequence, time_us: sequence * 10 }
    }

    fn entry(index: u64, term: u64, operation: u64) -> LogEntry {
        LogEntry { index, term, operation: OperationId(operation) }
    }

    /// A write of 10, a read of it, and a write of 20 that nobody answered, one after another.
    fn history() -> (Vec<Operation>, Vec<LogEntry>) {
        let register = Register { region: 1, key: 1 };
        let kinds = [Kind::Write(10), Kind::Read, Kind::Write(20)];
        let outputs = [None, Some(10), None];
        let operation = |place: usize| {
            let number = place as u64;
            let done = Outcome::Done {
                at: at(number * 2 + 1),
                term: 5,
                index: number + 6,
                output: outputs[place],
            };
            Operation {
                id: OperationId(number),
                client: ClientId(1),
                register,
                kind: kinds[place],
                through: Through::Log,
                invoked_at: at(number * 2),
                outcome: if place == 2 { Outcome::Pending } else { done },
            }
        };
        let log = vec![entry(6, 5, 0), entry(7, 5, 1), entry(9, 6, 2)];
        ((0..3).map(operation).collect(), log)
    }

    #[test]
    fn log_in_any_order_confirms_history() {
        let (operations, mut log) = history();
        log.reverse();
        assert_eq!(check_log(&operations, &log), Ok(Witnessed { answered: 2, silent: 1 }));
        assert_eq!(check_log(&[], &[]), Ok(Witnessed::default()));
    }

    #[test]
    fn unanswered_operation_may_be_missing() {
        let (operations, mut log) = history();
        log.pop();
        assert_eq!(check_log(&operations, &log), Ok(Witnessed { answered: 2, silent: 0 }));
    }

    #[test]
    fn operation_that_nobody_asked_for_is_found() {
        let (operations, mut log) = history();
        log.push(entry(10, 6, 99));
        let found = check_log(&operations, &log).unwrap_err();
        assert_eq!(found, WitnessError::Unknown { entry: entry(10, 6, 99) });
        assert_eq!(found.to_string(), "no client asked for operation 99 at index 10 of term 6");
    }

    #[test]
    fn index_with_two_operations_is_found() {
        let (operations, mut log) = history();
        log[2].index = 7;
        let (first, second) = (log[1], log[2]);
        let found = check_log(&operations, &log).unwrap_err();
        assert_eq!(found, WitnessError::IndexTwice { first, second });
    }

    #[test]
    fn falling_term_is_found() {
        let (operations, mut log) = history();
        log[2].term = 4;
        let (before, last) = (log[1], log[2]);
        let found = check_log(&operations, &log).unwrap_err();
        assert_eq!(found, WitnessError::TermFalls { before, entry: last });
    }

    #[test]
    fn other_term_than_the_client_was_told_is_found() {
        let (operations, mut log) = history();
        log[1].term = 6;
        let found = check_log(&operations, &log).unwrap_err();
        let (told_term, told_index) = (5, 7);
        assert_eq!(found, WitnessError::Elsewhere { told_term, told_index, entry: log[1] });
    }

    /// A read beside the log, as a fourth operation that saw the log up to an index.
    fn look(through: Through, from: u64, until: u64, index: u64, seen: u64) -> Result<(), String> {
        let (mut operations, log) = history();
        operations.push(Operation {
            id: OperationId(3),
            through,
            invoked_at: at(from),
            outcome: Outcome::Done { at: at(until), term: 0, index, output: Some(seen) },
            ..operations[1]
        });
        let mut witness = Witness::new(&operations).expect("sound");
        let mut looks = [OperationId(3)].into_iter().peekable();
        let walk = || {
            for entry in log {
                if entry.index > index {
                    looks.next().map_or(Ok(()), |read| witness.look(read))?;
                }
                witness.apply(entry)?;
            }
            looks.next().map_or(Ok(()), |read| witness.look(read))?;
            witness.finish().map(|_| ())
        };
        walk().map_err(|error: WitnessError| error.to_string())
    }

    #[test]
    fn reads_beside_the_log_stand_behind_what_they_saw() {
        assert_eq!(look(Through::Read, 2, 9, 7, 10), Ok(()));
        assert_eq!(look(Through::Read, 4, 9, 9, 20), Ok(()), "nobody was told of the write of 20");
        let error = look(Through::Read, 2, 9, 8, 20).unwrap_err();
        assert!(error.starts_with("key 1 of region 1 held 10 before operation 3"), "{error}");
        // The read at index 7 was answered before this one was invoked, which saw less.
        let error = look(Through::Read, 4, 9, 6, 10).unwrap_err();
        assert!(error.starts_with("operation 1 at index 7 of term 5 was answered"), "{error}");
        // It was answered before the write was invoked that it saw.
        let error = look(Through::Read, 2, 3, 9, 20).unwrap_err();
        assert!(error.starts_with("operation 3 at index 9 of term 0 was answered"), "{error}");
    }

    #[test]
    fn stale_reads_show_a_state_that_was_and_is_new_enough() {
        let stale = |at_least| Through::StaleRead { at_least };
        assert_eq!(look(stale(6), 4, 9, 6, 10), Ok(()));
        let error = look(stale(7), 4, 9, 6, 10).unwrap_err();
        assert_eq!(error, "asked for index 7: operation 3 at index 6 of term 0");
        assert!(look(stale(0), 4, 9, 6, 20).is_err());
    }

    #[test]
    fn impossible_history_is_found() {
        let (mut operations, log) = history();
        operations[1].invoked_at = at(4);
        let found = check_log(&operations, &log).unwrap_err();
        assert!(matches!(found, WitnessError::AnsweredBeforeInvoked { .. }), "{found}");
        operations[1].id = OperationId(0);
        let found = check_log(&operations, &log).unwrap_err();
        assert_eq!(found, WitnessError::SameId { operation: OperationId(0) });
    }

    #[test]
    fn unanswered_operation_keeps_to_real_time_too() {
        let (operations, mut log) = history();
        // The write of 20 was invoked after the read was answered, and cannot stand ahead of it.
        log[2] = entry(5, 5, 2);
        let found = check_log(&operations, &log).unwrap_err();
        assert_eq!(
            found.to_string(),
            "operation 0 at index 6 of term 5 was answered at 10 us (#1), before the invocation at \
             40 us (#4) of one ahead of it: operation 2 at index 5 of term 5"
        );
    }
}
