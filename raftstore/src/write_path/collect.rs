//! Station 2. In: a region that has stepped its messages. Out: its `Ready`, spread over the stations
//! that carry it out. A leader's appends leave from here without waiting for its own disk (Raft
//! thesis, 10.2.1).

use crate::creator::Creator;
use crate::events::RegionEvent;
use crate::metrics::LocalMetrics;
use crate::region_fsm::{RegionFsm, RegionOutbox};
use crate::snapshot::{Chore, StreamQueue, StreamTask, TASK_WEIGHT};
use crate::write_path::apply::ApplyStation;
use crate::write_path::persist::{Added, PersistStation};
use crate::write_path::respond::RespondStation;
use crate::write_path::send::SendStation;
use region::{
    AppliedState, ApplyBatch, DescriptionChange, Effects, LogWrite, Removal, RoleChange,
    TruncatedState,
};
use std::sync::Arc;

/// Of one region, so many Readys are collected before the others get their turn.
const READYS_IN_A_ROW: usize = 4;

/// How far a region has come with its turn.
#[derive(Clone, Copy, PartialEq, Eq)]
#[must_use]
pub(crate) enum Turn {
    /// Nothing is left of it.
    Ended,
    /// There is more than fits into one turn.
    GoesOn,
    /// Something of it waits for the round's end, of which the region will hear.
    Waits,
}

/// The stations behind this one.
pub(crate) struct CollectStation {
    pub(crate) persist: PersistStation,
    pub(crate) send: SendStation,
    pub(crate) apply: ApplyStation,
    pub(crate) respond: RespondStation,
    pub(crate) creator: Arc<Creator>,
    /// Where snapshots are made.
    pub(crate) streams: Arc<StreamQueue>,
}

impl CollectStation {
    /// Forgets what a round that panicked has left: its slots mean nothing any more, and what was to
    /// be promised may not be.
    pub(crate) fn clear(&mut self) {
        self.persist.clear();
        self.send.clear();
        self.apply.clear();
    }

    /// The records of a split's children are written only where they may be here.
    ///
    /// Where a child has the id of another region the split must not be applied here: the other's contents
    /// would give way to the child's. Says so then.
    fn promise_children(&self, write: &mut LogWrite) -> Result<(), String> {
        let own = write.region_id;
        let of_children = write.records.iter().filter(|record| record.description.id != own);
        let children: Vec<_> =
            of_children.map(|record| (record.description.id, record.peer_id)).collect();
        if children.is_empty() {
            return Ok(());
        }
        match self.creator.peers.promise(own, &children, &self.creator.ranges) {
            Ok(others) => {
                write.records.retain(|record| !others.contains(&record.description.id));
                Ok(())
            }
            Err((child, taken)) => {
                let index = write.records.iter().find_map(|record| record.origin);
                let index = index.map(|origin| origin.index).unwrap_or_default();
                Err(format!(
                    "its split at index {index} would create region {child}, {taken}: ids were handed out \
                     twice. That region is left as it is; see docs/repair.md"
                ))
            }
        }
    }

    /// Says whether the region hears at the round's end that what it has handed out is applied.
    fn apply(
        &mut self,
        fsm: &mut RegionFsm,
        effects: &mut Effects,
        metrics: &mut LocalMetrics,
    ) -> bool {
        let Some(batch) = effects.apply.take() else { return false };
        let (slot, peer) = (fsm.slot, fsm.region.peer().id);
        match self.apply.add(slot, peer, batch, &mut self.respond, metrics) {
            Some(index) => {
                fsm.region.applied(index);
                fsm.region.answer_reads(effects);
                false
            }
            None => self.apply.applies_in_round(),
        }
    }

    /// The region cannot go on here; the others do. What it has handed out before is carried out.
    fn stop(
        &mut self,
        fsm: &mut RegionFsm,
        reason: String,
        effects: &mut Effects,
        metrics: &mut LocalMetrics,
        outbox: &RegionOutbox,
    ) {
        let region = fsm.region.id();
        tracing::error!(%region, reason, "region set aside");
        // First known as set aside, then gone: proposers are told so from the start.
        self.creator.set_aside(region, reason);
        let _ = self.apply(fsm, effects, metrics);
        fsm.region.shutdown(effects);
        self.respond.add_all(&mut effects.answers);
        self.respond.add_reads(&mut effects.reads);
        effects.clear();
        outbox.close(region.get());
    }

    /// A peer has left its region.
    fn part_with(&mut self, fsm: &RegionFsm, last: Removal) {
        let peer = fsm.region.peer().id;
        let region = last.description.id;
        tracing::info!(%region, %peer, "the peer has left its region");
        match self.creator.peers.bury(peer, &last) {
            true => self.apply.destroy(fsm.slot, peer, last),
            // A split has promised it anew: nothing of it may be destroyed.
            false => drop(self.creator.chores.push_always(Chore::Close(region), 1)),
        }
    }

