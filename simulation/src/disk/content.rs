//! What one file holds: for the running process, and after a crash.

use crate::Random;
use std::collections::BTreeMap;
use std::ops::Range;

/// What a disk writes whole or not at all.
const SECTOR: usize = 512;

/// The bytes of a file.
///
/// Invariant: outside of `dirty` and `orphaned`, `current` and `synced` are equal as far as both reach.
#[derive(Debug, Default)]
pub(super) struct Content {
    /// What the process reads.
    current: Vec<u8>,
    /// What a crash cannot take.
    synced: Vec<u8>,
    /// What the next sync covers; start and end, apart from each other.
    dirty: BTreeMap<usize, usize>,
    /// What a failed sync covered. No later sync does: the operating system takes it for clean.
    orphaned: BTreeMap<usize, usize>,
}

impl Content {
    pub(super) fn len(&self) -> usize {
        self.current.len()
    }

    pub(super) fn synced_len(&self) -> usize {
        self.synced.len()
    }

    /// Copies what is there from `at` on.
    pub(super) fn read(&self, at: usize, bytes: &mut [u8]) -> usize {
        let rest = self.current.get(at..).unwrap_or_default();
        let length = rest.len().min(bytes.len());
        bytes[..length].copy_from_slice(&rest[..length]);
        length
    }

    pub(super) fn write(&mut self, at: usize, bytes: &[u8]) {
        let end = at + bytes.len();
        self.grow(end);
        self.current[at..end].copy_from_slice(bytes);
        add(&mut self.dirty, at..end);
        remove(&mut self.orphaned, at..end);
    }

    /// Makes it at least this long, with zeros.
    pub(super) fn grow(&mut self, end: usize) {
        let length = self.len();
        if end > length {
            self.current.resize(end, 0);
            add(&mut self.dirty, length..end);
        }
    }

    pub(super) fn truncate(&mut self, end: usize) {
        let length = self.len();
        self.grow(end);
        if end < length {
            self.current.truncate(end);
            // If it grows again, there are zeros, whatever was synced.
            add(&mut self.dirty, end..length);
            remove(&mut self.orphaned, end..length);
        }
    }

    pub(super) fn sync(&mut self) {
        self.synced.resize(self.current.len(), 0);
        for (start, end) in std::mem::take(&mut self.dirty) {
            let range = start.min(self.len())..end.min(self.len());
            self.synced[range.clone()].copy_from_slice(&self.current[range]);
        }
    }

    /// What was to be synced may be on disk in part, and is not synced by any later sync.
    pub(super) fn fail_sync(&mut self) {
        for (start, end) in std::mem::take(&mut self.dirty) {
            add(&mut self.orphaned, start..end);
        }
    }

    /// What a crash leaves.
    pub(super) fn crash(&mut self, random: &mut Random) {
        let (old, new) = (self.synced.len(), self.current.len());
        let mut unsynced = std::mem::take(&mut self.dirty);
        for (start, end) in std::mem::take(&mut self.orphaned) {
            add(&mut unsynced, start..end);
        }
        if unsynced.is_empty() && old == new {
            return;
        }
        let mut left = std::mem::take(&mut self.synced);
        match random.below(4) {
            0 => {}
            1 => left.clone_from(&self.current),
            2 => {
                // Written in order, up to somewhere.
                let total: usize = unsynced.iter().map(|(start, end)| end - start).sum();
                let mut rest = random.index(total + 1);
                for (start, end) in unsynced {
                    let end = end.min(start + rest);
                    rest -= end - start;
                    self.keep(&mut left, start..end);
                }
                if new < old && random.chance(500) {
                    left.truncate(new);
                }
            }
            _ => {
                if random.chance(500) {
                    left.resize(new, 0);
                }
                for (start, end) in unsynced {
                    for sector in start / SECTOR..end.div_ceil(SECTOR) {
                        if random.chance(500) {
                            let range = start.max(sector * SECTOR)..end.min((sector + 1) * SECTOR);
                            self.keep(&mut left, range);
                        }
                    }
                }
            }
        }
        self.current.clone_from(&left);
        self.synced = left;
    }

    /// Carries some of what was not synced over.
    fn keep(&self, left: &mut Vec<u8>, range: Range<usize>) {
        let range = range.start.min(self.len())..range.end.min(self.len());
        if !range.is_empty() {
            left.resize(left.len().max(range.end), 0);
            left[range.clone()].copy_from_slice(&self.current[range]);
        }
    }

