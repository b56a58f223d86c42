//! A start and events, made of the fuzzer's bytes.
//!
//! Bytes taken at random are hardly ever a message that anybody would believe. So what is made here
//! is nearly right: numbers lie around those that the region has, and one thing or another is wrong.

use std::collections::BTreeMap;
use std::sync::Arc;

use arbitrary::{Arbitrary, Result, Unstructured};
use bytes::Bytes;
use protobuf::ProtobufEnum;
use raft::eraftpb::{Entry, EntryType, HardState, Message, MessageType, Snapshot};
use region::{AppliedState, Envelope, Index, RegionFailure, RegionId, Term, TruncatedState};

use crate::disk::Contents;
use crate::driven::{description, voter, Driven, CLUSTER, EPOCH, REGION};

/// Events of one history; more only make it slower.
const MOST_EVENTS: usize = 64;

/// Entries of one message.
const MOST_ENTRIES: usize = 8;

/// The header of a user's command of epoch 1, 1.
const USER_HEADER: &[u8] = &[1, 1, 1, 1];

/// The header of a request to cut the log.
const COMPACT_HEADER: &[u8] = &[1, 2, 1, 1];

/// A number of the protocol, mostly near another one.
#[derive(Clone, Copy, Debug)]
pub enum Number {
    /// The other one, and this much.
    Near(i64),
    /// Itself.
    Plain(u64),
}

impl Number {
    fn resolve(self, base: u64) -> u64 {
        match self {
            Number::Near(offset) => base.saturating_add_signed(offset),
            Number::Plain(value) => value,
        }
    }
}

impl<'a> Arbitrary<'a> for Number {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        Ok(match u.arbitrary::<u8>()? {
            // The most likely byte, 0, is the most likely number.
            byte @ 0..=127 => Number::Near([0, 1, -1, 2, -2, 3, -3, 6][usize::from(byte % 8)]),
            byte @ 128..=199 => Number::Plain(u64::from(byte) - 128),
            byte @ 200..=209 => Number::Plain(u64::MAX - u64::from(byte - 200)),
            byte @ 210..=219 => Number::Plain(u64::MAX / 2 - 5 + u64::from(byte - 210)),
            byte @ 220..=229 => Number::Near((1 << 32) - 5 + i64::from(byte - 220)),
            _ => Number::Plain(u.arbitrary()?),
        })
    }
}

/// What is on disk when the history begins.
#[derive(Clone, Debug, Arbitrary)]
pub struct Start {
    // First, so that short inputs have it too.
    lead: bool,
    voters: u8,
    learners: u8,
    truncated: u8,
    log: Vec<u8>,
    term: u8,
    vote: u8,
    commit: u8,
    applied: u8,
    spoil: Option<(Spoil, Number)>,
}

/// What contradicts the rest of the state on disk.
#[derive(Clone, Copy, Debug, Arbitrary)]
enum Spoil {
    Term,
    Commit,
    Applied,
    AppliedTerm,
    Truncated,
    TruncatedTerm,
    EntryTerm,
}

impl Start {
    /// Restores the region, and makes it lead if that is asked for and possible.
    ///
    /// # Errors
    /// What the region says about the state on disk.
    pub fn restore(&self) -> std::result::Result<Driven, RegionFailure> {
        let (voters, learners) = (u64::from(self.voters % 3) + 1, u64::from(self.learners % 2));
        let described = description(voters, learners);
        let first = u64::from(self.truncated % 8);
        let (mut truncated_index, mut truncated_term) = (5 + first, 5 + first.min(2));
        let (mut index, mut term) = (truncated_index, truncated_term);
        let mut entries = BTreeMap::new();
        for byte in self.log.iter().take(24) {
            index += 1;
            term += [0, 0, 0, 1, 2, 0, 0, 0][usize::from(byte % 8)];
            entries.insert(index, entry(index, term, byte / 8));
        }
        let pick = |byte: u8| truncated_index + u64::from(byte) % (index - truncated_index + 1);
        let mut hard_state = HardState {
            term: term + u64::from(self.term % 3),
            vote: u64::from(self.vote % 4),
            commit: pick(self.commit),
            ..HardState::default()
        };
        let mut applied = pick(self.applied);
        let term_at = |index: u64| entries.get(&index).map_or(truncated_term, |entry| entry.term);
        let mut applied_term = term_at(applied);
        if let Some((spoil, number)) = self.spoil {
            let spoiled = match spoil {
                Spoil::Term => &mut hard_state.term,
                Spoil::Commit => &mut hard_state.commit,
                Spoil::Applied => &mut applied,
                Spoil::AppliedTerm => &mut applied_term,
                Spoil::Truncated => &mut truncated_index,
                Spoil::TruncatedTerm => &mut truncated_term,
                Spoil::EntryTerm => match entries.values_mut().nth(usize::from(self.commit)) {
                    Some(entry) => &mut entry.term,
                    None => &mut hard_state.term,
                },
            };
            *spoiled = number.resolve(*spoiled);
        }
        let applied = AppliedState {
            index: Index::new(applied),
            term: Term::new(applied_term),
            description: Arc::new(described.clone()),
        };
        let truncated =
            TruncatedState { index: Index::new(truncated_index), term: Term::new(truncated_term) };
        let contents = Contents { truncated, entries, hard_state: Some(hard_state) };
        let mut driven = Driven::restore(described, contents, Some(applied))?;
        if self.lead {
            driven.elect();
        }
        Ok(driven)
    }
}

