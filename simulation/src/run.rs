//! One seed, from its plan to its verdict.

use crate::check::Violation;
use crate::faults::Fired;
use crate::plan::Plan;
use crate::world::World;
use serde::Serialize;
use std::panic::{catch_unwind, AssertUnwindSafe};

/// What came of a run.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The first broken rule.
    pub violation: Option<Violation>,
    /// What happened, in a number.
    pub figures: Figures,
}

/// Figures of a run.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Figures {
    /// Hash of the trace.
    pub hash: u64,
    /// Events of the trace.
    pub events: u64,
    /// Simulated time, in microseconds.
    pub simulated_us: u64,
    /// Processor time, in microseconds.
    pub took_us: u64,
    /// Operations proposed.
    pub operations: u64,
    /// Operations answered with success.
    pub done: u64,
    /// Answers that the log explains.
    pub witnessed: u64,
    /// Registers whose answers alone make sense.
    pub registers: u64,
    /// Registers with too many operations for that search.
    pub registers_too_long: u64,
    /// Faults that have struck.
    pub fired: Fired,
}

/// Runs a plan. With `print` the trace goes to the standard output.
pub fn run(plan: &Plan, print: bool) -> Outcome {
    let start_us = processor_us();
    let ran = catch_unwind(AssertUnwindSafe(|| {
        let mut world = World::new(plan, print);
        world.begin();
        let violation = match world.run_until(plan.duration_us) {
            true => world.finish(),
            false => world.violation(),
        };
        (violation, figures(&world))
    }));
    let (violation, mut figures) = ran.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
        let violation = Violation { rule: "nobody panics", text: text.unwrap_or_default() };
        (Some(violation), Figures::default())
    });
    figures.took_us = processor_us() - start_us;
    Outcome { violation, figures }
}

/// Processor time of this thread.
fn processor_us() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec as u64 * 1_000_000 + time.tv_nsec as u64 / 1000
}

fn figures(world: &World) -> Figures {
    let mut fired = world.fired.clone();
    fired.add(&world.network.fired);
    fired.add(&world.clients.fired);
    fired.add(&world.around.outgoing.lock().fired);
    for device in &world.around.devices {
        fired.add(&device.troubles.lock().fired);
    }
    Figures {
        hash: world.trace.hash(),
        events: world.trace.events(),
        simulated_us: world.agenda.now_us(),
        took_us: 0,
        operations: world.clients.records().len() as u64,
        done: world.done(),
        witnessed: world.checked.witnessed,
        registers: world.checked.registers,
        registers_too_long: world.checked.registers_too_long,
        fired,
    }
}
