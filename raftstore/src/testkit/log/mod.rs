//! Checks for log stores.

mod entries;
mod keeping;
mod reclaiming;

use super::{broken, Rule};
use crate::{
    Entry, HardState, Index, LogBatch, LogReader, LogStore, RegionId, RegionRecord, RegionWrite,
    Stored, StoredRegion, Term, TruncatedState,
};
use std::panic::{catch_unwind, AssertUnwindSafe};

/// The rules that [`log_store`] checks: name, and what it demands.
pub const LOG_STORE_RULES: &[(&str, &str)] = &[
    ("calls-succeed", "what the contract allows to be asked is done"),
    ("new-is-empty", "a new log store knows no region and belongs to nobody"),
    ("visible-at-once", "what was written is read at once, synced or not"),
    ("batch-is-emptied", "a batch is empty after it was written"),
    ("tail-is-replaced", "entries replace what the log has from the first one's index on"),
    ("no-holes", "entries that would leave a hole are refused, and the log stays readable"),
    ("truncated-is-gone", "the log begins behind the truncated index, the rest stays"),
    ("term-of-entry", "term() is the entry's, and nothing where the log holds no entry"),
    ("entries-in-limits", "entries() returns a prefix that fits into max_bytes, and one at least"),
    ("missing-is-an-error", "entries() fails where entries are missing"),
    ("only-its-own", "what is written for a region does not show in another"),
    ("writes-in-order", "writes of one batch for one region are carried out in order"),
    ("parts-are-whole", "hard state, record and truncated index are replaced whole, or stay"),
    (
        "batch-is-in-order",
        "of a batch that a crash interrupts, the first so many writes are found, each whole",
    ),
    (
        "batch-is-atomic",
        "a batch with a record, a cut, a clear or an identity is found whole, or not at all",
    ),
    ("synced-is-kept", "what was synced is found when the log store is opened again"),
    ("order-is-kept", "of what was not synced, nothing is found without what was written before"),
    ("ident-is-kept", "the store's identity is found when the log store is opened again"),
    ("tombstone-is-kept", "the record of a destroyed peer is found as a tombstone, for good"),
    (
        "old-never-returns",
        "what was replaced does not come back after reclaiming and opening again",
    ),
    ("reclaim-keeps-all", "reclaiming takes nothing that is still needed"),
];

/// A kind of log store, to be checked by [`log_store`].
pub trait LogStoreSubject {
    /// Where one lives: a directory, say; `()` if it lives in memory only.
    type Home;
    /// The log store.
    type Store: LogStore;

    /// A place for a new one, empty.
    fn home(&self) -> Self::Home;

    /// Opens the one that lives there. With small files: the kit writes some 10 MiB, and wants old files to
    /// be reclaimed meanwhile.
    fn open(&self, home: &mut Self::Home) -> Self::Store;

    /// Ends it, before it is opened again. Override it to leave only what a killed process would.
    fn end(&self, home: &mut Self::Home, store: Self::Store) {
        let _ = home;
        drop(store);
    }
}

/// Checks a kind of log store against the contract of [`LogStore`].
///
/// # Panics
/// When a rule is broken; the text names it, one of [`LOG_STORE_RULES`].
pub fn log_store<S: LogStoreSubject>(subject: &S) {
    entries::all(subject);
    keeping::all(subject);
    reclaiming::all(subject);
}

fn fail(rule: &str, details: &str) -> ! {
    broken(rule, LOG_STORE_RULES as &[Rule], details)
}

fn ok<T>(what: &str, result: Result<T, impl std::fmt::Display>) -> T {
    result.unwrap_or_else(|error| fail("calls-succeed", &format!("{what} failed: {error}")))
}

fn expect<T: PartialEq + std::fmt::Debug>(rule: &str, what: &str, expected: T, found: T) {
    if expected != found {
        fail(rule, &format!("{what}: expected {expected:?}, found {found:?}"));
    }
}

/// One log store, and where it lives.
struct Run<'a, S: LogStoreSubject> {
    subject: &'a S,
    home: S::Home,
    store: Option<S::Store>,
}

impl<'a, S: LogStoreSubject> Run<'a, S> {
    fn new(subject: &'a S) -> Self {
        let mut home = subject.home();
        let store = Some(subject.open(&mut home));
        let run = Self { subject, home, store };
        let stored = run.load();
        let empty = stored.ident.is_none() && stored.regions.is_empty();
        if !empty || !stored.damaged.is_empty() {
            fail("new-is-empty", &format!("found {stored:?}"));
        }
        run
    }

    fn store(&self) -> &S::Store {
        self.store.as_ref().expect("it is open")
    }

    fn is_volatile(&self) -> bool {
        self.store().is_volatile()
    }

    /// Ends it and opens it again.
    fn restart(&mut self) -> Stored {
        let store = self.store.take().expect("it is open");
        self.subject.end(&mut self.home, store);
        self.store = Some(self.subject.open(&mut self.home));
        self.load()
    }

    fn load(&self) -> Stored {
        let stored = ok("load", self.store().load());
        if let Some(damaged) = stored.damaged.first() {
            let (region, reason) = (damaged.region_id, &damaged.reason);
            fail("synced-is-kept", &format!("region {region} is damaged: {reason}"));
        }
        stored
    }

    fn write(&self, writes: Vec<RegionWrite>, sync: bool) {
        let mut batch = LogBatch { writes, ident: None };
        ok("write", self.store().write(&mut batch, sync));
        if !batch.is_empty() {
            fail("batch-is-emptied", &format!("{} writes are left", batch.writes.len()));
        }
    }

    fn term(&self, region: u64, index: u64) -> Option<u64> {
        let found = self.store().term(RegionId::new(region), Index::new(index));
        ok(&format!("term of region {region}"), found).map(Term::get)
    }

