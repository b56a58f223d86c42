//! State machines that tell of their regions what cannot be, or panic when asked: no region is destroyed for it,
//! and no other than the one in question suffers.

mod common;

use bytes::Bytes;
use common::{config, eventually, lead, put, Cluster, TestMap};
use parking_lot::Mutex;
use raftstore::{
    AdminRequest, AppliedState, InProcessTransport, Index, MemoryLogStore, NewRegion, OrderedMap,
    Peer, PeerChange, PeerId, RegionDescription, RegionId, SplitRequest, StateMachine,
    StateMachineError, Store, StoreId,
};
use std::sync::Arc;

fn rid(id: u64) -> RegionId {
    RegionId::new(id)
}

/// A region with its one voter on store 1.
fn described(id: u64, start: &'static str, end: &'static str, peer: u64) -> RegionDescription {
    common::described(id, start, end, &[(peer, 1)])
}

/// What is told instead of a region's applied state.
#[derive(Clone, Copy)]
enum Tells {
    Other { of: u64, instead: u64 },
    Panics { of: u64 },
}

#[derive(Default)]
struct Teller {
    map: OrderedMap,
    tells: Mutex<Option<Tells>>,
}

impl StateMachine for Teller {
    fn applied_state(&self, region: RegionId) -> Result<Option<AppliedState>, StateMachineError> {
        let tells = *self.tells.lock();
        match tells {
            Some(Tells::Other { of, instead }) if rid(of) == region => {
                self.map.applied_state(rid(instead))
            }
            Some(Tells::Panics { of }) if rid(of) == region => panic!("injected"),
            _ => self.map.applied_state(region),
        }
    }

    passes_on!(map: apply, durable_index, split, snapshot, install, destroy, flush);
}

impl TestMap for Teller {
    fn value(&self, region: RegionId, key: &[u8]) -> Option<Bytes> {
        self.map.get(region, key)
    }

    fn state(&self, region: RegionId) -> (Index, u64) {
        self.map.fingerprint(region)
    }
}

fn tellers(stores: u64, pollers: usize) -> Cluster<Teller> {
    let mut config = config();
    config.pollers = pollers;
    let log =
        |builder: raftstore::StoreBuilder, _| builder.log_store(Arc::new(MemoryLogStore::new()));
    Cluster::build_of(stores, &config, |_| Teller::default(), log)
}

/// Two regions were here, and the state machine tells this of the first when the store starts again.
fn started_again(tells: Tells) -> (Store, Arc<Teller>, Arc<MemoryLogStore>) {
    let (map, log) = (Arc::new(Teller::default()), Arc::new(MemoryLogStore::new()));
    let store = start(&map, &log);
    let handle = store.handle();
    handle.bootstrap(&[described(1, "", "m", 11), described(2, "m", "", 21)]).expect("created");
    for (id, key) in [(1, "a"), (2, "x")] {
        lead(&handle, id);
        put(&handle, id, key);
    }
    drop(store);
    *map.tells.lock() = Some(tells);
    (start(&map, &log), map, log)
}

fn start(map: &Arc<Teller>, log: &Arc<MemoryLogStore>) -> Store {
    let builder = Store::builder(StoreId::new(1)).config(config()).state_machine(map.clone());
    let builder = builder.log_store(log.clone()).transport(InProcessTransport::new());
    builder.start().expect("it starts")
}

/// Region 1 is set aside for this reason; region 2 goes on; and the next start finds both.
fn first_is_set_aside(
    (store, map, log): (Store, Arc<Teller>, Arc<MemoryLogStore>),
    expected: &str,
) {
    let handle = store.handle();
    let set_aside = handle.set_aside();
    assert_eq!(set_aside.keys().copied().collect::<Vec<_>>(), [rid(1)], "{set_aside:?}");
    assert!(set_aside[&rid(1)].contains(expected), "{set_aside:?}");
    lead(&handle, 2);
    put(&handle, 2, "y");
    assert!(handle.failure().is_none());
    drop(store);
    *map.tells.lock() = None;
    let store = start(&map, &log);
    let handle = store.handle();
    assert!(handle.set_aside().is_empty(), "{:?}", handle.set_aside());
    lead(&handle, 1);
    put(&handle, 1, "b");
    for (region, key) in [(1, "a"), (1, "b"), (2, "x"), (2, "y")] {
        assert!(map.value(rid(region), key.as_bytes()).is_some(), "{key}");
    }
}

