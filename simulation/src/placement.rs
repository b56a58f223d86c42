//! A placement that orders regions about at random, and looks at what becomes of its orders.
//!
//! It knows no more than it is told by heartbeats, so many of its orders come too late or ask for what cannot
//! be; and now and then it has no ids. What it demands of the stores: an order is reported once, unless its
//! store ends before, and what is reported as done is done.

use crate::check::Ledger;
use crate::machine::register_key;
use crate::moves::{Asked, MOST_REGIONS};
use crate::random::Random;
use parking_lot::Mutex;
use raftstore::{
    Bytes, Operator, Order, OrderReport, Outcome, PeerRole, Placement, PlacementError,
    RegionDescription, RegionHeartbeat, RegionId, StoreHeartbeat, StoreId,
};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Ids that it gives out are none that anybody else does.
const FIRST_ID: u64 = 1_000_000;

/// The one placement of all stores.
pub(crate) struct SimPlacement {
    state: Mutex<State>,
    ledger: Arc<Mutex<Ledger>>,
    moved: Arc<Mutex<Vec<(Asked, bool)>>>,
    stores: u64,
    /// Registers of a region, at most.
    keys: u64,
}

struct State {
    random: Random,
    next_id: u64,
    next_order: u64,
    regions: BTreeMap<RegionId, Arc<RegionDescription>>,
    /// By id: whom they were given to, and the region as it was.
    under_way: BTreeMap<u64, (StoreId, Arc<RegionDescription>)>,
    /// It gives no orders any more.
    rests: bool,
}

impl SimPlacement {
    pub(crate) fn new(
        random: Random,
        (stores, keys): (u64, u64),
        ledger: Arc<Mutex<Ledger>>,
        moved: Arc<Mutex<Vec<(Asked, bool)>>>,
    ) -> Self {
        let state = State {
            random,
            next_id: FIRST_ID,
            next_order: 1,
            regions: BTreeMap::new(),
            under_way: BTreeMap::new(),
            rests: false,
        };
        Self { state: Mutex::new(state), ledger, moved, stores, keys }
    }

    /// No more orders.
    pub(crate) fn rest(&self) {
        self.state.lock().rests = true;
    }

    /// Whether every order was reported of which a store still knows.
    pub(crate) fn is_answered(&self) -> bool {
        self.state.lock().under_way.is_empty()
    }

    fn operator(&self, random: &mut Random, region: &RegionDescription) -> Operator {
        let someone = random.pick(&region.peers).id;
        let store = StoreId::new(1 + random.below(self.stores));
        match random.below(20) {
            0..5 => Operator::AddPeer { store, learner: random.chance(800) },
            5..10 => {
                let learner = region.peers.iter().find(|peer| peer.role == PeerRole::Learner);
                Operator::PromotePeer(learner.map_or(someone, |peer| peer.id))
            }
            10..14 => Operator::RemovePeer(someone),
            14..17 => Operator::TransferLeader(random.chance(700).then_some(someone)),
            _ => Operator::SplitAt(self.split_keys(random, region)),
        }
    }

    fn split_keys(&self, random: &mut Random, region: &RegionDescription) -> Vec<Bytes> {
        let most = self.keys.max(2) + 2;
        let count = random.within(1..3);
        (0..count).map(|_| register_key(region, 1 + random.below(most)).into()).collect()
    }

    fn violate(&self, rule: &'static str, text: String) {
        self.ledger.lock().violate(rule, text);
    }

    /// What an order that was carried out must have led to.
    fn is_done(
        operator: &Operator,
        before: &RegionDescription,
        after: &[RegionDescription],
    ) -> bool {
        let Some(region) = after.iter().find(|region| region.id == before.id) else { return false };
        match operator {
            Operator::AddPeer { store, .. } => region.peer_on(*store).is_some(),
            Operator::PromotePeer(id) => {
                region.peer(*id).is_some_and(|peer| peer.role == PeerRole::Voter)
            }
            Operator::RemovePeer(id) => region.peer(*id).is_none(),
            Operator::SplitAt(keys) => {
                let begins = |key| after.iter().any(|region| region.start_key == key);
                after.len() == keys.len() + 1 && keys.iter().all(begins)
            }
            _ => true,
        }
    }
}

impl Placement for SimPlacement {
    fn allocate(&self, count: u64) -> Result<u64, PlacementError> {
        let mut state = self.state.lock();
        if state.random.chance(50) {
            return Err(PlacementError::Unavailable("not now".to_owned()));
        }
        let first = state.next_id;
        state.next_id += count;
        Ok(first)
    }

