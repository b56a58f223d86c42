//! What regions show of themselves to whoever asks, without being asked: each keeps a summary up to date
//! that anybody may read, and the directory leads to all of them.
//!
//! A region publishes at the end of a turn: at once when its role, leader, description or state has
//! changed, else with its tick, or after [`PUBLISH_EVERY`] where ticks are rarer. If nothing has changed
//! nothing is written. So a summary is at most a tick old, and all other turns of a region cost a look at
//! two fields beside it. (Publishing every 100 ms cost 8 % of the CPU with 10,000 busy regions: the summary
//! is cold.)
//!
//! Caveat: these are copies, for people, metrics and placement. Nothing that must be right may rest on
//! them.

use crate::cold::give_back_room;
use parking_lot::{Mutex, RwLock};
use region::{Index, PeerId, PeerProgress, Region, RegionDescription, RegionId, Role, Term};
use rustc_hash::FxHashMap;
use std::sync::Arc;

/// Times are told apart by units of 256 ms, which is all that matters here and fits into two bytes.
const UNIT_BITS: u32 = 8;

/// A busy region publishes this often, in these units.
const PUBLISH_EVERY: u16 = 4;

/// A peer that stays silent counts as changed once in so many ticks; heartbeats alone must not.
const SILENT_STEP_TICKS: u64 = 4;

const SHARDS: usize = 64;

/// What a peer is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Standing {
    Live,
    Uninitialised,
    AwaitsSplit,
    Installing,
    Leaving,
}

/// One region's summary. Small: there may be a million of them. So indexes are kept as their distance from
/// the last one, and a peer's progress as the figures that change.
#[derive(Debug)]
pub(crate) struct Published(Mutex<Compact>);

#[derive(Debug)]
struct Compact {
    description: Arc<RegionDescription>,
    peer_id: PeerId,
    term: Term,
    last: Index,
    writes: u64,
    truncated_behind: u32,
    persisted_behind: u32,
    committed_behind: u32,
    applied_behind: u32,
    pending_proposals: u32,
    unapplied_bytes: u32,
    cached_bytes: u32,
    /// Of a leader: one for each peer of the description.
    progress: Box<[CompactProgress]>,
    role: Role,
    standing: Standing,
    asleep: bool,
    /// Its place in the description; 255 if there is none.
    leader: u8,
}

#[derive(Clone, Copy, Debug)]
struct CompactProgress {
    lag: u32,
    silent_ticks: u16,
    in_snapshot: bool,
}

/// A summary, read.
pub(crate) struct Summary {
    pub(crate) description: Arc<RegionDescription>,
    pub(crate) peer_id: PeerId,
    pub(crate) role: Role,
    pub(crate) standing: Standing,
    pub(crate) asleep: bool,
    pub(crate) term: Term,
    pub(crate) leader: Option<PeerId>,
    pub(crate) truncated: Index,
    pub(crate) applied: Index,
    pub(crate) committed: Index,
    pub(crate) persisted: Index,
    pub(crate) last: Index,
    pub(crate) pending_proposals: usize,
    pub(crate) unapplied_bytes: usize,
    pub(crate) cached_bytes: usize,
    pub(crate) writes: u64,
    pub(crate) progress: Vec<PeerProgress>,
}

impl Published {
    fn new(region: &Region) -> Self {
        Self(Mutex::new(Compact::of(region, false, 0)))
    }

    /// The summary as it is now.
    pub(crate) fn read(&self) -> Summary {
        let compact = self.0.lock();
        let behind = |by: u32| Index::new(compact.last.get().saturating_sub(u64::from(by)));
        let peers = &compact.description.peers;
        let progress = peers.iter().zip(&compact.progress).map(|(peer, progress)| PeerProgress {
            peer_id: peer.id,
            matched: behind(progress.lag),
            lag: u64::from(progress.lag),
            in_snapshot: progress.in_snapshot,
            silent_ticks: u64::from(progress.silent_ticks),
        });
        Summary {
            progress: progress.collect(),
            description: compact.description.clone(),
            peer_id: compact.peer_id,
            role: compact.role,
            standing: compact.standing,
            asleep: compact.asleep,
            term: compact.term,
            leader: peers.get(usize::from(compact.leader)).map(|peer| peer.id),
            truncated: behind(compact.truncated_behind),
            applied: behind(compact.applied_behind),
            committed: behind(compact.committed_behind),
            persisted: behind(compact.persisted_behind),
            last: compact.last,
            pending_proposals: compact.pending_proposals as usize,
            unapplied_bytes: compact.unapplied_bytes as usize,
            cached_bytes: compact.cached_bytes as usize,
            writes: compact.writes,
        }
    }
}

fn narrow(value: impl TryInto<u32>) -> u32 {
    value.try_into().unwrap_or(u32::MAX)
}

impl Compact {
    fn of(region: &Region, leaving: bool, writes: u64) -> Self {
        let description = region.description().clone();
        let last = region.last_index();
        let behind = |index: Index| narrow(last.get().saturating_sub(index.get()));
        let leader = region.leader().and_then(|leader| {
            let place = description.peers.iter().position(|peer| peer.id == leader.id)?;
            u8::try_from(place).ok()
        });
        let progress = region.progress().map(|progress| CompactProgress {
            lag: narrow(progress.lag),
            silent_ticks: u16::try_from(progress.silent_ticks).unwrap_or(u16::MAX),
            in_snapshot: progress.in_snapshot,
        });
        Self {
            peer_id: region.peer().id,
            term: region.term(),
            last,
            writes,
            truncated_behind: behind(region.truncated().index),
            persisted_behind: behind(region.persisted_index()),
            committed_behind: behind(region.committed()),
            applied_behind: behind(region.applied_index()),
            pending_proposals: narrow(region.pending_proposals()),
            unapplied_bytes: narrow(region.unapplied_bytes()),
            cached_bytes: narrow(region.cached_bytes()),
            progress: progress.collect(),
            role: region.role(),
            standing: standing(region, leaving),
            asleep: region.is_asleep(),
            leader: leader.unwrap_or(u8::MAX),
            description,
        }
    }
}

