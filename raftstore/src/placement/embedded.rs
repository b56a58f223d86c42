//! A placement within the process. It has no opinion where regions should be: it remembers how they are,
//! hands out ids, and passes on what others order.

use super::ids::Ids;
use super::{
    Operator, Order, OrderReport, Outcome, Placement, PlacementError, RegionHeartbeat,
    StoreHeartbeat,
};
use bytes::Bytes;
use parking_lot::Mutex;
use region::{RegionDescription, RegionId, StoreId, MAX_ID};
use rustc_hash::FxHashMap;
use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::path::Path;

/// Orders that are remembered. Beyond, the oldest that are finished are forgotten.
const MAX_ORDERS: usize = 10_000;

/// How an order stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OrderStatus {
    /// No leader has taken it yet; another order of the region may be before it.
    Waits,
    /// A store is at it.
    UnderWay(StoreId),
    /// It has ended.
    Ended(Outcome),
}

/// A [`Placement`] within the process, for one store or all stores in it.
#[derive(Debug)]
pub struct EmbeddedPlacement {
    ids: Mutex<Ids>,
    known: Mutex<Known>,
}

/// Invariant: the ranges in `by_start` never overlap; each belongs to a region in `regions`.
#[derive(Debug, Default)]
struct Known {
    regions: FxHashMap<RegionId, RegionHeartbeat>,
    by_start: BTreeMap<Bytes, RegionId>,
    stores: BTreeMap<StoreId, StoreHeartbeat>,
    orders: BTreeMap<u64, (Order, OrderStatus)>,
    /// Orders that have not ended; the first of a region may be under way.
    queues: FxHashMap<RegionId, VecDeque<u64>>,
    last_order: u64,
}

impl EmbeddedPlacement {
    /// Keeps ids in memory, the first being `first_id`. After a restart it must be a larger one.
    pub fn in_memory(first_id: u64) -> Self {
        Self { ids: Mutex::new(Ids::in_memory(first_id)), known: Mutex::default() }
    }

    /// Keeps ids in this directory, so that none is given twice, also after a crash. The very first is
    /// `first_id`: above all ids of regions and peers that were given otherwise.
    ///
    /// # Errors
    /// When the directory cannot be created or read, is in use, or what it holds is damaged.
    pub fn open(dir: impl AsRef<Path>, first_id: u64) -> Result<Self, PlacementError> {
        let ids = Mutex::new(Ids::open(dir.as_ref(), first_id)?);
        Ok(Self { ids, known: Mutex::default() })
    }

    /// The last heartbeat of a region.
    pub fn region(&self, region: RegionId) -> Option<RegionHeartbeat> {
        self.known.lock().regions.get(&region).cloned()
    }

    /// The last heartbeat of the region that holds `key`.
    pub fn region_of(&self, key: &[u8]) -> Option<RegionHeartbeat> {
        let known = self.known.lock();
        let up_to_key = (Bound::Unbounded, Bound::Included(key));
        let (_, region) = known.by_start.range::<[u8], _>(up_to_key).next_back()?;
        known.regions.get(region).filter(|beat| beat.description.contains(key)).cloned()
    }

    /// The last heartbeats of all regions, by their ranges.
    pub fn regions(&self) -> Vec<RegionHeartbeat> {
        let known = self.known.lock();
        known.by_start.values().filter_map(|region| known.regions.get(region).cloned()).collect()
    }

    /// The last heartbeat of each store.
    pub fn stores(&self) -> Vec<StoreHeartbeat> {
        self.known.lock().stores.values().cloned().collect()
    }

    /// Orders something for a region; returns the order's id. Orders of a region are carried out one after
    /// the other, each when its leader's store sends its next heartbeats: up to `placement.interval` later. One
    /// that cannot be is refused, and says why.
    pub fn order(&self, region: RegionId, operator: Operator) -> u64 {
        let mut known = self.known.lock();
        known.last_order += 1;
        let id = known.last_order;
        let refusal = match known.regions.contains_key(&region) {
            _ if !known.make_room() => Some("too many orders wait".to_owned()),
            false => Some(format!("region {region} is not known: no leader of it was heard of")),
            true => None,
        };
        let status = match refusal {
            Some(reason) => refused(reason),
            None => {
                known.queues.entry(region).or_default().push_back(id);
                OrderStatus::Waits
            }
        };
        known.orders.insert(id, (Order { id, region, operator }, status));
        id
    }

