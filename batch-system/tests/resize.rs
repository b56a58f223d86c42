//! The pool grows and shrinks under load: the thread set is exact, nothing is lost.
#![cfg(not(any(feature = "loom", feature = "shuttle")))]

mod common;

use batch_system::{CloseReason, Fsm, Handler, Limits, Outbox, Pool, ResizeError};
use common::{
    addresses_of, eventually, expect_pollers, pool, register, ControlMsg, Gate, Msg, Random, Record,
};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

#[test]
fn thread_set_is_exact_after_each_resize() {
    let record = Record::counts();
    let pool = pool("resize-set", 2, Limits::default(), &record);
    for pollers in [2, 5, 1, 3, 3, 8, 2, 1, 4] {
        pool.resize(pollers).unwrap();
        assert_eq!(pool.pollers(), pollers);
        assert_eq!(pool.router().waiting().len(), pollers);
        expect_pollers("resize-set", pollers);
    }
    pool.shutdown();
    expect_pollers("resize-set", 0);
}

#[test]
fn size_out_of_range_is_refused_and_changes_nothing() {
    let record = Record::counts();
    let pool = pool("resize-range", 2, Limits { max_pollers: 3, ..Limits::default() }, &record);
    for asked in [0, 4, usize::MAX] {
        let refused = pool.resize(asked);
        assert!(matches!(refused, Err(ResizeError::OutOfRange { asked: a, max: 3 }) if a == asked));
    }
    expect_pollers("resize-range", 2);
    pool.resize(3).unwrap();
}

#[test]
fn what_waits_with_a_retired_poller_runs_elsewhere() {
    let record = Record::counts();
    // Budget 1 and batch 1: each poller has much waiting, most of it hot.
    let limits = Limits { batch_size: 1, message_budget: 1, ..Limits::default() };
    let pool = pool("resize-hot", 4, limits, &record);
    register(pool.router(), 0..500);
    for round in 0..5 {
        let mut outbox = pool.router().outbox();
        for address in 0..500 {
            for number in 0..10 {
                outbox.send(address, Msg::Seq(0, number)).unwrap();
            }
        }
        drop(outbox);
        pool.resize(1).unwrap();
        eventually("all are handled", || record.handled() == (round + 1) * 5_000);
        pool.resize(4).unwrap();
    }
}

#[test]
fn nothing_is_lost_while_the_pool_grows_and_shrinks_under_load() {
    const SENDERS: u32 = 2;
    let record = Record::events();
    let limits = Limits { message_budget: 4, max_pollers: 6, ..Limits::default() };
    let pool = pool("resize-load", 2, limits, &record);
    register(pool.router(), 0..200);
    let (accepted, control, stop) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        for sender in 0..SENDERS {
            let (router, record) = (pool.router().clone(), record.clone());
            let (accepted, control, stop) = (&accepted, &control, &stop);
            scope.spawn(move || {
                let mut outbox = router.outbox();
                for number in 0.. {
                    if stop.load(SeqCst) {
                        return;
                    }
                    let to = number % 200;
                    let message = Msg::Seq(sender, number);
                    let done = if number % 2 == 0 {
                        router.send(to, message)
                    } else {
                        outbox.send(to, message)
                    };
                    accepted.fetch_add(u64::from(done.is_ok()), SeqCst);
                    if number % 100 == 0 {
                        let done = router.send_control(ControlMsg::Seq(number));
                        control.fetch_add(u64::from(done.is_ok()), SeqCst);
                        outbox.flush();
                        // Bounded, because every message is remembered.
                        eventually("not too far ahead", || {
                            accepted.load(SeqCst) < record.handled() + 10_000
                        });
                    }
                }
            });
        }
        let mut random = Random(1);
        for _ in 0..150 {
            let pollers = 1 + random.below(6) as usize;
            pool.resize(pollers).unwrap();
            expect_pollers("resize-load", pollers);
        }
        stop.store(true, SeqCst);
    });
    eventually("all are handled", || record.handled() == accepted.load(SeqCst));
    eventually("control too", || record.control.load(SeqCst) == control.load(SeqCst));
    for (fsm, messages) in record.by_fsm() {
        let mut last = [None; SENDERS as usize];
        for (sender, number) in messages {
            assert!(last[sender as usize] < Some(number), "out of order at {fsm:?}");
            last[sender as usize] = Some(number);
        }
    }
}

#[test]
fn broadcast_is_finished_though_its_poller_retires() {
    let record = Record::counts();
    let pool = pool("resize-broadcast", 4, Limits::default(), &record);
    register(pool.router(), 0..3_000);
    for round in 1..=40 {
        pool.router().broadcast(|_| Msg::Seq(0, 0));
        pool.resize(1).unwrap();
        eventually("all got it", || record.handled() == 3_000 * round);
        pool.resize(4).unwrap();
    }
}

#[test]
fn what_waits_behind_a_blocked_poller_that_retires_runs_elsewhere() {
    let record = Record::counts();
    let pool = pool("resize-block", 2, Limits::default(), &record);
    let at_1 = addresses_of(1, 2, 0, 31);
    register(pool.router(), at_1.clone());
    for _ in 0..30 {
        let (gate, before) = (Gate::new(), record.handled());
        {
            let mut outbox = pool.router().outbox();
            outbox.send(at_1[0], Msg::Pass(gate.clone())).unwrap();
            for address in &at_1[1..] {
                outbox.send(*address, Msg::Seq(0, 0)).unwrap();
            }
        }
        std::thread::scope(|scope| {
            scope.spawn(|| pool.resize(1).unwrap());
            eventually("the others ran", || record.handled() == before + 31);
            gate.open();
        });
        pool.resize(2).unwrap();
    }
}

#[test]
fn handler_that_cannot_be_made_leaves_the_pool_as_it_was() {
    struct Never;
    impl Fsm for Never {
        type Message = ();
    }
    struct Deaf;
    impl Handler<Never, Never> for Deaf {
        fn control(&mut self, _: &mut Never, _: &mut Vec<()>, _: &mut Outbox<Never, Never>) {}
        fn normal(&mut self, _: &mut Never, _: &mut Vec<()>, _: &mut Outbox<Never, Never>) {}
        fn closed(&mut self, _: Box<Never>, _: Vec<()>, _: CloseReason) {}
    }
    let pool = Pool::start("resize-fail", 1, Limits::default(), Box::new(Never), |index, _| {
        assert!(index < 2, "no handler for {index}");
        Deaf
    });
    let pool = pool.unwrap();
    let resized = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| pool.resize(4)));
    assert!(resized.is_err());
    expect_pollers("resize-fail", 2);
    assert_eq!((pool.pollers(), pool.router().waiting().len()), (2, 2));
    pool.resize(1).unwrap();
    expect_pollers("resize-fail", 1);
}
