//! The thread that does what takes long and must not hold up a poller: installs a snapshot that is complete,
//! and destroys a region that has left this store.
//!
//! # Destroying a region
//!
//! 1. The state machine is flushed: other regions may have begun as parts of this one, and would lose what
//!    they began with if the split had to be replayed without it.
//! 2. The tombstone takes the place of the region's record, log and hard state, in one synced write.
//! 3. The state machine forgets the contents; the range is free; the mailbox is closed.
//!
//! After a crash between 2 and 3 the next start finds a tombstone with contents, and does 3.

use super::files::SnapshotFiles;
use super::frames::FrameReader;
use super::message::{staged_name, StagedName};
use crate::error::StoreFailure;
use crate::events::{Observers, RegionEvent};
use crate::health::Health;
use crate::log_store::{LogBatch, LogStore, RegionWrite};
use crate::message::RegionMessage;
use crate::metrics::Metrics;
use crate::range_map::RangeMap;
use crate::region_fsm::RegionRouter;
use crate::state_machine::{InstallError, StateMachine};
use crate::store_fsm::SetAside;
use crate::work_queue::{Taken, WorkQueue};
use crate::write_path::persist::write_log;
use region::{
    AppliedState, HardState, Index, PeerId, RegionId, RegionRecord, Removal, TruncatedState,
};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::Arc;
use std::time::Duration;

/// What the thread is asked to do.
pub(crate) enum Chore {
    /// The contents of a region give way to those of a snapshot that is complete.
    Install(AppliedState, PeerId),
    /// A peer has left its region.
    Destroy(Removal, PeerId),
    /// The mailbox of a peer that has ended, and of which nothing may be destroyed.
    Close(RegionId),
}

/// The thread's queue.
pub(crate) type ChoreQueue = WorkQueue<Chore>;

/// What the thread works with.
pub(crate) struct ChoreWorker {
    pub(crate) queue: Arc<ChoreQueue>,
    pub(crate) state_machine: Arc<dyn StateMachine>,
    pub(crate) log_store: Arc<dyn LogStore>,
    pub(crate) files: Arc<dyn SnapshotFiles>,
    pub(crate) ranges: Arc<RangeMap>,
    pub(crate) health: Arc<Health>,
    pub(crate) set_aside: SetAside,
    pub(crate) router: RegionRouter,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) observers: Arc<Observers>,
    pub(crate) chores: Vec<Chore>,
}

/// How often the thread looks up although nobody has called.
const IDLE: Duration = Duration::from_secs(10);

impl ChoreWorker {
    /// The body of the thread: until the queue is closed and empty. Calls to what users bring are guarded one by
    /// one; what is not stops the store, by name.
    pub(crate) fn run(self) {
        let health = self.health.clone();
        if catch_unwind(AssertUnwindSafe(|| self.serve())).is_err() {
            let thread = "the thread that installs snapshots and destroys regions";
            health.fail(StoreFailure::Panicked(thread));
        }
    }

    fn serve(mut self) {
        while self.queue.take_for(&mut self.chores, IDLE) != Taken::Closed {
            self.work();
        }
        self.work();
    }

    /// Whether there is something to do.
    pub(crate) fn has_work(&self) -> bool {
        !self.queue.is_empty()
    }

    /// One wake: does all that waits.
    pub(crate) fn wake(&mut self) {
        self.queue.take_now(&mut self.chores);
        self.work();
    }

    fn work(&mut self) {
        for chore in std::mem::take(&mut self.chores) {
            if self.health.has_failed() {
                return;
            }
            match chore {
                Chore::Install(applied, peer) => self.install(applied, peer),
                Chore::Destroy(last, peer) => self.destroy(&last, peer),
                Chore::Close(region) => drop(self.router.close(region.get())),
            }
        }
    }

    fn install(&self, applied: AppliedState, peer: PeerId) {
        let (region, index) = (applied.description.id, applied.index);
        match install_staged(&*self.state_machine, &*self.files, applied, peer) {
            Ok(()) => {
                self.metrics.snapshot("installed");
                self.observers.tell(region, || RegionEvent::SnapshotInstalled { index });
                let _ = self.router.force_send(region.get(), RegionMessage::Applied(index));
            }
            Err(NotInstalled::Unsound(reason)) => {
                tracing::error!(%region, reason, "region set aside");
                self.observers.tell(region, || RegionEvent::SetAside { reason: reason.clone() });
                self.set_aside.lock().insert(region, reason);
                self.router.close(region.get());
            }
            Err(NotInstalled::Failed(failure)) => self.health.fail(failure),
        }
    }

