//! Who of the other stores lives, on behalf of regions that sleep.
//!
//! A sleeping region hears nothing of its leader. Its store asks the leader's store instead, once a tick for all
//! regions together:
//!
//! ```text
//!            falls asleep                       so many questions unanswered, or
//!   region ──────────────► watched, by leader ─────────────────────────────────────► doubted
//!     ▲                                          the answer of another life               │
//!     └───────────────────── woken, a few a tick, each at a time of its own ◄─────────────┘
//! ```
//!
//! What counts is a question that was answered: it shows that both directions work. A store that hears and is not
//! heard, or the other way round, is lost to the one that asks. Questions are counted and not timed, so a store
//! that has been stopped itself for a while does not take everybody else for lost when it goes on.
//!
//! A peer that was removed while messages were lost does not hear of it in its sleep, be it follower or leader. So
//! each one wakes now and then, and the others with it, or nobody: then it asks them.
//!
//! A little time passes between the decision and the first region woken: by then the other stores have come to
//! the same conclusion, and those asked for their votes know it.
//!
//! Invariant: a region is watched while it sleeps, and until it has heard of a leader afterwards. What was doubted
//! once is doubted until then, or until its leader's store has answered in the life that it fell asleep in.

mod ping;

pub use ping::StorePing;

use parking_lot::Mutex;
use region::{RegionDescription, RegionId, StoreId};
use rustc_hash::FxHashMap;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};

/// Ticks between the decision that a store is lost and the first region woken.
const CONSULT_TICKS: u64 = 2;

/// Fewest regions woken in a tick.
const MIN_WAKES: usize = 64;

/// How a store is watched.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// Questions without an answer after which a store is lost.
    pub(crate) questions: u64,
    /// Ticks over which the regions of a lost store are woken.
    pub(crate) spread: u64,
    /// Ticks in which each sleeping region looks around once; 0 for never.
    pub(crate) look_around: u64,
}

impl Patience {
    /// All is over within an election timeout and a half: a follower that ticks waits for up to two.
    pub(crate) fn new(election_ticks: usize, look_around: u64) -> Self {
        let election = election_ticks as u64;
        let questions = election.saturating_sub(CONSULT_TICKS + 1).max(2);
        Self { questions, spread: (election / 2).max(1), look_around }
    }
}

/// What the store knows of the others.
#[derive(Debug)]
pub(crate) struct Liveness {
    store: StoreId,
    patience: Patience,
    /// This life of the store.
    life: u64,
    /// Regions that sleep.
    asleep: AtomicU64,
    inner: Mutex<Inner>,
}

/// For metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Figures {
    /// Regions that sleep here.
    pub(crate) asleep: u64,
    /// Stores that are lost.
    pub(crate) lost: u64,
    /// Regions woken so far because of that.
    pub(crate) woken: u64,
}

#[derive(Debug, Default)]
struct Inner {
    /// Questions put so far, one a tick.
    number: u64,
    stores: FxHashMap<StoreId, Watched>,
    wakes: u64,
}

/// A store that somebody here relies on.
#[derive(Debug, Default)]
struct Watched {
    /// Regions that sleep here and are led there.
    followers: BTreeSet<RegionId>,
    /// Regions that sleep, are led here, and have a peer there.
    led: BTreeSet<RegionId>,
    /// Of each of the two, the last that has looked around, and what is left over of fractions of regions.
    looked: [(RegionId, u64); 2],
    /// The last question answered.
    answered: u64,
    /// The life that regions rely on; `None` if none does, before the first answer.
    life: Option<u64>,
    lost: bool,
    /// Of `followers`, those that must wake. In order: so all stores wake the same ones at the same time.
    doubted: BTreeSet<RegionId>,
    /// From which question on, and how many of them a tick.
    wake: (u64, usize),
    /// The last one woken.
    woken: RegionId,
}

/// What is to be done in a tick.
#[derive(Debug, Default)]
pub(crate) struct Turn {
    /// The number of the question, and who is to be asked.
    pub(crate) ask: (u64, Vec<StoreId>),
    /// Regions to be woken, and the store that has led them.
    pub(crate) wake: Vec<(RegionId, StoreId)>,
    /// Regions that look around.
    pub(crate) look_around: Vec<RegionId>,
    /// Stores found lost.
    pub(crate) lost: Vec<StoreId>,
}

/// What an answer tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    /// Nothing new.
    Nothing,
    /// The store was lost, and is back.
    Back,
    /// It has been started anew, and so many regions here sleep that it has led.
    Restarted(usize),
}

