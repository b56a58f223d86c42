//! Changes of a region itself, asked for and carried out: split, other peers, another leader; and the
//! handing out of committed entries, among which they come.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use raft::eraftpb::{ConfChangeV2, Entry, Snapshot};
use raft::ProgressState;

use crate::answer::{Callback, Response};
use crate::command::{change_entry, split_entry, CommandError};
use crate::description::{
    decode_regions, encode_regions, RegionDescription, INITIAL_INDEX, INITIAL_TERM,
};
use crate::effects::{ApplyBatch, DescriptionChange, Effects, RegionChange, Role};
use crate::emission::{self, Change, Emission};
use crate::envelope::Envelope;
use crate::error::ProposeError;
use crate::guard::Rejection;
use crate::heartbeats::NO_BEAT;
use crate::ids::{Index, PeerId, Term};
use crate::life::Life;
use crate::membership::{self, ChangeError, PeerChange};
use crate::pending::Blocked;
use crate::persistence::ReadyParts;
use crate::proposals::Proposal;
use crate::records::{AppliedState, Origin, RegionRecord, Removal, TruncatedState};
use crate::region::Region;
use crate::snapshots;
use crate::split::SplitRequest;
use crate::transfer::{Outcome, Transfer, TransferError, MAX_LAG_ENTRIES};

/// A change of the region itself, to be proposed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum AdminCommand {
    /// Become several regions. Answered with all of them, the parent first.
    Split(SplitRequest),
    /// Get other peers. Answered with the region when no joint configuration is left.
    ChangePeers(Vec<PeerChange>),
}

impl AdminCommand {
    /// About what its entry takes.
    fn size_bytes(&self) -> usize {
        const ID_BYTES: usize = 16;
        match self {
            AdminCommand::Split(request) => {
                let keys = request.keys.iter().map(Bytes::len).sum::<usize>();
                let ids = request.regions.iter().map(|new| 1 + new.peers.len()).sum::<usize>();
                keys + ids * ID_BYTES
            }
            AdminCommand::ChangePeers(changes) => changes.len() * 2 * ID_BYTES,
        }
    }
}

/// The regions in the answer to an [`AdminCommand`].
///
/// # Errors
/// If the bytes are none.
pub fn regions_of_answer(
    response: &Response,
) -> Result<Vec<RegionDescription>, crate::description::DecodeError> {
    decode_regions(&response.value)
}

/// What the snapshot of a message is of. The message may be made up.
///
/// # Errors
/// If it holds none, or one that contradicts itself.
pub fn snapshot_of(envelope: &Envelope) -> Result<AppliedState, crate::description::DecodeError> {
    snapshots::describe(envelope.message.get_snapshot())
}

impl Region {
    /// Proposes a change of the region itself. The proposal's payload is not looked at; a refusal is
    /// answered in `effects`.
    pub fn propose_admin(
        &mut self,
        command: &AdminCommand,
        proposal: Proposal,
        effects: &mut Effects,
    ) {
        let Proposal { epoch, mut callback, stamp, .. } = proposal;
        callback.bind(self.id());
        self.wake(0);
        let appended = match self.admission().admit_bytes(epoch, command.size_bytes()) {
            Err(error) => Err(error),
            Ok(()) => self.admin_entry(command).and_then(|entry| {
                let refused = "raft refuses it for now";
                self.append(vec![entry])
                    .ok_or(ProposeError::Busy { region_id: self.id(), reason: refused })
            }),
        };
        match appended {
            Ok(index) => {
                if matches!(command, AdminCommand::Split(_)) {
                    self.suspend_lease_until(index);
                }
                self.proposals.push(index, self.term(), callback, stamp);
            }
            Err(error) => effects.answers.push((callback, Err(error))),
        }
        self.settle();
    }

    fn admin_entry(&mut self, command: &AdminCommand) -> Result<Entry, ProposeError> {
        let (region_id, current) = (self.id(), self.description.clone());
        let epoch = current.epoch;
        match command {
            AdminCommand::Split(request) => match request.check(&current) {
                Ok(()) => Ok(split_entry(epoch, request)),
                Err(cause) => {
                    Err(ProposeError::InvalidSplit { region_id, cause: Box::new(cause), current })
                }
            },
            AdminCommand::ChangePeers(changes) => match self.plan_change(changes) {
                Ok(change) => Ok(change_entry(epoch, &change)),
                Err(cause) => {
                    if cause == ChangeError::LeaderLeaves {
                        self.hand_over_unless(changes);
                    }
                    Err(ProposeError::InvalidChange { region_id, cause: Box::new(cause), current })
                }
            },
        }
    }

