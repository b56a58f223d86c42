//! Whole pools under random schedules.
//!
//! Run by `cargo test -p batch-system --release --features shuttle --lib shuttle_`. No wait times out
//! in the models, so the watch thread sleeps until shutdown: what needs its help would hang here.

use crate::fsm::{CloseReason, Fsm, Handler, PanicReport, Priority};
use crate::mailbox::SendError;
use crate::outbox::Outbox;
use crate::pool::{Limits, Pool};
use crate::router::{RegisterError, Router};
use shuttle::thread;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

const ITERATIONS: usize = 1_000;

/// Threads of a model are few, so a bias for preemptions is what finds rare orders.
fn explore(model: impl Fn() + Send + Sync + Clone + 'static) {
    shuttle::check_random(model.clone(), ITERATIONS);
    shuttle::check_pct(model, ITERATIONS, 3);
}

struct Node;

impl Fsm for Node {
    /// The sender and its number; a panic for `u32::MAX`.
    type Message = (u32, u32);
}

struct Control;

/// Tells the control FSM to panic.
const PANIC: u64 = u64::MAX;

impl Fsm for Control {
    type Message = u64;
}

/// What happened, counted by what the model's threads do not schedule on.
#[derive(Default)]
struct Record {
    handled: Mutex<Vec<(u32, u32)>>,
    unhandled: AtomicU64,
    closed: AtomicU64,
    control: AtomicU64,
    control_unhandled: AtomicU64,
}

impl Record {
    fn accounted(&self) -> u64 {
        self.handled.lock().unwrap().len() as u64 + self.unhandled.load(SeqCst)
    }
}

struct Recorder(Arc<Record>);

impl Handler<Node, Control> for Recorder {
    fn control(&mut self, _: &mut Control, messages: &mut Vec<u64>, _: &mut Outbox<Node, Control>) {
        self.0.control.fetch_add(messages.len() as u64, SeqCst);
        if messages.contains(&PANIC) {
            std::panic::resume_unwind(Box::new("no backtrace for this one"));
        }
    }

    fn normal(
        &mut self,
        _: &mut Node,
        messages: &mut Vec<(u32, u32)>,
        outbox: &mut Outbox<Node, Control>,
    ) {
        for (sender, number) in messages.drain(..) {
            self.0.handled.lock().unwrap().push((sender, number));
            if number == u32::MAX {
                std::panic::resume_unwind(Box::new("no backtrace for this one"));
            }
            // A chain: each message of 100 and above is sent on, to the address it names.
            if number >= 100 && outbox.send(u64::from(number % 10), (sender, number / 10)).is_err()
            {
                self.0.unhandled.fetch_add(1, SeqCst);
            }
        }
    }

    fn closed(&mut self, _: Box<Node>, unhandled: Vec<(u32, u32)>, _: CloseReason) {
        self.0.unhandled.fetch_add(unhandled.len() as u64, SeqCst);
        self.0.closed.fetch_add(1, SeqCst);
    }

    fn control_closed(&mut self, _: Box<Control>, unhandled: Vec<u64>, _: CloseReason) {
        self.0.control_unhandled.fetch_add(unhandled.len() as u64, SeqCst);
    }

    fn panic_message(&mut self, report: PanicReport) -> Option<u64> {
        Some(report.address)
    }
}

fn start(pollers: usize, nodes: u64) -> (Arc<Pool<Node, Control>>, Arc<Record>) {
    let limits = Limits { max_pollers: 3, batch_size: 2, message_budget: 1, ..Limits::default() };
    let record = Arc::new(Record::default());
    let handlers = record.clone();
    let pool = Pool::start("model", pollers, limits, Box::new(Control), move |_, _| {
        Recorder(handlers.clone())
    });
    let pool = pool.expect("threads");
    for address in 0..nodes {
        pool.router().register(address, Box::new(Node), Priority::Normal).expect("free");
    }
    (Arc::new(pool), record)
}

fn wait_for(mut condition: impl FnMut() -> bool) {
    while !condition() {
        thread::yield_now();
    }
}

type Sending = fn(&Router<Node, Control>, u64, (u32, u32)) -> Result<(), SendError<(u32, u32)>>;

/// Two senders in threads of their own; each returns how many messages were accepted.
fn two_senders(
    pool: &Arc<Pool<Node, Control>>,
    each: u32,
    send: Sending,
) -> Vec<thread::JoinHandle<u64>> {
    let sender = |sender: u32| {
        let pool = pool.clone();
        thread::spawn(move || {
            let sent = (0..each).map(|number| {
                u64::from(send(pool.router(), u64::from(number % 3), (sender, number)).is_ok())
            });
            sent.sum()
        })
    };
    vec![sender(0), sender(1)]
}

fn sum(senders: Vec<thread::JoinHandle<u64>>) -> u64 {
    senders.into_iter().map(|sender| sender.join().unwrap()).sum()
}

#[test]
fn shuttle_every_message_is_handled_without_the_watch() {
    explore(|| {
        let (pool, record) = start(2, 3);
        let senders = two_senders(&pool, 6, |router, to, message| router.send(to, message));
        assert_eq!(sum(senders), 12);
        wait_for(|| record.handled.lock().unwrap().len() == 12);
        let handled = record.handled.lock().unwrap().clone();
        for (sender, address) in [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)] {
            let numbers: Vec<_> = handled
                .iter()
                .filter(|(from, number)| *from == sender && number % 3 == address)
                .map(|(_, number)| *number)
                .collect();
            assert_eq!(numbers, [address, address + 3], "in order");
        }
        pool.shutdown();
        assert_eq!(record.closed.load(SeqCst), 3);
        assert_eq!(record.accounted(), 12);
    });
}

