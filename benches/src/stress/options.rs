//! The command line: what can be asked for, and every check that needs no look at the disk.
//!
//! A bad request ends in one line on standard error and exit code 2, whichever check found it.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{Parser, ValueEnum};
use serde::{Serialize, Serializer};

use super::error::{one_line, StressError};
use crate::compare::Systems;

const MAX_REGIONS: u64 = 2_000_000;
const MAX_OUTSTANDING: u64 = 10_000_000;
const MIN_OUTSTANDING_AUTO: u64 = 64;
/// Payloads of all outstanding writes together; three stores hold several copies of them.
const MAX_OUTSTANDING_BYTES: u64 = 4 << 30;
const WARMUP: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(3_600);
const DURATION: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(86_400);

const AFTER_HELP: &str = "\
One row a region count: writes per second, latency, CPU per write, memory per region, time until
all regions had a leader, and what a write costs compared with Raft alone (the bare loop). All
stores run in this process, each with a pool of pollers and a log of its own; clients are
callbacks. After the load, every answered write is looked for, so a lost or doubled one is found.

With --compare, a row of each of these for each region count, a repeat of each in turn; clients,
state machine and checks are the same:
  openraft           openraft 0.9 with storage-v2; log, state machine and network in memory; one
                     tokio runtime, a worker a core; writes answered by callback; appends of up to
                     4,096 entries, a snapshot each 10,000; heartbeats and elections as ours
  openraft-fair      the same with global_queue_interval 2 and event_interval 8, so that tasks that
                     wait get every other turn; comes along with openraft
  thread-per-region  raft-rs 0.7, a thread for each peer, which takes all that waits in one turn;
                     log in memory; up to 1,000 regions
  bare               raft-rs 0.7 alone in a loop on one thread; no clients, so no latency
openraft needs a build with the feature `compare`:
  cargo run --release -p benches --features compare --bin stress -- --compare openraft

Ctrl-C ends the run and reports what was measured; a second Ctrl-C ends it at once.

Exit codes: 0 done (or ended by Ctrl-C); 1 failed, or a write was lost or duplicated;
2 bad input, and nothing was touched.

Examples:
  stress                                        the whole picture, in memory, about a minute
  stress --regions 1000 --log raft-engine       one durable row
  stress --regions 1,100,10000 --repeat 3 --out report
  stress --regions 1000 --json - | jq .rows
  stress --compare thread-per-region,bare       what else one could use, under the same load
  stress life                                   splits, other peers, handing over, restart, under load
  stress reads                                  reads by lease, alone and nine to one write
  stress idle                                   what regions cost with which nothing happens
  stress log                                    the log on disk, beside raft-engine alone";

/// Plots region count against throughput and latency of the Multi-Raft store, on this machine.
#[derive(Clone, Debug, Parser, Serialize)]
#[command(name = "stress", version, after_help = AFTER_HELP)]
pub struct Options {
    /// Region counts, one row each, separated by commas (1 to 2,000,000).
    #[arg(long, value_name = "LIST", default_value = "1,10,100,1000,10000")]
    pub regions: RegionCounts,