impl Liveness {
    /// Of a store, in this life of it.
    pub(crate) fn new(store: StoreId, life: u64, patience: Patience) -> Self {
        Self { store, patience, life, asleep: AtomicU64::new(0), inner: Mutex::default() }
    }

    /// This life of the store.
    pub(crate) fn life(&self) -> u64 {
        self.life
    }

    /// A region has fallen asleep that is led on another store, in this life of that one. If nobody vouches for
    /// the leader, its store being lost or in another life, the region is to be woken at once; this says so.
    #[must_use]
    pub(crate) fn watch_leader(&self, region: RegionId, store: StoreId, life: u64) -> bool {
        let mut inner = self.inner.lock();
        let watched = inner.watched(store);
        watched.followers.insert(region);
        !watched.lost && *watched.life.get_or_insert(life) == life
    }

    /// A region sleeps whose leader is on that store, as far as can be known after a start, in whichever life.
    pub(crate) fn watch_presumed(&self, region: RegionId, store: StoreId) {
        self.inner.lock().watched(store).followers.insert(region);
    }

    /// It has woken, or ended.
    pub(crate) fn leave_leader(&self, region: RegionId, store: StoreId) {
        let mut inner = self.inner.lock();
        if let Some(watched) = inner.stores.get_mut(&store) {
            watched.followers.remove(&region);
            watched.doubted.remove(&region);
        }
    }

    /// A region has fallen asleep that is led here.
    pub(crate) fn watch_followers(&self, description: &RegionDescription) {
        let mut inner = self.inner.lock();
        for peer in description.peers.iter().filter(|peer| peer.store != self.store) {
            inner.watched(peer.store).led.insert(description.id);
        }
    }

    /// It has woken, or ended. The description is the same as long as it sleeps.
    pub(crate) fn leave_followers(&self, description: &RegionDescription) {
        let mut inner = self.inner.lock();
        for peer in &description.peers {
            if let Some(watched) = inner.stores.get_mut(&peer.store) {
                watched.led.remove(&description.id);
            }
        }
    }

    /// Ticks so far. One comes no sooner than a tick after the last, but for the first that somebody sees; so
    /// they can be counted like those of a region.
    pub(crate) fn ticks(&self) -> u64 {
        self.inner.lock().number
    }

    /// For how many ticks a region has slept, if nobody vouches for its leader, which is on this store; else 0.
    /// It fell asleep at tick `since`.
    pub(crate) fn silent_ticks(&self, region: RegionId, store: StoreId, since: u64) -> u64 {
        let inner = self.inner.lock();
        let doubts = |it: &Watched| it.lost || it.doubted.contains(&region);
        match inner.stores.get(&store).is_some_and(doubts) {
            true => inner.number - since,
            false => 0,
        }
    }

    /// For how many ticks a store has not answered, if it is lost.
    pub(crate) fn lost_for(&self, store: StoreId) -> Option<u64> {
        let inner = self.inner.lock();
        let watched = inner.stores.get(&store).filter(|watched| watched.lost)?;
        Some(inner.number - watched.answered)
    }

    /// A region has begun to sleep here, or has ceased to.
    pub(crate) fn note_asleep(&self, begins: bool) {
        match begins {
            true => self.asleep.fetch_add(1, Ordering::Relaxed),
            false => self.asleep.fetch_sub(1, Ordering::Relaxed),
        };
    }

    /// As of now.
    pub(crate) fn figures(&self) -> Figures {
        let inner = self.inner.lock();
        let lost = inner.stores.values().filter(|watched| watched.lost).count() as u64;
        let asleep = self.asleep.load(Ordering::Relaxed);
        Figures { asleep, lost, woken: inner.wakes }
    }

    /// A tick.
    pub(crate) fn tick(&self) -> Turn {
        let mut guard = self.inner.lock();
        let inner = &mut *guard;
        inner.number += 1;
        let (number, patience) = (inner.number, self.patience);
        let mut turn = Turn { ask: (number, Vec::new()), ..Turn::default() };
        inner.stores.retain(|_, watched| !(watched.followers.is_empty() && watched.led.is_empty()));
        for (store, watched) in &mut inner.stores {
            turn.ask.1.push(*store);
            if !watched.lost && number - watched.answered > patience.questions {
                watched.lost = true;
                watched.doubt_all(number, patience);
                turn.lost.push(*store);
            }
            if !watched.lost {
                watched.take_looks(patience.look_around, |region| turn.look_around.push(region));
            }
            watched.take_wakes(number, |region| turn.wake.push((region, *store)));
        }
        inner.wakes += turn.wake.len() as u64;
        turn.ask.1.sort_unstable();
        turn.lost.sort_unstable();
        turn.look_around.sort_unstable();
        turn.look_around.dedup();
        turn.wake.sort_unstable();
        turn
    }