    /// Exchanges a byte on disk, if it is the one that is expected, and what the process reads of it.
    pub(super) fn exchange(&mut self, at: usize, expected: Option<u8>, byte: u8) -> Option<u8> {
        let was = *self.synced.get(at)?;
        if expected.is_some_and(|expected| expected != was) {
            return None;
        }
        self.synced[at] = byte;
        if let Some(current) = self.current.get_mut(at).filter(|current| **current == was) {
            *current = byte;
        }
        Some(was)
    }

    pub(super) fn synced_byte(&self, at: usize) -> u8 {
        self.synced[at]
    }
}

/// Adds a range to ranges that are apart from each other.
fn add(ranges: &mut BTreeMap<usize, usize>, mut range: Range<usize>) {
    if range.is_empty() {
        return;
    }
    while let Some((&start, &end)) = ranges.range(..=range.end).next_back() {
        if end < range.start {
            break;
        }
        ranges.remove(&start);
        range = start.min(range.start)..end.max(range.end);
    }
    ranges.insert(range.start, range.end);
}

/// Takes a range out of ranges that are apart from each other.
fn remove(ranges: &mut BTreeMap<usize, usize>, range: Range<usize>) {
    if range.is_empty() {
        return;
    }
    while let Some((&start, &end)) = ranges.range(..range.end).next_back() {
        if end <= range.start {
            break;
        }
        ranges.remove(&start);
        if end > range.end {
            ranges.insert(range.end, end);
        }
        if start < range.start {
            ranges.insert(start, range.start);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_added_and_removed_as_single_bytes_are() {
        let mut random = Random::new(3);
        for _ in 0..200 {
            let mut ranges = BTreeMap::new();
            let mut bytes = [false; 64];
            for _ in 0..20 {
                let start = random.index(64);
                let range = start..start + random.index(65 - start);
                let adds = random.chance(600);
                bytes[range.clone()].fill(adds);
                if adds {
                    add(&mut ranges, range);
                } else {
                    remove(&mut ranges, range);
                }
                let mut found = [false; 64];
                let mut previous = None;
                for (start, end) in &ranges {
                    assert!(start < end && previous.is_none_or(|previous| previous < *start));
                    found[*start..*end].fill(true);
                    previous = Some(*end);
                }
                assert_eq!(found, bytes);
            }
        }
    }

    #[test]
    fn a_crash_leaves_the_synced_and_of_the_rest_only_what_was_written() {
        let mut random = Random::new(4);
        let mut partly = 0;
        for _ in 0..2000 {
            let mut content = Content::default();
            content.write(0, &[1; 3000]);
            content.sync();
            content.write(2000, &[2; 3000]);
            content.grow(6000);
            content.crash(&mut random);
            assert_eq!(content.current, content.synced);
            assert!(content.dirty.is_empty() && (3000..=6000).contains(&content.len()));
            assert!(
                content.current[..2000].iter().all(|byte| *byte == 1),
                "synced, not overwritten"
            );
            assert!(content.current[2000..3000].iter().all(|byte| [1, 2].contains(byte)));
            assert!(content.current[3000..].iter().all(|byte| [0, 2].contains(byte)));
            let kept = content.current.iter().filter(|byte| **byte == 2).count();
            partly += u32::from(kept > 0 && kept < 3000);
        }
        assert!((600..1400).contains(&partly), "{partly} of 2,000 crashes tore what was written");
    }

    #[test]
    fn a_cut_that_was_not_synced_may_be_undone_by_a_crash() {
        let mut random = Random::new(5);
        let mut lengths = BTreeMap::new();
        for _ in 0..200 {
            let mut content = Content::default();
            content.write(0, &[1; 1000]);
            content.sync();
            content.truncate(10);
            content.crash(&mut random);
            *lengths.entry(content.len()).or_insert(0) += 1;
        }
        assert_eq!(lengths.into_keys().collect::<Vec<_>>(), [10, 1000]);
        let mut content = Content::default();
        content.write(0, &[1; 1000]);
        content.sync();
        content.truncate(10);
        content.grow(100);
        content.sync();
        assert_eq!(content.current, content.synced);
    }

    #[test]
    fn what_a_failed_sync_covered_is_never_synced() {
        let mut random = Random::new(6);
        let lost = (0..100).any(|_| {
            let mut content = Content::default();
            content.write(0, &[1; 10]);
            content.sync();
            content.write(0, &[2; 10]);
            content.fail_sync();
            content.sync();
            content.crash(&mut random);
            content.current == [1; 10]
        });
        assert!(lost, "a later sync does not help");
    }
}
