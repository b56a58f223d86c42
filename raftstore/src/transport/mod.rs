//! The seam to the other stores.

mod in_process;

pub use in_process::InProcessTransport;

use region::{Envelope, StoreId};

/// Carries Raft messages to other stores. Called from several threads at once, once a round and
/// destination.
///
/// # Contract
/// * Never blocks on a slow or dead store: it drops what it cannot carry, which Raft makes good.
/// * Messages to one store that are carried are carried in order.
pub trait Transport: Send + Sync + 'static {
    /// Takes all of `messages` for one store. Returns how many were dropped.
    fn send(&self, to: StoreId, messages: &mut Vec<Box<Envelope>>) -> usize;
}
