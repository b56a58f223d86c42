//! Election timeouts without chance.
//!
//! raft-rs draws a new timeout from the thread's random generator whenever a peer changes its role
//! or term: in `RawNode::new`, and in `reset`, which every transition to follower, candidate or
//! leader passes through (the one to pre-candidate draws nothing). A region therefore replaces the
//! drawn value after *every* call that may step or tick. The value is a pure function of seed,
//! region, peer and term, so doing it once too often changes nothing; a longer one, which a region sets for itself
//! to let another stand, holds for the rest of its term.
//!
//! Peers that collide do so for one term only: both campaign, nobody wins, the term goes up, and
//! the new term has new timeouts.

use crate::ids::{PeerId, RegionId, Term};

/// Ticks without a leader after which the peer campaigns: from `election_ticks` to one less than
/// twice as many.
pub(crate) fn draw(
    seed: u64,
    region_id: RegionId,
    peer_id: PeerId,
    term: Term,
    election_ticks: usize,
) -> usize {
    let mut hash = mix(seed);
    for part in [region_id.get(), peer_id.get(), term.get()] {
        hash = mix(hash ^ part);
    }
    election_ticks + (hash % election_ticks as u64) as usize
}

/// The order in which peers of a region stand where all know that there is no leader: the lowest first. Another
/// one in each region, so that no store has to lead all.
pub(crate) fn rank(region_id: RegionId, peer_id: PeerId) -> u64 {
    mix(mix(region_id.get()) ^ peer_id.get())
}

/// The finalizer of SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number
/// generators, 2014): every input bit reaches every output bit.
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(region: u64, peer: u64, term: u64) -> usize {
        draw(7, RegionId::new(region), PeerId::new(peer), Term::new(term), 10)
    }

    #[test]
    fn draws_stay_in_range_and_reach_all_of_it() {
        let mut seen = [0; 20];
        for term in 0..1000 {
            seen[at(1, 1, term)] += 1;
        }
        assert!(seen[..10].iter().all(|count| *count == 0));
        assert!(seen[10..].iter().all(|count| *count > 60), "{seen:?}");
    }

    #[test]
    fn peers_seldom_draw_the_same() {
        let collisions = (0..1000).filter(|term| at(1, 1, *term) == at(1, 2, *term)).count();
        assert!((50..150).contains(&collisions), "{collisions} of 1000");
    }

    #[test]
    fn the_same_inputs_draw_the_same() {
        assert_eq!(at(4, 5, 6), at(4, 5, 6));
    }
}
