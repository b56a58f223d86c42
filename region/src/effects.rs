//! What a region wants done.
//!
//! The caller owns one [`Effects`], lets regions fill it and carries it out. The types enforce what
//! matters most: a vote or an append response sits in [`HeldMessages`], which gives them out only
//! against a [`Persisted`], which is made from a [`LogWrite`] that has been written and synced.

use std::sync::Arc;

use bytes::Bytes;
use raft::eraftpb::{Entry, HardState};
use serde::{Deserialize, Serialize};

use crate::answer::{Answer, Callback};
use crate::command::CommandError;
use crate::description::{DecodeError, RegionDescription};
use crate::envelope::Envelope;
use crate::ids::{Index, PeerId, RegionId, StoreId, Term};
use crate::log_reader::LogReadError;
use crate::reads::{ReadAnswer, ReadCallback};
use crate::records::{AppliedState, RegionRecord, Removal, TruncatedState};

/// What came out of a region.
///
/// The caller hands the same `Effects` to one call after the other and carries out what has
/// gathered. `write` and `apply` must be taken out before the next
/// [`collect`](crate::Region::collect), which may fill them again.
#[derive(Default, Debug)]
pub struct Effects {
    /// May leave at once.
    pub messages: Vec<Box<Envelope>>,
    /// To persist. Writes of one region must be carried out in the order of their numbers.
    pub write: Option<LogWrite>,
    /// To apply. Batches of one region must be applied in order.
    pub apply: Option<ApplyBatch>,
    /// To run, off the hot path.
    pub answers: Vec<(Callback, Answer)>,
    /// To run, once [`serving`](crate::Region::serving) is known to whoever looks at it.
    pub reads: Vec<(ReadCallback, ReadAnswer)>,
    /// All peers agree that the log up to here is needed no more. To be done after `apply`: lower
    /// the index to what the state machine has flushed, and call
    /// [`compact_to`](crate::Region::compact_to).
    pub compact_request: Option<Index>,
    /// Role, term or leader changed.
    pub role_change: Option<RoleChange>,
    /// The region has other peers from now on, or another range.
    pub description_change: Option<DescriptionChange>,
    /// A transfer of leadership came to its end: to whom, and whether that peer leads.
    pub transfer_ended: Option<(PeerId, bool)>,
    /// Peers that can only be helped by a snapshot. Make one of the state machine's contents and hand
    /// what it is to [`snapshot_ready`](crate::Region::snapshot_ready).
    pub snapshots_wanted: Vec<PeerId>,
    /// This peer is not in the region any more. The region has ended: write a tombstone for it, then destroy
    /// its contents. What comes with it may leave, nothing else does.
    pub removed: Option<Removal>,
    /// The region has stopped itself and must be quarantined. Nothing else comes with it but
    /// answers.
    pub fatal: Option<RegionFailure>,
}

impl Effects {
    /// Empties it and keeps its buffers. Unanswered callbacks run as unknown.
    pub fn clear(&mut self) {
        self.messages.clear();
        self.write = None;
        self.apply = None;
        self.answers.clear();
        self.reads.clear();
        self.compact_request = None;
        self.role_change = None;
        self.description_change = None;
        self.transfer_ended = None;
        self.snapshots_wanted.clear();
        self.removed = None;
        self.fatal = None;
    }

    /// Whether there is nothing to carry out.
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
            && self.write.is_none()
            && self.apply.is_none()
            && self.answers.is_empty()
            && self.reads.is_empty()
            && self.compact_request.is_none()
            && self.role_change.is_none()
            && self.description_change.is_none()
            && self.transfer_ended.is_none()
            && self.snapshots_wanted.is_empty()
            && self.removed.is_none()
            && self.fatal.is_none()
    }
}

/// What a peer is within its region.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Follows a leader, or waits for one.
    Follower,
    /// Asks whether it would be elected.
    PreCandidate,
    /// Asks for votes.
    Candidate,
    /// Leads.
    Leader,
}

/// Role, term or leader changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RoleChange {
    /// What the peer is now.
    pub role: Role,
    /// The term now.
    pub term: Term,
    /// Who leads, as far as the peer knows.
    pub leader: Option<PeerId>,
}

