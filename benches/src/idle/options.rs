//! The command line of `stress idle`, and every check that needs no look at the disk.

use std::ffi::OsString;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use raftstore::StoreConfig;
use serde::Serialize;

use crate::stress::error::StressError;
use crate::stress::options::{as_seconds, parse, time_within, LogKind, NoRun, RegionCounts};

const TICK: RangeInclusive<Duration> = Duration::from_millis(5)..=Duration::from_secs(60);
const DURATION: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(86_400);

const AFTER_HELP: &str = "\
One row a region count. Regions are created and elected in a cluster that never sleeps, which is
measured while nothing happens; then in another one that falls asleep, which is measured again:
asleep, with a few regions written to, woken by writes, when a store is lost (with 3 stores and
more), and when that store is started anew. CPU is that of the whole process, in percent of one
core. Memory is the process's for each region on each store, the log store (if in memory) and the
state machine included.

Exit codes: 0 done (or ended by Ctrl-C); 1 failed: a leader changed while nothing happened, a write
was refused, lost or doubled, a region woke that should not, or has no leader at the end;
2 bad input.

Examples:
  stress idle                                   1,000, 10,000 and 100,000 regions, in memory
  stress idle --regions 10000 --tick 500ms --sleep-after 10
  stress idle --regions 1000 --log raft-engine --json - | jq .rows[].asleep";

/// Measures what regions cost with which nothing happens.
#[derive(Clone, Debug, Parser, Serialize)]
#[command(name = "stress idle", version, after_help = AFTER_HELP)]
pub struct Options {
    /// Region counts, one row each, separated by commas.
    #[arg(long, value_name = "LIST", default_value = "1000,10000,100000")]
    pub regions: RegionCounts,

    /// Stores in the process; each region has a peer on each of them (1 to 9).
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=9))]
    pub stores: u64,

    /// Where the Raft log lives; that of raft-engine is synced, in a temporary directory (see TMPDIR).
    #[arg(long, value_enum, default_value_t = LogKind::Memory)]
    pub log: LogKind,

    /// Raft's unit of time; a leader's heartbeats come every second tick, an election timeout is ten of
    /// them (5ms to 1min).
    #[arg(long, value_name = "TIME", default_value = "100ms", value_parser = parse_tick)]
    #[serde(serialize_with = "as_seconds", rename = "tick_s")]
    pub tick: Duration,

    /// Ticks without anything to do after which a region falls asleep.
    #[arg(long, value_name = "TICKS", default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    pub sleep_after: u64,

    /// How long CPU is measured, each time (100ms to 1day).
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = parse_duration)]
    #[serde(serialize_with = "as_seconds", rename = "duration_s")]
    pub duration: Duration,

    /// The fraction of regions that is written to while the others sleep (above 0, up to 1).
    #[arg(long, value_name = "FRACTION", default_value = "0.01", value_parser = parse_fraction)]
    pub active: f64,

    /// Writes a second to each of these regions (above 0, up to 1000). A region counts the ticks at which
    /// it finds nothing to do, so with few writes these fall asleep in between, too.
    #[arg(long, value_name = "N", default_value = "1", value_parser = parse_rate)]
    pub rate: f64,

    /// Regions written to once, one after the other, to see how long that takes (1 to 100,000); all, if
    /// there are fewer.
    #[arg(long, value_name = "N", default_value_t = 500, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    pub samples: u64,

    /// Write idle.json and idle.svg into this directory: a new or empty one, or one with nothing but the
    /// reports of an earlier run, which are replaced.
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,

    /// Write the JSON report to this file, replacing it; `-` writes it to standard output, and
    /// nothing else there.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

impl Options {
    /// Reads a command line, the program's name first, and checks it.
    ///
    /// # Errors
    /// When help was asked for, or anything is out of its range.
    pub fn parse_args<I, A>(args: I) -> Result<Self, NoRun>
    where
        I: IntoIterator<Item = A>,
        A: Into<OsString> + Clone,
    {
        parse(args, |options: &Self| {
            let sound = options.config(true, 1).validate();
            sound.map_err(|error| StressError::BadInput(error.to_string()))
        })
    }

