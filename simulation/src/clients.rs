//! Clients: each has one operation under way, finds leaders, gives up, goes on.

use crate::check::{ClientId, Kind, Ledger, Moment, OperationId, Outcome, Register, Through};
use crate::directory::Directory;
use crate::faults::{FaultKind, Fired};
use crate::life::Life;
use crate::machine::table_key;
use crate::operation::{decode_output, Operation};
use crate::plan::{ClusterPlan, LoadPlan};
use crate::process::{describe, Running, MAX_PROPOSAL_BYTES};
use crate::random::Random;
use crate::reads::{Manner, ReadOutcome};
use parking_lot::Mutex;
use raftstore::{Answer, ProposeError, RegionEpoch, RegionId, Write};
use std::sync::Arc;

/// Registers from this one on are for bursts, whose operations overlap by the hundred.
pub(crate) const FIRST_BURST_KEY: u64 = 1000;

/// The register that probes write.
pub(crate) const PROBE_KEY: u64 = FIRST_BURST_KEY - 1;

/// The client of operations that no client does: bursts and probes.
pub(crate) const NOBODY: u64 = u64::MAX;

/// An operation, and what its client knows of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Record {
    /// Who asked.
    pub client: u64,
    /// Which table: the region that its register belonged to at first.
    pub table: u64,
    /// Which region.
    pub region: u64,
    /// Which store.
    pub store: u64,
    /// What.
    pub operation: Operation,
    /// Which way.
    pub through: Through,
    /// Whether a store that does not lead must refuse it.
    pub leader_only: bool,
    /// Whether it was not answered at once.
    pub waited: bool,
    /// When.
    pub at: Moment,
    /// What became of it.
    pub outcome: Outcome,
    /// How often its callback ran while the store lived.
    pub answers: u32,
    /// Why it must be refused, if it must.
    pub doomed: Option<&'static str>,
    /// Whether its store has ended without an answer, as far as anybody can tell.
    pub orphaned: bool,
}

/// What a callback brings.
#[derive(Debug)]
pub(crate) enum Heard {
    /// Of what went through the log.
    Answer(Answer),
    /// Of what went beside it.
    Seen(ReadOutcome),
}

/// Answers as they come in from callbacks.
type Inbox = Arc<Mutex<Vec<(u64, Heard)>>>;

#[derive(Debug)]
struct Client {
    /// Under way.
    operation: Option<u64>,
    /// Counts its turns: an appointment for an earlier one is void.
    turn: u64,
    /// To be read back.
    written: Option<(u64, u64)>,
}

/// An answer that concerns a client.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Told {
    /// The operation.
    pub operation: u64,
    /// The client, or [`NOBODY`].
    pub client: u64,
    /// `""` for success.
    pub error: &'static str,
}

/// All clients and all operations.
pub(crate) struct Clients {
    pub(crate) load: LoadPlan,
    pub(crate) cluster: ClusterPlan,
    pub(crate) random: Random,
    clients: Vec<Client>,
    pub(crate) records: Vec<Record>,
    pub(crate) inbox: Inbox,
    /// The regions.
    pub directory: Directory,
    /// Counts proposals and answers: the order in which clients see the world.
    moments: u64,
    /// What has struck.
    pub fired: Fired,
}

impl Clients {
    /// Clients that have done nothing yet.
    pub(crate) fn new(load: &LoadPlan, cluster: &ClusterPlan, random: Random) -> Self {
        let client = |_| Client { operation: None, turn: 0, written: None };
        Self {
            load: load.clone(),
            cluster: cluster.clone(),
            clients: (0..load.clients).map(client).collect(),
            records: Vec::new(),
            inbox: Arc::default(),
            directory: Directory::new((1..=cluster.regions).map(|id| describe(cluster, id))),
            moments: 0,
            random,
            fired: Fired::default(),
        }
    }

    /// All operations, by number.
    pub(crate) fn records(&self) -> &[Record] {
        &self.records
    }

    /// The turn that a client is at.
    pub(crate) fn turn(&self, client: u64) -> u64 {
        self.clients[client as usize].turn
    }

    /// The store that a region's next operation goes to.
    pub(crate) fn leader(&self, region: u64) -> u64 {
        self.directory.get(region).leader
    }

    /// A time to think.
    pub(crate) fn think_us(&mut self) -> u64 {
        self.random.within(self.load.think_us.0..self.load.think_us.1 + 1)
    }

    /// How long a client waits.
    pub(crate) fn patience_us(&self) -> u64 {
        self.load.patience_us
    }

