//! A region: the order in which its parts work.
//!
//! Every input follows the same pattern: check, hand to raft-rs, then [`Region::settle`], which
//! puts the election timeout back to its deterministic value and looks whether a read has failed.
//! Everything that comes out does so through [`Region::collect`], but for answers.
//!
//! Invariant: `applied ≤ emitted ≤ committed`, `emitted ≤ persisted ≤ last index`, and none of
//! `applied`, `emitted` and `committed` goes back. (`persisted` does where a new leader replaces
//! the tail of the log, but never below `committed`.)
//!
//! # Campaigns are postponed
//!
//! raft-rs 0.7 reads everything between applied and committed before it campaigns, to find changes
//! of the membership: a peer with a million unapplied entries would load them all. And it takes for
//! granted that a candidate has persisted its whole log. So while entries are not persisted, not
//! yet handed out to be applied, or handed out by more than a page, a tick that would start a
//! campaign is left out, and the next one tries again.

use std::sync::Arc;

use raft::eraftpb::{Entry, Message, MessageType};
use raft::RawNode;

use crate::admission::Admission;
use crate::applying::Applying;
use crate::command::HeaderCache;
use crate::compaction::Compaction;
use crate::config::RegionConfig;
use crate::description::{Peer, RegionDescription};
use crate::effects::{Effects, Persisted, RegionFailure, Role, RoleChange};
use crate::envelope::Envelope;
use crate::error::{ProposeError, ReadError};
use crate::guard::{self, Rejection, View};
use crate::heartbeats::NO_BEAT;
use crate::ids::{Index, StoreId, Term};
use crate::life::Life;
use crate::log_reader::LogReader;
use crate::logger::raft_logger;
use crate::outgoing::Sender;
use crate::peer_book::PeerBook;
use crate::pending::Pending;
use crate::persistence::{Hard, ReadyParts, Writes};
use crate::proposals::{Proposal, ProposalQueue};
use crate::reading::Reading;
use crate::records::TruncatedState;
use crate::restore::{self, RestoredState, SoundState};
use crate::sleep::Sleep;
use crate::storage::{HandOut, RegionStorage};
use crate::timeout;

/// What came of the wish to campaign.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Campaign {
    /// The campaign is under way, or won at once.
    Started,
    /// The peer leads already.
    Leading,
    /// Entries must be persisted or applied first, or a vote from before a restart may still bind the peer.
    /// It stands within a tick of when neither is so, unless it hears of a leader before.
    Postponed,
    /// The peer has heard of a leader within an election timeout, and has promised to vote for nobody else
    /// meanwhile, not even for itself. Hand leadership over, or wait.
    LeaderAlive,
    /// A learner cannot lead.
    NotVoter,
    /// The region is stopped or quarantined.
    Ended,
}

/// One peer of a region. See the crate's documentation for how to drive it.
pub struct Region {
    pub(crate) peer: Peer,
    pub(crate) description: Arc<RegionDescription>,
    pub(crate) config: Arc<RegionConfig>,
    pub(crate) raw: RawNode<RegionStorage>,
    pub(crate) headers: HeaderCache,
    /// In ticks, of this term.
    pub(crate) timeout: (Term, usize),
    pub(crate) proposals: ProposalQueue,
    pub(crate) writes: Writes,
    pub(crate) applying: Applying,
    pub(crate) compaction: Compaction,
    /// Changes of the region itself that are under way.
    pub(crate) pending: Pending,
    pub(crate) book: PeerBook,
    pub(crate) reading: Reading,
    pub(crate) sleep: Sleep,
    /// A leader's: the last entry when it was time for heartbeats last, in this leadership and with these peers.
    pub(crate) beat: Index,
    /// As of the last `collect`.
    reported: RoleChange,
    /// As of the last `collect`.
    collected: Hard,
    pub(crate) life: Life,
}

impl Region {
    /// Brings a region back from what is on disk; also a new one, whose record is just written.
    ///
    /// # Errors
    /// If what is on disk is unsound, contradicts itself, or cannot be read. The failure names it.
    pub fn restore(
        state: RestoredState,
        store: StoreId,
        config: Arc<RegionConfig>,
        reader: Arc<dyn LogReader>,
    ) -> Result<Region, RegionFailure> {
        let sound = restore::check(state, store, config.election_ticks, reader.as_ref())?;
        Region::assemble(sound, config, reader)
    }

