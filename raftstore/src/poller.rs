//! A poller of a store: the write path's stations, run for a batch of regions.

use crate::clock::Clock;
use crate::creator::Creator;
use crate::error::StoreFailure;
use crate::events::RegionEvent;
use crate::health::Health;
use crate::message::{RegionMessage, StoreMessage};
use crate::metrics::LocalMetrics;
use crate::reads::read_error;
use crate::region_fsm::{RegionFsm, RegionOutbox, RegionRouter};
use crate::store_fsm::StoreFsm;
use crate::write_path::apply::ApplyDone;
use crate::write_path::collect::{CollectStation, Turn};
use crate::write_path::persist::Cut;
use crate::write_path::propose::ProposeStation;
use crate::write_path::Stage;
use batch_system::{Claim, CloseReason, Handler, PanicReport, RoundStart};
use region::{Effects, Index, Proposal, ProposeError, RegionId};
use std::sync::Arc;
use std::time::Duration;

pub(crate) struct StorePoller {
    propose: ProposeStation,
    /// Station 2, and the ones behind it.
    collect: CollectStation,
    effects: Effects,
    metrics: LocalMetrics,
    clock: Arc<dyn Clock>,
    health: Arc<Health>,
    /// Whether the log outlives the process.
    log_is_volatile: bool,
    router: RegionRouter,
    /// When the round began.
    now: Duration,
    /// FSMs handled in this round.
    slots: u32,
    /// Those of them whose turn waits for the round's end.
    waiting: Vec<u32>,
    /// Set from the begin of a round to its end: found set at a begin, the last round panicked.
    in_round: bool,
}

impl StorePoller {
    pub(crate) fn new(
        propose: ProposeStation,
        collect: CollectStation,
        metrics: LocalMetrics,
        clock: Arc<dyn Clock>,
        health: Arc<Health>,
        log_is_volatile: bool,
        router: RegionRouter,
    ) -> Self {
        Self {
            propose,
            collect,
            effects: Effects::default(),
            metrics,
            clock,
            health,
            log_is_volatile,
            router,
            now: Duration::ZERO,
            slots: 0,
            waiting: Vec::new(),
            in_round: false,
        }
    }

    /// Stations 3 and 4: what needs no disk leaves first.
    fn persist_and_send(&mut self, batch: &mut [Claim<RegionFsm>], outbox: &mut RegionOutbox) {
        loop {
            self.collect.send.flush(&mut self.metrics);
            let mut done = Vec::new();
            let note = |slot, proof, released| done.push((slot, proof, released));
            self.collect.persist.flush(&mut self.metrics, note);
            if done.is_empty() {
                return;
            }
            for (slot, persisted, released) in done {
                self.collect.send.add_responses(released);
                if let Some(fsm) = find(batch, slot) {
                    fsm.region.persisted(persisted);
                    // What is durable may bring forth the next write: a vote, for instance, a leader. It waits as
                    // it is, for the end of this round.
                    let _ = self.collect.run(fsm, &mut self.effects, &mut self.metrics, outbox);
                }
            }
        }
    }

    /// Station 5, for what waits.
    fn apply(&mut self, batch: &mut [Claim<RegionFsm>]) {
        let CollectStation { apply, respond, .. } = &mut self.collect;
        let mut done = Vec::new();
        apply.flush(respond, &mut self.metrics, |slot, what| done.push((slot, what)));
        for (slot, what) in done {
            let Some(fsm) = find(batch, slot) else { continue };
            match what {
                ApplyDone::Applied(index) => {
                    fsm.region.applied(index);
                    fsm.region.answer_reads(&mut self.effects);
                    self.collect.respond.add_reads(&mut self.effects.reads);
                    fsm.publish();
                }
                ApplyDone::Compact(index) => self.cut(fsm, index),
            }
        }
    }

