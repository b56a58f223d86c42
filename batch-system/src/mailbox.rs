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

pub(crate) struct Cell<F: Fsm> {
    address: u64,
    priority: Priority,
    /// How many cells exist, for [`crate::Router::leaked`].
    population: Arc<AtomicUsize>,
    state: Mutex<State<F>>,
}

struct State<F: Fsm> {
    messages: VecDeque<F::Message>,
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
        out.extend(state.messages.drain(..count));
        true
    }

    /// Gives the FSM back: parks it if its queue is empty.
    pub(crate) fn release(self) -> Released<F> {
        let Claim { fsm, cell, hot } = self;
        let mut state = cell.state.lock();
        debug_assert!(matches!(state.place, Place::Out), "two owners of FSM {}", cell.address);
        if let Some(reason) = &state.closed {
            let reason = CloseReason::clone(reason);
            let unhandled = std::mem::take(&mut state.messages);
            drop(state);
            return Released::Closed(fsm, unhandled.into(), reason);
        }
        if !state.messages.is_empty() {
            drop(state);
            return Released::Again(Claim { fsm, cell, hot });
        }
        if state.messages.capacity() > KEPT_CAPACITY {
            state.messages = VecDeque::new();
        }
        state.place = Place::Parked(fsm);
        Released::Parked
    }

    /// Takes the FSM apart after a panic: no message is accepted any more.
    pub(crate) fn quarantine(self) -> (Box<F>, Vec<F::Message>) {
        let Claim { fsm, cell, .. } = self;
        let mut state = cell.state.lock();
        state.closed = Some(Box::new(CloseReason::Panicked(String::new())));
        let unhandled = std::mem::take(&mut state.messages);
        drop(state);
        (fsm, unhandled.into())
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
                messages: VecDeque::new(),
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
        state.messages.push_back(message);
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
