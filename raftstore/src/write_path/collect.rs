//! Station 2. In: a region that has stepped its messages. Out: its `Ready`, spread over the stations
//! that carry it out. A leader's appends leave from here without waiting for its own disk (Raft
//! thesis, 10.2.1).

use crate::message::StoreMessage;
use crate::metrics::LocalMetrics;
use crate::region_fsm::{RegionFsm, RegionOutbox};
use crate::write_path::apply::ApplyStation;
use crate::write_path::persist::{Added, PersistStation};
use crate::write_path::respond::RespondStation;
use crate::write_path::send::SendStation;
use region::Effects;

/// Of one region, so many Readys are collected before the others get their turn.
const READYS_IN_A_ROW: usize = 4;

/// The stations behind this one.
pub(crate) struct CollectStation {
    pub(crate) persist: PersistStation,
    pub(crate) send: SendStation,
    pub(crate) apply: ApplyStation,
    pub(crate) respond: RespondStation,
}

impl CollectStation {
    /// Forgets what a round that panicked has left: its slots mean nothing any more, and what was to
    /// be promised may not be.
    pub(crate) fn clear(&mut self) {
        self.persist.clear();
        self.send.clear();
        self.apply.clear();
    }

    /// Collects what the region has for the other stations. `effects` may hold results of station 1;
    /// it is empty afterwards.
    pub(crate) fn run(
        &mut self,
        fsm: &mut RegionFsm,
        effects: &mut Effects,
        metrics: &mut LocalMetrics,
        outbox: &mut RegionOutbox,
    ) {
        for _ in 0..READYS_IN_A_ROW {
            fsm.region.collect(effects);
            self.send.add_all(&mut effects.messages);
            if let Some(write) = effects.write.take() {
                if let Added::Persisted(persisted, messages) = self.persist.add(fsm.slot, write) {
                    fsm.region.persisted(persisted);
                    self.send.add_responses(messages);
                }
            }
            if let Some(batch) = effects.apply.take() {
                self.apply.add(fsm.slot, batch);
            }
            if let Some(index) = effects.compact_request.take() {
                self.apply.compact_after(fsm.slot, index);
            }
            self.respond.add_all(&mut effects.answers);
            if let Some(change) = effects.role_change.take() {
                metrics.role_changed(&mut fsm.role, change);
            }
            if let Some(failure) = effects.fatal.take() {
                let failed = StoreMessage::RegionFailed(fsm.region.id(), failure);
                // Beyond the control mailbox's bound the region's own status still tells.
                let _ = outbox.send_control(failed);
                return;
            }
            if !fsm.region.has_ready() {
                return;
            }
        }
    }
}
