//! Messages of one sender to one FSM arrive in order, each exactly once, whatever the schedule.
#![cfg(not(any(feature = "loom", feature = "shuttle")))]

mod common;

use batch_system::{CloseReason, Limits, Priority};
use common::{driver, for_seeds, node, pool, register, Event, Msg, Random, Record, TestDriver};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

const ADDRESSES: u64 = 6;

/// What a random schedule has done so far, to compare with what the pool made of it.
#[derive(Default)]
struct Expected {
    /// Accepted messages of each FSM, in order.
    accepted: BTreeMap<(u64, u64), Vec<(u32, u64)>>,
    registered: BTreeMap<u64, u64>,
    next_generation: u64,
    next_number: u64,
}

impl Expected {
    fn send(
        &mut self,
        random: &mut Random,
        send: impl FnOnce(u64, Msg) -> Result<(), batch_system::SendError<Msg>>,
    ) {
        let (sender, address) = (random.below(3) as u32, random.below(ADDRESSES));
        let seq = (sender, self.next_number);
        self.next_number += 1;
        match (send(address, Msg::Seq(seq.0, seq.1)), self.registered.get(&address)) {
            (Ok(()), Some(generation)) => {
                self.accepted.entry((address, *generation)).or_default().push(seq);
            }
            (Ok(()), None) => panic!("accepted by nobody at {address}"),
            (Err(error), registered) => {
                assert_eq!(error.is_full(), registered.is_some(), "{error:?}");
                assert_eq!(error.into_message().seq(), Some(seq), "another message came back");
            }
        }
    }
}

/// One FSM is in one place: never scheduled twice.
fn check_one_owner(driver: &TestDriver) {
    let mut scheduled: Vec<_> =
        (0..driver.pollers()).flat_map(|poller| driver.scheduled(poller)).collect();
    // An address may be there once more for each closed FSM that waits for its end; those are few.
    scheduled.sort_unstable();
    let distinct: BTreeSet<_> = scheduled.iter().collect();
    let leaked = driver.router().leaked();
    assert!(scheduled.len() <= distinct.len() + leaked, "{scheduled:?}, {leaked} leaked");
}

fn one_random_schedule(random: &mut Random) {
    let limits = Limits {
        max_pollers: 3,
        batch_size: 1 + random.below(4) as usize,
        message_budget: 1 + random.below(3) as usize,
        mailbox_capacity: 8,
        forced_capacity: 12,
    };
    let record = Record::events();
    let mut driver = driver(1 + random.below(3) as usize, limits, &record);
    let mut expected = Expected::default();
    let mut outbox = Some(driver.router().outbox());
    for _ in 0..300 {
        let poller = random.below(driver.pollers() as u64) as usize;
        match random.below(16) {
            0..=4 => {
                let router = driver.router().clone();
                expected.send(random, |to, message| router.send(to, message));
            }
            5 => {
                let router = driver.router().clone();
                expected.send(random, |to, message| router.force_send(to, message));
            }
            6..=8 => {
                let outbox = outbox.as_mut().expect("kept");
                expected.send(random, |to, message| outbox.send(to, message));
            }
            9 => outbox.as_mut().expect("kept").flush(),
            10 => {
                let address = random.below(ADDRESSES);
                let priority = if random.below(2) == 0 { Priority::High } else { Priority::Normal };
                expected.next_generation += 1;
                let generation = expected.next_generation;
                let fsm = node(address, generation);
                let done = driver.router().register(address, fsm, priority).is_ok();
                assert_eq!(done, !expected.registered.contains_key(&address));
                if done {
                    expected.registered.insert(address, generation);
                }
            }
            11 => {
                let address = random.below(ADDRESSES);
                let closed = driver.router().close(address);
                assert_eq!(closed, expected.registered.remove(&address).is_some());
            }
            12 => drop(driver.run_one(poller, random.below(ADDRESSES))),
            13 => drop(driver.steal(poller)),
            _ => drop(driver.run_round(poller)),
        }
        check_one_owner(&driver);
        assert_eq!(driver.router().alive(), expected.registered.len());
    }
    if random.below(2) == 0 {
        outbox.as_mut().expect("kept").flush();
        driver.run_until_idle(usize::MAX);
        // No lost wake-up: whoever is registered has handled all it got.
        let now = record.by_fsm();
        for (address, generation) in &expected.registered {
            let fsm = (*address, *generation);
            assert_eq!(now.get(&fsm), expected.accepted.get(&fsm), "FSM {fsm:?} at rest");
        }
    }
    drop(outbox.take());
    driver.shutdown();
    expected.accepted.retain(|_, messages| !messages.is_empty());
    assert_eq!(record.by_fsm(), expected.accepted);
    assert_eq!(driver.router().alive(), 0);
    assert_eq!(driver.router().leaked(), 0);
}

