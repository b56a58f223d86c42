//! What observers hear while a region lives.

mod common;

use common::{eventually, region, Cluster};
use parking_lot::Mutex;
use raftstore::{
    AdminRequest, Bytes, CreatedBy, MapCommand, MemoryLogStore, NewRegion, Observer, OrderedMap,
    Peer, PeerChange, PeerId, RegionEvent, RegionId, Role, SplitRequest, StoreConfig, StoreId,
};
use std::sync::Arc;

const REGION: RegionId = RegionId::new(1);
const CHILD: RegionId = RegionId::new(7);

/// Keeps all it hears.
#[derive(Default)]
struct Diary(Mutex<Vec<(u64, RegionId, RegionEvent)>>);

impl Observer for Diary {
    fn observe(&self, store: StoreId, region: RegionId, event: &RegionEvent) {
        self.0.lock().push((store.get(), region, event.clone()));
    }
}

impl Diary {
    /// Of a region on a store.
    fn of(&self, store: u64, region: RegionId) -> Vec<RegionEvent> {
        let all = self.0.lock();
        let its = all.iter().filter(|(on, of, _)| (*on, *of) == (store, region));
        its.map(|(_, _, event)| event.clone()).collect()
    }

    fn has(&self, store: u64, region: RegionId, is: impl Fn(&RegionEvent) -> bool) -> bool {
        self.of(store, region).iter().any(is)
    }
}

/// One that does all wrong.
struct Panics;

impl Observer for Panics {
    fn observe(&self, _: StoreId, _: RegionId, _: &RegionEvent) {
        panic!("an observer's bug");
    }
}

fn put(key: &str) -> Bytes {
    MapCommand::put(key.to_owned(), vec![7; 4000]).encode()
}

#[test]
fn the_whole_life_of_a_region_is_told_and_a_panic_does_no_harm() {
    let diary = Arc::new(Diary::default());
    let mut config = StoreConfig { pollers: 2, ..common::config() };
    config.raft.election_ticks = 50;
    config.raft.compact_after_entries = 20;
    let cluster = Cluster::build(
        &config,
        |_| OrderedMap::new(),
        |builder, _| {
            let log = Arc::new(MemoryLogStore::new());
            builder.log_store(log).observer(Arc::new(Panics)).observer(diary.clone())
        },
    );
    cluster.lead_from_the_first(1);
    let handle = cluster.handle(0);
    let peers = region(1, 1).peers;
    let by = |by| move |event: &RegionEvent| matches!(event, RegionEvent::Created { by: b, .. } if *b == by);
    for store in 1..=3 {
        let created =
            RegionEvent::Created { peer: peers[store as usize - 1].id, by: CreatedBy::Bootstrap };
        assert_eq!(diary.of(store, REGION)[0], created);
    }
    let leads = |event: &RegionEvent| {
        matches!(event, RegionEvent::RoleChanged { role: Role::Leader, leader: Some(leader), .. }
            if *leader == peers[0].id)
    };
    eventually("it is told who leads", || diary.has(1, REGION, leads));

    for number in 0..200 {
        handle.propose(REGION, put(&format!("{number:04}"))).expect("written");
    }
    let shortened = |event: &RegionEvent| matches!(event, RegionEvent::LogCompacted { .. });
    eventually("the log is shortened", || diary.has(1, REGION, shortened));

    let child = NewRegion { id: CHILD, peers: (71..74).map(PeerId::new).collect() };
    let split =
        SplitRequest { keys: vec!["0100".into()], regions: vec![child], parent_is_right: false };
    let parts = handle.admin(REGION, AdminRequest::split(split)).expect("split");
    for store in 1..=3 {
        let told = RegionEvent::Split { parts: parts.clone() };
        eventually("each store tells of the split", || diary.of(store, REGION).contains(&told));
        eventually("and of the child", || diary.has(store, CHILD, by(CreatedBy::Split)));
    }

    let gone = peers[2].id;
    let after = handle.admin(REGION, AdminRequest::change_peers([PeerChange::Remove(gone)]));
    let after = after.expect("removed").remove(0);
    let changed = |event: &RegionEvent| {
        matches!(event, RegionEvent::PeersChanged { before, after: now }
            if before.peers.len() == 3 && **now == after)
    };
    eventually("both that stay tell", || (1..=2).all(|store| diary.has(store, REGION, changed)));
    let destroyed = RegionEvent::Destroyed { peer: gone };
    eventually("the third is gone", || diary.of(3, REGION).contains(&destroyed));

    let again = Peer::learner(PeerId::new(50), StoreId::new(3));
    handle.admin(REGION, AdminRequest::change_peers([PeerChange::Add(again)])).expect("added");
    eventually("the leader speaks to it", || diary.has(3, REGION, by(CreatedBy::Leader)));
    let installed = |event: &RegionEvent| matches!(event, RegionEvent::SnapshotInstalled { .. });
    eventually("it gets a snapshot", || diary.has(3, REGION, installed));
    let sent = |event: &RegionEvent| matches!(event, RegionEvent::SnapshotSent { to, .. } if *to == again.id);
    eventually("which has arrived", || diary.has(1, REGION, sent));
    let about_a_third = |event: &RegionEvent| matches!(event, RegionEvent::PeersChanged { before, .. } if !before.is_initialised());
    assert!(!diary.has(3, REGION, about_a_third), "it has begun, and not changed");

    let to = peers[1].id;
    handle.admin(REGION, AdminRequest::transfer_leader(Some(to))).expect("handed over");
    assert!(diary.of(1, REGION).contains(&RegionEvent::LeaderTransferred { to, done: true }));
    cluster.shutdown();
}
