//! Snapshots that are doubled, late, unsound or made up, and files that fail or panic: they cost time, or one
//! region, which is named. The store is driven by hand, and the others are played.

mod common;

use common::{config, counted};
use raft::eraftpb::{Message, MessageType, Snapshot};
use raftstore::{
    AppliedState, Bytes, DirectorySnapshotFiles, Discarded, DrivenStore, Envelope, Index,
    MapCommand, MemoryLogStore, MemorySnapshotFiles, OrderedMap, Peer, PeerId, RegionDescription,
    RegionId, RegionState, Registry, SnapshotBody, SnapshotFiles, SnapshotId, SnapshotMessage,
    StagedSnapshot, StartError, StateMachine, Store, StoreBuilder, StoreHandle, StoreId, StorePing,
    StoreThread, Term, Transport,
};
use std::io::{self, Read};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;

const ONE: RegionId = RegionId::new(1);
const TWO: RegionId = RegionId::new(2);
/// After so many ticks without a word a snapshot is forgotten.
const FORGOTTEN_TICKS: usize = 25;

/// Keeps what a store says about snapshots.
#[derive(Clone, Default)]
struct Heard(Arc<parking_lot::Mutex<Vec<SnapshotMessage>>>);

impl Transport for Heard {
    fn send(&self, _: StoreId, messages: &mut Vec<Box<Envelope>>) -> usize {
        messages.clear();
        0
    }

    fn send_snapshot(&self, message: SnapshotMessage) -> bool {
        self.0.lock().push(message);
        true
    }

    fn send_ping(&self, _: StorePing) -> bool {
        false
    }
}

impl Heard {
    /// What has been said since the last call.
    fn take(&self) -> Vec<SnapshotBody> {
        self.0.lock().drain(..).map(|message| message.body).collect()
    }
}

/// A region with one peer on a made-up store 2 and one on the store under test.
fn moved_here(region: RegionId) -> RegionDescription {
    let (start, end) = if region == ONE { ("", "m") } else { ("m", "") };
    let peer = |number: u64, store| {
        Peer::voter(PeerId::new(10 * region.get() + number), StoreId::new(store))
    };
    RegionDescription::new(region, start, end, [peer(1, 2), peer(2, 1)])
}

fn own_peer(region: RegionId) -> PeerId {
    PeerId::new(10 * region.get() + 2)
}

fn id_of(region: RegionId, index: u64, attempt: u64) -> SnapshotId {
    let (index, term) = (Index::new(index), Term::new(6));
    SnapshotId { region, peer: own_peer(region), index, term, attempt }
}

/// raft-rs's message for a snapshot.
fn raft_message(description: &RegionDescription, index: u64) -> Box<Envelope> {
    let (from, to) = (description.peers[0], description.peers[1]);
    let applied = AppliedState {
        index: Index::new(index),
        term: Term::new(6),
        description: Arc::new(description.clone()),
    };
    let mut snapshot = Snapshot { data: applied.encode().into(), ..Snapshot::default() };
    let metadata = snapshot.mut_metadata();
    (metadata.index, metadata.term) = (index, 6);
    metadata.mut_conf_state().voters = description.peers.iter().map(|peer| peer.id.get()).collect();
    let mut message = Message {
        msg_type: MessageType::MsgSnapshot,
        from: from.id.get(),
        to: to.id.get(),
        term: 6,
        ..Message::default()
    };
    message.set_snapshot(snapshot);
    let (region_id, epoch) = (description.id, description.epoch);
    Box::new(Envelope { cluster_id: 1, region_id, from, to, epoch, message, description: None })
}

fn say(handle: &StoreHandle, from: u64, id: SnapshotId, body: SnapshotBody) {
    let (from, to) = (StoreId::new(from), StoreId::new(1));
    assert!(handle.deliver_snapshot(SnapshotMessage { cluster_id: 1, from, to, id, body }));
}

fn offer(handle: &StoreHandle, region: RegionId, index: u64, attempt: u64) {
    let envelope = raft_message(&moved_here(region), index);
    say(handle, 2, id_of(region, index, attempt), SnapshotBody::Offer(envelope));
}

/// All of it, in one chunk.
fn send(handle: &StoreHandle, from: u64, id: SnapshotId, bytes: &[u8]) {
    let (checksum, bytes) = (crc32fast::hash(bytes), Bytes::copy_from_slice(bytes));
    say(handle, from, id, SnapshotBody::Chunk { number: 0, last: true, checksum, bytes });
}