    /// A follower that knows no leader.
    pub(crate) fn assemble(
        sound: SoundState,
        config: Arc<RegionConfig>,
        reader: Arc<dyn LogReader>,
    ) -> Result<Region, RegionFailure> {
        let region_id = sound.description.id;
        let raft_config = config.for_raft(sound.me.id, sound.applied);
        let storage = RegionStorage::new(
            &sound.description,
            sound.current.clone(),
            sound.terms,
            reader,
            config.max_committed_bytes_per_ready,
        );
        let mut raw = RawNode::new(&raft_config, storage, raft_logger())
            .map_err(|error| RegionFailure::Raft { region_id, cause: error.to_string() })?;
        raw.mut_store().drop_initial_state();
        let term = Term::new(sound.current.term);
        let timeout =
            timeout::draw(config.seed, region_id, sound.me.id, term, config.election_ticks);
        let mut region = Region {
            peer: sound.me,
            description: sound.description,
            headers: HeaderCache::default(),
            timeout: (term, timeout),
            proposals: ProposalQueue::new(region_id, config.max_pending_proposals),
            writes: Writes::new(Hard::of(&sound.written)),
            applying: Applying::new(sound.applied, config.max_unapplied_bytes),
            compaction: Compaction::default(),
            pending: Pending::new(sound.no_vote_ticks, sound.replay_to, sound.awaits_split),
            book: PeerBook::default(),
            reading: Reading::new(),
            sleep: Sleep::default(),
            beat: NO_BEAT,
            reported: RoleChange { role: Role::Follower, term, leader: None },
            collected: Hard::of(&sound.current),
            life: Life::Live,
            config,
            raw,
        };
        region.settle();
        Ok(region)
    }

    /// Takes a message from another store.
    ///
    /// # Errors
    /// Says why the message was dropped. Dropping it is safe.
    pub fn step(&mut self, envelope: Box<Envelope>) -> Result<(), Rejection> {
        self.life.check()?;
        self.wake(0);
        if self.hears_of_region(&envelope)? {
            return Ok(());
        }
        if let Err(rejection) = guard::check(&self.view(), &envelope) {
            if guard::is_stale_candidate(&self.view(), &envelope) {
                let notice = self.notice(envelope.from);
                self.pending.notify(notice);
            }
            return Err(rejection);
        }
        if self.is_leader() {
            self.book.hear(&envelope);
        } else if self.description.peer(envelope.from.id).is_none() {
            self.book.meet(envelope.from);
        }
        let message = envelope.message;
        let (from, msg_type) = (message.from, message.get_msg_type());
        if msg_type == MessageType::MsgTimeoutNow && self.campaign_must_wait() {
            self.pending.take_over_later(message);
            return Ok(());
        }
        let leads = message.term >= self.raw.raft.term && is_leaders(msg_type);
        if leads {
            self.pending.hears_leader();
        }
        let rejected = message.reject && msg_type == MessageType::MsgAppendResponse;
        self.hear_for_lease(&message);
        self.hear_of_sleep(&message, leads);
        self.doubt_leader(&message);
        // The only error is "no such peer": of a response to somebody who was removed.
        let _ = self.raw.step(message);
        if rejected {
            self.keep_next_behind_match(from);
        }
        self.settle();
        if self.is_leader() {
            self.trim();
            self.sleep_if_agreed();
        }
        Ok(())
    }

    /// Takes proposals and empties the vector. Those that are refused are answered in `effects`;
    /// all others become one append.
    pub fn propose(&mut self, proposals: &mut Vec<Proposal>, effects: &mut Effects) {
        if proposals.is_empty() {
            return;
        }
        self.wake(0);
        let mut admitted = Vec::with_capacity(proposals.len());
        let mut admission = self.admission();
        for mut proposal in proposals.drain(..) {
            proposal.callback.bind(admission.description.id);
            match admission.admit(&proposal) {
                Ok(()) => admitted.push(proposal),
                Err(error) => effects.answers.push((proposal.callback, Err(error))),
            }
        }
        if admitted.is_empty() {
            return;
        }
        let epoch = self.description.epoch;
        let mut entries = Vec::with_capacity(admitted.len());
        for proposal in &mut admitted {
            let payload = std::mem::take(&mut proposal.payload);
            entries.push(self.headers.user_entry(epoch, payload));
        }
        let term = self.term();
        match self.append(entries) {
            Some(first) => {
                self.probe_lease(first);
                for (index, proposal) in (first.get()..).zip(admitted) {
                    let (callback, stamp) = (proposal.callback, proposal.stamp);
                    self.proposals.push(Index::new(index), term, callback, stamp);
                }
            }
            None => {
                let busy = ProposeError::Busy { region_id: self.id(), reason: "raft dropped it" };
                let refused = admitted.into_iter().map(|proposal| proposal.callback);
                effects.answers.extend(refused.map(|callback| (callback, Err(busy.clone()))));
            }
        }
        self.settle();
    }

