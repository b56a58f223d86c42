//! Callers and parts of the user that do what they should not: each is refused, or named, and costs nobody
//! else anything.

mod common;

use bytes::Bytes;
use common::{config, eventually, region, Cluster};
use parking_lot::Mutex;
use raft::eraftpb::Message;
use raftstore::{
    AppliedState, Envelope, MapCommand, MemoryLogStore, OrderedMap, Peer, PeerId, ProposeError,
    ReadRequest, RegionCommands, RegionDescription, RegionEpoch, RegionId, RegionState,
    StateMachine, StateMachineError, Store, StoreConfig, StoreFailure, StoreHandle, StoreId,
};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

/// Regions of one peer.
fn alone(count: u64) -> Vec<RegionDescription> {
    let first_peer = |region: RegionDescription| {
        RegionDescription::new(region.id, region.start_key, region.end_key, [region.peers[0]])
    };
    (1..=count).map(|id| first_peer(region(id, count))).collect()
}

fn put(region: RegionId) -> Bytes {
    MapCommand::put(common::key_in(region, "k"), "v").encode()
}

fn start<M: StateMachine>(config: StoreConfig, machine: Arc<M>, count: u64) -> Store {
    let store = Store::builder(StoreId::new(1))
        .config(config)
        .log_store(Arc::new(MemoryLogStore::new()))
        .state_machine(machine)
        .transport(raftstore::InProcessTransport::new())
        .start()
        .expect("starts");
    store.handle().bootstrap(&alone(count)).expect("sound");
    for id in 1..=count {
        store.handle().campaign(RegionId::new(id));
    }
    eventually("they lead", || store.handle().leaders() == count);
    store
}

#[test]
fn versions_that_cannot_grow_and_keys_that_are_too_long_are_refused_at_the_beginning() {
    let cluster = Cluster::in_memory(&config());
    let handle = cluster.handle(0);
    let refused = |spoil: fn(&mut RegionDescription)| {
        let mut description = region(1, 1);
        spoil(&mut description);
        handle.bootstrap(&[description]).expect_err("unsound").to_string()
    };
    let error = refused(|region| region.epoch.version = u64::MAX);
    assert!(error.contains("versions end at 2^48"), "{error}");
    let error = refused(|region| region.epoch.conf_ver = u64::MAX);
    assert!(error.contains("versions end at 2^48"), "{error}");
    let error = refused(|region| region.end_key = vec![b'k'; 65_536].into());
    assert!(error.contains("end_key is 65536 bytes"), "{error}");
    assert_eq!(handle.region_count(), 0);
}

#[test]
fn news_of_a_region_from_a_stranger_is_not_believed() {
    let cluster = Cluster::in_memory(&config());
    cluster.lead_from_the_first(1);
    let region_id = RegionId::new(1);
    cluster.handle(0).propose(region_id, put(region_id)).expect("it leads");
    // It says that the region has other peers by now.
    let epoch = RegionEpoch { conf_ver: 2, version: 1 };
    let others = [Peer::voter(PeerId::new(98), StoreId::new(8))];
    let told = RegionDescription { epoch, ..RegionDescription::new(region_id, "", "", others) };
    for to in region(1, 1).peers {
        let envelope = Envelope {
            cluster_id: 1,
            region_id,
            from: Peer::voter(PeerId::new(99), StoreId::new(9)),
            to,
            epoch,
            message: Message::default(),
            description: Some(Arc::new(told.clone())),
        };
        let store = (to.store.get() - 1) as usize;
        cluster.handle(store).deliver(&mut vec![Box::new(envelope)]);
    }
    // Each of them takes its messages in order.
    for store in 0..3 {
        cluster.handle(store).region_status(region_id).expect("it is still there");
        let info = cluster.handle(store).region(region_id).expect("it is here");
        assert_eq!(info.state, RegionState::Live);
    }
    cluster.handle(0).propose(region_id, put(region_id)).expect("it still leads");
}

/// Reads again as soon as it was answered, so many times.
fn again(handle: StoreHandle, left: u64, read: Arc<AtomicU64>) {
    if left == 0 {
        return;
    }
    let next = handle.clone();
    handle.read_with(
        RegionId::new(1),
        ReadRequest::default(),
        |_| (),
        move |_| {
            read.fetch_add(1, Ordering::Relaxed);
            again(next, left - 1, read);
        },
    );
}

