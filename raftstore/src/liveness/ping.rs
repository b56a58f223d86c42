//! What stores ask each other: whether they live.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use region::{DecodeError, StoreId};

/// One store asks another whether it lives, or answers. See the crate's [`Transport`](crate::Transport).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StorePing {
    /// The cluster; messages of another one are dropped.
    pub cluster_id: u64,
    /// Who sends it.
    pub from: StoreId,
    /// Who it is for.
    pub to: StoreId,
    /// The life of the store that asks: a number that none of its other lives has.
    pub asker: u64,
    /// Which of its questions.
    pub number: u64,
    /// Of an answer, the life of the store that answers.
    pub answer: Option<u64>,
}

impl StorePing {
    const RECORD: &'static str = "store ping";
    const BYTES: usize = 7 * 8;

    /// The bytes of this message, for transports between processes.
    pub fn encode(&self) -> Bytes {
        let mut bytes = BytesMut::with_capacity(Self::BYTES);
        let answers = u64::from(self.answer.is_some());
        let (from, to) = (self.from.get(), self.to.get());
        let answer = self.answer.unwrap_or_default();
        let all = [self.cluster_id, from, to, self.asker, self.number, answers, answer];
        all.into_iter().for_each(|number| bytes.put_u64_le(number));
        bytes.freeze()
    }

    /// Reads a message.
    ///
    /// # Errors
    /// If the bytes are none.
    pub fn decode(bytes: &Bytes) -> Result<Self, DecodeError> {
        let malformed =
            |cause: &str| DecodeError::Malformed { record: Self::RECORD, cause: cause.to_owned() };
        if bytes.len() != Self::BYTES {
            return Err(malformed("of a wrong length"));
        }
        let mut rest = bytes.clone();
        let cluster_id = rest.get_u64_le();
        let (from, to) = (StoreId::new(rest.get_u64_le()), StoreId::new(rest.get_u64_le()));
        let (asker, number) = (rest.get_u64_le(), rest.get_u64_le());
        let answer = match (rest.get_u64_le(), rest.get_u64_le()) {
            (0, 0) => None,
            (1, life) => Some(life),
            _ => return Err(malformed("of an unknown kind")),
        };
        Ok(Self { cluster_id, from, to, asker, number, answer })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_survive_encoding_and_others_are_refused() {
        let (from, to) = (StoreId::new(2), StoreId::new(3));
        for answer in [None, Some(0), Some(9)] {
            let ping = StorePing { cluster_id: 1, from, to, asker: 7, number: 8, answer };
            let bytes = ping.encode();
            assert_eq!(StorePing::decode(&bytes), Ok(ping));
            assert!(StorePing::decode(&bytes.slice(1..)).is_err());
        }
        let mut unknown = BytesMut::zeroed(StorePing::BYTES);
        unknown[5 * 8] = 2;
        assert!(StorePing::decode(&unknown.freeze()).is_err());
    }
}
