//! Workloads, peers and reports: what this project is measured with.
//!
//! The one program here is `stress` (`cargo run --release -p benches --bin stress`), which plots
//! region count against throughput and latency on the machine it runs on.

pub mod stress;