    /// A region's turn is over.
    fn end_turn(&mut self, fsm: &mut RegionFsm, goes_on: bool, outbox: &mut RegionOutbox) {
        if goes_on {
            // Forced: it is the one message that keeps a region going.
            let _ = outbox.force_send(fsm.region.id().get(), RegionMessage::Continue);
        }
        let Creator { tick_interval, cold_after, liveness, .. } = &*self.collect.creator;
        fsm.settle_down(liveness, *cold_after, *tick_interval, outbox);
        fsm.publisher.turn_ended(&fsm.region, self.now.as_millis() as u32);
        if fsm.cooling {
            self.cool(fsm, outbox);
        }
    }

    /// It has slept for long and ends now, to be cold. Its log is cut as far as it may be: every peer has all of it.
    fn cool(&mut self, fsm: &mut RegionFsm, outbox: &RegionOutbox) {
        let id = fsm.region.id();
        self.cut(fsm, fsm.region.applied_index());
        self.collect.creator.cold.begin(id);
        outbox.close(id.get());
    }

    /// Cuts a region's log up to an index, but for what its state machine may still need.
    fn cut(&mut self, fsm: &mut RegionFsm, index: Index) {
        let (creator, region_id) = (&self.collect.creator, fsm.region.id());
        let kept_from = match self.log_is_volatile {
            true => fsm.region.applied_index(),
            false => creator.durable_index(region_id).min(fsm.region.applied_index()),
        };
        if let Some(truncated) = fsm.region.compact_to(index.min(kept_from)) {
            let index = truncated.index;
            creator.observers.tell(region_id, || RegionEvent::LogCompacted { index });
            // Then all of it is applied, and so no entry is on its way to the log.
            let whole = index == fsm.region.last_index();
            self.collect.persist.cut(Cut { region_id, truncated, whole });
        }
    }
}

impl Handler<RegionFsm, StoreFsm> for StorePoller {
    fn begin(&mut self, round: &RoundStart) {
        if std::mem::replace(&mut self.in_round, true) {
            self.collect.clear();
        }
        self.now = self.clock.now();
        self.collect.apply.begin(self.now);
        self.slots = 0;
        self.waiting.clear();
        if let Some(waited) = round.waited {
            self.metrics.schedule_wait.observe(waited.as_secs_f64());
        }
    }

    fn control(
        &mut self,
        fsm: &mut StoreFsm,
        messages: &mut Vec<StoreMessage>,
        outbox: &mut RegionOutbox,
    ) {
        let send = &mut self.collect.send;
        messages.drain(..).for_each(|message| fsm.handle(message, outbox, send));
    }

    fn normal(
        &mut self,
        fsm: &mut RegionFsm,
        messages: &mut Vec<RegionMessage>,
        outbox: &mut RegionOutbox,
    ) {
        fsm.slot = self.slots;
        self.slots += 1;
        if self.health.has_failed() {
            let stopped = ProposeError::Stopped { region_id: fsm.region.id() };
            refuse(messages, &stopped);
            fsm.region.shutdown(&mut self.effects);
            fsm.publish();
            self.collect.respond.add_reads(&mut self.effects.reads);
            return self.collect.respond.add_all(&mut self.effects.answers);
        }
        // Of the round, which is earlier: leases that count from when something was sent end earlier, too.
        fsm.region.set_time(self.now);
        fsm.rouse(messages, &self.collect.creator.liveness);
        self.propose.run(fsm, messages, self.now, &mut self.effects, &mut self.metrics, outbox);
        match self.collect.run(fsm, &mut self.effects, &mut self.metrics, outbox) {
            Turn::Waits => self.waiting.push(fsm.slot),
            turn => self.end_turn(fsm, turn == Turn::GoesOn, outbox),
        }
    }

    fn end(&mut self, batch: &mut [Claim<RegionFsm>], outbox: &mut RegionOutbox) {
        self.metrics.round(self.slots as usize);
        self.metrics.observe(Stage::Collect, self.clock.now().saturating_sub(self.now));
        self.persist_and_send(batch, outbox);
        self.apply(batch);
        let mut waiting = std::mem::take(&mut self.waiting);
        for slot in waiting.drain(..) {
            if let Some(fsm) = find(batch, slot) {
                self.end_turn(fsm, fsm.region.has_ready(), outbox);
            }
        }
        self.waiting = waiting;
        self.collect.persist.flush_cuts();
        if self.health.has_failed() {
            self.collect.send.clear();
        }
        self.collect.send.flush(&mut self.metrics);
        self.collect.respond.flush(&mut self.metrics);
        self.metrics.flush_if_due(self.now);
        self.in_round = false;
    }

