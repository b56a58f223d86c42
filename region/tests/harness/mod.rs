//! Peers of one region on stores without threads: every message, write and batch waits until
//! somebody moves it.
//!
//! Checked all the time, whatever the test does:
//! - one leader a term;
//! - no two peers apply different commands at the same index, and none goes back;
//! - no message leaves that promises what a crash right now would break;
//! - a read that is not stale shows everything that was acknowledged, or shown by another one, before it began;
//! - every proposal, and every read, is answered at most once, and exactly once when the cluster ends.
#![allow(dead_code, unreachable_pub, reason = "each test file uses a part of it")]

pub mod disk;
pub mod print;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write as _;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use raft::eraftpb::MessageType;
use region::*;

use disk::Disk;

pub const REGION: RegionId = RegionId::new(1);
pub const CLUSTER: u64 = 7;

/// Time that passes with each tick of any peer. So no peer ticks more often in a lease than time allows.
pub const TICK: Duration = Duration::from_millis(10);

type ReadAnswers = Arc<Mutex<Vec<(String, ReadAnswer)>>>;
type Answers = Arc<Mutex<Vec<(String, Answer)>>>;

/// The state machine of a peer: the commands applied, in order.
#[derive(Clone, Default)]
pub struct Machine {
    pub commands: BTreeMap<u64, Bytes>,
    pub applied: Option<AppliedState>,
}

/// One store with its peer.
pub struct Store {
    pub id: u64,
    pub region: Option<Region>,
    pub disk: Arc<Disk>,
    pub machine: Machine,
    /// What of the machine survives a crash.
    pub flushed: Machine,
    /// Handed to the log writer.
    pub writes: VecDeque<LogWrite>,
    /// Handed to the state machine.
    pub batches: VecDeque<ApplyBatch>,
    pub compact_request: Option<Index>,
    pub failure: Option<RegionFailure>,
    /// Contents that came with a snapshot, complete.
    pub staged: Option<Machine>,
    /// The region left; what it was then.
    pub removed: Option<Removal>,
    /// Peers that want a snapshot.
    pub wanted: Vec<PeerId>,
    /// Since when the peer sleeps.
    asleep_since: Option<Duration>,
}

/// The whole of it.
pub struct Cluster {
    pub config: Arc<RegionConfig>,
    pub description: RegionDescription,
    pub stores: BTreeMap<u64, Store>,
    pub network: VecDeque<Box<Envelope>>,
    /// Everything ever sent, for those who like to repeat it.
    pub sent: Vec<Envelope>,
    pub cut: BTreeSet<u64>,
    pub answers: Answers,
    /// Somebody lies: agreement cannot be asked for, but nobody may panic.
    pub liars: bool,
    pub now: Duration,
    pub read_answers: ReadAnswers,
    /// Reads by name: where, and what they must show.
    reads: BTreeMap<String, (u64, Index)>,
    /// Of `read_answers`, so many are checked.
    checked: usize,
    /// The last index acknowledged to a proposer or shown to a reader.
    seen: Index,
    proposed: BTreeSet<String>,
    answered: BTreeSet<String>,
    leaders: BTreeMap<Term, u64>,
    history: BTreeMap<u64, (Term, Bytes)>,
}

pub fn default_config() -> RegionConfig {
    RegionConfig { seed: 1, lease: 8 * TICK, ..RegionConfig::new(CLUSTER) }
}

