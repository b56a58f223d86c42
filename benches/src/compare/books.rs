//! The state machines of one store of another system: a book a region.

use parking_lot::{Mutex, MutexGuard};

use crate::stress::ledger::{Book, Tally};

/// The books of regions 1 to n on one store.
#[derive(Debug)]
pub struct Books(Vec<Mutex<Book>>);

impl Books {
    /// Empty ones.
    pub fn new(regions: u64) -> Self {
        Self((0..regions).map(|_| Mutex::default()).collect())
    }

    /// The book of a region, counted from 1.
    pub fn of(&self, region: u64) -> MutexGuard<'_, Book> {
        self.0[(region - 1) as usize].lock()
    }

    /// What has been applied to a region, counted from 1.
    pub fn tally(&self, region: u64) -> Tally {
        self.of(region).tally()
    }
}
