//! A disk that knows the difference between written and synced.

use std::collections::BTreeMap;
use std::sync::Mutex;

use raft::eraftpb::{Entry, HardState};
use region::*;

/// One peer's log store. Only what is in here survives a crash.
pub struct Disk {
    inner: Mutex<Inner>,
}

struct Inner {
    record: Option<Vec<u8>>,
    entries: BTreeMap<u64, Entry>,
    hard_state: Option<HardState>,
    truncated: TruncatedState,
    fail_reads: bool,
    reads: usize,
}

impl Disk {
    pub fn new() -> Self {
        Self {
            inner: Mutex::new(Inner {
                record: None,
                entries: BTreeMap::new(),
                hard_state: None,
                truncated: TruncatedState::INITIAL,
                fail_reads: false,
                reads: 0,
            }),
        }
    }

    /// Writes and syncs.
    pub fn write(&self, write: &LogWrite) {
        let mut inner = self.inner.lock().unwrap();
        for record in write.records.iter().filter(|r| r.description.id == write.region_id) {
            inner.record = Some(record.encode());
        }
        if let Some(snapshot) = write.snapshot {
            inner.entries.clear();
            inner.truncated = TruncatedState::decode(&snapshot.encode()).unwrap();
        }
        if let Some(first) = write.entries.first() {
            let last = inner.entries.keys().next_back().copied();
            let end = last.unwrap_or(inner.truncated.index.get());
            assert!(first.index <= end + 1, "hole before {} after {end}", first.index);
            assert!(first.index > inner.truncated.index.get());
            inner.entries.split_off(&first.index);
            inner.entries.extend(write.entries.iter().map(|entry| (entry.index, entry.clone())));
        }
        if let Some(hard_state) = &write.hard_state {
            inner.hard_state = Some(hard_state.clone());
        }
    }

    /// Writes the record of a peer that is created here.
    pub fn create(&self, record: &RegionRecord) {
        let mut inner = self.inner.lock().unwrap();
        inner.record = Some(record.encode());
        if !record.description.is_initialised() {
            inner.truncated = TruncatedState::NOTHING;
        }
    }

    /// The record that a crash leaves.
    pub fn record(&self) -> Option<RegionRecord> {
        let inner = self.inner.lock().unwrap();
        inner.record.as_ref().map(|record| RegionRecord::decode(record).unwrap())
    }

    pub fn truncate(&self, truncated: TruncatedState) {
        let mut inner = self.inner.lock().unwrap();
        inner.entries = inner.entries.split_off(&(truncated.index.get() + 1));
        inner.truncated = truncated;
    }

    pub fn fail_reads(&self, fail: bool) {
        self.inner.lock().unwrap().fail_reads = fail;
    }

    /// Replaces the header of an entry by rubbish.
    pub fn damage(&self, index: u64) {
        let mut inner = self.inner.lock().unwrap();
        inner.entries.get_mut(&index).unwrap().context = vec![99, 99].into();
    }

    /// Last entry that a crash leaves.
    pub fn last_index(&self) -> u64 {
        let inner = self.inner.lock().unwrap();
        inner.entries.keys().next_back().copied().unwrap_or(inner.truncated.index.get())
    }

    /// Term and vote that a crash leaves.
    pub fn term_and_vote(&self) -> (u64, u64) {
        let inner = self.inner.lock().unwrap();
        // Of a peer that knows nothing, the term is 0.
        let first = if inner.truncated.index.get() == 0 { 0 } else { INITIAL_TERM.get() };
        inner.hard_state.as_ref().map_or((first, 0), |state| (state.term, state.vote))
    }

    /// Reads since the last call.
    pub fn take_reads(&self) -> usize {
        std::mem::take(&mut self.inner.lock().unwrap().reads)
    }

    pub fn restored(&self, record: RegionRecord, applied: Option<AppliedState>) -> RestoredState {
        let inner = self.inner.lock().unwrap();
        let last = inner.entries.keys().next_back().copied();
        RestoredState {
            record,
            hard_state: inner.hard_state.clone(),
            truncated: inner.truncated,
            last_index: last.map_or(inner.truncated.index, Index::new),
            applied,
        }
    }
}

impl LogReader for Disk {
    fn entries(
        &self,
        region_id: RegionId,
        low: Index,
        high: Index,
        max_bytes: usize,
    ) -> Result<Vec<Entry>, LogReadError> {
        let mut inner = self.inner.lock().unwrap();
        inner.reads += 1;
        let fail =
            |cause: &str| Err(LogReadError { region_id, low, high, cause: cause.to_string() });
        if inner.fail_reads {
            return fail("bad sector");
        }
        let mut entries = Vec::new();
        let mut bytes = 0;
        for index in low.get()..high.get() {
            let Some(entry) = inner.entries.get(&index) else {
                return fail("not persisted");
            };
            bytes += entry.data.len() + 16;
            if !entries.is_empty() && bytes > max_bytes {
                break;
            }
            entries.push(entry.clone());
        }
        Ok(entries)
    }

    fn term(&self, region_id: RegionId, index: Index) -> Result<Option<Term>, LogReadError> {
        let inner = self.inner.lock().unwrap();
        if inner.fail_reads {
            let (low, high) = (index, index.next());
            return Err(LogReadError { region_id, low, high, cause: "bad sector".into() });
        }
        Ok(inner.entries.get(&index.get()).map(|entry| Term::new(entry.term)))
    }
}
