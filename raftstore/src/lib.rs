//! A Multi-Raft runtime to link into a storage node.
//!
//! A [`Store`] holds many regions, each a key range replicated by Raft, and drives them with a few
//! poller threads. Bring your own [`StateMachine`] and, between processes, [`Transport`]; the crate has others
//! for a beginning, and a [`LogStore`] on disk.
//!
//! See `docs/architecture.md` for the whole, `docs/write-path.md` for the way of one write, and
//! `examples/` for the smallest program.

#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod admin;
mod applied;
mod bootstrap;
mod builder;
mod clock;
mod cold;
mod config;
mod creator;
mod driven;
mod error;
mod events;
mod figures;
mod handle;
mod health;
mod in_turn;
mod inspect;
mod liveness;
mod log_store;
mod message;
mod metrics;
mod origins;
mod parts;
mod peers;
mod placement;
mod poller;
mod published;
mod range_map;
mod read_gate;
mod reads;
mod region_fsm;
mod repair;
mod rest;
mod snapshot;
mod state_machine;
mod store;
mod store_fsm;
mod store_mark;
#[cfg(feature = "testkit")]
pub mod testkit;
mod transport;
mod tuning;
mod work_queue;
mod write_path;

pub use admin::{AdminRequest, Regions, RegionsFuture};
pub use builder::StoreBuilder;
pub use clock::{Clock, SystemClock};
pub use config::{PlacementSettings, RaftSettings, StoreConfig};
pub use driven::{DrivenStore, StoreThread};
pub use error::{StartError, StoreFailure};
pub use events::{CreatedBy, Observer, RegionEvent};
pub use handle::{AnswerFuture, StoreHandle, Write};
pub use inspect::{QueueDepths, RegionInfo, RegionState, SnapshotsUnderWay, StoreStatus};
pub use liveness::StorePing;
pub use log_store::{
    DamagedRegion, EngineConfig, LogBatch, LogStore, LogStoreError, MemoryLogStore,
    RaftEngineLogStore, RegionWrite, Stored, StoredRegion,
};
pub use placement::{
    EmbeddedPlacement, Operator, Order, OrderReport, OrderStatus, Outcome, Placement,
    PlacementError, RegionHeartbeat, SplitPolicy, StoreHeartbeat,
};
pub use reads::{ReadFuture, ReadRequest, RegionReader};
pub use repair::{DiscardError, Discarded};
pub use snapshot::{
    DirectorySnapshotFiles, MemorySnapshotFiles, SnapshotBody, SnapshotFiles, SnapshotId,
    SnapshotMessage, StagedSnapshot,
};
pub use state_machine::{
    Command, InstallError, MapAnswer, MapCommand, MapCommandError, OrderedMap, Pieces,
    RegionCommands, RegionSize, RegionSplit, SnapshotSource, StateMachine, StateMachineError,
    MAX_PIECE_BYTES,
};
#[cfg(feature = "fjall")]
pub use state_machine::{FjallConfig, FjallMap};
pub use store::Store;
pub use transport::{InProcessTransport, Transport};
pub use write_path::Stage;

pub use region::{
    Answer, AppliedState, ChangeError, DecodeError, Envelope, Index, LogReadError, LogReader,
    NewRegion, Origin, Peer, PeerChange, PeerId, PeerProgress, PeerRole, ProposeError, ReadError,
    ReadPoint, ReadWay, RegionDescription, RegionEpoch, RegionId, RegionRecord, RegionStatus,
    Response, Role, SplitError, SplitRequest, StoreId, StoreIdent, Term, TransferError,
    TruncatedState, INITIAL_INDEX, MAX_ID, MAX_KEY_BYTES,
};

/// The files below raft-engine, for a log store whose files are not the machine's.
pub mod engine_files {
    pub use raft_engine::env::{DefaultFileSystem, FileSystem, Handle, Permission, WriteExt};
}

/// The entry and the hard state of raft-rs 0.7, which a [`LogStore`] keeps.
pub use raft::eraftpb::{Entry, HardState};

// Types of other crates that appear in this crate's interface.
pub use bytes::Bytes;
pub use bytesize::ByteSize;
pub use prometheus::Registry;
