//! Logs on disk, in raft-engine.
//!
//! raft-engine keeps an index of every raft group it knows in memory, some 2.6 KB even for a group
//! with one key. So what a region needs besides its entries (hard state, where the log begins, record)
//! is kept as keys of one of 4,096 *shard groups*, at some 200 bytes a region, and the region's own
//! group holds entries only. One write covers both, atomically. Batches of many regions are written in
//! parts, unless they hold records or cut logs, and synced with the last.
//!
//! Caveat: keys are never deleted, only overwritten. A deleted key of raft-engine 0.4.2 can come back
//! with its old value after a purge and a restart.

use super::reads::OwnReads;
use super::watched_files::{Watch, WatchedFiles};
use super::{DamagedRegion, LogBatch, LogStore, LogStoreError, RegionWrite, Stored, StoredRegion};
use crate::config::exactly;
use bytesize::ByteSize;
use parking_lot::RwLock;
use protobuf::Message;
use raft::eraftpb::{Entry, HardState};
use raft_engine::env::{DefaultFileSystem, FileSystem};
use raft_engine::{Command, Engine, MessageExt, ReadableSize};
use region::{
    Index, LogReadError, LogReader, RegionId, RegionRecord, StoreIdent, Term, TruncatedState,
    MAX_ID,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

const SHARD_GROUPS: u64 = 4096;
/// The first raft group that is a shard group; region ids must be below.
const FIRST_SHARD_GROUP: u64 = MAX_ID + 1;
/// The raft group of the store's identity.
const IDENT_GROUP: u64 = FIRST_SHARD_GROUP + SHARD_GROUPS;
const IDENT_KEY: &[u8] = b"ident";
/// Written to the same group for its sync: raft-engine's own call for that does nothing.
const SYNC_KEY: &[u8] = b"sync";

/// About so many bytes go into one batch of raft-engine. It keeps the entries of a batch in one piece, and
/// reads, checks and decompresses all of it for any of them: with the entries of a thousand regions in a
/// piece, a restart took 40 s of CPU for 50,000 regions.
const PART_BYTES: usize = 16 << 10;

/// So many empty groups are cleaned while nothing else is written.
const CLEANED_AT_A_TIME: usize = 1024;

const HARD_STATE: u8 = b'h';
const TRUNCATED: u8 = b't';
const RECORD: u8 = b'r';

/// How raft-engine is set up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EngineConfig {
    /// The log begins to be purged beyond this size.
    #[serde(serialize_with = "exactly")]
    pub purge_threshold: ByteSize,
    /// A log file is closed and the next begun at this size.
    #[serde(serialize_with = "exactly")]
    pub target_file_size: ByteSize,
    /// Batches larger than this are compressed with LZ4; 0 never compresses.
    #[serde(serialize_with = "exactly")]
    pub compression_threshold: ByteSize,
    /// Threads that read the log back at start.
    pub recovery_threads: usize,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            purge_threshold: ByteSize::gib(1),
            target_file_size: ByteSize::mib(128),
            compression_threshold: ByteSize::b(0),
            recovery_threads: 4,
        }
    }
}

/// The default [`LogStore`].
///
/// The files are the machine's; tests may bring others, with
/// [`open_with_file_system`](Self::open_with_file_system).
pub struct RaftEngineLogStore<F: FileSystem = DefaultFileSystem> {
    engine: Engine<WatchedFiles<F>>,
    // Dropped after the engine, whose last syncs it notes.
    watch: Closing<F>,
    reads: OwnReads,
    unsynced: RwLock<Unsynced>,
    /// Held by each write for reading, and by whoever must be alone. Taken before `unsynced`.
    writing: RwLock<()>,
}

/// Writes without a sync.
///
/// Invariant: what is copied out of old files is synced. raft-engine copies what is in memory and syncs
/// the copy; if a crash then took the write that had cut or replaced entries, the copy would be ahead of
/// the rest of the log. So before files are reclaimed everything is synced, and meanwhile every write.
/// A write without a sync holds this for reading.
#[derive(Debug, Default)]
struct Unsynced {
    /// Whether old files are being copied from.
    reclaiming: bool,
    /// Whether there was such a write since all was synced.
    any: AtomicBool,
}

