//! Who waits for whom: hot FSMs give way, blocked pollers are helped, no priority starves another.
#![cfg(not(any(feature = "loom", feature = "shuttle")))]

mod common;

use batch_system::{Limits, Priority};
use common::{
    addresses_of, driver, eventually, for_seeds, node, pool, register, ControlMsg, Event, Gate,
    Msg, Record,
};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

fn limits(batch_size: usize, message_budget: usize) -> Limits {
    Limits { batch_size, message_budget, ..Limits::default() }
}

#[test]
fn hot_fsm_gives_way_to_fresh_ones() {
    let record = Record::events();
    let mut driver = driver(1, limits(64, 2), &record);
    register(driver.router(), 0..=10);
    (0..20).for_each(|number| driver.router().send(0, Msg::Seq(0, number)).unwrap());
    assert_eq!(driver.run_round(0), 1);
    (1..=10).for_each(|address| driver.router().send(address, Msg::Seq(0, 0)).unwrap());
    record.take_ran();
    driver.run_round(0);
    assert_eq!(record.take_ran(), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 0]);
}

#[test]
fn hot_fsm_gets_a_place_in_every_round_however_many_are_fresh() {
    for batch_size in [1, 2, 3, 8] {
        for with_control in [false, true] {
            let record = Record::events();
            let mut driver = driver(1, limits(batch_size, 1), &record);
            register(driver.router(), 0..=100);
            (0..4_000).for_each(|number| driver.router().send(0, Msg::Seq(0, number)).unwrap());
            driver.run_until_idle(1);
            record.take_ran();
            let mut fresh = (1..=100).cycle();
            for _ in 0..20 {
                // As many fresh ones as would fill each round.
                for address in fresh.by_ref().take(2 * batch_size) {
                    driver.router().send(address, Msg::Seq(0, 0)).unwrap();
                }
                if with_control {
                    driver.router().send_control(ControlMsg::Seq(0)).unwrap();
                }
                driver.run_round(0);
                driver.run_round(0);
            }
            let ran = record.take_ran();
            let hot = ran.iter().filter(|address| **address == 0).count();
            assert!(hot >= 15, "the hot FSM ran {hot} times in 40 rounds of {batch_size}");
            assert!(ran.len() - hot >= 15, "the fresh ones ran {} times", ran.len() - hot);
        }
    }
}

#[test]
fn rounds_are_as_large_as_was_said_last() {
    let record = Record::counts();
    let mut driver = driver(1, limits(5, 1), &record);
    register(driver.router(), 0..100);
    for (asked, size) in [(5, 5), (12, 12), (0, 1), (3, 3)] {
        driver.router().set_batch_size(asked);
        assert_eq!(driver.router().batch_size(), size);
        (0..40).for_each(|address| driver.router().send(address, Msg::Seq(0, 0)).unwrap());
        assert_eq!((driver.run_round(0), driver.run_round(0)), (size, size));
        driver.run_until_idle(100);
    }
}

