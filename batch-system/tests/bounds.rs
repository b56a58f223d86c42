//! Every mailbox has a bound, and beyond it the sender gets its message back.
#![cfg(not(any(feature = "loom", feature = "shuttle")))]

mod common;

use batch_system::{Limits, SendError};
use common::{driver, node, pool, register, ControlMsg, Msg, Record};

fn limits() -> Limits {
    Limits { mailbox_capacity: 3, forced_capacity: 5, ..Limits::default() }
}

#[test]
fn full_mailbox_gives_the_message_back() {
    let record = Record::events();
    let mut driver = driver(1, limits(), &record);
    register(driver.router(), [1]);
    let mailbox = driver.router().mailbox(1).unwrap();
    (0..3).for_each(|number| driver.router().send(1, Msg::Seq(0, number)).unwrap());
    let Err(SendError::Full(back)) = driver.router().send(1, Msg::Seq(0, 77)) else {
        panic!("accepted")
    };
    assert_eq!(back.seq(), Some((0, 77)));
    assert!(driver.router().outbox().send(1, Msg::Seq(0, 78)).is_err_and(|e| e.is_full()));
    assert!(mailbox.send(Msg::Seq(0, 79)).is_err_and(|e| e.is_full()));
    let mut outbox = driver.router().outbox();
    assert!(outbox.send_to(&mailbox, Msg::Seq(0, 80)).is_err_and(|e| e.is_full()));
    assert_eq!(driver.router().stats().snapshot().refused, 4);
    assert_eq!(mailbox.len(), 3);
    driver.run_until_idle(10);
    assert!(mailbox.is_empty());
    mailbox.send(Msg::Seq(0, 3)).unwrap();
    driver.run_until_idle(10);
    assert_eq!(record.by_fsm()[&(1, 0)], [(0, 0), (0, 1), (0, 2), (0, 3)]);
}

#[test]
fn forced_send_goes_up_to_the_forced_capacity_and_is_counted() {
    let record = Record::events();
    let mut driver = driver(1, limits(), &record);
    register(driver.router(), [1]);
    (0..3).for_each(|number| driver.router().send(1, Msg::Seq(0, number)).unwrap());
    driver.router().force_send(1, Msg::Seq(0, 3)).unwrap();
    driver.router().outbox().force_send(1, Msg::Seq(0, 4)).unwrap();
    let Err(SendError::Full(back)) = driver.router().force_send(1, Msg::Seq(0, 5)) else {
        panic!("accepted")
    };
    assert_eq!(back.seq(), Some((0, 5)));
    let stats = driver.router().stats().snapshot();
    assert_eq!((stats.forced, stats.refused), (3, 1));
    driver.run_until_idle(10);
    assert_eq!(record.by_fsm()[&(1, 0)].len(), 5);
}

#[test]
fn control_mailbox_has_the_same_bounds() {
    let record = Record::counts();
    let mut driver = driver(1, limits(), &record);
    let router = driver.router().clone();
    (0..3).for_each(|number| router.send_control(ControlMsg::Seq(number)).unwrap());
    let Err(SendError::Full(ControlMsg::Seq(9))) = router.send_control(ControlMsg::Seq(9)) else {
        panic!("accepted, or another message came back")
    };
    (3..5).for_each(|number| router.force_send_control(ControlMsg::Seq(number)).unwrap());
    assert!(router.force_send_control(ControlMsg::Seq(5)).is_err_and(|error| error.is_full()));
    let stats = router.stats().snapshot();
    assert_eq!((stats.forced, stats.refused), (3, 2));
    driver.run_until_idle(10);
    router.send_control(ControlMsg::Seq(6)).unwrap();
}

#[test]
fn closed_is_told_from_full() {
    let record = Record::counts();
    let driver = driver(1, limits(), &record);
    register(driver.router(), [1]);
    let mailbox = driver.router().mailbox(1).unwrap();
    (0..3).for_each(|number| mailbox.send(Msg::Seq(0, number)).unwrap());
    driver.router().close(1);
    assert!(matches!(mailbox.send(Msg::Seq(0, 0)), Err(SendError::Closed(_))));
    assert!(matches!(driver.router().send(1, Msg::Seq(0, 0)), Err(SendError::Closed(_))));
    assert!(matches!(driver.router().force_send(2, Msg::Seq(0, 0)), Err(SendError::Closed(_))));
    assert_eq!(driver.router().stats().snapshot().refused, 0);
}

#[test]
fn full_mailbox_in_a_pool_loses_and_invents_nothing() {
    let record = Record::counts();
    let pool = pool("bounds", 2, limits(), &record);
    register(pool.router(), 0..4);
    let accepted: u64 = std::thread::scope(|scope| {
        let senders: Vec<_> = (0..3)
            .map(|sender| {
                let router = pool.router().clone();
                scope.spawn(move || {
                    (0..20_000)
                        .filter(|number| router.send(number % 4, Msg::Seq(sender, *number)).is_ok())
                        .count() as u64
                })
            })
            .collect();
        senders.into_iter().map(|sender| sender.join().unwrap()).sum()
    });
    pool.shutdown();
    assert_eq!(record.accounted(), accepted);
    assert_eq!(pool.router().stats().snapshot().refused, 60_000 - accepted);
}

#[test]
fn limits_out_of_range_are_refused() {
    let fine = Limits::default();
    for bad in [
        Limits { max_pollers: 0, ..fine },
        Limits { batch_size: 0, ..fine },
        Limits { message_budget: 0, ..fine },
        Limits { mailbox_capacity: 0, ..fine },
        Limits { mailbox_capacity: 10, forced_capacity: 9, ..fine },
    ] {
        let record = Record::counts();
        let made = std::panic::catch_unwind(|| driver(1, bad, &record));
        assert!(made.is_err(), "{bad:?} was accepted");
    }
    drop(node(0, 0));
}
