//! A test that runs itself again as a child process, and the load that the child puts on its stores.
//!
//! The child says in lines on its standard output what it found and what was acknowledged. Whatever
//! becomes of it, the parent knows what the next one must find.

use super::{eventually, regions, Cluster, TestMap, DEADLINE};
use raftstore::{MapCommand, RegionId, StoreConfig};
use rustix::process::{kill_process, Pid, Signal};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

pub const REGIONS: u64 = 8;
pub const CLIENTS: u64 = 8;
const DIRECTORY: &str = "RAFTSTORE_TEST_DIRECTORY";
const TASK: &str = "RAFTSTORE_TEST_TASK";

/// By client: how many of its writes, numbered from 0, were acknowledged.
pub type Acknowledged = BTreeMap<u64, u64>;

/// Runs the test `name` of this file as a child, below the programs of `wrapper`.
pub fn spawn(wrapper: &[String], name: &str, task: &str, dir: &Path) -> Child {
    let this_test = std::env::current_exe().expect("this test");
    let this_test = this_test.to_str().expect("UTF-8").to_owned();
    let mut words = wrapper.to_vec();
    words.push(this_test);
    Command::new(&words[0])
        .args(&words[1..])
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env(DIRECTORY, dir)
        .env(TASK, task)
        .stdout(Stdio::piped())
        .stdin(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("cannot run {}: {error}", words[0]))
}

/// In a child: its directory and its task.
pub fn task() -> Option<(PathBuf, String)> {
    let dir = PathBuf::from(std::env::var_os(DIRECTORY)?);
    // The harness has begun a line of its own.
    say("");
    say(&format!("pid {}", std::process::id()));
    Some((dir, std::env::var(TASK).unwrap_or_default()))
}

/// What the child says, line by line, until its end.
pub fn read_lines(child: &mut Child) -> Receiver<String> {
    let (sender, lines) = std::sync::mpsc::channel();
    let output = child.stdout.take().expect("piped");
    std::thread::spawn(move || {
        // A line cut off by a kill has no line break and is no acknowledgement.
        let mut reader = BufReader::new(output);
        let mut line = String::new();
        while reader.read_line(&mut line).is_ok_and(|length| length > 0) {
            if line.ends_with('\n') && sender.send(line.trim_end().to_owned()).is_err() {
                return;
            }
            line.clear();
        }
    });
    lines
}

/// What one line of a child says.
pub enum Said {
    /// A write was acknowledged; it has been noted.
    Acknowledged,
    /// Everything acknowledged before was found.
    Checked,
    /// Something else: `lost ...` is the end of the test.
    Other(String),
}

pub fn take_line(line: String, acknowledged: &mut Acknowledged) -> Said {
    let words: Vec<&str> = line.split_whitespace().collect();
    match words[..] {
        ["ack", client, number] => {
            let client = client.parse().expect("a number");
            let number: u64 = number.parse().expect("a number");
            acknowledged.insert(client, number + 1);
            Said::Acknowledged
        }
        ["checked"] => Said::Checked,
        _ => Said::Other(line),
    }
}

/// A child that runs, and what it has said besides acknowledgements.
pub struct Running {
    child: Child,
    lines: Receiver<String>,
    pid: Option<Pid>,
    said: Vec<String>,
    checked: bool,
    pub acknowledged: Acknowledged,
}

impl Running {
    /// The child must find what is acknowledged already.
    pub fn start(
        wrapper: &[String],
        name: &str,
        task: &str,
        dir: &Path,
        acknowledged: Acknowledged,
    ) -> Self {
        write_expectation(dir, &acknowledged);
        let mut child = spawn(wrapper, name, task, dir);
        let lines = read_lines(&mut child);
        Self { child, lines, pid: None, said: Vec::new(), checked: false, acknowledged }
    }

    /// Reads for so long; returns how many acknowledgements there were, and whether it goes on.
    pub fn read_for(&mut self, time: Duration) -> (u64, bool) {
        let (end, mut count) = (Instant::now() + time, 0);
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let line = match self.lines.recv_timeout(left) {
                Ok(line) => line,
                Err(error) => return (count, error == RecvTimeoutError::Timeout),
            };
            match take_line(line, &mut self.acknowledged) {
                Said::Acknowledged => count += 1,
                Said::Checked => self.checked = true,
                Said::Other(line) => {
                    if let Some(pid) = line.strip_prefix("pid ") {
                        self.pid = Pid::from_raw(pid.parse().expect("a number"));
                    }
                    self.said.push(line);
                }
            }
        }
    }

    /// Waits for so many acknowledgements.
    pub fn wait_for_writes(&mut self, count: u64) {
        let mut more = 0;
        eventually("writes go on", || {
            let (read, goes_on) = self.read_for(Duration::from_millis(10));
            more += read;
            assert!(goes_on, "it has ended, and said {:?}", self.said);
            more >= count
        });
    }

    /// To the child itself, not to what runs it.
    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid.expect("it has said so"), signal).expect("it runs");
    }

    /// Says a line to the child.
    pub fn ask(&mut self, line: &str) {
        let input = self.child.stdin.as_mut().expect("piped");
        input.write_all(format!("{line}\n").as_bytes()).expect("it reads");
    }

    /// Reads to the end; kills a child that does not come to it.
    pub fn end(mut self) -> Outcome {
        if self.read_for(DEADLINE).1 {
            self.child.kill().expect("a child of ours");
        }
        let status = self.child.wait().expect("a child of ours");
        let Self { said, checked, acknowledged, .. } = self;
        Outcome { status, said, checked, acknowledged }
    }
}

/// What became of a child.
pub struct Outcome {
    pub status: ExitStatus,
    pub said: Vec<String>,
    /// Whether it found everything.
    pub checked: bool,
    pub acknowledged: Acknowledged,
}