/// A snapshot as it is sent, of these pieces.
fn framed(pieces: &[&[u8]]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for piece in pieces {
        bytes.extend_from_slice(&(piece.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&crc32fast::hash(piece).to_le_bytes());
        bytes.extend_from_slice(piece);
    }
    bytes.extend_from_slice(&u32::MAX.to_le_bytes());
    bytes.extend_from_slice(&(pieces.len() as u32).to_le_bytes());
    bytes
}

/// A snapshot of an `OrderedMap` with one pair.
fn one_pair(key: &str) -> Vec<u8> {
    let pair = MapCommand::put(key.to_owned(), "precious").encode();
    let piece = [&(pair.len() as u32).to_be_bytes()[..], &pair].concat();
    framed(&[&piece])
}

fn builder(
    store: u64,
    machine: Arc<dyn StateMachine>,
    transport: impl Transport,
    registry: &Registry,
) -> StoreBuilder {
    Store::builder(StoreId::new(store))
        .config(config())
        .state_machine(machine)
        .transport(transport)
        .registry(registry.clone())
}

/// A store driven by hand, what it says, and its map.
struct Driven {
    store: DrivenStore,
    heard: Heard,
    map: Arc<OrderedMap>,
    registry: Registry,
}

impl Driven {
    fn start(build: impl FnOnce(StoreBuilder) -> StoreBuilder) -> Self {
        let (heard, map, registry) =
            (Heard::default(), Arc::new(OrderedMap::new()), Registry::new());
        let builder = builder(1, map.clone(), heard.clone(), &registry);
        let store = build(builder).start_driven().expect("starts");
        Self { store, heard, map, registry }
    }

    fn on_disk(dir: &Path) -> Self {
        Self::start(|builder| builder.data_dir(dir))
    }

    fn with_files(files: impl SnapshotFiles) -> Self {
        let log = Arc::new(MemoryLogStore::new());
        Self::start(|builder| builder.log_store(log).snapshot_files(Arc::new(files)))
    }

    fn handle(&self) -> StoreHandle {
        self.store.handle()
    }

    fn run_until_idle(&mut self) {
        common::run_until_idle(std::slice::from_mut(&mut self.store));
    }

    fn pass_ticks(&mut self, ticks: usize) {
        for _ in 0..ticks {
            self.store.advance_time(config().raft.tick_interval);
            self.run_until_idle();
        }
    }

    /// A snapshot comes in whole.
    fn receive(&mut self, region: RegionId, index: u64, attempt: u64, bytes: &[u8]) {
        offer(&self.handle(), region, index, attempt);
        send(&self.handle(), 2, id_of(region, index, attempt), bytes);
        self.run_until_idle();
    }

    /// Whether the region, which leads here, carries out a command.
    fn writes(&mut self, region: RegionId, key: &str) -> bool {
        let done = Arc::new(AtomicBool::new(false));
        let answered = done.clone();
        let put = MapCommand::put(key.to_owned(), "v").encode();
        self.handle().propose_with(region, put, move |answer| {
            answered.store(answer.is_ok(), Ordering::SeqCst);
        });
        self.run_until_idle();
        done.load(Ordering::SeqCst)
    }

    fn state(&self, region: RegionId) -> Option<RegionState> {
        self.handle().region(region).map(|info| info.state)
    }

    fn is_well(&self) {
        assert_eq!(self.handle().failure().map(|failure| failure.to_string()), None);
        assert_eq!(self.handle().set_aside(), Default::default());
    }
}

fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).expect("readable");
    let mut names: Vec<String> = entries
        .map(|entry| entry.expect("readable").file_name().into_string().expect("UTF-8"))
        .collect();
    names.sort();
    names
}

#[test]
fn a_doubled_offer_does_not_cost_an_installed_snapshot() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut driven = Driven::on_disk(dir.path());
    driven.receive(ONE, 20, 1, &one_pair("a"));
    assert!(driven.map.get(ONE, b"a").is_some());
    let file = names(&dir.path().join("snapshots"));
    assert_eq!(file.len(), 1, "the map is in memory, so the next start needs it: {file:?}");
    driven.pass_ticks(FORGOTTEN_TICKS);
    driven.heard.take();
    // The same once more, late, and then by a leader that has not heard of it.
    for attempt in [1, 2] {
        offer(&driven.handle(), ONE, 20, attempt);
        driven.run_until_idle();
        assert_eq!(driven.heard.take(), [SnapshotBody::Arrived]);
        driven.pass_ticks(FORGOTTEN_TICKS);
        assert_eq!(names(&dir.path().join("snapshots")), file);
    }
    drop(driven);
    let mut driven = Driven::on_disk(dir.path());
    driven.run_until_idle();
    driven.is_well();
    assert!(driven.map.get(ONE, b"a").is_some());
}

