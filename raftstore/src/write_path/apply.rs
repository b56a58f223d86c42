//! Station 5. In: committed commands of many regions. Out: their effects in the state machine, their
//! answers, and word to the regions.
//!
//! In the poller's own round by default: for the whole round in one batch, or, where the state machine gains nothing
//! from that, region by region within their turns. With an apply pool the round's batch is handed over, and a
//! region's commands always go to the same thread of the pool, in order.

use crate::clock::Clock;
use crate::creator::Creator;
use crate::error::StoreFailure;
use crate::health::Health;
use crate::message::RegionMessage;
use crate::metrics::{LocalMetrics, Metrics};
use crate::region_fsm::RegionRouter;
use crate::snapshot::{Chore, ChoreQueue};
use crate::state_machine::{Command, RegionCommands, RegionSplit, StateMachine, StateMachineError};
use crate::work_queue::WorkQueue;
use crate::write_path::respond::RespondStation;
use crate::write_path::Stage;
use region::{
    AppliedState, ApplyBatch, ApplyCommand, Callback, Index, PeerId, ProposeError, Region,
    RegionChange, RegionDescription, RegionId, Removal, Response, Term, TruncatedState,
};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::Arc;
use std::time::Duration;

/// What one region has to apply.
struct RegionTask {
    slot: u32,
    batch: ApplyBatch,
    /// What happens to the region as a whole; then there are no commands.
    change: Option<Box<TaskChange>>,
}

/// Most lists of commands that a run keeps to use them again, and the longest of them.
const KEPT_LISTS: usize = 64;
const KEPT_COMMANDS: usize = 64;

/// Commands of several regions, as the state machine gets them, and who waits for them.
#[derive(Default)]
struct Run {
    batch: Vec<RegionCommands>,
    /// One for each region of the batch.
    parts: Vec<RunPart>,
    /// One for each command of the batch, in their order.
    waiting: Vec<Waiting>,
    /// Empty ones.
    lists: Vec<Vec<Command>>,
}

/// What a run knows of a region beside its commands.
struct RunPart {
    slot: u32,
    region_id: RegionId,
    /// Up to where it is applied after its commands.
    applied: Index,
    /// So many of those who wait.
    commands: usize,
}

impl Run {
    fn push(&mut self, slot: u32, batch: ApplyBatch) {
        let ApplyBatch { region_id, commands: all, applied, change: _ } = batch;
        let part = RunPart { slot, region_id, applied: applied.index, commands: all.len() };
        self.parts.push(part);
        let mut commands = self.lists.pop().unwrap_or_default();
        commands.reserve(all.len());
        for ApplyCommand { index, term, payload, callback, stamp } in all {
            self.waiting.push(Waiting { index, callback, stamp });
            commands.push(Command { index, term, payload, output: bytes::Bytes::new() });
        }
        self.batch.push(RegionCommands { region_id, commands, applied });
    }

    fn clear(&mut self) {
        self.batch.clear();
        self.parts.clear();
        self.waiting.clear();
    }
}

/// Who waits for a command.
struct Waiting {
    index: Index,
    callback: Option<Callback>,
    stamp: u64,
}

/// What happens to a region as a whole.
enum TaskChange {
    /// It becomes several.
    Split { children: Vec<RegionDescription>, callback: Option<Callback>, leading: bool },
    /// Its contents give way to a snapshot's.
    Install(PeerId),
    /// Its peer here has left it.
    Destroy(PeerId, Removal),
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
    /// Empty: apply on the poller.
    queues: Vec<Arc<ApplyQueue>>,
    /// On the poller, and the state machine gains nothing from many regions at once.
    one_by_one: bool,
    tasks: Vec<RegionTask>,
    compactions: Vec<(u32, Index)>,
    run: Run,
    /// When the round began.
    now: Duration,
    /// Whether a region's commands were measured in this round: of those applied one by one the first are.
    measured: bool,
}

