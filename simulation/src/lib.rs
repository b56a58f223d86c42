//! Whole clusters of stores on one thread, from one seed.

#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod actions;
mod agenda;
mod campaign;
pub mod check;
mod clients;
pub mod disk;
mod faults;
mod finish;
mod life;
mod lives;
mod machine;
mod minimize;
mod network;
mod operation;
mod plan;
mod process;
mod random;
mod run;
mod scenarios;
mod trace;
mod transport;
mod world;

pub use campaign::{conduct, Campaign, Failure, Report};
pub use faults::{FaultKind, Fired};
pub use minimize::minimize;
pub use plan::{Action, ClusterPlan, LoadPlan, LogKind, NetworkPlan, Plan, Timed};
pub use random::Random;
pub use run::{run, Figures, Outcome};
pub use scenarios::{find, plan, Scenario, SCENARIOS};
