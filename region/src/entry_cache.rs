//! Recent entries of the log, in memory.
//!
//! Entries live here from the moment they are appended. How long, is decided by whoever evicts; the
//! cache only knows that it is one contiguous piece of the log's end, and its size.

use std::collections::VecDeque;

use raft::eraftpb::Entry;

/// Bytes that an entry takes in memory beside its payload and header.
const ENTRY_BYTES: usize = size_of::<Entry>();

/// Room for so many is kept, so that a region that works need not ask for it with each of its writes.
const KEPT_ENTRIES: usize = 4;

/// Size of an entry in memory.
pub(crate) fn entry_bytes(entry: &Entry) -> usize {
    // The header is shared among all entries of an epoch.
    entry.data.len() + ENTRY_BYTES
}

/// The end of a log.
///
/// Invariant: contiguous from `first` on; empty, or ending with the log's last entry; `bytes` is the sum of
/// [`entry_bytes`]. An empty cache owns little memory, and after [`shrink`](EntryCache::shrink) none.
#[derive(Default)]
pub(crate) struct EntryCache {
    entries: VecDeque<Entry>,
    /// Index of the first entry, if there is one. Known without a look at the entries, which are seldom in the
    /// processor's cache.
    first: u64,
    bytes: usize,
}

impl EntryCache {
    /// Bytes held.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Entries held.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Index of the first entry held.
    pub(crate) fn first_index(&self) -> Option<u64> {
        (!self.entries.is_empty()).then_some(self.first)
    }

    /// Adds the log's new end, which replaces every entry from the first one's index on.
    pub(crate) fn append(&mut self, entries: &[Entry]) {
        let Some(begin) = entries.first().map(|entry| entry.index) else { return };
        while !self.entries.is_empty() && self.first + self.entries.len() as u64 > begin {
            let last = self.entries.pop_back();
            self.bytes -= last.as_ref().map_or(0, entry_bytes);
        }
        if self.entries.is_empty() {
            self.first = begin;
        }
        debug_assert_eq!(self.first + self.entries.len() as u64, begin);
        self.entries.reserve(entries.len());
        self.bytes += entries.iter().map(entry_bytes).sum::<usize>();
        self.entries.extend(entries.iter().cloned());
    }

    /// Clones entries from `low` on, up to `high` (exclusive) and `max_bytes`, one at least. `None`
    /// if `low` is not held.
    pub(crate) fn read(&self, low: u64, high: u64, max_bytes: usize) -> Option<Vec<Entry>> {
        let first = self.first_index().filter(|first| *first <= low)?;
        let from = (low - first) as usize;
        let to = (high.saturating_sub(first) as usize).min(self.entries.len());
        if from >= to {
            return None;
        }
        let count = self.fitting(from, to, max_bytes);
        Some(self.entries.range(from..from + count).cloned().collect())
    }

    /// As [`read`](Self::read), but does not keep what it gives. `None` also if `low` is not the first one held.
    pub(crate) fn take(&mut self, low: u64, high: u64, max_bytes: usize) -> Option<Vec<Entry>> {
        self.first_index().filter(|first| *first == low)?;
        let to = (high.saturating_sub(low) as usize).min(self.entries.len());
        if to == 0 {
            return None;
        }
        let count = self.fitting(0, to, max_bytes);
        let taken: Vec<_> = self.entries.drain(..count).collect();
        self.bytes -= taken.iter().map(entry_bytes).sum::<usize>();
        self.first += count as u64;
        self.give_back_room();
        Some(taken)
    }

    /// How many of the entries at `from..to` are given out at once.
    fn fitting(&self, from: usize, to: usize, max_bytes: usize) -> usize {
        let mut bytes = 0;
        let fits = |entry: &&Entry| {
            let fits = bytes == 0 || bytes + entry_bytes(entry) <= max_bytes;
            bytes += entry_bytes(entry);
            fits
        };
        self.entries.range(from..to).take_while(fits).count()
    }

    /// Drops entries from the front: all up to `free`, and of the later ones those up to an index of `loose`
    /// as long as more bytes are held than stand beside it.
    pub(crate) fn evict(&mut self, free: u64, loose: [(u64, usize); 2]) {
        while !self.entries.is_empty() {
            let too_many = |(last, most): (u64, usize)| self.first <= last && self.bytes > most;
            if self.first > free && !loose.into_iter().any(too_many) {
                break;
            }
            let front = self.entries.pop_front();
            self.bytes -= front.as_ref().map_or(0, entry_bytes);
            self.first += 1;
        }
        debug_assert!(!self.entries.is_empty() || self.bytes == 0);
        self.give_back_room();
    }

