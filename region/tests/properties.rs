//! What must hold whatever happens, in whatever order.
//!
//! Proptest shrinks a failing history and writes it to `proptest-regressions/`.

mod harness;

use std::collections::BTreeSet;

use bytes::Bytes;
use harness::{default_config, Cluster};
use proptest::collection::vec;
use proptest::prelude::*;
use raft::eraftpb::{Entry, EntryType, MessageType, Snapshot};
use region::*;

/// Something that may happen at any time. Ids and picks are taken modulo what there is.
#[derive(Clone, Debug)]
enum Event {
    Campaign(u64),
    Tick(u64, u8),
    /// And whether its leader's store is taken for lost.
    Wake(u64, bool),
    Chill(u64),
    Propose(u64, u8, u16),
    Read(u64, u8),
    Collect(u64),
    Persist(u64),
    Apply(u64),
    Deliver(u16),
    DeliverMany(u8),
    Lose(u16),
    Repeat(u16),
    Crash(u64),
    /// Some writes reach the disk, and nobody hears of it.
    CrashLate(u64, u8),
    Restart(u64),
    Flush(u64),
    Cut(u64),
    Heal,
    Stabilize,
    Lie(u16, Lie),
}

/// How a message is spoiled.
#[derive(Clone, Debug)]
enum Lie {
    Type(u8, u64),
    Term(u64),
    Index(u64),
    LogTerm(u64),
    Commit(u64, u64),
    Hint(u64, bool),
    Entries(u8, u8),
    EntryIndex(u64),
    EntryTerm(u64),
    EntryKind,
    Header,
    Snapshot,
    RequestSnapshot,
    Context,
    Addresses(u64, u64),
    Identity(u64, u64, u64),
}

fn id() -> impl Strategy<Value = u64> {
    0..3u64
}

/// Numbers near those in use, and far from them.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![8 => 0..30u64, 1 => Just(u64::MAX), 1 => Just(u64::MAX / 2), 1 => any::<u64>()]
}

fn honest() -> impl Strategy<Value = Event> {
    prop_oneof![
        2 => id().prop_map(Event::Campaign),
        4 => (id(), 1..25u8).prop_map(|(id, n)| Event::Tick(id, n)),
        3 => (id(), any::<bool>()).prop_map(|(id, lost)| Event::Wake(id, lost)),
        2 => id().prop_map(Event::Chill),
        6 => (id(), 1..6u8, 0..400u16).prop_map(|(id, n, size)| Event::Propose(id, n, size)),
        6 => (id(), any::<u8>()).prop_map(|(id, mode)| Event::Read(id, mode)),
        12 => id().prop_map(Event::Collect),
        10 => id().prop_map(Event::Persist),
        8 => id().prop_map(Event::Apply),
        16 => any::<u16>().prop_map(Event::Deliver),
        6 => (1..20u8).prop_map(Event::DeliverMany),
        2 => any::<u16>().prop_map(Event::Lose),
        2 => any::<u16>().prop_map(Event::Repeat),
        2 => id().prop_map(Event::Crash),
        2 => (id(), 1..4u8).prop_map(|(id, n)| Event::CrashLate(id, n)),
        1 => id().prop_map(Event::Restart),
        2 => id().prop_map(Event::Flush),
        1 => id().prop_map(Event::Cut),
        2 => Just(Event::Heal),
        4 => Just(Event::Stabilize),
    ]
}

fn lie() -> impl Strategy<Value = Lie> {
    prop_oneof![
        3 => (0..19u8, number()).prop_map(|(kind, term)| Lie::Type(kind, term)),
        2 => number().prop_map(Lie::Term),
        2 => number().prop_map(Lie::Index),
        2 => number().prop_map(Lie::LogTerm),
        2 => (number(), number()).prop_map(|(commit, term)| Lie::Commit(commit, term)),
        2 => (number(), any::<bool>()).prop_map(|(hint, reject)| Lie::Hint(hint, reject)),
        2 => (0..4u8, 0..4u8).prop_map(|(cut, add)| Lie::Entries(cut, add)),
        1 => number().prop_map(Lie::EntryIndex),
        1 => number().prop_map(Lie::EntryTerm),
        1 => Just(Lie::EntryKind),
        1 => Just(Lie::Header),
        1 => Just(Lie::Snapshot),
        1 => Just(Lie::RequestSnapshot),
        1 => Just(Lie::Context),
        2 => (0..5u64, 0..5u64).prop_map(|(from, to)| Lie::Addresses(from, to)),
        1 => (0..9u64, 0..3u64, 0..5u64).prop_map(|(c, r, s)| Lie::Identity(c, r, s)),
    ]
}

