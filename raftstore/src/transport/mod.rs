//! The seam to the other stores.

mod in_process;

pub use in_process::InProcessTransport;

use crate::liveness::StorePing;
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

    /// Takes the question whether another store lives, or the answer to one; some fifty bytes, a few a tick and
    /// store. Says whether it is carried. It is to be handed to
    /// [`deliver_ping`](crate::StoreHandle::deliver_ping) over there, by the same way as Raft messages: whoever
    /// can be pinged must be able to be sent those.
    fn send_ping(&self, ping: StorePing) -> bool;
}
