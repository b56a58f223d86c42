//! From an order to the request that a region understands, with ids for whatever is new.

use super::{Operator, Placement, PlacementError};
use crate::admin::AdminRequest;
use crate::inspect::{RegionInfo, RegionState};
use crate::state_machine::StateMachine;
use bytes::Bytes;
use region::{
    NewRegion, Peer, PeerChange, PeerId, PeerRole, RegionDescription, RegionId, SplitError,
    SplitRequest, MAX_ID, MAX_SPLIT_KEYS,
};
use std::panic::{catch_unwind, AssertUnwindSafe};

/// Why there is no request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) reason: String,
    pub(super) is_retryable: bool,
}

fn refuse<T>(reason: String, is_retryable: bool) -> Result<T, Refusal> {
    Err(Refusal { reason, is_retryable })
}

/// What makes requests.
pub(super) struct Requests<'a> {
    pub(super) placement: &'a dyn Placement,
    pub(super) state_machine: &'a dyn StateMachine,
}

impl Requests<'_> {
    /// The request for a region that is here like this. It holds for the region as it is now: if it has
    /// changed when its turn comes, it is refused.
    pub(super) fn request(
        &self,
        info: &RegionInfo,
        operator: &Operator,
    ) -> Result<AdminRequest, Refusal> {
        if let RegionState::SetAside { reason } = &info.state {
            return refuse(format!("region {} is set aside: {reason}", info.region_id), false);
        }
        let description = &*info.description;
        let change = |change| AdminRequest::change_peers([change]);
        let request = match operator {
            Operator::AddPeer { store, learner } => {
                // Before an id is spent on it.
                if let Some(peer) = description.peer_on(*store) {
                    return refuse(format!("store {store} has peer {} already", peer.id), false);
                }
                let role = if *learner { PeerRole::Learner } else { PeerRole::Voter };
                let id = PeerId::new(self.allocate(1)?);
                change(PeerChange::Add(Peer { id, store: *store, role }))
            }
            Operator::PromotePeer(id) => change(PeerChange::Promote(*id)),
            Operator::RemovePeer(id) => change(PeerChange::Remove(*id)),
            Operator::ChangePeers(changes) => AdminRequest::change_peers(changes.clone()),
            Operator::TransferLeader(to) => AdminRequest::transfer_leader(*to),
            Operator::SplitAt(keys) if keys.is_empty() => {
                return refuse(SplitError::NoKeys.to_string(), false);
            }
            Operator::SplitAt(keys) => self.split(description, keys.clone())?,
            Operator::SplitInHalf => {
                let bytes =
                    catch_unwind(AssertUnwindSafe(|| self.state_machine.size(info.region_id)));
                let bytes = bytes.ok().flatten().map_or(0, |size| size.bytes);
                self.split(description, self.keys(description, bytes / 2 + 1))?
            }
        };
        Ok(request.at_epoch(description.epoch))
    }

    /// Keys that divide a region into parts of at most about `max_bytes`.
    pub(super) fn keys(&self, description: &RegionDescription, max_bytes: u64) -> Vec<Bytes> {
        let named = catch_unwind(AssertUnwindSafe(|| {
            self.state_machine.split_keys(description.id, max_bytes)
        }));
        let mut keys = named.unwrap_or_default();
        // It may speak of the region as it was or will be.
        keys.retain(|key| description.contains(key) && *key > description.start_key);
        keys.sort_unstable();
        keys.dedup();
        keys.truncate(MAX_SPLIT_KEYS);
        keys
    }

    fn split(&self, region: &RegionDescription, keys: Vec<Bytes>) -> Result<AdminRequest, Refusal> {
        if keys.is_empty() {
            let reason = "the state machine names no key to split at";
            return refuse(format!("region {}: {reason}", region.id), false);
        }
        if keys.len() > MAX_SPLIT_KEYS {
            // The region says so in its own words; no ids are spent on it.
            let request = SplitRequest { keys, regions: Vec::new(), parent_is_right: false };
            return Ok(AdminRequest::split(request));
        }
        let peers = region.peers.len() as u64;
        let mut id = self.allocate(keys.len() as u64 * (1 + peers))?;
        let regions = keys.iter().map(|_| {
            let first = id;
            id += 1 + peers;
            let peers = (first + 1..id).map(PeerId::new).collect();
            NewRegion { id: RegionId::new(first), peers }
        });
        let regions = regions.collect();
        Ok(AdminRequest::split(SplitRequest { keys, regions, parent_is_right: false }))
    }

    fn allocate(&self, count: u64) -> Result<u64, Refusal> {
        let given = catch_unwind(AssertUnwindSafe(|| self.placement.allocate(count)));
        let given = given
            .unwrap_or_else(|_| Err(PlacementError::Unavailable("it panicked".to_owned())))
            .and_then(|first| match first.checked_add(count - 1) {
                Some(last) if first > 0 && last <= MAX_ID => Ok(first),
                _ => Err(PlacementError::NoIds(count)),
            });
        given.or_else(|error| refuse(error.to_string(), true))
    }
}
