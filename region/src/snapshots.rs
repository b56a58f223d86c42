//! Snapshots for peers that lack what the log no longer holds.
//!
//! raft-rs asks the storage for one in the middle of a step. It is told to ask again, and the region tells
//! its caller that one is wanted. The caller makes it, elsewhere and in its own time, and hands back what it
//! is: raft-rs's next question is answered with that. What travels in raft-rs's message is a description of
//! the snapshot only; the contents go their own way, and the receiver steps the message when it has them.

use raft::eraftpb::{ConfState, Snapshot};

use crate::description::{DecodeError, RegionDescription};
use crate::ids::PeerId;
use crate::membership;
use crate::records::AppliedState;

/// Where the snapshot for a peer is.
#[derive(Debug)]
enum Stage {
    /// The caller does not know yet that it is wanted.
    Wanted,
    /// The caller is making it.
    Making,
    /// raft-rs may have it.
    Ready(Box<Snapshot>),
}

/// Snapshots that raft-rs has asked for.
///
/// Invariant: one a peer at most.
#[derive(Default, Debug)]
pub(crate) struct Snapshots {
    of_peers: Vec<(u64, Stage)>,
}

impl Snapshots {
    /// The one for a peer, if it reaches up to `least`; otherwise one is wanted from now on.
    pub(crate) fn take(&mut self, to: u64, least: u64) -> Option<Snapshot> {
        let Some(at) = self.of_peers.iter().position(|(peer, _)| *peer == to) else {
            self.of_peers.push((to, Stage::Wanted));
            return None;
        };
        let Stage::Ready(snapshot) = &self.of_peers[at].1 else { return None };
        if snapshot.get_metadata().index < least {
            self.of_peers[at].1 = Stage::Wanted;
            return None;
        }
        match self.of_peers.swap_remove(at).1 {
            Stage::Ready(snapshot) => Some(*snapshot),
            Stage::Wanted | Stage::Making => None,
        }
    }

    /// Tells the caller which are wanted, once.
    pub(crate) fn take_wanted(&mut self, wanted: &mut Vec<PeerId>) {
        for (peer, stage) in &mut self.of_peers {
            if matches!(stage, Stage::Wanted) {
                *stage = Stage::Making;
                wanted.push(PeerId::new(*peer));
            }
        }
    }

    /// Whether one is wanted that the caller was not told of.
    pub(crate) fn any_wanted(&self) -> bool {
        self.of_peers.iter().any(|(_, stage)| matches!(stage, Stage::Wanted))
    }

    /// One is made, or could not be made: then raft-rs asks again.
    pub(crate) fn made(&mut self, to: PeerId, made: Option<&AppliedState>) {
        let Some(at) = self.of_peers.iter().position(|(peer, _)| *peer == to.get()) else { return };
        match made {
            Some(applied) => self.of_peers[at].1 = Stage::Ready(Box::new(to_raft(applied))),
            None => drop(self.of_peers.swap_remove(at)),
        }
    }

    /// Nothing is wanted any more.
    pub(crate) fn clear(&mut self) {
        self.of_peers = Vec::new();
    }
}

pub(crate) fn to_raft(applied: &AppliedState) -> Snapshot {
    let mut snapshot = Snapshot { data: applied.encode().into(), ..Snapshot::default() };
    let metadata = snapshot.mut_metadata();
    metadata.index = applied.index.get();
    metadata.term = applied.term.get();
    metadata.set_conf_state(membership::conf_state(&applied.description));
    snapshot
}

/// What a snapshot is of, if it is sound in itself.
pub(crate) fn describe(snapshot: &Snapshot) -> Result<AppliedState, DecodeError> {
    let applied = AppliedState::decode(&snapshot.data)?;
    let metadata = snapshot.get_metadata();
    let said = (metadata.index, metadata.term);
    if said != (applied.index.get(), applied.term.get()) {
        let value = format!("{}/{}", said.0, said.1);
        return Err(DecodeError::field("snapshot", "metadata", value, "must be its contents'"));
    }
    if !is_of(metadata.get_conf_state(), &applied.description) {
        let value = format!("{:?}", metadata.get_conf_state());
        return Err(DecodeError::field("snapshot", "conf_state", value, "must be its peers'"));
    }
    Ok(applied)
}

fn is_of(state: &ConfState, description: &RegionDescription) -> bool {
    let same = |one: &[u64], other: &[u64]| {
        let (mut one, mut other) = (one.to_vec(), other.to_vec());
        one.sort_unstable();
        other.sort_unstable();
        one == other
    };
    let own = membership::conf_state(description);
    same(&state.voters, &own.voters)
        && same(&state.voters_outgoing, &own.voters_outgoing)
        && same(&state.learners, &own.learners)
        && same(&state.learners_next, &own.learners_next)
        && state.auto_leave == own.auto_leave
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::description::tests::description;
    use crate::ids::{Index, Term};
    use std::sync::Arc;

    fn applied(index: u64) -> AppliedState {
        let description = Arc::new(description(1, 3));
        AppliedState { index: Index::new(index), term: Term::new(6), description }
    }

    #[test]
    fn a_snapshot_is_wanted_once_and_taken_once() {
        let mut snapshots = Snapshots::default();
        assert!(snapshots.take(2, 8).is_none());
        let mut wanted = Vec::new();
        snapshots.take_wanted(&mut wanted);
        snapshots.take_wanted(&mut wanted);
        assert_eq!(wanted, [PeerId::new(2)]);
        assert!(snapshots.take(2, 8).is_none() && !snapshots.any_wanted());
        snapshots.made(PeerId::new(2), Some(&applied(9)));
        assert_eq!(snapshots.take(2, 8).unwrap().get_metadata().index, 9);
        assert!(snapshots.take(2, 8).is_none() && snapshots.any_wanted());
    }

    #[test]
    fn one_that_is_too_old_by_now_is_made_anew() {
        let mut snapshots = Snapshots::default();
        assert!(snapshots.take(2, 8).is_none());
        snapshots.made(PeerId::new(2), Some(&applied(9)));
        assert!(snapshots.take(2, 10).is_none() && snapshots.any_wanted());
        snapshots.made(PeerId::new(2), None);
        assert!(!snapshots.any_wanted());
    }

    #[test]
    fn a_snapshot_that_contradicts_itself_is_refused() {
        let sound = to_raft(&applied(9));
        assert_eq!(describe(&sound), Ok(applied(9)));
        let mut other = sound.clone();
        other.mut_metadata().index = 10;
        assert!(describe(&other).is_err());
        let mut other = sound.clone();
        other.mut_metadata().mut_conf_state().voters.push(8);
        assert!(describe(&other).is_err());
        let cut = Snapshot { data: sound.data.slice(..4), ..sound };
        assert!(describe(&cut).is_err());
    }
}