    fn plan_change(&self, changes: &[PeerChange]) -> Result<ConfChangeV2, ChangeError> {
        let healthy = |id: PeerId| id == self.peer.id || self.is_well(id);
        let change = membership::plan(&self.description, self.peer.id, changes, healthy)?;
        // Sound, but an earlier one is still to be applied.
        match self.raw.raft.has_pending_conf() {
            true => Err(ChangeError::UnderWay),
            false => Ok(change),
        }
    }

    /// Whether another peer answers and needs no snapshot.
    fn is_well(&self, id: PeerId) -> bool {
        let silent = self.book.silent_ticks(id);
        let answers = silent.is_some_and(|ticks| ticks <= self.config.election_ticks as u64);
        let progress = self.raw.raft.prs().get(id.get());
        let has_log = progress.is_some_and(|progress| {
            progress.state != ProgressState::Snapshot
                && progress.matched >= self.truncated().index.get()
        });
        answers && has_log
    }

    /// Somebody else should lead, since this peer is to leave.
    fn hand_over_unless(&mut self, changes: &[PeerChange]) {
        let leaves = |id: PeerId| {
            let goes = |c: &PeerChange| matches!(c, PeerChange::Remove(gone) | PeerChange::Demote(gone) if *gone == id);
            changes.iter().any(goes)
        };
        let others: Vec<PeerId> =
            self.description.peers.iter().map(|peer| peer.id).filter(|id| !leaves(*id)).collect();
        if let Some(target) = self.best_successor(&others) {
            self.begin_transfer(target, None);
        }
    }

    /// Hands leadership over, to the best peer if none is named. A refusal is answered in `effects`; the
    /// outcome once it is known.
    pub fn transfer_leader(
        &mut self,
        target: Option<PeerId>,
        mut callback: Callback,
        effects: &mut Effects,
    ) {
        callback.bind(self.id());
        let region_id = self.id();
        let mut refuse = |callback, error| effects.answers.push((callback, Err(error)));
        if !self.life.is_live() {
            return refuse(callback, ProposeError::Stopped { region_id });
        }
        if !self.is_leader() {
            return refuse(callback, ProposeError::NotLeader { region_id, leader: self.leader() });
        }
        self.wake(0);
        let all: Vec<PeerId> = self.description.peers.iter().map(|peer| peer.id).collect();
        let chosen = match target {
            Some(target) => self.check_successor(target).map(|()| target),
            None => self.best_successor(&all).ok_or_else(|| self.why_no_successor(&all)),
        };
        match chosen {
            Ok(target) => self.begin_transfer(target, Some(callback)),
            Err(cause) => {
                let current = self.description.clone();
                let cause = Box::new(cause);
                refuse(callback, ProposeError::TransferRefused { region_id, cause, current });
            }
        }
    }

    fn begin_transfer(&mut self, target: PeerId, callback: Option<Callback>) {
        if self.pending.transfer.is_some() {
            return;
        }
        let term = self.term();
        let transfer = Transfer { target, term, ticks: 0, callback };
        self.pending.transfer = Some(Box::new(transfer));
        self.give_up_lease();
        self.raw.transfer_leader(target.get());
        self.settle();
    }

    fn best_successor(&self, among: &[PeerId]) -> Option<PeerId> {
        let fit = among.iter().filter(|id| self.check_successor(**id).is_ok());
        let matched = |id: &PeerId| self.raw.raft.prs().get(id.get()).map_or(0, |pr| pr.matched);
        fit.copied().max_by_key(|id| (matched(id), std::cmp::Reverse(*id)))
    }

    /// The reason that holds for all, if there is one.
    fn why_no_successor(&self, among: &[PeerId]) -> TransferError {
        let reasons = among.iter().filter_map(|id| self.check_successor(*id).err());
        let mut for_all = reasons.filter(|reason| {
            matches!(reason, TransferError::UnderWay | TransferError::PeersChange)
        });
        for_all.next().unwrap_or(TransferError::NoSuccessor)
    }

