//! The log as raft-rs sees it.
//!
//! Terms come from [`TermRuns`], always. Entries come from the [`EntryCache`] and, where that does
//! not reach back far enough, from the [`LogReader`]. After `advance_append_async` raft-rs takes
//! entries for readable although they may not be durable yet; so an entry that is not persisted
//! must stay in the cache, and the reader is only ever asked for persisted ones.
//!
//! # What stays in the cache
//!
//! | entries | stay |
//! |---|---|
//! | not persisted | always |
//! | not handed out to be applied | up to `max_unapplied_bytes`, then the oldest go |
//! | a leader's that some peer lacks | up to `entry_cache_bytes` |
//! | all others | no |
//!
//! An idle region thus holds none.
//!
//! # When reading fails
//!
//! raft-rs 0.7 ends the process on most errors of a storage, so no error is ever returned from
//! here. What raft-rs takes without harm instead: `LogTemporarilyUnavailable` when it reads for a
//! follower (it then sends nothing), an empty answer when it reads committed entries (it then hands
//! out none) or looks for membership changes. The failure itself is kept aside, and the region
//! looks for it after every call into raft-rs and stops itself before anything can leave.

use std::cell::{Cell, RefCell, RefMut};
use std::sync::Arc;

use raft::eraftpb::{Entry, HardState, Snapshot};
use raft::{GetEntriesContext, RaftState, Storage, StorageError};

use crate::description::RegionDescription;
use crate::entry_cache::{entry_bytes, EntryCache};
use crate::ids::{Index, RegionId, Term};
use crate::log_reader::{LogReadError, LogReader};
use crate::membership;
use crate::records::TruncatedState;
use crate::snapshots::Snapshots;
use crate::term_runs::TermRuns;

/// A region's log.
///
/// Invariant: the entries that are not persisted are in the cache.
pub(crate) struct RegionStorage {
    region_id: RegionId,
    terms: TermRuns,
    cache: RefCell<EntryCache>,
    reader: Arc<dyn LogReader>,
    page_bytes: usize,
    /// For `RawNode::new` only.
    initial: Option<Box<RaftState>>,
    /// What `RawNode::ready` does with committed entries.
    hand_out: Cell<HandOut>,
    failure: RefCell<Option<Box<LogReadError>>>,
    snapshots: RefCell<Snapshots>,
    /// See [`log_bytes`](Self::log_bytes).
    log_bytes: u64,
}

/// How committed entries are handed out to be applied.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum HandOut {
    /// They stay in the cache.
    Copies,
    /// They leave the cache, as far as they begin it. Only around `RawNode::ready`, which asks for none twice; and
    /// only of a peer that has to send them to nobody.
    Originals,
    /// Not at all. Only around `RawNode::ready`.
    Nothing,
}

/// What may leave the cache.
pub(crate) struct Eviction {
    /// Last entry that nobody needs.
    pub(crate) free: Index,
    /// Last entries that may go when there are more bytes than stand beside them.
    pub(crate) loose: [(Index, usize); 2],
}

impl RegionStorage {
    pub(crate) fn new(
        description: &RegionDescription,
        hard_state: HardState,
        terms: TermRuns,
        reader: Arc<dyn LogReader>,
        page_bytes: usize,
    ) -> Self {
        let conf_state = membership::conf_state(description);
        Self {
            region_id: description.id,
            terms,
            cache: RefCell::default(),
            reader,
            page_bytes,
            initial: Some(Box::new(RaftState::new(hard_state, conf_state))),
            hand_out: Cell::new(HandOut::Copies),
            failure: RefCell::new(None),
            snapshots: RefCell::default(),
            log_bytes: 0,
        }
    }

    /// The log gives way to a snapshot and begins after it.
    pub(crate) fn begin_after(&mut self, snapshot: TruncatedState) {
        self.terms = TermRuns::new(snapshot);
        self.cache = RefCell::default();
        self.log_bytes = 0;
    }

    /// Term of an entry of the log, or of the truncated one.
    pub(crate) fn term_at(&self, index: Index) -> Option<Term> {
        self.terms.term(index.get()).map(Term::new)
    }

