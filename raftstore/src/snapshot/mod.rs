//! Snapshots on their way from one store to another.
//!
//! ```text
//! leader's region ── wants one ──► sender: opens the state machine's view, says up to where
//!                 ── raft-rs's message ──► sender ── Offer ──► receiver: room? range free? not destroyed?
//!                                          sender ◄─ Wants n ─ receiver
//!                                          sender ── Chunk n ► receiver: checks it, appends it to a file
//!                                          sender ◄─ Arrived ─ receiver: the file is whole and synced;
//! leader's region ◄─ sent ─────────────────            raft-rs's message goes to its region
//! ```
//!
//! Everything is a message that may get lost: what is not answered in time is sent again, and what is not
//! answered at all is given up on either side, after which raft-rs asks for another snapshot. The contents
//! never pass through a poller: one thread of the store sends and receives, chunk by chunk, and another
//! installs what is complete.

mod files;
mod frames;
mod guarded;
mod install;
mod message;
mod receive;
mod send;
mod stream;

pub use files::{DirectorySnapshotFiles, MemorySnapshotFiles, SnapshotFiles, StagedSnapshot};
pub use message::{SnapshotBody, SnapshotId, SnapshotMessage};

pub(crate) use guarded::GuardedFiles;
pub(crate) use install::{
    flush, forget, install_staged, remove_staged, tombstone, Chore, ChoreQueue, ChoreWorker,
    NotInstalled,
};
pub(crate) use message::{staged_name, StagedName};
pub(crate) use receive::Arrival;
pub(crate) use send::is_of_log;
pub(crate) use stream::{
    StreamLimits, StreamQueue, StreamTask, StreamWorker, Traffic, TrafficCounts, TASK_WEIGHT,
};