    /// Lets one tick pass.
    pub fn tick(&mut self, effects: &mut Effects) {
        if !self.life.is_live() || self.is_asleep() {
            return;
        }
        if self.writes.tick() >= self.config.write_stall_ticks && self.is_leader() {
            // Others can persist; this peer campaigns again when its disk has caught up.
            tracing::warn!(region_id = self.id().get(), "the disk hangs, giving up leadership");
            self.raw.raft.become_follower(self.raw.raft.term, raft::INVALID_ID);
            self.settle();
        }
        let leading = self.is_leader();
        self.proposals.tick(leading, self.config.unknown_after_ticks, &mut effects.answers);
        self.pending.tick(leading);
        self.ask_if_lonely();
        self.take_over_if_asked();
        self.tick_reads(effects);
        let raft = &self.raw.raft;
        let may_campaign = !leading
            && raft.promotable()
            && raft.election_elapsed + 1 >= raft.randomized_election_timeout();
        if may_campaign && self.campaign_must_wait() {
            return;
        }
        if leading {
            self.tick_leader();
        }
        self.raw.tick();
        if leading {
            self.spare_heartbeats();
        }
        self.settle();
        self.look_at_transfer(effects);
        self.tick_sleep();
    }

    /// Campaigns now, for a region that is created with a leader in mind, or a woken one.
    pub fn campaign(&mut self) -> Campaign {
        if !self.life.is_live() {
            return Campaign::Ended;
        }
        if self.is_leader() {
            return Campaign::Leading;
        }
        self.wake(0);
        if !self.raw.raft.promotable() {
            return Campaign::NotVoter;
        }
        if self.follows() {
            return Campaign::LeaderAlive;
        }
        if self.campaign_must_wait() || !(self.pending.may_vote() || self.is_lone_voter()) {
            self.pending.wants_to_lead = true;
            return Campaign::Postponed;
        }
        self.pending.wants_to_lead = false;
        let campaigned = self.raw.campaign();
        debug_assert!(campaigned.is_ok(), "{campaigned:?}");
        self.settle();
        Campaign::Started
    }

    /// A write is durable. Late, repeated and earlier reports do no harm.
    ///
    /// Caveat: numbers begin anew when a region is dropped and restored. Drop one only when no
    /// write is [outstanding](Self::has_outstanding_write), or see to it that late reports of the
    /// old one never reach the new one.
    pub fn persisted(&mut self, persisted: Persisted) {
        debug_assert_eq!(persisted.region_id(), self.id());
        if persisted.region_id() != self.id() {
            return;
        }
        if !self.life.is_live() {
            self.writes.persisted(persisted.number());
            return;
        }
        if let Some(number) = self.writes.persisted(persisted.number()) {
            self.raw.on_persist_ready(number);
            self.settle();
            self.trim();
        }
    }

    /// Everything up to `index` is applied. Late and repeated reports do no harm.
    pub fn applied(&mut self, index: Index) {
        if self.life.is_live() && self.applying.report(index) {
            self.raw.advance_apply_to(index.get());
            if self.pending.installing.is_some_and(|snapshot| snapshot <= index) {
                self.pending.installing = None;
                self.reading.begin_anew();
            }
            let held = index.get().saturating_sub(self.truncated().index.get());
            let long = held > self.config.compact_after_entries
                || self.raw.store().log_bytes() > self.config.compact_after_bytes;
            if long && self.is_leader() {
                self.propose_compaction();
            }
            self.settle();
        }
    }

    /// Cuts the log's head up to `index`, or to what is applied if that is less. Returns what must
    /// be written about it, or `None` if there is nothing to cut.
    pub fn compact_to(&mut self, index: Index) -> Option<TruncatedState> {
        let index = index.min(self.applying.applied());
        if !self.life.is_live() || index <= self.truncated().index {
            return None;
        }
        Some(self.raw.mut_store().truncate_to(index))
    }

