//! What a Raft entry of a region holds.
//!
//! The user's payload is `Entry.data`, untouched, so that it is neither copied nor parsed on its
//! way to the state machine. What the region must know about it is a header of a few bytes in
//! `Entry.context`:
//!
//! ```text
//! byte 0   format, 1
//! byte 1   kind: 1 user, 2 compact log, 3 split, 4 change of peers
//! then     conf_ver, a varint
//! then     version, a varint
//! ```
//!
//! The epoch is that of the region when the command was proposed; a command is carried out only if
//! it is still the same when the command is applied. (A change of peers looks at `conf_ver` only: a split
//! in between does it no harm.) An entry with neither header nor payload is the one with which a leader
//! opens its term or, of raft-rs's type for changes of peers, leaves a joint configuration.
//!
//! Caveat: headers are not encoded for each proposal. Those of most epochs are static, others are cached by
//! the region ([`HeaderCache`]).

use bytes::Bytes;
use protobuf::Message as _;
use raft::eraftpb::{ConfChangeV2, Entry, EntryType};

use crate::description::RegionEpoch;
use crate::ids::{Index, RegionId, Term};
use crate::split::SplitRequest;

/// Format of the header that this version writes, the only one that it reads.
const FORMAT: u8 = 1;

/// [`CommandKind::User`], encoded.
const USER: u8 = 1;

/// Epochs whose versions are below this have a header of four bytes.
const SHORT_VERSIONS: usize = 1 << 7;

/// Headers of user commands in all short epochs, by `conf_ver` and then `version`. An entry is cloned a dozen
/// times on its way through three peers; clones of what is static need no reference count, for which the
/// pollers of several stores would contend.
static SHORT_HEADERS: [[u8; 4]; SHORT_VERSIONS * SHORT_VERSIONS] = {
    let mut headers = [[FORMAT, USER, 0, 0]; SHORT_VERSIONS * SHORT_VERSIONS];
    let mut at = 0;
    while at < headers.len() {
        headers[at][2] = (at / SHORT_VERSIONS) as u8;
        headers[at][3] = (at % SHORT_VERSIONS) as u8;
        at += 1;
    }
    headers
};

/// Payload size of a [`CommandKind::CompactLog`]: the index, little-endian.
const COMPACT_LOG_BYTES: usize = 8;

/// Upper bound of an encoded header in bytes.
pub(crate) const MAX_HEADER_BYTES: usize = 2 + 10 + 10;

/// Who a command is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CommandKind {
    /// The user's state machine.
    User,
    /// The region itself: cut off the head of the log.
    CompactLog,
    /// The region itself: become several.
    Split,
    /// The region itself: get other peers.
    ChangePeers,
}

/// A committed entry, understood.
#[derive(Clone, PartialEq, Debug)]
pub enum Command {
    /// The entry with which a leader opens its term. It says nothing.
    Empty,
    /// A command for the user's state machine.
    User {
        /// Epoch of the region when it was proposed.
        epoch: RegionEpoch,
        /// The user's bytes.
        payload: Bytes,
    },
    /// The log up to and including this index is needed by no peer any more.
    CompactLog {
        /// Epoch of the region when it was proposed.
        epoch: RegionEpoch,
        /// Last index that may go.
        index: Index,
    },
    /// The region becomes several.
    Split {
        /// Epoch of the region when it was proposed.
        epoch: RegionEpoch,
        /// How.
        request: SplitRequest,
    },
    /// The region gets other peers.
    ChangePeers {
        /// Epoch of the region when it was proposed.
        epoch: RegionEpoch,
        /// How; its context holds the peers.
        change: ConfChangeV2,
    },
    /// The region leaves a joint configuration.
    LeaveJoint,
}

/// A committed entry that nobody understands. The region must stop: to skip what other peers may
/// have carried out would make them differ in silence.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("region {region_id}: entry {index} of term {term} is malformed: {cause}")]
pub struct CommandError {
    /// The region.
    pub region_id: RegionId,
    /// The entry.
    pub index: Index,
    /// Its term.
    pub term: Term,
    /// What is wrong with it.
    pub cause: &'static str,
}

