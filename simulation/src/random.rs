//! The one source of chance: a generator whose numbers are the same on every machine.
//!
//! What draws from the same generator depends on each other: leave one draw out, and all that follow
//! change. So each part of the simulation that should not disturb the others takes a generator of its
//! own, by name, with [`Random::fork`].

use rand_chacha::rand_core::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::ops::Range;

/// A generator of numbers from a seed.
#[derive(Clone, Debug)]
pub struct Random {
    seed: u64,
    generator: ChaCha8Rng,
}

impl Random {
    /// The generator of a seed.
    pub fn new(seed: u64) -> Self {
        Self { seed, generator: ChaCha8Rng::seed_from_u64(seed) }
    }

    /// A generator for a part of the simulation, by name: the same for equal seeds and names, whatever
    /// was drawn from this one.
    pub fn fork(&self, name: &str) -> Self {
        // FNV-1a.
        let mut mixed = 0xCBF2_9CE4_8422_2325 ^ self.seed;
        for byte in name.bytes().chain(self.seed.to_le_bytes()) {
            mixed = (mixed ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3);
        }
        Self::new(mixed)
    }

    /// Any number.
    pub fn number(&mut self) -> u64 {
        self.generator.next_u64()
    }

    /// A number below `end`, which is 1 or more.
    pub fn below(&mut self, end: u64) -> u64 {
        debug_assert!(end > 0, "no number is below 0");
        // The bias is below 2^-32 for the small ranges drawn here.
        ((u128::from(self.number()) * u128::from(end)) >> 64) as u64
    }

    /// A number of a range that is not empty.
    pub fn within(&mut self, range: Range<u64>) -> u64 {
        range.start + self.below(range.end - range.start)
    }

    /// True in `per_mille` of 1,000 cases.
    pub fn chance(&mut self, per_mille: u64) -> bool {
        per_mille > 0 && self.below(1000) < per_mille
    }

    /// A number below `len`, as an index.
    pub fn index(&mut self, len: usize) -> usize {
        self.below(len as u64) as usize
    }

    /// One of some things; there is at least one.
    pub fn pick<'a, T>(&mut self, things: &'a [T]) -> &'a T {
        &things[self.index(things.len())]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_the_same_for_ever() {
        let mut random = Random::new(42);
        let first: Vec<u64> = (0..3).map(|_| random.number()).collect();
        assert_eq!(
            first,
            [12_578_764_544_318_200_737, 17_529_487_244_874_322_312, 7_886_285_670_807_131_020,]
        );
    }

    #[test]
    fn forks_do_not_depend_on_what_was_drawn() {
        let mut drawn = Random::new(7);
        drawn.number();
        assert_eq!(drawn.fork("disk").number(), Random::new(7).fork("disk").number());
        assert_ne!(drawn.fork("disk").number(), drawn.fork("net").number());
        assert_ne!(Random::new(8).fork("disk").number(), drawn.fork("disk").number());
    }

    #[test]
    fn draws_keep_to_their_ranges() {
        let mut random = Random::new(1);
        let mut seen = [0; 6];
        for _ in 0..6000 {
            seen[random.within(2..6) as usize] += 1;
        }
        assert!(seen[..2] == [0, 0] && seen[2..].iter().all(|count| (1300..1700).contains(count)));
        assert!((0..1000).all(|_| !random.chance(0) && random.chance(1000)));
    }
}
