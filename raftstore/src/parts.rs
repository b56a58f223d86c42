//! What a store's threads are made of, while they are made.

use crate::clock::Clock;
use crate::config::StoreConfig;
use crate::creator::Creator;
use crate::events::Observers;
use crate::handle::{HandleInner, StoreHandle};
use crate::health::Health;
use crate::inspect::Queues;
use crate::liveness::{Liveness, Patience};
use crate::log_store::LogStore;
use crate::metrics::Metrics;
use crate::peers::Peers;
use crate::placement::{Habits, Placement, PlacementWorker, SplitPolicy};
use crate::poller::StorePoller;
use crate::range_map::RangeMap;
use crate::read_gate::ReadGates;
use crate::region_fsm::RegionRouter;
use crate::snapshot::{
    ChoreQueue, ChoreWorker, SnapshotFiles, StreamLimits, StreamQueue, StreamWorker, Traffic,
    TrafficCounts,
};
use crate::state_machine::StateMachine;
use crate::store_fsm::{SetAside, StoreFsm};
use crate::transport::Transport;
use crate::write_path::apply::{Applier, ApplyQueue, ApplyStation, ApplyWorker};
use crate::write_path::collect::CollectStation;
use crate::write_path::persist::{LogWriter, PersistStation, WriteQueue};
use crate::write_path::propose::ProposeStation;
use crate::write_path::respond::RespondStation;
use crate::write_path::send::SendStation;
use batch_system::Limits;
use parking_lot::Mutex;
use region::{RegionConfig, StoreId};
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::AtomicBool;
use std::sync::Arc;

/// What the user brings: the seams of a store.
pub(crate) struct Seams {
    pub(crate) log_store: Arc<dyn LogStore>,
    pub(crate) state_machine: Arc<dyn StateMachine>,
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) snapshot_files: Arc<dyn SnapshotFiles>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) placement: Option<Arc<dyn Placement>>,
    pub(crate) observers: Arc<Observers>,
}

/// The seams and the queues between the threads. Used to make each thread's own part, and then gone:
/// nobody who does the work holds this.
pub(crate) struct Parts {
    pub(crate) store_id: StoreId,
    pub(crate) config: StoreConfig,
    pub(crate) seams: Seams,
    pub(crate) health: Arc<Health>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) creator: Arc<Creator>,
    pub(crate) write_queues: Vec<Arc<WriteQueue>>,
    pub(crate) apply_queues: Vec<Arc<ApplyQueue>>,
    pub(crate) streams: Arc<StreamQueue>,
    pub(crate) traffic_counts: Arc<TrafficCounts>,
}

impl Parts {
    pub(crate) fn new(
        store_id: StoreId,
        config: StoreConfig,
        seams: Seams,
        metrics: Arc<Metrics>,
    ) -> Self {
        let limit = usize::try_from(config.queue_size.as_u64()).unwrap_or(usize::MAX);
        // A log in memory has nothing to wait for.
        let writers = match seams.log_store.is_volatile() {
            true => 0,
            false => config.log_writers.unwrap_or(1),
        };
        let health = Arc::new(Health::default());
        // The keys that the standard library draws for it are others each time.
        let incarnation = RandomState::new().hash_one(store_id);
        let patience = Patience::new(config.raft.election_ticks, config.raft.look_around_ticks);
        let creator = Creator {
            store_id,
            region_config: Arc::new(RegionConfig { incarnation, ..config.region_config() }),
            tick_interval: config.raft.tick_interval,
            cold_after: config.raft.cold_after(),
            log_store: seams.log_store.clone(),
            state_machine: seams.state_machine.clone(),
            files: seams.snapshot_files.clone(),
            ranges: Arc::new(RangeMap::default()),
            directory: Arc::default(),
            peers: Arc::new(Peers::default()),
            gates: Arc::new(ReadGates::default()),
            liveness: Arc::new(Liveness::new(store_id, incarnation, patience)),
            cold: Arc::default(),
            set_aside: SetAside::default(),
            health: health.clone(),
            metrics: metrics.clone(),
            observers: seams.observers.clone(),
            chores: Arc::new(ChoreQueue::new(limit)),
            newcomers: Arc::default(),
            bootstrapping: Mutex::new(()),
        };
        Self {
            write_queues: (0..writers).map(|_| Arc::new(WriteQueue::new(limit))).collect(),
            apply_queues: (0..config.apply_pollers)
                .map(|_| Arc::new(ApplyQueue::new(limit)))
                .collect(),
            streams: Arc::new(StreamQueue::new(limit)),
            traffic_counts: Arc::default(),
            creator: Arc::new(creator),
            health,
            store_id,
            config,
            seams,
            metrics,
        }
    }

    pub(crate) fn limits(&self) -> Limits {
        Limits {
            batch_size: self.config.round_size(),
            message_budget: self.config.message_budget,
            mailbox_capacity: self.config.mailbox_capacity,
            forced_capacity: 4 * self.config.mailbox_capacity,
            ..Limits::default()
        }
    }

    /// The store's control FSM.
    pub(crate) fn control(&self) -> Box<StoreFsm> {
        Box::new(StoreFsm::new(self.creator.clone()))
    }

    fn send_station(&self) -> SendStation {
        SendStation::new(self.seams.transport.clone(), self.streams.clone())
    }

