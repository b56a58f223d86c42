//! Shutdown brings every FSM to its end, gives back every message, and joins every thread.
#![cfg(not(any(feature = "loom", feature = "shuttle")))]

mod common;

use batch_system::{CloseReason, Limits, Priority, RegisterError, ResizeError};
use common::{
    driver, eventually, expect_pollers, node, pool, register, ControlMsg, Event, Gate, Msg, Record,
};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::Arc;
use std::time::Duration;

#[test]
fn every_message_is_handled_or_handed_back() {
    let record = Record::events();
    let limits = Limits { message_budget: 2, ..Limits::default() };
    let mut driver = driver(2, limits, &record);
    register(driver.router(), 0..50);
    let mut expected = BTreeMap::<_, Vec<_>>::new();
    for number in 0..500 {
        let to = number * number % 50;
        driver.router().send(to, Msg::Seq(0, number)).unwrap();
        expected.entry((to, 0)).or_default().push((0, number));
    }
    driver.run_round(0);
    driver.run_round(1);
    driver.router().send_control(ControlMsg::Seq(0)).unwrap();
    let handled = record.handled();
    driver.shutdown();
    assert_eq!(record.handled(), handled, "nothing is handled after the close");
    assert_eq!(record.by_fsm(), expected);
    let reasons = record.find(|event| match event {
        Event::Closed { reason, .. } => Some(reason.clone()),
        _ => None,
    });
    assert_eq!(reasons, vec![CloseReason::Shutdown; 50]);
    let control = record.find(|event| match event {
        Event::ControlClosed { unhandled, reason } => Some((*unhandled, reason.clone())),
        _ => None,
    });
    assert_eq!(control, [(1, CloseReason::Shutdown)]);
    assert_eq!((driver.router().alive(), driver.router().leaked()), (0, 0));
}

#[test]
fn every_thread_is_joined() {
    for pollers in 1..=4 {
        let record = Record::counts();
        let pool = pool("down-threads", pollers, Limits::default(), &record);
        register(pool.router(), 0..10);
        expect_pollers("down-threads", pollers);
        pool.shutdown();
        expect_pollers("down-threads", 0);
        assert_eq!(record.closed.load(SeqCst), 10);
        assert_eq!(pool.pollers(), 0);
        pool.shutdown();
        drop(pool);
        assert_eq!(record.closed.load(SeqCst), 10);
    }
}

#[test]
fn dropping_a_pool_shuts_it_down() {
    let record = Record::counts();
    let pool = pool("down-drop", 2, Limits::default(), &record);
    register(pool.router(), 0..10);
    drop(pool);
    assert_eq!(record.closed.load(SeqCst), 10);
    expect_pollers("down-drop", 0);
    assert_eq!(Arc::strong_count(&record), 1, "the handlers are dropped too");
}

#[test]
fn nothing_is_accepted_or_kept_after_shutdown() {
    let record = Record::counts();
    let pool = pool("down-after", 2, Limits::default(), &record);
    register(pool.router(), [1]);
    let mailbox = pool.router().mailbox(1).unwrap();
    pool.shutdown();
    let refused = pool.router().register(2, node(2, 0), Priority::Normal);
    assert!(matches!(refused, Err(RegisterError::ShuttingDown(fsm)) if fsm.address == 2));
    assert!(pool.router().send(1, Msg::Seq(0, 0)).is_err());
    assert!(pool.router().force_send(1, Msg::Seq(0, 0)).is_err());
    assert!(mailbox.send(Msg::Seq(0, 0)).is_err());
    assert!(pool.router().outbox().send(1, Msg::Seq(0, 0)).is_err());
    assert!(pool.router().send_control(ControlMsg::Seq(0)).is_err());
    assert!(!pool.router().close(1));
    let kept = Arc::new(());
    let in_broadcast = kept.clone();
    pool.router().broadcast(move |_| Msg::Seq(0, Arc::strong_count(&in_broadcast) as u64));
    assert_eq!(Arc::strong_count(&kept), 1);
    let gate = Gate::new();
    mailbox.send_after(Duration::ZERO, Msg::Pass(gate.clone()));
    assert_eq!(Arc::strong_count(&gate), 1);
    assert!(matches!(pool.resize(3), Err(ResizeError::ShutDown)));
    assert!(matches!(pool.resize(1), Err(ResizeError::ShutDown)));
    expect_pollers("down-after", 0);
    drop(mailbox);
    assert_eq!(pool.router().leaked(), 0);
    assert_eq!((record.handled(), record.closed.load(SeqCst)), (0, 1));
}

#[test]
fn timers_and_broadcasts_that_wait_are_forgotten() {
    let record = Record::counts();
    let mut driver = driver(1, Limits::default(), &record);
    register(driver.router(), 0..1_000);
    let gate = Gate::new();
    let mailbox = driver.router().mailbox(0).unwrap();
    mailbox.send_after(Duration::from_secs(1), Msg::Pass(gate.clone()));
    drop(mailbox);
    let in_broadcast = gate.clone();
    driver.router().broadcast(move |_| Msg::Pass(in_broadcast.clone()));
    driver.shutdown();
    assert_eq!(Arc::strong_count(&gate), 1);
    assert_eq!(driver.router().leaked(), 0);
    assert_eq!(record.closed.load(SeqCst), 1_000);
}