    fn give_back_room(&mut self) {
        let room = self.entries.capacity();
        if room > KEPT_ENTRIES && self.entries.len() * 8 < room {
            self.entries.shrink_to((self.entries.len() * 2).max(KEPT_ENTRIES));
        }
    }

    /// Gives back what an empty cache has room for.
    pub(crate) fn shrink(&mut self) {
        if self.entries.is_empty() {
            self.entries = VecDeque::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(index: u64, term: u64, bytes: usize) -> Entry {
        Entry { index, term, data: vec![0; bytes].into(), ..Entry::default() }
    }

    fn indexes(entries: Option<Vec<Entry>>) -> Vec<u64> {
        entries.unwrap_or_default().iter().map(|entry| entry.index).collect()
    }

    #[test]
    fn appending_replaces_the_tail() {
        let mut cache = EntryCache::default();
        cache.append(&[entry(6, 6, 10), entry(7, 6, 10), entry(8, 6, 10)]);
        cache.append(&[entry(7, 7, 5)]);
        assert_eq!(cache.read(6, 99, usize::MAX).unwrap().last().unwrap().term, 7);
        assert_eq!(cache.bytes(), 15 + 2 * ENTRY_BYTES);
        cache.append(&[entry(6, 8, 0)]);
        assert_eq!(indexes(cache.read(6, 99, usize::MAX)), [6]);
    }

    #[test]
    fn reading_is_bounded_but_gives_one_entry_at_least() {
        let mut cache = EntryCache::default();
        cache.append(&[entry(6, 6, 500), entry(7, 6, 500), entry(8, 6, 500)]);
        assert_eq!(indexes(cache.read(6, 9, 1)), [6]);
        assert_eq!(indexes(cache.read(6, 9, 2 * (500 + ENTRY_BYTES))), [6, 7]);
        assert_eq!(indexes(cache.read(7, 8, usize::MAX)), [7]);
        assert!(cache.read(5, 9, usize::MAX).is_none());
        assert!(cache.read(9, 10, usize::MAX).is_none());
    }

    #[test]
    fn what_is_taken_is_no_longer_held() {
        let mut cache = EntryCache::default();
        cache.append(&(6..16).map(|index| entry(index, 6, 100)).collect::<Vec<_>>());
        let entry_size = cache.bytes() / 10;
        assert!(cache.take(7, 16, usize::MAX).is_none());
        assert_eq!(indexes(cache.take(6, 16, 3 * entry_size)), [6, 7, 8]);
        assert_eq!((cache.first_index(), cache.bytes()), (Some(9), 7 * entry_size));
        assert_eq!(indexes(cache.take(9, 10, 1)), [9]);
        assert!(cache.take(10, 10, 1).is_none());
        assert_eq!(indexes(cache.read(10, 12, usize::MAX)), [10, 11]);
        assert_eq!(indexes(cache.take(10, 99, usize::MAX)), [10, 11, 12, 13, 14, 15]);
        assert_eq!((cache.first_index(), cache.bytes()), (None, 0));
        assert!(cache.entries.capacity() <= KEPT_ENTRIES);
    }

    #[test]
    fn eviction_stops_at_what_is_pinned() {
        let mut cache = EntryCache::default();
        cache.append(&(6..16).map(|index| entry(index, 6, 100)).collect::<Vec<_>>());
        let entry_size = cache.bytes() / 10;
        cache.evict(7, [(11, usize::MAX); 2]);
        assert_eq!(cache.first_index(), Some(8));
        cache.evict(7, [(9, 0), (13, 5 * entry_size)]);
        assert_eq!(cache.first_index(), Some(11));
        cache.evict(7, [(11, 0); 2]);
        assert_eq!(cache.first_index(), Some(12));
        cache.evict(15, [(15, 0); 2]);
        assert_eq!((cache.len(), cache.bytes()), (0, 0));
        assert!(cache.entries.capacity() <= KEPT_ENTRIES);
        cache.shrink();
        assert_eq!(cache.entries.capacity(), 0);
    }
}
