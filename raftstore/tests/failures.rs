//! What a store does when something below it fails. Faults come in through the seams.

mod common;

use bytes::Bytes;
use common::{config, eventually, key_in, Cluster};
use parking_lot::{Condvar, Mutex};
use raft::eraftpb::{Entry, HardState};
use raftstore::{
    Envelope, InProcessTransport, Index, LogBatch, LogReadError, LogReader, LogStore,
    LogStoreError, MapCommand, MemoryLogStore, OrderedMap, ProposeError, ReadError, ReadRequest,
    RegionCommands, RegionId, RegionWrite, SnapshotMessage, StateMachine, StateMachineError, Store,
    StoreFailure, StoreHandle, StoreId, StorePing, Stored, Term, Transport,
};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;

fn put(key: &str) -> Bytes {
    MapCommand::put(key.to_owned(), "v").encode()
}

/// A log store whose writes can be made to fail, or to wait.
struct FaultyLog {
    inner: MemoryLogStore,
    fails: AtomicBool,
    /// Reading this region's entries fails; 0 is none.
    unreadable: AtomicU64,
    /// Reading this region's entries panics; 0 is none.
    panics: AtomicU64,
    write_panics: AtomicBool,
    held: Mutex<bool>,
    released: Condvar,
}

impl FaultyLog {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            inner: MemoryLogStore::new(),
            fails: AtomicBool::new(false),
            unreadable: AtomicU64::new(0),
            panics: AtomicU64::new(0),
            write_panics: AtomicBool::new(false),
            held: Mutex::new(false),
            released: Condvar::new(),
        })
    }

    fn hold(&self, hold: bool) {
        *self.held.lock() = hold;
        self.released.notify_all();
    }
}

impl LogReader for FaultyLog {
    fn entries(
        &self,
        region: RegionId,
        low: Index,
        high: Index,
        max_bytes: usize,
    ) -> Result<Vec<Entry>, LogReadError> {
        assert!(self.panics.load(Ordering::Acquire) != region.get(), "injected");
        if self.unreadable.load(Ordering::Acquire) == region.get() {
            let cause = "injected".to_owned();
            return Err(LogReadError { region_id: region, low, high, cause });
        }
        self.inner.entries(region, low, high, max_bytes)
    }

    fn term(&self, region: RegionId, index: Index) -> Result<Option<Term>, LogReadError> {
        self.inner.term(region, index)
    }
}

impl LogStore for FaultyLog {
    fn load(&self) -> Result<Stored, LogStoreError> {
        self.inner.load()
    }

    fn write(&self, batch: &mut LogBatch, sync: bool) -> Result<u64, LogStoreError> {
        let mut held = self.held.lock();
        while *held {
            self.released.wait(&mut held);
        }
        drop(held);
        if self.fails.load(Ordering::Acquire) {
            return Err(LogStoreError::Write("injected".to_owned()));
        }
        if self.write_panics.load(Ordering::Acquire) {
            // Like an adapter that has taken the batch apart when the engine below it panics.
            batch.writes.clear();
            panic!("injected");
        }
        self.inner.write(batch, sync)
    }

    fn is_volatile(&self) -> bool {
        // So that the store treats it as a disk.
        false
    }
}

/// Reads of the first region that wait for what will never come, and what they have heard.
#[derive(Default)]
struct WaitingReads {
    asked: usize,
    answers: Arc<Mutex<Vec<ReadError>>>,
}

impl WaitingReads {
    fn ask(&mut self, handle: &StoreHandle) {
        let request = ReadRequest::stale(Index::new(1 << 40));
        let sink = self.answers.clone();
        handle.read_with(
            RegionId::new(1),
            request,
            |_| (),
            move |answer| sink.lock().push(answer.expect_err("the index will never come")),
        );
        self.asked += 1;
    }

    fn each_is_refused_once(&self, expected: fn(&ReadError) -> bool) {
        eventually("every read is answered", || self.answers.lock().len() >= self.asked);
        let answers = self.answers.lock();
        assert_eq!(answers.len(), self.asked);
        let timed_out = |error: &&ReadError| matches!(error, ReadError::TimedOut { .. });
        assert!(answers.iter().filter(|error| !timed_out(error)).all(expected), "{answers:?}");
        assert!(answers.iter().any(expected), "{answers:?}");
    }
}

