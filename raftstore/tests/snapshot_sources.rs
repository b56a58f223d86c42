//! Sources of snapshots that lie or panic: their own store sees it, names the region, and sends nothing of it.
//! The stores are driven by hand.

mod common;

use common::{config, counted, eventually, run_until_idle};
use raftstore::{
    AdminRequest, AppliedState, Bytes, DrivenStore, InProcessTransport, Index, MapCommand,
    MemoryLogStore, OrderedMap, Peer, PeerChange, PeerId, Pieces, RegionDescription, RegionId,
    Registry, SnapshotSource, StateMachine, StateMachineError, Store, StoreBuilder, StoreId, Term,
    MAX_PIECE_BYTES,
};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;

const ONE: RegionId = RegionId::new(1);
const TWO: RegionId = RegionId::new(2);

/// A map whose snapshots may be something else.
#[derive(Default)]
struct Lying {
    inner: OrderedMap,
    index: AtomicU64,
    term: AtomicU64,
    region: AtomicBool,
    large_piece: AtomicBool,
    panics: AtomicBool,
    last_words: bool,
}

struct LyingSource {
    inner: Box<dyn SnapshotSource>,
    applied: AppliedState,
    large_piece: bool,
    panics: bool,
}

impl SnapshotSource for LyingSource {
    fn applied(&self) -> &AppliedState {
        assert!(!self.panics, "injected");
        &self.applied
    }

    fn next_piece(&mut self) -> Result<Option<Bytes>, StateMachineError> {
        match std::mem::take(&mut self.large_piece) {
            true => Ok(Some(Bytes::from(vec![0; MAX_PIECE_BYTES + 1]))),
            false => self.inner.next_piece(),
        }
    }
}

impl StateMachine for Lying {
    fn snapshot(&self, region: RegionId) -> Result<Box<dyn SnapshotSource>, StateMachineError> {
        let inner = self.inner.snapshot(region)?;
        let mut applied = inner.applied().clone();
        match self.index.load(Ordering::SeqCst) {
            0 => {}
            index => applied.index = Index::new(index),
        }
        match self.term.load(Ordering::SeqCst) {
            0 => {}
            term => applied.term = Term::new(term),
        }
        if self.region.load(Ordering::SeqCst) {
            let mut other = (*applied.description).clone();
            other.id = TWO;
            applied.description = Arc::new(other);
        }
        if self.last_words {
            return Ok(Box::new(LastWords(Pieces::new(applied, []))));
        }
        let large_piece = self.large_piece.load(Ordering::SeqCst);
        let panics = self.panics.load(Ordering::SeqCst);
        Ok(Box::new(LyingSource { inner, applied, large_piece, panics }))
    }

    passes_on!(inner: apply, applied_state, durable_index, split, install, destroy, flush);
}

/// A store that cuts its logs soon.
fn builder(
    id: u64,
    map: Arc<Lying>,
    network: &InProcessTransport,
    registry: &Registry,
) -> StoreBuilder {
    let mut config = config();
    config.raft.compact_after_entries = 8;
    config.raft.spare_entries = 8;
    Store::builder(StoreId::new(id))
        .config(config)
        .state_machine(map)
        .log_store(Arc::new(MemoryLogStore::new()))
        .transport(network.clone())
        .registry(registry.clone())
}

/// The region, with one peer, on the first store.
fn alone() -> RegionDescription {
    let peer = Peer::voter(PeerId::new(11), StoreId::new(1));
    RegionDescription::new(ONE, "", "", [peer])
}

/// It gets a learner on the second.
fn with_learner() -> AdminRequest {
    let learner = Peer::learner(PeerId::new(12), StoreId::new(2));
    AdminRequest::change_peers([PeerChange::Add(learner)])
}

/// Two driven stores; the first leads a region whose log is cut, and the second is to get a learner.
struct Pair {
    stores: Vec<DrivenStore>,
    maps: Vec<Arc<Lying>>,
    registry: Registry,
}

impl Pair {
    fn new() -> Self {
        let (network, registry) = (InProcessTransport::new(), Registry::new());
        let mut pair = Self { stores: Vec::new(), maps: Vec::new(), registry };
        for id in 1..=2 {
            let map = Arc::new(Lying::default());
            let builder = builder(id, map.clone(), &network, &pair.registry);
            let store = builder.start_driven().expect("starts");
            network.connect(store.handle());
            pair.stores.push(store);
            pair.maps.push(map);
        }
        let handle = pair.stores[0].handle();
        handle.bootstrap(&[alone()]).expect("sound");
        handle.campaign(ONE);
        pair.pass_ticks(50);
        for number in 0..20 {
            handle.propose_with(
                ONE,
                MapCommand::put(format!("{number}"), "v").encode(),
                |answer| {
                    assert!(answer.is_ok(), "{answer:?}");
                },
            );
            pair.pass_ticks(1);
        }
        pair
    }

