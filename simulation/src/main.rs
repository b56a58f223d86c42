//! The simulation on the command line.

#![forbid(unsafe_code)]

use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use simulation::{
    conduct, find, minimize, run, Campaign, FaultKind, Plan, Report, LEAST_DONE, SCENARIOS,
};
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

// Millions of short-lived messages; and memory comes back between seeds.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Prints a line. Who has closed the pipe does not want to know more.
macro_rules! say {
    ($($arguments:tt)*) => {
        drop(writeln!(std::io::stdout(), $($arguments)*))
    };
}

/// Failing seeds that are told at length.
const TOLD_FAILURES: usize = 10;

/// Runs clusters of stores, whole and on one thread each, from seeds: with faults, and with checkers of
/// everything that must hold. The same seed does the same thing on every machine.
///
/// Ends with 0 when all is well, 1 when a seed broke a rule, 2 when the command makes no sense, and 3
/// when too little has happened for the run to mean anything.
#[derive(Debug, Parser)]
#[command(version)]
struct Options {
    /// How many seeds to run
    #[arg(long, default_value_t = 100, conflicts_with_all = ["seed", "plan"])]
    seeds: u64,
    /// The first seed
    #[arg(long, default_value_t = 1, conflicts_with_all = ["seed", "plan"])]
    first_seed: u64,
    /// Run this seed alone
    #[arg(long)]
    seed: Option<u64>,
    /// Run the plan in this file, as --minimize writes it
    #[arg(long, conflicts_with_all = ["seed", "scenario"])]
    plan: Option<PathBuf>,
    /// All seeds in this scenario; otherwise each seed picks one
    #[arg(long)]
    scenario: Option<String>,
    /// Print everything that happens (with --seed or --plan)
    #[arg(long)]
    trace: bool,
    /// Shrink a failing plan, and write what is left to this file (with --seed or --plan)
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "plan.json")]
    minimize: Option<PathBuf>,
    /// Run each seed twice and compare
    #[arg(long, conflicts_with_all = ["seed", "plan"])]
    twice: bool,
    /// Begin no further seed once one has failed
    #[arg(long, conflicts_with_all = ["seed", "plan"])]
    until_failure: bool,
    /// Threads; one for each core otherwise
    #[arg(long, conflicts_with_all = ["seed", "plan"], value_parser = clap::value_parser!(u16).range(1..))]
    jobs: Option<u16>,
    /// Write the figures to this file
    #[arg(long, value_name = "FILE", conflicts_with_all = ["seed", "plan"])]
    json: Option<PathBuf>,
    /// List the scenarios
    #[arg(long)]
    list: bool,
    /// List the kinds of fault
    #[arg(long)]
    list_faults: bool,
}

fn main() -> ExitCode {
    let options = Options::parse();
    // A panic inside a simulated store is caught and judged there.
    if !options.trace {
        std::panic::set_hook(Box::new(|_| ()));
    }
    match start(&options) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("simulation: {error}");
            ExitCode::from(2)
        }
    }
}

fn start(options: &Options) -> Result<ExitCode, String> {
    if options.list {
        for scenario in SCENARIOS {
            say!("{:14} {}", scenario.name, scenario.about);
        }
        return Ok(ExitCode::SUCCESS);
    }
    if options.list_faults {
        for kind in FaultKind::ALL {
            say!("{:20} {}", format!("{kind:?}"), kind.describe());
        }
        return Ok(ExitCode::SUCCESS);
    }
    let scenario = match &options.scenario {
        Some(name) => {
            let unknown = || format!("there is no scenario '{name}'; --list says which there are");
            Some(find(name).ok_or_else(unknown)?)
        }
        None => None,
    };
    match (&options.plan, options.seed) {
        (Some(path), _) => {
            let fail = |error: String| format!("{}: {error}", path.display());
            let text = std::fs::read_to_string(path).map_err(|error| fail(error.to_string()))?;
            let plan: Plan =
                serde_json::from_str(&text).map_err(|error| fail(error.to_string()))?;
            plan.validate().map_err(fail)?;
            run_one(options, &plan)
        }
        (None, Some(seed)) => run_one(options, &simulation::plan(seed, scenario)),
        (None, None) if options.trace || options.minimize.is_some() => {
            Err("--trace and --minimize need --seed or --plan".to_owned())
        }
        (None, None) => {
            let cores = || std::thread::available_parallelism().map_or(1, usize::from);
            run_many(
                options,
                &Campaign {
                    first_seed: options.first_seed,
                    seeds: options.seeds,
                    scenario,
                    jobs: options.jobs.map_or_else(cores, usize::from),
                    twice: options.twice,
                    until_failure: options.until_failure,
                },
            )
        }
    }
}

