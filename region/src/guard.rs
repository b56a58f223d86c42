//! What a stranger sends is checked before raft-rs sees it.
//!
//! raft-rs 0.7 trusts its peers: it has some 90 places that panic, and a message made up by a
//! stranger, a stale peer or a flipped bit reaches some of them. Others it would take at face value
//! (a message of term 0 passes for a local one and resets the term). So every message is checked
//! against the envelope, the description and the log first, and dropped with a [`Rejection`] that
//! names the reason.
//!
//! # What a follower owes its leader
//!
//! For an election timeout after a word of its leader a peer votes for nobody, which the leader's lease rests
//! on. raft-rs sees to that where a vote is asked for, but forgets it as soon as any message of a higher
//! term comes along: the late refusal of a pre-vote, say, that this peer asked for before it heard of the
//! leader. So what does not come from a leader is dropped for so long if its term is higher.
//!
//! # The panics of raft-rs 0.7 within reach of a step, a tick or a Ready
//!
//! | where (file: lines) | what it fears | why it cannot happen |
//! |---|---|---|
//! | raft: 320 | not a vote message | called for vote requests only |
//! | raft: 377; 943, 1055, 1225 | wrong or missing membership | descriptions are validated and hold the own peer |
//! | raft: 640, 648 | term of a vote missing, or set elsewhere | guard: term at least 1; restored terms at least 5 |
//! | raft: 698, 702; progress: 236 | bad snapshot, or one under way | the storage hands out sound ones or says "temporarily unavailable"; raft-rs pauses a peer that is sent one |
//! | raft: 890, 895, 1926 | unknown sender | guard: sender is one of the description's peers |
//! | raft: 978, 2024 | empty or refused proposals | proposals come from the region alone, never empty; leaving a joint configuration costs no bytes |
//! | raft: 1146, 1169, 1197 | impossible transitions | raft-rs itself: a leader ignores MsgHup, only candidates are elected |
//! | raft: 1214; raw_node: 496 | elected with an unpersisted log | the region postpones campaigns while entries are not persisted |
//! | raft: 1543, 2203; raft_log: 434, 599, 605 | storage errors | the storage returns none but the tolerated ones; truncated ≤ applied |
//! | raft: 2269–2279 | other term than one's own | guard: term at least 1 |
//! | raft: 2434, 2850 | requests for snapshots | guard: refused |
//! | raft: 2623–2647; raft_log: 549, 558, 635 | snapshots | guard: sound in themselves, hold this peer, configuration as described; raft-rs leaves old ones |
//! | raft: 2497, 2507; raft_log: 101, 135, 653 | term unknown | all terms of the log are in memory |
//! | raft: 2124, 2857; read_only: 75 (`entries[0]`) | no entry in a read-index message | guard: exactly one entry, with a context in it and nothing else (#12046) |
//! | read_only: 105 | a question in the queue and not in the map | raft-rs itself: both change together |
//! | raft: 2786; raft_log: 314 | commit or applied index out of range | restore validates them; reports of applied are clamped |
//! | raft_log: 260, 370 | append over committed entries | guard: contiguous from `index`, and raft-rs answers a lower `index` itself |
//! | raft_log: 292 | commit beyond the log | guard: heartbeats; appends take the lower of the two |
//! | raft_log: 476, 485; log_unstable: 126, 197, 201 | gap after the log | guard: `log_term` at least 1 (0 "matches" any index beyond the log), contiguous entries |
//! | log_unstable: 97–135; raw_node: 459, 595 | Ready and advance out of step | `collect` does both, with nothing in between |
//! | raw_node: 488, 519, 523 | snapshot in a Ready | guard: none while committed entries or changes are held back |
//! | inflights: 94, 108 | window overrun | raft-rs itself: looks before it adds |
//! | arithmetic | `index + 1`, `hint + 1`, `term + 1` overflow | guard: all numbers below 2^63, terms at most 2^32 ahead |

