//! The note of what is synced: for each log file, how many of its bytes are certainly on disk.
//!
//! raft-engine finds the end of its log by reading until something is not readable, and takes that for a
//! write that a crash tore. So damage in the last file would cost everything behind it without a word.
//! The note tells the two apart. It is the file `synced` beside the log files:
//!
//! | bytes | hold |
//! |---|---|
//! | 0 to 2,048 | for each queue the first file still needed, twice, one sector each |
//! | from 2,048 | for each file the length that is synced, twice, 32 bytes each; file `n` and `n + 512` share a place |
//!
//! A record is its file's number, a value, the queue, and a checksum. The two places of a record are
//! written in turn, so a torn one leaves the older one, and of two the larger value counts: neither
//! ever falls.
//!
//! Invariant: the note never says more than what is on disk. A length is noted after the sync of its
//! file, and a file that is to be removed is first noted, with a sync, as not needed.
//!
//! Caveat: lengths are noted without a sync, so after a power loss the note may say less than was
//! synced. It is never behind by more than the file that was written, since a removal and the first
//! sync of the next file sync the note too.

use raft_engine::env::{FileSystem, Handle};
use std::collections::BTreeMap;
use std::fmt;
use std::io::{Error, ErrorKind, Read, Result, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::Arc;

/// The note's name in the log directory.
pub(super) const NOTE_NAME: &str = "synced";

/// Files of one queue whose lengths fit into the note; those that came before are not checked.
const FILES: u64 = 512;
const RECORD: u64 = 32;
const SECTOR: u64 = 512;
const LENGTHS_AT: u64 = 4 * SECTOR;
const SIZE: u64 = LENGTHS_AT + FILES * 4 * RECORD;

/// One of raft-engine's two sequences of files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Queue {
    /// What is written.
    Append,
    /// What was copied out of old files, so that they can be removed.
    Rewrite,
}

impl Queue {
    pub(super) const ALL: [Self; 2] = [Self::Append, Self::Rewrite];
}

/// The name of a log file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct LogFileName {
    pub(super) queue: Queue,
    pub(super) number: u64,
}

impl LogFileName {
    /// `None` for every other file, those that wait to be used again included.
    pub(super) fn parse(path: &Path) -> Option<Self> {
        let (number, kind) = path.file_name()?.to_str()?.split_once('.')?;
        let queue = match kind {
            "raftlog" => Queue::Append,
            "rewrite" => Queue::Rewrite,
            _ => return None,
        };
        (number.len() == 16).then_some(Self { queue, number: number.parse().ok()? })
    }
}

impl fmt::Display for LogFileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.queue {
            Queue::Append => "raftlog",
            Queue::Rewrite => "rewrite",
        };
        write!(f, "{:016}.{kind}", self.number)
    }
}

/// A value, and in which of its two places it stands.
#[derive(Clone, Copy, Debug)]
struct Noted {
    value: u64,
    place: u64,
}

/// The note, open for writing.
pub(super) struct SyncedNote<F: FileSystem> {
    handle: Arc<F::Handle>,
    writer: F::Writer,
    /// By queue: the files below this number are not needed. No value before the first note.
    first: [Option<Noted>; 2],
    lengths: BTreeMap<LogFileName, Noted>,
}

impl<F: FileSystem> SyncedNote<F> {
    /// Opens the note of a log directory, or begins it.
    pub(super) fn open(files: &F, dir: &Path) -> Result<Self> {
        let handle = Arc::new(files.create(dir.join(NOTE_NAME))?);
        let mut bytes = Vec::new();
        files.new_reader(handle.clone())?.read_to_end(&mut bytes)?;
        let mut writer = files.new_writer(handle.clone())?;
        if (bytes.len() as u64) < SIZE {
            // All its space at once, so that a full disk does not keep a length from being noted.
            writer.seek(SeekFrom::Start(bytes.len() as u64))?;
            writer.write_all(&vec![0; SIZE as usize - bytes.len()])?;
        }
        let mut note = Self { handle, writer, first: [None; 2], lengths: BTreeMap::new() };
        note.read(&bytes);
        Ok(note)
    }