impl Cluster {
    pub fn new(voters: u64, learners: u64, config: RegionConfig) -> Self {
        config.validate().unwrap();
        let peer = |n| (PeerId::new(n), StoreId::new(n));
        let voting = (1..=voters).map(|n| Peer::voter(peer(n).0, peer(n).1));
        let learning =
            (voters + 1..=voters + learners).map(|n| Peer::learner(peer(n).0, peer(n).1));
        let description =
            RegionDescription::new(REGION, Bytes::new(), Bytes::new(), voting.chain(learning));
        let mut cluster = Self {
            config: Arc::new(config),
            stores: BTreeMap::new(),
            network: VecDeque::new(),
            sent: Vec::new(),
            cut: BTreeSet::new(),
            answers: Answers::default(),
            liars: false,
            now: Duration::ZERO,
            read_answers: ReadAnswers::default(),
            reads: BTreeMap::new(),
            checked: 0,
            seen: Index::new(0),
            proposed: BTreeSet::new(),
            answered: BTreeSet::new(),
            leaders: BTreeMap::new(),
            history: BTreeMap::new(),
            description,
        };
        for id in 1..=voters + learners {
            let record = RegionRecord::new(cluster.description.clone(), PeerId::new(id));
            cluster.create(id, &record);
        }
        cluster
    }

    /// A store with a peer that knows nothing of its region, or what the record says.
    pub fn create(&mut self, id: u64, record: &RegionRecord) {
        let store = Store {
            id,
            region: None,
            disk: Arc::new(Disk::new()),
            machine: Machine::default(),
            flushed: Machine::default(),
            writes: VecDeque::new(),
            batches: VecDeque::new(),
            compact_request: None,
            failure: None,
            staged: None,
            removed: None,
            wanted: Vec::new(),
            asleep_since: None,
        };
        store.disk.create(record);
        self.stores.insert(id, store);
        self.start(id).unwrap();
    }

    pub fn store(&mut self, id: u64) -> &mut Store {
        self.stores.get_mut(&id).unwrap()
    }

    pub fn region(&mut self, id: u64) -> &mut Region {
        let now = self.now;
        let region = self.store(id).region.as_mut().expect("the store is down");
        region.set_time(now);
        region
    }

    pub fn is_up(&self, id: u64) -> bool {
        self.stores[&id].region.is_some()
    }

    /// Brings a peer back from its disk.
    pub fn start(&mut self, id: u64) -> Result<(), RegionFailure> {
        let mut config = (*self.config).clone();
        config.incarnation = self.sent.len() as u64;
        let config = Arc::new(config);
        let store = self.store(id);
        // What goes through the disk is encoded, here as there.
        let record = store.disk.record().expect("it was created");
        if let Some(installing) = record.installing {
            let before = store.machine.applied.as_ref().map_or(Index::new(0), |state| state.index);
            if before < installing.index {
                store.machine = store.staged.clone().expect("a complete snapshot");
                store.flushed = store.machine.clone();
            }
        }
        let applied = store.machine.applied.as_ref();
        let applied = applied.map(|state| AppliedState::decode(&state.encode()).unwrap());
        let state = store.disk.restored(record, applied);
        let region = Region::restore(state, StoreId::new(id), config, store.disk.clone())?;
        store.region = Some(region);
        store.failure = None;
        Ok(())
    }

    /// The process ends. What is not synced is lost with it; `kill` loses unflushed applies too.
    pub fn stop(&mut self, id: u64, kill: bool) {
        let store = self.store(id);
        store.writes.clear();
        store.batches.clear();
        store.compact_request = None;
        match kill {
            true => store.machine = store.flushed.clone(),
            false => store.flushed = store.machine.clone(),
        }
        if let Some(mut region) = store.region.take() {
            let mut effects = Effects::default();
            if !kill {
                region.shutdown(&mut effects);
            }
            self.carry_out(id, effects, &mut String::new());
        }
    }

    pub fn propose(&mut self, id: u64, proposals: Vec<(String, Bytes, Option<RegionEpoch>)>) {
        let mut batch = Vec::new();
        for (name, payload, epoch) in proposals {
            assert!(self.proposed.insert(name.clone()), "{name} proposed twice");
            let answers = self.answers.clone();
            let callback =
                Callback::new(move |answer| answers.lock().unwrap().push((name, answer)));
            batch.push(Proposal { payload, epoch, callback, stamp: 1 });
        }
        let mut effects = Effects::default();
        self.region(id).propose(&mut batch, &mut effects);
        self.carry_out(id, effects, &mut String::new());
    }

