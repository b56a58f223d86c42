//! How much regions hold. A region is counted when somebody first asks, and what is applied from then on is
//! added: nobody pays for it who never asks.
//!
//! Caveat: what is applied just when the counting begins may count twice; and the count ends, to begin
//! anew, when the range of the region changes. Good enough to split by.

use super::contents::count;
use super::tables::Tables;
use crate::state_machine::{RegionSize, StateMachineError};
use parking_lot::Mutex;
use region::RegionId;
use rustc_hash::FxHashMap;

/// What a step of a region changes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Growth {
    pub(super) bytes: i64,
    pub(super) keys: i64,
    /// Of the region's epoch, by which its range is known.
    pub(super) version: u64,
}

struct Count {
    /// Since the counting began, and with what was there then once `known`.
    sum: Growth,
    known: bool,
}

#[derive(Default)]
pub(super) struct Sizes {
    of_regions: Mutex<FxHashMap<RegionId, Count>>,
}

impl Sizes {
    /// A region has grown, or shrunk.
    pub(super) fn add(&self, growths: impl Iterator<Item = (RegionId, Growth)>) {
        let mut of_regions = self.of_regions.lock();
        if of_regions.is_empty() {
            return;
        }
        for (region, growth) in growths {
            let Some(count) = of_regions.get_mut(&region) else { continue };
            match count.sum.version == growth.version {
                true => {
                    count.sum.bytes += growth.bytes;
                    count.sum.keys += growth.keys;
                }
                false => drop(of_regions.remove(&region)),
            }
        }
    }

    /// Other contents have taken the place of a region's.
    pub(super) fn forget(&self, region: RegionId) {
        self.of_regions.lock().remove(&region);
    }

    /// What a region holds; `None` while it is being counted.
    pub(super) fn size(
        &self,
        tables: &Tables,
        region: RegionId,
    ) -> Result<Option<RegionSize>, StateMachineError> {
        if let Some(count) = self.of_regions.lock().get(&region) {
            return Ok(count.known.then(|| size_of(count.sum)));
        }
        let Some(applied) = tables.applied(region)? else { return Ok(None) };
        let version = applied.description.epoch.version;
        let begun = Count { sum: Growth { version, ..Growth::default() }, known: false };
        self.of_regions.lock().insert(region, begun);
        let counted = count(tables, region);
        let mut of_regions = self.of_regions.lock();
        let Ok(there) = counted else {
            of_regions.remove(&region);
            return counted.map(|_| None);
        };
        let known = of_regions.get_mut(&region).filter(|count| count.sum.version == version);
        Ok(known.map(|count| {
            count.known = true;
            count.sum.bytes += there.bytes as i64;
            count.sum.keys += there.keys as i64;
            size_of(count.sum)
        }))
    }
}

fn size_of(sum: Growth) -> RegionSize {
    RegionSize { bytes: sum.bytes.max(0) as u64, keys: sum.keys.max(0) as u64 }
}