use raft::eraftpb::{EntryType, Message, MessageType};

use crate::command::{has_unknown_fields, MAX_HEADER_BYTES};
use crate::config::{RegionConfig, MAX_COMMAND_BYTES};
use crate::description::{Peer, RegionDescription};
use crate::envelope::{Envelope, MAX_CONTEXT_BYTES};
use crate::reads::CONTEXT_BYTES;
use crate::snapshots;

/// Largest term, index or hint that is taken seriously.
const MAX_NUMBER: u64 = u64::MAX / 2;

/// How far a term may be ahead. Terms go up by one an election, so this is some hundred years of
/// them; but one flipped bit, believed, could leave the region without any term to go on to.
const MAX_TERM_LEAP: u64 = 1 << 32;

/// Least bytes of an entry on the wire; bounds the number of entries in a message.
const MIN_ENTRY_BYTES: usize = 4;

/// Why a message was dropped. Dropping is always safe: Raft expects messages to get lost.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum Rejection {
    /// Of another cluster.
    #[error("the message is of another cluster")]
    WrongCluster,
    /// For another region.
    #[error("the message is for another region")]
    WrongRegion,
    /// For another peer, or this peer on another store.
    #[error("the message is for another peer")]
    WrongRecipient,
    /// The sender is no peer of the region, or one on another store, or this peer itself.
    #[error("the sender is no other peer of the region")]
    UnknownSender,
    /// Envelope and message disagree about sender or receiver.
    #[error("the envelope and the message disagree")]
    IdMismatch,
    /// A message that a region sends only to itself.
    #[error("a local message came from outside")]
    LocalMessage,
    /// A type or feature that this version does not know.
    #[error("the message is not supported")]
    Unsupported,
    /// A term, index or hint out of any sensible range, or a term of a log entry above the
    /// message's.
    #[error("a number is out of range")]
    OutOfRange,
    /// Entries with gaps, falling terms, unknown types or fields, or where none belong.
    #[error("the entries are malformed")]
    MalformedEntries,
    /// More bytes than a sender of the same settings sends.
    #[error("the message is too large")]
    TooLarge,
    /// A commit index beyond this peer's log, which the leader believes to be longer.
    #[error("the commit index is beyond the log")]
    CommitBeyondLog,
    /// A response about entries that this leader does not have.
    #[error("the response is beyond the log")]
    ResponseBeyondLog,
    /// Somebody else claims to lead the term that this peer leads.
    #[error("another peer claims to lead this term")]
    RivalLeader,
    /// Too much is waiting to be persisted or applied. The leader sends it again.
    #[error("too many entries wait to be persisted or applied")]
    Backlog,
    /// A snapshot that is malformed, of another region, or does not hold this peer.
    #[error("the snapshot is malformed")]
    MalformedSnapshot,
    /// A request to take over, or the answer to a question for a read, from somebody who does not lead.
    #[error("the message is not the leader's")]
    NotFromLeader,
    /// A higher term, not from a leader, so soon after a word of the own leader that it may rely on this peer.
    #[error("the message is of a higher term, but the leader of this one may rely on the peer")]
    FollowsLeader,
    /// A question that only a leader can answer.
    #[error("the peer does not lead")]
    NotLeading,
    /// A vote so soon after the start that an earlier promise of this peer to a leader may still stand.
    #[error("the vote comes too soon after the start")]
    JustStarted,
    /// The region has stopped itself.
    #[error("the region is quarantined")]
    Quarantined,
    /// The region is shut down.
    #[error("the region is stopped")]
    Stopped,
}