#[test]
fn shuttle_shutdown_beside_two_senders_accounts_for_every_message() {
    explore(|| {
        let (pool, record) = start(2, 3);
        let senders = two_senders(&pool, 6, |router, to, message| {
            let _ = router.send_control(0);
            let mut outbox = router.outbox();
            outbox.force_send(to, message)
        });
        let registering = {
            let pool = pool.clone();
            thread::spawn(move || match pool.router().register(9, Box::new(Node), Priority::High) {
                Ok(_) => 1,
                Err(RegisterError::ShuttingDown(_)) => 0,
                Err(error) => panic!("{error}"),
            })
        };
        pool.shutdown();
        let registered: u64 = registering.join().unwrap();
        assert_eq!(record.accounted(), sum(senders));
        assert_eq!(record.closed.load(SeqCst), 3 + registered);
        assert_eq!((pool.router().alive(), pool.router().leaked()), (0, 0));
    });
}

#[test]
fn shuttle_resize_beside_two_senders_loses_nothing() {
    explore(|| {
        let (pool, record) = start(2, 3);
        let senders = two_senders(&pool, 6, |router, to, message| {
            router.send_control(0).expect("room");
            router.send(to, message)
        });
        for pollers in [1, 3, 2] {
            pool.resize(pollers).unwrap();
            assert_eq!(pool.pollers(), pollers);
        }
        assert_eq!(sum(senders), 12);
        wait_for(|| record.handled.lock().unwrap().len() == 12);
        wait_for(|| record.control.load(SeqCst) == 12);
        pool.shutdown();
    });
}

#[test]
fn shuttle_resize_beside_shutdown_ends() {
    explore(|| {
        let (pool, record) = start(1, 2);
        let resizing = {
            let pool = pool.clone();
            thread::spawn(move || {
                let _ = pool.resize(3);
                let _ = pool.resize(1);
            })
        };
        let other = {
            let pool = pool.clone();
            thread::spawn(move || pool.shutdown())
        };
        pool.shutdown();
        resizing.join().unwrap();
        other.join().unwrap();
        assert_eq!(record.closed.load(SeqCst), 2);
        assert_eq!(pool.pollers(), 0);
    });
}

#[test]
fn shuttle_close_and_re_register_beside_two_senders_keep_every_message() {
    explore(|| {
        let (pool, record) = start(2, 3);
        let senders = two_senders(&pool, 6, |router, to, message| router.send(to, message));
        let mut ended = 0;
        for address in [0, 1, 0] {
            assert!(pool.router().close(address));
            ended += 1;
            pool.router().register(address, Box::new(Node), Priority::Normal).expect("free");
        }
        let accepted = sum(senders);
        wait_for(|| record.closed.load(SeqCst) == ended);
        wait_for(|| record.accounted() == accepted);
        assert_eq!(pool.router().alive(), 3);
        pool.shutdown();
        assert_eq!(record.accounted(), accepted);
        assert_eq!(pool.router().leaked(), 0);
    });
}

#[test]
fn shuttle_panics_beside_two_senders_end_one_fsm_each_and_are_reported() {
    explore(|| {
        let (pool, record) = start(2, 3);
        let senders = two_senders(&pool, 4, |router, to, (sender, number)| {
            let panics = sender == 0 && number == 1;
            router.send(to, (sender, if panics { u32::MAX } else { number }))
        });
        let accepted = sum(senders);
        wait_for(|| record.accounted() == accepted);
        wait_for(|| record.control.load(SeqCst) == 1);
        assert_eq!(pool.router().alive(), 2);
        pool.shutdown();
        assert_eq!(record.closed.load(SeqCst), 3);
        assert_eq!(pool.router().stats().snapshot().panics, 1);
    });
}

#[test]
fn shuttle_broadcast_reaches_every_fsm_though_its_poller_may_retire() {
    explore(|| {
        // A poller does one slice more in its last round, so three are too few for one to be left.
        let (pool, record) = start(2, 1);
        for number in 0..5 {
            pool.router().broadcast(move |_| (0, number));
        }
        pool.resize(1).unwrap();
        wait_for(|| record.handled.lock().unwrap().len() == 5);
        let numbers: Vec<_> = record.handled.lock().unwrap().iter().map(|(_, n)| *n).collect();
        assert_eq!(numbers, [0, 1, 2, 3, 4], "in order");
        pool.shutdown();
    });
}

#[test]
fn shuttle_chain_through_the_outboxes_of_the_pollers_never_breaks() {
    explore(|| {
        let (pool, record) = start(2, 10);
        pool.router().send(0, (0, 12_345)).expect("room");
        pool.router().send(1, (1, 54_321)).expect("room");
        // Each hop takes one digit off while three or more are left.
        wait_for(|| record.handled.lock().unwrap().len() == 8);
        pool.shutdown();
    });
}

#[test]
fn shuttle_pool_that_is_empty_stays_up_until_it_is_shut_down() {
    explore(|| {
        let (pool, record) = start(2, 1);
        pool.router().send_control(PANIC).expect("room");
        wait_for(|| pool.router().send_control(0).is_err());
        assert!(pool.router().close(0));
        wait_for(|| record.closed.load(SeqCst) == 1);
        pool.router().register(1, Box::new(Node), Priority::Normal).expect("free");
        pool.router().send(1, (0, 0)).expect("room");
        wait_for(|| record.handled.lock().unwrap().len() == 1);
        pool.shutdown();
        assert_eq!(record.closed.load(SeqCst), 2);
    });
}