impl ApplyStation {
    pub(crate) fn new(applier: Applier, queues: Vec<Arc<ApplyQueue>>) -> Self {
        let one_by_one = queues.is_empty() && !applier.state_machine.gains_from_batches();
        Self {
            applier,
            queues,
            one_by_one,
            tasks: Vec::new(),
            compactions: Vec::new(),
            run: Run::default(),
            now: Duration::ZERO,
            measured: false,
        }
    }

    /// Whether regions hear in their round of what is applied.
    pub(crate) fn applies_in_round(&self) -> bool {
        self.queues.is_empty()
    }

    /// A round begins.
    pub(crate) fn begin(&mut self, now: Duration) {
        (self.now, self.measured) = (now, false);
    }

    /// Returns up to where the region is applied, if that was done at once: while all that it is about is still
    /// in the processor's cache. Else it waits for [`flush`](Self::flush).
    #[must_use]
    pub(crate) fn add(
        &mut self,
        slot: u32,
        peer: PeerId,
        mut batch: ApplyBatch,
        respond: &mut RespondStation,
        metrics: &mut LocalMetrics,
    ) -> Option<Index> {
        let change = batch.change.take().map(|change| match change {
            RegionChange::Split { children, callback, leading } => {
                Box::new(TaskChange::Split { children, callback, leading })
            }
            RegionChange::Install => Box::new(TaskChange::Install(peer)),
        });
        // What is behind a change waits with it.
        let waits = || self.tasks.iter().any(|task| task.slot == slot);
        if !self.one_by_one || change.is_some() || waits() {
            self.tasks.push(RegionTask { slot, batch, change });
            return None;
        }
        if self.applier.health.has_failed() {
            // Unanswered callbacks answer "unknown" as they are dropped.
            return None;
        }
        let index = batch.applied.index;
        // What a panic has left must not be applied again.
        self.run.clear();
        self.run.push(slot, batch);
        let measure = !std::mem::replace(&mut self.measured, true);
        let start = match measure {
            true => self.applier.clock.now(),
            false => self.now,
        };
        let applied = self.applier.apply(&mut self.run, start, respond, metrics);
        if measure && applied {
            metrics.observe(Stage::Apply, self.applier.clock.now().saturating_sub(start));
        }
        applied.then_some(index)
    }

