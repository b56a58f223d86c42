//! A child that is killed at random moments, again and again, and must find everything each time.

use super::process::{read_lines, spawn, take_line, write_expectation, Acknowledged, Said};
use super::DEADLINE;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

const SEED: &str = "RAFTSTORE_KILL_TEST_SEED";

/// What is killed, and when.
pub struct Killing<'a> {
    /// The test that is the child.
    pub child: &'a str,
    pub task: &'a str,
    pub dir: &'a Path,
    /// Unless `KILL_CYCLES` says otherwise.
    pub cycles: u64,
    /// What must be counted, or the test shows nothing: there are up to four times as many cycles for it.
    pub wanted: &'a [&'a str],
    /// A child under load lives for less than this.
    pub load_ms: u64,
    /// One that is killed while it starts, less than this.
    pub start_ms: u64,
}

/// What the children have said together.
#[derive(Default)]
pub struct Told {
    pub acknowledged: Acknowledged,
    /// How often they have counted what, in lines of `count` and a word.
    pub counts: BTreeMap<String, u64>,
}

impl Told {
    /// Takes a line; says whether everything was found, or an error for what is lost.
    fn take(&mut self, line: String) -> Result<bool, String> {
        match take_line(line, &mut self.acknowledged) {
            Said::Checked => Ok(true),
            Said::Other(line) if line.starts_with("lost") => Err(line),
            Said::Other(line) => {
                if let Some(what) = line.strip_prefix("count ") {
                    *self.counts.entry(what.to_owned()).or_default() += 1;
                }
                // The test harness of the child talks too.
                Ok(false)
            }
            Said::Acknowledged => Ok(false),
        }
    }

    pub fn writes(&self) -> u64 {
        self.acknowledged.values().sum()
    }
}

/// When to kill the child.
enum Moment {
    /// So long after its start.
    Started(Duration),
    /// So long after it has found everything and begins its load.
    Loaded(Duration),
    /// Once it has found everything.
    Checked,
}

impl Killing<'_> {
    /// Until all cycles are through and everything wanted was counted. The last child lives until it has found
    /// everything.
    pub fn run(&self) -> Told {
        let cycles = std::env::var("KILL_CYCLES");
        let cycles = cycles.map_or(self.cycles, |text| text.parse().expect("a number"));
        let seed = std::env::var(SEED);
        let seed = seed.map_or_else(|_| clock_seed(), |text| text.parse().expect("a number"));
        println!("replay the moments of the kills with {SEED}={seed}");
        let mut told = Told::default();
        let mut random = seed;
        let all_counted =
            |told: &Told| self.wanted.iter().all(|what| told.counts.contains_key(*what));
        for cycle in 0..4 * cycles {
            let last = cycle + 1 >= cycles && all_counted(&told);
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let within = |most: u64| Duration::from_millis((random >> 33) % most);
            // Every fourth kill hits recovery or an election, the others hit the load.
            let moment = match (last, cycle % 4 == 3) {
                (true, _) => Moment::Checked,
                (false, true) => Moment::Started(within(self.start_ms)),
                (false, false) => Moment::Loaded(within(self.load_ms)),
            };
            std::fs::write(self.dir.join("life"), cycle.to_string()).expect("written");
            if let Err(problem) = self.run_and_kill(&moment, &mut told) {
                panic!("cycle {cycle}, seed {seed}: {problem}");
            }
            if last {
                break;
            }
        }
        let total = told.writes();
        println!("{total} acknowledged writes, none lost; {:?}", told.counts);
        assert!(all_counted(&told), "not all of {:?} was seen: {:?}", self.wanted, told.counts);
        assert!(total > 10 * cycles, "too few writes ({total}) to mean anything");
        told
    }

    /// One life of the child.
    fn run_and_kill(&self, moment: &Moment, told: &mut Told) -> Result<(), String> {
        write_expectation(self.dir, &told.acknowledged);
        let mut child = spawn(&[], self.child, self.task, self.dir);
        let lines = read_lines(&mut child);
        let mut deadline = Instant::now()
            + match moment {
                Moment::Started(life) => *life,
                // It gives up by itself before, and says why.
                _ => 2 * DEADLINE,
            };
        let mut checked = false;
        let mut problem = None;
        while problem.is_none() {
            let left = deadline.saturating_duration_since(Instant::now());
            match lines.recv_timeout(left) {
                Ok(line) => match told.take(line) {
                    Ok(false) => {}
                    Ok(true) => {
                        checked = true;
                        deadline = match moment {
                            Moment::Started(_) => deadline,
                            Moment::Loaded(life) => Instant::now() + *life,
                            Moment::Checked => Instant::now(),
                        };
                    }
                    Err(line) => problem = Some(line),
                },
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
            }
        }
        let exited = child.try_wait().expect("a child of ours");
        child.kill().expect("a child of ours");
        child.wait().expect("a child of ours");
        // What it had told before it died counts.
        while let Ok(line) = lines.recv() {
            match told.take(line) {
                Ok(found) => checked |= found,
                Err(line) => problem = Some(line),
            }
        }
        match (problem, exited) {
            (Some(problem), _) => Err(problem),
            (None, Some(status)) => Err(format!("the child ended by itself: {status}")),
            (None, None) if !checked && !matches!(moment, Moment::Started(_)) => {
                Err(format!("not everything was found within {:?}", 2 * DEADLINE))
            }
            (None, None) => Ok(()),
        }
    }
}

/// In a child: the how many-eth it is.
pub fn life(dir: &Path) -> u64 {
    let text = std::fs::read_to_string(dir.join("life")).expect("written before");
    text.parse().expect("a number")
}

fn clock_seed() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.expect("after 1970").as_nanos() as u64
}