    /// Snapshots that raft-rs asks for.
    pub(crate) fn snapshots(&self) -> RefMut<'_, Snapshots> {
        self.snapshots.borrow_mut()
    }

    /// raft-rs has read it and asks no more.
    pub(crate) fn drop_initial_state(&mut self) {
        self.initial = None;
    }

    /// Takes the log's new end. It replaces everything from its first index on, and is pinned until
    /// it is evicted as persisted.
    pub(crate) fn append(&mut self, entries: &[Entry]) {
        for entry in entries {
            self.terms.append(entry.index, entry.term);
            self.log_bytes += entry_bytes(entry) as u64;
        }
        self.cache.get_mut().append(entries);
    }

    /// Moves the beginning of the log.
    pub(crate) fn truncate_to(&mut self, index: Index) -> TruncatedState {
        let held = self.terms.last_index() - self.terms.truncated_index();
        let left = self.terms.last_index() - index.get();
        // As if all were of one size: it is to know whether the log is large, not how large.
        self.log_bytes = (self.log_bytes as f64 / held.max(1) as f64 * left as f64) as u64;
        self.terms.truncate_to(index.get());
        self.cache.get_mut().evict(index.get(), [(0, usize::MAX); 2]);
        self.truncated()
    }

    /// Drops cached entries.
    pub(crate) fn evict(&mut self, eviction: &Eviction) {
        let loose = eviction.loose.map(|(last, most)| (last.get(), most));
        self.cache.get_mut().evict(eviction.free.get(), loose);
    }

    /// Gives back memory that is needed only for work.
    pub(crate) fn shrink(&mut self) {
        self.cache.get_mut().shrink();
    }

    /// The terms of the log.
    pub(crate) fn terms(&self) -> &TermRuns {
        &self.terms
    }

    /// Where the log begins.
    pub(crate) fn truncated(&self) -> TruncatedState {
        let index = self.terms.truncated_index();
        let term = self.terms.term(index).expect("the truncated entry's term is always known");
        TruncatedState { index: Index::new(index), term: Term::new(term) }
    }

    /// Size of the log, about: entries of an earlier life are not counted.
    pub(crate) fn log_bytes(&self) -> u64 {
        self.log_bytes
    }

    /// Bytes of entries in memory.
    pub(crate) fn cached_bytes(&self) -> usize {
        self.cache.borrow().bytes()
    }

    /// The first entry in memory.
    pub(crate) fn first_cached(&self) -> Option<Index> {
        self.cache.borrow().first_index().map(Index::new)
    }

    /// Entries in memory.
    pub(crate) fn cached_entries(&self) -> usize {
        self.cache.borrow().len()
    }

    /// How committed entries are handed out from now on.
    pub(crate) fn set_hand_out(&self, hand_out: HandOut) {
        self.hand_out.set(hand_out);
    }

    /// The first read that failed, once.
    pub(crate) fn take_failure(&self) -> Option<LogReadError> {
        self.failure.borrow_mut().take().map(|failure| *failure)
    }

    /// Entries from `low` on: as many as the place where they lie has, and `max_bytes` allow.
    fn read(
        &self,
        low: u64,
        high: u64,
        max_bytes: usize,
        keep: bool,
    ) -> Result<Vec<Entry>, LogReadError> {
        if !keep {
            if let Some(entries) = self.cache.borrow_mut().take(low, high, max_bytes) {
                return Ok(entries);
            }
        }
        let cache = self.cache.borrow();
        if let Some(entries) = cache.read(low, high, max_bytes) {
            return Ok(entries);
        }
        let high = cache.first_index().map_or(high, |first| first.min(high));
        let (low_index, high_index) = (Index::new(low), Index::new(high));
        let entries = self.reader.entries(self.region_id, low_index, high_index, max_bytes)?;
        let expected = (low..high).zip(&entries).all(|(index, entry)| {
            entry.index == index && self.terms.term(index) == Some(entry.term)
        });
        let cause = if entries.is_empty() {
            "the log store returned none".to_string()
        } else if entries.len() as u64 > high - low || !expected {
            "the log store returned other entries than those written".to_string()
        } else {
            return Ok(entries);
        };
        Err(LogReadError { region_id: self.region_id, low: low_index, high: high_index, cause })
    }
}

