//! A panic ends the FSM it happened in, is reported, and nothing else notices.
#![cfg(not(any(feature = "loom", feature = "shuttle")))]

mod common;

use batch_system::{CloseReason, Limits, PanicReport};
use common::{
    addresses_of, driver, eventually, expect_pollers, node, pool, register, ControlMsg, Event, Msg,
    PanicInDrop, Record,
};
use std::collections::BTreeMap;
use std::sync::atomic::Ordering::SeqCst;

fn panicked(text: &str) -> CloseReason {
    CloseReason::Panicked(text.to_owned())
}

fn closed(record: &Record) -> BTreeMap<u64, (Vec<(u32, u64)>, CloseReason)> {
    let closed = record.find(|event| match event {
        Event::Closed { address, unhandled, reason, .. } => {
            Some((*address, (unhandled.clone(), reason.clone())))
        }
        _ => None,
    });
    closed.into_iter().collect()
}

fn reports(record: &Record) -> Vec<PanicReport> {
    record.find(|event| match event {
        Event::Report { report } => Some(report.clone()),
        _ => None,
    })
}

#[test]
fn panic_in_normal_quarantines_that_fsm_alone_and_tells_control() {
    let record = Record::events();
    let mut driver = driver(1, Limits::default(), &record);
    register(driver.router(), 1..=3);
    let mailbox = driver.router().mailbox(2).unwrap();
    for address in 1..=3 {
        driver.router().send(address, Msg::Seq(0, 0)).unwrap();
    }
    driver.router().send(2, Msg::Panic("ouch")).unwrap();
    driver.run_until_idle(10);
    assert_eq!(closed(&record), BTreeMap::from([(2, (vec![], panicked("ouch")))]));
    assert_eq!(reports(&record), [PanicReport { address: 2, message: "ouch".to_owned() }]);
    assert!(mailbox.send(Msg::Seq(0, 1)).is_err_and(|error| !error.is_full()));
    assert!(driver.router().send(2, Msg::Seq(0, 1)).is_err());
    assert_eq!(driver.router().alive(), 2);
    assert_eq!(driver.router().stats().snapshot().panics, 1);
    // The address is free again.
    driver.router().register(2, node(2, 1), batch_system::Priority::Normal).unwrap();
    (1..=3).for_each(|address| driver.router().send(address, Msg::Seq(0, 2)).unwrap());
    driver.run_until_idle(10);
    assert_eq!(record.by_fsm()[&(2, 1)], [(0, 2)]);
    assert_eq!(record.by_fsm()[&(3, 0)], [(0, 0), (0, 2)]);
}

#[test]
fn messages_behind_the_one_that_panicked_are_handed_back_in_order() {
    let record = Record::events();
    // Of the four behind it, two were given to the handler already.
    let mut driver = driver(1, Limits { message_budget: 4, ..Limits::default() }, &record);
    register(driver.router(), [1, 2]);
    driver.router().send(1, Msg::Seq(0, 0)).unwrap();
    driver.router().send(1, Msg::Panic("ouch")).unwrap();
    (1..5).for_each(|number| driver.router().send(1, Msg::Seq(0, number)).unwrap());
    driver.router().send(2, Msg::Seq(0, 9)).unwrap();
    driver.run_until_idle(10);
    let left = vec![(0, 1), (0, 2), (0, 3), (0, 4)];
    assert_eq!(closed(&record), BTreeMap::from([(1, (left, panicked("ouch")))]));
    assert_eq!(record.by_fsm()[&(2, 0)], [(0, 9)]);
}

#[test]
fn panic_in_end_quarantines_the_batch_and_nothing_else() {
    let record = Record::events();
    let mut driver = driver(2, Limits::default(), &record);
    let (at_0, at_1) = (addresses_of(0, 2, 0, 4), addresses_of(1, 2, 0, 1)[0]);
    register(driver.router(), at_0.clone());
    register(driver.router(), [at_1]);
    driver.router().send(at_0[1], Msg::PanicInEnd("end")).unwrap();
    for address in [at_0[0], at_0[2], at_1] {
        driver.router().send(address, Msg::Seq(0, 0)).unwrap();
    }
    driver.run_until_idle(10);
    let closed: Vec<_> = closed(&record).into_iter().collect();
    let expected: Vec<_> =
        at_0[..3].iter().map(|address| (*address, (vec![], panicked("end")))).collect();
    assert_eq!(closed, expected);
    assert_eq!(reports(&record).len(), 3);
    assert_eq!(driver.router().alive(), 2);
    assert_eq!(driver.router().stats().snapshot().panics, 3);
}

#[test]
fn panic_in_control_ends_the_control_fsm_and_the_pool_goes_on() {
    let record = Record::events();
    let mut driver = driver(1, Limits::default(), &record);
    register(driver.router(), [1]);
    driver.router().send_control(ControlMsg::Panic).unwrap();
    driver.router().send_control(ControlMsg::Seq(0)).unwrap();
    driver.router().send(1, Msg::Seq(0, 0)).unwrap();
    driver.run_until_idle(10);
    let ends = record.find(|event| match event {
        Event::ControlClosed { unhandled, reason } => Some((*unhandled, reason.clone())),
        _ => None,
    });
    assert_eq!(ends, [(1, panicked("control told to"))]);
    assert!(driver.router().send_control(ControlMsg::Seq(1)).is_err());
    assert_eq!(record.by_fsm()[&(1, 0)], [(0, 0)]);
    assert_eq!(driver.router().stats().snapshot().panics, 1);
    driver.shutdown();
    assert_eq!(closed(&record)[&1].1, CloseReason::Shutdown);
}

