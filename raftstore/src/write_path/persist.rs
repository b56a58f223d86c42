//! Station 3. In: what regions want written, and the messages that promise it. Out: those messages,
//! once it is durable; and word to the regions.
//!
//! Invariant: no vote or append response leaves before what it promises is synced. The messages are
//! locked in [`HeldMessages`], which opens only for a [`Persisted`], and this file alone makes those.
//!
//! There are three ways, by what the log store is:
//! * in memory there is nothing to wait for: each write is done at once ([`Added::Persisted`]);
//! * with log writers, all writes of a round go to the writers' queues as one task each, and the
//!   poller goes on; a region always uses the same writer, so its writes stay in order;
//! * without writers the poller writes the round's batch itself, and waits for the sync.

use crate::clock::Clock;
use crate::error::StoreFailure;
use crate::health::Health;
use crate::log_store::{LogBatch, LogStore, RegionWrite};
use crate::message::RegionMessage;
use crate::metrics::{LocalMetrics, Metrics};
use crate::region_fsm::RegionRouter;
use crate::work_queue::WorkQueue;
use crate::write_path::send::SendStation;
use crate::write_path::Stage;
use region::{HeldMessages, LogWrite, Persisted, RegionId, TruncatedState};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::Arc;
use std::time::Duration;

/// What became of a write that was added.
#[must_use]
pub(crate) enum Added {
    /// It waits for the round's end.
    Queued,
    /// It is done, as far as this log store does anything.
    Persisted(Persisted, Released),
}

/// Messages that were held until their write was durable, free to go.
#[derive(Default)]
pub(crate) struct Released(Vec<Box<region::Envelope>>);

impl Released {
    fn after(held: HeldMessages, proof: &Persisted) -> Self {
        Self(held.release(proof))
    }

    pub(crate) fn into_messages(self) -> Vec<Box<region::Envelope>> {
        self.0
    }
}

/// Entries that go from the beginning of a region's log.
pub(crate) struct Cut {
    pub(crate) region_id: RegionId,
    /// Where the log begins from now on.
    pub(crate) truncated: TruncatedState,
    /// None are left. A log store then keeps nothing of them, not even room.
    pub(crate) whole: bool,
}

/// The writes of one round for one log writer.
pub(crate) struct WriteTask {
    writes: Vec<LogWrite>,
    cuts: Vec<Cut>,
    queued_at: Duration,
}

/// One log writer's queue.
pub(crate) type WriteQueue = WorkQueue<WriteTask>;

pub(crate) struct PersistStation {
    log_store: Arc<dyn LogStore>,
    health: Arc<Health>,
    clock: Arc<dyn Clock>,
    sync: bool,
    /// Empty: this poller writes itself.
    writers: Vec<Arc<WriteQueue>>,
    /// Written at once, one by one.
    volatile: bool,
    /// With the slot of the region in this round.
    writes: Vec<(u32, LogWrite)>,
    cuts: Vec<Cut>,
    batch: LogBatch,
}

impl PersistStation {
    pub(crate) fn new(
        log_store: Arc<dyn LogStore>,
        health: Arc<Health>,
        clock: Arc<dyn Clock>,
        sync: bool,
        writers: Vec<Arc<WriteQueue>>,
    ) -> Self {
        Self {
            volatile: log_store.is_volatile(),
            log_store,
            health,
            clock,
            sync,
            writers,
            writes: Vec::new(),
            cuts: Vec::new(),
            batch: LogBatch::default(),
        }
    }

    /// Whether regions hear in their round of what is durable.
    pub(crate) fn writes_in_round(&self) -> bool {
        self.writers.is_empty()
    }

    pub(crate) fn add(&mut self, slot: u32, mut write: LogWrite) -> Added {
        if !self.volatile {
            self.writes.push((slot, write));
            return Added::Queued;
        }
        let held = write.take_held();
        if !write.is_empty() {
            add_to_batch(&mut self.batch, &mut write);
            if let Err(error) = write_log(&*self.log_store, &mut self.batch, false) {
                self.health.fail(error);
                return Added::Queued;
            }
        }
        let proof = Persisted::after_sync(&write);
        Added::Persisted(proof, Released::after(held, &proof))
    }

    pub(crate) fn cut(&mut self, cut: Cut) {
        self.cuts.push(cut);
    }

