//! Plots region count against throughput and latency of the store, on this machine.
//!
//! All of it lives in the library, where it is tested; see `benches::stress`.

use std::process::ExitCode;

use benches::stress::{driver, run};

/// A library never picks the allocator; this is a program, and it reports memory by jemalloc.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    ExitCode::from(driver::main(std::env::args_os(), run::run_row))
}