#[test]
fn every_accepted_message_is_handled_or_handed_back_in_order_under_random_schedules() {
    for_seeds(400, one_random_schedule);
}

#[test]
fn budget_splits_a_queue_without_reordering_it() {
    let record = Record::events();
    let limits = Limits { message_budget: 3, ..Limits::default() };
    let mut driver = driver(1, limits, &record);
    register(driver.router(), [1]);
    (0..10).for_each(|number| driver.router().send(1, Msg::Seq(0, number)).unwrap());
    assert_eq!(driver.run_until_idle(100), 4);
    let expected: Vec<_> = (0..10).map(|number| (0, number)).collect();
    assert_eq!(record.by_fsm()[&(1, 0)], expected);
}

#[test]
fn messages_left_by_a_handler_are_dropped_and_not_given_to_the_next_fsm() {
    let record = Record::events();
    let mut driver = driver(1, Limits::default(), &record);
    register(driver.router(), [1, 2]);
    driver.router().send(1, Msg::LeaveTheRest).unwrap();
    driver.router().send(1, Msg::Seq(0, 1)).unwrap();
    driver.router().send(2, Msg::Seq(0, 2)).unwrap();
    driver.run_until_idle(100);
    assert_eq!(record.by_fsm(), BTreeMap::from([((2, 0), vec![(0, 2)])]));
}

#[test]
fn messages_sent_through_an_outbox_enter_the_mailbox_at_once_and_wake_on_flush() {
    let record = Record::events();
    let mut driver = driver(1, Limits::default(), &record);
    register(driver.router(), [1]);
    let mut outbox = driver.router().outbox();
    outbox.send(1, Msg::Seq(0, 0)).unwrap();
    driver.router().send(1, Msg::Seq(1, 1)).unwrap();
    assert!(driver.is_idle(), "the claim is in the outbox");
    outbox.flush();
    driver.run_until_idle(100);
    assert_eq!(record.by_fsm()[&(1, 0)], [(0, 0), (1, 1)]);
}

#[test]
fn threads_keep_the_order_of_each_sender() {
    const SENDERS: u32 = 4;
    const NODES: u64 = 50;
    const EACH: u64 = 5_000;
    let record = Record::events();
    let pool = pool("ordering", 3, Limits { message_budget: 7, ..Limits::default() }, &record);
    register(pool.router(), 0..NODES);
    std::thread::scope(|scope| {
        for sender in 0..SENDERS {
            let router = pool.router().clone();
            scope.spawn(move || {
                let mut outbox = router.outbox();
                for number in 0..EACH {
                    let to = number % NODES;
                    // By turns, because the two ways must not overtake each other.
                    if number % 3 == 0 {
                        router.force_send(to, Msg::Seq(sender, number)).unwrap();
                    } else {
                        outbox.force_send(to, Msg::Seq(sender, number)).unwrap();
                    }
                }
            });
        }
    });
    pool.shutdown();
    let mut count = 0;
    for ((address, _), messages) in record.by_fsm() {
        let mut last = [None; SENDERS as usize];
        for (sender, number) in messages {
            let last = &mut last[sender as usize];
            assert!(*last < Some(number), "{last:?} before {number} at FSM {address}");
            *last = Some(number);
            count += 1;
        }
    }
    assert_eq!(count, u64::from(SENDERS) * EACH);
}

#[test]
fn all_fsms_of_a_batch_are_claimed_until_end_has_returned() {
    let record = Record::events();
    let mut driver = driver(1, Limits::default(), &record);
    register(driver.router(), 1..=3);
    (1..=3).for_each(|address| driver.router().send(address, Msg::Seq(0, 0)).unwrap());
    assert_eq!(driver.run_round(0), 3);
    let ends = record.find(|event| match event {
        Event::End { batch } => Some(batch.clone()),
        _ => None,
    });
    assert_eq!(ends, [vec![1, 2, 3]]);
}

#[test]
fn fsm_that_closes_itself_is_in_the_batch_once_more_and_then_ends() {
    let record = Record::events();
    let mut driver = driver(1, Limits::default(), &record);
    register(driver.router(), [1]);
    for message in [Msg::Seq(0, 0), Msg::Close(1), Msg::Seq(0, 1)] {
        driver.router().send(1, message).unwrap();
    }
    driver.run_until_idle(100);
    let kinds = record.find(|event| match event {
        Event::Handled { seq, .. } => Some(format!("handled {}", seq.1)),
        Event::End { batch } => Some(format!("end {batch:?}")),
        Event::Closed { reason, .. } => Some(format!("closed {reason:?}")),
        _ => None,
    });
    let closed = format!("closed {:?}", CloseReason::Requested);
    assert_eq!(kinds, ["handled 0", "handled 1", "end [1]", &closed]);
    assert_eq!(Arc::strong_count(&record), 2, "the record and the handler");
}