    /// A store has answered a question of this life.
    pub(crate) fn hear(&self, store: StoreId, number: u64, life: u64) -> Heard {
        let mut guard = self.inner.lock();
        let asked = guard.number;
        let Some(watched) = guard.stores.get_mut(&store) else { return Heard::Nothing };
        if number <= watched.answered || number > asked {
            return Heard::Nothing;
        }
        watched.answered = number;
        let before = watched.life.replace(life);
        if before.is_some_and(|before| before != life) {
            watched.lost = false;
            watched.doubt_all(asked, self.patience);
            return Heard::Restarted(watched.doubted.len());
        }
        match std::mem::replace(&mut watched.lost, false) {
            true => {
                watched.doubted.clear();
                Heard::Back
            }
            false => Heard::Nothing,
        }
    }
}

impl Inner {
    fn watched(&mut self, store: StoreId) -> &mut Watched {
        // As if it had answered just now: it is given the usual time.
        let answered = self.number;
        self.stores.entry(store).or_insert_with(|| Watched { answered, ..Watched::default() })
    }
}

impl Watched {
    fn doubt_all(&mut self, number: u64, patience: Patience) {
        self.doubted.clone_from(&self.followers);
        let share = self.doubted.len().div_ceil(patience.spread as usize);
        self.wake = (number + CONSULT_TICKS, share.max(MIN_WAKES));
        self.woken = RegionId::default();
    }

    /// All take their turns within so many ticks.
    fn take_looks(&mut self, ticks: u64, mut give: impl FnMut(RegionId)) {
        for (all, looked) in [&self.followers, &self.led].into_iter().zip(&mut self.looked) {
            if ticks == 0 || all.is_empty() {
                continue;
            }
            let due = looked.1 + all.len() as u64;
            let behind = RegionId::new(looked.0.get().saturating_add(1));
            let next = all.range(behind..).chain(all);
            let count = (due / ticks).min(all.len() as u64);
            looked.1 = due % ticks;
            for region in next.take(count as usize) {
                give(*region);
                looked.0 = *region;
            }
        }
    }

