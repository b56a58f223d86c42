//! The keyspaces on disk, and what is in the one named `meta`.
//!
//! | key in `meta` | value |
//! |---|---|
//! | region id, 8 bytes, big endian | the region's [`AppliedState`] |
//! | the same and `<` | while a snapshot is installed: the description before, whose range must be cleared |
//! | the same and `>` | while a snapshot is installed: the description that comes with it |
//!
//! While a snapshot is installed there is no applied state, so that a half of it is never taken for the
//! region; the two descriptions say where its remains may lie.

use crate::state_machine::StateMachineError;
use fjall::{Database, Keyspace, OwnedWriteBatch, PersistMode};
use region::{AppliedState, RegionDescription, RegionId};
use std::fmt::Display;
use std::ops::Bound;
use std::path::PathBuf;

const BEFORE: u8 = b'<';
const AFTER: u8 = b'>';

/// Bytes of keys and values after which a batch is committed and the next begun, where more than one may
/// be used.
const BATCH_BYTES: usize = 1 << 20;
/// What a key costs in a batch besides its bytes.
const KEY_COSTS: usize = 64;

/// The database.
#[derive(Clone)]
pub(super) struct Tables {
    pub(super) db: Database,
    pub(super) data: Keyspace,
    pub(super) meta: Keyspace,
    pub(super) path: PathBuf,
}

/// A range of keys; an empty end means none.
pub(super) type KeyRange<'a> = (&'a [u8], &'a [u8]);

/// The same as fjall takes it.
pub(super) type Bounds<'a> = (Bound<&'a [u8]>, Bound<&'a [u8]>);

pub(super) fn range_of(description: &RegionDescription) -> KeyRange<'_> {
    (&description.start_key, &description.end_key)
}

