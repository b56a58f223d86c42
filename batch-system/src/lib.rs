//! A fixed pool of poller threads that batches many finite state machines.
//!
//! Think of a hundred thousand small actors of which at any moment some hundreds have something to
//! do. A thread or a task for each is too dear; this crate runs them on as many threads as there are
//! cores. Every round a **poller** claims a batch of FSMs that have mail, lets each handle its
//! messages, and then ends the round once for all of them: that is where a user puts what is
//! expensive and can be shared, a disk write, a flush of the network.
//!
//! * An [`Fsm`] is state that one thread owns at a time. There are many *normal* ones and one
//!   *control* FSM.
//! * A [`Mailbox`] is its queue and, while it has nothing to do, its parking slot.
//! * A [`Router`] leads from an address to a mailbox.
//! * A [`Handler`], one a poller, runs FSMs; a [`Claim`] is its proof that it owns one.
//! * A [`Pool`] is the threads. A [`Driver`] is the same without threads, run by hand, for
//!   deterministic tests.
//!
//! # What is promised
//!
//! 1. An FSM has at most one owner.
//! 2. After an accepted message its FSM runs again or comes to its end: no lost wake-up.
//! 3. Messages of one sender to one FSM arrive in order.
//! 4. Every mailbox has a bound; beyond it the sender gets its message back.
//! 5. A hot FSM gives way after its message budget to every FSM that has fresh mail.
//! 6. A panic ends the FSM it happened in, and nothing else.
//! 7. Shutdown brings every FSM to its end, gives back every message, and joins every thread.
//!
//! # Example
//!
//! ```
//! use batch_system::{CloseReason, Fsm, Handler, Limits, Outbox, Pool, Priority};
//! use std::sync::mpsc;
//!
//! struct Counter(u64);
//! impl Fsm for Counter {
//!     type Message = (u64, mpsc::Sender<u64>);
//! }
//! struct Control;
//! impl Fsm for Control {
//!     type Message = ();
//! }
//!
//! struct Adder;
//! impl Handler<Counter, Control> for Adder {
//!     fn control(&mut self, _: &mut Control, _: &mut Vec<()>, _: &mut Outbox<Counter, Control>) {}
//!     fn normal(
//!         &mut self,
//!         fsm: &mut Counter,
//!         messages: &mut Vec<(u64, mpsc::Sender<u64>)>,
//!         _: &mut Outbox<Counter, Control>,
//!     ) {
//!         for (add, reply) in messages.drain(..) {
//!             fsm.0 += add;
//!             let _ = reply.send(fsm.0);
//!         }
//!     }
//!     fn closed(&mut self, _: Box<Counter>, _: Vec<(u64, mpsc::Sender<u64>)>, _: CloseReason) {}
//! }
//!
//! let pool = Pool::start("example", 2, Limits::default(), Box::new(Control), |_, _| Adder)?;
//! pool.router().register(7, Box::new(Counter(40)), Priority::Normal)?;
//! let (reply, answers) = mpsc::channel();
//! pool.router().send(7, (2, reply))?;
//! assert_eq!(answers.recv()?, 42);
//! pool.shutdown();
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod broadcast;
mod driver;
mod fsm;
#[cfg(all(test, feature = "loom"))]
mod loom_models;
mod mailbox;
mod outbox;
mod poller;
mod pool;
mod router;
mod scheduler;
#[cfg(all(test, feature = "shuttle", not(feature = "loom")))]
mod shuttle_models;
mod stats;
mod sync;
mod timer;
mod watch;

pub use driver::Driver;
pub use fsm::{CloseReason, Fsm, Handler, PanicReport, Priority, RoundStart};
pub use mailbox::{Claim, SendError};
pub use outbox::Outbox;
pub use pool::{Limits, Pool, ResizeError};
pub use router::{Mailbox, RegisterError, Router};
pub use stats::{Stats, StatsSnapshot};
pub use timer::TIMER_GRANULARITY;
