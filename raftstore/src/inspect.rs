//! What a store tells about itself and its regions, as plain data. Nobody is asked: regions are read from
//! the summaries that they keep (`published.rs`), so this is cheap with 100,000 of them, and tells also of
//! those that are stuck.

use crate::handle::StoreHandle;
use crate::published::{Published, Standing};
use crate::snapshot::{ChoreQueue, StreamQueue, TrafficCounts};
use crate::write_path::apply::ApplyQueue;
use crate::write_path::persist::WriteQueue;
use region::{
    Index, PeerId, PeerProgress, RegionDescription, RegionId, RegionStatus, Role, StoreId, Term,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::Arc;

/// What a region's peer on a store is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum RegionState {
    /// It serves, or would with a leader.
    Live,
    /// It was told of its region and waits for a snapshot to know more.
    Uninitialised,
    /// The split that it comes from is still to be applied here.
    AwaitsSplit,
    /// A snapshot has taken the place of its log, and is being installed.
    Installing,
    /// It has left its region, and is about to be destroyed.
    Leaving,
    /// It does nothing any more.
    SetAside {
        /// Why.
        reason: String,
    },
}

/// A region's peer on a store, as of its last turn or tick. Figures of one region belong together, those of
/// two regions need not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegionInfo {
    /// The region.
    pub region_id: RegionId,
    /// What the peer is about. Of one that was set aside when the store started nothing else is known: its
    /// other fields are empty.
    pub state: RegionState,
    /// The region as of the last applied entry.
    pub description: Arc<RegionDescription>,
    /// This store's peer.
    pub peer_id: PeerId,
    /// Whether it sleeps: nothing happens in its region.
    pub asleep: bool,
    /// What it is in its region.
    pub role: Role,
    /// Its term.
    pub term: Term,
    /// Who leads, as far as it knows.
    pub leader: Option<PeerId>,
    /// Last entry of the log that is gone.
    pub truncated: Index,
    /// Last entry that the state machine has applied.
    pub applied: Index,
    /// Last entry known to be committed.
    pub committed: Index,
    /// Last entry known to be persisted here.
    pub persisted: Index,
    /// Last entry of the log.
    pub last: Index,
    /// Proposals that wait for their entry to commit.
    pub pending_proposals: usize,
    /// Bytes handed out to be applied and not yet applied.
    pub unapplied_bytes: usize,
    /// Bytes of entries in memory.
    pub cached_bytes: usize,
    /// Proposals taken since the peer came to life here.
    pub writes: u64,
    /// Of a leader: how each peer follows, itself included.
    pub peers: Vec<PeerProgress>,
}

impl RegionInfo {
    fn read(region_id: RegionId, published: &Published) -> Self {
        let summary = published.read();
        Self {
            region_id,
            state: match summary.standing {
                Standing::Live => RegionState::Live,
                Standing::Uninitialised => RegionState::Uninitialised,
                Standing::AwaitsSplit => RegionState::AwaitsSplit,
                Standing::Installing => RegionState::Installing,
                Standing::Leaving => RegionState::Leaving,
            },
            description: summary.description,
            peer_id: summary.peer_id,
            asleep: summary.asleep,
            role: summary.role,
            term: summary.term,
            leader: summary.leader,
            truncated: summary.truncated,
            applied: summary.applied,
            committed: summary.committed,
            persisted: summary.persisted,
            last: summary.last,
            pending_proposals: summary.pending_proposals,
            unapplied_bytes: summary.unapplied_bytes,
            cached_bytes: summary.cached_bytes,
            writes: summary.writes,
            peers: summary.progress,
        }
    }

    fn cold(status: RegionStatus, writes: u64) -> Self {
        let peers = status.matched.iter().map(|(peer_id, matched)| PeerProgress {
            peer_id: *peer_id,
            matched: *matched,
            lag: 0,
            in_snapshot: false,
            silent_ticks: 0,
        });
        Self {
            region_id: status.description.id,
            state: RegionState::Live,
            peers: peers.collect(),
            description: status.description,
            peer_id: status.peer_id,
            asleep: true,
            role: status.role,
            term: status.term,
            leader: status.leader,
            truncated: status.truncated,
            applied: status.applied,
            committed: status.committed,
            persisted: status.persisted,
            last: status.last,
            pending_proposals: 0,
            unapplied_bytes: 0,
            cached_bytes: 0,
            writes,
        }
    }

    fn unknown(region_id: RegionId, state: RegionState) -> Self {
        Self {
            region_id,
            state,
            description: Arc::new(RegionDescription::uninitialised(region_id, 0)),
            peer_id: PeerId::default(),
            asleep: false,
            role: Role::Follower,
            term: Term::default(),
            leader: None,
            truncated: Index::default(),
            applied: Index::default(),
            committed: Index::default(),
            persisted: Index::default(),
            last: Index::default(),
            pending_proposals: 0,
            unapplied_bytes: 0,
            cached_bytes: 0,
            writes: 0,
            peers: Vec::new(),
        }
    }
}

