//! Station 5. In: committed commands of many regions. Out: their effects in the state machine, their
//! answers, and word to the regions.
//!
//! In the poller's own round by default. With an apply pool the round's batch is handed over, and a
//! region's commands always go to the same thread of the pool, in order.

use crate::clock::Clock;
use crate::error::StoreFailure;
use crate::health::Health;
use crate::message::RegionMessage;
use crate::metrics::{LocalMetrics, Metrics};
use crate::region_fsm::RegionRouter;
use crate::state_machine::{Command, RegionCommands, StateMachine, StateMachineError};
use crate::work_queue::WorkQueue;
use crate::write_path::respond::RespondStation;
use crate::write_path::Stage;
use region::{ApplyBatch, Callback, Index, ProposeError, RegionId, Response};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::Arc;
use std::time::Duration;

/// What one region has to apply, taken apart: commands for the state machine, callbacks for station 6.
struct RegionTask {
    slot: u32,
    commands: RegionCommands,
    /// As many as commands.
    waiting: Vec<(Option<Callback>, u64)>,
}

/// The batches of one round for one apply thread.
pub(crate) struct ApplyTask(Vec<RegionTask>);

/// One apply thread's queue.
pub(crate) type ApplyQueue = WorkQueue<ApplyTask>;

/// What happened to a region in [`ApplyStation::flush`].
pub(crate) enum ApplyDone {
    /// The state machine has carried out everything up to this index.
    Applied(Index),
    /// The log may be shortened up to this index, as far as the state machine allows.
    Compact(Index),
}

pub(crate) struct ApplyStation {
    applier: Applier,
    /// Empty: apply in the round.
    queues: Vec<Arc<ApplyQueue>>,
    tasks: Vec<RegionTask>,
    compactions: Vec<(u32, Index)>,
}

impl ApplyStation {
    pub(crate) fn new(applier: Applier, queues: Vec<Arc<ApplyQueue>>) -> Self {
        Self { applier, queues, tasks: Vec::new(), compactions: Vec::new() }
    }

    pub(crate) fn add(&mut self, slot: u32, batch: ApplyBatch) {
        let mut commands = Vec::with_capacity(batch.commands.len());
        let mut waiting = Vec::with_capacity(batch.commands.len());
        for command in batch.commands {
            waiting.push((command.callback, command.stamp));
            commands.push(Command {
                index: command.index,
                term: command.term,
                payload: command.payload,
                output: bytes::Bytes::new(),
            });
        }
        let commands =
            RegionCommands { region_id: batch.region_id, commands, applied: batch.applied };
        self.tasks.push(RegionTask { slot, commands, waiting });
    }

    pub(crate) fn compact_after(&mut self, slot: u32, index: Index) {
        self.compactions.push((slot, index));
    }

    /// Applies what has gathered, or hands it to the pool, and tells `done` what that means for the
    /// region of each slot.
    pub(crate) fn flush(
        &mut self,
        respond: &mut RespondStation,
        metrics: &mut LocalMetrics,
        mut done: impl FnMut(u32, ApplyDone),
    ) {
        if self.applier.health.has_failed() {
            // Unanswered callbacks answer "unknown" when they are dropped.
            self.tasks.clear();
            self.compactions.clear();
            return;
        }
        if !self.tasks.is_empty() {
            if self.queues.is_empty() {
                if self.applier.apply(&mut self.tasks, respond, metrics) {
                    for task in &self.tasks {
                        done(task.slot, ApplyDone::Applied(task.commands.applied.index));
                    }
                }
                self.tasks.clear();
            } else {
                self.hand_over();
            }
        }
        for (slot, index) in self.compactions.drain(..) {
            done(slot, ApplyDone::Compact(index));
        }
    }

    /// Up to which index a restart would find a region's effects.
    pub(crate) fn durable_index(&self, region: RegionId) -> Index {
        let state_machine = &self.applier.state_machine;
        // The whole log is kept for a state machine that cannot say.
        catch_unwind(AssertUnwindSafe(|| state_machine.durable_index(region))).unwrap_or_default()
    }

    /// Forgets what a round that panicked has left; its callbacks answer "unknown".
    pub(crate) fn clear(&mut self) {
        self.tasks.clear();
        self.compactions.clear();
    }

    fn hand_over(&mut self) {
        let count = self.queues.len() as u64;
        let mut tasks: Vec<Vec<RegionTask>> = Vec::new();
        tasks.resize_with(self.queues.len(), Vec::new);
        for task in self.tasks.drain(..) {
            tasks[(task.commands.region_id.get() % count) as usize].push(task);
        }
        for (task, queue) in tasks.into_iter().zip(&self.queues) {
            if !task.is_empty() {
                let commands = task.iter().flat_map(|region| &region.commands.commands);
                let weight = commands.map(|command| command.payload.len() + 64).sum::<usize>();
                // A closed queue is a store that shuts down: dropped callbacks answer "unknown".
                let _ = queue.push(ApplyTask(task), weight);
            }
        }
    }
}

