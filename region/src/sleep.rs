//! Idle regions fall asleep together, and wake one by one.
//!
//! A region that sleeps gets no ticks and sends no heartbeats. Who then notices that its leader is gone? The
//! stores: they keep an eye on each other, and wake what a lost store led. So that nobody waits for a word
//! that never comes, all peers of a region fall asleep by agreement:
//!
//! ```text
//! leader     idle for long ─► heartbeats ask: "sleep at index i?" ─┐   all have agreed ─► asleep
//! followers                                                        └─► idle at i? asleep, "agreed" ─┘
//! ```
//!
//! The question and its answer travel in the context of heartbeats that are sent anyway. A peer of an earlier
//! version gives the question back as it is, which is no agreement.
//!
//! # Why this is safe
//!
//! Nothing rests on agreements being exact: late, lost and doubled ones cost ticks, never correctness. A peer
//! that wakes wakes its leader, unless it was the leader who woke it, and the leader's heartbeats wake everybody.
//! If that is lost it misses its leader after an election timeout and asks for pre-votes, which do the same. A peer that sleeps while the leader is awake is
//! woken by the next heartbeat. A sleeping leader is still the leader of its term, without a lease: whoever
//! reads there has it ask a quorum.
//!
//! A sleeping peer still owes its leader not to vote for others within an election timeout of the leader's
//! last word. So it is told on waking for how many whole ticks nothing has vouched for the leader, and counts
//! them as if they had passed one by one.
//!
//! The question names the life of the leader's store. So a follower's store knows for which life its peer has
//! fallen asleep, also when that one has ended before the two stores have spoken.
//!
//! Invariant: a peer that sleeps has nothing under way: no proposal, read, write, transfer or change; its log
//! is persisted, committed and applied to the end; and, if it leads, so have all others theirs.

use bytes::Bytes;
use raft::eraftpb::{Message, MessageType};
use raft::ProgressState;

use crate::effects::Role;
use crate::ids::{Index, PeerId, StoreId};
use crate::persistence::{Hard, ReadyParts};
use crate::reading::STAMP_BYTES;
use crate::region::{Campaign, Region};
use crate::timeout;

/// Bytes of a heartbeat's context that asks, or answers: time, index, life of the leader's store, and which of
/// the two.
pub(crate) const QUESTION_BYTES: usize = STAMP_BYTES + 2 * 8 + 1;
const ASKS: u8 = 1;
const AGREES: u8 = 2;

/// Ticks after which the first stands again, if it has heard nothing.
const STAND_AGAIN_TICKS: u8 = 2;

/// Ticks for which others leave it to the first to stand for election.
const FIRST_STANDS_TICKS: usize = 3;

/// A region's part in sleeping.
#[derive(Default)]
pub(crate) struct Sleep {
    asleep: bool,
    /// It slept, as a follower, and has not heard of its leader since.
    unheeded: bool,
    /// The leader should know that this follower is awake.
    nudges: bool,
    /// Ticks for which it stands again and again, the others having learnt it later that there is no leader.
    stands: u8,
    /// Ticks of a leader without anything to do.
    idle_ticks: u32,
    /// The last entry at the last tick, as far as 32 bits tell.
    last_seen: u32,
    talk: Option<Box<Talk>>,
}

/// About sleeping at an index. A follower's lasts from the leader's question to the end of the turn, or of its
/// sleep.
struct Talk {
    index: Index,
    /// The life of the leader's store.
    life: u64,
    /// A leader's: who has agreed.
    agreed: Vec<PeerId>,
}

impl Sleep {
    /// There is another one, or none.
    pub(crate) fn forget_leader(&mut self) {
        self.unheeded = false;
    }
}

impl Region {
    /// Whether the region sleeps: it needs no ticks, and has nothing to collect.
    pub fn is_asleep(&self) -> bool {
        self.sleep.asleep
    }

    /// Which life of the leader's store a sleeping follower relies on: its
    /// [`incarnation`](crate::RegionConfig::incarnation).
    pub fn relies_on_life(&self) -> Option<u64> {
        let talk = self.sleep.talk.as_ref().filter(|_| self.sleep.asleep && !self.is_leader());
        talk.map(|talk| talk.life)
    }

    /// Ticks have passed since the start of the store that this region, which was not built then, has not counted.
    pub fn count_as_passed(&mut self, ticks: u64) {
        self.pending.count_as_passed(ticks);
    }

