//! Which region holds a key.

use bytes::Bytes;
use parking_lot::RwLock;
use region::{RegionDescription, RegionId};
use std::collections::BTreeMap;
use std::ops::Bound;

/// The ranges of the live regions of a store, behind one lock.
///
/// Invariant: they never overlap.
#[derive(Debug, Default)]
pub(crate) struct RangeMap {
    /// By start key; the end key (empty: unbounded) and the region.
    ranges: RwLock<BTreeMap<Bytes, (Bytes, RegionId)>>,
}

impl RangeMap {
    /// Adds a region's range. If it overlaps that of another region, that one is returned.
    pub(crate) fn insert(&self, description: &RegionDescription) -> Result<(), RegionId> {
        let (start, end) = (&description.start_key, &description.end_key);
        let mut ranges = self.ranges.write();
        // Whoever begins before `end` and last: it is the only one that can reach past `start`.
        let below_end = match end.is_empty() {
            true => Bound::Unbounded,
            false => Bound::Excluded(end.clone()),
        };
        if let Some((other_start, (other_end, other))) =
            ranges.range((Bound::Unbounded, below_end)).next_back()
        {
            if *other == description.id && other_start == start && other_end == end {
                return Ok(());
            }
            if other_end.is_empty() || other_end > start {
                return Err(*other);
            }
        }
        ranges.insert(start.clone(), (end.clone(), description.id));
        Ok(())
    }

    /// Takes back an [`insert`](Self::insert).
    pub(crate) fn remove(&self, description: &RegionDescription) {
        let mut ranges = self.ranges.write();
        if ranges.get(&description.start_key).is_some_and(|(_, region)| *region == description.id) {
            ranges.remove(&description.start_key);
        }
    }

    /// The region that holds `key`.
    pub(crate) fn find(&self, key: &[u8]) -> Option<RegionId> {
        let ranges = self.ranges.read();
        let (_, (end, region)) =
            ranges.range::<[u8], _>((Bound::Unbounded, Bound::Included(key))).next_back()?;
        (end.is_empty() || &end[..] > key).then_some(*region)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use region::{Peer, PeerId, PeerRole, RegionEpoch, StoreId};

    fn region(id: u64, start: &'static str, end: &'static str) -> RegionDescription {
        RegionDescription {
            id: RegionId::new(id),
            start_key: Bytes::from(start),
            end_key: Bytes::from(end),
            epoch: RegionEpoch { conf_ver: 1, version: 1 },
            peers: vec![Peer {
                id: PeerId::new(id),
                store: StoreId::new(1),
                role: PeerRole::Voter,
            }],
            joint: false,
        }
    }

    #[test]
    fn keys_are_found_in_half_open_ranges() {
        let map = RangeMap::default();
        assert_eq!(map.insert(&region(1, "", "b")), Ok(()));
        assert_eq!(map.insert(&region(2, "b", "d")), Ok(()));
        assert_eq!(map.insert(&region(3, "e", "")), Ok(()));
        for (key, found) in [
            ("", Some(1)),
            ("az", Some(1)),
            ("b", Some(2)),
            ("d", None),
            ("e", Some(3)),
            ("zz", Some(3)),
        ] {
            assert_eq!(map.find(key.as_bytes()), found.map(RegionId::new), "{key}");
        }
    }

    #[test]
    fn overlaps_are_refused_and_name_the_other() {
        let map = RangeMap::default();
        assert_eq!(map.insert(&region(1, "b", "d")), Ok(()));
        for (start, end) in [("", ""), ("a", "c"), ("c", "e"), ("c", "cc"), ("", "bb"), ("b", "d")]
        {
            assert_eq!(map.insert(&region(2, start, end)), Err(RegionId::new(1)), "{start}..{end}");
        }
        assert_eq!(map.insert(&region(2, "d", "")), Ok(()));
        assert_eq!(map.insert(&region(3, "", "b")), Ok(()));
        // The same region again, as when creation is repeated; not with another range.
        assert_eq!(map.insert(&region(3, "", "b")), Ok(()));
        assert_eq!(map.insert(&region(3, "", "a")), Err(RegionId::new(3)));
        map.remove(&region(3, "", "b"));
        assert_eq!(map.find(b"a"), None);
        assert_eq!(map.insert(&region(4, "", "a")), Ok(()));
    }
}