fn dishonest() -> impl Strategy<Value = Event> {
    prop_oneof![
        3 => honest(),
        2 => (any::<u16>(), lie()).prop_map(|(pick, lie)| Event::Lie(pick, lie)),
    ]
}

fn spoil(envelope: &mut Envelope, lie: &Lie) {
    let message = &mut envelope.message;
    match *lie {
        Lie::Type(kind, term) => {
            message.msg_type = protobuf::ProtobufEnum::from_i32(i32::from(kind)).unwrap();
            message.term = message.term.max(term.min(40));
        }
        Lie::Term(term) => message.term = term,
        Lie::Index(index) => message.index = index,
        Lie::LogTerm(term) => message.log_term = term,
        Lie::Commit(commit, term) => (message.commit, message.commit_term) = (commit, term),
        Lie::Hint(hint, reject) => (message.reject_hint, message.reject) = (hint, reject),
        Lie::Entries(cut, add) => {
            for _ in 0..cut.min(message.entries.len() as u8) {
                message.entries.remove(0);
            }
            for n in 0..u64::from(add) {
                let (index, term) = (message.index + n + 1, message.term);
                message.entries.push(Entry { index, term, ..Entry::default() });
            }
        }
        Lie::EntryIndex(index) => message.entries.iter_mut().for_each(|e| e.index = index),
        Lie::EntryTerm(term) => message.entries.iter_mut().for_each(|e| e.term = term),
        Lie::EntryKind => {
            message.entries.iter_mut().for_each(|e| e.entry_type = EntryType::EntryConfChange);
        }
        Lie::Header => message.entries.iter_mut().for_each(|e| e.context = vec![3; 9].into()),
        Lie::Snapshot => {
            message.msg_type = MessageType::MsgSnapshot;
            message.set_snapshot(Snapshot::default());
        }
        Lie::RequestSnapshot => message.request_snapshot = 6,
        Lie::Context => message.context = "CampaignTransfer".into(),
        Lie::Addresses(from, to) => {
            (message.from, message.to) = (from, to);
            envelope.from = Peer::voter(PeerId::new(from), StoreId::new(from));
            envelope.to = Peer::voter(PeerId::new(to), StoreId::new(to));
        }
        Lie::Identity(cluster, region, store) => {
            envelope.cluster_id = cluster;
            envelope.region_id = RegionId::new(region);
            envelope.from.store = StoreId::new(store);
        }
    }
}

/// A history under way.
struct World {
    cluster: Cluster,
    proposed: usize,
    reads: usize,
    reads_ok: usize,
    ok: BTreeSet<String>,
    stale: BTreeSet<String>,
    log: String,
}

impl World {
    /// Three stores, some of which may hold learners.
    fn new(voters: u64) -> Self {
        let config = RegionConfig {
            max_committed_bytes_per_ready: 600,
            max_unapplied_bytes: 2_000,
            max_uncommitted_bytes: 4_000,
            max_proposal_bytes: 1_000,
            max_size_per_msg_bytes: 700,
            max_inflight_msgs: 4,
            entry_cache_bytes: 500,
            compact_after_entries: 12,
            compact_keep_entries: 2,
            sleep_after_ticks: 2,
            ..default_config()
        };
        Self {
            cluster: Cluster::new(voters, 3 - voters, config),
            proposed: 0,
            reads: 0,
            reads_ok: 0,
            ok: BTreeSet::new(),
            stale: BTreeSet::new(),
            log: String::new(),
        }
    }

