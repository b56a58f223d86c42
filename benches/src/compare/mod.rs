//! What else one could use: `stress --compare` puts other systems under the load of the same run.
//!
//! 1. [`System`] names them; [`Systems`] is the option's value.
//! 2. [`Rivals`] measures them, a repeat of each in turn after each repeat of our own stores, so that what else
//!    the machine does meets all of them alike. [`thread_per_region`] and `openraft_peer` (with the feature
//!    `compare`) are subjects of the load as our own stores are one; [`books`] are their state machines. The bare
//!    loop of each row is measured anyway.
//! 3. [`report`], [`table`] and [`picture`] tell the result.
//!
//! Figures of the systems are for each other only. All of them keep three replicas in one process and in memory,
//! with the same clients, the same state machine, and the same check that every answered write is there once.

pub mod books;
#[cfg(feature = "compare")]
pub mod openraft_peer;
#[cfg(feature = "compare")]
pub mod openraft_store;
pub mod picture;
pub mod report;
pub mod table;
pub mod thread_per_region;

use std::str::FromStr;

use serde::{Serialize, Serializer};

use self::report::Compared;
use self::thread_per_region::ThreadPerRegion;
use crate::stress::driver::RunRow;
use crate::stress::error::StressError;
use crate::stress::options::Options;
use crate::stress::report::Row;
use crate::stress::run::{run_row, Context};
use crate::stress::table::grouped;

/// Regions beyond which a thread for each peer is not tried.
const MAX_THREAD_REGIONS: u64 = 1_000;

/// A system that our stores are compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum System {
    /// openraft 0.9, scheduled as tokio does by default.
    Openraft,
    /// The same, where every task gets its turn.
    OpenraftFair,
    /// raft-rs with a thread for each peer of each region.
    ThreadPerRegion,
    /// raft-rs in a bare loop on one thread: no queues, no clients, no answers.
    Bare,
}

impl System {
    /// The name on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Openraft => "openraft",
            Self::OpenraftFair => "openraft-fair",
            Self::ThreadPerRegion => "thread-per-region",
            Self::Bare => "bare",
        }
    }

    /// How it is set up, in one line.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Openraft => {
                "openraft 0.9 (storage-v2): log, state machine and network in memory, one tokio \
                 runtime with a worker a core, writes answered by callback, appends of up to 4,096 \
                 entries, a snapshot each 10,000, our election timeouts"
            }
            Self::OpenraftFair => {
                "the same, but tokio takes every other task from the common queue, not one of 61 \
                 (global_queue_interval 2, event_interval 8)"
            }
            Self::ThreadPerRegion => {
                "raft-rs 0.7: a thread for each peer, which takes all waiting messages and makes one \
                 proposal of all writes a turn; log in memory, our settings of raft-rs"
            }
            Self::Bare => {
                "raft-rs 0.7 in a loop on one thread, messages moved by hand; no clients, so no \
                 latency; writes/s are those of one core"
            }
        }
    }

    /// What measures a repeat; `None` for what is not measured so, or not in this build.
    fn runner(self) -> Option<RunRow> {
        match self {
            #[cfg(feature = "compare")]
            Self::Openraft => Some(run_row::<openraft_peer::Openraft<openraft_peer::Usual>>),
            #[cfg(feature = "compare")]
            Self::OpenraftFair => Some(run_row::<openraft_peer::Openraft<openraft_peer::Fair>>),
            #[cfg(not(feature = "compare"))]
            Self::Openraft | Self::OpenraftFair => None,
            Self::ThreadPerRegion => Some(run_row::<ThreadPerRegion>),
            Self::Bare => None,
        }
    }

    /// Why it is not measured with so many regions; `None` where it is.
    fn unfit(self, regions: u64, stores: u64) -> Option<String> {
        match self {
            Self::ThreadPerRegion if regions > MAX_THREAD_REGIONS => {
                Some(format!("not tried: {} threads", grouped(regions * stores)))
            }
            _ => None,
        }
    }
}

impl Serialize for System {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// The systems of one run, each once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Systems(pub Vec<System>);

impl FromStr for Systems {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut systems = Vec::new();
        for name in text.split(',') {
            let named: &[System] = match name.trim() {
                "openraft" => &[System::Openraft, System::OpenraftFair],
                "openraft-fair" => &[System::OpenraftFair],
                "thread-per-region" => &[System::ThreadPerRegion],
                "bare" => &[System::Bare],
                other => {
                    return Err(format!("'{other}' is none of openraft, thread-per-region, bare"));
                }
            };
            for system in named {
                if !systems.contains(system) {
                    systems.push(*system);
                }
            }
        }
        Ok(Self(systems))
    }
}

impl std::fmt::Display for Systems {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<&str> = self.0.iter().map(|system| system.name()).collect();
        f.write_str(&names.join(","))
    }
}

impl Systems {
    /// Whether this build can measure all of them.
    ///
    /// # Errors
    /// Says how to build one that can.
    pub fn check(&self) -> Result<(), StressError> {
        let missing =
            self.0.iter().find(|system| **system != System::Bare && system.runner().is_none());
        match missing {
            None => Ok(()),
            Some(system) => Err(StressError::bad_input(
                "--compare",
                system.name(),
                "not in this build; run it with `cargo run --release -p benches --features compare \
                 --bin stress -- --compare openraft`",
            )),
        }
    }
}

/// The other systems of one row, repeat after repeat.
pub struct Rivals {
    regions: u64,
    rivals: Vec<Rival>,
}

struct Rival {
    system: System,
    repeats: Vec<Row>,
    /// Why it is not measured (any more).
    note: Option<String>,
}

