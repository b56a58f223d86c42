//! A delayed message comes at its time, not before, and never to a closed FSM.
#![cfg(not(any(feature = "loom", feature = "shuttle")))]

mod common;

use batch_system::{Limits, TIMER_GRANULARITY};
use common::{driver, eventually, for_seeds, pool, register, ControlMsg, Event, Msg, Record};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

const MS: Duration = Duration::from_millis(1);

#[test]
fn message_comes_at_its_time_and_not_before() {
    let record = Record::counts();
    let mut driver = driver(1, Limits::default(), &record);
    register(driver.router(), [1]);
    driver.router().mailbox(1).unwrap().send_after(100 * MS, Msg::Seq(0, 0));
    for _ in 0..99 {
        driver.advance_time(MS);
        assert!(driver.is_idle(), "early, at {:?}", driver.now());
    }
    driver.advance_time(MS);
    driver.run_until_idle(10);
    assert_eq!(record.handled(), 1);
}

#[test]
fn the_control_fsm_gets_its_timers_too_when_there_is_room() {
    let record = Record::events();
    let limits = Limits { mailbox_capacity: 1, forced_capacity: 1, ..Limits::default() };
    let mut driver = driver(1, limits, &record);
    let controls = |record: &Record| {
        record.find(|event| match event {
            Event::Control { seq, .. } => Some(*seq),
            _ => None,
        })
    };
    driver.router().send_control_after(100 * MS, ControlMsg::Seq(7));
    driver.advance_time(99 * MS);
    driver.run_until_idle(10);
    assert_eq!(controls(&record), [0; 0], "early");
    // Full when it is due: it is tried again.
    driver.router().send_control(ControlMsg::Seq(1)).expect("room");
    driver.advance_time(MS);
    driver.run_until_idle(10);
    assert_eq!(controls(&record), [1]);
    driver.advance_time(2 * TIMER_GRANULARITY);
    driver.run_until_idle(10);
    assert_eq!(controls(&record), [1, 7]);
}

#[test]
fn random_timers_come_within_the_granularity_also_beyond_a_turn_of_the_wheel() {
    for_seeds(20, |random| {
        let record = Record::events();
        let mut driver = driver(1, Limits::default(), &record);
        register(driver.router(), 0..10);
        let mut due = BTreeMap::new();
        let mut next = 0;
        let mut seen = 0;
        // A turn is 1024 slots of 5 ms.
        for step in 0..2_000 {
            if step < 1_000 {
                for _ in 0..random.below(4) {
                    let delay = Duration::from_micros(random.below(20_000_000));
                    let mailbox = driver.router().mailbox(random.below(10)).unwrap();
                    mailbox.send_after(delay, Msg::Seq(0, next));
                    due.insert(next, driver.now() + delay);
                    next += 1;
                }
            }
            // Sometimes a long jump, over more than a turn.
            let step = if random.below(100) == 0 { 8_000_000 } else { random.below(20_000) };
            let before = driver.now();
            driver.advance_time(Duration::from_micros(step));
            driver.run_until_idle(usize::MAX);
            let now = driver.now();
            let events = record.find(|event| match event {
                common::Event::Handled { seq, .. } => Some(seq.1),
                _ => None,
            });
            for number in &events[seen..] {
                let at = due.remove(number).expect("once");
                assert!(at <= now, "{number} was due at {at:?}, came at {now:?}");
                assert!(before < at + TIMER_GRANULARITY, "{number} was due at {at:?}, not {now:?}");
            }
            seen = events.len();
        }
        driver.advance_time(Duration::from_secs(60));
        driver.run_until_idle(usize::MAX);
        assert_eq!(record.handled(), next, "some never came");
    });
}

#[test]
fn timers_of_one_fsm_come_in_the_order_of_their_times() {
    let record = Record::events();
    let mut driver = driver(1, Limits::default(), &record);
    register(driver.router(), [1]);
    let mailbox = driver.router().mailbox(1).unwrap();
    for number in (0..1_000).rev() {
        mailbox.send_after(10 * number * MS, Msg::Seq(0, u64::from(number)));
    }
    driver.advance_time(Duration::from_secs(20));
    driver.run_until_idle(100);
    let expected: Vec<_> = (0..1_000).map(|number| (0, number)).collect();
    assert_eq!(record.by_fsm()[&(1, 0)], expected);
}

#[test]
fn many_timers_at_one_time_all_come() {
    let record = Record::counts();
    let mut driver = driver(2, Limits::default(), &record);
    register(driver.router(), 0..10_000);
    for address in 0..10_000 {
        let mailbox = driver.router().mailbox(address).unwrap();
        (0..3).for_each(|number| mailbox.send_after(50 * MS, Msg::Seq(0, number)));
    }
    driver.advance_time(49 * MS);
    assert!(driver.is_idle());
    driver.advance_time(MS);
    driver.run_until_idle(usize::MAX);
    assert_eq!(record.handled(), 30_000);
}

