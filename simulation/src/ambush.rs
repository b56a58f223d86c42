//! Ambushes: strikes that wait until some store is in the midst of something.
//!
//! Most of what a region does of itself is over within a few calls of its process. Crashes at random times
//! hardly ever come between them; these do, since they wait for the sight of it.

use crate::moves;
use crate::world::World;
use raftstore::{PeerId, RegionStatus, StoreThread};
use rustc_hash::FxHashMap;
use serde::{Deserialize, Serialize};

/// What is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sight {
    /// A store is about to install a snapshot, or to destroy a peer.
    Chore,
    /// A region's log has given way to a snapshot that is not installed.
    Installs,
    /// A region is split.
    Splits,
    /// A region has got other peers.
    Changes,
    /// There is a peer that knows nothing of its region.
    Newcomer,
    /// A store has started.
    Starts,
}

/// What happens then, to the store that was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs, reason = "fields are calls and microseconds, as they are named")]
pub enum Strike {
    /// Its process ends at the so-manieth call from now to log, state machine or transport.
    Crash { calls: u64 },
    /// One of its threads stands still.
    Stall { thread: Slow, for_us: u64 },
    /// Its state machine is slow with snapshots, and the region's leader is asked again and again to hand
    /// over to the peer.
    Promote { for_us: u64 },
}

/// A thread that may be slow for itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Slow {
    /// All that apply commands.
    Apply,
    /// All that write the log.
    Log,
    /// The one that sends and receives snapshots.
    Snapshots,
    /// The one that installs and destroys.
    Chores,
}

impl Slow {
    fn is(self, thread: StoreThread) -> bool {
        match self {
            Slow::Apply => matches!(thread, StoreThread::Apply(_)),
            Slow::Log => matches!(thread, StoreThread::LogWriter(_)),
            Slow::Snapshots => thread == StoreThread::Snapshots,
            Slow::Chores => thread == StoreThread::Chores,
        }
    }
}

/// A thread of a store that stands still.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stalled {
    thread: Slow,
    until_us: u64,
}

/// Until when a thread stands still; 0: it does not.
pub(crate) fn stalls_until_us(stalled: &[Stalled], thread: StoreThread) -> u64 {
    let its = stalled.iter().filter(|stalled| stalled.thread.is(thread));
    its.map(|stalled| stalled.until_us).max().unwrap_or(0)
}

/// A peer that is to lead.
#[derive(Clone, Copy, Debug)]
struct Wish {
    store: u64,
    region: u64,
    peer: PeerId,
    until_us: u64,
}

/// All ambushes that are laid.
#[derive(Debug, Default)]
pub(crate) struct Ambushes {
    laid: Vec<(Sight, Strike)>,
    wishes: Vec<Wish>,
    /// Epochs as they were last seen, by store and region.
    epochs: FxHashMap<(u64, u64), (u64, u64)>,
}

impl Ambushes {
    /// An ambush is laid.
    pub(crate) fn lay(&mut self, sight: Sight, strike: Strike) {
        self.laid.push((sight, strike));
    }

    /// All is well from now on.
    pub(crate) fn heal(&mut self) {
        self.laid.clear();
        self.wishes.clear();
    }

    fn take(&mut self, sight: Sight) -> Option<Strike> {
        let at = self.laid.iter().position(|(waits_for, _)| *waits_for == sight)?;
        Some(self.laid.remove(at).1)
    }

    fn sights(&mut self, store: u64, status: &RegionStatus) -> Vec<Sight> {
        let epoch = status.description.epoch;
        let (version, conf_ver) = (epoch.version, epoch.conf_ver);
        let key = (store, status.description.id.get());
        let before = self.epochs.insert(key, (version, conf_ver)).unwrap_or((version, conf_ver));
        let seen = [
            (Sight::Installs, status.installing.is_some()),
            (Sight::Splits, version > before.0),
            (Sight::Changes, conf_ver > before.1),
            (Sight::Newcomer, !status.description.is_initialised()),
        ];
        seen.into_iter().filter(|(_, is_seen)| *is_seen).map(|(sight, _)| sight).collect()
    }
}

impl World {
    /// A region has had its turn on a store.
    pub(crate) fn ambush_region(&mut self, store: u64, status: &RegionStatus) {
        for sight in self.ambushes.sights(store, status) {
            if let Some(strike) = self.ambushes.take(sight) {
                self.strike(store, strike, Some((status.description.id.get(), status.peer_id)));
            }
        }
    }

    /// A store is seen, and no region of it.
    pub(crate) fn ambush_store(&mut self, store: u64, sight: Sight) {
        if let Some(strike) = self.ambushes.take(sight) {
            self.strike(store, strike, None);
        }
    }

    fn strike(&mut self, store: u64, strike: Strike, whom: Option<(u64, PeerId)>) {
        let now_us = self.agenda.now_us();
        match (strike, whom) {
            (Strike::Crash { calls }, _) => {
                if let Some(running) = &self.process(store).running {
                    running.life.end_after(calls);
                }
            }
            (Strike::Stall { thread, for_us }, _) => {
                self.stall(store, thread, for_us);
            }
            (Strike::Promote { for_us }, whom) => {
                let until_us = now_us + for_us;
                self.stall(store, Slow::Chores, for_us);
                let wish = whom.map(|(region, peer)| Wish { store, region, peer, until_us });
                self.ambushes.wishes.extend(wish);
            }
        }
    }

    /// A thread of a store stands still for a while.
    pub(crate) fn stall(&mut self, store: u64, thread: Slow, for_us: u64) {
        let until_us = self.agenda.now_us() + for_us;
        self.process(store).stalled.push(Stalled { thread, until_us });
    }

    /// Asks for what is wished of this store's peers.
    pub(crate) fn wish(&mut self, store: u64) {
        let now_us = self.agenda.now_us();
        self.ambushes.wishes.retain(|wish| wish.until_us > now_us);
        let mut wishes = self.ambushes.wishes.clone();
        wishes.retain(|wish| wish.store == store);
        for wish in wishes {
            moves::hand_over(self, wish.region, Some(wish.peer));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ambush_strikes_once_at_its_sight() {
        let mut ambushes = Ambushes::default();
        ambushes.lay(Sight::Chore, Strike::Crash { calls: 3 });
        assert_eq!(ambushes.take(Sight::Splits), None);
        assert_eq!(ambushes.take(Sight::Chore), Some(Strike::Crash { calls: 3 }));
        assert_eq!(ambushes.take(Sight::Chore), None);
    }

    #[test]
    fn a_thread_stands_still_until_the_last_of_its_times() {
        let stalled = [(Slow::Apply, 5), (Slow::Apply, 9), (Slow::Chores, 7)];
        let stalled = stalled.map(|(thread, until_us)| Stalled { thread, until_us });
        assert_eq!(stalls_until_us(&stalled, StoreThread::Apply(1)), 9);
        assert_eq!(stalls_until_us(&stalled, StoreThread::Chores), 7);
        assert_eq!(stalls_until_us(&stalled, StoreThread::Snapshots), 0);
    }
}
