//! The small records about a region that go to disk, beside its description.
//!
//! | record | kept by | written when |
//! |---|---|---|
//! | [`RegionRecord`] | the log store | the peer is created; again as tombstone when it is destroyed |
//! | [`TruncatedState`] | the log store | the log's head is cut off |
//! | [`AppliedState`] | the state machine | with every batch of commands, atomically |
//! | [`StoreIdent`] | the log store | once in the life of a store |
//!
//! Everything read back is validated; a [`DecodeError`] names the record and the field.

use std::sync::Arc;

use crate::description::{
    parse, write, DecodeError, RegionDescription, INITIAL_INDEX, INITIAL_TERM,
};
use crate::ids::{Index, PeerId, RegionId, StoreId, Term};
use crate::proto;

/// How far the state machine is, and the description as of there. The state machine stores these
/// bytes in one atomic batch with the effects of the commands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AppliedState {
    /// Last applied entry.
    pub index: Index,
    /// Its term.
    pub term: Term,
    /// The description after that entry. Shared, so that a state machine may keep it.
    pub description: Arc<RegionDescription>,
}

impl AppliedState {
    const RECORD: &'static str = "applied state";

    /// The bytes of this state.
    pub fn encode(&self) -> Vec<u8> {
        let mut message = proto::AppliedState {
            index: self.index.get(),
            term: self.term.get(),
            ..Default::default()
        };
        message.set_description(self.description.to_proto());
        write(&message)
    }

    /// Reads a state back.
    ///
    /// # Errors
    /// If the bytes are none, or its index or term lie before the first one of a region.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let message: proto::AppliedState = parse(Self::RECORD, bytes)?;
        check_position(Self::RECORD, message.index, message.term)?;
        Ok(Self {
            index: Index::new(message.index),
            term: Term::new(message.term),
            description: Arc::new(RegionDescription::from_proto(message.get_description())?),
        })
    }
}

/// What the log store keeps about a peer of this store from its creation on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RegionRecord {
    /// The description at the time of the record; the [`AppliedState`]'s is newer.
    pub description: Arc<RegionDescription>,
    /// Which of the peers is ours. Of a tombstone: the id that may not return.
    pub peer_id: PeerId,
    /// The peer is destroyed: this id, and every smaller one, may never return.
    pub tombstone: bool,
    /// The split with which the region began here, if it did. As long as the state machine knows nothing
    /// of the region, its contents are still the parent's.
    pub origin: Option<Origin>,
    /// The last snapshot that replaced the log. Where the state machine has not got as far, the contents
    /// lie complete in a file.
    pub installing: Option<TruncatedState>,
    /// Of a tombstone: an entry that is committed, the one by which the peer left or a later one. Those who
    /// do not know yet that it is may have nobody else to ask.
    pub left_at: Option<TruncatedState>,
}

/// A peer's leave of its region.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Removal {
    /// The region without the peer.
    pub description: Arc<RegionDescription>,
    /// An entry that is committed, the one by which the peer left or a later one, if it is known.
    pub left_at: Option<TruncatedState>,
}

/// The split with which a region began.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Origin {
    /// The region that was split.
    pub parent: RegionId,
    /// The split's entry in its log.
    pub index: Index,
}

impl RegionRecord {
    const RECORD: &'static str = "region record";

    /// Of a peer that is here.
    pub fn new(description: impl Into<Arc<RegionDescription>>, peer_id: PeerId) -> Self {
        Self {
            description: description.into(),
            peer_id,
            tombstone: false,
            origin: None,
            installing: None,
            left_at: None,
        }
    }

    /// Of a peer that may never return.
    pub fn tombstone(removal: &Removal, peer_id: PeerId) -> Self {
        let description = removal.description.clone();
        Self { tombstone: true, left_at: removal.left_at, ..Self::new(description, peer_id) }
    }

    /// The bytes of this record.
    pub fn encode(&self) -> Vec<u8> {
        let mut message = proto::RegionRecord {
            peer_id: self.peer_id.get(),
            tombstone: self.tombstone,
            ..Default::default()
        };
        message.set_description(self.description.to_proto());
        if let Some(Origin { parent, index }) = self.origin {
            message.set_origin(proto::Origin {
                parent_id: parent.get(),
                index: index.get(),
                ..Default::default()
            });
        }
        if let Some(installing) = &self.installing {
            message.set_installing(installing.to_proto());
        }
        if let Some(left_at) = &self.left_at {
            message.set_left_at(left_at.to_proto());
        }
        write(&message)
    }

    /// Reads a record back.
    ///
    /// # Errors
    /// If the bytes are none, or a live record names a peer that its description lacks.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let message: proto::RegionRecord = parse(Self::RECORD, bytes)?;
        let described = message.get_description();
        let description = match described.peers.is_empty() && described.id != 0 {
            true => {
                let conf_ver = described.get_epoch().conf_ver;
                RegionDescription::uninitialised(RegionId::new(described.id), conf_ver)
            }
            false => RegionDescription::from_proto(described)?,
        };
        let peer_id = PeerId::new(message.peer_id);
        let known = description.peer(peer_id).is_some() || !description.is_initialised();
        if message.peer_id == 0 || (!message.tombstone && !known) {
            let rule = "must be one of the description's peers";
            return Err(DecodeError::field(Self::RECORD, "peer_id", peer_id, rule));
        }
        let origin = message.origin.as_ref().map(|origin| Origin {
            parent: RegionId::new(origin.parent_id),
            index: Index::new(origin.index),
        });
        let installing = message.installing.as_ref().map(TruncatedState::from_proto).transpose()?;
        let left_at = message.left_at.as_ref().map(TruncatedState::from_proto).transpose()?;
        let tombstone = message.tombstone;
        let description = Arc::new(description);
        Ok(Self { description, peer_id, tombstone, origin, installing, left_at })
    }
}

