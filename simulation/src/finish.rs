//! The end of a run: faults stop, the cluster heals, and everything must be well.

use crate::check::{
    by_register, check_register, Birth, Ledger, LogEntry, Moment, Operation, OperationId, Outcome,
    Register, Through, Verdict, Violation, Witness, WitnessError, Witnessed,
};
use crate::clients::PROBE_KEY;
use crate::machine::holds;
use crate::plan::Action;
use crate::world::World;
use raftstore::{Index, RegionId, RegionStatus};
use std::collections::BTreeMap;
use std::iter::Peekable;

/// Logs that are allowed more entries are not filled up to see them cut.
const MOST_ENTRIES: u64 = 100;

/// Bursts to all regions at once, after each of which everything must come to rest.
const LAST_BURSTS: usize = 4;

impl World {
    /// Ends all faults and the load, and sees to it that everything is served again within a time, all
    /// replicas are equal, logs are short, nobody waits, and nothing is left behind.
    pub(crate) fn finish(&mut self) -> Option<Violation> {
        self.note_cold();
        self.heal();
        let election_us = self.plan.cluster.election_us();
        // Two rounds of elections, a disk that was behind, and time to serve.
        self.expect_service(patience_us(election_us));
        let served = |world: &mut World| world.probes.iter().all(|probe| probe.answered);
        if !self.wait(patience_us(election_us) + 1_000_000, served) {
            return self.violation_or("every region is served", "a probe went on for ever");
        }
        // Whoever was removed in its sleep looks around first.
        if !self.wait(2 * patience_us(election_us), World::replicas_are_equal) {
            let text = self.describe_replicas();
            return self.violation_or("replicas are equal", &text);
        }
        let mut asked = BTreeMap::new();
        if !self.wait(patience_us(election_us), |world| world.is_read_everywhere(&mut asked)) {
            asked.retain(|_, read| !self.is_done(*read));
            let text = format!("by region and store: {asked:?}\n{}", self.describe_regions());
            return self.violation_or("every peer can be read from", &text);
        }
        if !self.wait(patience_us(election_us), World::nobody_waits) {
            return self.violation_or("every proposal is answered", "some are still waiting");
        }
        if !self.wait(patience_us(election_us), World::no_order_waits) {
            return self.violation_or("orders are reported once", "some are not reported");
        }
        if !self.cut_logs() {
            return self.violation_or("logs are cut", "a log is longer than twice its limit");
        }
        for _ in 0..LAST_BURSTS {
            for region in self.clients.directory.ids() {
                let store = self.clients.leader(region);
                self.act(&Action::Burst { store, region, count: 3 });
            }
            let at_rest = |world: &mut World| {
                world.nobody_waits() && world.nothing_is_half_done() && world.no_mailbox_leaks()
            };
            if !self.wait(patience_us(election_us), at_rest) {
                let text = self.describe_regions();
                return self.violation_or("nothing is left half done", &text);
            }
        }
        self.leave();
        self.judge();
        self.violation()
    }

    /// The history as a whole: does the log explain the answers, and do the answers alone make sense?
    fn judge(&mut self) {
        let history = self.clients.history();
        let mut ledger = self.around.ledger.lock();
        for region in self.clients.directory.ids() {
            match check_region(&ledger, &history, region) {
                Ok(witnessed) => self.checked.witnessed += witnessed.answered as u64,
                Err(error) => {
                    let text = format!("region {region}: {error}");
                    ledger.violate("linearizable by its log", text);
                }
            }
        }
        let history: Vec<Operation> = history.into_iter().map(|(_, operation)| operation).collect();
        for (register, operations) in by_register(&history) {
            if register.key >= PROBE_KEY {
                continue;
            }
            match check_register(&operations) {
                Verdict::Linearizable { .. } => self.checked.registers += 1,
                Verdict::NotLinearizable(error) => {
                    ledger.violate("linearizable by its answers", error.to_string());
                }
                Verdict::TooLong { .. } => self.checked.registers_too_long += 1,
            }
        }
    }

    fn heal(&mut self) {
        self.load = false;
        if let Some(placement) = &self.around.placement {
            placement.rest();
        }
        self.ambushes.heal();
        self.network.heal();
        self.around.outgoing.lock().full.clear();
        let now_us = self.agenda.now_us();
        for store in 1..=self.plan.cluster.stores {
            let process = self.process(store);
            process.set_clock(now_us);
            process.speed_pm = 1000;
            process.paused = false;
            process.stalled.clear();
            process.disk_hangs_until_us = 0;
            process.disk_slow_us = 0;
            if let Some(running) = &process.running {
                running.life.end_after(u64::MAX);
            }
            process.device.troubles.lock().heal();
            if let Some(files) = &process.files {
                files.files.set_capacity(None);
            }
            crate::actions::repair(self, store);
            if self.process(store).running.is_none() {
                self.start(store);
            }
            self.arrange(store);
        }
    }