    fn check_successor(&self, id: PeerId) -> Result<(), TransferError> {
        let Some(peer) = self.description.peer(id) else {
            return Err(TransferError::UnknownPeer(id));
        };
        if id == self.peer.id {
            return Err(TransferError::Leads(id));
        }
        if !peer.role.stays_voter() {
            return Err(TransferError::NotVoter(id));
        }
        if self.raw.raft.lead_transferee.is_some() || self.pending.transfer.is_some() {
            return Err(TransferError::UnderWay);
        }
        if self.raw.raft.has_pending_conf() || self.description.joint {
            return Err(TransferError::PeersChange);
        }
        let Some(progress) = self.raw.raft.prs().get(id.get()) else {
            return Err(TransferError::UnknownPeer(id));
        };
        if progress.state == ProgressState::Snapshot {
            return Err(TransferError::InSnapshot(id));
        }
        let silent = self.book.silent_ticks(id);
        if silent.is_none_or(|ticks| ticks > self.config.election_ticks as u64) {
            return Err(TransferError::NotActive(id));
        }
        let lacks = self.last_index().get().saturating_sub(progress.matched);
        let unheard = self.committed().get().saturating_sub(progress.committed_index);
        let entries = lacks.max(unheard);
        match entries > MAX_LAG_ENTRIES {
            true => Err(TransferError::Lagging { peer: id, entries, limit: MAX_LAG_ENTRIES }),
            false => Ok(()),
        }
    }

    /// Tells whoever asked for a transfer what became of it, once that is known.
    pub(crate) fn look_at_transfer(&mut self, effects: &mut Effects) {
        let Some(transfer) = &self.pending.transfer else { return };
        let (leads, term) = (self.is_leader(), self.term());
        let leader = self.leader().map(|peer| peer.id);
        let transferring = self.raw.raft.lead_transferee.is_some();
        let patience = 2 * self.config.election_ticks;
        let outcome = transfer.outcome(leads, leader, term, transferring, patience);
        if outcome == Outcome::Open {
            return;
        }
        let region_id = self.id();
        let target = transfer.target;
        effects.transfer_ended = Some((target, outcome == Outcome::Done));
        let callback = self.pending.transfer.take().and_then(|transfer| transfer.callback);
        let answer = match outcome {
            Outcome::Done => Ok(Response {
                region_id,
                term,
                index: self.committed(),
                value: encode_regions(std::slice::from_ref(&*self.description)),
            }),
            Outcome::Failed => Err(ProposeError::TransferRefused {
                region_id,
                cause: Box::new(TransferError::TimedOut(target)),
                current: self.description.clone(),
            }),
            _ => Err(ProposeError::NotLeader { region_id, leader: self.leader() }),
        };
        effects.answers.extend(callback.map(|callback| (callback, answer)));
    }

    /// Whether nobody else has a vote, and so no other leader a promise of this peer.
    pub(crate) fn is_lone_voter(&self) -> bool {
        let mut others = self.description.peers.iter().filter(|peer| peer.id != self.peer.id);
        self.peer.role.is_voter() && !others.any(|peer| peer.role.is_voter())
    }

    /// Campaigns as was wished, as soon as that is possible. After a restart a lone voter has nobody to wait
    /// for, and need not be asked.
    fn stand_if_wished(&mut self) {
        let alone = self.pending.restarted && self.is_lone_voter();
        let wished = alone || self.pending.wants_to_lead && self.pending.may_vote();
        if wished && !self.campaign_must_wait() {
            (self.pending.restarted, self.pending.wants_to_lead) = (false, false);
            let _ = self.campaign();
        }
    }

    /// Campaigns as the leader or the user asked, as soon as that is possible.
    pub(crate) fn take_over_if_asked(&mut self) {
        self.stand_if_wished();
        if !self.pending.is_asked_to_take_over() || self.campaign_must_wait() {
            return;
        }
        if let Some(message) = self.pending.take_over(self.raw.raft.term) {
            let stepped = self.raw.step(message);
            debug_assert!(stepped.is_ok(), "{stepped:?}");
            self.settle();
        }
    }

