//! The hand-over protocols, in every order the memory model allows.
//!
//! Run by `cargo test -p batch-system --release --features loom --lib loom_`. Each model is as small as
//! it can be and still show its race; where one needs more than two threads, preemptions are bounded.

use crate::fsm::{CloseReason, Fsm, Handler, Priority};
use crate::mailbox::{Cell, Claim, Released, Sent};
use crate::outbox::Outbox;
use crate::pool::Limits;
use crate::router::{Router, Shared};
use crate::scheduler::Scheduler;
use crate::sync::{AtomicUsize, Ordering};
use crate::timer::Time;
use crate::watch::Watch;
use loom::thread;
use std::sync::Arc;
use std::time::Duration;

struct Node;

impl Fsm for Node {
    type Message = u32;
}

struct Control;

impl Fsm for Control {
    type Message = u32;
}

struct Nothing;

impl Handler<Node, Control> for Nothing {
    fn control(&mut self, _: &mut Control, _: &mut Vec<u32>, _: &mut Outbox<Node, Control>) {}
    fn normal(&mut self, _: &mut Node, _: &mut Vec<u32>, _: &mut Outbox<Node, Control>) {}
    fn closed(&mut self, _: Box<Node>, _: Vec<u32>, _: CloseReason) {}
}

/// Explores a model with at most so many preemptions in one run; `None` for all.
fn explore(preemptions: Option<usize>, model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = preemptions;
    builder.check(model);
}

/// Of two pollers, the second is its home.
const ADDRESS: u64 = 1;

fn cell() -> Arc<Cell<Node>> {
    Arc::new(Cell::new(ADDRESS, Box::new(Node), Priority::Normal, Arc::new(AtomicUsize::new(0))))
}

/// Sends, and notes the claim if this sender has to schedule it.
fn send(cell: &Arc<Cell<Node>>, message: u32) -> (bool, Option<Claim<Node>>) {
    match cell.send(message, 10) {
        Ok(Sent::Schedule(claim)) => (true, Some(claim)),
        Ok(Sent::Queued) => (true, None),
        Err(error) => {
            assert_eq!(error.into_message(), message);
            (false, None)
        }
    }
}

/// Runs a claim as a poller does until it is parked or closed. Returns what was handled, and what was
/// handed back at the end.
fn run(claim: Claim<Node>) -> (Vec<u32>, Option<Vec<u32>>) {
    let mut handled = Vec::new();
    let mut next = claim;
    loop {
        next.take(1, &mut handled);
        match next.release() {
            Released::Parked => return (handled, None),
            Released::Again(claim) => next = claim,
            Released::Closed(_, unhandled, _) => return (handled, Some(unhandled)),
        }
    }
}

/// What two threads made of one FSM.
#[derive(Default)]
struct Outcome {
    handled: Vec<u32>,
    ends: usize,
}

impl Outcome {
    fn run(&mut self, claim: Option<Claim<Node>>) {
        if let Some(claim) = claim {
            let (handled, unhandled) = run(claim);
            self.handled.extend(handled);
            if let Some(unhandled) = unhandled {
                self.ends += 1;
                self.handled.extend(unhandled);
            }
        }
    }

    fn join(mut self, other: Outcome) -> Self {
        self.handled.extend(other.handled);
        self.ends += other.ends;
        self.handled.sort_unstable();
        self
    }
}

#[test]
fn loom_message_sent_while_the_fsm_is_released_is_handled() {
    explore(None, || {
        let cell = cell();
        let (_, claim) = send(&cell, 1);
        let sender = {
            let cell = cell.clone();
            thread::spawn(move || {
                let mut outcome = Outcome::default();
                for message in [2, 3] {
                    let (accepted, claim) = send(&cell, message);
                    assert!(accepted);
                    outcome.run(claim);
                }
                outcome
            })
        };
        let mut outcome = Outcome::default();
        outcome.run(claim);
        let outcome = outcome.join(sender.join().unwrap());
        assert_eq!(outcome.handled, [1, 2, 3]);
        assert_eq!(cell.len(), 0);
    });
}

#[test]
fn loom_of_two_senders_to_a_parked_fsm_one_gets_the_claim() {
    explore(None, || {
        let cell = cell();
        let other = {
            let cell = cell.clone();
            thread::spawn(move || send(&cell, 1).1)
        };
        let here = send(&cell, 2).1;
        let there = other.join().unwrap();
        assert!(here.is_some() != there.is_some(), "one owner");
        let (mut handled, _) = run(here.or(there).unwrap());
        handled.sort_unstable();
        assert_eq!(handled, [1, 2]);
    });
}

#[test]
fn loom_message_sent_while_the_fsm_is_closed_is_refused_or_handed_back() {
    explore(None, || {
        let cell = cell();
        let sender = {
            let cell = cell.clone();
            thread::spawn(move || {
                let mut outcome = Outcome::default();
                let (accepted, claim) = send(&cell, 1);
                outcome.run(claim);
                (accepted, outcome)
            })
        };
        let mut outcome = Outcome::default();
        if let Some(Sent::Schedule(claim)) = cell.close(CloseReason::Requested) {
            outcome.run(Some(claim));
        }
        let (accepted, other) = sender.join().unwrap();
        let outcome = outcome.join(other);
        assert_eq!(outcome.handled.len(), usize::from(accepted));
        assert_eq!(outcome.ends, 1, "it ends once");
    });
}

