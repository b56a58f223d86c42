//! What single operations cost.

use crate::fsm::{pool, register as register_all, wait_for, Message};
use std::time::{Duration, Instant};

/// A generator good enough for choosing addresses (xorshift64*).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) % bound
    }
}

/// Nanoseconds the sender spends on a message to an FSM chosen at random, by address.
pub(crate) fn send_at_random(pollers: usize, fsms: u64, run: Duration) -> f64 {
    let (pool, sink) = pool(pollers);
    drop(register_all(pool.router(), fsms).expect("addresses are free"));
    let mut outbox = pool.router().outbox();
    let mut random = Random(0x9E37_79B9_7F4A_7C15);
    let start = Instant::now();
    let mut sent = 0u64;
    while start.elapsed() < run {
        for _ in 0..1024 {
            let address = random.below(fsms);
            outbox.send(address, Message::Count([sent; 3])).expect("mailboxes are large");
        }
        sent += 1024;
    }
    let elapsed = start.elapsed();
    outbox.flush();
    wait_for(&sink, sent);
    pool.shutdown();
    elapsed.as_nanos() as f64 / sent as f64
}

/// Nanoseconds for the first message to each of many FSMs that have never run.
pub(crate) fn first_send(pollers: usize, fsms: u64) -> f64 {
    let (pool, sink) = pool(pollers);
    let mailboxes = register_all(pool.router(), fsms).expect("addresses are free");
    let mut outbox = pool.router().outbox();
    let start = Instant::now();
    for mailbox in &mailboxes {
        outbox.send_to(mailbox, Message::Count([1; 3])).expect("an empty mailbox");
    }
    outbox.flush();
    let elapsed = start.elapsed();
    wait_for(&sink, fsms);
    pool.shutdown();
    elapsed.as_nanos() as f64 / fsms as f64
}

/// Nanoseconds to register an FSM.
pub(crate) fn register(pollers: usize, fsms: u64) -> f64 {
    let (pool, _) = pool(pollers);
    let start = Instant::now();
    let mailboxes = register_all(pool.router(), fsms).expect("addresses are free");
    let elapsed = start.elapsed();
    drop(mailboxes);
    pool.shutdown();
    elapsed.as_nanos() as f64 / fsms as f64
}

/// Bytes the allocator holds for an FSM that has handled a message and is idle again.
pub(crate) fn idle_memory(pollers: usize, fsms: u64) -> f64 {
    let (pool, sink) = pool(pollers);
    let before = allocated();
    drop(register_all(pool.router(), fsms).expect("addresses are free"));
    for address in 0..fsms {
        pool.router().send(address, Message::Count([1; 3])).expect("an empty mailbox");
    }
    wait_for(&sink, fsms);
    let after = allocated();
    pool.shutdown();
    (after - before) as f64 / fsms as f64
}

/// The 99th percentile, in microseconds, from the send of a probe to its handling, beside FSMs that
/// always have mail.
pub(crate) fn probe_p99(pollers: usize, hot: u64, run: Duration) -> f64 {
    let (pool, sink) = pool(pollers);
    let mailboxes = register_all(pool.router(), hot + 1).expect("addresses are free");
    let (probed, hot) = mailboxes.split_last().expect("at least one");
    for mailbox in hot {
        // More than one budget each, so that they are re-queued in every round.
        for _ in 0..256 {
            mailbox.send(Message::Again).expect("a mailbox far from full");
        }
    }
    // The prober sleeps between probes: were it to wait actively, it would take the processor from
    // the very poller it waits for.
    let start = Instant::now();
    let mut sent = 0;
    while start.elapsed() < run {
        probed.send(Message::Probe(Instant::now())).expect("a mailbox far from full");
        sent += 1;
        std::thread::sleep(Duration::from_micros(500));
    }
    while sink.probes.lock().len() < sent {
        std::thread::sleep(Duration::from_micros(500));
    }
    pool.shutdown();
    let mut probes = std::mem::take(&mut *sink.probes.lock());
    probes.sort_unstable();
    probes[(probes.len() * 99 / 100).min(probes.len() - 1)] as f64 / 1e3
}

fn allocated() -> usize {
    tikv_jemalloc_ctl::epoch::advance().expect("jemalloc is the allocator");
    tikv_jemalloc_ctl::stats::allocated::read().expect("jemalloc is the allocator")
}
