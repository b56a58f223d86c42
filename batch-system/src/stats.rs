//! Counts of what a pool does. Plain numbers: the user puts them into the metrics library of his choice.

use crate::fsm::Fsm;
use crate::mailbox::{SendError, Sent};
use crate::sync::{AtomicU64, Ordering};

/// Running totals. Pollers add to them once a round.
pub struct Stats {
    pub(crate) rounds: AtomicU64,
    pub(crate) runs: AtomicU64,
    pub(crate) messages: AtomicU64,
    pub(crate) stolen: AtomicU64,
    pub(crate) sleeps: AtomicU64,
    pub(crate) refused: AtomicU64,
    pub(crate) forced: AtomicU64,
    pub(crate) panics: AtomicU64,
    pub(crate) waiting: AtomicU64,
}

/// [`Stats`] at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StatsSnapshot {
    /// Rounds that had something to do.
    pub rounds: u64,
    /// Times an FSM was run; over `rounds` it is the mean batch size.
    pub runs: u64,
    /// Messages given to normal FSMs.
    pub messages: u64,
    /// Claims taken over from another poller.
    pub stolen: u64,
    /// Times a poller went to sleep.
    pub sleeps: u64,
    /// Messages refused because a mailbox was full.
    pub refused: u64,
    /// Messages sent by force.
    pub forced: u64,
    /// FSMs quarantined because their handler panicked.
    pub panics: u64,
    /// FSMs that waited for a poller, summed up over looks that are [`TIMER_GRANULARITY`](crate::TIMER_GRANULARITY)
    /// apart, or further where nothing waits. Times that, over `runs`: how long one waited on the mean.
    pub waiting: u64,
}

// Not derived: the counters of the model checkers have no `Default`.
impl Default for Stats {
    fn default() -> Self {
        let zero = || AtomicU64::new(0);
        Self {
            rounds: zero(),
            runs: zero(),
            messages: zero(),
            stolen: zero(),
            sleeps: zero(),
            refused: zero(),
            forced: zero(),
            panics: zero(),
            waiting: zero(),
        }
    }
}

impl Stats {
    /// The totals now. Each is exact; they are not read at one instant.
    pub fn snapshot(&self) -> StatsSnapshot {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        StatsSnapshot {
            rounds: read(&self.rounds),
            runs: read(&self.runs),
            messages: read(&self.messages),
            stolen: read(&self.stolen),
            sleeps: read(&self.sleeps),
            refused: read(&self.refused),
            forced: read(&self.forced),
            panics: read(&self.panics),
            waiting: read(&self.waiting),
        }
    }

    pub(crate) fn note_refusal<F: Fsm>(&self, sent: &Result<Sent<F>, SendError<F::Message>>) {
        if matches!(sent, Err(SendError::Full(_))) {
            self.refused.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl std::fmt::Debug for Stats {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.snapshot().fmt(f)
    }
}
