//! Which regions the store wants split by itself: those that have become large, and those that are written
//! to more than one of them should be. Off by default.

use crate::state_machine::RegionSize;

/// Regions with fewer keys are not split for their load: it would not come to an end.
const MIN_KEYS_FOR_LOAD: u64 = 128;

/// From where on regions are split.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct SplitPolicy {
    /// Bytes of keys and values; 0 is never.
    pub max_bytes: u64,
    /// Writes a second, on average since the heartbeat before; 0 is never.
    pub max_writes: u64,
}

impl SplitPolicy {
    /// Whether regions are ever split.
    pub fn is_off(&self) -> bool {
        *self == Self::default()
    }

    /// How large parts may become at most, if a region of this size and load should be split.
    ///
    /// For its size: parts of two thirds of the limit, so that they do not meet it again at once. For its
    /// load: halves.
    pub fn part_bytes(&self, size: RegionSize, writes_per_second: f64) -> Option<u64> {
        if self.max_bytes > 0 && size.bytes > self.max_bytes {
            return Some((self.max_bytes - self.max_bytes / 3).max(1));
        }
        let loaded = self.max_writes > 0 && writes_per_second > self.max_writes as f64;
        (loaded && size.keys >= MIN_KEYS_FOR_LOAD).then_some(size.bytes / 2 + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_are_split_when_large_or_loaded_and_not_otherwise() {
        let size = |bytes, keys| RegionSize { bytes, keys };
        let policy = SplitPolicy { max_bytes: 900, max_writes: 50 };
        assert_eq!(policy.part_bytes(size(900, 9), 0.0), None);
        assert_eq!(policy.part_bytes(size(901, 9), 0.0), Some(600));
        assert_eq!(policy.part_bytes(size(800, 200), 50.0), None);
        assert_eq!(policy.part_bytes(size(800, 200), 50.5), Some(401));
        assert_eq!(policy.part_bytes(size(800, 20), 1e9), None, "too few keys");
        let off = SplitPolicy::default();
        assert!(off.is_off() && !policy.is_off());
        assert_eq!(off.part_bytes(size(u64::MAX, u64::MAX), f64::MAX), None);
    }
}
