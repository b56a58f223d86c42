//! Regions that a user creates: the same list, on every store that has a peer of one.
//!
//! # A store that comes late
//!
//! Stores are not created at one instant. A peer of a region may stand for election before another store has
//! created its own, and by its message a peer comes there that knows nothing, and may vote. It becomes what the
//! list says of it, and keeps its vote: all peers of a new region begin with the same, an empty log after
//! index 5. As with the child of a split, Peers sees to it that no snapshot comes between; the record is written
//! first, and the region is told then. After a crash between the two the record says all there is to know.

use crate::creator::{new_region, Creator};
use crate::error::StartError;
use crate::events::{is_observing, CreatedBy};
use crate::handle::StoreHandle;
use crate::message::RegionMessage;
use crate::peers::{Before, Refused, Taken};
use crate::region_fsm::RegionRouter;
use region::{PeerId, RegionDescription, RegionId, RegionRecord};
use rustc_hash::FxHashMap;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::Ordering;

/// Regions whose records one bootstrap write covers.
const BOOTSTRAP_BATCH: usize = 1024;

/// A region to be created, its range and its peer taken.
struct Admitted {
    record: RegionRecord,
    how: How,
}

enum How {
    /// Nothing of it is here; what `Peers` knew.
    New(Before),
    /// Its peer is here, promised to become this, and knows nothing yet: somebody has spoken to it before.
    Told,
}

/// What is here of a region that is to be created.
enum Found {
    /// The region, or a newer state of it.
    Same,
    /// Its peer, which knows nothing of it yet.
    Nothing,
}

impl Creator {
    pub(crate) fn bootstrap(
        &self,
        handle: &StoreHandle,
        regions: &[RegionDescription],
    ) -> Result<(), StartError> {
        if is_observing() {
            return Err(StartError::InObserver);
        }
        let _one_at_a_time = self.bootstrapping.lock();
        if handle.inner.stopped.load(Ordering::Acquire) || self.health.has_failed() {
            return Err(StartError::Stopped);
        }
        // Everything is checked before anything is created.
        let mut admitted: Vec<Admitted> = Vec::new();
        let mut listed: FxHashMap<RegionId, &RegionDescription> = FxHashMap::default();
        for description in regions {
            let admitted_now = self.admit(handle, description, &mut listed);
            match admitted_now.and_then(|new| self.check_vacant(new)) {
                Ok(None) => {}
                Ok(Some(new)) => admitted.push(new),
                Err(error) => {
                    admitted.into_iter().for_each(|admitted| self.take_back(admitted));
                    return Err(error);
                }
            }
        }
        for batch in admitted.chunks(BOOTSTRAP_BATCH) {
            self.write_records(batch.iter().map(|new| new.record.clone()))?;
            for admitted in batch {
                self.begin_admitted(&handle.inner.router, admitted)?;
            }
        }
        // The state machine may have something of a region whose log is gone.
        let set_aside = self.set_aside.lock();
        for region_id in admitted.iter().map(|new| new.record.description.id) {
            if let Some(reason) = set_aside.get(&region_id) {
                let reason = format!("it is set aside: {reason}");
                return Err(StartError::Region { region_id, reason });
            }
        }
        Ok(())
    }

    /// Nothing that is in the state machine already may show as the region's.
    fn check_vacant(&self, new: Option<Admitted>) -> Result<Option<Admitted>, StartError> {
        let Some(new) = new else { return Ok(None) };
        let description = &new.record.description;
        let asked = catch_unwind(AssertUnwindSafe(|| self.state_machine.check_vacant(description)));
        let reason = match asked {
            Ok(Ok(())) => return Ok(Some(new)),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "its state machine panicked when asked about its range".to_owned(),
        };
        let region_id = description.id;
        self.take_back(new);
        Err(StartError::Region { region_id, reason })
    }

    fn take_back(&self, Admitted { record, how }: Admitted) {
        let region_id = record.description.id;
        self.ranges.remove(&record.description);
        match how {
            How::New(before) => self.peers.give_up(region_id, before),
            How::Told => self.end_own_promise(region_id, record.peer_id),
        }
    }

    fn end_own_promise(&self, region: RegionId, peer: PeerId) {
        self.peers.keep_promise(region, peer);
        self.peers.end_promise(&[region]);
    }

    /// The record is durable.
    fn begin_admitted(&self, router: &RegionRouter, admitted: &Admitted) -> Result<(), StartError> {
        let record = &admitted.record;
        let (region_id, peer) = (record.description.id, record.peer_id);
        if let How::New(_) = admitted.how {
            self.count_created(region_id, peer, CreatedBy::Bootstrap);
            self.restore(router, new_region(record.clone()));
            return Ok(());
        }
        let begin = RegionMessage::BeginFromSplit(record.description.clone());
        let told = router.force_send(region_id.get(), begin);
        self.end_own_promise(region_id, peer);
        told.map_err(|_| {
            let reason = "its peer ended meanwhile; what it is, is written: start the store again";
            StartError::Region { region_id, reason: reason.to_owned() }
        })
    }

