//! What must hold of each region after each of its turns.
//!
//! * Its indexes are in order: `truncated ≤ applied ≤ emitted ≤ committed`, `emitted ≤ persisted ≤ last`.
//! * Term, committed, emitted, applied and truncated do not go back while its store lives.
//! * Peers of a region on a store follow each other with growing ids.
//! * One leader a term. One peer of a region on a store, handled once in a round.
//! * What waits is within its bound.
//! * A region that sleeps has a leader, and nothing under way.

use super::Ledger;
use raftstore::{RegionStatus, Role};
use rustc_hash::FxHashMap;

/// The bounds that the stores were given.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Proposals of a region that wait for their commit.
    pub pending_proposals: usize,
    /// Bytes handed out to be applied: the bound, and one page more.
    pub unapplied_bytes: usize,
    /// Bytes of entries in memory.
    pub cached_bytes: usize,
}

/// Figures that only grow while a store lives.
#[derive(Clone, Copy, Debug, Default)]
struct Growing {
    life: u64,
    term: u64,
    truncated: u64,
    applied: u64,
    emitted: u64,
    committed: u64,
}

/// Compares how regions stand with how they stood before.
#[derive(Debug)]
pub struct Watch {
    bounds: Bounds,
    /// By store and region.
    known: FxHashMap<(u64, u64), Growing>,
    /// Which peers those figures are of.
    peers: FxHashMap<(u64, u64), u64>,
}

impl Watch {
    /// One that knows nothing yet.
    pub fn new(bounds: Bounds) -> Self {
        Self { bounds, known: FxHashMap::default(), peers: FxHashMap::default() }
    }

    /// Checks the regions of one round of a store in one of its lives.
    pub fn check(&mut self, store: u64, life: u64, round: &[RegionStatus], ledger: &mut Ledger) {
        for (at, status) in round.iter().enumerate() {
            let region = status.description.id;
            if round[..at].iter().any(|other| other.description.id == region) {
                let text = format!("region {region}: store {store} ran it twice in a round");
                ledger.violate("one FSM a region and store", text);
            }
            if status.role == Role::Leader {
                ledger.leads(store, region.get(), status.term.get());
            }
            self.check_order(store, status, ledger);
            self.check_growth(store, life, status, ledger);
            self.check_bounds(store, status, ledger);
            check_sleep(store, status, ledger);
        }
    }

    fn check_order(&self, store: u64, status: &RegionStatus, ledger: &mut Ledger) {
        let order = [status.truncated, status.applied, status.emitted, status.committed];
        // A snapshot is in the log before it is in the state machine.
        let installs = status.installing == Some(status.truncated);
        let sound = (order.is_sorted() || installs && order[1..].is_sorted())
            && status.emitted <= status.persisted
            && status.persisted <= status.last
            && status.committed <= status.last;
        if !sound {
            ledger.violate("indexes are in order", format!("store {store}: {status:?}"));
        }
    }

    fn check_growth(&mut self, store: u64, life: u64, status: &RegionStatus, ledger: &mut Ledger) {
        let now = Growing {
            life,
            term: status.term.get(),
            truncated: status.truncated.get(),
            applied: status.applied.get(),
            emitted: status.emitted.get(),
            committed: status.committed.get(),
        };
        let key = (store, status.description.id.get());
        let peer = status.peer_id.get();
        let last = self.peers.insert(key, peer).unwrap_or(0);
        if peer < last {
            let text = format!("region {}: store {store} has peer {peer} after {last}", key.1);
            ledger.violate("a destroyed peer never returns", text);
        }
        if peer > last {
            self.known.remove(&key);
        }
        let Some(before) = self.known.insert(key, now).filter(|before| before.life == life) else {
            return;
        };
        let shrunk = now.term < before.term
            || now.truncated < before.truncated
            || now.applied < before.applied
            || now.emitted < before.emitted
            || now.committed < before.committed;
        if shrunk {
            let text = format!("region {}: store {store} went from {before:?} to {now:?}", key.1);
            ledger.violate("nothing goes back", text);
        }
    }

    fn check_bounds(&self, store: u64, status: &RegionStatus, ledger: &mut Ledger) {
        let Bounds { pending_proposals, unapplied_bytes, cached_bytes } = self.bounds;
        let broken = status.pending_proposals > pending_proposals
            || status.unapplied_bytes > unapplied_bytes
            || status.cached_bytes > cached_bytes;
        if broken {
            let text = format!("store {store}: {:?} exceeded by {status:?}", self.bounds);
            ledger.violate("queues are bounded", text);
        }
    }
}

