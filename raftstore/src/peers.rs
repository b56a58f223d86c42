//! Which peers this store has, had, or is about to have.
//!
//! Peers come in three ways (created by the user, by a message of the leader, by the split of a parent) and
//! go in one, on different threads. They agree here, before anything is written, on who may have a region.
//!
//! Ids of regions are the users' to give, and may be given twice by mistake. So a split reserves those of its
//! children: where it is proposed until it is answered, and on each store from the write of their records until
//! it is applied. Meanwhile nobody else creates such a region, or gives one that knows nothing yet a range.
//!
//! Ranges are looked at under the lock of this file, never the other way round.

use crate::range_map::RangeMap;
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
    /// It is destroyed, and neither it nor an earlier one may return. Boxed: there is one of these for each region,
    /// and most are not destroyed.
    Tombstone(Box<Destroyed>),
}

#[derive(Clone, Debug)]
struct Destroyed {
    peer: PeerId,
    last: Arc<Removal>,
}

impl Known {
    fn destroyed(peer: PeerId, last: Removal) -> Self {
        Self::Tombstone(Box::new(Destroyed { peer, last: Arc::new(last) }))
    }
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

/// The id that a split would give a region is another region's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Taken {
    /// One that has a range here, or had a peer before the split's.
    #[error("which is here already")]
    Here,
    /// One that another split will bring.
    #[error("which the split of region {0} brings already")]
    Expected(RegionId),
}

/// The peers of one store.
#[derive(Debug, Default)]
pub(crate) struct Peers {
    all: Mutex<All>,
}

/// Invariant: a region has one entry; a peer id of a region never goes back.
#[derive(Debug, Default)]
struct All {
    of_regions: FxHashMap<RegionId, Known>,
    /// Regions that a split brings which is committed and not yet applied here, with their parents.
    expected: FxHashMap<RegionId, RegionId>,
    /// The same of splits that were proposed here and are not answered.
    proposed: FxHashMap<RegionId, RegionId>,
}

impl All {
    fn is_reserved(&self, region: RegionId) -> bool {
        self.expected.contains_key(&region) || self.proposed.contains_key(&region)
    }

    /// Whether the split of `parent` may bring this peer.
    fn may_come(
        &self,
        parent: RegionId,
        (child, peer): (RegionId, PeerId),
        ranges: &RangeMap,
    ) -> Result<bool, Taken> {
        if let Some(other) = self.expected.get(&child).filter(|other| **other != parent) {
            return Err(Taken::Expected(*other));
        }
        match self.of_regions.get(&child) {
            Some(Known::Tombstone(..)) => Ok(false),
            // The child itself has none before the split is applied: its parent has it.
            _ if ranges.has(child) => Err(Taken::Here),
            Some(Known::Here(known) | Known::Promised(known)) if *known == peer => Ok(true),
            Some(Known::Here(known)) if *known > peer => Ok(false),
            Some(Known::Here(_) | Known::Promised(_)) => Err(Taken::Here),
            None => Ok(true),
        }
    }

    /// It may not be applied any more.
    fn forget_splits_of(&mut self, parent: RegionId) {
        self.expected.retain(|_, of| *of != parent);
    }
}

/// What was known of a region before a [`Peers::create`].
#[derive(Debug)]
pub(crate) struct Before(Option<Known>);

impl Peers {
    /// What the log store tells at the start.
    pub(crate) fn load(&self, record: &RegionRecord) {
        let (region, peer) = (record.description.id, record.peer_id);
        let known = match record.tombstone {
            true => {
                let description = record.description.clone();
                let left_at = record.left_at;
                Known::destroyed(peer, Removal { description, left_at })
            }
            false => Known::Here(peer),
        };
        self.all.lock().of_regions.insert(region, known);
    }

    /// At a start: a region waits for the split of its parent to be applied again.
    pub(crate) fn expect(&self, region: RegionId, parent: RegionId) {
        self.all.lock().expected.insert(region, parent);
    }

    /// A peer is to be created.
    pub(crate) fn create(&self, region: RegionId, peer: PeerId) -> Result<Before, Refused> {
        let mut all = self.all.lock();
        match all.of_regions.get(&region) {
            Some(Known::Here(known)) => return Err(Refused::Here(*known)),
            Some(Known::Promised(_)) => return Err(Refused::Promised),
            Some(Known::Tombstone(known)) if known.peer >= peer => {
                return Err(Refused::Tombstone(known.peer, known.last.clone()));
            }
            Some(Known::Tombstone(..)) | None if all.is_reserved(region) => {
                return Err(Refused::Promised);
            }
            Some(Known::Tombstone(..)) | None => {}
        }
        Ok(Before(all.of_regions.insert(region, Known::Here(peer))))
    }

