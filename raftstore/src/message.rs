//! What the mailboxes carry.

use crate::liveness::StorePing;
use crate::snapshot::Arrival;
use region::{
    AdminCommand, Answer, AppliedState, Callback, Envelope, Index, PeerId, Persisted, Proposal,
    Read, RegionDescription, RegionId, RegionStatus, StoreId,
};
use std::sync::Arc;

/// To a region.
pub(crate) enum RegionMessage {
    /// From a peer of the region.
    Raft(Box<Envelope>),
    /// From the thread that receives snapshots: one is complete.
    SnapshotArrived(Box<Arrival>),
    /// From a user.
    Propose(Proposal),
    /// From a user: he wants to look at the state machine.
    Read(Read),
    /// From a log writer: a write is durable.
    Persisted(Persisted),
    /// From an apply thread: committed commands have been carried out.
    Applied(Index),
    /// From a user: a change of the region itself.
    Admin(Box<AdminCommand>, Proposal),
    /// From a user: another peer should lead, if one is named, that one.
    TransferLeader(Option<PeerId>, Callback),
    /// The snapshot for a peer is made, or cannot be made now.
    SnapshotReady(PeerId, Option<Box<AppliedState>>),
    /// The snapshot for a peer has arrived, or not.
    SnapshotSent(PeerId, bool),
    /// What the region is: the split that it comes from is applied here, or a user has created it.
    BeginFromSplit(Arc<RegionDescription>),
    /// The log store needs the space of the region's old entries.
    CompactSoon,
    /// The region sleeps, and the store is lost that led it, or was started anew.
    StoreLost(StoreId),
    /// The region has slept for long, and looks whether all is as it was.
    LookAround,
    /// From a timer: the region has slept for long, if it still sleeps since that tick.
    Cool(u64),
    /// From a timer.
    Tick,
    /// Stand for election now.
    Campaign,
    /// There is more to collect than fitted into the round.
    Continue,
    /// Tell how things are.
    Status(Box<dyn FnOnce(RegionStatus) + Send>),
}

impl RegionMessage {
    /// Whether a region that sleeps has to wake for it. `leads`: it is led here.
    pub(crate) fn rouses(&self, leads: bool) -> bool {
        use RegionMessage::{Applied, Continue, Cool, Persisted, Status, Tick, TransferLeader};
        match self {
            Persisted(_) | Applied(_) | Tick | Cool(_) | Continue | Status(_) => false,
            // Who does not lead has nothing to hand over.
            TransferLeader(..) => leads,
            _ => true,
        }
    }
}

/// To the store's control FSM.
pub(crate) enum StoreMessage {
    /// A region's handler panicked; the region is quarantined.
    RegionPanicked(RegionId, String),
    /// A proposal that was refused, to be answered between two rounds.
    Answer(Callback, Answer),
    /// A Raft message for a region that is not here.
    Stray(Box<Envelope>),
    /// A snapshot is complete.
    SnapshotArrived(Box<Arrival>),
    /// Another store asks whether this one lives, or answers.
    Ping(StorePing),
    /// From a timer: it is time to ask the others.
    AskOthers,
    /// A region is here from now on.
    Created(RegionId),
}
