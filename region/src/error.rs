//! Why a proposal was not carried out, and what its proposer should do now.
//!
//! What a proposer must know first is whether the command may have happened all the same:
//!
//! | answer | happened? |
//! |---|---|
//! | `Ok` | yes, on a quorum, and applied |
//! | [`Unknown`](ProposeError::Unknown) | perhaps, or perhaps later |
//! | every other error | surely not, and never will |

use std::sync::Arc;

use crate::description::{Peer, RegionDescription, RegionEpoch};
use crate::ids::RegionId;
use crate::key_text;
use crate::membership::ChangeError;
use crate::split::SplitError;
use crate::transfer::TransferError;

/// Why a proposal was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProposeError {
    /// This peer does not lead the region. Propose to `leader`; if it is not known, try the other
    /// peers, or this one again after an election timeout.
    #[error("region {region_id}: not the leader (leader: {})", show(.leader))]
    NotLeader {
        /// The region.
        region_id: RegionId,
        /// Who leads it, as far as this peer knows.
        leader: Option<Peer>,
    },
    /// The region is not what the proposer believes it to be. Replace what is known about it by
    /// `current`, find the region of the command's keys anew, and propose there.
    #[error("region {region_id}: the epoch does not match ({})", show_epochs(.current))]
    EpochNotMatch {
        /// The region that was addressed.
        region_id: RegionId,
        /// What is there now.
        current: Arc<[RegionDescription]>,
    },
    /// This store has no peer of the region. Ask the placement service where it is.
    #[error("region {region_id}: not on this store")]
    RegionNotFound {
        /// The region that was addressed.
        region_id: RegionId,
    },
    /// A bound was reached. Propose again later, with growing pauses.
    #[error("region {region_id}: busy ({reason})")]
    Busy {
        /// The region.
        region_id: RegionId,
        /// Which bound.
        reason: &'static str,
    },
    /// The command is larger than a command may be. Split it; never propose it again as it is.
    #[error("region {region_id}: a command of {size_bytes} bytes exceeds {limit_bytes}")]
    TooLarge {
        /// The region.
        region_id: RegionId,
        /// Size of the command.
        size_bytes: usize,
        /// Allowed size.
        limit_bytes: usize,
    },
    /// Another leader's entry took the place of the command, which surely did not happen. Propose
    /// it again, at the new leader.
    #[error("region {region_id}: overwritten by a newer leader")]
    Stale {
        /// The region.
        region_id: RegionId,
    },
    /// The command may have happened, or may still happen. Find out by reading before proposing it
    /// again, unless it does no harm twice.
    #[error("region {region_id}: outcome unknown ({reason})")]
    Unknown {
        /// The region; 0 where a callback was dropped before any region had it.
        region_id: RegionId,
        /// Why nobody can tell.
        reason: &'static str,
    },
    /// The region cannot be split like this; `cause` says why, `current` what it is.
    #[error("region {region_id}: no split: {cause}; its range is {}", show_range(.current))]
    InvalidSplit {
        /// The region.
        region_id: RegionId,
        /// Why.
        cause: Box<SplitError>,
        /// What is there now.
        current: Arc<RegionDescription>,
    },
    /// The region's peers cannot be changed like this; `cause` says why, `current` what they are.
    #[error("region {region_id}: no change of peers: {cause}")]
    InvalidChange {
        /// The region.
        region_id: RegionId,
        /// Why.
        cause: Box<ChangeError>,
        /// What is there now.
        current: Arc<RegionDescription>,
    },
    /// Leadership was not handed over; `cause` says why, `current` which peers there are.
    #[error("region {region_id}: no transfer of leadership: {cause}")]
    TransferRefused {
        /// The region.
        region_id: RegionId,
        /// Why.
        cause: Box<TransferError>,
        /// What is there now.
        current: Arc<RegionDescription>,
    },
    /// The region, or the whole store, is shutting down. Try the other peers.
    #[error("region {region_id}: stopped")]
    Stopped {
        /// The region.
        region_id: RegionId,
    },
    /// This peer has met with corruption or a failed read and does nothing any more. Try the other
    /// peers, and tell the operator.
    #[error("region {region_id}: set aside here after a failure; ask its other peers, and see docs/repair.md")]
    Quarantined {
        /// The region.
        region_id: RegionId,
    },
}

fn show(leader: &Option<Peer>) -> String {
    match leader {
        Some(peer) => format!("peer {} on store {}", peer.id, peer.store),
        None => "unknown".into(),
    }
}

fn show_range(region: &RegionDescription) -> String {
    let show = |key: &[u8]| key_text::to_text(&key[..key.len().min(64)]);
    match region.end_key.is_empty() {
        true => format!("\"{}\" and beyond", show(&region.start_key)),
        false => format!("\"{}\" to \"{}\"", show(&region.start_key), show(&region.end_key)),
    }
}

fn show_epochs(current: &[RegionDescription]) -> String {
    let show = |region: &RegionDescription| {
        let RegionEpoch { conf_ver, version } = region.epoch;
        format!("region {} is at conf_ver {conf_ver}, version {version}", region.id)
    };
    current.iter().map(show).collect::<Vec<_>>().join(", ")
}