    /// Whether a message is about what the region is, and nothing else. It may tell that this peer is not in
    /// it any more; then the region ends.
    pub(crate) fn hears_of_region(&mut self, envelope: &Envelope) -> Result<bool, Rejection> {
        let says_more = envelope.message.from != 0;
        let ours = envelope.cluster_id == self.config.cluster_id
            && envelope.region_id == self.id()
            && envelope.to.store == self.peer.store;
        let (theirs, own) = (envelope.epoch.conf_ver, self.description.epoch.conf_ver);
        let Some(told) = envelope.description.as_ref().filter(|told| told.id == self.id()) else {
            if says_more {
                return Ok(false);
            }
            if ours && theirs < own && self.description.is_initialised() {
                let notice = self.notice(envelope.from);
                self.pending.notify(notice);
            }
            return Ok(true);
        };
        // To a later peer of this store: then this one is of the past, too. (Where ids of peers are never used
        // again, nobody tells a peer of a time before it was added; older news is refused all the same.)
        let meant = envelope.to.id >= self.peer.id && (!says_more || envelope.to.id > self.peer.id);
        // Who tells must have been there, or be there by what he tells: a newcomer who leads by now.
        let teller = [&*self.description, told].into_iter().find_map(|r| r.peer(envelope.from.id));
        let teller = teller.copied().or_else(|| self.book.stranger(envelope.from.id));
        let is_known = teller.is_some_and(|peer| peer.store == envelope.from.store);
        if !(ours && meant && is_known && told.epoch.conf_ver > own) {
            return Ok(!says_more);
        }
        if told.peer(self.peer.id).is_none() {
            if self.pending.is_amid_split() {
                // The children's records are written, and here they begin with this region's contents. It will
                // be told again.
                return Ok(true);
            }
            let (index, term) = (envelope.message.commit, envelope.message.commit_term);
            let sound = !says_more && index >= INITIAL_INDEX.get() && term >= INITIAL_TERM.get();
            let left_at =
                sound.then(|| TruncatedState { index: Index::new(index), term: Term::new(term) });
            let removal = Removal { description: told.clone(), left_at };
            self.life.end(Life::Removing(Box::new(removal)));
            return Ok(true);
        }
        // Whoever is there now may know more.
        for peer in told.peers.iter().filter(|peer| peer.id != self.peer.id) {
            if self.description.peer(peer.id).is_none() {
                self.book.meet(*peer);
            }
        }
        if !says_more {
            self.hears_of_commit(envelope.message.commit, envelope.message.commit_term);
        }
        Ok(!says_more)
    }

    /// Somebody who has left the region, or knows more of it, tells that an entry is committed. There may be
    /// nobody else left to tell: of two voters one is removed, and the other restarts and has forgotten that
    /// it is alone.
    fn hears_of_commit(&mut self, index: u64, term: u64) {
        let log = &mut self.raw.raft.raft_log;
        let known = term > 0 && index > log.committed && index <= log.last_index();
        if !known || self.is_leader() || !self.raw.raft.raft_log.maybe_commit(index, term) {
            return;
        }
        if self.role() != Role::Follower {
            // It may have been standing for election among voters that are not any more.
            self.raw.raft.become_follower(self.raw.raft.term, raft::INVALID_ID);
        }
        self.settle();
    }

    /// A peer that no leader has spoken to for long asks the others what the region is: it may have been
    /// removed while it was cut off.
    pub(crate) fn ask_if_lonely(&mut self) {
        let every = 2 * self.config.election_ticks;
        if !self.pending.is_lonely(every) {
            return;
        }
        let mut inquiries = Vec::new();
        let known = self.description.peers.iter().chain(self.book.strangers());
        for peer in known.filter(|peer| peer.id != self.peer.id) {
            inquiries.push(self.sender().inquiry(*peer));
        }
        inquiries.into_iter().for_each(|inquiry| self.pending.notify(inquiry));
    }

    /// The change whose write is durable goes out. Says whether there is one.
    pub(crate) fn release_change(&mut self, effects: &mut Effects) -> bool {
        let Some(released) = self.pending.take_released(&self.writes, &self.applying) else {
            return false;
        };
        let Blocked { batch, bytes, .. } = *released;
        self.applying.emit(batch.applied.index, bytes);
        if matches!(batch.change, Some(RegionChange::Split { .. })) {
            self.pending.split_at = batch.applied.index;
        }
        effects.apply = Some(batch);
        true
    }

    /// The log gives way to a snapshot.
    pub(crate) fn give_way(
        &mut self,
        snapshot: &Snapshot,
        parts: &mut ReadyParts,
        effects: &mut Effects,
    ) {
        let applied = match snapshots::describe(snapshot) {
            Ok(applied) => applied,
            Err(cause) => unreachable!("the guard has looked at it: {cause}"),
        };
        let begin = TruncatedState { index: applied.index, term: applied.term };
        self.raw.mut_store().begin_after(begin);
        let why = "a snapshot took the place of its entry";
        self.proposals.answer_unknown(why, &mut effects.answers);
        self.describe_anew(applied.description.clone(), effects);
        parts.snapshot = Some(begin);
        self.pending.installing = Some(begin.index);
        // Where a split begins, the state machine has the contents, and the record is written. (The same
        // index alone does not tell: a leader that has applied nothing yet sends such a snapshot, too.)
        let begins = std::mem::take(&mut self.pending.begins_from_split);
        let change = (!begins).then(|| {
            let mut record = RegionRecord::new(applied.description.clone(), self.peer.id);
            record.installing = Some(begin);
            parts.records.push(record);
            RegionChange::Install
        });
        let batch = ApplyBatch { region_id: self.id(), commands: Vec::new(), applied, change };
        self.pending.block(Blocked { batch, write: parts.number, bytes: 0 }, VecDeque::new());
    }