    /// Stores in the process; each region has a peer on each of them (1 to 9).
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=9))]
    pub stores: u64,

    /// Poller threads of each store (1 to 64) [default: the cores shared among the stores, at
    /// least 1].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=64))]
    pub pollers: Option<u64>,

    /// Apply threads of each store; 0 applies in the round of the poller (0 to 64).
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=64))]
    pub apply_pollers: u64,

    /// Log-writer threads of each store; 0 lets the pollers write (0 to 16) [default: 0 for
    /// memory, 1 for raft-engine].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(0..=16))]
    pub log_writers: Option<u64>,

    /// Where the Raft log lives.
    #[arg(long, value_enum, default_value_t = LogKind::Memory)]
    pub log: LogKind,

    /// Whether each log write is synced to the disk [default: on for raft-engine; memory has
    /// nothing to sync].
    #[arg(long, value_enum)]
    pub sync: Option<Switch>,

    /// Directory for the logs of raft-engine: new or empty, and kept [default: a fresh temporary
    /// one, removed at the end].
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,

    /// Bytes of one write (16 to 1048576): 8 of the key, 8 that identify the write, and filling.
    #[arg(long, value_name = "BYTES", default_value_t = 16, value_parser = clap::value_parser!(u64).range(16..=1 << 20))]
    pub payload: u64,

    /// Writes outstanding over all regions, 1 to 10,000,000, or `auto` for max(64, regions).
    #[arg(long, value_name = "N", default_value = "auto")]
    pub outstanding: Outstanding,

    /// How keys, and with them regions, are chosen.
    #[arg(long, value_enum, default_value_t = KeyChoice::Uniform)]
    pub keys: KeyChoice,

    /// Load before the measuring starts, for instance 500ms or 2s (0s to 1h).
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = parse_warmup)]
    #[serde(serialize_with = "as_seconds", rename = "warmup_s")]
    pub warmup: Duration,

    /// How long to measure each row (100ms to 1day).
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = parse_duration)]
    #[serde(serialize_with = "as_seconds", rename = "duration_s")]
    pub duration: Duration,

    /// Measure each row so many times, and report the median by writes per second (1 to 100).
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=100))]
    pub repeat: u64,

    /// Other systems to measure under the same load, separated by commas: openraft (and openraft-fair, the
    /// same with fair scheduling), thread-per-region, bare.
    #[arg(long, value_name = "LIST")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compare: Option<Systems>,

    /// Seed of the keys and of all chance in the stores.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,

    /// Serve Prometheus metrics while running, for instance on 127.0.0.1:9090.
    #[arg(long, value_name = "ADDR")]
    pub metrics_addr: Option<SocketAddr>,

    /// Write stress.csv, stress.json and stress.svg (and compare.csv and compare.svg) into this directory: a new or empty one, or
    /// one with nothing but the reports of an earlier run, which are replaced.
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,

    /// Write the JSON report to this file, replacing it; `-` writes it to standard output, and
    /// nothing else there.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,

    /// Settings of the stores, a TOML file. The options here go before it.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// How a command line ended that starts no run.
#[derive(Debug)]
pub enum NoRun {
    /// Help or version was asked for; print this to standard output.
    Info(String),
    /// The request is wrong.
    Refused(StressError),
}

/// Reads a command line, the program's name first, and checks what comes of it.
pub(crate) fn parse<T: Parser>(
    args: impl IntoIterator<Item = impl Into<OsString> + Clone>,
    check: impl FnOnce(&T) -> Result<(), StressError>,
) -> Result<T, NoRun> {
    let options = T::try_parse_from(args).map_err(no_run)?;
    check(&options).map_err(NoRun::Refused)?;
    Ok(options)
}

impl Options {
    /// Reads a command line, the program's name first, and checks all that needs no disk.
    pub fn parse_args<I, A>(args: I) -> Result<Self, NoRun>
    where
        I: IntoIterator<Item = A>,
        A: Into<OsString> + Clone,
    {
        parse(args, Self::validate)
    }

    /// Writes outstanding over all regions in a row of `regions`.
    pub fn outstanding_for(&self, regions: u64) -> u64 {
        match self.outstanding {
            Outstanding::Auto => regions.max(MIN_OUTSTANDING_AUTO),
            Outstanding::Fixed(count) => count,
        }
    }

    /// Writes outstanding in each region on average, at least 1: the depth of the bare loop.
    pub fn depth_for(&self, regions: u64) -> u64 {
        (self.outstanding_for(regions) / regions).max(1)
    }

    /// Poller threads of each store on a machine of `cores`.
    pub fn pollers_for(&self, cores: usize) -> u64 {
        self.pollers.unwrap_or_else(|| (cores as u64 / self.stores).max(1))
    }

    /// Log-writer threads of each store.
    pub fn log_writers(&self) -> u64 {
        self.log_writers.unwrap_or(match self.log {
            LogKind::Memory => 0,
            LogKind::RaftEngine => 1,
        })
    }

    /// Whether each log write is synced.
    pub fn sync(&self) -> bool {
        self.log == LogKind::RaftEngine && self.sync != Some(Switch::Off)
    }

    /// Whether the JSON report takes standard output for itself.
    pub fn json_to_stdout(&self) -> bool {
        self.json.as_ref().is_some_and(|path| path.as_os_str() == "-")
    }

    /// One line for tables and charts.
    pub fn describe(&self) -> String {
        let outstanding = match self.outstanding {
            Outstanding::Auto => "max(64, regions)".to_owned(),
            Outstanding::Fixed(count) => count.to_string(),
        };
        let sync = match (self.log, self.sync()) {
            (LogKind::Memory, _) => "",
            (LogKind::RaftEngine, true) => " synced",
            (LogKind::RaftEngine, false) => " not synced",
        };
        format!(
            "{} {}, log: {}{sync}, {} B values, {outstanding} writes outstanding, {} keys, {} a row",
            self.stores,
            if self.stores == 1 { "store" } else { "stores" },
            self.log.name(),
            self.payload,
            self.keys.name(),
            humantime::format_duration(self.duration),
        )
    }