/// A sound entry: a user's command, a request to cut the log, or a leader's first.
fn entry(index: u64, term: u64, kind: u8) -> Entry {
    let (context, data) = match kind % 8 {
        0 => (Bytes::new(), Bytes::new()),
        1 => (Bytes::from_static(COMPACT_HEADER), Bytes::copy_from_slice(&index.to_le_bytes())),
        size => (Bytes::from_static(USER_HEADER), Bytes::from(vec![b'x'; 40 * usize::from(size)])),
    };
    Entry { index, term, context, data, ..Entry::default() }
}

/// Something that happens to the region.
#[derive(Clone, Debug, Arbitrary)]
pub enum Event {
    /// A message arrives.
    Message(Lie),
    /// One of the last messages that the region itself has sent comes back, answered and spoiled.
    Echo(u8, Number),
    /// Ticks pass.
    Tick(u8),
    /// The region campaigns.
    Campaign,
    /// Commands are proposed: how many, and how large.
    Propose(u8, u8),
    /// One Ready is collected.
    Collect,
    /// One write is carried out.
    Persist,
    /// One batch is applied.
    Apply,
    /// The log is cut.
    Compact,
    /// Everything is carried out.
    Drain,
    /// The other peers answer as they should.
    Answer,
    /// The process begins anew.
    Restart,
}

/// A message of a stranger, nearly right.
#[derive(Clone, Debug, Arbitrary)]
pub struct Lie {
    kind: u8,
    from: u8,
    term: Number,
    log_term: Number,
    index: Number,
    commit: Number,
    hint: Number,
    reject: bool,
    entries: Vec<LyingEntry>,
    oddity: Option<Oddity>,
}

/// An entry of a [`Lie`].
#[derive(Clone, Debug, Arbitrary)]
struct LyingEntry {
    kind: u8,
    term_gap: u8,
    oddity: Option<EntryOddity>,
}

/// What is wrong with an entry.
#[derive(Clone, Debug, Arbitrary)]
enum EntryOddity {
    Index(Number),
    Term(Number),
    Type(u8),
    Unknown(u8),
    Context(Vec<u8>),
    Data(Vec<u8>),
}

/// What else is wrong with a message.
#[derive(Clone, Debug, Arbitrary)]
enum Oddity {
    Cluster(u64),
    Region(u64),
    Recipient(u8),
    Store(u8),
    Sender(u8),
    Disagreement(u8),
    Snapshot,
    RequestSnapshot(Number),
    Context(Vec<u8>),
    Priority(i8),
    CommitTerm(Number),
    Unknown(u8),
}

impl Lie {
    /// The message, as it looks to this region.
    fn envelope(&self, driven: &Driven) -> Envelope {
        let region = driven.region();
        let (term, last) = (region.term().get(), region.last_index().get());
        let term = self.term.resolve(term);
        let from = u64::from(self.from % 3) + 2;
        let mut message = Message {
            msg_type: KINDS[usize::from(self.kind) % KINDS.len()],
            from,
            to: 1,
            term,
            log_term: self.log_term.resolve(region.term().get()),
            index: self.index.resolve(last),
            commit: self.commit.resolve(last),
            reject_hint: self.hint.resolve(last),
            reject: self.reject,
            ..Message::default()
        };
        let mut entry_term = message.log_term;
        for (offset, lying) in (1..).zip(self.entries.iter().take(MOST_ENTRIES)) {
            entry_term = entry_term.saturating_add(u64::from(lying.term_gap % 4) / 3);
            let index = message.index.saturating_add(offset);
            message.entries.push(lying.entry(index, entry_term));
        }
        let mut envelope = Envelope {
            cluster_id: CLUSTER,
            region_id: REGION,
            from: voter(from),
            to: voter(1),
            epoch: EPOCH,
            message,
            description: None,
        };
        if let Some(oddity) = &self.oddity {
            oddity.apply(&mut envelope);
        }
        envelope
    }
}

