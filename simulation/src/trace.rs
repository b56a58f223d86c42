//! What happened, as a hash that two runs of a seed must agree on, and as lines to read.

use crate::check::Through;
use std::hash::{Hash, Hasher};
use std::io::Write;

/// One thing that happened. Numbers only, so that it can be hashed the same everywhere.
#[derive(Clone, Debug, Hash)]
#[allow(missing_docs, reason = "the names say it, and they are printed as they stand here")]
pub(crate) enum Event {
    /// A store's process began, with so many regions and regions set aside.
    Started { regions: usize, set_aside: usize },
    /// A store refused to start: its disk is damaged.
    Refused,
    /// A store's process ended at once.
    Crashed,
    /// A store ended in an orderly way.
    Stopped,
    /// A store stopped promising: something below it failed.
    Failed,
    /// A thread of a store made a step.
    Ran { thread: &'static str, number: usize },
    /// How a region stood after its turn.
    Stands { role: u64, term: u64, committed: u64, applied: u64, last: u64 },
    /// A message left.
    Sent { to: u64, kind: i32, term: u64, index: u64, commit: u64, entries: usize, reject: bool },
    /// Messages arrived.
    Delivered { from: u64, messages: usize },
    /// A batch of the log was written.
    Wrote { regions: usize, entries: usize, synced: bool },
    /// The state machine made everything durable up to where it is.
    Flushed { regions: usize },
    /// A client proposed.
    Proposed { client: u64, operation: u64, key: u64 },
    /// A client reads beside the log.
    Read { client: u64, operation: u64, key: u64, through: Through, leader_only: bool },
    /// A client was answered.
    Answered { operation: u64, index: u64, term: u64, error: &'static str },
    /// A fault or a help begins or ends, by the text of the plan.
    Action { text: String },
}

/// Records events.
#[derive(Debug)]
pub(crate) struct Trace {
    hash: Fnv,
    events: u64,
    print: bool,
}

impl Trace {
    /// With `print` every event is also a line on the standard output.
    pub(crate) fn new(print: bool) -> Self {
        Self { hash: Fnv(0xCBF2_9CE4_8422_2325), events: 0, print }
    }

    /// Records an event at a time in microseconds; store and region are 0 where they mean nothing.
    pub(crate) fn record(&mut self, now_us: u64, store: u64, region: u64, event: &Event) {
        (now_us, store, region).hash(&mut self.hash);
        event.hash(&mut self.hash);
        self.events += 1;
        if self.print {
            let (seconds, rest) = (now_us / 1_000_000, now_us % 1_000_000);
            let store = if store == 0 { "--".to_owned() } else { format!("s{store}") };
            let region = if region == 0 { "--".to_owned() } else { format!("r{region}") };
            let line = format!("{seconds:4}.{rest:06} {store:>3} {region:>4} {event:?}");
            // Who has closed the pipe does not want to know more.
            self.print = writeln!(std::io::stdout(), "{line}").is_ok();
        }
    }

    /// The hash of all events so far.
    pub(crate) fn hash(&self) -> u64 {
        self.hash.0
    }

    /// How many events there were.
    pub(crate) fn events(&self) -> u64 {
        self.events
    }
}

/// FNV-1a over 64 bits, a word at a time: the same on every machine, unlike the standard library's.
#[derive(Debug)]
pub(crate) struct Fnv(pub(crate) u64);

impl Hasher for Fnv {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = (self.0 ^ word).wrapping_mul(0x0100_0000_01B3);
        self.0 ^= self.0 >> 29;
    }

    fn write_u8(&mut self, byte: u8) {
        self.write_u64(u64::from(byte));
    }

    fn write_i32(&mut self, number: i32) {
        self.write_u64(number as u64);
    }

    fn write_usize(&mut self, number: usize) {
        self.write_u64(number as u64);
    }

    fn write_isize(&mut self, number: isize) {
        self.write_u64(number as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_difference_changes_the_hash() {
        let hash = |now, store, event: Event| {
            let mut trace = Trace::new(false);
            trace.record(now, store, 0, &event);
            trace.hash()
        };
        let first = hash(1, 1, Event::Crashed);
        assert_eq!(first, hash(1, 1, Event::Crashed));
        let others = [
            hash(2, 1, Event::Crashed),
            hash(1, 2, Event::Crashed),
            hash(1, 1, Event::Stopped),
            hash(1, 1, Event::Flushed { regions: 1 }),
            hash(1, 1, Event::Flushed { regions: 2 }),
        ];
        assert!(others.iter().all(|other| *other != first));
        assert_ne!(others[3], others[4]);
    }
}
