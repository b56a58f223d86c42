//! A region that is damaged on one store: it is named, the others are served, and it is repaired from its
//! peers in the steps of `docs/repair.md`. All files are real ones.

mod common;

use common::{config, eventually, region, regions, Cluster, TestMap};
use raft_engine::ReadableSize;
use raftstore::{
    AdminRequest, DiscardError, Discarded, EngineConfig, HardState, InProcessTransport, LogBatch,
    LogStore, MapCommand, NewRegion, OrderedMap, Peer, PeerChange, PeerId, ProposeError,
    RaftEngineLogStore, RegionId, RegionState, RegionWrite, SplitRequest, StartError, Store,
    StoreConfig, StoreId, StoreIdent, MAX_ID,
};
use std::path::{Path, PathBuf};
use std::sync::Arc;

const REGIONS: u64 = 3;
/// The damaged one, its peer on the third store, and the peer that takes its place.
const DAMAGED: RegionId = RegionId::new(2);
const OLD: PeerId = PeerId::new(23);
const NEW: PeerId = PeerId::new(230);
const KEYS: u64 = 30;

/// In the range of its region.
fn key(region: RegionId, number: u64) -> String {
    format!("{:04}/{number:04}", region.get() - 1)
}

fn value(region: RegionId, number: u64) -> String {
    format!("value {number:04} of region {region}")
}

fn write<M: TestMap>(cluster: &Cluster<M>, region: RegionId, numbers: std::ops::Range<u64>) {
    for number in numbers {
        let put = MapCommand::put(key(region, number), value(region, number));
        cluster.write(region, &put.encode()).expect("the region serves");
    }
}

/// Asks whoever leads, until it is done.
fn admin<M: TestMap>(cluster: &Cluster<M>, region: RegionId, request: &AdminRequest) {
    let ask = |store: usize| cluster.handle(store).admin(region, request.clone()).is_ok();
    eventually("it is done", || (0..cluster.stores.len()).any(ask));
}

fn change<M: TestMap>(cluster: &Cluster<M>, region: RegionId, change: PeerChange) {
    admin(cluster, region, &AdminRequest::change_peers([change]));
}

/// The third store has everything of a region.
fn has_all<M: TestMap>(cluster: &Cluster<M>, region: RegionId, count: u64) {
    cluster.converge(REGIONS);
    for number in 0..count {
        let found = cluster.maps[2].value(region, key(region, number).as_bytes());
        assert_eq!(found.as_deref(), Some(value(region, number).as_bytes()), "{number}");
    }
}

/// Steps 1 and 2 to 4 of the documentation, and the proof that it serves.
fn repair<M: TestMap>(
    mut cluster: Cluster<M>,
    open: &dyn Fn() -> Cluster<M>,
    old: PeerId,
    expected: Discarded,
) {
    change(&cluster, DAMAGED, PeerChange::Remove(old));
    let discarded = cluster.handle(2).discard(DAMAGED, old).expect("it is set aside");
    assert_eq!(discarded, expected);
    match discarded {
        Discarded::AtNextStart => {
            assert!(cluster.handle(2).set_aside()[&DAMAGED].contains("at the next start"));
        }
        Discarded::Now => assert!(cluster.handle(2).set_aside().is_empty()),
    }
    // It is durable, and where it is done at once another peer may also come at once.
    if discarded == Discarded::AtNextStart || old == OLD {
        cluster.shutdown();
        cluster = open();
    }
    assert!(cluster.handle(2).set_aside().is_empty());
    change(&cluster, DAMAGED, PeerChange::Add(Peer::learner(NEW, StoreId::new(3))));
    change(&cluster, DAMAGED, PeerChange::Promote(NEW));
    write(&cluster, DAMAGED, KEYS + 1..KEYS + 2);
    has_all(&cluster, DAMAGED, KEYS + 2);
    admin(&cluster, DAMAGED, &AdminRequest::transfer_leader(Some(NEW)));
    eventually("it serves there", || {
        let put = MapCommand::put(key(DAMAGED, KEYS + 2), value(DAMAGED, KEYS + 2)).encode();
        cluster.handle(2).propose(DAMAGED, put).is_ok()
    });
    cluster.shutdown();

    let cluster = open();
    write(&cluster, DAMAGED, KEYS + 3..KEYS + 4);
    has_all(&cluster, DAMAGED, KEYS + 4);
    assert!(cluster.handle(2).set_aside().is_empty());
    let again = cluster.handle(2).discard(DAMAGED, NEW);
    assert!(matches!(again, Err(DiscardError::NotSetAside(_))), "{again:?}");
    cluster.shutdown();
}