    /// The disk runs full of old entries, of this region among others: a leader has its log cut as soon as
    /// it may be.
    pub fn compact_soon(&mut self) {
        if self.life.is_live() && self.is_leader() {
            self.wake(0);
            self.compaction.hurry();
            self.propose_compaction();
            self.settle();
        }
    }

    /// Whether [`collect`](Self::collect) has something to give.
    pub fn has_ready(&self) -> bool {
        match self.life {
            Life::Failing(_) => return true,
            Life::Removing(_) => return !self.writes.outstanding(),
            Life::Stopped | Life::Failed => return false,
            Life::Live => {}
        }
        if self.pending.has_work(&self.writes, &self.applying)
            || self.raw.store().snapshots().any_wanted()
            || self.has_reads_to_do()
            || self.wants_to_nudge()
        {
            return true;
        }
        if !self.withholds() {
            return self.raw.has_ready();
        }
        // Committed entries alone are no reason now.
        let raft = &self.raw.raft;
        !raft.msgs.is_empty()
            || !raft.raft_log.unstable_entries().is_empty()
            || raft.snap().is_some()
            || !raft.read_states.is_empty()
            || Hard::now(&self.raw) != self.collected
            || self.role_now() != self.reported
    }

    /// Gives out what has gathered: one Ready at most.
    ///
    /// Invariant: nothing is stepped between raft-rs's `ready` and `advance_append_async`.
    pub fn collect(&mut self, effects: &mut Effects) {
        debug_assert!(effects.write.is_none() && effects.apply.is_none(), "take them out first");
        if self.report_failure(effects) || !self.has_ready() {
            return;
        }
        let released = self.release_change(effects);
        self.ask_for_reads();
        self.nudge();
        let hand_out = match released || self.withholds() {
            true => HandOut::Nothing,
            false if self.is_leader() => HandOut::Copies,
            false => HandOut::Originals,
        };
        self.raw.store().set_hand_out(hand_out);
        let mut ready = self.raw.ready();
        self.raw.store().set_hand_out(HandOut::Copies);
        let (number, entries) = (ready.number(), ready.take_entries());
        let snapshot = Some(ready.snapshot()).filter(|snapshot| !snapshot.is_empty()).cloned();
        let committed = ready.take_committed_entries();
        let read_states = ready.take_read_states();
        let leading = self.is_leader();
        let messages = match leading {
            true => ready.take_messages(),
            false => ready.take_persisted_messages(),
        };
        let mut parts = ReadyParts::new(number, entries, leading);
        if let Some(snapshot) = &snapshot {
            self.give_way(snapshot, &mut parts, effects);
        }
        self.raw.mut_store().append(&parts.entries);
        self.raw.advance_append_async(ready);
        self.settle();
        parts.hard_state = Hard::now(&self.raw);
        let before = std::mem::replace(&mut self.collected, parts.hard_state);
        parts.messages = self.sender().address(messages);
        self.stamp_heartbeats(&mut parts.messages);
        self.agree_to_sleep(&mut parts, before);
        self.learn(read_states);
        if !released {
            let committed = self.pending.next_entries(committed, self.applying.is_full());
            if let Err(error) = self.emit(committed, &mut parts, effects) {
                self.fail(error.into());
            }
        }
        if self.report_failure(effects) {
            return;
        }
        if parts.peers_changed {
            // Who is told that he has left may be gone before this peer comes back from a crash.
            parts.messages.append(&mut self.pending.notices);
        }
        let persisted_now = self.writes.plan(self.id(), &mut parts, effects);
        effects.messages.append(&mut self.pending.notices);
        self.pending.give_answers(&self.writes, &mut effects.answers);
        if persisted_now {
            self.raw.on_persist_ready(number);
            self.settle();
        }
        self.take_over_if_asked();
        self.raw.store().snapshots().take_wanted(&mut effects.snapshots_wanted);
        self.look_at_transfer(effects);
        self.report_role(effects);
        self.answer_reads(effects);
        self.trim();
        self.assert_order();
    }

    /// Ends the region: answers every waiting proposal. Nothing comes out of it any more.
    pub fn shutdown(&mut self, effects: &mut Effects) {
        self.life.end(Life::Stopped);
        self.proposals.answer_unknown("the region was shut down", &mut effects.answers);
        self.pending.answer_unknown(self.id(), "the region was shut down", &mut effects.answers);
        self.refuse_reads(&ReadError::Stopped { region_id: self.id() }, effects);
    }
}