    /// This peer, just brought back from what was on disk, follows that one, as far as can be known without a word
    /// of it; the store of that one lives.
    pub fn presume_leader(&mut self, leader: PeerId) {
        let raft = &mut self.raw.raft;
        raft.become_follower(raft.term, leader.get());
        self.sleep = Sleep { unheeded: true, nudges: true, ..Sleep::default() };
        self.settle();
    }

    /// Who asks for votes in a later term does not lead this one, whatever was presumed. `message` has passed the
    /// guard, and raft-rs does not have it yet.
    pub(crate) fn doubt_leader(&mut self, message: &Message) {
        use MessageType::{MsgRequestPreVote, MsgRequestVote};
        let asks = matches!(message.get_msg_type(), MsgRequestPreVote | MsgRequestVote);
        let raft = &mut self.raw.raft;
        let own_leader = message.from == raft.leader_id && message.term > raft.term;
        if self.sleep.unheeded && asks && own_leader {
            raft.become_follower(raft.term, raft::INVALID_ID);
        }
    }

    /// Whether the peer slept, and has not heard of its leader since.
    pub fn is_unheeded(&self) -> bool {
        self.sleep.unheeded
    }

    /// Wakes the region. To be called before anything else is asked of one that sleeps, but for its figures; and
    /// of one that is [unheeded](Self::is_unheeded) when it turns out that nothing vouches for its leader.
    ///
    /// `silent_ticks` are the ticks since it fell asleep if nothing vouches for the leader any more, its
    /// store being lost; else 0. Too many could break a promise to the leader, too few cost time only.
    pub fn wake(&mut self, silent_ticks: usize) {
        if self.sleep.asleep {
            let follows = !self.is_leader();
            self.sleep = Sleep {
                unheeded: follows,
                nudges: follows && silent_ticks == 0,
                ..Sleep::default()
            };
        }
        let raft = &mut self.raw.raft;
        let follows = raft.leader_id != raft::INVALID_ID && raft.leader_id != self.peer.id.get();
        if self.sleep.unheeded && follows {
            // No further: when to campaign is for the timeout to say. The ticks that have passed since it woke
            // are among the silent ones.
            let silent = silent_ticks.min(raft.election_timeout());
            raft.election_elapsed = raft.election_elapsed.max(silent);
            if silent > 0 {
                self.let_another_stand();
            }
        }
    }

    /// The store is lost on which the leader was, as far as is known here; the region is awake. The peers left
    /// agree on who stands first, so that they do not stand in each other's way; the others follow when their
    /// timeouts say so.
    pub fn leader_lost(&mut self, store: StoreId) -> Campaign {
        let left = self.description.peers.iter();
        let left = left.filter(|peer| peer.role.is_voter() && peer.store != store);
        let first = left.min_by_key(|peer| timeout::rank(self.id(), peer.id));
        let elsewhere = self.leader().is_some_and(|leader| leader.store != store);
        // Told again, it goes on with what it has begun.
        if elsewhere || self.role() != Role::Follower {
            return Campaign::Postponed;
        }
        match first.is_some_and(|first| first.id == self.peer.id) {
            true => {
                self.sleep.stands = u8::try_from(self.config.election_ticks).unwrap_or(u8::MAX);
                self.campaign()
            }
            false => Campaign::Postponed,
        }
    }

    /// Waits for a few ticks longer than an election timeout, unless it is [first](Self::leader_lost): if two
    /// stand at once nobody may win.
    fn let_another_stand(&mut self) {
        let raft = &mut self.raw.raft;
        let least = raft.election_timeout() + FIRST_STANDS_TICKS;
        let least = least.min(2 * raft.election_timeout() - 1);
        if raft.randomized_election_timeout() < least {
            raft.set_randomized_election_timeout(least);
            self.timeout = (self.term(), least);
        }
    }

    /// Whether [`nudge`](Self::nudge) has something to do.
    pub(crate) fn wants_to_nudge(&self) -> bool {
        self.sleep.nudges && self.sleep.unheeded
    }

    /// Wakes the leader, if it was not the leader who woke this peer. Who is awake alone would count its leader's
    /// sleep as silence, and help others to power.
    pub(crate) fn nudge(&mut self) {
        if self.wants_to_nudge() && self.raw.raft.leader_id != raft::INVALID_ID {
            let raft = &mut self.raw.raft;
            let nudge = Message {
                msg_type: MessageType::MsgHeartbeatResponse,
                from: self.peer.id.get(),
                to: raft.leader_id,
                term: raft.term,
                commit: raft.raft_log.committed,
                ..Message::default()
            };
            raft.msgs.push(nudge);
        }
        self.sleep.nudges = false;
    }

