//! Stores with a placement: what it hears, what it orders, and what it cannot spoil.

mod common;

use bytes::Bytes;
use common::{config, eventually, region, Cluster};
use raftstore::{
    EmbeddedPlacement, InProcessTransport, MapCommand, MemoryLogStore, Operator, Order,
    OrderReport, OrderStatus, OrderedMap, Outcome, PeerId, PeerRole, Placement, PlacementError,
    RegionHeartbeat, RegionId, Store, StoreConfig, StoreHandle, StoreHeartbeat, StoreId, Write,
};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const REGION: RegionId = RegionId::new(1);
const FIRST_ID: u64 = 5_000;

fn put(key: &str, value: &str) -> Bytes {
    MapCommand::put(key.to_owned(), value.to_owned()).encode()
}

fn quick() -> StoreConfig {
    let mut config = config();
    config.placement.interval = Duration::from_millis(20);
    config
}

fn start(
    id: u64,
    config: &StoreConfig,
    network: &InProcessTransport,
    map: &Arc<OrderedMap>,
    placement: Arc<dyn Placement>,
) -> Store {
    let store = Store::builder(StoreId::new(id))
        .config(config.clone())
        .log_store(Arc::new(MemoryLogStore::new()))
        .state_machine(map.clone())
        .transport(network.clone())
        .placement(placement)
        .start()
        .expect("the store starts");
    network.connect(store.handle());
    store
}

/// Three stores that share a placement, the first leading a region.
fn cluster(config: &StoreConfig, placement: &Arc<dyn Placement>) -> Cluster {
    let cluster = Cluster::build(
        config,
        |_| OrderedMap::new(),
        |builder, _| {
            builder.log_store(Arc::new(MemoryLogStore::new())).placement(placement.clone())
        },
    );
    cluster.lead_from_the_first(1);
    cluster
}

/// What an order came to, when that is known.
fn outcome(placement: &EmbeddedPlacement, operator: &Operator) -> Outcome {
    let id = placement.order(REGION, operator.clone());
    let mut found = None;
    eventually("the order ends", || match placement.order_status(id) {
        Some(OrderStatus::Ended(Outcome::Unknown { .. })) => false,
        Some(OrderStatus::Ended(outcome)) => {
            found = Some(outcome);
            true
        }
        _ => false,
    });
    found.expect("it has ended")
}

/// Orders again what is refused for now.
fn carried_out(placement: &EmbeddedPlacement, operator: &Operator) {
    eventually("it is carried out", || match outcome(placement, operator) {
        Outcome::Done(regions) => !regions.is_empty(),
        Outcome::Refused { is_retryable: true, .. } => false,
        other => panic!("{operator:?}: {other:?}"),
    });
}

fn refusal(placement: &EmbeddedPlacement, operator: Operator) -> String {
    match outcome(placement, &operator) {
        Outcome::Refused { reason, .. } => reason,
        other => panic!("{operator:?}: {other:?}"),
    }
}

