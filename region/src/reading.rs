//! A region's part in reads: when it asks, what it learns from what is acknowledged anyway, and what it tells
//! about itself.

use std::time::Duration;

use bytes::Bytes;
use raft::eraftpb::{Message, MessageType};
use raft::ReadState;

use crate::admission::epoch_not_match;
use crate::effects::Effects;
use crate::envelope::Envelope;
use crate::error::{ProposeError, ReadError};
use crate::ids::{Index, PeerId};
use crate::lease::{Lease, Quorum};
use crate::life::Life;
use crate::reads::{context, Read, ReadAnswer, ReadMode, ReadPoint, ReadQueue, ReadWay, Serving};
use crate::region::Region;
use crate::sleep::QUESTION_BYTES;

/// Bytes of the time in a heartbeat's context.
pub(crate) const STAMP_BYTES: usize = 8;

/// Most questions of followers that a leader has open.
const MAX_QUESTIONS: usize = 1_024;

/// What a region knows about reads. Most regions are not read in ways that wait, and most peers do not lead:
/// what is needed for that is made when it is.
pub(crate) struct Reading {
    queue: Option<Box<ReadQueue>>,
    lease: Option<Box<Lease>>,
    /// As last told.
    now: Duration,
    generation: u64,
    /// Questions put so far.
    questions: u64,
}

impl Reading {
    pub(crate) fn new() -> Self {
        Self { queue: None, lease: None, now: Duration::ZERO, generation: 1, questions: 0 }
    }

    /// What was found out before is worthless.
    pub(crate) fn begin_anew(&mut self) {
        self.generation += 1;
    }

    /// What must go on counting when all else is forgotten.
    pub(crate) fn counters(&self) -> (u64, u64) {
        (self.questions, self.generation)
    }

    /// Counts on from there.
    pub(crate) fn go_on(&mut self, questions: u64, generation: u64) {
        (self.questions, self.generation) = (questions, generation);
    }

    /// Whether no read waits.
    pub(crate) fn is_quiet(&self) -> bool {
        self.queue.as_ref().is_none_or(|queue| queue.len() == 0)
    }

    /// Gives back what is not needed now.
    pub(crate) fn shrink(&mut self) {
        self.queue = self.queue.take().filter(|queue| queue.len() > 0);
    }
}

impl Region {
    /// What time it is. To be told at the begin of each turn, after its messages were received: leases count
    /// from the times told here.
    pub fn set_time(&mut self, now: Duration) {
        self.reading.now = now.max(self.reading.now);
    }

    /// Takes reads and empties the vector. All are answered in some `effects`, now or later; whatever has
    /// to be asked is asked once for all.
    pub fn read(&mut self, reads: &mut Vec<Read>, effects: &mut Effects) {
        self.wake(0);
        for read in reads.drain(..) {
            match self.admit_read(&read) {
                Err(error) => effects.reads.push((read.callback, Err(error))),
                Ok(()) => self.enter(read),
            }
        }
        self.answer_reads(effects);
        self.ask_for_reads();
    }

    fn admit_read(&self, read: &Read) -> Result<(), ReadError> {
        let region_id = self.id();
        match self.life {
            Life::Live => {}
            Life::Stopped | Life::Removing(_) => return Err(ReadError::Stopped { region_id }),
            Life::Failing(_) | Life::Failed => return Err(ReadError::Quarantined { region_id }),
        }
        let own = self.description.epoch;
        // A peer that is behind may reach the reader's epoch by the time of the answer.
        let newer = |known| self.is_leader() && own != known;
        let passed = |known: crate::description::RegionEpoch| {
            own.version > known.version || own.conf_ver > known.conf_ver
        };
        if read.epoch.is_some_and(|known| passed(known) || newer(known)) {
            return Err(self.read_epoch_error());
        }
        if read.mode == ReadMode::LeaderOnly && !self.is_leader() {
            return Err(ReadError::NotLeader { region_id, leader: self.leader() });
        }
        let waiting = self.reading.queue.as_ref().map_or(0, |queue| queue.len());
        match waiting < self.config.max_pending_proposals {
            true => Ok(()),
            false => Err(ReadError::Busy { region_id, reason: "too many reads wait" }),
        }
    }

    fn enter(&mut self, read: Read) {
        let now = self.reading.now;
        let leased = || self.lease_end().is_some_and(|end| now < end);
        let known = match read.mode {
            ReadMode::Stale { at_least } => Some((at_least, ReadWay::Stale)),
            _ => leased().then(|| (self.lease_index(), ReadWay::Lease)),
        };
        let queue = self.reading.queue.get_or_insert_default();
        match known {
            Some((index, way)) => queue.push_known(read, index, way),
            None => queue.push(read),
        }
    }

    fn read_epoch_error(&self) -> ReadError {
        let region_id = self.id();
        match epoch_not_match(&self.description) {
            ProposeError::EpochNotMatch { current, .. } => {
                ReadError::EpochNotMatch { region_id, current }
            }
            _ => ReadError::Busy { region_id, reason: "the epoch does not match" },
        }
    }

