//! An FSM's queue and its parking slot, and the hand-over between the two sides.
//!
//! One lock guards one [`Cell`]: the messages, and where the FSM is. The FSM is in one of three
//! places, and moves between them only through the functions here:
//!
//! ```text
//!            send (first message)              take
//!  parked ───────────────────────► scheduled ────────► claimed
//!    ▲                                 ▲                  │ release
//!    │          queue empty            │  queue not empty │
//!    └─────────────────────────────────┴──────────────────┘
//!                                                         └─► gone (closed)
//! ```
//!
//! Invariant: an FSM has at most one owner: the cell (parked), or the one [`Claim`] that exists for it
//! (scheduled or claimed). The `Box` itself moves, so the compiler keeps this for us.
//!
//! Invariant: no lost wake-up. A message is pushed and the parked FSM taken out under the same lock
//! under which `release` looks for messages and parks the FSM. So either `release` sees the message,
//! or the sender sees the parked FSM.
//!
//! Invariant: after `close` no message is accepted, and a closed FSM ends on a poller: `close` of a
//! parked FSM yields a claim to schedule.

use crate::fsm::{CloseReason, Fsm, Priority};
use crate::sync::{Arc, AtomicUsize, Mutex, Ordering};
use std::collections::VecDeque;
use std::fmt;

/// A message that was not accepted, given back.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum SendError<M> {
    /// The mailbox holds as many messages as it may: try later.
    Full(M),
    /// There is no such FSM, or no longer.
    Closed(M),
}

impl<M> SendError<M> {
    /// The message.
    pub fn into_message(self) -> M {
        match self {
            SendError::Full(message) | SendError::Closed(message) => message,
        }
    }

    /// Whether a later try may succeed.
    pub fn is_full(&self) -> bool {
        matches!(self, SendError::Full(_))
    }
}

impl<M> fmt::Debug for SendError<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SendError::Full(_) => "Full(..)",
            SendError::Closed(_) => "Closed(..)",
        })
    }
}

impl<M> fmt::Display for SendError<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SendError::Full(_) => "the mailbox is full",
            SendError::Closed(_) => "no FSM is registered at this address",
        })
    }
}

impl<M> std::error::Error for SendError<M> {}

/// A mailbox of this many spare slots or fewer keeps its buffer while its FSM is parked.
const KEPT_CAPACITY: usize = 4;

/// Messages in order. Most mailboxes have one message at a time, and it lies in the mailbox itself: with many FSMs a
/// buffer elsewhere is in nobody's cache, and sender and receiver would both wait for it.
struct Queue<M> {
    first: Option<M>,
    /// Behind `first`; not empty without it after a part was taken.
    rest: VecDeque<M>,
}

impl<M> Queue<M> {
    fn new() -> Self {
        Self { first: None, rest: VecDeque::new() }
    }

    fn len(&self) -> usize {
        usize::from(self.first.is_some()) + self.rest.len()
    }

    fn is_empty(&self) -> bool {
        self.first.is_none() && self.rest.is_empty()
    }

    fn push(&mut self, message: M) {
        match self.is_empty() {
            true => self.first = Some(message),
            false => self.rest.push_back(message),
        }
    }

    /// Moves the first `count` messages, of which there must be as many.
    fn take(&mut self, count: usize, out: &mut Vec<M>) {
        if count > 0 {
            let first = self.first.take();
            let others = count - usize::from(first.is_some());
            out.extend(first);
            if others > 0 {
                out.extend(self.rest.drain(..others));
            }
        }
    }

    /// Takes all of them, and the buffer.
    fn take_all(&mut self) -> Vec<M> {
        let rest = std::mem::take(&mut self.rest);
        self.first.take().into_iter().chain(rest).collect()
    }

    /// Gives back what a burst took.
    fn shrink(&mut self) {
        if self.rest.capacity() > KEPT_CAPACITY {
            self.rest = VecDeque::new();
        }
    }
}

pub(crate) struct Cell<F: Fsm> {
    address: u64,
    priority: Priority,
    /// How many cells exist, for [`crate::Router::leaked`].
    population: Arc<AtomicUsize>,
    state: Mutex<State<F>>,
}

struct State<F: Fsm> {
    messages: Queue<F::Message>,
    place: Place<F>,
    closed: Option<Box<CloseReason>>,
}

enum Place<F> {
    Parked(Box<F>),
    /// Scheduled or claimed: a [`Claim`] holds it.
    Out,
}

/// What a sender must do after its message was accepted.
#[must_use]
pub(crate) enum Sent<F: Fsm> {
    /// Nothing: the FSM is out and will see the message.
    Queued,
    /// Hand this claim to a poller.
    Schedule(Claim<F>),
}

/// What a poller must do with the claim it gave back.
#[must_use]
pub(crate) enum Released<F: Fsm> {
    /// Nothing: the FSM is parked.
    Parked,
    /// Run it again: it has mail.
    Again(Claim<F>),
    /// End it.
    Closed(Box<F>, Vec<F::Message>, CloseReason),
}

/// Proof of exclusive ownership of an FSM.
///
/// It exists from the moment a message (or a close) takes the FSM out of its mailbox until a poller
/// parks it again.
pub struct Claim<F: Fsm> {
    fsm: Box<F>,
    cell: Arc<Cell<F>>,
    /// Whether its last turn was cut short by the message budget. Mail that came in while it had its
    /// turn does not make an FSM hot: then the busy ones of a busy pool would wait behind all others.
    hot: bool,
}

impl<F: Fsm> Claim<F> {
    /// The address the FSM is registered at.
    pub fn address(&self) -> u64 {
        self.cell.address
    }

