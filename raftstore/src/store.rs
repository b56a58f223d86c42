//! A store: built, started, stopped.

use crate::clock::{Clock, SystemClock};
use crate::config::StoreConfig;
use crate::error::StartError;
use crate::figures::Figures;
use crate::handle::{HandleInner, StoreHandle};
use crate::health::Health;
use crate::log_store::{LogBatch, LogStore, RaftEngineLogStore, RegionWrite, Stored, StoredRegion};
use crate::message::RegionMessage;
use crate::metrics::Metrics;
use crate::poller::StorePoller;
use crate::range_map::RangeMap;
use crate::region_fsm::{RegionFsm, RegionRouter};
use crate::state_machine::StateMachine;
use crate::store_fsm::{SetAside, StoreFsm};
use crate::transport::Transport;
use crate::write_path::apply::{Applier, ApplyQueue, ApplyStation, ApplyWorker};
use crate::write_path::collect::CollectStation;
use crate::write_path::persist::{LogWriter, PersistStation, WriteQueue};
use crate::write_path::propose::ProposeStation;
use crate::write_path::respond::RespondStation;
use crate::write_path::send::SendStation;
use batch_system::{Limits, Pool, Priority};
use prometheus::{Encoder, Registry, TextEncoder};
use region::{
    LogReader, Region, RegionConfig, RegionDescription, RegionId, RegionRecord, RestoredState,
    StoreId, StoreIdent, TruncatedState,
};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

/// Regions whose records one bootstrap write covers.
const BOOTSTRAP_BATCH: usize = 1024;

/// How often disk space of the log is reclaimed.
const RECLAIM_EVERY: Duration = Duration::from_secs(10);

/// Builds a [`Store`].
#[must_use]
pub struct StoreBuilder {
    store_id: StoreId,
    config: StoreConfig,
    data_dir: Option<PathBuf>,
    log_store: Option<Arc<dyn LogStore>>,
    state_machine: Option<Arc<dyn StateMachine>>,
    transport: Option<Arc<dyn Transport>>,
    clock: Arc<dyn Clock>,
    registry: Registry,
}

impl StoreBuilder {
    /// The settings; defaults otherwise.
    pub fn config(mut self, config: StoreConfig) -> Self {
        self.config = config;
        self
    }

    /// Keeps the log on disk, in `raft-log` below this directory.
    pub fn data_dir(mut self, path: impl Into<PathBuf>) -> Self {
        self.data_dir = Some(path.into());
        self
    }

    /// Keeps the log in this log store.
    pub fn log_store(mut self, log_store: Arc<dyn LogStore>) -> Self {
        self.log_store = Some(log_store);
        self
    }

    /// What carries out the commands.
    pub fn state_machine(mut self, state_machine: Arc<dyn StateMachine>) -> Self {
        self.state_machine = Some(state_machine);
        self
    }

    /// What carries messages to the other stores.
    pub fn transport(mut self, transport: impl Transport) -> Self {
        self.transport = Some(Arc::new(transport));
        self
    }

    /// Where the metrics go; a registry of the store's own otherwise. Several stores may share one.
    pub fn registry(mut self, registry: Registry) -> Self {
        self.registry = registry;
        self
    }

    /// The clock; the machine's otherwise.
    pub fn clock(mut self, clock: impl Clock) -> Self {
        self.clock = Arc::new(clock);
        self
    }

    /// Opens the log, brings back the regions in it, and starts the threads.
    ///
    /// # Errors
    /// When something is missing or wrong; nothing is left running.
    pub fn start(self) -> Result<Store, StartError> {
        self.config.validate()?;
        if self.store_id.get() == 0 {
            return Err(StartError::Config("the store id is 0, allowed is 1 and more".to_owned()));
        }
        let state_machine = self.state_machine.clone();
        let state_machine = state_machine.ok_or(StartError::Incomplete("a state machine"))?;
        let transport = self.transport.clone().ok_or(StartError::Incomplete("a transport"))?;
        let log_store = self.open_log_store()?;
        let stored = log_store.load()?;
        self.check_ident(&stored, &*log_store)?;
        let metrics = Arc::new(Metrics::register(&self.registry, self.store_id)?);
        let assembled =
            Store::assemble(&self, stored, log_store, state_machine, transport, metrics.clone());
        if assembled.is_err() {
            metrics.unregister(&self.registry);
        }
        assembled
    }

