//! The stress program, part by part, in the order a run passes through them.
//!
//! 1. [`options`] and [`paths`] read and check everything the user asked for; nothing is created
//!    before all of it is known to be good.
//! 2. [`driver`] prepares the run and walks through the region counts.
//! 3. [`run`] measures one region count: elect, warm up, load, measure, verify. It answers with
//!    one [`report::Row`]. [`subject`] is what can be measured so, [`cluster`] the stores that are,
//!    [`load`] the clients, [`ledger`] the state machine in which every write is accounted for;
//!    [`recorder`] takes the latencies, [`stages`] those of each station, [`disk`] what the disk
//!    got, and [`machine`] CPU and memory.
//! 4. [`bare`] measures the floor of the same row: Raft without any runtime.
//! 5. [`report`], [`table`] and [`chart`] tell the result.
//!
//! [`interrupt`], [`progress`] and [`metrics_server`] serve whoever watches.

pub mod bare;
pub mod chart;
pub mod cluster;
pub mod disk;
pub mod driver;
pub mod error;
pub mod interrupt;
pub mod ledger;
pub mod load;
pub mod machine;
pub mod metrics_server;
pub mod options;
pub mod paths;
pub mod progress;
pub mod recorder;
pub mod report;
pub mod run;
pub mod stages;
pub mod subject;
pub mod table;
