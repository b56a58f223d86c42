//! What is left to a store follows the load, and what is given stays.

mod common;

use common::{config, counted, eventually, key_in, Cluster};
use raftstore::{
    MapCommand, MemoryLogStore, OrderedMap, RegionId, Registry, StoreConfig, StoreHandle,
};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;
use std::time::Duration;

const REGIONS: u64 = 800;

/// A write outstanding at each region: each answer brings forth the next one, until `stopping`.
#[derive(Clone)]
struct Load {
    handle: StoreHandle,
    stopping: Arc<AtomicBool>,
    outstanding: Arc<AtomicU64>,
}

impl Load {
    fn write(&self, region: RegionId) {
        let load = self.clone();
        let command = MapCommand::put(key_in(region, "key"), "value").encode();
        self.handle.propose_with(region, command, move |_| {
            match load.stopping.load(Ordering::Relaxed) {
                true => drop(load.outstanding.fetch_sub(1, Ordering::Relaxed)),
                false => load.write(region),
            }
        });
    }
}

/// With the short ticks of the other tests, elections among so many regions never end on a slow machine.
fn calm_config() -> StoreConfig {
    let mut calm = config();
    calm.raft.tick_interval = Duration::from_millis(200);
    calm
}

#[test]
fn rounds_grow_with_the_load_where_that_is_left_to_the_store() {
    let registries: Vec<_> = (0..3).map(|_| Registry::new()).collect();
    let new_map = |_| OrderedMap::new();
    let cluster = Cluster::build(&calm_config(), new_map, |builder, store| {
        let other = match store {
            1 => calm_config(),
            2 => StoreConfig { batch_size: 64, ..calm_config() },
            _ => StoreConfig { self_tuning: false, ..calm_config() },
        };
        let registry = registries[store as usize - 1].clone();
        builder.config(other).registry(registry).log_store(Arc::new(MemoryLogStore::new()))
    });
    let batch_size = |store: usize| counted(&registries[store], "raftstore_batch_size", "");
    let pollers = |store: usize| counted(&registries[store], "raftstore_pollers", "");
    cluster.lead_from_the_first(REGIONS);
    let load = Load {
        handle: cluster.handle(0),
        stopping: Arc::default(),
        outstanding: Arc::new(AtomicU64::new(REGIONS)),
    };
    (1..=REGIONS).for_each(|id| load.write(RegionId::new(id)));
    eventually("rounds grow to the most that they may", || batch_size(0) == 256.0);
    // They follow in all regions, and so have as many in their rounds.
    assert_eq!((batch_size(1), batch_size(2)), (64.0, 64.0));
    assert_eq!([0, 1, 2].map(pollers), [2.0; 3], "as many as were given");
    load.stopping.store(true, Ordering::Relaxed);
    eventually("all is answered", || load.outstanding.load(Ordering::Relaxed) == 0);
    cluster.shutdown();
}