impl Command {
    /// Reads a committed entry, and takes its payload.
    ///
    /// # Errors
    /// If the entry is of a type, format or kind unknown here, has a field unknown here, or its
    /// header or payload is cut.
    pub fn decode(region_id: RegionId, entry: Entry) -> Result<Command, CommandError> {
        let (index, term) = (Index::new(entry.index), Term::new(entry.term));
        decode(entry).map_err(|cause| CommandError { region_id, index, term, cause })
    }
}

/// Whether the entry says something that this version cannot read. A later one may have put it there
/// to change what the entry means; and its bytes are kept, but counted nowhere.
pub(crate) fn has_unknown_fields(entry: &Entry) -> bool {
    entry.unknown_fields.fields.as_ref().is_some_and(|fields| !fields.is_empty())
}

fn decode(entry: Entry) -> Result<Command, &'static str> {
    if has_unknown_fields(&entry) {
        return Err("it has a field that is not known here");
    }
    let changes_peers = match entry.get_entry_type() {
        EntryType::EntryNormal => false,
        EntryType::EntryConfChangeV2 => true,
        EntryType::EntryConfChange => return Err("its entry type is not supported"),
    };
    if entry.context.is_empty() {
        return match entry.data.is_empty() {
            true if changes_peers => Ok(Command::LeaveJoint),
            true => Ok(Command::Empty),
            false => Err("it has a payload but no header"),
        };
    }
    let (kind, epoch) = decode_header(&entry.context)?;
    if changes_peers != (kind == CommandKind::ChangePeers) {
        return Err("its entry type and its kind disagree");
    }
    match kind {
        CommandKind::Split => {
            let request = SplitRequest::decode(&entry.data);
            let request = request.map_err(|_| "its split is not decodable")?;
            Ok(Command::Split { epoch, request })
        }
        CommandKind::ChangePeers => {
            let change = ConfChangeV2::parse_from_carllerche_bytes(&entry.data);
            let change = change.map_err(|_| "its change of peers is not decodable")?;
            match change.changes.is_empty() {
                true => Err("it changes no peer"),
                false => Ok(Command::ChangePeers { epoch, change }),
            }
        }
        CommandKind::User => Ok(Command::User { epoch, payload: entry.data }),
        CommandKind::CompactLog => {
            let bytes: [u8; COMPACT_LOG_BYTES] =
                entry.data.as_ref().try_into().map_err(|_| "its index is not 8 bytes long")?;
            Ok(Command::CompactLog { epoch, index: Index::new(u64::from_le_bytes(bytes)) })
        }
    }
}

fn decode_header(header: &[u8]) -> Result<(CommandKind, RegionEpoch), &'static str> {
    let [format, kind, rest @ ..] = header else {
        return Err("its header is cut");
    };
    if *format != FORMAT {
        return Err("its header has an unknown format");
    }
    let kind = match *kind {
        USER => CommandKind::User,
        2 => CommandKind::CompactLog,
        3 => CommandKind::Split,
        4 => CommandKind::ChangePeers,
        _ => return Err("its kind is unknown"),
    };
    let (conf_ver, rest) = read_varint(rest)?;
    let (version, rest) = read_varint(rest)?;
    if !rest.is_empty() {
        return Err("its header has bytes left over");
    }
    Ok((kind, RegionEpoch { conf_ver, version }))
}

fn read_varint(bytes: &[u8]) -> Result<(u64, &[u8]), &'static str> {
    let mut value = 0u64;
    for (at, byte) in bytes.iter().enumerate().take(10) {
        let low = u64::from(byte & 0x7f);
        if at == 9 && low > 1 {
            return Err("a version in its header is too large");
        }
        value |= low << (7 * at);
        if byte & 0x80 == 0 {
            return Ok((value, &bytes[at + 1..]));
        }
    }
    Err("a version in its header is cut")
}

fn write_varint(mut value: u64, bytes: &mut Vec<u8>) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

fn encode_header(kind: CommandKind, epoch: RegionEpoch) -> Bytes {
    let mut bytes = Vec::with_capacity(MAX_HEADER_BYTES);
    bytes.push(FORMAT);
    bytes.push(match kind {
        CommandKind::User => USER,
        CommandKind::CompactLog => 2,
        CommandKind::Split => 3,
        CommandKind::ChangePeers => 4,
    });
    write_varint(epoch.conf_ver, &mut bytes);
    write_varint(epoch.version, &mut bytes);
    bytes.shrink_to_fit();
    Bytes::from(bytes)
}

