//! The control FSM of the store's pool: what concerns the store and not one region.

use crate::message::StoreMessage;
use crate::region_fsm::RegionOutbox;
use batch_system::Fsm;
use parking_lot::Mutex;
use region::RegionId;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Regions that have been set aside, and why. They do nothing any more; the others go on.
pub(crate) type SetAside = Arc<Mutex<BTreeMap<RegionId, String>>>;

/// The store's own state.
pub(crate) struct StoreFsm {
    set_aside: SetAside,
    /// Raft messages for regions that are not here.
    strays: u64,
}

impl Fsm for StoreFsm {
    type Message = StoreMessage;
}

impl StoreFsm {
    pub(crate) fn new(set_aside: SetAside) -> Self {
        Self { set_aside, strays: 0 }
    }

    pub(crate) fn handle(&mut self, message: StoreMessage, outbox: &RegionOutbox) {
        match message {
            StoreMessage::RegionPanicked(region, text) => {
                // Its poller has set it aside already, before the address was free.
                tracing::error!(%region, text, "region set aside: its handler panicked");
            }
            StoreMessage::RegionFailed(region, failure) => {
                // First known as set aside, then gone: proposers are told so from the start.
                self.set_aside(region, failure.to_string());
                outbox.close(region.get());
            }
            StoreMessage::Answer(callback, answer) => callback.call(answer),
            StoreMessage::Stray(envelope) => {
                self.strays += 1;
                // Every power of two: enough to see it happens, too little to fill a disk.
                if self.strays.is_power_of_two() {
                    tracing::warn!(
                        region = %envelope.region_id,
                        from = %envelope.from.store,
                        total = self.strays,
                        "a Raft message for a region that is not here"
                    );
                }
            }
        }
    }

    /// Handles what is left when the store ends.
    pub(crate) fn take_leave(&mut self, message: StoreMessage) {
        if let StoreMessage::Answer(callback, answer) = message {
            callback.call(answer);
        }
    }

    fn set_aside(&mut self, region: RegionId, reason: String) {
        tracing::error!(%region, reason, "region set aside");
        self.set_aside.lock().insert(region, reason);
    }
}
