//! The FSM with a trivial handler that all workloads share.

use batch_system::{
    CloseReason, Fsm, Handler, Limits, Mailbox, Outbox, Pool, Priority, RegisterError, Router,
};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use std::time::Instant;

/// 32 bytes, as in the measurements of the alternatives.
pub(crate) enum Message {
    /// Counts.
    Count([u64; 3]),
    /// Goes on to the next FSM of the ring.
    Pass([u64; 3]),
    /// Is sent to the same FSM again, so that it stays hot.
    Again,
    /// Notes how long ago it was sent.
    Probe(Instant),
    /// Tells an FSM its follower in the ring.
    Next(Box<Mailbox<Node, Control>>),
}

#[derive(Default)]
pub(crate) struct Node {
    sum: u64,
    next: Option<Box<Mailbox<Node, Control>>>,
    myself: u64,
}

impl Fsm for Node {
    type Message = Message;
}

pub(crate) struct Control;

impl Fsm for Control {
    type Message = ();
}

/// What the handlers of all pollers report to.
#[derive(Default)]
pub(crate) struct Sink {
    /// Messages handled.
    pub(crate) handled: AtomicU64,
    /// Latencies of probes, in nanoseconds.
    pub(crate) probes: parking_lot::Mutex<Vec<u64>>,
}

pub(crate) struct Worker {
    sink: Arc<Sink>,
    handled: u64,
}

impl Handler<Node, Control> for Worker {
    fn control(&mut self, _: &mut Control, _: &mut Vec<()>, _: &mut Outbox<Node, Control>) {}

    fn normal(
        &mut self,
        fsm: &mut Node,
        messages: &mut Vec<Message>,
        outbox: &mut Outbox<Node, Control>,
    ) {
        self.handled += messages.len() as u64;
        for message in messages.drain(..) {
            match message {
                Message::Count(words) => fsm.sum = fsm.sum.wrapping_add(words[0]),
                Message::Pass(words) => {
                    fsm.sum = fsm.sum.wrapping_add(words[0]);
                    if let Some(next) = &fsm.next {
                        let _ = outbox.send_to(next, Message::Pass(words));
                    }
                }
                Message::Again => {
                    fsm.sum += 1;
                    let _ = outbox.send(fsm.myself, Message::Again);
                }
                Message::Probe(sent) => {
                    self.sink.probes.lock().push(sent.elapsed().as_nanos() as u64);
                }
                Message::Next(next) => fsm.next = Some(next),
            }
        }
    }

    fn end(&mut self, _: &mut [batch_system::Claim<Node>], _: &mut Outbox<Node, Control>) {
        self.sink.handled.fetch_add(self.handled, Ordering::Relaxed);
        self.handled = 0;
    }

    fn closed(&mut self, fsm: Box<Node>, _: Vec<Message>, _: CloseReason) {
        // The sum is read, so that summing is not optimised away.
        std::hint::black_box(fsm.sum);
    }
}

/// A pool and what it reports to.
pub(crate) fn pool(pollers: usize) -> (Pool<Node, Control>, Arc<Sink>) {
    let sink = Arc::new(Sink::default());
    let for_workers = sink.clone();
    let limits = Limits { message_budget: 128, ..Limits::default() };
    let pool = Pool::start("bench", pollers, limits, Box::new(Control), move |_, _| Worker {
        sink: for_workers.clone(),
        handled: 0,
    });
    (pool.expect("the pool starts"), sink)
}

/// Registers FSMs 0 to `count`.
pub(crate) fn register(
    router: &Router<Node, Control>,
    count: u64,
) -> Result<Vec<Mailbox<Node, Control>>, RegisterError<Node>> {
    (0..count)
        .map(|address| {
            let node = Node { myself: address, ..Node::default() };
            router.register(address, Box::new(node), Priority::Normal)
        })
        .collect()
}

/// Waits until so many messages were handled.
pub(crate) fn wait_for(sink: &Sink, count: u64) {
    while sink.handled.load(Ordering::Relaxed) < count {
        std::thread::yield_now();
    }
}
