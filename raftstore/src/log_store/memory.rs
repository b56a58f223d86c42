//! A log in memory: for tests, and for measuring everything but the disk.

use super::{LogBatch, LogStore, LogStoreError, RegionWrite, Stored, StoredRegion};
use parking_lot::Mutex;
use raft::eraftpb::{Entry, HardState};
use region::{
    Index, LogReadError, LogReader, PeerId, RegionDescription, RegionId, RegionRecord, StoreIdent,
    Term, TruncatedState,
};
use rustc_hash::FxHashMap;
use std::collections::VecDeque;
use std::sync::Arc;

const SHARDS: usize = 64;

/// Keeps the logs in memory, a lock for each of some shards of the regions.
#[derive(Debug)]
pub struct MemoryLogStore {
    shards: Vec<Mutex<Shard>>,
    ident: Mutex<Option<StoreIdent>>,
}

/// Boxed: half of a table's places may be empty.
type Shard = FxHashMap<RegionId, Box<RegionLog>>;

/// Of a cold region all of this is kept, and no entries.
#[derive(Debug)]
struct RegionLog {
    record: Option<Record>,
    hard_state: Option<Votes>,
    truncated: TruncatedState,
    /// Contiguous; the first follows `truncated`.
    entries: VecDeque<Entry>,
}

/// A region's record. Most have nothing but the two parts that all have.
#[derive(Debug)]
enum Record {
    Plain(Arc<RegionDescription>, PeerId),
    Whole(Box<RegionRecord>),
}

/// A hard state without what its encoding would need.
#[derive(Debug)]
struct Votes {
    term: u64,
    vote: u64,
    commit: u64,
}

impl Record {
    fn new(record: Box<RegionRecord>) -> Self {
        let plain = RegionRecord::new(record.description.clone(), record.peer_id);
        match *record == plain {
            true => Self::Plain(plain.description, plain.peer_id),
            false => Self::Whole(record),
        }
    }

    fn get(&self) -> RegionRecord {
        match self {
            Self::Plain(description, peer_id) => RegionRecord::new(description.clone(), *peer_id),
            Self::Whole(record) => (**record).clone(),
        }
    }
}

impl Votes {
    fn new(state: &HardState) -> Self {
        Self { term: state.term, vote: state.vote, commit: state.commit }
    }

    fn get(&self) -> HardState {
        let Self { term, vote, commit } = *self;
        HardState { term, vote, commit, ..HardState::default() }
    }
}

impl Default for MemoryLogStore {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryLogStore {
    /// An empty one.
    pub fn new() -> Self {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        Self { shards, ident: Mutex::default() }
    }

    fn shard(&self, region: RegionId) -> &Mutex<Shard> {
        let mixed = region.get().wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 58;
        &self.shards[mixed as usize % SHARDS]
    }
}

impl Default for RegionLog {
    fn default() -> Self {
        Self {
            record: None,
            hard_state: None,
            truncated: TruncatedState::INITIAL,
            entries: VecDeque::new(),
        }
    }
}

impl RegionLog {
    /// Not asked of the last entry: that was written long ago where there are many regions, and to read it would
    /// cost more than all the rest of a write.
    fn last_index(&self) -> Index {
        Index::new(self.truncated.index.get() + self.entries.len() as u64)
    }

    fn apply(&mut self, write: RegionWrite) {
        if write.clear {
            self.entries = VecDeque::new();
            self.truncated = write.truncated.unwrap_or(TruncatedState::INITIAL);
        }
        if let Some(first) = write.entries.first() {
            let begin = self.truncated.index.get() + 1;
            assert!(
                first.index >= begin && first.index <= self.last_index().get() + 1,
                "region {}: entries from {} leave a hole in a log of {}..={}",
                write.region_id,
                first.index,
                begin,
                self.last_index(),
            );
            self.entries.truncate((first.index - begin) as usize);
            if self.entries.capacity() == 0 {
                // Of many a region this is all there ever is.
                self.entries.reserve_exact(write.entries.len());
            }
            self.entries.extend(write.entries);
        }
        if let Some(truncated) = write.truncated {
            let gone = truncated.index.get().saturating_sub(self.truncated.index.get()) as usize;
            if gone >= self.entries.len() {
                // As of a region that becomes cold: not even one entry's room is left.
                self.entries = VecDeque::new();
            } else {
                self.entries.drain(..gone);
            }
            if self.entries.capacity() > 64 && self.entries.len() < self.entries.capacity() / 4 {
                self.entries.shrink_to_fit();
            }
            self.truncated = truncated;
        }
        if let Some(state) = write.hard_state {
            self.hard_state = Some(Votes::new(&state));
        }
        if let Some(record) = write.record {
            self.record = Some(Record::new(record));
        }
    }
}

impl LogReader for MemoryLogStore {
    fn entries(
        &self,
        region: RegionId,
        low: Index,
        high: Index,
        max_bytes: usize,
    ) -> Result<Vec<Entry>, LogReadError> {
        let shard = self.shard(region).lock();
        let fail = |cause| LogReadError { region_id: region, low, high, cause };
        let log = shard.get(&region).ok_or_else(|| fail("no such region".to_owned()))?;
        let begin = log.truncated.index.get() + 1;
        if low.get() < begin || high.get() > log.last_index().get() + 1 {
            return Err(fail(format!("the log holds {begin} to {}", log.last_index())));
        }
        let mut found = Vec::new();
        let mut bytes = 0;
        for entry in log.entries.range((low.get() - begin) as usize..(high.get() - begin) as usize)
        {
            bytes += entry.data.len() + entry.context.len();
            if bytes > max_bytes && !found.is_empty() {
                break;
            }
            found.push(entry.clone());
        }
        Ok(found)
    }

    fn term(&self, region: RegionId, index: Index) -> Result<Option<Term>, LogReadError> {
        let shard = self.shard(region).lock();
        let Some(log) = shard.get(&region) else { return Ok(None) };
        if index == log.truncated.index {
            return Ok(Some(log.truncated.term));
        }
        let at = index.get().checked_sub(log.truncated.index.get() + 1);
        let entry = at.and_then(|at| log.entries.get(at as usize));
        Ok(entry.map(|entry| Term::new(entry.term)))
    }
}

impl LogStore for MemoryLogStore {
    fn load(&self) -> Result<Stored, LogStoreError> {
        let mut stored = Stored { ident: *self.ident.lock(), ..Stored::default() };
        for shard in &self.shards {
            for log in shard.lock().values() {
                let Some(record) = &log.record else { continue };
                stored.regions.push(StoredRegion {
                    record: record.get(),
                    hard_state: log.hard_state.as_ref().map(Votes::get),
                    truncated: log.truncated,
                    last_index: log.last_index(),
                });
            }
        }
        Ok(stored)
    }

    fn write(&self, batch: &mut LogBatch, _sync: bool) -> Result<u64, LogStoreError> {
        if let Some(ident) = batch.ident.take() {
            *self.ident.lock() = Some(ident);
        }
        let mut bytes = 0;
        for write in batch.writes.drain(..) {
            bytes += write.entries.iter().map(|entry| entry.data.len() as u64).sum::<u64>();
            self.shard(write.region_id).lock().entry(write.region_id).or_default().apply(write);
        }
        Ok(bytes)
    }

    fn is_volatile(&self) -> bool {
        true
    }
}
