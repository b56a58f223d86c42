//! A real process with three stores on a real disk, killed at random moments.
//!
//! The test runs itself as a child: the child starts the stores, checks what is there, and then writes
//! without end, telling each acknowledgement on its standard output. The parent reads those lines,
//! kills the child with SIGKILL, and starts it again with what was acknowledged so far.
//!
//! `KILL_CYCLES=300 cargo test -p raftstore --test kill` runs it for longer.

mod common;

use common::killing::Killing;
use common::process::{check, read_expectation, say_acknowledged, task, write_until};
use common::{config, Cluster, TestMap};
use std::path::Path;
use std::sync::atomic::AtomicBool;

#[test]
fn killed_stores_keep_every_acknowledged_write() {
    let dir = tempfile::tempdir().expect("a directory");
    kill_again_and_again(dir.path(), "in memory", 30);
}

/// Here the state machine is on disk as well, so the logs are cut, and what they held must be in it.
#[cfg(feature = "fjall")]
#[test]
fn killed_stores_keep_every_acknowledged_write_in_a_map_on_disk() {
    let dir = tempfile::tempdir().expect("a directory");
    kill_again_and_again(dir.path(), "on disk", 16);
    for id in 1..=3 {
        let path = dir.path().join(format!("stores/store-{id}/raft-log"));
        let log = raftstore::RaftEngineLogStore::open(&path, &Default::default()).expect("opens");
        let stored = raftstore::LogStore::load(&log).expect("readable");
        let cut: Vec<u64> =
            stored.regions.iter().map(|region| region.truncated.index.get()).collect();
        println!("store {id}: the logs begin behind {cut:?}");
        // How far depends on how many writes a busy machine has done.
        let begin = raftstore::INITIAL_INDEX.get();
        assert!(cut.iter().all(|index| *index > begin), "store {id} keeps its logs: {cut:?}");
    }
}

/// Kills a child that does this task.
fn kill_again_and_again(dir: &Path, task: &str, cycles: u64) {
    let child = "child_of_the_kill_test";
    Killing { child, task, dir, cycles, wanted: &[], load_ms: 200, start_ms: 100 }.run();
}

/// Does nothing unless the kill test runs it.
#[test]
fn child_of_the_kill_test() {
    let Some((dir, task)) = task() else { return };
    match task.as_str() {
        #[cfg(feature = "fjall")]
        "on disk" => {
            let mut config = config();
            config.raft.compact_after_entries = 50;
            live(Cluster::with_maps_on_disk(3, &config, &dir.join("stores")), &dir);
        }
        _ => live(Cluster::on_disk(&config(), &dir.join("stores")), &dir),
    }
}

fn live<M: TestMap>(cluster: Cluster<M>, dir: &Path) {
    let cluster = check(cluster, dir);
    write_until(&AtomicBool::new(false), &cluster, &read_expectation(dir), say_acknowledged);
}
