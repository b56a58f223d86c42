//! The scheduler core on its own: messages a second, costs and memory, with the raw crossbeam channel
//! beside it in the same run as the yardstick.
//!
//! `cargo run --release -p benches --bin scheduler [-- --quick]`
//!
//! A moved number here means that handing a message to an FSM became cheaper or dearer; nothing of
//! Raft or disks is in it.

#![forbid(unsafe_code)]

mod costs;
mod fsm;
mod throughput;

use clap::Parser;
use std::time::Duration;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Measures the scheduler core beside a raw crossbeam channel.
#[derive(Parser)]
struct Options {
    /// Pollers of the pool.
    #[arg(long, default_value_t = 2)]
    pollers: usize,
    /// Runs of each measurement; the median is printed.
    #[arg(long, default_value_t = 5)]
    repeat: usize,
    /// Time of one run of a throughput workload, in milliseconds.
    #[arg(long, default_value_t = 700)]
    run_ms: u64,
    /// One short run of each: for a look, not for a claim.
    #[arg(long)]
    quick: bool,
    /// Only rows whose name contains this.
    #[arg(long)]
    only: Option<String>,
}

fn main() {
    let mut options = Options::parse();
    if options.quick {
        options.repeat = 1;
        options.run_ms = 200;
    }
    let run = Duration::from_millis(options.run_ms);
    let pollers = options.pollers;
    println!("{:<44} {:>12}  {:<10} at least/most", "workload", "median", "unit");
    let row = |name: &str, unit: &str, bound: &str, measure: &mut dyn FnMut() -> f64| {
        if options.only.as_ref().is_some_and(|only| !name.contains(only.as_str())) {
            return;
        }
        let mut values: Vec<f64> = (0..options.repeat.max(1)).map(|_| measure()).collect();
        values.sort_by(f64::total_cmp);
        println!("{name:<44} {:>12.2}  {unit:<10} {bound}", values[values.len() / 2]);
    };
    row("raw crossbeam channel, one to one", "M msg/s", "yardstick", &mut || {
        throughput::raw_channel(run)
    });
    for (fsms, bound) in [(1, 10), (10, 8), (100, 15), (1_000, 25), (10_000, 25), (100_000, 10)] {
        let name = format!("1 producer -> {fsms} FSMs");
        row(&name, "M msg/s", &format!(">= {bound}"), &mut || {
            throughput::one_producer(pollers, fsms, run)
        });
    }
    for (fsms, bound) in [(1_000, 18), (10_000, 16), (100_000, 7)] {
        let name = format!("FSM -> FSM rings, {fsms} FSMs");
        row(&name, "M msg/s", &format!(">= {bound}"), &mut || {
            throughput::rings(pollers, fsms, run)
        });
    }
    row("send to one of 100k FSMs at random", "ns", "<= 220", &mut || {
        costs::send_at_random(pollers, 100_000, run)
    });
    row("first send to an idle FSM (100k)", "ns", "<= 300", &mut || {
        costs::first_send(pollers, 100_000)
    });
    row("register an FSM (100k)", "ns", "<= 250", &mut || costs::register(pollers, 100_000));
    row("memory of an idle FSM after one message", "B", "<= 320", &mut || {
        costs::idle_memory(pollers, 100_000)
    });
    for hot in [4, 16] {
        let name = format!("p99 of a probe beside {hot} hot FSMs");
        row(&name, "us", "<= 45", &mut || costs::probe_p99(pollers, hot, run));
    }
}
