//! The seam to the other stores.

mod in_process;

pub use in_process::InProcessTransport;

use crate::snapshot::SnapshotMessage;
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

    /// Takes a message about a snapshot, of some 256 KiB at most but for one with a larger piece in it. Says
    /// whether it is carried. It is to be handed to
    /// [`deliver_snapshot`](crate::StoreHandle::deliver_snapshot) over there, and need not keep its place
    /// among the others.
    fn send_snapshot(&self, message: SnapshotMessage) -> bool;
}
