//! Changes of a region's peers.
//!
//! A change is a raft-rs `ConfChangeV2` in the log, whose context names the peers with their stores. It
//! takes effect where it is handed out to be applied: from then on the description and raft-rs's own
//! configuration are the new ones, and `conf_ver` is one higher. Several changes at once go through a
//! joint configuration, which the leader leaves by itself as soon as it has been applied.
//!
//! # Why a peer may go back to an older configuration
//!
//! Nothing here is synced: after a crash a peer may find itself with the configuration before the last
//! one. It is only ever *one* step behind those who lead: a leader proposes the next change after it has
//! applied the last, so whoever holds the next change's entry was told with it that the last is committed,
//! and has written that along with the entry. And a peer does not campaign before it has handed out all
//! that it knows to be committed. Neighbouring configurations share a voter in every two majorities.

use protobuf::Message as _;
use raft::eraftpb::{ConfChangeSingle, ConfChangeType, ConfChangeV2, ConfState};

use crate::description::{self, Peer, PeerRole, RegionDescription, MAX_VERSION};
use crate::ids::{is_sound_id, PeerId, StoreId, MAX_ID};
use crate::proto;

/// Most changes of one request.
pub const MAX_PEER_CHANGES: usize = 16;

/// A change of one peer of a region.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PeerChange {
    /// A new peer, as voter or learner, on a store that has none. Its id must be above every id that a peer
    /// of the region has had, which [`RegionDescription::last_peer_id`] says, and should be unique in the
    /// cluster.
    Add(Peer),
    /// A learner becomes a voter. It must have the log, but for what the leader still keeps, and answer.
    Promote(PeerId),
    /// A voter becomes a learner.
    Demote(PeerId),
    /// The peer leaves, and its store forgets what it has of the region.
    Remove(PeerId),
}

impl PeerChange {
    /// The peer that it speaks of.
    pub fn peer_id(&self) -> PeerId {
        match self {
            PeerChange::Add(peer) => peer.id,
            PeerChange::Promote(id) | PeerChange::Demote(id) | PeerChange::Remove(id) => *id,
        }
    }
}

/// Why peers cannot be changed like this. Nothing has happened.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChangeError {
    /// An empty list of changes.
    #[error("no change is named")]
    Nothing,
    /// More changes than allowed, or more peers than a region may have.
    #[error("too many changes or peers, at most {limit} are allowed")]
    TooMany {
        /// What is allowed.
        limit: usize,
    },
    /// Two changes of one peer. Ask for one after the other.
    #[error("peer {0} is named twice")]
    Twice(PeerId),
    /// No such peer. Look at the current region.
    #[error("peer {0} is not in the region")]
    UnknownPeer(PeerId),
    /// A peer to be added is in the region already.
    #[error("peer {0} is in the region already")]
    IdInUse(PeerId),
    /// A peer to be added has an id that another one had, or may have had. Take one above `last`.
    #[error("peer id {id} may have been used: a new one must be above {last}")]
    IdNotNew {
        /// The id.
        id: PeerId,
        /// The highest one that was used.
        last: PeerId,
    },
    /// A peer to be added, or its store, has an id that none can have: 0, or for a peer one above [`MAX_ID`].
    #[error("peer {peer} on store {store}: ids are 1 to {MAX_ID}")]
    IdOutOfRange {
        /// The peer.
        peer: PeerId,
        /// Its store.
        store: StoreId,
    },
    /// The store has a peer of the region already; remove that one first.
    #[error("store {store} has peer {peer} already")]
    StoreTaken {
        /// The store.
        store: StoreId,
        /// Its peer.
        peer: PeerId,
    },
    /// A learner that should vote does not answer, or still needs a snapshot. Try again when it has caught up.
    #[error("peer {0} does not answer or still needs a snapshot, try again when it has caught up")]
    NotReady(PeerId),
    /// It has the role that it should get.
    #[error("peer {0} has that role already")]
    NoChange(PeerId),
    /// Nobody could vote any more.
    #[error("no voter would be left")]
    NoVoterLeft,
    /// Too few of the voters that there would be are known to be alive and up to date. Add new peers as
    /// learners first, and promote them when they have caught up; or bring the others back.
    #[error("only {healthy} of the voters to be are healthy, {needed} are needed")]
    LosesQuorum {
        /// Voters that answer and have the log.
        healthy: usize,
        /// A majority.
        needed: usize,
    },
    /// The leader itself should go. It hands its leadership over instead; ask the new leader.
    #[error("the leader is to leave; it hands leadership over first, try again at the new leader")]
    LeaderLeaves,
    /// The region's peers have changed so often that its version cannot grow any more.
    #[error("the version of the peers is at its end")]
    VersionAtEnd,
    /// An earlier change is not finished. Try again later.
    #[error("another change of peers is under way, try again later")]
    UnderWay,
}

