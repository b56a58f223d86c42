//! The run of a plan: one occasion after the other, on one thread.
//!
//! Time is simulated and moves from occasion to occasion. Whatever may happen in more than one order or
//! way is drawn from generators that the plan's seed decides: which store goes next, which of its
//! threads, which region out of turn; how long a message takes; what a crash leaves.

use crate::agenda::{Agenda, Occasion};
use crate::ambush::{Ambushes, Sight};
use crate::check::{Bounds, Kind, Outcome, Through, Violation, Watch};
use crate::clients::{Clients, NOBODY, PROBE_KEY};
use crate::disk::Device;
use crate::faults::{FaultKind, Fired};
use crate::moves::Asked;
use crate::network::Network;
use crate::placement::SimPlacement;
use crate::plan::{Action, LogKind, Plan};
use crate::process::{DiskThreads, EngineFiles, Process, Surroundings};
use crate::random::Random;
use crate::sleep::Sleepers;
use crate::trace::{Event, Trace};
use parking_lot::Mutex;
use raftstore::{RegionId, RegionStatus, StoreThread};
use std::sync::Arc;

/// Stores turn their timers so often.
const TIMER_US: u64 = 10_000;

/// A run under way.
pub(crate) struct World {
    pub(crate) plan: Plan,
    pub(crate) agenda: Agenda,
    pub(crate) random: Random,
    /// What a crash leaves.
    pub(crate) damage: Random,
    pub(crate) around: Surroundings,
    pub(crate) processes: Vec<Process>,
    pub(crate) network: Network,
    pub(crate) clients: Clients,
    pub(crate) watch: Watch,
    pub(crate) trace: Trace,
    pub(crate) fired: Fired,
    pub(crate) probes: Vec<Probe>,
    pub(crate) sleepers: Vec<Sleepers>,
    pub(crate) ambushes: Ambushes,
    pub(crate) checked: Checked,
    /// Answers to what was asked of regions as a whole.
    pub(crate) moved: Arc<Mutex<Vec<(Asked, bool)>>>,
    /// Whether clients go on.
    pub(crate) load: bool,
}

/// What the checkers of histories have seen.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Checked {
    /// Answers that the log explains.
    pub(crate) witnessed: u64,
    /// Registers whose answers alone make sense.
    pub(crate) registers: u64,
    /// Registers with more operations than the search takes.
    pub(crate) registers_too_long: u64,
}

/// A region must answer a write by a time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Probe {
    pub(crate) region: u64,
    pub(crate) by_us: u64,
    /// The last attempt.
    pub(crate) operation: Option<u64>,
    pub(crate) answered: bool,
}

impl World {
    /// The world of a plan, at time 0. With `print` its trace is printed.
    pub(crate) fn new(plan: &Plan, print: bool) -> Self {
        let random = Random::new(plan.seed);
        let cluster = &plan.cluster;
        let devices: Vec<Device> = (0..cluster.stores).map(|_| Device::default()).collect();
        let numbered = (1..=cluster.stores).zip(&devices);
        let process = |(id, device): (u64, &Device)| {
            let mut process = Process::new(id, device.clone());
            if cluster.log == LogKind::Engine {
                process.files = Some(EngineFiles::new().expect("a directory for names"));
            }
            process
        };
        let processes = numbered.map(process).collect();
        let (ledger, moved) = (Arc::default(), Arc::default());
        let placement = cluster.placed.then(|| {
            let sizes = (cluster.stores, plan.load.keys);
            let random = random.fork("placement");
            Arc::new(SimPlacement::new(random, sizes, Arc::clone(&ledger), Arc::clone(&moved)))
        });
        let around = Surroundings {
            plan: cluster.clone(),
            encodes: plan.network.encodes,
            seed: plan.seed,
            ledger,
            outgoing: Arc::default(),
            devices,
            placement,
        };
        let bounds = Bounds {
            pending_proposals: 64,
            // The bound, a page, and the largest command.
            unapplied_bytes: (1024 + 1024 + 64) << 10,
            cached_bytes: (2 * 1024 + 128 + 64) << 10,
        };
        Self {
            agenda: Agenda::default(),
            damage: random.fork("damage"),
            network: Network::new(&plan.network, random.fork("network")),
            clients: Clients::new(&plan.load, cluster, random.fork("clients")),
            random: random.fork("order"),
            watch: Watch::new(bounds),
            trace: Trace::new(print),
            fired: Fired::default(),
            probes: Vec::new(),
            sleepers: Vec::new(),
            ambushes: Ambushes::default(),
            checked: Checked::default(),
            moved,
            load: true,
            plan: plan.clone(),
            around,
            processes,
        }
    }