    /// A snapshot is wanted of a region that has applied nothing: another store has a peer that knows nothing,
    /// and without it nothing can be committed. Then the state machine has not heard of the region either, and
    /// hears of it now, so that it can make one.
    fn tell_state_machine(&mut self, fsm: &RegionFsm, metrics: &mut LocalMetrics) {
        let (region, begin) = (&fsm.region, TruncatedState::INITIAL);
        let at_begin = region.truncated() == begin
            && region.applied_index() == begin.index
            && region.status().emitted == begin.index;
        if at_begin && region.has_range() {
            let description = region.description().clone();
            let applied = AppliedState { index: begin.index, term: begin.term, description };
            let batch =
                ApplyBatch { region_id: region.id(), commands: Vec::new(), applied, change: None };
            // It has no news for the region.
            let _ = self.apply.add(fsm.slot, region.peer().id, batch, &mut self.respond, metrics);
        }
    }

    /// Whoever began without peers is told as created.
    fn tell_of_peers(&self, DescriptionChange { before, after }: DescriptionChange) {
        if before.is_initialised() && before.epoch.conf_ver != after.epoch.conf_ver {
            let changed = || RegionEvent::PeersChanged { before, after: after.clone() };
            self.creator.observers.tell(after.id, changed);
        }
    }

    /// Whoever watches is told what has become of the region.
    fn tell_of_changes(
        &self,
        fsm: &mut RegionFsm,
        effects: &mut Effects,
        metrics: &mut LocalMetrics,
    ) {
        if let Some(change) = effects.role_change.take() {
            metrics.role_changed(&mut fsm.role, change);
            let RoleChange { role, term, leader } = change;
            self.creator.observers.tell(fsm.region.id(), || RegionEvent::RoleChanged {
                role,
                term,
                leader,
            });
            fsm.publisher.hurry();
        }
        if let Some((to, done)) = effects.transfer_ended.take() {
            self.creator.metrics.count_transfer(done);
            let ended = || RegionEvent::LeaderTransferred { to, done };
            self.creator.observers.tell(fsm.region.id(), ended);
        }
        if let Some(change) = effects.description_change.take() {
            self.creator.metrics.count_description_change();
            self.tell_of_peers(change);
            fsm.publisher.hurry();
        }
    }

    /// Collects what the region has for the other stations. `effects` may hold results of station 1;
    /// it is empty afterwards, and readers know how the region stands.
    pub(crate) fn run(
        &mut self,
        fsm: &mut RegionFsm,
        effects: &mut Effects,
        metrics: &mut LocalMetrics,
        outbox: &mut RegionOutbox,
    ) -> Turn {
        let turn = self.collect_all(fsm, effects, metrics, outbox);
        fsm.publish();
        turn
    }

    fn collect_all(
        &mut self,
        fsm: &mut RegionFsm,
        effects: &mut Effects,
        metrics: &mut LocalMetrics,
        outbox: &mut RegionOutbox,
    ) -> Turn {
        let mut waits = false;
        for _ in 0..READYS_IN_A_ROW {
            fsm.region.collect(effects);
            self.send.add_all(&mut effects.messages);
            if let Some(mut write) = effects.write.take() {
                if let Err(reason) = self.promise_children(&mut write) {
                    self.stop(fsm, reason, effects, metrics, outbox);
                    return Turn::Ended;
                }
                match self.persist.add(fsm.slot, write) {
                    Added::Queued => waits |= self.persist.writes_in_round(),
                    Added::Persisted(persisted, messages) => {
                        fsm.region.persisted(persisted);
                        self.send.add_responses(messages);
                    }
                }
            }
            waits |= self.apply(fsm, effects, metrics);
            if let Some(index) = effects.compact_request.take() {
                self.apply.compact_after(fsm.slot, index);
                waits = true;
            }
            self.respond.add_all(&mut effects.answers);
            self.respond.add_reads(&mut effects.reads);
            self.tell_of_changes(fsm, effects, metrics);
            if !effects.snapshots_wanted.is_empty() {
                self.tell_state_machine(fsm, metrics);
            }
            for to in effects.snapshots_wanted.drain(..) {
                if let Some(peer) = fsm.region.description().peer(to) {
                    let make = StreamTask::Make(fsm.region.id(), *peer);
                    let _ = self.streams.push_always(make, TASK_WEIGHT);
                }
            }
            if let Some(last) = effects.removed.take() {
                self.respond.add_all(&mut effects.answers);
                fsm.publisher.leave();
                self.part_with(fsm, last);
                return Turn::Ended;
            }
            if let Some(failure) = effects.fatal.take() {
                self.stop(fsm, failure.to_string(), effects, metrics, outbox);
                return Turn::Ended;
            }
            if !fsm.region.has_ready() {
                return if waits { Turn::Waits } else { Turn::Ended };
            }
        }
        if waits {
            Turn::Waits
        } else {
            Turn::GoesOn
        }
    }
}
