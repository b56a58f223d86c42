//! What is slow on one store delays that store alone.

mod common;

use common::{config, eventually, key_in, lead, regions, Cluster, TestMap};
use parking_lot::{Condvar, Mutex};
use raftstore::{
    Index, MapCommand, MemoryLogStore, OrderedMap, RegionCommands, RegionId, StateMachine,
    StateMachineError,
};
use std::sync::Arc;

const REGIONS: u64 = 12;
const SLOW: RegionId = RegionId::new(5);
/// The store whose state machine blocks, from 0 on.
const SLOW_STORE: usize = 2;

/// Where applying to [`SLOW`] stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Gate {
    Open,
    Closed,
    /// Closed, and somebody waits there.
    Blocks,
}

/// A map that applies nothing to one region while its gate is closed.
struct GatedMap {
    inner: OrderedMap,
    gate: Mutex<Gate>,
    opened: Condvar,
}

impl GatedMap {
    fn new() -> Self {
        Self { inner: OrderedMap::new(), gate: Mutex::new(Gate::Open), opened: Condvar::new() }
    }

    fn set(&self, gate: Gate) {
        *self.gate.lock() = gate;
        self.opened.notify_all();
    }

    fn blocks(&self) -> bool {
        *self.gate.lock() == Gate::Blocks
    }
}

impl StateMachine for GatedMap {
    passes_on!(inner: applied_state, durable_index, split, snapshot, install, destroy, flush);

    fn apply(&self, batch: &mut [RegionCommands]) -> Result<(), StateMachineError> {
        if batch.iter().any(|region| region.region_id == SLOW) {
            let mut gate = self.gate.lock();
            while *gate != Gate::Open {
                *gate = Gate::Blocks;
                self.opened.wait(&mut gate);
            }
        }
        self.inner.apply(batch)
    }
}

impl TestMap for GatedMap {
    fn value(&self, region: RegionId, key: &[u8]) -> Option<bytes::Bytes> {
        self.inner.value(region, key)
    }

    fn state(&self, region: RegionId) -> (Index, u64) {
        self.inner.state(region)
    }
}

#[test]
fn a_state_machine_that_blocks_delays_its_own_store_alone() {
    let new_map = |_| GatedMap::new();
    let cluster = Cluster::build(&config(), new_map, |builder, _| {
        builder.log_store(Arc::new(MemoryLogStore::new()))
    });
    cluster.bootstrap(&regions(REGIONS));
    // The other two lead half of the regions each.
    (1..=REGIONS).for_each(|id| lead(&cluster.handle((id % 2) as usize), id));
    // Should a machine under load have another lead, that one is among the two as well.
    let write = |id: u64, round: u64| {
        let region = RegionId::new(id);
        let command = MapCommand::put(key_in(region, round), "v").encode();
        let mut store = (id % 2) as usize;
        eventually("two stores are a quorum", || {
            let answer = cluster.handle(store).propose(region, command.clone());
            store = 1 - store;
            answer.inspect_err(|error| assert!(error.is_retryable(), "{error}")).is_ok()
        });
    };
    let slow = &cluster.maps[SLOW_STORE];
    slow.set(Gate::Closed);
    write(SLOW.get(), 0);
    eventually("the state machine blocks", || slow.blocks());
    for round in 1..=100 {
        (1..=REGIONS).for_each(|id| write(id, round));
    }
    assert!(slow.blocks(), "the writes above were made meanwhile");
    assert_eq!(slow.value(SLOW, key_in(SLOW, 0).as_bytes()), None);
    slow.set(Gate::Open);
    eventually("the slow store has caught up", || {
        (1..=REGIONS).map(RegionId::new).all(|region| {
            let states: Vec<_> = cluster.maps.iter().map(|map| map.state(region)).collect();
            states.windows(2).all(|pair| pair[0] == pair[1])
        })
    });
    assert!(slow.value(SLOW, key_in(SLOW, 100).as_bytes()).is_some());
}
