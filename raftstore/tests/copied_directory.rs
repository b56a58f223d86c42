//! The directory of a store, copied file by file while the store writes it, as a careless backup does.
//!
//! Such a copy may lack what was written meanwhile, or be refused. What it must not do is to come up
//! with something else than was written.

mod common;

use bytesize::ByteSize;
use common::process::{find_all, write_until, write_while, Acknowledged, REGIONS};
use common::{config, eventually, regions, Cluster};
use parking_lot::Mutex;
use raftstore::{
    EngineConfig, Entry, InProcessTransport, Index, LogReader, LogStore, MapCommand, OrderedMap,
    RaftEngineLogStore, RegionId, StartError, Store, StoreConfig, StoreId, INITIAL_INDEX,
};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

const COPIES: usize = 18;

/// Small files, so that a copy meets the end of one and the beginning of the next.
fn small_files() -> StoreConfig {
    let log = EngineConfig {
        target_file_size: ByteSize::kib(8),
        purge_threshold: ByteSize::kib(32),
        recovery_threads: 2,
        ..EngineConfig::default()
    };
    StoreConfig { log, ..config() }
}

fn log_dir(dir: &Path, store: u64) -> PathBuf {
    dir.join(format!("store-{store}")).join("raft-log")
}

/// The order in which files are copied.
#[derive(Clone, Copy)]
enum Order {
    OldestFirst,
    NewestFirst,
    /// As listed, and then those that came while the others were copied.
    UntilNoneIsNew,
}

/// Copies a directory; says whether a listed file had vanished when its turn came.
#[must_use]
fn copy(from: &Path, to: &Path, order: Order, pause: impl Fn()) -> bool {
    std::fs::create_dir_all(to).expect("created");
    let mut copied = BTreeSet::new();
    let mut vanished = false;
    loop {
        let listed = std::fs::read_dir(from).expect("a directory");
        let names = listed.map(|entry| entry.expect("an entry").file_name());
        let mut names: Vec<_> = names.filter(|name| !copied.contains(name)).collect();
        match order {
            Order::OldestFirst | Order::UntilNoneIsNew => names.sort(),
            Order::NewestFirst => names.sort_by(|a, b| b.cmp(a)),
        }
        let none = names.is_empty();
        let first_pass = copied.is_empty();
        let newest = newest_log_file(from);
        for name in names {
            let pause = || {
                pause();
                if matches!(order, Order::UntilNoneIsNew) && first_pass && newest == name {
                    // So that the newest file grows between two of its blocks, and has a successor.
                    eventually("a newer file", || newest_log_file(from) > newest);
                }
            };
            vanished |= !copy_file(&from.join(&name), &to.join(&name), pause);
            copied.insert(name);
        }
        if none || !matches!(order, Order::UntilNoneIsNew) {
            return vanished;
        }
    }
}

fn newest_log_file(dir: &Path) -> OsString {
    let listed = std::fs::read_dir(dir).expect("a directory");
    let names = listed.map(|entry| entry.expect("an entry").file_name());
    let logs = names.filter(|name| Path::new(name).extension().is_some_and(|end| end == "raftlog"));
    logs.max().expect("there is always one")
}

/// Copies block by block, with a pause after each; says whether the file was there.
fn copy_file(from: &Path, to: &Path, pause: impl Fn()) -> bool {
    let mut source = match File::open(from) {
        Ok(source) => source,
        Err(error) if error.kind() == ErrorKind::NotFound => return false,
        Err(error) => panic!("{}: {error}", from.display()),
    };
    let mut target = File::create(to).expect("created");
    let mut block = [0; 4096];
    loop {
        let length = source.read(&mut block).expect("readable");
        if length == 0 {
            return true;
        }
        target.write_all(&block[..length]).expect("written");
        pause();
    }
}

/// One copy.
struct Copy {
    dir: PathBuf,
    store: u64,
    vanished: bool,
}

/// The entries of one store, as they were in the end, by region and index.
type Written = BTreeMap<RegionId, BTreeMap<u64, Entry>>;

fn read_all(log: &dyn LogReader, region: RegionId, last: Index) -> Result<Vec<Entry>, String> {
    if last == INITIAL_INDEX {
        return Ok(Vec::new());
    }
    let end = Index::new(last.get() + 1);
    let entries = log.entries(region, Index::new(INITIAL_INDEX.get() + 1), end, usize::MAX);
    entries.map_err(|error| error.to_string())
}

/// What a store that has stopped has in its log.
fn written(dir: &Path, store: u64) -> Written {
    let log = RaftEngineLogStore::open(&log_dir(dir, store), &small_files().log).expect("sound");
    let regions = log.load().expect("sound").regions;
    let read = |region: raftstore::StoredRegion| {
        let id = region.record.description.id;
        let entries = read_all(&log, id, region.last_index).expect("sound");
        (id, entries.into_iter().map(|entry| (entry.index, entry)).collect())
    };
    regions.into_iter().map(read).collect()
}

