//! Which regions there are, as far as anybody outside can know: what leaders and others have shown of
//! themselves so far.

use raftstore::{RegionDescription, RegionEpoch, RegionStatus, Role};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What is known of a region.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    /// The newest description that a peer has shown.
    pub description: Arc<RegionDescription>,
    /// The store that the next operation goes to.
    pub leader: u64,
}

/// All regions, and the next ids to give out.
#[derive(Debug)]
pub(crate) struct Directory {
    regions: BTreeMap<u64, Known>,
    next_region: u64,
    next_peer: u64,
    /// By region and store: the term in which the store takes itself for the leader.
    leads: BTreeMap<(u64, u64), u64>,
}

/// Regions that are not there from the start have ids from here on.
const FIRST_NEW_REGION: u64 = 2_000;
/// And so have peers.
const FIRST_NEW_PEER: u64 = 100_000;

impl Directory {
    /// One with the regions that are there from the start.
    pub(crate) fn new(regions: impl Iterator<Item = RegionDescription>) -> Self {
        let known = |description: RegionDescription| {
            let leader = description.peers[0].store.get();
            (description.id.get(), Known { description: Arc::new(description), leader })
        };
        Self {
            regions: regions.map(known).collect(),
            next_region: FIRST_NEW_REGION,
            next_peer: FIRST_NEW_PEER,
            leads: BTreeMap::new(),
        }
    }

    /// The ids of all regions.
    pub(crate) fn ids(&self) -> Vec<u64> {
        self.regions.keys().copied().collect()
    }

    /// What is known of a region.
    pub(crate) fn get(&self, region: u64) -> &Known {
        &self.regions[&region]
    }

    /// The stores that hold a region.
    pub(crate) fn stores_of(&self, region: u64) -> Vec<u64> {
        self.regions[&region].description.peers.iter().map(|peer| peer.store.get()).collect()
    }

    /// The region that holds a key.
    pub(crate) fn holder(&self, key: &[u8]) -> u64 {
        let holders = self.regions.iter().filter(|(_, known)| known.description.contains(key));
        // Until a split has been seen of both sides, the whole and a part seem to hold it.
        let newest = holders.max_by_key(|(id, known)| (known.description.epoch.version, **id));
        // One half of a split has been seen, and not the other: whoever is asked will say so.
        let same_table = |known: &Known| known.description.start_key.get(..8) == key.get(..8);
        let near = || self.regions.iter().find(|(_, known)| same_table(known));
        newest.or_else(near).map_or(1, |(id, _)| *id)
    }

    /// The epoch with which an operation on a key is proposed: one that no region has, where the region is
    /// known not to hold it.
    pub(crate) fn epoch(&self, region: u64, key: &[u8]) -> RegionEpoch {
        let description = &self.regions[&region].description;
        match description.contains(key) {
            true => description.epoch,
            false => RegionEpoch::default(),
        }
    }

    /// A region's next operation goes there.
    pub(crate) fn set_leader(&mut self, region: u64, store: u64) {
        if let Some(known) = self.regions.get_mut(&region) {
            known.leader = store;
        }
    }

    /// A peer has shown how it stands.
    pub(crate) fn look(&mut self, store: u64, status: &RegionStatus) {
        let description = &status.description;
        if !description.is_initialised() {
            return;
        }
        let newer = |known: &Known| {
            let (old, new) = (known.description.epoch, description.epoch);
            (new.version, new.conf_ver) > (old.version, old.conf_ver)
        };
        let id = description.id.get();
        match status.role == Role::Leader {
            true => self.leads.insert((id, store), status.term.get()),
            false => self.leads.remove(&(id, store)),
        };
        let known = self.regions.entry(id);
        let known =
            known.or_insert_with(|| Known { description: description.clone(), leader: store });
        if newer(known) {
            known.description = description.clone();
        }
        if status.role == Role::Leader && newer_or_equal(known, description) {
            known.leader = store;
        }
    }

    /// Whether a store takes itself for the leader of a region, and another one leads it in a later term.
    pub(crate) fn is_deposed(&self, region: u64, store: u64) -> bool {
        let Some(own) = self.leads.get(&(region, store)) else { return false };
        let mut leaders = self.leads.range((region, 0)..=(region, u64::MAX));
        leaders.any(|(_, term)| term > own)
    }

    /// A store has ended, and leads nothing.
    pub(crate) fn forget_leader(&mut self, store: u64) {
        self.leads.retain(|(_, leader), _| *leader != store);
    }

    /// The next id for a region.
    pub(crate) fn new_region(&mut self) -> u64 {
        self.next_region += 1;
        self.next_region
    }

    /// The next id for a peer.
    pub(crate) fn new_peer(&mut self) -> u64 {
        self.next_peer += 1;
        self.next_peer
    }
}

fn newer_or_equal(known: &Known, description: &RegionDescription) -> bool {
    let (old, new) = (known.description.epoch, description.epoch);
    (new.version, new.conf_ver) >= (old.version, old.conf_ver)
}
