//! At a start: regions that have begun as parts of others, and whose contents the state machine does not have.
//!
//! A crash may have undone the split in the state machine, and the parent's log brings it back. Where no log
//! here will, such a region would wait for ever; it is set aside instead, with the reason.

use crate::creator::Creator;
use crate::log_store::StoredRegion;
use crate::region_fsm::RegionRouter;
use region::{Index, Origin, RegionId, TruncatedState};
use rustc_hash::FxHashMap;

/// A region without contents, and the split that brings them.
pub(crate) type Unborn = (RegionId, Origin);

impl Creator {
    /// Regions that have nothing but the split they come from.
    pub(crate) fn unborn(&self, regions: &[StoredRegion]) -> Vec<Unborn> {
        let without_contents = |stored: &StoredRegion| {
            let record = &stored.record;
            let origin = record.origin.filter(|_| !record.tombstone)?;
            let id = record.description.id;
            let nothing = matches!(self.known_to_state_machine(id), Ok(None));
            nothing.then_some((id, origin))
        };
        regions.iter().filter_map(without_contents).collect()
    }

    /// Takes out the regions whose contents nothing here will bring, and sets them aside.
    pub(crate) fn set_orphans_aside(&self, regions: &mut Vec<StoredRegion>, unborn: &[Unborn]) {
        if unborn.is_empty() {
            return;
        }
        let by_id: FxHashMap<RegionId, &StoredRegion> =
            regions.iter().map(|stored| (stored.record.description.id, stored)).collect();
        let mut orphans: FxHashMap<RegionId, String> = FxHashMap::default();
        for (id, origin) in unborn {
            let own = by_id[id];
            // An installation that a crash has cut short brings contents, too; and of a log that is cut the
            // region itself says what is wrong.
            if own.record.installing.is_some() || own.truncated != TruncatedState::INITIAL {
                continue;
            }
            if let Some(why) = self.cannot_split(by_id.get(&origin.parent).copied(), origin.index) {
                let reason = format!(
                    "the state machine has nothing of it, and the split of region {} at index {} that \
                     it comes from will not be replayed: {why}",
                    origin.parent, origin.index
                );
                orphans.insert(*id, reason);
            }
        }
        regions.retain(|stored| !orphans.contains_key(&stored.record.description.id));
        for (region, reason) in orphans {
            tracing::error!(%region, reason, "region set aside");
            self.set_aside(region, reason);
        }
    }

    /// Why a parent will not carry out its split again.
    fn cannot_split(&self, parent: Option<&StoredRegion>, index: Index) -> Option<String> {
        let Some(parent) = parent else { return Some("that region cannot be read".to_owned()) };
        let id = parent.record.description.id;
        if parent.record.tombstone {
            return Some("that region has left this store".to_owned());
        }
        let installed = parent.record.installing.map(|installing| installing.index);
        let applied = self.known_to_state_machine(id).ok()?.map(|applied| applied.index);
        match applied.max(installed).max(Some(parent.truncated.index)) {
            Some(reached) if reached >= index => Some(format!("it is at index {reached}")),
            _ if parent.last_index < index => {
                Some(format!("its log ends at {}", parent.last_index))
            }
            _ => None,
        }
    }

    /// Regions that wait for a parent which was itself set aside: when all are here, and before any begins.
    pub(crate) fn set_aside_with_parents(&self, router: &RegionRouter, unborn: &[Unborn]) {
        // Parents may wait for theirs.
        for _ in unborn {
            let mut any = false;
            for (region, origin) in unborn {
                let is_set_aside = |region| self.set_aside.lock().contains_key(region);
                if is_set_aside(region) || !is_set_aside(&origin.parent) {
                    continue;
                }
                let reason = format!("its contents are in region {}, set aside", origin.parent);
                tracing::error!(%region, reason, "region set aside");
                self.set_aside(*region, reason);
                router.close(region.get());
                any = true;
            }
            if !any {
                return;
            }
        }
    }
}
