//! Reads raft-engine's log files as far as their checksums allow.
//!
//! raft-engine itself checks the index of each batch when it opens, but the entries of the last batch
//! only. So after a crash that lost the entries of one unsynced batch and not the batch behind it, it
//! would take both in, and an entry would turn out unreadable much later. What is not known to be synced
//! is therefore read here first, and cut at the first batch that is not whole.
//!
//! A file is a head (`RAFT-LOG-FILE-HEADER-9986AB3E47F320B394C8E84916EB0ED5`, version, and from version 2
//! on the alignment; big endian) and batches. A batch is its length with the compression in the lowest
//! byte, the offset of its index, the entries with their CRC-32, and the index with its own, to which from
//! version 2 on the file's number is added by exclusive or; the checksums are little endian.

use std::io::{ErrorKind, Read, Result};

const MAGIC: &[u8] = b"RAFT-LOG-FILE-HEADER-9986AB3E47F320B394C8E84916EB0ED5";
const BATCH_HEADER: u64 = 16;
const CHECKSUM: usize = 4;

/// What the head of a log file says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FileHead {
    /// Batches follow.
    Sound(Batches),
    /// It is torn or damaged.
    Unreadable,
    /// It speaks of an alignment, which is never written. raft-engine would reserve memory by it.
    Aligned,
}

/// How the batches of a file are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Batches {
    /// Where the first one begins.
    pub(super) start: u64,
    /// What is added to the checksum of an index.
    signature: u32,
}

/// Reads the head of the file with this number.
pub(super) fn file_head(reader: &mut impl Read, number: u64) -> Result<FileHead> {
    let version_at = MAGIC.len();
    let mut head = Vec::new();
    reader.by_ref().take(version_at as u64 + 16).read_to_end(&mut head)?;
    if head.len() < version_at + 8 || !head.starts_with(MAGIC) {
        return Ok(FileHead::Unreadable);
    }
    let sound =
        |start: usize, signature| FileHead::Sound(Batches { start: start as u64, signature });
    Ok(match (word(&head[version_at..]), head.get(version_at + 8..version_at + 16)) {
        // raft-engine writes this to a file whose head a crash tore.
        (1, _) => sound(version_at + 8, 0),
        (2, Some(alignment)) if word(alignment) == 0 => sound(version_at + 16, number as u32),
        (2, Some(_)) => FileHead::Aligned,
        _ => FileHead::Unreadable,
    })
}

/// How far a file is readable, from the beginning of a batch at `at`, where the reader stands. Ends at
/// `size`, or where a batch begins that is not whole.
pub(super) fn readable_up_to(
    reader: &mut impl Read,
    batches: Batches,
    mut at: u64,
    size: u64,
) -> Result<u64> {
    let mut batch = Vec::new();
    while size - at >= BATCH_HEADER {
        batch.resize(BATCH_HEADER as usize, 0);
        if !read_whole(reader, &mut batch)? {
            break;
        }
        let (length, index_at) = (word(&batch) >> 8, word(&batch[8..]));
        let compression = batch[7];
        if compression > 1 || length > size - at || index_at > length || index_at < BATCH_HEADER {
            break;
        }
        batch.resize(length as usize, 0);
        if !read_whole(reader, &mut batch[BATCH_HEADER as usize..])? {
            break;
        }
        let (entries, index) =
            batch[BATCH_HEADER as usize..].split_at((index_at - BATCH_HEADER) as usize);
        if !(entries.is_empty() || sound(entries, 0)) || !sound(index, batches.signature) {
            break;
        }
        at += length;
    }
    Ok(at)
}

/// `false` if the file ends before.
fn read_whole(reader: &mut impl Read, bytes: &mut [u8]) -> Result<bool> {
    match reader.read_exact(bytes) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

fn word(bytes: &[u8]) -> u64 {
    bytes[..8].iter().fold(0, |word, byte| word << 8 | u64::from(*byte))
}

fn sound(block: &[u8], signature: u32) -> bool {
    let Some(length) = block.len().checked_sub(CHECKSUM).filter(|length| *length > 0) else {
        return false;
    };
    let (content, sum) = block.split_at(length);
    let sum = u32::from_le_bytes([sum[0], sum[1], sum[2], sum[3]]);
    crc32(content) == sum ^ signature
}

/// One step of CRC-32 (IEEE) for each byte.
const CRC_TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut sum = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            sum = if sum & 1 == 1 { sum >> 1 ^ 0xEDB8_8320 } else { sum >> 1 };
            bit += 1;
        }
        table[byte] = sum;
        byte += 1;
    }
    table
};

fn crc32(bytes: &[u8]) -> u32 {
    !bytes
        .iter()
        .fold(!0, |sum, byte| CRC_TABLE[((sum ^ u32::from(*byte)) & 0xFF) as usize] ^ sum >> 8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc32_is_the_one_of_ieee() {
        assert_eq!(crc32(b"123456789"), 0xCBF4_3926);
    }

    #[test]
    fn batches_are_read_as_raft_engine_wrote_them() {
        let dir = tempfile::tempdir().expect("a directory");
        let text = dir.path().to_str().expect("UTF-8").to_owned();
        let config = raft_engine::Config { dir: text, ..raft_engine::Config::default() };
        let engine = raft_engine::Engine::open(config).expect("opens");
        for number in 0..20u8 {
            let mut batch = raft_engine::LogBatch::default();
            // Some are compressed: from 8 KiB on.
            batch.put(1, vec![number], vec![number; 1000]).expect("small");
            let entry = raft::eraftpb::Entry {
                index: 1 + u64::from(number),
                data: vec![number; 1 << number.min(14)].into(),
                ..Default::default()
            };
            batch.add_entries::<super::super::engine::EntryExt>(1, &[entry]).expect("small");
            engine.write(&mut batch, true).expect("written");
        }
        drop(engine);
        let bytes = std::fs::read(dir.path().join("0000000000000001.raftlog")).expect("there");
        let read = |bytes: &[u8], number| {
            let mut reader = bytes;
            let head = file_head(&mut reader, number).expect("memory");
            let FileHead::Sound(batches) = head else { panic!("{head:?}") };
            readable_up_to(&mut reader, batches, batches.start, bytes.len() as u64).expect("memory")
        };
        assert_eq!(read(&bytes, 1), bytes.len() as u64);
        let start = MAGIC.len() + 16;
        assert_eq!(read(&bytes, 2), start as u64, "signed with the file's number");
        let mut previous = bytes.len() as u64;
        for at in (start..bytes.len()).rev().step_by(7) {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1 << (at % 8);
            let end = read(&damaged, 1);
            // The compression alone is not in any checksum.
            assert!(end <= at as u64 && end <= previous || bytes[at] < 2, "{at}: {end}");
            previous = if end <= at as u64 { end } else { previous };
        }
    }
}
