//! The same pool without threads.

use crate::fsm::{Fsm, Handler};
use crate::poller::Poller;
use crate::pool::Limits;
use crate::router::{Router, Shared};
use crate::sync::Arc;
use crate::timer::Time;
use std::fmt;
use std::time::Duration;

/// A pool driven by hand: the caller says which poller or which FSM runs next, and what time it is.
///
/// Everything else is the code that the threads of a [`Pool`](crate::Pool) run, so a test that drives
/// by hand tests that code, one chosen order at a time.
pub struct Driver<N: Fsm, C: Fsm, H: Handler<N, C>> {
    router: Router<N, C>,
    pollers: Vec<Poller<N, C, H>>,
}

impl<N: Fsm, C: Fsm, H: Handler<N, C>> Driver<N, C, H> {
    /// A pool of `pollers` pollers that nobody runs.
    ///
    /// # Panics
    /// When `pollers` or a limit is out of range.
    pub fn new(
        pollers: usize,
        limits: Limits,
        control: Box<C>,
        make_handler: impl Fn(usize, &Router<N, C>) -> H,
    ) -> Self {
        limits.check();
        assert!((1..=limits.max_pollers).contains(&pollers), "{pollers} pollers");
        let time = Time::Driven(crate::sync::AtomicU64::new(0));
        let router = Router { shared: Arc::new(Shared::new(limits, pollers, control, time)) };
        let pollers = (0..pollers)
            .map(|index| Poller::new(index, &router, make_handler(index, &router)))
            .collect();
        Self { router, pollers }
    }

    /// The router.
    pub fn router(&self) -> &Router<N, C> {
        &self.router
    }

    /// How many pollers there are.
    pub fn pollers(&self) -> usize {
        self.pollers.len()
    }

    /// The handler of a poller.
    pub fn handler_mut(&mut self, poller: usize) -> &mut H {
        self.pollers[poller].handler_mut()
    }

    /// Addresses that wait for a poller, in the order in which it would run them.
    pub fn scheduled(&self, poller: usize) -> Vec<u64> {
        self.router.shared.scheduler.scheduled(poller)
    }

    /// Whether the control FSM has mail.
    pub fn control_scheduled(&self) -> bool {
        self.router.shared.scheduler.control_scheduled()
    }

    /// One round of a poller, as its thread would do it. Returns how many FSMs ran.
    pub fn run_round(&mut self, poller: usize) -> usize {
        self.pollers[poller].round().ran
    }

    /// A round of one FSM, on any poller, whichever it waits with. Says whether it was scheduled.
    pub fn run_one(&mut self, poller: usize, address: u64) -> bool {
        let claim = self.router.shared.scheduler.take_out(address);
        claim.map(|claim| self.pollers[poller].round_of(claim)).is_some()
    }

    /// A round of the control FSM. Says whether it was scheduled.
    pub fn run_control(&mut self) -> bool {
        let claim = self.router.shared.scheduler.take_out_control();
        claim.map(|claim| self.pollers[0].round_of_control(claim)).is_some()
    }

    /// Lets a poller take over half of what waits with another. Returns how many claims moved.
    pub fn steal(&mut self, poller: usize) -> usize {
        self.router.shared.scheduler.steal(poller)
    }

    /// Rounds of all pollers in turn until nothing is scheduled, or `max_rounds` are done. Returns
    /// how many rounds ran something.
    pub fn run_until_idle(&mut self, max_rounds: usize) -> usize {
        let mut rounds = 0;
        loop {
            let before = rounds;
            for poller in 0..self.pollers.len() {
                if rounds == max_rounds {
                    return rounds;
                }
                rounds += usize::from(self.run_round(poller) > 0);
            }
            if rounds == before && self.is_idle() {
                return rounds;
            }
        }
    }

    /// Whether nothing is scheduled. Timers may still wait.
    pub fn is_idle(&self) -> bool {
        let shared = &self.router.shared;
        !shared.scheduler.control_scheduled()
            && (0..self.pollers.len()).all(|index| shared.scheduler.waiting(index) == 0)
            && shared.broadcasts.is_empty()
    }

    /// The time since the pool began.
    pub fn now(&self) -> Duration {
        self.router.shared.timers.time().elapsed()
    }

    /// Moves time forward and sends what is due then.
    pub fn advance_time(&mut self, by: Duration) {
        let shared = &self.router.shared;
        shared.timers.time().advance(by);
        let mut outbox = self.router.outbox();
        shared.timers.advance(shared, &mut outbox);
    }

    /// Closes everything and runs until every FSM has come to its end.
    pub fn shutdown(&mut self) {
        self.router.shared.close_all();
        while !self.router.shared.all_finished() {
            for poller in &mut self.pollers {
                poller.round();
            }
        }
        self.router.shared.clear();
    }
}

impl<N: Fsm, C: Fsm, H: Handler<N, C>> fmt::Debug for Driver<N, C, H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver")
            .field("now", &self.now())
            .field("waiting", &self.router.waiting())
            .field("router", &self.router)
            .finish_non_exhaustive()
    }
}
