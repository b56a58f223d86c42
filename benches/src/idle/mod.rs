//! What idle regions cost, awake and asleep: CPU and memory, what it takes to wake one, and what it takes to
//! replace the leaders of all that a lost store led. Each row has a cluster that is kept awake, to compare
//! with, and one that sleeps ([`row`]).
//!
//! A number that moved means: for CPU asleep, that something ticks by the region again; for `active`, that
//! regions wake which should not, or that stores talk more; for a write to a sleeping region, that waking
//! waits for a tick; for the lost store, that it is noticed later, or that elections stand in each other's way.

pub mod chart;
pub mod clients;
pub mod cluster;
pub mod options;
pub mod report;
pub mod row;

use std::ffi::OsString;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use tempfile::TempDir;

use crate::stress::error::{one_line, StressError, EXIT_BAD_INPUT};
use crate::stress::interrupt::Interrupt;
use crate::stress::machine::{Machine, ProcessSample};
use crate::stress::options::{LogKind, NoRun};
use crate::stress::paths::check_reports;
use crate::stress::progress::Progress;
use crate::stress::report::write_file;
use cluster::Watch;
use options::Options;
use report::Report;
use row::{run_row, Context};

const JSON_NAME: &str = "idle.json";
const SVG_NAME: &str = "idle.svg";

/// Runs `stress idle` with this command line, its name first.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let at_first = ProcessSample::take();
    let options = match Options::parse_args(args) {
        Ok(options) => options,
        Err(NoRun::Info(text)) => {
            // Nobody is left to tell when standard output is closed.
            drop(io::stdout().write_all(text.as_bytes()));
            return ExitCode::SUCCESS;
        }
        Err(NoRun::Refused(error)) => {
            complain(&error);
            return ExitCode::from(EXIT_BAD_INPUT);
        }
    };
    let interrupt = Interrupt::new();
    if let Err(error) = interrupt.install() {
        complain(&format!("Ctrl-C will end the run at once: {error}"));
    }
    match run(options, at_first, &interrupt) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&error);
            ExitCode::from(error.exit_code())
        }
    }
}

fn complain(error: &dyn std::fmt::Display) {
    eprintln!("stress idle: {}", one_line(&error.to_string()));
}

fn run(
    options: Options,
    at_first: ProcessSample,
    interrupt: &Interrupt,
) -> Result<(), StressError> {
    check_reports(options.out.as_deref(), options.json.as_deref(), &[JSON_NAME, SVG_NAME])?;
    if let Some(out) = &options.out {
        let bad = |error| StressError::bad_input("--out", out.display(), &format!("{error}"));
        fs::create_dir_all(out).map_err(|error: io::Error| bad(error))?;
    }
    let machine = Machine::detect();
    let cores = machine.cores;
    let mut report = Report { machine, options: options.clone(), rows: Vec::new() };
    let progress = Progress::new();
    print(&options, &progress, &report::header(&report))?;
    let mut measured = Ok(());
    for regions in &options.regions.0 {
        let watch =
            Watch { regions: *regions, progress: progress.clone(), interrupt: interrupt.clone() };
        measured = directory(&options).and_then(|dir| {
            let data_dir = dir.as_ref().map(|dir| dir.path().to_path_buf());
            let row = run_row(&options, &Context { watch, cores, data_dir, at_first })?;
            print(&options, &progress, &report::line(&row))?;
            report.rows.push(row);
            Ok(())
        });
        if measured.is_err() {
            break;
        }
    }
    progress.finish();
    // What was measured before a failure is worth its file all the same.
    let written = write_reports(&options, &report);
    match measured {
        Err(StressError::Interrupted) if !report.rows.is_empty() => written,
        Err(error) => Err(error),
        Ok(()) => written,
    }
}

/// Where the logs of a row are, if on disk; removed when this is dropped.
fn directory(options: &Options) -> Result<Option<TempDir>, StressError> {
    if options.log == LogKind::Memory {
        return Ok(None);
    }
    let made = tempfile::Builder::new().prefix("stress-idle-").tempdir();
    made.map(Some).map_err(|source| StressError::Write { path: std::env::temp_dir(), source })
}

/// Prints to standard output, or to standard error when the JSON report has the former.
fn print(options: &Options, progress: &Progress, text: &str) -> Result<(), StressError> {
    let printed = progress.suspend(|| match options.json_to_stdout() {
        true => writeln!(io::stderr(), "{text}"),
        false => writeln!(io::stdout(), "{text}"),
    });
    printed.map_err(|source| StressError::Write { path: PathBuf::from("the table"), source })
}