impl Rejection {
    /// A word for metrics.
    pub fn label(&self) -> &'static str {
        match self {
            Rejection::WrongCluster => "wrong_cluster",
            Rejection::WrongRegion => "wrong_region",
            Rejection::WrongRecipient => "wrong_recipient",
            Rejection::UnknownSender => "unknown_sender",
            Rejection::IdMismatch => "id_mismatch",
            Rejection::LocalMessage => "local_message",
            Rejection::Unsupported => "unsupported",
            Rejection::OutOfRange => "out_of_range",
            Rejection::MalformedEntries => "malformed_entries",
            Rejection::TooLarge => "too_large",
            Rejection::CommitBeyondLog => "commit_beyond_log",
            Rejection::ResponseBeyondLog => "response_beyond_log",
            Rejection::RivalLeader => "rival_leader",
            Rejection::Backlog => "backlog",
            Rejection::MalformedSnapshot => "malformed_snapshot",
            Rejection::NotFromLeader => "not_from_leader",
            Rejection::FollowsLeader => "follows_leader",
            Rejection::NotLeading => "not_leading",
            Rejection::JustStarted => "just_started",
            Rejection::Quarantined => "quarantined",
            Rejection::Stopped => "stopped",
        }
    }
}

/// What the region knows, and messages are checked against.
pub(crate) struct View<'a> {
    pub(crate) config: &'a RegionConfig,
    pub(crate) description: &'a RegionDescription,
    pub(crate) me: Peer,
    pub(crate) term: u64,
    pub(crate) leading: bool,
    pub(crate) last_index: u64,
    /// Who leads, as far as is known.
    pub(crate) leader: u64,
    /// Too much waits to be persisted or applied.
    pub(crate) backlog: bool,
    /// What was handed out rests on the log as it is: it may not be replaced now.
    pub(crate) no_snapshot: bool,
    /// Votes may be asked for.
    pub(crate) may_vote: bool,
    /// Somebody else leads, who was heard of within an election timeout.
    pub(crate) follows: bool,
    /// There is room for the question of a follower.
    pub(crate) may_be_asked: bool,
}

/// Checks a message from another store.
///
/// Invariant: a message that passes does not make raft-rs panic, whatever the history.
pub(crate) fn check(view: &View<'_>, envelope: &Envelope) -> Result<(), Rejection> {
    check_addresses(view, envelope)?;
    let message = &envelope.message;
    check_type(message)?;
    check_numbers(view, message)?;
    match message.get_msg_type() {
        MessageType::MsgAppend => check_append(view, message),
        MessageType::MsgHeartbeat => check_heartbeat(view, message),
        MessageType::MsgSnapshot => check_snapshot(view, message),
        MessageType::MsgAppendResponse
        | MessageType::MsgHeartbeatResponse
        | MessageType::MsgRequestVoteResponse
        | MessageType::MsgRequestPreVoteResponse
            if view.follows && message.term > view.term =>
        {
            Err(Rejection::FollowsLeader)
        }
        MessageType::MsgAppendResponse => check_append_response(view, message),
        MessageType::MsgReadIndex if !view.leading => Err(Rejection::NotLeading),
        MessageType::MsgReadIndex if !view.may_be_asked => Err(Rejection::Backlog),
        MessageType::MsgReadIndexResp
            if message.term != view.term || message.from != view.leader =>
        {
            Err(Rejection::NotFromLeader)
        }
        MessageType::MsgTimeoutNow if message.term != view.term || message.from != view.leader => {
            Err(Rejection::NotFromLeader)
        }
        MessageType::MsgRequestVote | MessageType::MsgRequestPreVote if !view.may_vote => {
            // One that was asked for by a leader is no danger: that leader relies on nobody any more.
            match message.context == CAMPAIGN_TRANSFER {
                true => Ok(()),
                false => Err(Rejection::JustStarted),
            }
        }
        _ => Ok(()),
    }
}

/// Whether the sender does not know that it was removed from the region.
pub(crate) fn is_stale_candidate(view: &View<'_>, envelope: &Envelope) -> bool {
    use MessageType::{MsgRequestPreVote, MsgRequestVote};
    let asks = matches!(envelope.message.get_msg_type(), MsgRequestVote | MsgRequestPreVote);
    asks && view.description.is_initialised()
        && view.description.peer(envelope.from.id).is_none()
        && envelope.cluster_id == view.config.cluster_id
        && envelope.region_id == view.description.id
        && envelope.epoch.conf_ver < view.description.epoch.conf_ver
}