/// The encoded header of user commands, kept for as long as the epoch stands.
///
/// Invariant: `user`, where present, is the encoding of `epoch`.
#[derive(Default)]
pub(crate) struct HeaderCache {
    epoch: RegionEpoch,
    user: Option<Bytes>,
}

impl HeaderCache {
    /// An entry, without index and term, for a user's command.
    pub(crate) fn user_entry(&mut self, epoch: RegionEpoch, payload: Bytes) -> Entry {
        let context = short_header(epoch).unwrap_or_else(|| self.long_header(epoch));
        Entry { data: payload, context, ..Entry::default() }
    }

    fn long_header(&mut self, epoch: RegionEpoch) -> Bytes {
        if self.epoch != epoch || self.user.is_none() {
            self.epoch = epoch;
            self.user = Some(encode_header(CommandKind::User, epoch));
        }
        self.user.clone().unwrap_or_default()
    }

    /// Gives the memory back; the next proposal encodes anew.
    pub(crate) fn shrink(&mut self) {
        self.user = None;
    }
}

fn short_header(epoch: RegionEpoch) -> Option<Bytes> {
    let short = |version: u64| usize::try_from(version).ok().filter(|at| *at < SHORT_VERSIONS);
    let (conf_ver, version) = (short(epoch.conf_ver)?, short(epoch.version)?);
    Some(Bytes::from_static(&SHORT_HEADERS[conf_ver * SHORT_VERSIONS + version]))
}

/// What nearly all entries of an epoch begin with, so that it need not be parsed.
pub(crate) struct UsualHeader(Option<Bytes>);

impl UsualHeader {
    pub(crate) fn of(epoch: RegionEpoch) -> Self {
        Self(short_header(epoch))
    }

    /// Takes the payload of a user's command of this epoch. `None` says nothing about the entry.
    pub(crate) fn take_payload(&self, entry: &mut Entry) -> Option<Bytes> {
        let usual = self.0.as_ref().is_some_and(|header| *header == entry.context)
            && entry.get_entry_type() == EntryType::EntryNormal
            && !has_unknown_fields(entry);
        usual.then(|| std::mem::take(&mut entry.data))
    }
}

/// An entry, without index and term, that tells all peers to cut their logs after `index`.
pub(crate) fn compact_log_entry(epoch: RegionEpoch, index: Index) -> Entry {
    Entry {
        data: Bytes::copy_from_slice(&index.get().to_le_bytes()),
        context: encode_header(CommandKind::CompactLog, epoch),
        ..Entry::default()
    }
}

/// An entry, without index and term, that splits the region.
pub(crate) fn split_entry(epoch: RegionEpoch, request: &SplitRequest) -> Entry {
    Entry {
        data: request.encode(),
        context: encode_header(CommandKind::Split, epoch),
        ..Entry::default()
    }
}

