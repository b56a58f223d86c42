//! A real process with three stores on a real disk, killed at random moments.
//!
//! The test runs itself as a child: the child starts the stores, checks what is there, and then writes
//! without end, telling each acknowledgement on its standard output. The parent reads those lines,
//! kills the child with SIGKILL, and starts it again with what was acknowledged so far.
//!
//! `KILL_CYCLES=300 cargo test -p raftstore --test kill` runs it for longer.

mod common;

use common::{config, regions, Cluster};
use raftstore::{MapCommand, RegionId};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

const REGIONS: u64 = 8;
const CLIENTS: u64 = 8;
const DIRECTORY: &str = "RAFTSTORE_KILL_TEST_DIRECTORY";
const SEED: &str = "RAFTSTORE_KILL_TEST_SEED";

/// By client: how many of its writes, numbered from 0, were acknowledged.
type Acknowledged = BTreeMap<u64, u64>;

#[test]
fn killed_stores_keep_every_acknowledged_write() {
    let cycles: u64 =
        std::env::var("KILL_CYCLES").map_or(30, |text| text.parse().expect("a number"));
    let dir = tempfile::tempdir().expect("a directory");
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
        let cycle_result = run_and_kill(dir.path(), &moment, &mut acknowledged);
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
    moment: &Moment,
    acknowledged: &mut Acknowledged,
) -> Result<(), String> {
    write_expectation(dir, acknowledged);
    let mut child = spawn_child(dir);
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
            Ok(line) => {
                if take_line(&line, acknowledged, &mut problem) {
                    checked = true;
                    deadline = match moment {
                        Moment::Started(_) => deadline,
                        Moment::Loaded(life) => Instant::now() + *life,
                        Moment::Checked => Instant::now(),
                    };
                }
            }
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
        }
    }
    let exited = child.try_wait().expect("a child of ours");
    child.kill().expect("a child of ours");
    child.wait().expect("a child of ours");
    // What it had told before it died counts.
    while let Ok(line) = lines.recv() {
        checked |= take_line(&line, acknowledged, &mut problem);
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

/// Whether the line says that everything was found.
fn take_line(line: &str, acknowledged: &mut Acknowledged, problem: &mut Option<String>) -> bool {
    let words: Vec<&str> = line.split_whitespace().collect();
    match words[..] {
        ["ack", client, number] => {
            let client = client.parse().expect("a number");
            let number: u64 = number.parse().expect("a number");
            acknowledged.insert(client, number + 1);
        }
        ["checked"] => return true,
        ["lost", ..] => *problem = Some(line.to_owned()),
        // The test harness of the child talks too.
        _ => {}
    }
    false
}

fn write_expectation(dir: &Path, acknowledged: &Acknowledged) {
    let lines: Vec<String> =
        acknowledged.iter().map(|(client, count)| format!("{client} {count}\n")).collect();
    std::fs::write(dir.join("acknowledged"), lines.concat()).expect("written");
}

fn spawn_child(dir: &Path) -> Child {
    Command::new(std::env::current_exe().expect("this test"))
        .args(["--exact", "child_of_the_kill_test", "--nocapture", "--test-threads=1"])
        .env(DIRECTORY, dir)
        .stdout(Stdio::piped())
        .stdin(Stdio::null())
        .spawn()
        .expect("this test can be run again")
}

fn read_lines(child: &mut Child) -> Receiver<String> {
    let (sender, lines) = std::sync::mpsc::channel();
    let output = child.stdout.take().expect("piped");
    std::thread::spawn(move || {
        // A line cut off by the kill has no line break and is no acknowledgement.
        let mut reader = BufReader::new(output);
        let mut line = String::new();
        while reader.read_line(&mut line).is_ok_and(|length| length > 0) {
            if line.ends_with('\n') && sender.send(line.clone()).is_err() {
                return;
            }
            line.clear();
        }
    });
    lines
}

fn clock_seed() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.expect("after 1970").as_nanos() as u64
}

/// Does nothing unless the kill test runs it.
#[test]
fn child_of_the_kill_test() {
    let Some(dir) = std::env::var_os(DIRECTORY) else { return };
    // The harness has begun a line of its own.
    say("");
    let dir = Path::new(&dir);
    let cluster = Cluster::on_disk(&config(), &dir.join("stores"));
    cluster.bootstrap(&regions(REGIONS));
    // Each time another store stands for election first.
    let first = std::process::id() as usize % 3;
    for id in 1..=REGIONS {
        cluster.handle(first).campaign(RegionId::new(id));
    }
    let expected = std::fs::read_to_string(dir.join("acknowledged")).expect("written before");
    // A write to each region comes after everything acknowledged before: then its leader has it all.
    for id in 1..=REGIONS {
        let barrier = MapCommand::put("barrier", "").encode();
        cluster.write(RegionId::new(id), &barrier).expect("the region serves");
    }
    cluster.converge(REGIONS);
    let mut begin = vec![0; CLIENTS as usize];
    for line in expected.lines() {
        let (client, count) = line.split_once(' ').expect("two words");
        let (client, count): (u64, u64) =
            (client.parse().expect("a number"), count.parse().expect("a number"));
        for number in 0..count {
            check(&cluster, client, number);
        }
        begin[client as usize] = count;
    }
    say("checked");
    write_without_end(&cluster, &begin);
}

fn key(client: u64, number: u64) -> String {
    format!("{client:04}/{number:08}")
}

fn region_of(client: u64, number: u64) -> RegionId {
    RegionId::new(1 + (client + number) % REGIONS)
}

fn check(cluster: &Cluster, client: u64, number: u64) {
    let key = key(client, number);
    for (store, map) in cluster.maps.iter().enumerate() {
        let found = map.get(region_of(client, number), key.as_bytes());
        if found.as_deref() != Some(key.as_bytes()) {
            say(&format!("lost {key} on store {store}: {found:?}"));
            std::process::exit(1);
        }
    }
}

fn say(line: &str) {
    // One write a line, so that a kill cannot mix two.
    let mut output = std::io::stdout().lock();
    output.write_all(format!("{line}\n").as_bytes()).expect("the parent reads");
    output.flush().expect("the parent reads");
}

fn write_without_end(cluster: &Cluster, begin: &[u64]) {
    let leader = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for client in 0..CLIENTS {
            let (begin, leader) = (begin[client as usize], &leader);
            scope.spawn(move || {
                for number in begin.. {
                    let key = key(client, number);
                    let payload = MapCommand::put(key.clone(), key).encode();
                    let region = region_of(client, number);
                    loop {
                        let store = leader.load(Ordering::Relaxed);
                        match cluster.handle(store % 3).propose(region, payload.clone()) {
                            Ok(_) => break,
                            // The same key and value: writing it twice does no harm.
                            Err(_) => leader.fetch_add(1, Ordering::Relaxed),
                        };
                        std::thread::yield_now();
                    }
                    say(&format!("ack {client} {number}"));
                }
            });
        }
    });
}
