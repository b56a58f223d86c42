//! Keeps logs that are read by the same thread apart.
//!
//! raft-engine 0.4.2 keeps the block of entries that a thread read last, under its file's number, its
//! offset and its length, and not under the log it is from. A thread that reads two logs, or the same
//! one before and after it was opened anew, could be handed the entries of the other. So a thread
//! belongs to the first log it reads. For every other one it has the reading done by a thread made for
//! it, which costs some 30 us; the threads of a store read one log only.

use std::cell::Cell;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicU64, Ordering};

/// The number of the next log.
static NEXT: AtomicU64 = AtomicU64::new(1);

thread_local! {
    /// The log that this thread belongs to, or 0.
    static OWNER: Cell<u64> = const { Cell::new(0) };
}

/// The reads of one opened log.
#[derive(Debug)]
pub(super) struct OwnReads(u64);

impl OwnReads {
    pub(super) fn new() -> Self {
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }

    /// Runs something that reads this log, in a thread that has read no other.
    pub(super) fn run<T: Send>(&self, read: impl FnOnce() -> T + Send) -> T {
        if OWNER.get() == 0 {
            OWNER.set(self.0);
        }
        if OWNER.get() == self.0 {
            return read();
        }
        std::thread::scope(|scope| {
            scope.spawn(read).join().unwrap_or_else(|panic| resume_unwind(panic))
        })
    }
}