    /// Regions stay doubted until they have another leader, and are told so again when all others had their turn:
    /// a message may be lost on its way to a full mailbox.
    fn take_wakes(&mut self, number: u64, mut give: impl FnMut(RegionId)) {
        if number < self.wake.0 {
            return;
        }
        let behind = RegionId::new(self.woken.get().saturating_add(1));
        let mut left = self.wake.1;
        for region in self.doubted.range(behind..).take(self.wake.1) {
            give(*region);
            (self.woken, left) = (*region, left - 1);
        }
        if left > 0 {
            self.woken = RegionId::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use region::{Peer, PeerId};

    const ONE: StoreId = StoreId::new(1);
    const TWO: StoreId = StoreId::new(2);
    const PATIENCE: Patience = Patience { questions: 3, spread: 4, look_around: 0 };

    fn liveness(regions: u64) -> Liveness {
        let liveness = Liveness::new(ONE, 1, PATIENCE);
        (1..=regions).for_each(|id| assert!(liveness.watch_leader(RegionId::new(id), TWO, 9)));
        liveness
    }

    /// Ticks; what is woken wakes.
    fn ticks(liveness: &Liveness, count: u64) -> Vec<(RegionId, StoreId)> {
        let mut woken = Vec::new();
        for _ in 0..count {
            let turn = liveness.tick();
            turn.wake.iter().for_each(|(region, store)| liveness.leave_leader(*region, *store));
            woken.extend(turn.wake);
        }
        woken
    }

    #[test]
    fn a_store_that_answers_is_left_alone() {
        let liveness = liveness(3);
        for _ in 0..20 {
            let turn = liveness.tick();
            assert_eq!(turn.ask.1, [TWO]);
            assert!(turn.wake.is_empty());
            assert_eq!(liveness.hear(TWO, turn.ask.0, 9), Heard::Nothing);
        }
        assert_eq!(liveness.silent_ticks(RegionId::new(1), TWO, 2), 0);
    }

    #[test]
    fn what_a_lost_store_led_is_woken_once_a_few_a_tick() {
        let liveness = liveness(1_000);
        assert!(ticks(&liveness, 3).is_empty());
        let turn = liveness.tick();
        assert_eq!((turn.lost, turn.wake.len()), (vec![TWO], 0), "others are given time to agree");
        assert_eq!(liveness.silent_ticks(RegionId::new(7), TWO, 1), 3);
        assert!(!liveness.watch_leader(RegionId::new(5_000), TWO, 9), "it does not sleep now");
        liveness.leave_leader(RegionId::new(5_000), TWO);
        assert!(ticks(&liveness, 1).is_empty());
        let mut all = Vec::new();
        for _ in 0..4 {
            let woken = ticks(&liveness, 1);
            assert_eq!(woken.len(), 250);
            all.extend(woken);
        }
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 1_000);
        assert!(ticks(&liveness, 20).is_empty());
        let figures = Figures { asleep: 0, lost: 0, woken: 1_000 };
        assert_eq!(liveness.figures(), figures, "nobody is watched any more");
    }

    #[test]
    fn a_region_that_does_not_wake_is_told_again() {
        let liveness = liveness(1);
        ticks(&liveness, 5);
        assert_eq!(liveness.tick().wake, [(RegionId::new(1), TWO)]);
        assert_eq!(liveness.tick().wake, [(RegionId::new(1), TWO)]);
    }

    #[test]
    fn one_that_comes_back_in_time_stops_the_waking_and_one_started_anew_does_not() {
        for (life, expected) in [(9, Heard::Back), (10, Heard::Restarted(1_000))] {
            let liveness = liveness(1_000);
            let first = liveness.tick().ask.0;
            assert_eq!(liveness.hear(TWO, first, 9), Heard::Nothing);
            ticks(&liveness, 4);
            let doubts = || liveness.silent_ticks(RegionId::new(1), TWO, 0) > 0;
            assert!(doubts());
            let last = liveness.tick().ask.0;
            assert_eq!(liveness.hear(TWO, last, life), expected);
            assert_eq!(doubts(), life != 9);
            assert_eq!(liveness.hear(TWO, first, 9), Heard::Nothing, "late and doubled answers");
            for _ in 0..10 {
                let turn = liveness.tick();
                turn.wake.iter().for_each(|(region, store)| liveness.leave_leader(*region, *store));
                let _ = liveness.hear(TWO, turn.ask.0, life);
            }
            assert_eq!(liveness.figures().woken, if life == 9 { 0 } else { 1_000 });
        }
    }

    #[test]
    fn a_life_that_ended_before_its_first_answer_is_missed() {
        let liveness = liveness(1);
        let number = liveness.tick().ask.0;
        assert_eq!(liveness.hear(TWO, number, 10), Heard::Restarted(1));
        assert!(!liveness.watch_leader(RegionId::new(2), TWO, 9), "its heartbeat came late");
        assert!(liveness.watch_leader(RegionId::new(3), TWO, 10));
    }

    #[test]
    fn each_looks_around_once_in_its_time() {
        let liveness =
            Liveness::new(ONE, 1, Patience { look_around: 10, questions: 1_000, spread: 4 });
        (1..=25).for_each(|id| assert!(liveness.watch_leader(RegionId::new(id), TWO, 9)));
        let mut seen = Vec::new();
        for _ in 0..10 {
            let turn = liveness.tick().look_around;
            assert!((2..=3).contains(&turn.len()), "{turn:?}");
            seen.extend(turn);
        }
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), 25);
    }

    #[test]
    fn questions_never_put_are_not_answered() {
        let liveness = liveness(1);
        let number = liveness.tick().ask.0;
        assert_eq!(liveness.hear(TWO, number + 100, 9), Heard::Nothing);
        ticks(&liveness, 4);
        assert_eq!(liveness.lost_for(TWO), Some(5));
        assert_eq!(liveness.hear(StoreId::new(3), number, 9), Heard::Nothing, "nobody asked it");
    }

    #[test]
    fn a_leader_that_sleeps_has_its_followers_stores_watched() {
        let liveness = Liveness::new(ONE, 1, PATIENCE);
        let peers = [1, 2].map(|id| Peer::voter(PeerId::new(id), StoreId::new(id)));
        let led = RegionDescription::new(RegionId::new(1), "", "", peers);
        liveness.watch_followers(&led);
        ticks(&liveness, 5);
        assert_eq!(liveness.lost_for(TWO), Some(5));
        liveness.leave_followers(&led);
        assert!(liveness.tick().ask.1.is_empty());
    }
}
