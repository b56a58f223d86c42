//! A snapshot as bytes: each piece with its length and checksum, and an end that tells how many there were.
//!
//! ```text
//! piece   length: u32   CRC-32 of the bytes: u32   the bytes
//! end     0xffff_ffff   number of pieces: u32
//! ```
//!
//! Numbers are little-endian. So a file that was cut, or rotted, is found out before it is installed whole.

use crate::state_machine::{SnapshotSource, StateMachineError, MAX_PIECE_BYTES};
use bytes::{BufMut, Bytes, BytesMut};
use region::AppliedState;
use std::io::Read;

const END: u32 = u32::MAX;

/// Adds a piece.
pub(super) fn put_piece(piece: &[u8], bytes: &mut BytesMut) {
    bytes.reserve(piece.len() + 8);
    bytes.put_u32_le(u32::try_from(piece.len()).expect("pieces are below 4 GiB"));
    bytes.put_u32_le(crc32fast::hash(piece));
    bytes.put_slice(piece);
}

/// Adds the end.
pub(super) fn put_end(pieces: u32, bytes: &mut BytesMut) {
    bytes.put_u32_le(END);
    bytes.put_u32_le(pieces);
}

/// Reads pieces back.
pub(super) struct FrameReader {
    applied: AppliedState,
    name: String,
    bytes: Box<dyn Read + Send>,
    pieces: u32,
    ended: bool,
    damaged: std::cell::Cell<bool>,
}

impl FrameReader {
    pub(super) fn new(applied: AppliedState, name: String, bytes: Box<dyn Read + Send>) -> Self {
        Self { applied, name, bytes, pieces: 0, ended: false, damaged: false.into() }
    }

    fn fail(&self, what: &str) -> StateMachineError {
        self.damaged.set(true);
        let at = self.pieces;
        StateMachineError(format!("snapshot {} is damaged: piece {at}: {what}", self.name))
    }

    fn word(&mut self) -> Result<u32, StateMachineError> {
        let mut word = [0; 4];
        let read = self.bytes.read_exact(&mut word);
        read.map_err(|error| self.fail(&error.to_string()))?;
        Ok(u32::from_le_bytes(word))
    }

    /// Whether it was found to be damaged.
    pub(super) fn is_damaged(&self) -> bool {
        self.damaged.get()
    }

    /// Reads all of it, and says what is wrong with it, if anything is.
    pub(super) fn check(mut self) -> Result<(), StateMachineError> {
        while self.next_piece()?.is_some() {}
        Ok(())
    }
}

impl SnapshotSource for FrameReader {
    fn applied(&self) -> &AppliedState {
        &self.applied
    }

    fn next_piece(&mut self) -> Result<Option<Bytes>, StateMachineError> {
        if self.ended {
            return Ok(None);
        }
        let (length, second) = (self.word()?, self.word()?);
        if length == END {
            self.ended = true;
            return match second == self.pieces {
                true => Ok(None),
                false => Err(self.fail(&format!("the end counts {second} pieces"))),
            };
        }
        if length as usize > MAX_PIECE_BYTES {
            return Err(self.fail(&format!("it has {length} bytes")));
        }
        let mut piece = vec![0; length as usize];
        let read = self.bytes.read_exact(&mut piece);
        read.map_err(|error| self.fail(&error.to_string()))?;
        if crc32fast::hash(&piece) != second {
            return Err(self.fail("its checksum is wrong"));
        }
        self.pieces += 1;
        Ok(Some(piece.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use region::{Index, RegionDescription, RegionId, Term};
    use std::sync::Arc;

    fn read(bytes: &[u8]) -> Result<Vec<Bytes>, String> {
        let description = Arc::new(RegionDescription::uninitialised(RegionId::new(1), 1));
        let applied = AppliedState { index: Index::new(9), term: Term::new(6), description };
        let bytes = Box::new(std::io::Cursor::new(bytes.to_vec()));
        let mut reader = FrameReader::new(applied, "s".into(), bytes);
        let mut pieces = Vec::new();
        while let Some(piece) = reader.next_piece().map_err(|error| error.to_string())? {
            pieces.push(piece);
        }
        assert!(reader.next_piece().expect("still the end").is_none());
        Ok(pieces)
    }

    #[test]
    fn every_cut_and_every_flipped_bit_is_found_out() {
        let mut bytes = BytesMut::new();
        put_piece(b"first", &mut bytes);
        put_piece(b"", &mut bytes);
        put_piece(b"third", &mut bytes);
        put_end(3, &mut bytes);
        assert_eq!(read(&bytes), Ok(vec!["first".into(), "".into(), "third".into()]));
        for cut in 0..bytes.len() {
            assert!(read(&bytes[..cut]).is_err(), "cut at {cut}");
        }
        for bit in 0..bytes.len() * 8 {
            let mut spoiled = bytes.to_vec();
            spoiled[bit / 8] ^= 1 << (bit % 8);
            assert!(read(&spoiled).is_err(), "bit {bit}");
        }
    }
}
