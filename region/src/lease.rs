//! How long a leader may answer reads without asking anybody.
//!
//! A voter that answers its leader has just put its election timer back. For an election timeout from
//! then on, which is later than when the leader *sent* what is answered, it neither campaigns nor votes for
//! anybody, nor lets itself be moved to a higher term (see `guard`). So when a quorum has answered what
//! was sent at time t or later, nobody else can be elected before t and an election timeout. The lease is
//! shorter than that by a margin for clocks that do not run alike; see
//! [`RegionConfig::lease`](crate::RegionConfig::lease).
//!
//! Nothing is sent for it. Heartbeats carry the time in their context, which comes back with the
//! response; and the response to an append that holds an entry was sent after that entry was proposed.
//!
//! # When there is none
//!
//! - Before an entry of the own term is applied: what earlier leaders have committed may lack (#9208).
//! - From the begin of a transfer of leadership to the end of the term, whatever becomes of the transfer: the
//!   request to take over may arrive late, and the election that it starts goes past every promise.
//! - From the proposal of a split until it is applied here: elsewhere the child may be served already.
//! - From a change of peers until a quorum of the new ones has answered something sent after it.
//! - Where a follower reads: while something is committed and not applied here. The follower may have applied
//!   and shown it.
//!
//! Times are the caller's, monotonic, and mean nothing to anybody else.

use std::cell::Cell;
use std::time::Duration;

use crate::description::{PeerRole, RegionDescription};
use crate::ids::{Index, PeerId, Term};

/// Invariant: everything but `length` is of `term`, and begins anew with the next one.
#[derive(Debug)]
pub(crate) struct Lease {
    length: Duration,
    /// The leadership that it is about.
    term: Term,
    /// For each peer, when the last thing was sent that it is known to have received.
    received: Vec<(PeerId, Duration)>,
    /// An entry, and when it was proposed.
    probe: Option<(Index, Duration)>,
    /// Since when a quorum of the peers at this `conf_ver` is known to have received what was sent.
    known: Cell<Option<(u64, Duration)>>,
    /// What was sent up to here was sent to other peers.
    peers_since: Option<Duration>,
    given_up: bool,
    /// Off until this entry is applied.
    split_at: Index,
    /// Followers read.
    shared: bool,
}

impl Lease {
    pub(crate) fn new(length: Duration) -> Self {
        Self {
            length,
            term: Term::new(0),
            received: Vec::new(),
            probe: None,
            known: Cell::new(None),
            peers_since: None,
            given_up: false,
            split_at: Index::new(0),
            shared: false,
        }
    }

    /// The peer leads `term`.
    pub(crate) fn of_term(&mut self, term: Term) -> &mut Self {
        if self.term != term {
            *self = Self { term, ..Self::new(self.length) };
        }
        self
    }

    /// A peer has received what was sent then.
    pub(crate) fn received(&mut self, peer: PeerId, sent: Duration, now: Duration) {
        // Of other peers' times, or made up.
        if sent > now || self.peers_since.is_some_and(|since| sent <= since) {
            return;
        }
        match self.received.iter_mut().find(|(known, _)| *known == peer) {
            Some((_, last)) if *last >= sent => return,
            Some((_, last)) => *last = sent,
            None => self.received.push((peer, sent)),
        }
        self.known.set(None);
    }

    /// Entries from `first` on were proposed now.
    pub(crate) fn proposed(&mut self, first: Index, now: Duration) {
        // The last probe stays until it has done its work, or is too old to do any.
        let due = self.probe.is_none_or(|(_, at)| now >= at.saturating_add(self.length / 4));
        if due {
            self.probe = Some((first, now));
        }
    }

    /// A peer has the leader's log up to `index`.
    pub(crate) fn matched(&mut self, peer: PeerId, index: Index, now: Duration) {
        if let Some((probe, at)) = self.probe {
            if index >= probe {
                self.received(peer, at, now);
            }
        }
    }

    /// Other peers count from now on.
    pub(crate) fn peers_changed(&mut self, now: Duration) {
        (self.peers_since, self.probe) = (Some(now), None);
        self.received.clear();
        self.known.set(None);
    }

    /// Whether it is given up for a term.
    pub(crate) fn is_given_up(&self, term: Term) -> bool {
        self.term == term && self.given_up
    }

    /// Somebody may be asked to take over.
    pub(crate) fn give_up(&mut self) {
        self.given_up = true;
    }

    /// A split is proposed.
    pub(crate) fn off_until_applied(&mut self, split: Index) {
        self.split_at = split;
    }