    fn happen(&mut self, event: &Event) {
        let cluster = &mut self.cluster;
        let mut out = String::new();
        let up = |cluster: &Cluster, id: u64| cluster.is_up(id % 3 + 1).then_some(id % 3 + 1);
        match *event {
            Event::Campaign(id) => {
                up(cluster, id).into_iter().for_each(|id| _ = cluster.region(id).campaign());
            }
            Event::Tick(id, count) => {
                if let Some(id) = up(cluster, id) {
                    (0..count).for_each(|_| cluster.tick(id));
                }
            }
            Event::Wake(id, lost) => _ = up(cluster, id).map(|id| cluster.wake(id, lost)),
            Event::Chill(id) => _ = cluster.chill(id % 3 + 1),
            Event::Propose(id, count, size) => {
                if let Some(id) = up(cluster, id) {
                    self.propose(id, count, size);
                }
            }
            Event::Read(id, mode) => {
                if let Some(id) = up(cluster, id) {
                    self.read(id, mode);
                }
            }
            Event::Collect(id) => _ = cluster.collect(id % 3 + 1, &mut out),
            Event::Persist(id) => _ = cluster.persist(id % 3 + 1, &mut out),
            Event::Apply(id) => _ = cluster.apply(id % 3 + 1),
            Event::Deliver(pick) => {
                if !cluster.network.is_empty() {
                    let at = usize::from(pick) % cluster.network.len();
                    let envelope = cluster.network.remove(at).unwrap();
                    cluster.network.push_front(envelope);
                    cluster.deliver(|_| true, &mut out);
                }
            }
            Event::DeliverMany(count) => {
                for _ in 0..count {
                    cluster.deliver(|_| true, &mut out);
                }
            }
            Event::Lose(pick) => {
                if !cluster.network.is_empty() {
                    let at = usize::from(pick) % cluster.network.len();
                    cluster.network.remove(at);
                }
            }
            Event::Repeat(pick) => {
                if !cluster.sent.is_empty() {
                    let at = usize::from(pick) % cluster.sent.len();
                    cluster.network.push_back(Box::new(cluster.sent[at].clone()));
                }
            }
            Event::Crash(id) => self.crash(id % 3 + 1, true),
            Event::CrashLate(id, count) => {
                let store = cluster.store(id % 3 + 1);
                for write in store.writes.drain(..).take(count.into()) {
                    store.disk.write(&write);
                }
                self.crash(id % 3 + 1, true);
            }
            Event::Restart(id) => self.crash(id % 3 + 1, false),
            Event::Flush(id) => {
                let store = cluster.store(id % 3 + 1);
                store.flushed = store.machine.clone();
                if store.region.is_some() {
                    cluster.compact(id % 3 + 1, &mut out);
                }
            }
            Event::Cut(id) => {
                cluster.cut.clear();
                cluster.cut.insert(id % 3 + 1);
            }
            Event::Heal => cluster.cut.clear(),
            Event::Stabilize => cluster.stabilize(&[1, 2, 3], &mut out),
            Event::Lie(pick, ref lie) => self.lie(pick, lie),
        }
        self.log += &out;
        self.note_answers();
    }

    fn propose(&mut self, id: u64, count: u8, size: u16) {
        let mut batch = Vec::new();
        for _ in 0..count {
            self.proposed += 1;
            let name = format!("p{}", self.proposed);
            let mut payload = name.clone().into_bytes();
            payload.resize(payload.len() + usize::from(size), b'.');
            batch.push((name, Bytes::from(payload), None));
        }
        self.cluster.propose(id, batch);
    }

    fn crash(&mut self, id: u64, kill: bool) {
        self.cluster.stop(id, kill);
        let started = self.cluster.start(id);
        // Lies may have left something on disk that contradicts itself, which must be named.
        assert!(started.is_ok() || self.cluster.liars, "{started:?}");
    }

