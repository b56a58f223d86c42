//! The life of regions on stores with real threads: split, other peers, other leaders, snapshots, removal.

mod common;

use common::{eventually, region, Cluster};
use raftstore::{
    AdminRequest, Bytes, ChangeError, InProcessTransport, MapCommand, MemoryLogStore, NewRegion,
    OrderedMap, Peer, PeerChange, PeerId, ProposeError, RegionDescription, RegionEpoch, RegionId,
    SplitError, SplitRequest, Store, StoreConfig, StoreId, TransferError,
};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;
use std::time::Duration;

const REGION: RegionId = RegionId::new(1);

fn put(key: &str) -> Bytes {
    MapCommand::put(key.to_owned(), "value").encode()
}

fn split_at(keys: &[&'static str], first_id: u64) -> SplitRequest {
    let new = |at: usize| NewRegion {
        id: RegionId::new(first_id + at as u64),
        peers: (1..=3).map(|peer| PeerId::new(first_id * 100 + at as u64 * 10 + peer)).collect(),
    };
    SplitRequest {
        keys: keys.iter().map(|key| Bytes::from_static(key.as_bytes())).collect(),
        regions: (0..keys.len()).map(new).collect(),
        parent_is_right: false,
    }
}

/// Elections are asked for here. On a busy machine nobody else shall stand for one meanwhile.
fn config() -> StoreConfig {
    let mut config = common::config();
    config.raft.election_ticks = 50;
    config
}

/// A store without regions that joins a cluster.
fn fourth_store(config: &StoreConfig, network: &InProcessTransport) -> (Store, Arc<OrderedMap>) {
    let map = Arc::new(OrderedMap::new());
    let store = Store::builder(StoreId::new(4))
        .config(config.clone())
        .log_store(Arc::new(MemoryLogStore::new()))
        .state_machine(map.clone())
        .transport(network.clone())
        .start()
        .expect("starts");
    network.connect(store.handle());
    (store, map)
}

#[test]
fn a_split_divides_contents_and_both_halves_serve_at_once() {
    let cluster = Cluster::in_memory(&config());
    cluster.lead_from_the_first(1);
    let handle = cluster.handle(0);
    for key in ["a", "f", "m", "t"] {
        handle.propose(REGION, MapCommand::put(key, key).encode()).expect("written");
    }
    let old = region(1, 1).epoch;
    let regions = handle.admin(REGION, AdminRequest::split(split_at(&["g", "p"], 7)));
    let regions = regions.expect("split");
    let ids: Vec<u64> = regions.iter().map(|region| region.id.get()).collect();
    assert_eq!(ids, [1, 7, 8]);
    assert!(regions.iter().all(|region| region.epoch == RegionEpoch { conf_ver: 1, version: 3 }));
    for (key, id) in [("a", 1), ("f", 1), ("g", 7), ("m", 7), ("t", 8)] {
        assert_eq!(handle.region_of_key(key.as_bytes()), Some(RegionId::new(id)), "{key}");
    }
    // The peers of the leader's store stood for election at once.
    eventually("it leads all parts", || handle.leaders() == 3);
    handle.propose(RegionId::new(7), put("n")).expect("the middle serves");
    assert_eq!(cluster.maps[0].get(RegionId::new(7), b"m"), Some(Bytes::from("m")));
    assert_eq!(cluster.maps[0].get(REGION, b"m"), None, "it is not the parent's any more");
    let late = handle.propose(REGION, raftstore::Write::new(put("a")).at_epoch(old));
    match late {
        Err(ProposeError::EpochNotMatch { current, .. }) => assert_eq!(current[0].id, REGION),
        other => panic!("{other:?}"),
    }
    for id in [1, 7, 8] {
        let has = |map: &Arc<OrderedMap>| map.fingerprint(RegionId::new(id));
        eventually("all stores have the same", || {
            cluster.maps.iter().all(|map| has(map) == has(&cluster.maps[0]))
        });
    }
    cluster.shutdown();
}

#[test]
fn requests_that_cannot_be_are_refused_each_with_its_own_error() {
    let cluster = Cluster::in_memory(&config());
    cluster.lead_from_the_first(2);
    let handle = cluster.handle(0);
    let split = |request: SplitRequest| match handle.admin(REGION, AdminRequest::split(request)) {
        Err(ProposeError::InvalidSplit { cause, current, .. }) => {
            assert_eq!(current.epoch, RegionEpoch { conf_ver: 1, version: 1 }, "unchanged");
            *cause
        }
        other => panic!("{other:?}"),
    };
    // Region 1 of 2 ends at 0001.
    assert_eq!(split(split_at(&[], 7)), SplitError::NoKeys);
    assert_eq!(split(split_at(&["0001"], 7)), SplitError::AtEdge(0));
    assert_eq!(split(split_at(&["zz"], 7)), SplitError::Outside(0));
    assert_eq!(split(split_at(&["0000", "0000"], 7)), SplitError::KeyTwice(1));
    let used = RegionId::new(2);
    assert_eq!(split(split_at(&["0000"], 2)), SplitError::RegionIdInUse(used));

    let change = |changes: Vec<PeerChange>| match handle
        .admin(REGION, AdminRequest::change_peers(changes))
    {
        Err(ProposeError::InvalidChange { cause, current, .. }) => {
            assert_eq!(current.peers.len(), 3, "unchanged");
            *cause
        }
        other => panic!("{other:?}"),
    };
    let peers = region(1, 2).peers;
    let on_store_two = Peer::learner(PeerId::new(99), StoreId::new(2));
    let taken = ChangeError::StoreTaken { store: StoreId::new(2), peer: peers[1].id };
    assert_eq!(change(vec![PeerChange::Add(on_store_two)]), taken);
    assert_eq!(change(vec![PeerChange::Promote(peers[1].id)]), ChangeError::NoChange(peers[1].id));
    let all = peers.iter().map(|peer| PeerChange::Remove(peer.id)).collect();
    assert_eq!(change(all), ChangeError::NoVoterLeft);
    let nobody = PeerId::new(77);
    assert_eq!(change(vec![PeerChange::Remove(nobody)]), ChangeError::UnknownPeer(nobody));

    let transfer = |to: PeerId| match handle.admin(REGION, AdminRequest::transfer_leader(Some(to)))
    {
        Err(ProposeError::TransferRefused { cause, .. }) => *cause,
        other => panic!("{other:?}"),
    };
    assert_eq!(transfer(nobody), TransferError::UnknownPeer(nobody));
    assert_eq!(transfer(peers[0].id), TransferError::Leads(peers[0].id));

    let missing = handle.admin(RegionId::new(9), AdminRequest::transfer_leader(None));
    assert!(matches!(missing, Err(ProposeError::RegionNotFound { .. })), "{missing:?}");
    let elsewhere = cluster.handle(1).admin(REGION, AdminRequest::split(split_at(&["0000"], 7)));
    assert!(matches!(elsewhere, Err(ProposeError::NotLeader { .. })), "{elsewhere:?}");
    cluster.shutdown();
}

#[test]
fn a_peer_is_replaced_and_the_old_one_destroyed_for_good() {
    let config = config();
    let cluster = Cluster::in_memory(&config);
    cluster.lead_from_the_first(1);
    let (fourth, map) = fourth_store(&config, &cluster.network);
    let handle = cluster.handle(0);
    for number in 0..200 {
        let command = MapCommand::put(format!("{number:04}"), vec![7; 4000]);
        handle.propose(REGION, command.encode()).expect("written");
    }
    let new = Peer::learner(PeerId::new(40), StoreId::new(4));
    let answer = handle.admin(REGION, AdminRequest::change_peers([PeerChange::Add(new)]));
    assert_eq!(answer.expect("added")[0].peers.len(), 4);
    eventually("the snapshot is there", || map.len(REGION) == 200);

    let gone = region(1, 1).peers[2].id;
    let swap = [PeerChange::Promote(new.id), PeerChange::Remove(gone)];
    let after = handle.admin(REGION, AdminRequest::change_peers(swap)).expect("swapped");
    let stores: Vec<u64> = after[0].peers.iter().map(|peer| peer.store.get()).collect();
    assert_eq!((stores.as_slice(), after[0].joint), (&[1, 2, 4][..], false));
    eventually("the third store has nothing of it", || cluster.handle(2).region_count() == 0);
    eventually("nor has its map", || cluster.maps[2].is_empty(REGION));
    assert_eq!(cluster.handle(2).region_of_key(b"0000"), None);
    handle.propose(REGION, put("after")).expect("the others serve");

    // It may come again, under a new id.
    let again = Peer::learner(PeerId::new(50), StoreId::new(3));
    handle.admin(REGION, AdminRequest::change_peers([PeerChange::Add(again)])).expect("added");
    eventually("it is back", || cluster.maps[2].len(REGION) == 201);
    let status = cluster.handle(2).region_status(REGION).expect("it is here");
    assert_eq!(status.peer_id, again.id);
    drop(fourth);
    cluster.shutdown();
}

#[test]
fn a_removed_peer_that_was_cut_off_finds_out_by_itself() {
    let mut config = config();
    config.raft.tick_interval = Duration::from_millis(20);
    let cluster = Cluster::in_memory(&config);
    cluster.lead_from_the_first(1);
    let handle = cluster.handle(0);
    handle.propose(REGION, put("before")).expect("written");
    assert!(cluster.network.disconnect(StoreId::new(3)));
    let gone = region(1, 1).peers[2].id;
    handle.admin(REGION, AdminRequest::change_peers([PeerChange::Remove(gone)])).expect("removed");
    assert_eq!(cluster.handle(2).region_count(), 1, "it knows of nothing");
    cluster.network.connect(cluster.handle(2));
    eventually("it has found out", || cluster.handle(2).region_count() == 0);
    handle.propose(REGION, put("after")).expect("the others serve");
    cluster.shutdown();
}

#[test]
fn leadership_moves_and_a_store_hands_all_of_it_over() {
    let cluster = Cluster::in_memory(&config());
    cluster.lead_from_the_first(20);
    let handle = cluster.handle(0);
    let stop = Arc::new(AtomicBool::new(false));
    let refused = Arc::new(AtomicU64::new(0));
    std::thread::scope(|scope| {
        let (clients, stop_them, refused) = (&cluster, stop.clone(), refused.clone());
        scope.spawn(move || {
            let mut number = 0u64;
            while !stop_them.load(Ordering::Acquire) {
                number += 1;
                let region = RegionId::new(1 + number % 20);
                for store in 0..3 {
                    match clients.handle(store).propose(region, put("load")) {
                        Ok(_) => break,
                        Err(error) if error.is_retryable() => {
                            refused.fetch_add(1, Ordering::Relaxed);
                        }
                        // Its entry went with the old leader's term, or was carried out by the new one.
                        Err(ProposeError::Unknown { .. }) => break,
                        Err(error) => panic!("{error}"),
                    }
                }
            }
        });
        assert_eq!(handle.leaders(), 20);
        let left = handle.evict_leaders(Duration::from_secs(20));
        stop.store(true, Ordering::Release);
        assert_eq!(left, 0);
    });
    let others: u64 = cluster.handle(1).leaders() + cluster.handle(2).leaders();
    assert_eq!(others, 20);
    let target = region(1, 20).peers[0].id;
    let store = (1..3).find(|store| {
        let status = cluster.handle(*store).region_status(REGION).expect("here");
        status.role == raftstore::Role::Leader
    });
    let leader = cluster.handle(store.expect("somebody leads"));
    let back = leader.admin(REGION, AdminRequest::transfer_leader(Some(target)));
    assert_eq!(back.expect("handed over")[0].id, REGION);
    eventually("the first leads it again", || handle.leaders() == 1);
    cluster.shutdown();
}

/// Writes key after key until it is to stop, each to whoever leads its region; returns the keys.
fn write_all_over(cluster: &Cluster, stop: &AtomicBool) -> Vec<String> {
    let mut written = Vec::new();
    // On a busy machine another store may come to lead a region.
    let mut handles = (0..3).map(|at| cluster.handle(at)).collect::<Vec<_>>().into_iter().cycle();
    let mut handle = handles.next().expect("three");
    for number in 1.. {
        if stop.load(Ordering::Acquire) {
            break;
        }
        let key = format!("{:04}/{number}", number * 37 % 1000);
        let command = MapCommand::put(key.clone(), "x").encode();
        loop {
            let Some(region) = handle.region_of_key(key.as_bytes()) else { continue };
            let Some(status) = handle.region_status(region) else { continue };
            if !status.description.contains(key.as_bytes()) {
                continue;
            }
            let epoch = status.description.epoch;
            let write = raftstore::Write::new(command.clone()).at_epoch(epoch);
            match handle.propose(region, write) {
                Ok(_) => break,
                // The same key and value: writing it twice does no harm.
                Err(ProposeError::Unknown { .. }) => {}
                Err(error) => assert!(error.is_retryable(), "{error}"),
            }
            handle = handles.next().expect("three");
        }
        written.push(key);
    }
    written
}

/// Asks a store to split what holds the key; whether the split is there.
fn try_to_split(handle: &raftstore::StoreHandle, key: &Bytes, base: u64, right: bool) -> bool {
    let Some(region) = handle.region_of_key(key) else { return false };
    let status = handle.region_status(region);
    if status.is_some_and(|status| status.description.start_key == key) {
        return true; // an earlier request, of which nothing was heard any more
    }
    let peers = (1..=3).map(|peer| PeerId::new(base + peer)).collect();
    let regions = vec![NewRegion { id: RegionId::new(base), peers }];
    let request = SplitRequest { keys: vec![key.clone()], regions, parent_is_right: right };
    match handle.admin(region, AdminRequest::split(request)) {
        Ok(_) => true,
        Err(ProposeError::Unknown { .. }) => false,
        Err(error) => {
            assert!(error.is_retryable(), "{error}");
            false
        }
    }
}

#[test]
fn regions_are_split_a_hundred_times_under_load_and_nothing_is_lost() {
    let cluster = Cluster::in_memory(&config());
    cluster.lead_from_the_first(1);
    let stop = AtomicBool::new(false);
    let written = std::thread::scope(|scope| {
        let client = scope.spawn(|| write_all_over(&cluster, &stop));
        for number in 1..100u64 {
            let key = Bytes::from(format!("{:04}", number * 10));
            eventually("it is split", || {
                (0..3).any(|store| {
                    try_to_split(&cluster.handle(store), &key, 1000 * number, number % 2 == 0)
                })
            });
        }
        stop.store(true, Ordering::Release);
        client.join().expect("no panic")
    });
    for (store, map) in cluster.maps.iter().enumerate() {
        let handle = cluster.handle(store);
        eventually("all stores have all regions", || handle.region_count() == 100);
        for key in &written {
            eventually("each key is where it belongs", || {
                let region = handle.region_of_key(key.as_bytes()).expect("the space is tiled");
                map.get(region, key.as_bytes()).as_deref() == Some(b"x")
            });
        }
    }
    cluster.shutdown();
}

#[test]
fn what_was_split_and_moved_is_there_after_a_restart() {
    let dir = tempfile::tempdir().expect("a directory");
    let config = config();
    let cluster = Cluster::on_disk(&config, dir.path());
    cluster.lead_from_the_first(1);
    let handle = cluster.handle(0);
    for key in ["a", "m", "z"] {
        handle.propose(REGION, MapCommand::put(key, key).encode()).expect("written");
    }
    handle.admin(REGION, AdminRequest::split(split_at(&["f", "p"], 7))).expect("split");
    eventually("it leads all parts", || handle.leaders() == 3);
    handle.propose(RegionId::new(7), MapCommand::put("n", "n").encode()).expect("written");
    let gone = handle.region_status(RegionId::new(8)).expect("here").description.peers[2].id;
    let removal = AdminRequest::change_peers([PeerChange::Remove(gone)]);
    handle.admin(RegionId::new(8), removal).expect("removed");
    eventually("it is destroyed", || cluster.handle(2).region_count() == 2);
    cluster.shutdown();

    let cluster = Cluster::on_disk(&config, dir.path());
    assert_eq!(cluster.handle(2).region_count(), 2, "a tombstone stays");
    for store in 0..3 {
        assert!(cluster.handle(store).set_aside().is_empty());
    }
    cluster.handle(0).campaign(RegionId::new(7));
    let has = |store: usize, key: &str, id: u64| {
        cluster.maps[store].get(RegionId::new(id), key.as_bytes()).is_some()
    };
    // The map is in memory: everything is replayed, the splits among it.
    eventually("the log is replayed", || {
        (0..3).all(|store| has(store, "a", 1) && has(store, "m", 7) && has(store, "n", 7))
    });
    assert_eq!(cluster.handle(0).region_of_key(b"q"), Some(RegionId::new(8)));
    assert_eq!(cluster.handle(2).region_of_key(b"q"), None);
    cluster.shutdown();
}

fn alone() -> RegionDescription {
    RegionDescription { peers: vec![region(1, 1).peers[0]], ..region(1, 1) }
}

#[test]
fn a_hasty_voter_is_refused_and_one_that_has_caught_up_is_not() {
    let config = config();
    let cluster = Cluster::in_memory(&config);
    let handle = cluster.handle(0);
    handle.bootstrap(&[alone()]).expect("sound");
    handle.campaign(REGION);
    eventually("it leads", || handle.leaders() == 1);
    let id = PeerId::new(70);
    let voter = PeerChange::Add(Peer::voter(id, StoreId::new(2)));
    match handle.admin(REGION, AdminRequest::change_peers([voter])) {
        Err(error @ ProposeError::InvalidChange { .. }) => {
            assert!(error.to_string().contains("1 of the voters to be are healthy"), "{error}");
        }
        other => panic!("{other:?}"),
    }
    let learner = PeerChange::Add(Peer::learner(id, StoreId::new(2)));
    handle.admin(REGION, AdminRequest::change_peers([learner])).expect("added");
    let promote = AdminRequest::change_peers([PeerChange::Promote(id)]);
    eventually("it has caught up", || handle.admin(REGION, promote.clone()).is_ok());
    handle.propose(REGION, put("both")).expect("two voters");
    cluster.shutdown();
}