impl ChangeError {
    /// Whether the same request may succeed later.
    pub fn is_retryable(&self) -> bool {
        matches!(
            self,
            ChangeError::LosesQuorum { .. }
                | ChangeError::LeaderLeaves
                | ChangeError::UnderWay
                | ChangeError::NotReady(_)
        )
    }
}

/// raft-rs's view of a description.
pub(crate) fn conf_state(description: &RegionDescription) -> ConfState {
    let mut state = ConfState { auto_leave: description.joint, ..ConfState::default() };
    for peer in &description.peers {
        let id = peer.id.get();
        if peer.role.stays_voter() {
            state.voters.push(id);
        }
        if description.joint && peer.role.is_voter() && peer.role != PeerRole::IncomingVoter {
            state.voters_outgoing.push(id);
        }
        match peer.role {
            PeerRole::Learner => state.learners.push(id),
            PeerRole::DemotingVoter => state.learners_next.push(id),
            _ => {}
        }
    }
    state
}

/// Checks a request, and makes raft-rs's change of it. `healthy` says of a peer of the region whether it
/// answers and needs no snapshot.
pub(crate) fn plan(
    description: &RegionDescription,
    leader: PeerId,
    changes: &[PeerChange],
    healthy: impl Fn(PeerId) -> bool,
) -> Result<ConfChangeV2, ChangeError> {
    if description.joint {
        return Err(ChangeError::UnderWay);
    }
    check_each(description, changes)?;
    // Several go through a joint configuration, which counts twice.
    if description.epoch.conf_ver.saturating_add(2) > MAX_VERSION {
        return Err(ChangeError::VersionAtEnd);
    }
    let unready = changes.iter().find(|change| match change {
        PeerChange::Promote(id) => !healthy(*id),
        _ => false,
    });
    if let Some(change) = unready {
        return Err(ChangeError::NotReady(change.peer_id()));
    }
    let change = to_raft(description, changes);
    let next = apply(description, &change).map_err(|_| ChangeError::NoVoterLeft)?;
    let voters = next.peers.iter().filter(|peer| peer.role.stays_voter());
    let voters: Vec<PeerId> = voters.map(|peer| peer.id).collect();
    let needed = voters.len() / 2 + 1;
    let is_healthy = |id: &&PeerId| description.peer(**id).is_some() && healthy(**id);
    let healthy = voters.iter().filter(is_healthy).count();
    if healthy < needed {
        return Err(ChangeError::LosesQuorum { healthy, needed });
    }
    match voters.contains(&leader) {
        true => Ok(change),
        false => Err(ChangeError::LeaderLeaves),
    }
}

fn check_each(description: &RegionDescription, changes: &[PeerChange]) -> Result<(), ChangeError> {
    if changes.is_empty() {
        return Err(ChangeError::Nothing);
    }
    if changes.len() > MAX_PEER_CHANGES {
        return Err(ChangeError::TooMany { limit: MAX_PEER_CHANGES });
    }
    let limit = description::MAX_PEERS;
    let added = changes.iter().filter(|change| matches!(change, PeerChange::Add(_))).count();
    if description.peers.len() + added > limit {
        return Err(ChangeError::TooMany { limit });
    }
    for (at, change) in changes.iter().enumerate() {
        let (id, before) = (change.peer_id(), &changes[..at]);
        if before.iter().any(|other| other.peer_id() == id) {
            return Err(ChangeError::Twice(id));
        }
        let known = description.peer(id);
        match (change, known) {
            (PeerChange::Add(_), Some(_)) => return Err(ChangeError::IdInUse(id)),
            (PeerChange::Add(peer), None) => check_new(description, before, peer)?,
            (_, None) => return Err(ChangeError::UnknownPeer(id)),
            (PeerChange::Promote(_), Some(peer)) if peer.role != PeerRole::Learner => {
                return Err(ChangeError::NoChange(id));
            }
            (PeerChange::Demote(_), Some(peer)) if peer.role != PeerRole::Voter => {
                return Err(ChangeError::NoChange(id));
            }
            _ => {}
        }
    }
    let left = |peer: &&Peer| {
        let gone = |c: &PeerChange| matches!(c, PeerChange::Remove(id) | PeerChange::Demote(id) if *id == peer.id);
        peer.role == PeerRole::Voter && !changes.iter().any(gone)
    };
    let comes = |change: &PeerChange| match change {
        PeerChange::Add(peer) => peer.role == PeerRole::Voter,
        PeerChange::Promote(_) => true,
        _ => false,
    };
    match description.peers.iter().any(|peer| left(&peer)) || changes.iter().any(comes) {
        true => Ok(()),
        false => Err(ChangeError::NoVoterLeft),
    }
}

