//! What it costs to get a message handled by one of N FSMs, beside the same through a raw channel.
//!
//! `round_trip`: one message, awaited: the wake of a poller. A moved number means that sleeping and
//! waking changed. `stream`: many messages, awaited together, over all FSMs in turn: the hand-over of
//! claims and, with many FSMs, memory locality. A figure is to be read as a ratio to `channel` of the
//! same run, which does no more than move the message.

use batch_system::{CloseReason, Fsm, Handler, Limits, Mailbox, Outbox, Pool, Priority};
use criterion::{BenchmarkId, Criterion, Throughput};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

const POLLERS: usize = 2;

/// How many FSMs share the messages.
const FSMS: [u64; 3] = [1, 1_000, 100_000];

struct Node(u64);

impl Fsm for Node {
    /// 32 bytes, as in the measurements of the alternatives.
    type Message = [u64; 4];
}

struct Control;

impl Fsm for Control {
    type Message = ();
}

/// Adds up, and tells how many messages it handled once a round.
struct Adder {
    handled: Arc<AtomicU64>,
    in_round: u64,
}

impl Handler<Node, Control> for Adder {
    fn control(&mut self, _: &mut Control, _: &mut Vec<()>, _: &mut Outbox<Node, Control>) {}

    fn normal(
        &mut self,
        fsm: &mut Node,
        messages: &mut Vec<[u64; 4]>,
        _: &mut Outbox<Node, Control>,
    ) {
        self.in_round += messages.len() as u64;
        for words in messages.drain(..) {
            fsm.0 = fsm.0.wrapping_add(words[0]);
        }
    }

    fn end(&mut self, _: &mut [batch_system::Claim<Node>], _: &mut Outbox<Node, Control>) {
        self.handled.fetch_add(std::mem::take(&mut self.in_round), Ordering::Release);
    }

    fn closed(&mut self, fsm: Box<Node>, _: Vec<[u64; 4]>, _: CloseReason) {
        std::hint::black_box(fsm.0);
    }
}

/// Something that messages go into, and a count of those that came out.
struct Subject<S> {
    send: S,
    sent: u64,
    handled: Arc<AtomicU64>,
}

impl<S: FnMut(u64)> Subject<S> {
    fn send(&mut self) {
        (self.send)(self.sent);
        self.sent += 1;
    }

    fn wait(&self) {
        while self.handled.load(Ordering::Acquire) < self.sent {
            std::thread::yield_now();
        }
    }

    fn round_trips(&mut self, count: u64) -> Duration {
        let start = Instant::now();
        for _ in 0..count {
            self.send();
            self.wait();
        }
        start.elapsed()
    }

    fn stream(&mut self, count: u64, mut flush: impl FnMut()) -> Duration {
        let start = Instant::now();
        (0..count).for_each(|_| self.send());
        flush();
        self.wait();
        start.elapsed()
    }
}

struct Fixture {
    pool: Pool<Node, Control>,
    mailboxes: Vec<Mailbox<Node, Control>>,
    handled: Arc<AtomicU64>,
}

fn fixture(fsms: u64) -> Fixture {
    let handled = Arc::new(AtomicU64::new(0));
    let count = handled.clone();
    let pool = Pool::start("bench", POLLERS, Limits::default(), Box::new(Control), move |_, _| {
        Adder { handled: count.clone(), in_round: 0 }
    });
    let pool = pool.expect("threads");
    let mailboxes = (0..fsms)
        .map(|address| pool.router().register(address, Box::new(Node(0)), Priority::Normal))
        .collect::<Result<_, _>>()
        .expect("free addresses");
    Fixture { pool, mailboxes, handled }
}

/// Through a bounded channel to one thread.
fn with_channel(body: impl FnOnce(&mut Subject<&mut dyn FnMut(u64)>)) {
    let (sender, receiver) = crossbeam::channel::bounded::<[u64; 4]>(4096);
    let handled = Arc::new(AtomicU64::new(0));
    let count = handled.clone();
    let consumer = std::thread::spawn(move || {
        let mut sum = 0u64;
        while let Ok(words) = receiver.recv() {
            sum = sum.wrapping_add(words[0]);
            count.fetch_add(1, Ordering::Release);
        }
        std::hint::black_box(sum);
    });
    let mut send = |number| sender.send([number; 4]).expect("the receiver lives");
    body(&mut Subject { send: &mut send, sent: 0, handled });
    drop(sender);
    consumer.join().expect("the receiver does not panic");
}

fn round_trips(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("round_trip");
    with_channel(|subject| {
        group.bench_function("channel", |bencher| {
            bencher.iter_custom(|count| subject.round_trips(count));
        });
    });
    for fsms in FSMS {
        let Fixture { pool, mailboxes, handled } = fixture(fsms);
        let mut turn = mailboxes.iter().cycle();
        let send = |number| {
            let mailbox = turn.next().expect("a cycle has no end");
            mailbox.send([number; 4]).expect("an empty mailbox");
        };
        let mut subject = Subject { send, sent: 0, handled };
        group.bench_function(BenchmarkId::new("fsms", fsms), |bencher| {
            bencher.iter_custom(|count| subject.round_trips(count));
        });
        pool.shutdown();
    }
    group.finish();
}

fn streams(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("stream");
    group.throughput(Throughput::Elements(1));
    with_channel(|subject| {
        group.bench_function("channel", |bencher| {
            bencher.iter_custom(|count| subject.stream(count, || ()));
        });
    });
    for fsms in FSMS {
        let Fixture { pool, mailboxes, handled } = fixture(fsms);
        let outbox = std::cell::RefCell::new(pool.router().outbox());
        let mut turn = mailboxes.iter().cycle();
        let send = |number| {
            let mailbox = turn.next().expect("a cycle has no end");
            let (mut outbox, mut message) = (outbox.borrow_mut(), [number; 4]);
            // A full mailbox gives the message back.
            while let Err(refused) = outbox.send_to(mailbox, message) {
                message = refused.into_message();
                outbox.flush();
                std::thread::yield_now();
            }
        };
        let mut subject = Subject { send, sent: 0, handled };
        group.bench_function(BenchmarkId::new("fsms", fsms), |bencher| {
            bencher.iter_custom(|count| subject.stream(count, || outbox.borrow_mut().flush()));
        });
        pool.shutdown();
    }
    group.finish();
}

fn main() {
    // Not the macros of criterion: they make undocumented public functions.
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(3))
        .sample_size(20)
        .configure_from_args();
    round_trips(&mut criterion);
    streams(&mut criterion);
    criterion.final_summary();
}
