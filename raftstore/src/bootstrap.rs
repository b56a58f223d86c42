//! Regions that a user creates: the same list, on every store that has a peer of one.

use crate::creator::{new_region, Creator};
use crate::error::StartError;
use crate::events::CreatedBy;
use crate::handle::StoreHandle;
use crate::log_store::MAX_REGION_ID;
use crate::peers::Before;
use region::{RegionDescription, RegionRecord};
use std::sync::atomic::Ordering;

/// Regions whose records one bootstrap write covers.
const BOOTSTRAP_BATCH: usize = 1024;

/// A region to be created, its range and its peer taken.
struct Admitted {
    record: RegionRecord,
    before: Before,
}

impl Creator {
    pub(crate) fn bootstrap(
        &self,
        handle: &StoreHandle,
        regions: &[RegionDescription],
    ) -> Result<(), StartError> {
        let _one_at_a_time = self.bootstrapping.lock();
        if handle.inner.stopped.load(Ordering::Acquire) || self.health.has_failed() {
            return Err(StartError::Stopped);
        }
        // Everything is checked before anything is created.
        let mut admitted: Vec<Admitted> = Vec::new();
        for description in regions {
            match self.admit(handle, description, &admitted) {
                Ok(None) => {}
                Ok(Some(new)) => admitted.push(new),
                Err(error) => {
                    for Admitted { record, before } in admitted {
                        self.ranges.remove(&record.description);
                        self.peers.give_up(record.description.id, before);
                    }
                    return Err(error);
                }
            }
        }
        for batch in admitted.chunks(BOOTSTRAP_BATCH) {
            self.write_records(batch.iter().map(|new| new.record.clone()))?;
            for Admitted { record, .. } in batch {
                self.count_created(record.description.id, record.peer_id, CreatedBy::Bootstrap);
                self.restore(&handle.inner.router, new_region(record.clone()));
            }
        }
        // The state machine may have something of a region whose log is gone.
        let set_aside = self.set_aside.lock();
        for RegionDescription { id, .. } in admitted.iter().map(|new| &new.record.description) {
            if let Some(reason) = set_aside.get(id) {
                let reason = format!("it is set aside: {reason}");
                return Err(StartError::Region { region_id: *id, reason });
            }
        }
        Ok(())
    }

    /// The record of a region to be created, its range taken; `None` if there is nothing to do.
    fn admit(
        &self,
        handle: &StoreHandle,
        description: &RegionDescription,
        listed: &[Admitted],
    ) -> Result<Option<Admitted>, StartError> {
        let region_id = description.id;
        let fail = |reason: String| StartError::Region { region_id, reason };
        description.validate().map_err(|error| fail(error.to_string()))?;
        if description.joint {
            return Err(fail("a change of its peers is said to be under way".to_owned()));
        }
        if region_id.get() > MAX_REGION_ID {
            return Err(fail(format!("ids above {MAX_REGION_ID} are reserved")));
        }
        let Some(peer) = description.peer_on(self.store_id) else { return Ok(None) };
        if let Some(reason) = self.set_aside.lock().get(&region_id) {
            return Err(fail(format!("it exists and is set aside: {reason}")));
        }
        if let Some(twice) = listed.iter().find(|new| new.record.description.id == region_id) {
            return match twice.record.description == *description {
                true => Ok(None),
                false => Err(fail("it is listed twice, with different descriptions".to_owned())),
            };
        }
        if handle.inner.router.mailbox(region_id.get()).is_some() {
            return self.compare(handle, description).map(|()| None);
        }
        if let Err(other) = self.ranges.insert(description) {
            return Err(fail(format!("its range overlaps that of region {other}")));
        }
        let before = self.peers.create(region_id, peer.id).map_err(|refused| {
            self.ranges.remove(description);
            fail(format!("peer {} cannot be created: {refused}", peer.id))
        })?;
        Ok(Some(Admitted { record: RegionRecord::new(description.clone(), peer.id), before }))
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
}
