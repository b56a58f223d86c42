//! An ordered map in memory for each region.

use super::map_command::OUT_OF_RANGE;
use super::{
    Cutter, InstallError, MapAnswer, MapCommand, Pieces, RegionCommands, RegionSize, RegionSplit,
    SnapshotSource, StateMachine, StateMachineError,
};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use parking_lot::{Mutex, RwLock};
use region::{AppliedState, Index, RegionId};
use rustc_hash::{FxHashMap, FxHasher};
use std::collections::BTreeMap;
use std::hash::Hasher;
use std::ops::Bound;
use std::sync::Arc;

const SHARDS: usize = 64;
/// Of a snapshot.
const PIECE_BYTES: usize = 256 << 10;
/// A [`StateMachine`] that keeps an ordered map in memory for each region.
///
/// Its commands are [`MapCommand`]s, their answers [`MapAnswer`]s. All stores answer alike.
///
/// Nothing of it survives the process: after a restart the whole log is applied again, and with a
/// durable log store the log is therefore never shortened.
#[derive(Debug)]
pub struct OrderedMap {
    shards: Vec<RwLock<FxHashMap<RegionId, Arc<Mutex<RegionMap>>>>>,
}

#[derive(Debug, Default)]
struct RegionMap {
    map: BTreeMap<Bytes, Bytes>,
    /// Of keys and values.
    bytes: u64,
    applied: Option<AppliedState>,
}

impl RegionMap {
    fn new(map: BTreeMap<Bytes, Bytes>, applied: AppliedState) -> Self {
        let bytes = map.iter().map(pair_bytes).sum();
        Self { map, bytes, applied: Some(applied) }
    }

    fn put(&mut self, key: Bytes, value: Bytes) -> Option<Bytes> {
        let (key_bytes, value_bytes) = (key.len() as u64, value.len() as u64);
        let previous = self.map.insert(key, value);
        self.bytes += value_bytes;
        match &previous {
            Some(previous) => self.bytes -= previous.len() as u64,
            None => self.bytes += key_bytes,
        }
        previous
    }

    fn delete(&mut self, key: &Bytes) -> Option<Bytes> {
        let previous = self.map.remove(key);
        self.bytes -= previous.as_ref().map_or(0, |previous| pair_bytes((key, previous)));
        previous
    }
}

fn pair_bytes((key, value): (&Bytes, &Bytes)) -> u64 {
    (key.len() + value.len()) as u64
}

impl Default for OrderedMap {
    fn default() -> Self {
        Self::new()
    }
}

impl OrderedMap {
    /// An empty one.
    pub fn new() -> Self {
        Self { shards: (0..SHARDS).map(|_| RwLock::default()).collect() }
    }

    /// The value of a key as applied here, which may lag behind what was acknowledged elsewhere.
    pub fn get(&self, region: RegionId, key: &[u8]) -> Option<Bytes> {
        self.find(region)?.lock().map.get(key).cloned()
    }

    /// Up to `limit` pairs from `start` on, in order.
    pub fn scan(&self, region: RegionId, start: &[u8], limit: usize) -> Vec<(Bytes, Bytes)> {
        let Some(found) = self.find(region) else { return Vec::new() };
        let found = found.lock();
        let range = (Bound::Included(start), Bound::Unbounded);
        let pairs = found.map.range::<[u8], _>(range).take(limit);
        pairs.map(|(key, value)| (key.clone(), value.clone())).collect()
    }

    /// How many keys a region has.
    pub fn len(&self, region: RegionId) -> usize {
        self.find(region).map_or(0, |found| found.lock().map.len())
    }

    /// Whether a region has no keys.
    pub fn is_empty(&self, region: RegionId) -> bool {
        self.len(region) == 0
    }

    /// What has been applied, and a hash over all pairs: equal on two stores when their contents are.
    pub fn fingerprint(&self, region: RegionId) -> (Index, u64) {
        let Some(found) = self.find(region) else { return (Index::default(), 0) };
        let found = found.lock();
        let mut hasher = FxHasher::default();
        for (key, value) in &found.map {
            hasher.write_usize(key.len());
            hasher.write(key);
            hasher.write_usize(value.len());
            hasher.write(value);
        }
        let applied = found.applied.as_ref().map_or(Index::default(), |applied| applied.index);
        (applied, hasher.finish())
    }

    fn shard(&self, region: RegionId) -> &RwLock<FxHashMap<RegionId, Arc<Mutex<RegionMap>>>> {
        &self.shards[region.get() as usize % SHARDS]
    }

    fn find(&self, region: RegionId) -> Option<Arc<Mutex<RegionMap>>> {
        self.shard(region).read().get(&region).cloned()
    }

    fn find_or_create(&self, region: RegionId) -> Arc<Mutex<RegionMap>> {
        self.find(region)
            .unwrap_or_else(|| self.shard(region).write().entry(region).or_default().clone())
    }
}

