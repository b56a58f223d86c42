//! The normal FSM of the store's pool: one region's peer.

use crate::message::RegionMessage;
use crate::published::Publisher;
use crate::read_gate::ReadGate;
use crate::rest::Rest;
use crate::store_fsm::StoreFsm;
use batch_system::{Fsm, Outbox, Router};
use region::{Region, Role, Serving};
use std::sync::Arc;

/// The store's router.
pub(crate) type RegionRouter = Router<RegionFsm, StoreFsm>;
/// The store's outbox.
pub(crate) type RegionOutbox = Outbox<RegionFsm, StoreFsm>;

/// A region's peer on this store.
pub(crate) struct RegionFsm {
    pub(crate) region: Region,
    /// The role that the metrics know of.
    pub(crate) role: Option<Role>,
    /// What it shows of itself.
    pub(crate) publisher: Publisher,
    /// Its number among the FSMs of the current round.
    pub(crate) slot: u32,
    /// Where readers look.
    pub(crate) gate: Arc<ReadGate>,
    /// Whether a tick is under way to it.
    pub(crate) ticking: bool,
    /// Since when it sleeps, and whose store is watched meanwhile.
    pub(crate) rest: Option<Rest>,
    /// It has slept for long, and ends with this round, to be cold.
    pub(crate) cooling: bool,
    /// As they see it.
    published: Option<Serving>,
    /// As long as the region knows nothing: it is counted among those that do not.
    newcomer: Option<Arc<()>>,
}

impl Fsm for RegionFsm {
    type Message = RegionMessage;
}

impl RegionFsm {
    pub(crate) fn new(region: Region, gate: Arc<ReadGate>, newcomer: Option<Arc<()>>) -> Self {
        let publisher = Publisher::new(&region);
        Self {
            region,
            role: None,
            publisher,
            slot: 0,
            gate,
            // It begins with one.
            ticking: true,
            rest: None,
            cooling: false,
            published: None,
            newcomer,
        }
    }

    /// Lets readers know how the region stands. Before any message of its turn leaves.
    pub(crate) fn publish(&mut self) {
        let serving = self.region.serving();
        self.gate.publish(&serving, self.published.as_ref());
        self.published = Some(serving);
        if self.newcomer.is_some() && self.region.description().is_initialised() {
            self.newcomer = None;
        }
    }
}
