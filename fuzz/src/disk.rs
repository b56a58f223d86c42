//! A log in memory: what was written is durable.

use std::collections::BTreeMap;
use std::sync::Mutex;

use raft::eraftpb::{Entry, HardState};
use region::{Index, LogReadError, LogReader, LogWrite, RegionId, Term, TruncatedState};

/// What one region has on disk.
#[derive(Clone, Debug)]
pub struct Contents {
    /// Where the log begins.
    pub truncated: TruncatedState,
    /// The log, by index.
    pub entries: BTreeMap<u64, Entry>,
    /// Term, vote and commit index.
    pub hard_state: Option<HardState>,
}

impl Contents {
    /// Last entry, or the truncated index.
    pub fn last_index(&self) -> Index {
        let last = self.entries.keys().next_back();
        last.map_or(self.truncated.index, |last| Index::new(*last))
    }
}

/// [`Contents`] that a region can read.
pub struct Disk(Mutex<Contents>);

impl Disk {
    /// A disk that holds this.
    pub fn new(contents: Contents) -> Self {
        Self(Mutex::new(contents))
    }

    /// A copy of what it holds.
    pub fn contents(&self) -> Contents {
        self.lock().clone()
    }

    /// Carries out a write.
    ///
    /// # Panics
    /// If the write leaves a hole in the log, or replaces what is truncated.
    pub fn write(&self, write: &LogWrite) {
        let mut contents = self.lock();
        if let Some(first) = write.entries.first() {
            let last = contents.last_index().get();
            assert!(first.index <= last + 1, "hole before {} after {last}", first.index);
            assert!(first.index > contents.truncated.index.get(), "{} is cut off", first.index);
            contents.entries.split_off(&first.index);
            for (index, entry) in (first.index..).zip(&write.entries) {
                assert_eq!(entry.index, index, "hole within a write");
                contents.entries.insert(index, entry.clone());
            }
        }
        if let Some(hard_state) = &write.hard_state {
            contents.hard_state = Some(hard_state.clone());
        }
    }

    /// Cuts off the log's head.
    pub fn truncate(&self, truncated: TruncatedState) {
        let mut contents = self.lock();
        contents.entries = contents.entries.split_off(&(truncated.index.get() + 1));
        contents.truncated = truncated;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Contents> {
        self.0.lock().expect("nobody panicked while holding it")
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
        let contents = self.lock();
        let (mut entries, mut bytes) = (Vec::new(), 0);
        for index in low.get()..high.get() {
            let Some(entry) = contents.entries.get(&index) else {
                let cause = format!("{index} is not there");
                return Err(LogReadError { region_id, low, high, cause });
            };
            bytes += entry.data.len() + 16;
            if !entries.is_empty() && bytes > max_bytes {
                break;
            }
            entries.push(entry.clone());
        }
        Ok(entries)
    }

    fn term(&self, _: RegionId, index: Index) -> Result<Option<Term>, LogReadError> {
        Ok(self.lock().entries.get(&index.get()).map(|entry| Term::new(entry.term)))
    }
}