#[test]
fn reads_that_follow_each_other_in_their_callbacks_use_up_no_stack() {
    const READS: u64 = 200_000;
    let mut store = start(config(), Arc::new(OrderedMap::new()), 1);
    let read = Arc::new(AtomicU64::new(0));
    again(store.handle(), READS, read.clone());
    eventually("all are answered", || read.load(Ordering::Relaxed) == READS);
    let handle = store.handle();
    store.shutdown();
    again(handle, READS, read.clone());
    assert_eq!(read.load(Ordering::Relaxed), 2 * READS, "refused at once, each of them");
}

/// What goes wrong with it.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Fault {
    /// Parts of a batch change places.
    Swaps,
    /// It panics when it is asked what has been applied.
    AppliedStatePanics,
}

struct Faulty {
    map: OrderedMap,
    fault: Mutex<Option<Fault>>,
}

impl Faulty {
    fn new() -> Arc<Self> {
        Arc::new(Self { map: OrderedMap::new(), fault: Mutex::new(None) })
    }
}

impl StateMachine for Faulty {
    fn apply(&self, batch: &mut [RegionCommands]) -> Result<(), StateMachineError> {
        self.map.apply(batch)?;
        if *self.fault.lock() == Some(Fault::Swaps) {
            batch.reverse();
        }
        Ok(())
    }

    fn applied_state(&self, region: RegionId) -> Result<Option<AppliedState>, StateMachineError> {
        assert_ne!(*self.fault.lock(), Some(Fault::AppliedStatePanics), "on purpose");
        self.map.applied_state(region)
    }

    passes_on!(map: durable_index, split, snapshot, install, destroy, flush);
}

#[test]
fn a_state_machine_that_moves_commands_stops_the_store_before_anybody_has_a_wrong_answer() {
    const REGIONS: u64 = 20;
    let machine = Faulty::new();
    let store = start(StoreConfig { pollers: 1, ..config() }, machine.clone(), REGIONS);
    let handle = store.handle();
    *machine.fault.lock() = Some(Fault::Swaps);
    // Until a round has several of them.
    eventually("it is found out", || {
        let (sender, answers) = std::sync::mpsc::channel();
        for id in 1..=REGIONS {
            let (region, sender) = (RegionId::new(id), sender.clone());
            handle.propose_with(region, put(region), move |answer| {
                let _ = sender.send((region, answer));
            });
        }
        drop(sender);
        for (region, answer) in answers {
            match answer {
                Ok(response) => assert_eq!(response.region_id, region),
                Err(ProposeError::Unknown { .. } | ProposeError::Stopped { .. }) => {}
                Err(error) => panic!("{error}"),
            }
        }
        handle.failure().is_some()
    });
    let failure = handle.failure().expect("found out").to_string();
    assert!(failure.contains("it moved commands of region"), "{failure}");
}

#[test]
fn a_panic_amid_a_split_on_an_apply_thread_is_named_and_everybody_is_answered() {
    let machine = Faulty::new();
    let config = StoreConfig { apply_pollers: 1, ..config() };
    let mut store = start(config, machine.clone(), 2);
    let handle = store.handle();
    *machine.fault.lock() = Some(Fault::AppliedStatePanics);
    let split = raftstore::SplitRequest {
        keys: vec!["0000a".into()],
        regions: vec![raftstore::NewRegion { id: RegionId::new(9), peers: vec![PeerId::new(91)] }],
        parent_is_right: false,
    };
    // Whether it was split before the panic, the answer says; it must come.
    let _ = handle.admin(RegionId::new(1), raftstore::AdminRequest::split(split));
    // Its thread tells after it has let go of what it was at.
    eventually("it is named", || {
        handle.set_aside().contains_key(&RegionId::new(9))
            || handle.set_aside().contains_key(&RegionId::new(1))
            || matches!(handle.failure().as_deref(), Some(StoreFailure::Panicked(_)))
    });
    // Whether the store goes on without that region or stops, nobody waits in vain.
    let region = RegionId::new(2);
    match (handle.failure(), handle.propose(region, put(region))) {
        (None, Ok(_)) => {}
        (_, Err(ProposeError::Stopped { .. } | ProposeError::Unknown { .. })) => {}
        other => panic!("{other:?}"),
    }
    store.shutdown();
}