/// What is known of the log's files, until they are closed.
struct Closing<F: FileSystem>(Arc<Watch<F>>);

impl<F: FileSystem> Drop for Closing<F> {
    fn drop(&mut self) {
        if let Err(error) = self.0.sync_note() {
            tracing::warn!(%error, "the note of what is synced cannot be synced");
        }
    }
}

impl<F: FileSystem> Drop for RaftEngineLogStore<F> {
    fn drop(&mut self) {
        self.watch.0.closing();
    }
}

impl<F: FileSystem> std::fmt::Debug for RaftEngineLogStore<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RaftEngineLogStore").field("path", &self.engine.path()).finish()
    }
}

/// Tells raft-engine where an entry's index is.
pub(super) struct EntryExt;

impl MessageExt for EntryExt {
    type Entry = Entry;

    fn index(entry: &Entry) -> u64 {
        entry.index
    }
}

impl RaftEngineLogStore {
    /// Opens the log in `path`, creating the directory if need be, and recovers it.
    ///
    /// # Errors
    /// When the directory cannot be created or written, is in use by another process, or holds
    /// something that is no log; and when something that was synced is damaged or missing. The reason
    /// then names the file.
    pub fn open(path: &Path, config: &EngineConfig) -> Result<Self, LogStoreError> {
        Self::open_with_file_system(path, config, Arc::new(DefaultFileSystem))
    }
}

impl<F: FileSystem> RaftEngineLogStore<F> {
    /// The same with other files than the machine's. Their names must be found in a directory of the
    /// machine all the same: raft-engine looks there for what is to be opened.
    ///
    /// # Errors
    /// As [`open`](RaftEngineLogStore::open).
    pub fn open_with_file_system(
        path: &Path,
        config: &EngineConfig,
        file_system: Arc<F>,
    ) -> Result<Self, LogStoreError> {
        let fail =
            |reason: String| LogStoreError::Open { path: path.display().to_string(), reason };
        // raft-engine creates the last directory of the path only.
        std::fs::create_dir_all(path).map_err(|error| fail(error.to_string()))?;
        let text = path.to_str().ok_or_else(|| fail("the path is not UTF-8".to_owned()))?;
        let files = WatchedFiles::new(file_system.clone(), path);
        let watch = files.watch();
        let config = raft_engine::Config {
            dir: text.to_owned(),
            purge_threshold: ReadableSize(config.purge_threshold.as_u64()),
            target_file_size: ReadableSize(config.target_file_size.as_u64()),
            batch_compression_threshold: ReadableSize(config.compression_threshold.as_u64()),
            recovery_threads: config.recovery_threads,
            ..raft_engine::Config::default()
        };
        // It panics on some kinds of damage.
        let opened = guarded(|| Engine::open_with_file_system(config, Arc::new(files)));
        let engine = opened.map_err(|error| {
            let damage = || WatchedFiles::find_damage(&*file_system, path, &watch);
            let named = || damage().map_or(error.clone(), |damage| format!("{damage} ({error})"));
            fail(watch.refusal().unwrap_or_else(named))
        })?;
        // raft-engine does so whenever it begins a file, but for the first ones.
        let names = std::fs::File::open(path).and_then(|dir| dir.sync_all());
        names.map_err(|error| fail(error.to_string()))?;
        watch.opened();
        Ok(Self {
            engine,
            watch: Closing(watch),
            reads: OwnReads::new(),
            unsynced: RwLock::default(),
            writing: RwLock::default(),
        })
    }

    /// Bytes of log files that hold something.
    pub fn used_bytes(&self) -> u64 {
        self.engine.get_used_size() as u64
    }

