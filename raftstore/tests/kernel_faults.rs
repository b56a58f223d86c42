//! Three stores in a process whose system calls fail, or take long.
//!
//! strace makes them: it runs the child and answers the n-th call of a kind in each of its threads
//! itself, or holds it up. Log writers write and sync, so it is they who meet the fault.

mod common;

use bytesize::ByteSize;
use common::process::{
    key, read_expectation, region_of, say, say_acknowledged, start_and_check, task, write_until,
    write_while, Acknowledged, Outcome, Running, CLIENTS, REGIONS,
};
use common::{config, eventually, regions, Cluster};
use raftstore::{MapCommand, ProposeError, RegionId, StoreConfig};
use rustix::process::Signal;
use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Calls of one kind that a log writer surely has behind it when everything was found.
const STARTED: u32 = 100;

/// Ends the name of a task that is done with log files so small that many are begun.
const SMALL_FILES: &str = " in small files";

/// Has strace make these calls fail or wait; with `file`, which is below the stores' directory, only
/// calls on that file.
fn strace(inject: &[&str], file: Option<&str>, dir: &Path) -> Vec<String> {
    let there = Command::new("strace").arg("--version").output();
    assert!(there.is_ok_and(|run| run.status.success()), "install strace: its package is `strace`");
    let calls: Vec<&str> = inject.iter().filter_map(|inject| inject.split(':').next()).collect();
    let log = dir.join("strace").display().to_string();
    let mut words: Vec<String> =
        ["strace", "-f", "-qq", "--seccomp-bpf", "-e", "signal=none", "-o", &log]
            .map(str::to_owned)
            .to_vec();
    words.extend(["-e".to_owned(), format!("trace={}", calls.join(","))]);
    for inject in inject {
        words.extend(["-e".to_owned(), format!("inject={inject}")]);
    }
    if let Some(file) = file {
        words.extend(["-P".to_owned(), dir.join("stores").join(file).display().to_string()]);
    }
    words.push("--".to_owned());
    words
}

/// More calls than a thread makes.
const NEVER: usize = 60_000;

const CHILD: &str = "child_of_the_kernel_fault_tests";

fn run(wrapper: &[String], task: &str, dir: &Path, acknowledged: Acknowledged) -> Outcome {
    Running::start(wrapper, CHILD, task, dir, acknowledged).end()
}

/// A start without the fault finds everything, and writes.
fn assert_healed(what: &str, dir: &Path, acknowledged: Acknowledged) {
    let before: u64 = acknowledged.values().sum();
    let healed = run(&[], "write", dir, acknowledged);
    healed.assert_sound(what);
    assert!(healed.checked, "{what}: {:?}", healed.said);
    assert!(healed.writes() >= before + 50, "{what}: too few new writes");
}

fn assert_injected(what: &str, dir: &Path) {
    let log = std::fs::read_to_string(dir.join("strace")).expect("written by strace");
    assert!(log.contains("(INJECTED)"), "{what}: no call was made to fail");
}

/// Runs `task` with the fault and then without it; returns what the stores said of their failures.
fn fails_and_heals(inject: &[&str], file: Option<&str>, task: &str) -> Vec<String> {
    let dir = tempfile::tempdir().expect("a directory");
    let what = format!("{inject:?} on {file:?}");
    let wrapper = strace(inject, file, dir.path());
    let failed = run(&wrapper, task, dir.path(), Acknowledged::new());
    failed.assert_sound(&what);
    assert_injected(&what, dir.path());
    assert!(failed.writes() > 0, "{what}: no write before the fault");
    assert_healed(&what, dir.path(), failed.acknowledged);
    failed.said.into_iter().filter(|line| line.starts_with("failed")).collect()
}

fn assert_all_say(failures: &[String], text: &str) {
    let all = failures.iter().all(|failure| failure.contains(text));
    assert!(!failures.is_empty() && all, "not about {text}: {failures:?}");
}

#[test]
fn a_failed_sync_stops_its_store_with_a_name_and_the_others_go_on() {
    let inject = format!("fdatasync:error=EIO:when={STARTED}");
    let file = "store-1/raft-log/0000000000000001.raftlog";
    let failures = fails_and_heals(&[&inject], Some(file), "one fails");
    assert_eq!(failures.len(), 1, "{failures:?}");
    assert_all_say(&failures, "failed 1 cannot write the log: a sync failed: fdatasync");
}