    fn open_log_store(&self) -> Result<Arc<dyn LogStore>, StartError> {
        match (&self.log_store, &self.data_dir) {
            (Some(log_store), None) => Ok(log_store.clone()),
            (None, Some(path)) => {
                let path = path.join("raft-log");
                Ok(Arc::new(RaftEngineLogStore::open(&path, &self.config.log)?))
            }
            (None, None) => Err(StartError::Incomplete("a log_store or a data_dir")),
            (Some(_), Some(_)) => {
                let both = "both a log_store and a data_dir were given".to_owned();
                Err(StartError::Config(both))
            }
        }
    }

    /// The first start signs the log; later ones compare.
    fn check_ident(&self, stored: &Stored, log_store: &dyn LogStore) -> Result<(), StartError> {
        let ours = StoreIdent { cluster_id: self.config.cluster_id, store_id: self.store_id };
        match stored.ident {
            Some(found) if found != ours => Err(StartError::WrongStore {
                store: ours.store_id,
                cluster: ours.cluster_id,
                found_store: found.store_id,
                found_cluster: found.cluster_id,
            }),
            Some(_) => Ok(()),
            None => {
                let mut batch = LogBatch { ident: Some(ours), ..LogBatch::default() };
                log_store.write(&mut batch, true)?;
                Ok(())
            }
        }
    }
}

/// A running store. [`shutdown`](Store::shutdown) ends it; dropping it does the same.
pub struct Store {
    handle: StoreHandle,
    pool: Pool<RegionFsm, StoreFsm>,
    write_queues: Vec<Arc<WriteQueue>>,
    apply_queues: Vec<Arc<ApplyQueue>>,
    threads: Vec<JoinHandle<()>>,
    reclaimer: Option<(crossbeam::channel::Sender<()>, JoinHandle<()>)>,
    registry: Registry,
    figures: Figures,
}

impl Store {
    /// Begins to build the store of this id.
    pub fn builder(store_id: StoreId) -> StoreBuilder {
        StoreBuilder {
            store_id,
            config: StoreConfig::default(),
            data_dir: None,
            log_store: None,
            state_machine: None,
            transport: None,
            clock: Arc::new(SystemClock::default()),
            registry: Registry::new(),
        }
    }

    /// A handle.
    pub fn handle(&self) -> StoreHandle {
        self.handle.clone()
    }

    /// Ends the store: every region stops, every proposal is answered, every thread has ended when
    /// this returns. Must not be called from a callback. May be called more than once.
    pub fn shutdown(&mut self) {
        if self.handle.inner.stopped.swap(true, Ordering::AcqRel) {
            return;
        }
        // What pollers have queued is still written and applied, so that its proposers hear the
        // outcome; only then are the regions closed.
        self.pool.shutdown();
        self.write_queues.iter().for_each(|queue| queue.close());
        self.apply_queues.iter().for_each(|queue| queue.close());
        for thread in self.threads.drain(..) {
            thread.join().expect("threads of the store catch panics");
        }
        // So that the store may start again with the same registry. Not there: shut down before.
        let _ = self.registry.unregister(Box::new(self.figures.clone()));
        self.handle.inner.metrics.unregister(&self.registry);
        if let Some((stop, thread)) = self.reclaimer.take() {
            drop(stop);
            thread.join().expect("the reclaimer does not panic");
        }
    }