    /// Wakes a peer, as one whose leader's store is lost or not.
    pub fn wake(&mut self, id: u64, lost: bool) {
        let since = self.note_sleep(id).unwrap_or(self.now);
        let silent = (self.now - since).as_nanos() / TICK.as_nanos();
        let leader = self.region(id).leader();
        self.region(id).wake(if lost { silent as usize } else { 0 });
        if let Some(leader) = leader.filter(|_| lost) {
            let _ = self.region(id).leader_lost(leader.store);
        }
    }

    /// A peer that sleeps gives up all it has in memory, and is made anew from what is left. Says whether it
    /// slept.
    pub fn chill(&mut self, id: u64) -> bool {
        let config = self.config.clone();
        let store = self.store(id);
        let Some(region) = store.region.take_if(|region| region.may_freeze()) else {
            return false;
        };
        // As in `start`.
        let incarnation = region.incarnation();
        let config = Arc::new(RegionConfig { incarnation, ..(*config).clone() });
        let thawed = region.freeze().thaw(StoreId::new(id), config, store.disk.clone());
        store.region = Some(thawed.expect("it was sound"));
        self.note_sleep(id);
        true
    }

    fn note_sleep(&mut self, id: u64) -> Option<Duration> {
        let now = self.now;
        let store = self.store(id);
        let asleep = store.region.as_ref().is_some_and(Region::is_asleep);
        store.asleep_since = asleep.then_some(store.asleep_since.unwrap_or(now));
        store.asleep_since
    }

    pub fn tick(&mut self, id: u64) {
        self.now += TICK;
        let mut effects = Effects::default();
        self.region(id).tick(&mut effects);
        self.carry_out(id, effects, &mut String::new());
    }

    /// Collects one Ready.
    pub fn collect(&mut self, id: u64, out: &mut String) -> bool {
        if !self.is_up(id) || !self.region(id).has_ready() {
            return false;
        }
        let mut effects = Effects::default();
        self.region(id).collect(&mut effects);
        self.carry_out(id, effects, out);
        true
    }

    fn carry_out(&mut self, id: u64, effects: Effects, out: &mut String) {
        if let Some(change) = effects.role_change {
            writeln!(out, "{id} {}", print::role_change(&change)).unwrap();
            if change.role == Role::Leader {
                let leader = *self.leaders.entry(change.term).or_insert(id);
                assert!(self.liars || leader == id, "two leaders in term {}", change.term);
            }
        }
        for envelope in effects.messages {
            writeln!(out, "{id} send {}", print::envelope(&envelope)).unwrap();
            self.send(envelope);
        }
        let store = self.stores.get_mut(&id).unwrap();
        if let Some(write) = effects.write {
            writeln!(out, "{id} write {}", print::write(&write)).unwrap();
            store.writes.push_back(write);
        }
        if let Some(batch) = effects.apply {
            writeln!(out, "{id} apply {}", print::batch(&batch)).unwrap();
            store.batches.push_back(batch);
        }
        if let Some(index) = effects.compact_request {
            writeln!(out, "{id} compact to {index}").unwrap();
            store.compact_request = Some(index);
        }
        if let Some(change) = effects.description_change {
            writeln!(out, "{id} is {}", print::region(&change.after)).unwrap();
        }
        if let Some((to, done)) = effects.transfer_ended {
            let outcome = if done { "leads" } else { "does not lead" };
            writeln!(out, "{id} has handed over: {to} {outcome}").unwrap();
        }
        for peer in effects.snapshots_wanted {
            writeln!(out, "{id} wants a snapshot for {peer}").unwrap();
            store.wanted.push(peer);
        }
        if let Some(removal) = effects.removed {
            writeln!(out, "{id} REMOVED from {}", print::region(&removal.description)).unwrap();
            store.removed = Some(removal);
        }
        if let Some(failure) = effects.fatal {
            writeln!(out, "{id} FAILED {failure}").unwrap();
            store.failure = Some(failure);
        }
        for (callback, answer) in effects.answers {
            callback.call(answer);
        }
        for (callback, answer) in effects.reads {
            callback.call(answer);
        }
        self.check_reads();
        self.note_sleep(id);
    }

