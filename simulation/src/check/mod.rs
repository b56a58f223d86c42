//! What must hold, at every step and of the whole history.
//!
//! At every step: [`Ledger`] of all stores together, [`Watch`] of each region for itself. Of the whole
//! history: are the answers that clients got those of one register after another? Two checkers say so.
//!
//! A [history](Operation) is plain data: what clients asked for, when, and what they were told. Each key
//! of a region is a register that holds nothing at first. A history is *linearizable* if every operation
//! seems to happen at one moment between its invocation and its answer (Herlihy and Wing,
//! "Linearizability: a correctness condition for concurrent objects", 1990).
//!
//! | checker | asks | sees | cost |
//! |---|---|---|---|
//! | [`Witness`], [`check_log`] | is the committed log such an order? | answers, terms, indexes, log | n log n |
//! | [`check_register`] | is there any such order? | answers alone | exponential at worst, so bounded |
//!
//! The witness checker is for everything that runs: millions of operations, all keys of a region. It
//! believes the log, and so it says more than that the history is linearizable: that it is so *by this
//! log*. The other checker believes nothing but what clients saw, and is there for the case that the log
//! as recorded, or the checker that reads it, is wrong in the same way as the store. Whatever passes the
//! first must pass the second.

mod history;
mod ledger;
mod linear;
mod watch;
mod witness;

#[cfg(test)]
mod brute_force;
#[cfg(test)]
mod generate;
#[cfg(test)]
mod mutations;

pub use history::{
    by_register, ClientId, Kind, Moment, Operation, OperationId, Outcome, Register, Through,
};
pub use ledger::{Applied, Birth, Ledger, Violation, Written};
pub use linear::{
    check_register, LinearError, Verdict, MAX_CONFIGURATIONS, MAX_OPEN, MAX_OPERATIONS,
};
#[cfg(test)]
pub(crate) use watch::tests::status as some_status;
pub use watch::{Bounds, Watch};
pub use witness::{check_log, LogEntry, Witness, WitnessError, Witnessed};