    /// The metrics of the store's registry as Prometheus text, for those who cannot share a registry.
    ///
    /// # Panics
    /// Never: what is gathered can be encoded.
    pub fn metrics_text(&self) -> String {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text).expect("encodable metrics");
        String::from_utf8(text).expect("Prometheus text is UTF-8")
    }

    fn assemble(
        builder: &StoreBuilder,
        stored: Stored,
        log_store: Arc<dyn LogStore>,
        state_machine: Arc<dyn StateMachine>,
        transport: Arc<dyn Transport>,
        metrics: Arc<Metrics>,
    ) -> Result<Self, StartError> {
        let config = &builder.config;
        let health = Arc::new(Health::default());
        let set_aside = SetAside::default();
        let limit = usize::try_from(config.queue_size.as_u64()).unwrap_or(usize::MAX);
        let default_writers = usize::from(!log_store.is_volatile());
        let writers = match log_store.is_volatile() {
            true => 0,
            false => config.log_writers.unwrap_or(default_writers),
        };
        let write_queues: Vec<_> = (0..writers).map(|_| Arc::new(WriteQueue::new(limit))).collect();
        let apply_queues: Vec<_> =
            (0..config.apply_pollers).map(|_| Arc::new(ApplyQueue::new(limit))).collect();
        let applier = Applier {
            state_machine: state_machine.clone(),
            health: health.clone(),
            clock: builder.clock.clone(),
        };
        let parts = PollerParts {
            log_store: log_store.clone(),
            transport: transport.clone(),
            applier: applier.clone(),
            sync: config.sync,
            tick_interval: config.raft.tick_interval,
            write_queues: write_queues.clone(),
            apply_queues: apply_queues.clone(),
            metrics: metrics.clone(),
        };
        let pool = Pool::start(
            &format!("store{}", builder.store_id),
            config.poller_count(),
            Limits {
                batch_size: config.batch_size,
                message_budget: config.message_budget,
                mailbox_capacity: config.mailbox_capacity,
                forced_capacity: 4 * config.mailbox_capacity,
                ..Limits::default()
            },
            Box::new(StoreFsm::new(set_aside.clone())),
            move |_, _| parts.poller(),
        )
        .map_err(|error| StartError::Threads(error.to_string()))?;
        let creator = Creator {
            store_id: builder.store_id,
            region_config: Arc::new(config.region_config()),
            tick_interval: config.raft.tick_interval,
            log_store: log_store.clone(),
            state_machine,
            bootstrapping: parking_lot::Mutex::new(()),
        };
        let handle = StoreHandle {
            inner: Arc::new(HandleInner {
                store_id: builder.store_id,
                router: pool.router().clone(),
                clock: builder.clock.clone(),
                health: health.clone(),
                metrics: metrics.clone(),
                ranges: Arc::new(RangeMap::default()),
                set_aside: set_aside.clone(),
                creator,
                stopped: AtomicBool::new(false),
            }),
        };
        let figures = Figures::new(&handle.inner, &write_queues, &apply_queues);
        builder.registry.register(Box::new(figures.clone()))?;
        let mut store = Self {
            handle,
            pool,
            write_queues,
            apply_queues,
            threads: Vec::new(),
            reclaimer: None,
            registry: builder.registry.clone(),
            figures,
        };
        store.start_threads(config, &log_store, &transport, &applier)?;
        for damaged in stored.damaged {
            tracing::error!(region = %damaged.region_id, damaged.reason, "region set aside");
            set_aside.lock().insert(damaged.region_id, damaged.reason);
        }
        for region in stored.regions {
            store.handle.inner.creator.restore(&store.handle, region);
        }
        Ok(store)
    }

    fn start_threads(
        &mut self,
        config: &StoreConfig,
        log_store: &Arc<dyn LogStore>,
        transport: &Arc<dyn Transport>,
        applier: &Applier,
    ) -> Result<(), StartError> {
        let inner = self.handle.inner.clone();
        let name = format!("store{}", inner.store_id);
        for (number, queue) in self.write_queues.iter().enumerate() {
            let writer = LogWriter::new(
                queue.clone(),
                log_store.clone(),
                inner.health.clone(),
                inner.clock.clone(),
                config.sync,
                SendStation::new(transport.clone()),
                inner.router.clone(),
                &inner.metrics,
            );
            self.threads.push(spawn(format!("{name}-log{number}"), move || writer.run())?);
        }
        for (number, queue) in self.apply_queues.iter().enumerate() {
            let router = inner.router.clone();
            let worker = ApplyWorker::new(queue.clone(), applier.clone(), router, &inner.metrics);
            self.threads.push(spawn(format!("{name}-apply{number}"), move || worker.run())?);
        }
        if !log_store.is_volatile() {
            let (stop, stopped) = crossbeam::channel::bounded::<()>(0);
            let log_store = log_store.clone();
            let health = inner.health.clone();
            let thread = spawn(format!("{name}-reclaim"), move || {
                let timeout = |error| error == crossbeam::channel::RecvTimeoutError::Timeout;
                while stopped.recv_timeout(RECLAIM_EVERY).is_err_and(timeout) {
                    if let Err(error) = log_store.reclaim() {
                        health.fail(error.into());
                    }
                }
            })?;
            self.reclaimer = Some((stop, thread));
        }
        Ok(())
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.shutdown();
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("handle", &self.handle).field("pool", &self.pool).finish()
    }
}