fn faulty_cluster(log_writers: usize) -> (Cluster, Vec<Arc<FaultyLog>>) {
    let logs: Vec<_> = (0..3).map(|_| FaultyLog::new()).collect();
    let seams: Vec<Arc<dyn LogStore>> =
        logs.iter().map(|log| log.clone() as Arc<dyn LogStore>).collect();
    let mut config = config();
    config.log_writers = Some(log_writers);
    (Cluster::with_logs(&config, &seams), logs)
}

#[test]
fn a_failed_write_stops_the_store_and_acknowledges_nothing_more() {
    for log_writers in [0, 1] {
        let (cluster, logs) = faulty_cluster(log_writers);
        cluster.lead_from_the_first(2);
        let region = RegionId::new(1);
        cluster.write(region, &put("before")).expect("healthy");
        logs[1].fails.store(true, Ordering::Release);
        logs[2].fails.store(true, Ordering::Release);
        // With both followers failing nothing can be committed: no answer may say it was.
        let answer = cluster.handle(0).propose(region, put("after"));
        assert!(matches!(answer, Err(ProposeError::Unknown { .. })), "{answer:?}");
        eventually("the followers have stopped", || {
            (1..3).all(|store| cluster.handle(store).failure().is_some())
        });
        let failure = cluster.handle(1).failure().expect("it has failed");
        assert!(matches!(*failure, StoreFailure::LogStore(LogStoreError::Write(_))), "{failure}");
        assert!(cluster.stores[1].metrics_text().contains("raftstore_healthy{store=\"2\"} 0"));
        let refused = cluster.handle(1).propose(region, put("refused"));
        assert!(matches!(refused, Err(ProposeError::Stopped { .. })), "{refused:?}");
        cluster.shutdown();
    }
}

#[test]
fn nothing_is_acknowledged_before_a_quorum_has_written() {
    for log_writers in [0, 1] {
        let (cluster, logs) = faulty_cluster(log_writers);
        cluster.lead_from_the_first(1);
        let region = RegionId::new(1);
        cluster.write(region, &put("before")).expect("healthy");
        // The leader's disk and one follower's hang: one copy is no quorum.
        logs[0].hold(true);
        logs[1].hold(true);
        let (sender, answers) = std::sync::mpsc::channel();
        cluster.handle(0).propose_with(region, put("held"), move |answer| {
            sender.send(answer).expect("the test waits");
        });
        eventually("the third store has it", || {
            // Its log is not held, so it answers; the entry is there and not committed.
            let status = cluster.handle(2).region_status(region).expect("it is here");
            status.persisted > status.committed
        });
        assert!(answers.try_recv().is_err(), "one copy was taken for a quorum");
        logs[0].hold(false);
        logs[1].hold(false);
        let answer = answers.recv().expect("answered");
        // The leader may have stepped down while its disk hung; then the outcome is open, never false.
        match answer {
            Ok(_) | Err(ProposeError::Unknown { .. } | ProposeError::Stale { .. }) => {}
            other => panic!("{other:?}"),
        }
        cluster.shutdown();
    }
}

/// Panics or fails on a marked command.
struct Fragile {
    map: OrderedMap,
    panics: bool,
}

impl StateMachine for Fragile {
    fn apply(&self, batch: &mut [RegionCommands]) -> Result<(), StateMachineError> {
        let mut commands = batch.iter().flat_map(|region| &region.commands);
        if commands.any(|command| command.payload == put("poison")) {
            assert!(!self.panics, "poisoned");
            return Err(StateMachineError("poisoned".to_owned()));
        }
        self.map.apply(batch)
    }

    passes_on!(map: applied_state, durable_index, split, snapshot, install, destroy, flush);
}

#[test]
fn a_state_machine_that_fails_or_panics_stops_its_store_with_the_outcome_unknown() {
    for (panics, apply_pollers) in [(false, 0), (true, 0), (false, 1), (true, 1)] {
        let network = InProcessTransport::new();
        let mut config = config();
        config.apply_pollers = apply_pollers;
        let description = raftstore::RegionDescription {
            peers: vec![common::region(1, 1).peers[0]],
            ..common::region(1, 1)
        };
        let store = Store::builder(StoreId::new(1))
            .config(config)
            .log_store(Arc::new(MemoryLogStore::new()))
            .state_machine(Arc::new(Fragile { map: OrderedMap::new(), panics }))
            .transport(network)
            .start()
            .expect("starts");
        let handle = store.handle();
        handle.bootstrap(&[description]).expect("sound");
        let region = RegionId::new(1);
        handle.campaign(region);
        eventually("it leads", || handle.leaders() == 1);
        handle.propose(region, put("good")).expect("healthy");
        let answer = handle.propose(region, put("poison"));
        let Err(error) = answer else { panic!("{answer:?}") };
        assert!(error.may_have_happened() && error.to_string().contains("store failed"), "{error}");
        eventually("it has stopped", || handle.failure().is_some());
        let late = handle.propose(region, put("late"));
        assert!(matches!(late, Err(ProposeError::Stopped { .. })), "{late:?}");
    }
}