    /// The stores' settings on a machine of `cores`: of regions that sleep, or of such that never do.
    pub fn config(&self, sleep: bool, cores: usize) -> StoreConfig {
        let mut config = StoreConfig {
            pollers: (cores as u64 / self.stores).max(1) as usize,
            ..StoreConfig::default()
        };
        config.raft.tick_interval = self.tick;
        config.raft.sleep_after_ticks = if sleep { self.sleep_after as usize } else { 0 };
        // Once in its hour a region would look around, and pass for one that woke by mistake.
        config.raft.look_around_ticks = 0;
        config
    }

    /// Regions of `regions` that are written to while the others sleep: one at least.
    pub fn active_of(&self, regions: u64) -> u64 {
        ((regions as f64 * self.active).round() as u64).clamp(1, regions)
    }

    /// Whether the JSON report takes standard output for itself.
    pub fn json_to_stdout(&self) -> bool {
        self.json.as_ref().is_some_and(|path| path.as_os_str() == "-")
    }

    /// One line for tables and charts.
    pub fn describe(&self) -> String {
        format!(
            "{} {}, log: {}, tick {}, asleep after {} ticks, {} a measurement, {} % of regions \
             active with {} writes/s each",
            self.stores,
            if self.stores == 1 { "store" } else { "stores" },
            self.log.name(),
            humantime::format_duration(self.tick),
            self.sleep_after,
            humantime::format_duration(self.duration),
            self.active * 100.0,
            self.rate,
        )
    }
}

fn parse_tick(text: &str) -> Result<Duration, String> {
    time_within(text, TICK)
}

fn parse_duration(text: &str) -> Result<Duration, String> {
    time_within(text, DURATION)
}

fn parse_fraction(text: &str) -> Result<f64, String> {
    above_zero(text, 1.0)
}

fn parse_rate(text: &str) -> Result<f64, String> {
    above_zero(text, 1000.0)
}

fn above_zero(text: &str, max: f64) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number > 0.0 && number <= max => Ok(number),
        _ => Err(format!("not a number above 0 and up to {max}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Options, NoRun> {
        Options::parse_args(std::iter::once("stress idle").chain(args.iter().copied()))
    }

    #[test]
    fn defaults_are_the_documented_ones() {
        let options = parse(&[]).unwrap();
        assert_eq!(options.regions.0, [1_000, 10_000, 100_000]);
        assert_eq!((options.stores, options.sleep_after, options.samples), (3, 20, 500));
        assert_eq!(options.tick, Duration::from_millis(100));
        assert_eq!(options.duration, Duration::from_secs(5));
        assert_eq!((options.active, options.rate), (0.01, 1.0));
        assert_eq!(options.log, LogKind::Memory);
        assert_eq!((options.active_of(10_000), options.active_of(7)), (100, 1));
    }

    #[test]
    fn settings_follow_the_options() {
        let options = parse(&["--tick", "20ms", "--sleep-after", "3", "--stores", "1"]).unwrap();
        let (sleepy, awake) = (options.config(true, 2), options.config(false, 2));
        assert_eq!(sleepy.raft.tick_interval, Duration::from_millis(20));
        assert_eq!((sleepy.raft.sleep_after_ticks, awake.raft.sleep_after_ticks), (3, 0));
        assert_eq!((sleepy.pollers, parse(&[]).unwrap().config(true, 2).pollers), (2, 1));
    }

    #[test]
    fn what_is_out_of_range_is_refused_by_name() {
        let wrong: [(&[&str], &str); 9] = [
            (&["--regions", "0"], "--regions"),
            (&["--stores", "10"], "--stores"),
            (&["--tick", "1ms"], "--tick"),
            (&["--sleep-after", "0"], "--sleep-after"),
            (&["--duration", "1ms"], "--duration"),
            (&["--active", "0"], "--active"),
            (&["--active", "1.5"], "--active"),
            (&["--rate", "NaN"], "--rate"),
            (&["--samples", "many"], "--samples"),
        ];
        for (args, name) in wrong {
            match parse(args) {
                Err(NoRun::Refused(error)) => {
                    assert_eq!(error.exit_code(), 2, "{args:?}");
                    assert!(error.to_string().contains(name), "{args:?}: {error}");
                    assert_eq!(error.to_string().lines().count(), 1, "{args:?}: {error}");
                }
                other => panic!("{args:?} was not refused: {other:?}"),
            }
        }
    }

    #[test]
    fn help_is_told() {
        let Err(NoRun::Info(text)) = parse(&["--help"]) else { panic!("no help") };
        assert!(text.contains("--sleep-after"), "{text}");
    }
}
