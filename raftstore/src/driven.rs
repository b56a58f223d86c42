//! A store without threads, driven by hand.
//!
//! Everything that the threads of a [`Store`](crate::Store) do is done here by whoever holds it, one
//! step at a time, with a time of its own. The steps are the very code that the threads run: a round
//! of a poller, a wake of a log writer, a wake of an apply thread, a turn of the timer wheel. So a
//! simulation that drives stores tests the stores, in an order that it can choose and repeat.
//!
//! Caveat: what waits for the store waits for ever, since nobody else runs it:
//! [`StoreHandle::propose`], [`StoreHandle::region_status`], and [`StoreHandle::bootstrap`] of a region
//! that is here already. Use [`StoreHandle::propose_with`] and [`DrivenStore::region_status`].

use crate::creator::Creator;
use crate::error::StartError;
use crate::figures::Figures;
use crate::handle::StoreHandle;
use crate::log_store::Stored;
use crate::message::{RegionMessage, StoreMessage};
use crate::parts::Parts;
use crate::placement::PlacementWorker;
use crate::poller::StorePoller;
use crate::region_fsm::{RegionFsm, RegionOutbox};
use crate::snapshot::{ChoreWorker, StreamWorker};
use crate::store::reclaim;
use crate::store_fsm::StoreFsm;
use crate::write_path::apply::{ApplyQueue, ApplyWorker};
use crate::write_path::persist::{LogWriter, WriteQueue};
use batch_system::{Claim, CloseReason, Driver, Handler, PanicReport, RoundStart};
use parking_lot::Mutex;
use prometheus::Registry;
use region::{RegionId, RegionStatus};
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::Duration;

/// Rounds in which a region answers how it stands, unless it is gone.
const STATUS_ROUNDS: usize = 8;

/// A thread that a [`Store`](crate::Store) would have, by its number among those of its kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum StoreThread {
    /// Runs regions: stations 1 to 6.
    Poller(usize),
    /// Writes and syncs the log.
    LogWriter(usize),
    /// Applies committed commands.
    Apply(usize),
    /// Sends and receives snapshots.
    Snapshots,
    /// Installs snapshots and destroys regions.
    Chores,
}

/// A store that somebody drives. Dropping it is a crash: nothing more is written or sent, and
/// proposals that wait hear `Unknown`.
pub struct DrivenStore {
    handle: StoreHandle,
    driver: Driver<RegionFsm, StoreFsm, WatchedPoller>,
    log_writers: Vec<LogWriter>,
    apply_workers: Vec<ApplyWorker>,
    write_queues: Vec<Arc<WriteQueue>>,
    apply_queues: Vec<Arc<ApplyQueue>>,
    streams: StreamWorker,
    chores: ChoreWorker,
    placement: Option<PlacementWorker>,
    tick: Duration,
    /// Since the last tick of the snapshots.
    passed: Duration,
    registry: Registry,
    figures: Figures,
}

impl DrivenStore {
    pub(crate) fn assemble(
        parts: Parts,
        stored: Stored,
        registry: &Registry,
    ) -> Result<Self, StartError> {
        parts.write_queues.iter().for_each(|queue| queue.never_wait());
        parts.apply_queues.iter().for_each(|queue| queue.never_wait());
        let control = parts.control();
        let pollers = parts.config.poller_count();
        let driver = Driver::new(pollers, parts.limits(), control, |_, router| WatchedPoller {
            poller: parts.poller(router),
            ran: Vec::new(),
        });
        let router = driver.router();
        let handle = parts.handle(router);
        let writers = parts.write_queues.iter().map(|queue| parts.log_writer(queue, router));
        let workers = parts.apply_queues.iter().map(|queue| parts.apply_worker(queue, router));
        let figures = Figures::new(&handle.inner);
        figures.register(registry)?;
        parts.creator.restore_all(router, stored, 0);
        Ok(Self {
            streams: parts.stream_worker(router),
            chores: parts.chore_worker(router),
            placement: parts.placement_worker(&handle),
            tick: parts.config.raft.tick_interval,
            passed: Duration::ZERO,
            log_writers: writers.collect(),
            apply_workers: workers.collect(),
            handle,
            driver,
            write_queues: parts.write_queues.clone(),
            apply_queues: parts.apply_queues.clone(),
            registry: registry.clone(),
            figures,
        })
    }

