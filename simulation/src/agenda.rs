//! What happens next.

use crate::network::Arrival;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Something that happens at a time.
#[derive(Debug)]
pub(crate) enum Occasion {
    /// A store's threads may run.
    Wake {
        /// Which.
        store: u64,
    },
    /// A store's timers turn.
    Timer {
        /// Which.
        store: u64,
    },
    /// Messages arrive.
    Arrive(Arrival),
    /// A client does its next operation.
    Client {
        /// Which.
        client: u64,
        /// The turn it is for: a client that was answered meanwhile has gone on.
        turn: u64,
    },
    /// An action of the plan begins.
    Begin(usize),
    /// An action of the plan is taken back.
    End(usize),
    /// A store starts, if it is down since this many lives.
    Start {
        /// Which.
        store: u64,
        /// Its lives so far.
        lives: u64,
    },
    /// Regions that slept must be led by now.
    Leaders {
        /// Which expectation.
        expectation: usize,
    },
    /// A region must answer by now.
    Probe {
        /// Which expectation.
        probe: usize,
    },
}

/// The occasions to come. Those of equal time are met in the order in which they were added.
#[derive(Debug, Default)]
pub(crate) struct Agenda {
    heap: BinaryHeap<Reverse<Item>>,
    added: u64,
    now_us: u64,
}

#[derive(Debug)]
struct Item {
    at_us: u64,
    number: u64,
    occasion: Occasion,
}

impl PartialEq for Item {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}

impl Eq for Item {}

impl PartialOrd for Item {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Item {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at_us, self.number).cmp(&(other.at_us, other.number))
    }
}

impl Agenda {
    /// The time, in microseconds from the start.
    pub(crate) fn now_us(&self) -> u64 {
        self.now_us
    }

    /// Adds an occasion, at a time that is not over.
    pub(crate) fn add(&mut self, at_us: u64, occasion: Occasion) {
        self.added += 1;
        let at_us = at_us.max(self.now_us);
        self.heap.push(Reverse(Item { at_us, number: self.added, occasion }));
    }

    /// Adds an occasion after a while.
    pub(crate) fn add_in(&mut self, in_us: u64, occasion: Occasion) {
        self.add(self.now_us + in_us, occasion);
    }

    /// Takes the next occasion, and moves the time to it.
    pub(crate) fn take(&mut self) -> Option<Occasion> {
        let Reverse(item) = self.heap.pop()?;
        self.now_us = item.at_us;
        Some(item.occasion)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn occasions_come_by_time_and_then_in_order() {
        let mut agenda = Agenda::default();
        for (at, action) in [(5, 1), (3, 2), (5, 3), (4, 4)] {
            agenda.add(at, Occasion::Begin(action));
        }
        let mut seen = Vec::new();
        while let Some(Occasion::Begin(action)) = agenda.take() {
            seen.push((agenda.now_us(), action));
            if action == 4 {
                agenda.add(0, Occasion::Begin(5));
            }
        }
        assert_eq!(seen, [(3, 2), (4, 4), (4, 5), (5, 1), (5, 3)]);
    }
}