#[test]
fn orders_are_carried_out_and_reported() {
    let config = quick();
    let placement = Arc::new(EmbeddedPlacement::in_memory(FIRST_ID));
    let shared: Arc<dyn Placement> = placement.clone();
    let mut cluster = cluster(&config, &shared);
    let map = Arc::new(OrderedMap::new());
    let fourth = start(4, &config, &cluster.network, &map, shared);
    cluster.stores.push(fourth);
    cluster.write(REGION, &put("a", "1")).expect("answered");
    cluster.write(REGION, &put("z", "2")).expect("answered");
    eventually("all are heard of", || {
        placement.stores().len() == 4 && placement.region_of(b"z").is_some()
    });

    for (operator, reason) in [
        (Operator::PromotePeer(PeerId::new(999)), "peer 999 is not in the region"),
        (Operator::RemovePeer(PeerId::new(999)), "peer 999 is not in the region"),
        (Operator::TransferLeader(Some(PeerId::new(999))), "peer 999 is not in the region"),
        (Operator::AddPeer { store: StoreId::new(77), learner: true }, "store 77 is not known"),
        (
            Operator::AddPeer { store: StoreId::new(2), learner: true },
            "store 2 has peer 12 already",
        ),
        (Operator::SplitAt(vec!["b".into(), "a".into()]), "split key 1 is smaller"),
        (Operator::SplitAt(Vec::new()), "no split key is given"),
    ] {
        let refused = refusal(&placement, operator);
        assert!(refused.contains(reason), "{refused:?} does not say {reason:?}");
    }

    carried_out(&placement, &Operator::AddPeer { store: StoreId::new(4), learner: true });
    let peer_on_four = || {
        let region = placement.region(REGION).expect("heard of");
        region.description.peer_on(StoreId::new(4)).copied()
    };
    eventually("the learner is heard of", || peer_on_four().is_some());
    let learner = peer_on_four().expect("heard of");
    assert!(learner.id.get() >= FIRST_ID && learner.role == PeerRole::Learner, "{learner:?}");
    carried_out(&placement, &Operator::PromotePeer(learner.id));
    carried_out(&placement, &Operator::TransferLeader(Some(learner.id)));
    eventually("the fourth store leads", || {
        placement.region(REGION).is_some_and(|region| region.store == StoreId::new(4))
    });
    carried_out(&placement, &Operator::RemovePeer(PeerId::new(11)));
    eventually("the first store has lost its peer", || cluster.handle(0).region(REGION).is_none());
    carried_out(&placement, &Operator::SplitAt(vec!["m".into()]));
    let child_of = |key: &[u8]| placement.region_of(key).map(|region| region.description);
    eventually("both parts are heard of", || {
        child_of(b"z").is_some_and(|child| child.id != REGION) && child_of(b"a").is_some()
    });
    let child = child_of(b"z").expect("heard of");
    assert_eq!((&child.start_key[..], child.peers.len()), (&b"m"[..], 3));
    assert!(
        child.id.get() > learner.id.get()
            && child.peers.iter().all(|p| p.id.get() > child.id.get())
    );
    assert_eq!(map.get(child.id, b"z").as_deref(), Some(&b"2"[..]));

    let beat = placement.region_of(b"a").expect("heard of");
    let text = serde_json::to_string(&beat).expect("plain data");
    assert_eq!(serde_json::from_str::<RegionHeartbeat>(&text).expect("readable"), beat);
    let text = serde_json::to_string(&placement.stores()).expect("plain data");
    assert_eq!(serde_json::from_str::<Vec<StoreHeartbeat>>(&text).expect("readable").len(), 4);
    eventually("reports are counted", || {
        let metrics = cluster.stores[0].metrics_text();
        metrics.contains("raftstore_operators_total{operator=\"promote_peer\",outcome=\"refused\"")
    });
    cluster.shutdown();
}

#[test]
fn down_peers_and_load_are_told() {
    let placement = Arc::new(EmbeddedPlacement::in_memory(FIRST_ID));
    let shared: Arc<dyn Placement> = placement.clone();
    let mut cluster = cluster(&quick(), &shared);
    let beat = || placement.region(REGION);
    eventually("nobody is down", || beat().is_some_and(|beat| beat.down.is_empty()));
    eventually("writes are told", || {
        cluster.write(REGION, &put("k", "v")).expect("answered");
        beat().is_some_and(|beat| beat.writes > 0 && beat.elapsed > Duration::ZERO)
    });
    cluster.stores[2].shutdown();
    eventually("the third peer is down", || beat().is_some_and(|b| b.down == [PeerId::new(13)]));
    eventually("nothing is written", || beat().is_some_and(|b| b.writes == 0));
    assert_eq!(beat().expect("heard of").size.map(|size| (size.bytes, size.keys)), Some((2, 1)));
    cluster.shutdown();
}

/// Whether the parts of the region that are known tile the key space. Their ids must be different.
fn tile(placement: &EmbeddedPlacement) -> bool {
    let mut end = Some(Bytes::new());
    let mut ids = BTreeSet::new();
    for beat in placement.regions() {
        let part = &beat.description;
        assert!(ids.insert(part.id.get()), "{} twice", part.id);
        assert!(part.peers.iter().all(|peer| ids.insert(peer.id.get())), "a peer id twice");
        if end.as_ref() != Some(&part.start_key) {
            return false;
        }
        end = Some(part.end_key.clone()).filter(|end| !end.is_empty());
    }
    end.is_none()
}

/// Waits until the parts of the region tile the key space, and hold what was written, on all stores. They
/// may still be split meanwhile.
fn check_parts(cluster: &Cluster, placement: &EmbeddedPlacement, keys: u64) {
    eventually("the parts tile the key space", || tile(placement));
    for number in 0..keys {
        let key = format!("{number:04}");
        eventually("all stores hold the key", || {
            let Some(part) = placement.region_of(key.as_bytes()) else { return false };
            let held = |map: &Arc<OrderedMap>| map.get(part.description.id, key.as_bytes());
            cluster.maps.iter().all(|map| held(map).is_some())
        });
    }
}

