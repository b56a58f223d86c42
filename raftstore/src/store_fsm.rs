//! The control FSM of the store's pool: what concerns the store and not one region.
//!
//! # Messages for regions that are not here
//!
//! | the message says, or this store knows | then |
//! |---|---|
//! | the peer was here and is destroyed | a sender that has left the region is told so; else nothing |
//! | the peer is about to begin, a split will bring it, or its range is still part of another region here | it is held, and given to the region when it begins |
//! | the region is described, soundly, and has a peer here | a peer is created, which knows nothing yet; so many at once at most |
//! | nothing of that | it is dropped; who sent it will send again |

use crate::creator::Creator;
use crate::liveness::{Heard, StorePing};
use crate::message::{RegionMessage, StoreMessage};
use crate::peers::Refused;
use crate::region_fsm::{RegionOutbox, RegionRouter};
use crate::write_path::send::SendStation;
use batch_system::{Fsm, SendError};
use parking_lot::Mutex;
use raft::eraftpb::{Message, MessageType};
use region::{snapshot_of, Envelope, RegionId, Removal};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// Most messages held for regions that are about to begin.
const MAX_HELD: usize = 1024;

/// Regions that have been set aside, and why. They do nothing any more; the others go on.
pub(crate) type SetAside = Arc<Mutex<BTreeMap<RegionId, String>>>;

/// The store's own state.
pub(crate) struct StoreFsm {
    creator: Arc<Creator>,
    /// Raft messages for regions that are about to begin, the oldest first, `MAX_HELD` at most.
    held: VecDeque<Box<Envelope>>,
}

impl Fsm for StoreFsm {
    type Message = StoreMessage;
}

impl StoreFsm {
    pub(crate) fn new(creator: Arc<Creator>) -> Self {
        Self { creator, held: VecDeque::new() }
    }

    /// Handles a message. What is to be sent is added to `send`.
    pub(crate) fn handle(
        &mut self,
        message: StoreMessage,
        outbox: &mut RegionOutbox,
        send: &mut SendStation,
    ) {
        match message {
            StoreMessage::RegionPanicked(region, text) => {
                // Its poller has set it aside already, before the address was free.
                tracing::error!(%region, text, "region set aside: its handler panicked");
            }
            StoreMessage::Answer(callback, answer) => callback.call(answer),
            StoreMessage::Stray(envelope) => self.stray(envelope, &outbox.router(), send),
            StoreMessage::SnapshotArrived(arrival) => {
                let (region, peer) = (arrival.envelope.region_id, arrival.envelope.to.id);
                let router = outbox.router();
                if !self.creator.warm(&router, region) {
                    let conf_ver = snapshot_of(&arrival.envelope)
                        .map_or(0, |applied| applied.description.epoch.conf_ver);
                    self.creator.create_for_leader(&router, region, peer, conf_ver);
                }
                let arrived = RegionMessage::SnapshotArrived(arrival);
                let sent = outbox.force_send(region.get(), arrived);
                let refused = sent.map_err(SendError::into_message);
                if let Err(RegionMessage::SnapshotArrived(arrival)) = refused {
                    self.creator.metrics.count_dropped("region_not_found", 1);
                    self.creator.discard_snapshot(&arrival);
                }
            }
            StoreMessage::Created(region) => self.give_held(region, outbox),
            StoreMessage::Ping(ping) => self.take_ping(ping, send),
            StoreMessage::AskOthers => self.ask_others(outbox, send),
        }
    }

    /// Handles what is left when the store ends.
    pub(crate) fn take_leave(&mut self, message: StoreMessage) {
        if let StoreMessage::Answer(callback, answer) = message {
            callback.call(answer);
        }
    }

    /// Another store asks, or has answered. One that has failed does not answer: it leads nobody any more.
    fn take_ping(&self, ping: StorePing, send: &SendStation) {
        let Creator { liveness, store_id, region_config, health, .. } = &*self.creator;
        let ours = ping.cluster_id == region_config.cluster_id && ping.to == *store_id;
        if !ours || ping.from == *store_id {
            return self.creator.metrics.count_dropped("wrong_recipient", 1);
        }
        match ping.answer {
            None if health.has_failed() => {}
            None => {
                let answer = Some(liveness.life());
                send.ping(StorePing { from: ping.to, to: ping.from, answer, ..ping });
            }
            Some(life) if ping.asker == liveness.life() => {
                match liveness.hear(ping.from, ping.number, life) {
                    Heard::Nothing => {}
                    Heard::Back => tracing::info!(store = %ping.from, "the store answers again"),
                    Heard::Restarted(regions) => {
                        let store = ping.from;
                        tracing::info!(%store, regions, "the store was started anew: waking what it led");
                    }
                }
            }
            Some(_) => {}
        }
    }

