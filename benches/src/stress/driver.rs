//! A whole run: from the command line to the exit code.

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use prometheus::Registry;
use raftstore::StoreConfig;

use super::bare;
use super::chart;
use super::error::{one_line, StressError, EXIT_BAD_INPUT, EXIT_FAILED, EXIT_OK};
use super::interrupt::Interrupt;
use super::machine::Machine;
use super::metrics_server::MetricsServer;
use super::options::{NoRun, Options};
use super::paths::{self, Places};
use super::progress::Progress;
use super::report::{write_file, Report, ReportOptions, Row};
use super::run::Context;
use super::table;
use crate::compare::report::Compared;
use crate::compare::{self, Rivals};

/// CPU time given to the bare loop of each row, besides its set-up.
const BARE_DURATION: Duration = Duration::from_millis(700);

/// Measures one repeat of one row; [`super::run::run_row`] outside of tests.
pub type RunRow = fn(&Options, u64, &Context) -> Result<Row, StressError>;

/// Runs the program with this command line, the program's name first; its exit code.
pub fn main(args: impl IntoIterator<Item = OsString>, run_row: RunRow) -> u8 {
    let options = match Options::parse_args(args) {
        Ok(options) => options,
        Err(NoRun::Info(text)) => {
            // Nobody is left to tell when standard output is closed.
            drop(io::stdout().write_all(text.as_bytes()));
            return EXIT_OK;
        }
        Err(NoRun::Refused(error)) => {
            complain(&error);
            return EXIT_BAD_INPUT;
        }
    };
    let interrupt = Interrupt::new();
    match run(options, run_row, &interrupt) {
        Ok(code) => code,
        Err(error) => {
            complain(&error);
            error.exit_code()
        }
    }
}

fn complain(error: &dyn std::fmt::Display) {
    eprintln!("stress: {}", one_line(&error.to_string()));
}

/// Checks everything, then creates, then measures, then writes the reports.
fn run(options: Options, run_row: RunRow, interrupt: &Interrupt) -> Result<u8, StressError> {
    paths::check(&options)?;
    let config = store_config(&options)?;
    let metrics = match options.metrics_addr {
        Some(addr) => Some(MetricsServer::start(addr)?),
        None => None,
    };
    let places = Places::create(&options)?;
    if let Err(error) = interrupt.install() {
        complain(&format!("Ctrl-C will end the run at once: {error}"));
    }
    if let Some(metrics) = &metrics {
        eprintln!("stress: metrics at http://{}/metrics", metrics.addr());
    }
    let machine = Machine::detect();
    let run = Run {
        places,
        metrics,
        run_row,
        config,
        progress: Progress::new(),
        interrupt: interrupt.clone(),
        report: Report {
            options: ReportOptions::new(&options, &machine),
            machine,
            rows: Vec::new(),
            comparison: Vec::new(),
        },
        options,
    };
    run.all_rows()
}

/// The stores' settings, from `--config` or the defaults.
fn store_config(options: &Options) -> Result<StoreConfig, StressError> {
    match &options.config {
        Some(path) => {
            let config = StoreConfig::from_file(path)
                .map_err(|error| StressError::BadInput(format!("--config: {error}")))?;
            let limit = config.raft.max_proposal_size;
            if options.payload > limit.as_u64() {
                let problem = format!("larger than raft.max_proposal_size ({limit}) in --config");
                return Err(StressError::bad_input("--payload", options.payload, &problem));
            }
            Ok(config)
        }
        None => Ok(StoreConfig::default()),
    }
}

/// A run under way.
struct Run {
    options: Options,
    places: Places,
    metrics: Option<MetricsServer>,
    run_row: RunRow,
    config: StoreConfig,
    progress: Progress,
    interrupt: Interrupt,
    report: Report,
}

