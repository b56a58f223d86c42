//! What a region is: its key range, its epoch, its peers; and the small records about it that go to
//! disk.
//!
//! | record | kept by | written when |
//! |---|---|---|
//! | [`RegionRecord`] | the log store | the peer is created; again as tombstone when it is destroyed |
//! | [`TruncatedState`] | the log store | the log's head is cut off |
//! | [`AppliedState`] | the state machine | with every batch of commands, atomically |
//! | [`StoreIdent`] | the log store | once in the life of a store |
//!
//! Everything read back is validated; a [`DecodeError`] names the record and the field.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::ids::{Index, PeerId, RegionId, StoreId, Term};
use crate::key_text;
use crate::proto;

/// Index at which the log of a new region starts: everything up to and including it counts as
/// truncated. It is not 0, so that a peer which joins later, and starts at 0, is behind the
/// truncated log and can be initialised in one way only: by a snapshot.
pub const INITIAL_INDEX: Index = Index::new(5);

/// Term of the (never written) entry at [`INITIAL_INDEX`].
pub const INITIAL_TERM: Term = Term::new(5);

/// Most peers a description may name. Far above any sensible replication, it only keeps nonsense
/// from the disk or the wire small.
pub const MAX_PEERS: usize = 64;

/// Version of a description. `conf_ver` moves with every change of the peers, `version` with every
/// change of the key range; both only grow.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default, Serialize, Deserialize)]
pub struct RegionEpoch {
    /// Version of the set of peers, from 1.
    pub conf_ver: u64,
    /// Version of the key range, from 1.
    pub version: u64,
}

/// Whether a peer counts in the quorum.
///
/// While several voters change at once, the region needs a majority of the voters that were and one of
/// those that will be (joint consensus). The last three roles exist only then.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PeerRole {
    /// Votes, and counts.
    Voter,
    /// Receives the log only.
    Learner,
    /// Counts among the voters that will be.
    IncomingVoter,
    /// Counts among the voters that were, and becomes a learner.
    DemotingVoter,
    /// Counts among the voters that were, and leaves.
    LeavingVoter,
}

impl PeerRole {
    /// Whether it counts in a quorum, now.
    pub const fn is_voter(self) -> bool {
        !matches!(self, PeerRole::Learner)
    }

    /// Whether it will count once no change is under way any more.
    pub const fn stays_voter(self) -> bool {
        matches!(self, PeerRole::Voter | PeerRole::IncomingVoter)
    }
}

/// One store's replica of a region.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Serialize, Deserialize)]
pub struct Peer {
    /// Unique in the cluster, never reused.
    pub id: PeerId,
    /// The store it lives on.
    pub store: StoreId,
    /// Whether it votes.
    pub role: PeerRole,
}

/// A region, described: which keys, which peers, as of which epoch.
///
/// Invariant: at least one voter; ids are not 0; no two peers share an id or a store; the range is
/// not empty. [`validate`](Self::validate) checks it, and every description that is decoded or
/// given to a region has passed it. What comes through serde is for people to look at, and has not.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RegionDescription {
    /// The region.
    pub id: RegionId,
    /// First key of the range.
    #[serde(with = "key_text")]
    pub start_key: Bytes,
    /// First key after the range; empty means that the range has no end.
    #[serde(with = "key_text")]
    pub end_key: Bytes,
    /// Version of this description.
    pub epoch: RegionEpoch,
    /// The peers, in the order of the description's author.
    pub peers: Vec<Peer>,
    /// Whether a change of several peers is under way.
    pub joint: bool,
}

/// What is wrong with bytes that should be one of our records.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DecodeError {
    /// The bytes are not a message of that kind.
    #[error("{record}: not decodable: {cause}")]
    Malformed {
        /// Name of the record.
        record: &'static str,
        /// What the decoder said.
        cause: String,
    },
    /// A field is missing or holds a value that it must not hold.
    #[error("{record}: field {field} is {value}, {rule}")]
    Field {
        /// Name of the record.
        record: &'static str,
        /// Name of the field.
        field: &'static str,
        /// Its value, printed.
        value: String,
        /// What is allowed instead.
        rule: &'static str,
    },
}

impl DecodeError {
    pub(crate) fn malformed(record: &'static str, cause: impl ToString) -> Self {
        DecodeError::Malformed { record, cause: cause.to_string() }
    }

    pub(crate) fn field(
        record: &'static str,
        field: &'static str,
        value: impl ToString,
        rule: &'static str,
    ) -> Self {
        DecodeError::Field { record, field, value: value.to_string(), rule }
    }
}

pub(crate) fn parse<M: protobuf::Message>(
    record: &'static str,
    bytes: &[u8],
) -> Result<M, DecodeError> {
    // Copied once, so that the keys inside become slices of one buffer instead of one buffer each.
    M::parse_from_carllerche_bytes(&Bytes::copy_from_slice(bytes))
        .map_err(|error| DecodeError::malformed(record, error))
}

pub(crate) fn write(message: &impl protobuf::Message) -> Vec<u8> {
    message.write_to_bytes().expect("writing a proto3 message to memory cannot fail")
}

