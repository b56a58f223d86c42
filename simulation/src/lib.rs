//! Whole clusters of stores on one thread, from one seed.
//!
//! A [`Plan`] says what a cluster is made of and what happens to it when; a scenario and a seed make
//! one ([`plan`]). [`run`] carries it out: real stores, driven by hand
//! ([`DrivenStore`](raftstore::DrivenStore)), in simulated time. Every choice, which store goes next, which
//! of its threads, how long a message takes, what a crash leaves on disk, is drawn from generators that
//! the seed decides. So the same seed does the same thing on every machine, and a failure is replayed by
//! its number.
//!
//! # Where things are
//!
//! | module | holds |
//! |---|---|
//! | `plan`, `scenarios` | what may happen, and which of it under which name |
//! | `world`, `agenda` | what happens next, and then |
//! | `lives`, `process` | how stores start, stop and crash |
//! | `actions` | what the actions of a plan do |
//! | `transport`, `network` | messages: checked as they leave, then late, lost, doubled, out of order |
//! | [`disk`], `machine` | logs and state machines that lose what was not made durable |
//! | `clients`, `reads`, `operation` | what is asked for, and what became of it |
//! | `moves`, `placement` | what is asked of regions as a whole: by the plan, or by a placement |
//! | [`check`] | what must hold |
//! | `ambush` | strikes that wait until a store is in the midst of something |
//! | `finish` | the end: all faults stop, and everything must be served |
//! | `campaign`, `minimize` | many seeds; from a failing plan to a small one |
//!
//! # Caveats
//!
//! * What only threads do to each other is not seen here: `batch-system` has its models for that.
//! * A step of a thread is one event. It can be cut short by a crash, at each call to log, state machine
//!   and transport, but no other thread of its store runs in the middle of it.
//! * A write that is slow or hangs begins late; it is not half done meanwhile.

#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod actions;
mod agenda;
mod ambush;
mod campaign;
pub mod check;
mod clients;
mod directory;
pub mod disk;
mod faults;
mod finish;
mod life;
mod lives;
mod machine;
mod minimize;
mod moves;
mod moving;
mod network;
mod operation;
mod placement;
mod plan;
mod process;
mod random;
mod reads;
mod run;
mod scenarios;
mod sleep;
mod trace;
mod transport;
mod world;

pub use ambush::{Sight, Slow, Strike};
pub use campaign::{conduct, Campaign, Failure, Report, LEAST_DONE};
pub use faults::{FaultKind, Fired};
pub use minimize::minimize;
pub use plan::{Action, ClusterPlan, LoadPlan, LogKind, NetworkPlan, Plan, Timed};
pub use random::Random;
pub use run::{run, Figures, Outcome};
pub use scenarios::{find, plan, Scenario, SCENARIOS};
