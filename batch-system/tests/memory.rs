//! Creating and destroying FSMs without end leaves nothing behind.
#![cfg(not(any(feature = "loom", feature = "shuttle")))]

mod common;

use batch_system::{Limits, Priority};
use common::{driver, eventually, node, pool, register, Msg, Record};
use std::sync::atomic::Ordering::SeqCst;

#[test]
fn alive_is_exact_and_leaked_returns_to_zero_over_200_000_fsms() {
    const CYCLES: u64 = 20;
    const EACH: u64 = 10_000;
    let record = Record::counts();
    let pool = pool("memory", 2, Limits::default(), &record);
    for cycle in 0..CYCLES {
        let from = cycle * EACH / 2;
        {
            let mut outbox = pool.router().outbox();
            for address in from..from + EACH {
                let mailbox =
                    pool.router().register(address, node(address, cycle), Priority::Normal);
                if address % 2 == 0 {
                    outbox.send_to(&mailbox.expect("free"), Msg::Seq(0, 0)).unwrap();
                }
            }
        }
        assert_eq!(pool.router().alive(), EACH as usize);
        for address in from..from + EACH {
            // Some end by a panic.
            if address % 100 == 1 {
                pool.router().send(address, Msg::Panic("end")).unwrap();
            } else {
                assert!(pool.router().close(address));
            }
        }
        eventually("none is left", || pool.router().alive() == 0);
        eventually("no mailbox is held on to", || pool.router().leaked() == 0);
        eventually("all ended", || record.closed.load(SeqCst) == (cycle + 1) * EACH);
    }
    assert_eq!(record.accounted(), CYCLES * EACH / 2 + CYCLES * EACH / 100);
}

#[test]
fn handle_on_a_closed_mailbox_counts_as_leaked_until_it_is_dropped() {
    let record = Record::counts();
    let mut driver = driver(1, Limits::default(), &record);
    register(driver.router(), 0..100);
    let held: Vec<_> = (0..100).map(|address| driver.router().mailbox(address)).collect();
    (0..100).for_each(|address| assert!(driver.router().close(address)));
    assert_eq!((driver.router().alive(), driver.router().leaked()), (0, 100));
    driver.run_until_idle(100);
    assert_eq!(driver.router().leaked(), 100);
    drop(held);
    assert_eq!(driver.router().leaked(), 0);
    assert_eq!(record.closed.load(SeqCst), 100);
}