/// Whether only a leader sends it.
fn is_leaders(msg_type: MessageType) -> bool {
    use MessageType::{MsgAppend, MsgHeartbeat, MsgSnapshot};
    matches!(msg_type, MsgAppend | MsgHeartbeat | MsgSnapshot)
}

/// The parts at work.
impl Region {
    /// To be called after everything that may step raft-rs.
    pub(crate) fn settle(&mut self) {
        // Whether raft-rs has drawn another is seen only if it differs, so what it draws must never matter: a timeout
        // is for a whole term, also one that was [set](Self::let_another_stand).
        let term = self.term();
        if term != self.timeout.0 {
            let (seed, ticks) = (self.config.seed, self.config.election_ticks);
            self.timeout = (term, timeout::draw(seed, self.id(), self.peer.id, term, ticks));
        }
        if self.raw.raft.randomized_election_timeout() != self.timeout.1 {
            self.raw.raft.set_randomized_election_timeout(self.timeout.1);
        }
        if let Some(error) = self.raw.store().take_failure() {
            self.fail(error.into());
        }
    }

    pub(crate) fn fail(&mut self, failure: RegionFailure) {
        if self.life.is_live() {
            tracing::error!(region_id = self.id().get(), %failure, "region stopped itself");
        }
        self.life.end(Life::Failing(Box::new(failure)));
    }

    /// Reports a failure, once, and says whether the region has ended.
    pub(crate) fn report_failure(&mut self, effects: &mut Effects) -> bool {
        if let Some(failure) = self.life.take_failure() {
            self.proposals.answer_unknown("the region failed", &mut effects.answers);
            self.pending.answer_unknown(self.id(), "the region failed", &mut effects.answers);
            self.refuse_reads(&ReadError::Quarantined { region_id: self.id() }, effects);
            effects.fatal = Some(failure);
        }
        // What is being written must not come after the tombstone.
        let removal = match self.writes.outstanding() {
            true => None,
            false => self.life.take_removal(),
        };
        if let Some(removal) = removal {
            let why = "the peer was removed from its region";
            self.proposals.answer_unknown(why, &mut effects.answers);
            self.pending.answer_unknown(self.id(), why, &mut effects.answers);
            self.refuse_reads(&ReadError::Stopped { region_id: self.id() }, effects);
            effects.messages.append(&mut self.pending.notices);
            effects.removed = Some(removal);
        }
        !self.life.is_live()
    }