    fn read(&mut self, bytes: &[u8]) {
        let record = |at: u64| {
            let at = at as usize;
            decode(bytes.get(at..at + RECORD as usize)?)
        };
        for queue in Queue::ALL {
            for place in 0..2 {
                if let Some((name, value)) = record(first_at(queue, place)) {
                    let first = &mut self.first[queue as usize];
                    let larger = first.is_none_or(|known| known.value < value);
                    if larger && name == (LogFileName { queue, number: 0 }) {
                        *first = Some(Noted { value, place });
                    }
                }
            }
            for number in 0..FILES {
                for place in 0..2 {
                    let at = length_at(LogFileName { queue, number }, place);
                    if let Some((name, value)) = record(at) {
                        let known = self.length(name).is_some_and(|known| known >= value);
                        if !known && length_at(name, place) == at {
                            self.lengths.insert(name, Noted { value, place });
                        }
                    }
                }
            }
        }
    }

    /// How many bytes of a file are synced, if that was noted.
    pub(super) fn length(&self, name: LogFileName) -> Option<u64> {
        self.lengths.get(&name).map(|noted| noted.value)
    }

    /// The last file of a queue that has a length.
    pub(super) fn last(&self, queue: Queue) -> Option<u64> {
        let all = LogFileName { queue, number: 0 }..=LogFileName { queue, number: u64::MAX };
        self.lengths.range(all).next_back().map(|(name, _)| name.number)
    }

    /// The files of a queue below this number are not needed, if that was noted.
    pub(super) fn first(&self, queue: Queue) -> Option<u64> {
        self.first[queue as usize].map(|noted| noted.value)
    }

    /// Notes that so many bytes of a file are synced.
    pub(super) fn note_length(&mut self, name: LogFileName, length: u64) -> Result<()> {
        let known = self.lengths.get(&name).copied();
        if known.is_some_and(|known| known.value >= length) {
            return Ok(());
        }
        if known.is_none() {
            // What came before it is noted for good, once a file.
            self.handle.sync()?;
        }
        let place = known.map_or(0, |known| 1 - known.place);
        self.write(length_at(name, place), name, length)?;
        self.lengths.insert(name, Noted { value: length, place });
        Ok(())
    }

    /// Notes that the files of a queue below `first` are not needed, durably.
    pub(super) fn note_first(&mut self, queue: Queue, first: u64) -> Result<()> {
        let known = self.first[queue as usize];
        if known.is_some_and(|known| known.value >= first) {
            return Ok(());
        }
        let place = known.map_or(0, |known| 1 - known.place);
        self.write(first_at(queue, place), LogFileName { queue, number: 0 }, first)?;
        self.handle.sync()?;
        self.first[queue as usize] = Some(Noted { value: first, place });
        self.lengths.retain(|name, _| name.queue != queue || name.number >= first);
        Ok(())
    }

    /// Syncs what was noted.
    pub(super) fn sync(&self) -> Result<()> {
        self.handle.sync()
    }

    fn write(&mut self, at: u64, name: LogFileName, value: u64) -> Result<()> {
        let written = self.writer.seek(SeekFrom::Start(at));
        written.and_then(|_| self.writer.write_all(&encode(name, value))).map_err(|error| {
            Error::new(error.kind(), format!("the note of what is synced: {error}"))
        })
    }
}

fn first_at(queue: Queue, place: u64) -> u64 {
    (queue as u64 * 2 + place) * SECTOR
}

fn length_at(name: LogFileName, place: u64) -> u64 {
    LENGTHS_AT + (name.number % FILES * 4 + name.queue as u64 * 2 + place) * RECORD
}