    fn add(
        &self,
        batch: &mut raft_engine::LogBatch,
        write: RegionWrite,
    ) -> Result<(), raft_engine::Error> {
        let region = write.region_id.get();
        assert!(region < FIRST_SHARD_GROUP, "region id {region} is reserved");
        let shard = shard_group(write.region_id);
        if write.clear {
            batch.add_command(region, Command::Clean);
        }
        if !write.entries.is_empty() {
            batch.add_entries::<EntryExt>(region, &write.entries)?;
        }
        if let Some(state) = write.hard_state {
            batch.put_message(shard, key(HARD_STATE, write.region_id), &state)?;
        }
        if let Some(state) = write.truncated {
            batch.put(shard, key(TRUNCATED, write.region_id), state.encode())?;
            if !write.clear {
                batch.add_command(region, Command::Compact { index: state.index.get() + 1 });
            }
        }
        if let Some(record) = write.record {
            batch.put(shard, key(RECORD, write.region_id), record.encode())?;
        }
        Ok(())
    }

    /// Of a region that was read back: what cuts its log, if entries are there that have been cut off.
    fn cut_again(&self, region: &StoredRegion) -> Option<Command> {
        let (group, cut) = (region.record.description.id.get(), region.truncated.index.get());
        let first = self.engine.first_index(group)?;
        match self.engine.last_index(group) {
            Some(last) if last <= cut => Some(Command::Clean),
            _ => (first <= cut).then_some(Command::Compact { index: cut + 1 }),
        }
    }

    /// Writes some of a batch, or all of it.
    fn write_part(
        &self,
        raw: &mut raft_engine::LogBatch,
        sync: bool,
    ) -> Result<u64, LogStoreError> {
        let written = guarded(|| self.engine.write(raw, sync));
        // Also where this write succeeded: the sync that failed may have been its own, done for a
        // group of writers by another of them.
        if let Some(cause) = self.watch.0.failure() {
            return Err(LogStoreError::Write(format!("a sync failed: {cause}")));
        }
        written.map(|bytes| bytes as u64).map_err(LogStoreError::Write)
    }

    /// Lets go of groups without entries. raft-engine makes those anew, whole and empty, that were cleaned before a
    /// purge: as it copies the mark that they are gone.
    fn clean_emptied(&self) -> Result<(), LogStoreError> {
        let is_empty = |group: &u64| self.engine.first_index(*group).is_none();
        let mut groups = self.engine.raft_groups();
        groups.retain(|group| *group < FIRST_SHARD_GROUP && is_empty(group));
        // In the order of a map with random seeds; a run must repeat itself.
        groups.sort_unstable();
        for some in groups.chunks(CLEANED_AT_A_TIME) {
            // An entry may have come since, and none may come between this look and the write.
            let _alone = self.writing.write();
            let mut raw = raft_engine::LogBatch::default();
            for group in some.iter().filter(|group| is_empty(group)) {
                raw.add_command(*group, Command::Clean);
            }
            if !raw.is_empty() {
                let unsynced = self.unsynced.read();
                unsynced.any.store(true, Ordering::Relaxed);
                self.write_part(&mut raw, unsynced.reclaiming)?;
            }
        }
        Ok(())
    }

    /// Syncs all that was written.
    fn sync_all(&self) -> Result<(), String> {
        let mut raw = raft_engine::LogBatch::with_capacity(1);
        raw.put(IDENT_GROUP, SYNC_KEY.to_vec(), Vec::new()).map_err(|error| error.to_string())?;
        guarded(|| self.engine.write(&mut raw, true)).map(|_| ())
    }

    fn load_region(&self, parts: RawRegion) -> Result<StoredRegion, String> {
        let Some(record) = parts.record else {
            return Err("its record is missing".to_owned());
        };
        let record = RegionRecord::decode(&record).map_err(|error| error.to_string())?;
        let hard_state = match parts.hard_state {
            Some(bytes) => Some(decode_hard_state(&bytes)?),
            None => None,
        };
        let truncated = match parts.truncated {
            // What an earlier peer of the region left does not count.
            _ if !record.description.is_initialised() => TruncatedState::NOTHING,
            Some(bytes) => TruncatedState::decode(&bytes).map_err(|error| error.to_string())?,
            None => TruncatedState::INITIAL,
        };
        let group = record.description.id.get();
        let last_index =
            self.engine.last_index(group).map_or(truncated.index, Index::new).max(truncated.index);
        Ok(StoredRegion { record, hard_state, truncated, last_index })
    }
}

