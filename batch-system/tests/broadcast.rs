//! A message to everybody reaches everybody once and holds nobody up.
#![cfg(not(any(feature = "loom", feature = "shuttle")))]

mod common;

use batch_system::Limits;
use common::{driver, eventually, pool, register, ControlMsg, Msg, Record};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::Arc;

#[test]
fn control_fsm_is_served_in_every_round_of_a_broadcast_to_100_000() {
    const NODES: u64 = 100_000;
    let record = Record::counts();
    let mut driver = driver(1, Limits::default(), &record);
    register(driver.router(), 0..NODES);
    let made = Arc::new(AtomicU64::new(0));
    let count = made.clone();
    driver.router().broadcast(move |_| {
        count.fetch_add(1, SeqCst);
        Msg::Seq(0, 0)
    });
    assert_eq!(made.load(SeqCst), 0, "the call itself sends nothing");
    for round in 0..500 {
        let before = made.load(SeqCst);
        driver.router().send_control(ControlMsg::Seq(round)).unwrap();
        driver.run_round(0);
        assert_eq!(record.control.load(SeqCst), round + 1);
        let sent = made.load(SeqCst) - before;
        assert!((1..=128).contains(&sent), "{sent} in a round");
    }
    driver.run_until_idle(usize::MAX);
    assert_eq!((made.load(SeqCst), record.handled()), (NODES, NODES));
}

#[test]
fn every_fsm_gets_it_once_with_its_own_address() {
    let record = Record::events();
    let mut driver = driver(2, Limits::default(), &record);
    register(driver.router(), 0..1_000);
    driver.router().broadcast(|address| Msg::Seq(0, address));
    driver.run_until_idle(usize::MAX);
    let all = record.by_fsm();
    assert_eq!(all.len(), 1_000);
    for ((address, _), messages) in all {
        assert_eq!(messages, [(0, address)]);
    }
}

#[test]
fn fsms_closed_meanwhile_are_skipped() {
    let record = Record::events();
    let mut driver = driver(1, Limits::default(), &record);
    register(driver.router(), 0..1_000);
    driver.router().broadcast(|address| Msg::Seq(0, address));
    driver.run_round(0);
    let closed: Vec<_> = (0..1_000).filter(|address| driver.router().close(*address)).collect();
    assert_eq!(closed.len(), 1_000);
    driver.run_until_idle(usize::MAX);
    assert!(record.handled() <= 128, "only those of the first slice ran");
    assert!(record.accounted() <= 128, "no closed FSM was sent to");
    assert_eq!(driver.router().leaked(), 0);
}

#[test]
fn full_mailbox_gets_it_too() {
    let record = Record::events();
    let limits = Limits { mailbox_capacity: 2, forced_capacity: 4, ..Limits::default() };
    let mut driver = driver(1, limits, &record);
    register(driver.router(), [1]);
    (0..2).for_each(|number| driver.router().send(1, Msg::Seq(0, number)).unwrap());
    driver.router().broadcast(|_| Msg::Seq(1, 0));
    driver.run_until_idle(10);
    assert_eq!(record.by_fsm()[&(1, 0)], [(0, 0), (0, 1), (1, 0)]);
}

#[test]
fn broadcasts_arrive_in_order_at_every_fsm() {
    const ROUNDS: u64 = 20;
    let record = Record::events();
    let pool = pool("broadcast-order", 4, Limits::default(), &record);
    register(pool.router(), 0..2_000);
    for round in 0..ROUNDS {
        pool.router().broadcast(move |_| Msg::Seq(0, round));
    }
    eventually("all got all", || record.handled() == 2_000 * ROUNDS);
    let expected: Vec<_> = (0..ROUNDS).map(|round| (0, round)).collect();
    for (fsm, messages) in record.by_fsm() {
        assert_eq!(messages, expected, "at {fsm:?}");
    }
}

#[test]
fn pool_serves_control_and_normal_fsms_during_broadcasts_to_100_000() {
    const NODES: u64 = 100_000;
    let record = Record::counts();
    let pool = pool("broadcast-many", 2, Limits::default(), &record);
    register(pool.router(), 0..NODES);
    // On a loaded machine this thread may sleep through a whole broadcast: then there is another.
    let (mut round, mut during) = (0, 0);
    for broadcast in 1..=50 {
        let made = Arc::new(AtomicU64::new(0));
        let count = made.clone();
        pool.router().broadcast(move |_| {
            count.fetch_add(1, SeqCst);
            Msg::Seq(0, 0)
        });
        while made.load(SeqCst) < NODES {
            pool.router().send_control(ControlMsg::Seq(round)).unwrap();
            round += 1;
            eventually("control is served", || record.control.load(SeqCst) == round);
            during += u64::from(made.load(SeqCst) < NODES);
        }
        eventually("all got it", || record.handled() == broadcast * NODES);
        if during > 0 {
            return;
        }
    }
    panic!("the broadcasts held the control FSM up until they were done");
}