#[test]
fn newly_ready_fsm_runs_before_the_next_of_many_hot_ones() {
    let record = Record::events();
    let mut driver = driver(1, limits(64, 1), &record);
    register(driver.router(), 0..10);
    register(driver.router(), [100]);
    for address in 0..10 {
        driver.router().send(address, Msg::Seq(0, 0)).unwrap();
        driver.router().send(address, Msg::SendNow(100, Box::new(Msg::Seq(1, address)))).unwrap();
    }
    driver.run_round(0);
    assert_eq!(driver.scheduled(0), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9], "all hot");
    record.take_ran();
    driver.run_round(0);
    // Each send but the first finds 100 claimed by this round, so it runs once, right after the first.
    assert_eq!(record.take_ran(), [0, 100, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
}

#[test]
fn every_one_of_many_hot_fsms_advances_at_the_same_pace() {
    let record = Record::events();
    let mut driver = driver(2, limits(16, 4), &record);
    register(driver.router(), 0..200);
    for address in 0..200 {
        (0..400).for_each(|number| driver.router().send(address, Msg::Seq(0, number)).unwrap());
    }
    for round in 0..500 {
        driver.run_round(round % 2);
    }
    let mut runs: BTreeMap<u64, u32> = (0..200).map(|address| (address, 0)).collect();
    record.take_ran().iter().for_each(|address| *runs.get_mut(address).unwrap() += 1);
    for poller in 0..2 {
        let mut runs = addresses_of(poller, 2, 0, 200).into_iter().filter_map(|a| runs.get(&a));
        let first = runs.next().unwrap();
        let (min, max) = runs.fold((first, first), |(min, max), n| (min.min(n), max.max(n)));
        // One more because a round full of fresh ones still runs a hot one.
        assert!(max - min <= 2, "between {min} and {max} runs on poller {poller}");
        assert!(*min > 0);
    }
}

#[test]
fn normal_priority_is_not_starved_by_high() {
    let record = Record::events();
    let mut driver = driver(1, limits(10, 1), &record);
    for address in 0..100 {
        driver.router().register(address, node(address, 0), Priority::High).unwrap();
    }
    register(driver.router(), 1_000..1_010);
    for round in 0..20 {
        for address in 0..100 {
            driver.router().send(address, Msg::Seq(0, round)).unwrap();
        }
        if round == 0 {
            (1_000..1_010).for_each(|to| driver.router().send(to, Msg::Seq(0, 0)).unwrap());
        }
        driver.run_round(0);
    }
    let ran = record.take_ran();
    let normal: Vec<_> = ran.iter().filter(|address| **address >= 1_000).collect();
    assert_eq!(normal.len(), 10, "of 200 runs");
    let first = ran.iter().position(|address| *address >= 1_000);
    assert!(first <= Some(8), "the first normal one ran at {first:?}");
}

#[test]
fn high_priority_runs_before_normal() {
    let record = Record::events();
    let mut driver = driver(1, Limits::default(), &record);
    register(driver.router(), [1, 2]);
    driver.router().register(3, node(3, 0), Priority::High).unwrap();
    (1..=3).for_each(|address| driver.router().send(address, Msg::Seq(0, 0)).unwrap());
    assert_eq!(driver.scheduled(0), [1, 2, 3], "in the inbox still");
    driver.run_round(0);
    assert_eq!(record.take_ran(), [3, 1, 2]);
}

#[test]
fn control_fsm_runs_first_in_the_round() {
    let record = Record::events();
    let mut driver = driver(1, limits(4, 1), &record);
    register(driver.router(), 0..10);
    (0..10).for_each(|address| driver.router().send(address, Msg::Seq(0, 0)).unwrap());
    driver.router().send_control(ControlMsg::Seq(7)).unwrap();
    assert_eq!(driver.run_round(0), 4);
    let first = record.lock()[1].clone();
    assert_eq!(first, Event::Control { poller: 0, seq: 7 });
}

#[test]
fn control_message_sent_in_a_round_is_still_seen_as_scheduled_after_it() {
    let record = Record::events();
    let mut driver = driver(1, limits(4, 1), &record);
    register(driver.router(), [1]);
    // Budget 1: the second message is handled by a hot FSM, after which the inbox is looked at.
    for message in [Msg::Seq(0, 0), Msg::TellControl(5), Msg::Seq(0, 1)] {
        driver.router().send(1, message).unwrap();
    }
    driver.run_round(0);
    driver.run_round(0);
    assert!(driver.control_scheduled());
    assert!(driver.run_control());
    assert_eq!(record.control.load(std::sync::atomic::Ordering::SeqCst), 1);
}

#[test]
fn homes_are_as_computed() {
    let record = Record::counts();
    for pollers in 1..5 {
        let driver = driver(pollers, Limits::default(), &record);
        for poller in 0..pollers {
            let expected = addresses_of(poller as u64, pollers as u64, 0, 20);
            register(driver.router(), expected.clone());
            for address in &expected {
                driver.router().send(*address, Msg::Seq(0, 0)).unwrap();
            }
            assert_eq!(driver.scheduled(poller), expected);
        }
    }
}

#[test]
fn poller_with_nothing_to_do_takes_over_the_later_half() {
    let record = Record::counts();
    let mut driver = driver(2, Limits::default(), &record);
    let at_0 = addresses_of(0, 2, 0, 5);
    register(driver.router(), at_0.clone());
    at_0.iter().for_each(|address| driver.router().send(*address, Msg::Seq(0, 0)).unwrap());
    assert_eq!(driver.steal(1), 3);
    assert_eq!((driver.scheduled(0), driver.scheduled(1)), (at_0[..2].into(), at_0[2..].into()));
    assert_eq!(driver.steal(1), 1);
    assert_eq!(driver.steal(1), 1);
    assert_eq!(driver.steal(1), 0);
}

#[test]
fn fsms_homed_at_a_blocked_poller_are_served_by_the_others() {
    let record = Record::counts();
    let pool = pool("fair-blocked", 2, Limits::default(), &record);
    let at_0 = addresses_of(0, 2, 0, 31);
    register(pool.router(), at_0.clone());
    for round in 0..20 {
        let (gate, before) = (Gate::new(), record.handled());
        pool.router().send(at_0[0], Msg::Pass(gate.clone())).unwrap();
        eventually("the handler blocks", || gate.arrived() == 1);
        for address in &at_0[1..] {
            pool.router().send(*address, Msg::Seq(0, round)).unwrap();
        }
        eventually("the others ran", || record.handled() == before + 31);
        gate.open();
    }
}

#[test]
fn fsms_that_came_in_one_batch_with_a_blocking_one_are_served_by_the_others() {
    let record = Record::counts();
    let pool = pool("fair-batch", 2, Limits::default(), &record);
    let at_0 = addresses_of(0, 2, 0, 31);
    register(pool.router(), at_0.clone());
    for round in 0..20 {
        let (gate, before) = (Gate::new(), record.handled());
        {
            let mut outbox = pool.router().outbox();
            outbox.send(at_0[0], Msg::Pass(gate.clone())).unwrap();
            for address in &at_0[1..] {
                outbox.send(*address, Msg::Seq(0, round)).unwrap();
            }
        }
        eventually("the others ran", || record.handled() == before + 31);
        assert_eq!(gate.arrived(), 1);
        gate.open();
    }
}

#[test]
fn all_but_one_poller_may_block() {
    let record = Record::counts();
    let pool = pool("fair-most", 4, Limits::default(), &record);
    register(pool.router(), 0..100);
    let gate = Gate::new();
    for address in 0..3 {
        pool.router().send(address, Msg::Pass(gate.clone())).unwrap();
        eventually("the handler blocks", || gate.arrived() == address as usize + 1);
    }
    for address in 3..100 {
        pool.router().send(address, Msg::Seq(0, 0)).unwrap();
    }
    eventually("the last poller serves all", || record.handled() == 100);
    gate.open();
}

#[test]
fn waited_is_not_counted_from_a_claim_that_was_taken_over() {
    let record = Record::events();
    let mut driver = driver(2, Limits::default(), &record);
    let at_0 = addresses_of(0, 2, 0, 1)[0];
    register(driver.router(), [at_0]);
    let old = Instant::now();
    driver.router().send(at_0, Msg::Seq(0, 0)).unwrap();
    assert_eq!(driver.steal(1), 1);
    driver.run_round(1);
    eventually("time passes", || old.elapsed() > Duration::from_millis(50));
    let before = Instant::now();
    driver.router().send(at_0, Msg::Seq(0, 1)).unwrap();
    driver.run_round(0);
    let at_most = before.elapsed();
    let waited = record.find(|event| match event {
        Event::Begin { poller: 0, waited } => Some(*waited),
        _ => None,
    });
    assert_eq!(waited.len(), 1);
    assert!(waited[0].is_some_and(|waited| waited <= at_most), "{waited:?} of {at_most:?}");
}

#[test]
fn nobody_waits_for_ever_under_random_load() {
    for_seeds(50, |random| {
        let record = Record::events();
        let batch_size = 1 + random.below(6) as usize;
        let mut driver = driver(2, limits(batch_size, 1), &record);
        for address in 0..30 {
            let priority = if random.below(2) == 0 { Priority::High } else { Priority::Normal };
            driver.router().register(address, node(address, 0), priority).unwrap();
        }
        let patience = 30 * 10 + 50;
        let mut waiting_since = BTreeMap::new();
        for step in 0..2_000_u64 {
            for _ in 0..=batch_size {
                let to = random.below(30);
                if driver.router().send(to, Msg::Seq(0, step)).is_ok() {
                    waiting_since.entry(to).or_insert(step);
                }
            }
            driver.run_round(random.below(2) as usize);
            for address in record.take_ran() {
                waiting_since.remove(&address);
                if !driver.router().mailbox(address).unwrap().is_empty() {
                    waiting_since.insert(address, step);
                }
            }
            for (address, since) in &waiting_since {
                assert!(step - since < patience, "FSM {address} waits since step {since}");
            }
        }
    });
}