impl Rivals {
    /// Of a row of `regions`; none where the run compares nothing.
    pub fn new(options: &Options, regions: u64) -> Self {
        let systems = options.compare.iter().flat_map(|systems| &systems.0);
        let rivals = systems.map(|system| Rival {
            system: *system,
            repeats: Vec::new(),
            note: system.unfit(regions, options.stores),
        });
        Self { regions, rivals: rivals.collect() }
    }

    /// Measures one repeat of each. One that fails stays out of the further repeats, and its row says why: it is
    /// no reason to give up ours.
    ///
    /// # Errors
    /// When an interrupt comes.
    pub fn repeat(
        &mut self,
        options: &Options,
        context: impl Fn() -> Context,
    ) -> Result<(), StressError> {
        for rival in self.rivals.iter_mut().filter(|rival| rival.note.is_none()) {
            let Some(run) = rival.system.runner() else { continue };
            match run(options, self.regions, &context()) {
                Ok(row) => rival.repeats.push(row),
                Err(StressError::Interrupted) => return Err(StressError::Interrupted),
                Err(error) => rival.note = Some(format!("failed: {error}")),
            }
        }
        Ok(())
    }

    /// The medians beside our own row, ours first; nothing where nothing is compared.
    pub fn compared(self, ours: &Row) -> Vec<Compared> {
        if self.rivals.is_empty() {
            return Vec::new();
        }
        let mut compared = vec![Compared::ours(ours)];
        for rival in self.rivals {
            let measured = match rival.system {
                System::Bare => Compared::bare(ours),
                system => Row::median(rival.repeats).map(|row| Compared::of(system, &row, ours)),
            };
            let empty = || Compared::unmeasured(rival.system, self.regions);
            compared.push(Compared { note: rival.note, ..measured.unwrap_or_else(empty) });
        }
        compared
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use prometheus::Registry;
    use raftstore::StoreConfig;

    use super::*;
    use crate::stress::interrupt::Interrupt;
    use crate::stress::machine::Machine;
    use crate::stress::progress::Progress;

    /// With short ticks: followers hear of the last commits with a heartbeat, and the check waits for them.
    fn context() -> Context {
        let mut config = StoreConfig::default();
        config.raft.tick_interval = Duration::from_millis(100);
        Context {
            machine: Machine::detect(),
            interrupt: Interrupt::new(),
            progress: Progress::silent(),
            registry: Registry::new(),
            config,
            data_dir: None,
            seed: 1,
        }
    }

    fn options(args: &[&str]) -> Options {
        let short = ["stress", "--warmup", "50ms", "--duration", "200ms"];
        Options::parse_args([&short, args].concat()).unwrap()
    }

    /// Measures a system for a moment, and sees that it works and answers for every write.
    fn assert_sound(system: System, args: &[&str]) {
        let options = options(args);
        for regions in [1, 10] {
            let run = system.runner().expect("it is in this build");
            let row = run(&options, regions, &context()).unwrap();
            let what = format!("{} with {regions} regions: {row:?}", system.name());
            assert!(row.writes > 0 && row.latency.p99_ms > 0.0, "{what}");
            assert_eq!((row.health.lost, row.health.duplicated), (0, 0), "{what}");
        }
    }

    #[test]
    fn thread_per_region_loses_and_doubles_nothing() {
        assert_sound(System::ThreadPerRegion, &[]);
        assert_sound(System::ThreadPerRegion, &["--stores", "1", "--outstanding", "500"]);
    }

    #[cfg(feature = "compare")]
    #[test]
    fn openraft_loses_and_doubles_nothing() {
        assert_sound(System::Openraft, &[]);
        assert_sound(System::Openraft, &["--stores", "1", "--outstanding", "500"]);
    }

    #[cfg(feature = "compare")]
    #[test]
    fn openraft_scheduled_fairly_loses_and_doubles_nothing() {
        assert_sound(System::OpenraftFair, &[]);
    }

    #[test]
    fn list_names_each_system_once_and_openraft_means_both() {
        let systems: Systems = "bare, openraft,bare,openraft-fair".parse().unwrap();
        assert_eq!(systems.0, [System::Bare, System::Openraft, System::OpenraftFair]);
        for bad in ["", "openraft,", "Bare", "dragonboat"] {
            let refused = bad.parse::<Systems>().unwrap_err();
            assert!(refused.contains("none of openraft"), "{bad}: {refused}");
        }
    }

    #[test]
    fn openraft_in_a_build_without_it_says_how_to_build_it() {
        let checked = "bare,openraft-fair".parse::<Systems>().unwrap().check();
        if cfg!(feature = "compare") {
            checked.unwrap();
        } else {
            let refused = checked.unwrap_err();
            assert_eq!(refused.exit_code(), 2);
            assert!(refused.to_string().contains("--features compare"), "{refused}");
        }
        "bare,thread-per-region".parse::<Systems>().unwrap().check().unwrap();
    }

    #[test]
    fn too_many_threads_are_a_note_and_no_failure() {
        let options = options(&["--compare", "thread-per-region,bare"]);
        let mut rivals = Rivals::new(&options, 1_001);
        rivals.repeat(&options, context).unwrap();
        let ours = crate::stress::report::tests::row(1_001, 1e5, 1.0);
        let compared = rivals.compared(&ours);
        let names: Vec<_> = compared.iter().map(|row| row.system).collect();
        assert_eq!(names, ["ours", "thread-per-region", "bare"]);
        assert_eq!(compared[1].note.as_deref(), Some("not tried: 3,003 threads"));
        assert_eq!(compared[1].writes_per_s, None);
        assert!(compared[2].ours_to_this_cpu.is_some());
    }
}
