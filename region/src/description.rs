//! What a region is: its key range, its epoch, its peers.

use std::collections::HashSet;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::ids::{is_sound_id, Index, PeerId, RegionId, StoreId, Term};
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

/// What ids may be.
const IDS: &str = "allowed are 1 to 2^64 - 65537, and for stores from 1 on";

/// Longest key of a region's edge, and so of a split.
pub const MAX_KEY_BYTES: usize = u16::MAX as usize;

/// Highest version of either kind: more changes than any region lives to see, and far from where counting ends.
pub const MAX_VERSION: u64 = 1 << 48;

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
/// Invariant: at least one voter; ids are neither 0 nor, of the region and of peers, above [`MAX_ID`](crate::MAX_ID); no two peers
/// share an id or a store; none has an id above [`last_peer_id`](Self::last_peer_id); the range is not empty.
/// [`validate`](Self::validate) checks it, and every description that is decoded or given to a region has passed
/// it. What comes through serde is for people to look at, and has not.
#[derive(PartialEq, Eq, Debug, Serialize, Deserialize)]
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
    /// The highest id that a peer of the region has had so far. A new one gets a higher id, so that none
    /// returns, also not that of a peer which has left: its store would take the new one for the old.
    pub last_peer_id: PeerId,
}

/// A copy has keys of its own: shared ones would cost a count each, and there are millions of descriptions that
/// nobody copies ever again.
impl Clone for RegionDescription {
    fn clone(&self) -> Self {
        Self {
            start_key: Bytes::copy_from_slice(&self.start_key),
            end_key: Bytes::copy_from_slice(&self.end_key),
            peers: self.peers.clone(),
            ..*self
        }
    }
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

fn highest_id(peers: &[Peer]) -> PeerId {
    peers.iter().map(|peer| peer.id).max().unwrap_or_default()
}

impl RegionDescription {
    const RECORD: &'static str = "region description";

    /// A region as it is created: at the first epoch. An empty `end_key` means that its range has no end.
    ///
    /// Says nothing yet of whether it is sound; see [`validate`](Self::validate).
    pub fn new(
        id: RegionId,
        start_key: impl Into<Bytes>,
        end_key: impl Into<Bytes>,
        peers: impl IntoIterator<Item = Peer>,
    ) -> Self {
        let peers = Vec::from_iter(peers);
        Self {
            id,
            start_key: start_key.into(),
            end_key: end_key.into(),
            epoch: RegionEpoch { conf_ver: 1, version: 1 },
            joint: false,
            last_peer_id: highest_id(&peers),
            peers,
        }
    }

    /// Checks the invariant of the type.
    ///
    /// # Errors
    /// Names the first field that breaks it.
    pub fn validate(&self) -> Result<(), DecodeError> {
        let refuse =
            |field, value: String, rule| Err(DecodeError::field(Self::RECORD, field, value, rule));
        if !is_sound_id(self.id.get()) {
            return refuse("id", self.id.to_string(), IDS);
        }
        if self.epoch.conf_ver == 0 || self.epoch.version == 0 {
            return refuse("epoch", format!("{:?}", self.epoch), "both versions start at 1");
        }
        if self.epoch.conf_ver.max(self.epoch.version) > MAX_VERSION {
            return refuse("epoch", format!("{:?}", self.epoch), "versions end at 2^48");
        }
        for (field, key) in [("start_key", &self.start_key), ("end_key", &self.end_key)] {
            if key.len() > MAX_KEY_BYTES {
                return refuse(field, format!("{} bytes", key.len()), "at most 65535 are allowed");
            }
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
            if !is_sound_id(peer.id.get()) || peer.store.get() == 0 {
                return refuse("peers", format!("{peer:?}"), IDS);
            }
            if !ids.insert(peer.id) || !stores.insert(peer.store) {
                return refuse("peers", format!("{peer:?}"), "ids and stores must be distinct");
            }
        }
        if let Some(peer) = self.peers.iter().find(|peer| peer.id > self.last_peer_id) {
            let value = format!("{} with {peer:?}", self.last_peer_id);
            return refuse("last_peer_id", value, "no peer has a higher id");
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
            last_peer_id: PeerId::default(),
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
            start_key: Bytes::copy_from_slice(&self.start_key),
            end_key: Bytes::copy_from_slice(&self.end_key),
            ..Default::default()
        };
        message.joint = self.joint;
        message.last_peer_id = self.last_peer_id.get();
        message.set_epoch(self.epoch.to_proto());
        message.set_peers(self.peers.iter().map(|peer| peer.to_proto()).collect());
        message
    }

    pub(crate) fn from_proto(message: &proto::RegionDescription) -> Result<Self, DecodeError> {
        let peers: Vec<_> = message.get_peers().iter().map(Peer::from_proto).collect();
        let description = Self {
            id: RegionId::new(message.id),
            start_key: Bytes::copy_from_slice(&message.start_key),
            end_key: Bytes::copy_from_slice(&message.end_key),
            epoch: RegionEpoch::from_proto(message.get_epoch()),
            joint: message.joint,
            last_peer_id: PeerId::new(message.last_peer_id).max(highest_id(&peers)),
            peers,
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

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::ids::MAX_ID;

    /// A region over all keys with voters 1, 2, 3 … on stores 1, 2, 3 …
    pub(crate) fn description(id: u64, voters: u64) -> RegionDescription {
        RegionDescription::new(
            RegionId::new(id),
            Bytes::new(),
            Bytes::new(),
            (1..=voters).map(|n| Peer::voter(PeerId::new(n), StoreId::new(n))),
        )
    }

    #[test]
    fn unsound_descriptions_are_refused_by_name() {
        type Spoil = fn(&mut RegionDescription);
        let spoils: [(&str, Spoil); 16] = [
            ("peers", |d| d.peers[1].role = PeerRole::DemotingVoter),
            ("peers", |d| {
                d.joint = true;
                d.peers.iter_mut().for_each(|p| p.role = PeerRole::IncomingVoter);
            }),
            ("id", |d| d.id = RegionId::new(0)),
            ("id", |d| d.id = RegionId::new(MAX_ID + 1)),
            ("peers", |d| d.peers[0].id = PeerId::new(MAX_ID + 1)),
            ("epoch", |d| d.epoch.version = 0),
            ("epoch", |d| d.epoch.version = MAX_VERSION + 1),
            ("epoch", |d| d.epoch.conf_ver = u64::MAX),
            ("start_key", |d| d.start_key = vec![b'k'; MAX_KEY_BYTES + 1].into()),
            ("end_key", |d| d.end_key = vec![b'k'; MAX_KEY_BYTES + 1].into()),
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
    fn an_empty_end_key_means_no_end() {
        let mut described = description(1, 1);
        assert!(described.contains(b"") && described.contains(b"\xff\xff"));
        described.start_key = Bytes::from_static(b"b");
        described.end_key = Bytes::from_static(b"d");
        assert!(!described.contains(b"a") && described.contains(b"b"));
        assert!(described.contains(b"cz") && !described.contains(b"d"));
    }
}