fn check_sleep(store: u64, status: &RegionStatus, ledger: &mut Ledger) {
    let done = [status.applied, status.emitted, status.committed, status.persisted];
    let idle = done.iter().all(|index| *index == status.last)
        && status.pending_proposals == 0
        && status.installing.is_none()
        && status.leader.is_some()
        && status.matched.iter().all(|(_, index)| *index == status.last);
    if status.asleep && !idle {
        ledger.violate("nothing is under way in a sleeping region", format!("{store}: {status:?}"));
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use raftstore::{Index, PeerId, RegionDescription, RegionId, Term};
    use std::sync::Arc;

    const BOUNDS: Bounds = Bounds { pending_proposals: 9, unapplied_bytes: 9, cached_bytes: 9 };

    pub(crate) fn status() -> RegionStatus {
        let description = RegionDescription::new(RegionId::new(1), "", "", []);
        RegionStatus {
            asleep: false,
            description: Arc::new(description),
            peer_id: PeerId::new(1),
            role: Role::Follower,
            term: Term::new(6),
            leader: None,
            truncated: Index::new(5),
            installing: None,
            applied: Index::new(6),
            emitted: Index::new(7),
            committed: Index::new(8),
            persisted: Index::new(9),
            last: Index::new(10),
            pending_proposals: 0,
            unapplied_bytes: 0,
            cached_bytes: 0,
            cached_entries: 0,
            matched: Vec::new(),
        }
    }

    /// The rule that is broken by a region that stands like this after it stood soundly.
    fn broken(life: u64, change: impl FnOnce(&mut RegionStatus)) -> Option<&'static str> {
        let (mut watch, mut ledger) = (Watch::new(BOUNDS), Ledger::default());
        let mut status = status();
        watch.check(1, 1, std::slice::from_ref(&status), &mut ledger);
        change(&mut status);
        watch.check(1, life, &[status], &mut ledger);
        ledger.violation().map(|violation| violation.rule)
    }

    #[test]
    fn what_goes_back_is_seen_within_a_life() {
        let back: [fn(&mut RegionStatus); 4] = [
            |s| s.term = Term::new(5),
            |s| s.applied = Index::new(5),
            |s| s.emitted = Index::new(6),
            |s| s.committed = Index::new(7),
        ];
        assert_eq!(broken(1, |_| ()), None);
        for change in back {
            assert_eq!(broken(1, change), Some("nothing goes back"));
            assert_eq!(broken(2, change), None, "a restart forgets what was not durable");
        }
    }

    #[test]
    fn disorder_and_overflow_are_seen() {
        assert_eq!(broken(1, |s| s.persisted = Index::new(6)), Some("indexes are in order"));
        assert_eq!(broken(1, |s| s.committed = Index::new(11)), Some("indexes are in order"));
        assert_eq!(broken(1, |s| s.truncated = Index::new(7)), Some("indexes are in order"));
        assert_eq!(broken(1, |s| s.pending_proposals = 10), Some("queues are bounded"));
        assert_eq!(broken(1, |s| s.unapplied_bytes = 10), Some("queues are bounded"));
        assert_eq!(broken(1, |s| s.cached_bytes = 10), Some("queues are bounded"));
    }

    #[test]
    fn what_is_under_way_in_a_sleeping_region_is_seen() {
        let asleep = |change: fn(&mut RegionStatus)| {
            broken(2, |s| {
                let all = [&mut s.applied, &mut s.emitted, &mut s.committed, &mut s.persisted];
                all.into_iter().for_each(|index| *index = s.last);
                (s.asleep, s.leader) = (true, Some(PeerId::new(2)));
                change(s);
            })
        };
        assert_eq!(asleep(|_| ()), None);
        let rule = Some("nothing is under way in a sleeping region");
        assert_eq!(asleep(|s| s.pending_proposals = 1), rule);
        assert_eq!(asleep(|s| s.applied = Index::new(9)), rule);
        assert_eq!(asleep(|s| s.leader = None), rule);
        assert_eq!(asleep(|s| s.matched = vec![(PeerId::new(3), Index::new(9))]), rule);
    }

    #[test]
    fn a_region_that_runs_twice_in_a_round_is_seen() {
        let (mut watch, mut ledger) = (Watch::new(BOUNDS), Ledger::default());
        watch.check(1, 1, &[status(), status()], &mut ledger);
        let rule = ledger.violation().map(|violation| violation.rule);
        assert_eq!(rule, Some("one FSM a region and store"));
    }
}