/// The damage is named with all that `parts` says, and everything else is served.
fn is_named_and_the_rest_served<M: TestMap>(cluster: &Cluster<M>, parts: &[&str]) {
    let handle = cluster.handle(2);
    eventually("it is set aside", || handle.set_aside().contains_key(&DAMAGED));
    let set_aside = handle.set_aside();
    assert_eq!(set_aside.len(), 1, "{set_aside:?}");
    let reason = &set_aside[&DAMAGED];
    for part in parts {
        assert!(reason.contains(part), "{part}: {reason}");
    }
    assert_eq!(handle.store_status().set_aside, set_aside);
    let state = handle.region(DAMAGED).expect("known").state;
    assert_eq!(state, RegionState::SetAside { reason: reason.clone() });
    for id in 1..=REGIONS {
        write(cluster, RegionId::new(id), KEYS..KEYS + 1);
    }
    eventually("the others are served there", || {
        let has = |id| cluster.maps[2].state(id) == cluster.maps[0].state(id);
        has(RegionId::new(1)) && has(RegionId::new(3))
    });
    eventually("it is refused there", || {
        match handle.propose(DAMAGED, MapCommand::put(key(DAMAGED, 0), "").encode()) {
            Err(error @ ProposeError::Quarantined { .. }) => {
                assert!(error.to_string().contains("docs/repair.md"), "{error}");
                true
            }
            other => panic!("{other:?}"),
        }
    });
}

fn refuses_another_peer<M: TestMap>(cluster: &Cluster<M>) {
    for peer in [PeerId::new(OLD.get() - 1), NEW] {
        let refused = cluster.handle(2).discard(DAMAGED, peer);
        assert!(matches!(refused, Err(DiscardError::OtherPeer { here: OLD, .. })), "{refused:?}");
    }
    assert_eq!(cluster.handle(2).set_aside().len(), 1, "nothing has happened");
}

/// Stores with something in each region.
fn filled<M: TestMap>(cluster: Cluster<M>) -> Cluster<M> {
    cluster.bootstrap(&regions(REGIONS));
    for id in 1..=REGIONS {
        write(&cluster, RegionId::new(id), 0..KEYS);
    }
    cluster.converge(REGIONS);
    cluster
}

/// The only file in a directory whose name ends so.
fn file_in(dir: &Path, end: &str) -> PathBuf {
    let files = std::fs::read_dir(dir).expect("a directory").map(|file| file.expect("one").path());
    let mut files: Vec<PathBuf> =
        files.filter(|path| path.to_str().expect("UTF-8").ends_with(end)).collect();
    assert_eq!(files.len(), 1, "{files:?}");
    files.remove(0)
}

fn flip(path: &Path, at: impl FnOnce(&[u8]) -> usize) {
    let mut bytes = std::fs::read(path).expect("readable");
    let at = at(&bytes);
    bytes[at] ^= 1;
    std::fs::write(path, bytes).expect("written");
}

fn find(bytes: &[u8], text: &str) -> usize {
    bytes.windows(text.len()).position(|part| part == text.as_bytes()).expect("it is there")
}

#[test]
fn entries_that_are_damaged() {
    let dir = tempfile::tempdir().expect("a directory");
    let open = || Cluster::on_disk(&config(), dir.path());
    filled(open()).shutdown();
    let log = file_in(&dir.path().join("store-3/raft-log"), ".raftlog");
    flip(&log, |bytes| find(bytes, &value(DAMAGED, KEYS / 2)));
    let cluster = open();
    is_named_and_the_rest_served(&cluster, &["region 2", "entries"]);
    refuses_another_peer(&cluster);
    // It was found when the region read its log, and not before.
    repair(cluster, &open, OLD, Discarded::AtNextStart);
}