    /// The checks that look at two options at once.
    fn validate(&self) -> Result<(), StressError> {
        if self.log == LogKind::Memory && self.sync == Some(Switch::On) {
            return Err(StressError::bad_input(
                "--sync",
                "on",
                "a log in memory has nothing to sync; add --log raft-engine",
            ));
        }
        if let Some(systems) = &self.compare {
            systems.check()?;
            if self.log != LogKind::Memory {
                return Err(StressError::bad_input(
                    "--compare",
                    systems,
                    "the others' logs are in memory; leave out --log raft-engine",
                ));
            }
        }
        let most = self.regions.0.iter().copied().max().unwrap_or(1);
        let outstanding = self.outstanding_for(most);
        if outstanding * self.payload > MAX_OUTSTANDING_BYTES {
            return Err(StressError::bad_input(
                "--payload",
                self.payload,
                &format!(
                    "times {outstanding} outstanding writes is more than 4 GiB; lower this or \
                     --outstanding"
                ),
            ));
        }
        Ok(())
    }
}

/// The region counts of the rows, in the order asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RegionCounts(pub Vec<u64>);

impl FromStr for RegionCounts {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.split(',')
            .map(|part| bounded(part.trim(), MAX_REGIONS))
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

/// How many writes wait for their answer at any time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outstanding {
    /// One a region, at least 64.
    Auto,
    /// So many over all regions.
    #[serde(untagged)]
    Fixed(u64),
}

impl FromStr for Outstanding {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "auto" {
            return Ok(Self::Auto);
        }
        bounded(text, MAX_OUTSTANDING)
            .map(Self::Fixed)
            .map_err(|error| format!("{error}, or `auto`"))
    }
}

/// Where the Raft log lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum LogKind {
    /// In memory; gone with the process.
    Memory,
    /// On disk, in raft-engine.
    RaftEngine,
}

impl LogKind {
    /// The name on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::RaftEngine => "raft-engine",
        }
    }
}

/// On or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Switch {
    /// Yes.
    On,
    /// No.
    Off,
}

/// How keys are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum KeyChoice {
    /// Each key as often as any other.
    Uniform,
    /// Few keys often, most seldom.
    Zipfian,
}

impl KeyChoice {
    /// The name on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Uniform => "uniform",
            Self::Zipfian => "zipfian",
        }
    }
}

fn bounded(text: &str, max: u64) -> Result<u64, String> {
    match text.parse::<u64>() {
        Ok(number) if (1..=max).contains(&number) => Ok(number),
        _ => Err(format!("'{text}' is not a number from 1 to {max}")),
    }
}

fn parse_warmup(text: &str) -> Result<Duration, String> {
    time_within(text, WARMUP)
}

fn parse_duration(text: &str) -> Result<Duration, String> {
    time_within(text, DURATION)
}

pub(crate) fn time_within(text: &str, range: RangeInclusive<Duration>) -> Result<Duration, String> {
    let within = format!(
        "a time from {} to {}, for instance 500ms or 2s",
        humantime::format_duration(*range.start()),
        humantime::format_duration(*range.end())
    );
    match humantime::parse_duration(text) {
        Ok(time) if range.contains(&time) => Ok(time),
        _ => Err(format!("not {within}")),
    }
}

pub(crate) fn as_seconds<S: Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(time.as_secs_f64())
}

