//! One region's Raft, without any I/O.
//!
//! A [`Region`] is a peer of one Raft group on top of raft-rs's `RawNode`. Messages, proposals and
//! ticks go in; [`Effects`] come out: messages to send, a [`LogWrite`] to persist, an
//! [`ApplyBatch`] to apply, answers to give. The region knows no threads, files, sockets, clocks or
//! random sources: the same inputs give the same effects.
//!
//! # The caller's duties
//!
//! 1. Feed [`step`](Region::step), [`propose`](Region::propose) and [`tick`](Region::tick), as much
//!    as there is.
//! 2. While [`has_ready`](Region::has_ready): call [`collect`](Region::collect), and then, in this
//!    order:
//!    1. send `effects.messages`; they promise nothing;
//!    2. hand `effects.write` to the writer. All writes of a region are carried out in order. Only
//!       after one is written, and synced if it [`needs_sync`](LogWrite::needs_sync), make a
//!       [`Persisted`] of it, release its held messages, and call [`persisted`](Region::persisted);
//!    3. hand `effects.apply` to the state machine, in order, and call
//!       [`applied`](Region::applied) afterwards; a [`RegionChange`] in it is carried out in its turn;
//!    4. if there is a `compact_request`: lower it to what the state machine has flushed, call
//!       [`compact_to`](Region::compact_to), and write the new [`TruncatedState`];
//!    5. run `effects.answers`, and `effects.reads` once the region's new [`Serving`] is known.
//! 3. Make the snapshots that `effects.snapshots_wanted` names, elsewhere, and say so with
//!    [`snapshot_ready`](Region::snapshot_ready); step a message with a snapshot only when its contents
//!    lie complete and durable on this store.
//! 4. If there is `effects.removed`: write a tombstone, destroy the contents, drop the region.
//! 5. If there is `effects.fatal`: drop the region and tell the operator. The others go on.
//!
//! # Where to read what
//!
//! | file | decides |
//! |---|---|
//! | `region` | the order of things; everything else is a part of it |
//! | `guard` | what a stranger may send |
//! | `admission` | which proposals may enter |
//! | `changes` | split, other peers, another leader, removal; the order of all that |
//! | `membership`, `split`, `transfer` | which of these are sound, and what they come to |
//! | `pending` | what has begun and waits |
//! | `snapshots`, `peer_book` | what raft-rs asks for others; who is where, who was heard of |
//! | `proposals` | who is answered what, once |
//! | `persistence` | what must wait for which write |
//! | `storage`, `entry_cache`, `term_runs` | where entries and terms are read |
//! | `emission` | what committed entries mean |
//! | `applying` | what may be handed out to be applied |
//! | `reads`, `reading`, `lease` | when a read may look at the state machine |
//! | `compaction` | when the log's head may go |
//! | `upkeep` | memory that is given back |
//! | `heartbeats` | which of them need not be sent |
//! | `sleep`, `cold` | when a region needs no ticks; what is left of one that has slept for long |
//! | `restore` | what must hold of the state on disk |
//! | `description`, `records`, `command`, `envelope` | what is written to disk and to the wire |
//!
//! # Caveats
//!
//! The numbers of writes begin anew when a region is dropped and restored; see
//! [`Region::persisted`].
//!
//! A region has no clock. Whoever reads tells it the time with [`set_time`](Region::set_time), before each
//! turn; without, there are no leases, and every read asks.

#![forbid(unsafe_code)]
#![deny(missing_docs)]
// Envelopes are some 400 bytes and pass through several queues: they move as pointers.
#![allow(clippy::vec_box)]

mod admission;
mod answer;
mod applying;
mod changes;
mod cold;
mod command;
mod compaction;
mod config;
mod description;
mod effects;
mod emission;
mod entry_cache;
mod envelope;
mod error;
mod guard;
mod heartbeats;
mod ids;
mod key_text;
mod lease;
mod life;
mod log_reader;
mod logger;
mod membership;
mod outgoing;
mod peer_book;
mod pending;
mod persistence;
mod progress;
mod proposals;
mod proto;
mod queries;
mod reading;
mod reads;
mod records;
mod region;
mod restore;
mod sleep;
mod snapshots;
mod split;
mod storage;
mod term_runs;
mod timeout;
mod transfer;
mod upkeep;

pub use answer::{Answer, Callback, Response};
pub use changes::{regions_of_answer, snapshot_of, AdminCommand};
pub use cold::ColdRegion;
pub use command::{Command, CommandError, CommandKind};
pub use config::{ConfigError, RegionConfig};
pub use description::{
    DecodeError, Peer, PeerRole, RegionDescription, RegionEpoch, INITIAL_INDEX, INITIAL_TERM,
    MAX_KEY_BYTES, MAX_PEERS, MAX_VERSION,
};
pub use effects::{
    ApplyBatch, ApplyCommand, DescriptionChange, Effects, HeldMessages, LogWrite, Persisted,
    RegionChange, RegionFailure, RegionStatus, Role, RoleChange,
};
pub use envelope::Envelope;
pub use error::{ProposeError, ReadError};
pub use guard::Rejection;
pub use ids::{is_sound_id, Index, PeerId, RegionId, StoreId, Term, MAX_ID};
pub use log_reader::{LogReadError, LogReader};
pub use membership::{ChangeError, PeerChange, MAX_PEER_CHANGES};
pub use progress::PeerProgress;
pub use proposals::Proposal;
pub use reads::{Read, ReadAnswer, ReadCallback, ReadMode, ReadPoint, ReadWay, Serving};
pub use records::{AppliedState, Origin, RegionRecord, Removal, StoreIdent, TruncatedState};
pub use region::{Campaign, Region};
pub use restore::RestoredState;
pub use split::{NewRegion, SplitError, SplitRequest, MAX_SPLIT_KEYS};
pub use transfer::TransferError;

/// raft-rs's.
pub use raft::eraftpb::HardState;
