//! The seam to what the commands mean.

#[cfg(feature = "fjall")]
mod fjall_map;
mod map_command;
mod ordered_map;
mod pieces;
mod sizes;

#[cfg(feature = "fjall")]
pub use fjall_map::{FjallConfig, FjallMap};
pub use map_command::{MapAnswer, MapCommand, MapCommandError};
pub use ordered_map::OrderedMap;
pub use pieces::Pieces;
pub use sizes::RegionSize;

pub(crate) use sizes::Cutter;

use bytes::Bytes;
use region::{AppliedState, Index, RegionDescription, RegionId, Term};

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

/// A region that is divided.
#[derive(Clone, Debug)]
pub struct RegionSplit {
    /// The region as it goes on: with its new range, applied up to the split.
    pub parent: AppliedState,
    /// The regions that begin, each at index 5 of term 5. Their ranges and the parent's new one tile the
    /// parent's old one.
    pub children: Vec<AppliedState>,
}

/// The contents of a region, in pieces.
pub trait SnapshotSource: Send {
    /// Up to where, and of which region. The store names a region whose state machine shows another region, or
    /// more than it was given to apply, and does not send that.
    fn applied(&self) -> &AppliedState;

    /// The next piece; `None` after the last one. Pieces mean something to the state machine only; they
    /// arrive whole and in order. A piece of a few hundred kilobytes is a good size; at most
    /// [`MAX_PIECE_BYTES`]: with a larger one the snapshot is given up.
    ///
    /// # Errors
    /// When it cannot be read. The snapshot is given up.
    fn next_piece(&mut self) -> Result<Option<Bytes>, StateMachineError>;
}

/// Most bytes of a [piece](SnapshotSource::next_piece).
pub const MAX_PIECE_BYTES: usize = 80 << 20;

/// Why a state machine failed.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct StateMachineError(pub String);

/// Why a snapshot was not installed.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// The contents make no sense to the state machine, and would not if it was called again. Their region is
    /// set aside, with this reason, and the others go on.
    #[error("{0}")]
    Unsound(String),
    /// The contents cannot be stored. The store stops.
    #[error(transparent)]
    Failed(#[from] StateMachineError),
}

/// The user's state machine, one for all regions of a store. Called from several threads at once, but
/// but for [`snapshot`](Self::snapshot) never at once for one region.
///
/// # Contract
/// * [`apply`](Self::apply) stores, in one atomic step for each region, the effects of its commands
///   *and* its applied state. It need not sync.
/// * The same commands in the same order have the same effects and outputs on every store.
/// * A batch may hold the same region more than once; its parts are in order.
/// * After a restart commands from [`applied_state`](Self::applied_state) on are applied again.
/// * What is durable is so in order: if a crash takes a step of a region away, it takes every later step
///   of that region away, and a split counts as a step of the parent and of each child.
pub trait StateMachine: Send + Sync + 'static {
    /// A region is about to begin with nothing, by [`bootstrap`](crate::StoreHandle::bootstrap), over this range.
    /// A state machine that keeps the keys of all regions in one ordered space refuses where keys lie in it: they
    /// would show as the region's. For one that keeps the contents of each region by itself the default, which
    /// refuses nothing, is right.
    ///
    /// # Errors
    /// With what is in the way. The region is not created.
    fn check_vacant(&self, region: &RegionDescription) -> Result<(), StateMachineError> {
        let _ = region;
        Ok(())
    }

    /// Carries out commands of many regions.
    ///
    /// # Errors
    /// When the effects cannot be stored. The store stops then: it cannot know what was.
    fn apply(&self, batch: &mut [RegionCommands]) -> Result<(), StateMachineError>;

    /// Whether commands of many regions in one batch cost less than a call of [`apply`](Self::apply) for each region.
    /// Asked once, when a store is built. By default yes, as where a batch is one write to a disk. A state machine in
    /// memory says no: then a region's commands are applied in its own turn, while what they are about is still in
    /// the processor's cache (unless the store has apply threads of its own).
    fn gains_from_batches(&self) -> bool {
        true
    }

    /// What has been applied to a region; `None` when it knows nothing of it. Asked at start.
    ///
    /// # Errors
    /// When it cannot be read; the region is then set aside.
    fn applied_state(&self, region: RegionId) -> Result<Option<AppliedState>, StateMachineError>;

    /// Up to which index a restart would find a region's effects. The log is kept from there on.
    fn durable_index(&self, region: RegionId) -> Index;

    /// Divides a region, in one atomic step: what lies in the range of a child is the child's from now on,
    /// and the applied states of all are stored. It need not sync.
    ///
    /// A state machine that keeps the keys of all regions in one ordered space has nothing to move. For it
    /// this default is right, if its [`apply`](Self::apply) is one atomic step for the whole batch.
    ///
    /// # Errors
    /// As for [`apply`](Self::apply).
    fn split(&self, split: &RegionSplit) -> Result<(), StateMachineError> {
        let states = std::iter::once(&split.parent).chain(&split.children);
        let mut batch: Vec<RegionCommands> = states
            .map(|applied| RegionCommands {
                region_id: applied.description.id,
                commands: Vec::new(),
                applied: applied.clone(),
            })
            .collect();
        self.apply(&mut batch)
    }

    /// The contents of a region as they are now, for another store: later steps must not show in it. Called
    /// from a thread of its own, while commands are applied.
    ///
    /// # Errors
    /// When it knows nothing of the region, or cannot read it. The other store waits, and is tried again.
    fn snapshot(&self, region: RegionId) -> Result<Box<dyn SnapshotSource>, StateMachineError>;

    /// Replaces all that it has of a region, if anything, by the contents of a snapshot; durable on return.
    /// If a crash interrupts it, it is called again with the same snapshot before anything else is done
    /// with the region, except that [`applied_state`](Self::applied_state) is asked; so it need not be
    /// atomic, but must tolerate a half of itself, and must not yet tell the snapshot's index for a half.
    ///
    /// # Errors
    /// When the contents make no sense, or cannot be stored: [`InstallError`] tells the two apart. What `snapshot`
    /// fails with may be passed on as it is.
    fn install(&self, snapshot: &mut dyn SnapshotSource) -> Result<(), InstallError>;

    /// Forgets a region and all its contents. Called again after a crash.
    ///
    /// # Errors
    /// When they cannot be removed. The store stops then.
    fn destroy(&self, region: RegionId) -> Result<(), StateMachineError>;

    /// How much a region holds, about; `None` if it cannot say, which is the default. Asked now and then by a
    /// thread of its own, of regions that were written to, where there is a [placement](crate::Placement).
    fn size(&self, region: RegionId) -> Option<RegionSize> {
        let _ = region;
        None
    }

    /// Keys at which to divide a region into parts of about equal size, of at most about `max_bytes` each;
    /// increasing, within its range. None if it is no larger, or, which is the default, if it cannot say:
    /// then the region is not split for its size. May read the whole region.
    fn split_keys(&self, region: RegionId, max_bytes: u64) -> Vec<Bytes> {
        let _ = (region, max_bytes);
        Vec::new()
    }

    /// Makes everything durable that was applied to any region, as far as the state machine outlives its
    /// process at all. Called before a region's log gives way to a snapshot, and before it is destroyed: what
    /// split off it must not need it any more.
    /// When to flush otherwise is the state machine's own affair.
    ///
    /// # Errors
    /// When that fails. The store stops then.
    fn flush(&self) -> Result<(), StateMachineError>;
}