/// Writes a key to whatever region has it now.
fn grow(cluster: &Cluster, number: u64) {
    let key = format!("{number:04}");
    let payload = put(&key, &"v".repeat(96));
    eventually("it is written", || {
        let handles = cluster.stores.iter().map(Store::handle);
        let written = handles.map(|handle| {
            let region = handle.region(handle.region_of_key(key.as_bytes())?)?;
            // The region as it is known; if it has been split since, it says so.
            let holds = region.description.contains(key.as_bytes());
            let write = Write::new(payload.clone()).at_epoch(region.description.epoch);
            holds.then(|| handle.propose(region.region_id, write).is_ok())
        });
        written.flatten().any(|written| written)
    });
}

#[test]
fn a_region_that_grows_is_split_until_its_parts_are_small() {
    let mut config = quick();
    config.placement.split_size = raftstore::ByteSize::kib(4);
    let dir = tempfile::tempdir().expect("a directory");
    let placement = Arc::new(EmbeddedPlacement::open(dir.path(), FIRST_ID).expect("opens"));
    let shared: Arc<dyn Placement> = placement.clone();
    let cluster = cluster(&config, &shared);
    (0..200).for_each(|number| grow(&cluster, number));
    let sizes =
        || placement.regions().into_iter().map(|beat| beat.size.map_or(0, |size| size.bytes));
    eventually("all parts are small, and all are heard of", || {
        sizes().sum::<u64>() == 200 * 100 && sizes().all(|bytes| bytes <= 4096)
    });
    assert!((5..=12).contains(&sizes().count()), "{:?}", sizes().collect::<Vec<_>>());
    check_parts(&cluster, &placement, 200);
    cluster.shutdown();
}

#[test]
fn a_region_under_load_is_split_in_half() {
    let mut config = quick();
    config.placement.split_writes = 1;
    let placement = Arc::new(EmbeddedPlacement::in_memory(FIRST_ID));
    let shared: Arc<dyn Placement> = placement.clone();
    let cluster = cluster(&config, &shared);
    let mut number = 0;
    eventually("it is two", || {
        grow(&cluster, number % 200);
        number += 1;
        placement.regions().len() >= 2 && number >= 200
    });
    eventually("both are heard of", || {
        let parts = placement.regions();
        let end = parts.last().is_some_and(|part| part.description.end_key.is_empty());
        let sizes = parts.iter().map(|part| part.size.map_or(0, |size| size.keys));
        end && sizes.sum::<u64>() == 200
    });
    check_parts(&cluster, &placement, 200);
    cluster.shutdown();
}

/// Orders what cannot be done with every heartbeat, and remembers what it was told.
#[derive(Default)]
struct Recorder {
    ordered: AtomicU64,
    reported: Mutex<Vec<u64>>,
}

impl Placement for Recorder {
    fn allocate(&self, _: u64) -> Result<u64, PlacementError> {
        Err(PlacementError::Unavailable("no ids today".to_owned()))
    }

    fn region_heartbeats(&self, heartbeats: &[RegionHeartbeat]) -> Vec<Order> {
        let order = |region, operator| {
            let id = 1 + self.ordered.fetch_add(1, Ordering::SeqCst);
            Order { id, region, operator }
        };
        let regions = heartbeats.iter().map(|beat| beat.description.id);
        let orders = regions.flat_map(|region| {
            let mut operators = vec![
                (region, Operator::SplitAt(vec!["m".into()])),
                (RegionId::new(404), Operator::SplitInHalf),
                (region, Operator::TransferLeader(None)),
            ];
            // So many that some wait to be reported whenever the store stops.
            let unknown = || (region, Operator::PromotePeer(PeerId::new(999)));
            operators.extend(std::iter::repeat_with(unknown).take(32));
            operators
                .into_iter()
                .map(|(region, operator)| order(region, operator))
                .collect::<Vec<_>>()
        });
        orders.collect()
    }

    fn store_heartbeat(&self, _: &StoreHeartbeat) {}

    fn report(&self, report: &OrderReport) {
        let text = format!("{:?}", report.outcome);
        let expected = match &report.operator {
            Operator::SplitAt(_) => "no ids today",
            Operator::SplitInHalf => "region 404 is not on store",
            _ => "",
        };
        assert!(text.contains(expected), "{text} does not say {expected:?}");
        std::thread::park_timeout(Duration::from_millis(1));
        self.reported.lock().expect("no panic").push(report.order.expect("of an order"));
    }
}