    fn destroy(&self, last: &Removal, peer: PeerId) {
        let region = last.description.id;
        let failure = self.flush_and_bury(last, peer).err();
        let failure = failure.or_else(|| forget(&*self.state_machine, region).err());
        if let Some(failure) = failure {
            return self.health.fail(failure);
        }
        remove_staged(&*self.files, region, peer, Index::new(u64::MAX));
        self.ranges.remove_region(region);
        self.metrics.count_destroyed();
        self.observers.tell(region, || RegionEvent::Destroyed { peer });
        self.router.close(region.get());
    }

    fn flush_and_bury(&self, last: &Removal, peer: PeerId) -> Result<(), StoreFailure> {
        flush(&*self.state_machine)?;
        let mut batch = LogBatch::default();
        batch.writes.push(tombstone(last, peer));
        write_log(&*self.log_store, &mut batch, true).map(|_| ())
    }
}

/// What takes the place of everything the log store has of a region.
pub(crate) fn tombstone(last: &Removal, peer: PeerId) -> RegionWrite {
    let record = RegionRecord::tombstone(last, peer);
    RegionWrite {
        region_id: last.description.id,
        clear: true,
        truncated: Some(TruncatedState::INITIAL),
        hard_state: Some(HardState::default()),
        record: Some(Box::new(record)),
        ..RegionWrite::default()
    }
}

/// The state machine makes everything durable.
pub(crate) fn flush(state_machine: &dyn StateMachine) -> Result<(), StoreFailure> {
    match catch_unwind(AssertUnwindSafe(|| state_machine.flush())) {
        Ok(flushed) => Ok(flushed?),
        Err(_) => Err(StoreFailure::Panicked("the state machine")),
    }
}

/// The state machine forgets a region.
pub(crate) fn forget(
    state_machine: &dyn StateMachine,
    region: RegionId,
) -> Result<(), StoreFailure> {
    match catch_unwind(AssertUnwindSafe(|| state_machine.destroy(region))) {
        Ok(destroyed) => Ok(destroyed?),
        Err(_) => Err(StoreFailure::Panicked("the state machine")),
    }
}

/// What becomes of a snapshot that was not installed.
pub(crate) enum NotInstalled {
    /// What was received is not there any more, rotten, or refused by the state machine: the region is set
    /// aside. The file stays until it is discarded.
    Unsound(String),
    /// The state machine failed, and with it the store.
    Failed(StoreFailure),
}

/// Installs the snapshot that lies complete in a file, and removes it and earlier ones of the peer. If the
/// state machine does not say that the contents are durable, the file stays until the peer is destroyed.
pub(crate) fn install_staged(
    state_machine: &dyn StateMachine,
    files: &dyn SnapshotFiles,
    applied: AppliedState,
    peer: PeerId,
) -> Result<(), NotInstalled> {
    let (region, index) = (applied.description.id, applied.index);
    let name = staged_name(region, peer, index, applied.term);
    let opened = files.open(&name);
    let bytes =
        opened.map_err(|error| NotInstalled::Unsound(format!("snapshot {name}: {error}")))?;
    let mut reader = FrameReader::new(applied, name.clone(), bytes);
    let installed = catch_unwind(AssertUnwindSafe(|| state_machine.install(&mut reader)));
    match installed {
        Ok(Ok(())) => {}
        // It says itself which snapshot it is.
        Ok(Err(error)) if reader.is_damaged() => {
            return Err(NotInstalled::Unsound(error.to_string()));
        }
        Ok(Err(InstallError::Unsound(reason))) => {
            let reason = format!("snapshot {name}: its contents are refused: {reason}");
            return Err(NotInstalled::Unsound(reason));
        }
        Ok(Err(InstallError::Failed(error))) => return Err(NotInstalled::Failed(error.into())),
        Err(_) => return Err(NotInstalled::Failed(StoreFailure::Panicked("the state machine"))),
    }
    // For a state machine that keeps nothing on disk the next start installs it again.
    let durable = catch_unwind(AssertUnwindSafe(|| state_machine.durable_index(region)));
    let needed_again = durable.unwrap_or_default() < index;
    let end = index.get() + u64::from(!needed_again);
    remove_staged(files, region, peer, Index::new(end));
    Ok(())
}

/// Removes what a peer has taken of an index before `end`.
pub(crate) fn remove_staged(files: &dyn SnapshotFiles, region: RegionId, peer: PeerId, end: Index) {
    let names = files.list().unwrap_or_else(|error| {
        tracing::warn!(%region, %error, "snapshots cannot be listed");
        Vec::new()
    });
    let before = |name: &StagedName| {
        name.taken && (name.region, name.peer) == (region, peer) && name.index < end
    };
    for name in
        names.into_iter().filter(|name| StagedName::parse(name).as_ref().is_some_and(before))
    {
        if let Err(error) = files.remove(&name) {
            tracing::warn!(name, %error, "a snapshot cannot be removed");
        }
    }
}