    /// The FSM.
    pub fn fsm(&self) -> &F {
        &self.fsm
    }

    /// The FSM.
    pub fn fsm_mut(&mut self) -> &mut F {
        &mut self.fsm
    }

    /// Whether its last turn was cut short by the message budget.
    pub(crate) fn is_hot(&self) -> bool {
        self.hot
    }

    pub(crate) fn priority(&self) -> Priority {
        self.cell.priority
    }

    pub(crate) fn cell(&self) -> &Arc<Cell<F>> {
        &self.cell
    }

    /// Moves at most `budget` messages to `out`. Says whether the FSM was closed meanwhile; then
    /// nothing is moved.
    pub(crate) fn take(&mut self, budget: usize, out: &mut Vec<F::Message>) -> bool {
        let mut state = self.cell.state.lock();
        if state.closed.is_some() {
            return false;
        }
        let count = state.messages.len().min(budget);
        self.hot = state.messages.len() > budget;
        state.messages.take(count, out);
        true
    }

    /// Gives the FSM back: parks it if its queue is empty.
    pub(crate) fn release(self) -> Released<F> {
        let Claim { fsm, cell, hot } = self;
        let mut state = cell.state.lock();
        debug_assert!(matches!(state.place, Place::Out), "two owners of FSM {}", cell.address);
        if let Some(reason) = &state.closed {
            let reason = CloseReason::clone(reason);
            let unhandled = state.messages.take_all();
            drop(state);
            return Released::Closed(fsm, unhandled, reason);
        }
        if !state.messages.is_empty() {
            drop(state);
            return Released::Again(Claim { fsm, cell, hot });
        }
        state.messages.shrink();
        state.place = Place::Parked(fsm);
        Released::Parked
    }

    /// Takes the FSM apart after a panic: no message is accepted any more.
    pub(crate) fn quarantine(self) -> (Box<F>, Vec<F::Message>) {
        let Claim { fsm, cell, .. } = self;
        let mut state = cell.state.lock();
        state.closed = Some(Box::new(CloseReason::Panicked(String::new())));
        let unhandled = state.messages.take_all();
        drop(state);
        (fsm, unhandled)
    }
}

impl<F: Fsm> fmt::Debug for Claim<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Claim({})", self.cell.address)
    }
}

impl<F: Fsm> Cell<F> {
    /// A mailbox with its FSM parked in it.
    pub(crate) fn new(
        address: u64,
        fsm: Box<F>,
        priority: Priority,
        population: Arc<AtomicUsize>,
    ) -> Self {
        population.fetch_add(1, Ordering::Relaxed);
        Self {
            address,
            priority,
            population,
            state: Mutex::new(State {
                messages: Queue::new(),
                place: Place::Parked(fsm),
                closed: None,
            }),
        }
    }

    pub(crate) fn address(&self) -> u64 {
        self.address
    }

    /// Queues a message unless `limit` messages wait already.
    pub(crate) fn send(
        self: &Arc<Self>,
        message: F::Message,
        limit: usize,
    ) -> Result<Sent<F>, SendError<F::Message>> {
        let mut state = self.state.lock();
        if state.closed.is_some() {
            return Err(SendError::Closed(message));
        }
        if state.messages.len() >= limit {
            return Err(SendError::Full(message));
        }
        state.messages.push(message);
        Ok(self.unpark(&mut state))
    }

    /// Refuses messages from now on. The claim, if any, must be scheduled so that the FSM ends.
    /// `None` when it was closed before.
    pub(crate) fn close(self: &Arc<Self>, reason: CloseReason) -> Option<Sent<F>> {
        let mut state = self.state.lock();
        if state.closed.is_some() {
            return None;
        }
        state.closed = Some(Box::new(reason));
        Some(self.unpark(&mut state))
    }

    /// Messages that wait.
    pub(crate) fn len(&self) -> usize {
        self.state.lock().messages.len()
    }

    fn unpark(self: &Arc<Self>, state: &mut State<F>) -> Sent<F> {
        match std::mem::replace(&mut state.place, Place::Out) {
            Place::Parked(fsm) => Sent::Schedule(Claim { fsm, cell: self.clone(), hot: false }),
            Place::Out => Sent::Queued,
        }
    }
}

impl<F: Fsm> Drop for Cell<F> {
    fn drop(&mut self) {
        self.population.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_keep_their_order_however_many_are_taken_at_a_time() {
        for budget in 1..6 {
            let (mut queue, mut out) = (Queue::new(), Vec::new());
            let mut sent = 0;
            for burst in [1, 3, 1, 0, 5, 2] {
                for _ in 0..burst {
                    queue.push(sent);
                    sent += 1;
                }
                let before = (queue.len(), out.len());
                let count = queue.len().min(budget);
                queue.take(count, &mut out);
                assert_eq!((queue.len(), out.len()), (before.0 - count, before.1 + count));
                assert_eq!(queue.is_empty(), before.0 == count);
            }
            out.extend(queue.take_all());
            assert_eq!(out, (0..sent).collect::<Vec<_>>());
            assert!(queue.is_empty());
        }
    }

    #[test]
    fn one_message_at_a_time_needs_no_buffer_and_a_burst_leaves_none() {
        let (mut queue, mut out) = (Queue::new(), Vec::new());
        for message in 0..3 {
            queue.push(message);
            queue.take(1, &mut out);
        }
        assert_eq!(queue.rest.capacity(), 0);
        (0..100).for_each(|message| queue.push(message));
        queue.take(100, &mut out);
        assert!(queue.rest.capacity() > KEPT_CAPACITY);
        queue.shrink();
        assert_eq!(queue.rest.capacity(), 0);
    }
}
