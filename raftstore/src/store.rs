//! A store: started, stopped.

use crate::builder::StoreBuilder;
use crate::creator::Creator;
use crate::error::{StartError, StoreFailure};
use crate::figures::Figures;
use crate::handle::StoreHandle;
use crate::log_store::Stored;
use crate::message::RegionMessage;
use crate::parts::Parts;
use crate::region_fsm::{RegionFsm, RegionRouter};
use crate::snapshot::{ChoreQueue, StreamQueue};
use crate::store_fsm::StoreFsm;
use crate::tuning::Tuning;
use crate::write_path::apply::ApplyQueue;
use crate::write_path::persist::WriteQueue;
use batch_system::{Pool, SendError};
use prometheus::{Encoder, Registry, TextEncoder};
use region::StoreId;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

/// How often disk space of the log is reclaimed.
const RECLAIM_EVERY: Duration = Duration::from_secs(10);

/// A thread that ends when the sender is dropped.
type Stoppable = (crossbeam::channel::Sender<()>, JoinHandle<()>);

/// A running store. [`shutdown`](Store::shutdown) ends it; dropping it does the same.
pub struct Store {
    handle: StoreHandle,
    /// `None` once it has stopped.
    pool: Option<Arc<Pool<RegionFsm, StoreFsm>>>,
    tuner: Option<Stoppable>,
    write_queues: Vec<Arc<WriteQueue>>,
    apply_queues: Vec<Arc<ApplyQueue>>,
    streams: Arc<StreamQueue>,
    chores: Arc<ChoreQueue>,
    threads: Vec<JoinHandle<()>>,
    reclaimer: Option<Stoppable>,
    placement: Option<Stoppable>,
    registry: Registry,
    figures: Figures,
}

impl Store {
    /// Begins to build the store of this id.
    pub fn builder(store_id: StoreId) -> StoreBuilder {
        StoreBuilder::new(store_id)
    }

    /// A handle.
    pub fn handle(&self) -> StoreHandle {
        self.handle.clone()
    }