/// Calls raft-engine, which panics where it finds its files or its own state unsound.
fn guarded<T>(call: impl FnOnce() -> raft_engine::Result<T>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
            Err(format!("raft-engine panicked: {}", text.unwrap_or_default()))
        }
    }
}

/// Whether a write may be durable without the others of its batch.
fn is_plain(write: &RegionWrite) -> bool {
    write.record.is_none() && write.truncated.is_none() && !write.clear
}

/// What the shard groups hold of one region, undecoded.
#[derive(Default)]
struct RawRegion {
    record: Option<Vec<u8>>,
    hard_state: Option<Vec<u8>>,
    truncated: Option<Vec<u8>>,
}

fn decode_hard_state(bytes: &[u8]) -> Result<HardState, String> {
    let mut state = HardState::default();
    state.merge_from_bytes(bytes).map_err(|error| format!("its hard state: {error}"))?;
    Ok(state)
}

fn shard_group(region: RegionId) -> u64 {
    FIRST_SHARD_GROUP + region.get() % SHARD_GROUPS
}

fn key(kind: u8, region: RegionId) -> Vec<u8> {
    let mut key = Vec::with_capacity(9);
    key.push(kind);
    key.extend_from_slice(&region.get().to_be_bytes());
    key
}

fn split_key(key: &[u8]) -> Option<(u8, RegionId)> {
    let (kind, id) = key.split_first()?;
    Some((*kind, RegionId::new(u64::from_be_bytes(id.try_into().ok()?))))
}

impl<F: FileSystem + 'static> LogReader for RaftEngineLogStore<F> {
    fn entries(
        &self,
        region: RegionId,
        low: Index,
        high: Index,
        max_bytes: usize,
    ) -> Result<Vec<Entry>, LogReadError> {
        let fail = |cause: String| LogReadError { region_id: region, low, high, cause };
        let read = || {
            let (low, high, max_bytes) = (low.get(), high.get(), Some(max_bytes));
            let mut entries = Vec::new();
            self.engine
                .fetch_entries_to::<EntryExt>(region.get(), low, high, max_bytes, &mut entries)
                .map(|_| entries)
        };
        let entries = self.reads.run(|| guarded(read)).map_err(fail)?;
        // Of a region without entries raft-engine says that there are none, and not that they are missing.
        match entries.is_empty() && low < high {
            true => Err(fail("the log holds none of them".to_owned())),
            false => Ok(entries),
        }
    }

    fn term(&self, region: RegionId, index: Index) -> Result<Option<Term>, LogReadError> {
        let high = Index::new(index.get() + 1);
        let fail = |cause: String| LogReadError { region_id: region, low: index, high, cause };
        let read = || self.engine.get_entry::<EntryExt>(region.get(), index.get());
        let entry = self.reads.run(|| guarded(read)).map_err(fail)?;
        Ok(entry.map(|entry| Term::new(entry.term)))
    }
}

