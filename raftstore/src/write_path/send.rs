//! Station 4. In: messages that may leave now, and those that had to wait for the disk. Out: one
//! hand-over to the transport for each destination and round.

use crate::liveness::StorePing;
use crate::metrics::LocalMetrics;
use crate::snapshot::{StreamQueue, StreamTask, TASK_WEIGHT};
use crate::transport::Transport;
use crate::write_path::persist::Released;
use raft::eraftpb::MessageType;
use region::{Envelope, StoreId};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::Arc;

pub(crate) struct SendStation {
    transport: Arc<dyn Transport>,
    /// Where the contents of snapshots go their own way.
    streams: Arc<StreamQueue>,
    outgoing: Vec<(StoreId, Vec<Box<Envelope>>)>,
}

impl SendStation {
    pub(crate) fn new(transport: Arc<dyn Transport>, streams: Arc<StreamQueue>) -> Self {
        Self { transport, streams, outgoing: Vec::new() }
    }

    /// Adds messages that may leave at once.
    pub(crate) fn add_all(&mut self, messages: &mut Vec<Box<Envelope>>) {
        messages.drain(..).for_each(|message| self.add(message));
    }

    /// Adds messages whose promises are durable.
    pub(crate) fn add_responses(&mut self, messages: Released) {
        messages.into_messages().into_iter().for_each(|message| self.add(message));
    }

    /// Asks another store whether it lives, or answers; at once. It does not matter if it is lost.
    pub(crate) fn ping(&self, ping: StorePing) {
        let _ = catch_unwind(AssertUnwindSafe(|| self.transport.send_ping(ping)));
    }

    /// Hands everything to the transport.
    pub(crate) fn flush(&mut self, metrics: &mut LocalMetrics) {
        for (store, messages) in &mut self.outgoing {
            if messages.is_empty() {
                continue;
            }
            messages.iter().for_each(|message| metrics.count_sent(message.message.get_msg_type()));
            let count = messages.len();
            let transport = &self.transport;
            let sent = catch_unwind(AssertUnwindSafe(|| transport.send(*store, messages)));
            messages.clear();
            match sent {
                Ok(0) => {}
                Ok(dropped) => metrics.count_dropped("unreachable", dropped as u64),
                // Raft makes lost messages good; a panic must not cost the round's regions.
                Err(_) => metrics.count_dropped("transport_panicked", count as u64),
            }
        }
    }

    /// Forgets what has not left: the store has failed.
    pub(crate) fn clear(&mut self) {
        self.outgoing.iter_mut().for_each(|(_, messages)| messages.clear());
    }

    fn add(&mut self, message: Box<Envelope>) {
        if message.message.get_msg_type() == MessageType::MsgSnapshot {
            // It travels with the contents. One a peer, so there is no bound to keep.
            let _ = self.streams.push_always(StreamTask::Send(message), TASK_WEIGHT);
            return;
        }
        let store = message.to.store;
        match self.outgoing.iter_mut().find(|(known, _)| *known == store) {
            Some((_, messages)) => messages.push(message),
            None => self.outgoing.push((store, vec![message])),
        }
    }
}
