//! What the cluster as a whole has done, and what must hold of it at every step.
//!
//! * One leader a term and region.
//! * Log matching: entries of equal index and term are equal, and so are those before them.
//! * State machine safety: what any store applies at an index, every store applies there.
//! * The first thing that does not hold is kept; the run ends with it.

use raftstore::RegionDescription;
use rustc_hash::FxHashMap;
use std::collections::BTreeMap;

/// Something that must not be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which rule is broken, in a word or two.
    pub rule: &'static str,
    /// What happened, with all figures.
    pub text: String,
}

/// An entry as somebody has written it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// Hash of its contents.
    pub digest: u64,
    /// Term of the entry before it.
    pub previous_term: u64,
}

/// A command as somebody has applied it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Applied {
    /// Term of its entry.
    pub term: u64,
    /// The operation that it carries out.
    pub operation: u64,
    /// Hash of its answer.
    pub output: u64,
}

/// How a region began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Birth {
    /// The region that it was a part of.
    pub parent: u64,
    /// The split's index in that one's log.
    pub index: u64,
    /// As what it began.
    pub description: RegionDescription,
}

/// What is known of all stores together.
#[derive(Debug, Default)]
pub struct Ledger {
    written: FxHashMap<(u64, u64, u64), Written>,
    leaders: FxHashMap<(u64, u64), u64>,
    applied: BTreeMap<u64, BTreeMap<u64, Applied>>,
    births: BTreeMap<u64, Birth>,
    violation: Option<Violation>,
}

impl Ledger {
    /// A rule is broken. The first one counts.
    pub fn violate(&mut self, rule: &'static str, text: impl Into<String>) {
        if self.violation.is_none() {
            self.violation = Some(Violation { rule, text: text.into() });
        }
    }

    /// The first broken rule.
    pub fn violation(&self) -> Option<&Violation> {
        self.violation.as_ref()
    }

    /// A store leads a region in a term.
    pub fn leads(&mut self, store: u64, region: u64, term: u64) {
        let known = *self.leaders.entry((region, term)).or_insert(store);
        if known != store {
            let text =
                format!("region {region}: stores {known} and {store} both lead in term {term}");
            self.violate("one leader a term", text);
        }
    }

    /// A store writes an entry.
    pub fn writes(&mut self, store: u64, region: u64, index: u64, term: u64, entry: Written) {
        let known = *self.written.entry((region, index, term)).or_insert(entry);
        if known != entry {
            let text = format!(
                "region {region}: store {store} writes {entry:?} at index {index} in term {term}, \
                 where {known:?} was written before"
            );
            self.violate("log matching", text);
        }
    }

    /// A store applies a command. Says whether it is the first to do so at this index.
    pub fn applies(&mut self, store: u64, region: u64, index: u64, command: Applied) -> bool {
        let log = self.applied.entry(region).or_default();
        let Some(known) = log.get(&index).copied() else {
            log.insert(index, command);
            return true;
        };
        if known != command {
            let text = format!(
                "region {region}: store {store} applies {command:?} at index {index}, \
                 where another applied {known:?}"
            );
            self.violate("state machine safety", text);
        }
        false
    }

    /// A region begins as a part of another one.
    pub fn begins(&mut self, parent: u64, index: u64, description: &RegionDescription) {
        let child = description.id.get();
        let birth = Birth { parent, index, description: description.clone() };
        let known = self.births.entry(child).or_insert_with(|| birth.clone());
        if *known != birth {
            let text = format!("region {child} began as {known:?}, and again as {birth:?}");
            self.violate("a region begins once", text);
        }
    }

    /// How a region began, if it was not there from the start.
    pub fn birth(&self, region: u64) -> Option<&Birth> {
        self.births.get(&region)
    }

    /// What was split off a region, in the order of its log.
    pub fn splits(&self, region: u64) -> Vec<&Birth> {
        let mut splits: Vec<&Birth> =
            self.births.values().filter(|birth| birth.parent == region).collect();
        splits.sort_by_key(|birth| birth.index);
        splits
    }

    /// The commands of a region in the order of their indexes.
    pub fn applied(&self, region: u64) -> impl Iterator<Item = (u64, Applied)> + '_ {
        let log = self.applied.get(&region);
        log.into_iter().flat_map(|log| log.iter().map(|(index, command)| (*index, *command)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(ledger: &Ledger) -> Option<&'static str> {
        ledger.violation().map(|violation| violation.rule)
    }

    #[test]
    fn two_leaders_of_a_term_are_seen() {
        let mut ledger = Ledger::default();
        ledger.leads(1, 1, 6);
        ledger.leads(1, 1, 6);
        ledger.leads(2, 1, 7);
        ledger.leads(2, 2, 6);
        assert_eq!(rule(&ledger), None);
        ledger.leads(2, 1, 6);
        assert_eq!(rule(&ledger), Some("one leader a term"));
    }

    #[test]
    fn logs_that_do_not_match_are_seen() {
        let entry = Written { digest: 7, previous_term: 5 };
        for other in [Written { digest: 8, ..entry }, Written { previous_term: 4, ..entry }] {
            let mut ledger = Ledger::default();
            ledger.writes(1, 1, 6, 6, entry);
            ledger.writes(2, 1, 6, 6, entry);
            ledger.writes(2, 1, 6, 7, other);
            assert_eq!(rule(&ledger), None);
            ledger.writes(3, 1, 6, 6, other);
            assert_eq!(rule(&ledger), Some("log matching"));
        }
    }

    #[test]
    fn state_machines_that_differ_are_seen() {
        let command = Applied { term: 6, operation: 1, output: 0 };
        for other in [
            Applied { term: 7, ..command },
            Applied { operation: 2, ..command },
            Applied { output: 3, ..command },
        ] {
            let mut ledger = Ledger::default();
            assert!(ledger.applies(1, 1, 9, command));
            assert!(!ledger.applies(2, 1, 9, command));
            assert!(ledger.applies(2, 2, 9, other));
            assert_eq!(rule(&ledger), None);
            ledger.applies(3, 1, 9, other);
            assert_eq!(rule(&ledger), Some("state machine safety"));
        }
    }
}