#[test]
fn a_snapshot_that_is_offered_again_while_it_is_installed_is_there_already() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut driven = Driven::on_disk(dir.path());
    offer(&driven.handle(), ONE, 20, 1);
    send(&driven.handle(), 2, id_of(ONE, 20, 1), &one_pair("a"));
    // Everything but the installation.
    while let Some(thread) =
        driven.store.runnable().into_iter().find(|thread| *thread != StoreThread::Chores)
    {
        driven.store.run(thread);
    }
    assert_eq!(driven.state(ONE), Some(RegionState::Installing));
    driven.heard.take();
    offer(&driven.handle(), ONE, 20, 2);
    driven.store.run(StoreThread::Snapshots);
    assert_eq!(driven.heard.take(), [SnapshotBody::Arrived]);
    driven.run_until_idle();
    driven.is_well();
    assert_eq!(driven.state(ONE), Some(RegionState::Live));
    assert!(driven.map.get(ONE, b"a").is_some());
}

#[test]
fn two_receptions_of_one_snapshot_are_two_files() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut driven = Driven::on_disk(dir.path());
    offer(&driven.handle(), ONE, 20, 1);
    send(&driven.handle(), 2, id_of(ONE, 20, 1), &one_pair("a"));
    driven.store.run(StoreThread::Snapshots);
    // It is complete, and its region has not heard of it, when another attempt begins.
    offer(&driven.handle(), ONE, 20, 2);
    driven.store.run(StoreThread::Snapshots);
    driven.run_until_idle();
    driven.is_well();
    assert!(driven.map.get(ONE, b"a").is_some());
    send(&driven.handle(), 2, id_of(ONE, 20, 2), &one_pair("a"));
    driven.run_until_idle();
    driven.is_well();
    assert_eq!(names(&dir.path().join("snapshots")), ["region-1-peer-12-20-6.snap"]);
    drop(driven);
    let driven = Driven::on_disk(dir.path());
    driven.is_well();
    assert!(driven.map.get(ONE, b"a").is_some());
}

#[test]
fn contents_that_the_state_machine_refuses_cost_their_region_alone() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut driven = Driven::on_disk(dir.path());
    let alone = Peer::voter(PeerId::new(21), StoreId::new(1));
    driven.handle().bootstrap(&[RegionDescription::new(TWO, "m", "", [alone])]).expect("sound");
    // Whole and with all its checksums, but no pairs.
    driven.receive(ONE, 20, 1, &framed(&[&[0, 0, 0, 99, 1, 2, 3]]));
    for restart in 0..3 {
        let handle = driven.handle();
        assert_eq!(handle.failure().map(|failure| failure.to_string()), None, "{restart}");
        let set_aside = handle.set_aside();
        let reason = set_aside.get(&ONE).expect("it is set aside");
        assert!(reason.contains("snapshot region-1-peer-12-20-6.snap"), "{reason}");
        assert!(reason.contains("a piece of a snapshot is cut"), "{reason}");
        handle.campaign(TWO);
        driven.pass_ticks(50);
        assert!(driven.writes(TWO, "n"), "the others serve");
        drop((handle, driven));
        driven = Driven::on_disk(dir.path());
        driven.run_until_idle();
    }
    // It is given up as docs/repair.md says.
    let discarded = driven.handle().discard(ONE, own_peer(ONE)).expect("it is set aside");
    assert_eq!(discarded, Discarded::Now);
    driven.is_well();
    assert_eq!(names(&dir.path().join("snapshots")), [""; 0]);
}

