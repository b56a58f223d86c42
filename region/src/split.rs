//! Splits: from a request to the descriptions of a region's parts.
//!
//! The parent keeps its id, its peers and one end of its range; each child gets a new id, a peer on every
//! store that has one of the parent, and begins with an empty log at index 5 of term 5. `version` grows by
//! the number of children, and all parts have the same, so that they tell themselves from the whole.

use bytes::Bytes;

use crate::description::{self, Peer, RegionDescription, RegionEpoch, MAX_KEY_BYTES, MAX_VERSION};
use crate::ids::{is_sound_id, PeerId, RegionId, MAX_ID};
use crate::proto;

/// Most keys of one split.
pub const MAX_SPLIT_KEYS: usize = 256;

/// A region to be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NewRegion {
    /// Never used before.
    pub id: RegionId,
    /// Never used before, one for each peer of the parent, in the same order.
    pub peers: Vec<PeerId>,
}

/// Where to split a region, and how its parts are called.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SplitRequest {
    /// First keys of the parts but the first: strictly increasing, within the range.
    pub keys: Vec<Bytes>,
    /// One for each key, in the order of their ranges.
    pub regions: Vec<NewRegion>,
    /// Whether the region keeps the last part instead of the first.
    pub parent_is_right: bool,
}

/// Why a region cannot be split like this. Nothing has happened.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SplitError {
    /// No key.
    #[error("no split key is given")]
    NoKeys,
    /// More keys than allowed.
    #[error("too many split keys, at most {limit} are allowed")]
    TooManyKeys {
        /// What is allowed.
        limit: usize,
    },
    /// A key of no bytes, the number of which is given.
    #[error("split key {0} is empty")]
    EmptyKey(usize),
    /// A key longer than allowed.
    #[error("split key {at} is longer than {limit} bytes")]
    KeyTooLong {
        /// Its number, from 0.
        at: usize,
        /// What is allowed.
        limit: usize,
    },
    /// The same key as the one before.
    #[error("split key {0} is given twice")]
    KeyTwice(usize),
    /// A smaller key than the one before.
    #[error("split key {0} is smaller than the one before")]
    Unsorted(usize),
    /// A key where the region begins or ends already.
    #[error("split key {0} is an edge of the region")]
    AtEdge(usize),
    /// A key that is not the region's.
    #[error("split key {0} is outside of the region")]
    Outside(usize),
    /// Not as many new regions as keys.
    #[error("{given} new regions are named for {needed} keys")]
    WrongRegionCount {
        /// How many there are.
        given: usize,
        /// How many there must be.
        needed: usize,
    },
    /// Not as many peers of a new region as the region has, learners included.
    #[error("{given} peers are named for the new region {region}, {needed} are needed: one for each peer of the region")]
    WrongPeerCount {
        /// The new region.
        region: RegionId,
        /// How many there are.
        given: usize,
        /// How many there must be.
        needed: usize,
    },
    /// An id of a new region or of one of its peers that none can have. Ask for new ones.
    #[error("id {0} cannot be: ids are 1 to {MAX_ID}")]
    IdOutOfRange(u64),
    /// An id of a region that is given twice, or in use or destroyed on this store. Ask for new ones.
    #[error("region id {0} is given twice, in use, or was in use on this store")]
    RegionIdInUse(RegionId),
    /// An id of a peer that is given twice, or in use in the region. Ask for new ones.
    #[error("peer id {0} is given twice or in use in the region")]
    PeerIdInUse(PeerId),
    /// The region's range has changed so often that its version cannot grow any more.
    #[error("the version of the range is at its end")]
    VersionAtEnd,
    /// Peers are being changed. Try again later.
    #[error("a change of peers is under way, try again later")]
    PeersChange,
}

