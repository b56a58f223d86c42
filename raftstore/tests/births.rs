//! Regions that are created, and peers that must not come back.

mod common;

use common::{config, described, eventually, Cluster, DEADLINE};
use parking_lot::Mutex;
use raftstore::{
    AdminRequest, HardState, InProcessTransport, Index, LogBatch, LogStore, MapCommand,
    MemoryLogStore, Observer, OrderedMap, PeerChange, PeerId, RegionDescription, RegionEvent,
    RegionId, RegionRecord, RegionState, RegionWrite, Role, Store, StoreHandle, StoreId,
    StoreIdent, TruncatedState,
};
use std::sync::Arc;
use std::time::Duration;

fn rid(id: u64) -> RegionId {
    RegionId::new(id)
}

fn three(id: u64) -> RegionDescription {
    described(id, "", "", &[(10 * id + 1, 1), (10 * id + 2, 2), (10 * id + 3, 3)])
}

/// Proposes at a store until it leads and has carried it out.
fn put(handle: &StoreHandle, key: &'static str) {
    let command = MapCommand::put(key, "value").encode();
    eventually("carried out", || {
        let (sender, answer) = std::sync::mpsc::channel();
        handle.propose_with(rid(1), command.clone(), move |answer| drop(sender.send(answer)));
        match answer.recv_timeout(DEADLINE).expect("an answer") {
            Ok(_) => true,
            Err(error) => {
                assert!(error.is_retryable(), "{error}");
                false
            }
        }
    });
}

/// Region 1 is created on the first store alone, and the others hear of it.
fn created_on_the_first_alone(cluster: &Cluster) {
    cluster.handle(0).bootstrap(&[three(1)]).expect("created");
    cluster.handle(0).campaign(rid(1));
    for store in [1, 2] {
        eventually("heard of", || cluster.handle(store).region(rid(1)).is_some());
    }
}

fn stores_in_memory(count: u64) -> Cluster {
    Cluster::build_of(
        count,
        &config(),
        |_| OrderedMap::new(),
        |builder, _| builder.log_store(Arc::new(MemoryLogStore::new())),
    )
}

fn lead(handle: &StoreHandle, id: u64) {
    eventually("it leads", || {
        handle.campaign(rid(id));
        std::thread::park_timeout(Duration::from_millis(20));
        handle.region_status(rid(id)).is_some_and(|status| status.role == Role::Leader)
    });
}

/// Removes a peer of region 1, which the handle's store leads.
fn remove(handle: &StoreHandle, peer: u64) {
    let gone = PeerChange::Remove(PeerId::new(peer));
    eventually("removed", || handle.admin(rid(1), AdminRequest::change_peers([gone])).is_ok());
}

#[test]
fn a_bootstrap_that_fails_leaves_tombstones_as_they_were() {
    let cluster = stores_in_memory(2);
    let whole = described(1, "", "m", &[(11, 1), (12, 2)]);
    cluster.bootstrap(std::slice::from_ref(&whole));
    let (first, second) = (cluster.handle(0), cluster.handle(1));
    lead(&first, 1);
    remove(&first, 12);
    eventually("destroyed", || second.region(rid(1)).is_none());
    let later = described(1, "", "m", &[(11, 1), (13, 2)]);
    let mut unsound = described(2, "m", "", &[(21, 2)]);
    unsound.joint = true;
    let refused = second.bootstrap(&[later, unsound]).expect_err("unsound").to_string();
    assert!(refused.starts_with("region 2: "), "{refused}");
    second.bootstrap(&[whole]).expect("passed over");
    assert!(second.region(rid(1)).is_none(), "a destroyed peer never returns");
}

#[test]
fn a_store_that_creates_a_region_after_its_first_election_joins_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let cluster = Cluster::on_disk(&config(), dir.path());
    created_on_the_first_alone(&cluster);
    for store in [1, 2] {
        cluster.handle(store).bootstrap(&[three(1)]).expect("what it knows is completed");
        cluster.handle(store).bootstrap(&[three(1)]).expect("again");
    }
    put(&cluster.handle(0), "a");
    let whole = |cluster: &Cluster| cluster.maps.iter().all(|map| map.get(rid(1), b"a").is_some());
    eventually("everywhere", || whole(&cluster));
    cluster.shutdown();
    let cluster = Cluster::on_disk(&config(), dir.path());
    for store in 0..3 {
        cluster.handle(store).bootstrap(&[three(1)]).expect("once more");
        assert!(cluster.handle(store).set_aside().is_empty());
    }
    eventually("everywhere", || whole(&cluster));
}

#[test]
fn a_region_that_is_created_on_one_store_alone_reaches_the_others() {
    let cluster = Cluster::in_memory(&config());
    created_on_the_first_alone(&cluster);
    put(&cluster.handle(0), "a");
    eventually("everywhere", || cluster.maps.iter().all(|map| map.get(rid(1), b"a").is_some()));
    cluster.bootstrap(&[three(1)]);
    // Also without a write: a snapshot of nothing is one, too.
    let cluster = Cluster::in_memory(&config());
    created_on_the_first_alone(&cluster);
    let live = |store: usize| {
        let region = cluster.handle(store).region(rid(1));
        region
            .is_some_and(|region| region.state == RegionState::Live && region.last > Index::new(5))
    };
    eventually("live", || (0..3).all(live));
}