impl ProposeError {
    /// Whether the same command may be proposed again without looking first whether it has happened: here,
    /// at the leader that the error names, later, or where the region is now.
    pub fn is_retryable(&self) -> bool {
        match self {
            ProposeError::NotLeader { .. }
            | ProposeError::EpochNotMatch { .. }
            | ProposeError::RegionNotFound { .. }
            | ProposeError::Busy { .. }
            | ProposeError::Stale { .. }
            | ProposeError::Stopped { .. }
            | ProposeError::Quarantined { .. } => true,
            ProposeError::InvalidChange { cause, .. } => cause.is_retryable(),
            ProposeError::InvalidSplit { cause, .. } => **cause == SplitError::PeersChange,
            ProposeError::TransferRefused { cause, .. } => cause.is_retryable(),
            ProposeError::TooLarge { .. } | ProposeError::Unknown { .. } => false,
        }
    }

    /// Whether the command may have happened, or may still happen. After every other error it
    /// surely did not, and never will.
    pub fn may_have_happened(&self) -> bool {
        matches!(self, ProposeError::Unknown { .. })
    }

    /// The region that the proposal was for.
    pub fn region_id(&self) -> RegionId {
        match self {
            ProposeError::NotLeader { region_id, .. }
            | ProposeError::EpochNotMatch { region_id, .. }
            | ProposeError::RegionNotFound { region_id }
            | ProposeError::Busy { region_id, .. }
            | ProposeError::TooLarge { region_id, .. }
            | ProposeError::Stale { region_id }
            | ProposeError::Unknown { region_id, .. }
            | ProposeError::InvalidSplit { region_id, .. }
            | ProposeError::InvalidChange { region_id, .. }
            | ProposeError::TransferRefused { region_id, .. }
            | ProposeError::Stopped { region_id }
            | ProposeError::Quarantined { region_id } => *region_id,
        }
    }

    /// A word for metrics.
    pub fn label(&self) -> &'static str {
        match self {
            ProposeError::NotLeader { .. } => "not_leader",
            ProposeError::EpochNotMatch { .. } => "epoch_not_match",
            ProposeError::RegionNotFound { .. } => "region_not_found",
            ProposeError::Busy { .. } => "busy",
            ProposeError::TooLarge { .. } => "too_large",
            ProposeError::Stale { .. } => "stale",
            ProposeError::Unknown { .. } => "unknown",
            ProposeError::InvalidSplit { .. } => "invalid_split",
            ProposeError::InvalidChange { .. } => "invalid_change",
            ProposeError::TransferRefused { .. } => "transfer_refused",
            ProposeError::Stopped { .. } => "stopped",
            ProposeError::Quarantined { .. } => "quarantined",
        }
    }
}

/// Why a read may not look. It may always be tried again; each says where and when.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// This peer does not lead the region, or does not any more. Read at `leader`; if it is not known, try
    /// the other peers, or this one again after an election timeout.
    #[error("region {region_id}: not the leader (leader: {})", show(.leader))]
    NotLeader {
        /// The region.
        region_id: RegionId,
        /// Who leads it, as far as this peer knows.
        leader: Option<Peer>,
    },
    /// The region is not what the reader believes it to be. Find the region of the keys anew.
    #[error("region {region_id}: the epoch does not match ({})", show_epochs(.current))]
    EpochNotMatch {
        /// The region that was addressed.
        region_id: RegionId,
        /// What is there now.
        current: Arc<[RegionDescription]>,
    },
    /// This store has no peer of the region. Ask the placement service where it is.
    #[error("region {region_id}: not on this store")]
    RegionNotFound {
        /// The region that was addressed.
        region_id: RegionId,
    },
    /// A bound was reached. Read again later, with growing pauses.
    #[error("region {region_id}: busy ({reason})")]
    Busy {
        /// The region.
        region_id: RegionId,
        /// Which bound.
        reason: &'static str,
    },
    /// For twice the election timeout no leader with a quorum was heard of, or the index was not applied.
    #[error("region {region_id}: for twice the election timeout no leader with a quorum was heard of, or the index not applied")]
    TimedOut {
        /// The region.
        region_id: RegionId,
    },
    /// The region, or the whole store, is ending. Try the other peers.
    #[error("region {region_id}: stopped")]
    Stopped {
        /// The region.
        region_id: RegionId,
    },
    /// This peer has met with corruption and does nothing any more. Try the other peers, and tell the operator.
    #[error("region {region_id}: set aside here after a failure; ask its other peers, and see docs/repair.md")]
    Quarantined {
        /// The region.
        region_id: RegionId,
    },
}

impl ReadError {
    /// Whether the same read may succeed later, or elsewhere. So far all may.
    pub fn is_retryable(&self) -> bool {
        true
    }

    /// A word for metrics.
    pub fn label(&self) -> &'static str {
        match self {
            ReadError::NotLeader { .. } => "not_leader",
            ReadError::EpochNotMatch { .. } => "epoch_not_match",
            ReadError::RegionNotFound { .. } => "region_not_found",
            ReadError::Busy { .. } => "busy",
            ReadError::TimedOut { .. } => "timed_out",
            ReadError::Stopped { .. } => "stopped",
            ReadError::Quarantined { .. } => "quarantined",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_outcome_is_not_retried_blindly() {
        let region_id = RegionId::new(1);
        assert!(!ProposeError::Unknown { region_id, reason: "" }.is_retryable());
        assert!(ProposeError::Stale { region_id }.is_retryable());
        assert_eq!(ProposeError::Stale { region_id }.region_id(), region_id);
    }
}