    pub(crate) fn view(&self) -> View<'_> {
        View {
            config: &self.config,
            description: &self.description,
            me: self.peer,
            term: self.raw.raft.term,
            leading: self.is_leader(),
            last_index: self.last_index().get(),
            leader: self.raw.raft.leader_id,
            no_snapshot: self.pending.holds_entries()
                || self.raw.raft.snap().is_some()
                || self.applying.applied() < self.pending.split_at
                || !self.pending.is_replayed(self.applying.emitted()),
            may_vote: self.pending.may_vote(),
            follows: self.follows(),
            may_be_asked: self.may_be_asked(),
            // With what has come in since the last Ready.
            backlog: self.applying.is_full()
                || self.raw.store().cached_bytes() + self.raw.raft.raft_log.unstable.entries_size
                    > self.config.max_unapplied_bytes,
        }
    }

    pub(crate) fn sender(&self) -> Sender<'_> {
        Sender {
            cluster_id: self.config.cluster_id,
            description: &self.description,
            me: self.peer,
            max_message_bytes: self.config.max_size_per_msg_bytes,
            book: &self.book,
            progress: self.is_leader().then(|| self.raw.raft.prs()),
        }
    }

    pub(crate) fn notice(&self, to: Peer) -> Box<Envelope> {
        self.sender().notice(to, self.raw.raft.raft_log.commit_info())
    }

    pub(crate) fn admission(&self) -> Admission<'_> {
        Admission {
            life: &self.life,
            config: &self.config,
            description: &self.description,
            leading: self.is_leader(),
            leader: self.leader(),
            room: self.proposals.room(),
            uncommitted_bytes: self.raw.raft.uncommitted_size(),
            unapplied_full: self.applying.is_full(),
            transferring: self.raw.raft.lead_transferee.is_some(),
        }
    }

    /// Whether committed entries stay with raft-rs for now.
    fn withholds(&self) -> bool {
        self.applying.is_full() || self.pending.holds_entries()
    }

    /// Appends entries as leader. Returns the index of the first, or `None` if raft-rs refuses.
    pub(crate) fn append(&mut self, entries: Vec<Entry>) -> Option<Index> {
        let count = entries.len() as u64;
        let before = self.last_index();
        let message = Message {
            msg_type: MessageType::MsgPropose,
            from: self.peer.id.get(),
            entries: entries.into(),
            ..Message::default()
        };
        self.raw.raft.step(message).ok()?;
        debug_assert_eq!(self.last_index().get(), before.get() + count);
        Some(before.next())
    }

    /// A late or doubled rejection makes raft-rs 0.7 go back to before what the peer has persisted
    /// (etcd's raft has been mended there). The log may be cut up to there, and then nothing but a
    /// snapshot could help a peer that lacks nothing.
    fn keep_next_behind_match(&mut self, peer: u64) {
        if let Some(progress) = self.raw.raft.mut_prs().get_mut(peer) {
            progress.next_idx = progress.next_idx.max(progress.matched + 1);
        }
    }

    /// A leader's tick, before raft-rs's own: what it does now and then.
    fn tick_leader(&mut self) {
        self.book.tick();
        self.compaction.tick();
        let raft = &self.raw.raft;
        // raft-rs forgets with this tick who has been heard of. Who has not will be helped from
        // disk: a dead peer must not hold entries in every region's memory.
        if raft.election_elapsed + 1 >= raft.election_timeout() {
            let live = raft.prs().iter().filter(|(_, pr)| pr.recent_active);
            self.trim_for(live.map(|(_, pr)| pr.matched).min());
        }
        let all = self.matched_by_all();
        if all == self.last_index() && self.applying.applied() == all {
            self.raw.raft.maybe_free_inflight_buffers();
        }
        self.propose_compaction();
    }

    pub(crate) fn campaign_must_wait(&self) -> bool {
        let log = &self.raw.raft.raft_log;
        self.pending.holds_entries()
            || log.persisted < log.last_index()
            || log.has_next_entries_since(self.applying.emitted().get())
            || self.applying.bytes() > self.config.max_committed_bytes_per_ready
    }

    /// Whether the peer has heard of another one as leader within an election timeout, and so owes it not to
    /// help anybody else to power.
    fn follows(&self) -> bool {
        let raft = &self.raw.raft;
        let knows = raft.leader_id != raft::INVALID_ID && !self.is_leader();
        knows && raft.election_elapsed < raft.election_timeout()
    }

    /// Role, term and leader as of the last `collect`.
    pub(crate) fn reported(&self) -> &RoleChange {
        &self.reported
    }

    pub(crate) fn role_now(&self) -> RoleChange {
        let leader = self.leader().map(|peer| peer.id);
        RoleChange { role: self.role(), term: self.term(), leader }
    }

    /// As it is by now, of which nobody needs to be told.
    pub(crate) fn note_role(&mut self) {
        self.reported = self.role_now();
        self.collected = Hard::now(&self.raw);
    }

    fn report_role(&mut self, effects: &mut Effects) {
        let now = self.role_now();
        if now == self.reported {
            return;
        }
        if now.role != self.reported.role {
            self.compaction.forget();
            self.book.forget_heard();
            self.beat = NO_BEAT;
            self.raw.store().snapshots().clear();
        }
        debug_assert!(now.term >= self.reported.term, "{now:?} after {:?}", self.reported);
        let led = self.reported.role == Role::Leader;
        // The first one may be presumed, and is still to be heard.
        if self.reported.leader.is_some() {
            self.sleep.forget_leader();
        }
        self.reported = now;
        self.begin_reads_anew(led, effects);
        effects.role_change = Some(now);
    }

    fn assert_order(&self) {
        if cfg!(debug_assertions) {
            let status = self.status();
            let order = [status.truncated, status.applied, status.emitted, status.committed];
            // A snapshot is in the log before it is in the state machine.
            let installs = status.installing == Some(status.truncated);
            assert!(order.is_sorted() || installs && order[1..].is_sorted(), "{status:?}");
            assert!(status.emitted <= status.persisted, "{status:?}");
            assert!(status.persisted <= status.last && status.committed <= status.last);
        }
    }
}
