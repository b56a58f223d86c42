//! What stores tell about themselves and their regions without asking any of them.

mod common;

use bytes::Bytes;
use common::{config, eventually, regions, Cluster};
use raftstore::{
    AdminRequest, MapCommand, MemoryLogStore, OrderedMap, Peer, PeerChange, PeerId, RegionId,
    RegionInfo, RegionState, Role, Store, StoreConfig, StoreHandle, StoreId, StoreStatus,
};
use std::sync::Arc;

const REGION: RegionId = RegionId::new(1);

fn put(key: &str) -> Bytes {
    MapCommand::put(key.to_owned(), "v").encode()
}

fn info(handle: &StoreHandle, region: RegionId) -> RegionInfo {
    handle.region(region).expect("it is here")
}

#[test]
fn roles_indexes_and_lags_are_told_and_survive_json() {
    let cluster = Cluster::in_memory(&config());
    cluster.lead_from_the_first(3);
    let leader = cluster.handle(0);
    for number in 0..50 {
        leader.propose(REGION, put(&number.to_string())).expect("the leader answers");
    }
    eventually("everything is published", || {
        let info = info(&leader, REGION);
        info.writes == 50 && info.applied == info.last && info.peers.iter().all(|p| p.lag == 0)
    });
    let told = info(&leader, REGION);
    let asked = leader.region_status(REGION).expect("it is here");
    assert_eq!((told.role, told.leader), (Role::Leader, Some(PeerId::new(11))));
    assert_eq!((told.state.clone(), told.peer_id), (RegionState::Live, PeerId::new(11)));
    assert_eq!(
        (told.term, told.committed, told.truncated),
        (asked.term, asked.committed, asked.truncated)
    );
    assert_eq!((told.persisted, told.description.clone()), (asked.persisted, asked.description));
    let matched: Vec<_> = told.peers.iter().map(|peer| (peer.peer_id, peer.matched)).collect();
    assert_eq!(matched, asked.matched);
    eventually("followers tell who leads", || {
        let told = info(&cluster.handle(1), REGION);
        told.leader == Some(PeerId::new(11)) && told.role == Role::Follower && told.peers.is_empty()
    });

    let all = leader.regions();
    assert_eq!(all.iter().map(|info| info.region_id.get()).collect::<Vec<_>>(), [1, 2, 3]);
    let text = serde_json::to_string(&all).expect("plain data");
    assert!(
        text.contains("\"start_key\":\"0001\"") && text.contains("\"role\":\"leader\""),
        "{text}"
    );
    assert_eq!(serde_json::from_str::<Vec<RegionInfo>>(&text).expect("readable"), all);
    let status = leader.store_status();
    assert_eq!((status.store_id, status.regions, status.leaders), (StoreId::new(1), 3, 3));
    let text = serde_json::to_string(&status).expect("plain data");
    assert_eq!(serde_json::from_str::<StoreStatus>(&text).expect("readable"), status);
    assert_eq!(leader.region(RegionId::new(9)), None);
    cluster.shutdown();
    assert!(leader.regions().is_empty());
}

#[test]
fn a_peer_that_is_down_is_told_by_its_lag_and_its_silence() {
    let mut config = config();
    // Nothing but its silence must bring the news.
    config.raft.compact_after_ticks = 1 << 20;
    let cluster = Cluster::in_memory(&config);
    cluster.lead_from_the_first(1);
    let leader = cluster.handle(0);
    cluster.network.disconnect(StoreId::new(3));
    for _ in 0..10 {
        leader.propose(REGION, put("k")).expect("two are a quorum");
    }
    eventually("the third peer lags and is silent", || {
        let peers = info(&leader, REGION).peers;
        peers.len() == 3
            && (peers[2].lag >= 10 && peers[2].silent_ticks > 10)
            && (peers[1].lag == 0 && peers[1].silent_ticks < 10)
    });
    cluster.network.connect(cluster.handle(2));
    eventually("it is heard again", || {
        let third = info(&leader, REGION).peers[2];
        third.lag == 0 && third.silent_ticks < 10
    });
    cluster.shutdown();
}

#[test]
fn a_region_that_is_stuck_is_told_of_all_the_same() {
    let cluster = Cluster::in_memory(&StoreConfig { pollers: 1, ..config() });
    cluster.lead_from_the_first(2);
    let leader = cluster.handle(0);
    let (entered, inside) = crossbeam::channel::bounded(1);
    let (release, released) = crossbeam::channel::bounded::<()>(1);
    leader.propose_with(REGION, put("k"), move |_| {
        entered.send(()).expect("awaited");
        let _ = released.recv();
    });
    inside.recv().expect("the callback runs, on the store's only poller");
    assert_eq!(leader.regions().len(), 2);
    assert_eq!(info(&leader, REGION).role, Role::Leader);
    assert_eq!(leader.store_status().regions, 2);
    release.send(()).expect("it waits");
    cluster.shutdown();
}

#[test]
fn what_happens_to_a_region_shows() {
    let cluster = Cluster::in_memory(&config());
    let mut alone = regions(1).remove(0);
    alone.peers.truncate(1);
    cluster.bootstrap(&[alone]);
    let leader = cluster.handle(0);
    assert!(leader.campaign(REGION));
    eventually("it leads", || info(&leader, REGION).role == Role::Leader);
    let learner = Peer::learner(PeerId::new(50), StoreId::new(2));
    leader.admin(REGION, AdminRequest::change_peers([PeerChange::Add(learner)])).expect("added");
    eventually("the learner is here", || {
        let told = cluster.handle(1).region(REGION);
        told.is_some_and(|told| {
            told.state == RegionState::Live && told.description.peers.len() == 2
        })
    });
    eventually("its snapshot is through", || {
        let (sender, receiver) = (leader.store_status(), cluster.handle(1).store_status());
        sender.snapshots.sending == 0 && receiver.snapshots.receiving == 0
    });
    let gone = PeerChange::Remove(learner.id);
    leader.admin(REGION, AdminRequest::change_peers([gone])).expect("removed");
    eventually("it is gone", || cluster.handle(1).region(REGION).is_none());
    cluster.shutdown();
}

/// Not an assertion of speed, which depends on the machine; the figure is printed.
#[test]
fn many_regions_are_listed_without_asking_any() {
    let count = 10_000;
    let store = Store::builder(StoreId::new(1))
        .log_store(Arc::new(MemoryLogStore::new()))
        .state_machine(Arc::new(OrderedMap::new()))
        .transport(raftstore::InProcessTransport::new())
        .start()
        .expect("starts");
    let mut all = regions(count);
    for region in &mut all {
        (region.start_key, region.end_key) = (
            Bytes::from(format!("{:06}", region.id.get())),
            Bytes::from(format!("{:06}", region.id.get() + 1)),
        );
    }
    store.handle().bootstrap(&all).expect("sound");
    let start = std::time::Instant::now();
    let told = store.handle().regions();
    println!("{count} regions listed in {:?}", start.elapsed());
    assert_eq!(told.len() as u64, count);
    assert!(told.is_sorted_by_key(|info| info.region_id));
}