    /// Lets things happen until a condition holds. False: it did not in this time, or a rule is broken.
    fn wait(&mut self, for_us: u64, mut until: impl FnMut(&mut World) -> bool) -> bool {
        let end_us = self.agenda.now_us() + for_us;
        loop {
            if until(self) {
                return true;
            }
            let next_us = self.agenda.now_us() + 50_000;
            if next_us > end_us || !self.run_until(next_us) {
                return false;
            }
        }
    }

    fn violation_or(&self, rule: &'static str, text: &str) -> Option<Violation> {
        self.violation().or_else(|| Some(Violation { rule, text: text.to_owned() }))
    }

    /// Also: whoever has left a region has nothing of it any more.
    fn replicas_are_equal(&mut self) -> bool {
        self.clients.directory.ids().into_iter().all(|region| {
            let stores = self.clients.directory.stores_of(region);
            let first = self.contents(stores[0], region);
            let mut others = (1..=self.plan.cluster.stores).filter(|id| !stores.contains(id));
            let gone = others.all(|store| self.contents(store, region).1 == Index::default());
            gone && stores[1..].iter().all(|store| self.contents(*store, region) == first)
        })
    }

    /// Whether a read of everything acknowledged has succeeded on each peer. Asks those where none has; `asked`
    /// has the last question to each.
    fn is_read_everywhere(&mut self, asked: &mut BTreeMap<(u64, u64), u64>) -> bool {
        let mut everywhere = true;
        for region in self.clients.directory.ids() {
            for store in self.clients.directory.stores_of(region) {
                let last = asked.get(&(region, store)).copied();
                if last.is_some_and(|read| self.is_done(read)) {
                    continue;
                }
                everywhere = false;
                let waits = |read| self.clients.records()[read as usize].answers == 0;
                if !last.is_some_and(waits) {
                    let to = (self.table_of(region), region, store);
                    let now_us = self.agenda.now_us();
                    let read = self.clients.record_read(now_us, to, PROBE_KEY);
                    asked.insert((region, store), read);
                    self.ask(read);
                }
            }
        }
        everywhere
    }

    fn contents(&self, store: u64, region: u64) -> (std::collections::BTreeMap<u64, u64>, Index) {
        let machine = self.processes[store as usize - 1].machine.lock();
        machine.contents(RegionId::new(region))
    }

    fn describe_replicas(&self) -> String {
        let mut text = String::new();
        for region in self.clients.directory.ids() {
            let known = &self.clients.directory.get(region).description;
            text += &format!("region {region}: epoch {:?}, peers {:?}\n", known.epoch, known.peers);
            for store in 1..=self.plan.cluster.stores {
                let (registers, applied) = self.contents(store, region);
                text += &format!("  store {store}: applied {applied}, {registers:?}\n");
            }
        }
        text
    }

    /// Whether every operation that a living store has taken is answered.
    fn nobody_waits(&mut self) -> bool {
        (1..=self.plan.cluster.stores).all(|store| self.clients.unanswered(store).is_none())
    }

    fn no_order_waits(&mut self) -> bool {
        self.around.placement.as_ref().is_none_or(|placement| placement.is_answered())
    }

    /// Writes until the logs have to be cut, and looks whether they are.
    fn cut_logs(&mut self) -> bool {
        let limit = self.plan.cluster.compact_after_entries;
        let patience_us = patience_us(self.plan.cluster.election_us());
        if limit > MOST_ENTRIES {
            return true;
        }
        // In small steps: a peer cuts its log no further than it has flushed when it is told to cut.
        let count = (limit / 4).clamp(1, 20);
        for _ in 0..2 * limit / count + 8 {
            for store in 1..=self.plan.cluster.stores {
                self.process(store).machine.lock().flush();
            }
            if self.logs_are_short() {
                return true;
            }
            for region in self.clients.directory.ids() {
                let store = self.clients.leader(region);
                self.act(&Action::Burst { store, region, count });
            }
            let settled = |world: &mut World| world.nobody_waits() && world.replicas_are_equal();
            if !self.wait(patience_us, settled) {
                return false;
            }
        }
        false
    }

    /// Whether every region has persisted, committed and applied all of its log, and knows it.
    fn nothing_is_half_done(&mut self) -> bool {
        self.statuses().iter().all(|(_, status)| {
            let at_rest = [status.applied, status.emitted, status.committed, status.persisted];
            at_rest.iter().all(|index| *index == status.last)
                && status.pending_proposals == 0
                && status.unapplied_bytes == 0
        })
    }

    /// How all regions stand on all stores.
    fn statuses(&mut self) -> Vec<(u64, RegionStatus)> {
        let mut statuses = Vec::new();
        for region in self.clients.directory.ids() {
            for store in self.clients.directory.stores_of(region) {
                if let Some(running) = &mut self.process(store).running {
                    let status = running.store.region_status(RegionId::new(region));
                    statuses.extend(status.map(|status| (store, status)));
                }
                // It has had a turn, in which it may have done something.
                self.settle(store);
            }
        }
        statuses
    }

    fn describe_regions(&mut self) -> String {
        let lines = self.statuses();
        let lines = lines.iter().map(|(store, status)| format!("store {store}: {status:?}"));
        lines.collect::<Vec<_>>().join("\n")
    }