    /// A handle.
    pub fn handle(&self) -> StoreHandle {
        self.handle.clone()
    }

    /// The threads that have something to do. A poller that would have to wait for room in a queue to
    /// log writers or apply threads is not among them.
    pub fn runnable(&self) -> Vec<StoreThread> {
        let mut runnable = Vec::new();
        if self.queues_have_room() {
            let control = self.driver.control_scheduled();
            let waiting = self.driver.router().waiting();
            let pollers = waiting.iter().enumerate().filter(|(_, waits)| **waits > 0 || control);
            runnable.extend(pollers.map(|(index, _)| StoreThread::Poller(index)));
        }
        let writers = self.log_writers.iter().enumerate().filter(|(_, writer)| writer.has_work());
        runnable.extend(writers.map(|(index, _)| StoreThread::LogWriter(index)));
        let workers = self.apply_workers.iter().enumerate().filter(|(_, worker)| worker.has_work());
        runnable.extend(workers.map(|(index, _)| StoreThread::Apply(index)));
        runnable.extend(self.streams.has_work().then_some(StoreThread::Snapshots));
        runnable.extend(self.chores.has_work().then_some(StoreThread::Chores));
        runnable
    }

    /// One step of a thread: a round of a poller, one wake of the others. Returns how the regions stand
    /// that a poller has run, in the order in which it ran them. Without work nothing happens.
    ///
    /// # Panics
    /// When there is no such thread.
    pub fn run(&mut self, thread: StoreThread) -> Vec<RegionStatus> {
        match thread {
            StoreThread::Poller(index) => {
                self.driver.run_round(index);
                return self.take_ran(index);
            }
            StoreThread::LogWriter(index) if self.log_writers[index].has_work() => {
                self.log_writers[index].wake();
            }
            StoreThread::Apply(index) if self.apply_workers[index].has_work() => {
                self.apply_workers[index].wake();
            }
            StoreThread::LogWriter(_) | StoreThread::Apply(_) => {}
            StoreThread::Snapshots => self.streams.wake(),
            StoreThread::Chores => self.chores.wake(),
        }
        Vec::new()
    }

    /// The regions that wait for a poller, in the order in which it would run them.
    pub fn scheduled(&self, poller: usize) -> Vec<RegionId> {
        self.driver.scheduled(poller).into_iter().map(RegionId::new).collect()
    }

    /// A round of one region alone, out of turn. Empty if it does not wait for a poller.
    pub fn run_region(&mut self, poller: usize, region: RegionId) -> Vec<RegionStatus> {
        self.driver.run_one(poller, region.get());
        self.take_ran(poller)
    }

    /// Lets a poller take over half of what waits with another, as one without work does.
    pub fn steal(&mut self, poller: usize) -> usize {
        self.driver.steal(poller)
    }

    /// Moves the time of the store's timers forward and sends what is due then.
    pub fn advance_time(&mut self, by: Duration) {
        self.driver.advance_time(by);
        self.passed += by;
        while self.passed >= self.tick {
            self.passed -= self.tick;
            self.streams.tick();
        }
        if let Some(placement) = &mut self.placement {
            placement.advance(by);
        }
    }

    /// Gives back disk space of the log, as a thread of its own does now and then.
    pub fn reclaim(&mut self) {
        let inner = &self.handle.inner;
        let creator = inner.creator.lock().clone();
        let durable = |creator: &Arc<Creator>| !creator.log_store.is_volatile();
        if let Some(creator) = creator.filter(durable) {
            if !inner.health.has_failed() {
                reclaim(&creator, &inner.router);
            }
        }
    }

    /// How a region stands. Runs it, and nothing else. `None` if it is not here or its mailbox is full.
    pub fn region_status(&mut self, region: RegionId) -> Option<RegionStatus> {
        if let Some((status, _)) = self.handle.inner.cold.status(region) {
            return Some(status);
        }
        let found = Arc::new(Mutex::new(None));
        let answer = found.clone();
        let message = RegionMessage::Status(Box::new(move |status| *answer.lock() = Some(status)));
        self.handle.inner.send(region, message).ok()?;
        for _ in 0..STATUS_ROUNDS {
            self.run_region(0, region);
            if let Some(status) = found.lock().take() {
                return Some(status);
            }
        }
        None
    }