    fn applier(&self, router: &RegionRouter) -> Applier {
        Applier {
            state_machine: self.seams.state_machine.clone(),
            health: self.health.clone(),
            clock: self.seams.clock.clone(),
            creator: self.creator.clone(),
            chores: self.creator.chores.clone(),
            router: router.clone(),
        }
    }

    pub(crate) fn poller(&self, router: &RegionRouter) -> StorePoller {
        let (clock, health) = (&self.seams.clock, &self.health);
        let collect = CollectStation {
            persist: PersistStation::new(
                self.seams.log_store.clone(),
                health.clone(),
                clock.clone(),
                self.config.sync,
                self.write_queues.clone(),
            ),
            send: self.send_station(),
            apply: ApplyStation::new(self.applier(router), self.apply_queues.clone()),
            respond: RespondStation::new(clock.clone()),
            creator: self.creator.clone(),
            streams: self.streams.clone(),
        };
        StorePoller::new(
            ProposeStation::new(self.config.raft.tick_interval, self.creator.clone()),
            collect,
            self.metrics.local(),
            clock.clone(),
            health.clone(),
            self.seams.log_store.is_volatile(),
            router.clone(),
        )
    }

    pub(crate) fn log_writer(&self, queue: &Arc<WriteQueue>, router: &RegionRouter) -> LogWriter {
        LogWriter::new(
            queue.clone(),
            self.seams.log_store.clone(),
            self.health.clone(),
            self.seams.clock.clone(),
            self.config.sync,
            self.send_station(),
            router.clone(),
            &self.metrics,
        )
    }

    pub(crate) fn apply_worker(
        &self,
        queue: &Arc<ApplyQueue>,
        router: &RegionRouter,
    ) -> ApplyWorker {
        ApplyWorker::new(queue.clone(), self.applier(router), &self.metrics)
    }

    pub(crate) fn stream_worker(&self, router: &RegionRouter) -> StreamWorker {
        let tick = self.config.raft.tick_interval;
        let bytes = self.config.snapshot_rate.as_u64() as f64 * tick.as_secs_f64();
        StreamWorker {
            cluster_id: self.config.cluster_id,
            store_id: self.store_id,
            queue: self.streams.clone(),
            limits: StreamLimits {
                snapshots: self.config.max_snapshots,
                bytes_per_tick: (bytes as u64).max(1),
                tick,
            },
            state_machine: self.seams.state_machine.clone(),
            transport: self.seams.transport.clone(),
            files: self.seams.snapshot_files.clone(),
            ranges: self.creator.ranges.clone(),
            peers: self.creator.peers.clone(),
            directory: self.creator.directory.clone(),
            cold: self.creator.cold.clone(),
            health: self.health.clone(),
            router: router.clone(),
            metrics: self.metrics.clone(),
            observers: self.seams.observers.clone(),
            traffic: Traffic::default(),
            counts: self.traffic_counts.clone(),
        }
    }

    pub(crate) fn chore_worker(&self, router: &RegionRouter) -> ChoreWorker {
        ChoreWorker {
            queue: self.creator.chores.clone(),
            state_machine: self.seams.state_machine.clone(),
            log_store: self.seams.log_store.clone(),
            files: self.seams.snapshot_files.clone(),
            ranges: self.creator.ranges.clone(),
            health: self.health.clone(),
            set_aside: self.creator.set_aside.clone(),
            router: router.clone(),
            metrics: self.metrics.clone(),
            observers: self.seams.observers.clone(),
            chores: Vec::new(),
        }
    }

    /// `None` where there is no placement.
    pub(crate) fn placement_worker(&self, handle: &StoreHandle) -> Option<PlacementWorker> {
        let (settings, seams) = (&self.config.placement, &self.seams);
        let habits = Habits {
            interval: settings.interval,
            batch: settings.batch,
            down_ticks: 2 * self.config.raft.election_ticks as u64,
            max_snapshots: self.config.max_snapshots,
            split: SplitPolicy {
                max_bytes: settings.split_size.as_u64(),
                max_writes: settings.split_writes,
            },
        };
        let placement = seams.placement.clone()?;
        let (state_machine, clock) = (seams.state_machine.clone(), seams.clock.clone());
        let (handle, metrics) = (handle.clone(), self.metrics.clone());
        Some(PlacementWorker::new(placement, state_machine, handle, clock, metrics, habits))
    }

    pub(crate) fn handle(&self, router: &RegionRouter) -> StoreHandle {
        let inner = HandleInner {
            store_id: self.store_id,
            cluster_id: self.config.cluster_id,
            router: router.clone(),
            clock: self.seams.clock.clone(),
            health: self.health.clone(),
            metrics: self.metrics.clone(),
            ranges: self.creator.ranges.clone(),
            gates: self.creator.gates.clone(),
            liveness: self.creator.liveness.clone(),
            cold: self.creator.cold.clone(),
            set_aside: self.creator.set_aside.clone(),
            directory: self.creator.directory.clone(),
            queues: Queues {
                write: self.write_queues.clone(),
                apply: self.apply_queues.clone(),
                streams: self.streams.clone(),
                chores: self.creator.chores.clone(),
                traffic: self.traffic_counts.clone(),
            },
            creator: Mutex::new(Some(self.creator.clone())),
            stopped: AtomicBool::new(false),
            max_proposal_bytes: self.config.region_config().max_proposal_bytes,
        };
        StoreHandle { inner: Arc::new(inner) }
    }
}
