//! What a store's process hands to the network, and whether it may promise what it says.

use crate::check::Ledger;
use crate::disk::{Device, Image};
use crate::faults::{FaultKind, Fired};
use crate::life::Life;
use parking_lot::Mutex;
use raft::eraftpb::{Message, MessageType};
use raftstore::{Bytes, Envelope, RegionId, SnapshotMessage, StoreId, StorePing, Transport};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Messages of one hand-over, on their way.
#[derive(Clone, Debug)]
pub(crate) struct Packet {
    /// The sending store.
    pub from: u64,
    /// The receiving store.
    pub to: u64,
    /// At least one, unless it is something else.
    pub messages: Vec<Box<Envelope>>,
    /// A message about a snapshot.
    pub snapshot: Option<Box<SnapshotMessage>>,
    /// The question whether a store lives, or its answer.
    pub ping: Option<StorePing>,
}

impl Packet {
    /// How many messages it holds, of all kinds.
    pub(crate) fn len(&self) -> usize {
        let others = [self.snapshot.is_some(), self.ping.is_some()];
        self.messages.len() + others.into_iter().filter(|there| *there).count()
    }
}

/// What all stores have handed over since the network last looked.
#[derive(Debug, Default)]
pub(crate) struct Outgoing {
    /// In order.
    pub packets: Vec<Packet>,
    /// Links that take nothing, from and to.
    pub full: BTreeSet<(u64, u64)>,
    /// What has struck.
    pub fired: Fired,
}

/// The transport of one life of a store.
pub(crate) struct SimTransport {
    store: u64,
    life: Arc<Life>,
    device: Device,
    ledger: Arc<Mutex<Ledger>>,
    outgoing: Arc<Mutex<Outgoing>>,
    /// Whether messages pass through their encoded form.
    encodes: bool,
}

impl SimTransport {
    /// The transport for a life that begins.
    pub(crate) fn new(
        store: u64,
        life: Arc<Life>,
        device: Device,
        ledger: Arc<Mutex<Ledger>>,
        outgoing: Arc<Mutex<Outgoing>>,
        encodes: bool,
    ) -> Self {
        Self { store, life, device, ledger, outgoing, encodes }
    }

    /// One with nothing in it.
    fn packet(&self, to: StoreId) -> Packet {
        let (from, to) = (self.store, to.get());
        Packet { from, to, messages: Vec::new(), snapshot: None, ping: None }
    }

    /// Says whether the network takes it.
    fn push(&self, packet: Packet) -> bool {
        let mut outgoing = self.outgoing.lock();
        if outgoing.full.contains(&(packet.from, packet.to)) {
            outgoing.fired.note(FaultKind::FullPipe);
            return false;
        }
        outgoing.packets.push(packet);
        true
    }

    fn changed(&self, text: String) {
        self.ledger.lock().violate("messages survive encoding", text);
    }

    fn check(&self, messages: &[Box<Envelope>]) {
        let disk = self.device.disk.lock();
        for envelope in messages {
            let promised = promise(&envelope.message);
            if let Err(what) = kept(disk.durable(), disk.current(), envelope.region_id, &promised) {
                let text = format!(
                    "region {}: store {} sends {:?} in term {}, but {what}",
                    envelope.region_id,
                    self.store,
                    envelope.message.get_msg_type(),
                    envelope.message.term
                );
                self.ledger.lock().violate("no promise before the sync", text);
            }
        }
    }
}

impl Transport for SimTransport {
    fn send(&self, to: StoreId, messages: &mut Vec<Box<Envelope>>) -> usize {
        if !self.life.call() {
            return messages.drain(..).count();
        }
        self.check(messages);
        let mut packet = self.packet(to);
        packet.messages = std::mem::take(messages);
        if self.encodes {
            for envelope in &mut packet.messages {
                let bytes: Bytes = envelope.encode();
                match Envelope::decode(&bytes) {
                    Ok(decoded) => **envelope = decoded,
                    Err(error) => self.changed(format!("{envelope:?}: {error}")),
                }
            }
        }
        let count = packet.messages.len();
        if self.push(packet) {
            0
        } else {
            count
        }
    }

    fn send_snapshot(&self, mut message: SnapshotMessage) -> bool {
        if !self.life.call() {
            return false;
        }
        if self.encodes {
            match SnapshotMessage::decode(&message.encode()) {
                Ok(decoded) => message = decoded,
                Err(error) => self.changed(format!("{message:?}: {error}")),
            }
        }
        let packet = self.packet(message.to);
        self.push(Packet { snapshot: Some(Box::new(message)), ..packet })
    }

    fn send_ping(&self, ping: StorePing) -> bool {
        if !self.life.call() {
            return false;
        }
        if self.encodes && StorePing::decode(&ping.encode()) != Ok(ping) {
            self.changed(format!("{ping:?}"));
        }
        self.push(Packet { ping: Some(ping), ..self.packet(ping.to) })
    }
}