    /// The first broken rule.
    pub(crate) fn violation(&self) -> Option<Violation> {
        self.around.ledger.lock().violation().cloned()
    }

    /// Starts all stores and puts the plan on the agenda.
    pub(crate) fn begin(&mut self) {
        for store in 1..=self.plan.cluster.stores {
            self.start(store);
            self.agenda.add(self.random.below(TIMER_US), Occasion::Timer { store });
        }
        for client in 0..self.plan.load.clients {
            let think_us = self.clients.think_us();
            self.agenda.add_in(think_us, Occasion::Client { client, turn: 0 });
        }
        for (index, timed) in self.plan.actions.iter().enumerate() {
            self.agenda.add(timed.at_us, Occasion::Begin(index));
        }
    }

    /// Lets things happen until a time, or until a rule is broken. Says whether none is.
    pub(crate) fn run_until(&mut self, until_us: u64) -> bool {
        while self.agenda.now_us() < until_us {
            let Some(occasion) = self.agenda.take() else { break };
            self.meet(occasion);
            if self.around.ledger.lock().violation().is_some() {
                return false;
            }
        }
        true
    }

    fn meet(&mut self, occasion: Occasion) {
        match occasion {
            Occasion::Wake { store } => self.step(store),
            Occasion::Timer { store } => {
                self.agenda.add_in(TIMER_US, Occasion::Timer { store });
                let now_us = self.agenda.now_us();
                let process = self.process(store);
                process.set_clock(now_us);
                if !process.paused {
                    process.turn_timers();
                }
                self.wish(store);
                self.arrange(store);
            }
            Occasion::Arrive(arrival) => {
                if !self.network.arrive(arrival.number, &arrival.packet) {
                    return;
                }
                let mut packet = arrival.packet;
                let (from, messages) = (packet.from, packet.messages.len());
                if let Some(running) = &self.process(packet.to).running {
                    if let Some(snapshot) = packet.snapshot.take() {
                        running.store.handle().deliver_snapshot(*snapshot);
                    }
                    if let Some(ping) = packet.ping {
                        running.store.handle().deliver_ping(ping);
                    }
                    running.store.handle().deliver(&mut packet.messages);
                    self.record(packet.to, 0, &Event::Delivered { from, messages });
                    self.arrange(packet.to);
                }
            }
            Occasion::Client { client, turn } => self.client(client, turn),
            Occasion::Begin(index) => {
                let action = self.plan.actions[index].action.clone();
                if let Some(lasts_us) = action.lasts_us() {
                    self.agenda.add_in(lasts_us, Occasion::End(index));
                }
                self.act(&action);
            }
            Occasion::End(index) => {
                let action = self.plan.actions[index].action.clone();
                self.undo(&action);
            }
            Occasion::Start { store, lives } => {
                let process = self.process(store);
                if process.running.is_none() && process.lives == lives && !process.broken {
                    self.start(store);
                }
            }
            Occasion::Leaders { expectation } => self.look_for_leaders(expectation),
            Occasion::Probe { probe } => self.probe(probe),
        }
    }