impl Outcome {
    pub fn writes(&self) -> u64 {
        self.acknowledged.values().sum()
    }

    /// It lost nothing and came to its own end.
    pub fn assert_sound(&self, what: &str) {
        let (said, status) = (&self.said, self.status);
        assert!(!said.iter().any(|line| line.starts_with("lost")), "{what}: {said:?}");
        assert!(status.code() == Some(0), "{what}: ended with {status}, and said {said:?}");
        assert!(said.iter().any(|line| line == "down"), "{what}: {said:?}");
    }
}

/// What the next child must find.
pub fn write_expectation(dir: &Path, acknowledged: &Acknowledged) {
    let lines: Vec<String> =
        acknowledged.iter().map(|(client, count)| format!("{client} {count}\n")).collect();
    std::fs::write(dir.join("acknowledged"), lines.concat()).expect("written");
}

pub fn read_expectation(dir: &Path) -> Acknowledged {
    let text = std::fs::read_to_string(dir.join("acknowledged")).expect("written before");
    let pairs = text.lines().map(|line| line.split_once(' ').expect("two words"));
    pairs
        .map(|(client, count)| {
            (client.parse().expect("a number"), count.parse().expect("a number"))
        })
        .collect()
}

pub fn say(line: &str) {
    // One write a line, so that a kill cannot mix two.
    let mut output = std::io::stdout().lock();
    output.write_all(format!("{line}\n").as_bytes()).expect("the parent reads");
    output.flush().expect("the parent reads");
}

/// Starts three stores below `dir` and finds everything that was acknowledged, on each of them; or says
/// what is lost, and ends the process.
pub fn start_and_check(config: &StoreConfig, dir: &Path) -> Cluster {
    check(Cluster::on_disk(config, &dir.join("stores")), dir)
}

/// The same with stores that have been started.
pub fn check<M: TestMap>(cluster: Cluster<M>, dir: &Path) -> Cluster<M> {
    cluster.bootstrap(&regions(REGIONS));
    if let Err(lost) = find_all(&cluster, &read_expectation(dir)) {
        say(&lost);
        std::process::exit(1);
    }
    say("checked");
    cluster
}

/// Finds everything that was acknowledged, on each store; or says what is lost.
pub fn find_all<M: TestMap>(cluster: &Cluster<M>, expected: &Acknowledged) -> Result<(), String> {
    // Each time another store stands for election first.
    let first = std::process::id() as usize % 3;
    for id in 1..=REGIONS {
        cluster.handle(first).campaign(RegionId::new(id));
    }
    // A write to each region comes after everything acknowledged before: then its leader has it all.
    for id in 1..=REGIONS {
        let barrier = MapCommand::put("barrier", "").encode();
        cluster.write(RegionId::new(id), &barrier).expect("the region serves");
    }
    cluster.converge(REGIONS);
    for (client, count) in expected {
        for number in 0..*count {
            let key = key(*client, number);
            for (store, map) in cluster.maps.iter().enumerate() {
                let found = map.value(region_of(*client, number), key.as_bytes());
                if found.as_deref() != Some(key.as_bytes()) {
                    return Err(format!("lost {key} on store {store}: {found:?}"));
                }
            }
        }
    }
    Ok(())
}

/// In the range of its region.
pub fn key(client: u64, number: u64) -> String {
    let range = region_of(client, number).get() - 1;
    format!("{range:04}/{client:04}/{number:08}")
}

pub fn region_of(client: u64, number: u64) -> RegionId {
    RegionId::new(1 + (client + number) % REGIONS)
}

/// Writes with all clients, from where each of them was, and tells `acknowledge` of each
/// acknowledgement.
pub fn write_until<M: TestMap>(
    stop: &AtomicBool,
    cluster: &Cluster<M>,
    begin: &Acknowledged,
    acknowledge: impl Fn(u64, u64) + Sync,
) {
    let leader = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for client in 0..CLIENTS {
            let begin = begin.get(&client).copied().unwrap_or(0);
            let (leader, acknowledge) = (&leader, &acknowledge);
            scope.spawn(move || {
                for number in begin.. {
                    let key = key(client, number);
                    let payload = MapCommand::put(key.clone(), key).encode();
                    let region = region_of(client, number);
                    loop {
                        if stop.load(Ordering::Relaxed) {
                            return;
                        }
                        let store = leader.load(Ordering::Relaxed);
                        match cluster.handle(store % 3).propose(region, payload.clone()) {
                            Ok(_) => break,
                            // The same key and value: writing it twice does no harm.
                            Err(_) => leader.fetch_add(1, Ordering::Relaxed),
                        };
                        std::thread::yield_now();
                    }
                    acknowledge(client, number);
                }
            });
        }
    });
}

/// Writes, and tells `acknowledge`, while `body` runs, which sees how many were acknowledged.
pub fn write_while<M: TestMap>(
    cluster: &Cluster<M>,
    begin: &Acknowledged,
    acknowledge: impl Fn(u64, u64) + Sync,
    body: impl FnOnce(&AtomicU64),
) {
    struct StopAtEnd<'a>(&'a AtomicBool);
    impl Drop for StopAtEnd<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let (stop, written) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        // Also where `body` panics: the scope waits for the clients.
        let _stop = StopAtEnd(&stop);
        scope.spawn(|| {
            write_until(&stop, cluster, begin, |client, number| {
                acknowledge(client, number);
                written.fetch_add(1, Ordering::Relaxed);
            });
        });
        body(&written);
    });
}

pub fn say_acknowledged(client: u64, number: u64) {
    say(&format!("ack {client} {number}"));
}