#[test]
fn a_cut_off_store_catches_up_from_the_log() {
    let cluster = Cluster::in_memory(&config());
    cluster.lead_from_the_first(4);
    assert!(cluster.network.disconnect(StoreId::new(3)));
    for number in 0..400u64 {
        let region = RegionId::new(1 + number % 4);
        let payload = put(&key_in(region, number));
        cluster.write(region, &payload).expect("two of three are a quorum");
    }
    cluster.network.connect(cluster.handle(2));
    cluster.converge(4);
    assert_eq!(cluster.maps[2].len(RegionId::new(1)), 100);
    cluster.shutdown();
}

#[test]
fn a_leader_without_quorum_says_unknown_and_a_new_one_serves() {
    let cluster = Cluster::in_memory(&config());
    cluster.lead_from_the_first(1);
    let region = RegionId::new(1);
    cluster.write(region, &put("before")).expect("healthy");
    // Messages to store 1 are lost, and with them the quorum's answers: its own still arrive.
    cluster.network.disconnect(StoreId::new(1));
    let answer = cluster.handle(0).propose(region, put("limbo"));
    assert!(matches!(answer, Err(ProposeError::Unknown { .. })), "{answer:?}");
    cluster.write(region, &put("after")).expect("the others have elected a leader");
    cluster.network.connect(cluster.handle(0));
    cluster.converge(1);
    cluster.shutdown();
}

#[test]
fn an_unreadable_log_sets_its_region_aside_and_the_others_go_on() {
    let logs: Vec<_> = (0..3).map(|_| FaultyLog::new()).collect();
    let seams: Vec<Arc<dyn LogStore>> =
        logs.iter().map(|log| log.clone() as Arc<dyn LogStore>).collect();
    let mut config = config();
    // Nothing is cached, so that a lagging follower is served from the log.
    config.raft.entry_cache_size = bytesize::ByteSize::b(0);
    let cluster = Cluster::with_logs(&config, &seams);
    cluster.lead_from_the_first(2);
    cluster.network.disconnect(StoreId::new(3));
    for number in 0..50 {
        cluster.write(RegionId::new(1), &put(&number.to_string())).expect("two are a quorum");
    }
    let mut reads = WaitingReads::default();
    reads.ask(&cluster.handle(0));
    logs[0].unreadable.store(1, Ordering::Release);
    cluster.network.connect(cluster.handle(2));
    eventually("the region is set aside", || {
        reads.ask(&cluster.handle(0));
        cluster.handle(0).set_aside().contains_key(&RegionId::new(1))
    });
    reads.each_is_refused_once(|error| {
        matches!(error, ReadError::Quarantined { .. } | ReadError::Stopped { .. })
    });
    let reason = cluster.handle(0).set_aside()[&RegionId::new(1)].clone();
    assert!(reason.contains("region 1") && reason.contains("injected"), "{reason}");
    assert!(cluster.handle(0).failure().is_none(), "the store itself is healthy");
    eventually("its FSM is gone", || cluster.handle(0).region_count() == 1);
    eventually("proposers are told", || {
        let refused = cluster.handle(0).propose(RegionId::new(1), put("refused"));
        matches!(refused, Err(ProposeError::Quarantined { .. }))
    });
    cluster.write(RegionId::new(2), &put("other")).expect("the other region serves");
    cluster.write(RegionId::new(1), &put("again")).expect("the other two stores serve it");
    cluster.shutdown();
}