/// `None` if there is nothing in the range.
pub(super) fn bounds(range: KeyRange<'_>) -> Option<Bounds<'_>> {
    match range {
        (start, []) => Some((Bound::Included(start), Bound::Unbounded)),
        (start, end) if start < end => Some((Bound::Included(start), Bound::Excluded(end))),
        _ => None,
    }
}

fn meta_key(region: RegionId) -> [u8; 8] {
    region.get().to_be_bytes()
}

fn mark_key(region: RegionId, which: u8) -> Vec<u8> {
    let mut key = meta_key(region).to_vec();
    key.push(which);
    key
}

impl Tables {
    /// What failed, and where.
    pub(super) fn error(&self, what: &str, error: impl Display) -> StateMachineError {
        StateMachineError(format!("{what} in {}: {error}", self.path.display()))
    }

    fn damaged(&self, region: RegionId, what: &str, reason: impl Display) -> StateMachineError {
        StateMachineError(format!(
            "region {region}: its {what} in {} is damaged: {reason}. Remove this peer from the region, \
             discard what is here, and add another peer (docs/repair.md)",
            self.path.display(),
        ))
    }

    /// A batch that reaches the operating system when it is committed, and is not synced.
    pub(super) fn batch(&self, capacity: usize) -> OwnedWriteBatch {
        OwnedWriteBatch::with_capacity(self.db.clone(), capacity)
            .durability(Some(PersistMode::Buffer))
    }

    pub(super) fn commit(&self, batch: OwnedWriteBatch) -> Result<(), StateMachineError> {
        batch.commit().map_err(|error| self.error("cannot write", error))
    }

    /// Syncs all that is committed.
    pub(super) fn persist(&self) -> Result<(), StateMachineError> {
        self.db.persist(PersistMode::SyncAll).map_err(|error| self.error("cannot sync", error))
    }

    pub(super) fn put_applied(
        &self,
        batch: &mut OwnedWriteBatch,
        region: RegionId,
        applied: &AppliedState,
    ) {
        batch.insert(&self.meta, meta_key(region), applied.encode());
    }

    pub(super) fn applied(
        &self,
        region: RegionId,
    ) -> Result<Option<AppliedState>, StateMachineError> {
        let bytes = self.meta.get(meta_key(region));
        self.decode_applied(region, bytes)
    }

    /// The state as of a snapshot of the database.
    pub(super) fn applied_at(
        &self,
        view: &impl fjall::Readable,
        region: RegionId,
    ) -> Result<Option<AppliedState>, StateMachineError> {
        self.decode_applied(region, view.get(&self.meta, meta_key(region)))
    }

    fn decode_applied(
        &self,
        region: RegionId,
        bytes: fjall::Result<Option<fjall::Slice>>,
    ) -> Result<Option<AppliedState>, StateMachineError> {
        let what = "applied state";
        let bytes = bytes.map_err(|error| self.damaged(region, what, error))?;
        let Some(bytes) = bytes else { return Ok(None) };
        let applied =
            AppliedState::decode(&bytes).map_err(|error| self.damaged(region, what, error))?;
        match applied.description.id == region {
            true => Ok(Some(applied)),
            false => {
                let other = format!("it is of region {}", applied.description.id);
                Err(self.damaged(region, what, other))
            }
        }
    }

    /// The descriptions of an installation that was not finished.
    pub(super) fn marks(
        &self,
        region: RegionId,
    ) -> Result<Vec<RegionDescription>, StateMachineError> {
        let mut found = Vec::new();
        for which in [BEFORE, AFTER] {
            let bytes = self.meta.get(mark_key(region, which));
            let bytes = bytes.map_err(|error| self.error("cannot read", error))?;
            if let Some(bytes) = bytes {
                let what = "mark of an installation";
                let mark = RegionDescription::decode(&bytes);
                found.push(mark.map_err(|error| self.damaged(region, what, error))?);
            }
        }
        Ok(found)
    }

    /// From now on the region is not applied, and its remains lie in these two ranges.
    pub(super) fn mark_installation(
        &self,
        region: RegionId,
        before: Option<&RegionDescription>,
        after: &RegionDescription,
    ) -> Result<(), StateMachineError> {
        let mut batch = self.batch(3);
        batch.remove(&self.meta, meta_key(region));
        match before {
            Some(before) => {
                batch.insert(&self.meta, mark_key(region, BEFORE), before.encode());
            }
            None => batch.remove(&self.meta, mark_key(region, BEFORE)),
        }
        batch.insert(&self.meta, mark_key(region, AFTER), after.encode());
        self.commit(batch)
    }

    /// Nothing is known of the region, or `applied` from now on; no installation is under way.
    pub(super) fn settle(
        &self,
        region: RegionId,
        applied: Option<&AppliedState>,
    ) -> Result<(), StateMachineError> {
        let mut batch = self.batch(3);
        match applied {
            Some(applied) => self.put_applied(&mut batch, region, applied),
            None => batch.remove(&self.meta, meta_key(region)),
        }
        batch.remove(&self.meta, mark_key(region, BEFORE));
        batch.remove(&self.meta, mark_key(region, AFTER));
        self.commit(batch)
    }

    /// Each region's applied state, or why it cannot be read, and the ranges of installations under way.
    pub(super) fn regions(
        &self,
        mut each: impl FnMut(
            RegionId,
            Result<RegionDescription, StateMachineError>,
            Option<AppliedState>,
        ),
    ) -> Result<(), StateMachineError> {
        for pair in self.meta.iter() {
            let (key, value) =
                pair.into_inner().map_err(|error| self.error("cannot read", error))?;
            let Some((id, mark)) = key.split_first_chunk::<8>() else { continue };
            let region = RegionId::new(u64::from_be_bytes(*id));
            match mark {
                [] => match self.decode_applied(region, Ok(Some(value))) {
                    Ok(applied) => {
                        let applied = applied.expect("there are bytes");
                        each(region, Ok((*applied.description).clone()), Some(applied));
                    }
                    Err(error) => each(region, Err(error), None),
                },
                [AFTER] => {
                    let mark = RegionDescription::decode(&value);
                    let damaged = |error| self.damaged(region, "mark of an installation", error);
                    each(region, mark.map_err(damaged), None);
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Removes all keys of a range, in batches of bounded size.
    pub(super) fn clear(&self, range: KeyRange<'_>) -> Result<(), StateMachineError> {
        let Some(bounds) = bounds(range) else { return Ok(()) };
        let mut filling = Filling::new(self);
        for pair in self.data.range::<&[u8], _>(bounds) {
            let key = pair.key().map_err(|error| self.error("cannot read", error))?;
            filling.remove(key)?;
        }
        filling.finish()
    }
}

/// Writes that need not be atomic, in batches of bounded size.
pub(super) struct Filling<'a> {
    tables: &'a Tables,
    batch: OwnedWriteBatch,
    bytes: usize,
}

impl<'a> Filling<'a> {
    pub(super) fn new(tables: &'a Tables) -> Self {
        Self { tables, batch: tables.batch(0), bytes: 0 }
    }

    pub(super) fn insert(&mut self, key: &[u8], value: &[u8]) -> Result<(), StateMachineError> {
        self.batch.insert(&self.tables.data, key, value);
        self.added(key.len() + value.len())
    }

    fn remove(&mut self, key: fjall::UserKey) -> Result<(), StateMachineError> {
        let length = key.len();
        self.batch.remove(&self.tables.data, key);
        self.added(length)
    }

    fn added(&mut self, bytes: usize) -> Result<(), StateMachineError> {
        self.bytes += bytes + KEY_COSTS;
        if self.bytes < BATCH_BYTES {
            return Ok(());
        }
        self.bytes = 0;
        self.tables.commit(std::mem::replace(&mut self.batch, self.tables.batch(0)))
    }

    pub(super) fn finish(self) -> Result<(), StateMachineError> {
        self.tables.commit(self.batch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_without_keys_are_none() {
        assert!(bounds((b"", b"")).is_some());
        assert!(bounds((b"a", b"b")).is_some());
        assert!(bounds((b"b", b"b")).is_none());
        assert!(bounds((b"c", b"b")).is_none());
    }
}