#[test]
fn shutdown_under_load_from_several_senders_accounts_for_every_message() {
    for round in 0..30 {
        let record = Record::counts();
        let limits =
            Limits { message_budget: 3, batch_size: 4, mailbox_capacity: 64, ..Limits::default() };
        let pool = pool("down-load", 2, limits, &record);
        register(pool.router(), 0..100);
        let (accepted, registered) = (AtomicU64::new(0), AtomicU64::new(100));
        std::thread::scope(|scope| {
            for sender in 0..3_u32 {
                let (router, accepted, registered) =
                    (pool.router().clone(), &accepted, &registered);
                let mailbox = router.mailbox(7).unwrap();
                scope.spawn(move || {
                    let mut outbox = router.outbox();
                    let mut number = 0;
                    loop {
                        number += 1;
                        let message = || Msg::Seq(sender, number);
                        let to = number % 100;
                        let done = match number % 4 {
                            0 => router.send(to, message()),
                            1 => outbox.send(to, message()),
                            2 => mailbox.send(message()),
                            _ => outbox.force_send(to, message()),
                        };
                        accepted.fetch_add(u64::from(done.is_ok()), SeqCst);
                        let own = 1_000 + u64::from(sender) * 1_000_000 + number;
                        if number % 16 == 0 {
                            match router.register(own, node(own, 0), Priority::Normal) {
                                Ok(_) => registered.fetch_add(1, SeqCst),
                                Err(RegisterError::ShuttingDown(_)) => return,
                                Err(error) => panic!("{error}"),
                            };
                        }
                        if number % 64 == 0 {
                            router.close(own);
                            outbox.flush();
                            // Bounded, so that the sender does not outrun the pollers for ever.
                            std::thread::yield_now();
                        }
                    }
                });
            }
            eventually("there is load", || record.handled() > 100 * round);
            pool.shutdown();
        });
        assert_eq!(record.accounted(), accepted.load(SeqCst));
        assert_eq!(record.closed.load(SeqCst), registered.load(SeqCst));
        assert_eq!((pool.router().alive(), pool.router().leaked()), (0, 0));
        expect_pollers("down-load", 0);
    }
}

#[test]
fn shutdown_waits_for_a_handler_that_blocks() {
    let record = Record::counts();
    let pool = pool("down-block", 2, Limits::default(), &record);
    register(pool.router(), [1, 2]);
    let gate = Gate::new();
    pool.router().send(1, Msg::Pass(gate.clone())).unwrap();
    eventually("the handler blocks", || gate.arrived() == 1);
    std::thread::scope(|scope| {
        scope.spawn(|| pool.shutdown());
        eventually("the other ends", || record.closed.load(SeqCst) == 1);
        gate.open();
    });
    assert_eq!(record.closed.load(SeqCst), 2);
}

#[test]
fn shutdown_during_a_broadcast_ends() {
    for _ in 0..20 {
        let record = Record::counts();
        let pool = pool("down-broadcast", 2, Limits::default(), &record);
        register(pool.router(), 0..5_000);
        for _ in 0..4 {
            pool.router().broadcast(|_| Msg::Seq(0, 0));
        }
        pool.shutdown();
        assert_eq!(record.closed.load(SeqCst), 5_000);
        assert_eq!(pool.router().leaked(), 0);
    }
}

#[test]
fn shutdown_from_two_threads_and_with_a_resize_beside_it_ends() {
    for _ in 0..30 {
        let record = Record::counts();
        let pool = pool("down-race", 2, Limits::default(), &record);
        register(pool.router(), 0..100);
        std::thread::scope(|scope| {
            scope.spawn(|| pool.shutdown());
            scope.spawn(|| pool.shutdown());
            scope.spawn(|| {
                for pollers in [4, 1, 3] {
                    match pool.resize(pollers) {
                        Ok(()) | Err(ResizeError::ShutDown) => {}
                        Err(error) => panic!("{error}"),
                    }
                }
            });
        });
        assert_eq!(record.closed.load(SeqCst), 100);
        expect_pollers("down-race", 0);
    }
}

#[test]
fn panic_reports_and_control_messages_of_the_last_moment_do_not_hold_it_up() {
    for _ in 0..50 {
        let record = Record::counts();
        let pool = pool("down-panic", 2, Limits::default(), &record);
        register(pool.router(), 0..100);
        for address in 0..100 {
            let message = if address % 2 == 0 {
                Msg::Panic("late")
            } else {
                Msg::SendNow(0, Box::new(Msg::Seq(0, 0)))
            };
            pool.router().send(address, message).unwrap();
        }
        pool.shutdown();
        assert_eq!(record.closed.load(SeqCst), 100);
    }
}
