//! Which region holds a key.

use parking_lot::RwLock;
use region::{RegionDescription, RegionId};
use rustc_hash::FxHashMap;
use std::borrow::Borrow;
use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::ops::Bound;
use std::sync::Arc;

/// The ranges of the live regions of a store, behind one lock.
///
/// Invariant: they never overlap.
#[derive(Debug, Default)]
pub(crate) struct RangeMap {
    ranges: RwLock<Ranges>,
}

/// Invariant: the two hold the same.
#[derive(Debug, Default)]
struct Ranges {
    by_start: BTreeSet<ByStart>,
    by_region: FxHashMap<RegionId, ByStart>,
    /// Regions that are here, and of which nobody can tell the range.
    unknown: BTreeSet<RegionId>,
}

/// A region's range, in the order of start keys. Shared with the region, as long as nothing else about it changes.
#[derive(Clone, Debug)]
struct ByStart(Arc<RegionDescription>);

impl Borrow<[u8]> for ByStart {
    fn borrow(&self) -> &[u8] {
        &self.0.start_key
    }
}

impl Ord for ByStart {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.start_key.cmp(&other.0.start_key)
    }
}

impl PartialOrd for ByStart {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for ByStart {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for ByStart {}

impl RangeMap {
    /// Adds a region's range. If it overlaps that of another region, that one is returned. The region may
    /// have this range already, but no other.
    pub(crate) fn insert(&self, description: &Arc<RegionDescription>) -> Result<(), RegionId> {
        let mut ranges = self.ranges.write();
        if let Some(other) = ranges.overlapping(description) {
            return Err(other);
        }
        match ranges.by_region.contains_key(&description.id) && !ranges.holds(description) {
            true => Err(description.id),
            false => {
                ranges.set(description);
                Ok(())
            }
        }
    }

    /// A region is here, and its range cannot be read: from now on no other is brought here, since it might
    /// overlap. Those that have their range keep it, and may be split.
    pub(crate) fn add_unknown(&self, region: RegionId) {
        self.ranges.write().unknown.insert(region);
    }

    /// Takes back an [`insert`](Self::insert).
    pub(crate) fn remove(&self, description: &RegionDescription) {
        let mut ranges = self.ranges.write();
        if ranges.holds(description) {
            ranges.remove(description.id);
        }
    }

    /// A region is gone.
    pub(crate) fn remove_region(&self, region: RegionId) {
        let mut ranges = self.ranges.write();
        ranges.remove(region);
        ranges.unknown.remove(&region);
    }

    /// Whether a region has a range here.
    pub(crate) fn has(&self, region: RegionId) -> bool {
        self.ranges.read().by_region.contains_key(&region)
    }

    /// Whether a region could have this range: no other one overlaps it.
    pub(crate) fn is_free_for(&self, description: &RegionDescription) -> bool {
        self.overlapping(description).is_none()
    }

    /// Another region that overlaps this range, or may do so.
    pub(crate) fn overlapping(&self, description: &RegionDescription) -> Option<RegionId> {
        self.ranges.read().in_the_way_of(description)
    }

    /// Gives a region another range than it has, if it has any. If another region overlaps it, nothing
    /// changes. Says whether it was done.
    pub(crate) fn replace(&self, description: &Arc<RegionDescription>) -> bool {
        let mut ranges = self.ranges.write();
        let free = ranges.in_the_way_of(description).is_none();
        if free {
            ranges.set(description);
        }
        free
    }

    /// Divides the range of a region, in one step. A child whose range is taken gets none.
    pub(crate) fn split(
        &self,
        parent: &Arc<RegionDescription>,
        children: &[Arc<RegionDescription>],
    ) {
        let mut ranges = self.ranges.write();
        ranges.set(parent);
        for child in children {
            if ranges.overlapping(child).is_none() {
                ranges.set(child);
            }
        }
    }

