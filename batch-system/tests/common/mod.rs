//! An FSM that does what its messages tell it, and a record of what happened.

#![allow(dead_code, unreachable_pub)]

use batch_system::{
    Claim, CloseReason, Driver, Fsm, Handler, Limits, Outbox, PanicReport, Pool, Priority,
    RoundStart, Router,
};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// Longer than anything here takes, also on a loaded machine.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// Polls a condition, and fails when it does not come true.
#[track_caller]
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < DEADLINE, "not within {DEADLINE:?}: {what}");
        std::thread::park_timeout(Duration::from_micros(200));
    }
}

/// Calls `body` with seeds, and names the seed that failed.
pub fn for_seeds(count: u64, body: impl Fn(&mut Random)) {
    for seed in 1..=count {
        let run = std::panic::AssertUnwindSafe(|| body(&mut Random(seed)));
        if let Err(panic) = std::panic::catch_unwind(run) {
            eprintln!("failed with seed {seed}");
            std::panic::resume_unwind(panic);
        }
    }
}

/// SplitMix64.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// Something a handler waits at until the test opens it.
#[derive(Default)]
pub struct Gate {
    state: Mutex<(bool, usize)>,
    opened: Condvar,
}

impl Gate {
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    pub fn open(&self) {
        self.state.lock().unwrap().0 = true;
        self.opened.notify_all();
    }

    /// How many have come to the gate.
    pub fn arrived(&self) -> usize {
        self.state.lock().unwrap().1
    }

    fn pass(&self) {
        let mut state = self.state.lock().unwrap();
        state.1 += 1;
        let (_state, timeout) =
            self.opened.wait_timeout_while(state, DEADLINE, |state| !state.0).unwrap();
        assert!(!timeout.timed_out(), "nobody opened the gate");
    }
}

/// What an FSM is told to do.
pub enum Msg {
    /// Note that sender and number.
    Seq(u32, u64),
    /// Panic now.
    Panic(&'static str),
    /// Panic when the round ends.
    PanicInEnd(&'static str),
    /// Panic when the FSM comes to its end.
    PanicInClosed,
    /// Panic when the message is dropped.
    PanicInDrop(PanicInDrop),
    /// Leave all later messages of this round where they are.
    LeaveTheRest,
    /// Wait for the gate.
    Pass(Arc<Gate>),
    /// Send that message on through the outbox.
    Send(u64, Box<Msg>),
    /// Send that message on at once.
    SendNow(u64, Box<Msg>),
    /// Close that address.
    Close(u64),
    /// Close one's own address and register a new FSM there.
    Replace,
    /// Tell the control FSM.
    TellControl(u64),
}

pub struct PanicInDrop;

impl Drop for PanicInDrop {
    fn drop(&mut self) {
        panic!("dropped without an answer");
    }
}

impl Msg {
    pub fn seq(&self) -> Option<(u32, u64)> {
        match self {
            Msg::Seq(sender, number) => Some((*sender, *number)),
            _ => None,
        }
    }
}

pub struct Node {
    pub address: u64,
    /// Which of the FSMs that were registered at the address.
    pub generation: u64,
    in_batch: bool,
    panic_in_end: Option<&'static str>,
    panic_in_closed: bool,
}

impl Fsm for Node {
    type Message = Msg;
}

pub fn node(address: u64, generation: u64) -> Box<Node> {
    Box::new(Node {
        address,
        generation,
        in_batch: false,
        panic_in_end: None,
        panic_in_closed: false,
    })
}

pub struct Control;

impl Fsm for Control {
    type Message = ControlMsg;
}

pub enum ControlMsg {
    Seq(u64),
    Report(PanicReport),
    Panic,
    Pass(Arc<Gate>),
}

/// What happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    Begin { poller: usize, waited: Option<Duration> },
    Handled { address: u64, generation: u64, seq: (u32, u64) },
    Ran { poller: usize, address: u64 },
    End { batch: Vec<u64> },
    Closed { address: u64, generation: u64, unhandled: Vec<(u32, u64)>, reason: CloseReason },
    Control { poller: usize, seq: u64 },
    Report { report: PanicReport },
    ControlClosed { unhandled: usize, reason: CloseReason },
}

/// The record. Counts are kept always, events only on request.
#[derive(Default)]
pub struct Record {
    events: Mutex<Vec<Event>>,
    keep_events: bool,
    pub handled: AtomicU64,
    pub unhandled: AtomicU64,
    pub closed: AtomicU64,
    pub control: AtomicU64,
    pub panic_in_begin: AtomicBool,
    pub panic_in_report: AtomicBool,
}

impl Record {
    pub fn counts() -> Arc<Self> {
        Arc::default()
    }