#[test]
fn the_applied_state_of_another_region_is_not_believed() {
    let started = started_again(Tells::Other { of: 1, instead: 2 });
    first_is_set_aside(started, "gave the applied state of region 2");
}

#[test]
fn a_panic_at_the_start_sets_one_region_aside() {
    first_is_set_aside(started_again(Tells::Panics { of: 1 }), "panicked when asked");
}

#[cfg(feature = "fjall")]
#[test]
fn the_map_of_another_store_is_left_as_it_is() {
    let dir = tempfile::tempdir().expect("a directory");
    let start = |log: &str, map: &str| {
        let config_of_map = raftstore::FjallConfig::default();
        let map = raftstore::FjallMap::open(dir.path().join(map), &config_of_map).expect("opens");
        let map = Arc::new(map);
        let builder = Store::builder(StoreId::new(1)).config(config()).state_machine(map.clone());
        let builder = builder.data_dir(dir.path().join(log)).transport(InProcessTransport::new());
        (builder.start().expect("it starts"), map)
    };
    for (log, map, peer, key) in [("a", "map-a", 11, "a"), ("b", "map-b", 19, "b")] {
        let (store, _map) = start(log, map);
        store.handle().bootstrap(&[described(1, "", "", peer)]).expect("created");
        lead(&store.handle(), 1);
        put(&store.handle(), 1, key);
    }
    {
        let (store, map) = start("a", "map-b");
        let set_aside = store.handle().set_aside();
        let reason = set_aside.get(&rid(1)).expect("set aside");
        assert!(
            reason.contains("without peer 11") && reason.contains("those of one store?"),
            "{reason}"
        );
        assert!(map.get(rid(1), b"b").expect("readable").is_some());
    }
    for (log, map, key) in [("a", "map-a", "a"), ("b", "map-b", "b")] {
        let (store, map) = start(log, map);
        assert!(store.handle().set_aside().is_empty());
        assert!(map.get(rid(1), key.as_bytes()).expect("readable").is_some(), "{key}");
    }
}

#[test]
fn a_panic_about_the_child_of_a_split_stops_the_child_alone() {
    let cluster = tellers(1, 1);
    let handle = cluster.handle(0);
    let bounds = ["", "b", "c", "d", "e", ""];
    let regions =
        (1..=5).map(|id| described(id, bounds[id as usize - 1], bounds[id as usize], 10 * id));
    handle.bootstrap(&regions.collect::<Vec<_>>()).expect("created");
    (1..=5).for_each(|id| lead(&handle, id));
    *cluster.maps[0].tells.lock() = Some(Tells::Panics { of: 100 });
    let request = SplitRequest {
        keys: vec![Bytes::from_static(b"a")],
        regions: vec![NewRegion { id: rid(100), peers: vec![PeerId::new(1001)] }],
        parent_is_right: false,
    };
    handle.admin(rid(1), AdminRequest::split(request)).expect("split");
    let set_aside = handle.set_aside();
    assert_eq!(set_aside.keys().copied().collect::<Vec<_>>(), [rid(100)], "{set_aside:?}");
    for (id, key) in [(1, "Z"), (2, "b"), (3, "c"), (4, "d"), (5, "e")] {
        put(&handle, id, key);
    }
    assert!(handle.failure().is_none());
}

#[test]
fn a_panic_about_a_peer_that_a_leader_brings_stops_that_peer_alone() {
    let cluster = tellers(2, 2);
    let handle = cluster.handle(0);
    handle.bootstrap(&[described(1, "", "m", 11), described(2, "m", "", 21)]).expect("created");
    *cluster.maps[1].tells.lock() = Some(Tells::Panics { of: 1 });
    for (id, peer) in [(1, 12), (2, 22)] {
        lead(&handle, id);
        let learner = PeerChange::Add(Peer::learner(PeerId::new(peer), StoreId::new(2)));
        handle.admin(rid(id), AdminRequest::change_peers([learner])).expect("added");
        if id == 1 {
            eventually("set aside", || cluster.handle(1).set_aside().contains_key(&rid(1)));
        }
    }
    put(&handle, 2, "x");
    eventually("the other has come", || cluster.maps[1].value(rid(2), b"x").is_some());
    assert!(cluster.handle(1).failure().is_none());
}
