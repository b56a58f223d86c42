//! What must hold, at every step and of the whole history.

mod ledger;
mod watch;

pub use ledger::{Applied, Ledger, Violation, Written};
pub use watch::{Bounds, Watch};