fn encode(name: LogFileName, value: u64) -> [u8; RECORD as usize] {
    let mut bytes = [0; RECORD as usize];
    bytes[..8].copy_from_slice(&name.number.to_le_bytes());
    bytes[8..16].copy_from_slice(&value.to_le_bytes());
    bytes[16..24].copy_from_slice(&(name.queue as u64).to_le_bytes());
    let checksum = checksum(&bytes[..24]);
    bytes[24..].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

/// `None` for a record that is torn, damaged, or was never written.
fn decode(bytes: &[u8]) -> Option<(LogFileName, u64)> {
    let word = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
    let queue = match word(16)? {
        0 => Queue::Append,
        1 => Queue::Rewrite,
        _ => return None,
    };
    let sound = word(24)? == checksum(&bytes[..24]);
    sound.then_some((LogFileName { queue, number: word(0)? }, word(8)?))
}

/// FNV-1a.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xCBF2_9CE4_8422_2325, |sum, byte| {
        (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01B3)
    })
}

/// What was synced is not there any more.
pub(super) fn damaged(text: &str) -> Error {
    let advice =
        "The store must be rebuilt from its peers, whose copies have the data; a log that is \
                  cut or mended by hand loses what was acknowledged";
    Error::new(ErrorKind::InvalidData, format!("{text}. {advice}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use raft_engine::env::DefaultFileSystem;

    fn name(number: u64) -> LogFileName {
        LogFileName { queue: Queue::Append, number }
    }

    fn open(dir: &Path) -> SyncedNote<DefaultFileSystem> {
        SyncedNote::open(&DefaultFileSystem, dir).expect("opens")
    }

    #[test]
    fn a_damaged_record_leaves_the_one_before() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut note = open(dir.path());
        for length in [100, 200, 300] {
            note.note_length(name(7), length).expect("noted");
        }
        note.note_length(LogFileName { queue: Queue::Rewrite, number: 7 }, 50).expect("noted");
        assert_eq!(open(dir.path()).length(name(7)), Some(300));
        let path = dir.path().join(NOTE_NAME);
        let sound = std::fs::read(&path).expect("there");
        for byte in 0..RECORD {
            let mut bytes = sound.clone();
            bytes[(length_at(name(7), 0) + byte) as usize] ^= 1 << (byte % 8);
            std::fs::write(&path, bytes).expect("written");
            assert_eq!(open(dir.path()).length(name(7)), Some(200), "byte {byte}");
        }
        std::fs::write(&path, &sound[..700]).expect("written");
        let note = open(dir.path());
        assert_eq!((note.length(name(7)), note.last(Queue::Append)), (None, None));
        assert_eq!(std::fs::read(&path).expect("there").len() as u64, SIZE);
    }

    #[test]
    fn what_is_noted_only_grows_and_files_that_are_not_needed_are_forgotten() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut note = open(dir.path());
        for number in 1..=600 {
            note.note_length(name(number), number).expect("noted");
        }
        note.note_length(name(600), 5).expect("nothing to do");
        note.note_first(Queue::Append, 300).expect("noted");
        note.note_first(Queue::Append, 200).expect("nothing to do");
        assert_eq!((note.length(name(299)), note.length(name(300))), (None, Some(300)));
        let note = open(dir.path());
        assert_eq!((note.first(Queue::Append), note.first(Queue::Rewrite)), (Some(300), None));
        assert_eq!((note.last(Queue::Append), note.length(name(600))), (Some(600), Some(600)));
        assert_eq!(note.length(name(88)), None, "its place is that of file 600");
    }

    #[test]
    fn names_of_log_files_are_raft_engines() {
        let parse = |text: &str| LogFileName::parse(&Path::new("/log").join(text));
        for text in ["0000000000000012.raftlog", "0000000000000012.rewrite"] {
            assert_eq!(parse(text).expect("a log file").to_string(), text);
        }
        for text in ["LOCK", "synced", "0000000000000012.raftlog.reserved", "12.raftlog"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
