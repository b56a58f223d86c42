//! Keeps panics of snapshot files, which users may bring, from the threads of the store: they become errors, and
//! cost one snapshot or one region.

use super::files::{SnapshotFiles, StagedSnapshot};
use std::io::{self, Read};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::Arc;

/// Snapshot files that do not panic.
pub(crate) struct GuardedFiles(pub(crate) Arc<dyn SnapshotFiles>);

fn guard<T>(what: &str, call: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let called = catch_unwind(AssertUnwindSafe(call));
    called.unwrap_or_else(|_| Err(io::Error::other(format!("{what} panicked"))))
}

impl SnapshotFiles for GuardedFiles {
    fn begin(&self, name: &str) -> io::Result<Box<dyn StagedSnapshot>> {
        let staged = guard("SnapshotFiles::begin", || self.0.begin(name))?;
        Ok(Box::new(GuardedStaged(staged)))
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn Read + Send>> {
        let reader = guard("SnapshotFiles::open", || self.0.open(name))?;
        Ok(Box::new(GuardedReader(reader)))
    }

    fn rename(&self, name: &str, to: &str) -> io::Result<()> {
        guard("SnapshotFiles::rename", || self.0.rename(name, to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        guard("SnapshotFiles::remove", || self.0.remove(name))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        guard("SnapshotFiles::list", || self.0.list())
    }
}

struct GuardedStaged(Box<dyn StagedSnapshot>);

impl StagedSnapshot for GuardedStaged {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        guard("StagedSnapshot::append", || self.0.append(bytes))
    }

    fn finish(self: Box<Self>) -> io::Result<()> {
        guard("StagedSnapshot::finish", || self.0.finish())
    }
}

struct GuardedReader(Box<dyn Read + Send>);

impl Read for GuardedReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        guard("reading from SnapshotFiles::open", || self.0.read(buffer))
    }
}
