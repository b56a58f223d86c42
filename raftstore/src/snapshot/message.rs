//! What stores say to each other about snapshots.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use region::{DecodeError, Envelope, Index, PeerId, RegionId, StoreId, Term};

/// Which snapshot, of which attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SnapshotId {
    /// The region.
    pub region: RegionId,
    /// The peer that it is for.
    pub peer: PeerId,
    /// Up to where.
    pub index: Index,
    /// Term of that entry.
    pub term: Term,
    /// The sender's number of the attempt.
    pub attempt: u64,
}

/// The name of the snapshot that a peer has taken.
pub(crate) fn staged_name(region: RegionId, peer: PeerId, index: Index, term: Term) -> String {
    format!("region-{region}-peer-{peer}-{index}-{term}.snap")
}

/// The name of a snapshot that is being received, or waits to be taken. No other reception of this life of the
/// store has it, so that one which comes twice does not cost the other its file.
pub(crate) fn reception_name(id: &SnapshotId, reception: u64) -> String {
    let staged = staged_name(id.region, id.peer, id.index, id.term);
    format!("{staged}.{reception}")
}

/// What the name of a snapshot says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StagedName {
    pub(crate) region: RegionId,
    pub(crate) peer: PeerId,
    pub(crate) index: Index,
    /// Whether its peer has taken it; otherwise it belongs to a reception.
    pub(crate) taken: bool,
}

impl StagedName {
    /// `None` if it is no name that a store gives.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        let (region, rest) = name.strip_prefix("region-")?.split_once("-peer-")?;
        let (peer, rest) = rest.split_once('-')?;
        let (index, rest) = rest.split_once('-')?;
        let (term, rest) = rest.split_once(".snap")?;
        let number = |text: &str| text.parse::<u64>().ok();
        number(term)?;
        if !rest.is_empty() {
            number(rest.strip_prefix('.')?)?;
        }
        Some(Self {
            region: RegionId::new(number(region)?),
            peer: PeerId::new(number(peer)?),
            index: Index::new(number(index)?),
            taken: rest.is_empty(),
        })
    }
}

/// One message about a snapshot. See the crate's [`Transport`](crate::Transport).
#[derive(Clone, Debug, PartialEq)]
pub struct SnapshotMessage {
    /// The cluster; messages of another one are dropped.
    pub cluster_id: u64,
    /// Who sends it.
    pub from: StoreId,
    /// Who it is for.
    pub to: StoreId,
    /// What it is about.
    pub id: SnapshotId,
    /// What it says.
    pub body: SnapshotBody,
}

/// What a message about a snapshot says.
#[derive(Clone, Debug, PartialEq)]
pub enum SnapshotBody {
    /// Sender: there is one. Holds raft-rs's message, to be stepped when all chunks are there.
    Offer(Box<Envelope>),
    /// Receiver: go on with this chunk; all before it are there.
    Wants(u64),
    /// Sender: a chunk.
    Chunk {
        /// Its number, from 0.
        number: u64,
        /// Whether it is the last one.
        last: bool,
        /// CRC-32 of the bytes.
        checksum: u32,
        /// The bytes.
        bytes: Bytes,
    },
    /// Receiver: it is complete and durable.
    Arrived,
    /// Receiver: not now; raft-rs will ask again.
    Refused,
    /// Sender: it is given up.
    Cancelled,
}

impl SnapshotMessage {
    const RECORD: &'static str = "snapshot message";

    /// The bytes of this message, for transports between processes.
    pub fn encode(&self) -> Bytes {
        let mut bytes = BytesMut::new();
        let SnapshotId { region, peer, index, term, attempt } = self.id;
        let numbers = [
            self.cluster_id,
            self.from.get(),
            self.to.get(),
            region.get(),
            peer.get(),
            index.get(),
            term.get(),
            attempt,
        ];
        numbers.into_iter().for_each(|number| bytes.put_u64_le(number));
        match &self.body {
            SnapshotBody::Offer(envelope) => {
                bytes.put_u8(0);
                bytes.put_slice(&envelope.encode());
            }
            SnapshotBody::Wants(number) => {
                bytes.put_u8(1);
                bytes.put_u64_le(*number);
            }
            SnapshotBody::Chunk { number, last, checksum, bytes: chunk } => {
                bytes.put_u8(2);
                bytes.put_u64_le(*number);
                bytes.put_u8(u8::from(*last));
                bytes.put_u32_le(*checksum);
                bytes.put_slice(chunk);
            }
            SnapshotBody::Arrived => bytes.put_u8(3),
            SnapshotBody::Refused => bytes.put_u8(4),
            SnapshotBody::Cancelled => bytes.put_u8(5),
        }
        bytes.freeze()
    }

