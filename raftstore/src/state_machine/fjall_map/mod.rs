//! An ordered map on disk, in fjall.
//!
//! The keyspace `data` holds the keys of all regions of a store, as they are, in one ordered space, so a
//! split moves nothing. The keyspace `meta` holds the applied state of each region. What a batch of
//! commands does to both is one write to fjall's journal, whole or not there after a crash.
//!
//! | file | has |
//! |---|---|
//! | `mod` | opening, reading, applying |
//! | `tables` | the keyspaces, and what `meta` says |
//! | `syncing` | when it syncs, and what is known to be durable |
//! | `sizes` | how much regions hold |
//! | `contents` | snapshots out and in, and destruction |
//! | `config` | settings |

mod config;
mod contents;
mod sizes;
mod syncing;
mod tables;

pub use config::FjallConfig;

use super::map_command::OUT_OF_RANGE;
use super::{
    InstallError, MapAnswer, MapCommand, RegionCommands, RegionSize, SnapshotSource, StateMachine,
    StateMachineError,
};
use bytes::Bytes;
use contents::View;
use fjall::{Database, KeyspaceCreateOptions, Readable};
use parking_lot::Mutex;
use region::{AppliedState, Index, RegionDescription, RegionId, MAX_KEY_BYTES};
use rustc_hash::FxHashMap;
use sizes::{Growth, Sizes};
use std::collections::BTreeMap;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use syncing::Syncing;
use tables::{bounds, range_of, KeyRange, Tables};

// fjall keeps a key's length in 2 bytes.
const _: () = assert!(MAX_KEY_BYTES <= u16::MAX as usize);

/// A [`StateMachine`] that keeps the keys of all regions of a store on disk, in one ordered map.
///
/// Its commands are [`MapCommand`]s, their answers [`MapAnswer`]s. It also refuses keys that are empty or
/// longer than 65,535 bytes. All stores answer alike.
///
/// # Durability
///
/// Applying does not sync. A thread does, [`sync_interval`](FjallConfig::sync_interval) after the first
/// step that is not synced or once [`sync_bytes`](FjallConfig::sync_bytes) were applied, and only what was
/// applied before such a sync began is in [`durable_index`](StateMachine::durable_index). An installed
/// snapshot and a destruction are synced before the call returns. Once a sync has failed, everything that
/// would write fails too.
///
/// Caveat: fjall writes its journal under one lock, and syncs it there. A step that comes while a sync is
/// under way waits for it; and where tables cannot be compacted as fast as keys are written, fjall makes
/// writers wait. Give the store `apply_pollers`, so that its pollers do not.
///
/// Caveat: a [`snapshot`](StateMachine::snapshot) that is still open keeps the directory locked, and keeps
/// old versions of keys from being removed.
pub struct FjallMap {
    tables: Tables,
    syncing: Arc<Syncing>,
    sizes: Sizes,
    /// Held while ranges are cleared; see [`contents::install`].
    moving: Mutex<()>,
    thread: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for FjallMap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FjallMap").field("path", &self.tables.path).finish_non_exhaustive()
    }
}

impl Drop for FjallMap {
    fn drop(&mut self) {
        self.syncing.stop();
        if let Some(thread) = self.thread.take() {
            // It has logged why, if it panicked.
            let _ = thread.join();
        }
    }
}

/// Whether the region may have this key; or why not.
fn check_key(description: &RegionDescription, key: &[u8]) -> Result<(), &'static str> {
    match key.len() {
        0 => Err("a key must not be empty"),
        length if length > MAX_KEY_BYTES => Err("a key must not be longer than 65535 bytes"),
        _ if !description.contains(key) => Err(OUT_OF_RANGE),
        _ => Ok(()),
    }
}

impl FjallMap {
    /// Opens the map in the directory `path`, creating it if need be. What is there is durable on return.
    ///
    /// # Errors
    /// When a setting is out of range; when the directory cannot be created, read or synced, is in use by
    /// another process, or holds a damaged map. The reason then names the directory.
    pub fn open(path: impl AsRef<Path>, config: &FjallConfig) -> Result<Self, StateMachineError> {
        let path = path.as_ref();
        config.validate()?;
        // fjall panics on some kinds of damage.
        let tables = match catch_unwind(AssertUnwindSafe(|| open_tables(path, config))) {
            Ok(opened) => opened.map_err(|reason| cannot_open(path, reason))?,
            Err(panic) => {
                let text = panic.downcast_ref::<String>().map(String::as_str);
                let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
                return Err(cannot_open(path, format!("fjall panicked: {}", text.unwrap_or(""))));
            }
        };
        let mut durable = FxHashMap::default();
        tables.regions(|region, description, applied| match (description, applied) {
            (Ok(_), Some(applied)) => {
                durable.insert(region, applied.index);
            }
            // An installation under way, with nothing to go on from.
            (Ok(_), None) => {}
            // Its region is set aside when it asks for it.
            (Err(error), _) => tracing::warn!(%error, "a region cannot be read"),
        })?;
        let syncing = Arc::new(Syncing::new(durable, config.sync_bytes.as_u64()));
        let run = {
            let (syncing, tables, interval) =
                (syncing.clone(), tables.clone(), config.sync_interval);
            move || syncing.run(interval, || tables.persist())
        };
        let thread = std::thread::Builder::new().name("fjall-map-sync".to_owned()).spawn(run);
        let thread = thread.map_err(|error| cannot_open(path, error.to_string()))?;
        Ok(Self {
            tables,
            syncing,
            sizes: Sizes::default(),
            moving: Mutex::default(),
            thread: Some(thread),
        })
    }