    /// The log is exactly this.
    fn expect_log(&self, rule: &str, what: &str, region: u64, log: &[Entry]) {
        let (Some(first), Some(last)) = (log.first(), log.last()) else { return };
        let (low, high) = (Index::new(first.index), Index::new(last.index + 1));
        let found = self.store().entries(RegionId::new(region), low, high, usize::MAX);
        let found = found.unwrap_or_else(|error| fail(rule, &format!("{what}: {error}")));
        let places = |entries: &[Entry]| -> Vec<(u64, u64)> {
            entries.iter().map(|entry| (entry.index, entry.term)).collect()
        };
        let (there, here) = (places(log), places(&found));
        if there != here {
            let at = there.iter().zip(&here).take_while(|(one, other)| one == other).count();
            let (wanted, got) = (there.get(at), here.get(at));
            let counts = format!("{} entries expected, {} found", there.len(), here.len());
            let text = format!("{what}, region {region}: {counts}; index and term of number {at}");
            fail(rule, &format!("{text} should be {wanted:?} and are {got:?}"));
        }
        if let Some((one, _)) = log.iter().zip(&found).find(|(one, other)| one != other) {
            fail(rule, &format!("{what}: entry {} of region {region} is another", one.index));
        }
        for entry in log {
            let text = format!("{what}, term of entry {} of region {region}", entry.index);
            expect("term-of-entry", &text, Some(entry.term), self.term(region, entry.index));
        }
        self.expect_missing(rule, what, region, last.index + 1);
    }

    fn expect_missing(&self, rule: &str, what: &str, region: u64, index: u64) {
        let text = format!("{what}, term of entry {index} of region {region}");
        expect(rule, &text, None, self.term(region, index));
        let (low, high) = (Index::new(index), Index::new(index + 1));
        let read = || self.store().entries(RegionId::new(region), low, high, usize::MAX);
        // One that panics has refused as well.
        if let Ok(Ok(found)) = catch_unwind(AssertUnwindSafe(read)) {
            let text = format!("{what}: entry {index} of region {region} was read: {found:?}");
            fail("missing-is-an-error", &text);
        }
    }
}

/// What a region's log store should hold, as the kit has written it.
#[derive(Clone)]
struct Model {
    id: u64,
    log: Vec<Entry>,
    truncated: TruncatedState,
    hard_state: Option<HardState>,
    record: Option<Box<RegionRecord>>,
}

impl Model {
    fn new(id: u64) -> Self {
        let truncated = TruncatedState::INITIAL;
        Self { id, log: Vec::new(), truncated, hard_state: None, record: None }
    }

    /// With a record, as a region begins.
    fn begin(id: u64) -> (Self, RegionWrite) {
        let mut model = Self::new(id);
        let write = model.write(|write| write.record = Some(Box::new(record(id, false))));
        (model, write)
    }

    /// A write, and what it should come to.
    fn write(&mut self, change: impl FnOnce(&mut RegionWrite)) -> RegionWrite {
        let mut write = RegionWrite { region_id: RegionId::new(self.id), ..RegionWrite::default() };
        change(&mut write);
        if let Some(first) = write.entries.first() {
            self.log.retain(|entry| entry.index < first.index);
            self.log.extend(write.entries.iter().cloned());
        }
        if let Some(truncated) = write.truncated {
            self.log.retain(|entry| entry.index > truncated.index.get());
            self.truncated = truncated;
        }
        self.hard_state = write.hard_state.clone().or(self.hard_state.take());
        self.record = write.record.clone().or(self.record.take());
        write
    }

    fn append(&mut self, from: u64, count: u64, term: u64, bytes: usize) -> RegionWrite {
        let id = self.id;
        self.write(|write| write.entries = entries(id, from, count, term, bytes))
    }

    fn last_index(&self) -> u64 {
        self.log.last().map_or(self.truncated.index.get(), |entry| entry.index)
    }

    /// What is stored is this.
    fn check<S: LogStoreSubject>(&self, rule: &str, what: &str, run: &Run<'_, S>, stored: &Stored) {
        let id = RegionId::new(self.id);
        let Some(found) = stored.regions.iter().find(|one| one.record.description.id == id) else {
            fail(rule, &format!("{what}: region {id} is not there"));
        };
        self.check_parts(rule, what, found);
        run.expect_log(rule, what, self.id, &self.log);
    }

    fn check_parts(&self, rule: &str, what: &str, found: &StoredRegion) {
        let text = |part: &str| format!("{what}, {part} of region {}", self.id);
        expect(rule, &text("record"), self.record.as_deref(), Some(&found.record));
        expect(rule, &text("hard state"), &self.hard_state, &found.hard_state);
        expect(rule, &text("truncated index"), self.truncated, found.truncated);
        expect(rule, &text("last index"), self.last_index(), found.last_index.get());
    }
}

/// Entries that know where they belong.
fn entries(region: u64, from: u64, count: u64, term: u64, bytes: usize) -> Vec<Entry> {
    let entry = |index: u64| {
        let mut data = format!("{region}/{index}/{term}/").into_bytes();
        data.resize(data.len().max(bytes), b'.');
        Entry { index, term, data: data.into(), ..Entry::default() }
    };
    (from..from + count).map(entry).collect()
}

fn hard_state(term: u64, vote: u64, commit: u64) -> HardState {
    HardState { term, vote, commit, ..HardState::default() }
}

fn truncated(index: u64, term: u64) -> TruncatedState {
    TruncatedState { index: Index::new(index), term: Term::new(term) }
}

fn record(region: u64, tombstone: bool) -> RegionRecord {
    let description = super::description(region, "", "");
    let peer_id = description.peers[0].id;
    RegionRecord { tombstone, ..RegionRecord::new(description, peer_id) }
}
