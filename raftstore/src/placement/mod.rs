//! The seam to placement: who hands out ids, hears how regions and stores are, and says what should become
//! of them.
//!
//! ```text
//! store ── heartbeats of the regions it leads, and its own ──► placement
//! store ◄─ orders: add, remove or promote a peer, hand leadership over, split ─
//! store ── a report of each order: done, refused and why, or unknown ──► placement
//! store ── ids, please ──► placement (for new peers and splits)
//! ```
//!
//! One thread of the store talks to it, so one that is slow holds up nobody but itself. A call that panics
//! counts as one that failed. Without a placement nothing of this happens.
//!
//! | file | has |
//! |---|---|
//! | `worker` | the thread: heartbeats out, orders carried out |
//! | `requests` | from an order to the request that a region understands |
//! | `splitter` | which regions the store itself wants split |
//! | `embedded`, `ids` | a placement within the process |

mod embedded;
mod ids;
mod requests;
mod splitter;
mod worker;

pub use embedded::{EmbeddedPlacement, OrderStatus};
pub use splitter::SplitPolicy;

pub(crate) use worker::{Habits, PlacementWorker};

use crate::inspect::StoreStatus;
use crate::state_machine::RegionSize;
use bytes::Bytes;
use region::{PeerChange, PeerId, RegionDescription, RegionId, StoreId, Term};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;

/// Who hands out ids and decides where regions are. Shared by stores, or one for each that talks to a
/// service.
///
/// All calls come from one thread of each store, which waits for them. A call that does not return holds up
/// heartbeats and orders, and the store's shutdown, and nothing else.
pub trait Placement: Send + Sync + 'static {
    /// The first of `count` ids in a row, for regions and peers alike. No id is ever given twice, not by
    /// another call and not after a crash; 0 is none.
    ///
    /// # Errors
    /// When there are none now. What needs them is refused.
    fn allocate(&self, count: u64) -> Result<u64, PlacementError>;

    /// Some of the regions that a store leads, and how they are. Returns what should become of these, or of
    /// others.
    fn region_heartbeats(&self, heartbeats: &[RegionHeartbeat]) -> Vec<Order>;

    /// How a store is.
    fn store_heartbeat(&self, heartbeat: &StoreHeartbeat);

    /// What became of an order, or of a split that the store wished for itself. Each order is reported once,
    /// unless its store ends by a crash.
    fn report(&self, report: &OrderReport);
}

/// Why a placement gives no ids.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PlacementError {
    /// What it keeps cannot be read or written.
    #[error("placement in {path}: {reason}")]
    Disk {
        /// The file or directory.
        path: String,
        /// What failed.
        reason: String,
    },
    /// There are not so many ids left, or it was asked for none.
    #[error("placement has no {0} ids in a row")]
    NoIds(u64),
    /// Something else: try again later.
    #[error("placement: {0}")]
    Unavailable(String),
}

/// How a region is, as its leader sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegionHeartbeat {
    /// The leader's store.
    pub store: StoreId,
    /// The leader.
    pub leader: PeerId,
    /// Its term.
    pub term: Term,
    /// The region.
    pub description: Arc<RegionDescription>,
    /// What it holds, if its state machine says; not always as of now.
    pub size: Option<RegionSize>,
    /// Writes proposed since the heartbeat before.
    pub writes: u64,
    /// How long ago that was; 0 for the first one.
    pub elapsed: Duration,
    /// Peers that lack much of the log, or are being sent a snapshot.
    pub pending: Vec<PeerId>,
    /// Peers that have not been heard of for two election timeouts.
    pub down: Vec<PeerId>,
}

/// How a store is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreHeartbeat {
    /// Regions, leaders, queues, snapshots.
    pub status: StoreStatus,
    /// Whether it is the first one since the store started. What was ordered before is forgotten then.
    pub first: bool,
    /// What the regions hold that it leads, as far as their sizes are known.
    pub led_size: RegionSize,
    /// Snapshots that it sends and receives at the same time, in each direction.
    pub max_snapshots: usize,
}

/// What should become of a region.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Operator {
    /// It gets a peer on a store, with an id that the store asks for.
    AddPeer {
        /// Where.
        store: StoreId,
        /// Whether it only receives the log. The way to a new voter is by a learner that is promoted.
        learner: bool,
    },
    /// A learner becomes a voter.
    PromotePeer(PeerId),
    /// A peer leaves.
    RemovePeer(PeerId),
    /// Several changes at once, as in [`AdminRequest::change_peers`](crate::AdminRequest::change_peers); ids of new
    /// peers are the placement's to [allocate](Placement::allocate).
    ChangePeers(Vec<PeerChange>),
    /// Another peer leads: this one, or the one that is furthest.
    TransferLeader(Option<PeerId>),
    /// It becomes several.
    SplitAt(Vec<Bytes>),
    /// It becomes two of about equal size.
    SplitInHalf,
}

impl Operator {
    /// Its name in metrics.
    pub fn name(&self) -> &'static str {
        match self {
            Operator::AddPeer { .. } => "add_peer",
            Operator::PromotePeer(_) => "promote_peer",
            Operator::RemovePeer(_) => "remove_peer",
            Operator::ChangePeers(_) => "change_peers",
            Operator::TransferLeader(_) => "transfer_leader",
            Operator::SplitAt(_) | Operator::SplitInHalf => "split",
        }
    }
}

/// An operator for a region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// By which its report names it.
    pub id: u64,
    /// The region.
    pub region: RegionId,
    /// What should become of it.
    pub operator: Operator,
}

/// What became of an operator.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// It is carried out; the regions that it has led to.
    Done(Vec<RegionDescription>),
    /// It was not carried out, and will not be.
    Refused {
        /// Why.
        reason: String,
        /// Whether the same may succeed later.
        is_retryable: bool,
    },
    /// It may have been carried out, or may still be. The region's heartbeats will tell.
    Unknown {
        /// Why.
        reason: String,
    },
}

impl Outcome {
    /// Its name in metrics.
    pub fn name(&self) -> &'static str {
        match self {
            Outcome::Done(_) => "done",
            Outcome::Refused { .. } => "refused",
            Outcome::Unknown { .. } => "unknown",
        }
    }
}

/// A report of an operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OrderReport {
    /// The order's id; `None` of a split that the store wished for itself.
    pub order: Option<u64>,
    /// Who reports.
    pub store: StoreId,
    /// The region.
    pub region: RegionId,
    /// What should have become of it.
    pub operator: Operator,
    /// What has.
    pub outcome: Outcome,
}