/// What became of a copy that was opened.
enum Opened {
    /// With the reason.
    Refused(String),
    /// With the regions that came up, and those that were set aside.
    Up(BTreeSet<RegionId>, BTreeMap<RegionId, String>),
}

/// Opens the log of a copy; returns the regions whose entries cannot all be read.
fn compare_log(copy: &Copy, written: &Written) -> Result<BTreeSet<RegionId>, String> {
    let path = log_dir(&copy.dir, copy.store);
    let log = RaftEngineLogStore::open(&path, &small_files().log);
    let log = log.map_err(|error| {
        let text = error.to_string();
        assert!(text.contains(path.to_str().expect("UTF-8")), "names no directory: {text}");
        text
    })?;
    let stored = log.load().map_err(|error| error.to_string())?;
    let mut unreadable: BTreeSet<_> =
        stored.damaged.iter().map(|region| region.region_id).collect();
    for region in stored.regions {
        let id = region.record.description.id;
        assert_eq!(*region.record.description, common::region(id.get(), REGIONS));
        let committed = region.hard_state.map_or(0, |state| state.commit);
        match read_all(&log, id, region.last_index) {
            Ok(entries) => {
                entries.iter().zip(INITIAL_INDEX.get() + 1..).for_each(|(entry, index)| {
                    assert_eq!(entry.index, index, "region {id}: the log has a hole");
                    let right = written[&id].get(&index);
                    // An entry that was not committed may have been replaced by one of a later term.
                    let replaced = right.is_none_or(|right| right.term != entry.term);
                    assert!(
                        !replaced || index > committed,
                        "region {id}: {entry:?} is not {right:?}"
                    );
                    assert!(
                        replaced || right == Some(entry),
                        "region {id}: {entry:?}, not {right:?}"
                    );
                })
            }
            Err(_) => {
                unreadable.insert(id);
            }
        }
    }
    Ok(unreadable)
}

/// Starts a store on a copy, and compares what it applies.
fn start(copy: &Copy, written: &Written) -> Opened {
    let unreadable = match compare_log(copy, written) {
        Ok(unreadable) => unreadable,
        Err(reason) => return Opened::Refused(reason),
    };
    let map = Arc::new(OrderedMap::new());
    let store = Store::builder(StoreId::new(copy.store))
        .config(small_files())
        .data_dir(copy.dir.join(format!("store-{}", copy.store)))
        .state_machine(map.clone())
        .transport(InProcessTransport::new())
        .start();
    let store = match store {
        Ok(store) => store,
        Err(StartError::LogStore(reason)) => return Opened::Refused(reason.to_string()),
        Err(other) => panic!("{other}"),
    };
    let handle = store.handle();
    let mut up = BTreeSet::new();
    for id in (1..=REGIONS).map(RegionId::new) {
        let mut applied = None;
        eventually("what is committed is applied", || {
            applied = handle.region_status(id).map(|status| (status.applied, status.committed));
            applied.is_none_or(|(applied, committed)| applied == committed)
        });
        if let Some((applied, _)) = applied {
            up.insert(id);
            compare_map(&map, id, applied, &written[&id]);
        }
    }
    let aside = handle.set_aside();
    assert!(unreadable.iter().all(|id| aside.contains_key(id)), "{unreadable:?}, not {aside:?}");
    Opened::Up(up, aside)
}

/// The map holds what the entries up to `applied` put there.
fn compare_map(map: &OrderedMap, id: RegionId, applied: Index, written: &BTreeMap<u64, Entry>) {
    let mut right = BTreeMap::new();
    for (_, entry) in written.range(..=applied.get()) {
        // The header of a user's command; others are the region's own.
        if entry.context.get(1) == Some(&1) {
            match MapCommand::decode(entry.data.clone()) {
                Ok(MapCommand::Put { key, value }) => {
                    right.insert(key, value);
                }
                other => panic!("nobody wrote {other:?}"),
            }
        }
    }
    let found = map.scan(id, b"", usize::MAX);
    assert!(found.into_iter().eq(right), "region {id} differs at index {applied}");
}