    fn logs_are_short(&mut self) -> bool {
        let limit = 2 * self.plan.cluster.compact_after_entries;
        self.clients.directory.ids().into_iter().all(|region| {
            let mut stores = self.clients.directory.stores_of(region).into_iter();
            stores.all(|store| {
                let applied = self.contents(store, region).1.get();
                let disk = self.process(store).device.disk.lock();
                let log = disk.current().regions.get(&RegionId::new(region));
                log.is_some_and(|log| applied - log.truncated.index.get() <= limit)
            })
        })
    }

    /// Whether nobody holds the mailbox of a region that is gone. A tick that is still to come does.
    fn no_mailbox_leaks(&self) -> bool {
        let mut running = self.processes.iter().filter_map(|process| process.running.as_ref());
        running.all(|running| running.store.leaked_mailboxes() == 0)
    }

    /// Everybody goes home in order.
    fn leave(&mut self) {
        for store in 1..=self.plan.cluster.stores {
            if let Some(running) = &self.process(store).running {
                let leaked = running.store.leaked_mailboxes();
                if leaked > 0 {
                    let text = format!("store {store}: {leaked} mailboxes");
                    self.around.ledger.lock().violate("no mailbox leaks", text);
                }
            }
            self.shut_down(store);
        }
    }

    fn is_done(&self, operation: u64) -> bool {
        matches!(self.clients.records()[operation as usize].outcome, Outcome::Done { .. })
    }

    /// Operations that were answered with success.
    pub(crate) fn done(&self) -> u64 {
        let done =
            |record: &&crate::clients::Record| matches!(record.outcome, Outcome::Done { .. });
        self.clients.records().iter().filter(done).count() as u64
    }
}

/// Confirms the operations that went to a region by its log.
fn check_region(
    ledger: &Ledger,
    history: &[(u64, Operation)],
    region: u64,
) -> Result<Witnessed, WitnessError> {
    let of_region = history.iter().filter(|(at, _)| *at == region);
    let operations: Vec<Operation> = of_region.map(|(_, operation)| *operation).collect();
    let mut witness = Witness::new(&operations)?;
    witness.hold(contents_at_birth(ledger, history, region));
    let mut splits = ledger.splits(region).into_iter().peekable();
    let mut looks = looks(&operations).into_iter().peekable();
    for (index, applied) in ledger.applied(region) {
        while let Some((saw, _, read)) = looks.next_if(|(saw, _, _)| *saw < index) {
            part(&mut witness, &mut splits, |birth| birth.index <= saw);
            witness.look(read)?;
        }
        part(&mut witness, &mut splits, |birth| birth.index < index);
        let (term, operation) = (applied.term, OperationId(applied.operation));
        witness.apply(LogEntry { index, term, operation })?;
    }
    for (saw, _, read) in looks {
        part(&mut witness, &mut splits, |birth| birth.index <= saw);
        witness.look(read)?;
    }
    witness.finish()
}

/// The reads that went beside the log and were answered: what they saw of the log, and when they were
/// invoked, in that order.
fn looks(operations: &[Operation]) -> Vec<(u64, Moment, OperationId)> {
    let look = |operation: &Operation| match (operation.through, operation.outcome) {
        (Through::Log, _) => None,
        (_, Outcome::Done { index, .. }) => Some((index, operation.invoked_at, operation.id)),
        _ => None,
    };
    let mut looks: Vec<_> = operations.iter().filter_map(look).collect();
    looks.sort_unstable();
    looks
}

/// A region parts with what was split off it.
fn part<'a>(
    witness: &mut Witness<'_>,
    splits: &mut Peekable<impl Iterator<Item = &'a Birth>>,
    is_due: impl Fn(&Birth) -> bool,
) {
    while let Some(birth) = splits.next_if(|birth| is_due(birth)) {
        witness.part_with(|register| holds(&birth.description, register.key));
    }
}

/// What a region that was split off began with: what its parent's log had made of its registers.
fn contents_at_birth(
    ledger: &Ledger,
    history: &[(u64, Operation)],
    region: u64,
) -> BTreeMap<Register, u64> {
    let Some(birth) = ledger.birth(region) else { return BTreeMap::new() };
    let mut values = contents_at_birth(ledger, history, birth.parent);
    let mut splits = ledger.splits(birth.parent).into_iter().peekable();
    for (index, applied) in ledger.applied(birth.parent) {
        if index > birth.index {
            break;
        }
        while let Some(earlier) = splits.next_if(|earlier| earlier.index < index) {
            values.retain(|register, _| !holds(&earlier.description, register.key));
        }
        // Operations are numbered by their place.
        let (_, operation) = history[applied.operation as usize];
        let held = values.get(&operation.register).copied();
        if let Some(value) = operation.kind.after(held) {
            values.insert(operation.register, value);
        }
    }
    while let Some(earlier) = splits.next_if(|earlier| earlier.index < birth.index) {
        values.retain(|register, _| !holds(&earlier.description, register.key));
    }
    values.retain(|register, _| holds(&birth.description, register.key));
    values
}

/// Within this time after all faults have stopped every region is served, with this election timeout.
pub(crate) fn patience_us(election_us: u64) -> u64 {
    6 * election_us + 1_000_000
}
