//! The seam to the disk that holds Raft's logs.
//!
//! A [`LogStore`] keeps, for each region of a store, its log entries, its hard state, where its log
//! begins, and its [`RegionRecord`]. Each [`RegionWrite`] becomes durable whole or not at all, and none before
//! those in front of it, so that a crash at any instruction leaves one consistent story.

mod batches;
mod engine;
mod memory;
mod reads;
mod synced_note;
mod watched_files;

pub use engine::{EngineConfig, RaftEngineLogStore};
pub use memory::MemoryLogStore;

use raft::eraftpb::{Entry, HardState};
use region::{Index, LogReader, RegionId, RegionRecord, StoreIdent, TruncatedState};

/// What is to be written for one region.
#[derive(Clone, Debug, Default)]
pub struct RegionWrite {
    /// The region.
    pub region_id: RegionId,
    /// All entries that the log holds go first: the log begins anew, after `truncated`.
    pub clear: bool,
    /// Entries, contiguous. They replace what the log has from the first one's index on.
    pub entries: Vec<Entry>,
    /// The hard state, whole.
    pub hard_state: Option<HardState>,
    /// The log begins after this index from now on.
    pub truncated: Option<TruncatedState>,
    /// The region's record, whole. Most writes have none, so it does not make them all large.
    pub record: Option<Box<RegionRecord>>,
}

/// Writes for many regions.
#[derive(Clone, Debug, Default)]
pub struct LogBatch {
    /// Carried out in this order.
    pub writes: Vec<RegionWrite>,
    /// Who this log store belongs to; written once.
    pub ident: Option<StoreIdent>,
}

impl LogBatch {
    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.writes.is_empty() && self.ident.is_none()
    }
}

/// What a log store knows about one region when it is opened.
#[derive(Clone, Debug)]
pub struct StoredRegion {
    /// The record.
    pub record: RegionRecord,
    /// The hard state, if one was ever written.
    pub hard_state: Option<HardState>,
    /// Where the log begins.
    pub truncated: TruncatedState,
    /// The last entry; equal to the truncated index where there is none.
    pub last_index: Index,
}

/// One region that could not be read back.
#[derive(Clone, Debug)]
pub struct DamagedRegion {
    /// The region.
    pub region_id: RegionId,
    /// What is wrong.
    pub reason: String,
}

/// All that a log store holds.
#[derive(Clone, Debug, Default)]
pub struct Stored {
    /// Who it belongs to; `None` if it was never used.
    pub ident: Option<StoreIdent>,
    /// The regions.
    pub regions: Vec<StoredRegion>,
    /// Regions whose data cannot be read.
    pub damaged: Vec<DamagedRegion>,
}

/// Why a log store failed.
#[derive(Debug, thiserror::Error)]
pub enum LogStoreError {
    /// It cannot be opened.
    #[error("cannot open the log store in {path}: {reason}")]
    Open {
        /// The directory.
        path: String,
        /// What stopped it.
        reason: String,
    },
    /// A write or its sync failed. What of it is on disk is unknown: the store must stop.
    #[error("cannot write the log: {0}")]
    Write(String),
    /// Reading failed.
    #[error("cannot read the log: {0}")]
    Read(String),
}

/// Keeps Raft's logs. Called from several threads at once, once per batch.
///
/// # Contract
/// * [`write`](Self::write) is with `sync` durable when it returns. Of a batch that a crash interrupts, the
///   first so many writes are there, each of them whole. One that has a record, a cut, a `clear` or an identity in it is
///   atomic over all its regions. After an error nothing more may be written.
/// * What was written is at once visible to the [`LogReader`] methods, synced or not.
/// * What [`load`](Self::load) returns is durable. A process that was killed may have written what it
///   did not sync; the next one finds it, believes it, and promises it to others.
/// * Entries of one region are written in order, by one thread at a time.
pub trait LogStore: LogReader + 'static {
    /// Reads all regions back. Called once, before the first write.
    ///
    /// # Errors
    /// When the store as a whole cannot be read; damage of one region is told in the result.
    fn load(&self) -> Result<Stored, LogStoreError>;

    /// Writes the batch and empties it. Returns the bytes written.
    ///
    /// Caveat: a batch in which nothing is to be written syncs nothing, also not what was written before.
    ///
    /// # Errors
    /// [`LogStoreError::Write`]; what was written then is unknown.
    fn write(&self, batch: &mut LogBatch, sync: bool) -> Result<u64, LogStoreError>;

    /// Whether everything is lost when the process ends: then there is nothing to wait for in a write,
    /// and the log need not outlive what the state machine holds in memory.
    fn is_volatile(&self) -> bool;

    /// Gives back disk space of entries that are not needed any more. Called now and then, from a
    /// thread of its own. Returns the regions that keep old files from being removed.
    ///
    /// # Errors
    /// [`LogStoreError::Write`].
    fn reclaim(&self) -> Result<Vec<RegionId>, LogStoreError> {
        Ok(Vec::new())
    }
}
