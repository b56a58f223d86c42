//! Idle regions sleep, and wake for the right reasons.

mod common;

use common::{config, counted, eventually, key_in, regions, Cluster};
use parking_lot::Mutex;
use raftstore::{
    AdminRequest, Bytes, Entry, InProcessTransport, LogBatch, LogStore, MapCommand, MemoryLogStore,
    Observer, OrderedMap, ReadRequest, RegionEvent, RegionId, RegionInfo, RegionWrite, Registry,
    Role, Store, StoreBuilder, StoreConfig, StoreHandle, StoreId,
};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::Duration;

const REGIONS: u64 = 30;

/// Regions that sleep after three ticks. One poller: one without work would keep what it has counted to itself.
fn sleepy() -> StoreConfig {
    let mut config = StoreConfig { pollers: 1, ..config() };
    config.raft.sleep_after_ticks = 3;
    config
}

fn all_asleep(handle: &StoreHandle) -> bool {
    let regions = handle.regions();
    regions.len() as u64 == REGIONS && regions.iter().all(|region| region.asleep)
}

fn led_here(handle: &StoreHandle) -> BTreeSet<RegionId> {
    let all = handle.regions().into_iter();
    all.filter(|info| info.role == Role::Leader).map(|info| info.region_id).collect()
}

fn put(region: RegionId) -> Bytes {
    MapCommand::put(key_in(region, "key"), "value").encode()
}

/// Three stores of which each leads a third of the regions, all asleep, with their registries.
fn asleep(config: &StoreConfig) -> (Cluster, Vec<Registry>, Vec<Arc<dyn LogStore>>) {
    let registries: Vec<Registry> = (0..3).map(|_| Registry::new()).collect();
    let logs: Vec<Arc<dyn LogStore>> =
        (0..3).map(|_| Arc::new(MemoryLogStore::new()) as Arc<dyn LogStore>).collect();
    let with_log = |builder: StoreBuilder, id: u64| {
        let at = id as usize - 1;
        builder.log_store(logs[at].clone()).registry(registries[at].clone())
    };
    let cluster = Cluster::build(config, |_| OrderedMap::new(), with_log);
    cluster.bootstrap(&regions(REGIONS));
    eventually("each store leads a third", || {
        for id in 1..=REGIONS {
            cluster.handle(id as usize % 3).campaign(RegionId::new(id));
        }
        std::thread::park_timeout(Duration::from_millis(20));
        (1..=REGIONS).all(|id| {
            let info = cluster.handle(id as usize % 3).region(RegionId::new(id));
            info.is_some_and(|info| info.role == Role::Leader) || hand_over(&cluster, id)
        })
    });
    eventually("all sleep", || (0..3).all(|store| all_asleep(&cluster.handle(store))));
    (cluster, registries, logs)
}

/// Whoever leads is asked to hand over to the store that should. Says that it does not lead yet.
fn hand_over(cluster: &Cluster, id: u64) -> bool {
    let region = RegionId::new(id);
    let wanted = cluster.handle(id as usize % 3).region(region).map(|info| info.peer_id);
    for store in 0..3 {
        let handle = cluster.handle(store);
        let leads = handle.region(region).is_some_and(|info| info.role == Role::Leader);
        if let Some(wanted) = wanted.filter(|_| leads) {
            let _ = handle.admin(region, AdminRequest::transfer_leader(Some(wanted)));
        }
    }
    false
}

#[test]
fn regions_that_sleep_get_no_turns_and_wake_for_a_write() {
    let (cluster, registries, _) = asleep(&sleepy());
    let runs = || -> f64 {
        registries.iter().map(|it| counted(it, "raftstore_round_regions_sum", "")).sum()
    };
    let ticks = |store: usize| counted(&registries[store], "raftstore_rounds_total", "");
    let past = |rounds: f64| {
        let from = ticks(0);
        eventually("the control goes on", || ticks(0) >= from + rounds);
    };
    // On a machine under load a store may pass for lost now and then, and wakes what it led.
    let mut before = -1.0;
    eventually("no region has a turn in its sleep", || {
        before = runs();
        past(50.0);
        runs() == before
    });
    let region = RegionId::new(7);
    cluster.write(region, &put(region)).expect("answered");
    eventually("it is counted that regions had turns", || runs() > before);
    let others_sleep = |info: &RegionInfo| info.asleep || info.region_id == region;
    assert!(cluster.handle(1).regions().iter().all(others_sleep), "only that one wakes");
    eventually("it sleeps again", || (0..3).all(|store| all_asleep(&cluster.handle(store))));
    assert_eq!(counted(&registries[0], "raftstore_regions_asleep", ""), REGIONS as f64);
    cluster.shutdown();
}