impl StateMachine for OrderedMap {
    fn apply(&self, batch: &mut [RegionCommands]) -> Result<(), StateMachineError> {
        for region in batch {
            let found = self.find_or_create(region.region_id);
            let mut found = found.lock();
            let description = &region.applied.description;
            for command in &mut region.commands {
                let answer = match MapCommand::decode(command.payload.clone()) {
                    // Committed is committed: every store skips it alike, and the proposer hears why.
                    Err(error) => MapAnswer::Refused(error.to_string()),
                    // It was proposed without an epoch, and the region was split before it was applied.
                    Ok(command) if !description.contains(command.key()) => {
                        MapAnswer::Refused(OUT_OF_RANGE.to_owned())
                    }
                    Ok(MapCommand::Put { key, value }) => MapAnswer::Done(found.put(key, value)),
                    Ok(MapCommand::Delete { key }) => MapAnswer::Done(found.delete(&key)),
                };
                command.output = answer.encode();
            }
            found.applied = Some(region.applied.clone());
        }
        Ok(())
    }

    fn gains_from_batches(&self) -> bool {
        false
    }

    fn applied_state(&self, region: RegionId) -> Result<Option<AppliedState>, StateMachineError> {
        Ok(self.find(region).and_then(|found| found.lock().applied.clone()))
    }

    fn durable_index(&self, _region: RegionId) -> Index {
        Index::default()
    }

    fn split(&self, split: &RegionSplit) -> Result<(), StateMachineError> {
        let parent = self.find_or_create(split.parent.description.id);
        let mut parent = parent.lock();
        for applied in &split.children {
            let range = &applied.description;
            let mut from_start = parent.map.split_off(&range.start_key);
            if !range.end_key.is_empty() {
                parent.map.append(&mut from_start.split_off(&range.end_key));
            }
            let child = RegionMap::new(from_start, applied.clone());
            parent.bytes -= child.bytes;
            *self.find_or_create(range.id).lock() = child;
        }
        parent.applied = Some(split.parent.clone());
        Ok(())
    }

    fn snapshot(&self, region: RegionId) -> Result<Box<dyn SnapshotSource>, StateMachineError> {
        let unknown = || StateMachineError(format!("region {region} is not here"));
        let found = self.find(region).ok_or_else(unknown)?;
        let found = found.lock();
        let applied = found.applied.clone().ok_or_else(unknown)?;
        let pairs = found.map.clone().into_iter();
        // Pieces of about the size of a message; a larger pair is a piece of its own.
        let mut pairs =
            pairs.map(|(key, value)| MapCommand::Put { key, value }.encode()).peekable();
        let pieces = std::iter::from_fn(move || {
            let mut piece = BytesMut::new();
            while let Some(pair) = pairs.peek() {
                if !piece.is_empty() && piece.len() + pair.len() > PIECE_BYTES {
                    break;
                }
                piece.put_u32(u32::try_from(pair.len()).expect("a pair is shorter than 4 GiB"));
                piece.put_slice(pair);
                pairs.next();
            }
            (!piece.is_empty()).then(|| piece.freeze())
        });
        Ok(Box::new(Pieces::new(applied, pieces)))
    }

    fn install(&self, snapshot: &mut dyn SnapshotSource) -> Result<(), InstallError> {
        let mut map = BTreeMap::new();
        while let Some(mut piece) = snapshot.next_piece()? {
            while !piece.is_empty() {
                let length = piece.try_get_u32().map_or(usize::MAX, |length| length as usize);
                if length > piece.len() {
                    return Err(InstallError::Unsound("a piece of a snapshot is cut".to_owned()));
                }
                match MapCommand::decode(piece.split_to(length)) {
                    Ok(MapCommand::Put { key, value }) => map.insert(key, value),
                    other => return Err(InstallError::Unsound(format!("no pair: {other:?}"))),
                };
            }
        }
        let applied = snapshot.applied().clone();
        let region = applied.description.id;
        *self.find_or_create(region).lock() = RegionMap::new(map, applied);
        Ok(())
    }

    fn size(&self, region: RegionId) -> Option<RegionSize> {
        let found = self.find(region)?;
        let found = found.lock();
        Some(RegionSize { bytes: found.bytes, keys: found.map.len() as u64 })
    }

    fn split_keys(&self, region: RegionId, max_bytes: u64) -> Vec<Bytes> {
        let Some(found) = self.find(region) else { return Vec::new() };
        let found = found.lock();
        let Some(mut cutter) = Cutter::new(found.bytes, max_bytes) else { return Vec::new() };
        let _ = found.map.iter().all(|pair| cutter.add(pair.0, pair_bytes(pair)));
        cutter.finish()
    }

    fn destroy(&self, region: RegionId) -> Result<(), StateMachineError> {
        self.shard(region).write().remove(&region);
        Ok(())
    }

    fn flush(&self) -> Result<(), StateMachineError> {
        Ok(())
    }
}
