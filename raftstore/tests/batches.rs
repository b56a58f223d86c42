//! How commands of several regions reach the state machine.

mod common;

use common::{config, eventually, key_in, region};
use parking_lot::Mutex;
use raftstore::{
    InProcessTransport, MapCommand, MemoryLogStore, OrderedMap, RegionCommands, RegionDescription,
    RegionId, StateMachine, StateMachineError, Store, StoreConfig, StoreId,
};
use std::sync::mpsc;
use std::sync::Arc;

const REGIONS: u64 = 8;

/// Notes how many regions with commands it was given at once.
struct Counting {
    map: OrderedMap,
    gains_from_batches: bool,
    seen: Mutex<Vec<usize>>,
}

impl StateMachine for Counting {
    fn apply(&self, batch: &mut [RegionCommands]) -> Result<(), StateMachineError> {
        let with_commands = batch.iter().filter(|region| !region.commands.is_empty()).count();
        self.seen.lock().push(with_commands);
        self.map.apply(batch)
    }

    fn gains_from_batches(&self) -> bool {
        self.gains_from_batches
    }

    passes_on!(map: applied_state, durable_index, split, snapshot, install, destroy, flush);
}

/// Writes to all regions while the only poller is held up, so that they come into one round; returns how many
/// regions the state machine was given at once.
fn batches_of_a_round(gains_from_batches: bool) -> Vec<usize> {
    let machine =
        Arc::new(Counting { map: OrderedMap::new(), gains_from_batches, seen: Mutex::default() });
    let store = Store::builder(StoreId::new(1))
        .config(StoreConfig { pollers: 1, ..config() })
        .log_store(Arc::new(MemoryLogStore::new()))
        .state_machine(machine.clone())
        .transport(InProcessTransport::new())
        .start()
        .expect("starts");
    let handle = store.handle();
    let alone = (1..=REGIONS).map(|id| region(id, REGIONS)).map(|region| {
        RegionDescription::new(region.id, region.start_key, region.end_key, [region.peers[0]])
    });
    handle.bootstrap(&alone.collect::<Vec<_>>()).expect("sound");
    let ids: Vec<_> = (1..=REGIONS).map(RegionId::new).collect();
    ids.iter().for_each(|id| assert!(handle.campaign(*id)));
    eventually("they lead", || handle.leaders() == REGIONS);
    let put = |id: RegionId| MapCommand::put(key_in(id, "k"), "v").encode();

    let (held, is_held) = mpsc::channel();
    let (release, released) = mpsc::channel::<()>();
    handle.propose_with(ids[0], put(ids[0]), move |answer| {
        held.send(answer).expect("somebody waits");
        let _ = released.recv();
    });
    is_held.recv().expect("it is answered").expect("it is written");
    machine.seen.lock().clear();
    let (answered, answers) = mpsc::channel();
    for id in &ids {
        let answered = answered.clone();
        handle.propose_with(*id, put(*id), move |answer| drop(answered.send(answer)));
    }
    drop(release);
    ids.iter().for_each(|_| drop(answers.recv().expect("answered").expect("written")));
    let seen = machine.seen.lock().iter().copied().filter(|count| *count > 0).collect();
    seen
}

#[test]
fn a_state_machine_that_gains_from_it_gets_a_rounds_regions_in_one_batch() {
    assert_eq!(batches_of_a_round(true), [REGIONS as usize]);
}

#[test]
fn one_that_does_not_gets_each_region_by_itself() {
    assert_eq!(batches_of_a_round(false), [1; REGIONS as usize]);
}
