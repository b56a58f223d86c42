//! A bounded queue to a thread that takes all that waits at once.

use parking_lot::{Condvar, Mutex};
use std::collections::VecDeque;
use std::time::Duration;

/// Bounded by the weight of what waits, for instance in bytes. One item always fits, whatever it weighs.
pub(crate) struct WorkQueue<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
    limit: usize,
}

struct State<T> {
    items: VecDeque<(T, usize)>,
    weight: usize,
    closed: bool,
    /// Whether a push waits for room. A store that is driven by hand has nobody to make any.
    waits: bool,
}

/// What came of waiting for work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    /// There was some.
    Work,
    /// Nobody has brought any.
    Nothing,
    /// Nobody will bring any.
    Closed,
}

impl<T> WorkQueue<T> {
    pub(crate) fn new(limit: usize) -> Self {
        let state = State { items: VecDeque::new(), weight: 0, closed: false, waits: true };
        Self { state: Mutex::new(state), changed: Condvar::new(), limit }
    }

    /// From now on a push beyond the limit does not wait: whoever pushes asks [`has_room`](Self::has_room)
    /// before he begins to work.
    pub(crate) fn never_wait(&self) {
        self.state.lock().waits = false;
    }

    /// Waits for room. After [`close`](Self::close) the item comes back.
    pub(crate) fn push(&self, item: T, weight: usize) -> Result<(), T> {
        let mut state = self.state.lock();
        while state.waits && !state.closed && state.weight > 0 && state.weight + weight > self.limit
        {
            self.changed.wait(&mut state);
        }
        if state.closed {
            return Err(item);
        }
        state.weight += weight;
        state.items.push_back((item, weight));
        drop(state);
        self.changed.notify_all();
        Ok(())
    }

    /// Waits for work and takes all of it. False: closed, and nothing is left.
    pub(crate) fn take_all(&self, out: &mut Vec<T>) -> bool {
        let mut state = self.state.lock();
        while state.items.is_empty() && !state.closed {
            self.changed.wait(&mut state);
        }
        if state.items.is_empty() {
            return false;
        }
        out.extend(state.items.drain(..).map(|(item, _)| item));
        state.weight = 0;
        drop(state);
        self.changed.notify_all();
        true
    }

    /// As [`take_all`](Self::take_all), but gives up after a while.
    pub(crate) fn take_for(&self, out: &mut Vec<T>, patience: Duration) -> Taken {
        let mut state = self.state.lock();
        if state.items.is_empty() && !state.closed {
            let _ = self.changed.wait_for(&mut state, patience);
        }
        let taken = match (state.items.is_empty(), state.closed) {
            (false, _) => Taken::Work,
            (true, true) => return Taken::Closed,
            (true, false) => return Taken::Nothing,
        };
        out.extend(state.items.drain(..).map(|(item, _)| item));
        state.weight = 0;
        drop(state);
        self.changed.notify_all();
        taken
    }

    /// Takes what there is.
    pub(crate) fn take_now(&self, out: &mut Vec<T>) {
        let mut state = self.state.lock();
        out.extend(state.items.drain(..).map(|(item, _)| item));
        state.weight = 0;
        drop(state);
        self.changed.notify_all();
    }

    /// Adds an item whether or not there is room. After [`close`](Self::close) it comes back.
    pub(crate) fn push_always(&self, item: T, weight: usize) -> Result<(), T> {
        let mut state = self.state.lock();
        if state.closed {
            return Err(item);
        }
        state.weight += weight;
        state.items.push_back((item, weight));
        drop(state);
        self.changed.notify_all();
        Ok(())
    }

    /// Whether nothing comes in any more.
    pub(crate) fn is_closed(&self) -> bool {
        self.state.lock().closed
    }

    /// Adds an item unless there is no room for it.
    pub(crate) fn try_push(&self, item: T, weight: usize) -> Result<(), T> {
        let mut state = self.state.lock();
        if state.closed || (state.weight > 0 && state.weight + weight > self.limit) {
            return Err(item);
        }
        state.weight += weight;
        state.items.push_back((item, weight));
        drop(state);
        self.changed.notify_all();
        Ok(())
    }

    /// Whether anything waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.state.lock().items.is_empty()
    }

    /// Whether the limit is not reached.
    pub(crate) fn has_room(&self) -> bool {
        self.state.lock().weight < self.limit
    }

    /// The weight of what waits.
    pub(crate) fn weight(&self) -> usize {
        self.state.lock().weight
    }

    /// Nothing more comes in; what waits is still worked off.
    pub(crate) fn close(&self) {
        self.state.lock().closed = true;
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn push_waits_for_room_and_nothing_is_lost() {
        let queue = Arc::new(WorkQueue::new(10));
        let pusher = {
            let queue = queue.clone();
            std::thread::spawn(move || {
                for number in 0..1000 {
                    queue.push(number, 4).expect("open");
                    assert!(queue.weight() <= 10);
                }
                queue.close();
                assert_eq!(queue.push(7, 1), Err(7));
            })
        };
        let mut got = Vec::new();
        while queue.take_all(&mut got) {}
        pusher.join().expect("no panic");
        assert_eq!(got, (0..1000).collect::<Vec<_>>());
    }

    #[test]
    fn a_queue_that_never_waits_tells_that_it_is_full() {
        let queue = WorkQueue::new(10);
        queue.never_wait();
        for _ in 0..3 {
            queue.push((), 6).expect("open");
        }
        assert!(!queue.has_room() && queue.weight() == 18);
    }

    #[test]
    fn one_item_fits_whatever_it_weighs() {
        let queue = WorkQueue::new(1);
        queue.push((), 100).expect("open");
        assert_eq!(queue.weight(), 100);
    }
}
