//! What readers of a region may know without asking it.
//!
//! A poller owns a region; readers on other threads see a few numbers that it publishes at the end of each
//! turn of the region, before any message of that turn leaves the store. So whoever elsewhere may act on
//! what the region has let go of (a new leader, the child of a split) does so after readers here know.
//!
//! # Reading
//!
//! ```text
//! before:  generation g, lease still running, epoch as asked
//! look:    the state machine
//! after:   generation still g, lease still running
//! ```
//!
//! What counts is the look after. Nobody else has been elected by then, so nothing was acknowledged elsewhere
//! that the state machine lacked when it was looked at; and the region was neither divided, replaced by a
//! snapshot nor destroyed meanwhile, since each of these raises the generation before the state machine is
//! touched (#13553). The look before saves looking in vain.
//!
//! Invariant: one poller at a time publishes; `generation` is 0 while the other numbers change, and once the
//! region has ended. A gate belongs to one life of a peer: one that is created anew has another (#9517).

use crate::cold::give_back_room;
use parking_lot::RwLock;
use region::{Index, PeerId, ReadMode, ReadPoint, ReadWay, RegionEpoch, RegionId, Serving};
use rustc_hash::FxHashMap;
use std::sync::atomic::{fence, AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;
use std::time::Duration;

const SHARDS: usize = 64;

/// What one region publishes.
#[derive(Debug)]
pub(crate) struct ReadGate {
    region_id: RegionId,
    peer_id: PeerId,
    /// 0: ask the region.
    generation: AtomicU64,
    /// In nanoseconds of the store's clock; 0 is never.
    lease_until: AtomicU64,
    applied: AtomicU64,
    contents: AtomicBool,
    conf_ver: AtomicU64,
    version: AtomicU64,
    ended: AtomicBool,
}

impl ReadGate {
    pub(crate) fn new(region_id: RegionId, peer_id: PeerId) -> Self {
        Self {
            region_id,
            peer_id,
            generation: AtomicU64::new(0),
            lease_until: AtomicU64::new(0),
            applied: AtomicU64::new(0),
            contents: AtomicBool::new(false),
            conf_ver: AtomicU64::new(0),
            version: AtomicU64::new(0),
            ended: AtomicBool::new(false),
        }
    }

    /// The region is like this from now on; `before` is what was published last.
    pub(crate) fn publish(&self, serving: &Serving, before: Option<&Serving>) {
        if before == Some(serving) {
            return;
        }
        let nanos = |until: Duration| u64::try_from(until.as_nanos()).unwrap_or(u64::MAX);
        let lease_until = serving.lease_until.map_or(0, nanos);
        let same = before.is_some_and(|before| before.generation == serving.generation);
        if !same {
            // Readers that look now see that they must ask, and those that looked before see it afterwards.
            self.generation.store(0, Ordering::SeqCst);
            fence(Ordering::SeqCst);
            self.conf_ver.store(serving.epoch.conf_ver, Ordering::Release);
            self.version.store(serving.epoch.version, Ordering::Release);
        }
        // What is as it was need not be written: each of these waits for all that was written before.
        if before.is_none_or(|before| before.lease_until != serving.lease_until) {
            self.lease_until.store(lease_until, Ordering::SeqCst);
        }
        if before.is_none_or(|before| before.contents != serving.contents) {
            self.contents.store(serving.contents, Ordering::SeqCst);
        }
        self.applied.store(serving.applied.get(), Ordering::Release);
        if !same {
            self.generation.store(serving.generation, Ordering::SeqCst);
        }
    }

    /// The region has ended.
    pub(crate) fn end(&self) {
        self.ended.store(true, Ordering::SeqCst);
        self.generation.store(0, Ordering::SeqCst);
    }

    /// Whether the region has ended; another life of it has another gate.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// Looks, if that is possible without asking the region.
    pub(crate) fn look<T>(
        &self,
        mode: ReadMode,
        epoch: Option<RegionEpoch>,
        now: impl Fn() -> Duration,
        f: &mut impl FnMut(&ReadPoint) -> T,
    ) -> Option<(T, ReadWay)> {
        let generation = self.generation.load(Ordering::Acquire);
        if generation == 0 || !self.contents.load(Ordering::Acquire) {
            return None;
        }
        let own = RegionEpoch {
            conf_ver: self.conf_ver.load(Ordering::Acquire),
            version: self.version.load(Ordering::Acquire),
        };
        if epoch.is_some_and(|asked| asked != own) {
            return None;
        }
        let applied = Index::new(self.applied.load(Ordering::Acquire));
        let lease_stands =
            || u128::from(self.lease_until.load(Ordering::Acquire)) > now().as_nanos();
        let way = match mode {
            ReadMode::Stale { at_least } if applied < at_least => return None,
            ReadMode::Stale { .. } => ReadWay::Stale,
            _ if !lease_stands() => return None,
            _ => ReadWay::Lease,
        };
        let (region_id, peer_id) = (self.region_id, self.peer_id);
        let value = f(&ReadPoint { region_id, peer_id, epoch: own, applied, way, generation });
        // What was read was read before what follows.
        fence(Ordering::SeqCst);
        let stands = way == ReadWay::Stale || lease_stands();
        (stands && self.is_still(generation)).then_some((value, way))
    }

    /// Looks on the strength of what the region has answered, if that still holds afterwards.
    pub(crate) fn look_at<T>(
        &self,
        point: &ReadPoint,
        f: &mut impl FnMut(&ReadPoint) -> T,
    ) -> Option<T> {
        if point.peer_id != self.peer_id || !self.is_still(point.generation) {
            return None;
        }
        let value = f(point);
        fence(Ordering::SeqCst);
        self.is_still(point.generation).then_some(value)
    }

    fn is_still(&self, generation: u64) -> bool {
        self.generation.load(Ordering::SeqCst) == generation
    }
}

/// The gates of a store's regions.
#[derive(Debug)]
pub(crate) struct ReadGates {
    shards: Vec<RwLock<FxHashMap<RegionId, Arc<ReadGate>>>>,
}

impl Default for ReadGates {
    fn default() -> Self {
        Self { shards: (0..SHARDS).map(|_| RwLock::default()).collect() }
    }
}

impl ReadGates {
    fn shard(&self, region: RegionId) -> &RwLock<FxHashMap<RegionId, Arc<ReadGate>>> {
        &self.shards[(region.get() % SHARDS as u64) as usize]
    }

    pub(crate) fn find(&self, region: RegionId) -> Option<Arc<ReadGate>> {
        self.shard(region).read().get(&region).cloned()
    }

    /// A region is about to be here.
    pub(crate) fn open(&self, region: RegionId, peer: PeerId) -> Arc<ReadGate> {
        let gate = Arc::new(ReadGate::new(region, peer));
        if let Some(before) = self.shard(region).write().insert(region, gate.clone()) {
            before.end();
        }
        gate
    }

    /// A region has ended.
    pub(crate) fn close(&self, gate: &Arc<ReadGate>) {
        gate.end();
        let mut shard = self.shard(gate.region_id).write();
        if shard.get(&gate.region_id).is_some_and(|known| Arc::ptr_eq(known, gate)) {
            shard.remove(&gate.region_id);
            give_back_room(&mut shard);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use region::Term;

    const NOW: Duration = Duration::from_secs(5);

    fn serving(generation: u64, lease_until_s: u64) -> Serving {
        Serving {
            generation,
            epoch: RegionEpoch { conf_ver: 1, version: generation },
            applied: Index::new(9),
            contents: true,
            term: Term::new(6),
            lease_until: (lease_until_s > 0).then(|| Duration::from_secs(lease_until_s)),
        }
    }

    fn gate(first: &Serving) -> ReadGate {
        let gate = ReadGate::new(RegionId::new(1), PeerId::new(2));
        gate.publish(first, None);
        gate
    }

    fn way(gate: &ReadGate, mode: ReadMode, epoch: Option<RegionEpoch>) -> Option<ReadWay> {
        gate.look(mode, epoch, || NOW, &mut |_| ()).map(|(_, way)| way)
    }

    #[test]
    fn a_lease_is_read_under_until_it_ends() {
        let standing = gate(&serving(1, 6));
        assert_eq!(way(&standing, ReadMode::Linearizable, None), Some(ReadWay::Lease));
        let other = RegionEpoch { conf_ver: 1, version: 2 };
        assert_eq!(way(&standing, ReadMode::Linearizable, Some(other)), None);
        assert_eq!(way(&gate(&serving(1, 5)), ReadMode::LeaderOnly, None), None);
        let none = gate(&serving(1, 0));
        assert_eq!(way(&none, ReadMode::Linearizable, None), None);
        let stale = |at| ReadMode::Stale { at_least: Index::new(at) };
        assert_eq!(way(&none, stale(9), None), Some(ReadWay::Stale));
        assert_eq!(way(&none, stale(10), None), None);
    }

    #[test]
    fn what_changes_during_the_look_makes_it_worthless() {
        let changes: [fn(&ReadGate); 4] = [
            |gate| gate.publish(&serving(2, 6), Some(&serving(1, 6))),
            |gate| gate.publish(&serving(1, 0), Some(&serving(1, 6))),
            |gate| gate.publish(&serving(1, 4), Some(&serving(1, 6))),
            |gate| gate.end(),
        ];
        for change in changes {
            let gate = gate(&serving(1, 6));
            let seen = gate.look(ReadMode::Linearizable, None, || NOW, &mut |_| change(&gate));
            assert!(seen.is_none());
        }
        let gate = gate(&serving(1, 6));
        let mut point = None;
        gate.look(ReadMode::Linearizable, None, || NOW, &mut |at| point = Some(*at));
        let point = point.expect("looked");
        assert!(gate.look_at(&point, &mut |_| ()).is_some());
        let publish = |_: &ReadPoint| gate.publish(&serving(2, 6), Some(&serving(1, 6)));
        assert!(gate.look_at(&point, &mut { publish }).is_none());
        assert!(gate.look_at(&point, &mut |_| ()).is_none());
    }

    #[test]
    fn a_peer_that_is_created_anew_has_another_gate() {
        let gates = ReadGates::default();
        let (region, peer) = (RegionId::new(7), PeerId::new(1));
        let first = gates.open(region, peer);
        first.publish(&serving(1, 6), None);
        let second = gates.open(region, PeerId::new(2));
        second.publish(&serving(1, 6), None);
        assert!(first.has_ended() && way(&first, ReadMode::Linearizable, None).is_none());
        gates.close(&first);
        assert!(Arc::ptr_eq(&gates.find(region).expect("the second"), &second));
        gates.close(&second);
        assert!(gates.find(region).is_none());
    }
}