/// Turns clap's many lines into ours.
fn no_run(error: clap::Error) -> NoRun {
    let text = error.render().to_string();
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        return NoRun::Info(text);
    }
    let told: Vec<&str> = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more information"))
        .collect();
    let line = one_line(&told.join("; "));
    let line = line.strip_prefix("error: ").unwrap_or(&line);
    NoRun::Refused(StressError::BadInput(format!("{line} (see --help)")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Options, NoRun> {
        Options::parse_args(std::iter::once("stress").chain(args.iter().copied()))
    }

    fn refusal(args: &[&str]) -> String {
        match parse(args) {
            Err(NoRun::Refused(error)) => {
                assert_eq!(error.exit_code(), 2, "{args:?}");
                error.to_string()
            }
            other => panic!("{args:?} was not refused: {other:?}"),
        }
    }

    #[test]
    fn defaults_are_the_documented_ones_and_finish_within_two_minutes() {
        let options = parse(&[]).unwrap();
        assert_eq!(options.regions.0, [1, 10, 100, 1_000, 10_000]);
        assert_eq!((options.stores, options.payload, options.repeat), (3, 16, 1));
        assert_eq!(options.log, LogKind::Memory);
        assert!(!options.sync());
        assert_eq!(options.log_writers(), 0);
        assert_eq!(options.outstanding_for(1), 64);
        assert_eq!(options.outstanding_for(1_000), 1_000);
        assert_eq!((options.depth_for(1), options.depth_for(1_000)), (64, 1));
        let measured = (options.warmup + options.duration) * options.regions.0.len() as u32;
        assert!(measured < Duration::from_secs(60), "{measured:?}");
    }

    #[test]
    fn durable_log_is_synced_by_one_writer_unless_told_otherwise() {
        let options = parse(&["--log", "raft-engine"]).unwrap();
        assert!(options.sync());
        assert_eq!(options.log_writers(), 1);
        let options = parse(&["--log=raft-engine", "--sync=off", "--log-writers=0"]).unwrap();
        assert!(!options.sync());
        assert_eq!(options.log_writers(), 0);
    }

    #[test]
    fn pollers_share_the_cores_among_the_stores() {
        let options = parse(&[]).unwrap();
        assert_eq!((options.pollers_for(2), options.pollers_for(16)), (1, 5));
        let options = parse(&["--pollers", "7"]).unwrap();
        assert_eq!(options.pollers_for(2), 7);
    }

    #[test]
    fn duplicate_region_counts_are_rows_of_their_own() {
        let options = parse(&["--regions", "10, 10,1"]).unwrap();
        assert_eq!(options.regions.0, [10, 10, 1]);
    }

    #[test]
    fn refusal_is_one_line_that_names_option_and_value() {
        let cases: &[(&[&str], &str, &str)] = &[
            (&["--wombat"], "--wombat", "unexpected"),
            (&["stray"], "stray", "unexpected"),
            (&["--regions", "0"], "--regions", "'0'"),
            (&["--regions", "ten"], "--regions", "'ten'"),
            (&["--regions", ""], "--regions", "''"),
            (&["--regions", "1,,2"], "--regions", "''"),
            (&["--regions", "2000001"], "--regions", "'2000001'"),
            (&["--regions"], "--regions", "value"),
            (&["--stores", "0"], "--stores", "'0'"),
            (&["--stores", "10"], "--stores", "'10'"),
            (&["--stores", "3", "--stores", "5"], "--stores", "multiple"),
            (&["--payload", "0"], "--payload", "'0'"),
            (&["--payload", "1048577"], "--payload", "'1048577'"),
            (&["--outstanding", "0"], "--outstanding", "'0'"),
            (&["--outstanding", "lots"], "--outstanding", "'lots'"),
            (&["--outstanding", "10000001"], "--outstanding", "10000001"),
            (&["--log", "paper"], "--log", "raft-engine"),
            (&["--sync", "maybe"], "--sync", "'maybe'"),
            (&["--sync", "on"], "--sync", "raft-engine"),
            (&["--keys", "round"], "--keys", "'round'"),
            (&["--compare", "wombat"], "--compare", "'wombat'"),
            (&["--compare", "bare,"], "--compare", "''"),
            (&["--compare", "bare", "--log", "raft-engine"], "--compare", "in memory"),
            (&["--duration", "5"], "--duration", "'5'"),
            (&["--duration", "1ms"], "--duration", "100ms"),
            (&["--duration", "-5s"], "-5", "unexpected"),
            (&["--warmup", "soon"], "--warmup", "'soon'"),
            (&["--repeat", "0"], "--repeat", "'0'"),
            (&["--seed", "x"], "--seed", "'x'"),
            (&["--metrics-addr", "here"], "--metrics-addr", "'here'"),
            (&["--payload", "1048576", "--outstanding", "5000"], "--payload", "--outstanding"),
        ];
        for (args, option, detail) in cases {
            let line = refusal(args);
            assert_eq!(line.lines().count(), 1, "{args:?}: {line}");
            assert!(line.contains(option), "{args:?}: {line}");
            assert!(line.contains(detail), "{args:?}: {line}");
        }
    }

    #[test]
    fn help_names_every_option_and_the_exit_codes() {
        let Err(NoRun::Info(help)) = parse(&["--help"]) else {
            panic!("--help gives no help");
        };
        let options = "regions stores pollers apply-pollers log-writers log sync data-dir payload \
                       outstanding keys warmup duration repeat seed metrics-addr out json config compare";
        for option in options.split_whitespace() {
            assert!(help.contains(&format!("--{option} ")), "{option}: {help}");
        }
        for system in ["openraft", "openraft-fair", "thread-per-region", "bare"] {
            assert!(help.contains(&format!("\n  {system}  ")), "{system}: {help}");
        }
        assert!(help.contains("Exit codes"), "{help}");
    }
}
