//! Stores of one process.

use super::Transport;
use crate::handle::StoreHandle;
use crate::liveness::StorePing;
use crate::snapshot::SnapshotMessage;
use parking_lot::RwLock;
use region::{Envelope, StoreId};
use rustc_hash::FxHashMap;
use std::sync::Arc;

/// Hands messages straight to the mailboxes of stores in the same process. Clones share their stores.
#[derive(Clone, Debug, Default)]
pub struct InProcessTransport {
    stores: Arc<RwLock<FxHashMap<StoreId, StoreHandle>>>,
}

impl InProcessTransport {
    /// One without stores.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes a store reachable for those that share this transport. A store of the same id is replaced.
    pub fn connect(&self, handle: StoreHandle) {
        self.stores.write().insert(handle.store_id(), handle);
    }

    /// Makes a store unreachable. Says whether it was reachable.
    pub fn disconnect(&self, store: StoreId) -> bool {
        self.stores.write().remove(&store).is_some()
    }
}

impl Transport for InProcessTransport {
    fn send(&self, to: StoreId, messages: &mut Vec<Box<Envelope>>) -> usize {
        let stores = self.stores.read();
        match stores.get(&to) {
            Some(handle) => {
                handle.deliver(messages);
                0
            }
            None => messages.drain(..).count(),
        }
    }

    fn send_snapshot(&self, message: SnapshotMessage) -> bool {
        let handle = self.stores.read().get(&message.to).cloned();
        handle.is_some_and(|handle| handle.deliver_snapshot(message))
    }

    fn send_ping(&self, ping: StorePing) -> bool {
        self.stores.read().get(&ping.to).is_some_and(|handle| handle.deliver_ping(ping))
    }
}
