//! A snapshot that comes in, chunk by chunk.

use super::files::StagedSnapshot;
use super::message::{SnapshotBody, SnapshotId};
use bytes::Bytes;
use region::{AppliedState, Envelope, StoreId};
use std::io;

/// A snapshot that is complete and durable, on its way to its region.
pub(crate) struct Arrival {
    /// raft-rs's message of it.
    pub(crate) envelope: Box<Envelope>,
    /// The name of the file, which goes with it: whoever does not pass it on removes it.
    pub(crate) file: String,
}

/// One snapshot from one store.
pub(super) struct Receiving {
    pub(super) id: SnapshotId,
    pub(super) from: StoreId,
    /// The name of its file, which is its own until the offer is passed on.
    pub(super) file: String,
    /// What it is of.
    pub(super) applied: AppliedState,
    /// raft-rs's message, until it is passed on.
    pub(super) offer: Option<Box<Envelope>>,
    /// `None` once it is complete.
    staged: Option<Box<dyn StagedSnapshot>>,
    /// Number of the chunk that it wants.
    next: u64,
    /// The sender waits for word until there is room for more bytes.
    pub(super) held_back: bool,
    /// Ticks without a sign of the sender.
    pub(super) idle_ticks: u32,
}

/// What a chunk came to.
pub(super) enum Took {
    /// The sender should hear how far it is.
    Answer,
    /// It was the last one, and everything is durable.
    Complete,
}

impl Receiving {
    pub(super) fn new(
        id: SnapshotId,
        from: StoreId,
        file: String,
        applied: AppliedState,
        offer: Box<Envelope>,
        staged: Box<dyn StagedSnapshot>,
    ) -> Self {
        Self {
            id,
            from,
            file,
            applied,
            offer: Some(offer),
            staged: Some(staged),
            next: 0,
            held_back: false,
            idle_ticks: 0,
        }
    }

    /// Whether it is this snapshot, from this store.
    pub(super) fn is(&self, from: StoreId, id: SnapshotId) -> bool {
        self.id == id && self.from == from
    }

    /// What the sender should hear of it.
    pub(super) fn stands(&self) -> SnapshotBody {
        match self.staged {
            Some(_) => SnapshotBody::Wants(self.next),
            None => SnapshotBody::Arrived,
        }
    }

    /// Takes a chunk.
    ///
    /// # Errors
    /// When it cannot be written; the snapshot is to be given up.
    pub(super) fn take(
        &mut self,
        number: u64,
        last: bool,
        checksum: u32,
        bytes: &Bytes,
    ) -> io::Result<Took> {
        self.idle_ticks = 0;
        let Some(staged) = self.staged.as_mut().filter(|_| number == self.next) else {
            return Ok(Took::Answer);
        };
        if crc32fast::hash(bytes) != checksum {
            return Ok(Took::Answer);
        }
        staged.append(bytes)?;
        self.next += 1;
        if !last {
            return Ok(Took::Answer);
        }
        match self.staged.take() {
            Some(staged) => staged.finish().map(|()| Took::Complete),
            None => Ok(Took::Answer),
        }
    }

    /// Whether all of it is there.
    pub(super) fn is_complete(&self) -> bool {
        self.staged.is_none()
    }
}