#[test]
fn syncs_that_fail_on_every_store_lose_nothing_that_was_acknowledged() {
    let inject = format!("fdatasync:error=EIO:when={STARTED}");
    let failures = fails_and_heals(&[&inject], None, "a quorum fails");
    assert_all_say(&failures, "cannot write the log: a sync failed: fdatasync");
}

#[test]
fn a_log_directory_that_cannot_be_synced_stops_its_store() {
    // It is synced where the next log file begins; by the thread that starts the stores a few times before.
    let failures =
        fails_and_heals(&["fsync:error=EIO:when=14"], None, "a quorum fails in small files");
    assert_all_say(&failures, "cannot write the log");
    assert_all_say(&failures, "Input/output error");
}

#[test]
fn writes_that_fail_stop_their_store_and_lose_nothing_that_was_acknowledged() {
    let inject = format!("pwrite64:error=EIO:when={STARTED}");
    let failures = fails_and_heals(&[&inject], None, "a quorum fails");
    assert_all_say(&failures, "pwrite");
    // And what the failed write left cannot be cut off either.
    let cut = "ftruncate:error=EIO:when=1+";
    let failures = fails_and_heals(&[&inject, cut], None, "a quorum fails");
    assert_all_say(&failures, "cannot write the log");
}

#[test]
fn a_next_log_file_that_cannot_be_opened_stops_its_store() {
    let file = "store-1/raft-log/0000000000000002.raftlog";
    let failures =
        fails_and_heals(&["openat:error=EMFILE:when=1"], Some(file), "one fails in small files");
    assert_eq!(failures.len(), 1, "{failures:?}");
    assert_all_say(&failures, "\"open\"");
}

#[test]
fn a_sync_that_fails_at_shutdown_ends_nothing_else() {
    let shut_down = |when: usize| {
        let dir = tempfile::tempdir().expect("a directory");
        let inject = format!("fdatasync:error=EIO:when={when}");
        let wrapper = strace(&[&inject], None, dir.path());
        let outcome = run(&wrapper, "shut down", dir.path(), Acknowledged::new());
        outcome.assert_sound("a shutdown");
        (dir, outcome)
    };
    // One in peace, to see how often the thread syncs that starts the stores and ends them.
    let (dir, _) = shut_down(NEVER);
    let log = std::fs::read_to_string(dir.path().join("strace")).expect("written by strace");
    let syncs: Vec<&str> = log.lines().filter(|line| line.contains("fdatasync(")).collect();
    let thread = |line: &str| line.split(' ').next().map(ToOwned::to_owned);
    let last = thread(syncs.last().expect("stores sync when they end"));
    let count = syncs.iter().filter(|line| thread(line) == last).count();
    // For each store it closes two files and the note of what is synced.
    for when in [count - 8, count - 7, count] {
        let (dir, outcome) = shut_down(when);
        assert_injected("a shutdown", dir.path());
        assert_healed("a shutdown", dir.path(), outcome.acknowledged);
    }
}

/// A child whose syncs take long from the [`STARTED`]th on. Returns when so many threads have met one.
fn slow_syncs(
    task: &str,
    dir: &Path,
    delay: Duration,
    file: Option<&str>,
    threads: usize,
) -> Running {
    let inject = format!("fdatasync:delay_enter={}:when={STARTED}+", delay.as_micros());
    let wrapper = strace(&[&inject], file, dir);
    let mut child = Running::start(&wrapper, CHILD, task, dir, Acknowledged::new());
    eventually("syncs take long", || {
        child.read_for(Duration::from_millis(10));
        let log = std::fs::read_to_string(dir.join("strace")).unwrap_or_default();
        let slow = log.lines().filter(|line| line.contains("(DELAYED)"));
        let met: BTreeSet<_> = slow.map(|line| line.split(' ').next()).collect();
        met.len() >= threads
    });
    child
}

fn kill_and_heal(what: &str, child: Running, dir: &Path) {
    child.signal(Signal::KILL);
    let killed = child.end();
    assert!(!killed.said.iter().any(|line| line.starts_with("lost")), "{what}: {:?}", killed.said);
    assert_healed(what, dir, killed.acknowledged);
}

#[test]
fn a_store_whose_syncs_take_long_stops_nobody_and_a_kill_meanwhile_loses_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = "store-1/raft-log/0000000000000001.raftlog";
    let mut child = slow_syncs("forever", dir.path(), Duration::from_millis(100), Some(file), 1);
    child.wait_for_writes(5 * CLIENTS);
    kill_and_heal("one slow store", child, dir.path());
}

