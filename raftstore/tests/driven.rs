//! Stores without threads do what stores do, in the order they are told.

mod common;

use common::{config, regions, run_until_idle};
use parking_lot::Mutex;
use raftstore::{
    Answer, DrivenStore, InProcessTransport, MapCommand, MemoryLogStore, OrderedMap, ProposeError,
    RegionId, Role, Store, StoreConfig, StoreId, StoreThread,
};
use std::sync::Arc;

const REGION: RegionId = RegionId::new(1);

struct Cluster {
    stores: Vec<DrivenStore>,
    maps: Vec<Arc<OrderedMap>>,
}

impl Cluster {
    fn new(config: &StoreConfig) -> Self {
        let network = InProcessTransport::new();
        let mut cluster = Self { stores: Vec::new(), maps: Vec::new() };
        for id in 1..=3 {
            let map = Arc::new(OrderedMap::new());
            let store = Store::builder(StoreId::new(id))
                .config(config.clone())
                .log_store(Arc::new(MemoryLogStore::new()))
                .state_machine(map.clone())
                .transport(network.clone())
                .start_driven()
                .expect("sound");
            store.handle().bootstrap(&regions(2)).expect("sound");
            network.connect(store.handle());
            cluster.stores.push(store);
            cluster.maps.push(map);
        }
        cluster
    }

    fn run_until_idle(&mut self) {
        run_until_idle(&mut self.stores);
    }

    fn pass_ticks(&mut self, config: &StoreConfig, ticks: usize) {
        for _ in 0..ticks {
            let tick = config.raft.tick_interval;
            self.stores.iter_mut().for_each(|store| store.advance_time(tick));
            self.run_until_idle();
        }
    }

    fn propose(&self, store: usize, key: &str) -> Arc<Mutex<Vec<Answer>>> {
        let answers = Arc::new(Mutex::new(Vec::new()));
        let sink = answers.clone();
        let payload = MapCommand::put(key.to_owned(), "v").encode();
        let handle = self.stores[store].handle();
        handle.propose_with(REGION, payload, move |answer| sink.lock().push(answer));
        answers
    }
}

fn apply_threads(count: usize) -> StoreConfig {
    StoreConfig { apply_pollers: count, ..config() }
}

#[test]
fn a_write_is_answered_step_by_step() {
    for config in [apply_threads(0), apply_threads(2)] {
        let mut cluster = Cluster::new(&config);
        assert!(cluster.stores[0].handle().campaign(REGION));
        cluster.run_until_idle();
        let status = cluster.stores[0].region_status(REGION).expect("it is here");
        assert_eq!(status.role, Role::Leader);
        let answers = cluster.propose(0, "0000/k");
        assert!(answers.lock().is_empty(), "nobody has run");
        let statuses = cluster.stores[0].run(StoreThread::Poller(0));
        assert!(statuses.is_empty() || statuses[0].description.id == REGION);
        cluster.run_until_idle();
        assert!(matches!(answers.lock().as_slice(), [Ok(_)]), "{answers:?}");
        // Followers hear with the next heartbeat that it is committed.
        cluster.pass_ticks(&config, config.raft.heartbeat_ticks + 1);
        assert!(cluster.maps.iter().all(|map| map.get(REGION, b"0000/k").is_some()));
    }
}

#[test]
fn time_moves_only_when_it_is_moved() {
    let mut cluster = Cluster::new(&config());
    cluster.run_until_idle();
    assert!(cluster.stores.iter().all(|store| store.handle().leaders() == 0));
    cluster.pass_ticks(&config(), 100);
    let leaders: u64 = cluster.stores.iter().map(|store| store.handle().leaders()).sum();
    assert_eq!(leaders, 2, "one a region");
}

#[test]
fn a_shutdown_answers_what_waits_and_a_drop_says_unknown() {
    let mut cluster = Cluster::new(&config());
    cluster.stores[0].handle().campaign(REGION);
    cluster.run_until_idle();
    let stopped = cluster.propose(0, "never looked at");
    cluster.stores.remove(0).shutdown();
    let stopped = stopped.lock().clone();
    assert!(matches!(stopped[..], [Err(ProposeError::Stopped { .. })]), "{stopped:?}");

    let mut cluster = Cluster::new(&config());
    cluster.stores[0].handle().campaign(REGION);
    cluster.run_until_idle();
    let dropped = cluster.propose(0, "in the mailbox");
    drop(cluster);
    let dropped = dropped.lock().clone();
    assert!(matches!(dropped[..], [Err(ProposeError::Unknown { .. })]), "{dropped:?}");
}