#[test]
fn what_has_slept_for_long_costs_no_mailbox_and_comes_back_as_it_was() {
    let mut config = sleepy();
    config.raft.cold_after_ticks = 3;
    let (cluster, registries, _) = asleep(&config);
    let cold = |store: usize| cluster.handle(store).store_status().cold as u64;
    eventually("all are cold", || (0..3).all(|store| cold(store) == REGIONS));
    for (store, registry) in registries.iter().enumerate() {
        assert_eq!(counted(registry, "raftstore_mailboxes{", ""), 0.0);
        assert_eq!(counted(registry, "raftstore_regions_cold", ""), REGIONS as f64);
        assert_eq!(cluster.handle(store).region_count() as u64, REGIONS);
        assert_eq!(cluster.handle(store).regions().len() as u64, REGIONS);
        let bootstrapped = cluster.handle(store).bootstrap(&regions(REGIONS));
        bootstrapped.expect("they are there, as described");
    }
    let changes = || (0..3).map(|store| cluster.handle(store).leader_changes()).sum::<u64>();
    let before = changes();
    for id in 1..=REGIONS {
        let (region, leader) = (RegionId::new(id), cluster.handle(id as usize % 3));
        leader.propose(region, put(region)).expect("it led and leads");
        let read = leader.read(region, ReadRequest::linearizable(), |point| point.region_id);
        assert_eq!(read.expect("it reads"), region);
    }
    assert_eq!(changes(), before, "nobody else was elected");
    eventually("all are cold again", || (0..3).all(|store| cold(store) == REGIONS));
    // A follower's read asks the leader, which is cold as well.
    let read = cluster.handle(1).read(RegionId::new(3), ReadRequest::linearizable(), |_| ());
    read.expect("it reads");
    cluster.shutdown();
}

#[test]
fn a_lost_store_wakes_the_regions_that_it_led_and_no_others() {
    let (mut cluster, registries, _) = asleep(&sleepy());
    let led: Vec<BTreeSet<RegionId>> =
        (0..3).map(|store| led_here(&cluster.handle(store))).collect();
    assert!(led.iter().all(|led| led.len() == 10), "{led:?}");
    cluster.network.disconnect(StoreId::new(1));
    cluster.stores[0].shutdown();
    let left = [cluster.handle(1), cluster.handle(2)];
    eventually("all that it led is led by others, unasked", || {
        let now: BTreeSet<RegionId> = left.iter().flat_map(led_here).collect();
        led[0].is_subset(&now)
    });
    for (store, registry) in registries.iter().enumerate().skip(1) {
        let told = counted(registry, "raftstore_woken_regions_total", "");
        assert!(told >= 1.0, "store {} has woken {told}", store + 1);
        assert_eq!(counted(registry, "raftstore_stores_lost", ""), 1.0);
        for info in cluster.handle(store).regions() {
            assert!(info.asleep || led[0].contains(&info.region_id), "{info:?}");
        }
    }
    cluster.shutdown();
}

/// Looks at all regions when one is set aside, and remembers which.
#[derive(Default)]
struct Curious {
    handle: Mutex<Option<StoreHandle>>,
    set_aside: Mutex<Vec<RegionId>>,
}

impl Observer for Curious {
    fn observe(&self, _: StoreId, region: RegionId, event: &RegionEvent) {
        if matches!(event, RegionEvent::SetAside { .. }) {
            let handle = self.handle.lock().clone().expect("not before somebody asks");
            assert!(handle.region(region).is_none());
            assert_eq!(handle.regions().len() as u64, REGIONS - 1);
            self.set_aside.lock().push(region);
        }
    }
}