    pub fn events() -> Arc<Self> {
        Arc::new(Self { keep_events: true, ..Self::default() })
    }

    pub fn lock(&self) -> MutexGuard<'_, Vec<Event>> {
        self.events.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn note(&self, event: impl FnOnce() -> Event) {
        if self.keep_events {
            self.lock().push(event());
        }
    }

    pub fn handled(&self) -> u64 {
        self.handled.load(SeqCst)
    }

    /// Messages handled or handed back.
    pub fn accounted(&self) -> u64 {
        self.handled.load(SeqCst) + self.unhandled.load(SeqCst)
    }

    /// What each FSM handled, and was then left with, in order.
    pub fn by_fsm(&self) -> BTreeMap<(u64, u64), Vec<(u32, u64)>> {
        let mut all = BTreeMap::<_, Vec<_>>::new();
        for event in &*self.lock() {
            match event {
                Event::Handled { address, generation, seq } => {
                    all.entry((*address, *generation)).or_default().push(*seq);
                }
                Event::Closed { address, generation, unhandled, .. } => {
                    all.entry((*address, *generation)).or_default().extend(unhandled);
                }
                _ => {}
            }
        }
        all.retain(|_, messages| !messages.is_empty());
        all
    }

    /// Addresses in the order in which they ran, since the last call.
    pub fn take_ran(&self) -> Vec<u64> {
        let events = std::mem::take(&mut *self.lock());
        let ran = events.into_iter().filter_map(|event| match event {
            Event::Ran { address, .. } => Some(address),
            _ => None,
        });
        ran.collect()
    }

    pub fn find<T>(&self, select: impl FnMut(&Event) -> Option<T>) -> Vec<T> {
        self.lock().iter().filter_map(select).collect()
    }
}

pub struct Tester {
    poller: usize,
    router: Router<Node, Control>,
    record: Arc<Record>,
}

impl Handler<Node, Control> for Tester {
    fn begin(&mut self, round: &RoundStart) {
        assert_eq!(round.poller, self.poller);
        let event = Event::Begin { poller: round.poller, waited: round.waited };
        self.record.note(|| event);
        assert!(!self.record.panic_in_begin.swap(false, SeqCst), "panic in begin");
    }

    fn control(
        &mut self,
        _: &mut Control,
        messages: &mut Vec<ControlMsg>,
        _: &mut Outbox<Node, Control>,
    ) {
        let poller = self.poller;
        while !messages.is_empty() {
            match messages.remove(0) {
                ControlMsg::Seq(seq) => self.record.note(|| Event::Control { poller, seq }),
                ControlMsg::Report(report) => self.record.note(|| Event::Report { report }),
                ControlMsg::Panic => panic!("control told to"),
                ControlMsg::Pass(gate) => gate.pass(),
            }
            self.record.control.fetch_add(1, SeqCst);
        }
    }

    fn normal(
        &mut self,
        node: &mut Node,
        messages: &mut Vec<Msg>,
        outbox: &mut Outbox<Node, Control>,
    ) {
        assert!(!node.in_batch, "FSM {} twice in one round", node.address);
        node.in_batch = true;
        let (address, generation, poller) = (node.address, node.generation, self.poller);
        self.record.note(|| Event::Ran { poller, address });
        while !messages.is_empty() {
            let message = messages.remove(0);
            // First the event: who sees the count must find it.
            if let Some(seq) = message.seq() {
                self.record.note(|| Event::Handled { address, generation, seq });
            }
            self.record.handled.fetch_add(1, SeqCst);
            match message {
                Msg::Seq(..) => {}
                Msg::Panic(text) => panic!("{text}"),
                Msg::PanicInEnd(text) => node.panic_in_end = Some(text),
                Msg::PanicInClosed => node.panic_in_closed = true,
                Msg::PanicInDrop(_) => {}
                Msg::LeaveTheRest => return,
                Msg::Pass(gate) => gate.pass(),
                Msg::Send(to, message) => drop(outbox.send(to, *message)),
                Msg::SendNow(to, message) => drop(self.router.send(to, *message)),
                Msg::Close(address) => assert!(self.router.close(address)),
                Msg::Replace => {
                    assert!(self.router.close(address));
                    let new = crate::common::node(address, generation + 1);
                    self.router.register(address, new, Priority::Normal).expect("free again");
                }
                Msg::TellControl(seq) => {
                    self.router.send_control(ControlMsg::Seq(seq)).expect("room");
                }
            }
        }
    }

