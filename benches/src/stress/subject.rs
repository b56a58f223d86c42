//! What can be put under the load: stores that hold the same regions.
//!
//! The stores of this project are one [`Subject`], and each system they are compared with is another: all
//! get the same writes from the same clients, and are asked the same questions afterwards.

use std::time::{Duration, Instant};

use bytes::Bytes;

use super::error::StressError;
use super::ledger::Tally;
use super::options::Options;
use super::run::Context;

/// How long an election, or followers catching up, may take before the run is given up.
const PATIENCE: Duration = Duration::from_secs(120);

const PAUSE: Duration = Duration::from_millis(1);

/// What became of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is applied.
    Applied,
    /// It did not happen, and never will; the same write may be tried again.
    Again(Whom),
    /// It did not happen, and trying again would not help.
    Refused,
    /// Nobody knows whether it happened.
    Unknown,
}

/// Which store a refused write should go to, as far as the refusal says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whom {
    /// The one that was asked.
    Same,
    /// Not the one that was asked; nobody knows which.
    Next,
    /// This one, counted from 0.
    Store(usize),
}

/// Where clients send their writes.
pub trait Target: Send + Sync + 'static {
    /// How many stores there are.
    fn stores(&self) -> usize;

    /// Proposes a write to a region (counted from 1) at a store (counted from 0). `done` hears of it exactly
    /// once, on any thread, and does not wait.
    fn submit<F>(&self, store: usize, region: u64, write: Bytes, done: F)
    where
        F: FnOnce(Outcome) + Send + 'static;
}

/// Running stores with regions 1 to n, each with a peer on every store.
pub trait Subject: Sized {
    /// How writes get in.
    type Target: Target;

    /// Starts the stores and creates the regions on all of them.
    ///
    /// # Errors
    /// Says in one line what did not start.
    fn start(options: &Options, regions: u64, ctx: &Context) -> Result<Self, StressError>;

    /// Has a region (counted from 1) elect a store (counted from 0). Does not wait.
    fn campaign(&self, region: u64, store: usize);

    /// Regions that have a leader.
    fn leaders(&self) -> u64;

    /// How often leadership of a region changed hands so far, the first election included.
    fn leader_changes(&self) -> u64;

    /// Where writes go.
    fn target(&self) -> Self::Target;

    /// What each store has applied to a region, counted from 1.
    fn tallies(&self, region: u64) -> Vec<Tally>;

    /// What a store says of itself if it has failed.
    fn failure(&self) -> Option<String>;

    /// Stops all stores.
    fn shutdown(self);
}

/// The store, counted from 0, that a region elects first.
pub fn first_leader(region: u64, stores: usize) -> usize {
    (region % stores as u64) as usize
}

/// Has each region elect the store whose turn it is; returns how long that took.
///
/// # Errors
/// When it takes two minutes, or an interrupt comes.
pub fn elect<S: Subject>(
    subject: &S,
    stores: usize,
    regions: u64,
    ctx: &Context,
) -> Result<Duration, StressError> {
    ctx.begin(regions, "elect", regions);
    let start = Instant::now();
    for region in 1..=regions {
        subject.campaign(region, first_leader(region, stores));
    }
    loop {
        let leaders = subject.leaders();
        ctx.progress.set(leaders);
        if leaders >= regions {
            return Ok(start.elapsed());
        }
        if ctx.interrupt.is_requested() {
            return Err(StressError::Interrupted);
        }
        if start.elapsed() > PATIENCE {
            let problem = format!("{leaders} leaders after {} s", PATIENCE.as_secs());
            return Err(failed(regions, "elect", &problem));
        }
        std::thread::sleep(PAUSE);
    }
}

/// Waits until `done`; whether that came before patience ended or a store failed.
pub fn wait_until<S: Subject>(subject: &S, mut done: impl FnMut(&S) -> bool) -> bool {
    let start = Instant::now();
    while !done(subject) {
        if start.elapsed() > PATIENCE || subject.failure().is_some() {
            return false;
        }
        std::thread::sleep(5 * PAUSE);
    }
    true
}

/// One error line with the row and the phase.
pub fn failed(regions: u64, phase: &str, problem: &dyn std::fmt::Display) -> StressError {
    StressError::Store(format!("{regions} regions: {phase}: {problem}"))
}