#[test]
fn a_region_that_turns_out_to_be_damaged_when_it_is_wanted_is_set_aside_alone() {
    let (mut cluster, _, logs) = asleep(&sleepy());
    let led = led_here(&cluster.handle(0));
    cluster.stores[0].shutdown();
    let region =
        (1..=REGIONS).map(RegionId::new).find(|id| !led.contains(id)).expect("others lead");
    // Its last entry is of another term than the one that was applied.
    let stored = logs[0].load().expect("readable").regions;
    let stored = stored.iter().find(|stored| stored.record.description.id == region);
    let index = stored.expect("it is here").last_index.get();
    let spoilt = Entry { index, term: 5, ..Entry::default() };
    let write = RegionWrite { region_id: region, entries: vec![spoilt], ..RegionWrite::default() };
    let mut batch = LogBatch { writes: vec![write], ident: None };
    logs[0].write(&mut batch, true).expect("written");
    let curious = Arc::new(Curious::default());
    let again = Store::builder(StoreId::new(1)).config(sleepy()).log_store(logs[0].clone());
    let again = again.state_machine(cluster.maps[0].clone()).transport(cluster.network.clone());
    let again = again.observer(curious.clone()).start().expect("starts");
    *curious.handle.lock() = Some(again.handle());
    assert!(again.handle().set_aside().is_empty(), "nobody has looked at its log yet");
    assert!(again.handle().region(region).is_some_and(|it| it.asleep && it.leader.is_some()));
    cluster.network.connect(again.handle());
    cluster.stores[0] = again;
    // Elsewhere it goes on; its leader's message is what builds it here.
    cluster.write(region, &put(region)).expect("answered");
    eventually("it is set aside", || *curious.set_aside.lock() == [region]);
    let handle = cluster.handle(0);
    assert_eq!(handle.set_aside().len(), 1);
    assert_eq!(handle.region_count() as u64, REGIONS - 1);
    let other = led.first().expect("it led some");
    cluster.write(*other, &put(*other)).expect("others go on");
    cluster.shutdown();
}

#[test]
fn what_a_store_led_before_it_was_started_anew_is_led_again_unasked() {
    let (mut cluster, _, logs) = asleep(&sleepy());
    let led = led_here(&cluster.handle(0));
    cluster.stores[0].shutdown();
    let map = cluster.maps[0].clone();
    let network: InProcessTransport = cluster.network.clone();
    let again = Store::builder(StoreId::new(1)).config(sleepy()).log_store(logs[0].clone());
    let again = again.state_machine(map).transport(network.clone()).start().expect("starts");
    let cold = again.handle().store_status().cold;
    assert_eq!(cold, REGIONS as usize - led.len(), "what others led is not built");
    assert!(again
        .handle()
        .regions()
        .iter()
        .all(|it| it.leader.is_some() != led.contains(&it.region_id)));
    assert_eq!(again.handle().region_count() as u64, REGIONS);
    network.connect(again.handle());
    let all = [again.handle(), cluster.handle(1), cluster.handle(2)];
    eventually("all that it led has a leader", || {
        let now: BTreeSet<RegionId> = all.iter().flat_map(led_here).collect();
        led.is_subset(&now)
    });
    eventually("all sleep again", || all.iter().all(all_asleep));
    let region = *led.first().expect("it led some");
    cluster.stores[0] = again;
    cluster.write(region, &put(region)).expect("answered");
    cluster.shutdown();
}

#[test]
fn who_comes_while_a_region_becomes_cold_is_answered_like_any_other() {
    let mut config = sleepy();
    config.raft.tick_interval = Duration::from_millis(5);
    (config.raft.sleep_after_ticks, config.raft.cold_after_ticks) = (1, 1);
    // Wider than the machine may stumble: nobody is to be elected.
    config.raft.election_ticks = 200;
    let (cluster, _, _) = asleep(&config);
    let cold = |store: usize| cluster.handle(store).store_status().cold as u64;
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for store in 0..3 {
            let (handle, done) = (cluster.handle(store), &done);
            // Asked how they stand, regions neither wake nor sleep longer: each becomes cold under questions.
            scope.spawn(move || {
                let mut asked = 0_u64;
                while !done.load(Ordering::Acquire) {
                    asked += 1;
                    let region = RegionId::new(1 + asked % REGIONS);
                    let status = handle.region_status(region);
                    assert_eq!(status.expect("it is here").description.id, region);
                    if asked.is_multiple_of(64) {
                        assert_eq!(handle.regions().len() as u64, REGIONS);
                    }
                }
            });
        }
        // Also when something below fails.
        let _ended = Ended(&done);
        for round in 0..20 {
            eventually("all are cold", || (0..3).all(|store| cold(store) == REGIONS));
            for id in 1..=REGIONS {
                let (region, leader) = (RegionId::new(id), cluster.handle(id as usize % 3));
                match (round + id) % 3 {
                    0 => {
                        leader.read(region, ReadRequest::linearizable(), |_| ()).expect("it leads")
                    }
                    _ => drop(leader.propose(region, put(region)).expect("it leads")),
                }
            }
        }
    });
    cluster.converge(REGIONS);
    cluster.shutdown();
}

/// Lets others know that it has been dropped.
struct Ended<'a>(&'a AtomicBool);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}