#[test]
fn a_snapshot_message_without_contents_is_dropped() {
    let mut driven = Driven::with_files(MemorySnapshotFiles::default());
    driven.receive(ONE, 20, 1, &one_pair("a"));
    assert_eq!(driven.state(ONE), Some(RegionState::Live));
    driven.handle().deliver(&mut vec![raft_message(&moved_here(ONE), 30)]);
    driven.run_until_idle();
    driven.is_well();
    let status = driven.store.region_status(ONE).expect("it is here");
    assert_eq!(status.last, Index::new(20));
    let dropped = "raftstore_raft_messages_dropped_total";
    assert_eq!(counted(&driven.registry, dropped, "snapshot_without_contents"), 1.0);
}

/// Files on disk that cannot be finished.
struct Full(DirectorySnapshotFiles);

struct FullStaged(Box<dyn StagedSnapshot>);

impl SnapshotFiles for Full {
    fn begin(&self, name: &str) -> io::Result<Box<dyn StagedSnapshot>> {
        Ok(Box::new(FullStaged(self.0.begin(name)?)))
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn Read + Send>> {
        self.0.open(name)
    }

    fn rename(&self, name: &str, to: &str) -> io::Result<()> {
        self.0.rename(name, to)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.0.remove(name)
    }

    fn list(&self) -> io::Result<Vec<String>> {
        self.0.list()
    }
}

impl StagedSnapshot for FullStaged {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.append(bytes)
    }

    fn finish(self: Box<Self>) -> io::Result<()> {
        Err(io::Error::other("no space left on device"))
    }
}

#[test]
fn what_cannot_be_finished_or_is_damaged_leaves_no_file() {
    let dir = tempfile::tempdir().expect("a directory");
    let files = || DirectorySnapshotFiles::new(dir.path()).expect("created");
    let mut driven = Driven::with_files(Full(files()));
    driven.receive(ONE, 20, 1, &one_pair("a"));
    assert_eq!(driven.heard.take().last(), Some(&SnapshotBody::Refused));
    assert_eq!(names(dir.path()), [""; 0]);

    let mut driven = Driven::with_files(files());
    let mut damaged = one_pair("a");
    damaged[12] ^= 1;
    driven.receive(ONE, 20, 1, &damaged);
    assert_eq!(driven.heard.take().last(), Some(&SnapshotBody::Refused));
    assert_eq!(names(dir.path()), [""; 0]);

    // One that nobody ends, and one that the sender gives up.
    for cancelled in [false, true] {
        offer(&driven.handle(), ONE, 20, 2);
        driven.run_until_idle();
        assert_eq!(names(dir.path()).len(), 1);
        match cancelled {
            true => say(&driven.handle(), 2, id_of(ONE, 20, 2), SnapshotBody::Cancelled),
            false => driven.pass_ticks(FORGOTTEN_TICKS),
        }
        driven.run_until_idle();
        assert_eq!(names(dir.path()), [""; 0]);
    }
    driven.is_well();
}

#[test]
fn an_unsound_offer_does_not_end_a_sound_reception() {
    let mut driven = Driven::with_files(MemorySnapshotFiles::default());
    offer(&driven.handle(), ONE, 20, 1);
    driven.run_until_idle();
    assert_eq!(driven.heard.take(), [SnapshotBody::Wants(0)]);
    // Of nobody; of another cluster; of a store that is not the leader's; of another region's range.
    let nobody = Peer::voter(PeerId::new(0), StoreId::new(0));
    let envelope = || raft_message(&moved_here(ONE), 20);
    let junk = Envelope { from: nobody, message: Message::default(), ..*envelope() };
    let strange = Envelope { cluster_id: 9, ..*envelope() };
    let id = id_of(ONE, 20, 5);
    say(&driven.handle(), 77, id, SnapshotBody::Offer(Box::new(junk)));
    say(&driven.handle(), 2, id, SnapshotBody::Offer(Box::new(strange)));
    say(&driven.handle(), 77, id, SnapshotBody::Offer(envelope()));
    driven.run_until_idle();
    assert_eq!(driven.heard.take(), [(); 3].map(|()| SnapshotBody::Refused));
    // Nor do a chunk and a word of another store.
    let id = id_of(ONE, 20, 1);
    send(&driven.handle(), 77, id, b"something");
    say(&driven.handle(), 77, id, SnapshotBody::Cancelled);
    driven.run_until_idle();
    assert_eq!(driven.heard.take(), [SnapshotBody::Refused]);
    send(&driven.handle(), 2, id, &one_pair("a"));
    driven.run_until_idle();
    assert_eq!(driven.heard.take(), [SnapshotBody::Arrived]);
    assert!(driven.map.get(ONE, b"a").is_some());
}