    /// Takes an order back that no store has taken yet, as one of a region that nobody leads any more. Says
    /// whether it did; it is refused then.
    pub fn cancel(&self, id: u64) -> bool {
        let mut known = self.known.lock();
        let Some((order, OrderStatus::Waits)) = known.orders.get(&id) else { return false };
        let region = order.region;
        let reason = "it was taken back".to_owned();
        known.end(region, id, Some(Outcome::Refused { reason, is_retryable: true }));
        true
    }

    /// How an order stands; `None` if there was none of this id, or it is forgotten.
    pub fn order_status(&self, id: u64) -> Option<OrderStatus> {
        self.known.lock().orders.get(&id).map(|(_, status)| status.clone())
    }
}

fn refused(reason: String) -> OrderStatus {
    OrderStatus::Ended(Outcome::Refused { reason, is_retryable: true })
}

fn overlap(one: &RegionDescription, other: &RegionDescription) -> bool {
    let before = |end: &Bytes, start: &Bytes| !end.is_empty() && end <= start;
    !before(&one.end_key, &other.start_key) && !before(&other.end_key, &one.start_key)
}

impl Known {
    fn make_room(&mut self) -> bool {
        while self.orders.len() >= MAX_ORDERS {
            let ended = |status: &OrderStatus| matches!(status, OrderStatus::Ended(_));
            let oldest = self.orders.iter().find(|(_, (_, status))| ended(status));
            let Some(oldest) = oldest.map(|(id, _)| *id) else { return false };
            self.orders.remove(&oldest);
        }
        true
    }

    /// Takes a heartbeat, unless a newer one of the region, or of its range, is known.
    fn hear(&mut self, beat: &RegionHeartbeat) -> bool {
        let age = |beat: &RegionHeartbeat| {
            (beat.term, beat.description.epoch.version, beat.description.epoch.conf_ver)
        };
        let description = &beat.description;
        if self.regions.get(&description.id).is_some_and(|known| age(known) > age(beat)) {
            return false;
        }
        let overlapping = self.overlapping(description);
        let version = |region: &RegionId| {
            self.regions.get(region).map_or(0, |known| known.description.epoch.version)
        };
        // Of two regions that claim a key the one is newer that has seen more splits.
        let others = overlapping.iter().filter(|region| **region != description.id);
        if others.clone().any(|region| version(region) >= description.epoch.version) {
            return false;
        }
        for region in overlapping {
            self.forget(region);
        }
        self.forget(description.id);
        self.by_start.insert(description.start_key.clone(), description.id);
        self.regions.insert(description.id, beat.clone());
        true
    }

    fn overlapping(&self, description: &RegionDescription) -> Vec<RegionId> {
        let end = match description.end_key.is_empty() {
            true => Bound::Unbounded,
            false => Bound::Excluded(description.end_key.clone()),
        };
        let before_end = self.by_start.range((Bound::Unbounded, end)).rev();
        let known = before_end.filter_map(|(_, region)| self.regions.get(region));
        let there = known.map(|beat| &beat.description);
        there.take_while(|other| overlap(other, description)).map(|other| other.id).collect()
    }

    /// A region whose range belongs to another one by now; it will be heard of again.
    fn forget(&mut self, region: RegionId) {
        let Some(beat) = self.regions.remove(&region) else { return };
        if self.by_start.get(&beat.description.start_key) == Some(&region) {
            self.by_start.remove(&beat.description.start_key);
        }
    }

