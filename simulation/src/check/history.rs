//! What clients asked for and what they were told, as plain data.

use std::collections::BTreeMap;
use std::fmt;

/// A client: asks for one thing after another, though it may give up on one and ask for the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientId(pub u64);

/// An operation, by a number that no other operation of the history has, retries included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OperationId(pub u64);

impl fmt::Display for OperationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "operation {}", self.0)
    }
}

/// A moment of virtual time.
///
/// Moments are ordered by their sequence numbers. The time is there to be read by people, and orders
/// nothing: many things happen in one microsecond.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment {
    /// Its place among all moments of the run: later is larger. Two operations whose moments have the
    /// same number count as concurrent.
    pub sequence: u64,
    /// Virtual time since the run began, in microseconds.
    pub time_us: u64,
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} us (#{})", self.time_us, self.sequence)
    }
}

/// What an operation does to its register. The register holds a number, or nothing (`None`) at first and
/// until it is first written; it never holds nothing again.
///
/// If no two operations of a register write the same value, both checkers see more: a value then tells
/// which operation wrote it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Leaves the register as it is.
    Read,
    /// Puts a value into the register.
    Write(u64),
    /// Puts `new` into the register if it holds `expected`, and otherwise leaves it as it is. Its output
    /// tells which: it has worked if and only if the output is `expected`.
    CompareAndSet {
        /// What the register must hold; `None` for nothing yet.
        expected: Option<u64>,
        /// What it then holds.
        new: u64,
    },
}

impl Kind {
    /// What a register that held `before` holds afterwards.
    pub fn after(self, before: Option<u64>) -> Option<u64> {
        match self {
            Self::Write(value) => Some(value),
            Self::CompareAndSet { expected, new } if expected == before => Some(new),
            Self::CompareAndSet { .. } | Self::Read => before,
        }
    }
}

/// Which way an operation takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Through {
    /// Through the log, as a command.
    #[default]
    Log,
    /// Beside it: a read that shows everything that was answered before it was asked for.
    Read,
    /// Beside it: a read that shows everything up to an index, and whatever else it likes.
    StaleRead {
        /// The index.
        at_least: u64,
    },
}

/// What became of an operation, as its client knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Never answered, or answered that nobody knows: it may happen at any time after its invocation,
    /// or never.
    Pending,
    /// It has not happened and never will.
    Refused,
    /// It has happened.
    Done {
        /// When its client was told.
        at: Moment,
        /// The term of its entry in the log; 0 for one that went beside it.
        term: u64,
        /// The index of its entry in the log; for one that went beside it, up to where was applied what it
        /// saw.
        index: u64,
        /// What the register held before it, for operations of every kind.
        output: Option<u64>,
    },
}

/// One key of one region: the thing that holds a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Register {
    /// The region's id.
    pub region: u64,
    /// The key.
    pub key: u64,
}

impl fmt::Display for Register {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "key {} of region {}", self.key, self.region)
    }
}

/// An operation of a client on a register, from its invocation to what became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operation {
    /// Its name.
    pub id: OperationId,
    /// Who asked.
    pub client: ClientId,
    /// The register.
    pub register: Register,
    /// What it does.
    pub kind: Kind,
    /// Which way.
    pub through: Through,
    /// When it was asked for. An operation that is asked for again, since nobody answered, is another
    /// operation.
    pub invoked_at: Moment,
    /// What became of it.
    pub outcome: Outcome,
}

/// The operations of each register, in the order in which they are given. Without stale reads: what one saw
/// may have been over before it was asked for.
pub fn by_register(operations: &[Operation]) -> BTreeMap<Register, Vec<Operation>> {
    let mut found: BTreeMap<Register, Vec<Operation>> = BTreeMap::new();
    let is_stale = |through| matches!(through, Through::StaleRead { .. });
    for operation in operations.iter().filter(|operation| !is_stale(operation.through)) {
        found.entry(operation.register).or_default().push(*operation);
    }
    found
}

/// A register's value, for an error.
pub(super) fn shown(value: Option<u64>) -> String {
    value.map_or_else(|| "nothing".to_owned(), |value| value.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compare_and_set_writes_only_over_what_it_expects() {
        let first = Kind::CompareAndSet { expected: None, new: 1 };
        assert_eq!((first.after(None), first.after(Some(7))), (Some(1), Some(7)));
        let second = Kind::CompareAndSet { expected: Some(1), new: 2 };
        assert_eq!((second.after(None), second.after(Some(1))), (None, Some(2)));
        assert_eq!((Kind::Write(3).after(Some(1)), Kind::Read.after(Some(1))), (Some(3), Some(1)));
    }

    #[test]
    fn moments_are_ordered_by_sequence_and_not_by_time() {
        let first = Moment { sequence: 1, time_us: 9 };
        assert!(first < Moment { sequence: 2, time_us: 9 });
        assert!(first < Moment { sequence: 2, time_us: 8 });
    }
}
