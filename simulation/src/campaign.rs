//! Many seeds, on all cores.

use crate::faults::{FaultKind, Fired};
use crate::run::{run, Figures, Outcome};
use crate::scenarios::{self, Scenario};
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Mutex;
use std::time::Instant;

/// A seed whose clients did less than this shows nothing.
pub const LEAST_DONE: u64 = 10;

/// Of so many seeds, every promised kind of fault strikes once at least.
const SEEDS_FOR_A_FAULT: u64 = 20;

/// Which seeds to run, and how.
#[derive(Clone, Copy, Debug)]
pub struct Campaign<'a> {
    /// The first seed.
    pub first_seed: u64,
    /// How many.
    pub seeds: u64,
    /// All of this scenario; otherwise each seed picks its own.
    pub scenario: Option<&'a Scenario>,
    /// Threads.
    pub jobs: usize,
    /// Each seed twice: the trace must be the same.
    pub twice: bool,
    /// No further seed begins once one has failed.
    pub until_failure: bool,
}

/// A seed that broke a rule.
#[derive(Clone, Debug, Serialize)]
pub struct Failure {
    /// The seed.
    pub seed: u64,
    /// Its scenario.
    pub scenario: String,
    /// Which rule.
    pub rule: &'static str,
    /// What happened.
    pub text: String,
}

/// What came of a campaign.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// The first seed.
    pub first_seed: u64,
    /// Seeds run.
    pub seeds: u64,
    /// Hash of all traces, in the order of the seeds.
    pub hash: String,
    /// Simulated time.
    pub simulated_hours: f64,
    /// Time it took.
    pub took_seconds: f64,
    /// Simulated time over the time of one core.
    pub times_real_time: f64,
    /// Events of all traces.
    pub events: u64,
    /// Operations proposed.
    pub operations: u64,
    /// Operations answered with success.
    pub done: u64,
    /// Of those, answers that the log explains.
    pub witnessed: u64,
    /// Registers whose answers alone make sense.
    pub registers: u64,
    /// Registers with too many operations for that search.
    pub registers_too_long: u64,
    /// Seeds by scenario.
    pub scenarios: BTreeMap<&'static str, u64>,
    /// Faults that have struck.
    pub fired: Fired,
    /// Seeds that broke a rule.
    pub failures: Vec<Failure>,
    /// Why the campaign shows nothing, if it does not.
    pub void: Vec<String>,
}

impl Report {
    fn add(&mut self, figures: &Figures) {
        self.events += figures.events;
        self.operations += figures.operations;
        self.done += figures.done;
        self.witnessed += figures.witnessed;
        self.registers += figures.registers;
        self.registers_too_long += figures.registers_too_long;
        self.fired.add(&figures.fired);
    }
}

/// Runs a campaign. `progress` is told after each seed how many are done and how many have failed.
pub fn conduct(campaign: &Campaign<'_>, progress: impl Fn(u64, u64) + Sync) -> Report {
    let start = Instant::now();
    let next = AtomicU64::new(0);
    let failed = AtomicU64::new(0);
    let outcomes = Mutex::new(BTreeMap::new());
    std::thread::scope(|scope| {
        for _ in 0..campaign.jobs.max(1) {
            scope.spawn(|| loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                let enough = campaign.until_failure && failed.load(Ordering::Relaxed) > 0;
                if number >= campaign.seeds || enough {
                    return;
                }
                let seed = campaign.first_seed.wrapping_add(number);
                let (scenario, outcome) = one(campaign, seed);
                failed.fetch_add(u64::from(outcome.violation.is_some()), Ordering::Relaxed);
                let mut outcomes = outcomes.lock().expect("nobody panics with it");
                outcomes.insert(seed, (scenario, outcome));
                progress(outcomes.len() as u64, failed.load(Ordering::Relaxed));
            });
        }
    });
    let outcomes = outcomes.into_inner().expect("nobody has panicked");
    let mut report = summarise(campaign, &outcomes);
    report.took_seconds = start.elapsed().as_secs_f64();
    report
}