#[test]
fn a_panic_in_a_regions_handler_quarantines_that_region_alone() {
    let logs: Vec<_> = (0..3).map(|_| FaultyLog::new()).collect();
    let seams: Vec<Arc<dyn LogStore>> =
        logs.iter().map(|log| log.clone() as Arc<dyn LogStore>).collect();
    let mut config = config();
    // Nothing is cached, so that a lagging follower is served from the log. One poller, so that all
    // regions share what a panic may leave behind in it.
    config.raft.entry_cache_size = bytesize::ByteSize::b(0);
    config.pollers = 1;
    let cluster = Cluster::with_logs(&config, &seams);
    cluster.lead_from_the_first(8);
    let first = cluster.handle(0);
    cluster.network.disconnect(StoreId::new(3));
    for number in 0..50 {
        cluster.write(RegionId::new(1), &put(&number.to_string())).expect("two are a quorum");
    }
    // Proposals keep coming while reading the log for the third store panics.
    let asked = Arc::new(AtomicU64::new(0));
    let answered = Arc::new(AtomicU64::new(0));
    let elsewhere = Arc::new(AtomicU64::new(0));
    let mut reads = WaitingReads::default();
    reads.ask(&first);
    logs[0].panics.store(1, Ordering::Release);
    cluster.network.connect(cluster.handle(2));
    eventually("the region is set aside", || {
        reads.ask(&first);
        // So many that some are always before the message whose handling panics.
        for _ in 0..1500 {
            asked.fetch_add(1, Ordering::Relaxed);
            let (answered, elsewhere) = (answered.clone(), elsewhere.clone());
            first.propose_with(RegionId::new(1), put("mine"), move |answer| {
                let elsewhere_now = answer.is_ok_and(|ok| ok.region_id != RegionId::new(1));
                elsewhere.fetch_add(u64::from(elsewhere_now), Ordering::Relaxed);
                answered.fetch_add(1, Ordering::Relaxed);
            });
        }
        first.set_aside().contains_key(&RegionId::new(1))
    });
    assert!(first.failure().is_none(), "the store itself is healthy");
    for id in 2..=8 {
        let answer = first.propose(RegionId::new(id), put("other"));
        assert!(answer.is_ok(), "region {id} does not serve here: {answer:?}");
        assert_eq!(cluster.maps[0].get(RegionId::new(id), b"mine"), None, "a stray command");
    }
    assert_eq!(first.set_aside().len(), 1, "{:?}", first.set_aside());
    cluster.write(RegionId::new(1), &put("again")).expect("the other two stores serve it");
    eventually("every proposal is answered once", || {
        answered.load(Ordering::Relaxed) == asked.load(Ordering::Relaxed)
    });
    assert_eq!(elsewhere.load(Ordering::Relaxed), 0, "answered by another region");
    reads.each_is_refused_once(|error| {
        let busy = matches!(error, ReadError::Busy { .. });
        busy || matches!(error, ReadError::Quarantined { .. } | ReadError::Stopped { .. })
    });
    let text = cluster.stores[0].metrics_text();
    assert!(text.contains("raftstore_region_panics_total{store=\"1\"} 1"), "{text}");
    cluster.shutdown();
}

#[test]
fn a_log_store_that_panics_stops_its_store_and_promises_nothing() {
    for log_writers in [0, 1] {
        let (cluster, logs) = faulty_cluster(log_writers);
        cluster.lead_from_the_first(2);
        let region = RegionId::new(1);
        cluster.write(region, &put("before")).expect("healthy");
        cluster.network.disconnect(StoreId::new(3));
        logs[1].write_panics.store(true, Ordering::Release);
        // Only the second store could make it a quorum, and its write panics.
        let answer = cluster.handle(0).propose(region, put("lonely"));
        assert!(matches!(answer, Err(ProposeError::Unknown { .. })), "{answer:?}");
        eventually("it has stopped", || cluster.handle(1).failure().is_some());
        cluster.shutdown();
    }
}

/// Loses its head now and then.
struct PanickyTransport {
    inner: InProcessTransport,
    panics: Arc<AtomicBool>,
}

impl Transport for PanickyTransport {
    fn send(&self, to: StoreId, messages: &mut Vec<Box<Envelope>>) -> usize {
        assert!(!self.panics.load(Ordering::Acquire), "injected");
        self.inner.send(to, messages)
    }

    fn send_snapshot(&self, message: SnapshotMessage) -> bool {
        assert!(!self.panics.load(Ordering::Acquire), "injected");
        self.inner.send_snapshot(message)
    }

    fn send_ping(&self, ping: StorePing) -> bool {
        assert!(!self.panics.load(Ordering::Acquire), "injected");
        self.inner.send_ping(ping)
    }
}