    /// The value of a region's key as applied here, which may lag behind what was acknowledged elsewhere.
    /// `None` also for a key that is not the region's, or not any more.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn get(&self, region: RegionId, key: &[u8]) -> Result<Option<Bytes>, StateMachineError> {
        // Of one moment, so that what another region has written there since never shows.
        let view = self.tables.db.snapshot();
        let Some(applied) = self.tables.applied_at(&view, region)? else { return Ok(None) };
        if !applied.description.contains(key) {
            return Ok(None);
        }
        let value = view.get(&self.tables.data, key);
        let value = value.map_err(|error| self.tables.error("cannot read", error))?;
        Ok(value.map(|value| Bytes::copy_from_slice(&value)))
    }

    /// Up to `limit` pairs of a region from `start` on, in order.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn scan(
        &self,
        region: RegionId,
        start: &[u8],
        limit: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, StateMachineError> {
        let view = self.tables.db.snapshot();
        let Some(applied) = self.tables.applied_at(&view, region)? else { return Ok(Vec::new()) };
        let (first, end) = range_of(&applied.description);
        self.pairs(&view, (start.max(first), end), limit)
    }

    /// Up to `limit` pairs of the whole map, whichever regions they belong to, or none any more: for who looks
    /// at the disk. Those of a region are told by [`scan`](Self::scan).
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn scan_all(&self, limit: usize) -> Result<Vec<(Bytes, Bytes)>, StateMachineError> {
        self.pairs(&self.tables.db.snapshot(), (b"", b""), limit)
    }

    fn pairs(
        &self,
        view: &impl Readable,
        range: KeyRange<'_>,
        limit: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, StateMachineError> {
        let Some(bounds) = bounds(range) else { return Ok(Vec::new()) };
        let pairs = view.range::<&[u8], _>(&self.tables.data, bounds).take(limit);
        pairs
            .map(|pair| {
                let (key, value) =
                    pair.into_inner().map_err(|error| self.tables.error("cannot read", error))?;
                Ok((Bytes::copy_from_slice(&key), Bytes::copy_from_slice(&value)))
            })
            .collect()
    }
}

fn cannot_open(path: &Path, reason: String) -> StateMachineError {
    StateMachineError(format!("cannot open the state machine in {}: {reason}", path.display()))
}

fn open_tables(path: &Path, config: &FjallConfig) -> Result<Tables, String> {
    let text = |error: std::io::Error| error.to_string();
    std::fs::create_dir_all(path).map_err(text)?;
    let path = path.canonicalize().map_err(text)?;
    let plain = |error: fjall::Error| match error {
        fjall::Error::Locked => "it is in use by another process".to_owned(),
        error => error.to_string(),
    };
    let db = Database::builder(&path)
        .cache_size(config.cache.as_u64())
        .max_journaling_size(config.max_journal.as_u64())
        .worker_threads(config.workers)
        .open()
        .map_err(plain)?;
    let data = db.keyspace("data", KeyspaceCreateOptions::default).map_err(plain)?;
    let meta = db.keyspace("meta", KeyspaceCreateOptions::default).map_err(plain)?;
    // What a process wrote that was killed is believed from now on, so it must be durable; and so must the
    // name of a new directory.
    db.persist(fjall::PersistMode::SyncAll).map_err(plain)?;
    if let Some(parent) = path.parent() {
        std::fs::File::open(parent).and_then(|dir| dir.sync_all()).map_err(text)?;
    }
    Ok(Tables { db, data, meta, path })
}

/// What a batch of commands does to the keys, last state only: fjall gives all writes of a batch the same
/// age, so that of two to one key it could not tell the later.
#[derive(Default)]
struct Effects {
    keys: BTreeMap<Bytes, Option<Bytes>>,
    bytes: u64,
    /// Of each region whose commands there are.
    growths: BTreeMap<RegionId, Growth>,
}

