//! What clients ask of a region: operations on registers, as commands of its log.

use crate::check::Kind;
use raftstore::Bytes;

/// An operation as a command carries it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Operation {
    /// Its number; no two have the same.
    pub id: u64,
    /// The register.
    pub key: u64,
    /// What is done.
    pub kind: Kind,
}

/// A kind byte and four numbers.
const LEN: usize = 33;

impl Operation {
    /// The command, with so many bytes of ballast.
    pub(crate) fn encode(&self, ballast: usize) -> Bytes {
        let (kind, first, second) = match self.kind {
            Kind::Read => (0u8, 0, 0),
            Kind::Write(value) => (1, value, 0),
            Kind::CompareAndSet { expected: None, new } => (2, new, 0),
            Kind::CompareAndSet { expected: Some(expected), new } => (3, new, expected),
        };
        let mut bytes = Vec::with_capacity(LEN + ballast);
        bytes.push(kind);
        for number in [self.id, self.key, first, second] {
            bytes.extend_from_slice(&number.to_be_bytes());
        }
        bytes.resize(LEN + ballast, 0xA5);
        bytes.into()
    }

    /// Reads a command; `None` if it is none.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let number = |at: usize| {
            let bytes = bytes.get(1 + 8 * at..9 + 8 * at)?;
            Some(u64::from_be_bytes(bytes.try_into().ok()?))
        };
        let (first, second) = (number(2)?, number(3)?);
        let kind = match bytes.first()? {
            0 => Kind::Read,
            1 => Kind::Write(first),
            2 => Kind::CompareAndSet { expected: None, new: first },
            3 => Kind::CompareAndSet { expected: Some(second), new: first },
            _ => return None,
        };
        bytes.len().checked_sub(LEN)?;
        Some(Self { id: number(0)?, key: number(1)?, kind })
    }
}

/// The answer of an operation: what the register held before.
pub(crate) fn encode_output(register: Option<u64>) -> Bytes {
    register.map_or_else(Bytes::new, |value| Bytes::copy_from_slice(&value.to_be_bytes()))
}

/// Reads an answer; `None` if it is none.
pub(crate) fn decode_output(bytes: &[u8]) -> Option<Option<u64>> {
    if bytes.is_empty() {
        return Some(None);
    }
    Some(Some(u64::from_be_bytes(bytes.try_into().ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_and_answers_survive_encoding() {
        for kind in [
            Kind::Read,
            Kind::Write(7),
            Kind::CompareAndSet { expected: None, new: 1 },
            Kind::CompareAndSet { expected: Some(0), new: 2 },
        ] {
            let operation = Operation { id: 9, key: 4, kind };
            for ballast in [0, 100] {
                assert_eq!(Operation::decode(&operation.encode(ballast)), Some(operation));
            }
        }
        assert_eq!(Operation::decode(&[9; 40]), None);
        assert_eq!(Operation::decode(&[1; 32]), None);
        for register in [None, Some(3)] {
            assert_eq!(decode_output(&encode_output(register)), Some(register));
        }
    }
}
