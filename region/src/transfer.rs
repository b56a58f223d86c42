//! Handing leadership over.
//!
//! raft-rs tells the chosen peer to campaign at once, when it has the whole log, and gives the matter up
//! after an election timeout. What it does not look at is whether the choice is a good one: a peer that has
//! to catch up first, or is behind in applying, would leave the region without a leader that can serve.
//!
//! Meanwhile proposals are refused as busy; those made before are carried out, by one leader or the other.

use crate::answer::Callback;
use crate::ids::{PeerId, Term};

/// Entries that a peer may lack when leadership is handed to it.
pub(crate) const MAX_LAG_ENTRIES: u64 = 1_024;

/// Why leadership was not handed over.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransferError {
    /// No such peer. Look at the current region.
    #[error("peer {0} is not in the region")]
    UnknownPeer(PeerId),
    /// A learner, or a voter that is about to leave, cannot lead.
    #[error("peer {0} is no voter that stays")]
    NotVoter(PeerId),
    /// It leads already.
    #[error("peer {0} leads already")]
    Leads(PeerId),
    /// No other peer can take over now: there is none that votes, or none is fit. Name one to learn why.
    #[error("no other peer can take over now")]
    NoSuccessor,
    /// It has not been heard of lately.
    #[error("peer {0} does not answer")]
    NotActive(PeerId),
    /// It is being sent a snapshot.
    #[error("peer {0} is receiving a snapshot")]
    InSnapshot(PeerId),
    /// It lacks too much of the log, or has not heard that it is committed, to serve soon.
    #[error("peer {peer} is {entries} entries behind, at most {limit} are allowed")]
    Lagging {
        /// The peer.
        peer: PeerId,
        /// What it lacks.
        entries: u64,
        /// What is allowed.
        limit: u64,
    },
    /// A change of peers is not applied everywhere.
    #[error("a change of peers is under way, try again later")]
    PeersChange,
    /// An earlier transfer is not finished.
    #[error("another transfer of leadership is under way")]
    UnderWay,
    /// The peer did not take over within an election timeout. This one leads on.
    #[error("peer {0} did not take over in time")]
    TimedOut(PeerId),
}

impl TransferError {
    /// Whether the same request may succeed later.
    pub fn is_retryable(&self) -> bool {
        !matches!(
            self,
            TransferError::UnknownPeer(_) | TransferError::NotVoter(_) | TransferError::Leads(_)
        )
    }
}

/// A transfer under way.
pub(crate) struct Transfer {
    pub(crate) target: PeerId,
    /// In which it began.
    pub(crate) term: Term,
    /// Ticks that have passed.
    pub(crate) ticks: usize,
    /// Told the outcome; `None` where the region itself wished for it.
    pub(crate) callback: Option<Callback>,
}

/// What became of a transfer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Outcome {
    /// Not yet known.
    Open,
    /// The target leads.
    Done,
    /// This peer leads on.
    Failed,
    /// Somebody else leads, or nobody for long.
    Elsewhere,
}

impl Transfer {
    /// What became of it. `transferring`: raft-rs still tries.
    pub(crate) fn outcome(
        &self,
        leads: bool,
        leader: Option<PeerId>,
        term: Term,
        transferring: bool,
        patience_ticks: usize,
    ) -> Outcome {
        match leader {
            _ if leads && (term == self.term && transferring) => Outcome::Open,
            _ if leads => Outcome::Failed,
            Some(leader) if leader == self.target => Outcome::Done,
            Some(_) if term > self.term => Outcome::Elsewhere,
            _ if self.ticks >= patience_ticks => Outcome::Elsewhere,
            _ => Outcome::Open,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transfer_ends_when_it_is_known_who_leads() {
        let transfer =
            Transfer { target: PeerId::new(2), term: Term::new(6), ticks: 0, callback: None };
        let (six, seven) = (Term::new(6), Term::new(7));
        let outcome = |leads, leader: u64, term, trying| {
            let leader = (leader > 0).then(|| PeerId::new(leader));
            transfer.outcome(leads, leader, term, trying, 20)
        };
        assert_eq!(outcome(true, 1, six, true), Outcome::Open);
        assert_eq!(outcome(true, 1, six, false), Outcome::Failed);
        assert_eq!(outcome(true, 1, seven, false), Outcome::Failed);
        assert_eq!(outcome(false, 0, seven, false), Outcome::Open);
        assert_eq!(outcome(false, 2, seven, false), Outcome::Done);
        assert_eq!(outcome(false, 3, seven, false), Outcome::Elsewhere);
        let late = Transfer { ticks: 20, ..transfer };
        assert_eq!(late.outcome(false, None, seven, false, 20), Outcome::Elsewhere);
    }
}