impl Run {
    fn all_rows(mut self) -> Result<u8, StressError> {
        let mut failed = None;
        self.print(&table::header(&self.report))?;
        for (number, regions) in self.options.regions.0.clone().into_iter().enumerate() {
            match self.row(number, regions) {
                Ok(row) => {
                    self.print(&table::line(&row))?;
                    self.report.rows.push(row);
                }
                Err(error @ StressError::Interrupted) => {
                    if self.report.rows.is_empty() {
                        complain(&error);
                    }
                    break;
                }
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            }
            if self.interrupt.is_requested() {
                break;
            }
        }
        self.progress.finish();
        let fairness = |row: &Row| table::fairness_line("", row.regions, row.fairness.as_ref());
        let disk = |row: &Row| row.disk.map(|disk| disk.line(row.regions));
        let rows = &self.report.rows;
        let lines: Vec<String> =
            rows.iter().filter_map(fairness).chain(rows.iter().filter_map(disk)).collect();
        if !lines.is_empty() {
            self.print(&format!("\n{}", lines.join("\n")))?;
        }
        if let Some(systems) = &self.options.compare {
            let text = compare::table::text(&self.report.comparison, systems);
            self.print(&format!("\n{text}"))?;
        }
        // What was measured before a failure is worth its file all the same.
        let written = self.write_reports();
        if let Some(error) = failed {
            if let Err(second) = written {
                complain(&second);
            }
            return Err(error);
        }
        written?;
        Ok(self.verdict())
    }

    /// All repeats of one region count, the bare loop, and the other systems beside them.
    fn row(&mut self, number: usize, regions: u64) -> Result<Row, StressError> {
        let mut repeats = Vec::new();
        let mut rivals = Rivals::new(&self.options, regions);
        for repeat in 0..self.options.repeat {
            if self.interrupt.is_requested() {
                break;
            }
            match self.repeat(number, regions, repeat) {
                Ok(row) => repeats.push(row),
                Err(StressError::Interrupted) => break,
                Err(error) => return Err(error),
            }
            if rivals.repeat(&self.options, || self.context(None, repeat)).is_err() {
                break;
            }
        }
        let mut row = Row::median(repeats).ok_or(StressError::Interrupted)?;
        if !self.interrupt.is_requested() {
            self.progress.begin(&format!("{} regions: bare loop", table::grouped(regions)), 1);
            let depth = self.options.depth_for(regions);
            let payload = self.options.payload as usize;
            row.compare_to_bare(bare::measure(regions, depth, payload, BARE_DURATION));
        }
        self.report.comparison.extend(rivals.compared(&row));
        Ok(row)
    }

    fn repeat(&mut self, number: usize, regions: u64, repeat: u64) -> Result<Row, StressError> {
        let data_dir = self.places.row_dir(number, repeat)?;
        let ctx = self.context(data_dir, repeat);
        if let Some(metrics) = &self.metrics {
            metrics.serve(ctx.registry.clone());
        }
        let row = (self.run_row)(&self.options, regions, &ctx);
        self.places.release(ctx.data_dir.as_deref());
        row
    }

    fn context(&self, data_dir: Option<PathBuf>, repeat: u64) -> Context {
        Context {
            machine: self.report.machine.clone(),
            interrupt: self.interrupt.clone(),
            progress: self.progress.clone(),
            registry: Registry::new(),
            data_dir,
            config: self.config.clone(),
            seed: self.options.seed.wrapping_add(repeat),
        }
    }

    /// Prints to standard output, or to standard error when the JSON report has the former.
    fn print(&self, text: &str) -> Result<(), StressError> {
        let to_stderr = self.options.json_to_stdout();
        let printed = self.progress.suspend(|| {
            if to_stderr {
                writeln!(io::stderr(), "{text}")
            } else {
                writeln!(io::stdout(), "{text}")
            }
        });
        printed.map_err(|source| StressError::Write {
            path: Path::new(if to_stderr { "standard error" } else { "standard output" }).into(),
            source,
        })
    }

    fn write_reports(&self) -> Result<(), StressError> {
        let report = &self.report;
        if let Some(out) = &self.options.out {
            write_file(&out.join(paths::JSON_NAME), &report.to_json())?;
            if !report.rows.is_empty() {
                write_file(&out.join(paths::CSV_NAME), &report.to_csv())?;
                write_file(&out.join(paths::SVG_NAME), &chart::svg(report)?)?;
            }
            if !report.comparison.is_empty() {
                let csv = compare::report::to_csv(&report.comparison);
                write_file(&out.join(paths::COMPARE_CSV_NAME), &csv)?;
                write_file(&out.join(paths::COMPARE_SVG_NAME), &compare::picture::svg(report)?)?;
            }
        }
        match &self.options.json {
            Some(_) if self.options.json_to_stdout() => io::stdout()
                .write_all(report.to_json().as_bytes())
                .map_err(|source| StressError::Write { path: "standard output".into(), source }),
            Some(path) => write_file(path, &report.to_json()),
            None => Ok(()),
        }
    }