    /// Until when the lease stands, wherever the state machine is.
    fn lease_end(&self) -> Option<Duration> {
        let hands_over = self.raw.raft.lead_transferee.is_some() || self.pending.transfer.is_some();
        if !self.is_leader() || !self.life.is_live() || hands_over {
            return None;
        }
        let (term, applied, now) = (self.term(), self.applying.applied(), self.reading.now);
        let own_term_applied = || self.raw.raft.apply_to_current_term();
        let quorum = Quorum { description: &self.description, leader: self.peer.id, now };
        let used = !self.config.lease.is_zero();
        self.reading.lease.as_ref().filter(|_| used)?.until(
            term,
            applied,
            own_term_applied,
            &quorum,
        )
    }

    /// The lease of this leadership, where there may be one.
    fn lease(&mut self) -> Option<&mut Lease> {
        let length = self.config.lease;
        if !self.is_leader() || length.is_zero() {
            return None;
        }
        let term = self.term();
        let lease = self.reading.lease.get_or_insert_with(|| Box::new(Lease::new(length)));
        Some(lease.of_term(term))
    }

    /// What must be applied for a read under the lease.
    fn lease_index(&self) -> Index {
        match self.reading.lease.as_ref().is_some_and(|lease| lease.is_shared()) {
            true => self.committed(),
            false => self.applying.applied(),
        }
    }

    /// How the region stands to readers. To be made known to them at the end of each turn, before any
    /// message of the turn leaves.
    pub fn serving(&self) -> Serving {
        let applied = self.applying.applied();
        let shown =
            |_: &Duration| self.lease_index() <= applied && self.role_now() == *self.reported();
        let lease = self.lease_end().filter(shown);
        Serving {
            generation: self.reading.generation,
            epoch: self.description.epoch,
            applied,
            contents: self.has_contents(),
            term: self.term(),
            lease_until: lease.filter(|_| self.has_contents()),
        }
    }

    fn has_contents(&self) -> bool {
        self.life.is_live() && self.has_range() && self.pending.installing.is_none()
    }

    /// Answers the reads that wait for no more than what is applied. To be called after
    /// [`applied`](Region::applied) where that is not followed by [`collect`](Region::collect) at once.
    pub fn answer_reads(&mut self, effects: &mut Effects) {
        if self.reading.queue.is_none() {
            return;
        }
        let applied = self.applying.applied();
        let known = self.role_now() == *self.reported();
        if !known || !self.has_contents() {
            return;
        }
        let Some(queue) = self.reading.queue.as_mut().filter(|queue| queue.has_answers(applied))
        else {
            return;
        };
        let mut now = Vec::new();
        queue.take_applied(applied, |read, way| now.push((read, way)));
        let (region_id, epoch) = (self.id(), self.description.epoch);
        let (peer_id, generation) = (self.peer.id, self.reading.generation);
        for (read, way) in now {
            let answer: ReadAnswer = match read.epoch.is_some_and(|known| known != epoch) {
                true => Err(self.read_epoch_error()),
                false => Ok(ReadPoint { region_id, peer_id, epoch, applied, way, generation }),
            };
            effects.reads.push((read.callback, answer));
        }
    }

    /// Whether [`collect`](Region::collect) has something to do for reads.
    pub(crate) fn has_reads_to_do(&self) -> bool {
        let Some(queue) = &self.reading.queue else { return false };
        queue.wants_to_ask() && self.may_ask()
            || self.has_contents() && queue.has_answers(self.applying.applied())
    }

    /// raft-rs drops a question where nobody can answer it.
    fn may_ask(&self) -> bool {
        match self.is_leader() {
            true => self.raw.raft.commit_to_current_term(),
            false => self.raw.raft.leader_id != raft::INVALID_ID,
        }
    }

    /// Puts a question if there is one to put.
    pub(crate) fn ask_for_reads(&mut self) {
        let wants_to_ask = self.reading.queue.as_ref().is_some_and(|queue| queue.wants_to_ask());
        if !wants_to_ask || !self.life.is_live() || !self.may_ask() {
            return;
        }
        // A lone voter's answer renews the lease, too.
        let _ = self.lease();
        self.reading.questions += 1;
        let context = context(self.peer.id, self.config.incarnation, self.reading.questions);
        if let Some(queue) = &mut self.reading.queue {
            queue.ask(context, self.reading.now);
        }
        self.raw.read_index(context.to_vec());
        self.settle();
    }

    /// raft-rs has answers.
    pub(crate) fn learn(&mut self, states: Vec<ReadState>) {
        let way = match self.is_leader() {
            true => ReadWay::Index,
            false => ReadWay::Follower,
        };
        let Some(queue) = &mut self.reading.queue else { return };
        for ReadState { index, request_ctx } in states {
            queue.learn(&request_ctx, Index::new(index), way);
        }
    }