    /// Ends the store: every region stops, every proposal is answered, every thread has ended when
    /// this returns. The log's directory is free for another start then, even while handles are left.
    /// Must not be called from a callback. May be called more than once.
    pub fn shutdown(&mut self) {
        if self.handle.inner.stopped.swap(true, Ordering::AcqRel) {
            return;
        }
        // The regions end first, and answer what waits. What pollers have queued by then is still
        // written and applied, and its proposers hear the true outcome.
        if let Some(pool) = &self.pool {
            pool.close();
        }
        // It may wait for a poller that is one too many, and that one for an answer.
        if let Some((stop, thread)) = self.tuner.take() {
            drop(stop);
            join(thread);
        }
        if let Some(pool) = self.pool.take() {
            pool.shutdown();
        }
        self.write_queues.iter().for_each(|queue| queue.close());
        self.apply_queues.iter().for_each(|queue| queue.close());
        self.streams.close();
        self.chores.close();
        for thread in self.threads.drain(..) {
            join(thread);
        }
        // So that the store may start again with the same registry. Not there: shut down before.
        self.figures.unregister(&self.registry);
        self.handle.inner.metrics.unregister(&self.registry);
        // After all answers are given, so that each order is reported.
        for (stop, thread) in self.reclaimer.take().into_iter().chain(self.placement.take()) {
            drop(stop);
            join(thread);
        }
        // The last that holds the log store open, unless a bootstrap is under way.
        drop(self.handle.inner.creator.lock().take());
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

    pub(crate) fn assemble(
        parts: Parts,
        stored: Stored,
        registry: &Registry,
    ) -> Result<Self, StartError> {
        let parts = Arc::new(parts);
        let pool = start_pool(&parts)?;
        let handle = parts.handle(pool.router());
        let figures = Figures::new(&handle.inner);
        figures.register(registry)?;
        let mut store = Self {
            handle,
            pool: Some(Arc::new(pool)),
            tuner: None,
            write_queues: parts.write_queues.clone(),
            apply_queues: parts.apply_queues.clone(),
            streams: parts.streams.clone(),
            chores: parts.creator.chores.clone(),
            threads: Vec::new(),
            reclaimer: None,
            placement: None,
            registry: registry.clone(),
            figures,
        };
        store.start_threads(&parts)?;
        // On threads of their own: the caller's may have read another log; see `log_store/reads.rs`.
        let router = &store.handle.inner.router;
        parts.creator.restore_all(router, stored, parts.config.poller_count());
        store.start_tuner(&parts)?;
        if let Some(worker) = parts.placement_worker(&store.handle) {
            // Last, so that nothing is told before all regions are back.
            let (stop, stopped) = crossbeam::channel::bounded::<()>(0);
            let name = format!("store{}-place", parts.store_id);
            store.placement = Some((stop, spawn(name, move || worker.run(&stopped))?));
        }
        Ok(store)
    }

    /// After the regions are back: what that takes says nothing about the load.
    fn start_tuner(&mut self, parts: &Parts) -> Result<(), StartError> {
        let bounds = parts.config.tuning_bounds();
        let Some((bounds, pool)) = bounds.zip(self.pool.clone()) else { return Ok(()) };
        let (stop, stopped) = crossbeam::channel::bounded::<()>(0);
        let store_id = parts.store_id;
        let tuning = Tuning::new(store_id, bounds, pool);
        let thread = spawn(format!("store{store_id}-tune"), move || tuning.run(&stopped))?;
        self.tuner = Some((stop, thread));
        Ok(())
    }

    fn start_threads(&mut self, parts: &Parts) -> Result<(), StartError> {
        let router = &self.handle.inner.router;
        let name = format!("store{}", parts.store_id);
        for (number, queue) in self.write_queues.iter().enumerate() {
            let writer = parts.log_writer(queue, router);
            self.threads.push(spawn(format!("{name}-log{number}"), move || writer.run())?);
        }
        for (number, queue) in self.apply_queues.iter().enumerate() {
            let worker = parts.apply_worker(queue, router);
            self.threads.push(spawn(format!("{name}-apply{number}"), move || worker.run())?);
        }
        let streams = parts.stream_worker(router);
        self.threads.push(spawn(format!("{name}-snap"), move || streams.run())?);
        let chores = parts.chore_worker(router);
        self.threads.push(spawn(format!("{name}-chores"), move || chores.run())?);
        if !parts.seams.log_store.is_volatile() {
            let (stop, stopped) = crossbeam::channel::bounded::<()>(0);
            let (creator, router) = (parts.creator.clone(), router.clone());
            let thread = spawn(format!("{name}-reclaim"), move || {
                let timeout = |error| error == crossbeam::channel::RecvTimeoutError::Timeout;
                while stopped.recv_timeout(RECLAIM_EVERY).is_err_and(timeout) {
                    reclaim(&creator, &router);
                }
            })?;
            self.reclaimer = Some((stop, thread));
        }
        Ok(())
    }
}

/// They catch the panics of what is the user's.
fn join(thread: JoinHandle<()>) {
    let name = thread.thread().name().unwrap_or_default().to_owned();
    if thread.join().is_err() {
        tracing::error!(name, "a thread of the store panicked");
    }
}

/// Gives back disk space of the log.
pub(crate) fn reclaim(creator: &Creator, router: &RegionRouter) {
    let Creator { log_store, health, .. } = creator;
    match catch_unwind(AssertUnwindSafe(|| log_store.reclaim())) {
        Ok(Ok(holding)) => {
            let mut outbox = router.outbox();
            for region in holding {
                // A region that is too busy is asked again next time. One that is cold, or was
                // not built, comes back for it.
                let asked = outbox.send(region.get(), RegionMessage::CompactSoon);
                if let Err(SendError::Closed(message)) = asked {
                    let _ = creator.reach(router, region, message);
                }
            }
        }
        Ok(Err(error)) => health.fail(error.into()),
        Err(_) => health.fail(StoreFailure::Panicked("the log store")),
    }
}

fn start_pool(parts: &Arc<Parts>) -> Result<Pool<RegionFsm, StoreFsm>, StartError> {
    let for_pollers = parts.clone();
    let pool = Pool::start(
        &format!("store{}", parts.store_id),
        parts.config.poller_count(),
        parts.limits(),
        parts.control(),
        move |_, router| for_pollers.poller(router),
    );
    pool.map_err(|error| StartError::Threads(error.to_string()))
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

fn spawn(name: String, body: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, StartError> {
    let builder = std::thread::Builder::new().name(name);
    builder.spawn(body).map_err(|error| StartError::Threads(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{InProcessTransport, MapCommand, MemoryLogStore, OrderedMap, StoreConfig};
    use parking_lot::Mutex;
    use region::{Peer, PeerId, RegionDescription, RegionId};
    use std::sync::atomic::{AtomicU64, Ordering};

    /// Writes on and on, region by region, until the store refuses.
    #[derive(Clone)]
    struct Load {
        handle: StoreHandle,
        proposed: Arc<AtomicU64>,
        answered: Arc<AtomicU64>,
    }

    impl Load {
        fn write(&self, region: RegionId) {
            let load = self.clone();
            let command = MapCommand::put(format!("{:04}", region.get()), "value").encode();
            self.proposed.fetch_add(1, Ordering::Relaxed);
            self.handle.propose_with(region, command, move |answer| {
                load.answered.fetch_add(1, Ordering::Relaxed);
                if answer.is_ok() {
                    load.write(region);
                }
            });
        }
    }

    fn until(what: &str, mut holds: impl FnMut() -> bool) {
        let start = std::time::Instant::now();
        while !holds() {
            assert!(start.elapsed() < Duration::from_secs(60), "not within a minute: {what}");
            std::thread::park_timeout(Duration::from_millis(1));
        }
    }

    #[test]
    fn each_write_is_answered_once_while_pollers_come_and_go_and_the_store_ends() {
        const REGIONS: u64 = 50;
        let mut store = Store::builder(StoreId::new(1))
            .config(StoreConfig { pollers: 4, ..StoreConfig::default() })
            .state_machine(Arc::new(OrderedMap::new()))
            .transport(InProcessTransport::new())
            .log_store(Arc::new(MemoryLogStore::new()))
            .start()
            .expect("it starts");
        let describe = |id: u64| {
            let bound = |id: u64| format!("{id:04}");
            let peer = Peer::voter(PeerId::new(id), StoreId::new(1));
            RegionDescription::new(RegionId::new(id), bound(id), bound(id + 1), [peer])
        };
        let regions: Vec<_> = (1..=REGIONS).map(describe).collect();
        let handle = store.handle();
        handle.bootstrap(&regions).expect("sound regions");
        until("it leads", || {
            for region in &regions {
                handle.campaign(region.id);
            }
            handle.leaders() == REGIONS
        });
        let load = Load { handle, proposed: Arc::default(), answered: Arc::default() };
        regions.iter().for_each(|region| load.write(region.id));
        let pool = store.pool.clone().expect("it runs");
        let seen = Arc::new(Mutex::new(Vec::new()));
        let sizes = seen.clone();
        // As the tuner would, if it were in a great hurry.
        let resizer = std::thread::spawn(move || {
            for pollers in [1, 4, 2, 3].into_iter().cycle() {
                if pool.resize(pollers).is_err() {
                    return;
                }
                sizes.lock().push(pool.router().pollers());
            }
        });
        until("pollers come and go", || seen.lock().len() >= 40);
        let before = load.answered.load(Ordering::Relaxed);
        until("all goes on", || load.answered.load(Ordering::Relaxed) > before + 1_000);
        store.shutdown();
        resizer.join().expect("it ends with the store");
        let (proposed, answered) = (&load.proposed, &load.answered);
        assert_eq!(answered.load(Ordering::Relaxed), proposed.load(Ordering::Relaxed));
        assert_eq!(seen.lock()[..5], [1, 4, 2, 3, 1]);
    }
}
