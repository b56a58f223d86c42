//! What a peer knows of the others beside the description: who was heard of lately, and where those are
//! that the description does not hold, or not yet.

use raft::eraftpb::MessageType;

use crate::description::Peer;
use crate::envelope::Envelope;
use crate::ids::PeerId;

/// Most peers remembered that are not in the description.
const MAX_STRANGERS: usize = 8;

/// Invariant: `strangers` holds at most `MAX_STRANGERS`, the one heard of last at the end.
#[derive(Default)]
pub(crate) struct PeerBook {
    strangers: Vec<Peer>,
    /// A leader's: peer and tick.
    heard: Vec<(PeerId, u64)>,
    /// Ticks of this leadership.
    tick: u64,
}

impl PeerBook {
    /// A message came from somebody who is not in the description, but may be.
    pub(crate) fn meet(&mut self, peer: Peer) {
        self.strangers.retain(|known| known.id != peer.id);
        if self.strangers.len() == MAX_STRANGERS {
            self.strangers.remove(0);
        }
        self.strangers.push(peer);
    }

    /// All that are not in the description.
    pub(crate) fn strangers(&self) -> &[Peer] {
        &self.strangers
    }

    /// Where a peer lives that is not in the description.
    pub(crate) fn stranger(&self, id: PeerId) -> Option<Peer> {
        self.strangers.iter().find(|known| known.id == id).copied()
    }

    /// The description has changed, and holds those it should.
    pub(crate) fn forget_strangers(&mut self) {
        self.strangers = Vec::new();
    }

    /// A leader has a message of a peer. Who asks for votes does not hear the leader, or not any more: that is
    /// no sign that it follows.
    pub(crate) fn hear(&mut self, envelope: &Envelope) {
        use MessageType::{MsgRequestPreVote, MsgRequestVote};
        if !matches!(envelope.message.get_msg_type(), MsgRequestVote | MsgRequestPreVote) {
            self.heard(envelope.from.id);
        }
    }

    fn heard(&mut self, id: PeerId) {
        let tick = self.tick;
        match self.heard.iter_mut().find(|(known, _)| *known == id) {
            Some(known) => known.1 = tick,
            None => self.heard.push((id, tick)),
        }
    }

    /// A tick of a leader.
    pub(crate) fn tick(&mut self) {
        self.tick += 1;
    }

    /// Ticks since a leader has last heard of a peer; `None` if it never has.
    pub(crate) fn silent_ticks(&self, id: PeerId) -> Option<u64> {
        let (_, at) = self.heard.iter().find(|(known, _)| *known == id)?;
        Some(self.tick - at)
    }

    /// The same, or since the leadership began.
    pub(crate) fn quiet_ticks(&self, id: PeerId) -> u64 {
        self.silent_ticks(id).unwrap_or(self.tick)
    }

    /// Leadership began or ended.
    pub(crate) fn forget_heard(&mut self) {
        (self.heard, self.tick) = (Vec::new(), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::description::RegionEpoch;
    use crate::ids::{RegionId, StoreId};
    use raft::eraftpb::Message;

    fn sent_by(id: u64) -> Envelope {
        let peer = |id| Peer::voter(PeerId::new(id), StoreId::new(id));
        Envelope {
            cluster_id: 1,
            region_id: RegionId::new(1),
            from: peer(id),
            to: peer(2),
            epoch: RegionEpoch::default(),
            message: Message::default(),
            description: None,
        }
    }

    #[test]
    fn strangers_are_few_and_the_last_ones() {
        let mut book = PeerBook::default();
        for id in 1..=10 {
            book.meet(Peer::voter(PeerId::new(id), StoreId::new(id)));
        }
        assert!(book.stranger(PeerId::new(2)).is_none());
        assert_eq!(book.stranger(PeerId::new(3)).unwrap().store, StoreId::new(3));
    }

    #[test]
    fn silence_is_counted_in_ticks() {
        let mut book = PeerBook::default();
        book.heard(PeerId::new(1));
        book.tick();
        book.tick();
        assert_eq!(book.silent_ticks(PeerId::new(1)), Some(2));
        let mut envelope = sent_by(1);
        envelope.message.set_msg_type(MessageType::MsgRequestPreVote);
        book.hear(&envelope);
        assert_eq!(book.silent_ticks(PeerId::new(1)), Some(2), "it does not hear the leader");
        envelope.message.set_msg_type(MessageType::MsgHeartbeatResponse);
        book.hear(&envelope);
        assert_eq!(book.silent_ticks(PeerId::new(1)), Some(0));
        assert_eq!(book.silent_ticks(PeerId::new(2)), None);
    }
}
