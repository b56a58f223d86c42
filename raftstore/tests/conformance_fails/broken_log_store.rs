//! A log in memory that counts as a disk, with one fault.

use crate::breaks;
use parking_lot::Mutex;
use raftstore::testkit::{self, LogStoreSubject};
use raftstore::{
    Entry, HardState, Index, LogBatch, LogReadError, LogReader, LogStore, LogStoreError,
    MemoryLogStore, RegionId, RegionWrite, Stored, Term,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

#[derive(Clone, Copy, PartialEq, Debug)]
enum Fault {
    None,
    UnsyncedUnseen,
    TailStays,
    HolesFilled,
    HeadStays,
    TermBeyondTheEnd,
    NoneInSmallLimits,
    LimitsForgotten,
    MissingIsNothing,
    SecondWriteForgotten,
    HardStateMerged,
    IdentLost,
    AllLost,
    BatchesTorn,
    CutsTorn,
    TombstoneLost,
    OldReturns,
    ReclaimedTooMuch,
}

/// What outlives the log store.
struct Disk {
    log: MemoryLogStore,
    notes: Mutex<Notes>,
}

#[derive(Default)]
struct Notes {
    /// What is written and not to be seen yet.
    unsynced: Vec<RegionWrite>,
    /// The first hard state of each region that had one.
    first: BTreeMap<RegionId, HardState>,
    reclaimed: bool,
    last_write_unsynced: bool,
    last_write_cut: bool,
    reopened: bool,
}

struct Broken {
    fault: Fault,
    disk: Arc<Disk>,
}

impl Broken {
    fn last_index(&self, region: RegionId) -> Index {
        let stored = self.disk.log.load().expect("in memory");
        let found = stored.regions.iter().find(|one| one.record.description.id == region);
        found.map_or(Index::new(5), |found| found.last_index)
    }

    fn spoil(&self, write: &mut RegionWrite) {
        let region = write.region_id;
        let mut notes = self.disk.notes.lock();
        if let Some(state) = &mut write.hard_state {
            let first = notes.first.entry(region).or_insert_with(|| state.clone());
            if self.fault == Fault::HardStateMerged && state.vote == 0 {
                state.vote = first.vote;
            }
        }
        if self.fault == Fault::HeadStays {
            write.truncated = write.truncated.filter(|truncated| truncated.index.get() != 10);
        }
        let (Some(first), Some(last)) = (write.entries.first(), write.entries.last()) else {
            return;
        };
        let (first, last) = (first.index, last.index);
        let end = self.last_index(region);
        if self.fault == Fault::TailStays && last < end.get() {
            let tail = self.disk.log.entries(region, Index::new(last + 1), end.next(), usize::MAX);
            write.entries.extend(tail.expect("in memory"));
        }
        if self.fault == Fault::HolesFilled {
            let hole = (end.get() + 1..first).map(|index| Entry { index, ..Entry::default() });
            write.entries.splice(0..0, hole);
        }
    }
}

impl LogReader for Broken {
    fn entries(
        &self,
        region: RegionId,
        low: Index,
        high: Index,
        max_bytes: usize,
    ) -> Result<Vec<Entry>, LogReadError> {
        let max_bytes = match self.fault {
            Fault::LimitsForgotten => usize::MAX,
            _ => max_bytes,
        };
        match self.disk.log.entries(region, low, high, max_bytes) {
            Ok(found) if self.fault == Fault::NoneInSmallLimits => {
                let fits = found.first().is_some_and(|first| first.data.len() <= max_bytes);
                Ok(if fits { found } else { Vec::new() })
            }
            Err(_) if self.fault == Fault::MissingIsNothing => Ok(Vec::new()),
            read => read,
        }
    }

    fn term(&self, region: RegionId, index: Index) -> Result<Option<Term>, LogReadError> {
        let index = match self.fault {
            Fault::TermBeyondTheEnd => index.min(self.last_index(region)),
            _ => index,
        };
        self.disk.log.term(region, index)
    }
}

impl LogStore for Broken {
    fn load(&self) -> Result<Stored, LogStoreError> {
        let mut stored = self.disk.log.load()?;
        let notes = self.disk.notes.lock();
        if !notes.reopened {
            return Ok(stored);
        }
        match self.fault {
            Fault::IdentLost => stored.ident = None,
            Fault::TombstoneLost => {
                stored.regions.iter_mut().for_each(|region| region.record.tombstone = false);
            }
            Fault::OldReturns if notes.reclaimed => {
                for region in &mut stored.regions {
                    let first = notes.first.get(&region.record.description.id).cloned();
                    region.hard_state = first.or(region.hard_state.take());
                }
            }
            Fault::BatchesTorn if notes.last_write_unsynced => {
                let first = stored.regions.iter_mut().min_by_key(|one| one.record.description.id);
                first.into_iter().for_each(|one| one.last_index = one.last_index.previous());
            }
            Fault::CutsTorn if notes.last_write_unsynced && notes.last_write_cut => {
                let last = stored.regions.iter_mut().max_by_key(|one| one.record.description.id);
                last.into_iter().for_each(|one| one.last_index = one.last_index.previous());
            }
            _ => {}
        }
        Ok(stored)
    }

    fn write(&self, batch: &mut LogBatch, sync: bool) -> Result<u64, LogStoreError> {
        self.disk.notes.lock().last_write_unsynced = !sync;
        let cuts = batch.writes.iter().any(|write| write.truncated.is_some());
        self.disk.notes.lock().last_write_cut = cuts;
        if self.fault == Fault::UnsyncedUnseen {
            let mut notes = self.disk.notes.lock();
            notes.unsynced.append(&mut batch.writes);
            if !sync {
                return Ok(0);
            }
            batch.writes.append(&mut notes.unsynced);
        }
        if self.fault == Fault::SecondWriteForgotten {
            let mut seen = BTreeSet::new();
            batch.writes.retain(|write| write.entries.is_empty() || seen.insert(write.region_id));
        }
        let mut bytes = self
            .disk
            .log
            .write(&mut LogBatch { writes: Vec::new(), ident: batch.ident.take() }, sync)?;
        for mut write in batch.writes.drain(..) {
            self.spoil(&mut write);
            bytes +=
                self.disk.log.write(&mut LogBatch { writes: vec![write], ident: None }, sync)?;
        }
        Ok(bytes)
    }

    fn is_volatile(&self) -> bool {
        false
    }

    fn reclaim(&self) -> Result<Vec<RegionId>, LogStoreError> {
        self.disk.notes.lock().reclaimed = true;
        if self.fault == Fault::ReclaimedTooMuch {
            let region_id = RegionId::new(5);
            let truncated =
                Some(raftstore::TruncatedState { index: Index::new(7), term: Term::new(6) });
            let write = RegionWrite { region_id, truncated, ..RegionWrite::default() };
            self.disk.log.write(&mut LogBatch { writes: vec![write], ident: None }, true)?;
        }
        Ok(Vec::new())
    }
}

impl LogStoreSubject for Fault {
    type Home = Arc<Disk>;
    type Store = Broken;

    fn home(&self) -> Arc<Disk> {
        Arc::new(Disk { log: MemoryLogStore::new(), notes: Mutex::default() })
    }

    fn open(&self, home: &mut Arc<Disk>) -> Broken {
        Broken { fault: *self, disk: home.clone() }
    }

    fn end(&self, home: &mut Arc<Disk>, _: Broken) {
        match self {
            Fault::AllLost => *home = self.home(),
            _ => home.notes.lock().reopened = true,
        }
    }
}

#[test]
fn a_log_store_without_a_fault_conforms() {
    testkit::log_store(&Fault::None);
}

#[test]
fn each_fault_of_a_log_store_breaks_its_rule() {
    for (fault, rule) in [
        (Fault::UnsyncedUnseen, "visible-at-once"),
        (Fault::TailStays, "tail-is-replaced"),
        (Fault::HolesFilled, "no-holes"),
        (Fault::HeadStays, "truncated-is-gone"),
        (Fault::TermBeyondTheEnd, "term-of-entry"),
        (Fault::NoneInSmallLimits, "entries-in-limits"),
        (Fault::LimitsForgotten, "entries-in-limits"),
        (Fault::MissingIsNothing, "missing-is-an-error"),
        (Fault::SecondWriteForgotten, "writes-in-order"),
        (Fault::HardStateMerged, "parts-are-whole"),
        (Fault::IdentLost, "ident-is-kept"),
        (Fault::AllLost, "parts-are-whole"),
        (Fault::BatchesTorn, "batch-is-in-order"),
        (Fault::CutsTorn, "batch-is-atomic"),
        (Fault::TombstoneLost, "tombstone-is-kept"),
        (Fault::OldReturns, "old-never-returns"),
        (Fault::ReclaimedTooMuch, "reclaim-keeps-all"),
    ] {
        println!("{fault:?}");
        breaks(rule, || testkit::log_store(&fault));
    }
}