fn check_new(
    description: &RegionDescription,
    before: &[PeerChange],
    peer: &Peer,
) -> Result<(), ChangeError> {
    if !is_sound_id(peer.id.get()) || peer.store.get() == 0 {
        return Err(ChangeError::IdOutOfRange { peer: peer.id, store: peer.store });
    }
    let last = description.last_peer_id;
    if peer.id <= last {
        return Err(ChangeError::IdNotNew { id: peer.id, last });
    }
    if !matches!(peer.role, PeerRole::Voter | PeerRole::Learner) {
        return Err(ChangeError::NoChange(peer.id));
    }
    if let Some(known) = description.peer_on(peer.store) {
        return Err(ChangeError::StoreTaken { store: peer.store, peer: known.id });
    }
    let same_store = before.iter().find_map(|other| match other {
        PeerChange::Add(other) if other.store == peer.store => Some(other.id),
        _ => None,
    });
    match same_store {
        Some(other) => Err(ChangeError::StoreTaken { store: peer.store, peer: other }),
        None => Ok(()),
    }
}

fn to_raft(description: &RegionDescription, changes: &[PeerChange]) -> ConfChangeV2 {
    let mut list = proto::PeerList::default();
    let mut change = ConfChangeV2::default();
    for one in changes {
        let known = description.peer(one.peer_id());
        let (peer, change_type) = match one {
            PeerChange::Add(peer) if peer.role == PeerRole::Learner => {
                (Some(peer), ConfChangeType::AddLearnerNode)
            }
            PeerChange::Add(peer) => (Some(peer), ConfChangeType::AddNode),
            PeerChange::Promote(_) => (known, ConfChangeType::AddNode),
            PeerChange::Demote(_) => (known, ConfChangeType::AddLearnerNode),
            PeerChange::Remove(_) => (known, ConfChangeType::RemoveNode),
        };
        list.peers.extend(peer.map(|peer| peer.to_proto()));
        change.mut_changes().push(ConfChangeSingle {
            node_id: one.peer_id().get(),
            change_type,
            ..ConfChangeSingle::default()
        });
    }
    change.context = description::write(&list).into();
    change
}

/// The region after a change; without changes, after a joint configuration is left.
pub(crate) fn apply(
    description: &RegionDescription,
    change: &ConfChangeV2,
) -> Result<RegionDescription, &'static str> {
    let mut next = description.clone();
    next.epoch.conf_ver += 1;
    if change.changes.is_empty() {
        leave(&mut next)?;
    } else {
        if description.joint {
            return Err("it enters a joint configuration twice");
        }
        let list = proto::PeerList::parse_from_carllerche_bytes(&change.context)
            .map_err(|_| "its list of peers is not decodable")?;
        next.joint = change.changes.len() > 1;
        if list.peers.len() != change.changes.len() {
            return Err("it has not a peer for each change");
        }
        for (one, peer) in change.changes.iter().zip(&list.peers) {
            let peer = Peer::from_proto(peer);
            if peer.id.get() != one.node_id {
                return Err("it names one peer and changes another");
            }
            apply_one(&mut next, peer, one.get_change_type());
        }
    }
    match next.validate() {
        Ok(()) => Ok(next),
        Err(_) => Err("its peers make no sound region"),
    }
}

fn leave(next: &mut RegionDescription) -> Result<(), &'static str> {
    if !next.joint {
        return Err("it leaves a joint configuration that there is not");
    }
    next.joint = false;
    next.peers.retain(|peer| peer.role != PeerRole::LeavingVoter);
    for peer in &mut next.peers {
        peer.role = match peer.role {
            PeerRole::DemotingVoter => PeerRole::Learner,
            PeerRole::IncomingVoter => PeerRole::Voter,
            role => role,
        };
    }
    Ok(())
}