#[test]
fn loom_fsm_closed_while_it_is_released_ends_once() {
    explore(None, || {
        let cell = cell();
        let (_, claim) = send(&cell, 1);
        let closers = [(); 2].map(|()| {
            let cell = cell.clone();
            thread::spawn(move || {
                let mut outcome = Outcome::default();
                let closed = cell.close(CloseReason::Requested);
                let first = closed.is_some();
                if let Some(Sent::Schedule(claim)) = closed {
                    outcome.run(Some(claim));
                }
                (first, outcome)
            })
        });
        let mut outcome = Outcome::default();
        outcome.run(claim);
        let mut closed = 0;
        for closer in closers {
            let (first, other) = closer.join().unwrap();
            closed += usize::from(first);
            outcome = outcome.join(other);
        }
        assert_eq!((closed, outcome.ends, outcome.handled), (1, 1, vec![1]));
    });
}

#[test]
fn loom_message_sent_while_the_fsm_is_quarantined_is_refused_or_handed_back() {
    explore(None, || {
        let cell = cell();
        let (_, claim) = send(&cell, 1);
        let sender = {
            let cell = cell.clone();
            thread::spawn(move || {
                let (accepted, claim) = send(&cell, 2);
                assert!(claim.is_none(), "two owners");
                accepted
            })
        };
        let (_, unhandled) = claim.unwrap().quarantine();
        assert_eq!(unhandled.len(), 1 + usize::from(sender.join().unwrap()));
        assert!(!send(&cell, 3).0);
    });
}

fn limits() -> Limits {
    Limits { max_pollers: 1, ..Limits::default() }
}

fn router() -> Router<Node, Control> {
    let time = Time::Driven(crate::sync::AtomicU64::new(0));
    Router { shared: Arc::new(Shared::new(limits(), 1, Box::new(Control), time)) }
}

#[test]
fn loom_address_registered_anew_while_it_is_closed_keeps_two_fsms_apart() {
    explore(Some(3), || {
        let router = router();
        let old = router.register(7, Box::new(Node), Priority::Normal).unwrap();
        let sender = {
            let router = router.clone();
            thread::spawn(move || usize::from(router.send(7, 1).is_ok()))
        };
        assert!(router.close(7));
        let new = router.register(7, Box::new(Node), Priority::Normal).unwrap();
        assert!(old.send(2).is_err(), "the old handle is dead");
        let accepted = sender.join().unwrap();
        let scheduler = &router.shared.scheduler;
        scheduler.pull(0);
        let (mut messages, mut ends) = (0, 0);
        while let Some((claim, _)) = scheduler.pop(0, false) {
            let (handled, unhandled) = run(claim);
            ends += usize::from(unhandled.is_some());
            messages += handled.len() + unhandled.map_or(0, |left| left.len());
        }
        assert_eq!((messages, ends), (accepted, 1));
        assert!(new.is_empty() && router.alive() == 1);
    });
}

#[test]
fn loom_fsm_registered_while_the_pool_closes_is_closed_or_refused() {
    explore(Some(2), || {
        let router = router();
        let registering = {
            let router = router.clone();
            thread::spawn(move || router.register(7, Box::new(Node), Priority::Normal).is_ok())
        };
        router.shared.close_all();
        let registered = registering.join().unwrap();
        let scheduler = &router.shared.scheduler;
        assert!(scheduler.pull(0).control.is_some());
        assert_eq!(registered, scheduler.waiting(0) == 1);
        assert_eq!(router.alive(), 0);
    });
}

type Sched = Scheduler<Node, Control>;

/// A claim to schedule.
fn claim() -> Claim<Node> {
    send(&cell(), 1).1.expect("it was parked")
}

/// What a poller's thread does: sleeps and pulls until it ran that many claims.
fn poll_until(scheduler: &Sched, index: usize, count: usize) {
    let mut ran = 0;
    loop {
        scheduler.pull(index);
        while let Some((claim, _)) = scheduler.pop(index, false) {
            ran += 1;
            assert!(matches!(claim.release(), Released::Again(_)));
        }
        if ran == count {
            return;
        }
        scheduler.sleep(index);
    }
}

#[test]
fn loom_push_while_the_poller_falls_asleep_wakes_it() {
    // A lost wake-up is a deadlock, which loom reports.
    explore(None, || {
        let scheduler = Arc::new(Sched::new(1, 1, 8));
        let poller = {
            let scheduler = scheduler.clone();
            thread::spawn(move || poll_until(&scheduler, 0, 2))
        };
        scheduler.schedule(claim());
        scheduler.schedule_many(0, &mut vec![claim()]);
        poller.join().unwrap();
    });
}