/// What each poller's stations are made of.
struct PollerParts {
    log_store: Arc<dyn LogStore>,
    transport: Arc<dyn Transport>,
    applier: Applier,
    sync: bool,
    tick_interval: Duration,
    write_queues: Vec<Arc<WriteQueue>>,
    apply_queues: Vec<Arc<ApplyQueue>>,
    metrics: Arc<Metrics>,
}

impl PollerParts {
    fn poller(&self) -> StorePoller {
        let clock = &self.applier.clock;
        let health = &self.applier.health;
        let collect = CollectStation {
            persist: PersistStation::new(
                self.log_store.clone(),
                health.clone(),
                clock.clone(),
                self.sync,
                self.write_queues.clone(),
            ),
            send: SendStation::new(self.transport.clone()),
            apply: ApplyStation::new(self.applier.clone(), self.apply_queues.clone()),
            respond: RespondStation::new(clock.clone()),
        };
        StorePoller::new(
            ProposeStation::new(self.tick_interval),
            collect,
            self.metrics.local(),
            clock.clone(),
            health.clone(),
            self.log_store.is_volatile(),
        )
    }
}

/// Brings regions to life: new ones, and those found in the log.
pub(crate) struct Creator {
    store_id: StoreId,
    region_config: Arc<RegionConfig>,
    tick_interval: Duration,
    log_store: Arc<dyn LogStore>,
    state_machine: Arc<dyn StateMachine>,
    /// One bootstrap at a time.
    bootstrapping: parking_lot::Mutex<()>,
}

impl Creator {
    pub(crate) fn bootstrap(
        &self,
        handle: &StoreHandle,
        regions: &[RegionDescription],
    ) -> Result<(), StartError> {
        let _one_at_a_time = self.bootstrapping.lock();
        for chunk in regions.chunks(BOOTSTRAP_BATCH) {
            let mut created = Vec::new();
            for description in chunk {
                if let Some(record) = self.admit(handle, description)? {
                    created.push(StoredRegion {
                        record,
                        hard_state: None,
                        truncated: TruncatedState::INITIAL,
                        last_index: TruncatedState::INITIAL.index,
                    });
                }
            }
            // The record is durable before the region can promise anything: a crash in between leaves
            // a region that a restart, or a repeated bootstrap, finds.
            let mut batch = LogBatch::default();
            batch.writes.extend(created.iter().map(|region| RegionWrite {
                region_id: region.record.description.id,
                record: Some(region.record.clone()),
                ..RegionWrite::default()
            }));
            if !batch.is_empty() {
                self.log_store.write(&mut batch, true)?;
            }
            created.into_iter().for_each(|region| self.restore(handle, region));
        }
        Ok(())
    }