    /// A tick.
    pub(crate) fn tick_sleep(&mut self) {
        // What came and was done between two ticks counts as well.
        let last = self.last_index().get() as u32;
        let idle = self.is_leader() && self.is_idle() && last == self.sleep.last_seen;
        self.sleep.last_seen = last;
        self.sleep.idle_ticks = if idle { self.sleep.idle_ticks.saturating_add(1) } else { 0 };
        if !idle {
            self.sleep.talk = None;
        }
        self.sleep.stands = self.sleep.stands.saturating_sub(1);
        if self.sleep.stands % STAND_AGAIN_TICKS == 1 && self.role() == Role::PreCandidate {
            let _ = self.campaign();
        }
        self.sleep_if_agreed();
    }

    /// The context of a leader's heartbeats, if it is time to ask.
    pub(crate) fn ask_to_sleep(&self, stamp: [u8; STAMP_BYTES]) -> Option<Bytes> {
        self.wants_to_sleep()
            .then(|| question(stamp, self.last_index(), self.config.incarnation, ASKS))
    }

    /// A message that has passed the guard, before raft-rs has it. `leads`: only a leader sends such ones.
    pub(crate) fn hear_of_sleep(&mut self, message: &Message, leads: bool) {
        let leading = self.is_leader();
        self.sleep.unheeded &= !leads;
        if !leading {
            self.sleep.talk = None;
        }
        if message.term != self.raw.raft.term {
            return;
        }
        match (message.get_msg_type(), read_question(&message.context)) {
            (MessageType::MsgHeartbeat, Some((index, life, ASKS))) if !leading => {
                self.sleep.talk = Some(Box::new(Talk { index, life, agreed: Vec::new() }));
            }
            (MessageType::MsgHeartbeatResponse, Some((index, life, AGREES))) => {
                let from = PeerId::new(message.from);
                let asked = index == self.last_index() && life == self.config.incarnation;
                if asked && self.wants_to_sleep() {
                    self.note_agreement(from);
                }
            }
            _ => {}
        }
    }

    fn note_agreement(&mut self, from: PeerId) {
        let index = self.last_index();
        let talk = self.sleep.talk.take().filter(|talk| talk.index == index);
        let life = self.config.incarnation;
        let mut talk = talk.unwrap_or_else(|| Box::new(Talk { index, life, agreed: Vec::new() }));
        if !talk.agreed.contains(&from) {
            talk.agreed.push(from);
        }
        self.sleep.talk = Some(talk);
    }

    /// A leader falls asleep once all others have agreed.
    pub(crate) fn sleep_if_agreed(&mut self) {
        if !self.wants_to_sleep() || !self.raw.raft.msgs.is_empty() {
            return;
        }
        let last = self.last_index();
        let talk = self.sleep.talk.as_deref().filter(|talk| talk.index == last);
        let agreed = talk.map_or(&[][..], |talk| &talk.agreed);
        let mut others = self.description.peers.iter().filter(|peer| peer.id != self.peer.id);
        if others.all(|peer| agreed.contains(&peer.id)) {
            self.fall_asleep(None);
        }
    }

    /// A follower that was asked agrees if it is idle, too, and if its turn has nothing to write.
    pub(crate) fn agree_to_sleep(&mut self, parts: &mut ReadyParts, before: Hard) {
        if self.is_leader() {
            return;
        }
        let Some(talk) = self.sleep.talk.take() else { return };
        let index = talk.index;
        let to = self.raw.raft.leader_id;
        let writes = !parts.entries.is_empty() || !parts.hard_state.promises(before);
        if writes || index != self.last_index() || !self.is_idle() {
            return;
        }
        let [envelope] = &mut parts.messages[..] else { return };
        let message = &mut envelope.message;
        let answers = message.get_msg_type() == MessageType::MsgHeartbeatResponse
            && message.to == to
            && read_question(&message.context) == Some((index, talk.life, ASKS));
        if answers {
            let mut stamp = [0; STAMP_BYTES];
            stamp.copy_from_slice(&message.context[..STAMP_BYTES]);
            message.context = question(stamp, index, talk.life, AGREES);
            self.fall_asleep(Some(talk));
        }
    }

