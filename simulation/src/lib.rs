//! Whole clusters of stores on one thread, from one seed.

#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod disk;

mod random;

pub use random::Random;
