//! Ctrl-C: the first asks the run to end with what it has, the second ends the process at once.

use std::process;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

/// The exit code of a process ended by the second Ctrl-C, as shells know it (128 + SIGINT).
const EXIT_SECOND_INTERRUPT: i32 = 130;

/// A flag that every phase of a run looks at. Clones share the flag.
#[derive(Clone, Debug, Default)]
pub struct Interrupt {
    requested: Arc<AtomicBool>,
}

impl Interrupt {
    /// Creates a flag that only [`Interrupt::request`] sets.
    pub fn new() -> Self {
        Self::default()
    }

    /// Lets Ctrl-C set this flag, and a second Ctrl-C end the process with exit code 130.
    ///
    /// Errors when a handler is installed already; call it once, from `main`.
    pub fn install(&self) -> Result<(), ctrlc::Error> {
        let flag = self.clone();
        ctrlc::set_handler(move || {
            if flag.request() == Requested::Again {
                process::exit(EXIT_SECOND_INTERRUPT);
            }
        })
    }

    /// Asks the run to end. Tells whether that had been asked before.
    pub fn request(&self) -> Requested {
        if self.requested.swap(true, Ordering::SeqCst) {
            Requested::Again
        } else {
            Requested::First
        }
    }

    /// Whether the run was asked to end.
    pub fn is_requested(&self) -> bool {
        self.requested.load(Ordering::SeqCst)
    }
}

/// Whether a request to end the run is news.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Requested {
    /// The first request: the run ends with what it has measured.
    First,
    /// Asked again: the user is out of patience.
    Again,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn second_request_is_told_apart() {
        let interrupt = Interrupt::new();
        let clone = interrupt.clone();
        assert!(!clone.is_requested());
        assert_eq!(interrupt.request(), Requested::First);
        assert!(clone.is_requested());
        assert_eq!(clone.request(), Requested::Again);
    }
}