#[test]
fn each_order_is_reported_once_whatever_happens() {
    let recorder = Arc::new(Recorder::default());
    let placement: Arc<dyn Placement> = recorder.clone();
    let cluster = cluster(&quick(), &placement);
    eventually("many orders are given", || recorder.ordered.load(Ordering::SeqCst) > 300);
    cluster.shutdown();
    let mut reported = recorder.reported.lock().expect("no panic").clone();
    reported.sort_unstable();
    let ordered = recorder.ordered.load(Ordering::SeqCst);
    assert_eq!(reported, (1..=ordered).collect::<Vec<_>>());
}

#[test]
fn an_order_that_a_stopping_store_is_at_is_reported() {
    let placement = Arc::new(EmbeddedPlacement::in_memory(FIRST_ID));
    let shared: Arc<dyn Placement> = placement.clone();
    let mut cluster = cluster(&quick(), &shared);
    eventually("the region is heard of", || placement.region(REGION).is_some());
    // Without the others nothing commits.
    cluster.stores[1..].iter_mut().for_each(Store::shutdown);
    let id = placement.order(REGION, Operator::SplitAt(vec!["m".into()]));
    eventually("the leader has it", || {
        matches!(placement.order_status(id), Some(OrderStatus::UnderWay(_)))
    });
    cluster.shutdown();
    let status = placement.order_status(id);
    // Unknown; or refused, where its turn had not come.
    let Some(OrderStatus::Ended(outcome)) = status else { panic!("{status:?}") };
    assert!(!matches!(outcome, Outcome::Done(_)), "{outcome:?}");
}

/// Panics, or does not return before it may.
#[derive(Default)]
struct Harmful {
    blocks: AtomicBool,
    blocked: AtomicBool,
}

impl Harmful {
    fn harm<T>(&self) -> T {
        while self.blocks.load(Ordering::SeqCst) {
            self.blocked.store(true, Ordering::SeqCst);
            std::thread::park_timeout(Duration::from_millis(1));
        }
        panic!("injected")
    }
}

impl Placement for Harmful {
    fn allocate(&self, _: u64) -> Result<u64, PlacementError> {
        self.harm()
    }

    fn region_heartbeats(&self, _: &[RegionHeartbeat]) -> Vec<Order> {
        self.harm()
    }

    fn store_heartbeat(&self, _: &StoreHeartbeat) {
        self.harm()
    }

    fn report(&self, _: &OrderReport) {
        self.harm()
    }
}

#[test]
fn a_placement_that_panics_or_hangs_harms_nobody() {
    let mut config = quick();
    config.placement.split_size = raftstore::ByteSize::b(100);
    let harmful = Arc::new(Harmful::default());
    let placement: Arc<dyn Placement> = harmful.clone();
    let cluster = cluster(&config, &placement);
    let write = |number: u64| {
        let written = cluster.write(REGION, &put(&format!("{number}"), "some value"));
        written.expect("answered");
    };
    (0..50).for_each(write);
    let failures = |handle: &Store| {
        let text = handle.metrics_text();
        let line = text.lines().find(|line| line.starts_with("raftstore_placement_failures_total"));
        line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0.0)
    };
    eventually("it has panicked, and is asked again", || failures(&cluster.stores[0]) > 3.0);
    harmful.blocks.store(true, Ordering::SeqCst);
    eventually("it hangs", || harmful.blocked.load(Ordering::SeqCst));
    (50..100).for_each(write);
    assert!(cluster.stores.iter().all(|store| store.handle().failure().is_none()));
    assert!(cluster.handle(0).set_aside().is_empty());
    harmful.blocks.store(false, Ordering::SeqCst);
    cluster.converge(1);
    cluster.shutdown();
}

#[test]
fn without_a_placement_nothing_is_told_and_nothing_is_split() {
    let mut config = quick();
    config.placement.split_size = raftstore::ByteSize::b(1);
    let cluster = Cluster::in_memory(&config);
    cluster.lead_from_the_first(1);
    let handle: StoreHandle = cluster.handle(0);
    (0..100).for_each(|number| drop(cluster.write(REGION, &put(&number.to_string(), "v"))));
    assert_eq!(handle.region_count(), 1);
    assert_eq!(handle.region(REGION).map(|info| info.description), Some(Arc::new(region(1, 1))));
    cluster.shutdown();
}
