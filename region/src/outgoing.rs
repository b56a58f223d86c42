//! raft-rs's messages, put into envelopes.
//!
//! Caveat: with `batch_append` raft-rs merges an append into the one that already waits for the
//! same peer, however large that is by now: up to the whole inflight window, 256 MiB by default.
//! Here such a message is cut into several of the agreed size. Cutting an append is always sound:
//! each piece names the index and term of the last entry of the piece before it.

use std::sync::Arc;

use protobuf::Message as _;
use raft::eraftpb::{Entry, Message, MessageType};
use raft::ProgressTracker;

use crate::description::{Peer, RegionDescription};
use crate::envelope::Envelope;
use crate::ids::PeerId;
use crate::peer_book::PeerBook;

/// Who sends, and how much at once.
pub(crate) struct Sender<'a> {
    pub(crate) cluster_id: u64,
    pub(crate) description: &'a Arc<RegionDescription>,
    pub(crate) me: Peer,
    pub(crate) max_message_bytes: usize,
    /// Those that the description does not hold.
    pub(crate) book: &'a PeerBook,
    /// A leader's view of the others.
    pub(crate) progress: Option<&'a ProgressTracker>,
}

impl Sender<'_> {
    /// Addresses messages. Those to peers of whom nobody knows where they are are dropped.
    pub(crate) fn address(&self, messages: Vec<Message>) -> Vec<Box<Envelope>> {
        let mut envelopes = Vec::with_capacity(messages.len());
        for message in messages {
            let id = PeerId::new(message.to);
            let known = self.description.peer(id).copied().or_else(|| self.book.stranger(id));
            let Some(to) = known else { continue };
            match message.entries.len() <= 1 || self.fits(&message.entries) {
                true => envelopes.push(self.envelope(to, message)),
                false => self.cut(message, |piece| envelopes.push(self.envelope(to, piece))),
            }
        }
        envelopes
    }

    /// An envelope that says nothing but what the region is, and index and term of the last entry that is known to
    /// be committed.
    pub(crate) fn notice(&self, to: Peer, (commit, commit_term): (u64, u64)) -> Box<Envelope> {
        let message = Message { commit, commit_term, ..Message::default() };
        let mut envelope = self.envelope(to, message);
        envelope.description = Some(self.description.clone());
        envelope
    }

    /// An envelope that asks what the region is.
    pub(crate) fn inquiry(&self, to: Peer) -> Box<Envelope> {
        self.envelope(to, Message::default())
    }

    /// Whether the receiver may not have the region yet, or not as it is.
    fn must_describe(&self, message: &Message) -> bool {
        match message.get_msg_type() {
            MessageType::MsgRequestVote | MessageType::MsgRequestPreVote => true,
            MessageType::MsgAppend | MessageType::MsgHeartbeat | MessageType::MsgSnapshot => {
                let progress = self.progress.and_then(|all| all.get(message.to));
                progress.is_some_and(|progress| progress.matched == 0)
            }
            _ => false,
        }
    }

    fn envelope(&self, to: Peer, message: Message) -> Box<Envelope> {
        let description = self.must_describe(&message).then(|| self.description.clone());
        Box::new(Envelope {
            cluster_id: self.cluster_id,
            region_id: self.description.id,
            from: self.me,
            to,
            epoch: self.description.epoch,
            message,
            description,
        })
    }

    fn cut(&self, mut message: Message, mut push: impl FnMut(Message)) {
        let entries = message.take_entries().into_vec();
        let mut piece: Vec<Entry> = Vec::new();
        let mut bytes = 0;
        for entry in entries {
            let size = entry.compute_size() as usize;
            if !piece.is_empty() && bytes + size > self.max_message_bytes {
                let last = &piece[piece.len() - 1];
                let (index, log_term) = (last.index, last.term);
                let mut full = message.clone();
                full.set_entries(std::mem::take(&mut piece).into());
                push(full);
                (message.index, message.log_term) = (index, log_term);
                bytes = 0;
            }
            bytes += size;
            piece.push(entry);
        }
        message.set_entries(piece.into());
        push(message);
    }

    fn fits(&self, entries: &[Entry]) -> bool {
        let bytes: usize = entries.iter().map(|entry| entry.compute_size() as usize).sum();
        bytes <= self.max_message_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::description::tests::description;

    #[test]
    fn a_merged_append_is_cut_into_pieces_that_follow_each_other() {
        let (described, book) = (Arc::new(description(1, 2)), PeerBook::default());
        let sender = Sender {
            cluster_id: 1,
            description: &described,
            me: described.peers[0],
            max_message_bytes: 300,
            book: &book,
            progress: None,
        };
        let entries: Vec<_> = (6..20)
            .map(|index| Entry {
                index,
                term: 6 + index / 10,
                data: vec![0; if index == 9 { 500 } else { 90 }].into(),
                ..Entry::default()
            })
            .collect();
        let message = Message {
            msg_type: MessageType::MsgAppend,
            to: 2,
            index: 5,
            log_term: 5,
            commit: 19,
            entries: entries.clone().into(),
            ..Message::default()
        };
        let envelopes = sender.address(vec![message]);
        assert!(envelopes.len() > 4);
        let (mut index, mut log_term) = (5, 5);
        let mut sent = Vec::new();
        for envelope in envelopes {
            let message = envelope.message;
            assert_eq!((message.index, message.log_term, message.commit), (index, log_term, 19));
            assert!(message.entries.len() == 1 || sender.fits(&message.entries));
            let last = message.entries.last().unwrap();
            (index, log_term) = (last.index, last.term);
            sent.extend(message.entries.into_vec());
        }
        assert!(sent.iter().zip(&entries).all(|(a, b)| a.index == b.index && a.data == b.data));
        assert_eq!(sent.len(), entries.len());
    }

    #[test]
    fn a_message_to_an_unknown_peer_is_dropped() {
        let (described, mut book) = (Arc::new(description(1, 2)), PeerBook::default());
        let to_three = || vec![Message { to: 3, ..Message::default() }];
        let addressed = |book: &PeerBook| {
            let sender = Sender {
                cluster_id: 1,
                description: &described,
                me: described.peers[0],
                max_message_bytes: 300,
                book,
                progress: None,
            };
            sender.address(to_three()).len()
        };
        assert_eq!(addressed(&book), 0);
        book.meet(Peer::voter(PeerId::new(3), crate::ids::StoreId::new(9)));
        assert_eq!(addressed(&book), 1);
    }
}