    /// Why a peer could not be created now, if it could not.
    pub(crate) fn refusal(&self, region: RegionId, peer: PeerId) -> Option<Refused> {
        let all = self.all.lock();
        match all.of_regions.get(&region) {
            Some(Known::Here(known)) => Some(Refused::Here(*known)),
            Some(Known::Promised(_)) => Some(Refused::Promised),
            Some(Known::Tombstone(known)) if known.peer >= peer => {
                Some(Refused::Tombstone(known.peer, known.last.clone()))
            }
            Some(Known::Tombstone(..)) | None => {
                all.is_reserved(region).then_some(Refused::Promised)
            }
        }
    }

    /// Takes back a [`create`](Self::create) of which nothing was written. What was before is again: a peer
    /// that was destroyed still never returns.
    pub(crate) fn give_up(&self, region: RegionId, Before(before): Before) {
        let of_regions = &mut self.all.lock().of_regions;
        match before {
            Some(known) => drop(of_regions.insert(region, known)),
            None => drop(of_regions.remove(&region)),
        }
    }

    /// A split of `parent` is to be proposed. The ids are reserved, or the first one that is in use is named.
    pub(crate) fn reserve(&self, parent: RegionId, children: &[RegionId]) -> Result<(), RegionId> {
        let mut all = self.all.lock();
        let used = |id: &&RegionId| all.of_regions.contains_key(*id) || all.is_reserved(**id);
        if let Some(used) = children.iter().find(used) {
            return Err(*used);
        }
        all.proposed.extend(children.iter().map(|id| (*id, parent)));
        Ok(())
    }

    /// The split is answered: it is applied, or somebody else will say what has become of it.
    pub(crate) fn release(&self, children: &[RegionId]) {
        let mut all = self.all.lock();
        all.proposed.retain(|id, _| !children.contains(id));
    }

    /// A region that knows nothing is to get a range, which `take` does if it is free. Not while a split is to
    /// bring a region of that id. Says whether it was done.
    pub(crate) fn take_range(&self, region: RegionId, take: impl FnOnce() -> bool) -> bool {
        let all = self.all.lock();
        !all.expected.contains_key(&region) && take()
    }

    /// The split of a region will bring these, each with a peer here; or what the region is to become is known,
    /// then it is its own parent. Returns those whose peer is destroyed, or a later one is here: they do not
    /// come. Nothing is promised if one of the ids is another region's.
    pub(crate) fn promise(
        &self,
        parent: RegionId,
        children: &[(RegionId, PeerId)],
        ranges: &RangeMap,
    ) -> Result<Vec<RegionId>, (RegionId, Taken)> {
        let mut all = self.all.lock();
        let (mut wanted, mut others) = (Vec::new(), Vec::new());
        for (child, peer) in children {
            let may = all.may_come(parent, (*child, *peer), ranges);
            match may.map_err(|taken| (*child, taken))? {
                true => wanted.push((*child, Known::Promised(*peer))),
                false => others.push(*child),
            }
        }
        all.of_regions.extend(wanted);
        all.expected.extend(children.iter().map(|(child, _)| (*child, parent)));
        Ok(others)
    }

    /// The split is applied. Says whether the peer was promised.
    pub(crate) fn keep_promise(&self, region: RegionId, peer: PeerId) -> bool {
        let mut all = self.all.lock();
        let known = all.of_regions.get(&region);
        let promised = matches!(known, Some(Known::Promised(known)) if *known == peer);
        if promised {
            all.of_regions.insert(region, Known::Here(peer));
        }
        promised
    }

    /// The ids are not reserved any more: what was promised has begun, and what was not wanted is removed.
    pub(crate) fn end_promise(&self, children: &[RegionId]) {
        let expected = &mut self.all.lock().expected;
        expected.retain(|child, _| !children.contains(child));
    }

    /// A peer is to be destroyed. Says whether it may: not if a split has promised it.
    pub(crate) fn bury(&self, peer: PeerId, last: &Removal) -> bool {
        let region = last.description.id;
        let mut all = self.all.lock();
        let may = match all.of_regions.get(&region) {
            Some(Known::Here(known)) => *known == peer,
            _ => false,
        };
        if may {
            all.of_regions.insert(region, Known::destroyed(peer, last.clone()));
            all.forget_splits_of(region);
        }
        may
    }

