//! The machine's files, with an eye on their syncs.
//!
//! raft-engine 0.4.2 panics when a sync fails. Two things follow that a store cannot live with: other
//! writers of the same group commit are told that all went well, and dropping the engine syncs again
//! and panics while it unwinds, which ends the process. So the first failed sync is noted here, where
//! every write can look whether it happened, and later syncs do nothing: after a failed one nothing is
//! promised any more, and the engine can be dropped in peace.

use parking_lot::Mutex;
use raft_engine::env::{DefaultFileSystem, FileSystem, Handle, Permission};
use std::io::Result;
use std::path::Path;
use std::sync::Arc;

/// What went wrong first, if anything did.
#[derive(Clone, Debug, Default)]
pub(super) struct SyncFailure(pub(super) Arc<Mutex<Option<String>>>);

impl SyncFailure {
    /// The operating system's word for it.
    pub(super) fn cause(&self) -> Option<String> {
        self.0.lock().clone()
    }
}

/// The machine's file system.
#[derive(Default)]
pub(super) struct WatchedFiles {
    pub(super) failure: SyncFailure,
}

type Plain = <DefaultFileSystem as FileSystem>::Handle;

/// An open file.
pub(super) struct WatchedHandle {
    plain: Arc<Plain>,
    failure: SyncFailure,
}

impl WatchedFiles {
    fn watch(&self, plain: Plain) -> WatchedHandle {
        WatchedHandle { plain: Arc::new(plain), failure: self.failure.clone() }
    }
}

impl FileSystem for WatchedFiles {
    type Handle = WatchedHandle;
    type Reader = <DefaultFileSystem as FileSystem>::Reader;
    type Writer = <DefaultFileSystem as FileSystem>::Writer;

    fn create<P: AsRef<Path>>(&self, path: P) -> Result<WatchedHandle> {
        DefaultFileSystem.create(path).map(|plain| self.watch(plain))
    }

    fn open<P: AsRef<Path>>(&self, path: P, permission: Permission) -> Result<WatchedHandle> {
        DefaultFileSystem.open(path, permission).map(|plain| self.watch(plain))
    }

    fn delete<P: AsRef<Path>>(&self, path: P) -> Result<()> {
        DefaultFileSystem.delete(path)
    }

    fn rename<P: AsRef<Path>>(&self, from: P, to: P) -> Result<()> {
        DefaultFileSystem.rename(from, to)
    }

    fn new_reader(&self, handle: Arc<WatchedHandle>) -> Result<Self::Reader> {
        DefaultFileSystem.new_reader(handle.plain.clone())
    }

    fn new_writer(&self, handle: Arc<WatchedHandle>) -> Result<Self::Writer> {
        DefaultFileSystem.new_writer(handle.plain.clone())
    }
}

impl Handle for WatchedHandle {
    fn truncate(&self, offset: usize) -> Result<()> {
        self.plain.truncate(offset)
    }

    fn file_size(&self) -> Result<usize> {
        self.plain.file_size()
    }

    fn sync(&self) -> Result<()> {
        // Under the lock, so that no later sync succeeds while the first failure is being noted.
        let mut failure = self.failure.0.lock();
        if failure.is_some() {
            return Ok(());
        }
        let synced = self.plain.sync();
        if let Err(error) = &synced {
            *failure = Some(error.to_string());
        }
        synced
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_failed_sync_is_noted_and_later_ones_do_nothing() {
        let files = WatchedFiles::default();
        // A device that cannot be synced: the failure is the kernel's own.
        let device = files.open("/dev/null", Permission::ReadWrite).expect("it is there");
        assert_eq!(files.failure.cause(), None);
        let error = device.sync().expect_err("a device has no data to sync");
        assert_eq!(files.failure.cause(), Some(error.to_string()));
        device.sync().expect("nothing is promised any more, so nothing is refused");
        assert_eq!(files.failure.cause(), Some(error.to_string()));
    }
}
