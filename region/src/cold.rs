//! A region that has slept for long, without its `RawNode`.
//!
//! While a region sleeps everything about it is known: its log is persisted, committed and applied to the end,
//! nobody waits, and who leads does not change without a message. So little is enough to make it
//! anew, as it was, when something comes.
//!
//! # Leading again
//!
//! Nobody else can have been elected to the term that a cold peer leads, and it has been told of no higher one.
//! So it goes on to lead that term, without an election. raft-rs knows one way to begin leading: with an empty
//! entry. Its followers have all that comes before, as they had acknowledged before it slept; so what is proposed
//! at once leaves together with that entry.
//!
//! Invariant: a cold region has no write under way. Its term and its vote are durable; its commit index on disk may
//! be older, as that of any region.

use std::sync::Arc;

use raft::eraftpb::HardState;

use crate::config::RegionConfig;
use crate::description::{Peer, RegionDescription, MAX_PEERS};
use crate::effects::{RegionFailure, RegionStatus};
use crate::ids::{Index, RegionId, StoreId, Term};
use crate::log_reader::LogReader;
use crate::records::TruncatedState;
use crate::region::Region;
use crate::restore::SoundState;
use crate::term_runs::TermRuns;

/// What is left of a region that sleeps.
#[derive(Debug)]
pub struct ColdRegion {
    description: Arc<RegionDescription>,
    /// Which of the description's peers this is.
    own: u8,
    /// Which of them leads.
    leader: u8,
    /// For the rest of the term: a request to take over may still be on its way.
    lease_given_up: bool,
    term: Term,
    vote: u64,
    /// As the log store was told last.
    written_commit: u64,
    truncated: TruncatedState,
    /// Persisted, committed and applied.
    last: Index,
    /// Where the log has entries of several terms, or any at all.
    terms: Option<Box<TermRuns>>,
    /// The life of the leader's store that it relies on.
    life: u64,
    /// Questions for reads and generations go on counting: answers to earlier ones may still be on their way.
    questions: u64,
    generation: u64,
}

const _: () = assert!(MAX_PEERS <= u8::MAX as usize);

impl Region {
    /// Whether the region can be [taken apart](Self::freeze): it sleeps, has nothing to collect, and is described
    /// with this peer and the one that leads.
    pub fn may_freeze(&self) -> bool {
        self.is_asleep()
            && !self.has_ready()
            && !self.has_outstanding_write()
            && (!self.is_leader() || self.all_have_all())
            && self.places().is_some()
    }

    /// Where among the description's peers this one is, and the one that leads.
    fn places(&self) -> Option<(u8, u8)> {
        let place = |id: u64| {
            let at = self.description.peers.iter().position(|peer| peer.id.get() == id)?;
            u8::try_from(at).ok()
        };
        Some((place(self.peer.id.get())?, place(self.raw.raft.leader_id)?))
    }

    /// Takes the region apart.
    ///
    /// # Panics
    /// When it [may not be](Self::may_freeze).
    pub fn freeze(self) -> ColdRegion {
        let Some((own, leader)) = self.places().filter(|_| self.may_freeze()) else {
            panic!("region {} has something to do", self.id())
        };
        let (questions, generation) = self.reading.counters();
        let terms = self.raw.store().terms().clone();
        let lease_given_up = self.has_given_up_lease();
        let last = self.last_index();
        ColdRegion {
            own,
            leader,
            term: self.term(),
            vote: self.raw.raft.vote,
            written_commit: self.writes.written().commit,
            truncated: self.truncated(),
            terms: (terms.truncated_index() < last.get()).then(|| Box::new(terms)),
            last,
            life: self.relies_on_life().unwrap_or_default(),
            questions,
            generation,
            lease_given_up,
            description: self.description,
        }
    }

    /// The [`incarnation`](RegionConfig::incarnation) that it was given.
    pub fn incarnation(&self) -> u64 {
        self.config.incarnation
    }
}

impl ColdRegion {
    /// The region's id.
    pub fn id(&self) -> RegionId {
        self.description.id
    }

    /// The description.
    pub fn description(&self) -> &Arc<RegionDescription> {
        &self.description
    }

    /// This store's peer.
    pub fn peer(&self) -> &Peer {
        &self.description.peers[usize::from(self.own)]
    }

    /// Whether the peer leads.
    pub fn is_leader(&self) -> bool {
        self.leader == self.own
    }

    /// Who leads.
    pub fn leader(&self) -> &Peer {
        &self.description.peers[usize::from(self.leader)]
    }

    /// How it stands.
    pub fn status(&self) -> RegionStatus {
        RegionStatus::at_rest(
            self.description.clone(),
            (self.peer().id, self.leader().id),
            self.term,
            (self.truncated.index, self.last),
        )
    }

    /// Makes the region anew. A follower still sleeps, until it is [woken](Region::wake); a leader is awake and
    /// has something to collect.
    ///
    /// # Errors
    /// When raft-rs refuses, which it has no reason to.
    pub fn thaw(
        self,
        store: StoreId,
        config: Arc<RegionConfig>,
        reader: Arc<dyn LogReader>,
    ) -> Result<Region, RegionFailure> {
        let (leads, region_id) = (self.is_leader(), self.id());
        let (me, leader) = (*self.peer(), self.leader().id);
        if me.store != store {
            let cause = format!("peer {} is not on store {store}", me.id);
            return Err(RegionFailure::Raft { region_id, cause });
        }
        let hard_state = HardState {
            term: self.term.get(),
            vote: self.vote,
            commit: self.last.get(),
            ..HardState::default()
        };
        let sound = SoundState {
            me,
            written: HardState { commit: self.written_commit, ..hard_state.clone() },
            current: hard_state,
            terms: self.terms.map_or_else(|| TermRuns::new(self.truncated), |terms| *terms),
            applied: self.last,
            no_vote_ticks: 0,
            replay_to: Index::default(),
            awaits_split: false,
            description: self.description,
        };
        let mut region = Region::assemble(sound, config, reader)?;
        region.reading.go_on(self.questions, self.generation + 1);
        let raft = &mut region.raw.raft;
        match leads {
            true => {
                raft.become_pre_candidate();
                raft.become_leader();
                for (_, follower) in raft.mut_prs().iter_mut().filter(|(id, _)| **id != me.id.get())
                {
                    follower.matched = self.last.get();
                    follower.become_replicate();
                }
                raft.bcast_append();
            }
            false => {
                raft.become_follower(self.term.get(), leader.get());
                region.sleep_under(self.life);
            }
        }
        if self.lease_given_up {
            region.give_up_lease();
        }
        region.settle();
        region.note_role();
        Ok(region)
    }
}
