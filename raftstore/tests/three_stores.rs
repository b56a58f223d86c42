//! Three stores in one process: what a user of the library sees.

mod common;

use bytes::Bytes;
use common::{config, eventually, key_in, region, regions, Cluster};
use raftstore::{
    MapAnswer, MapCommand, ProposeError, RegionEpoch, RegionId, StartError, Store, StoreConfig,
    StoreId, Write,
};
use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};

fn put(key: &str, value: &str) -> Bytes {
    MapCommand::put(key.to_owned(), value.to_owned()).encode()
}

#[test]
fn a_write_is_answered_in_all_three_ways_and_reaches_all_stores() {
    let cluster = Cluster::in_memory(&config());
    cluster.lead_from_the_first(1);
    let (region, leader) = (RegionId::new(1), cluster.handle(0));

    let first = leader.propose(region, put("k", "1")).expect("the leader answers");
    assert!(first.value.is_empty(), "there was no value before");

    let (sender, answers) = std::sync::mpsc::channel();
    leader.propose_with(region, put("k", "2"), move |answer| sender.send(answer).expect("heard"));
    let second = answers.recv().expect("answered").expect("with success");
    let previous = |value: &Bytes| match MapAnswer::decode(value.clone()) {
        Ok(MapAnswer::Done(previous)) => previous,
        other => panic!("{other:?}"),
    };
    assert_eq!(previous(&second.value).as_deref(), Some(&b"1"[..]));
    assert!(second.index > first.index);

    let third = block_on(leader.propose_async(region, put("k", "3"))).expect("with success");
    assert_eq!(previous(&third.value).as_deref(), Some(&b"2"[..]));

    cluster.converge(1);
    for map in &cluster.maps {
        assert_eq!(map.get(region, b"k").as_deref(), Some(&b"3"[..]));
    }
    cluster.shutdown();
}

#[test]
fn a_follower_names_the_leader() {
    let cluster = Cluster::in_memory(&config());
    cluster.lead_from_the_first(1);
    eventually("the follower knows the leader", || {
        match cluster.handle(1).propose(RegionId::new(1), put("k", "v")) {
            Err(ProposeError::NotLeader { leader, .. }) => {
                leader.is_some_and(|peer| peer.store == StoreId::new(1))
            }
            other => panic!("{other:?}"),
        }
    });
}

#[test]
fn refusals_say_what_to_do() {
    let mut config = config();
    config.raft.max_proposal_size = bytesize::ByteSize::kib(4);
    let cluster = Cluster::in_memory(&config);
    cluster.lead_from_the_first(1);
    let leader = cluster.handle(0);
    let region = RegionId::new(1);

    let unknown = leader.propose(RegionId::new(77), put("k", "v"));
    assert!(matches!(unknown, Err(ProposeError::RegionNotFound { .. })), "{unknown:?}");

    let old = Write::new(put("k", "v")).at_epoch(RegionEpoch { conf_ver: 1, version: 0 });
    match leader.propose(region, old) {
        Err(ProposeError::EpochNotMatch { current, .. }) => {
            assert_eq!(current[0].epoch, RegionEpoch { conf_ver: 1, version: 1 });
        }
        other => panic!("{other:?}"),
    }

    let large = leader.propose(region, vec![0; 4097]);
    assert!(
        matches!(large, Err(ProposeError::TooLarge { size_bytes: 4097, limit_bytes: 4096, .. })),
        "{large:?}"
    );
    assert!(cluster.maps[0].is_empty(region), "nothing of it happened");

    let mut stores = cluster.stores;
    stores.iter_mut().for_each(Store::shutdown);
    let late = leader.propose(region, put("k", "v"));
    assert!(matches!(late, Err(ProposeError::Stopped { .. })), "{late:?}");
}