/// The region has other peers, or another range.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DescriptionChange {
    /// Before.
    pub before: Arc<RegionDescription>,
    /// From now on.
    pub after: Arc<RegionDescription>,
}

/// What a region wants persisted, in one piece.
///
/// Invariant: entries are contiguous and *replace* everything from the first one's index on.
/// An empty write stands in the line for its held messages: they must wait for an earlier write.
#[derive(Debug)]
pub struct LogWrite {
    /// The region.
    pub region_id: RegionId,
    /// Increases from write to write of a region, with gaps.
    pub number: u64,
    /// To append.
    pub entries: Vec<Entry>,
    /// To replace the hard state, if any.
    pub hard_state: Option<HardState>,
    /// The whole log gives way to a snapshot and begins after it; `entries` follow it. The record that
    /// says so is among `records`.
    pub snapshot: Option<TruncatedState>,
    /// Records of regions: of the children of a split, which must be durable before the split is applied;
    /// or the region's own.
    pub records: Vec<RegionRecord>,
    pub(crate) held: HeldMessages,
    pub(crate) must_sync: bool,
}

impl LogWrite {
    /// Whether the write must be synced before its messages may leave.
    pub fn needs_sync(&self) -> bool {
        self.must_sync
    }

    /// Whether there is nothing to write. The write still takes its place in the order.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
            && self.hard_state.is_none()
            && self.snapshot.is_none()
            && self.records.is_empty()
    }

    /// Takes out the messages that wait for this write.
    pub fn take_held(&mut self) -> HeldMessages {
        std::mem::replace(&mut self.held, HeldMessages::none(self.region_id, self.number))
    }
}

/// Votes, append responses and whatever else promises something that is not durable yet.
#[derive(Debug)]
pub struct HeldMessages {
    pub(crate) region_id: RegionId,
    pub(crate) number: u64,
    pub(crate) messages: Vec<Box<Envelope>>,
}

impl HeldMessages {
    pub(crate) fn none(region_id: RegionId, number: u64) -> Self {
        Self { region_id, number, messages: Vec::new() }
    }

    /// Gives the messages out.
    ///
    /// # Panics
    /// If the proof is of another region or an earlier write.
    pub fn release(self, proof: &Persisted) -> Vec<Box<Envelope>> {
        assert!(
            proof.region_id == self.region_id && proof.number >= self.number,
            "{proof:?} does not prove write {} of region {}",
            self.number,
            self.region_id
        );
        self.messages
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }
}

/// Proof that a write, and every earlier one of its region, is durable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Persisted {
    region_id: RegionId,
    number: u64,
}

impl Persisted {
    /// Call it only after the write, and the sync if [`LogWrite::needs_sync`], returned `Ok`, and
    /// after all earlier writes of the region. Nobody can check that but the caller: this is the
    /// one place where "no promise before the sync" is a matter of trust.
    pub fn after_sync(write: &LogWrite) -> Self {
        Self { region_id: write.region_id, number: write.number }
    }

    /// The region.
    pub fn region_id(&self) -> RegionId {
        self.region_id
    }

    /// Number of the write.
    pub fn number(&self) -> u64 {
        self.number
    }
}

/// Committed commands, in order.
#[derive(Debug)]
pub struct ApplyBatch {
    /// The region.
    pub region_id: RegionId,
    /// The user's commands. May be empty where only the region's own entries committed.
    pub commands: Vec<ApplyCommand>,
    /// To be stored in the same atomic batch as the commands' effects. Its index is to be reported
    /// by [`applied`](crate::Region::applied).
    pub applied: AppliedState,
    /// What happens to the region as a whole. A batch with a change has no commands.
    pub change: Option<RegionChange>,
}

/// What happens to a region as a whole. It is handed out only after the write that it rests on, which came
/// with an earlier [`collect`](crate::Region::collect), is reported as persisted.
#[derive(Debug)]
pub enum RegionChange {
    /// The region becomes several. Their records are written; divide the contents, then bring the children
    /// to life.
    Split {
        /// What the others are.
        children: Vec<RegionDescription>,
        /// Told the parts, parent first, where the split was proposed at this peer.
        callback: Option<Callback>,
        /// Whether this peer leads: then the children's peers here should campaign at once.
        leading: bool,
    },
    /// The contents give way to those of the snapshot that was taken up to `applied`.
    Install,
}

