//! Messages a second.

use crate::fsm::{pool, register, wait_for, Message};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Messages between two looks at the clock.
const STRIDE: u64 = 8192;

/// One sender and one receiver of a bounded crossbeam channel, in million messages a second.
pub(crate) fn raw_channel(run: Duration) -> f64 {
    let (sender, receiver) = crossbeam::channel::bounded::<[u64; 4]>(4096);
    let consumer = std::thread::spawn(move || {
        let mut sum = 0u64;
        while let Ok(words) = receiver.recv() {
            sum = sum.wrapping_add(words[0]);
        }
        sum
    });
    let start = Instant::now();
    let mut sent = 0;
    while start.elapsed() < run {
        for number in 0..STRIDE {
            sender.send([number; 4]).expect("the receiver lives");
        }
        sent += STRIDE;
    }
    drop(sender);
    std::hint::black_box(consumer.join().expect("the receiver does not panic"));
    sent as f64 / start.elapsed().as_secs_f64() / 1e6
}

/// One thread sends to all FSMs in turn, holding their mailboxes.
pub(crate) fn one_producer(pollers: usize, fsms: u64, run: Duration) -> f64 {
    let (pool, sink) = pool(pollers);
    let mailboxes = register(pool.router(), fsms).expect("addresses are free");
    let mut outbox = pool.router().outbox();
    let start = Instant::now();
    let mut sent = 0u64;
    let mut turn = mailboxes.iter().cycle();
    while start.elapsed() < run {
        for _ in 0..STRIDE {
            let mailbox = turn.next().expect("a cycle has no end");
            let mut message = Message::Count([sent; 3]);
            // Backpressure: a full mailbox gives the message back.
            while let Err(refused) = outbox.send_to(mailbox, message) {
                message = refused.into_message();
                outbox.flush();
                std::thread::yield_now();
            }
        }
        sent += STRIDE;
    }
    outbox.flush();
    wait_for(&sink, sent);
    let rate = sent as f64 / start.elapsed().as_secs_f64() / 1e6;
    pool.shutdown();
    rate
}

/// FSMs in rings of 100 pass tokens on, one token an FSM.
pub(crate) fn rings(pollers: usize, fsms: u64, run: Duration) -> f64 {
    const RING: u64 = 100;
    let (pool, sink) = pool(pollers);
    let mailboxes = register(pool.router(), fsms).expect("addresses are free");
    for (address, mailbox) in (0..fsms).zip(&mailboxes) {
        let ring = address / RING * RING;
        let next = ring + (address + 1 - ring) % RING;
        let next = Box::new(mailboxes[next as usize].clone());
        mailbox.send(Message::Next(next)).expect("an empty mailbox");
    }
    wait_for(&sink, fsms);
    for mailbox in &mailboxes {
        mailbox.send(Message::Pass([1; 3])).expect("a mailbox far from full");
    }
    let before = sink.handled.load(Ordering::Relaxed);
    let start = Instant::now();
    std::thread::sleep(run);
    let handled = sink.handled.load(Ordering::Relaxed) - before;
    let rate = handled as f64 / start.elapsed().as_secs_f64() / 1e6;
    pool.shutdown();
    rate
}