#[test]
fn bootstrap_may_be_repeated_and_contradictions_are_refused() {
    let cluster = Cluster::in_memory(&config());
    let handle = cluster.handle(0);
    let three = regions(3);
    handle.bootstrap(&three[..2]).expect("sound");
    handle.bootstrap(&three).expect("the first two are there, the third is new");
    assert_eq!(handle.region_count(), 3);
    assert_eq!(handle.region_of_key(b"0001"), Some(RegionId::new(2)));
    assert_eq!(handle.region_of_key(b"zzz"), Some(RegionId::new(3)));

    let mut other = region(2, 3);
    other.end_key = Bytes::from("0001a");
    let refused = handle.bootstrap(&[other]).expect_err("another description");
    assert!(matches!(refused, StartError::Region { region_id, .. } if region_id.get() == 2));

    let refused = handle.bootstrap(&[region(4, 4)]).expect_err("it overlaps").to_string();
    assert!(refused.contains("region 4") && refused.contains("overlaps"), "{refused}");

    let mut unsound = region(6, 6);
    unsound.peers.clear();
    let mut sound = region(5, 5);
    (sound.start_key, sound.end_key) = (Bytes::new(), Bytes::from("00"));
    let other = cluster.handle(1);
    other.bootstrap(&[sound.clone(), unsound]).expect_err("one of them is unsound");
    assert_eq!((other.region_count(), other.region_of_key(b"0")), (0, None), "nothing was created");
    other.bootstrap(&[sound.clone(), sound]).expect("listed twice is created once");
    assert_eq!((other.region_count(), other.set_aside().len()), (1, 0));
    let reserved = raftstore::RegionDescription { id: RegionId::new(u64::MAX - 5), ..region(9, 9) };
    let refused = other.bootstrap(&[reserved]).expect_err("its id is reserved").to_string();
    assert!(refused.contains("field id is 18446744073709551610, allowed are 1 to"), "{refused}");

    let elsewhere =
        raftstore::RegionDescription { peers: vec![region(9, 9).peers[2]], ..region(9, 9) };
    handle.bootstrap(&[elsewhere]).expect("no peer here: passed over");
    assert_eq!(handle.region_count(), 3);
}

#[test]
fn every_callback_runs_once_when_stores_shut_down_under_load() {
    let cluster = Cluster::in_memory(&config());
    cluster.lead_from_the_first(8);
    let answered = Arc::new(AtomicU64::new(0));
    let acknowledged = Arc::new(AtomicU64::new(0));
    let leader = cluster.handle(0);
    let proposer = {
        let (leader, answered, acknowledged) =
            (leader.clone(), answered.clone(), acknowledged.clone());
        std::thread::spawn(move || {
            for number in 0..20_000u64 {
                let (answered, acknowledged) = (answered.clone(), acknowledged.clone());
                let region = RegionId::new(1 + number % 8);
                let payload = put(&key_in(region, number), "v");
                leader.propose_with(region, payload, move |answer| {
                    answered.fetch_add(1, Ordering::Relaxed);
                    acknowledged.fetch_add(u64::from(answer.is_ok()), Ordering::Relaxed);
                });
            }
        })
    };
    eventually("some writes are acknowledged", || acknowledged.load(Ordering::Relaxed) > 100);
    let maps = cluster.maps.clone();
    cluster.shutdown();
    proposer.join().expect("no panic");
    assert_eq!(answered.load(Ordering::Relaxed), 20_000);
    let held: usize = (1..=8).map(|id| maps[0].len(RegionId::new(id))).sum();
    let acknowledged = acknowledged.load(Ordering::Relaxed) as usize;
    assert!(held >= acknowledged, "{held} held, {acknowledged} acknowledged");
}

#[test]
fn an_apply_pool_answers_in_order() {
    let config = StoreConfig { apply_pollers: 2, ..config() };
    let cluster = Cluster::in_memory(&config);
    cluster.lead_from_the_first(4);
    for number in 0..200u64 {
        for id in 1..=4 {
            let region = RegionId::new(id);
            let payload = put(&key_in(region, "k"), &number.to_string());
            let value = cluster.write(region, &payload).expect("answered").value;
            let previous = number.checked_sub(1).map(|n| n.to_string().into());
            assert_eq!(MapAnswer::decode(value), Ok(MapAnswer::Done(previous)));
        }
    }
    cluster.converge(4);
    eventually("the region knows what was applied", || {
        let status = cluster.handle(0).region_status(RegionId::new(1)).expect("it is here");
        status.applied == status.committed
    });
    cluster.shutdown();
}

#[test]
fn the_log_is_shortened_when_all_peers_have_it() {
    let mut config = config();
    config.raft.compact_after_entries = 300;
    let cluster = Cluster::in_memory(&config);
    cluster.lead_from_the_first(1);
    let region = RegionId::new(1);
    eventually("all logs are shortened", || {
        for _ in 0..100 {
            cluster.write(region, &put("k", "v")).expect("answered");
        }
        (0..3).all(|store| {
            let status = cluster.handle(store).region_status(region).expect("it is here");
            status.truncated.get() > 300
        })
    });
    cluster.converge(1);
    cluster.shutdown();
}

