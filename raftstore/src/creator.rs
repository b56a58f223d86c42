//! Brings regions to life: new ones, and those found in the log.

use crate::error::StartError;
use crate::handle::StoreHandle;
use crate::log_store::{
    LogBatch, LogStore, LogStoreError, RegionWrite, StoredRegion, MAX_REGION_ID,
};
use crate::message::RegionMessage;
use crate::region_fsm::{RegionFsm, RegionRouter};
use crate::state_machine::StateMachine;
use crate::write_path::persist::write_log;
use batch_system::Priority;
use region::{
    LogReader, Region, RegionConfig, RegionDescription, RegionId, RegionRecord, RestoredState,
    StoreId, TruncatedState,
};
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::Duration;

/// Regions whose records one bootstrap write covers.
const BOOTSTRAP_BATCH: usize = 1024;

/// Brings regions to life: new ones, and those found in the log.
pub(crate) struct Creator {
    pub(crate) store_id: StoreId,
    pub(crate) region_config: Arc<RegionConfig>,
    pub(crate) tick_interval: Duration,
    pub(crate) log_store: Arc<dyn LogStore>,
    pub(crate) state_machine: Arc<dyn StateMachine>,
    /// One bootstrap at a time.
    pub(crate) bootstrapping: parking_lot::Mutex<()>,
}

impl Creator {
    pub(crate) fn bootstrap(
        &self,
        handle: &StoreHandle,
        regions: &[RegionDescription],
    ) -> Result<(), StartError> {
        let _one_at_a_time = self.bootstrapping.lock();
        if handle.inner.stopped.load(Ordering::Acquire) || handle.inner.health.has_failed() {
            return Err(StartError::Stopped);
        }
        // Everything is checked before anything is created.
        let mut admitted: Vec<RegionRecord> = Vec::new();
        for description in regions {
            match self.admit(handle, description) {
                Ok(None) => {}
                Ok(Some(record)) => admitted.push(record),
                Err(error) => {
                    admitted.iter().for_each(|r| handle.inner.ranges.remove(&r.description));
                    return Err(error);
                }
            }
        }
        admitted.sort_by_key(|record| record.description.id);
        admitted.dedup();
        if let Some(twice) =
            admitted.windows(2).find(|two| two[0].description.id == two[1].description.id)
        {
            admitted.iter().for_each(|r| handle.inner.ranges.remove(&r.description));
            let reason = "it is listed twice, with different descriptions".to_owned();
            return Err(StartError::Region { region_id: twice[0].description.id, reason });
        }
        for records in admitted.chunks(BOOTSTRAP_BATCH) {
            self.create(handle, records)?;
        }
        Ok(())
    }

    fn create(&self, handle: &StoreHandle, records: &[RegionRecord]) -> Result<(), StartError> {
        // The record is durable before the region can promise anything: a crash in between leaves a
        // region that a restart, or a repeated bootstrap, finds.
        let mut batch = LogBatch::default();
        batch.writes.extend(records.iter().map(|record| RegionWrite {
            region_id: record.description.id,
            record: Some(record.clone()),
            ..RegionWrite::default()
        }));
        if let Err(failure) = write_log(&*self.log_store, &mut batch, true) {
            let reason = failure.to_string();
            handle.inner.health.fail(failure);
            return Err(LogStoreError::Write(reason).into());
        }
        for record in records {
            let stored = StoredRegion {
                record: record.clone(),
                hard_state: None,
                truncated: TruncatedState::INITIAL,
                last_index: TruncatedState::INITIAL.index,
            };
            self.restore(handle, stored);
        }
        Ok(())
    }

    /// The record of a region to be created, its range taken; `None` if there is nothing to do.
    fn admit(
        &self,
        handle: &StoreHandle,
        description: &RegionDescription,
    ) -> Result<Option<RegionRecord>, StartError> {
        let region_id = description.id;
        let fail = |reason: String| StartError::Region { region_id, reason };
        description.validate().map_err(|error| fail(error.to_string()))?;
        if region_id.get() > MAX_REGION_ID {
            return Err(fail(format!("ids above {MAX_REGION_ID} are reserved")));
        }
        let Some(peer) = description.peer_on(self.store_id) else { return Ok(None) };
        if let Some(reason) = handle.inner.set_aside.lock().get(&region_id) {
            return Err(fail(format!("it exists and is set aside: {reason}")));
        }
        if handle.inner.router.mailbox(region_id.get()).is_some() {
            return self.compare(handle, description).map(|()| None);
        }
        if let Err(other) = handle.inner.ranges.insert(description) {
            return Err(fail(format!("its range overlaps that of region {other}")));
        }
        Ok(Some(RegionRecord::new(description.clone(), peer.id)))
    }

    /// Whether a region that is here is the one described.
    fn compare(
        &self,
        handle: &StoreHandle,
        description: &RegionDescription,
    ) -> Result<(), StartError> {
        let region_id = description.id;
        let fail = |reason: &str| StartError::Region { region_id, reason: reason.to_owned() };
        let Some(status) = handle.region_status(region_id) else {
            return Err(fail("it exists and is too busy to be compared; try again"));
        };
        // It may have changed since its creation; then its epoch is newer.
        let known = &status.description;
        let newer = known.epoch.conf_ver > description.epoch.conf_ver
            || known.epoch.version > description.epoch.version;
        match **known == *description || newer {
            true => Ok(()),
            false => Err(fail("it exists with another description")),
        }
    }

    /// Brings a region to life from what the log store holds. One that is damaged is set aside, and
    /// the others go on.
    pub(crate) fn restore(&self, handle: &StoreHandle, stored: StoredRegion) {
        if stored.record.tombstone {
            return;
        }
        let region_id = stored.record.description.id;
        if let Err(reason) = self.try_restore(handle, stored) {
            if handle.inner.stopped.load(Ordering::Acquire) {
                return;
            }
            tracing::error!(region = %region_id, reason, "region set aside");
            handle.inner.set_aside.lock().insert(region_id, reason);
        }
    }

    fn try_restore(&self, handle: &StoreHandle, stored: StoredRegion) -> Result<(), String> {
        let region_id = stored.record.description.id;
        let applied = self.state_machine.applied_state(region_id);
        let applied = applied.map_err(|error| format!("its state machine: {error}"))?;
        let reader: Arc<dyn LogReader> = self.log_store.clone();
        let state = RestoredState {
            record: stored.record,
            hard_state: stored.hard_state,
            truncated: stored.truncated,
            last_index: stored.last_index,
            applied,
        };
        let region = Region::restore(state, self.store_id, self.region_config.clone(), reader)
            .map_err(|failure| failure.to_string())?;
        if let Err(other) = handle.inner.ranges.insert(region.description()) {
            return Err(format!("its range overlaps that of region {other}"));
        }
        handle.inner.metrics.region_added();
        let fsm = Box::new(RegionFsm::new(region));
        let router = &handle.inner.router;
        let registered = router.register(region_id.get(), fsm, Priority::Normal);
        registered.map_err(|error| error.to_string())?;
        self.start_ticking(router, region_id);
        Ok(())
    }

    /// Regions tick at different times, so that the work spreads over the interval.
    fn start_ticking(&self, router: &RegionRouter, region: RegionId) {
        let mixed = (region.get() ^ self.store_id.get() << 56).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let part = (mixed >> 40) as f64 / (1u64 << 24) as f64;
        let offset = self.tick_interval.mul_f64(part);
        router.outbox().send_after(region.get(), offset, RegionMessage::Tick);
        // What recovery left to do (replaying the log) begins now and not with the first tick.
        let _ = router.force_send(region.get(), RegionMessage::Continue);
    }
}