    /// A client's next operation, after its last one was answered or given up. Returns its number.
    pub(crate) fn next(&mut self, now_us: u64, client: u64) -> u64 {
        let of = &mut self.clients[client as usize];
        of.turn += 1;
        let given_up = of.operation.take();
        let read_back = of.written.take().filter(|_| self.random.chance(500));
        if let Some(operation) = given_up {
            let Record { region, store, .. } = self.records[operation as usize];
            if store == self.leader(region) {
                // It may be the leader that is gone.
                self.try_another(region);
            }
        }
        let draw = self.random.below(1000);
        let manner = self.manner(draw);
        let random = &mut self.random;
        let (table, key, kind) = match read_back {
            Some((table, key)) => (table, key, Kind::Read),
            None => {
                let hot = random.chance(self.load.hot_pm);
                let table = if hot { 1 } else { 1 + random.below(self.cluster.regions) };
                let key = random.below(self.load.keys);
                // Every value is written once only: a read tells which write it saw.
                let value = self.records.len() as u64;
                let kind = if manner.is_some() {
                    Kind::Read
                } else if draw >= 1000 - self.load.compare_pm {
                    let expected = self.guess(table, key);
                    Kind::CompareAndSet { expected, new: value }
                } else {
                    Kind::Write(value)
                };
                (table, key, kind)
            }
        };
        let region = self.directory.holder(&table_key(table, key));
        let to = (table, region, self.leader(region));
        let number = self.record(now_us, client, to, key, kind);
        if kind == Kind::Read {
            // What was written is also read back where the draw says that it is not a read's turn.
            self.set_manner(number, manner.unwrap_or(Manner::Log));
        }
        self.clients[client as usize].operation = Some(number);
        number
    }

    /// What a register may hold: what the last answer about it has said.
    fn guess(&self, table: u64, key: u64) -> Option<u64> {
        let recent = self.records.iter().rev().take(64);
        let mut about =
            recent.filter(|record| record.table == table && record.operation.key == key);
        about.find_map(|record| match record.outcome {
            Outcome::Done { output, .. } => Some(record.operation.kind.after(output)),
            _ => None,
        })?
    }

    /// Notes an operation that is about to be proposed: of a table, to a region and a store.
    pub(crate) fn record(
        &mut self,
        now_us: u64,
        client: u64,
        to: (u64, u64, u64),
        key: u64,
        kind: Kind,
    ) -> u64 {
        let (table, region, store) = to;
        let number = self.records.len() as u64;
        let at = self.moment(now_us);
        self.records.push(Record {
            client,
            table,
            region,
            store,
            operation: Operation { id: number, key, kind },
            through: Through::Log,
            leader_only: false,
            waited: false,
            at,
            outcome: Outcome::Pending,
            answers: 0,
            doomed: None,
            orphaned: false,
        });
        number
    }

    /// Asks the store that an operation is for; `None`: that one does not run.
    pub(crate) fn ask(&mut self, number: u64, running: Option<&Running>) {
        match self.records[number as usize].through {
            Through::Log => self.propose(number, running),
            _ => self.look(number, running),
        }
    }

    fn propose(&mut self, number: u64, running: Option<&Running>) {
        let record = self.records[number as usize];
        let Some(running) = running else {
            // The connection is refused.
            let region_id = RegionId::new(record.region);
            let refused = Heard::Answer(Err(ProposeError::Stopped { region_id }));
            self.inbox.lock().push((number, refused));
            return;
        };
        let ballast = self.ballast();
        let encoded = record.operation.encode(ballast);
        if encoded.len() as u64 > MAX_PROPOSAL_BYTES {
            self.records[number as usize].doomed = Some("too large");
        }
        let mut write = Write::new(encoded);
        if record.client != NOBODY && self.cluster.regions_move {
            let key = table_key(record.table, record.operation.key);
            write = write.at_epoch(self.directory.epoch(record.region, &key));
        }
        if record.client != NOBODY && self.random.chance(self.load.wrong_epoch_pm) {
            self.fired.note(FaultKind::WrongEpoch);
            self.records[number as usize].doomed = Some("of a wrong epoch");
            write = write.at_epoch(RegionEpoch { conf_ver: 1, version: 1 << 40 });
        }
        let (inbox, life) = (self.inbox.clone(), running.life.clone());
        let held = running.callbacks.clone();
        let callback = move |answer: Answer| {
            tell(&inbox, &life, number, answer);
            drop(held);
        };
        running.store.handle().propose_with(RegionId::new(record.region), write, callback);
    }

    /// The next moment that a client can tell from others.
    fn moment(&mut self, time_us: u64) -> Moment {
        self.moments += 1;
        Moment { sequence: self.moments, time_us }
    }

    /// The operations of all clients, as the checkers take them, each with the region that it went to.
    pub(crate) fn history(&self) -> Vec<(u64, crate::check::Operation)> {
        let operation = |record: &Record| crate::check::Operation {
            id: OperationId(record.operation.id),
            client: ClientId(record.client),
            register: Register { region: record.table, key: record.operation.key },
            kind: record.operation.kind,
            through: record.through,
            invoked_at: record.at,
            outcome: record.outcome,
        };
        self.records.iter().map(|record| (record.region, operation(record))).collect()
    }