#[test]
fn an_offer_weighs_what_it_holds() {
    let mut driven = Driven::with_files(MemorySnapshotFiles::default());
    let mut envelope = raft_message(&moved_here(ONE), 20);
    envelope.message.mut_snapshot().data = vec![0; 1 << 20].into();
    say(&driven.handle(), 2, id_of(ONE, 20, 1), SnapshotBody::Offer(envelope));
    assert!(driven.handle().store_status().queues.snapshot_bytes >= 1 << 20);
    driven.run_until_idle();
    assert_eq!(driven.handle().store_status().queues.snapshot_bytes, 0);
    assert_eq!(driven.heard.take(), [SnapshotBody::Refused]);
}

#[test]
fn files_of_others_in_the_directory_stay() {
    let dir = tempfile::tempdir().expect("a directory");
    let foreign = ["precious.part", "precious.txt", "region-1.snap", "region-1-peer-x-3-4.snap"];
    let stray = ["region-1-peer-2-3-4.snap", "region-1-peer-2-3-4.snap.7.part"];
    for name in foreign.iter().chain(&stray) {
        std::fs::write(dir.path().join(name), "mine").expect("written");
    }
    let mut driven = Driven::with_files(DirectorySnapshotFiles::new(dir.path()).expect("created"));
    driven.run_until_idle();
    let mut expected = foreign.to_vec();
    expected.sort_unstable();
    assert_eq!(names(dir.path()), expected);
}

#[test]
fn snapshots_that_cannot_be_opened_are_not_taken_for_the_log() {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(dir.path().join("snapshots"), "a file").expect("written");
    let map = Arc::new(OrderedMap::new());
    let builder = builder(1, map, Heard::default(), &Registry::new()).data_dir(dir.path());
    let error = builder.start().expect_err("it cannot");
    let path = dir.path().join("snapshots").display().to_string();
    assert!(
        error.to_string().starts_with(&format!("cannot open the snapshots in {path}: ")),
        "{error}"
    );
    assert!(!matches!(error, StartError::LogStore(_)), "{error:?}");
}

/// Files in memory of which one call panics.
#[derive(Default)]
struct Panicking {
    inner: MemorySnapshotFiles,
    begin: bool,
    /// Of the calls of `open`, from 1 on.
    open: u64,
    opened: AtomicU64,
}

impl SnapshotFiles for Panicking {
    fn begin(&self, name: &str) -> io::Result<Box<dyn StagedSnapshot>> {
        assert!(!self.begin, "injected");
        self.inner.begin(name)
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn Read + Send>> {
        let number = self.opened.fetch_add(1, Ordering::SeqCst) + 1;
        assert!(number != self.open, "injected");
        self.inner.open(name)
    }

    fn rename(&self, name: &str, to: &str) -> io::Result<()> {
        self.inner.rename(name, to)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.inner.remove(name)
    }

    fn list(&self) -> io::Result<Vec<String>> {
        self.inner.list()
    }
}

#[test]
fn files_that_panic_cost_one_snapshot_or_one_region() {
    let mut driven = Driven::with_files(Panicking { begin: true, ..Panicking::default() });
    offer(&driven.handle(), ONE, 20, 1);
    driven.run_until_idle();
    assert_eq!(driven.heard.take(), [SnapshotBody::Refused]);
    driven.is_well();

    // The check of what has arrived.
    let mut driven = Driven::with_files(Panicking { open: 1, ..Panicking::default() });
    driven.receive(ONE, 20, 1, &one_pair("a"));
    assert_eq!(driven.heard.take().last(), Some(&SnapshotBody::Refused));
    driven.receive(ONE, 20, 2, &one_pair("a"));
    assert_eq!(driven.state(ONE), Some(RegionState::Live));

    // The installation.
    let mut driven = Driven::with_files(Panicking { open: 2, ..Panicking::default() });
    driven.receive(ONE, 20, 1, &one_pair("a"));
    driven.receive(TWO, 20, 1, &one_pair("n"));
    let set_aside = driven.handle().set_aside();
    let reason = set_aside.get(&ONE).expect("it is set aside");
    assert!(reason.contains("SnapshotFiles::open panicked"), "{reason}");
    assert_eq!(driven.state(TWO), Some(RegionState::Live));
    assert!(driven.handle().failure().is_none());
}