    fn lie(&mut self, pick: u16, lie: &Lie) {
        let cluster = &mut self.cluster;
        if cluster.sent.is_empty() {
            return;
        }
        // Mostly recent messages: those that are nearest to being believed.
        let at = cluster.sent.len() - 1 - usize::from(pick % 64) % cluster.sent.len();
        let mut envelope = cluster.sent[at].clone();
        spoil(&mut envelope, lie);
        let to = envelope.to.store.get();
        if (1..=3).contains(&to) && cluster.is_up(to) {
            let _ = cluster.region(to).step(Box::new(envelope));
        }
    }

    /// Some mode or other, linearizable mostly.
    fn read(&mut self, id: u64, mode: u8) {
        let mode = match mode {
            0..20 => ReadMode::Stale { at_least: Index::new(u64::from(mode)) },
            20..60 => ReadMode::LeaderOnly,
            _ => ReadMode::Linearizable,
        };
        self.reads += 1;
        self.cluster.read(id, &[format!("r{}", self.reads)], mode, None);
    }

    fn note_answers(&mut self) {
        let reads = self.cluster.take_reads();
        self.reads_ok += reads.iter().filter(|(_, answer)| answer.is_ok()).count();
        for (name, answer) in self.cluster.take_answers() {
            match answer {
                Ok(_) => drop(self.ok.insert(name)),
                Err(ProposeError::Unknown { .. }) => {}
                Err(_) => drop(self.stale.insert(name)),
            }
        }
    }

    /// All stores reachable; time passes until one leads and everybody has the same.
    fn come_to_rest(&mut self) {
        self.happen(&Event::Heal);
        for round in 0..200 {
            self.happen(&Event::Stabilize);
            (0..3).for_each(|id| self.happen(&Event::Tick(id, 1)));
            if round % 20 == 9 {
                let leaders: Vec<u64> =
                    (1..=3).filter(|id| self.cluster.region(*id).is_leader()).collect();
                leaders.iter().for_each(|id| self.propose(*id, 1, 0));
            }
        }
        self.happen(&Event::Stabilize);
    }

    fn names_applied(&self, id: u64) -> Vec<String> {
        let commands = self.cluster.stores[&id].machine.commands.values();
        let name =
            |payload: &Bytes| String::from_utf8_lossy(payload).trim_end_matches('.').to_string();
        commands.map(name).collect()
    }
}

