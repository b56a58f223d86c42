//! A Raft message with the address on it.
//!
//! `eraftpb.Message` knows peer ids only. The envelope adds what the receiving store needs to find
//! the region, and what the region needs to tell a stranger from a peer. An envelope that was
//! decoded is well-formed; whether it is *true* is checked by the [guard](crate::Rejection).

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use protobuf::Message as _;
use raft::eraftpb;

use crate::description::{DecodeError, Peer, RegionDescription, RegionEpoch};
use crate::ids::RegionId;
use crate::proto;

const RECORD: &str = "envelope";

/// Tag of the field `message` (number 6, length-delimited).
const MESSAGE_TAG: u8 = 6 << 3 | 2;

/// One Raft message between two peers of a region. Passed around as `Box<Envelope>`.
#[derive(Clone, PartialEq, Debug)]
pub struct Envelope {
    /// Cluster of the sender.
    pub cluster_id: u64,
    /// The region.
    pub region_id: RegionId,
    /// The sender.
    pub from: Peer,
    /// The receiver.
    pub to: Peer,
    /// Epoch of the sender.
    pub epoch: RegionEpoch,
    /// What raft-rs has to say. A message without a sender says nothing: then the envelope tells what the
    /// region is, by its description; or without one, it asks.
    pub message: eraftpb::Message,
    /// The sender's region, where the receiver may not know it yet, or know less of it.
    pub description: Option<Arc<RegionDescription>>,
}

/// Most bytes that Raft's contexts may have: those of reads, and the word that marks a campaign by request.
pub(crate) const MAX_CONTEXT_BYTES: usize = 32;

impl Envelope {
    /// The bytes of this envelope: one buffer, each payload copied once.
    pub fn encode(&self) -> Bytes {
        let mut header = proto::Envelope {
            cluster_id: self.cluster_id,
            region_id: self.region_id.get(),
            ..Default::default()
        };
        header.set_from(self.from.to_proto());
        header.set_to(self.to.to_proto());
        header.set_epoch(self.epoch.to_proto());
        if let Some(description) = &self.description {
            header.set_description(description.to_proto());
        }

        let header_bytes = header.compute_size();
        let message_bytes = self.message.compute_size();
        let mut buffer = BytesMut::with_capacity((header_bytes + message_bytes) as usize + 6);
        let mut writer = (&mut buffer).writer();
        header.write_to_writer(&mut writer).expect("writing to memory cannot fail");
        // The field `message`, written in place: as a `bytes` field of the generated type it would
        // have to be encoded into a buffer of its own first.
        buffer.put_u8(MESSAGE_TAG);
        put_varint(message_bytes, &mut buffer);
        let mut writer = (&mut buffer).writer();
        self.message.write_to_writer(&mut writer).expect("writing to memory cannot fail");
        buffer.freeze()
    }

    /// Reads an envelope. Payloads of its entries become slices of `bytes`.
    ///
    /// # Errors
    /// If the bytes are no envelope. Missing numbers decode as 0, which the guard refuses.
    pub fn decode(bytes: &Bytes) -> Result<Self, DecodeError> {
        let header = proto::Envelope::parse_from_carllerche_bytes(bytes)
            .map_err(|error| DecodeError::malformed(RECORD, error))?;
        let message = eraftpb::Message::parse_from_carllerche_bytes(&header.message)
            .map_err(|error| DecodeError::malformed("envelope's message", error))?;
        Ok(Self {
            cluster_id: header.cluster_id,
            region_id: RegionId::new(header.region_id),
            from: Peer::from_proto(header.get_from()),
            to: Peer::from_proto(header.get_to()),
            epoch: RegionEpoch::from_proto(header.get_epoch()),
            message,
            description: match header.has_description() {
                true => Some(Arc::new(RegionDescription::from_proto(header.get_description())?)),
                false => None,
            },
        })
    }
}

fn put_varint(mut value: u32, buffer: &mut BytesMut) {
    while value >= 0x80 {
        buffer.put_u8(value as u8 | 0x80);
        value >>= 7;
    }
    buffer.put_u8(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{PeerId, StoreId};

    fn envelope(payload: usize) -> Envelope {
        let entry = eraftpb::Entry {
            index: 8,
            term: 6,
            data: Bytes::from(vec![7; payload]),
            ..Default::default()
        };
        let message = eraftpb::Message {
            msg_type: eraftpb::MessageType::MsgAppend,
            from: 1,
            to: 2,
            term: 6,
            entries: vec![entry].into(),
            ..Default::default()
        };
        Envelope {
            cluster_id: 77,
            region_id: RegionId::new(5),
            from: Peer::voter(PeerId::new(1), StoreId::new(11)),
            to: Peer::learner(PeerId::new(2), StoreId::new(12)),
            epoch: RegionEpoch { conf_ver: 3, version: 4 },
            message,
            description: Some(Arc::new(crate::description::tests::description(5, 2))),
        }
    }

    #[test]
    fn envelopes_survive_a_round_trip_and_payloads_are_slices() {
        for payload in [0, 1, 127, 128, 20_000] {
            let sent = envelope(payload);
            let bytes = sent.encode();
            let received = Envelope::decode(&bytes).unwrap();
            let data = &received.message.entries[0].data;
            assert!(payload == 0 || bytes.as_ptr_range().contains(&data.as_ptr()));
            received.message.compute_size();
            sent.message.compute_size();
            assert_eq!(received, sent);
        }
    }

    #[test]
    fn groups_within_groups_are_refused_before_they_fill_the_stack() {
        // RUSTSEC-2024-0437. Groups of the unknown field 100, each within the one before.
        let nested = |depth: usize| {
            let (open, close) = ([0xa3, 0x06], [0xa4, 0x06]);
            [open.repeat(depth), close.repeat(depth)].concat()
        };
        for depth in [2, 200, 1 << 20] {
            let bytes = nested(depth);
            assert!(Envelope::decode(&Bytes::from(bytes.clone())).is_err(), "{depth}");
            // In the message, and in an entry of it.
            let mut header =
                proto::Envelope { message: bytes.clone().into(), ..Default::default() };
            let written = Bytes::from(header.write_to_bytes().unwrap());
            assert!(Envelope::decode(&written).is_err(), "{depth}");
            let mut entries = vec![7 << 3 | 2];
            let mut buffer = BytesMut::new();
            put_varint(bytes.len() as u32, &mut buffer);
            entries.extend_from_slice(&buffer);
            entries.extend_from_slice(&bytes);
            header.message = entries.into();
            let written = Bytes::from(header.write_to_bytes().unwrap());
            assert!(Envelope::decode(&written).is_err(), "{depth}");
        }
        // One alone is skipped, as it should be.
        let within = envelope(0);
        within.message.compute_size();
        let mut bytes = within.encode().to_vec();
        bytes.extend(nested(1));
        let again = Envelope::decode(&Bytes::from(bytes)).unwrap();
        again.message.compute_size();
        assert_eq!(again, within);
    }

    #[test]
    fn cut_envelopes_are_errors() {
        let bytes = envelope(40).encode();
        for cut in 1..bytes.len() {
            // A cut between two fields leaves a shorter, well-formed envelope.
            if let Ok(shorter) = Envelope::decode(&bytes.slice(..cut)) {
                assert_ne!(shorter, envelope(40));
            }
        }
    }
}
