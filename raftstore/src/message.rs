//! What the mailboxes carry.

use region::{
    Answer, Callback, Envelope, Index, Persisted, Proposal, RegionFailure, RegionId, RegionStatus,
};

/// To a region.
pub(crate) enum RegionMessage {
    /// From a peer of the region.
    Raft(Box<Envelope>),
    /// From a user.
    Propose(Proposal),
    /// From a log writer: a write is durable.
    Persisted(Persisted),
    /// From an apply thread: committed commands have been carried out.
    Applied(Index),
    /// From a timer.
    Tick,
    /// Stand for election now.
    Campaign,
    /// There is more to collect than fitted into the round.
    Continue,
    /// Tell how things are.
    Status(Box<dyn FnOnce(RegionStatus) + Send>),
}

/// To the store's control FSM.
pub(crate) enum StoreMessage {
    /// A region's handler panicked; the region is quarantined.
    RegionPanicked(RegionId, String),
    /// A region cannot go on.
    RegionFailed(RegionId, RegionFailure),
    /// A proposal that was refused, to be answered between two rounds.
    Answer(Callback, Answer),
    /// A Raft message for a region that is not here.
    Stray(Box<Envelope>),
}