    pub(crate) fn process(&mut self, store: u64) -> &mut Process {
        &mut self.processes[store as usize - 1]
    }

    pub(crate) fn record(&mut self, store: u64, region: u64, event: &Event) {
        self.trace.record(self.agenda.now_us(), store, region, event);
    }

    /// Puts the next step of a store on the agenda, if it has something to do.
    pub(crate) fn arrange(&mut self, store: u64) {
        let now_us = self.agenda.now_us();
        let disk_threads = self.disk_threads();
        let process = self.process(store);
        let (threads, waits_us) = process.runnable(now_us, disk_threads);
        let planned_us = process.wake_at_us;
        let at_us = match threads.is_empty() {
            // Now and then a thread is not scheduled for a while.
            false if self.random.chance(15) => now_us + self.random.within(1_000..10_000),
            false => now_us + self.random.within(5..100),
            true => waits_us,
        };
        if at_us < u64::MAX && planned_us.is_none_or(|planned| planned > at_us) {
            self.process(store).wake_at_us = Some(at_us);
            self.agenda.add(at_us, Occasion::Wake { store });
        }
    }

    fn disk_threads(&self) -> DiskThreads {
        match self.plan.cluster.log_writers {
            0 => DiskThreads::Pollers,
            _ => DiskThreads::Writers,
        }
    }

    /// One step of one thread of a store.
    fn step(&mut self, store: u64) {
        let now_us = self.agenda.now_us();
        let disk_threads = self.disk_threads();
        let process = &mut self.processes[store as usize - 1];
        if process.wake_at_us != Some(now_us) {
            return;
        }
        process.wake_at_us = None;
        process.set_clock(now_us);
        let (threads, _) = process.runnable(now_us, disk_threads);
        let lives = process.lives;
        if let Some(running) = process.running.as_mut().filter(|_| !threads.is_empty()) {
            let thread = running.choose(&threads, &mut self.random);
            if disk_threads.contains(thread) && process.disk_slow_us > 0 {
                if process.write_due_us.is_none() {
                    process.write_due_us = Some(now_us + process.disk_slow_us);
                    self.fired.note(FaultKind::SlowDisk);
                    return self.arrange(store);
                }
                process.write_due_us = None;
            }
            if thread == StoreThread::Chores {
                self.ambush_store(store, Sight::Chore);
            }
            let process = &mut self.processes[store as usize - 1];
            let Some(running) = process.running.as_mut() else { return };
            let statuses = run(running, thread, &mut self.random);
            let (name, number) = describe(thread);
            self.record(store, 0, &Event::Ran { thread: name, number });
            self.look_at(store, lives, &statuses);
        }
        self.settle(store);
    }

    fn look_at(&mut self, store: u64, lives: u64, statuses: &[RegionStatus]) {
        for status in statuses {
            let stands = Event::Stands {
                role: status.role as u64,
                term: status.term.get(),
                committed: status.committed.get(),
                applied: status.applied.get(),
                last: status.last.get(),
            };
            self.record(store, status.description.id.get(), &stands);
            self.clients.directory.look(store, status);
            self.ambush_region(store, status);
            if status.asleep {
                self.fired.note(FaultKind::Slept);
            }
        }
        self.watch.check(store, lives, statuses, &mut self.around.ledger.lock());
    }

