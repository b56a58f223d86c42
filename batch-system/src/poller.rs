//! One poller: claims a batch of FSMs, lets each handle its messages, ends the round for all at once.

use crate::fsm::{CloseReason, Fsm, Handler, PanicReport, RoundStart};
use crate::mailbox::{Claim, Released, SendError};
use crate::outbox::Outbox;
use crate::router::{Router, Shared};
use crate::sync::{thread, Arc, Ordering};
use std::any::Any;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::time::{Duration, Instant};

/// How often a poller without work gives its time slice away before it sleeps. Work often comes back
/// within microseconds, and a sleep and a wake cost more than that.
const YIELDS_BEFORE_SLEEP: u32 = 4;

/// What a round did.
pub(crate) struct RoundEnd {
    /// The pool shrank and this poller must end.
    pub(crate) retired: bool,
    /// FSMs that ran.
    pub(crate) ran: usize,
}

pub(crate) struct Poller<N: Fsm, C: Fsm, H: Handler<N, C>> {
    index: usize,
    shared: Arc<Shared<N, C>>,
    handler: H,
    outbox: Outbox<N, C>,
    /// The control FSM, when it is this poller's turn to run it.
    control: Option<Claim<C>>,
    /// The FSMs of this round that have been handled.
    batch: Vec<Claim<N>>,
    messages: Vec<N::Message>,
    control_messages: Vec<C::Message>,
    /// The longest wait of a claim that was pulled and not yet reported to the handler.
    waited: Option<Duration>,
    /// Messages given to normal FSMs in this round.
    handled: u64,
    /// The last round had room for one normal FSM and ran a fresh one: now it is a hot one's turn.
    hot_is_due: bool,
}

impl<N: Fsm, C: Fsm, H: Handler<N, C>> Poller<N, C, H> {
    pub(crate) fn new(index: usize, router: &Router<N, C>, handler: H) -> Self {
        Self {
            index,
            shared: router.shared.clone(),
            handler,
            outbox: Outbox::new(router.shared.clone(), Some(index)),
            control: None,
            batch: Vec::new(),
            messages: Vec::new(),
            control_messages: Vec::new(),
            waited: None,
            handled: 0,
            hot_is_due: false,
        }
    }

    /// The body of a poller thread: rounds until the pool is shut down or has shrunk.
    pub(crate) fn run(mut self) {
        let shared = self.shared.clone();
        // The watch may sleep if the pool was quiet before it grew.
        shared.watch.pool_woke();
        loop {
            let end = self.round();
            if end.retired {
                shared.scheduler.hand_on(self.index);
                // It may have been this poller that was at the broadcasts while all others slept.
                if !shared.broadcasts.is_empty() {
                    shared.scheduler.poke(0);
                }
                return;
            }
            if shared.all_finished() {
                return;
            }
            if end.ran > 0 || !shared.broadcasts.is_empty() {
                continue;
            }
            let stolen = shared.scheduler.steal(self.index);
            if stolen > 0 {
                shared.stats.stolen.fetch_add(stolen as u64, Ordering::Relaxed);
                continue;
            }
            self.wait();
        }
    }

    fn wait(&self) {
        for _ in 0..YIELDS_BEFORE_SLEEP {
            thread::yield_now();
            if self.shared.scheduler.has_incoming(self.index) {
                return;
            }
        }
        self.shared.stats.sleeps.fetch_add(1, Ordering::Relaxed);
        self.shared.scheduler.sleep(self.index);
        if self.shared.scheduler.has_helpers() {
            self.shared.watch.pool_woke();
        }
    }

    /// One round: the control FSM if it has mail, and up to a batch of normal ones.
    pub(crate) fn round(&mut self) -> RoundEnd {
        let retired = self.pull();
        if retired {
            // What is run now may block with claims behind it, and one helper may be left, which sleeps.
            self.shared.watch.pool_woke();
        }
        if !self.shared.broadcasts.is_empty() {
            self.shared.broadcasts.advance(&self.shared, &mut self.outbox);
            // Before the look at the list below: some of those woken are for this very poller.
            self.outbox.flush();
        }
        let has_control = self.control.is_some();
        let mut ran = usize::from(has_control);
        if has_control {
            // Nothing is taken off the list before: where this blocks, others can take it over.
            self.begin();
            self.run_control();
        }
        let mut next = self.shared.scheduler.pop(self.index, self.hot_is_due);
        if !has_control {
            if next.is_none() {
                return RoundEnd { retired, ran };
            }
            self.begin();
        }
        let batch_size = self.shared.batch_size.load(Ordering::Relaxed);
        let one_place = ran + 1 >= batch_size;
        let mut hot_ran = false;
        while let Some((claim, hot)) = next {
            self.run_normal(claim);
            ran += 1;
            hot_ran |= hot;
            if ran >= batch_size {
                break;
            }
            if hot {
                // A hot FSM may have taken long: who came in meanwhile goes before the next hot one.
                let since = self.shared.scheduler.pull_more(self.index);
                self.note_wait(since);
            }
            let last_chance = ran + 1 == batch_size && !hot_ran;
            next = self.shared.scheduler.pop(self.index, last_chance);
        }
        self.hot_is_due = one_place && !hot_ran;
        self.end(ran);
        RoundEnd { retired, ran }
    }

    /// A round of one FSM. For driving by hand.
    pub(crate) fn round_of(&mut self, claim: Claim<N>) {
        self.begin();
        self.run_normal(claim);
        self.end(1);
    }

    /// A round of the control FSM. For driving by hand.
    pub(crate) fn round_of_control(&mut self, claim: Claim<C>) {
        self.control = Some(claim);
        self.begin();
        self.run_control();
        self.end(1);
    }