    fn verdict(&self) -> u8 {
        let ours = self.report.rows.iter().filter_map(Row::damage);
        let others = self.report.comparison.iter().filter_map(Compared::damage);
        let damages: Vec<String> = ours.chain(others).collect();
        for damage in &damages {
            complain(damage);
        }
        if damages.is_empty() {
            EXIT_OK
        } else {
            EXIT_FAILED
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::row;
    use super::*;
    use std::fs;

    fn healthy(_: &Options, regions: u64, ctx: &Context) -> Result<Row, StressError> {
        Ok(row(regions, 1e5 + ctx.seed as f64, 1.0))
    }

    fn losing(_: &Options, regions: u64, _: &Context) -> Result<Row, StressError> {
        let mut row = row(regions, 1e5, 1.0);
        row.health.lost = 1;
        Ok(row)
    }

    fn interrupted_in_the_second(
        _: &Options,
        regions: u64,
        ctx: &Context,
    ) -> Result<Row, StressError> {
        if regions == 1 {
            return Ok(row(regions, 1e5, 1.0));
        }
        ctx.interrupt.request();
        Err(StressError::Interrupted)
    }

    fn failing_in_the_second(_: &Options, regions: u64, _: &Context) -> Result<Row, StressError> {
        match regions {
            1 => Ok(row(regions, 1e5, 1.0)),
            _ => Err(StressError::Store("10 regions: no leader".to_owned())),
        }
    }

    /// Runs with `--out`; the exit code and the report read back.
    fn run_with(args: &[&str], run_row: RunRow) -> (u8, serde_json::Value) {
        let temp = tempfile::tempdir().unwrap();
        let out = temp.path().join("out");
        let all = [&["stress", "--out", out.to_str().unwrap()], args].concat();
        let options = Options::parse_args(all).unwrap();
        let code = match run(options, run_row, &Interrupt::new()) {
            Ok(code) => code,
            Err(error) => error.exit_code(),
        };
        let json = fs::read_to_string(out.join(paths::JSON_NAME)).unwrap();
        assert!(out.join(paths::CSV_NAME).exists());
        assert!(out.join(paths::SVG_NAME).exists());
        (code, serde_json::from_str(&json).unwrap())
    }

    #[test]
    fn healthy_run_reports_median_of_the_repeats_and_the_bare_loop() {
        let (code, json) = run_with(&["--regions", "1,2", "--repeat", "3", "--seed", "5"], healthy);
        assert_eq!(code, EXIT_OK);
        assert_eq!(json["rows"].as_array().unwrap().len(), 2);
        let row = &json["rows"][0];
        assert_eq!(row["writes_per_s"], 1e5 + 6.0);
        assert_eq!(row["repeats"]["count"], 3);
        assert!(row["ratio_to_bare"].as_f64().unwrap() > 0.0);
    }

    #[test]
    fn comparison_is_in_the_report_only_where_it_was_asked_for() {
        let (code, json) = run_with(&["--regions", "1,2"], healthy);
        assert!(code == EXIT_OK && json.get("comparison").is_none());
        assert!(json["options"].get("compare").is_none());
        let (code, json) = run_with(&["--regions", "1,2", "--compare", "bare"], healthy);
        assert_eq!(code, EXIT_OK);
        let systems: Vec<_> = json["comparison"].as_array().unwrap().iter().collect();
        assert_eq!(systems.len(), 4);
        assert_eq!((&systems[3]["system"], &systems[3]["regions"]), (&"bare".into(), &2.into()));
    }

    #[test]
    fn lost_write_fails_the_run_after_all_rows() {
        let (code, json) = run_with(&["--regions", "1,2"], losing);
        assert_eq!(code, EXIT_FAILED);
        assert_eq!(json["rows"].as_array().unwrap().len(), 2);
    }

    #[test]
    fn interrupted_run_reports_what_it_has() {
        let (code, json) = run_with(&["--regions", "1,10,100"], interrupted_in_the_second);
        assert_eq!(code, EXIT_OK);
        assert_eq!(json["rows"].as_array().unwrap().len(), 1);
    }

    #[test]
    fn failing_row_keeps_the_rows_before_it() {
        let (code, json) = run_with(&["--regions", "1,10,100"], failing_in_the_second);
        assert_eq!(code, EXIT_FAILED);
        assert_eq!(json["rows"].as_array().unwrap().len(), 1);
    }
}