#[test]
fn nothing_is_acknowledged_before_a_sync_has_ended_and_a_kill_meanwhile_loses_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let delay = Duration::from_millis(300);
    let mut child = slow_syncs("on demand", dir.path(), delay, None, 3);
    child.ask("stop the load");
    let count =
        || std::fs::read_to_string(dir.path().join("strace")).expect("there").lines().count();
    for _ in 0..2 {
        // Until no sync is under way that a write could take for its own.
        let (mut last, mut since) = (count(), Instant::now());
        eventually("no store syncs", || {
            child.read_for(Duration::from_millis(10));
            let now = count();
            if now != last {
                (last, since) = (now, Instant::now());
            }
            since.elapsed() > 2 * delay
        });
        let start = Instant::now();
        child.ask("write");
        child.wait_for_writes(1);
        let took = start.elapsed();
        assert!(took >= delay, "acknowledged after {took:?}, and a sync takes {delay:?}");
    }
    child.ask("write");
    child.read_for(delay / 2);
    kill_and_heal("slow stores", child, dir.path());
}

/// Does nothing unless a test above runs it.
#[test]
fn child_of_the_kernel_fault_tests() {
    let Some((dir, task)) = task() else { return };
    let mut config = config();
    let task = match task.strip_suffix(SMALL_FILES) {
        Some(task) => {
            config.log.target_file_size = ByteSize::kib(32);
            task
        }
        None => &task,
    };
    match task {
        "shut down" => {
            // No timer runs out, so only this thread writes.
            config.raft.tick_interval = Duration::from_secs(60);
            let cluster = Cluster::on_disk(&config, &dir.join("stores"));
            cluster.bootstrap(&regions(REGIONS));
            cluster.shutdown();
        }
        "write" => {
            let cluster = start_and_check(&config, &dir);
            write_while(&cluster, &read_expectation(&dir), say_acknowledged, |written| {
                eventually("new writes", || written.load(Ordering::Relaxed) >= 50);
            });
            cluster.shutdown();
        }
        "one fails" => fail(&config, &dir, 1),
        "a quorum fails" => fail(&config, &dir, 2),
        "forever" => {
            let cluster = start_and_check(&config, &dir);
            let never = AtomicBool::new(false);
            write_until(&never, &cluster, &read_expectation(&dir), say_acknowledged);
        }
        "on demand" => {
            // So that nobody takes a leader for dead whose sync takes long.
            config.raft.tick_interval = Duration::from_millis(200);
            let cluster = start_and_check(&config, &dir);
            let mut lines = std::io::stdin().lines();
            write_while(&cluster, &read_expectation(&dir), say_acknowledged, |_| {
                lines.next();
            });
            // As one more client.
            for (number, _) in (0..).zip(lines) {
                let key = key(CLIENTS, number);
                let payload = MapCommand::put(key.clone(), key).encode();
                // The same key and value: writing it twice does no harm.
                while cluster.write(region_of(CLIENTS, number), &payload).is_err() {}
                say_acknowledged(CLIENTS, number);
            }
        }
        other => panic!("no task {other}"),
    }
    say("down");
}

/// Writes until so many stores have failed; fewer than a quorum, and the writes must go on.
fn fail(config: &StoreConfig, dir: &Path, count: usize) {
    let cluster = start_and_check(config, dir);
    let failed = || -> Vec<usize> {
        (0..3).filter(|store| cluster.handle(*store).failure().is_some()).collect()
    };
    write_while(&cluster, &read_expectation(dir), say_acknowledged, |written| {
        eventually("stores fail", || failed().len() >= count);
        if count == 1 {
            let before = written.load(Ordering::Relaxed);
            eventually("writes go on", || written.load(Ordering::Relaxed) > before + 5 * CLIENTS);
        }
    });
    for store in failed() {
        let handle = cluster.handle(store);
        say(&format!("failed {} {}", store + 1, handle.failure().expect("it has failed")));
        for id in 1..=REGIONS {
            let late = handle.propose(RegionId::new(id), MapCommand::put("late", "").encode());
            assert!(matches!(late, Err(ProposeError::Stopped { .. })), "{late:?}");
        }
    }
    cluster.shutdown();
}