    fn pass_ticks(&mut self, ticks: usize) {
        for _ in 0..ticks {
            let tick = config().raft.tick_interval;
            self.stores.iter_mut().for_each(|store| store.advance_time(tick));
            run_until_idle(&mut self.stores);
        }
    }

    /// Adds the learner, lets the lie be told for a while, and then ends it.
    fn learner_comes_only_after(mut self, end: impl FnOnce(&Lying)) {
        self.stores[0].handle().admin_with(ONE, with_learner(), |answer| {
            assert!(answer.is_ok(), "{answer:?}");
        });
        self.pass_ticks(100);
        assert_eq!(self.maps[1].inner.len(ONE), 0);
        let sent = counted(&self.registry, "raftstore_snapshot_bytes_total", "sent");
        let refused = counted(&self.registry, "raftstore_snapshots_total", "refused");
        assert_eq!((sent, refused), (0.0, 0.0), "nothing of it leaves the store");
        end(&self.maps[0]);
        self.pass_ticks(100);
        assert_eq!(self.maps[1].inner.len(ONE), 20);
        let leader = self.maps[0].inner.fingerprint(ONE);
        assert_eq!(self.maps[1].inner.fingerprint(ONE), leader);
        for store in &self.stores {
            assert!(store.handle().failure().is_none());
            assert!(store.handle().set_aside().is_empty());
        }
    }
}

#[test]
fn a_snapshot_beyond_what_is_applied_is_not_sent() {
    let pair = Pair::new();
    pair.maps[0].index.store(1_000_000, Ordering::SeqCst);
    pair.learner_comes_only_after(|map| map.index.store(0, Ordering::SeqCst));
}

#[test]
fn a_snapshot_of_a_term_that_its_index_does_not_have_is_not_sent() {
    let pair = Pair::new();
    pair.maps[0].term.store(99, Ordering::SeqCst);
    pair.learner_comes_only_after(|map| map.term.store(0, Ordering::SeqCst));
}

#[test]
fn a_snapshot_of_another_region_is_not_sent() {
    let pair = Pair::new();
    pair.maps[0].region.store(true, Ordering::SeqCst);
    pair.learner_comes_only_after(|map| map.region.store(false, Ordering::SeqCst));
}

#[test]
fn a_piece_that_is_too_large_is_not_sent() {
    let pair = Pair::new();
    pair.maps[0].large_piece.store(true, Ordering::SeqCst);
    pair.learner_comes_only_after(|map| map.large_piece.store(false, Ordering::SeqCst));
}

#[test]
fn a_source_that_panics_costs_its_snapshot_alone() {
    let pair = Pair::new();
    pair.maps[0].panics.store(true, Ordering::SeqCst);
    pair.learner_comes_only_after(|map| map.panics.store(false, Ordering::SeqCst));
}

/// Its end panics, on the thread that sends.
struct LastWords(Pieces);

impl SnapshotSource for LastWords {
    fn applied(&self) -> &AppliedState {
        self.0.applied()
    }

    fn next_piece(&mut self) -> Result<Option<Bytes>, StateMachineError> {
        self.0.next_piece()
    }
}

impl Drop for LastWords {
    fn drop(&mut self) {
        panic!("injected");
    }
}

#[test]
fn a_panic_that_nobody_has_foreseen_stops_the_store_by_name() {
    let network = InProcessTransport::new();
    let start = |id: u64| {
        let map = Arc::new(Lying { last_words: true, ..Lying::default() });
        let builder = builder(id, map, &network, &Registry::new());
        let store = builder.start().expect("starts");
        network.connect(store.handle());
        store
    };
    let (mut first, second) = (start(1), start(2));
    let handle = first.handle();
    handle.bootstrap(&[alone()]).expect("sound");
    eventually("it leads", || handle.campaign(ONE) && handle.leaders() == 1);
    for number in 0..20 {
        let put = MapCommand::put(format!("{number}"), "v").encode();
        handle.propose(ONE, put).expect("written");
    }
    handle.admin(ONE, with_learner()).expect("added");
    eventually("it has failed", || handle.failure().is_some());
    let failure = handle.failure().expect("it has").to_string();
    assert_eq!(failure, "the thread that sends and receives snapshots panicked");
    first.shutdown();
    drop(second);
}
