//! Messages to everybody, in slices.

use crate::fsm::Fsm;
use crate::mailbox::Cell;
use crate::outbox::Outbox;
use crate::router::Shared;
use crate::sync::{Arc, Mutex, Ordering};
use std::collections::VecDeque;
use std::panic::{catch_unwind, AssertUnwindSafe};

/// FSMs sent to in one slice.
const SLICE: usize = 128;

type Make<N> = Box<dyn Fn(u64) -> <N as Fsm>::Message + Send>;

/// The broadcasts under way, oldest first.
pub(crate) struct Broadcasts<N: Fsm> {
    queue: Mutex<Queue<N>>,
}

struct Queue<N: Fsm> {
    jobs: VecDeque<Job<N>>,
    /// Whether a poller is at a slice. It goes on with the next one itself, and no other may begin a
    /// later broadcast before: an FSM would get the two in the wrong order.
    taken: bool,
}

struct Job<N: Fsm> {
    make: Make<N>,
    next_shard: usize,
    cells: Vec<Arc<Cell<N>>>,
}

impl<N: Fsm> Broadcasts<N> {
    pub(crate) fn new() -> Self {
        Self { queue: Mutex::new(Queue { jobs: VecDeque::new(), taken: false }) }
    }

    pub(crate) fn add(&self, make: Make<N>) {
        self.queue.lock().jobs.push_back(Job { make, next_shard: 0, cells: Vec::new() });
    }

    /// Whether there is nothing to do for one more poller.
    pub(crate) fn is_empty(&self) -> bool {
        let queue = self.queue.lock();
        queue.taken || queue.jobs.is_empty()
    }

    /// Does one slice of the oldest broadcast, unless another poller is at one.
    pub(crate) fn advance<C: Fsm>(&self, shared: &Shared<N, C>, outbox: &mut Outbox<N, C>) {
        let mut job = {
            let mut queue = self.queue.lock();
            if queue.taken {
                return;
            }
            let Some(job) = queue.jobs.pop_front() else { return };
            queue.taken = true;
            job
        };
        // The closure is the user's. If it panics, its broadcast ends there and nothing else does.
        let done =
            catch_unwind(AssertUnwindSafe(|| job.slice(shared, outbox))).unwrap_or_else(|_| {
                shared.stats.panics.fetch_add(1, Ordering::Relaxed);
                true
            });
        let mut queue = self.queue.lock();
        queue.taken = false;
        if !done {
            queue.jobs.push_front(job);
        }
    }

    /// Forgets all broadcasts: there is nobody left to hear them.
    pub(crate) fn clear(&self) {
        let jobs = std::mem::take(&mut self.queue.lock().jobs);
        drop(jobs);
    }
}

impl<N: Fsm> Job<N> {
    /// Sends to as many FSMs as make a slice. Says whether that was the last.
    fn slice<C: Fsm>(&mut self, shared: &Shared<N, C>, outbox: &mut Outbox<N, C>) -> bool {
        for _ in 0..SLICE {
            while self.cells.is_empty() {
                let Some(cells) = shared.cells_of_shard(self.next_shard) else { return true };
                self.cells = cells;
                self.next_shard += 1;
            }
            let Some(cell) = self.cells.pop() else { continue };
            // Closed meanwhile, or beyond even the forced capacity: a broadcast does not insist.
            let message = (self.make)(cell.address());
            if let Ok(sent) = cell.send(message, shared.limits.forced_capacity) {
                outbox.note(sent);
            }
        }
        false
    }
}