#[test]
fn a_record_that_is_missing() {
    let dir = tempfile::tempdir().expect("a directory");
    let open = || Cluster::on_disk(&config(), dir.path());
    filled(open()).shutdown();
    let log = dir.path().join("store-3/raft-log");
    {
        let config = raft_engine::Config {
            dir: log.to_str().expect("UTF-8").to_owned(),
            target_file_size: ReadableSize::mb(128),
            ..raft_engine::Config::default()
        };
        let engine = raft_engine::Engine::open(config).expect("opens");
        let mut batch = raft_engine::LogBatch::default();
        let key = [b"r", &DAMAGED.get().to_be_bytes()[..]].concat();
        let group = MAX_ID + 1 + DAMAGED.get() % 4096;
        assert!(engine.get(group, &key).is_some());
        batch.delete(group, key);
        engine.write(&mut batch, true).expect("written");
    }
    let cluster = open();
    is_named_and_the_rest_served(&cluster, &["its record is missing"]);
    repair(cluster, &open, OLD, Discarded::Now);
}

/// The third store got its peer by a snapshot, which its map in memory needs at the next start.
fn with_a_snapshot_file(dir: &Path, open: &dyn Fn() -> Cluster) -> (PathBuf, PeerId) {
    let cluster = filled(open());
    let peer = PeerId::new(29);
    change(&cluster, DAMAGED, PeerChange::Remove(OLD));
    eventually("it is destroyed", || cluster.handle(2).region(DAMAGED).is_none());
    change(&cluster, DAMAGED, PeerChange::Add(Peer::learner(peer, StoreId::new(3))));
    change(&cluster, DAMAGED, PeerChange::Promote(peer));
    cluster.converge(REGIONS);
    cluster.shutdown();
    let cluster = open();
    write(&cluster, DAMAGED, 0..1);
    has_all(&cluster, DAMAGED, KEYS);
    cluster.shutdown();
    (file_in(&dir.join("store-3/snapshots"), ".snap"), peer)
}

#[test]
fn a_snapshot_file_that_is_missing_or_damaged() {
    for damaged in [false, true] {
        let dir = tempfile::tempdir().expect("a directory");
        let open = || Cluster::on_disk(&config(), dir.path());
        let (file, peer) = with_a_snapshot_file(dir.path(), &open);
        let name = file.file_name().expect("named").to_str().expect("UTF-8").to_owned();
        match damaged {
            true => flip(&file, |bytes| find(bytes, &value(DAMAGED, KEYS / 2))),
            false => std::fs::remove_file(&file).expect("removed"),
        }
        let cluster = open();
        is_named_and_the_rest_served(&cluster, &[&name]);
        repair(cluster, &open, peer, Discarded::Now);
    }
}

#[test]
fn a_log_that_is_refused_as_a_whole_is_replaced_by_a_store_with_a_new_id() {
    let dir = tempfile::tempdir().expect("a directory");
    filled(Cluster::on_disk(&config(), dir.path())).shutdown();
    let log = file_in(&dir.path().join("store-3/raft-log"), ".raftlog");
    let bytes = std::fs::read(&log).expect("readable");
    std::fs::write(&log, &bytes[..bytes.len() - 10]).expect("written");

    let mut cluster = Cluster::with_logs_on_disk(2, &config(), dir.path());
    let start = |id: u64, network: &raftstore::InProcessTransport| {
        let map = Arc::new(OrderedMap::new());
        let builder = Store::builder(StoreId::new(id))
            .config(config())
            .data_dir(dir.path().join(format!("store-{id}")))
            .state_machine(map.clone())
            .transport(network.clone());
        builder.start().map(|store| (store, map))
    };
    match start(3, &cluster.network) {
        Err(StartError::LogStore(error)) => {
            assert!(error.to_string().contains("rebuilt from its peers"), "{error}");
        }
        other => panic!("{other:?}"),
    }
    let (store, map) = start(4, &cluster.network).expect("an empty store");
    cluster.network.connect(store.handle());
    cluster.stores.push(store);
    cluster.maps.push(map);
    for id in (1..=REGIONS).map(RegionId::new) {
        let (old, new) = (PeerId::new(10 * id.get() + 3), PeerId::new(10 * id.get() + 4));
        change(&cluster, id, PeerChange::Remove(old));
        change(&cluster, id, PeerChange::Add(Peer::learner(new, StoreId::new(4))));
        change(&cluster, id, PeerChange::Promote(new));
        write(&cluster, id, KEYS..KEYS + 1);
    }
    for id in (1..=REGIONS).map(RegionId::new) {
        has_all(&cluster, id, KEYS + 1);
    }
    cluster.shutdown();
}