    /// Writes what has gathered, or hands it to the writers. What is durable on return is given to
    /// `done`, with the slot of its region.
    pub(crate) fn flush(
        &mut self,
        metrics: &mut LocalMetrics,
        mut done: impl FnMut(u32, Persisted, Released),
    ) {
        if self.writes.is_empty() || self.health.has_failed() {
            return self.writes.clear();
        }
        let start = self.clock.now();
        if !self.writers.is_empty() {
            return self.hand_over(start);
        }
        // Taken out first: whatever happens, nothing of this round is left for the next one.
        let mut writes = std::mem::take(&mut self.writes);
        let mut sync = false;
        for (_, write) in &mut writes {
            sync |= write.needs_sync();
            add_to_batch(&mut self.batch, write);
        }
        if !self.batch.is_empty() {
            match write_log(&*self.log_store, &mut self.batch, sync && self.sync) {
                Ok(bytes) => {
                    let took = self.clock.now().saturating_sub(start);
                    metrics.log_written(took, bytes, writes.len());
                    metrics.observe(Stage::Persist, took);
                }
                Err(error) => return self.health.fail(error),
            }
        }
        for (slot, mut write) in writes.drain(..) {
            let held = write.take_held();
            let proof = Persisted::after_sync(&write);
            done(slot, proof, Released::after(held, &proof));
        }
        self.writes = writes;
    }

    /// Writes what [`cut`](Self::cut) has gathered. Nobody waits for it, so it is neither
    /// synced nor measured.
    pub(crate) fn flush_cuts(&mut self) {
        debug_assert!(self.writes.is_empty(), "a write would never be reported");
        if self.cuts.is_empty() || self.health.has_failed() {
            return self.cuts.clear();
        }
        if !self.writers.is_empty() {
            return self.hand_over(self.clock.now());
        }
        add_cuts(&mut self.batch, &mut self.cuts);
        if let Err(error) = write_log(&*self.log_store, &mut self.batch, false) {
            self.health.fail(error);
        }
    }

    /// Forgets what a round that panicked has left.
    pub(crate) fn clear(&mut self) {
        self.writes.clear();
        self.cuts.clear();
        self.batch = LogBatch::default();
    }

    fn hand_over(&mut self, now: Duration) {
        let count = self.writers.len() as u64;
        let writer_of = |region: RegionId| (region.get() % count) as usize;
        let mut tasks: Vec<WriteTask> = Vec::new();
        tasks.resize_with(self.writers.len(), || WriteTask {
            writes: Vec::new(),
            cuts: Vec::new(),
            queued_at: now,
        });
        for (_, write) in self.writes.drain(..) {
            tasks[writer_of(write.region_id)].writes.push(write);
        }
        for cut in self.cuts.drain(..) {
            tasks[writer_of(cut.region_id)].cuts.push(cut);
        }
        for (task, writer) in tasks.into_iter().zip(&self.writers) {
            if !task.writes.is_empty() || !task.cuts.is_empty() {
                let weight = task.weight();
                // A closed queue is a store that shuts down; what was not written was not promised.
                let _ = writer.push(task, weight);
            }
        }
    }
}

impl WriteTask {
    fn weight(&self) -> usize {
        let entries = self.writes.iter().flat_map(|write| &write.entries);
        64 * self.writes.len() + entries.map(|entry| entry.data.len() + 64).sum::<usize>()
    }
}

/// Writes the batch. A log store that fails or panics has written an unknown part of it: the store
/// must stop. The batch is empty afterwards in any case.
pub(crate) fn write_log(
    log_store: &dyn LogStore,
    batch: &mut LogBatch,
    sync: bool,
) -> Result<u64, StoreFailure> {
    let written = catch_unwind(AssertUnwindSafe(|| log_store.write(batch, sync)));
    batch.writes.clear();
    batch.ident = None;
    match written {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(error)) => Err(StoreFailure::LogStore(error)),
        Err(_) => Err(StoreFailure::Panicked("the log store")),
    }
}

fn add_to_batch(batch: &mut LogBatch, write: &mut LogWrite) {
    if write.is_empty() {
        return;
    }
    let region_id = write.region_id;
    let mut own = RegionWrite {
        region_id,
        clear: write.snapshot.is_some(),
        truncated: write.snapshot,
        entries: std::mem::take(&mut write.entries),
        hard_state: write.hard_state.take(),
        record: None,
    };
    for record in write.records.drain(..) {
        match record.description.id == region_id {
            true => own.record = Some(Box::new(record)),
            false => batch.writes.push(RegionWrite {
                region_id: record.description.id,
                record: Some(Box::new(record)),
                ..RegionWrite::default()
            }),
        }
    }
    batch.writes.push(own);
}

