//! The seam to where snapshots wait, once received, until they are installed.

use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Keeps received snapshots by name. A name is of letters, digits, `-` and `.`. A call that panics counts as one
/// that fails.
///
/// # Contract
/// * What is [finished](StagedSnapshot::finish) survives a crash, whole, if the log store does.
/// * What is not finished need not survive, and is never found by [`open`](Self::open).
pub trait SnapshotFiles: Send + Sync + 'static {
    /// Begins a snapshot anew; what there was under this name is gone.
    ///
    /// # Errors
    /// When it cannot be created.
    fn begin(&self, name: &str) -> io::Result<Box<dyn StagedSnapshot>>;

    /// Reads a finished snapshot.
    ///
    /// # Errors
    /// When it is not there, or cannot be read.
    fn open(&self, name: &str) -> io::Result<Box<dyn Read + Send>>;

    /// Gives a finished snapshot another name. What there was under that is gone. Durable on return; a crash
    /// leaves it whole under one of the two.
    ///
    /// # Errors
    /// When it is not there, or that fails. The store stops then.
    fn rename(&self, name: &str, to: &str) -> io::Result<()>;

    /// Removes a snapshot, finished or not. One that is not there is no error.
    ///
    /// # Errors
    /// When it cannot be removed.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// The names of all that is there, finished or not.
    ///
    /// # Errors
    /// When they cannot be listed.
    fn list(&self) -> io::Result<Vec<String>>;
}

/// A snapshot that is being received.
pub trait StagedSnapshot: Send {
    /// Adds bytes.
    ///
    /// # Errors
    /// When they cannot be written; the snapshot is then given up.
    fn append(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// All bytes are there; makes them durable under their name.
    ///
    /// # Errors
    /// When that fails; the snapshot is then given up.
    fn finish(self: Box<Self>) -> io::Result<()>;
}

/// In memory: for stores whose log is there, too.
#[derive(Clone, Debug, Default)]
pub struct MemorySnapshotFiles {
    finished: Arc<Mutex<BTreeMap<String, Arc<Vec<u8>>>>>,
}

struct InMemory {
    name: String,
    bytes: Vec<u8>,
    files: MemorySnapshotFiles,
}

impl SnapshotFiles for MemorySnapshotFiles {
    fn begin(&self, name: &str) -> io::Result<Box<dyn StagedSnapshot>> {
        self.remove(name)?;
        let (name, bytes) = (name.to_owned(), Vec::new());
        Ok(Box::new(InMemory { name, bytes, files: self.clone() }))
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn Read + Send>> {
        let found = self.finished.lock().get(name).cloned();
        let bytes = found.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        Ok(Box::new(io::Cursor::new(SharedBytes(bytes))))
    }

    fn rename(&self, name: &str, to: &str) -> io::Result<()> {
        let mut finished = self.finished.lock();
        let bytes = finished.remove(name);
        let bytes = bytes.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        finished.insert(to.to_owned(), bytes);
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.finished.lock().remove(name);
        Ok(())
    }

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.finished.lock().keys().cloned().collect())
    }
}

struct SharedBytes(Arc<Vec<u8>>);

impl AsRef<[u8]> for SharedBytes {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl StagedSnapshot for InMemory {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    fn finish(self: Box<Self>) -> io::Result<()> {
        self.files.finished.lock().insert(self.name, Arc::new(self.bytes));
        Ok(())
    }
}

/// Files in a directory. One that is not finished has a name that ends with `.part`.
#[derive(Clone, Debug)]
pub struct DirectorySnapshotFiles {
    directory: PathBuf,
}

const PART: &str = ".part";

impl DirectorySnapshotFiles {
    /// Files in `directory`, which is created if need be. What others have there a store leaves alone, unless
    /// its name is one that stores give, such as `region-1-peer-2-3-4.snap`.
    ///
    /// # Errors
    /// When it cannot be created.
    pub fn new(directory: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(directory)?;
        Ok(Self { directory: directory.to_owned() })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    fn sync_names(&self) -> io::Result<()> {
        File::open(&self.directory)?.sync_all()
    }
}

struct OnDisk {
    file: File,
    part: PathBuf,
    path: PathBuf,
    files: DirectorySnapshotFiles,
}

impl SnapshotFiles for DirectorySnapshotFiles {
    fn begin(&self, name: &str) -> io::Result<Box<dyn StagedSnapshot>> {
        self.remove(name)?;
        let (path, part) = (self.path(name), self.path(&format!("{name}{PART}")));
        let file = OpenOptions::new().create(true).write(true).truncate(true).open(&part)?;
        Ok(Box::new(OnDisk { file, part, path, files: self.clone() }))
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn Read + Send>> {
        Ok(Box::new(io::BufReader::with_capacity(256 << 10, File::open(self.path(name))?)))
    }

    fn rename(&self, name: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.path(name), self.path(to))?;
        self.sync_names()
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        for path in [self.path(name), self.path(&format!("{name}{PART}"))] {
            match std::fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.directory)? {
            if let Ok(name) = entry?.file_name().into_string() {
                names.push(name.strip_suffix(PART).unwrap_or(&name).to_owned());
            }
        }
        names.sort_unstable();
        names.dedup();
        Ok(names)
    }
}

impl StagedSnapshot for OnDisk {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)
    }

    fn finish(self: Box<Self>) -> io::Result<()> {
        self.file.sync_all()?;
        std::fs::rename(&self.part, &self.path)?;
        self.files.sync_names()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keeps_its_contract(files: &dyn SnapshotFiles) {
        let mut staged = files.begin("a").expect("begins");
        staged.append(b"one").expect("appends");
        assert!(files.open("a").is_err(), "it is not finished");
        staged.append(b" two").expect("appends");
        staged.finish().expect("finishes");
        let mut text = String::new();
        files.open("a").expect("is there").read_to_string(&mut text).expect("reads");
        assert_eq!(text, "one two");
        assert_eq!(files.list().expect("lists"), ["a"]);
        assert!(files.rename("b", "c").is_err(), "it is not there");
        let mut other = files.begin("b").expect("begins");
        other.append(b"other").expect("appends");
        other.finish().expect("finishes");
        files.rename("a", "b").expect("renames");
        let mut text = String::new();
        files.open("b").expect("is there").read_to_string(&mut text).expect("reads");
        assert_eq!(text, "one two", "in the place of the other");
        files.rename("b", "a").expect("renames");
        assert_eq!(files.list().expect("lists"), ["a"]);
        drop(files.begin("a").expect("begins anew"));
        assert!(files.open("a").is_err(), "the old one is gone");
        files.remove("a").expect("removes");
        files.remove("a").expect("removes what is not there");
        assert!(files.list().expect("lists").is_empty());
    }

    #[test]
    fn both_kinds_keep_their_contract() {
        keeps_its_contract(&MemorySnapshotFiles::default());
        let directory = tempfile::tempdir().expect("a directory");
        let files = DirectorySnapshotFiles::new(&directory.path().join("snapshots"));
        keeps_its_contract(&files.expect("created"));
    }
}