fn standing(region: &Region, leaving: bool) -> Standing {
    match region.installs_up_to() {
        _ if leaving => Standing::Leaving,
        _ if !region.description().is_initialised() => Standing::Uninitialised,
        _ if !region.has_range() => Standing::AwaitsSplit,
        Some(_) => Standing::Installing,
        None => Standing::Live,
    }
}

/// A region's side of its summary.
pub(crate) struct Publisher {
    shared: Arc<Published>,
    /// Proposals that the region has taken since it came to life here.
    pub(crate) writes: u64,
    /// Of what was published last.
    fingerprint: u32,
    /// When that was looked at.
    looked: u16,
    /// Whether this turn has changed what people look for first, or is a tick.
    due: bool,
    /// The peer has left its region.
    leaving: bool,
}

impl Publisher {
    pub(crate) fn new(region: &Region) -> Self {
        let shared = Arc::new(Published::new(region));
        Self { shared, writes: 0, fingerprint: 0, looked: 0, due: true, leaving: false }
    }

    /// What the directory shall lead to.
    pub(crate) fn published(&self) -> Arc<Published> {
        self.shared.clone()
    }

    /// This turn is to be published when it ends.
    pub(crate) fn hurry(&mut self) {
        self.due = true;
    }

    /// The peer has left its region.
    pub(crate) fn leave(&mut self) {
        (self.due, self.leaving) = (true, true);
    }

    /// A turn of the region has ended.
    pub(crate) fn turn_ended(&mut self, region: &Region, now_ms: u32) {
        let now = (now_ms >> UNIT_BITS) as u16;
        if !self.due && now.wrapping_sub(self.looked) < PUBLISH_EVERY {
            return;
        }
        (self.due, self.looked) = (false, now);
        let fingerprint = self.fingerprint(region);
        if fingerprint != self.fingerprint {
            self.fingerprint = fingerprint;
            *self.shared.0.lock() = Compact::of(region, self.leaving, self.writes);
        }
    }

    fn fingerprint(&self, region: &Region) -> u32 {
        let epoch = region.description().epoch;
        let words = [
            region.last_index().get(),
            region.applied_index().get(),
            region.committed().get(),
            region.persisted_index().get(),
            region.truncated().index.get(),
            region.term().get(),
            region.leader().map_or(0, |peer| peer.id.get()),
            epoch.conf_ver << 32 ^ epoch.version,
            region.role() as u64
                | (standing(region, self.leaving) as u64) << 8
                | u64::from(region.is_asleep()) << 16,
            region.cached_bytes() as u64,
            self.writes,
        ];
        let mixed = words.into_iter().fold(1, mix);
        let mixed = region.progress().fold(mixed, |mixed, progress| {
            let silent = progress.silent_ticks / SILENT_STEP_TICKS;
            mix(mix(mixed, progress.lag), silent << 1 | u64::from(progress.in_snapshot))
        });
        (mixed >> 32) as u32
    }
}

fn mix(mixed: u64, word: u64) -> u64 {
    (mixed.rotate_left(5) ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

type Shard = FxHashMap<RegionId, Arc<Published>>;

/// The summaries of all regions of a store.
#[derive(Debug)]
pub(crate) struct Directory {
    shards: Box<[RwLock<Shard>]>,
}

impl Default for Directory {
    fn default() -> Self {
        Self { shards: (0..SHARDS).map(|_| RwLock::default()).collect() }
    }
}

impl Directory {
    fn shard(&self, region: RegionId) -> &RwLock<Shard> {
        &self.shards[region.get() as usize % SHARDS]
    }

    pub(crate) fn add(&self, region: RegionId, published: Arc<Published>) {
        self.shard(region).write().insert(region, published);
    }

    /// Unless a later peer of the region is there already.
    pub(crate) fn remove(&self, region: RegionId, published: &Arc<Published>) {
        let mut shard = self.shard(region).write();
        if shard.get(&region).is_some_and(|known| Arc::ptr_eq(known, published)) {
            shard.remove(&region);
            give_back_room(&mut shard);
        }
    }

    pub(crate) fn find(&self, region: RegionId) -> Option<Arc<Published>> {
        self.shard(region).read().get(&region).cloned()
    }

    /// All of them, by id. No lock is held while they are read.
    pub(crate) fn all(&self) -> Vec<(RegionId, Arc<Published>)> {
        let mut all = Vec::new();
        for shard in &self.shards {
            let shard = shard.read();
            all.extend(shard.iter().map(|(region, published)| (*region, published.clone())));
        }
        all.sort_unstable_by_key(|(region, _)| *region);
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::size_of;

    #[test]
    fn a_region_of_three_peers_costs_less_than_200_bytes() {
        let counts = 2 * size_of::<usize>();
        // A table is at least seven sixteenths full, and has a byte beside each entry.
        let entry = (size_of::<(RegionId, Arc<Published>)>() + 1) * 16 / 7;
        let leader = size_of::<Published>() + counts + 3 * size_of::<CompactProgress>();
        let all = leader + entry + size_of::<Publisher>();
        assert!(all < 200, "{all} bytes: {leader} + {entry} + {}", size_of::<Publisher>());
    }
}