#[test]
fn a_transport_that_panics_costs_messages_and_no_region() {
    let network = InProcessTransport::new();
    let panics = Arc::new(AtomicBool::new(false));
    let stores: Vec<Store> = (1..=3)
        .map(|id| {
            let transport = PanickyTransport { inner: network.clone(), panics: panics.clone() };
            let store = Store::builder(StoreId::new(id))
                .config(config())
                .log_store(Arc::new(MemoryLogStore::new()))
                .state_machine(Arc::new(OrderedMap::new()))
                .transport(transport)
                .start()
                .expect("starts");
            network.connect(store.handle());
            store.handle().bootstrap(&common::regions(4)).expect("sound");
            store
        })
        .collect();
    let handle = stores[0].handle();
    let lead = || {
        eventually("it leads", || {
            for id in 1..=4 {
                handle.campaign(RegionId::new(id));
            }
            handle.leaders() == 4
        });
    };
    lead();
    panics.store(true, Ordering::Release);
    handle.propose_with(RegionId::new(1), put("lost"), drop);
    eventually("messages are dropped", || {
        stores[0].metrics_text().contains("reason=\"transport_panicked\"")
    });
    panics.store(false, Ordering::Release);
    eventually("it serves again", || handle.propose(RegionId::new(2), put("k")).is_ok());
    assert!(stores.iter().all(|store| store.handle().set_aside().is_empty()));
}

#[test]
fn callbacks_that_panic_or_propose_at_once_harm_nobody() {
    let config = raftstore::StoreConfig { mailbox_capacity: 16, ..config() };
    let cluster = Cluster::in_memory(&config);
    cluster.lead_from_the_first(1);
    let handle = cluster.handle(0);
    for _ in 0..100 {
        handle.propose_with(RegionId::new(1), put("k"), |_| panic!("the user's"));
    }
    // Refused for fullness, each proposes again from its callback until it is let in.
    fn insist(handle: raftstore::StoreHandle, done: Arc<AtomicU64>) {
        let again = handle.clone();
        handle.propose_with(RegionId::new(1), put("k"), move |answer| match answer {
            Ok(_) => drop(done.fetch_add(1, Ordering::Relaxed)),
            Err(ProposeError::Busy { .. }) => insist(again, done),
            Err(other) => panic!("{other:?}"),
        });
    }
    let done = Arc::new(AtomicU64::new(0));
    for _ in 0..2000 {
        insist(handle.clone(), done.clone());
    }
    eventually("all were let in", || done.load(Ordering::Relaxed) == 2000);
    // Nested refusals on this thread do not nest on its stack.
    fn nest(handle: raftstore::StoreHandle, left: u64, done: Arc<AtomicU64>) {
        let again = handle.clone();
        handle.propose_with(RegionId::new(99), put("k"), move |answer| {
            assert!(matches!(answer, Err(ProposeError::RegionNotFound { .. })), "{answer:?}");
            match left {
                0 => drop(done.fetch_add(1, Ordering::Relaxed)),
                _ => nest(again, left - 1, done),
            }
        });
    }
    nest(handle.clone(), 100_000, done.clone());
    assert_eq!(done.load(Ordering::Relaxed), 2001);
    cluster.shutdown();
}

#[test]
fn a_damaged_region_is_set_aside_at_start_and_the_others_serve() {
    let log = Arc::new(MemoryLogStore::new());
    let start = || {
        let store = Store::builder(StoreId::new(1))
            .config(config())
            .log_store(log.clone())
            .state_machine(Arc::new(OrderedMap::new()))
            .transport(InProcessTransport::new())
            .start();
        store.expect("starts")
    };
    let alone = |id| {
        let description = common::region(id, 2);
        raftstore::RegionDescription { peers: vec![description.peers[0]], ..description }
    };
    let mut store = start();
    store.handle().bootstrap(&[alone(1), alone(2)]).expect("sound");
    store.shutdown();
    // A commit beyond the end of the log: entries must have been lost.
    let hard_state = HardState { term: 9, commit: 1000, ..HardState::default() };
    let write = RegionWrite {
        region_id: RegionId::new(1),
        hard_state: Some(hard_state),
        ..RegionWrite::default()
    };
    log.write(&mut LogBatch { writes: vec![write], ident: None }, true).expect("written");
    let store = start();
    let handle = store.handle();
    let reason = handle.set_aside()[&RegionId::new(1)].clone();
    assert!(reason.contains("1000"), "{reason}");
    let refused = handle.propose(RegionId::new(1), put("refused"));
    assert!(matches!(refused, Err(ProposeError::Quarantined { .. })), "{refused:?}");
    handle.campaign(RegionId::new(2));
    eventually("the other leads", || handle.leaders() == 1);
    handle.propose(RegionId::new(2), put("served")).expect("it serves");
    // Its range is nobody else's meanwhile.
    let key = alone(1).start_key;
    assert_eq!(handle.region_of_key(&key), Some(RegionId::new(1)));
    let again = handle.bootstrap(&[alone(1)]).expect_err("it is there, damaged").to_string();
    assert!(again.contains("set aside"), "{again}");
}