impl<F: FileSystem + 'static> LogStore for RaftEngineLogStore<F> {
    fn load(&self) -> Result<Stored, LogStoreError> {
        let read = |error: raft_engine::Error| LogStoreError::Read(error.to_string());
        let mut raw: BTreeMap<RegionId, RawRegion> = BTreeMap::new();
        for shard in FIRST_SHARD_GROUP..FIRST_SHARD_GROUP + SHARD_GROUPS {
            self.engine
                .scan_raw_messages(shard, None, None, false, |key, value| {
                    if let Some((kind, region)) = split_key(key) {
                        let parts = raw.entry(region).or_default();
                        match kind {
                            RECORD => parts.record = Some(value.to_vec()),
                            HARD_STATE => parts.hard_state = Some(value.to_vec()),
                            TRUNCATED => parts.truncated = Some(value.to_vec()),
                            _ => {}
                        }
                    }
                    true
                })
                .map_err(read)?;
        }
        // Entries alone are a region too, of which the rest is gone.
        for group in self.engine.raft_groups() {
            if group < FIRST_SHARD_GROUP {
                raw.entry(RegionId::new(group)).or_default();
            }
        }
        let mut stored = Stored::default();
        if let Some(bytes) = self.engine.get(IDENT_GROUP, IDENT_KEY) {
            let ident = StoreIdent::decode(&bytes);
            stored.ident = Some(ident.map_err(|error| LogStoreError::Read(error.to_string()))?);
        }
        let mut returned = raft_engine::LogBatch::default();
        for (region_id, parts) in raw {
            match self.load_region(parts) {
                Ok(region) => {
                    if let Some(command) = self.cut_again(&region) {
                        returned.add_command(region_id.get(), command);
                    }
                    stored.regions.push(region);
                }
                Err(reason) => stored.damaged.push(DamagedRegion { region_id, reason }),
            }
        }
        // A cut whose file was purged is forgotten, and entries that were copied before it are back. Those of
        // a log that was cut to its end would leave a hole before the next ones, at which raft-engine panics.
        if !returned.is_empty() {
            let write = guarded(|| self.engine.write(&mut returned, true));
            write.map_err(LogStoreError::Write)?;
        }
        Ok(stored)
    }

    fn write(&self, batch: &mut LogBatch, sync: bool) -> Result<u64, LogStoreError> {
        let fail = |error: raft_engine::Error| LogStoreError::Write(error.to_string());
        let _writing = self.writing.read();
        let mut raw = raft_engine::LogBatch::with_capacity(batch.writes.len() * 2);
        let divisible = batch.ident.is_none() && batch.writes.iter().all(is_plain);
        if let Some(ident) = batch.ident.take() {
            raw.put(IDENT_GROUP, IDENT_KEY.to_vec(), ident.encode()).map_err(fail)?;
        }
        let (mut unsynced, mut bytes) = (None, 0);
        let mut writes = batch.writes.drain(..).peekable();
        while let Some(write) = writes.next() {
            self.add(&mut raw, write).map_err(fail)?;
            if divisible && raw.approximate_size() >= PART_BYTES && writes.peek().is_some() {
                // Held until the end, where all is synced.
                let unsynced = unsynced.get_or_insert_with(|| self.unsynced.read());
                bytes += self.write_part(&mut raw, unsynced.reclaiming)?;
            }
        }
        if !sync {
            let unsynced = unsynced.get_or_insert_with(|| self.unsynced.read());
            unsynced.any.store(true, Ordering::Relaxed);
        }
        let sync = sync || unsynced.as_ref().is_some_and(|unsynced| unsynced.reclaiming);
        Ok(bytes + self.write_part(&mut raw, sync)?)
    }

    fn is_volatile(&self) -> bool {
        false
    }

    fn reclaim(&self) -> Result<Vec<RegionId>, LogStoreError> {
        let any = {
            let mut unsynced = self.unsynced.write();
            unsynced.reclaiming = true;
            std::mem::take(unsynced.any.get_mut())
        };
        let synced = if any { self.sync_all() } else { Ok(()) };
        let purge = || guarded(|| self.engine.purge_expired_files());
        let regions = synced.and_then(|()| self.reads.run(purge));
        self.unsynced.write().reclaiming = false;
        if let Some(cause) = self.watch.0.failure() {
            return Err(LogStoreError::Write(format!("a sync failed: {cause}")));
        }
        let regions = regions.map_err(LogStoreError::Write)?;
        // So that a power loss takes seconds of the note and not hours.
        self.watch.0.sync_note().map_err(|error| LogStoreError::Write(error.to_string()))?;
        self.clean_emptied()?;
        let own = regions.into_iter().filter(|group| *group < FIRST_SHARD_GROUP);
        let mut regions: Vec<RegionId> = own.map(RegionId::new).collect();
        // The engine tells them in the order of a map with random seeds; a run must repeat itself.
        regions.sort_unstable();
        Ok(regions)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REGION: RegionId = RegionId::new(7);

    fn entries(indexes: std::ops::RangeInclusive<u64>) -> RegionWrite {
        let entry = |index| Entry { index, term: 6, data: vec![1; 64].into(), ..Entry::default() };
        RegionWrite {
            region_id: REGION,
            entries: indexes.map(entry).collect(),
            ..RegionWrite::default()
        }
    }

    fn write(log: &RaftEngineLogStore, writes: Vec<RegionWrite>) {
        log.write(&mut LogBatch { writes, ident: None }, true).expect("written");
    }

    /// The indexes of a region's log, as a start finds them.
    fn found(log: &RaftEngineLogStore) -> Vec<u64> {
        let stored = log.load().expect("readable");
        assert!(stored.damaged.is_empty(), "{:?}", stored.damaged);
        let region = &stored.regions[0];
        let (low, high) = (region.truncated.index.get() + 1, region.last_index.get() + 1);
        let read = log.entries(REGION, Index::new(low), Index::new(high), usize::MAX);
        let indexes = read.expect("there").iter().map(|entry| entry.index).collect();
        assert_eq!(indexes, (low..high).collect::<Vec<_>>());
        indexes
    }

    #[test]
    fn log_that_is_cut_whole_takes_no_group_also_after_purges_and_restarts() {
        let dir = tempfile::tempdir().expect("a directory");
        // So that a few writes fill files, which are then purged.
        let config = EngineConfig {
            purge_threshold: ByteSize::kib(16),
            target_file_size: ByteSize::kib(4),
            ..EngineConfig::default()
        };
        let open = || RaftEngineLogStore::open(dir.path(), &config).expect("opens");
        let mut log = open();
        let voter = region::Peer::voter(region::PeerId::new(1), region::StoreId::new(1));
        let description = region::RegionDescription::new(REGION, &b""[..], &b""[..], [voter]);
        let record = Box::new(RegionRecord::new(description, voter.id));
        let born =
            RegionWrite { region_id: REGION, record: Some(record), ..RegionWrite::default() };
        write(&log, vec![born]);
        let mut last = TruncatedState::INITIAL.index.get();
        for round in 0..30 {
            (0..20).for_each(|at| write(&log, vec![entries(last + 1 + at..=last + 1 + at)]));
            last += 20;
            if round % 3 == 0 {
                log.reclaim().expect("purged");
            }
            assert_eq!(found(&log).len(), 20);
            assert!(log.engine.raft_groups().contains(&REGION.get()));
            let truncated = Some(TruncatedState { index: Index::new(last), term: Term::new(6) });
            let cut =
                RegionWrite { region_id: REGION, clear: true, truncated, ..RegionWrite::default() };
            write(&log, vec![cut]);
            if round % 3 == 1 {
                log.reclaim().expect("purged");
            }
            if round % 2 == 0 {
                drop(log);
                log = open();
            }
            assert_eq!(found(&log), []);
            assert!(!log.engine.raft_groups().contains(&REGION.get()), "round {round}");
        }
        assert!(log.used_bytes() < 64 << 10, "{} bytes", log.used_bytes());
    }

    #[test]
    fn no_write_succeeds_once_a_sync_has_failed_also_if_the_engine_says_so() {
        let dir = tempfile::tempdir().expect("a directory");
        let log = RaftEngineLogStore::open(dir.path(), &EngineConfig::default()).expect("opens");
        let ident = StoreIdent { cluster_id: 1, store_id: region::StoreId::new(1) };
        let write = || log.write(&mut LogBatch { ident: Some(ident), ..LogBatch::default() }, true);
        write().expect("healthy");
        // As when another writer's sync, done for both, has failed.
        log.watch.0.fail("injected");
        let error = write().expect_err("it may not be on disk").to_string();
        assert!(error.contains("a sync failed: injected"), "{error}");
        assert!(log.reclaim().is_err());
    }
}