impl RegionEpoch {
    pub(crate) fn to_proto(self) -> proto::RegionEpoch {
        proto::RegionEpoch { conf_ver: self.conf_ver, version: self.version, ..Default::default() }
    }

    pub(crate) fn from_proto(message: &proto::RegionEpoch) -> Self {
        Self { conf_ver: message.conf_ver, version: message.version }
    }
}

impl Peer {
    /// A voter.
    pub const fn voter(id: PeerId, store: StoreId) -> Self {
        Self { id, store, role: PeerRole::Voter }
    }

    /// A learner.
    pub const fn learner(id: PeerId, store: StoreId) -> Self {
        Self { id, store, role: PeerRole::Learner }
    }

    pub(crate) fn to_proto(self) -> proto::Peer {
        proto::Peer {
            id: self.id.get(),
            store_id: self.store.get(),
            role: match self.role {
                PeerRole::Voter => proto::PeerRole::Voter,
                PeerRole::Learner => proto::PeerRole::Learner,
                PeerRole::IncomingVoter => proto::PeerRole::IncomingVoter,
                PeerRole::DemotingVoter => proto::PeerRole::DemotingVoter,
                PeerRole::LeavingVoter => proto::PeerRole::LeavingVoter,
            },
            ..Default::default()
        }
    }

    pub(crate) fn from_proto(message: &proto::Peer) -> Self {
        Self {
            id: PeerId::new(message.id),
            store: StoreId::new(message.store_id),
            role: match message.role {
                proto::PeerRole::Voter => PeerRole::Voter,
                proto::PeerRole::Learner => PeerRole::Learner,
                proto::PeerRole::IncomingVoter => PeerRole::IncomingVoter,
                proto::PeerRole::DemotingVoter => PeerRole::DemotingVoter,
                proto::PeerRole::LeavingVoter => PeerRole::LeavingVoter,
            },
        }
    }
}

impl RegionDescription {
    const RECORD: &'static str = "region description";

    /// Checks the invariant of the type.
    ///
    /// # Errors
    /// Names the first field that breaks it.
    pub fn validate(&self) -> Result<(), DecodeError> {
        let refuse =
            |field, value: String, rule| Err(DecodeError::field(Self::RECORD, field, value, rule));
        if self.id.get() == 0 {
            return refuse("id", "0".into(), "must not be 0");
        }
        if self.epoch.conf_ver == 0 || self.epoch.version == 0 {
            return refuse("epoch", format!("{:?}", self.epoch), "both versions start at 1");
        }
        if !self.end_key.is_empty() && self.start_key >= self.end_key {
            let range = format!("[{:?}, {:?})", self.start_key, self.end_key);
            return refuse("end_key", range, "the range must not be empty");
        }
        if self.peers.len() > MAX_PEERS {
            return refuse("peers", self.peers.len().to_string(), "at most 64 are allowed");
        }
        let mut ids = HashSet::new();
        let mut stores = HashSet::new();
        for peer in &self.peers {
            if peer.id.get() == 0 || peer.store.get() == 0 {
                return refuse("peers", format!("{peer:?}"), "ids must not be 0");
            }
            if !ids.insert(peer.id) || !stores.insert(peer.store) {
                return refuse("peers", format!("{peer:?}"), "ids and stores must be distinct");
            }
        }
        if !self.peers.iter().any(|peer| peer.role.stays_voter()) {
            return refuse("peers", format!("{:?}", self.peers), "one voter is needed at least");
        }
        let changing = |peer: &&Peer| !matches!(peer.role, PeerRole::Voter | PeerRole::Learner);
        if let Some(peer) = self.peers.iter().find(changing).filter(|_| !self.joint) {
            return refuse("peers", format!("{peer:?}"), "no change of peers is under way");
        }
        let was_voter = |peer: &Peer| peer.role.is_voter() && peer.role != PeerRole::IncomingVoter;
        if self.joint && !self.peers.iter().any(was_voter) {
            return refuse("peers", format!("{:?}", self.peers), "one voter must have been there");
        }
        Ok(())
    }

    /// Of a peer that was told of the region, and has nothing of it yet: no peers, version 0. With
    /// `conf_ver` it was among the peers; so who knows less is not to be believed about it.
    pub fn uninitialised(id: RegionId, conf_ver: u64) -> Self {
        Self {
            id,
            start_key: Bytes::new(),
            end_key: Bytes::new(),
            epoch: RegionEpoch { conf_ver, version: 0 },
            peers: Vec::new(),
            joint: false,
        }
    }

    /// Whether the peers and the range are known.
    pub fn is_initialised(&self) -> bool {
        !self.peers.is_empty()
    }

    /// The peer that lives on `store`.
    pub fn peer_on(&self, store: StoreId) -> Option<&Peer> {
        self.peers.iter().find(|peer| peer.store == store)
    }

    /// The peer with this id.
    pub fn peer(&self, id: PeerId) -> Option<&Peer> {
        self.peers.iter().find(|peer| peer.id == id)
    }