    /// Reads; the names share a turn.
    pub fn read(&mut self, id: u64, names: &[String], mode: ReadMode, epoch: Option<RegionEpoch>) {
        let mut reads = Vec::new();
        for name in names {
            let floor = match mode {
                ReadMode::Stale { at_least } => at_least,
                _ => self.seen,
            };
            assert!(self.reads.insert(name.clone(), (id, floor)).is_none(), "{name} read twice");
            let (answers, name) = (self.read_answers.clone(), name.clone());
            let callback = ReadCallback::new(REGION, move |answer| {
                answers.lock().unwrap().push((name, answer));
            });
            reads.push(Read { mode, epoch, callback });
        }
        let mut effects = Effects::default();
        self.region(id).read(&mut reads, &mut effects);
        self.carry_out(id, effects, &mut String::new());
    }

    /// Whoever is answered looks now.
    fn check_reads(&mut self) {
        let answers = self.read_answers.lock().unwrap();
        for (name, answer) in &answers[std::mem::replace(&mut self.checked, answers.len())..] {
            let Some((id, floor)) = self.reads.get(name) else { continue };
            let Ok(point) = answer else { continue };
            let applied = self.stores[id].machine.applied.as_ref();
            let shown = applied.map_or(INITIAL_INDEX, |state| state.index);
            assert!(self.liars || shown >= *floor, "{name} shows {shown}, not {floor}: {point:?}");
            if point.way != ReadWay::Stale {
                self.seen = self.seen.max(shown);
            }
        }
        drop(answers);
    }

    /// The reads that are not answered.
    pub fn waiting_reads(&self) -> Vec<String> {
        self.reads.keys().cloned().collect()
    }

    /// The reads answered since the last call.
    pub fn take_reads(&mut self) -> Vec<(String, ReadAnswer)> {
        let answers = std::mem::take(&mut *self.read_answers.lock().unwrap());
        self.checked = 0;
        for (name, _) in &answers {
            assert!(self.reads.remove(name).is_some(), "{name} answered twice");
        }
        answers
    }

    /// What a message says must be true after a crash, too.
    fn check_promise(&self, envelope: &Envelope) {
        let (from, message) = (envelope.from.id.get(), &envelope.message);
        let disk = &self.stores[&envelope.from.store.get()].disk;
        let (term, vote) = disk.term_and_vote();
        let kept = match message.get_msg_type() {
            // Of an older term it tells what was true before a newer leader replaced it. Both became
            // durable at once, as if one after the other.
            MessageType::MsgAppendResponse => {
                message.reject || message.term < term || message.index <= disk.last_index()
            }
            MessageType::MsgRequestVote => message.term < term || vote == from,
            MessageType::MsgRequestVoteResponse => {
                message.reject || message.term < term || vote == message.to
            }
            _ => true,
        };
        // A pre-vote speaks of a term that nobody has yet.
        let future = matches!(
            message.get_msg_type(),
            MessageType::MsgRequestPreVote | MessageType::MsgRequestPreVoteResponse
        );
        assert!(kept, "not durable: {}", print::envelope(envelope));
        assert!(future || message.term <= term, "not durable: {}", print::envelope(envelope));
    }

    fn send(&mut self, envelope: Box<Envelope>) {
        if !self.liars {
            self.check_promise(&envelope);
        }
        self.sent.push((*envelope).clone());
        self.network.push_back(envelope);
    }