    pub(crate) fn handler_mut(&mut self) -> &mut H {
        &mut self.handler
    }

    fn pull(&mut self) -> bool {
        let pulled = self.shared.scheduler.pull(self.index);
        if pulled.control.is_some() {
            debug_assert!(self.control.is_none(), "two claims of the control FSM");
            self.control = pulled.control;
        }
        self.note_wait(pulled.since);
        pulled.retired
    }

    fn note_wait(&mut self, since: Option<Instant>) {
        self.waited = self.waited.max(since.map(|since| since.elapsed()));
    }

    fn begin(&mut self) {
        let start = RoundStart { poller: self.index, waited: self.waited.take() };
        let handler = &mut self.handler;
        if catch_unwind(AssertUnwindSafe(|| handler.begin(&start))).is_err() {
            // No FSM had a part in it, and the poller must live on to bring them to their ends.
            self.shared.stats.panics.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn run_control(&mut self) {
        let Some(mut claim) = self.control.take() else { return };
        let (handler, messages, outbox) =
            (&mut self.handler, &mut self.control_messages, &mut self.outbox);
        if claim.take(self.shared.limits.message_budget, messages) {
            let result = catch_unwind(AssertUnwindSafe(|| {
                handler.control(claim.fsm_mut(), messages, outbox);
                messages.clear();
            }));
            if let Err(panic) = result {
                let (fsm, later) = claim.quarantine();
                let unhandled = self.control_messages.drain(..).chain(later).collect();
                self.shared.stats.panics.fetch_add(1, Ordering::Relaxed);
                let reason = CloseReason::Panicked(panic_text(&*panic));
                return self.finish_control(fsm, unhandled, reason);
            }
        }
        match claim.release() {
            Released::Parked => {}
            Released::Again(claim) => self.shared.scheduler.schedule_control(claim),
            Released::Closed(fsm, unhandled, reason) => {
                self.finish_control(fsm, unhandled, reason);
            }
        }
    }

    fn run_normal(&mut self, mut claim: Claim<N>) {
        let (handler, messages, outbox) = (&mut self.handler, &mut self.messages, &mut self.outbox);
        if !claim.take(self.shared.limits.message_budget, messages) {
            // Closed. It is not handled any more; release brings it to its end.
            return self.release(claim);
        }
        self.handled += messages.len() as u64;
        let result = catch_unwind(AssertUnwindSafe(|| {
            handler.normal(claim.fsm_mut(), messages, outbox);
            messages.clear();
        }));
        match result {
            Ok(()) => self.batch.push(claim),
            Err(panic) => self.quarantine(claim, &panic_text(&*panic)),
        }
    }

    /// Ends the round: once for the whole batch, and then each FSM is given back.
    fn end(&mut self, ran: usize) {
        let (handler, batch, outbox) = (&mut self.handler, &mut self.batch, &mut self.outbox);
        let result = catch_unwind(AssertUnwindSafe(|| handler.end(batch, outbox)));
        let mut batch = std::mem::take(&mut self.batch);
        match result {
            Ok(()) => batch.drain(..).for_each(|claim| self.release(claim)),
            Err(panic) => {
                let text = panic_text(&*panic);
                batch.drain(..).for_each(|claim| self.quarantine(claim, &text));
            }
        }
        self.batch = batch;
        self.outbox.flush();
        let stats = &self.shared.stats;
        stats.rounds.fetch_add(1, Ordering::Relaxed);
        stats.runs.fetch_add(ran as u64, Ordering::Relaxed);
        stats.messages.fetch_add(std::mem::take(&mut self.handled), Ordering::Relaxed);
    }

    fn release(&mut self, claim: Claim<N>) {
        match claim.release() {
            Released::Parked => {}
            Released::Again(claim) => self.shared.scheduler.requeue(self.index, claim),
            Released::Closed(fsm, unhandled, reason) => self.finish(fsm, unhandled, reason),
        }
    }

    fn quarantine(&mut self, claim: Claim<N>, text: &str) {
        let address = claim.address();
        let cell = claim.cell().clone();
        let (fsm, later) = claim.quarantine();
        // What the handler left behind when it panicked comes first.
        let unhandled = self.messages.drain(..).chain(later).collect();
        self.shared.stats.panics.fetch_add(1, Ordering::Relaxed);
        self.finish(fsm, unhandled, CloseReason::Panicked(text.to_owned()));
        // Only now may the address be taken again: the handler has had its chance to note the loss.
        self.shared.forget(&cell);
        let report = PanicReport { address, message: text.to_owned() };
        let handler = &mut self.handler;
        let message = catch_unwind(AssertUnwindSafe(|| handler.panic_message(report)));
        if let Ok(Some(message)) = message {
            // Beyond even the forced capacity the report is lost; the count in the stats is not.
            let limit = self.shared.limits.forced_capacity;
            let sent: Result<(), SendError<C::Message>> = self.shared.send_control(message, limit);
            drop(sent);
        }
    }

    fn finish(&mut self, fsm: Box<N>, unhandled: Vec<N::Message>, reason: CloseReason) {
        let handler = &mut self.handler;
        // A broken FSM may panic once more while it is taken apart. It is gone either way.
        let _ = catch_unwind(AssertUnwindSafe(|| handler.closed(fsm, unhandled, reason)));
        self.shared.finished_one();
    }

    fn finish_control(&mut self, fsm: Box<C>, unhandled: Vec<C::Message>, reason: CloseReason) {
        let handler = &mut self.handler;
        let _ = catch_unwind(AssertUnwindSafe(|| handler.control_closed(fsm, unhandled, reason)));
        self.shared.finished_one();
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(ToString::to_string);
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without a text".to_owned())
}