#[test]
fn closed_fsm_gets_none_and_is_let_go_when_the_time_comes() {
    let record = Record::counts();
    let mut driver = driver(1, Limits::default(), &record);
    register(driver.router(), [1]);
    driver.router().mailbox(1).unwrap().send_after(10 * MS, Msg::Seq(0, 0));
    driver.router().close(1);
    driver.run_until_idle(10);
    register(driver.router(), [1]);
    driver.advance_time(20 * MS);
    driver.run_until_idle(10);
    assert_eq!(record.accounted(), 0);
    assert_eq!(driver.router().leaked(), 0);
}

#[test]
fn full_mailbox_is_tried_again() {
    let record = Record::events();
    let limits = Limits { mailbox_capacity: 1, forced_capacity: 2, ..Limits::default() };
    let mut driver = driver(1, limits, &record);
    register(driver.router(), [1]);
    let mailbox = driver.router().mailbox(1).unwrap();
    mailbox.send_after(10 * MS, Msg::Seq(1, 0));
    driver.router().send(1, Msg::Seq(0, 0)).unwrap();
    driver.router().force_send(1, Msg::Seq(0, 1)).unwrap();
    for _ in 0..10 {
        driver.advance_time(10 * MS);
        assert_eq!(mailbox.len(), 2);
    }
    driver.run_until_idle(10);
    driver.advance_time(2 * TIMER_GRANULARITY);
    driver.run_until_idle(10);
    assert_eq!(record.by_fsm()[&(1, 0)], [(0, 0), (0, 1), (1, 0)]);
}

#[test]
fn timer_of_no_delay_comes_with_the_next_tick() {
    let record = Record::counts();
    let mut driver = driver(1, Limits::default(), &record);
    register(driver.router(), [1]);
    driver.advance_time(1_000 * MS);
    driver.router().mailbox(1).unwrap().send_after(Duration::ZERO, Msg::Seq(0, 0));
    driver.advance_time(TIMER_GRANULARITY);
    driver.run_until_idle(10);
    assert_eq!(record.handled(), 1);
}

#[test]
fn longest_delay_neither_overflows_nor_fires() {
    let record = Record::counts();
    let mut driver = driver(1, Limits::default(), &record);
    register(driver.router(), [1]);
    let mailbox = driver.router().mailbox(1).unwrap();
    mailbox.send_after(Duration::MAX, Msg::Seq(0, 0));
    mailbox.send_after(Duration::from_secs(u64::MAX / 2), Msg::Seq(0, 1));
    for _ in 0..20 {
        driver.advance_time(Duration::from_secs(1));
        assert!(driver.is_idle());
    }
}

#[test]
fn message_whose_drop_sets_a_timer_does_not_block_the_shutdown() {
    struct Again(batch_system::Mailbox<Sleeper, Sleeper>);
    impl Drop for Again {
        fn drop(&mut self) {
            self.0.send_after(MS, None);
        }
    }
    struct Sleeper;
    impl batch_system::Fsm for Sleeper {
        type Message = Option<Again>;
    }
    struct Ignore;
    type Outbox = batch_system::Outbox<Sleeper, Sleeper>;
    impl batch_system::Handler<Sleeper, Sleeper> for Ignore {
        fn control(&mut self, _: &mut Sleeper, _: &mut Vec<Option<Again>>, _: &mut Outbox) {}
        fn normal(&mut self, _: &mut Sleeper, _: &mut Vec<Option<Again>>, _: &mut Outbox) {}
        fn closed(&mut self, _: Box<Sleeper>, _: Vec<Option<Again>>, _: batch_system::CloseReason) {
        }
    }
    let mut driver =
        batch_system::Driver::new(1, Limits::default(), Box::new(Sleeper), |_, _| Ignore);
    let mailbox =
        driver.router().register(1, Box::new(Sleeper), batch_system::Priority::Normal).unwrap();
    mailbox.send_after(Duration::from_secs(1), Some(Again(mailbox.clone())));
    driver.shutdown();
}

#[test]
fn pool_sends_timers_not_before_their_time() {
    let record = Record::counts();
    let pool = pool("timers", 2, Limits::default(), &record);
    register(pool.router(), 0..100);
    let start = Instant::now();
    for address in 0..100 {
        pool.router().mailbox(address).unwrap().send_after(200 * MS, Msg::Seq(0, 0));
    }
    eventually("the first comes", || record.handled() > 0);
    assert!(start.elapsed() >= 200 * MS, "after {:?}", start.elapsed());
    eventually("all come", || record.handled() == 100);
}

#[test]
fn timer_wakes_a_watch_that_sleeps() {
    let record = Record::counts();
    let pool = pool("timers-quiet", 1, Limits::default(), &record);
    register(pool.router(), [1]);
    let mailbox = pool.router().mailbox(1).unwrap();
    // The watch sleeps after half a second without work: far longer, and then a timer.
    let start = Instant::now();
    eventually("a quiet spell", || start.elapsed() > Duration::from_secs(1));
    // A later one first, that the watch sleeps until.
    mailbox.send_after(Duration::from_secs(3_000), Msg::Seq(0, 0));
    for round in 1..=20 {
        mailbox.send_after(round * MS, Msg::Seq(0, 0));
        eventually("the timer fires", || record.handled() == u64::from(round));
    }
    drop(pool);
    assert_eq!(Arc::strong_count(&record), 1);
}
