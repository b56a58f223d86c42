//! Plots region count against throughput and latency of the store, on this machine.
//!
//! All of it lives in the library, where it is tested; see `benches::stress`. `stress life`, `stress reads`,
//! `stress idle` and `stress log` measure what else a store does.

use std::ffi::OsString;
use std::process::ExitCode;

use benches::stress::cluster::Cluster;
use benches::stress::{driver, run};
use benches::{idle, life, log_rate, reads};

/// A library never picks the allocator; this is a program, and it reports memory by jemalloc.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    match args.get(1).and_then(|first| first.to_str()) {
        Some("life") => life::main(args.into_iter().skip(1)),
        Some("log") => log_rate::main(args.into_iter().skip(1)),
        Some("reads") => reads::main(args.into_iter().skip(1)),
        Some("idle" | "--idle") => idle::main(args.into_iter().skip(1)),
        _ => ExitCode::from(driver::main(args, run::run_row::<Cluster>)),
    }
}
