//! Numbers that must not be confused with each other.
//!
//! Ids are handed out by the placement service and are unique for the life of a cluster. 0 and ids above
//! [`MAX_ID`] are never handed out, and a [`RegionDescription`](crate::RegionDescription) that holds one is
//! refused.

use serde::{Deserialize, Serialize};
use std::fmt;

/// The largest id of a region or a peer. Log stores have the numbers above it for their own use, and a region
/// whose peer had the very last one could get no other.
pub const MAX_ID: u64 = u64::MAX - (1 << 16);

/// Whether a region or a peer can have this id.
pub const fn is_sound_id(id: u64) -> bool {
    0 < id && id <= MAX_ID
}

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(u64);

        impl $name {
            /// Wraps a plain number.
            pub const fn new(value: u64) -> Self {
                Self(value)
            }

            /// The plain number.
            pub const fn get(self) -> u64 {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }
    };
}

number! {
    /// A region: a key range replicated as one Raft group.
    RegionId
}
number! {
    /// A peer: one store's replica of a region. A peer that left its region never returns; a store
    /// that gets the region again gets a new, larger peer id.
    PeerId
}
number! {
    /// A store: one process and its disk.
    StoreId
}
number! {
    /// A position in a region's log. The log of a new region begins after
    /// [`INITIAL_INDEX`](crate::INITIAL_INDEX).
    Index
}
number! {
    /// A term of a region's leadership.
    Term
}

impl Index {
    /// The position after this one.
    pub const fn next(self) -> Index {
        Index(self.0 + 1)
    }

    /// The position before this one, or 0.
    pub const fn previous(self) -> Index {
        Index(self.0.saturating_sub(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_print_plainly_and_debug_with_their_kind() {
        assert_eq!(RegionId::new(7).to_string(), "7");
        assert_eq!(format!("{:?}", Term::new(3)), "Term(3)");
        assert_eq!(Index::new(0).previous(), Index::new(0));
        assert_eq!(Index::new(4).next().get(), 5);
    }
}
