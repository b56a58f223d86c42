//! A real process with three stores on a real disk, killed at random moments.
//!
//! The test runs itself as a child: the child starts the stores, checks what is there, and then writes
//! without end, telling each acknowledgement on its standard output. The parent reads those lines,
//! kills the child with SIGKILL, and starts it again with what was acknowledged so far.
//!
//! `KILL_CYCLES=300 cargo test -p raftstore --test kill` runs it for longer.

mod common;

use common::process::{
    check, read_expectation, read_lines, say_acknowledged, spawn, take_line, task,
    write_expectation, write_until, Acknowledged, Said,
};
use common::{config, Cluster, TestMap};
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

const SEED: &str = "RAFTSTORE_KILL_TEST_SEED";

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
        // How far depends on how many writes this machine has managed; a log begins at index 5.
        assert!(cut.iter().all(|index| *index > 5), "store {id} keeps its logs: {cut:?}");
    }
}

/// Kills a child that does this task.
fn kill_again_and_again(dir: &Path, task: &str, cycles: u64) {
    let cycles =
        std::env::var("KILL_CYCLES").map_or(cycles, |text| text.parse().expect("a number"));
    let seed =
        std::env::var(SEED).map_or_else(|_| clock_seed(), |text| text.parse().expect("a number"));
    println!("replay the moments of the kills with {SEED}={seed}");
    let mut acknowledged = Acknowledged::new();
    let mut random = seed;
    for cycle in 0..cycles {
        random =
            random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        // Every fourth kill hits recovery or an election, the others hit the load.
        let moment = match (cycle == cycles - 1, cycle % 4 == 3) {
            (true, _) => Moment::Checked,
            (false, true) => Moment::Started(Duration::from_millis((random >> 33) % 100)),
            (false, false) => Moment::Loaded(Duration::from_millis((random >> 33) % 200)),
        };
        let cycle_result = run_and_kill(dir, task, &moment, &mut acknowledged);
        if let Err(problem) = cycle_result {
            panic!("cycle {cycle}, seed {seed}: {problem}");
        }
    }
    let total: u64 = acknowledged.values().sum();
    println!("{cycles} kills, {total} acknowledged writes, none lost");
    assert!(total > 10 * cycles, "too few writes ({total}) to mean anything");
}

/// When to kill the child.
enum Moment {
    /// So long after its start.
    Started(Duration),
    /// So long after it has found everything and begins to write.
    Loaded(Duration),
    /// Once it has found everything.
    Checked,
}

/// One life of the child.
fn run_and_kill(
    dir: &Path,
    task: &str,
    moment: &Moment,
    acknowledged: &mut Acknowledged,
) -> Result<(), String> {
    write_expectation(dir, acknowledged);
    let mut child = spawn(&[], "child_of_the_kill_test", task, dir);
    let lines = read_lines(&mut child);
    let mut deadline = Instant::now()
        + match moment {
            Moment::Started(life) => *life,
            _ => common::DEADLINE,
        };
    let mut checked = false;
    let mut problem = None;
    while problem.is_none() {
        let left = deadline.saturating_duration_since(Instant::now());
        match lines.recv_timeout(left) {
            Ok(line) => match take_line(line, acknowledged) {
                Said::Checked => {
                    checked = true;
                    deadline = match moment {
                        Moment::Started(_) => deadline,
                        Moment::Loaded(life) => Instant::now() + *life,
                        Moment::Checked => Instant::now(),
                    };
                }
                Said::Other(line) if line.starts_with("lost") => problem = Some(line),
                // The test harness of the child talks too.
                Said::Acknowledged | Said::Other(_) => {}
            },
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
        }
    }
    let exited = child.try_wait().expect("a child of ours");
    child.kill().expect("a child of ours");
    child.wait().expect("a child of ours");
    // What it had told before it died counts.
    while let Ok(line) = lines.recv() {
        match take_line(line, acknowledged) {
            Said::Checked => checked = true,
            Said::Other(line) if line.starts_with("lost") => problem = Some(line),
            Said::Acknowledged | Said::Other(_) => {}
        }
    }
    match (problem, exited) {
        (Some(problem), _) => Err(problem),
        (None, Some(status)) => Err(format!("the child ended by itself: {status}")),
        (None, None) if !checked && !matches!(moment, Moment::Started(_)) => {
            Err(format!("not everything was found within {:?}", common::DEADLINE))
        }
        (None, None) => Ok(()),
    }
}

fn clock_seed() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.expect("after 1970").as_nanos() as u64
}

/// Does nothing unless the kill test runs it.
#[test]
fn child_of_the_kill_test() {
    let Some((dir, task)) = task() else { return };
    match task.as_str() {
        #[cfg(feature = "fjall")]
        "on disk" => live(on_disk(&dir.join("stores")), &dir),
        _ => live(Cluster::on_disk(&config(), &dir.join("stores")), &dir),
    }
}

fn live<M: TestMap>(cluster: Cluster<M>, dir: &Path) {
    let cluster = check(cluster, dir);
    write_until(&AtomicBool::new(false), &cluster, &read_expectation(dir), say_acknowledged);
}

/// Stores that sync their maps and cut their logs often.
#[cfg(feature = "fjall")]
fn on_disk(dir: &Path) -> Cluster<raftstore::FjallMap> {
    let mut store_config = config();
    store_config.raft.compact_after_entries = 50;
    let sync_interval = Duration::from_millis(20);
    let config = raftstore::FjallConfig { sync_interval, ..raftstore::FjallConfig::default() };
    let store_dir = |id: u64| dir.join(format!("store-{id}"));
    Cluster::build(
        &store_config,
        |id| raftstore::FjallMap::open(store_dir(id).join("map"), &config).expect("opens"),
        |builder, id| builder.data_dir(store_dir(id)),
    )
}