    /// The record of a region to be created; `None` if there is nothing to do.
    fn admit(
        &self,
        handle: &StoreHandle,
        description: &RegionDescription,
    ) -> Result<Option<RegionRecord>, StartError> {
        let region_id = description.id;
        let fail = |reason: String| StartError::Region { region_id, reason };
        if handle.inner.stopped.load(Ordering::Acquire) || handle.inner.health.has_failed() {
            return Err(StartError::Stopped);
        }
        description.validate().map_err(|error| fail(error.to_string()))?;
        let Some(peer) = description.peer_on(self.store_id) else { return Ok(None) };
        if let Some(reason) = handle.inner.set_aside.lock().get(&region_id) {
            return Err(fail(format!("it exists and is set aside: {reason}")));
        }
        if let Some(status) = handle.region_status(region_id) {
            // It may have changed since its creation; then its epoch is newer.
            let known = &status.description;
            let newer = known.epoch.conf_ver > description.epoch.conf_ver
                || known.epoch.version > description.epoch.version;
            if **known == *description || newer {
                return Ok(None);
            }
            return Err(fail("it exists with another description".to_owned()));
        }
        if let Err(other) = handle.inner.ranges.insert(description) {
            return Err(fail(format!("its range overlaps that of region {other}")));
        }
        let record =
            RegionRecord { description: description.clone(), peer_id: peer.id, tombstone: false };
        Ok(Some(record))
    }

    /// Brings a region to life from what the log store holds. One that is damaged is set aside, and
    /// the others go on.
    pub(crate) fn restore(&self, handle: &StoreHandle, stored: StoredRegion) {
        if stored.record.tombstone {
            return;
        }
        let region_id = stored.record.description.id;
        if let Err(reason) = self.try_restore(handle, stored) {
            tracing::error!(region = %region_id, reason, "region set aside");
            handle.inner.set_aside.lock().insert(region_id, reason);
        }
    }

    fn try_restore(&self, handle: &StoreHandle, stored: StoredRegion) -> Result<(), String> {
        let region_id = stored.record.description.id;
        let applied = self.state_machine.applied_state(region_id);
        let applied = applied.map_err(|error| format!("its state machine: {error}"))?;
        let reader: Arc<dyn LogReader> = self.log_store.clone();
        let state = RestoredState {
            record: stored.record,
            hard_state: stored.hard_state,
            truncated: stored.truncated,
            last_index: stored.last_index,
            applied,
        };
        let region = Region::restore(state, self.store_id, self.region_config.clone(), reader)
            .map_err(|failure| failure.to_string())?;
        if let Err(other) = handle.inner.ranges.insert(region.description()) {
            return Err(format!("its range overlaps that of region {other}"));
        }
        handle.inner.metrics.region_added();
        let fsm = Box::new(RegionFsm::new(region));
        let router = &handle.inner.router;
        let registered = router.register(region_id.get(), fsm, Priority::Normal);
        registered.map_err(|error| error.to_string())?;
        self.start_ticking(router, region_id);
        Ok(())
    }

    /// Regions tick at different times, so that the work spreads over the interval.
    fn start_ticking(&self, router: &RegionRouter, region: RegionId) {
        let mixed = (region.get() ^ self.store_id.get() << 56).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let part = (mixed >> 40) as f64 / (1u64 << 24) as f64;
        let offset = self.tick_interval.mul_f64(part);
        router.outbox().send_after(region.get(), offset, RegionMessage::Tick);
        // What recovery left to do (replaying the log) begins now and not with the first tick.
        let _ = router.force_send(region.get(), RegionMessage::Continue);
    }
}

fn spawn(name: String, body: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, StartError> {
    let builder = std::thread::Builder::new().name(name);
    builder.spawn(body).map_err(|error| StartError::Threads(error.to_string()))
}
