//! What runs in the pool: the [`Fsm`], and the [`Handler`] that knows how to run it.

use crate::mailbox::Claim;
use crate::outbox::Outbox;
use std::time::Duration;

/// State that is owned by one thread at a time and changes by handling messages.
///
/// Every pool knows two kinds: many *normal* ones, and one *control* FSM that is told about panics and
/// usually creates and closes the normal ones.
pub trait Fsm: Send + 'static {
    /// What its mailbox carries.
    type Message: Send + 'static;
}

/// Which of two run queues an FSM waits in. High goes first; normal is still served in every round.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Priority {
    /// Served before all normal ones.
    High,
    /// The default.
    #[default]
    Normal,
}

/// Why an FSM came to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// Somebody closed its address.
    Requested,
    /// The pool is shutting down.
    Shutdown,
    /// Its handler panicked, with this message; its state must be taken for broken.
    Panicked(String),
}

/// What a round begins with.
#[derive(Clone, Copy, Debug)]
pub struct RoundStart {
    /// The poller's number, from 0.
    pub poller: usize,
    /// How long the claim that waited longest was in this poller's inbox; `None` when nothing came in
    /// through the inbox.
    pub waited: Option<Duration>,
}

/// A quarantined FSM, as told to the control FSM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PanicReport {
    /// The address of the FSM.
    pub address: u64,
    /// The panic's message.
    pub message: String,
}

/// Runs FSMs: one handler a poller, made by the closure given to the pool.
///
/// A round calls [`begin`](Handler::begin), then [`control`](Handler::control) if the control FSM has
/// mail, then [`normal`](Handler::normal) for each FSM of the batch, then [`end`](Handler::end) with
/// all of them still claimed. That is the place for what should be done once for the whole batch: no
/// FSM of the batch can be seen by another thread before `end` has returned.
///
/// A panic in `control`, `normal` or `end` quarantines the FSMs concerned (in `end`: the whole batch)
/// and nothing else; so does a panic in the drop of what `control` or `normal` left behind. Messages
/// still in `messages` at a panic count as unhandled: take them out to handle them.
pub trait Handler<N: Fsm, C: Fsm>: Send + 'static {
    /// A round begins.
    fn begin(&mut self, _round: &RoundStart) {}

    /// Handles the control FSM's messages. What is left in `messages` is dropped.
    fn control(&mut self, fsm: &mut C, messages: &mut Vec<C::Message>, outbox: &mut Outbox<N, C>);

    /// Handles at most a message budget of one FSM's messages. What is left in `messages` is dropped.
    fn normal(&mut self, fsm: &mut N, messages: &mut Vec<N::Message>, outbox: &mut Outbox<N, C>);

    /// The round ends; all FSMs it handled are still claimed.
    fn end(&mut self, _batch: &mut [Claim<N>], _outbox: &mut Outbox<N, C>) {}

    /// An FSM's last moment: it was closed, the pool shuts down, or it panicked. `unhandled` are the
    /// messages that were accepted and never handled; senders must hear of them from here.
    fn closed(&mut self, fsm: Box<N>, unhandled: Vec<N::Message>, reason: CloseReason);

    /// The control FSM's last moment, as for [`closed`](Handler::closed).
    fn control_closed(&mut self, fsm: Box<C>, unhandled: Vec<C::Message>, _reason: CloseReason) {
        drop((fsm, unhandled));
    }

    /// Turns the report of a quarantined FSM into a message for the control FSM.
    fn panic_message(&mut self, _report: PanicReport) -> Option<C::Message> {
        None
    }
}