    /// Whether `key` lies in the region's range.
    pub fn contains(&self, key: &[u8]) -> bool {
        key >= self.start_key.as_ref() && (self.end_key.is_empty() || key < self.end_key.as_ref())
    }

    pub(crate) fn to_proto(&self) -> proto::RegionDescription {
        let mut message = proto::RegionDescription {
            id: self.id.get(),
            start_key: self.start_key.clone(),
            end_key: self.end_key.clone(),
            ..Default::default()
        };
        message.joint = self.joint;
        message.set_epoch(self.epoch.to_proto());
        message.set_peers(self.peers.iter().map(|peer| peer.to_proto()).collect());
        message
    }

    pub(crate) fn from_proto(message: &proto::RegionDescription) -> Result<Self, DecodeError> {
        let description = Self {
            id: RegionId::new(message.id),
            start_key: message.start_key.clone(),
            end_key: message.end_key.clone(),
            epoch: RegionEpoch::from_proto(message.get_epoch()),
            peers: message.get_peers().iter().map(Peer::from_proto).collect(),
            joint: message.joint,
        };
        description.validate()?;
        Ok(description)
    }

    /// The bytes of this description.
    pub fn encode(&self) -> Vec<u8> {
        write(&self.to_proto())
    }

    /// Reads a description back.
    ///
    /// # Errors
    /// If the bytes are no description or break its invariant.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        Self::from_proto(&parse(Self::RECORD, bytes)?)
    }
}

/// The bytes of several descriptions, for an answer.
pub(crate) fn encode_regions(regions: &[RegionDescription]) -> Bytes {
    let regions = regions.iter().map(|region| region.to_proto()).collect();
    write(&proto::RegionList { regions, ..Default::default() }).into()
}

/// Reads several descriptions back.
pub(crate) fn decode_regions(bytes: &[u8]) -> Result<Vec<RegionDescription>, DecodeError> {
    let message: proto::RegionList = parse("region list", bytes)?;
    message.regions.iter().map(RegionDescription::from_proto).collect()
}

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
    pub description: RegionDescription,
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
    pub fn new(description: RegionDescription, peer_id: PeerId) -> Self {
        Self {
            description,
            peer_id,
            tombstone: false,
            origin: None,
            installing: None,
            left_at: None,
        }
    }

    /// Of a peer that may never return.
    pub fn tombstone(removal: &Removal, peer_id: PeerId) -> Self {
        let description = (*removal.description).clone();
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
pub(crate) mod tests {
    use super::*;

    /// A region over all keys with voters 1, 2, 3 … on stores 1, 2, 3 …
    pub(crate) fn description(id: u64, voters: u64) -> RegionDescription {
        RegionDescription {
            id: RegionId::new(id),
            start_key: Bytes::new(),
            end_key: Bytes::new(),
            epoch: RegionEpoch { conf_ver: 1, version: 1 },
            peers: (1..=voters).map(|n| Peer::voter(PeerId::new(n), StoreId::new(n))).collect(),
            joint: false,
        }
    }

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
    fn unsound_descriptions_are_refused_by_name() {
        type Spoil = fn(&mut RegionDescription);
        let spoils: [(&str, Spoil); 10] = [
            ("peers", |d| d.peers[1].role = PeerRole::DemotingVoter),
            ("peers", |d| {
                d.joint = true;
                d.peers.iter_mut().for_each(|p| p.role = PeerRole::IncomingVoter);
            }),
            ("id", |d| d.id = RegionId::new(0)),
            ("epoch", |d| d.epoch.version = 0),
            ("end_key", |d| {
                d.start_key = Bytes::from_static(b"b");
                d.end_key = Bytes::from_static(b"b");
            }),
            ("peers", |d| d.peers.clear()),
            ("peers", |d| d.peers[1].id = d.peers[0].id),
            ("peers", |d| d.peers[1].store = d.peers[0].store),
            ("peers", |d| d.peers[0].store = StoreId::new(0)),
            ("peers", |d| d.peers.iter_mut().for_each(|p| p.role = PeerRole::Learner)),
        ];
        for (expected, spoil) in spoils {
            let mut described = description(1, 3);
            assert!(described.validate().is_ok());
            spoil(&mut described);
            match RegionDescription::decode(&described.encode()) {
                Err(DecodeError::Field { field, .. }) => assert_eq!(field, expected),
                other => panic!("{described:?} gave {other:?}"),
            }
        }
    }

    #[test]
    fn a_live_record_must_name_one_of_its_peers() {
        let mut record = RegionRecord::new(description(1, 3), PeerId::new(9));
        assert!(RegionRecord::decode(&record.encode()).is_err());
        record.tombstone = true;
        assert!(RegionRecord::decode(&record.encode()).is_ok());
    }

    #[test]
    fn an_empty_end_key_means_no_end() {
        let mut described = description(1, 1);
        assert!(described.contains(b"") && described.contains(b"\xff\xff"));
        described.start_key = Bytes::from_static(b"b");
        described.end_key = Bytes::from_static(b"d");
        assert!(!described.contains(b"a") && described.contains(b"b"));
        assert!(described.contains(b"cz") && !described.contains(b"d"));
    }
}