    /// The remains of a peer that was set aside are to go. `Refused` says who is here instead. Of one whose
    /// record is lost nothing is known here. May be repeated.
    pub(crate) fn discard(&self, peer: PeerId, last: &Removal) -> Result<(), Refused> {
        let region = last.description.id;
        let mut all = self.all.lock();
        match all.of_regions.get(&region) {
            Some(Known::Here(known)) if *known != peer => return Err(Refused::Here(*known)),
            Some(Known::Promised(_)) => return Err(Refused::Promised),
            Some(Known::Tombstone(known)) if known.peer != peer => {
                return Err(Refused::Tombstone(known.peer, known.last.clone()));
            }
            Some(Known::Here(_) | Known::Tombstone(..)) | None => {}
        }
        all.of_regions.insert(region, Known::destroyed(peer, last.clone()));
        all.forget_splits_of(region);
        Ok(())
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

    /// What a split of region 1 is told of its one child.
    fn promise(peers: &Peers, peer: PeerId) -> Result<bool, Taken> {
        let promised = peers.promise(RegionId::new(1), &[(REGION, peer)], &RangeMap::default());
        promised.map(|others| others.is_empty()).map_err(|(_, taken)| taken)
    }

    fn create(peers: &Peers, peer: PeerId) -> Result<(), Refused> {
        peers.create(REGION, peer).map(drop)
    }

    #[test]
    fn a_destroyed_peer_never_returns_and_a_later_one_may_come() {
        let peers = Peers::default();
        let last = last();
        let destroyed = || Refused::Tombstone(ONE, Arc::new(last.clone()));
        assert_eq!(create(&peers, ONE), Ok(()));
        assert_eq!(create(&peers, TWO), Err(Refused::Here(ONE)));
        assert!(peers.bury(ONE, &last));
        assert!(!peers.bury(ONE, &last), "once");
        assert_eq!(create(&peers, ONE), Err(destroyed()));
        assert_eq!(promise(&peers, ONE), Ok(false));
        assert!(!peers.keep_promise(REGION, ONE));
        peers.end_promise(&[REGION]);
        let before = peers.create(REGION, TWO).expect("a later one");
        peers.give_up(REGION, before);
        assert_eq!(create(&peers, ONE), Err(destroyed()), "still");
        assert_eq!(create(&peers, TWO), Ok(()));
        assert!(!peers.bury(ONE, &last), "it is another one by now");
    }

    #[test]
    fn what_a_split_has_promised_is_neither_created_nor_destroyed_by_others() {
        let peers = Peers::default();
        let last = last();
        assert_eq!((promise(&peers, ONE), promise(&peers, ONE)), (Ok(true), Ok(true)));
        assert_eq!(promise(&peers, TWO), Err(Taken::Here));
        assert_eq!(create(&peers, ONE), Err(Refused::Promised));
        assert!(!peers.bury(ONE, &last));
        assert!(peers.keep_promise(REGION, ONE) && !peers.keep_promise(REGION, ONE));
        assert!(peers.bury(ONE, &last));
    }

    #[test]
    fn a_split_gives_no_id_that_another_region_has() {
        let (peers, ranges) = (Peers::default(), RangeMap::default());
        let (parent, other) = (RegionId::new(1), RegionId::new(2));
        let split = |of, child| peers.promise(of, &[(child, TWO)], &ranges);
        // One that another split brings, on which all depends that comes with it.
        assert_eq!(split(other, REGION), Ok(vec![]));
        let nine = RegionId::new(9);
        let both = peers.promise(parent, &[(nine, ONE), (REGION, ONE)], &ranges);
        assert_eq!(both, Err((REGION, Taken::Expected(other))));
        assert_eq!(peers.create(nine, ONE).map(drop), Ok(()), "it was not promised");
        assert!(peers.keep_promise(REGION, TWO));
        peers.end_promise(&[REGION]);
        // One with an earlier peer, and one with a range.
        assert_eq!(split(parent, nine), Err((nine, Taken::Here)));
        let peer = region::Peer::voter(TWO, region::StoreId::new(1));
        let own = Arc::new(RegionDescription::new(REGION, "m", "", [peer]));
        ranges.insert(&own).expect("free");
        assert_eq!(split(parent, REGION), Err((REGION, Taken::Here)));
        // A later peer of the child is none; but it gets no range before the split is applied.
        let ten = RegionId::new(10);
        assert_eq!(peers.create(ten, PeerId::new(3)).map(drop), Ok(()));
        assert_eq!(split(parent, ten), Ok(vec![ten]));
        assert!(!peers.take_range(ten, || true));
        assert!(!peers.keep_promise(ten, TWO));
        peers.end_promise(&[ten]);
        assert!(peers.take_range(ten, || true));
    }

    #[test]
    fn ids_of_a_proposed_split_are_reserved_until_it_is_answered() {
        let peers = Peers::default();
        let (one, two, ids) = (RegionId::new(1), RegionId::new(2), [REGION]);
        assert_eq!(peers.reserve(one, &ids), Ok(()));
        assert_eq!(peers.reserve(two, &ids), Err(REGION));
        assert_eq!(create(&peers, ONE), Err(Refused::Promised));
        assert_eq!(promise(&peers, ONE), Ok(true), "it is applied");
        peers.release(&ids);
        assert_eq!(peers.reserve(two, &ids), Err(REGION), "it is here");
        let ids = [RegionId::new(8)];
        assert_eq!(peers.reserve(one, &ids), Ok(()));
        peers.release(&ids);
        assert_eq!(peers.reserve(two, &ids), Ok(()));
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
        assert_eq!(promise(&peers, TWO), Ok(true));
        assert_eq!(peers.discard(TWO, &last), Err(Refused::Promised));
    }
}