/// A committed command of the user, whose epoch still matches.
#[derive(Debug)]
pub struct ApplyCommand {
    /// Index of its entry.
    pub index: Index,
    /// Term of its entry.
    pub term: Term,
    /// The user's bytes.
    pub payload: Bytes,
    /// Told the outcome, where the proposal was made at this peer.
    pub callback: Option<Callback>,
    /// The proposal's stamp, 0 without a callback.
    pub stamp: u64,
}

/// Why a region cannot start, or had to stop itself.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RegionFailure {
    /// The log could not be read, or is not what was written.
    #[error(transparent)]
    LogRead(#[from] LogReadError),
    /// A committed entry is not understood.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// What is on disk about the region is unsound in itself.
    #[error("region {region_id}: {cause}")]
    Description {
        /// The region.
        region_id: RegionId,
        /// What is unsound.
        cause: DecodeError,
    },
    /// The region has no peer on this store, or another one than its record says.
    #[error("region {region_id}: peer {peer_id} is not on store {store_id}")]
    NotOurs {
        /// The region.
        region_id: RegionId,
        /// The peer of the record.
        peer_id: PeerId,
        /// This store.
        store_id: StoreId,
    },
    /// Two things on disk contradict each other.
    #[error("region {region_id}: {what} is {value}, but {rule}")]
    Inconsistent {
        /// The region.
        region_id: RegionId,
        /// Which figure.
        what: &'static str,
        /// Its value.
        value: u64,
        /// What it contradicts, with values.
        rule: String,
    },
    /// raft-rs refused what it was given.
    #[error("region {region_id}: raft: {cause}")]
    Raft {
        /// The region.
        region_id: RegionId,
        /// What raft-rs said.
        cause: String,
    },
}

/// Figures of a region, copied out.
#[derive(Clone, Debug)]
pub struct RegionStatus {
    /// The description as of the last applied entry.
    pub description: Arc<RegionDescription>,
    /// This store's peer.
    pub peer_id: PeerId,
    /// What it is.
    pub role: Role,
    /// Its term.
    pub term: Term,
    /// Who leads, as far as it knows.
    pub leader: Option<PeerId>,
    /// Last entry of the log that is gone.
    pub truncated: Index,
    /// The snapshot up to here is in the log, and not yet in the state machine.
    pub installing: Option<Index>,
    /// Last entry that the state machine has reported as applied.
    pub applied: Index,
    /// Last entry handed out to be applied.
    pub emitted: Index,
    /// Last entry known to be committed.
    pub committed: Index,
    /// Last entry known to be persisted here.
    pub persisted: Index,
    /// Last entry of the log.
    pub last: Index,
    /// Proposals waiting for their entry to commit.
    pub pending_proposals: usize,
    /// Bytes handed out to be applied and not reported as applied.
    pub unapplied_bytes: usize,
    /// Bytes of entries in memory.
    pub cached_bytes: usize,
    /// Number of entries in memory.
    pub cached_entries: usize,
    /// Whether it sleeps.
    pub asleep: bool,
    /// On a leader, how far each peer is, this one included.
    pub matched: Vec<(PeerId, Index)>,
}

impl RegionStatus {
    /// Of a peer that sleeps: its log, up to `last`, is persisted, committed and applied, on each peer if it leads.
    pub fn at_rest(
        description: Arc<RegionDescription>,
        (peer_id, leader): (PeerId, PeerId),
        term: Term,
        (truncated, last): (Index, Index),
    ) -> Self {
        let leads = leader == peer_id;
        let peers = description.peers.iter().filter(|_| leads);
        Self {
            matched: peers.map(|peer| (peer.id, last)).collect(),
            description,
            peer_id,
            role: if leads { Role::Leader } else { Role::Follower },
            term,
            leader: Some(leader),
            truncated,
            installing: None,
            applied: last,
            emitted: last,
            committed: last,
            persisted: last,
            last,
            pending_proposals: 0,
            unapplied_bytes: 0,
            cached_bytes: 0,
            cached_entries: 0,
            asleep: true,
        }
    }
}