/// Applies and answers; the part that pollers and apply threads share.
#[derive(Clone)]
pub(crate) struct Applier {
    pub(crate) state_machine: Arc<dyn StateMachine>,
    pub(crate) health: Arc<Health>,
    pub(crate) clock: Arc<dyn Clock>,
}

impl Applier {
    /// Whether it was applied.
    fn apply(
        &self,
        tasks: &mut [RegionTask],
        respond: &mut RespondStation,
        metrics: &mut LocalMetrics,
    ) -> bool {
        let start = self.clock.now();
        let mut batch: Vec<RegionCommands> = tasks
            .iter_mut()
            .map(|task| RegionCommands {
                region_id: task.commands.region_id,
                commands: std::mem::take(&mut task.commands.commands),
                applied: task.commands.applied.clone(),
            })
            .collect();
        let applied = catch_unwind(AssertUnwindSafe(|| self.state_machine.apply(&mut batch)));
        let failure = match applied {
            Ok(Ok(())) => altered(tasks, &batch).map(StoreFailure::StateMachine),
            Ok(Err(error)) => Some(StoreFailure::StateMachine(error)),
            Err(_) => Some(StoreFailure::Panicked("the state machine")),
        };
        if let Some(failure) = failure {
            self.health.fail(failure);
            for task in tasks {
                let region_id = task.commands.region_id;
                let reason = "the store failed while it was applied";
                for callback in task.waiting.drain(..).filter_map(|(callback, _)| callback) {
                    respond.add(callback, Err(ProposeError::Unknown { region_id, reason }));
                }
            }
            return false;
        }
        metrics.observe(Stage::Apply, self.clock.now().saturating_sub(start));
        for (task, done) in tasks.iter_mut().zip(batch) {
            metrics.applied.inc_by(done.commands.len() as u64);
            if let Some((_, stamp)) = task.waiting.iter().find(|(callback, _)| callback.is_some()) {
                let committed = start.saturating_sub(Duration::from_nanos(*stamp));
                metrics.observe(Stage::Send, committed);
            }
            for ((callback, _), command) in task.waiting.drain(..).zip(done.commands) {
                let Some(callback) = callback else { continue };
                let response = Response {
                    region_id: done.region_id,
                    term: command.term,
                    index: command.index,
                    value: command.output,
                };
                respond.add(callback, Ok(response));
            }
        }
        true
    }
}

/// What a state machine must not do: take commands away or add some, since answers go by position.
fn altered(tasks: &[RegionTask], batch: &[RegionCommands]) -> Option<StateMachineError> {
    let mut pairs = tasks.iter().zip(batch);
    let (_, changed) = pairs.find(|(task, done)| task.waiting.len() != done.commands.len())?;
    let region = changed.region_id;
    Some(StateMachineError(format!("it changed the number of commands of region {region}")))
}

/// A thread of the apply pool.
pub(crate) struct ApplyWorker {
    queue: Arc<ApplyQueue>,
    applier: Applier,
    respond: RespondStation,
    router: RegionRouter,
    metrics: LocalMetrics,
    tasks: Vec<ApplyTask>,
}

impl ApplyWorker {
    pub(crate) fn new(
        queue: Arc<ApplyQueue>,
        applier: Applier,
        router: RegionRouter,
        metrics: &Arc<Metrics>,
    ) -> Self {
        let respond = RespondStation::new(applier.clock.clone());
        Self { queue, applier, respond, router, metrics: metrics.local(), tasks: Vec::new() }
    }

    /// The body of the thread: until the queue is closed and empty.
    pub(crate) fn run(mut self) {
        while self.wake() {}
    }

    /// Whether something waits to be applied.
    pub(crate) fn has_work(&self) -> bool {
        !self.queue.is_empty()
    }

    /// One wake: waits for work, and does all of it. False: the queue is closed and empty.
    pub(crate) fn wake(&mut self) -> bool {
        if !self.queue.take_all(&mut self.tasks) {
            return false;
        }
        let mut regions: Vec<_> = self.tasks.drain(..).flat_map(|task| task.0).collect();
        if self.applier.health.has_failed() {
            return true;
        }
        if !self.applier.apply(&mut regions, &mut self.respond, &mut self.metrics) {
            self.respond.flush(&mut self.metrics);
            return true;
        }
        let mut outbox = self.router.outbox();
        for task in regions {
            let applied = RegionMessage::Applied(task.commands.applied.index);
            // Forced, and one per batch that a region has under way; a closed region needs none.
            let _ = outbox.force_send(task.commands.region_id.get(), applied);
        }
        outbox.flush();
        self.respond.flush(&mut self.metrics);
        self.metrics.flush_if_due(self.applier.clock.now());
        true
    }
}