    fn region_heartbeats(&self, heartbeats: &[RegionHeartbeat]) -> Vec<Order> {
        let state = &mut *self.state.lock();
        let mut orders = Vec::new();
        for beat in heartbeats {
            let region = &beat.description;
            if region.peer(beat.leader).is_none_or(|peer| peer.store != beat.store) {
                let text =
                    format!("store {} tells of a leader that is not there: {beat:?}", beat.store);
                self.violate("heartbeats tell how it is", text);
            }
            state.regions.insert(region.id, region.clone());
            if state.rests || !state.random.chance(150) {
                continue;
            }
            // Sometimes of a region that another store leads, or nobody.
            let at = state.random.index(state.regions.len());
            let target = match state.random.chance(100) {
                true => state.regions.values().nth(at).expect("below the length").clone(),
                false => region.clone(),
            };
            let operator = self.operator(&mut state.random, &target);
            if matches!(operator, Operator::SplitAt(_)) && state.regions.len() >= MOST_REGIONS {
                continue;
            }
            let id = state.next_order;
            state.next_order += 1;
            orders.push(Order { id, region: target.id, operator });
            state.under_way.insert(id, (beat.store, target));
        }
        orders
    }

    fn store_heartbeat(&self, heartbeat: &StoreHeartbeat) {
        if heartbeat.first {
            let store = heartbeat.status.store_id;
            self.state.lock().under_way.retain(|_, (given, _)| *given != store);
        }
    }

    fn report(&self, report: &OrderReport) {
        let Some(order) = report.order else {
            return self.violate("orders are reported once", format!("no order: {report:?}"));
        };
        let Some((store, before)) = self.state.lock().under_way.remove(&order) else {
            return self.violate("orders are reported once", format!("{report:?}"));
        };
        if (store, before.id) != (report.store, report.region) {
            self.violate("orders are reported once", format!("by another: {report:?}"));
        }
        let asked = match report.operator {
            Operator::TransferLeader(_) => Asked::Transfer,
            Operator::SplitAt(_) => Asked::Split,
            _ => Asked::Peers,
        };
        let Outcome::Done(after) = &report.outcome else { return };
        self.moved.lock().push((asked, true));
        if !Self::is_done(&report.operator, &before, after) {
            self.violate("what is reported as done is done", format!("{report:?}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use raftstore::{Peer, PeerId, Term};
    use std::time::Duration;

    fn region() -> Arc<RegionDescription> {
        let peers = (1..=3).map(|id| Peer::voter(PeerId::new(id), StoreId::new(id)));
        Arc::new(RegionDescription::new(RegionId::new(1), "", "", peers))
    }

    /// A placement that has ordered peer 2 of region 1 away, on store 1, as order 1.
    fn placement() -> SimPlacement {
        let random = Random::new(1);
        let placement = SimPlacement::new(random, (3, 4), Arc::default(), Arc::default());
        placement.state.lock().under_way.insert(1, (StoreId::new(1), region()));
        placement
    }

    fn report(order: Option<u64>, after: &RegionDescription) -> OrderReport {
        OrderReport {
            order,
            store: StoreId::new(1),
            region: RegionId::new(1),
            operator: Operator::RemovePeer(PeerId::new(2)),
            outcome: Outcome::Done(vec![after.clone()]),
        }
    }

    fn without_peer_two() -> RegionDescription {
        let mut region = (*region()).clone();
        region.peers.retain(|peer| peer.id != PeerId::new(2));
        region
    }

    fn broken(placement: &SimPlacement) -> Option<&'static str> {
        placement.ledger.lock().violation().map(|violation| violation.rule)
    }

    #[test]
    fn an_order_is_reported_once() {
        let placement = placement();
        assert!(!placement.is_answered());
        placement.report(&report(Some(1), &without_peer_two()));
        assert!(placement.is_answered());
        assert_eq!(broken(&placement), None);
        placement.report(&report(Some(1), &without_peer_two()));
        assert_eq!(broken(&placement), Some("orders are reported once"));
    }

    #[test]
    fn nobody_reports_what_was_not_ordered_or_what_another_store_was_ordered() {
        let nothing = placement();
        nothing.report(&report(None, &without_peer_two()));
        assert_eq!(broken(&nothing), Some("orders are reported once"));
        let other = placement();
        other.report(&OrderReport {
            store: StoreId::new(2),
            ..report(Some(1), &without_peer_two())
        });
        assert_eq!(broken(&other), Some("orders are reported once"));
    }

    #[test]
    fn what_is_done_shows() {
        let placement = placement();
        placement.report(&report(Some(1), &region()));
        assert_eq!(broken(&placement), Some("what is reported as done is done"));
    }

    #[test]
    fn a_leader_is_told_of_by_its_own_store() {
        let beat = |store| RegionHeartbeat {
            store: StoreId::new(store),
            leader: PeerId::new(1),
            term: Term::new(6),
            description: region(),
            size: None,
            writes: 0,
            elapsed: Duration::ZERO,
            pending: Vec::new(),
            down: Vec::new(),
        };
        let placement = placement();
        placement.region_heartbeats(&[beat(1)]);
        assert_eq!(broken(&placement), None);
        placement.region_heartbeats(&[beat(2)]);
        assert_eq!(broken(&placement), Some("heartbeats tell how it is"));
    }
}