    /// Once a tick: asks the stores that somebody here relies on, and wakes what lost ones have led.
    fn ask_others(&self, outbox: &mut RegionOutbox, send: &SendStation) {
        let Creator { liveness, store_id, region_config, tick_interval, .. } = &*self.creator;
        let turn = liveness.tick();
        let (number, stores) = turn.ask;
        let (cluster_id, from, asker) = (region_config.cluster_id, *store_id, liveness.life());
        for to in stores {
            send.ping(StorePing { cluster_id, from, to, asker, number, answer: None });
        }
        for store in turn.lost {
            tracing::warn!(%store, "the store does not answer: waking what it led");
        }
        for region in turn.look_around {
            let offset = self.creator.offset_in_tick(region);
            if !outbox.send_after(region.get(), offset, RegionMessage::LookAround) {
                let _ = self.creator.reach(&outbox.router(), region, RegionMessage::LookAround);
            }
        }
        for (region, store) in turn.wake {
            let offset = self.creator.offset_in_tick(region);
            let lost = || RegionMessage::StoreLost(store);
            if !outbox.send_after(region.get(), offset, lost()) {
                // It is cold.
                let _ = self.creator.reach(&outbox.router(), region, lost());
            }
        }
        outbox.send_control_after(*tick_interval, StoreMessage::AskOthers);
    }

    fn stray(&mut self, envelope: Box<Envelope>, router: &RegionRouter, send: &mut SendStation) {
        let region = envelope.region_id;
        if self.creator.warm(router, region) {
            // It was created meanwhile.
            return self.forward(envelope, router);
        }
        match self.creator.peers.refusal(region, envelope.to.id) {
            Some(Refused::Tombstone(_, last)) => {
                return send.add_all(&mut tell_of_removal(&envelope, &last).into_iter().collect());
            }
            Some(Refused::Here(_)) if self.creator.set_aside.lock().contains_key(&region) => return,
            // Here, and without a mailbox: it is just about to begin. A vote that is lost now would cost the
            // region an election timeout.
            Some(Refused::Promised | Refused::Here(_)) => return self.hold(envelope),
            None => {}
        }
        let Some(description) = &envelope.description else { return };
        let known = description.id == region
            && envelope.message.from != 0
            && description.peer(envelope.to.id).is_some_and(|peer| *peer == envelope.to)
            && description.peer(envelope.from.id).is_some();
        if !known {
            return;
        }
        if description.validate().is_err() {
            return self.creator.metrics.count_dropped("unsound_description", 1);
        }
        if self.creator.ranges.overlapping(description).is_some() {
            return self.hold(envelope);
        }
        let conf_ver = description.epoch.conf_ver;
        if self.creator.create_for_leader(router, region, envelope.to.id, conf_ver) {
            self.forward(envelope, router);
        }
    }

    fn forward(&self, envelope: Box<Envelope>, router: &RegionRouter) {
        let region = envelope.region_id.get();
        if let Err(SendError::Full(_)) = router.send(region, RegionMessage::Raft(envelope)) {
            self.creator.metrics.count_dropped("mailbox_full", 1);
        }
    }

    fn hold(&mut self, envelope: Box<Envelope>) {
        if self.held.len() == MAX_HELD {
            self.held.pop_front();
            self.creator.metrics.count_dropped("too_many_held", 1);
        }
        self.held.push_back(envelope);
    }

    fn give_held(&mut self, region: RegionId, outbox: &mut RegionOutbox) {
        if self.held.iter().all(|envelope| envelope.region_id != region) {
            return;
        }
        for envelope in std::mem::take(&mut self.held) {
            match envelope.region_id == region {
                true => drop(outbox.send(region.get(), RegionMessage::Raft(envelope))),
                false => self.held.push_back(envelope),
            }
        }
    }
}

/// Somebody asks a destroyed peer for its vote, or what the region is: he may not know that he has left it,
/// too, or who is there now.
fn tell_of_removal(envelope: &Envelope, last: &Removal) -> Option<Box<Envelope>> {
    use MessageType::{MsgRequestPreVote, MsgRequestVote};
    let asks = envelope.message.from == 0 && envelope.description.is_none()
        || matches!(envelope.message.get_msg_type(), MsgRequestVote | MsgRequestPreVote);
    let epoch = last.description.epoch;
    let stale = last.description.is_initialised() && envelope.epoch.conf_ver < epoch.conf_ver;
    let (commit, commit_term) =
        last.left_at.map_or((0, 0), |left_at| (left_at.index.get(), left_at.term.get()));
    (asks && stale).then(|| {
        Box::new(Envelope {
            cluster_id: envelope.cluster_id,
            region_id: envelope.region_id,
            from: envelope.to,
            to: envelope.from,
            epoch,
            message: Message { commit, commit_term, ..Message::default() },
            description: Some(last.description.clone()),
        })
    })
}