fn apply_one(next: &mut RegionDescription, peer: Peer, change: ConfChangeType) {
    let joint = next.joint;
    let known = next.peers.iter().position(|known| known.id == peer.id);
    next.last_peer_id = next.last_peer_id.max(peer.id);
    let voter = if joint { PeerRole::IncomingVoter } else { PeerRole::Voter };
    match (change, known) {
        (ConfChangeType::AddNode, None) => next.peers.push(Peer { role: voter, ..peer }),
        (ConfChangeType::AddNode, Some(at)) => next.peers[at].role = voter,
        (ConfChangeType::AddLearnerNode, None) => {
            next.peers.push(Peer { role: PeerRole::Learner, ..peer });
        }
        (ConfChangeType::AddLearnerNode, Some(at)) => {
            next.peers[at].role = if joint { PeerRole::DemotingVoter } else { PeerRole::Learner };
        }
        (ConfChangeType::RemoveNode, Some(at)) => {
            match joint && next.peers[at].role == PeerRole::Voter {
                true => next.peers[at].role = PeerRole::LeavingVoter,
                false => drop(next.peers.remove(at)),
            }
        }
        (ConfChangeType::RemoveNode, None) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::description::tests::description;
    use raft::{Config, RawNode};

    fn voter(id: u64) -> Peer {
        Peer::voter(PeerId::new(id), StoreId::new(id))
    }

    fn planned(changes: &[PeerChange]) -> Result<ConfChangeV2, ChangeError> {
        plan(&description(1, 3), PeerId::new(1), changes, |id| id != PeerId::new(3))
    }

    /// raft-rs and we must come to the same configuration.
    fn same_as_raft(described: &RegionDescription, change: &ConfChangeV2) -> RegionDescription {
        let storage = raft::storage::MemStorage::new_with_conf_state(conf_state(described));
        let config = Config { id: 1, ..Config::default() };
        let mut raw = RawNode::new(&config, storage, crate::logger::raft_logger()).unwrap();
        let sorted = |mut state: ConfState| {
            state.voters.sort_unstable();
            state.voters_outgoing.sort_unstable();
            state.learners.sort_unstable();
            state.learners_next.sort_unstable();
            state
        };
        let theirs = raw.apply_conf_change(change).unwrap();
        let next = apply(described, change).unwrap();
        assert_eq!(sorted(theirs), sorted(conf_state(&next)), "{next:?}");
        next
    }

    #[test]
    fn changes_come_to_the_same_configuration_as_in_raft() {
        let learner = Peer::learner(PeerId::new(7), StoreId::new(7));
        let other = Peer::learner(PeerId::new(9), StoreId::new(9));
        let (two, three) = (PeerId::new(2), PeerId::new(3));
        let requests: [&[PeerChange]; 7] = [
            &[PeerChange::Add(voter(4))],
            &[PeerChange::Add(learner)],
            &[PeerChange::Remove(three)],
            &[PeerChange::Demote(three)],
            &[PeerChange::Add(voter(4)), PeerChange::Remove(three)],
            &[PeerChange::Demote(two), PeerChange::Add(voter(4)), PeerChange::Add(learner)],
            &[PeerChange::Add(learner), PeerChange::Add(other)],
        ];
        for changes in requests {
            let described = description(1, 3);
            let next = same_as_raft(&described, &to_raft(&described, changes));
            assert_eq!((next.joint, next.epoch.conf_ver), (changes.len() > 1, 2));
            if next.joint {
                let left = same_as_raft(&next, &ConfChangeV2::default());
                assert!(!left.joint && left.epoch.conf_ver == 3, "{left:?}");
                let changing = |p: &Peer| p.role != PeerRole::Voter && p.role != PeerRole::Learner;
                assert!(!left.peers.iter().any(changing), "{left:?}");
            }
        }
    }

    #[test]
    fn unsound_changes_are_refused_each_for_its_own_reason() {
        let (one, two, nine) = (PeerId::new(1), PeerId::new(2), PeerId::new(9));
        let on_store_two = Peer::voter(nine, StoreId::new(2));
        let used = Peer::voter(two, StoreId::new(8));
        let cases: [(&[PeerChange], ChangeError); 13] = [
            (&[], ChangeError::Nothing),
            (&[PeerChange::Remove(nine)], ChangeError::UnknownPeer(nine)),
            (&[PeerChange::Promote(nine)], ChangeError::UnknownPeer(nine)),
            (&[PeerChange::Promote(two)], ChangeError::NoChange(two)),
            (&[PeerChange::Add(used)], ChangeError::IdInUse(two)),
            (
                &[PeerChange::Add(on_store_two)],
                ChangeError::StoreTaken { store: StoreId::new(2), peer: two },
            ),
            (&[PeerChange::Add(voter(9)), PeerChange::Remove(nine)], ChangeError::Twice(nine)),
            (&[PeerChange::Remove(two)], ChangeError::LosesQuorum { healthy: 1, needed: 2 }),
            (&[PeerChange::Remove(one)], ChangeError::LosesQuorum { healthy: 1, needed: 2 }),
            (&[1, 2, 3].map(|id| PeerChange::Remove(PeerId::new(id))), ChangeError::NoVoterLeft),
            (
                &[PeerChange::Add(Peer::voter(PeerId::new(0), StoreId::new(7)))],
                ChangeError::IdOutOfRange { peer: PeerId::new(0), store: StoreId::new(7) },
            ),
            (
                &[PeerChange::Add(Peer::voter(PeerId::new(MAX_ID + 1), StoreId::new(7)))],
                ChangeError::IdOutOfRange { peer: PeerId::new(MAX_ID + 1), store: StoreId::new(7) },
            ),
            (
                &[PeerChange::Add(Peer::voter(nine, StoreId::new(0)))],
                ChangeError::IdOutOfRange { peer: nine, store: StoreId::new(0) },
            ),
        ];
        for (changes, expected) in cases {
            assert_eq!(planned(changes), Err(expected), "{changes:?}");
        }
        let many: Vec<_> = (4..30).map(|id| PeerChange::Add(voter(id))).collect();
        assert!(matches!(planned(&many), Err(ChangeError::TooMany { .. })));
        // The dead one may go, and one that is new does not count as healthy.
        assert!(planned(&[PeerChange::Remove(PeerId::new(3))]).is_ok());
        assert!(planned(&[PeerChange::Add(voter(4))]).is_err());
    }

    #[test]
    fn what_a_region_has_been_through_counts() {
        let two = PeerId::new(2);
        // A region that is full can still lose peers.
        let full = description(1, description::MAX_PEERS as u64);
        let of_full = |change| plan(&full, PeerId::new(1), &[change], |_| true);
        assert!(of_full(PeerChange::Remove(two)).is_ok());
        let limit = description::MAX_PEERS;
        assert_eq!(of_full(PeerChange::Add(voter(65))), Err(ChangeError::TooMany { limit }));
        let mut old = description(1, 3);
        old.epoch.conf_ver = MAX_VERSION - 1;
        let planned_there = plan(&old, PeerId::new(1), &[PeerChange::Remove(two)], |_| true);
        assert_eq!(planned_there, Err(ChangeError::VersionAtEnd));
        // Who has left does not come back under the same id, and nobody comes under a lower one.
        let (four, last) = (PeerId::new(4), PeerId::new(4));
        let region =
            apply(&description(1, 3), &to_raft(&description(1, 3), &[PeerChange::Add(voter(4))]));
        let region = region.unwrap();
        let region = apply(&region, &to_raft(&region, &[PeerChange::Remove(four)])).unwrap();
        assert!(region.peer(four).is_none());
        assert_eq!(
            plan(&region, PeerId::new(1), &[PeerChange::Add(voter(4))], |_| true),
            Err(ChangeError::IdNotNew { id: four, last })
        );
        assert!(plan(&region, PeerId::new(1), &[PeerChange::Add(voter(5))], |_| true).is_ok());
        // A learner that has just come, or is down, would be a voter that counts and cannot vote.
        let mut with_learner = description(1, 3);
        with_learner.peers[2].role = PeerRole::Learner;
        let promoted = |well: bool| {
            let promote = [PeerChange::Promote(PeerId::new(3))];
            plan(&with_learner, PeerId::new(1), &promote, |id| well || id != PeerId::new(3))
        };
        assert_eq!(promoted(false), Err(ChangeError::NotReady(PeerId::new(3))));
        assert!(promoted(true).is_ok());
    }
}