impl Effects {
    /// Carries out one command; returns the answer.
    fn run(
        &mut self,
        tables: &Tables,
        description: &RegionDescription,
        payload: &Bytes,
    ) -> Result<Bytes, StateMachineError> {
        // Committed is committed: every store skips it alike, and the proposer hears why.
        let (key, value) = match MapCommand::decode(payload.clone()) {
            Ok(MapCommand::Put { key, value }) => (key, Some(value)),
            Ok(MapCommand::Delete { key }) => (key, None),
            Err(error) => return Ok(MapAnswer::Refused(error.to_string()).encode()),
        };
        if let Err(reason) = check_key(description, &key) {
            return Ok(MapAnswer::Refused(reason.to_owned()).encode());
        }
        self.bytes += payload.len() as u64;
        let previous = match self.keys.get(&key) {
            Some(value) => value.clone(),
            None => {
                let value = tables.data.get(&key);
                let value = value.map_err(|error| tables.error("cannot read", error))?;
                value.map(|value| Bytes::copy_from_slice(&value))
            }
        };
        let pair_bytes = |value: &Bytes| (key.len() + value.len()) as i64;
        let (before, after) = (previous.as_ref(), value.as_ref());
        let growth = self.growths.entry(description.id).or_default();
        growth.bytes += after.map_or(0, pair_bytes) - before.map_or(0, pair_bytes);
        growth.keys += i64::from(after.is_some()) - i64::from(before.is_some());
        self.keys.insert(key, value);
        Ok(MapAnswer::Done(previous).encode())
    }
}

impl StateMachine for FjallMap {
    fn check_vacant(&self, region: &RegionDescription) -> Result<(), StateMachineError> {
        let view = self.tables.db.snapshot();
        let found = self.pairs(&view, range_of(region), 1)?;
        let Some((key, _)) = found.first() else { return Ok(()) };
        let mut owner = None;
        self.tables.regions(|id, description, _| {
            if description.is_ok_and(|description| description.contains(key)) {
                owner = Some(id);
            }
        })?;
        let whose = match owner {
            Some(id) => {
                format!("region {id}, which is in the map in {}", self.tables.path.display())
            }
            None => format!("no region that the map in {} knows", self.tables.path.display()),
        };
        Err(StateMachineError(format!(
            "its range has keys, {key:?} is the first, of {whose}: begin with an empty map, or bring the log back"
        )))
    }

    fn apply(&self, batch: &mut [RegionCommands]) -> Result<(), StateMachineError> {
        self.syncing.check()?;
        let mut effects = Effects::default();
        let mut states: BTreeMap<RegionId, AppliedState> = BTreeMap::new();
        for part in batch {
            // Each part by its own description: it may have changed since the part before.
            let description = part.applied.description.clone();
            for command in &mut part.commands {
                command.output = effects.run(&self.tables, &description, &command.payload)?;
            }
            // A range that changes ends the counting.
            let growth = effects.growths.entry(part.region_id).or_default();
            growth.version = description.epoch.version;
            states.insert(part.region_id, part.applied.clone());
        }
        let mut writes = self.tables.batch(effects.keys.len() + states.len());
        for (key, value) in &effects.keys {
            match value {
                Some(value) => writes.insert(&self.tables.data, &key[..], &value[..]),
                None => writes.remove(&self.tables.data, &key[..]),
            }
        }
        for (region, applied) in &states {
            self.tables.put_applied(&mut writes, *region, applied);
        }
        self.tables.commit(writes)?;
        self.sizes.add(std::mem::take(&mut effects.growths).into_iter());
        let applied = states.into_iter().map(|(region, applied)| (region, applied.index));
        self.syncing.note(applied, effects.bytes);
        Ok(())
    }

    fn applied_state(&self, region: RegionId) -> Result<Option<AppliedState>, StateMachineError> {
        self.tables.applied(region)
    }

    fn durable_index(&self, region: RegionId) -> Index {
        self.syncing.durable_index(region)
    }

    fn snapshot(&self, region: RegionId) -> Result<Box<dyn SnapshotSource>, StateMachineError> {
        Ok(Box::new(View::open(&self.tables, region)?))
    }

    fn size(&self, region: RegionId) -> Option<RegionSize> {
        self.sizes.size(&self.tables, region).unwrap_or_else(|error| {
            tracing::warn!(%region, %error, "a region cannot be counted");
            None
        })
    }

    fn split_keys(&self, region: RegionId, max_bytes: u64) -> Vec<Bytes> {
        let Some(size) = self.size(region) else { return Vec::new() };
        contents::cut(&self.tables, region, size.bytes, max_bytes).unwrap_or_else(|error| {
            tracing::warn!(%region, %error, "a region cannot be read to split it");
            Vec::new()
        })
    }

    fn install(&self, snapshot: &mut dyn SnapshotSource) -> Result<(), InstallError> {
        self.syncing.check()?;
        let (region, index) = (snapshot.applied().description.id, snapshot.applied().index);
        self.syncing.forget(region);
        self.sizes.forget(region);
        contents::install(&self.tables, &self.moving, snapshot)?;
        self.sizes.forget(region);
        self.syncing.note([(region, index)].into_iter(), 0);
        Ok(self.syncing.sync(|| self.tables.persist())?)
    }

    fn destroy(&self, region: RegionId) -> Result<(), StateMachineError> {
        self.syncing.check()?;
        self.syncing.forget(region);
        contents::destroy(&self.tables, &self.moving, region)?;
        self.sizes.forget(region);
        self.syncing.sync(|| self.tables.persist())
    }

    fn flush(&self) -> Result<(), StateMachineError> {
        self.syncing.sync(|| self.tables.persist())
    }
}
