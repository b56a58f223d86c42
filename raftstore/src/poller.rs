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
use crate::write_path::collect::CollectStation;
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
            // Stable: what happened to one region stays in order.
            done.sort_by_key(|(slot, _, _)| *slot);
            let mut cursor = Cursor::new(batch);
            for (slot, persisted, released) in done {
                self.collect.send.add_responses(released);
                if let Some(fsm) = cursor.find(slot) {
                    fsm.region.persisted(persisted);
                    // What is durable may bring forth the next write: a vote, for instance, a leader.
                    self.collect.run(fsm, &mut self.effects, &mut self.metrics, outbox);
                }
            }
        }
    }

    /// Station 5.
    fn apply(&mut self, batch: &mut [Claim<RegionFsm>], outbox: &mut RegionOutbox) {
        let CollectStation { apply, respond, .. } = &mut self.collect;
        let mut done = Vec::new();
        apply.flush(respond, &mut self.metrics, |slot, what| done.push((slot, what)));
        // Stable: what happened to one region stays in order.
        done.sort_by_key(|(slot, _)| *slot);
        let mut cursor = Cursor::new(batch);
        for (slot, what) in done {
            let Some(fsm) = cursor.find(slot) else { continue };
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
        self.collect.persist.flush_cuts();
        for claim in batch.iter() {
            if claim.fsm().region.has_ready() {
                // Forced: it is the one message that keeps a region going.
                let _ = outbox.force_send(claim.address(), RegionMessage::Continue);
            }
        }
    }
}

impl StorePoller {
    /// Those that have slept for long end now, to be cold. Their logs are cut as far as they may be: every peer
    /// has all of it.
    fn cool(&mut self, batch: &mut [Claim<RegionFsm>], outbox: &RegionOutbox) {
        for claim in batch.iter_mut().filter(|claim| claim.fsm().cooling) {
            let (address, fsm) = (claim.address(), claim.fsm_mut());
            self.cut(fsm, fsm.region.applied_index());
            self.collect.creator.cold.begin(RegionId::new(address));
            outbox.close(address);
        }
        self.collect.persist.flush_cuts();
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
        self.slots = 0;
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
        self.collect.run(fsm, &mut self.effects, &mut self.metrics, outbox);
    }

    fn end(&mut self, batch: &mut [Claim<RegionFsm>], outbox: &mut RegionOutbox) {
        self.metrics.round(self.slots as usize);
        self.metrics.observe(Stage::Collect, self.clock.now().saturating_sub(self.now));
        self.persist_and_send(batch, outbox);
        self.apply(batch, outbox);
        let now_ms = self.now.as_millis() as u32;
        let Creator { tick_interval, cold_after, liveness, .. } = &*self.collect.creator;
        for claim in batch.iter_mut() {
            let fsm = claim.fsm_mut();
            fsm.settle_down(liveness, *cold_after, *tick_interval, outbox);
            fsm.publisher.turn_ended(&fsm.region, now_ms);
        }
        self.cool(batch, outbox);
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

/// Finds the FSMs of a batch by slot. Both grow, so one pass is enough.
struct Cursor<'a> {
    batch: &'a mut [Claim<RegionFsm>],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn new(batch: &'a mut [Claim<RegionFsm>]) -> Self {
        Self { batch, at: 0 }
    }

    /// `None` for an FSM that was taken out of the batch because it panicked.
    fn find(&mut self, slot: u32) -> Option<&mut RegionFsm> {
        while self.batch.get(self.at)?.fsm().slot < slot {
            self.at += 1;
        }
        let fsm = self.batch[self.at].fsm_mut();
        (fsm.slot == slot).then_some(fsm)
    }
}