    fn closed(
        &mut self,
        mut fsm: Box<RegionFsm>,
        mut unhandled: Vec<RegionMessage>,
        reason: CloseReason,
    ) {
        if fsm.cooling && matches!(reason, CloseReason::Requested) {
            match self.collect.creator.freeze(&self.router, fsm, unhandled) {
                None => return,
                Some(back) => (fsm, unhandled) = back,
            }
        }
        let region_id = fsm.region.id();
        if fsm.cooling {
            unhandled.extend(self.collect.creator.cold.abandon(region_id));
        }
        let refusal = match &reason {
            CloseReason::Panicked(text) => {
                // Noted before the address is free, so that nobody creates the region anew.
                let reason = format!("its handler panicked: {text}");
                self.collect.creator.set_aside(region_id, reason);
                ProposeError::Quarantined { region_id }
            }
            _ => ProposeError::Stopped { region_id },
        };
        self.propose.refuse_leftovers(&refusal);
        refuse(&mut unhandled, &refusal);
        self.effects.clear();
        if !matches!(reason, CloseReason::Panicked(_)) {
            fsm.region.shutdown(&mut self.effects);
        }
        self.collect.creator.metrics.region_gone(fsm.role);
        fsm.leave(&self.collect.creator.liveness);
        // What is set aside still shows how it stood last.
        let creator = &self.collect.creator;
        if !creator.set_aside.lock().contains_key(&region_id) {
            creator.directory.remove(region_id, &fsm.publisher.published());
        }
        self.collect.respond.add_all(&mut self.effects.answers);
        self.collect.respond.add_reads(&mut self.effects.reads);
        self.collect.creator.gates.close(&fsm.gate);
        // After a panic the region is not asked any more: its callbacks answer "unknown" as it is
        // dropped.
        drop(fsm);
        self.collect.respond.flush(&mut self.metrics);
    }

    fn control_closed(
        &mut self,
        mut fsm: Box<StoreFsm>,
        unhandled: Vec<StoreMessage>,
        reason: CloseReason,
    ) {
        if let CloseReason::Panicked(text) = reason {
            // No peer would be created here any more, and nobody would know why.
            tracing::error!(text, "the control handler panicked");
            self.health.fail(StoreFailure::Panicked("the store's control handler"));
        }
        unhandled.into_iter().for_each(|message| fsm.take_leave(message));
    }

    fn panic_message(&mut self, report: PanicReport) -> Option<StoreMessage> {
        let region_id = RegionId::new(report.address);
        Some(StoreMessage::RegionPanicked(region_id, report.message))
    }
}

/// Answers proposals that will not be handled; they surely did not happen.
fn refuse(messages: &mut Vec<RegionMessage>, error: &ProposeError) {
    for message in messages.drain(..) {
        match message {
            RegionMessage::Propose(Proposal { callback, .. })
            | RegionMessage::Admin(_, Proposal { callback, .. })
            | RegionMessage::TransferLeader(_, callback) => callback.call(Err(error.clone())),
            RegionMessage::Read(read) => read.callback.call(Err(read_error(error.clone()))),
            _ => {}
        }
    }
}

/// The FSM of a slot; `None` for one that was taken out of the batch because it panicked.
fn find(batch: &mut [Claim<RegionFsm>], slot: u32) -> Option<&mut RegionFsm> {
    // Slots grow. Each stands where its number says, or before it where others were taken out.
    let most = (slot as usize + 1).min(batch.len());
    let claim = batch[..most].iter_mut().rev().find(|claim| claim.fsm().slot <= slot)?;
    Some(claim.fsm_mut()).filter(|fsm| fsm.slot == slot)
}