    /// Sleeps on, as it did before it became cold.
    pub(crate) fn sleep_under(&mut self, life: u64) {
        let talk = Talk { index: self.last_index(), life, agreed: Vec::new() };
        self.sleep = Sleep { asleep: true, talk: Some(Box::new(talk)), ..Sleep::default() };
    }

    fn fall_asleep(&mut self, talk: Option<Box<Talk>>) {
        self.shrink();
        self.sleep = Sleep { asleep: true, talk, ..Sleep::default() };
    }

    fn wants_to_sleep(&self) -> bool {
        let after = self.config.sleep_after_ticks;
        after > 0 && self.sleep.idle_ticks as usize >= after && self.is_leader() && self.is_idle()
    }

    /// Whether nothing is under way.
    fn is_idle(&self) -> bool {
        let raft = &self.raw.raft;
        let last = self.last_index();
        let log_is_done = self.applying.applied() == last
            && self.persisted_index() == last
            && self.committed() == last;
        let quiet = self.life.is_live()
            && self.has_range()
            && !self.description.joint
            && raft.leader_id != raft::INVALID_ID
            && raft.lead_transferee.is_none()
            && raft.snap().is_none()
            && raft.pending_read_count() == 0;
        let nothing_waits = self.proposals.len() == 0
            && !self.writes.outstanding()
            && self.pending.is_quiet()
            && self.reading.is_quiet()
            && !self.raw.store().snapshots().any_wanted();
        log_is_done && quiet && nothing_waits && (!self.is_leader() || self.all_have_all())
    }

    /// Whether all peers have the leader's whole log, and follow.
    pub(crate) fn all_have_all(&self) -> bool {
        let raft = &self.raw.raft;
        let (last, own) = (self.last_index().get(), self.peer.id.get());
        raft.commit_to_current_term()
            && raft.prs().iter().all(|(id, progress)| {
                *id == own || progress.matched == last && progress.state == ProgressState::Replicate
            })
    }
}

fn question(stamp: [u8; STAMP_BYTES], index: Index, life: u64, what: u8) -> Bytes {
    let mut context = Vec::with_capacity(QUESTION_BYTES);
    context.extend_from_slice(&stamp);
    context.extend_from_slice(&index.get().to_be_bytes());
    context.extend_from_slice(&life.to_be_bytes());
    context.push(what);
    context.into()
}

/// Index, life and kind of a context that is about sleep.
fn read_question(context: &[u8]) -> Option<(Index, u64, u8)> {
    if context.len() != QUESTION_BYTES {
        return None;
    }
    let word = |at: usize| Some(u64::from_be_bytes(context[at..at + 8].try_into().ok()?));
    let (index, life) = (word(STAMP_BYTES)?, word(STAMP_BYTES + 8)?);
    Some((Index::new(index), life, context[QUESTION_BYTES - 1]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RegionConfig;
    use crate::ids::{StoreId, Term};
    use crate::restore::tests::{state, TermSix};
    use std::sync::Arc;

    #[test]
    fn who_lets_another_stand_waits_for_a_whole_term_whatever_raft_rs_draws() {
        // Some seed of which the region's own draw is shorter.
        let mut region = (0..100)
            .map(|seed| Arc::new(RegionConfig { seed, ..RegionConfig::new(1) }))
            .map(|config| {
                Region::restore(state(), StoreId::new(2), config, Arc::new(TermSix)).unwrap()
            })
            .find(|region| region.timeout.1 < 10 + FIRST_STANDS_TICKS)
            .unwrap();
        let (term, own) = region.timeout;
        assert_eq!(region.raw.raft.randomized_election_timeout(), own);
        region.let_another_stand();
        let waits = 10 + FIRST_STANDS_TICKS;
        for _ in 0..200 {
            region.raw.raft.reset(term.get());
            region.settle();
            assert_eq!(region.raw.raft.randomized_election_timeout(), waits);
        }
        region.raw.raft.reset(term.get() + 1);
        region.settle();
        let (seed, id, peer) = (region.config.seed, region.id(), region.peer.id);
        let next = timeout::draw(seed, id, peer, Term::new(term.get() + 1), 10);
        assert_eq!(region.raw.raft.randomized_election_timeout(), next);
    }

    #[test]
    fn a_question_is_told_from_every_other_context() {
        let index = Index::new(77);
        let asked = question([7; STAMP_BYTES], index, 5, ASKS);
        assert_eq!(read_question(&asked), Some((index, 5, ASKS)));
        for other in [&asked[..8], &asked[..16], &[0; 24][..], &[]] {
            assert_eq!(read_question(other), None);
        }
    }
}