#[test]
fn pool_without_any_fsm_left_goes_on_after_its_control_fsm_panicked() {
    let record = Record::events();
    let pool = pool("panic-empty", 2, Limits::default(), &record);
    pool.router().send_control(ControlMsg::Panic).unwrap();
    eventually("control has ended", || pool.router().send_control(ControlMsg::Seq(0)).is_err());
    eventually("its end is noted", || !record.lock().is_empty());
    eventually("the pollers sleep", || pool.router().stats().snapshot().sleeps >= 2);
    expect_pollers("panic-empty", 2);
    register(pool.router(), [1]);
    pool.router().send(1, Msg::Seq(0, 0)).unwrap();
    eventually("the FSM runs", || record.handled() == 1);
    pool.shutdown();
    assert_eq!(closed(&record)[&1].1, CloseReason::Shutdown);
    expect_pollers("panic-empty", 0);
}

#[test]
fn pool_whose_fsms_have_all_ended_already_shuts_down() {
    let record = Record::counts();
    let pool = pool("panic-none", 2, Limits::default(), &record);
    pool.router().send_control(ControlMsg::Panic).unwrap();
    eventually("control has ended", || pool.router().send_control(ControlMsg::Seq(0)).is_err());
    pool.shutdown();
    expect_pollers("panic-none", 0);
}

#[test]
fn panic_in_closed_loses_nothing_but_that_fsm() {
    let record = Record::counts();
    let pool = pool("panic-closed", 2, Limits::default(), &record);
    register(pool.router(), 0..20);
    for address in 0..20 {
        pool.router().send(address, Msg::PanicInClosed).unwrap();
    }
    assert!(pool.router().close(3));
    pool.router().send(4, Msg::Panic("twice")).unwrap();
    eventually("both are gone", || record.closed.load(SeqCst) == 2);
    for address in 10..20 {
        pool.router().send(address, Msg::Seq(0, 0)).unwrap();
    }
    pool.shutdown();
    assert_eq!(record.closed.load(SeqCst), 20);
    expect_pollers("panic-closed", 0);
}

#[test]
fn panic_in_the_drop_of_a_message_left_behind_quarantines_that_fsm() {
    let record = Record::counts();
    let pool = pool("panic-drop", 1, Limits::default(), &record);
    register(pool.router(), [1, 2]);
    {
        let mut outbox = pool.router().outbox();
        outbox.send(1, Msg::LeaveTheRest).unwrap();
        outbox.send(1, Msg::PanicInDrop(PanicInDrop)).unwrap();
    }
    eventually("it is gone", || record.closed.load(SeqCst) == 1);
    pool.router().send(2, Msg::Seq(0, 0)).unwrap();
    eventually("the poller lives", || record.handled() == 2);
    pool.shutdown();
    assert_eq!(record.closed.load(SeqCst), 2);
}

#[test]
fn panic_in_begin_or_in_the_report_does_not_end_the_poller() {
    let record = Record::counts();
    let pool = pool("panic-begin", 1, Limits::default(), &record);
    register(pool.router(), [1, 2]);
    record.panic_in_begin.store(true, SeqCst);
    pool.router().send(1, Msg::Seq(0, 0)).unwrap();
    eventually("the FSM ran all the same", || record.handled() == 1);
    record.panic_in_report.store(true, SeqCst);
    pool.router().send(1, Msg::Panic("ouch")).unwrap();
    eventually("it is gone", || record.closed.load(SeqCst) == 1);
    pool.router().send(2, Msg::Seq(0, 0)).unwrap();
    eventually("the poller lives", || record.handled() == 3);
    assert!(!record.panic_in_report.load(SeqCst));
    pool.shutdown();
}

#[test]
fn panic_in_the_closure_of_a_broadcast_ends_that_broadcast_alone() {
    let record = Record::counts();
    let pool = pool("panic-broadcast", 1, Limits::default(), &record);
    register(pool.router(), 0..10);
    pool.router().broadcast(|_| panic!("no message"));
    pool.router().broadcast(|_| Msg::Seq(0, 0));
    eventually("the next one is heard by all", || record.handled() == 10);
    assert_eq!(pool.router().stats().snapshot().panics, 1);
    pool.shutdown();
}

#[test]
fn pool_under_load_survives_many_panics_with_every_message_accounted_for() {
    let record = Record::counts();
    let pool = pool("panic-load", 2, Limits::default(), &record);
    let mut accepted = 0_u64;
    for number in 0..20_000 {
        let to = number % 100;
        if number % 7 == 0 {
            let _ = pool.router().register(to, node(to, number), batch_system::Priority::Normal);
        }
        let message = if number % 50 == 3 { Msg::Panic("load") } else { Msg::Seq(0, number) };
        accepted += u64::from(pool.router().force_send(to, message).is_ok());
    }
    eventually("some have panicked", || pool.router().stats().snapshot().panics > 0);
    pool.shutdown();
    assert_eq!(record.accounted(), accepted);
}
