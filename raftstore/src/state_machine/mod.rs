//! The seam to what the commands mean.

mod ordered_map;

pub use ordered_map::{MapCommand, MapCommandError, OrderedMap};

use bytes::Bytes;
use region::{AppliedState, Index, RegionId, Term};

/// A committed command, to be carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// Its place in the region's log. Grows by one or more from command to command.
    pub index: Index,
    /// The term in which it was proposed.
    pub term: Term,
    /// What the proposer gave.
    pub payload: Bytes,
    /// The answer to the proposer; empty unless the state machine fills it in.
    pub output: Bytes,
}

/// Committed commands of one region, in order.
#[derive(Clone, Debug)]
pub struct RegionCommands {
    /// The region.
    pub region_id: RegionId,
    /// The commands. May be empty: then only `applied` has moved. A state machine fills in the
    /// outputs and must neither remove nor add nor reorder commands, since answers go by position.
    pub commands: Vec<Command>,
    /// What has been applied after these commands; to be stored with their effects.
    pub applied: AppliedState,
}

/// Why a state machine failed.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct StateMachineError(pub String);

/// The user's state machine, one for all regions of a store. Called from several threads at once, but
/// never at once for one region.
///
/// # Contract
/// * [`apply`](Self::apply) stores, in one atomic step for each region, the effects of its commands
///   *and* its applied state. It need not sync.
/// * The same commands in the same order have the same effects and outputs on every store.
/// * A batch may hold the same region more than once; its parts are in order.
/// * After a restart commands from [`applied_state`](Self::applied_state) on are applied again.
pub trait StateMachine: Send + Sync + 'static {
    /// Carries out commands of many regions.
    ///
    /// # Errors
    /// When the effects cannot be stored. The store stops then: it cannot know what was.
    fn apply(&self, batch: &mut [RegionCommands]) -> Result<(), StateMachineError>;

    /// What has been applied to a region; `None` when it knows nothing of it. Asked at start.
    ///
    /// # Errors
    /// When it cannot be read; the region is then set aside.
    fn applied_state(&self, region: RegionId) -> Result<Option<AppliedState>, StateMachineError>;

    /// Up to which index a restart would find a region's effects. The log is kept from there on.
    fn durable_index(&self, region: RegionId) -> Index;
}