#[test]
fn a_peer_that_heard_of_its_region_and_died_when_it_was_created_keeps_its_vote() {
    let voted = HardState { term: 6, vote: 11, ..HardState::default() };
    for hard_state in [HardState::default(), voted] {
        let log = Arc::new(MemoryLogStore::new());
        let ident = StoreIdent { cluster_id: 1, store_id: StoreId::new(2) };
        let nothing = RegionDescription::uninitialised(rid(1), 1);
        // As it was written for a message, and then by the bootstrap; the process ended before the region heard.
        let before = RegionWrite {
            region_id: rid(1),
            record: Some(Box::new(RegionRecord::new(nothing, PeerId::new(12)))),
            hard_state: Some(hard_state.clone()),
            truncated: Some(TruncatedState::INITIAL),
            clear: true,
            ..RegionWrite::default()
        };
        let after = RegionWrite {
            region_id: rid(1),
            record: Some(Box::new(RegionRecord::new(three(1), PeerId::new(12)))),
            ..RegionWrite::default()
        };
        for (write, ident) in [(before, Some(ident)), (after, None)] {
            log.write(&mut LogBatch { writes: vec![write], ident }, true).expect("written");
        }
        let store = Store::builder(StoreId::new(2))
            .config(config())
            .state_machine(Arc::new(OrderedMap::new()))
            .log_store(log)
            .transport(InProcessTransport::new())
            .start()
            .expect("it starts");
        let handle = store.handle();
        assert!(handle.set_aside().is_empty(), "{:?}", handle.set_aside());
        handle.bootstrap(&[three(1)]).expect("repeated");
        let status = handle.region_status(rid(1)).expect("here");
        assert_eq!(status.term.get(), hard_state.term.max(5));
        assert_eq!((status.last, status.applied), (Index::new(5), Index::new(5)));
    }
}

#[test]
fn a_list_is_repeated_after_a_region_of_it_has_moved_on() {
    let cluster = stores_in_memory(2);
    let list =
        [described(1, "", "m", &[(11, 1), (12, 2)]), described(2, "m", "", &[(21, 1), (22, 2)])];
    cluster.bootstrap(&list);
    lead(&cluster.handle(0), 1);
    remove(&cluster.handle(0), 12);
    eventually("destroyed", || cluster.handle(1).region(rid(1)).is_none());
    let more = described(3, "a", "b", &[(31, 2)]);
    let [one, two] = list;
    // What is free since may be taken by another region of the list.
    cluster.handle(1).bootstrap(&[one.clone(), two.clone(), more.clone()]).expect("passed over");
    assert!(
        cluster.handle(1).region(rid(1)).is_none() && cluster.handle(1).region(rid(3)).is_some()
    );
    cluster.handle(1).bootstrap(&[more, one, two.clone()]).expect("again");
    let wider = RegionDescription { start_key: "l".into(), ..two };
    let refused = cluster.handle(1).bootstrap(&[wider]).expect_err("another range").to_string();
    let expected =
        "region 2: it exists with another description: range b\"m\" to b\"\", not b\"l\" to";
    assert!(refused.starts_with(expected), "{refused}");
}

/// Creates a region when it hears of one.
#[derive(Default)]
struct Creates(Mutex<Option<StoreHandle>>, Mutex<Option<String>>);

impl Observer for Creates {
    fn observe(&self, _: StoreId, _: RegionId, event: &RegionEvent) {
        if let (RegionEvent::Created { .. }, Some(handle)) = (event, self.0.lock().clone()) {
            *self.1.lock() = handle.bootstrap(&[]).err().map(|error| error.to_string());
        }
    }
}

#[test]
fn an_observer_that_creates_regions_is_refused_and_does_not_hang() {
    let observer = Arc::new(Creates::default());
    let store = Store::builder(StoreId::new(1))
        .config(config())
        .state_machine(Arc::new(OrderedMap::new()))
        .log_store(Arc::new(MemoryLogStore::new()))
        .transport(InProcessTransport::new())
        .observer(observer.clone())
        .start()
        .expect("it starts");
    *observer.0.lock() = Some(store.handle());
    store.handle().bootstrap(&[described(1, "", "", &[(11, 1)])]).expect("created");
    let refused = observer.1.lock().clone().expect("an error");
    assert!(refused.contains("let another thread do it"), "{refused}");
    *observer.0.lock() = None;
}

/// The log of a store is gone, and its map is not.
#[cfg(feature = "fjall")]
#[test]
fn a_region_begins_without_the_keys_of_one_that_was_there() {
    let dir = tempfile::tempdir().expect("a directory");
    let start = || {
        let settings = raftstore::FjallConfig::default();
        let map = raftstore::FjallMap::open(dir.path().join("map"), &settings).expect("opens");
        let map = Arc::new(map);
        let builder = Store::builder(StoreId::new(1)).config(config()).state_machine(map.clone());
        let builder = builder.data_dir(dir.path().join("store"));
        (builder.transport(InProcessTransport::new()).start().expect("it starts"), map)
    };
    let (store, map) = start();
    store.handle().bootstrap(&[described(1, "", "m", &[(11, 1)])]).expect("created");
    lead(&store.handle(), 1);
    put(&store.handle(), "ghost");
    drop((store, map));
    std::fs::remove_dir_all(dir.path().join("store")).expect("removed");
    let (store, map) = start();
    let handle = store.handle();
    let beside = described(3, "m", "", &[(31, 1)]);
    let over = described(2, "", "m", &[(21, 1)]);
    let refused = handle.bootstrap(&[beside.clone(), over]).expect_err("keys").to_string();
    assert!(
        refused.starts_with("region 2: its range has keys, b\"ghost\" is the first"),
        "{refused}"
    );
    assert!(refused.contains("of region 1, which is in the map in "), "{refused}");
    assert!(
        handle.region(rid(2)).is_none() && handle.region(rid(3)).is_none(),
        "nothing of the list"
    );
    handle.bootstrap(&[beside]).expect("no key lies there");
    assert!(map.get(rid(1), b"ghost").expect("readable").is_some(), "nothing is removed unasked");
}
