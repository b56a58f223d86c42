//! Ids that are never given twice, kept in a small file.
//!
//! Ids are reserved in blocks: the file says below which number all of them may have been given, and it is
//! durable before the first of a block is. A crash costs what was left of a block. The file is written anew
//! beside the old one, synced, and takes its place in one step; it holds a checksum, and one that is damaged
//! is refused. A lock on the directory sees to it that two processes do not count from the same number.

use super::PlacementError;
use fs2::FileExt;
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

/// How many are reserved at once.
pub(super) const BLOCK: u64 = 1_000;

const HEAD: &str = "raftstore ids 1";

/// Invariant: `next ≤ reserved`, and what is below `reserved` is not given again after a restart.
#[derive(Debug)]
pub(super) struct Ids {
    next: u64,
    reserved: u64,
    file: Option<IdFile>,
}

#[derive(Debug)]
struct IdFile {
    dir: PathBuf,
    /// Held as long as this lives.
    _lock: File,
}

fn failed(path: &Path, reason: impl ToString) -> PlacementError {
    PlacementError::Disk { path: path.display().to_string(), reason: reason.to_string() }
}

impl Ids {
    /// From `first` on, and forgotten with the process.
    pub(super) fn in_memory(first: u64) -> Self {
        Self { next: first.max(1), reserved: first.max(1), file: None }
    }

    /// Those that the directory has not given, from `first` on.
    pub(super) fn open(dir: &Path, first: u64) -> Result<Self, PlacementError> {
        fs::create_dir_all(dir).map_err(|error| failed(dir, error))?;
        let path = dir.join("lock");
        let lock = File::options().create(true).truncate(false).write(true).open(&path);
        let lock = lock.map_err(|error| failed(&path, error))?;
        lock.try_lock_exclusive().map_err(|_| failed(dir, "it is in use"))?;
        let file = IdFile { dir: dir.to_path_buf(), _lock: lock };
        let next = file.read()?.unwrap_or(0).max(first).max(1);
        Ok(Self { next, reserved: next, file: Some(file) })
    }

    /// The first of `count` in a row.
    pub(super) fn take(&mut self, count: u64) -> Result<u64, PlacementError> {
        let end = self.next.checked_add(count).filter(|_| count > 0);
        let end = end.ok_or(PlacementError::NoIds(count))?;
        if end > self.reserved {
            let reserved = end.checked_add(BLOCK).ok_or(PlacementError::NoIds(count))?;
            if let Some(file) = &self.file {
                file.write(reserved)?;
            }
            self.reserved = reserved;
        }
        Ok(std::mem::replace(&mut self.next, end))
    }

    /// Somebody uses this id; it was given by somebody else.
    pub(super) fn skip(&mut self, id: u64) {
        self.next = self.next.max(id.saturating_add(1));
        self.reserved = self.reserved.max(self.next);
    }
}

impl IdFile {
    fn path(&self) -> PathBuf {
        self.dir.join("ids")
    }

    /// Below which number all may have been given; `None` the first time.
    fn read(&self) -> Result<Option<u64>, PlacementError> {
        let path = self.path();
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(&path, error)),
        };
        let mut lines = text.lines();
        let number = lines.nth(1).and_then(|line| line.parse().ok());
        match number {
            Some(number) if text == content(number) => Ok(Some(number)),
            _ => {
                let advice =
                    "it is damaged. Write into a new directory, with a first id above all that \
                              are in use";
                Err(failed(&path, advice))
            }
        }
    }

    fn write(&self, number: u64) -> Result<(), PlacementError> {
        let (path, new) = (self.path(), self.dir.join("ids.new"));
        let written = (|| {
            let mut file = File::create(&new)?;
            file.write_all(content(number).as_bytes())?;
            file.sync_all()?;
            fs::rename(&new, &path)?;
            File::open(&self.dir)?.sync_all()
        })();
        written.map_err(|error: std::io::Error| failed(&path, error))
    }
}

fn content(number: u64) -> String {
    let checked = format!("{HEAD}\n{number}\n");
    let checksum = crc32fast::hash(checked.as_bytes());
    format!("{checked}{checksum:08x}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_new_after_a_crash_at_any_point() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut used = std::collections::BTreeSet::new();
        let mut first = 1;
        for round in 0..5 {
            let place = dir.path().join(round.to_string());
            let mut ids = Ids::open(&place, first).expect("opens");
            for count in [1, 7, BLOCK, 3] {
                let start = ids.take(count).expect("there are some");
                (start..start + count).for_each(|id| assert!(used.insert(id), "{id} twice"));
                // What a crash right here leaves.
                let copy = dir.path().join(format!("{round}-{count}"));
                fs::create_dir(&copy).expect("created");
                fs::copy(place.join("ids"), copy.join("ids")).expect("copied");
                let after = Ids::open(&copy, 1).expect("opens").take(1).expect("there are some");
                assert!(used.last().is_some_and(|last| *last < after), "{after} again");
            }
            drop(ids);
            let again = Ids::open(&place, 1).expect("opens").take(1).expect("there are some");
            assert!(used.insert(again), "{again} twice");
            first = again + 1;
        }
    }

    #[test]
    fn what_is_damaged_or_in_use_is_refused_by_name() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut ids = Ids::open(dir.path(), 40).expect("opens");
        assert_eq!(ids.take(2), Ok(40));
        ids.skip(90_000);
        assert_eq!(ids.take(1), Ok(90_001));
        assert_eq!(ids.take(0), Err(PlacementError::NoIds(0)));
        assert_eq!(ids.take(u64::MAX), Err(PlacementError::NoIds(u64::MAX)));
        let second = Ids::open(dir.path(), 1).expect_err("in use").to_string();
        assert!(second.contains("in use"), "{second}");
        drop(ids);
        let path = dir.path().join("ids");
        let sound = fs::read_to_string(&path).expect("readable");
        for damaged in [&sound.replace('9', "8"), &sound[..sound.len() - 1], "", "x\ny\n"] {
            fs::write(&path, damaged).expect("written");
            let refused = Ids::open(dir.path(), 1).expect_err("damaged").to_string();
            assert!(refused.contains("damaged") && refused.contains("ids"), "{refused}");
        }
        fs::write(&path, &sound).expect("written");
        assert!(Ids::open(dir.path(), 1).expect("sound").take(1).expect("some") > 90_001);
    }

    #[test]
    fn nothing_is_given_that_is_not_durable() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut ids = Ids::open(dir.path(), 1).expect("opens");
        fs::create_dir(dir.path().join("ids.new")).expect("in the way");
        assert!(matches!(ids.take(1), Err(PlacementError::Disk { .. })));
        fs::remove_dir(dir.path().join("ids.new")).expect("removed");
        assert_eq!(ids.take(1), Ok(1));
    }
}