/// What a message promises about its sender's disk.
#[derive(Debug, Default, PartialEq, Eq)]
struct Promise {
    /// The sender has this term.
    term: u64,
    /// It has voted for this peer in that term.
    vote: Option<u64>,
    /// It has the leader's log up to here.
    index: Option<u64>,
}

fn promise(message: &Message) -> Promise {
    let mut promise = Promise { term: message.term, ..Promise::default() };
    match message.get_msg_type() {
        // A question about a term that nobody has yet, and the answer to it.
        MessageType::MsgRequestPreVote | MessageType::MsgRequestPreVoteResponse => promise.term = 0,
        MessageType::MsgRequestVote => promise.vote = Some(message.from),
        MessageType::MsgRequestVoteResponse if !message.reject => promise.vote = Some(message.to),
        MessageType::MsgAppendResponse if !message.reject => promise.index = Some(message.index),
        _ => {}
    }
    promise
}

fn kept(
    durable: &Image,
    current: &Image,
    region: RegionId,
    promise: &Promise,
) -> Result<(), String> {
    let Some(log) = durable.regions.get(&region) else {
        return Err("nothing of it is durable".to_owned());
    };
    let (term, vote) = log.hard_state.as_ref().map_or((5, 0), |state| (state.term, state.vote));
    if term < promise.term {
        return Err(format!("its durable term is {term}"));
    }
    if let Some(promised) =
        promise.vote.filter(|vote_for| term == promise.term && *vote_for != vote)
    {
        return Err(format!("its durable vote is for {vote}, not for {promised}"));
    }
    if let Some(index) = promise.index {
        let written = current.regions.get(&region).and_then(|log| log.term(index));
        let truncated = index <= log.truncated.index.get();
        if !truncated && (log.term(index).is_none() || log.term(index) != written) {
            return Err(format!(
                "at index {index} term {:?} is durable, {written:?} is written",
                log.term(index)
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::Disk;
    use raftstore::{Entry, HardState, LogBatch, RegionWrite};

    const REGION: RegionId = RegionId::new(1);

    fn message(kind: MessageType, term: u64, index: u64) -> Message {
        Message { msg_type: kind, term, index, from: 1, to: 2, ..Message::default() }
    }

    fn disk(durable_term: u64, vote: u64, written: &[(u64, u64)], durable: usize) -> Disk {
        let mut disk = Disk::default();
        let state = HardState { term: durable_term, vote, ..HardState::default() };
        let first =
            RegionWrite { region_id: REGION, hard_state: Some(state), ..Default::default() };
        let mut ledger = Ledger::default();
        disk.write(1, &LogBatch { writes: vec![first], ident: None }, &mut ledger).expect("sound");
        disk.sync();
        for (at, (index, term)) in written.iter().enumerate() {
            let entry = Entry { index: *index, term: *term, ..Entry::default() };
            let write =
                RegionWrite { region_id: REGION, entries: vec![entry], ..Default::default() };
            let batch = LogBatch { writes: vec![write], ident: None };
            disk.write(1, &batch, &mut ledger).expect("sound");
            if at < durable {
                disk.sync();
            }
        }
        disk
    }

    fn may_leave(disk: &Disk, message: &Message) -> bool {
        kept(disk.durable(), disk.current(), REGION, &promise(message)).is_ok()
    }

    #[test]
    fn votes_must_be_durable() {
        use MessageType::{
            MsgHeartbeat, MsgRequestPreVote, MsgRequestVote, MsgRequestVoteResponse,
        };
        let disk = disk(7, 2, &[], 0);
        assert!(may_leave(&disk, &message(MsgRequestVoteResponse, 7, 0)));
        assert!(!may_leave(&disk, &message(MsgRequestVoteResponse, 8, 0)), "the term is not");
        assert!(!may_leave(&disk, &message(MsgRequestVote, 7, 0)), "it has voted for another");
        assert!(may_leave(&disk, &message(MsgRequestVote, 6, 0)), "an old one is late, not wrong");
        assert!(may_leave(&disk, &message(MsgRequestPreVote, 8, 0)), "it promises nothing");
        assert!(!may_leave(&disk, &message(MsgHeartbeat, 8, 0)));
        let rejection = Message { reject: true, ..message(MsgRequestVoteResponse, 7, 0) };
        assert!(may_leave(&disk, &Message { to: 3, ..rejection }));
    }

    #[test]
    fn appends_must_be_durable() {
        let response = |index| message(MessageType::MsgAppendResponse, 7, index);
        let written = disk(7, 0, &[(6, 6), (7, 6), (7, 7)], 2);
        assert!(may_leave(&written, &response(6)));
        assert!(!may_leave(&written, &response(7)), "what is durable there was replaced");
        assert!(!may_leave(&written, &response(8)));
        assert!(may_leave(&disk(7, 0, &[(6, 6), (7, 7)], 2), &response(7)));
    }
}