/// Where a log begins: the entry before its first. Entries up to here are gone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TruncatedState {
    /// Last removed entry.
    pub index: Index,
    /// Its term, which a follower's log is matched against.
    pub term: Term,
}

impl TruncatedState {
    const RECORD: &'static str = "truncated state";

    /// Of the log of a new region.
    pub const INITIAL: TruncatedState = TruncatedState { index: INITIAL_INDEX, term: INITIAL_TERM };

    /// Of a peer that has nothing of its region yet.
    pub const NOTHING: TruncatedState = TruncatedState { index: Index::new(0), term: Term::new(0) };

    fn to_proto(self) -> proto::TruncatedState {
        let (index, term) = (self.index.get(), self.term.get());
        proto::TruncatedState { index, term, ..Default::default() }
    }

    fn from_proto(message: &proto::TruncatedState) -> Result<Self, DecodeError> {
        check_position(Self::RECORD, message.index, message.term)?;
        Ok(Self { index: Index::new(message.index), term: Term::new(message.term) })
    }

    /// The bytes of this state.
    pub fn encode(&self) -> Vec<u8> {
        write(&self.to_proto())
    }

    /// Reads a state back.
    ///
    /// # Errors
    /// If the bytes are none, or its index or term lie before the first one of a region.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        Self::from_proto(&parse(Self::RECORD, bytes)?)
    }
}

/// Who a store is, written once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StoreIdent {
    /// The cluster it belongs to.
    pub cluster_id: u64,
    /// Its id in that cluster.
    pub store_id: StoreId,
}

impl StoreIdent {
    const RECORD: &'static str = "store ident";

    /// The bytes of this ident.
    pub fn encode(&self) -> Vec<u8> {
        write(&proto::StoreIdent {
            cluster_id: self.cluster_id,
            store_id: self.store_id.get(),
            ..Default::default()
        })
    }

    /// Reads an ident back.
    ///
    /// # Errors
    /// If the bytes are none, or one of the ids is 0.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let message: proto::StoreIdent = parse(Self::RECORD, bytes)?;
        for (field, value) in [("cluster_id", message.cluster_id), ("store_id", message.store_id)] {
            if value == 0 {
                return Err(DecodeError::field(Self::RECORD, field, value, "must not be 0"));
            }
        }
        Ok(Self { cluster_id: message.cluster_id, store_id: StoreId::new(message.store_id) })
    }
}

fn check_position(record: &'static str, index: u64, term: u64) -> Result<(), DecodeError> {
    if index < INITIAL_INDEX.get() || index > u64::MAX / 2 {
        return Err(DecodeError::field(record, "index", index, "must be 5 to 2^63 - 1"));
    }
    if term < INITIAL_TERM.get() || term > u64::MAX / 2 {
        return Err(DecodeError::field(record, "term", term, "must be 5 to 2^63 - 1"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::description::tests::description;
    use crate::description::PeerRole;
    use bytes::Bytes;

    #[test]
    fn records_survive_a_round_trip() {
        let mut described = description(9, 3);
        described.start_key = Bytes::from_static(b"a");
        described.end_key = Bytes::from_static(b"b");
        described.peers[2].role = PeerRole::Learner;
        assert_eq!(RegionDescription::decode(&described.encode()).unwrap(), described);

        let applied = AppliedState {
            index: Index::new(77),
            term: Term::new(8),
            description: Arc::new(described.clone()),
        };
        assert_eq!(AppliedState::decode(&applied.encode()).unwrap(), applied);
        let mut record = RegionRecord::new(described, PeerId::new(2));
        assert_eq!(RegionRecord::decode(&record.encode()).unwrap(), record);
        record.left_at = Some(TruncatedState { index: Index::new(19), term: Term::new(7) });
        record.origin = Some(Origin { parent: RegionId::new(8), index: Index::new(44) });
        record.installing = Some(TruncatedState { index: Index::new(9), term: Term::new(7) });
        assert_eq!(RegionRecord::decode(&record.encode()).unwrap(), record);
        let nothing = RegionDescription::uninitialised(RegionId::new(9), 4);
        let record = RegionRecord::new(nothing, PeerId::new(2));
        assert_eq!(RegionRecord::decode(&record.encode()).unwrap(), record);
        let truncated = TruncatedState { index: Index::new(6), term: Term::new(6) };
        assert_eq!(TruncatedState::decode(&truncated.encode()).unwrap(), truncated);
        let ident = StoreIdent { cluster_id: 3, store_id: StoreId::new(4) };
        assert_eq!(StoreIdent::decode(&ident.encode()).unwrap(), ident);
    }

    #[test]
    fn a_live_record_must_name_one_of_its_peers() {
        let mut record = RegionRecord::new(description(1, 3), PeerId::new(9));
        assert!(RegionRecord::decode(&record.encode()).is_err());
        record.tombstone = true;
        assert!(RegionRecord::decode(&record.encode()).is_ok());
    }
}
