//! Which peers this store has, had, or is about to have.
//!
//! Peers come in three ways (created by the user, by a message of the leader, by the split of a parent) and
//! go in one, on different threads. They agree here, before anything is written, on who may have a region.

use parking_lot::Mutex;
use region::{PeerId, RegionId, RegionRecord, Removal};
use rustc_hash::FxHashMap;
use std::sync::Arc;

/// What is known of a region's peer on this store.
#[derive(Clone, Debug)]
enum Known {
    /// It is here, or is just being created.
    Here(PeerId),
    /// A split has promised it; until that is applied nobody may create or destroy it.
    Promised(PeerId),
    /// It is destroyed, and neither it nor an earlier one may return.
    Tombstone(PeerId, Arc<Removal>),
}

/// Why a peer may not be created.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    /// There is one already.
    #[error("peer {0} is here")]
    Here(PeerId),
    /// A split will bring it.
    #[error("a split will bring it")]
    Promised,
    /// It, or a later one, is destroyed; how it left.
    #[error("peer {0} was here and is destroyed")]
    Tombstone(PeerId, Arc<Removal>),
}

/// What was known of a region before a [`Peers::create`].
#[derive(Debug)]
pub(crate) struct Before(Option<Known>);

/// The peers of one store.
///
/// Invariant: a region has one entry; a peer id of a region never goes back.
#[derive(Debug, Default)]
pub(crate) struct Peers {
    of_regions: Mutex<FxHashMap<RegionId, Known>>,
}

impl Peers {
    /// What the log store tells at the start.
    pub(crate) fn load(&self, record: &RegionRecord) {
        let (region, peer) = (record.description.id, record.peer_id);
        let known = match record.tombstone {
            true => {
                let description = Arc::new(record.description.clone());
                let left_at = record.left_at;
                Known::Tombstone(peer, Arc::new(Removal { description, left_at }))
            }
            false => Known::Here(peer),
        };
        self.of_regions.lock().insert(region, known);
    }

    /// A peer is to be created.
    pub(crate) fn create(&self, region: RegionId, peer: PeerId) -> Result<Before, Refused> {
        let mut of_regions = self.of_regions.lock();
        match of_regions.get(&region) {
            Some(Known::Here(known)) => return Err(Refused::Here(*known)),
            Some(Known::Promised(_)) => return Err(Refused::Promised),
            Some(Known::Tombstone(known, last)) if *known >= peer => {
                return Err(Refused::Tombstone(*known, last.clone()));
            }
            Some(Known::Tombstone(..)) | None => {}
        }
        Ok(Before(of_regions.insert(region, Known::Here(peer))))
    }

    /// Why a peer could not be created now, if it could not.
    pub(crate) fn refusal(&self, region: RegionId, peer: PeerId) -> Option<Refused> {
        match self.of_regions.lock().get(&region)? {
            Known::Here(known) => Some(Refused::Here(*known)),
            Known::Promised(_) => Some(Refused::Promised),
            Known::Tombstone(known, last) if *known >= peer => {
                Some(Refused::Tombstone(*known, last.clone()))
            }
            Known::Tombstone(..) => None,
        }
    }

    /// Takes back a [`create`](Self::create) of which nothing was written. What was before is again: a peer
    /// that was destroyed still never returns.
    pub(crate) fn give_up(&self, region: RegionId, Before(before): Before) {
        let mut of_regions = self.of_regions.lock();
        match before {
            Some(known) => drop(of_regions.insert(region, known)),
            None => drop(of_regions.remove(&region)),
        }
    }

    /// A split will bring a peer. Says whether it may: not where it is destroyed, or a later one is here.
    pub(crate) fn promise(&self, region: RegionId, peer: PeerId) -> bool {
        let mut of_regions = self.of_regions.lock();
        let may = match of_regions.get(&region) {
            Some(Known::Here(known) | Known::Promised(known)) => *known == peer,
            Some(Known::Tombstone(..)) => false,
            None => true,
        };
        if may {
            of_regions.insert(region, Known::Promised(peer));
        }
        may
    }

    /// The split is applied. Says whether the peer was promised.
    pub(crate) fn keep_promise(&self, region: RegionId, peer: PeerId) -> bool {
        let mut of_regions = self.of_regions.lock();
        let promised =
            matches!(of_regions.get(&region), Some(Known::Promised(known)) if *known == peer);
        if promised {
            of_regions.insert(region, Known::Here(peer));
        }
        promised
    }