    /// Bytes that wait for log writers, and bytes that wait for apply threads.
    pub fn queued(&self) -> (usize, usize) {
        let log = self.write_queues.iter().map(|queue| queue.weight()).sum();
        let apply = self.apply_queues.iter().map(|queue| queue.weight()).sum();
        (log, apply)
    }

    /// Messages that wait for a region.
    pub fn mailbox_len(&self, region: RegionId) -> usize {
        self.driver.router().mailbox(region.get()).map_or(0, |mailbox| mailbox.len())
    }

    /// Mailboxes of closed regions that somebody still holds.
    pub fn leaked_mailboxes(&self) -> usize {
        self.driver.router().leaked()
    }

    /// Ends the store as [`Store::shutdown`](crate::Store::shutdown) does: every region stops, every
    /// proposal is answered, what was queued is written and applied.
    pub fn shutdown(mut self) {
        self.handle.inner.stopped.store(true, Ordering::Release);
        self.driver.shutdown();
        self.write_queues.iter().for_each(|queue| queue.close());
        self.log_writers.iter_mut().for_each(|writer| while writer.wake() {});
        self.apply_queues.iter().for_each(|queue| queue.close());
        self.apply_workers.iter_mut().for_each(|worker| while worker.wake() {});
        self.streams.wake();
        self.chores.wake();
    }

    fn queues_have_room(&self) -> bool {
        self.write_queues.iter().all(|queue| queue.has_room())
            && self.apply_queues.iter().all(|queue| queue.has_room())
    }

    fn take_ran(&mut self, poller: usize) -> Vec<RegionStatus> {
        std::mem::take(&mut self.driver.handler_mut(poller).ran)
    }
}

impl Drop for DrivenStore {
    fn drop(&mut self) {
        // Handles may outlive it; they hold neither the log store nor the metrics.
        self.handle.inner.stopped.store(true, Ordering::Release);
        drop(self.handle.inner.creator.lock().take());
        self.figures.unregister(&self.registry);
        self.handle.inner.metrics.unregister(&self.registry);
    }
}

impl std::fmt::Debug for DrivenStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DrivenStore")
            .field("handle", &self.handle)
            .field("driver", &self.driver)
            .finish_non_exhaustive()
    }
}

/// A poller, and how the regions stood at the end of its last rounds.
struct WatchedPoller {
    poller: StorePoller,
    ran: Vec<RegionStatus>,
}

impl Handler<RegionFsm, StoreFsm> for WatchedPoller {
    fn begin(&mut self, round: &RoundStart) {
        self.poller.begin(round);
    }

    fn control(
        &mut self,
        fsm: &mut StoreFsm,
        messages: &mut Vec<StoreMessage>,
        outbox: &mut RegionOutbox,
    ) {
        self.poller.control(fsm, messages, outbox);
    }

    fn normal(
        &mut self,
        fsm: &mut RegionFsm,
        messages: &mut Vec<RegionMessage>,
        outbox: &mut RegionOutbox,
    ) {
        self.poller.normal(fsm, messages, outbox);
    }

    fn end(&mut self, batch: &mut [Claim<RegionFsm>], outbox: &mut RegionOutbox) {
        self.poller.end(batch, outbox);
        self.ran.extend(batch.iter().map(|claim| claim.fsm().region.status()));
    }

    fn closed(&mut self, fsm: Box<RegionFsm>, unhandled: Vec<RegionMessage>, reason: CloseReason) {
        self.poller.closed(fsm, unhandled, reason);
    }

    fn control_closed(
        &mut self,
        fsm: Box<StoreFsm>,
        unhandled: Vec<StoreMessage>,
        reason: CloseReason,
    ) {
        self.poller.control_closed(fsm, unhandled, reason);
    }

    fn panic_message(&mut self, report: PanicReport) -> Option<StoreMessage> {
        self.poller.panic_message(report)
    }
}