fn one(campaign: &Campaign<'_>, seed: u64) -> (&'static str, Outcome) {
    let plan = scenarios::plan(seed, campaign.scenario);
    let mut outcome = run(&plan, false);
    if campaign.twice && outcome.violation.is_none() {
        let again = run(&plan, false).figures.hash;
        if again != outcome.figures.hash {
            let text = format!("trace {:016x}, then {again:016x}", outcome.figures.hash);
            outcome.violation =
                Some(crate::check::Violation { rule: "a seed repeats itself", text });
        }
    }
    let name = scenarios::find(&plan.scenario).expect("it made the plan").name;
    (name, outcome)
}

fn summarise(campaign: &Campaign<'_>, outcomes: &BTreeMap<u64, (&'static str, Outcome)>) -> Report {
    let seeds = outcomes.len() as u64;
    let mut report = Report { first_seed: campaign.first_seed, seeds, ..Report::default() };
    let (mut hash, mut simulated_us, mut took_us) = (0u64, 0, 0);
    for (seed, (scenario, outcome)) in outcomes {
        let figures = &outcome.figures;
        hash = (hash ^ figures.hash).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(31);
        simulated_us += figures.simulated_us;
        took_us += figures.took_us;
        *report.scenarios.entry(scenario).or_default() += 1;
        report.add(figures);
        match &outcome.violation {
            Some(violation) => report.failures.push(Failure {
                seed: *seed,
                scenario: (*scenario).to_owned(),
                rule: violation.rule,
                text: violation.text.clone(),
            }),
            None if figures.done < LEAST_DONE => {
                report.void.push(format!("seed {seed}: {} operations were done", figures.done));
            }
            None => {}
        }
    }
    report.hash = format!("{hash:016x}");
    report.simulated_hours = simulated_us as f64 / 3.6e9;
    report.times_real_time = simulated_us as f64 / took_us.max(1) as f64;
    report.void.extend(missing_faults(campaign, &report));
    report
}

/// Promised kinds of fault that struck too rarely.
fn missing_faults(campaign: &Campaign<'_>, report: &Report) -> Vec<String> {
    let floor = report.seeds / SEEDS_FOR_A_FAULT;
    let promised: Vec<FaultKind> = match campaign.scenario {
        Some(scenario) => scenario.promises.to_vec(),
        None => FaultKind::ALL.to_vec(),
    };
    let rare = promised.into_iter().filter(|kind| report.fired.count(*kind) < floor);
    rare.map(|kind| {
        format!("{kind:?} struck {} times, {floor} were promised", report.fired.count(kind))
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn campaign(seeds: u64) -> Campaign<'static> {
        Campaign {
            first_seed: 1,
            seeds,
            scenario: None,
            jobs: 2,
            twice: false,
            until_failure: false,
        }
    }

    #[test]
    fn a_campaign_without_faults_is_void() {
        let outcome = Outcome {
            violation: None,
            figures: Figures { done: LEAST_DONE, ..Figures::default() },
        };
        let outcomes = (1..=20).map(|seed| (seed, ("mixed", outcome.clone()))).collect();
        let report = summarise(&campaign(20), &outcomes);
        assert_eq!(report.void.len(), FaultKind::ALL.len(), "{:?}", report.void);
    }

    #[test]
    fn a_seed_without_operations_is_void() {
        let outcome = Outcome { violation: None, figures: Figures::default() };
        let report = summarise(&campaign(1), &[(1, ("mixed", outcome))].into());
        assert_eq!(report.void, ["seed 1: 0 operations were done"]);
    }

    #[test]
    fn seeds_repeat_themselves_on_any_number_of_threads() {
        let once = conduct(&Campaign { jobs: 1, ..campaign(2) }, |_, _| ());
        let again = conduct(&Campaign { twice: true, ..campaign(2) }, |_, _| ());
        assert_eq!(once.failures.len() + again.failures.len(), 0, "{:?}", again.failures);
        assert_eq!(once.hash, again.hash);
        assert!(once.done > 100 && once.witnessed == once.done);
    }
}