fn write_reports(options: &Options, report: &Report) -> Result<(), StressError> {
    if let Some(out) = &options.out {
        write_file(&out.join(JSON_NAME), &report.to_json())?;
        if !report.rows.is_empty() {
            write_file(&out.join(SVG_NAME), &chart::svg(report)?)?;
        }
    }
    match &options.json {
        Some(_) if options.json_to_stdout() => io::stdout()
            .write_all(report.to_json().as_bytes())
            .map_err(|source| StressError::Write { path: "standard output".into(), source }),
        Some(path) => write_file(Path::new(path), &report.to_json()),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::clients::Clients;
    use super::cluster::Cluster;
    use super::*;
    use crate::stress::ledger::encode;

    /// One row of 30 regions with short ticks.
    fn measure(args: &[&str]) -> (Options, row::Row) {
        let quick =
            ["--tick", "20ms", "--sleep-after", "3", "--duration", "200ms", "--samples", "10"];
        let busy = ["--active", "0.1", "--rate", "30"];
        let all = [&["stress idle"], &quick[..], &busy[..], args].concat();
        let options = Options::parse_args(all).unwrap();
        let dir = directory(&options).unwrap();
        let ctx = Context {
            watch: Watch { regions: 30, progress: Progress::silent(), interrupt: Interrupt::new() },
            cores: 2,
            data_dir: dir.as_ref().map(|dir| dir.path().to_path_buf()),
            at_first: ProcessSample::take(),
        };
        let row = run_row(&options, &ctx).unwrap();
        (options, row)
    }

    /// Neither zero nor absurd, on a machine with other work too.
    fn assert_sane(row: &row::Row, options: &Options) {
        assert!(row.cold.seconds > 0.0 && row.cold.seconds < 30.0, "{row:?}");
        for quiet in [&row.awake, &row.asleep] {
            assert!(quiet.cpu_percent > 0.0 && quiet.cpu_percent < 6_400.0, "{row:?}");
        }
        for latency in row.write_awake.iter().chain([&row.write_asleep]) {
            assert_eq!(latency.writes, options.samples, "{row:?}");
            assert!(0.0 < latency.p50_ms && latency.p50_ms <= latency.p99_ms, "{row:?}");
            assert!(latency.p99_ms <= latency.max_ms && latency.max_ms < 30e3, "{row:?}");
        }
        assert_eq!(row.active.regions, 3);
        assert!((1..=3).contains(&row.active.awake), "{row:?}");
        assert!(row.write_awake.is_some() || row.awake.is_too_much(), "{row:?}");
        assert!(row.active.latency.writes >= 3, "{row:?}");
        let restart = &row.restart;
        assert!(0.0 < restart.registered_s && restart.registered_s <= restart.led_s, "{row:?}");
        assert!(restart.led_s <= restart.asleep_s && restart.asleep_s < 60.0, "{row:?}");
    }

    #[test]
    fn all_sleep_and_a_lost_store_is_replaced_for_what_it_led_and_nothing_else() {
        let (options, row) = measure(&[]);
        assert_sane(&row, &options);
        // Not none: what was counted before may be told late.
        assert!(row.asleep.heartbeats_sent.is_some_and(|sent| sent < 0.3), "{row:?}");
        assert!(row.awake.heartbeats_sent.is_some_and(|sent| sent > 0.0 && sent < 1.5), "{row:?}");
        let failover = row.failover.as_ref().expect("three stores can lose one");
        assert!((1..30).contains(&failover.led), "{row:?}");
        assert_eq!(failover.woken, failover.led, "{row:?}");
        assert!(failover.wakes >= failover.led, "each is woken by a store, at the least: {row:?}");
        // Questions stay without an answer for seven ticks of ten before anything happens.
        assert!(failover.election_timeouts > 0.5, "{row:?}");
        assert!(failover.election_timeouts < 50.0, "{row:?}");
        assert!(failover.stop_cpu_s <= failover.cpu_s, "{row:?}");
    }

    #[test]
    fn one_store_sleeps_and_starts_anew_from_its_log_on_disk() {
        let (options, row) = measure(&["--stores", "1", "--log", "raft-engine"]);
        assert_sane(&row, &options);
        assert!(row.failover.is_none(), "{row:?}");
    }

    /// Three stores with three regions that never sleep, or do so soon.
    fn cluster(sleep: bool) -> Cluster {
        let options = ["stress idle", "--tick", "20ms", "--sleep-after", "3"];
        let config = Options::parse_args(options).unwrap().config(sleep, 2);
        let watch = Watch { regions: 3, progress: Progress::silent(), interrupt: Interrupt::new() };
        let cluster = Cluster::start(config, 3, None, &watch).unwrap();
        cluster.settle().unwrap();
        cluster
    }

    #[test]
    fn a_write_too_many_is_found() {
        let cluster = cluster(false);
        let mut clients = Clients::new(&cluster);
        clients.one_by_one(&cluster, "write", &[1, 2, 1]).unwrap();
        clients.verify(&cluster).unwrap();
        let leader = cluster.led_by()[2].unwrap();
        let (_, handle) = cluster.handles().nth(leader).unwrap();
        handle.propose(raftstore::RegionId::new(2), encode(7, 7, 16)).unwrap();
        let error = clients.verify(&cluster).unwrap_err().to_string();
        assert!(error.contains("region 2: 1 writes answered, 2 applied"), "{error}");
        assert_eq!(clients.verify(&cluster).unwrap_err().exit_code(), 1);
        cluster.shutdown();
    }

    #[test]
    fn who_is_awake_is_told_and_what_has_no_leader_is_found() {
        let mut cluster = cluster(true);
        cluster.fall_asleep().unwrap();
        assert!(cluster.awake().is_empty());
        let (mut clients, mut seen) = (Clients::new(&cluster), BTreeSet::new());
        let wake = || {
            // Again and again: it is awake for some ticks only.
            clients.one_by_one(&cluster, "write", &[3]).unwrap();
            seen.extend(cluster.awake());
            seen.len() as u64
        };
        cluster.watch.until("wake", 1, wake).unwrap();
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), [3]);
        cluster.check("all led").unwrap();
        (0..3).for_each(|at| cluster.stop_store(at));
        cluster.watch.interrupt.request();
        assert!(matches!(cluster.check("none led"), Err(StressError::Interrupted)));
        cluster.shutdown();
    }

    #[test]
    fn an_interrupt_ends_a_row_without_figures() {
        let options = Options::parse_args(["stress idle", "--duration", "1h"]).unwrap();
        let interrupt = Interrupt::new();
        interrupt.request();
        let watch = Watch { regions: 3, progress: Progress::silent(), interrupt };
        let ctx = Context { watch, cores: 2, data_dir: None, at_first: ProcessSample::default() };
        assert!(matches!(run_row(&options, &ctx), Err(StressError::Interrupted)));
    }
}