    /// Carries out the oldest write, and tells everybody.
    pub fn persist(&mut self, id: u64, out: &mut String) -> bool {
        let store = self.stores.get_mut(&id).unwrap();
        let Some(mut write) = store.writes.pop_front() else { return false };
        store.disk.write(&write);
        let proof = Persisted::after_sync(&write);
        let released = write.take_held().release(&proof);
        store.region.as_mut().unwrap().persisted(proof);
        writeln!(out, "{id} persisted #{}", write.number).unwrap();
        for envelope in released {
            writeln!(out, "{id} release {}", print::envelope(&envelope)).unwrap();
            self.send(envelope);
        }
        true
    }

    /// Applies the oldest batch, answers, and tells the region.
    pub fn apply(&mut self, id: u64) -> bool {
        let store = self.stores.get_mut(&id).unwrap();
        let Some(batch) = store.batches.pop_front() else { return false };
        if let Some(change) = batch.change {
            match change {
                RegionChange::Install => {
                    store.machine = store.staged.clone().expect("a complete snapshot");
                    store.flushed = store.machine.clone();
                }
                RegionChange::Split { children, callback, .. } => {
                    let mut all = vec![(*batch.applied.description).clone()];
                    all.extend(children);
                    let (index, term) = (batch.applied.index, batch.applied.term);
                    let value = Region::encode_answer(&all);
                    if let Some(callback) = callback {
                        callback.call(Ok(Response { region_id: REGION, term, index, value }));
                    }
                }
            }
            let index = batch.applied.index;
            store.machine.applied = Some(batch.applied);
            self.tell_applied(id, index);
            return true;
        }
        let before = store.machine.applied.as_ref().map_or(INITIAL_INDEX, |state| state.index);
        assert!(before < batch.applied.index, "{id} goes back from {before}");
        for command in batch.commands {
            let (index, term) = (command.index.get(), command.term);
            assert!(command.index > before);
            let said = (term, command.payload.clone());
            let first = self.history.entry(index).or_insert_with(|| said.clone());
            assert!(self.liars || *first == said, "{id} applies something else at {index}");
            store.machine.commands.insert(index, command.payload.clone());
            if let Some(callback) = command.callback {
                let value = command.payload;
                let (region_id, index) = (REGION, command.index);
                self.seen = self.seen.max(index);
                callback.call(Ok(Response { region_id, term, index, value }));
            }
        }
        let index = batch.applied.index;
        store.machine.applied = Some(batch.applied);
        self.tell_applied(id, index);
        true
    }

    fn tell_applied(&mut self, id: u64, index: Index) {
        let mut effects = Effects::default();
        let region = self.region(id);
        region.applied(index);
        region.answer_reads(&mut effects);
        self.carry_out(id, effects, &mut String::new());
    }

    /// Cuts the log as far as the machine is flushed.
    pub fn compact(&mut self, id: u64, out: &mut String) -> bool {
        let store = self.stores.get_mut(&id).unwrap();
        let flushed = store.flushed.applied.as_ref().map_or(INITIAL_INDEX, |state| state.index);
        let Some(request) = store.compact_request.take() else { return false };
        let region = store.region.as_mut().unwrap();
        if let Some(truncated) = region.compact_to(request.min(flushed)) {
            let truncated = TruncatedState::decode(&truncated.encode()).unwrap();
            store.disk.truncate(truncated);
            writeln!(out, "{id} truncated {}/{}", truncated.index, truncated.term).unwrap();
        }
        true
    }

    /// Makes a snapshot for a peer that wants one, of what the machine holds.
    pub fn make_snapshot(&mut self, id: u64) -> bool {
        let store = self.store(id);
        if store.wanted.is_empty() {
            return false;
        }
        let to = store.wanted.remove(0);
        let made = store.machine.applied.clone();
        store.region.as_mut().unwrap().snapshot_ready(to, made.as_ref());
        true
    }