    fn ballast(&mut self) -> usize {
        if !self.random.chance(self.load.big_pm) {
            return 0;
        }
        self.fired.note(FaultKind::BigValue);
        // One in eight is too large.
        self.random.below(MAX_PROPOSAL_BYTES + MAX_PROPOSAL_BYTES / 8) as usize
    }

    /// Takes what callbacks have brought, and says whom it concerns.
    pub(crate) fn hear(&mut self, now_us: u64, ledger: &mut Ledger) -> Vec<Told> {
        let answers = std::mem::take(&mut *self.inbox.lock());
        let answers = answers.into_iter();
        answers.map(|(number, heard)| self.hear_one(now_us, number, &heard, ledger)).collect()
    }

    fn hear_one(&mut self, now_us: u64, number: u64, heard: &Heard, ledger: &mut Ledger) -> Told {
        let at = self.moment(now_us);
        let record = &mut self.records[number as usize];
        record.answers += 1;
        if record.answers > 1 {
            ledger.violate("one answer", format!("{record:?} was answered again: {heard:?}"));
        }
        let client = record.client;
        let error = match heard {
            Heard::Answer(answer) => self.hear_answer(at, number, answer, ledger),
            Heard::Seen(seen) => self.hear_read(at, number, seen, ledger),
        };
        self.note(number, error);
        Told { operation: number, client, error }
    }

    /// The answer to what went through the log. Returns the error in a word.
    fn hear_answer(
        &mut self,
        at: Moment,
        number: u64,
        answer: &Answer,
        ledger: &mut Ledger,
    ) -> &'static str {
        let record = &mut self.records[number as usize];
        let (region, store) = (record.region, record.store);
        match answer {
            Ok(response) => {
                if let Some(why) = record.doomed {
                    let text = format!("an operation {why} has happened: {record:?}");
                    ledger.violate("what must be refused is refused", text);
                }
                let (index, term) = (response.index.get(), response.term.get());
                match decode_output(&response.value) {
                    Some(output) => record.outcome = Outcome::Done { at, term, index, output },
                    None => ledger.violate("answers arrive whole", format!("{record:?}")),
                }
                ""
            }
            Err(error) => {
                if !error.may_have_happened() {
                    record.outcome = Outcome::Refused;
                }
                self.learn(region, store, error);
                error.label()
            }
        }
    }

    /// A client goes on after this answer, if it is still waiting for it.
    fn note(&mut self, number: u64, error: &'static str) {
        let record = self.records[number as usize];
        let Some(client) = self.clients.get_mut(record.client as usize) else { return };
        if client.operation != Some(number) {
            return;
        }
        client.operation = None;
        client.turn += 1;
        let writes = !matches!(record.operation.kind, Kind::Read);
        client.written =
            (writes && error.is_empty()).then_some((record.table, record.operation.key));
    }

    /// Whether a client has nothing under way.
    pub(crate) fn is_free(&self, client: u64) -> bool {
        self.clients[client as usize].operation.is_none()
    }

    fn learn(&mut self, region: u64, store: u64, error: &ProposeError) {
        match error {
            ProposeError::NotLeader { leader: Some(peer), .. } if peer.store.get() != store => {
                self.directory.set_leader(region, peer.store.get());
            }
            ProposeError::Busy { reason: "the mailbox is full", .. } => {
                self.fired.note(FaultKind::MailboxOverflow);
            }
            ProposeError::Busy { .. } => {}
            ProposeError::TooLarge { .. } | ProposeError::EpochNotMatch { .. } => {}
            _ => self.try_another(region),
        }
    }

    /// A region's next operation goes to some store that holds it.
    pub(crate) fn try_another(&mut self, region: u64) {
        let stores = self.directory.stores_of(region);
        let store = *self.random.pick(&stores);
        self.directory.set_leader(region, store);
    }

    /// An operation that a store has taken and not answered.
    pub(crate) fn unanswered(&self, store: u64) -> Option<Record> {
        let mut open = self.records.iter().filter(|record| record.store == store);
        open.find(|record| record.answers == 0 && !record.orphaned).copied()
    }

    /// A store has ended: what it has not answered stays open for ever.
    pub(crate) fn orphan(&mut self, store: u64) {
        self.directory.forget_leader(store);
        let open = self.records.iter_mut().filter(|record| record.store == store);
        open.filter(|record| record.answers == 0).for_each(|record| record.orphaned = true);
    }
}

/// Runs in the callback. What a process that is gone says is not heard.
fn tell(inbox: &Inbox, life: &Life, number: u64, answer: Answer) {
    if life.is_alive() {
        inbox.lock().push((number, Heard::Answer(answer)));
    }
}