    /// Reads a message.
    ///
    /// # Errors
    /// If the bytes are none.
    pub fn decode(bytes: &Bytes) -> Result<Self, DecodeError> {
        let malformed =
            |cause: &str| DecodeError::Malformed { record: Self::RECORD, cause: cause.to_owned() };
        let mut rest = bytes.clone();
        if rest.len() < 8 * 8 + 1 {
            return Err(malformed("shorter than its head"));
        }
        let cluster_id = rest.get_u64_le();
        let (from, to) = (StoreId::new(rest.get_u64_le()), StoreId::new(rest.get_u64_le()));
        let id = SnapshotId {
            region: RegionId::new(rest.get_u64_le()),
            peer: PeerId::new(rest.get_u64_le()),
            index: Index::new(rest.get_u64_le()),
            term: Term::new(rest.get_u64_le()),
            attempt: rest.get_u64_le(),
        };
        let body = match (rest.get_u8(), rest.len()) {
            (0, _) => SnapshotBody::Offer(Box::new(Envelope::decode(&rest)?)),
            (1, 8) => SnapshotBody::Wants(rest.get_u64_le()),
            (2, 13..) => {
                let (number, last) = (rest.get_u64_le(), rest.get_u8() != 0);
                SnapshotBody::Chunk { number, last, checksum: rest.get_u32_le(), bytes: rest }
            }
            (3, 0) => SnapshotBody::Arrived,
            (4, 0) => SnapshotBody::Refused,
            (5, 0) => SnapshotBody::Cancelled,
            _ => return Err(malformed("of an unknown kind or a wrong length")),
        };
        Ok(Self { cluster_id, from, to, id, body })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_from_those_of_others() {
        let (region, peer, index) = (RegionId::new(1), PeerId::new(2), Index::new(3));
        let id = SnapshotId { region, peer, index, term: Term::new(4), attempt: 5 };
        let said = |taken| Some(StagedName { region, peer, index, taken });
        let taken = staged_name(region, peer, index, id.term);
        assert_eq!(
            (taken.as_str(), StagedName::parse(&taken)),
            ("region-1-peer-2-3-4.snap", said(true))
        );
        assert_eq!(StagedName::parse(&reception_name(&id, 7)), said(false));
        for other in ["", "region-1.snap", "region-1-peer-2-3.snap", "region-1-peer-x-3-4.snap"] {
            assert_eq!(StagedName::parse(other), None, "{other}");
        }
        for end in ["", ".", "7", ".x", ".7.8", ".bak"] {
            let other = format!("{taken}{end}");
            assert_eq!(StagedName::parse(&other).is_some(), end.is_empty(), "{other}");
        }
    }

    #[test]
    fn messages_survive_encoding_and_cut_ones_are_refused() {
        let id = SnapshotId {
            region: RegionId::new(1),
            peer: PeerId::new(2),
            index: Index::new(3),
            term: Term::new(4),
            attempt: 5,
        };
        let bodies = [
            SnapshotBody::Wants(7),
            SnapshotBody::Chunk { number: 1, last: true, checksum: 9, bytes: "abc".into() },
            SnapshotBody::Arrived,
            SnapshotBody::Refused,
            SnapshotBody::Cancelled,
        ];
        for body in bodies {
            let (from, to) = (StoreId::new(1), StoreId::new(2));
            let message = SnapshotMessage { cluster_id: 3, from, to, id, body };
            let bytes = message.encode();
            assert_eq!(SnapshotMessage::decode(&bytes), Ok(message));
            assert!(SnapshotMessage::decode(&bytes.slice(..60)).is_err());
        }
        let mut unknown = BytesMut::zeroed(64);
        unknown.put_u8(9);
        assert!(SnapshotMessage::decode(&unknown.freeze()).is_err());
    }
}
