//! What the maps that come with the crate are told to do, and what they answer.

use bytes::{Buf, BufMut, Bytes, BytesMut};

const PUT: u8 = 1;
const DELETE: u8 = 2;
const PREVIOUS: u8 = 1;
const REFUSED: u8 = 2;
/// Why a command does nothing whose key another region may hold.
pub(super) const OUT_OF_RANGE: &str = "the key is not in the range of the region";

/// A command of the maps that come with the crate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MapCommand {
    /// Sets a key.
    Put {
        /// The key.
        key: Bytes,
        /// Its value from now on.
        value: Bytes,
    },
    /// Removes a key.
    Delete {
        /// The key.
        key: Bytes,
    },
}

/// What is wrong with bytes that should be a [`MapCommand`] or a [`MapAnswer`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a map command: {0}")]
pub struct MapCommandError(&'static str);

impl MapCommand {
    /// A [`Put`](Self::Put).
    pub fn put(key: impl Into<Bytes>, value: impl Into<Bytes>) -> Self {
        MapCommand::Put { key: key.into(), value: value.into() }
    }

    /// A [`Delete`](Self::Delete).
    pub fn delete(key: impl Into<Bytes>) -> Self {
        MapCommand::Delete { key: key.into() }
    }

    /// What it is about.
    pub fn key(&self) -> &Bytes {
        match self {
            MapCommand::Put { key, .. } | MapCommand::Delete { key } => key,
        }
    }

    /// The bytes to propose: a kind byte, the key's length in 4 bytes (big endian), the key, and what
    /// follows is the value.
    ///
    /// # Panics
    /// When the key is 4 GiB or longer.
    pub fn encode(&self) -> Bytes {
        let (kind, key, value) = match self {
            MapCommand::Put { key, value } => (PUT, key, &value[..]),
            MapCommand::Delete { key } => (DELETE, key, &[][..]),
        };
        let mut bytes = BytesMut::with_capacity(5 + key.len() + value.len());
        bytes.put_u8(kind);
        bytes.put_u32(u32::try_from(key.len()).expect("a key is shorter than 4 GiB"));
        bytes.put_slice(key);
        bytes.put_slice(value);
        bytes.freeze()
    }

    /// The reverse of [`encode`](Self::encode), without copying.
    ///
    /// # Errors
    /// When the bytes are no command.
    pub fn decode(mut bytes: Bytes) -> Result<Self, MapCommandError> {
        if bytes.len() < 5 {
            return Err(MapCommandError("shorter than its header"));
        }
        let kind = bytes.get_u8();
        let key_len = bytes.get_u32() as usize;
        if key_len > bytes.len() {
            return Err(MapCommandError("shorter than its key"));
        }
        let key = bytes.split_to(key_len);
        match kind {
            PUT => Ok(MapCommand::Put { key, value: bytes }),
            DELETE if bytes.is_empty() => Ok(MapCommand::Delete { key }),
            DELETE => Err(MapCommandError("a delete with a value")),
            _ => Err(MapCommandError("of an unknown kind")),
        }
    }
}

/// What a map answers to a [`MapCommand`]: the [`Response::value`](crate::Response) of its proposal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MapAnswer {
    /// It was carried out; the key had this value before, if any.
    Done(Option<Bytes>),
    /// It did nothing, on any store, for this reason: it is damaged, or its key is not in the range that the
    /// region had when it was applied. Find the region of the key anew.
    Refused(String),
}

impl MapAnswer {
    /// The bytes of the answer: none where the key had no value; else a kind byte, and the value of before or
    /// the reason.
    pub fn encode(&self) -> Bytes {
        let (kind, text) = match self {
            MapAnswer::Done(None) => return Bytes::new(),
            MapAnswer::Done(Some(previous)) => (PREVIOUS, &previous[..]),
            MapAnswer::Refused(reason) => (REFUSED, reason.as_bytes()),
        };
        let mut bytes = BytesMut::with_capacity(1 + text.len());
        bytes.put_u8(kind);
        bytes.put_slice(text);
        bytes.freeze()
    }

    /// The reverse of [`encode`](Self::encode), without copying a value.
    ///
    /// # Errors
    /// When the bytes are no answer of a map.
    pub fn decode(mut bytes: Bytes) -> Result<Self, MapCommandError> {
        if bytes.is_empty() {
            return Ok(MapAnswer::Done(None));
        }
        match bytes.get_u8() {
            PREVIOUS => Ok(MapAnswer::Done(Some(bytes))),
            REFUSED => match std::str::from_utf8(&bytes) {
                Ok(reason) => Ok(MapAnswer::Refused(reason.to_owned())),
                Err(_) => Err(MapCommandError("an answer that refuses without a text")),
            },
            _ => Err(MapCommandError("an answer of an unknown kind")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_survive_encoding() {
        for command in
            [MapCommand::put("key", "value"), MapCommand::put("", ""), MapCommand::delete("key")]
        {
            assert_eq!(MapCommand::decode(command.encode()), Ok(command));
        }
    }

    #[test]
    fn damaged_commands_are_refused() {
        for bytes in [&b""[..], &[PUT, 0, 0, 0, 9, 1], &[7, 0, 0, 0, 0], &[DELETE, 0, 0, 0, 0, 1]] {
            assert!(MapCommand::decode(Bytes::copy_from_slice(bytes)).is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn a_refusal_is_told_from_a_value_of_before() {
        let text = "the key is not here";
        let answers = [
            MapAnswer::Done(None),
            MapAnswer::Done(Some(Bytes::new())),
            MapAnswer::Done(Some(text.into())),
            MapAnswer::Refused(text.to_owned()),
        ];
        for answer in answers {
            assert_eq!(MapAnswer::decode(answer.encode()), Ok(answer));
        }
        assert!(MapAnswer::decode(Bytes::from_static(b"x")).is_err());
        assert!(MapAnswer::decode(Bytes::from_static(b"\x02\xff")).is_err());
    }
}
