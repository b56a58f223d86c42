//! Whether a proposal may enter.
//!
//! Everything that a proposal can be refused for, in the order in which it is looked at: whether
//! anybody is there, whether it is the right place, whether the proposal is sound, and last, since
//! it will pass, whether there is room.

use std::sync::Arc;

use crate::config::RegionConfig;
use crate::description::{Peer, RegionDescription, RegionEpoch};
use crate::error::ProposeError;
use crate::life::Life;
use crate::proposals::Proposal;

/// What a region knows when proposals arrive.
pub(crate) struct Admission<'a> {
    pub(crate) life: &'a Life,
    pub(crate) config: &'a RegionConfig,
    pub(crate) description: &'a RegionDescription,
    pub(crate) leading: bool,
    pub(crate) leader: Option<Peer>,
    /// How many more proposals may wait.
    pub(crate) room: usize,
    /// Payload bytes that are appended and not committed.
    pub(crate) uncommitted_bytes: usize,
    /// Too much is handed out and not applied.
    pub(crate) unapplied_full: bool,
    /// Leadership is being handed over.
    pub(crate) transferring: bool,
}

impl Admission<'_> {
    /// Judges a proposal, and takes up its room if it may enter.
    pub(crate) fn admit(&mut self, proposal: &Proposal) -> Result<(), ProposeError> {
        self.admit_bytes(proposal.epoch, proposal.payload.len())
    }

    /// The same for any command, by what is asked of it.
    pub(crate) fn admit_bytes(
        &mut self,
        epoch: Option<RegionEpoch>,
        size_bytes: usize,
    ) -> Result<(), ProposeError> {
        let region_id = self.description.id;
        match self.life {
            Life::Live => {}
            Life::Stopped | Life::Removing(_) => return Err(ProposeError::Stopped { region_id }),
            Life::Failing(_) | Life::Failed => {
                return Err(ProposeError::Quarantined { region_id });
            }
        }
        if !self.leading {
            return Err(ProposeError::NotLeader { region_id, leader: self.leader });
        }
        if epoch.is_some_and(|epoch| epoch != self.description.epoch) {
            return Err(epoch_not_match(self.description));
        }
        let limit_bytes = self.config.max_proposal_bytes;
        if size_bytes > limit_bytes {
            return Err(ProposeError::TooLarge { region_id, size_bytes, limit_bytes });
        }
        let busy = |reason| Err(ProposeError::Busy { region_id, reason });
        if self.transferring {
            return busy("leadership is being handed over");
        }
        if self.room == 0 {
            return busy("too many proposals wait");
        }
        let uncommitted_bytes = self.uncommitted_bytes + size_bytes;
        // One always enters, as raft-rs has it too: its size was checked above.
        if self.uncommitted_bytes > 0 && uncommitted_bytes > self.config.max_uncommitted_bytes {
            return busy("too many bytes are not committed");
        }
        if self.unapplied_full {
            return busy("too many bytes are not applied");
        }
        self.uncommitted_bytes = uncommitted_bytes;
        self.room -= 1;
        Ok(())
    }
}

/// The answer to somebody who knows another version of the region.
pub(crate) fn epoch_not_match(description: &RegionDescription) -> ProposeError {
    let current = Arc::new([description.clone()]);
    ProposeError::EpochNotMatch { region_id: description.id, current }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::answer::Callback;
    use crate::description::tests::description;

    fn proposal(bytes: usize) -> Proposal {
        let payload = vec![0; bytes].into();
        Proposal { payload, epoch: None, callback: Callback::new(|_| ()), stamp: 0 }
    }

    #[test]
    fn room_is_taken_up_by_what_enters_only() {
        let config = RegionConfig {
            max_proposal_bytes: 100,
            max_uncommitted_bytes: 100,
            ..RegionConfig::new(1)
        };
        let mut admission = Admission {
            life: &Life::Live,
            config: &config,
            description: &description(1, 1),
            leading: true,
            leader: None,
            room: 2,
            uncommitted_bytes: 0,
            unapplied_full: false,
            transferring: false,
        };
        let label = |result: Result<(), ProposeError>| result.map_err(|error| error.label());
        assert_eq!(label(admission.admit(&proposal(101))), Err("too_large"));
        assert_eq!(label(admission.admit(&proposal(90))), Ok(()));
        assert_eq!(label(admission.admit(&proposal(11))), Err("busy"));
        assert_eq!(label(admission.admit(&proposal(10))), Ok(()));
        assert_eq!(label(admission.admit(&proposal(0))), Err("busy"));
        admission.leading = false;
        assert_eq!(label(admission.admit(&proposal(0))), Err("not_leader"));
        admission.life = &Life::Stopped;
        assert_eq!(label(admission.admit(&proposal(0))), Err("stopped"));
    }
}
