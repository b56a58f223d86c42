//! Closing an address while others send to it, and registering it anew.
#![cfg(not(any(feature = "loom", feature = "shuttle")))]

mod common;

use batch_system::{CloseReason, Limits, Priority, RegisterError};
use common::{driver, eventually, node, pool, register, Event, Gate, Msg, Record};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

#[test]
fn closed_parked_fsm_ends_with_nothing_unhandled() {
    let record = Record::events();
    let mut driver = driver(1, Limits::default(), &record);
    register(driver.router(), [1]);
    assert!(driver.router().close(1));
    assert!(!driver.router().close(1));
    assert_eq!(driver.run_round(0), 1);
    let closed = Event::Closed {
        address: 1,
        generation: 0,
        unhandled: vec![],
        reason: CloseReason::Requested,
    };
    assert!(record.lock().contains(&closed));
    assert_eq!(driver.router().leaked(), 0);
}

#[test]
fn address_registered_anew_belongs_to_the_new_fsm_alone() {
    let record = Record::events();
    let mut driver = driver(1, Limits::default(), &record);
    register(driver.router(), [1]);
    let old = driver.router().mailbox(1).unwrap();
    old.send(Msg::Seq(0, 0)).unwrap();
    assert!(driver.router().close(1));
    let new = driver.router().register(1, node(1, 1), Priority::Normal).unwrap();
    assert!(old.send(Msg::Seq(0, 1)).is_err_and(|error| !error.is_full()));
    driver.router().send(1, Msg::Seq(0, 2)).unwrap();
    assert_eq!(driver.scheduled(0), [1, 1], "the old one to its end, the new one to run");
    driver.run_until_idle(10);
    new.send(Msg::Seq(0, 3)).unwrap();
    driver.run_until_idle(10);
    let all = record.by_fsm();
    assert_eq!(all[&(1, 0)], [(0, 0)]);
    assert_eq!(all[&(1, 1)], [(0, 2), (0, 3)]);
    assert_eq!(record.handled(), 2, "the old FSM handled nothing");
    assert_eq!((driver.router().alive(), driver.router().leaked()), (1, 1), "old is held on to");
    drop(old);
    assert_eq!(driver.router().leaked(), 0);
}

#[test]
fn panic_of_the_old_fsm_leaves_the_new_one_registered() {
    let record = Record::events();
    let mut driver = driver(1, Limits::default(), &record);
    register(driver.router(), [1]);
    driver.router().send(1, Msg::Replace).unwrap();
    driver.router().send(1, Msg::Panic("late")).unwrap();
    driver.run_until_idle(10);
    assert_eq!(driver.router().alive(), 1);
    driver.router().send(1, Msg::Seq(0, 0)).unwrap();
    driver.run_until_idle(10);
    assert_eq!(record.by_fsm()[&(1, 1)], [(0, 0)]);
}

#[test]
fn fsm_can_close_itself_and_register_its_successor() {
    let record = Record::events();
    let mut driver = driver(1, Limits::default(), &record);
    register(driver.router(), [1]);
    for generation in 0..10 {
        driver.router().send(1, Msg::Replace).unwrap();
        driver.run_until_idle(10);
        driver.router().send(1, Msg::Seq(0, generation)).unwrap();
        driver.run_until_idle(10);
        assert_eq!(record.by_fsm()[&(1, generation + 1)], [(0, generation)]);
    }
    assert_eq!(driver.router().leaked(), 0);
}

#[test]
fn taken_address_is_refused_and_the_fsm_comes_back() {
    let record = Record::counts();
    let driver = driver(1, Limits::default(), &record);
    register(driver.router(), [1]);
    let refused = driver.router().register(1, node(1, 5), Priority::Normal);
    assert!(matches!(refused, Err(RegisterError::Taken(fsm)) if fsm.generation == 5));
    assert_eq!((driver.router().alive(), driver.router().leaked()), (1, 0));
}

#[test]
fn close_while_the_handler_runs_ends_the_fsm_after_that_round() {
    let record = Record::events();
    let pool = pool("close-run", 2, Limits::default(), &record);
    register(pool.router(), [1]);
    let gate = Gate::new();
    pool.router().send(1, Msg::Pass(gate.clone())).unwrap();
    eventually("the handler blocks", || gate.arrived() == 1);
    pool.router().send(1, Msg::Seq(0, 1)).unwrap();
    assert!(pool.router().close(1));
    let new = pool.router().register(1, node(1, 1), Priority::Normal).unwrap();
    new.send(Msg::Seq(0, 2)).unwrap();
    eventually("the new one runs beside the old one", || record.handled() == 2);
    assert_eq!(record.closed.load(SeqCst), 0);
    gate.open();
    eventually("the old one ends", || record.closed.load(SeqCst) == 1);
    let all = record.by_fsm();
    assert_eq!((&all[&(1, 0)], &all[&(1, 1)]), (&vec![(0, 1)], &vec![(0, 2)]));
}

#[test]
fn senders_racing_with_close_and_re_register_lose_no_message() {
    let record = Record::counts();
    let limits = Limits { message_budget: 2, mailbox_capacity: 1 << 20, ..Limits::default() };
    let limits = Limits { forced_capacity: 1 << 20, ..limits };
    let pool = pool("close-race", 2, limits, &record);
    register(pool.router(), 0..4);
    let (accepted, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let mut ended = 0;
    std::thread::scope(|scope| {
        for sender in 0..2 {
            let (router, accepted, stop) = (pool.router().clone(), &accepted, &stop);
            scope.spawn(move || {
                let mut number = 0;
                while !stop.load(SeqCst) {
                    let mut outbox = router.outbox();
                    for address in 0..4 {
                        number += 1;
                        let message = Msg::Seq(sender, number);
                        let done = match (number % 3, router.mailbox(address)) {
                            (0, Some(mailbox)) => mailbox.send(message),
                            (1, _) => outbox.send(address, message),
                            _ => router.send(address, message),
                        };
                        accepted.fetch_add(u64::from(done.is_ok()), SeqCst);
                    }
                }
            });
        }
        for generation in 0..3_000 {
            let address = generation % 4;
            assert!(pool.router().close(address));
            ended += 1;
            pool.router().register(address, node(address, generation), Priority::Normal).unwrap();
        }
        stop.store(true, SeqCst);
    });
    eventually("every closed one ends", || record.closed.load(SeqCst) == ended);
    assert_eq!(pool.router().alive(), 4);
    eventually("no mailbox is held on to", || pool.router().leaked() == 0);
    eventually("every message is accounted for", || record.accounted() == accepted.load(SeqCst));
    pool.shutdown();
    assert_eq!(record.accounted(), accepted.load(SeqCst));
}