/// 300 histories; `PROPTEST_CASES` for more.
fn config() -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok());
    ProptestConfig { cases: cases.unwrap_or(300), ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    /// The harness checks agreement, one leader a term and one answer a proposal on the way. At the
    /// end everybody has the same commands, each at most once; those acknowledged are among them,
    /// and those refused or stale are not.
    #[test]
    fn any_order_of_events_is_safe_and_comes_to_rest(
        voters in 1..=3u64,
        events in vec(honest(), 1..250),
    ) {
        let mut world = World::new(voters);
        events.iter().for_each(|event| world.happen(event));
        world.come_to_rest();
        let names = world.names_applied(1);
        prop_assert!(!world.ok.is_empty(), "nothing was ever carried out");
        for id in 2..=3 {
            prop_assert_eq!(&world.names_applied(id), &names);
        }
        let applied: BTreeSet<String> = names.iter().cloned().collect();
        prop_assert_eq!(applied.len(), names.len(), "carried out twice");
        prop_assert!(world.ok.is_subset(&applied), "acknowledged and lost");
        prop_assert!(world.stale.is_disjoint(&applied), "refused and carried out");
        for id in 1..=3 {
            let status = world.cluster.region(id).status();
            prop_assert_eq!(status.cached_entries, 0, "{:?}", status);
            prop_assert_eq!(status.pending_proposals, 0, "{:?}", status);
            prop_assert_eq!(world.cluster.waiting_reads(), Vec::<String>::new());
        }
        world.cluster.finish();
    }

    /// Spoiled messages are rejected or, where they cannot be told from true ones, believed; nobody
    /// panics, and every proposal is still answered once.
    #[test]
    fn no_message_makes_a_region_panic(
        voters in 1..=3u64,
        events in vec(dishonest(), 1..250),
    ) {
        let mut world = World::new(voters);
        world.cluster.liars = true;
        events.iter().for_each(|event| world.happen(event));
        world.happen(&Event::Stabilize);
        world.cluster.finish();
    }

    /// The checks of the harness are of some use only if reads get through.
    #[test]
    fn reads_are_answered(events in vec(honest(), 100..200)) {
        let mut world = World::new(3);
        events.iter().for_each(|event| world.happen(event));
        world.come_to_rest();
        (0..3).for_each(|id| world.happen(&Event::Read(id, 200)));
        let before = world.reads_ok;
        world.come_to_rest();
        prop_assert!(world.reads_ok >= before + 2, "{} of 3", world.reads_ok - before);
        world.cluster.finish();
    }

    /// The same inputs give the same effects: nothing depends on chance, addresses or the clock.
    #[test]
    fn the_same_events_have_the_same_effects(events in vec(honest(), 1..80)) {
        let run = || {
            let mut world = World::new(3);
            events.iter().for_each(|event| world.happen(event));
            world.log
        };
        prop_assert_eq!(run(), run());
    }

    #[test]
    fn no_bytes_make_a_decoder_panic(bytes in vec(any::<u8>(), 0..200)) {
        decode_all(&bytes);
    }

    #[test]
    fn spoiled_records_are_errors_or_other_records(at in any::<u16>(), to in any::<u8>()) {
        let mut world = World::new(3);
        world.happen(&Event::Campaign(0));
        world.happen(&Event::Stabilize);
        world.happen(&Event::Propose(0, 2, 40));
        world.happen(&Event::Stabilize);
        let description = world.cluster.description.clone();
        let applied = world.cluster.stores[&1].machine.applied.clone().unwrap();
        let peer_id = PeerId::new(1);
        let record = RegionRecord::new(description.clone(), peer_id);
        let mut records = vec![description.encode(), applied.encode(), record.encode()];
        records.extend(world.cluster.sent.iter().rev().take(9).map(|e| e.encode().to_vec()));
        for mut bytes in records {
            let at = usize::from(at) % bytes.len();
            bytes[at] = to;
            decode_all(&bytes);
            decode_all(&bytes[..at]);
        }
        world.cluster.finish();
    }
}

#[test]
fn reports_to_an_ended_region_do_no_harm() {
    let mut world = World::new(1);
    world.happen(&Event::Campaign(0));
    world.happen(&Event::Stabilize);
    world.happen(&Event::Propose(0, 3, 10));
    world.happen(&Event::Collect(0));
    let write = world.cluster.store(1).writes.pop_front().unwrap();
    let region = world.cluster.region(1);
    assert!(region.has_outstanding_write());
    let mut effects = Effects::default();
    region.shutdown(&mut effects);
    assert_eq!(effects.answers.len(), 3);
    effects.clear();
    region.persisted(Persisted::after_sync(&write));
    region.applied(Index::new(99));
    region.tick(&mut effects);
    region.collect(&mut effects);
    assert_eq!(region.compact_to(Index::new(6)), None);
    assert_eq!(region.campaign(), Campaign::Ended);
    assert!(!region.has_ready() && effects.is_empty());
    world.cluster.finish();
}

#[test]
fn a_region_stays_small() {
    assert!(size_of::<Region>() <= 1_704, "{} bytes", size_of::<Region>());
}

fn decode_all(bytes: &[u8]) {
    let _ = RegionDescription::decode(bytes);
    let _ = AppliedState::decode(bytes);
    let _ = RegionRecord::decode(bytes);
    let _ = TruncatedState::decode(bytes);
    let _ = StoreIdent::decode(bytes);
    let _ = Envelope::decode(&Bytes::copy_from_slice(bytes));
    for split in [0, 1, bytes.len() / 2] {
        let (context, data) = bytes.split_at(split.min(bytes.len()));
        let (context, data) = (context.to_vec().into(), data.to_vec().into());
        let entry = Entry { context, data, ..Entry::default() };
        let _ = Command::decode(RegionId::new(1), entry);
    }
}
