//! Workloads, peers and reports: what this project is measured with.
//!
//! The one program here is `stress` (`cargo run --release -p benches --bin stress`), which plots
//! region count against throughput and latency on the machine it runs on. `stress life` measures what splits,
//! changes of peers, handing over and restarts cost those who write meanwhile, `stress reads` what reads cost,
//! `stress idle` what regions cost with which nothing happens, `stress log` the log on disk beside raft-engine
//! alone. `stress --compare` puts other systems under the same load.

pub mod compare;
pub mod idle;
pub mod life;
pub mod log_rate;
mod memory_stores;
pub mod reads;
pub mod stress;