/// Runs a load on three stores, takes copies meanwhile and checks them all, and takes one of stores
/// that stand still, which must hold everything.
fn copy_under_load(reclaim: bool) {
    let dir = tempfile::tempdir().expect("a directory");
    let logs: Vec<Arc<dyn LogStore>> = (1..=3)
        .map(|store| RaftEngineLogStore::open(&log_dir(dir.path(), store), &small_files().log))
        .map(|log| Arc::new(log.expect("opens")) as Arc<dyn LogStore>)
        .collect();
    let cluster = Cluster::with_logs(&small_files(), &logs);
    cluster.lead_from_the_first(REGIONS);
    let acknowledged = Mutex::new(Acknowledged::new());
    let stop = AtomicBool::new(false);
    let mut copies = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            write_until(&stop, &cluster, &Acknowledged::new(), |client, number| {
                acknowledged.lock().insert(client, number + 1);
            });
        });
        scope.spawn(|| {
            while reclaim && !stop.load(Ordering::Relaxed) {
                logs.iter().for_each(|log| drop(log.reclaim().expect("healthy")));
                std::thread::yield_now();
            }
        });
        let pause = || {
            let before: u64 = acknowledged.lock().values().sum();
            eventually("writes go on", || acknowledged.lock().values().sum::<u64>() > before + 2);
        };
        for number in 0..COPIES {
            let order =
                [Order::OldestFirst, Order::NewestFirst, Order::UntilNoneIsNew][number / 3 % 3];
            let store = 1 + number as u64 % 3;
            let to = dir.path().join(format!("copy-{number}"));
            let vanished = copy(&log_dir(dir.path(), store), &log_dir(&to, store), order, pause);
            copies.push(Copy { dir: to, store, vanished });
        }
        stop.store(true, Ordering::Relaxed);
    });
    let acknowledged = acknowledged.into_inner();
    cluster.converge(REGIONS);
    let still = dir.path().join("still");
    for store in 1..=3 {
        let vanished =
            copy(&log_dir(dir.path(), store), &log_dir(&still, store), Order::OldestFirst, || ());
        assert!(!vanished, "nobody removes files");
    }
    cluster.shutdown();
    drop(logs);
    check_copies(dir.path(), &copies);
    let cluster = Cluster::on_disk(&small_files(), &still);
    cluster.bootstrap(&regions(REGIONS));
    find_all(&cluster, &acknowledged).expect("a copy of stores that stand still has everything");
    cluster.shutdown();
}

fn check_copies(dir: &Path, copies: &[Copy]) {
    let logs: Vec<Written> = (1..=3).map(|store| written(dir, store)).collect();
    let (mut whole, mut aside, mut vanished, mut refused) = (0, 0, 0, Vec::new());
    for copy in copies {
        vanished += usize::from(copy.vanished);
        match start(copy, &logs[copy.store as usize - 1]) {
            Opened::Refused(reason) => refused.push(reason),
            Opened::Up(up, reasons) => {
                let count = up.len() + reasons.len();
                // Whoever copies notices that a file is gone.
                let complete = count == REGIONS as usize || copy.vanished;
                assert!(complete, "store {}: {up:?} {reasons:?}", copy.store);
                whole += usize::from(reasons.is_empty());
                aside += usize::from(!reasons.is_empty());
            }
        }
    }
    println!("{whole} whole, {aside} with regions set aside, {vanished} short of a file");
    println!("{} refused: {refused:#?}", refused.len());
    assert!(whole > 0, "no copy came up");
}

#[test]
fn a_copy_of_a_log_that_grows_is_a_prefix_of_it_or_is_refused() {
    copy_under_load(false);
}

#[test]
fn a_copy_of_a_log_that_is_being_purged_holds_nothing_that_was_not_written() {
    copy_under_load(true);
}

#[test]
fn a_log_short_of_its_first_file_is_refused_by_name() {
    let dir = tempfile::tempdir().expect("a directory");
    let cluster = Cluster::on_disk(&small_files(), dir.path());
    cluster.lead_from_the_first(REGIONS);
    let third = log_dir(dir.path(), 1).join("0000000000000003.raftlog");
    write_while(
        &cluster,
        &Acknowledged::new(),
        |_, _| (),
        |_| {
            eventually("a third file", || third.exists());
        },
    );
    cluster.converge(REGIONS);
    cluster.shutdown();
    std::fs::remove_file(log_dir(dir.path(), 1).join("0000000000000001.raftlog")).expect("there");
    let refused = || {
        let started = Store::builder(StoreId::new(1))
            .config(small_files())
            .data_dir(dir.path().join("store-1"))
            .state_machine(Arc::new(OrderedMap::new()))
            .transport(InProcessTransport::new())
            .start();
        started.expect_err("the log is no longer whole").to_string()
    };
    let missing = refused();
    assert!(missing.contains("0000000000000001.raftlog is missing"), "{missing}");
    // Without its note too. The identity was in that file: a store that took the rest for its own would
    // have forgotten its votes.
    std::fs::remove_file(log_dir(dir.path(), 1).join("synced")).expect("there");
    let marked = refused();
    assert!(marked.contains("the log of store 1 of cluster 1 is gone"), "{marked}");
    // And without the store's mark.
    std::fs::remove_file(dir.path().join("store-1/store")).expect("there");
    let nameless = refused();
    assert!(nameless.contains("identity"), "{nameless}");
}
