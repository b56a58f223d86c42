//! Whether a store's process is alive.
//!
//! A process is killed between two of its instructions. What instructions do is seen from outside only
//! where they call out: at the log, the state machine, the transport. So a kill within a step is placed
//! at one of these calls: from it on nothing that the process does has an effect, and what it does
//! until its step returns is the death throes of a process that is gone.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// One life of a store's process, shared by all its seams.
#[derive(Debug)]
pub struct Life {
    alive: AtomicBool,
    /// Calls until it ends; `u64::MAX` if no end is set.
    calls_left: AtomicU64,
}

impl Default for Life {
    fn default() -> Self {
        Self { alive: AtomicBool::new(true), calls_left: AtomicU64::new(u64::MAX) }
    }
}

impl Life {
    /// Whether the process is alive.
    pub fn is_alive(&self) -> bool {
        self.alive.load(Ordering::Relaxed)
    }

    /// Ends it.
    pub fn end(&self) {
        self.alive.store(false, Ordering::Relaxed);
    }

    /// Ends it at the so-manieth call from now.
    pub fn end_after(&self, calls: u64) {
        self.calls_left.store(calls.max(1), Ordering::Relaxed);
    }

    /// The process calls out. Says whether it is alive still.
    pub fn call(&self) -> bool {
        let left = self.calls_left.load(Ordering::Relaxed);
        if left != u64::MAX {
            self.calls_left.store(left.saturating_sub(1), Ordering::Relaxed);
            if left <= 1 {
                self.end();
            }
        }
        self.is_alive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_life_ends_at_the_call_that_was_set() {
        let life = Life::default();
        assert!((0..100).all(|_| life.call()));
        life.end_after(3);
        assert_eq!(
            [life.call(), life.call(), life.call(), life.call()],
            [true, true, false, false]
        );
    }
}
