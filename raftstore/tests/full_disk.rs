//! Stores whose disk becomes full, on a small file system in memory.
//!
//! The child mounts it in a mount namespace of its own, so nobody else sees it and nothing is left.

mod common;

use bytesize::ByteSize;
use common::process::{
    find_all, key, region_of, say, say_acknowledged, task, write_while, Acknowledged, Running,
    CLIENTS, REGIONS,
};
use common::{config, eventually, regions, Cluster};
use parking_lot::Mutex;
use raftstore::{
    InProcessTransport, MapCommand, OrderedMap, RegionId, StartError, Store, StoreConfig, StoreId,
};
use std::io::{ErrorKind, Write};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

/// `unshare` with what it takes to mount something: root's right, or a user namespace.
fn unshare() -> Vec<String> {
    let mut refusals = Vec::new();
    for options in [&["--mount"][..], &["--user", "--map-root-user", "--mount"]] {
        let run = Command::new("unshare").args(options).args(["--", "true"]).output();
        match run {
            Ok(run) if run.status.success() => {
                let words = ["unshare"].iter().chain(options).chain(&["--"]);
                return words.map(ToString::to_string).collect();
            }
            Ok(run) => refusals.push(String::from_utf8_lossy(&run.stderr).into_owned()),
            Err(error) => refusals.push(error.to_string()),
        }
    }
    panic!("unshare, of the package `util-linux`, must make a mount namespace: {refusals:?}");
}

fn fill_and_free(task: &str) {
    let dir = tempfile::tempdir().expect("a directory");
    let name = "child_of_the_full_disk_tests";
    let child = Running::start(&unshare(), name, task, dir.path(), Acknowledged::new());
    let outcome = child.end();
    outcome.assert_sound(task);
    println!("{:?}", outcome.said);
    assert!(outcome.writes() > 10 * CLIENTS, "too few writes before the disk was full");
}

#[test]
fn stores_on_a_full_disk_stop_with_a_name_and_go_on_once_there_is_room() {
    fill_and_free("all");
}

#[test]
fn a_store_on_a_full_disk_stops_alone_and_catches_up_once_there_is_room() {
    fill_and_free("one");
}

fn small_files() -> StoreConfig {
    let mut config = config();
    config.log.target_file_size = ByteSize::kib(32);
    config
}

/// Does nothing unless a test above runs it.
#[test]
fn child_of_the_full_disk_tests() {
    let Some((dir, task)) = task() else { return };
    let panics = Arc::new(AtomicU64::new(0));
    let (count, report) = (panics.clone(), std::panic::take_hook());
    std::panic::set_hook(Box::new(move |panic| {
        count.fetch_add(1, Ordering::Relaxed);
        report(panic);
    }));
    let stores = dir.join("stores");
    let (disk, failures) = match task.as_str() {
        "all" => (stores.clone(), 2),
        "one" => (stores.join("store-1"), 1),
        other => panic!("no task {other}"),
    };
    std::fs::create_dir_all(&disk).expect("created");
    let size = format!("size={}k", if failures == 1 { 384 } else { 1024 });
    let mut mount = Command::new("mount");
    let mounted = mount.args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(&disk).status();
    assert!(mounted.expect("mount is there").success(), "no tmpfs");
    std::fs::write(disk.join("filler"), vec![1; 128 << 10]).expect("there is room");

    let acknowledged = write_until_full(&stores, failures);
    fill(&disk.join("rest"));
    start_on_full_disk(&stores);
    // Room comes back.
    std::fs::remove_file(disk.join("filler")).expect("it is there");
    std::fs::remove_file(disk.join("rest")).expect("it is there");
    let cluster = Cluster::on_disk(&small_files(), &stores);
    cluster.bootstrap(&regions(REGIONS));
    find_all(&cluster, &acknowledged).unwrap_or_else(|lost| say(&lost));
    write_while(&cluster, &acknowledged, say_acknowledged, |written| {
        eventually("writes go on", || written.load(Ordering::Relaxed) > 5 * CLIENTS);
    });
    cluster.converge(REGIONS);
    cluster.shutdown();
    assert_eq!(panics.load(Ordering::Relaxed), 0, "something has panicked");
    say("down");
}

/// Writes until so many stores have failed, and looks at what they say then.
fn write_until_full(stores: &Path, failures: usize) -> Acknowledged {
    let cluster = Cluster::on_disk(&small_files(), stores);
    cluster.lead_from_the_first(REGIONS);
    let acknowledged = Mutex::new(Acknowledged::new());
    let note = |client, number| {
        say_acknowledged(client, number);
        acknowledged.lock().insert(client, number + 1);
    };
    let failed = || -> Vec<usize> {
        (0..3).filter(|store| cluster.handle(*store).failure().is_some()).collect()
    };
    write_while(&cluster, &Acknowledged::new(), note, |written| {
        eventually("the disk is full", || failed().len() >= failures);
        if failures == 1 {
            let before = written.load(Ordering::Relaxed);
            eventually("writes go on", || written.load(Ordering::Relaxed) > before + 5 * CLIENTS);
        }
    });
    for store in failed() {
        let handle = cluster.handle(store);
        let failure = handle.failure().expect("it has failed").to_string();
        say(&format!("failed {} {failure}", store + 1));
        let named = failure.contains("cannot write the log") && failure.contains("StorageFull");
        assert!(named, "{failure}");
        for id in (1..=REGIONS).map(RegionId::new) {
            let late = handle.propose(id, MapCommand::put("late", "").encode());
            assert!(late.is_err_and(|error| !error.may_have_happened()), "it has stopped");
            // What was applied before is there to be read.
            assert!(cluster.maps[store].len(id) > 0, "nothing of region {id} on store {store}");
        }
    }
    let acknowledged = acknowledged.into_inner();
    for (client, count) in &acknowledged {
        for number in 0..*count {
            let key = key(*client, number);
            let region = region_of(*client, number);
            let found = cluster.maps.iter().any(|map| map.get(region, key.as_bytes()).is_some());
            assert!(found, "{key} cannot be read anywhere");
        }
    }
    cluster.shutdown();
    acknowledged
}

/// Takes all the room that is left.
fn fill(path: &Path) {
    let mut file = std::fs::File::create(path).expect("created");
    loop {
        match file.write(&[1; 512]) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::StorageFull => return,
            Err(error) => panic!("{error}"),
        }
    }
}

/// Each store starts, or says why not.
fn start_on_full_disk(stores: &Path) {
    for id in 1..=3 {
        let dir = stores.join(format!("store-{id}"));
        let started = Store::builder(StoreId::new(id))
            .config(small_files())
            .data_dir(&dir)
            .state_machine(Arc::new(OrderedMap::new()))
            .transport(InProcessTransport::new())
            .start();
        match started {
            Ok(store) => {
                say(&format!("store {id} starts with {} regions", store.handle().region_count()));
                assert!(store.handle().set_aside().is_empty(), "{:?}", store.handle().set_aside());
                assert_eq!(store.handle().region_count() as u64, REGIONS);
            }
            Err(StartError::LogStore(error)) => {
                let text = error.to_string();
                say(&format!("store {id} does not start: {text}"));
                assert!(text.contains(dir.to_str().expect("UTF-8")), "{text}");
                assert!(text.contains("StorageFull"), "{text}");
            }
            Err(other) => panic!("{other}"),
        }
    }
}