/// What waits in a store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueDepths {
    /// Regions that wait for a poller.
    pub scheduled_regions: usize,
    /// Bytes that wait for log writers.
    pub log_bytes: usize,
    /// Bytes that wait for apply threads.
    pub apply_bytes: usize,
    /// Bytes that wait for the thread that sends and receives snapshots.
    pub snapshot_bytes: usize,
    /// Snapshots to be installed and regions to be destroyed.
    pub chores: usize,
}

/// Snapshots on their way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotsUnderWay {
    /// To other stores.
    pub sending: usize,
    /// From other stores.
    pub receiving: usize,
}

/// The queues of a store.
pub(crate) struct Queues {
    pub(crate) write: Vec<Arc<WriteQueue>>,
    pub(crate) apply: Vec<Arc<ApplyQueue>>,
    pub(crate) streams: Arc<StreamQueue>,
    pub(crate) chores: Arc<ChoreQueue>,
    pub(crate) traffic: Arc<TrafficCounts>,
}

impl Queues {
    pub(crate) fn depths(&self, scheduled_regions: usize) -> QueueDepths {
        QueueDepths {
            scheduled_regions,
            log_bytes: self.write.iter().map(|queue| queue.weight()).sum(),
            apply_bytes: self.apply.iter().map(|queue| queue.weight()).sum(),
            snapshot_bytes: self.streams.weight(),
            chores: self.chores.weight(),
        }
    }

    pub(crate) fn snapshots(&self) -> SnapshotsUnderWay {
        SnapshotsUnderWay {
            sending: self.traffic.sending.load(Ordering::Relaxed),
            receiving: self.traffic.receiving.load(Ordering::Relaxed),
        }
    }
}

/// A store as a whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreStatus {
    /// The store.
    pub store_id: StoreId,
    /// Regions that are alive here.
    pub regions: usize,
    /// Regions that sleep, the cold ones included.
    pub asleep: usize,
    /// Regions that have slept for so long that they gave back their memory.
    pub cold: usize,
    /// Regions that it leads.
    pub leaders: u64,
    /// How often a region here became or ceased to be the leader.
    pub leader_changes: u64,
    /// Regions that do nothing any more, and why.
    pub set_aside: BTreeMap<RegionId, String>,
    /// Why the store stopped by itself, if it did.
    pub failure: Option<String>,
    /// What waits.
    pub queues: QueueDepths,
    /// Snapshots on their way.
    pub snapshots: SnapshotsUnderWay,
}

impl StoreHandle {
    /// How a region stands here, as of its last turn or tick; `None` if it is not here. Waits for nobody.
    /// For figures as of now see [`region_status`](Self::region_status).
    pub fn region(&self, region: RegionId) -> Option<RegionInfo> {
        let found = self.inner.directory.find(region);
        let info = found.map(|published| RegionInfo::read(region, &published)).or_else(|| {
            let cold = self.inner.cold.status(region);
            let cold = cold.map(|(status, writes)| RegionInfo::cold(status, writes));
            // It may have become warm between the two looks.
            let warm = || self.inner.directory.find(region);
            cold.or_else(|| warm().map(|published| RegionInfo::read(region, &published)))
        });
        let reason = self.inner.set_aside.lock().get(&region).cloned();
        let Some(reason) = reason else { return info };
        let state = RegionState::SetAside { reason };
        match info {
            Some(info) => Some(RegionInfo { state, ..info }),
            None => Some(RegionInfo::unknown(region, state)),
        }
    }

    /// All regions here by id, those that are set aside included; each as by [`region`](Self::region).
    pub fn regions(&self) -> Vec<RegionInfo> {
        let set_aside = self.set_aside();
        // Before and after: a region may become cold or warm between two looks, and is seen in one of the three.
        let mut cold = self.inner.cold.all();
        let all = self.inner.directory.all();
        cold.extend(self.inner.cold.all());
        let mut infos = Vec::with_capacity(all.len() + set_aside.len());
        infos.extend(all.iter().map(|(region, published)| RegionInfo::read(*region, published)));
        if !cold.is_empty() {
            infos.extend(cold.into_iter().map(|(status, writes)| RegionInfo::cold(status, writes)));
            infos.sort_by_key(|info| info.region_id);
            infos.dedup_by_key(|info| info.region_id);
        }
        for (region, reason) in set_aside {
            let state = RegionState::SetAside { reason };
            match infos.binary_search_by_key(&region, |info| info.region_id) {
                Ok(at) => infos[at].state = state,
                Err(at) => infos.insert(at, RegionInfo::unknown(region, state)),
            }
        }
        infos
    }

    /// How the store stands as a whole. Waits for nobody.
    pub fn store_status(&self) -> StoreStatus {
        let inner = &self.inner;
        StoreStatus {
            store_id: inner.store_id,
            regions: self.region_count(),
            asleep: inner.liveness.figures().asleep as usize,
            cold: inner.cold.len(),
            leaders: self.leaders(),
            leader_changes: self.leader_changes(),
            set_aside: self.set_aside(),
            failure: self.failure().map(|failure| failure.to_string()),
            queues: inner.queues.depths(inner.router.waiting().iter().sum()),
            snapshots: inner.queues.snapshots(),
        }
    }
}
