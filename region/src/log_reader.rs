//! The seam through which a region reads entries that it no longer has in memory.
//!
//! Synchronous, because raft-rs asks for entries in the middle of a step. It is asked rarely: after
//! a restart, and for followers that lag by more than the cache holds. And it is asked only for
//! entries that are *persisted*: those which the writer still holds are always in memory.

use raft::eraftpb::Entry;

use crate::ids::{Index, RegionId, Term};

/// Reads the persisted log of regions. Implemented by the log store.
pub trait LogReader: Send + Sync {
    /// Entries `low` (inclusive) to `high` (exclusive) without a gap, as many from `low` on as fit
    /// into `max_bytes` of their encoded size, and one at least.
    ///
    /// # Errors
    /// If an entry is missing or cannot be read. The region stops itself then.
    fn entries(
        &self,
        region: RegionId,
        low: Index,
        high: Index,
        max_bytes: usize,
    ) -> Result<Vec<Entry>, LogReadError>;

    /// Term of the entry at `index`, or `None` if the log does not hold it.
    ///
    /// # Errors
    /// If the entry cannot be read.
    fn term(&self, region: RegionId, index: Index) -> Result<Option<Term>, LogReadError>;
}

/// Why entries could not be read.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("region {region_id}: cannot read entries [{low}, {high}): {cause}")]
pub struct LogReadError {
    /// The region.
    pub region_id: RegionId,
    /// First entry asked for.
    pub low: Index,
    /// The one after the last asked for.
    pub high: Index,
    /// What went wrong.
    pub cause: String,
}