impl Storage for RegionStorage {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(self.initial.as_deref().cloned().unwrap_or_default())
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        if low <= self.terms.truncated_index() {
            return Err(StorageError::Compacted.into());
        }
        debug_assert!(low < high && high <= self.terms.last_index() + 1, "[{low}, {high})");
        let for_follower = context.can_async();
        let hand_out = self.hand_out.get();
        if hand_out == HandOut::Nothing && !for_follower {
            return Ok(Vec::new());
        }
        let keep = for_follower || hand_out != HandOut::Originals;
        // Without a limit raft-rs looks for membership changes: over an unapplied gap that the
        // region keeps within a page, or over what a vote commits, where looking at a page is
        // allowed (a candidate steps down then for politeness, not for safety).
        let max_bytes = match max_size.into() {
            Some(max) => usize::try_from(max).unwrap_or(usize::MAX),
            None => self.page_bytes,
        };
        self.read(low, high, max_bytes, keep).or_else(|error| {
            self.failure.borrow_mut().get_or_insert(Box::new(error));
            match for_follower {
                true => Err(StorageError::LogTemporarilyUnavailable.into()),
                false => Ok(Vec::new()),
            }
        })
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        match self.terms.term(index) {
            Some(term) => Ok(term),
            None if index < self.terms.truncated_index() => Err(StorageError::Compacted.into()),
            None => Err(StorageError::Unavailable.into()),
        }
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.terms.truncated_index() + 1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.terms.last_index())
    }

    fn snapshot(&self, request_index: u64, to: u64) -> raft::Result<Snapshot> {
        // Entries after it must still be there. If there is none, raft-rs asks again.
        let least = request_index.max(self.terms.truncated_index());
        let snapshot = self.snapshots.borrow_mut().take(to, least);
        snapshot.ok_or(StorageError::SnapshotTemporarilyUnavailable.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::description::tests::description;
    use std::sync::Mutex;

    #[derive(Default)]
    struct Log(Mutex<Vec<Entry>>);

    impl LogReader for Log {
        fn entries(
            &self,
            region_id: RegionId,
            low: Index,
            high: Index,
            _: usize,
        ) -> Result<Vec<Entry>, LogReadError> {
            let log = self.0.lock().unwrap();
            let range = low.get()..high.get();
            if log.is_empty() {
                return Err(LogReadError { region_id, low, high, cause: "disk gone".into() });
            }
            Ok(log.iter().filter(|entry| range.contains(&entry.index)).cloned().collect())
        }

        fn term(&self, _: RegionId, _: Index) -> Result<Option<Term>, LogReadError> {
            Ok(None)
        }
    }

    fn entry(index: u64, term: u64) -> Entry {
        Entry { index, term, data: vec![1; 100].into(), ..Entry::default() }
    }

    fn storage(log: &Arc<Log>) -> RegionStorage {
        let terms = TermRuns::new(TruncatedState::INITIAL);
        let hard_state = HardState::default();
        let mut storage =
            RegionStorage::new(&description(1, 3), hard_state, terms, log.clone(), 1 << 20);
        storage.append(&(6..12).map(|index| entry(index, 6)).collect::<Vec<_>>());
        storage
    }

    fn read(storage: &RegionStorage, low: u64, can_async: bool) -> raft::Result<Vec<u64>> {
        let entries = storage.entries(low, 12, None, GetEntriesContext::empty(can_async))?;
        Ok(entries.iter().map(|entry| entry.index).collect())
    }

    fn evict(storage: &mut RegionStorage, free: u64) {
        let free = Index::new(free);
        storage.evict(&Eviction { free, loose: [(free, 0); 2] });
    }

    #[test]
    fn evicted_entries_come_from_the_reader_and_the_rest_from_the_cache() {
        let log = Arc::new(Log::default());
        let mut storage = storage(&log);
        evict(&mut storage, 8);
        log.0.lock().unwrap().extend((6..9).map(|index| entry(index, 6)));
        assert_eq!(read(&storage, 6, true).unwrap(), [6, 7, 8]);
        assert_eq!(read(&storage, 9, true).unwrap(), [9, 10, 11]);
        assert_eq!(storage.term(7).unwrap(), 6);
        assert!(storage.take_failure().is_none());
    }

    #[test]
    fn a_failed_read_is_kept_aside_and_harmless_to_raft() {
        let mut storage = storage(&Arc::new(Log::default()));
        evict(&mut storage, 8);
        assert_eq!(
            read(&storage, 6, true).unwrap_err(),
            StorageError::LogTemporarilyUnavailable.into()
        );
        assert_eq!(read(&storage, 6, false).unwrap(), []);
        let failure = storage.take_failure().unwrap();
        assert_eq!(failure.to_string(), "region 1: cannot read entries [6, 9): disk gone");
    }

    #[test]
    fn entries_of_another_term_than_written_are_refused() {
        let log = Arc::new(Log::default());
        let mut storage = storage(&log);
        evict(&mut storage, 8);
        log.0.lock().unwrap().extend([entry(6, 6), entry(7, 4), entry(8, 6)]);
        assert_eq!(read(&storage, 6, false).unwrap(), []);
        assert!(storage.take_failure().is_some());
    }

    #[test]
    fn originals_are_handed_out_once_and_not_to_followers() {
        let log = Arc::new(Log::default());
        let storage = storage(&log);
        storage.set_hand_out(HandOut::Originals);
        assert_eq!(read(&storage, 6, true).unwrap(), [6, 7, 8, 9, 10, 11]);
        // Not where others lie before them.
        assert_eq!(read(&storage, 8, false).unwrap(), [8, 9, 10, 11]);
        assert_eq!(read(&storage, 6, false).unwrap(), [6, 7, 8, 9, 10, 11]);
        assert_eq!((storage.cached_bytes(), storage.first_cached()), (0, None));
        log.0.lock().unwrap().extend((6..12).map(|index| entry(index, 6)));
        storage.set_hand_out(HandOut::Copies);
        assert_eq!(read(&storage, 6, false).unwrap(), [6, 7, 8, 9, 10, 11]);
    }

    #[test]
    fn truncated_entries_are_compacted_and_their_last_term_is_known() {
        let mut storage = storage(&Arc::new(Log::default()));
        let truncated = storage.truncate_to(Index::new(7));
        assert_eq!(truncated, TruncatedState { index: Index::new(7), term: Term::new(6) });
        assert_eq!(read(&storage, 7, true).unwrap_err(), StorageError::Compacted.into());
        assert_eq!(storage.term(7).unwrap(), 6);
        assert_eq!(storage.term(6).unwrap_err(), StorageError::Compacted.into());
        assert_eq!(storage.first_index().unwrap(), 8);
        assert_eq!(read(&storage, 8, true).unwrap(), [8, 9, 10, 11]);
    }
}