    /// A tick: lost questions, and reads that have waited for too long.
    pub(crate) fn tick_reads(&mut self, effects: &mut Effects) {
        let region_id = self.id();
        let (patience, limit) = (self.config.heartbeat_ticks + 1, self.config.unknown_after_ticks);
        let Some(queue) = &mut self.reading.queue else { return };
        queue.tick(patience, limit, |read| {
            effects.reads.push((read.callback, Err(ReadError::TimedOut { region_id })));
        });
    }

    /// Role, term or leader are others now.
    pub(crate) fn begin_reads_anew(&mut self, led: bool, effects: &mut Effects) {
        self.reading.begin_anew();
        let (region_id, leader, leads) = (self.id(), self.leader(), self.is_leader());
        let keep = |read: &Read| leads || !led && read.mode != ReadMode::LeaderOnly;
        self.reading.lease = self.reading.lease.take().filter(|_| leads);
        let Some(queue) = &mut self.reading.queue else { return };
        queue.start_anew(keep, |read| {
            effects.reads.push((read.callback, Err(ReadError::NotLeader { region_id, leader })));
        });
    }

    /// The region ends.
    pub(crate) fn refuse_reads(&mut self, error: &ReadError, effects: &mut Effects) {
        self.reading.begin_anew();
        let Some(mut queue) = self.reading.queue.take() else { return };
        queue.drain(|read| effects.reads.push((read.callback, Err(error.clone()))));
    }

    /// Whether a follower's question fits in.
    pub(crate) fn may_be_asked(&self) -> bool {
        self.raw.raft.pending_read_count() < MAX_QUESTIONS
    }

    /// What a message that passed the guard tells a leader about its lease.
    pub(crate) fn hear_for_lease(&mut self, message: &Message) {
        let (now, from) = (self.reading.now, PeerId::new(message.from));
        let asked_at = || self.reading.queue.as_ref()?.asked_at(&message.context);
        let of_this_term = message.term == self.raw.raft.term;
        match message.get_msg_type() {
            MessageType::MsgReadIndex => {
                if let Some(lease) = self.lease() {
                    lease.share();
                }
            }
            MessageType::MsgHeartbeatResponse if of_this_term => {
                let sent = match message.context.len() {
                    STAMP_BYTES | QUESTION_BYTES => stamp_of(&message.context),
                    _ => asked_at(),
                };
                if let (Some(sent), Some(lease)) = (sent, self.lease()) {
                    lease.received(from, sent, now);
                }
            }
            MessageType::MsgAppendResponse if of_this_term && !message.reject => {
                if let Some(lease) = self.lease() {
                    lease.matched(from, Index::new(message.index), now);
                }
            }
            _ => {}
        }
    }

    /// Writes the time into heartbeats that are to be sent, and whether the region should sleep.
    pub(crate) fn stamp_heartbeats(&self, messages: &mut [Box<Envelope>]) {
        if !self.is_leader() || messages.is_empty() {
            return;
        }
        let timed = !self.config.lease.is_zero();
        let stamp = u64::try_from(self.reading.now.as_nanos()).unwrap_or(u64::MAX).to_be_bytes();
        let is_free = |message: &Message| {
            message.get_msg_type() == MessageType::MsgHeartbeat && message.context.is_empty()
        };
        for envelope in messages.iter_mut().filter(|envelope| is_free(&envelope.message)) {
            let context = || timed.then(|| Bytes::copy_from_slice(&stamp));
            envelope.message.context =
                self.ask_to_sleep(stamp).or_else(context).unwrap_or_default();
        }
    }

    /// Entries from `first` on were proposed.
    pub(crate) fn probe_lease(&mut self, first: Index) {
        let now = self.reading.now;
        if let Some(lease) = self.lease() {
            lease.proposed(first, now);
        }
    }

    /// The region has other peers.
    pub(crate) fn renew_lease_with_new_peers(&mut self) {
        let now = self.reading.now;
        if let Some(lease) = self.lease() {
            lease.peers_changed(now);
        }
    }

    /// Whether leadership may be taken over in this term.
    pub(crate) fn has_given_up_lease(&self) -> bool {
        self.reading.lease.as_ref().is_some_and(|lease| lease.is_given_up(self.term()))
    }

    /// Leadership may be taken over from now on.
    pub(crate) fn give_up_lease(&mut self) {
        if let Some(lease) = self.lease() {
            lease.give_up();
        }
    }

    /// The children of a split may serve elsewhere before it is applied here.
    pub(crate) fn suspend_lease_until(&mut self, split: Index) {
        if let Some(lease) = self.lease() {
            lease.off_until_applied(split);
        }
    }
}

/// When the heartbeat was sent that carries this context.
fn stamp_of(context: &[u8]) -> Option<Duration> {
    let stamp = context.get(..STAMP_BYTES)?.try_into().ok()?;
    Some(Duration::from_nanos(u64::from_be_bytes(stamp)))
}