    /// A peer is to be destroyed. Says whether it may: not if a split has promised it.
    pub(crate) fn bury(&self, peer: PeerId, last: &Removal) -> bool {
        let region = last.description.id;
        let mut of_regions = self.of_regions.lock();
        let may = match of_regions.get(&region) {
            Some(Known::Here(known)) => *known == peer,
            _ => false,
        };
        if may {
            of_regions.insert(region, Known::Tombstone(peer, Arc::new(last.clone())));
        }
        may
    }

    /// The remains of a peer that was set aside are to go. `Refused` says who is here instead. Of one whose
    /// record is lost nothing is known here. May be repeated.
    pub(crate) fn discard(&self, peer: PeerId, last: &Removal) -> Result<(), Refused> {
        let region = last.description.id;
        let mut of_regions = self.of_regions.lock();
        match of_regions.get(&region) {
            Some(Known::Here(known)) if *known != peer => return Err(Refused::Here(*known)),
            Some(Known::Promised(_)) => return Err(Refused::Promised),
            Some(Known::Tombstone(known, last)) if *known != peer => {
                return Err(Refused::Tombstone(*known, last.clone()));
            }
            Some(Known::Here(_) | Known::Tombstone(..)) | None => {}
        }
        of_regions.insert(region, Known::Tombstone(peer, Arc::new(last.clone())));
        Ok(())
    }

    /// Whether ids of a split are new to this store.
    pub(crate) fn is_new(&self, region: RegionId) -> bool {
        !self.of_regions.lock().contains_key(&region)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use region::RegionDescription;

    const REGION: RegionId = RegionId::new(7);
    const ONE: PeerId = PeerId::new(1);
    const TWO: PeerId = PeerId::new(2);

    fn last() -> Removal {
        let description = Arc::new(RegionDescription::uninitialised(REGION, 1));
        Removal { description, left_at: None }
    }

    fn create(peers: &Peers, peer: PeerId) -> Result<(), Refused> {
        peers.create(REGION, peer).map(drop)
    }

    #[test]
    fn a_destroyed_peer_never_returns_and_a_later_one_may_come() {
        let peers = Peers::default();
        let last = last();
        assert_eq!(create(&peers, ONE), Ok(()));
        assert_eq!(create(&peers, TWO), Err(Refused::Here(ONE)));
        assert!(peers.bury(ONE, &last));
        assert!(!peers.bury(ONE, &last), "once");
        assert_eq!(create(&peers, ONE), Err(Refused::Tombstone(ONE, Arc::new(last.clone()))));
        assert!(!peers.promise(REGION, ONE));
        let before = peers.create(REGION, TWO).expect("a later one");
        peers.give_up(REGION, before);
        assert!(create(&peers, ONE).is_err(), "still");
        assert_eq!(create(&peers, TWO), Ok(()));
        assert!(!peers.bury(ONE, &last), "it is another one by now");
    }

    #[test]
    fn what_a_split_has_promised_is_neither_created_nor_destroyed_by_others() {
        let peers = Peers::default();
        let last = last();
        assert!(peers.promise(REGION, ONE) && peers.promise(REGION, ONE));
        assert!(!peers.promise(REGION, TWO));
        assert_eq!(create(&peers, ONE), Err(Refused::Promised));
        assert!(!peers.bury(ONE, &last));
        assert!(!peers.keep_promise(REGION, TWO) && peers.keep_promise(REGION, ONE));
        assert!(peers.bury(ONE, &last));
    }

    #[test]
    fn remains_are_discarded_of_the_peer_that_is_meant_only() {
        let peers = Peers::default();
        let last = last();
        assert!(peers.discard(ONE, &last).is_ok(), "its record is lost");
        assert!(peers.discard(ONE, &last).is_ok(), "again");
        assert!(peers.discard(TWO, &last).is_err(), "a later one may still come");
        assert_eq!(create(&peers, TWO), Ok(()));
        assert_eq!(peers.discard(ONE, &last), Err(Refused::Here(TWO)));
        assert!(peers.promise(REGION, TWO));
        assert_eq!(peers.discard(TWO, &last), Err(Refused::Promised));
    }
}