#[test]
fn a_region_that_replays_its_split_at_a_start_finds_its_parts() {
    // On several threads: all parts must be there, with their votes, when the whole is split again.
    const PARTS: u64 = 250;
    let dir = tempfile::tempdir().expect("a directory");
    let config = StoreConfig { pollers: 4, ..config() };
    let alone = raftstore::RegionDescription { peers: vec![region(1, 1).peers[0]], ..region(1, 1) };
    for life in 0..4 {
        let cluster = Cluster::on_disk(&config, dir.path());
        let handle = cluster.handle(0);
        if life == 0 {
            handle.bootstrap(std::slice::from_ref(&alone)).expect("sound");
            let part = |number| NewRegion {
                id: RegionId::new(number + 1),
                peers: vec![PeerId::new(10_000 + number)],
            };
            let request = SplitRequest {
                keys: (1..PARTS).map(|number| format!("{number:04}").into()).collect(),
                regions: (1..PARTS).map(part).collect(),
                parent_is_right: false,
            };
            admin(&cluster, RegionId::new(1), &AdminRequest::split(request));
        }
        assert!(handle.set_aside().is_empty(), "{:?}", handle.set_aside());
        eventually("all parts are back", || handle.leaders() == PARTS);
        assert!(handle.set_aside().is_empty(), "{:?}", handle.set_aside());
        cluster.shutdown();
    }
}

#[cfg(feature = "fjall")]
mod on_disk {
    use super::*;
    use raftstore::{FjallConfig, FjallMap, LogStore, RaftEngineLogStore, StateMachine};

    fn settings() -> StoreConfig {
        let mut config = config();
        config.raft.compact_after_entries = 10;
        config
    }

    /// Waits until the third store has cut the log of the region that will be damaged.
    fn with_cut_log(cluster: Cluster<FjallMap>) -> Cluster<FjallMap> {
        eventually("the log is cut", || {
            write(&cluster, DAMAGED, 0..1);
            cluster.handle(2).region(DAMAGED).is_some_and(|info| info.truncated.get() > 5)
        });
        cluster.converge(REGIONS);
        cluster
    }

    #[test]
    fn contents_that_are_missing_while_the_log_is_cut() {
        let dir = tempfile::tempdir().expect("a directory");
        let open = || Cluster::with_maps_on_disk(3, &settings(), dir.path());
        with_cut_log(filled(open())).shutdown();
        let map = FjallMap::open(dir.path().join("store-3/map"), &FjallConfig::default());
        map.expect("opens").destroy(DAMAGED).expect("destroyed");
        let cluster = open();
        is_named_and_the_rest_served(&cluster, &["no applied state to go on from"]);
        refuses_another_peer(&cluster);
        repair(cluster, &open, OLD, Discarded::Now);
    }