    /// A peer has left its region, which is like this now. What was handed out before is applied first.
    pub(crate) fn destroy(&mut self, slot: u32, peer: PeerId, last: Removal) {
        let (index, term) = (Index::default(), Term::default());
        let region_id = last.description.id;
        let applied = AppliedState { index, term, description: last.description.clone() };
        let batch = ApplyBatch { region_id, commands: Vec::new(), applied, change: None };
        let change = Some(Box::new(TaskChange::Destroy(peer, last)));
        self.tasks.push(RegionTask { slot, batch, change });
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
                let tasks = std::mem::take(&mut self.tasks);
                for (slot, _, index) in
                    self.applier.carry_out(tasks, &mut self.run, respond, metrics)
                {
                    done(slot, ApplyDone::Applied(index));
                }
            } else {
                self.hand_over();
            }
        }
        for (slot, index) in self.compactions.drain(..) {
            done(slot, ApplyDone::Compact(index));
        }
    }

    /// Forgets what a round that panicked has left; its callbacks answer "unknown".
    pub(crate) fn clear(&mut self) {
        self.tasks.clear();
        self.compactions.clear();
        self.run.clear();
    }

    fn hand_over(&mut self) {
        let count = self.queues.len() as u64;
        let mut tasks: Vec<Vec<RegionTask>> = Vec::new();
        tasks.resize_with(self.queues.len(), Vec::new);
        for task in self.tasks.drain(..) {
            tasks[(task.batch.region_id.get() % count) as usize].push(task);
        }
        for (task, queue) in tasks.into_iter().zip(&self.queues) {
            if !task.is_empty() {
                let commands = task.iter().flat_map(|region| &region.batch.commands);
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
    pub(crate) creator: Arc<Creator>,
    pub(crate) chores: Arc<ChoreQueue>,
    pub(crate) router: RegionRouter,
}

impl Applier {
    /// Carries out tasks in their order. Returns how far which regions are applied, with their slots; all
    /// that was before the first failure.
    fn carry_out(
        &self,
        tasks: Vec<RegionTask>,
        run: &mut Run,
        respond: &mut RespondStation,
        metrics: &mut LocalMetrics,
    ) -> Vec<(u32, RegionId, Index)> {
        let mut done = Vec::with_capacity(tasks.len());
        for RegionTask { slot, batch, change } in tasks {
            let Some(change) = change else {
                run.push(slot, batch);
                continue;
            };
            // What was proposed before the change is applied before it.
            if !self.apply_run(run, respond, metrics, &mut done) {
                return done;
            }
            let (region_id, applied) = (batch.region_id, batch.applied);
            match *change {
                TaskChange::Split { children, callback, leading } => {
                    let split = (children, callback, leading);
                    if !self.split(&applied, split, respond) {
                        return done;
                    }
                    done.push((slot, region_id, applied.index));
                }
                // They take their time elsewhere, and tell when they are done.
                TaskChange::Install(peer) => {
                    let _ = self.chores.push_always(Chore::Install(applied, peer), 1);
                }
                TaskChange::Destroy(peer, last) => {
                    let _ = self.chores.push_always(Chore::Destroy(last, peer), 1);
                }
            }
        }
        self.apply_run(run, respond, metrics, &mut done);
        done
    }

    /// Whether it was applied. The run is empty afterwards.
    fn apply_run(
        &self,
        run: &mut Run,
        respond: &mut RespondStation,
        metrics: &mut LocalMetrics,
        done: &mut Vec<(u32, RegionId, Index)>,
    ) -> bool {
        if run.parts.is_empty() {
            return true;
        }
        let (start, first) = (self.clock.now(), done.len());
        done.extend(run.parts.iter().map(|part| (part.slot, part.region_id, part.applied)));
        let applied = self.apply(run, start, respond, metrics);
        match applied {
            true => metrics.observe(Stage::Apply, self.clock.now().saturating_sub(start)),
            false => done.truncate(first),
        }
        applied
    }

    /// Divides a region: first its contents, then the regions that begin with them.
    fn split(
        &self,
        parent: &AppliedState,
        (children, callback, leading): (Vec<RegionDescription>, Option<Callback>, bool),
        respond: &mut RespondStation,
    ) -> bool {
        let first = TruncatedState::INITIAL;
        let begin = |child: &RegionDescription| AppliedState {
            index: first.index,
            term: first.term,
            description: Arc::new(child.clone()),
        };
        let split =
            RegionSplit { parent: parent.clone(), children: children.iter().map(begin).collect() };
        let divided = catch_unwind(AssertUnwindSafe(|| self.state_machine.split(&split)));
        let failure = match divided {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(StoreFailure::StateMachine(error)),
            Err(_) => Some(StoreFailure::Panicked("the state machine")),
        };
        if let Some(failure) = failure {
            // The callback answers "unknown" as it is dropped.
            self.health.fail(failure);
            return false;
        }
        let region_id = parent.description.id;
        self.creator.begin_children(&self.router, &parent.description, &children, leading);
        if let Some(callback) = callback {
            let mut all = vec![(*parent.description).clone()];
            all.extend(children);
            let value = Region::encode_answer(&all);
            let (term, index) = (parent.term, parent.index);
            respond.add(callback, Ok(Response { region_id, term, index, value }));
        }
        true
    }

    /// Whether it was applied. The run is empty afterwards.
    fn apply(
        &self,
        run: &mut Run,
        start: Duration,
        respond: &mut RespondStation,
        metrics: &mut LocalMetrics,
    ) -> bool {
        let batch = &mut run.batch;
        let applied = catch_unwind(AssertUnwindSafe(|| self.state_machine.apply(batch)));
        let failure = match applied {
            Ok(Ok(())) => altered(run).map(StoreFailure::StateMachine),
            Ok(Err(error)) => Some(StoreFailure::StateMachine(error)),
            Err(_) => Some(StoreFailure::Panicked("the state machine")),
        };
        if let Some(failure) = failure {
            self.health.fail(failure);
            let mut waiting = run.waiting.drain(..);
            for RunPart { region_id, commands, .. } in run.parts.drain(..) {
                let reason = "the store failed while it was applied";
                for callback in waiting.by_ref().take(commands).filter_map(|one| one.callback) {
                    respond.add(callback, Err(ProposeError::Unknown { region_id, reason }));
                }
            }
            drop(waiting);
            run.clear();
            return false;
        }
        let Run { batch, parts, waiting, lists } = run;
        metrics.applied.inc_by(waiting.len() as u64);
        let mut waiting = waiting.drain(..);
        for RegionCommands { region_id, mut commands, .. } in batch.drain(..) {
            let mut is_first = true;
            for (command, waiting) in commands.drain(..).zip(waiting.by_ref()) {
                let Some(callback) = waiting.callback else { continue };
                if std::mem::take(&mut is_first) {
                    let committed = start.saturating_sub(Duration::from_nanos(waiting.stamp));
                    metrics.observe(Stage::Send, committed);
                }
                let Command { index, term, output: value, .. } = command;
                respond.add(callback, Ok(Response { region_id, term, index, value }));
            }
            if lists.len() < KEPT_LISTS && commands.capacity() <= KEPT_COMMANDS {
                lists.push(commands);
            }
        }
        parts.clear();
        true
    }
}

/// What a state machine must not do: take commands away, add some or move them, since answers go by position.
fn altered(run: &Run) -> Option<StateMachineError> {
    let mut waiting = run.waiting.iter();
    let mut is_kept = |part: &RunPart, done: &RegionCommands| {
        let indexes = waiting.by_ref().take(part.commands).map(|waiting| waiting.index);
        indexes.eq(done.commands.iter().map(|command| command.index))
            && part.region_id == done.region_id
    };
    let (part, _) = run.parts.iter().zip(&run.batch).find(|(part, done)| !is_kept(part, done))?;
    let region = part.region_id;
    Some(StateMachineError(format!(
        "it moved commands of region {region}, or changed their number"
    )))
}

/// A thread of the apply pool.
pub(crate) struct ApplyWorker {
    queue: Arc<ApplyQueue>,
    applier: Applier,
    respond: RespondStation,
    metrics: LocalMetrics,
    tasks: Vec<ApplyTask>,
    run: Run,
}

impl ApplyWorker {
    pub(crate) fn new(queue: Arc<ApplyQueue>, applier: Applier, metrics: &Arc<Metrics>) -> Self {
        let respond = RespondStation::new(applier.clock.clone());
        let (metrics, tasks) = (metrics.local(), Vec::new());
        Self { queue, applier, respond, metrics, tasks, run: Run::default() }
    }

    /// The body of the thread: until the queue is closed and empty.
    pub(crate) fn run(mut self) {
        loop {
            match catch_unwind(AssertUnwindSafe(|| self.wake())) {
                Ok(true) => {}
                Ok(false) => return,
                // What it was at answers "unknown"; what still comes is dropped, and does the same.
                Err(_) => self.applier.health.fail(StoreFailure::Panicked("an apply thread")),
            }
        }
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
        let regions: Vec<_> = self.tasks.drain(..).flat_map(|task| task.0).collect();
        if self.applier.health.has_failed() {
            return true;
        }
        let mut outbox = self.applier.router.outbox();
        let Self { applier, run, respond, metrics, .. } = self;
        for (_, region, index) in applier.carry_out(regions, run, respond, metrics) {
            // Forced, and one per batch that a region has under way; a closed region needs none.
            let _ = outbox.force_send(region.get(), RegionMessage::Applied(index));
        }
        outbox.flush();
        self.respond.flush(&mut self.metrics);
        self.metrics.flush_if_due(self.applier.clock.now());
        true
    }
}