impl SplitRequest {
    /// Checks a request against the region.
    pub(crate) fn check(&self, region: &RegionDescription) -> Result<(), SplitError> {
        if region.joint {
            return Err(SplitError::PeersChange);
        }
        self.check_keys(region)?;
        if region.epoch.version.saturating_add(self.keys.len() as u64) > MAX_VERSION {
            return Err(SplitError::VersionAtEnd);
        }
        if self.regions.len() != self.keys.len() {
            let (given, needed) = (self.regions.len(), self.keys.len());
            return Err(SplitError::WrongRegionCount { given, needed });
        }
        let mut ids = self.regions.iter().flat_map(|new| {
            let peers = new.peers.iter().map(|peer| peer.get());
            peers.chain([new.id.get()])
        });
        if let Some(id) = ids.find(|id| !is_sound_id(*id)) {
            return Err(SplitError::IdOutOfRange(id));
        }
        let mut peers: Vec<PeerId> = region.peers.iter().map(|peer| peer.id).collect();
        for (at, new) in self.regions.iter().enumerate() {
            let twice = self.regions[..at].iter().any(|other| other.id == new.id);
            if new.id == region.id || twice {
                return Err(SplitError::RegionIdInUse(new.id));
            }
            if new.peers.len() != region.peers.len() {
                let (given, needed) = (new.peers.len(), region.peers.len());
                return Err(SplitError::WrongPeerCount { region: new.id, given, needed });
            }
            for peer in &new.peers {
                if peers.contains(peer) {
                    return Err(SplitError::PeerIdInUse(*peer));
                }
                peers.push(*peer);
            }
        }
        Ok(())
    }

    fn check_keys(&self, region: &RegionDescription) -> Result<(), SplitError> {
        if self.keys.is_empty() {
            return Err(SplitError::NoKeys);
        }
        if self.keys.len() > MAX_SPLIT_KEYS {
            return Err(SplitError::TooManyKeys { limit: MAX_SPLIT_KEYS });
        }
        for (at, key) in self.keys.iter().enumerate() {
            if key.is_empty() {
                return Err(SplitError::EmptyKey(at));
            }
            if key.len() > MAX_KEY_BYTES {
                return Err(SplitError::KeyTooLong { at, limit: MAX_KEY_BYTES });
            }
            if *key == region.start_key || *key == region.end_key {
                return Err(SplitError::AtEdge(at));
            }
            if !region.contains(key) {
                return Err(SplitError::Outside(at));
            }
            match at.checked_sub(1).map(|before| self.keys[before].cmp(key)) {
                Some(std::cmp::Ordering::Equal) => return Err(SplitError::KeyTwice(at)),
                Some(std::cmp::Ordering::Greater) => return Err(SplitError::Unsorted(at)),
                _ => {}
            }
        }
        Ok(())
    }

    /// The region as it goes on, and its children.
    ///
    /// Invariant: their ranges tile the region's.
    pub(crate) fn divide(
        &self,
        region: &RegionDescription,
    ) -> (RegionDescription, Vec<RegionDescription>) {
        let version = region.epoch.version + self.keys.len() as u64;
        let epoch = RegionEpoch { version, ..region.epoch };
        let starts = std::iter::once(&region.start_key).chain(&self.keys);
        let ends = self.keys.iter().chain(std::iter::once(&region.end_key));
        let mut ranges: Vec<(Bytes, Bytes)> = starts.cloned().zip(ends.cloned()).collect();
        let own = if self.parent_is_right { ranges.len() - 1 } else { 0 };
        let (start_key, end_key) = ranges.remove(own);
        let parent = RegionDescription { start_key, end_key, epoch, ..region.clone() };
        let children = ranges.into_iter().zip(&self.regions).map(|(range, new)| {
            let named = region.peers.iter().zip(&new.peers);
            let peers = named.map(|(peer, id)| Peer { id: *id, ..*peer });
            RegionDescription { epoch, ..RegionDescription::new(new.id, range.0, range.1, peers) }
        });
        (parent, children.collect())
    }