    /// Asks for a change of the region.
    pub fn admin(
        &mut self,
        id: u64,
        name: &str,
        command: &AdminCommand,
        epoch: Option<RegionEpoch>,
    ) {
        let callback = self.callback(name);
        let proposal = Proposal { payload: Bytes::new(), epoch, callback, stamp: 1 };
        let mut effects = Effects::default();
        self.region(id).propose_admin(command, proposal, &mut effects);
        self.carry_out(id, effects, &mut String::new());
    }

    /// Asks for another leader.
    pub fn transfer(&mut self, id: u64, name: &str, target: Option<PeerId>) {
        let callback = self.callback(name);
        let mut effects = Effects::default();
        self.region(id).transfer_leader(target, callback, &mut effects);
        self.carry_out(id, effects, &mut String::new());
    }

    fn callback(&mut self, name: &str) -> Callback {
        assert!(self.proposed.insert(name.to_string()), "{name} proposed twice");
        let (answers, name) = (self.answers.clone(), name.to_string());
        Callback::new(move |answer| answers.lock().unwrap().push((name, answer)))
    }

    /// Delivers the oldest message that `pick` accepts. `None` if there is none.
    pub fn deliver(
        &mut self,
        pick: impl Fn(&Envelope) -> bool,
        out: &mut String,
    ) -> Option<Result<(), Rejection>> {
        let at = self.network.iter().position(|envelope| pick(envelope))?;
        let envelope = self.network.remove(at)?;
        let (from, to) = (envelope.from.store.get(), envelope.to.store.get());
        if self.cut.contains(&from) || self.cut.contains(&to) || !self.is_up(to) {
            return Some(Ok(()));
        }
        if envelope.message.get_msg_type() == MessageType::MsgSnapshot {
            // The contents arrive first.
            self.store(to).staged = Some(self.stores[&from].machine.clone());
        }
        // Over the wire and back.
        let envelope = Envelope::decode(&envelope.encode()).unwrap();
        let text = print::envelope(&envelope);
        let result = self.region(to).step(Box::new(envelope));
        if let Err(rejection) = &result {
            writeln!(out, "{to} rejects {text}: {}", rejection.label()).unwrap();
        }
        Some(result)
    }

    /// Moves everything until nothing moves any more.
    pub fn stabilize(&mut self, ids: &[u64], out: &mut String) {
        for _ in 0..10_000 {
            let mut moved = false;
            for &id in ids.iter().filter(|id| self.stores[id].region.is_some()).collect::<Vec<_>>()
            {
                moved |= self.collect(id, out);
                moved |= self.persist(id, out);
                moved |= self.apply(id);
                moved |= self.compact(id, out);
                moved |= self.make_snapshot(id);
            }
            let within = |envelope: &Envelope| {
                ids.contains(&envelope.from.store.get()) && ids.contains(&envelope.to.store.get())
            };
            while self.deliver(within, out).is_some() {
                moved = true;
            }
            if !moved {
                return;
            }
        }
        panic!("never stable");
    }

    /// The answers given since the last call.
    pub fn take_answers(&mut self) -> Vec<(String, Answer)> {
        let answers = std::mem::take(&mut *self.answers.lock().unwrap());
        for (name, _) in &answers {
            assert!(self.answered.insert(name.clone()), "{name} answered twice");
        }
        answers
    }

    /// Ends everything and checks that every proposal was answered.
    pub fn finish(&mut self) {
        for id in self.stores.keys().copied().collect::<Vec<_>>() {
            self.stop(id, true);
        }
        self.take_answers();
        self.take_reads();
        assert!(self.reads.is_empty(), "every read is answered once: {:?}", self.reads);
        assert_eq!(self.proposed, self.answered, "every proposal is answered once");
    }

    pub fn ids(&self) -> Vec<u64> {
        self.stores.keys().copied().collect()
    }

    pub fn history(&self) -> &BTreeMap<u64, (Term, Bytes)> {
        &self.history
    }
}