fn check_addresses(view: &View<'_>, envelope: &Envelope) -> Result<(), Rejection> {
    if envelope.cluster_id != view.config.cluster_id {
        return Err(Rejection::WrongCluster);
    }
    if envelope.region_id != view.description.id {
        return Err(Rejection::WrongRegion);
    }
    let (from, to) = (&envelope.from, &envelope.to);
    if (to.id, to.store) != (view.me.id, view.me.store) {
        return Err(Rejection::WrongRecipient);
    }
    let known = match view.description.peer(from.id) {
        Some(peer) => peer.store == from.store,
        // It may have been added since: who knows less must listen to who knows more. (Who has left is refused
        // here to have it over; its log is too old to be voted for, and pre-votes keep its terms away.)
        None => {
            let (theirs, own) = (envelope.epoch.conf_ver, view.description.epoch.conf_ver);
            let newer = theirs > own || theirs == own && !view.description.is_initialised();
            newer && from.id.get() != 0 && from.store.get() != 0
        }
    };
    if !known || from.id == view.me.id {
        return Err(Rejection::UnknownSender);
    }
    if (envelope.message.from, envelope.message.to) != (from.id.get(), to.id.get()) {
        return Err(Rejection::IdMismatch);
    }
    Ok(())
}

fn check_type(message: &Message) -> Result<(), Rejection> {
    use MessageType::*;
    let may_have_context = match message.get_msg_type() {
        MsgAppend | MsgSnapshot | MsgTimeoutNow => false,
        MsgAppendResponse
        | MsgRequestVoteResponse
        | MsgRequestPreVote
        | MsgRequestPreVoteResponse => false,
        MsgRequestVote => message.context == CAMPAIGN_TRANSFER,
        MsgHeartbeat | MsgHeartbeatResponse => message.context.len() <= MAX_CONTEXT_BYTES,
        MsgHup | MsgBeat | MsgPropose | MsgUnreachable | MsgSnapStatus | MsgCheckQuorum => {
            return Err(Rejection::LocalMessage);
        }
        MsgReadIndex | MsgReadIndexResp => {
            check_question(message)?;
            false
        }
        MsgTransferLeader => return Err(Rejection::Unsupported),
    };
    let is = |msg_type| message.get_msg_type() == msg_type;
    let may_have_entries = is(MsgAppend) || is(MsgReadIndex) || is(MsgReadIndexResp);
    if !message.entries.is_empty() && !may_have_entries {
        return Err(Rejection::MalformedEntries);
    }
    let extras = message.has_snapshot() != is(MsgSnapshot)
        || message.request_snapshot != 0
        || !(message.context.is_empty() || may_have_context)
        || message.priority != 0
        || message.deprecated_priority != 0;
    match extras {
        true => Err(Rejection::Unsupported),
        false => Ok(()),
    }
}

/// A question for a read, or its answer: one entry with nothing but the context, and the answer's index.
fn check_question(message: &Message) -> Result<(), Rejection> {
    let [entry] = message.entries.as_ref() else { return Err(Rejection::MalformedEntries) };
    let plain = entry.index == 0
        && entry.term == 0
        && entry.get_entry_type() == EntryType::EntryNormal
        && entry.context.is_empty()
        && !entry.sync_log
        && !has_unknown_fields(entry);
    if !plain || entry.data.len() != CONTEXT_BYTES {
        return Err(Rejection::MalformedEntries);
    }
    let asks = message.get_msg_type() == MessageType::MsgReadIndex;
    let others = [message.log_term, message.commit, message.commit_term, message.reject_hint];
    match others == [0; 4] && !message.reject && !(asks && message.index != 0) {
        true => Ok(()),
        false => Err(Rejection::Unsupported),
    }
}

/// raft-rs's mark of a campaign that the leader has asked for.
const CAMPAIGN_TRANSFER: &[u8] = b"CampaignTransfer";