    #[test]
    fn a_map_that_is_gone_is_named_in_each_region_that_needs_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let open = || Cluster::with_maps_on_disk(3, &settings(), dir.path());
        with_cut_log(filled(open())).shutdown();
        std::fs::remove_dir_all(dir.path().join("store-3/map")).expect("removed");
        let cluster = open();
        assert!(cluster.handle(2).set_aside().contains_key(&DAMAGED));
        for (region, reason) in cluster.handle(2).set_aside() {
            assert!(reason.contains("no applied state"), "{region}: {reason}");
        }
        write(&cluster, DAMAGED, KEYS..KEYS + 1);
        cluster.shutdown();
    }

    #[test]
    fn a_part_of_a_region_whose_contents_are_gone() {
        let dir = tempfile::tempdir().expect("a directory");
        let open = || Cluster::with_maps_on_disk(3, &config(), dir.path());
        let cluster = open();
        cluster.bootstrap(&[region(1, 1)]);
        let part = RegionId::new(7);
        let peers = [71, 72, 73].map(PeerId::new).to_vec();
        let request = SplitRequest {
            keys: vec!["0006".into()],
            regions: vec![NewRegion { id: part, peers }],
            parent_is_right: false,
        };
        admin(&cluster, RegionId::new(1), &AdminRequest::split(request));
        write(&cluster, part, 0..KEYS);
        eventually("all have it", || {
            let first = cluster.maps[0].state(part);
            cluster.maps.iter().all(|map| map.state(part) == first)
        });
        cluster.shutdown();
        let map = FjallMap::open(dir.path().join("store-3/map"), &FjallConfig::default());
        map.expect("opens").destroy(part).expect("destroyed");

        let cluster = open();
        let handle = cluster.handle(2);
        let reason = &handle.set_aside()[&part];
        assert!(reason.contains("the split of region 1 at index"), "{reason}");
        change(&cluster, part, PeerChange::Remove(PeerId::new(73)));
        let discarded = handle.discard(part, PeerId::new(73)).expect("it is set aside");
        assert_eq!(discarded, Discarded::Now);
        let new = PeerId::new(74);
        change(&cluster, part, PeerChange::Add(Peer::learner(new, StoreId::new(3))));
        change(&cluster, part, PeerChange::Promote(new));
        eventually("it is back", || cluster.maps[2].state(part) == cluster.maps[0].state(part));
        let last = key(part, KEYS - 1);
        assert!(cluster.maps[2].value(part, last.as_bytes()).is_some());
        cluster.shutdown();
    }

    #[test]
    fn the_file_of_a_snapshot_that_is_installed_already_goes_at_the_next_start() {
        let dir = tempfile::tempdir().expect("a directory");
        let open = || Cluster::with_maps_on_disk(3, &config(), dir.path());
        let cluster = filled(open());
        let peer = PeerId::new(29);
        change(&cluster, DAMAGED, PeerChange::Remove(OLD));
        eventually("it is destroyed", || cluster.handle(2).region(DAMAGED).is_none());
        change(&cluster, DAMAGED, PeerChange::Add(Peer::learner(peer, StoreId::new(3))));
        change(&cluster, DAMAGED, PeerChange::Promote(peer));
        cluster.converge(REGIONS);
        cluster.shutdown();
        // As a crash between the end of the installation and that of the file leaves it.
        let log = dir.path().join("store-3/raft-log");
        let log = RaftEngineLogStore::open(&log, &Default::default()).expect("opens");
        let stored = log.load().expect("readable").regions;
        let record = stored.into_iter().find(|stored| stored.record.description.id == DAMAGED);
        let mark = record.expect("it is there").record.installing.expect("it came by a snapshot");
        drop(log);
        let files = dir.path().join("store-3/snapshots");
        assert_eq!(std::fs::read_dir(&files).expect("readable").count(), 0);
        let name = format!("region-{DAMAGED}-peer-{peer}-{}-{}.snap", mark.index, mark.term);
        std::fs::write(files.join(name), "whatever").expect("written");

        let cluster = open();
        assert_eq!(std::fs::read_dir(&files).expect("readable").count(), 0);
        assert!(cluster.handle(2).set_aside().is_empty());
        write(&cluster, DAMAGED, 0..1);
        cluster.shutdown();
    }
}

#[test]
fn where_the_record_is_lost_no_peer_is_believed_that_cannot_be() {
    let dir = tempfile::tempdir().expect("a directory");
    {
        let log = RaftEngineLogStore::open(&dir.path().join("raft-log"), &EngineConfig::default());
        let hard_state = HardState { term: 6, commit: 5, ..HardState::default() };
        let write = RegionWrite {
            region_id: RegionId::new(5),
            hard_state: Some(hard_state),
            ..RegionWrite::default()
        };
        let ident = StoreIdent { cluster_id: 1, store_id: StoreId::new(1) };
        let mut batch = LogBatch { writes: vec![write], ident: Some(ident) };
        log.expect("opens").write(&mut batch, true).expect("written");
    }
    let store = Store::builder(StoreId::new(1))
        .config(config())
        .state_machine(Arc::new(OrderedMap::new()))
        .data_dir(dir.path())
        .transport(InProcessTransport::new())
        .start()
        .expect("it starts");
    let handle = store.handle();
    for peer in [0, MAX_ID + 1, u64::MAX] {
        let refused = handle.discard(RegionId::new(5), PeerId::new(peer));
        assert!(matches!(refused, Err(DiscardError::UnsoundPeer { .. })), "{refused:?}");
    }
    assert!(handle.set_aside().contains_key(&RegionId::new(5)));
    let done = handle.discard(RegionId::new(5), PeerId::new(51)).expect("it may be");
    assert_eq!(done, Discarded::Now);
}
