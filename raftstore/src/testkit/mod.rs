//! Checks for a [`StateMachine`](crate::StateMachine) or a [`LogStore`](crate::LogStore) of your own, to be
//! run in your tests.
//!
//! A store believes what the contracts of these two traits say, and a part that keeps nearly all of it
//! loses data on the one day that counts. [`state_machine`] and [`log_store`] run through the contracts
//! and panic at the first rule that is broken: with its name, what it demands, and what was found.
//! [`STATE_MACHINE_RULES`] and [`LOG_STORE_RULES`] list them.
//!
//! You say how one is opened, and opened again; see [`StateMachineSubject`] and [`LogStoreSubject`].
//!
//! ```
//! use raftstore::testkit::{self, StateMachineSubject};
//! use raftstore::{Bytes, MapCommand, OrderedMap, RegionDescription};
//!
//! struct InMemory;
//!
//! impl StateMachineSubject for InMemory {
//!     type Home = ();
//!     type Machine = OrderedMap;
//!
//!     fn home(&self) {}
//!
//!     fn open(&self, _: &mut ()) -> OrderedMap {
//!         OrderedMap::new()
//!     }
//!
//!     fn is_volatile(&self) -> bool {
//!         true
//!     }
//!
//!     fn put(&self, key: &[u8], value: &[u8]) -> Bytes {
//!         MapCommand::put(key.to_vec(), value.to_vec()).encode()
//!     }
//!
//!     fn delete(&self, key: &[u8]) -> Option<Bytes> {
//!         Some(MapCommand::delete(key.to_vec()).encode())
//!     }
//!
//!     fn contents(&self, map: &OrderedMap, region: &RegionDescription) -> Vec<(Bytes, Bytes)> {
//!         let pairs = map.scan(region.id, &region.start_key, usize::MAX);
//!         pairs.into_iter().filter(|(key, _)| region.contains(key)).collect()
//!     }
//! }
//!
//! testkit::state_machine(&InMemory);
//! ```
//!
//! # Caveats
//!
//! The kit ends what it tests and opens it again; it cannot take power away, nor fail a disk. A subject
//! whose `end` leaves less behind (a copy of the directory, made before it is closed) is tested for more.
//! What it finds is wrong; what it does not find may be wrong still.

mod log;
mod machine;

pub use log::{log_store, LogStoreSubject, LOG_STORE_RULES};
pub use machine::{state_machine, StateMachineSubject, STATE_MACHINE_RULES};

use bytes::Bytes;
use region::{Peer, PeerId, RegionDescription, RegionId, StoreId};

/// A rule's name, and what it demands.
type Rule = (&'static str, &'static str);

/// Panics: this rule is broken, as the details show.
fn broken(rule: &str, rules: &[Rule], details: &str) -> ! {
    let found = rules.iter().find(|(name, _)| *name == rule);
    let (name, demand) = found.unwrap_or_else(|| panic!("there is no rule `{rule}`: {details}"));
    panic!("rule `{name}` is broken ({demand}): {details}")
}

/// A region of three peers.
fn description(id: u64, start: &str, end: &str) -> RegionDescription {
    let voter = |store| Peer::voter(PeerId::new(10 * id + store), StoreId::new(store));
    RegionDescription::new(
        RegionId::new(id),
        Bytes::copy_from_slice(start.as_bytes()),
        Bytes::copy_from_slice(end.as_bytes()),
        (1..=3).map(voter),
    )
}

/// Numbers without a pattern, the same in every run.
struct Draws(u64);

impl Draws {
    /// Below `end`.
    fn next(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963);
        (self.0 >> 33) % end
    }
}