    fn end(&mut self, batch: &mut [Claim<Node>], _: &mut Outbox<Node, Control>) {
        let addresses = || batch.iter().map(Claim::address).collect();
        self.record.note(|| Event::End { batch: addresses() });
        for claim in batch {
            assert_eq!(claim.address(), claim.fsm().address);
            claim.fsm_mut().in_batch = false;
            if let Some(text) = claim.fsm().panic_in_end {
                panic!("{text}");
            }
        }
    }

    fn closed(&mut self, node: Box<Node>, unhandled: Vec<Msg>, reason: CloseReason) {
        self.record.unhandled.fetch_add(unhandled.len() as u64, SeqCst);
        self.record.note(|| Event::Closed {
            address: node.address,
            generation: node.generation,
            unhandled: unhandled.iter().filter_map(Msg::seq).collect(),
            reason,
        });
        self.record.closed.fetch_add(1, SeqCst);
        assert!(!node.panic_in_closed, "panic in closed");
    }

    fn control_closed(&mut self, _: Box<Control>, unhandled: Vec<ControlMsg>, reason: CloseReason) {
        self.record.note(|| Event::ControlClosed { unhandled: unhandled.len(), reason });
    }

    fn panic_message(&mut self, report: PanicReport) -> Option<ControlMsg> {
        assert!(!self.record.panic_in_report.swap(false, SeqCst), "panic in report");
        Some(ControlMsg::Report(report))
    }
}

pub type TestPool = Pool<Node, Control>;
pub type TestDriver = Driver<Node, Control, Tester>;

pub fn pool(name: &str, pollers: usize, limits: Limits, record: &Arc<Record>) -> TestPool {
    let record = record.clone();
    Pool::start(name, pollers, limits, Box::new(Control), move |poller, router| Tester {
        poller,
        router: router.clone(),
        record: record.clone(),
    })
    .expect("a pool")
}

pub fn driver(pollers: usize, limits: Limits, record: &Arc<Record>) -> TestDriver {
    Driver::new(pollers, limits, Box::new(Control), |poller, router| Tester {
        poller,
        router: router.clone(),
        record: record.clone(),
    })
}

/// Registers FSMs of generation 0.
pub fn register(router: &Router<Node, Control>, addresses: impl IntoIterator<Item = u64>) {
    for address in addresses {
        router.register(address, node(address, 0), Priority::Normal).expect("a free address");
    }
}

/// The home of an address in a pool of `pollers`, as the crate computes it.
///
/// Repeated here because only tests need to know it; `homes_are_as_computed` compares the two.
pub fn home(address: u64, pollers: u64) -> u64 {
    (address.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32) % pollers
}

/// The first `count` addresses from `from` on whose home in a pool of `pollers` is `poller`.
pub fn addresses_of(poller: u64, pollers: u64, from: u64, count: usize) -> Vec<u64> {
    (from..).filter(|address| home(*address, pollers) == poller).take(count).collect()
}

/// The names of this process's threads that begin with `prefix`, sorted.
pub fn threads(prefix: &str) -> Vec<String> {
    let mut names = Vec::new();
    for task in std::fs::read_dir("/proc/self/task").expect("Linux") {
        // A thread may end between the two reads.
        let comm = task.map(|task| task.path().join("comm")).map(std::fs::read_to_string);
        if let Ok(Ok(name)) = comm {
            let name = name.trim().to_owned();
            if name.starts_with(prefix) {
                names.push(name);
            }
        }
    }
    names.sort();
    names
}

/// Waits until exactly these threads of a pool run, besides its watch.
#[track_caller]
pub fn expect_pollers(prefix: &str, pollers: usize) {
    let mut expected: Vec<_> = (0..pollers).map(|index| format!("{prefix}-{index}")).collect();
    if pollers > 0 {
        expected.push(format!("{prefix}-watch"));
    }
    // The kernel keeps 15 bytes of a name.
    expected.iter_mut().for_each(|name| name.truncate(15));
    expected.sort();
    // The kernel lists a thread for a moment after it was joined.
    eventually(&format!("the threads are {expected:?}"), || threads(prefix) == expected);
}
