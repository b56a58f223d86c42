//! What becomes of a region that is set aside: its remains are discarded, so that another peer may come.
//!
//! A peer that is set aside has made promises which it cannot keep, and may hold the last copy of something.
//! So it is never given up by itself: whoever has looked at the reason asks for it, with the id of the peer.
//! What is left is a tombstone: the peer never returns, and one with a later id gets a snapshot. The steps are
//! in `docs/repair.md`.
//!
//! A peer that never ran in this process has nothing under way, and its remains go at once. One that was set
//! aside while it ran may have writes in queues; so only the record gives way to the tombstone, and the next
//! start removes the rest. Until then the region stays set aside, and no other peer of it comes.

use crate::creator::Creator;
use crate::error::StoreFailure;
use crate::handle::StoreHandle;
use crate::log_store::{LogBatch, RegionWrite};
use crate::peers::Refused;
use crate::snapshot::{flush, forget, remove_staged, tombstone};
use crate::write_path::persist::write_log;
use region::{
    is_sound_id, Index, PeerId, RegionDescription, RegionId, RegionRecord, Removal, MAX_ID,
};
use std::sync::atomic::Ordering;
use std::sync::Arc;

/// What was done with a region that was set aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a region that goes at the next start is not free for another peer before"]
pub enum Discarded {
    /// Nothing of it is left but a tombstone. Another peer may come.
    Now,
    /// It ran in this process before it was set aside: the next start of the store removes what is left.
    /// Another peer may come then.
    AtNextStart,
}

/// Why nothing was discarded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DiscardError {
    /// The region works, or is not here. Remove a peer that works by a change of its region's peers.
    #[error("region {0} is not set aside here: remove a peer that works by a change of peers")]
    NotSetAside(RegionId),
    /// The peer here is another one. Look again whom you mean.
    #[error("the peer of region {region_id} here is {here}, not {asked}")]
    OtherPeer {
        /// The region.
        region_id: RegionId,
        /// Who is here.
        here: PeerId,
        /// Who was to be discarded.
        asked: PeerId,
    },
    /// No peer has such an id, or none may come after it. Take the one that the other stores have.
    #[error("region {region_id}: peer {asked} cannot be: ids are 1 to {MAX_ID}")]
    UnsoundPeer {
        /// The region.
        region_id: RegionId,
        /// Who was to be discarded.
        asked: PeerId,
    },
    /// It is being set aside, or created by the split of its parent, at this moment. Try again.
    #[error("region {0} is just being set aside, or split off; try again")]
    Busy(RegionId),
    /// The store has stopped, or stops.
    #[error("the store has stopped")]
    Stopped,
    /// The disk failed, and with it the store. Start it again, and discard the region again.
    #[error("region {region_id} could not be discarded, and the store stops: {reason}")]
    Failed {
        /// The region.
        region_id: RegionId,
        /// What failed.
        reason: String,
    },
}

impl StoreHandle {
    /// Gives up what this store has of a region that is [set aside](Self::set_aside), for good: its log, its
    /// contents, its snapshot files. `peer` is the id of its peer on this store, as the other stores describe
    /// the region; it never returns. Afterwards the region may get another peer here, with a later id; see
    /// `docs/repair.md`. Waits for the disk, so not from a callback.
    ///
    /// If the region's record is damaged the store does not know the id itself, and believes the caller. With
    /// one that is too low, a peer that has forgotten its vote could return; with one that is too high, no other could
    /// come before its id is above it.
    ///
    /// # Errors
    /// See [`DiscardError`]. Only [`DiscardError::Failed`] may have discarded anything.
    pub fn discard(&self, region: RegionId, peer: PeerId) -> Result<Discarded, DiscardError> {
        let creator = self.inner.creator.lock().clone();
        let creator = creator.ok_or(DiscardError::Stopped)?;
        if self.inner.stopped.load(Ordering::Acquire) || creator.health.has_failed() {
            return Err(DiscardError::Stopped);
        }
        let runs = || self.inner.router.mailbox(region.get()).is_some();
        creator.discard(region, peer, runs)
    }
}

impl Creator {
    fn discard(
        &self,
        region: RegionId,
        peer: PeerId,
        runs: impl Fn() -> bool,
    ) -> Result<Discarded, DiscardError> {
        let _one_at_a_time = self.bootstrapping.lock();
        if !is_sound_id(peer.get()) {
            return Err(DiscardError::UnsoundPeer { region_id: region, asked: peer });
        }
        if !self.set_aside.lock().contains_key(&region) {
            return Err(DiscardError::NotSetAside(region));
        }
        if runs() {
            return Err(DiscardError::Busy(region));
        }
        // Nobody is told by it who is there now: this peer knows nothing of that.
        let description = Arc::new(RegionDescription::uninitialised(region, 0));
        let last = Removal { description, left_at: None };
        self.peers.discard(peer, &last).map_err(|refused| match refused {
            Refused::Promised => DiscardError::Busy(region),
            Refused::Here(here) | Refused::Tombstone(here, _) => {
                DiscardError::OtherPeer { region_id: region, here, asked: peer }
            }
        })?;
        let has_run = self.directory.find(region).is_some();
        let done = match has_run {
            true => self.bury_only(&last, peer),
            false => self.bury_and_forget(&last, peer),
        };
        if let Err(failure) = done {
            let reason = failure.to_string();
            self.health.fail(failure);
            return Err(DiscardError::Failed { region_id: region, reason });
        }
        if has_run {
            let reason = format!("peer {peer} is discarded; its remains go at the next start");
            self.set_aside.lock().insert(region, reason);
            return Ok(Discarded::AtNextStart);
        }
        remove_staged(&*self.files, region, peer, Index::new(u64::MAX));
        self.ranges.remove_region(region);
        self.metrics.count_destroyed();
        // Last: from now on another peer may come.
        self.set_aside.lock().remove(&region);
        Ok(Discarded::Now)
    }

    /// The record alone: entries that are still in a queue would leave a hole in a log that is empty.
    fn bury_only(&self, last: &Removal, peer: PeerId) -> Result<(), StoreFailure> {
        flush(&*self.state_machine)?;
        self.write(RegionWrite {
            region_id: last.description.id,
            record: Some(Box::new(RegionRecord::tombstone(last, peer))),
            ..RegionWrite::default()
        })
    }

    /// In the order in which a peer that has left is destroyed: regions that were split off this one must not
    /// need its log again.
    fn bury_and_forget(&self, last: &Removal, peer: PeerId) -> Result<(), StoreFailure> {
        flush(&*self.state_machine)?;
        self.write(tombstone(last, peer))?;
        forget(&*self.state_machine, last.description.id)
    }

    fn write(&self, write: RegionWrite) -> Result<(), StoreFailure> {
        let mut batch = LogBatch { writes: vec![write], ..LogBatch::default() };
        write_log(&*self.log_store, &mut batch, true).map(|_| ())
    }
}