fn add_cuts(batch: &mut LogBatch, cuts: &mut Vec<Cut>) {
    batch.writes.extend(cuts.drain(..).map(|Cut { region_id, truncated, whole }| RegionWrite {
        region_id,
        clear: whole,
        truncated: Some(truncated),
        ..RegionWrite::default()
    }));
}

/// A log writer: one thread, one batch and one sync a wake, over all that all pollers queued.
pub(crate) struct LogWriter {
    queue: Arc<WriteQueue>,
    log_store: Arc<dyn LogStore>,
    health: Arc<Health>,
    clock: Arc<dyn Clock>,
    sync: bool,
    send: SendStation,
    router: RegionRouter,
    metrics: LocalMetrics,
    tasks: Vec<WriteTask>,
    batch: LogBatch,
}

impl LogWriter {
    #[allow(clippy::too_many_arguments, reason = "each is used for itself, by this struct alone")]
    pub(crate) fn new(
        queue: Arc<WriteQueue>,
        log_store: Arc<dyn LogStore>,
        health: Arc<Health>,
        clock: Arc<dyn Clock>,
        sync: bool,
        send: SendStation,
        router: RegionRouter,
        metrics: &Arc<Metrics>,
    ) -> Self {
        Self {
            queue,
            log_store,
            health,
            clock,
            sync,
            send,
            router,
            metrics: metrics.local(),
            tasks: Vec::new(),
            batch: LogBatch::default(),
        }
    }

    /// The body of the thread: until the queue is closed and empty.
    pub(crate) fn run(mut self) {
        while self.wake() {}
    }

    /// Whether something waits to be written.
    pub(crate) fn has_work(&self) -> bool {
        !self.queue.is_empty()
    }

    /// One wake: waits for work, and does all of it. False: the queue is closed and empty.
    pub(crate) fn wake(&mut self) -> bool {
        if !self.queue.take_all(&mut self.tasks) {
            return false;
        }
        if self.health.has_failed() {
            self.tasks.clear();
            return true;
        }
        match catch_unwind(AssertUnwindSafe(|| self.write())) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => self.health.fail(error),
            Err(_) => self.health.fail(StoreFailure::Panicked("the log writer")),
        }
        true
    }

    fn write(&mut self) -> Result<(), StoreFailure> {
        let start = self.clock.now();
        let mut tasks = std::mem::take(&mut self.tasks);
        let (mut sync, mut regions, mut bytes) = (false, 0, 0);
        for task in &mut tasks {
            let begin = self.batch.writes.len();
            regions += task.writes.len();
            for write in &mut task.writes {
                sync |= write.needs_sync();
                add_to_batch(&mut self.batch, write);
            }
            add_cuts(&mut self.batch, &mut task.cuts);
            // What its region writes in a later task must not be in one batch with it: raft-engine could copy the
            // mark that all is gone to behind entries that came after it.
            if self.batch.writes[begin..].iter().any(|write| write.clear) {
                bytes += self.write_batch(std::mem::take(&mut sync))?;
            }
        }
        bytes += self.write_batch(sync)?;
        let end = self.clock.now();
        self.metrics.log_written(end.saturating_sub(start), bytes, regions);
        let mut outbox = self.router.outbox();
        for task in tasks.drain(..) {
            self.metrics.observe(Stage::Persist, end.saturating_sub(task.queued_at));
            for mut write in task.writes {
                let held = write.take_held();
                let proof = Persisted::after_sync(&write);
                self.send.add_responses(Released::after(held, &proof));
                // Forced, and one per write that a region has under way; a closed region needs none.
                let _ = outbox.force_send(write.region_id.get(), RegionMessage::Persisted(proof));
            }
        }
        self.send.flush(&mut self.metrics);
        outbox.flush();
        self.tasks = tasks;
        self.metrics.flush_if_due(end);
        Ok(())
    }

    fn write_batch(&mut self, sync: bool) -> Result<u64, StoreFailure> {
        match self.batch.is_empty() {
            true => Ok(0),
            false => write_log(&*self.log_store, &mut self.batch, sync && self.sync),
        }
    }
}