    /// The record of a region to be created, its range taken; `None` if there is nothing to do.
    fn admit<'a>(
        &self,
        handle: &StoreHandle,
        description: &'a RegionDescription,
        listed: &mut FxHashMap<RegionId, &'a RegionDescription>,
    ) -> Result<Option<Admitted>, StartError> {
        let region_id = description.id;
        let fail = |reason: String| StartError::Region { region_id, reason };
        check(description).map_err(fail)?;
        let Some(peer) = description.peer_on(self.store_id) else { return Ok(None) };
        if let Some(reason) = self.set_aside.lock().get(&region_id) {
            return Err(fail(format!("it exists and is set aside: {reason}")));
        }
        match listed.insert(region_id, description) {
            Some(before) if before == description => return Ok(None),
            Some(before) => {
                let differs = differences(before, description);
                return Err(fail(format!(
                    "it is listed twice, with different descriptions: {differs}"
                )));
            }
            None => {}
        }
        if self.is_here(&handle.inner.router, region_id) {
            return match self.compare(handle, description, peer.id)? {
                Found::Same => Ok(None),
                Found::Nothing => self.admit_told(description, peer.id),
            };
        }
        if let Some(Refused::Tombstone(last, _)) = self.peers.refusal(region_id, peer.id) {
            // The list is repeated, and the region has moved on.
            tracing::info!(region = %region_id, peer = %peer.id, %last, "not created: it was here and has left");
            return Ok(None);
        }
        let record = RegionRecord::new(description.clone(), peer.id);
        if let Err(other) = self.ranges.insert(&record.description) {
            return Err(fail(format!("its range overlaps that of region {other}")));
        }
        let before = self.peers.create(region_id, peer.id).map_err(|refused| {
            self.ranges.remove(description);
            fail(format!("peer {} cannot be created: {refused}", peer.id))
        })?;
        Ok(Some(Admitted { record, how: How::New(before) }))
    }

    /// The same for a peer that is here and knows nothing yet.
    fn admit_told(
        &self,
        description: &RegionDescription,
        peer: PeerId,
    ) -> Result<Option<Admitted>, StartError> {
        let region_id = description.id;
        let fail = |reason: String| StartError::Region { region_id, reason };
        match self.peers.promise(region_id, &[(region_id, peer)], &self.ranges) {
            Ok(others) if others.is_empty() => {}
            // It has left since, or a snapshot of its leader brings everything.
            Ok(_) => {
                self.peers.end_promise(&[region_id]);
                return Ok(None);
            }
            Err((_, Taken::Here)) => return Ok(None),
            Err((_, taken)) => return Err(fail(format!("it is one {taken}"))),
        }
        let record = RegionRecord::new(description.clone(), peer);
        if let Err(other) = self.ranges.insert(&record.description) {
            self.end_own_promise(region_id, peer);
            return Err(fail(format!("its range overlaps that of region {other}")));
        }
        Ok(Some(Admitted { record, how: How::Told }))
    }

    /// Whether a region that is here is the one described.
    fn compare(
        &self,
        handle: &StoreHandle,
        description: &RegionDescription,
        peer: PeerId,
    ) -> Result<Found, StartError> {
        let region_id = description.id;
        let fail = |reason: &str| StartError::Region { region_id, reason: reason.to_owned() };
        let Some(status) = handle.region_status(region_id) else {
            return Err(fail("it exists and is too busy to be compared; try again"));
        };
        // It may have changed since its creation; then its epoch is newer.
        let known = &status.description;
        let newer = known.epoch.conf_ver > description.epoch.conf_ver
            || known.epoch.version > description.epoch.version;
        let told = !known.is_initialised() && status.peer_id == peer;
        match **known == *description || newer {
            true => Ok(Found::Same),
            false if told => Ok(Found::Nothing),
            false => {
                let differs = differences(known, description);
                Err(fail(&format!("it exists with another description: {differs}")))
            }
        }
    }
}

/// Whether a region may be created like this.
fn check(description: &RegionDescription) -> Result<(), String> {
    description.validate().map_err(|error| error.to_string())?;
    if description.joint {
        return Err("a change of its peers is said to be under way".to_owned());
    }
    Ok(())
}

/// In what a region differs from the one that is described.
fn differences(known: &RegionDescription, described: &RegionDescription) -> String {
    let range = |of: &RegionDescription| format!("{:?} to {:?}", of.start_key, of.end_key);
    let epoch = |of: &RegionDescription| format!("{}/{}", of.epoch.conf_ver, of.epoch.version);
    let peers = |of: &RegionDescription| {
        let each = of
            .peers
            .iter()
            .map(|peer| format!("{} on store {} ({:?})", peer.id, peer.store, peer.role));
        match of.is_initialised() {
            true => each.collect::<Vec<_>>().join(", "),
            false => "not known yet".to_owned(),
        }
    };
    let last = |of: &RegionDescription| of.last_peer_id.to_string();
    let parts = [
        ("range", range(known), range(described)),
        ("peers", peers(known), peers(described)),
        ("epoch", epoch(known), epoch(described)),
        ("last_peer_id", last(known), last(described)),
    ];
    let differ = parts.into_iter().filter(|(_, known, described)| known != described);
    let texts = differ.map(|(what, known, described)| format!("{what} {known}, not {described}"));
    texts.collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use region::{Peer, StoreId};

    #[test]
    fn what_differs_is_named_and_nothing_else() {
        let voter = |id| Peer::voter(PeerId::new(id), StoreId::new(1));
        let whole = RegionDescription::new(RegionId::new(1), "a", "m", [voter(11)]);
        let wider = RegionDescription { end_key: "z".into(), ..whole.clone() };
        assert_eq!(differences(&whole, &wider), "range b\"a\" to b\"m\", not b\"a\" to b\"z\"");
        let other = RegionDescription::new(RegionId::new(1), "a", "m", [voter(12)]);
        assert_eq!(
            differences(&whole, &other),
            "peers 11 on store 1 (Voter), not 12 on store 1 (Voter); last_peer_id 11, not 12"
        );
    }
}