    /// The region is something else from now on.
    fn describe_anew(&mut self, description: Arc<RegionDescription>, effects: &mut Effects) {
        if let Some(peer) = description.peer(self.peer.id) {
            self.peer = *peer;
        }
        self.book.forget_strangers();
        self.reading.begin_anew();
        self.beat = NO_BEAT;
        let before = std::mem::replace(&mut self.description, description.clone());
        // Two changes in a row count as one.
        let before = effects.description_change.take().map_or(before, |change| change.before);
        effects.description_change = Some(DescriptionChange { before, after: description });
    }

    /// Hands out committed entries, up to the first that changes the region and has to wait.
    pub(crate) fn emit(
        &mut self,
        mut committed: VecDeque<Entry>,
        parts: &mut ReadyParts,
        effects: &mut Effects,
    ) -> Result<(), CommandError> {
        let mut batch: Option<(ApplyBatch, usize)> = None;
        while self.life.is_live() && !committed.is_empty() {
            let description = self.description.clone();
            let (proposals, answers) = (&mut self.proposals, &mut effects.answers);
            let looked_at = emission::emit(&description, &mut committed, proposals, answers)?;
            let Some(mut part) = looked_at else { break };
            effects.compact_request = effects.compact_request.max(part.compact_request);
            match part.change.take() {
                None => self.add_to_batch(&mut batch, part),
                Some(Change::Split(request, callback)) => {
                    let at = part.last;
                    self.add_before(&mut batch, part);
                    let rest = std::mem::take(&mut committed);
                    self.begin_split(&request, callback, at, rest, parts, effects);
                    break;
                }
                Some(Change::Peers(change, callback)) => {
                    self.change_peers(&change, callback, part.last, parts, effects)?;
                    self.add_to_batch(&mut batch, part);
                }
                Some(Change::LeaveJoint) => {
                    let callback = self.pending.changing.take().map(|callback| *callback);
                    let leave = ConfChangeV2::default();
                    self.change_peers(&leave, callback, part.last, parts, effects)?;
                    self.add_to_batch(&mut batch, part);
                }
            }
        }
        if let Some((batch, bytes)) = batch.filter(|_| self.life.is_live()) {
            self.applying.emit(batch.applied.index, bytes);
            effects.apply = Some(batch);
        }
        Ok(())
    }

    fn add_to_batch(&self, batch: &mut Option<(ApplyBatch, usize)>, part: Emission) {
        let applied = AppliedState {
            index: part.last.0,
            term: part.last.1,
            description: self.description.clone(),
        };
        match batch {
            Some((batch, bytes)) => {
                batch.commands.extend(part.commands);
                batch.applied = applied;
                *bytes += part.bytes;
            }
            None => {
                let (region_id, commands) = (self.id(), part.commands);
                let new = ApplyBatch { region_id, commands, applied, change: None };
                *batch = Some((new, part.bytes));
            }
        }
    }

    /// What comes before a change that has to wait, if anything does.
    fn add_before(&self, batch: &mut Option<(ApplyBatch, usize)>, mut part: Emission) {
        let before = part.last.0.previous();
        let known = batch.as_ref().map_or(self.applying.emitted(), |(b, _)| b.applied.index);
        if before > known {
            let term = self.raw.store().term_at(before);
            part.last = (before, term.unwrap_or_default());
            self.add_to_batch(batch, part);
        }
    }