#[test]
fn loom_two_senders_wake_one_poller() {
    explore(Some(3), || {
        let scheduler = Arc::new(Sched::new(1, 1, 8));
        let poller = {
            let scheduler = scheduler.clone();
            thread::spawn(move || poll_until(&scheduler, 0, 2))
        };
        let sender = {
            let scheduler = scheduler.clone();
            thread::spawn(move || scheduler.schedule(claim()))
        };
        scheduler.schedule(claim());
        sender.join().unwrap();
        poller.join().unwrap();
    });
}

#[test]
fn loom_control_claim_and_poke_wake_the_poller() {
    explore(None, || {
        let scheduler = Arc::new(Sched::new(1, 1, 8));
        let finished = Arc::new(AtomicUsize::new(0));
        let poller = {
            let (scheduler, finished) = (scheduler.clone(), finished.clone());
            thread::spawn(move || {
                let mut control = None;
                loop {
                    control = control.or(scheduler.pull(0).control);
                    if control.is_some() && finished.load(Ordering::Acquire) == 1 {
                        return;
                    }
                    scheduler.sleep(0);
                }
            })
        };
        let control = Arc::new(Cell::new(
            u64::MAX,
            Box::new(Control),
            Priority::High,
            Arc::new(AtomicUsize::new(0)),
        ));
        if let Ok(Sent::Schedule(claim)) = control.send(1, 10) {
            scheduler.schedule_control(claim);
        }
        finished.store(1, Ordering::Release);
        scheduler.poke(0);
        poller.join().unwrap();
    });
}

#[test]
fn loom_claim_taken_over_from_a_sleeping_poller_runs_once() {
    explore(Some(3), || {
        let scheduler = Arc::new(Sched::new(2, 2, 8));
        let victim = {
            let scheduler = scheduler.clone();
            thread::spawn(move || {
                scheduler.sleep(0);
                scheduler.pull(0);
                usize::from(scheduler.pop(0, false).is_some())
            })
        };
        scheduler.schedule_many(0, &mut vec![claim()]);
        let stolen = scheduler.steal(1);
        assert_eq!(scheduler.waiting(1), stolen);
        // So that it wakes whoever has the claim.
        scheduler.poke(0);
        assert_eq!(victim.join().unwrap() + stolen, 1);
    });
}

#[test]
fn loom_claim_scheduled_while_its_home_retires_is_not_stranded() {
    explore(Some(3), || {
        let scheduler = Arc::new(Sched::new(2, 2, 8));
        assert_eq!(scheduler.home(ADDRESS), 1);
        let sender = {
            let scheduler = scheduler.clone();
            thread::spawn(move || {
                // One by one, and as a batch whose home was computed before.
                scheduler.schedule(claim());
                scheduler.schedule_many(1, &mut vec![claim()]);
            })
        };
        let retiring = {
            let scheduler = scheduler.clone();
            thread::spawn(move || {
                while !scheduler.pull(1).retired {
                    scheduler.sleep(1);
                }
                scheduler.hand_on(1);
            })
        };
        scheduler.set_active(1);
        sender.join().unwrap();
        retiring.join().unwrap();
        assert_eq!((scheduler.waiting(0), scheduler.waiting(1)), (2, 0));
    });
}

#[test]
fn loom_claim_scheduled_while_the_pool_grows_is_with_a_poller_that_runs() {
    explore(None, || {
        let scheduler = Arc::new(Sched::new(2, 1, 8));
        let sender = {
            let scheduler = scheduler.clone();
            thread::spawn(move || scheduler.schedule(claim()))
        };
        scheduler.set_active(2);
        sender.join().unwrap();
        assert_eq!(scheduler.waiting(0) + scheduler.waiting(1), 1);
        assert_eq!(scheduler.active(), 2);
    });
}

#[test]
fn loom_watch_does_not_sleep_on_a_look_that_is_out_of_date() {
    // In the models no wait times out: a timer that the watch misses is a deadlock.
    explore(None, || {
        let watch = Arc::new(Watch::new());
        let due = Arc::new(AtomicUsize::new(0));
        let watching = {
            let (watch, due) = (watch.clone(), due.clone());
            thread::spawn(move || loop {
                watch.begin_look();
                if due.load(Ordering::Acquire) == 1 {
                    return;
                }
                assert!(watch.pause(Duration::MAX, Some(u64::MAX)));
            })
        };
        due.store(1, Ordering::Release);
        watch.timer_added(5);
        watching.join().unwrap();
    });
}

#[test]
fn loom_watch_that_falls_asleep_hears_of_the_stop() {
    explore(None, || {
        let watch = Arc::new(Watch::new());
        let watching = {
            let watch = watch.clone();
            thread::spawn(move || while watch.pause(Duration::MAX, None) {})
        };
        watch.pool_woke();
        watch.stop();
        watching.join().unwrap();
    });
}

#[test]
fn loom_last_fsm_to_end_wakes_the_poller_that_waits_for_it() {
    explore(Some(3), || {
        let router = router();
        let poller = {
            let router = router.clone();
            thread::spawn(move || {
                let shared = router.shared.clone();
                crate::poller::Poller::new(0, &router, Nothing).run();
                assert!(shared.all_finished());
            })
        };
        router.shared.close_all();
        poller.join().unwrap();
    });
}
