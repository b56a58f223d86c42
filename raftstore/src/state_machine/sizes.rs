//! How much a region holds, and where to cut it.

use bytes::Bytes;
use region::MAX_SPLIT_KEYS;
use serde::{Deserialize, Serialize};

/// How much a region holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegionSize {
    /// Of keys and values.
    pub bytes: u64,
    /// How many keys.
    pub keys: u64,
}

/// Finds the keys at which pairs that come in order are cut into parts of about equal size.
pub(crate) struct Cutter {
    part_bytes: u64,
    most_keys: usize,
    /// Of all pairs so far, of those of the part that is being filled, and where that should end.
    total: u64,
    filled: u64,
    end: u64,
    keys: Vec<Bytes>,
}

impl Cutter {
    /// Parts of at most about `max_bytes`, of `bytes` in all. `None` if one part is enough.
    pub(crate) fn new(bytes: u64, max_bytes: u64) -> Option<Self> {
        let parts = bytes.div_ceil(max_bytes.max(1)).min(MAX_SPLIT_KEYS as u64 + 1);
        let part_bytes = bytes.div_ceil(parts.max(1));
        (parts > 1).then(|| Self {
            part_bytes,
            total: 0,
            end: part_bytes,
            most_keys: parts as usize - 1,
            filled: 0,
            keys: Vec::new(),
        })
    }

    /// The next pair. False: no more are needed.
    pub(crate) fn add(&mut self, key: &[u8], bytes: u64) -> bool {
        if self.filled > 0 && self.total + bytes / 2 >= self.end {
            self.keys.push(Bytes::copy_from_slice(key));
            self.filled = 0;
            // One pair may have filled several parts.
            self.end = (self.total / self.part_bytes + 1).max(self.end / self.part_bytes + 1)
                * self.part_bytes;
        }
        self.filled += bytes;
        self.total += bytes;
        self.keys.len() < self.most_keys
    }

    pub(crate) fn finish(self) -> Vec<Bytes> {
        self.keys
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(pairs: &[(&str, u64)], max_bytes: u64) -> Vec<Bytes> {
        let bytes = pairs.iter().map(|(_, bytes)| bytes).sum();
        let Some(mut cutter) = Cutter::new(bytes, max_bytes) else { return Vec::new() };
        let _ = pairs.iter().all(|(key, bytes)| cutter.add(key.as_bytes(), *bytes));
        cutter.finish()
    }

    #[test]
    fn parts_are_about_equal_and_not_more_than_needed() {
        let ten: Vec<_> =
            ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"].map(|k| (k, 10)).into();
        assert!(cut(&ten, 100).is_empty());
        assert_eq!(cut(&ten, 99), ["f"]);
        assert_eq!(cut(&ten, 50), ["f"]);
        assert_eq!(cut(&ten, 34), ["d", "h"]);
        assert_eq!(cut(&[("a", 100)], 10), [""; 0], "one pair cannot be cut");
        assert_eq!(cut(&[("a", 1), ("b", 100)], 60), ["b"]);
        let large_first = [&[("A", 100)], &ten[..]].concat();
        assert_eq!(cut(&large_first, 50), ["a", "f"], "no part is empty, none takes the rest");
        assert!(cut(&[], 0).is_empty());
        assert_eq!(cut(&ten, 0).len(), 9, "a part has one pair at least");
    }
}