    fn begin_split(
        &mut self,
        request: &SplitRequest,
        callback: Option<Callback>,
        (index, term): (Index, Term),
        rest: VecDeque<Entry>,
        parts: &mut ReadyParts,
        effects: &mut Effects,
    ) {
        let (parent, children) = request.divide(&self.description);
        let origin = Some(Origin { parent: parent.id, index });
        for child in &children {
            if let Some(peer) = child.peer_on(self.peer.store) {
                let record = RegionRecord { origin, ..RegionRecord::new(child.clone(), peer.id) };
                parts.records.push(record);
            }
        }
        self.describe_anew(Arc::new(parent), effects);
        if self.is_leader() {
            // Followers hear of it at once: the children need a quorum of them.
            self.raw.raft.bcast_append();
            self.settle();
        }
        let description = self.description.clone();
        let change = RegionChange::Split { children, callback, leading: self.is_leader() };
        let batch = ApplyBatch {
            region_id: self.id(),
            commands: Vec::new(),
            applied: AppliedState { index, term, description },
            change: Some(change),
        };
        self.pending.block(Blocked { batch, write: parts.number, bytes: 0 }, rest);
    }

    fn change_peers(
        &mut self,
        change: &ConfChangeV2,
        callback: Option<Callback>,
        (index, term): (Index, Term),
        parts: &mut ReadyParts,
        effects: &mut Effects,
    ) -> Result<(), CommandError> {
        let region_id = self.id();
        let fail = |cause| CommandError { region_id, index, term, cause };
        let next = Arc::new(membership::apply(&self.description, change).map_err(fail)?);
        let applied = self.raw.apply_conf_change(change);
        applied.map_err(|_| fail("raft does not take its change of peers"))?;
        let before = self.description.clone();
        self.describe_anew(next.clone(), effects);
        self.renew_lease_with_new_peers();
        self.settle();
        let answer = Response {
            region_id,
            term,
            index,
            value: encode_regions(std::slice::from_ref(&*next)),
        };
        parts.peers_changed = true;
        match callback {
            Some(callback) if !next.joint => {
                self.pending.answer_after(parts.number, callback, Ok(answer));
            }
            callback => self.pending.changing = callback.map(Box::new),
        }
        let leading = self.is_leader();
        if leading {
            for gone in before.peers.iter().filter(|peer| next.peer(peer.id).is_none()) {
                if gone.id != self.peer.id {
                    let notice = self.notice(*gone);
                    self.pending.notify(notice);
                }
            }
        }
        let stays = next.peer(self.peer.id);
        if leading && stays.is_none_or(|peer| !peer.role.is_voter()) {
            // The others hear that it is committed before this peer goes.
            self.raw.raft.bcast_append();
            let last_words = std::mem::take(&mut self.raw.raft.msgs);
            let addressed = self.sender().address(last_words);
            effects.messages.extend(addressed);
            self.raw.raft.become_follower(self.raw.raft.term, raft::INVALID_ID);
            self.settle();
        }
        if stays.is_none() {
            let left_at = Some(TruncatedState { index, term });
            self.life.end(Life::Removing(Box::new(Removal { description: next, left_at })));
        }
        Ok(())
    }

    /// What was made of the snapshot that a peer needs; `None` if none can be made now.
    pub fn snapshot_ready(&mut self, to: PeerId, made: Option<&AppliedState>) {
        if !self.life.is_live() {
            return;
        }
        self.wake(0);
        self.raw.store().snapshots().made(to, made);
        if made.is_some() && self.is_leader() && self.raw.raft.prs().get(to.get()).is_some() {
            self.raw.raft.send_append(to.get());
            self.settle();
        }
    }

    /// A snapshot has arrived and was stepped by its receiver, or has not.
    pub fn snapshot_sent(&mut self, to: PeerId, arrived: bool) {
        if !self.life.is_live() || self.raw.raft.prs().get(to.get()).is_none() {
            return;
        }
        self.wake(0);
        let status = match arrived {
            true => raft::SnapshotStatus::Finish,
            false => raft::SnapshotStatus::Failure,
        };
        self.raw.report_snapshot(to.get(), status);
        self.settle();
    }

    /// The parent's split is applied, and the state machine has this region's contents.
    ///
    /// A peer that knows nothing of its region yet becomes what `description` says.
    pub fn begin_from_split(&mut self, description: &Arc<RegionDescription>) {
        if !self.life.is_live() {
            return;
        }
        self.pending.awaits_split = false;
        if !self.description.is_initialised() && self.raw.raft.snap().is_none() {
            let applied = AppliedState {
                index: TruncatedState::INITIAL.index,
                term: TruncatedState::INITIAL.term,
                description: description.clone(),
            };
            let restored = self.raw.raft.restore(snapshots::to_raft(&applied));
            debug_assert!(restored, "a peer with nothing takes anything");
            self.pending.begins_from_split = restored;
        }
        self.settle();
    }

    /// Bytes for an answer.
    pub fn encode_answer(regions: &[RegionDescription]) -> Bytes {
        encode_regions(regions)
    }
}