    /// The next order for a region, if its leader may have one.
    fn next_order(&mut self, region: RegionId, store: StoreId) -> Option<Order> {
        loop {
            let id = *self.queues.get(&region)?.front()?;
            let Some((order, status)) = self.orders.get_mut(&id) else {
                self.end(region, id, None);
                continue;
            };
            match (&status, &order.operator) {
                (OrderStatus::UnderWay(at), _) if *at == store => return None,
                (OrderStatus::UnderWay(at), _) => {
                    // Its report may still come, and then counts.
                    let reason =
                        format!("store {at} leads the region no more and has not reported");
                    self.end(region, id, Some(Outcome::Unknown { reason }));
                }
                (_, Operator::AddPeer { store, .. }) if !self.stores.contains_key(store) => {
                    let reason = format!("store {store} is not known: it was not heard of");
                    self.end(region, id, Some(Outcome::Refused { reason, is_retryable: true }));
                }
                _ => {
                    *status = OrderStatus::UnderWay(store);
                    return Some(order.clone());
                }
            }
        }
    }

    fn end(&mut self, region: RegionId, id: u64, outcome: Option<Outcome>) {
        if let (Some((_, status)), Some(outcome)) = (self.orders.get_mut(&id), outcome) {
            *status = OrderStatus::Ended(outcome);
        }
        if let Some(queue) = self.queues.get_mut(&region) {
            queue.retain(|queued| *queued != id);
            if queue.is_empty() {
                self.queues.remove(&region);
            }
        }
    }

    /// A store has started: it knows nothing of what it was at.
    fn store_started(&mut self, store: StoreId) {
        let lost =
            self.orders.values().filter(|(_, status)| *status == OrderStatus::UnderWay(store));
        let lost: Vec<Order> = lost.map(|(order, _)| order.clone()).collect();
        for order in lost {
            let reason = format!("store {store} was restarted meanwhile");
            self.end(order.region, order.id, Some(Outcome::Unknown { reason }));
        }
    }
}

impl Placement for EmbeddedPlacement {
    fn allocate(&self, count: u64) -> Result<u64, PlacementError> {
        self.ids.lock().take(count)
    }

    fn region_heartbeats(&self, heartbeats: &[RegionHeartbeat]) -> Vec<Order> {
        let ids = heartbeats.iter().flat_map(|beat| {
            let peers = beat.description.peers.iter().map(|peer| peer.id.get());
            peers.chain([beat.description.id.get()])
        });
        // Where regions were created with ids of somebody else's choice, those are not given again.
        if let Some(largest) = ids.filter(|id| *id <= MAX_ID).max() {
            self.ids.lock().skip(largest);
        }
        let mut known = self.known.lock();
        let mut orders = Vec::new();
        for beat in heartbeats {
            if known.hear(beat) {
                orders.extend(known.next_order(beat.description.id, beat.store));
            }
        }
        orders
    }

    fn store_heartbeat(&self, heartbeat: &StoreHeartbeat) {
        let mut known = self.known.lock();
        let store = heartbeat.status.store_id;
        if heartbeat.first {
            known.store_started(store);
        }
        known.stores.insert(store, heartbeat.clone());
    }