    /// After anything that a store may have done: its messages leave, its answers are heard, its end is
    /// noticed.
    pub(crate) fn settle(&mut self, store: u64) {
        let wrote = std::mem::take(&mut self.process(store).device.troubles.lock().wrote);
        for (regions, entries, synced) in wrote {
            self.record(store, 0, &Event::Wrote { regions, entries, synced });
        }
        self.carry();
        self.hear();
        let Some(running) = &self.process(store).running else { return };
        let (alive, failure) = (running.life.is_alive(), running.store.handle().failure());
        let set_aside = running.store.handle().set_aside();
        if !alive {
            self.fired.note(FaultKind::CrashInsideStep);
            let down_us = self.random.within(50_000..1_500_000);
            self.bury(store);
            return self.start_in(store, down_us);
        }
        if let Some(failure) = failure {
            let excused = self.process(store).device.troubles.lock().has_failed();
            if !excused {
                let text = format!("store {store} stopped by itself: {failure}");
                self.around.ledger.lock().violate("stores go on", text);
            }
            // Somebody restarts it, once he has noticed.
            self.record(store, 0, &Event::Failed);
            let after_us = self.random.within(50_000..2_000_000);
            self.shut_down(store);
            return self.start_in(store, after_us);
        }
        let device = self.process(store).device.clone();
        // The split that would bring a region its contents again is in its parent's log.
        let parent = |region: RegionId| {
            let ledger = self.around.ledger.lock();
            ledger.birth(region.get()).map(|birth| RegionId::new(birth.parent))
        };
        let excuse = |region| device.troubles.lock().excuse(region);
        let excused = |region| excuse(region) || parent(region).is_some_and(excuse);
        let unexcused = set_aside.into_iter().find(|(region, _)| !excused(*region));
        if let Some((region, reason)) = unexcused {
            let text = format!("region {region} of store {store} was set aside: {reason}");
            self.around.ledger.lock().violate("regions go on", text);
        }
        self.arrange(store);
    }

    /// Takes over what stores have handed to the network.
    pub(crate) fn carry(&mut self) {
        let now_us = self.agenda.now_us();
        let packets = std::mem::take(&mut self.around.outgoing.lock().packets);
        for packet in packets {
            for envelope in &packet.messages {
                let message = &envelope.message;
                let sent = Event::Sent {
                    to: packet.to,
                    kind: message.msg_type as i32,
                    term: message.term,
                    index: message.index,
                    commit: message.commit,
                    entries: message.entries.len(),
                    reject: message.reject,
                };
                self.trace.record(now_us, packet.from, envelope.region_id.get(), &sent);
            }
            for arrival in self.network.take(now_us, packet) {
                self.agenda.add(arrival.at_us, Occasion::Arrive(arrival));
            }
        }
    }

    fn hear(&mut self) {
        crate::moves::hear(self);
        let told = self.clients.hear(self.agenda.now_us(), &mut self.around.ledger.lock());
        for told in told {
            let record = self.clients.records()[told.operation as usize];
            let (index, term) = match record.outcome {
                crate::check::Outcome::Done { index, term, .. } => (index, term),
                _ => (0, 0),
            };
            let answered =
                Event::Answered { operation: told.operation, index, term, error: told.error };
            self.record(record.store, record.region, &answered);
            if told.client == NOBODY || !self.load || !self.clients.is_free(told.client) {
                continue;
            }
            // After a refusal a client waits a while.
            let mut pause_us = self.clients.think_us();
            if !told.error.is_empty() {
                pause_us += self.random.within(2_000..50_000);
            }
            let turn = self.clients.turn(told.client);
            self.agenda.add_in(pause_us, Occasion::Client { client: told.client, turn });
        }
    }

    /// A client's turn: it asks for something, or gives up waiting and does.
    fn client(&mut self, client: u64, turn: u64) {
        if !self.load || self.clients.turn(client) != turn {
            return;
        }
        let number = self.clients.next(self.agenda.now_us(), client);
        self.ask(number);
        let turn = self.clients.turn(client);
        let patience_us = self.clients.patience_us();
        self.agenda.add_in(patience_us, Occasion::Client { client, turn });
    }

    /// Asks the store that an operation is for.
    pub(crate) fn ask(&mut self, number: u64) {
        let record = self.clients.records()[number as usize];
        let (client, key, through) = (record.client, record.operation.key, record.through);
        let leader_only = record.leader_only;
        let event = match through {
            Through::Log => Event::Proposed { client, operation: number, key },
            _ => Event::Read { client, operation: number, key, through, leader_only },
        };
        self.record(record.store, record.region, &event);
        let now_us = self.agenda.now_us();
        let process = &mut self.processes[record.store as usize - 1];
        // Leases are compared with the clock as it is now.
        process.set_clock(now_us);
        self.clients.ask(number, process.running.as_ref());
        self.settle(record.store);
    }