/// Kinds of messages: those that a region takes, more than once, and then all others.
const KINDS: [MessageType; 24] = {
    use MessageType::*;
    [
        MsgAppend,
        MsgAppendResponse,
        MsgHeartbeat,
        MsgHeartbeatResponse,
        MsgRequestVote,
        MsgRequestVoteResponse,
        MsgRequestPreVote,
        MsgRequestPreVoteResponse,
        MsgAppend,
        MsgAppendResponse,
        MsgHeartbeat,
        MsgAppend,
        MsgAppend,
        MsgHup,
        MsgBeat,
        MsgPropose,
        MsgSnapshot,
        MsgUnreachable,
        MsgSnapStatus,
        MsgCheckQuorum,
        MsgTransferLeader,
        MsgTimeoutNow,
        MsgReadIndex,
        MsgReadIndexResp,
    ]
};

impl LyingEntry {
    fn entry(&self, index: u64, term: u64) -> Entry {
        let mut entry = entry(index, term, self.kind);
        match &self.oddity {
            None => {}
            Some(EntryOddity::Index(number)) => entry.index = number.resolve(index),
            Some(EntryOddity::Term(number)) => entry.term = number.resolve(term),
            Some(EntryOddity::Type(kind)) => {
                entry.entry_type = EntryType::from_i32(i32::from(kind % 3)).unwrap_or_default();
            }
            // As a later version's entry may look to this one.
            Some(EntryOddity::Unknown(field)) => {
                entry.unknown_fields.add_varint(100 + u32::from(*field), 1);
            }
            Some(EntryOddity::Context(bytes)) => entry.context = bytes.clone().into(),
            Some(EntryOddity::Data(bytes)) => entry.data = bytes.clone().into(),
        }
        entry
    }
}

impl Oddity {
    fn apply(&self, envelope: &mut Envelope) {
        let message = &mut envelope.message;
        match self {
            Oddity::Cluster(id) => envelope.cluster_id = *id,
            Oddity::Region(id) => envelope.region_id = RegionId::new(*id),
            Oddity::Recipient(n) => {
                envelope.to = voter(u64::from(*n));
                message.to = u64::from(*n);
            }
            Oddity::Store(n) => envelope.from.store = voter(u64::from(*n)).store,
            Oddity::Sender(n) => {
                envelope.from = voter(u64::from(*n));
                message.from = u64::from(*n);
            }
            Oddity::Disagreement(n) => message.from = u64::from(*n),
            Oddity::Snapshot => message.set_snapshot(Snapshot::default()),
            Oddity::RequestSnapshot(number) => message.request_snapshot = number.resolve(5),
            Oddity::Context(bytes) => message.context = bytes.clone().into(),
            Oddity::Priority(priority) => message.priority = i64::from(*priority),
            Oddity::CommitTerm(number) => message.commit_term = number.resolve(message.term),
            Oddity::Unknown(field) => {
                message.unknown_fields.add_varint(100 + u32::from(*field), 1);
            }
        }
    }
}

/// A whole run.
#[derive(Clone, Debug, Arbitrary)]
pub struct History {
    start: Start,
    events: Vec<Event>,
}

impl History {
    /// Lets it happen. Ends early where the region has stopped itself.
    pub fn run(&self) {
        // That a state is refused is an answer, and that of most spoiled ones.
        let Ok(mut driven) = self.start.restore() else { return };
        for event in self.events.iter().take(MOST_EVENTS) {
            if driven.has_failed() {
                return;
            }
            if !happen(&mut driven, event) {
                return;
            }
        }
        driven.drain();
        driven.tick(40);
        driven.drain();
    }
}

/// Returns whether there is a region to go on with.
fn happen(driven: &mut Driven, event: &Event) -> bool {
    match event {
        Event::Message(lie) => {
            let envelope = lie.envelope(driven);
            // Over the wire, where it may become something else than it was.
            if let Ok(envelope) = Envelope::decode(&envelope.encode()) {
                driven.step(envelope);
            }
        }
        Event::Echo(pick, number) => {
            let count = driven.sent().count();
            let Some(at) = usize::from(*pick).checked_rem(count) else { return true };
            let Some(mut envelope) = driven.sent().nth(at).cloned() else { return true };
            std::mem::swap(&mut envelope.from, &mut envelope.to);
            let message = &mut envelope.message;
            std::mem::swap(&mut message.from, &mut message.to);
            message.index = number.resolve(message.index);
            driven.step(envelope);
        }
        Event::Tick(count) => driven.tick(count % 32),
        Event::Campaign => driven.campaign(),
        Event::Propose(count, size) => driven.propose(count % 8, 5 * usize::from(*size)),
        Event::Collect => drop(driven.collect()),
        Event::Persist => drop(driven.persist()),
        Event::Apply => drop(driven.apply()),
        Event::Compact => driven.compact(),
        Event::Drain => driven.drain(),
        Event::Answer => driven.answer(),
        Event::Restart => return driven.restart().is_ok(),
    }
    true
}