    fn report(&self, report: &OrderReport) {
        if let Some(id) = report.order {
            self.known.lock().end(report.region, id, Some(report.outcome.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use region::{Peer, PeerId, RegionEpoch, Term};
    use std::sync::Arc;
    use std::time::Duration;

    fn beat(
        id: u64,
        (start, end): (&'static str, &'static str),
        version: u64,
        store: u64,
    ) -> RegionHeartbeat {
        let peers = [1, 2].map(|on| Peer::voter(PeerId::new(10 * id + on), StoreId::new(on)));
        RegionHeartbeat {
            store: StoreId::new(store),
            leader: PeerId::new(10 * id + store),
            term: Term::new(6),
            description: Arc::new(RegionDescription {
                epoch: RegionEpoch { conf_ver: 1, version },
                ..RegionDescription::new(RegionId::new(id), start, end, peers)
            }),
            size: None,
            writes: 0,
            elapsed: Duration::ZERO,
            pending: Vec::new(),
            down: Vec::new(),
        }
    }

    fn found(placement: &EmbeddedPlacement, key: &str) -> Option<u64> {
        placement.region_of(key.as_bytes()).map(|beat| beat.description.id.get())
    }

    #[test]
    fn a_key_is_found_in_the_region_that_has_seen_more_splits() {
        let placement = EmbeddedPlacement::in_memory(1);
        placement.region_heartbeats(&[beat(1, ("", "m"), 1, 1), beat(2, ("m", ""), 1, 1)]);
        assert_eq!([found(&placement, "a"), found(&placement, "m")], [Some(1), Some(2)]);
        // Region 1 has been split; its child is heard of first.
        placement.region_heartbeats(&[beat(3, ("f", "m"), 2, 2)]);
        assert_eq!([found(&placement, "a"), found(&placement, "g")], [None, Some(3)]);
        placement.region_heartbeats(&[beat(1, ("", "m"), 1, 1)]);
        assert_eq!([found(&placement, "a"), found(&placement, "g")], [None, Some(3)], "it is old");
        placement.region_heartbeats(&[beat(1, ("", "f"), 2, 1)]);
        assert_eq!([found(&placement, "a"), found(&placement, "g")], [Some(1), Some(3)]);
        let mut deposed = beat(1, ("", "f"), 2, 2);
        deposed.term = Term::new(5);
        assert!(placement.region_heartbeats(&[deposed]).is_empty());
        let leader = placement.region(RegionId::new(1)).map(|beat| beat.store);
        assert_eq!(leader, Some(StoreId::new(1)), "a leader of an earlier term is none");
        assert_eq!(placement.regions().len(), 3);
        assert!(placement.allocate(1).is_ok_and(|id| id > 32), "ids in use are not given");
    }

    #[test]
    fn orders_of_a_region_go_to_its_leader_one_after_the_other() {
        let placement = EmbeddedPlacement::in_memory(1);
        let region = RegionId::new(1);
        let beat = |store| placement.region_heartbeats(&[beat(1, ("", ""), 1, store)]);
        let unknown = placement.order(region, Operator::SplitInHalf);
        let OrderStatus::Ended(Outcome::Refused { reason, .. }) =
            placement.order_status(unknown).expect("known")
        else {
            panic!("it was not refused")
        };
        assert!(reason.contains("region 1 is not known"), "{reason}");
        assert!(beat(1).is_empty());

        let stray = Operator::AddPeer { store: StoreId::new(9), learner: true };
        let ids = [
            placement.order(region, stray),
            placement.order(region, Operator::SplitInHalf),
            placement.order(region, Operator::TransferLeader(None)),
        ];
        let given = beat(1);
        assert_eq!(given.iter().map(|order| order.id).collect::<Vec<_>>(), [ids[1]]);
        let stray = placement.order_status(ids[0]);
        assert!(format!("{stray:?}").contains("store 9 is not known"), "{stray:?}");
        assert!(beat(1).is_empty(), "one at a time");
        // The leader has changed, and store 1 does not report.
        assert_eq!(beat(2)[0].id, ids[2]);
        let lost = placement.order_status(ids[1]);
        assert!(matches!(lost, Some(OrderStatus::Ended(Outcome::Unknown { .. }))), "{lost:?}");
        let report = OrderReport {
            order: Some(ids[1]),
            store: StoreId::new(1),
            region,
            operator: Operator::SplitInHalf,
            outcome: Outcome::Done(Vec::new()),
        };
        placement.report(&report);
        let late = placement.order_status(ids[1]);
        assert_eq!(late, Some(OrderStatus::Ended(Outcome::Done(Vec::new()))));
        assert_eq!(placement.order_status(ids[2]), Some(OrderStatus::UnderWay(StoreId::new(2))));

        let waits = placement.order(region, Operator::SplitInHalf);
        assert!(!placement.cancel(ids[2]), "a store is at it");
        assert!(placement.cancel(waits) && !placement.cancel(waits));
        let back = placement.order_status(waits);
        assert!(matches!(back, Some(OrderStatus::Ended(Outcome::Refused { .. }))), "{back:?}");
    }
}