    /// The region that holds `key`.
    pub(crate) fn find(&self, key: &[u8]) -> Option<RegionId> {
        let ranges = self.ranges.read();
        let up_to_key = (Bound::Unbounded, Bound::Included(key));
        let ByStart(found) = ranges.by_start.range::<[u8], _>(up_to_key).next_back()?;
        reaches_beyond(found, key).then_some(found.id)
    }
}

impl Ranges {
    /// Another region that overlaps a range. Of those that begin before its end, the last one reaches
    /// furthest; if that is the region itself, the one before it does.
    fn overlapping(&self, description: &RegionDescription) -> Option<RegionId> {
        let end = match description.end_key.is_empty() {
            true => Bound::Unbounded,
            false => Bound::Excluded(&description.end_key[..]),
        };
        let before_end = self.by_start.range::<[u8], _>((Bound::Unbounded, end)).rev();
        let mut others = before_end.filter(|ByStart(other)| other.id != description.id);
        let ByStart(other) = others.next()?;
        reaches_beyond(other, &description.start_key).then_some(other.id)
    }

    /// The same, or one that may overlap it, for all that is known.
    fn in_the_way_of(&self, description: &RegionDescription) -> Option<RegionId> {
        let is_new = !self.by_region.contains_key(&description.id);
        self.overlapping(description).or(self.unknown.first().copied().filter(|_| is_new))
    }

    fn holds(&self, description: &RegionDescription) -> bool {
        let known = self.by_region.get(&description.id);
        known.is_some_and(|ByStart(known)| {
            (&known.start_key, &known.end_key) == (&description.start_key, &description.end_key)
        })
    }

    fn set(&mut self, description: &Arc<RegionDescription>) {
        self.remove(description.id);
        let range = ByStart(description.clone());
        self.by_region.insert(description.id, range.clone());
        self.by_start.insert(range);
    }

    fn remove(&mut self, region: RegionId) {
        if let Some(range) = self.by_region.remove(&region) {
            self.by_start.remove(&range);
        }
    }
}

/// Whether the region's range, which begins at `key` or before, holds `key`.
fn reaches_beyond(region: &RegionDescription, key: &[u8]) -> bool {
    region.end_key.is_empty() || region.end_key[..] > *key
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use region::{Peer, PeerId, PeerRole, StoreId};

    fn region(id: u64, start: &'static str, end: &'static str) -> Arc<RegionDescription> {
        Arc::new(RegionDescription::new(
            RegionId::new(id),
            Bytes::from(start),
            Bytes::from(end),
            [Peer { id: PeerId::new(id), store: StoreId::new(1), role: PeerRole::Voter }],
        ))
    }

    #[test]
    fn a_split_tiles_and_a_region_may_change_its_own_range() {
        let map = RangeMap::default();
        assert_eq!(map.insert(&region(1, "a", "z")), Ok(()));
        assert!(!map.is_free_for(&region(2, "m", "p")));
        assert_eq!(map.overlapping(&region(2, "m", "p")), Some(RegionId::new(1)));
        map.split(&region(1, "m", "z"), &[region(2, "a", "f"), region(3, "f", "m")]);
        let found = ["a", "f", "l", "m", "z"].map(|key| map.find(key.as_bytes()));
        let expected = [Some(2), Some(3), Some(3), Some(1), None];
        assert_eq!(found, expected.map(|id| id.map(RegionId::new)));
        assert!(!map.replace(&region(1, "l", "z")), "region 3 reaches to m");
        assert!(map.replace(&region(1, "n", "zz")));
        assert_eq!(map.find(b"m"), None);
        map.remove_region(RegionId::new(2));
        assert_eq!(map.find(b"a"), None);
    }

    #[test]
    fn beside_a_region_of_unknown_range_nothing_new_comes() {
        let map = RangeMap::default();
        assert_eq!(map.insert(&region(1, "a", "m")), Ok(()));
        map.add_unknown(RegionId::new(9));
        assert_eq!(map.overlapping(&region(2, "m", "p")), Some(RegionId::new(9)));
        assert!(!map.is_free_for(&region(2, "m", "p")) && !map.replace(&region(2, "m", "p")));
        map.split(&region(1, "a", "f"), &[region(2, "f", "m")]);
        assert_eq!(map.find(b"g"), Some(RegionId::new(2)));
        assert!(map.replace(&region(2, "f", "k")));
        map.remove_region(RegionId::new(9));
        assert!(map.is_free_for(&region(3, "m", "p")), "what is discarded is in nobody's way");
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
