//! What a region has begun and not finished: a change of itself that waits for its write, entries behind
//! it, a transfer of leadership, promises of an earlier life.

use std::collections::VecDeque;

use raft::eraftpb::{Entry, Message};

use crate::answer::{Answer, Callback};
use crate::applying::Applying;
use crate::effects::{ApplyBatch, RegionChange};
use crate::envelope::Envelope;
use crate::error::ProposeError;
use crate::ids::{Index, RegionId};
use crate::persistence::Writes;
use crate::transfer::Transfer;

/// Most notices that wait for the next `collect`.
const MAX_NOTICES: usize = 16;

/// Ticks for which a request to take over is remembered.
const TAKE_OVER_TICKS: usize = 2;

/// A change of the region that may be carried out once its write is durable.
pub(crate) struct Blocked {
    pub(crate) batch: ApplyBatch,
    /// Number of the write.
    pub(crate) write: u64,
    /// Size of its entry in memory.
    pub(crate) bytes: usize,
}

/// Invariant: while `blocked` is set, nothing is handed out to be applied. `rest` comes before whatever
/// raft-rs has.
#[derive(Default)]
pub(crate) struct Pending {
    pub(crate) blocked: Option<Box<Blocked>>,
    /// Committed entries behind a change, at most a page.
    rest: VecDeque<Entry>,
    /// Who asked for the joint configuration that the region is in.
    pub(crate) changing: Option<Box<Callback>>,
    pub(crate) transfer: Option<Box<Transfer>>,
    /// To be given once this write is durable.
    answer: Option<Box<(u64, Callback, Answer)>>,
    /// The leader's request to take over, and for how many more ticks it stands.
    take_over: Option<Box<(Message, usize)>>,
    /// Ticks without a word of a leader.
    lonely_ticks: u32,
    /// To be sent with the next `collect`.
    pub(crate) notices: Vec<Box<Envelope>>,
    /// Ticks until votes may be given: see `guard`.
    no_vote_ticks: u32,
    /// Since the restart neither this peer nor anybody else has stood for election.
    pub(crate) restarted: bool,
    /// It was asked to stand for election, which was not possible, and has not heard of a leader since.
    pub(crate) wants_to_lead: bool,
    /// What was committed before the restart is handed out first, up to here.
    replay_to: Index,
    /// The log began anew after this entry, and the state machine is not there yet.
    pub(crate) installing: Option<Index>,
    /// The last split that was handed out. Until it is applied, the log must be there to replay it.
    pub(crate) split_at: Index,
    /// What raft-rs has been given to begin with is no snapshot that came in.
    pub(crate) begins_from_split: bool,
    /// The state machine has nothing of the region before its parent's split is applied again.
    pub(crate) awaits_split: bool,
}

impl Pending {
    pub(crate) fn new(no_vote_ticks: usize, replay_to: Index, awaits_split: bool) -> Self {
        let no_vote_ticks = u32::try_from(no_vote_ticks).unwrap_or(u32::MAX);
        let restarted = no_vote_ticks > 0;
        Self { no_vote_ticks, restarted, replay_to, awaits_split, ..Self::default() }
    }

    /// Whether committed entries have to wait.
    pub(crate) fn holds_entries(&self) -> bool {
        self.blocked.is_some()
            || self.awaits_split
            || self.installing.is_some()
            || !self.rest.is_empty()
    }

    /// Whether nothing has begun.
    pub(crate) fn is_quiet(&self) -> bool {
        !self.holds_entries()
            && self.changing.is_none()
            && self.transfer.is_none()
            && self.answer.is_none()
            && self.take_over.is_none()
            && self.notices.is_empty()
            && !self.wants_to_lead
            && self.may_vote()
    }

    /// Whether a split waits for the write of its children's records.
    pub(crate) fn is_amid_split(&self) -> bool {
        let blocked = self.blocked.as_ref().and_then(|blocked| blocked.batch.change.as_ref());
        matches!(blocked, Some(RegionChange::Split { .. }))
    }

    /// Whether `collect` would give something that raft-rs knows nothing of.
    pub(crate) fn has_work(&self, writes: &Writes, applying: &Applying) -> bool {
        let answers = self.answer.as_ref().is_some_and(|waiting| writes.is_persisted(waiting.0));
        if answers || !self.notices.is_empty() || self.is_released(writes, applying) {
            return true;
        }
        !self.rest.is_empty() && !self.rest_waits(applying.is_full())
    }

    fn rest_waits(&self, applying_is_full: bool) -> bool {
        self.blocked.is_some() || self.awaits_split || self.installing.is_some() || applying_is_full
    }

    /// A snapshot takes the place of everything, so what was handed out before must be applied. (The store
    /// applies what it is handed out in order, too; that is its own affair.)
    fn is_released(&self, writes: &Writes, applying: &Applying) -> bool {
        let Some(blocked) = &self.blocked else { return false };
        let installs = matches!(blocked.batch.change, Some(RegionChange::Install));
        let in_turn = !installs || applying.applied() == applying.emitted();
        in_turn && writes.is_persisted(blocked.write)
    }

