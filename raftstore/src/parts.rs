//! What a store's threads are made of, while they are made.

use crate::clock::Clock;
use crate::config::StoreConfig;
use crate::creator::Creator;
use crate::handle::{HandleInner, StoreHandle};
use crate::health::Health;
use crate::log_store::LogStore;
use crate::metrics::Metrics;
use crate::poller::StorePoller;
use crate::range_map::RangeMap;
use crate::region_fsm::RegionRouter;
use crate::state_machine::StateMachine;
use crate::store_fsm::SetAside;
use crate::transport::Transport;
use crate::write_path::apply::{Applier, ApplyQueue, ApplyStation, ApplyWorker};
use crate::write_path::collect::CollectStation;
use crate::write_path::persist::{LogWriter, PersistStation, WriteQueue};
use crate::write_path::propose::ProposeStation;
use crate::write_path::respond::RespondStation;
use crate::write_path::send::SendStation;
use batch_system::Limits;
use parking_lot::Mutex;
use region::StoreId;
use std::sync::atomic::AtomicBool;
use std::sync::Arc;

/// The seams and the queues between the threads. Used to make each thread's own part, and then gone:
/// nobody who does the work holds this.
pub(crate) struct Parts {
    pub(crate) store_id: StoreId,
    pub(crate) config: StoreConfig,
    pub(crate) log_store: Arc<dyn LogStore>,
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) applier: Applier,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) set_aside: SetAside,
    pub(crate) write_queues: Vec<Arc<WriteQueue>>,
    pub(crate) apply_queues: Vec<Arc<ApplyQueue>>,
}

impl Parts {
    pub(crate) fn new(
        store_id: StoreId,
        config: StoreConfig,
        log_store: Arc<dyn LogStore>,
        state_machine: Arc<dyn StateMachine>,
        transport: Arc<dyn Transport>,
        clock: Arc<dyn Clock>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let limit = usize::try_from(config.queue_size.as_u64()).unwrap_or(usize::MAX);
        // A log in memory has nothing to wait for.
        let writers = match log_store.is_volatile() {
            true => 0,
            false => config.log_writers.unwrap_or(1),
        };
        Self {
            write_queues: (0..writers).map(|_| Arc::new(WriteQueue::new(limit))).collect(),
            apply_queues: (0..config.apply_pollers)
                .map(|_| Arc::new(ApplyQueue::new(limit)))
                .collect(),
            applier: Applier { state_machine, health: Arc::new(Health::default()), clock },
            set_aside: SetAside::default(),
            store_id,
            config,
            log_store,
            transport,
            metrics,
        }
    }

    pub(crate) fn limits(&self) -> Limits {
        Limits {
            batch_size: self.config.batch_size,
            message_budget: self.config.message_budget,
            mailbox_capacity: self.config.mailbox_capacity,
            forced_capacity: 4 * self.config.mailbox_capacity,
            ..Limits::default()
        }
    }

    pub(crate) fn poller(&self) -> StorePoller {
        let (clock, health) = (&self.applier.clock, &self.applier.health);
        let collect = CollectStation {
            persist: PersistStation::new(
                self.log_store.clone(),
                health.clone(),
                clock.clone(),
                self.config.sync,
                self.write_queues.clone(),
            ),
            send: SendStation::new(self.transport.clone()),
            apply: ApplyStation::new(self.applier.clone(), self.apply_queues.clone()),
            respond: RespondStation::new(clock.clone()),
        };
        StorePoller::new(
            ProposeStation::new(self.config.raft.tick_interval),
            collect,
            self.metrics.local(),
            clock.clone(),
            health.clone(),
            self.log_store.is_volatile(),
            self.set_aside.clone(),
        )
    }

    pub(crate) fn log_writer(&self, queue: &Arc<WriteQueue>, router: &RegionRouter) -> LogWriter {
        LogWriter::new(
            queue.clone(),
            self.log_store.clone(),
            self.applier.health.clone(),
            self.applier.clock.clone(),
            self.config.sync,
            SendStation::new(self.transport.clone()),
            router.clone(),
            &self.metrics,
        )
    }

    pub(crate) fn apply_worker(
        &self,
        queue: &Arc<ApplyQueue>,
        router: &RegionRouter,
    ) -> ApplyWorker {
        ApplyWorker::new(queue.clone(), self.applier.clone(), router.clone(), &self.metrics)
    }

    pub(crate) fn handle(&self, router: &RegionRouter) -> StoreHandle {
        let inner = HandleInner {
            store_id: self.store_id,
            router: router.clone(),
            clock: self.applier.clock.clone(),
            health: self.applier.health.clone(),
            metrics: self.metrics.clone(),
            ranges: Arc::new(RangeMap::default()),
            set_aside: self.set_aside.clone(),
            creator: Mutex::new(Some(Arc::new(self.creator()))),
            stopped: AtomicBool::new(false),
            max_proposal_bytes: self.config.region_config().max_proposal_bytes,
        };
        StoreHandle { inner: Arc::new(inner) }
    }

    fn creator(&self) -> Creator {
        Creator {
            store_id: self.store_id,
            region_config: Arc::new(self.config.region_config()),
            tick_interval: self.config.raft.tick_interval,
            log_store: self.log_store.clone(),
            state_machine: self.applier.state_machine.clone(),
            bootstrapping: parking_lot::Mutex::new(()),
        }
    }
}