fn check_snapshot(view: &View<'_>, message: &Message) -> Result<(), Rejection> {
    if view.leading && message.term == view.term {
        return Err(Rejection::RivalLeader);
    }
    if view.no_snapshot {
        return Err(Rejection::Backlog);
    }
    let applied = snapshots::describe(message.get_snapshot());
    let applied = applied.map_err(|_| Rejection::MalformedSnapshot)?;
    let description = &applied.description;
    let ours = description.peer(view.me.id).is_some_and(|peer| peer.store == view.me.store);
    if description.id != view.description.id || !ours {
        return Err(Rejection::MalformedSnapshot);
    }
    if applied.index.get() > MAX_NUMBER || applied.term.get() > message.term {
        return Err(Rejection::OutOfRange);
    }
    Ok(())
}

fn check_numbers(view: &View<'_>, message: &Message) -> Result<(), Rejection> {
    let max_term = MAX_NUMBER.min(view.term.saturating_add(MAX_TERM_LEAP));
    // raft-rs sends questions without a term.
    let asks = message.get_msg_type() == MessageType::MsgReadIndex;
    let term_in_range = match asks {
        true => message.term == 0,
        false => (1..=max_term).contains(&message.term),
    };
    let terms_in_order = message.log_term <= message.term && message.commit_term <= message.term;
    let indexes = [message.index, message.commit, message.reject_hint];
    if !term_in_range || !terms_in_order || indexes.iter().any(|index| *index > MAX_NUMBER) {
        return Err(Rejection::OutOfRange);
    }
    Ok(())
}

fn check_append(view: &View<'_>, message: &Message) -> Result<(), Rejection> {
    if view.leading && message.term == view.term {
        return Err(Rejection::RivalLeader);
    }
    if message.log_term == 0 {
        return Err(Rejection::OutOfRange);
    }
    let (mut bytes, mut index, mut term) = (0usize, message.index, message.log_term);
    for entry in message.entries.iter() {
        index += 1;
        let sound = entry.index == index
            && (term..=message.term).contains(&entry.term)
            && entry.get_entry_type() != EntryType::EntryConfChange
            && !has_unknown_fields(entry)
            && entry.context.len() <= MAX_HEADER_BYTES;
        if !sound || entry.index > MAX_NUMBER {
            return Err(Rejection::MalformedEntries);
        }
        term = entry.term;
        bytes += entry.data.len() + entry.context.len() + MIN_ENTRY_BYTES;
        if entry.data.len() > MAX_COMMAND_BYTES || bytes > MAX_APPEND_BYTES {
            return Err(Rejection::TooLarge);
        }
    }
    if view.backlog && !message.entries.is_empty() && message.term >= view.term {
        return Err(Rejection::Backlog);
    }
    Ok(())
}

/// The largest message of any sender: filled to the highest limit, or with one largest entry. Not
/// what *this* store's settings say, which may differ from the sender's.
const MAX_APPEND_BYTES: usize = MAX_COMMAND_BYTES + MAX_HEADER_BYTES + MIN_ENTRY_BYTES;

fn check_heartbeat(view: &View<'_>, message: &Message) -> Result<(), Rejection> {
    if view.leading && message.term == view.term {
        return Err(Rejection::RivalLeader);
    }
    // Of an older term it is only answered, not believed.
    if message.term >= view.term && message.commit > view.last_index {
        return Err(Rejection::CommitBeyondLog);
    }
    Ok(())
}

