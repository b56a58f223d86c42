//! What the state machine says of regions, not believed at once: it is other people's code, and may be that of
//! another store, by a mistake of whoever has put the directories together.

use crate::creator::Creator;
use crate::log_store::StoredRegion;
use region::{AppliedState, Index, RegionId, RegionRecord, TruncatedState};
use std::panic::{catch_unwind, AssertUnwindSafe};

impl Creator {
    /// What is applied to a region; or why that is not known.
    pub(crate) fn known_to_state_machine(
        &self,
        region: RegionId,
    ) -> Result<Option<AppliedState>, String> {
        let asked = catch_unwind(AssertUnwindSafe(|| self.state_machine.applied_state(region)));
        match asked {
            Ok(Ok(Some(applied))) if applied.description.id != region => Err(format!(
                "its state machine gave the applied state of region {} for it",
                applied.description.id
            )),
            Ok(Ok(applied)) => Ok(applied),
            Ok(Err(error)) => Err(format!("its state machine: {error}")),
            Err(_) => Err("its state machine panicked when asked for its applied state".to_owned()),
        }
    }

    /// Up to which index a restart would find its effects; 0 if the state machine cannot say.
    pub(crate) fn durable_index(&self, region: RegionId) -> Index {
        let asked = catch_unwind(AssertUnwindSafe(|| self.state_machine.durable_index(region)));
        asked.unwrap_or_default()
    }

    /// Whether the peer has left its region, as its applied state has it. If not, that is another store's.
    pub(crate) fn check_leave(
        &self,
        stored: &StoredRegion,
        applied: &AppliedState,
    ) -> Result<(), String> {
        let record = &stored.record;
        let (known, left) = (record.description.epoch.conf_ver, applied.description.epoch.conf_ver);
        let foreign = |why: String| {
            let peer = record.peer_id;
            Err(format!(
                "the state machine has it without peer {peer}, which is here by the log, but {why}: are log \
                 and state machine those of one store? Start it with the right ones"
            ))
        };
        if left <= known {
            return foreign(format!("its conf_ver is {left} there and {known} in the log"));
        }
        let TruncatedState { index, term } = stored.truncated;
        if applied.index < index || applied.index > stored.last_index {
            let last = stored.last_index;
            return foreign(format!(
                "it is at index {}, and the log has {index} to {last}",
                applied.index
            ));
        }
        let in_log = match applied.index == index {
            true => Some(term),
            false => {
                let read = self.log_store.term(record.description.id, applied.index);
                read.map_err(|error| error.to_string())?
            }
        };
        match in_log {
            Some(term) if term == applied.term => Ok(()),
            _ => foreign(format!("its term at index {} is {} there", applied.index, applied.term)),
        }
    }

    /// Whether the contents are the ones that a tombstone is of: those of its peer or an earlier one.
    pub(crate) fn check_remains(
        &self,
        tombstone: &RegionRecord,
        applied: &AppliedState,
    ) -> Result<(), String> {
        match applied.description.peer_on(self.store_id) {
            Some(peer) if peer.id > tombstone.peer_id => Err(format!(
                "peer {} is destroyed by the log, and the state machine has contents of peer {}: are they \
                 those of one store? Start it with the right ones",
                tombstone.peer_id, peer.id
            )),
            _ => Ok(()),
        }
    }
}