    /// The change whose write is durable.
    pub(crate) fn take_released(
        &mut self,
        writes: &Writes,
        applying: &Applying,
    ) -> Option<Box<Blocked>> {
        match self.is_released(writes, applying) {
            true => self.blocked.take(),
            false => None,
        }
    }

    /// The entries to look at next: those behind an earlier change, or those that raft-rs gives, which are
    /// none then.
    pub(crate) fn next_entries(
        &mut self,
        committed: Vec<Entry>,
        applying_is_full: bool,
    ) -> VecDeque<Entry> {
        if !self.holds_entries() {
            return committed.into();
        }
        debug_assert!(committed.is_empty(), "they were withheld");
        match self.rest_waits(applying_is_full) {
            true => VecDeque::new(),
            false => std::mem::take(&mut self.rest),
        }
    }

    /// A change must wait for its write, and the entries behind it for the change.
    pub(crate) fn block(&mut self, blocked: Blocked, rest: VecDeque<Entry>) {
        debug_assert!(self.blocked.is_none() && self.rest.is_empty());
        (self.blocked, self.rest) = (Some(Box::new(blocked)), rest);
    }

    /// An answer that must be true after a crash, too: it waits for a write.
    pub(crate) fn answer_after(&mut self, write: u64, callback: Callback, answer: Answer) {
        self.answer = Some(Box::new((write, callback, answer)));
    }

    /// Gives the answer whose write is durable.
    pub(crate) fn give_answers(&mut self, writes: &Writes, answers: &mut Vec<(Callback, Answer)>) {
        if self.answer.as_ref().is_some_and(|waiting| writes.is_persisted(waiting.0)) {
            let waiting = self.answer.take();
            answers.extend(waiting.map(|waiting| (waiting.1, waiting.2)));
        }
    }

    /// A peer should learn what the region is.
    pub(crate) fn notify(&mut self, notice: Box<Envelope>) {
        if self.notices.len() < MAX_NOTICES {
            self.notices.push(notice);
        }
    }

    /// The leader asks to take over, which is not possible at once.
    pub(crate) fn take_over_later(&mut self, message: Message) {
        self.take_over = Some(Box::new((message, TAKE_OVER_TICKS)));
    }

    /// The leader's request to take over, if it still stands.
    pub(crate) fn take_over(&mut self, term: u64) -> Option<Message> {
        let (message, _) = *self.take_over.take()?;
        (message.term == term).then_some(message)
    }

    /// Whether there is such a request.
    pub(crate) fn is_asked_to_take_over(&self) -> bool {
        self.take_over.is_some()
    }

    /// A leader has spoken.
    pub(crate) fn hears_leader(&mut self) {
        self.lonely_ticks = 0;
        (self.restarted, self.wants_to_lead) = (false, false);
    }

    /// Whether it is time to ask others, which it is after every so many ticks.
    pub(crate) fn is_lonely(&self, every: usize) -> bool {
        self.lonely_ticks > 0 && (self.lonely_ticks as usize).is_multiple_of(every)
    }

    pub(crate) fn tick(&mut self, leading: bool) {
        self.lonely_ticks = if leading { 0 } else { self.lonely_ticks.saturating_add(1) };
        self.no_vote_ticks = self.no_vote_ticks.saturating_sub(1);
        if let Some(transfer) = &mut self.transfer {
            transfer.ticks += 1;
        }
        if let Some(request) = &mut self.take_over {
            request.1 -= 1;
        }
        if self.take_over.as_ref().is_some_and(|request| request.1 == 0) {
            self.take_over = None;
        }
    }

    /// So many ticks of this life have passed unseen.
    pub(crate) fn count_as_passed(&mut self, ticks: u64) {
        let ticks = u32::try_from(ticks).unwrap_or(u32::MAX);
        self.no_vote_ticks = self.no_vote_ticks.saturating_sub(ticks);
    }

    /// Whether no promise of an earlier life can be broken by a vote.
    pub(crate) fn may_vote(&self) -> bool {
        self.no_vote_ticks == 0
    }

    /// Whether everything is handed out that was known to be committed before the restart.
    pub(crate) fn is_replayed(&self, emitted: Index) -> bool {
        emitted >= self.replay_to
    }

    /// The region ends.
    pub(crate) fn answer_unknown(
        &mut self,
        region_id: RegionId,
        reason: &'static str,
        answers: &mut Vec<(Callback, Answer)>,
    ) {
        let transfer = self.transfer.take().and_then(|transfer| transfer.callback);
        let blocked = self.blocked.take().and_then(|blocked| match blocked.batch.change {
            Some(RegionChange::Split { callback, .. }) => callback,
            _ => None,
        });
        // It has happened, only not durably.
        let answer = self.answer.take();
        answers.extend(answer.map(|waiting| (waiting.1, waiting.2)));
        for callback in [self.changing.take().map(|callback| *callback), transfer, blocked]
            .into_iter()
            .flatten()
        {
            answers.push((callback, Err(ProposeError::Unknown { region_id, reason })));
        }
    }
}