fn run_one(options: &Options, plan: &Plan) -> Result<ExitCode, String> {
    let outcome = run(plan, options.trace);
    let figures = &outcome.figures;
    say!(
        "seed {}, scenario {}: {:.1} s simulated in {} ms, {} of {} operations done, trace {:016x}",
        plan.seed,
        plan.scenario,
        figures.simulated_us as f64 / 1e6,
        figures.took_us / 1000,
        figures.done,
        figures.operations,
        figures.hash
    );
    let Some(violation) = outcome.violation else {
        if options.minimize.is_some() {
            say!("there is nothing to shrink");
        }
        if figures.done < LEAST_DONE {
            say!("VOID: so few operations show nothing");
            return Ok(ExitCode::from(3));
        }
        say!("no rule was broken");
        return Ok(ExitCode::SUCCESS);
    };
    say!("BROKEN: {}\n{}", violation.rule, violation.text);
    if let Some(path) = &options.minimize {
        say!("shrinking a plan of {} actions", plan.actions.len());
        let smallest = minimize(plan, violation.rule, |plan| {
            eprintln!("{} actions, {} s", plan.actions.len(), plan.duration_us / 1_000_000);
        });
        let text = serde_json::to_string_pretty(&smallest).map_err(|error| error.to_string())?;
        std::fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))?;
        for timed in &smallest.actions {
            say!("{:10.6} {:?}", timed.at_us as f64 / 1e6, timed.action);
        }
        say!("cargo run --release -p simulation -- --plan {} --trace", path.display());
    }
    Ok(ExitCode::FAILURE)
}

fn run_many(options: &Options, campaign: &Campaign<'_>) -> Result<ExitCode, String> {
    if campaign.seeds == 0 {
        return Err("--seeds is 0, allowed is 1 and more".to_owned());
    }
    if campaign.first_seed.checked_add(campaign.seeds).is_none() {
        return Err("--first-seed and --seeds go beyond the last seed there is".to_owned());
    }
    if let Some(path) = &options.json {
        // Before hours are spent on what cannot be written.
        let created = std::fs::File::create(path);
        created.map_err(|error| format!("{}: {error}", path.display()))?;
    }
    let bar = match std::io::stderr().is_terminal() {
        true => ProgressBar::new(campaign.seeds),
        false => ProgressBar::hidden(),
    };
    let template = "{wide_bar} {pos}/{len} seeds, {msg} failed, {eta} left";
    bar.set_message("0");
    bar.set_style(ProgressStyle::with_template(template).expect("a sound template"));
    let report = conduct(campaign, |done, failed| {
        bar.set_position(done);
        bar.set_message(failed.to_string());
    });
    bar.finish_and_clear();
    tell(&report, options.scenario.as_deref());
    if let Some(path) = &options.json {
        let text = serde_json::to_string_pretty(&report).map_err(|error| error.to_string())?;
        std::fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(match (report.failures.is_empty(), report.void.is_empty()) {
        (false, _) => ExitCode::FAILURE,
        (true, false) => ExitCode::from(3),
        (true, true) => ExitCode::SUCCESS,
    })
}

fn tell(report: &Report, scenario: Option<&str>) {
    say!(
        "{} seeds from {}: {:.1} h simulated in {:.0} s, {:.0} times real time on a core",
        report.seeds,
        report.first_seed,
        report.simulated_hours,
        report.took_seconds,
        report.times_real_time
    );
    say!(
        "{} operations, {} done, {} answers explained by the log; {} registers searched, {} too long",
        report.operations,
        report.done,
        report.witnessed,
        report.registers,
        report.registers_too_long
    );
    say!("traces {}", report.hash);
    say!("\nfaults that struck");
    for kind in FaultKind::ALL.into_iter().filter(|kind| report.fired.count(*kind) > 0) {
        say!("{:>10}  {:19} {}", report.fired.count(kind), format!("{kind:?}"), kind.describe());
    }
    say!();
    for failure in report.failures.iter().take(TOLD_FAILURES) {
        let scenario = scenario.map_or_else(String::new, |name| format!(" --scenario {name}"));
        say!(
            "FAILED: seed {} ({}): {}\n  {}\n  cargo run --release -p simulation -- --seed {}{scenario} --trace",
            failure.seed,
            failure.scenario,
            failure.rule,
            failure.text.replace('\n', "\n  "),
            failure.seed
        );
    }
    if report.failures.len() > TOLD_FAILURES {
        say!("and {} more", report.failures.len() - TOLD_FAILURES);
    }
    for reason in report.void.iter().take(TOLD_FAILURES) {
        say!("VOID: {reason}");
    }
    match (report.failures.len(), report.void.is_empty()) {
        (0, true) => say!("no rule was broken"),
        (0, false) => say!("the run shows nothing"),
        (failed, _) => say!("{failed} of {} seeds failed", report.seeds),
    }
}