    /// A follower reads.
    pub(crate) fn share(&mut self) {
        self.shared = true;
    }

    /// Whether a follower reads, or did in this term.
    pub(crate) fn is_shared(&self) -> bool {
        self.shared
    }

    /// Until when the leader of `term` may answer alone.
    pub(crate) fn until(
        &self,
        term: Term,
        applied: Index,
        own_term_applied: impl FnOnce() -> bool,
        quorum: &Quorum<'_>,
    ) -> Option<Duration> {
        let off = self.term != term || self.given_up || applied < self.split_at;
        if off || !own_term_applied() {
            return None;
        }
        let conf_ver = quorum.description.epoch.conf_ver;
        let received = match self.known.get() {
            Some((known_for, received)) if known_for == conf_ver => received,
            _ => {
                let received = quorum.received(&self.received)?;
                // A leader that is a majority by itself goes with the time.
                let stays = received < quorum.now;
                self.known.set(stays.then_some((conf_ver, received)));
                received
            }
        };
        Some(received.saturating_add(self.length))
    }
}

/// Whose answers count, as of now.
pub(crate) struct Quorum<'a> {
    pub(crate) description: &'a RegionDescription,
    pub(crate) leader: PeerId,
    pub(crate) now: Duration,
}

impl Quorum<'_> {
    /// The latest time such that a quorum has received something sent then or later. The leader itself, if it
    /// votes, has received what was sent just now.
    fn received(&self, received: &[(PeerId, Duration)]) -> Option<Duration> {
        use PeerRole::{DemotingVoter, IncomingVoter, LeavingVoter, Voter};
        let Self { description, leader, now } = self;
        let time_of = |id: PeerId| match id == *leader {
            true => Some(*now),
            false => received.iter().find(|(known, _)| *known == id).map(|(_, sent)| *sent),
        };
        let majority_time = |roles: &[PeerRole]| {
            let voters = || description.peers.iter().filter(|peer| roles.contains(&peer.role));
            let enough = voters().count() / 2 + 1;
            let reached = |time: &Duration| {
                voters().filter(|peer| time_of(peer.id).is_some_and(|t| t >= *time)).count()
                    >= enough
            };
            voters().filter_map(|peer| time_of(peer.id)).filter(reached).max()
        };
        let incoming = majority_time(&[Voter, IncomingVoter])?;
        match description.joint {
            true => Some(incoming.min(majority_time(&[Voter, DemotingVoter, LeavingVoter])?)),
            false => Some(incoming),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::description::tests::description;

    const TERM: Term = Term::new(6);

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn id(id: u64) -> PeerId {
        PeerId::new(id)
    }

    fn quorum_time(
        description: &RegionDescription,
        leader: PeerId,
        now: Duration,
        received: &[(PeerId, Duration)],
    ) -> Option<Duration> {
        Quorum { description, leader, now }.received(received)
    }

    fn until(lease: &mut Lease, now: u64) -> Option<Duration> {
        let described = description(1, 3);
        let quorum = Quorum { description: &described, leader: id(1), now: ms(now) };
        lease.until(TERM, Index::new(9), || true, &quorum)
    }

    #[test]
    fn a_quorum_renews_from_the_time_of_sending() {
        let mut lease = Lease::new(ms(1000));
        assert_eq!(until(&mut lease, 50), None);
        lease.of_term(TERM).received(id(2), ms(10), ms(50));
        assert_eq!(until(&mut lease, 50), Some(ms(1010)));
        lease.received(id(3), ms(30), ms(60));
        assert_eq!(until(&mut lease, 60), Some(ms(1030)));
        lease.received(id(3), ms(20), ms(60));
        lease.received(id(3), ms(70), ms(60));
        assert_eq!(until(&mut lease, 60), Some(ms(1030)), "late ones and those of the future");
    }

    #[test]
    fn a_lone_voter_always_has_one_and_learners_do_not_count() {
        let mut described = description(1, 2);
        described.peers[1].role = PeerRole::Learner;
        assert_eq!(quorum_time(&described, id(1), ms(7), &[]), Some(ms(7)));
        let mut described = description(1, 3);
        described.peers[2].role = PeerRole::Learner;
        assert_eq!(quorum_time(&described, id(1), ms(7), &[(id(3), ms(5))]), None);
        assert_eq!(quorum_time(&described, id(1), ms(7), &[(id(2), ms(4))]), Some(ms(4)));
    }

    #[test]
    fn what_is_known_of_a_quorum_is_forgotten_with_its_reasons() {
        let mut lease = Lease::new(ms(1000));
        lease.of_term(TERM).received(id(2), ms(10), ms(50));
        let mut described = description(1, 3);
        let until = |lease: &Lease, described: &RegionDescription, now| {
            let quorum = Quorum { description: described, leader: id(1), now: ms(now) };
            lease.until(TERM, Index::new(9), || true, &quorum)
        };
        assert_eq!(until(&lease, &described, 50), Some(ms(1010)));
        // The one that has answered does not count any more.
        described.peers[1].role = PeerRole::Learner;
        described.epoch.conf_ver += 1;
        assert_eq!(until(&lease, &described, 50), None);
        lease.received(id(3), ms(40), ms(50));
        assert_eq!(until(&lease, &described, 60), Some(ms(1040)));
        // Alone it needs nobody, and what it knows is as of now.
        described.peers[2].role = PeerRole::Learner;
        described.epoch.conf_ver += 1;
        assert_eq!(until(&lease, &described, 60), Some(ms(1060)));
        assert_eq!(until(&lease, &described, 70), Some(ms(1070)));
    }

    #[test]
    fn a_joint_configuration_needs_both_quorums() {
        let mut described = description(1, 5);
        described.joint = true;
        described.peers[1].role = PeerRole::LeavingVoter;
        described.peers[2].role = PeerRole::LeavingVoter;
        described.peers[3].role = PeerRole::IncomingVoter;
        described.peers[4].role = PeerRole::IncomingVoter;
        let old = (id(2), ms(3));
        let new = (id(4), ms(4));
        let time = |received: &[_]| quorum_time(&described, id(1), ms(9), received);
        assert_eq!((time(&[old]), time(&[new])), (None, None));
        assert_eq!(time(&[old, new]), Some(ms(3)));
    }

    #[test]
    fn appends_renew_it_and_a_probe_is_not_moved_away_from_its_answers() {
        let mut lease = Lease::new(ms(1000));
        lease.of_term(TERM).proposed(Index::new(7), ms(100));
        lease.proposed(Index::new(8), ms(200));
        lease.matched(id(2), Index::new(6), ms(300));
        assert_eq!(until(&mut lease, 300), None);
        lease.matched(id(2), Index::new(7), ms(300));
        assert_eq!(until(&mut lease, 300), Some(ms(1100)));
        lease.proposed(Index::new(9), ms(350));
        lease.matched(id(3), Index::new(9), ms(360));
        assert_eq!(until(&mut lease, 360), Some(ms(1350)));
    }

    #[test]
    fn a_transfer_ends_it_for_the_term_and_not_for_the_next() {
        let mut lease = Lease::new(ms(1000));
        lease.of_term(TERM).received(id(2), ms(10), ms(50));
        lease.give_up();
        lease.received(id(2), ms(40), ms(50));
        assert_eq!(until(&mut lease, 50), None);
        lease.of_term(Term::new(7)).received(id(2), ms(40), ms(50));
        let described = description(1, 3);
        let quorum = Quorum { description: &described, leader: id(1), now: ms(50) };
        let next = lease.until(Term::new(7), Index::new(9), || true, &quorum);
        assert_eq!(next, Some(ms(1040)));
    }

    #[test]
    fn new_peers_must_answer_what_was_sent_to_them() {
        let mut lease = Lease::new(ms(1000));
        lease.of_term(TERM).proposed(Index::new(7), ms(10));
        lease.received(id(2), ms(10), ms(50));
        lease.peers_changed(ms(50));
        lease.received(id(2), ms(50), ms(60));
        lease.matched(id(2), Index::new(7), ms(60));
        assert_eq!(until(&mut lease, 60), None);
        lease.received(id(2), ms(51), ms(60));
        assert_eq!(until(&mut lease, 60), Some(ms(1051)));
    }

    #[test]
    fn a_split_under_way_and_a_term_without_an_applied_entry_turn_it_off() {
        let mut lease = Lease::new(ms(1000));
        lease.of_term(TERM).received(id(2), ms(10), ms(50));
        let described = description(1, 3);
        let quorum = Quorum { description: &described, leader: id(1), now: ms(50) };
        assert_eq!(lease.until(TERM, Index::new(9), || false, &quorum), None);
        lease.off_until_applied(Index::new(10));
        assert_eq!(until(&mut lease, 50), None);
        assert!(lease.until(TERM, Index::new(10), || true, &quorum).is_some());
    }
}