/// An entry, without index and term, that changes the region's peers.
pub(crate) fn change_entry(epoch: RegionEpoch, change: &ConfChangeV2) -> Entry {
    Entry {
        entry_type: EntryType::EntryConfChangeV2,
        data: crate::description::write(change).into(),
        context: encode_header(CommandKind::ChangePeers, epoch),
        ..Entry::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REGION: RegionId = RegionId::new(4);

    #[test]
    fn commands_survive_a_round_trip() {
        let mut cache = HeaderCache::default();
        for epoch in [
            RegionEpoch { conf_ver: 1, version: 1 },
            RegionEpoch { conf_ver: 300, version: u64::MAX },
        ] {
            let payload = Bytes::from_static(b"put");
            let entry = cache.user_entry(epoch, payload.clone());
            assert_eq!(entry.data.as_ptr(), payload.as_ptr(), "the payload is not copied");
            assert!(entry.context.len() <= MAX_HEADER_BYTES);
            assert_eq!(Command::decode(REGION, entry), Ok(Command::User { epoch, payload }));
            let index = Index::new(99);
            let entry = compact_log_entry(epoch, index);
            assert_eq!(Command::decode(REGION, entry), Ok(Command::CompactLog { epoch, index }));
        }
        assert_eq!(Command::decode(REGION, Entry::default()), Ok(Command::Empty));
    }

    #[test]
    fn a_payload_is_taken_only_where_decoding_would_give_it() {
        let own = RegionEpoch { conf_ver: 3, version: 9 };
        let of = |epoch| HeaderCache::default().user_entry(epoch, "put".into());
        let mut entry = of(own);
        assert_eq!(UsualHeader::of(own).take_payload(&mut entry), Some("put".into()));
        let mut unknown = of(own);
        unknown.unknown_fields.add_varint(100, 7);
        let others = [
            of(RegionEpoch { version: 10, ..own }),
            unknown,
            Entry { entry_type: EntryType::EntryConfChangeV2, ..of(own) },
            Entry { context: Bytes::new(), ..of(own) },
            compact_log_entry(own, Index::new(1)),
        ];
        for mut entry in others {
            let before = entry.clone();
            assert_eq!(UsualHeader::of(own).take_payload(&mut entry), None);
            assert_eq!(entry, before);
        }
        let long = RegionEpoch { conf_ver: 1, version: 1_000 };
        assert_eq!(UsualHeader::of(long).take_payload(&mut of(long)), None);
    }

    #[test]
    fn a_static_header_is_the_one_that_would_be_encoded() {
        for (conf_ver, version) in [(0, 0), (1, 1), (3, 127), (127, 0), (127, 127)] {
            let epoch = RegionEpoch { conf_ver, version };
            assert_eq!(short_header(epoch), Some(encode_header(CommandKind::User, epoch)));
        }
        for (conf_ver, version) in [(128, 0), (0, 128), (u64::MAX, 1)] {
            assert_eq!(short_header(RegionEpoch { conf_ver, version }), None);
        }
    }

    #[test]
    fn an_empty_user_command_is_not_taken_for_a_leaders_first_entry() {
        let epoch = RegionEpoch { conf_ver: 1, version: 1 };
        let entry = HeaderCache::default().user_entry(epoch, Bytes::new());
        assert!(matches!(Command::decode(REGION, entry), Ok(Command::User { .. })));
    }

    #[test]
    fn an_entry_with_a_field_unknown_here_is_not_understood() {
        let mut entry = HeaderCache::default().user_entry(RegionEpoch::default(), "put".into());
        assert!(Command::decode(REGION, entry.clone()).is_ok());
        entry.unknown_fields.add_varint(100, 7);
        let error = Command::decode(REGION, entry).unwrap_err();
        assert_eq!(error.cause, "it has a field that is not known here");
    }

    #[test]
    fn the_header_is_encoded_once_an_epoch() {
        let mut cache = HeaderCache::default();
        let epoch = RegionEpoch { conf_ver: 1, version: 1_000 };
        let first = cache.user_entry(epoch, Bytes::new());
        let second = cache.user_entry(epoch, Bytes::new());
        assert_eq!(first.context.as_ptr(), second.context.as_ptr());
        let moved = cache.user_entry(RegionEpoch { conf_ver: 2, version: 1_000 }, Bytes::new());
        assert_ne!(first.context, moved.context);
    }

    #[test]
    fn malformed_entries_are_errors_that_name_region_and_index() {
        let good = compact_log_entry(RegionEpoch { conf_ver: 200, version: 1 }, Index::new(7));
        let mut bad = Vec::new();
        for cut in 1..good.context.len() {
            bad.push(Entry { context: good.context.slice(..cut), ..good.clone() });
        }
        bad.push(Entry { context: Bytes::new(), ..good.clone() });
        bad.push(Entry { context: Bytes::from_static(&[9, 1, 1, 1]), ..good.clone() });
        bad.push(Entry { context: Bytes::from_static(&[1, 9, 1, 1]), ..good.clone() });
        bad.push(Entry { context: Bytes::from_static(&[1, 1, 1, 1, 1]), ..good.clone() });
        bad.push(Entry { context: Bytes::from_static(&[0xff; 30]), ..good.clone() });
        bad.push(Entry { data: Bytes::from_static(b"seven"), ..good.clone() });
        bad.push(Entry { entry_type: EntryType::EntryConfChange, ..good });
        for mut entry in bad {
            entry.index = 12;
            let error = Command::decode(REGION, entry).unwrap_err();
            assert!(error.to_string().starts_with("region 4: entry 12 of"), "{error}");
        }
    }
}
