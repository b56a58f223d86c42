//! A placement that orders regions about at random, and looks at what becomes of its orders.
//!
//! It knows no more than it is told by heartbeats, so many of its orders come too late or ask for what cannot
//! be; and now and then it has no ids. What it demands of the stores: an order is reported once, unless its
//! store ends before, and what is reported as done is done.

use crate::check::Ledger;
use crate::machine::table_key;
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
        let table = region.start_key.get(..8).and_then(|table| table.try_into().ok());
        let table = table.map_or(0, u64::from_be_bytes);
        let most = self.keys.max(2) + 2;
        let count = random.within(1..3);
        (0..count).map(|_| table_key(table, 1 + random.below(most)).into()).collect()
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
        let peer = |id| region.peers.iter().find(|peer| peer.id == id);
        match operator {
            Operator::AddPeer { store, .. } => region.peer_on(*store).is_some(),
            Operator::PromotePeer(id) => peer(*id).is_some_and(|peer| peer.role == PeerRole::Voter),
            Operator::RemovePeer(id) => peer(*id).is_none(),
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
            if region
                .peers
                .iter()
                .find(|peer| peer.id == beat.leader)
                .is_none_or(|peer| peer.store != beat.store)
            {
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
