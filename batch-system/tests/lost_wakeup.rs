//! After an accepted message its FSM runs, also when the message comes just as the poller falls asleep.
#![cfg(not(any(feature = "loom", feature = "shuttle")))]

mod common;

use batch_system::Limits;
use common::{
    addresses_of, eventually, pool, register, ControlMsg, Event, Gate, Msg, Record, DEADLINE,
};
use std::sync::atomic::Ordering::SeqCst;
use std::time::Instant;

#[test]
fn poller_that_falls_asleep_hears_of_every_message() {
    let record = Record::counts();
    let pool = pool("wakeup", 2, Limits::default(), &record);
    register(pool.router(), 0..10);
    // Each message is awaited, so that the pollers fall asleep before nearly every send.
    for round in 0..5_000 {
        if round % 100 == 0 {
            // Where the cores are busy the wait below is too short for that.
            let sleeps = || pool.router().stats().snapshot().sleeps;
            let before = sleeps();
            pool.router().send(0, Msg::LeaveTheRest).unwrap();
            eventually("a poller sleeps", || sleeps() > before);
            eventually("the message was handled", || record.handled() == round + round / 100 + 1);
        }
        pool.router().send(round % 10, Msg::Seq(0, round)).unwrap();
        let start = Instant::now();
        while record.handled() <= round + round / 100 + 1 {
            assert!(start.elapsed() < DEADLINE, "message {round} woke nobody");
            std::thread::yield_now();
        }
    }
}

#[test]
fn control_fsm_hears_of_every_message() {
    let record = Record::counts();
    let pool = pool("wakeup-control", 2, Limits::default(), &record);
    for round in 0..2_000 {
        pool.router().send_control(ControlMsg::Seq(round)).unwrap();
        let start = Instant::now();
        while record.control.load(SeqCst) <= round {
            assert!(start.elapsed() < DEADLINE, "message {round} woke nobody");
            std::thread::yield_now();
        }
    }
}

#[test]
fn chain_of_sends_between_fsms_on_two_pollers_never_breaks() {
    const STEPS: u64 = 2_000;
    let record = Record::counts();
    let pool = pool("chain", 2, Limits::default(), &record);
    let (here, there) = (addresses_of(0, 2, 0, 1)[0], addresses_of(1, 2, 0, 1)[0]);
    register(pool.router(), [here, there]);
    let mut message = Msg::Seq(0, 0);
    for step in 0..STEPS {
        message = Msg::Send(if step % 2 == 0 { here } else { there }, Box::new(message));
    }
    pool.router().send(here, message).unwrap();
    eventually("the chain comes to its end", || record.handled() == STEPS + 1);
}

#[test]
fn broadcast_wakes_an_idle_pool_of_one() {
    let record = Record::counts();
    let pool = pool("broadcast-idle", 1, Limits::default(), &record);
    register(pool.router(), 0..10);
    for round in 1..=200 {
        pool.router().broadcast(move |_| Msg::Seq(0, round));
        eventually("all ten got it", || record.handled() == 10 * round);
    }
}

#[test]
fn control_fsm_is_served_while_its_poller_is_blocked() {
    let record = Record::counts();
    let pool = pool("control-blocked", 2, Limits::default(), &record);
    let (gate, blocked) = (Gate::new(), addresses_of(0, 2, 0, 1)[0]);
    register(pool.router(), [blocked]);
    for round in 0..20 {
        let gate = if round == 0 { gate.clone() } else { Gate::new() };
        pool.router().send(blocked, Msg::Pass(gate.clone())).unwrap();
        eventually("the handler blocks", || gate.arrived() == 1);
        pool.router().send_control(ControlMsg::Seq(round)).unwrap();
        eventually("control is served", || record.control.load(SeqCst) == round + 1);
        gate.open();
        eventually("the handler goes on", || record.handled() == round + 1);
    }
}

#[test]
fn broadcast_goes_on_while_poller_0_is_blocked() {
    const OTHERS: u64 = 1_000;
    let record = Record::events();
    let pool = pool("broadcast-blocked", 2, Limits::default(), &record);
    let blocked = addresses_of(0, 2, 0, 1)[0];
    register(pool.router(), [blocked]);
    register(pool.router(), 1_000..1_000 + OTHERS);
    let gate = loop {
        let gate = Gate::new();
        pool.router().send(blocked, Msg::Pass(gate.clone())).unwrap();
        eventually("a handler blocks", || gate.arrived() == 1);
        let last = record.find(|event| match event {
            Event::Ran { poller, .. } => Some(*poller),
            _ => None,
        });
        if last.last() == Some(&0) {
            break gate;
        }
        // Poller 1 had taken it over.
        gate.open();
    };
    let before = record.handled();
    pool.router().broadcast(|_| Msg::Seq(0, 0));
    eventually("all but the blocked one got it", || record.handled() == before + OTHERS);
    gate.open();
    eventually("the blocked one gets it at last", || record.handled() == before + OTHERS + 1);
}

#[test]
fn fresh_claim_behind_a_blocking_control_fsm_is_taken_over() {
    let record = Record::counts();
    let pool = pool("behind-control", 2, Limits::default(), &record);
    register(pool.router(), 0..40);
    for round in 0..20 {
        let gate = Gate::new();
        {
            let mut outbox = pool.router().outbox();
            pool.router().send_control(ControlMsg::Pass(gate.clone())).unwrap();
            (0..40).for_each(|address| outbox.send(address, Msg::Seq(0, 0)).unwrap());
        }
        eventually("control blocks", || gate.arrived() == 1);
        eventually("all others are served", || record.handled() == 40 * (round + 1));
        gate.open();
    }
}