fn check_append_response(view: &View<'_>, message: &Message) -> Result<(), Rejection> {
    // Of another term it says something about another leader's log.
    if !view.leading || message.term != view.term {
        return Ok(());
    }
    let hint = if message.reject { message.reject_hint } else { 0 };
    if message.index.max(hint) > view.last_index {
        return Err(Rejection::ResponseBeyondLog);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::description::tests::description;
    use crate::ids::{Index, PeerId, RegionId, StoreId, Term};
    use crate::records::AppliedState;
    use raft::eraftpb::Entry;
    use std::sync::Arc;

    fn append() -> Envelope {
        let described = description(4, 3);
        let entry = |index, term| Entry { index, term, ..Entry::default() };
        Envelope {
            cluster_id: 1,
            region_id: RegionId::new(4),
            from: described.peers[1],
            to: described.peers[0],
            epoch: described.epoch,
            description: None,
            message: Message {
                msg_type: MessageType::MsgAppend,
                from: 2,
                to: 1,
                term: 7,
                index: 5,
                log_term: 5,
                commit: 5,
                entries: vec![entry(6, 6), entry(7, 7)].into(),
                ..Message::default()
            },
        }
    }

    fn of_type(msg_type: MessageType) -> Envelope {
        let mut envelope = append();
        envelope.message.entries.clear();
        envelope.message.msg_type = msg_type;
        envelope
    }

    fn check_as(leading: bool, backlog: bool, envelope: &Envelope) -> Result<(), Rejection> {
        let described = description(4, 3);
        let config = RegionConfig {
            max_size_per_msg_bytes: 1000,
            max_proposal_bytes: 2000,
            ..RegionConfig::new(1)
        };
        let view = View {
            config: &config,
            description: &described,
            me: described.peers[0],
            term: 7,
            leading,
            last_index: 9,
            leader: 2,
            backlog,
            no_snapshot: false,
            may_vote: true,
            follows: !leading,
            may_be_asked: true,
        };
        check(&view, envelope)
    }

    fn refused(expected: Rejection, mut envelope: Envelope, spoil: impl FnOnce(&mut Envelope)) {
        spoil(&mut envelope);
        assert_eq!(check_as(false, false, &envelope), Err(expected), "{envelope:?}");
    }

    #[test]
    fn sound_messages_pass() {
        use MessageType::*;
        assert_eq!(check_as(false, false, &append()), Ok(()));
        for msg_type in [MsgHeartbeat, MsgHeartbeatResponse, MsgAppendResponse, MsgRequestVote] {
            assert_eq!(check_as(false, false, &of_type(msg_type)), Ok(()));
        }
    }

    #[test]
    fn wrong_addresses_are_refused() {
        refused(Rejection::WrongCluster, append(), |e| e.cluster_id = 2);
        refused(Rejection::WrongRegion, append(), |e| e.region_id = RegionId::new(5));
        refused(Rejection::WrongRecipient, append(), |e| e.to.id = PeerId::new(3));
        refused(Rejection::WrongRecipient, append(), |e| e.to.store = StoreId::new(3));
        refused(Rejection::UnknownSender, append(), |e| e.from.id = PeerId::new(4));
        refused(Rejection::UnknownSender, append(), |e| e.from.store = StoreId::new(3));
        refused(Rejection::UnknownSender, append(), |e| e.from = e.to);
        refused(Rejection::IdMismatch, append(), |e| e.message.from = 3);
        refused(Rejection::IdMismatch, append(), |e| e.message.to = 3);
    }

    #[test]
    fn local_and_unsupported_messages_are_refused() {
        use MessageType::*;
        for msg_type in [MsgHup, MsgBeat, MsgPropose, MsgUnreachable, MsgSnapStatus, MsgCheckQuorum]
        {
            refused(Rejection::LocalMessage, of_type(msg_type), |_| ());
        }
        for msg_type in [MsgSnapshot, MsgTransferLeader] {
            refused(Rejection::Unsupported, of_type(msg_type), |_| ());
        }
        refused(Rejection::Unsupported, of_type(MsgRequestVote), |e| {
            e.message.context = "CampaignTransfer!".into();
        });
        refused(Rejection::Unsupported, of_type(MsgAppendResponse), |e| {
            e.message.request_snapshot = 1;
        });
    }

    #[test]
    fn while_it_follows_a_leader_nobody_else_raises_its_term() {
        use MessageType::*;
        let responses = [
            MsgAppendResponse,
            MsgHeartbeatResponse,
            MsgRequestVoteResponse,
            MsgRequestPreVoteResponse,
        ];
        for msg_type in responses {
            assert_eq!(check_as(false, false, &of_type(msg_type)), Ok(()));
            refused(Rejection::FollowsLeader, of_type(msg_type), |e| e.message.term = 8);
            let mut higher = of_type(msg_type);
            higher.message.term = 8;
            assert_eq!(check_as(true, false, &higher), Ok(()), "a leader steps down");
        }
        let mut elected = of_type(MsgHeartbeat);
        elected.message.term = 8;
        assert_eq!(check_as(false, false, &elected), Ok(()));
    }

    #[test]
    fn questions_for_reads_hold_one_entry_with_a_context_and_nothing_else() {
        let mut question = of_type(MessageType::MsgReadIndex);
        let entry = Entry { data: vec![7; CONTEXT_BYTES].into(), ..Entry::default() };
        let message = Message {
            msg_type: MessageType::MsgReadIndex,
            from: 2,
            to: 1,
            entries: vec![entry].into(),
            ..Message::default()
        };
        question.message = message;
        assert_eq!(check_as(true, false, &question), Ok(()));
        refused(Rejection::NotLeading, question.clone(), |_| ());
        let malformed = Rejection::MalformedEntries;
        refused(malformed, question.clone(), |e| e.message.entries.clear());
        refused(malformed, question.clone(), |e| e.message.entries[0].term = 1);
        refused(malformed, question.clone(), |e| e.message.entries[0].context = vec![1].into());
        refused(Rejection::OutOfRange, question.clone(), |e| e.message.term = 7);
        refused(Rejection::Unsupported, question.clone(), |e| e.message.index = 7);
        let mut answer = question;
        answer.message.msg_type = MessageType::MsgReadIndexResp;
        (answer.message.term, answer.message.index) = (7, 9);
        assert_eq!(check_as(false, false, &answer), Ok(()));
        refused(Rejection::NotFromLeader, answer, |e| {
            (e.from, e.message.from) = (description(4, 3).peers[2], 3);
        });
    }

    #[test]
    fn only_the_leader_may_ask_to_take_over() {
        let asks = of_type(MessageType::MsgTimeoutNow);
        assert_eq!(check_as(false, false, &asks), Ok(()));
        refused(Rejection::NotFromLeader, asks.clone(), |e| e.message.term = 8);
        refused(Rejection::NotFromLeader, asks, |e| {
            (e.from, e.message.from) = (description(4, 3).peers[2], 3);
        });
    }

    #[test]
    fn who_knows_more_peers_may_speak_and_who_knows_fewer_is_told() {
        let mut new = append();
        new.from = Peer::voter(PeerId::new(9), StoreId::new(9));
        new.message.from = 9;
        assert_eq!(check_as(false, false, &new), Err(Rejection::UnknownSender));
        new.epoch.conf_ver += 1;
        assert_eq!(check_as(false, false, &new), Ok(()));
    }

    fn snapshot() -> Envelope {
        let applied = AppliedState {
            index: Index::new(20),
            term: Term::new(7),
            description: Arc::new(description(4, 3)),
        };
        let mut envelope = of_type(MessageType::MsgSnapshot);
        envelope.message.set_snapshot(snapshots::to_raft(&applied));
        envelope
    }

    #[test]
    fn a_snapshot_must_be_of_this_region_and_hold_this_peer() {
        assert_eq!(check_as(false, false, &snapshot()), Ok(()));
        assert_eq!(check_as(true, false, &snapshot()), Err(Rejection::RivalLeader));
        let spoiled = |spoil: fn(&mut RegionDescription)| {
            let mut described = description(4, 3);
            spoil(&mut described);
            let (index, term) = (Index::new(20), Term::new(7));
            let applied = AppliedState { index, term, description: Arc::new(described) };
            move |e: &mut Envelope| e.message.set_snapshot(snapshots::to_raft(&applied))
        };
        let malformed = Rejection::MalformedSnapshot;
        refused(malformed, snapshot(), spoiled(|d| d.id = RegionId::new(5)));
        refused(malformed, snapshot(), spoiled(|d| d.peers = d.peers.split_off(1)));
        refused(malformed, snapshot(), |e| {
            e.message.mut_snapshot().mut_metadata().index = 21;
        });
        refused(Rejection::OutOfRange, snapshot(), |e| {
            e.message.log_term = 5;
            e.message.term = 6;
        });
    }

    #[test]
    fn numbers_out_of_range_are_refused() {
        refused(Rejection::OutOfRange, append(), |e| e.message.term = 0);
        // Of term 0 it would count as a local message, of the present term, and be believed.
        refused(Rejection::OutOfRange, of_type(MessageType::MsgHeartbeat), |e| {
            (e.message.term, e.message.log_term, e.message.commit) = (0, 0, 99);
        });
        refused(Rejection::OutOfRange, append(), |e| e.message.term = u64::MAX);
        refused(Rejection::OutOfRange, append(), |e| e.message.term |= 1 << 40);
        refused(Rejection::OutOfRange, append(), |e| e.message.index = u64::MAX);
        refused(Rejection::OutOfRange, append(), |e| e.message.log_term = 8);
        refused(Rejection::OutOfRange, append(), |e| e.message.log_term = 0);
    }

    #[test]
    fn malformed_entries_are_refused() {
        let malformed = Rejection::MalformedEntries;
        refused(malformed, append(), |e| e.message.entries[1].index = 8);
        refused(malformed, append(), |e| e.message.entries[0].index = 5);
        refused(malformed, append(), |e| e.message.entries[1].term = 5);
        refused(malformed, append(), |e| e.message.entries[1].term = 8);
        refused(malformed, append(), |e| {
            e.message.entries[1].entry_type = EntryType::EntryConfChange;
        });
        refused(malformed, append(), |e| {
            e.message.entries[1].unknown_fields.add_varint(100, 7);
        });
        refused(malformed, append(), |e| e.message.msg_type = MessageType::MsgHeartbeat);
        refused(Rejection::TooLarge, append(), |e| {
            e.message.entries[1].data = vec![0; MAX_COMMAND_BYTES + 1].into();
        });
        refused(Rejection::TooLarge, append(), |e| {
            e.message.entries[0].data = vec![0; MAX_COMMAND_BYTES / 2 + 1000].into();
            e.message.entries[1].data = vec![0; MAX_COMMAND_BYTES / 2 + 1000].into();
        });
    }

    #[test]
    fn a_heartbeat_must_not_commit_beyond_the_log() {
        let heartbeat = of_type(MessageType::MsgHeartbeat);
        refused(Rejection::CommitBeyondLog, heartbeat.clone(), |e| e.message.commit = 10);
        let mut old = heartbeat;
        (old.message.commit, old.message.term) = (10, 6);
        assert_eq!(check_as(false, false, &old), Ok(()), "it will be answered, not believed");
    }

    #[test]
    fn a_response_must_not_be_beyond_the_leaders_log() {
        let mut response = of_type(MessageType::MsgAppendResponse);
        response.message.index = 10;
        assert_eq!(check_as(true, false, &response), Err(Rejection::ResponseBeyondLog));
        assert_eq!(check_as(false, false, &response), Ok(()));
    }

    #[test]
    fn a_backlog_drops_appends_but_not_heartbeats() {
        assert_eq!(check_as(false, true, &append()), Err(Rejection::Backlog));
        assert_eq!(check_as(false, true, &of_type(MessageType::MsgHeartbeat)), Ok(()));
    }

    #[test]
    fn a_rival_leader_of_the_same_term_is_refused() {
        assert_eq!(check_as(true, false, &append()), Err(Rejection::RivalLeader));
    }
}