    pub(crate) fn encode(&self) -> Bytes {
        let new_region = |new: &NewRegion| proto::NewRegion {
            id: new.id.get(),
            peer_ids: new.peers.iter().map(|peer| peer.get()).collect(),
            ..Default::default()
        };
        let message = proto::Split {
            keys: self.keys.clone(),
            regions: self.regions.iter().map(new_region).collect(),
            parent_is_right: self.parent_is_right,
            ..Default::default()
        };
        description::write(&message).into()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, description::DecodeError> {
        let message: proto::Split = description::parse("split", bytes)?;
        let new_region = |new: &proto::NewRegion| NewRegion {
            id: RegionId::new(new.id),
            peers: new.peer_ids.iter().map(|peer| PeerId::new(*peer)).collect(),
        };
        Ok(Self {
            keys: message.keys.to_vec(),
            regions: message.regions.iter().map(new_region).collect(),
            parent_is_right: message.parent_is_right,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::description::tests::description;

    fn request(keys: &[&'static str]) -> SplitRequest {
        let new = |at: usize| NewRegion {
            id: RegionId::new(10 + at as u64),
            peers: (1..=3).map(|peer| PeerId::new(100 * (at as u64 + 1) + peer)).collect(),
        };
        SplitRequest {
            keys: keys.iter().map(|key| Bytes::from_static(key.as_bytes())).collect(),
            regions: (0..keys.len()).map(new).collect(),
            parent_is_right: false,
        }
    }

    fn region() -> RegionDescription {
        let (start_key, end_key) = (Bytes::from_static(b"b"), Bytes::from_static(b"y"));
        RegionDescription { start_key, end_key, ..description(1, 3) }
    }

    #[test]
    fn parts_tile_the_whole_whichever_end_the_parent_keeps() {
        for parent_is_right in [false, true] {
            let request = SplitRequest { parent_is_right, ..request(&["f", "m"]) };
            assert_eq!(request.check(&region()), Ok(()));
            assert_eq!(SplitRequest::decode(&request.encode()), Ok(request.clone()));
            let (parent, children) = request.divide(&region());
            let mut parts = children;
            let at = if parent_is_right { parts.len() } else { 0 };
            parts.insert(at, parent);
            let ends: Vec<_> =
                parts.iter().map(|part| (&part.start_key[..], &part.end_key[..])).collect();
            assert_eq!(ends, [(&b"b"[..], &b"f"[..]), (b"f", b"m"), (b"m", b"y")]);
            for part in &parts {
                part.validate().unwrap();
                assert_eq!(part.epoch, RegionEpoch { conf_ver: 1, version: 3 });
                assert!(part.peers.iter().zip(&region().peers).all(|(a, b)| a.store == b.store));
            }
        }
    }

    #[test]
    fn unsound_requests_are_refused_each_for_its_own_reason() {
        let cases: [(&[&'static str], SplitError); 8] = [
            (&[], SplitError::NoKeys),
            (&[""], SplitError::EmptyKey(0)),
            (&["b"], SplitError::AtEdge(0)),
            (&["f", "y"], SplitError::AtEdge(1)),
            (&["a"], SplitError::Outside(0)),
            (&["z"], SplitError::Outside(0)),
            (&["f", "f"], SplitError::KeyTwice(1)),
            (&["f", "e"], SplitError::Unsorted(1)),
        ];
        for (keys, expected) in cases {
            assert_eq!(request(keys).check(&region()), Err(expected), "{keys:?}");
        }
        let refused = |spoil: fn(&mut SplitRequest)| {
            let mut request = request(&["f", "m"]);
            spoil(&mut request);
            request.check(&region()).unwrap_err()
        };
        let keys = |r: &mut SplitRequest| r.keys = vec![Bytes::from_static(b"f"); 300];
        assert_eq!(refused(keys), SplitError::TooManyKeys { limit: 256 });
        assert_eq!(
            refused(|r| r.keys[0] = vec![b'f'; 70_000].into()),
            SplitError::KeyTooLong { at: 0, limit: MAX_KEY_BYTES }
        );
        let one = RegionId::new(1);
        assert_eq!(refused(|r| r.regions[1].id = RegionId::new(1)), SplitError::RegionIdInUse(one));
        let ten = RegionId::new(10);
        assert_eq!(
            refused(|r| r.regions[1].id = RegionId::new(10)),
            SplitError::RegionIdInUse(ten)
        );
        let two = PeerId::new(2);
        assert_eq!(
            refused(|r| r.regions[1].peers[0] = PeerId::new(2)),
            SplitError::PeerIdInUse(two)
        );
        let count = SplitError::WrongPeerCount { region: RegionId::new(10), given: 2, needed: 3 };
        assert_eq!(refused(|r| r.regions[0].peers.truncate(2)), count);
        assert_eq!(
            refused(|r| r.regions.truncate(1)),
            SplitError::WrongRegionCount { given: 1, needed: 2 }
        );
        let zero = SplitError::IdOutOfRange(0);
        assert_eq!(refused(|r| r.regions[1].peers[0] = PeerId::new(0)), zero);
        let large = SplitError::IdOutOfRange(MAX_ID + 1);
        assert_eq!(refused(|r| r.regions[0].id = RegionId::new(MAX_ID + 1)), large);
        let mut old = region();
        old.epoch.version = MAX_VERSION - 1;
        assert_eq!(request(&["c", "f"]).check(&old), Err(SplitError::VersionAtEnd));
        let joint = RegionDescription { joint: true, ..region() };
        assert_eq!(request(&["f"]).check(&joint), Err(SplitError::PeersChange));
    }
}