    /// Asks a region for service, again and again until it answers or its time is over.
    fn probe(&mut self, number: usize) {
        let probe = self.probes[number];
        let outcome = probe.operation.map(|last| self.clients.records()[last as usize].outcome);
        if matches!(outcome, Some(Outcome::Done { .. })) || probe.answered {
            self.probes[number].answered = true;
            return;
        }
        if self.agenda.now_us() >= probe.by_us {
            let known = self.clients.directory.get(probe.region).description.clone();
            let mut text = format!(
                "region {} was not served until {} ms; {known:?}",
                probe.region,
                probe.by_us / 1000
            );
            for store in 1..=self.plan.cluster.stores {
                if let Some(running) = &mut self.process(store).running {
                    let status =
                        running.store.region_status(raftstore::RegionId::new(probe.region));
                    text += &format!("\nstore {store}: {status:?}");
                }
            }
            return self.around.ledger.lock().violate("every region is served", text);
        }
        if matches!(outcome, Some(Outcome::Pending)) {
            // No answer within a tick: this one does not lead any more. (One that has refused may have said who does.)
            self.clients.try_another(probe.region);
        }
        let now_us = self.agenda.now_us();
        let leader = self.clients.leader(probe.region);
        let value = self.clients.records().len() as u64;
        let operation = self.clients.record(
            now_us,
            NOBODY,
            (self.table_of(probe.region), probe.region, leader),
            PROBE_KEY,
            Kind::Write(value),
        );
        self.probes[number].operation = Some(operation);
        self.ask(operation);
        let tick_us = self.plan.cluster.tick_ms * 1000;
        self.agenda.add_in(tick_us, Occasion::Probe { probe: number });
    }

    /// From now on every region must be served within this time.
    pub(crate) fn expect_service(&mut self, within_us: u64) {
        let by_us = self.agenda.now_us() + within_us;
        for region in self.clients.directory.ids() {
            let probe = self.probes.len();
            self.probes.push(Probe { region, by_us, operation: None, answered: false });
            self.agenda.add_in(1, Occasion::Probe { probe });
        }
    }

    /// The table that a region's registers belong to.
    pub(crate) fn table_of(&self, region: u64) -> u64 {
        let start = &self.clients.directory.get(region).description.start_key;
        start.get(..8).and_then(|table| table.try_into().ok()).map_or(0, u64::from_be_bytes)
    }

    pub(crate) fn act(&mut self, action: &Action) {
        crate::actions::begin(self, action);
    }

    pub(crate) fn undo(&mut self, action: &Action) {
        crate::actions::end(self, action);
    }
}

fn run(
    running: &mut crate::process::Running,
    thread: StoreThread,
    random: &mut Random,
) -> Vec<RegionStatus> {
    if let StoreThread::Poller(poller) = thread {
        // Sometimes one region alone, out of turn; sometimes a poller helps another.
        if random.chance(200) {
            let scheduled = running.store.scheduled(poller);
            if !scheduled.is_empty() {
                return running.store.run_region(poller, *random.pick(&scheduled));
            }
        } else if random.chance(20) {
            running.store.steal(poller);
        }
    }
    running.store.run(thread)
}

fn describe(thread: StoreThread) -> (&'static str, usize) {
    match thread {
        StoreThread::Poller(number) => ("poller", number),
        StoreThread::LogWriter(number) => ("log writer", number),
        StoreThread::Snapshots => ("snapshots", 0),
        StoreThread::Chores => ("chores", 0),
        StoreThread::Apply(number) => ("apply", number),
    }
}