#[test]
fn metrics_tell_of_every_station_without_naming_regions() {
    let cluster = Cluster::in_memory(&config());
    cluster.lead_from_the_first(2);
    for _ in 0..50 {
        cluster.write(RegionId::new(1), &put("k", "v")).expect("answered");
    }
    eventually("the counters are published", || {
        let text = cluster.stores[0].metrics_text();
        text.contains("raftstore_answers_total{outcome=\"ok\",store=\"1\"} 50")
    });
    let text = cluster.stores[0].metrics_text();
    for stage in raftstore::Stage::ALL {
        assert!(text.contains(&format!("stage=\"{}\"", stage.name())), "{}", stage.name());
    }
    for line in [
        "raftstore_regions{role=\"leader\",store=\"1\"} 2",
        "raftstore_mailboxes{store=\"1\"} 2",
        "raftstore_healthy{store=\"1\"} 1",
    ] {
        assert!(text.contains(line), "{line} is missing in:\n{text}");
    }
    assert!(!text.contains("region=\""), "no label per region");
    cluster.shutdown();
}

#[test]
fn stores_share_a_registry_and_leave_it_when_they_stop() {
    let registry = prometheus::Registry::new();
    let start = |id| {
        Store::builder(StoreId::new(id))
            .log_store(Arc::new(raftstore::MemoryLogStore::new()))
            .state_machine(Arc::new(raftstore::OrderedMap::new()))
            .transport(raftstore::InProcessTransport::new())
            .registry(registry.clone())
            .start()
    };
    let (mut first, second) = (start(1).expect("starts"), start(2).expect("starts"));
    let taken = start(1).expect_err("the id is taken");
    assert!(matches!(taken, StartError::Metrics { store, .. } if store.get() == 1), "{taken}");
    let more: Vec<Store> = (3..20).map(|id| start(id).expect("starts")).collect();
    drop(more);
    first.shutdown();
    let third = start(1).expect("its predecessor has left");
    drop(first);
    let text = third.metrics_text();
    assert!(text.contains("raftstore_healthy{store=\"1\"}"));
    assert!(text.contains("raftstore_healthy{store=\"2\"}"));
    drop((second, third));
    assert!(registry.gather().is_empty());
}

#[test]
fn a_region_whose_log_is_gone_is_set_aside_and_bootstrap_says_so() {
    let map = Arc::new(raftstore::OrderedMap::new());
    let applied = raftstore::AppliedState {
        index: raftstore::Index::new(9),
        term: raftstore::Term::new(6),
        description: Arc::new(region(2, 2)),
    };
    let part =
        raftstore::RegionCommands { region_id: RegionId::new(2), commands: Vec::new(), applied };
    raftstore::StateMachine::apply(&*map, &mut [part]).expect("in memory");
    let store = Store::builder(StoreId::new(1))
        .log_store(Arc::new(raftstore::MemoryLogStore::new()))
        .state_machine(map)
        .transport(raftstore::InProcessTransport::new())
        .start()
        .expect("starts");
    let handle = store.handle();
    let refused = handle.bootstrap(&regions(2)).expect_err("one has contents and no log");
    assert!(refused.to_string().starts_with("region 2: it is set aside: "), "{refused}");
    assert_eq!(Vec::from_iter(handle.set_aside().into_keys()), [RegionId::new(2)]);
    assert_eq!(handle.region_of_key(b"0000"), Some(RegionId::new(1)), "the other one is here");
}

#[test]
fn the_builder_names_what_is_missing() {
    let refused = Store::builder(StoreId::new(1)).start().expect_err("nothing given");
    let missing = "a state_machine, a transport, a data_dir or a log_store";
    assert_eq!(refused.to_string(), format!("the store's builder lacks {missing}"));
    let refused = Store::builder(StoreId::new(0))
        .state_machine(Arc::new(raftstore::OrderedMap::new()))
        .transport(raftstore::InProcessTransport::new())
        .start()
        .expect_err("0 is no id");
    assert!(refused.to_string().contains("store id"), "{refused}");
}

/// The smallest executor: any other would do as well.
fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(std::thread::Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut context = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(output) => return output,
            Poll::Pending => std::thread::park(),
        }
    }
}
