//! The files below raft-engine, with an eye on their syncs and on what raft-engine cuts off.
//!
//! **Failed syncs.** raft-engine 0.4.2 panics when a sync fails. Two things follow that a store cannot
//! live with: other writers of the same group commit are told that all went well, and dropping the engine
//! syncs again and panics while it unwinds, which ends the process. So the first failed sync is noted
//! here, where every write can look whether it happened, and later syncs do nothing: after a failed one
//! nothing is promised any more, and the engine can be dropped in peace.
//!
//! **Damage.** What raft-engine cannot read at the end of its last file it cuts off, and files before a
//! gap it leaves out. So each sync notes how much of a file is on disk ([`SyncedNote`]), and the log is
//! only opened if all of that is there.
//!
//! When the log is opened, in this order:
//! 1. raft-engine locks the directory, and opens or creates its first file. That is the moment to read
//!    the note and to check that no file is missing, shorter than noted, or of another format.
//! 2. What lies behind the noted length of the last file may be torn: it is cut at the first batch that
//!    is not whole. What is whole is written anew and synced: the process before may have died between
//!    its write and its sync, and this one will promise what it finds.
//! 3. raft-engine reads the files. A cut by it below the noted length, or in a file that is not the last,
//!    is refused.
//!
//! Invariant: a length is noted only of a file whose name is on disk too. raft-engine syncs the directory
//! after the first sync of a new file, so that first sync is not noted; and the store syncs it once at
//! the end of opening.

use super::batches::{file_head, readable_up_to, FileHead};
use super::synced_note::{damaged, LogFileName, Queue, SyncedNote};
use parking_lot::Mutex;
use raft_engine::env::{FileSystem, Handle, Permission, WriteExt};
use std::collections::BTreeSet;
use std::io::{BufReader, Error, Read, Result, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Bytes of a file that are read and written anew in one step.
const SETTLED_AT_ONCE: u64 = 1 << 20;

/// What is known of a log directory, shared by its open files.
pub(super) struct Watch<F: FileSystem> {
    state: Mutex<State<F>>,
}

struct State<F: FileSystem> {
    /// Open from the moment on when the directory is locked.
    note: Option<SyncedNote<F>>,
    /// Whether raft-engine has read the log.
    opened: bool,
    /// Whether the log is being closed, so that nobody can be told of a failure.
    closing: bool,
    /// What went wrong first, if anything did.
    failure: Option<String>,
    /// Why the log cannot be opened.
    refusal: Option<String>,
}

impl<F: FileSystem> Watch<F> {
    /// The operating system's word for the first sync that failed.
    pub(super) fn failure(&self) -> Option<String> {
        self.state.lock().failure.clone()
    }

    /// Why the log cannot be opened, where it is this module that says so.
    pub(super) fn refusal(&self) -> Option<String> {
        self.state.lock().refusal.clone()
    }

    /// From now on the names of new files need not be on disk.
    pub(super) fn opened(&self) {
        self.state.lock().opened = true;
    }

    /// From now on nobody can be told of a failure.
    pub(super) fn closing(&self) {
        self.state.lock().closing = true;
    }

    /// Syncs the note.
    pub(super) fn sync_note(&self) -> Result<()> {
        let state = self.state.lock();
        match (&state.note, &state.failure) {
            (Some(note), None) => note.sync(),
            _ => Ok(()),
        }
    }

    #[cfg(test)]
    pub(super) fn fail(&self, cause: &str) {
        self.state.lock().failure = Some(cause.to_owned());
    }
}

/// A file system that is watched.
pub(super) struct WatchedFiles<F: FileSystem> {
    plain: Arc<F>,
    dir: PathBuf,
    watch: Arc<Watch<F>>,
}

/// How far a log file is written.
#[derive(Clone, Copy, Debug, Default)]
struct Written {
    /// The end of what was written; unknown before there is a writer.
    end: Option<u64>,
    /// Whether the next sync is the one before that of the directory.
    new: bool,
}

/// An open file.
pub(super) struct WatchedHandle<F: FileSystem> {
    plain: Arc<F::Handle>,
    name: Option<LogFileName>,
    permission: Permission,
    written: Arc<Mutex<Written>>,
    watch: Arc<Watch<F>>,
}

impl<F: FileSystem> WatchedFiles<F> {
    /// Watches the log files of a directory.
    pub(super) fn new(plain: Arc<F>, dir: &Path) -> Self {
        let state =
            State { note: None, opened: false, closing: false, failure: None, refusal: None };
        let watch = Arc::new(Watch { state: Mutex::new(state) });
        Self { plain, dir: dir.to_owned(), watch }
    }

    /// What is known of them.
    pub(super) fn watch(&self) -> Arc<Watch<F>> {
        self.watch.clone()
    }

    fn handle(&self, plain: F::Handle, path: &Path, permission: Permission) -> WatchedHandle<F> {
        WatchedHandle {
            plain: Arc::new(plain),
            name: LogFileName::parse(path),
            permission,
            written: Arc::default(),
            watch: self.watch.clone(),
        }
    }

    /// Compares the directory with its note. Its first call is the one after the directory was locked.
    fn prepare(&self) -> Result<()> {
        let mut state = self.watch.state.lock();
        if state.note.is_some() {
            return Ok(());
        }
        let note = state.note.insert(SyncedNote::open(&*self.plain, &self.dir)?);
        let checked = self.numbers().and_then(|numbers| {
            self.check(note, Queue::Append, &numbers[0])?;
            self.check(note, Queue::Rewrite, &numbers[1])
        });
        state.refusal = checked.as_ref().err().map(ToString::to_string);
        checked
    }

    /// The log files that are there, by queue.
    fn numbers(&self) -> Result<[BTreeSet<u64>; 2]> {
        let mut numbers = [BTreeSet::new(), BTreeSet::new()];
        for entry in std::fs::read_dir(&self.dir)? {
            if let Some(name) = LogFileName::parse(&entry?.path()) {
                numbers[name.queue as usize].insert(name.number);
            }
        }
        Ok(numbers)
    }

    fn check(&self, note: &mut SyncedNote<F>, queue: Queue, present: &BTreeSet<u64>) -> Result<()> {
        let noted = note.first(queue);
        let first = noted.unwrap_or_else(|| first_without_gap(present));
        let last = present.last().copied().max(note.last(queue)).unwrap_or(0);
        // Of a log that was never written, not even the first file need be there.
        let last = if first > 1 { last.max(first) } else { last };
        for number in first..=last {
            let name = LogFileName { queue, number };
            if !present.contains(&number) {
                return Err(damaged(&format!(
                    "the file {name} is missing, and what it held was synced"
                )));
            }
            self.check_file(name, note.length(name), number == last)?;
        }
        note.note_first(queue, first)
    }

    fn check_file(&self, name: LogFileName, noted: Option<u64>, last: bool) -> Result<()> {
        let path = self.dir.join(name.to_string());
        let handle = Arc::new(self.plain.open(&path, Permission::ReadOnly)?);
        let size = handle.file_size()? as u64;
        let noted = noted.unwrap_or(0);
        if size < noted {
            let lost = noted - size;
            let text = format!("the file {name} ends at byte {size}, but {noted} bytes of it were");
            return Err(damaged(&format!("{text} synced: {lost} bytes are lost")));
        }
        let mut reader = self.plain.new_reader(handle)?;
        let batches = match file_head(&mut reader, name.number)? {
            FileHead::Sound(batches) => batches,
            // A crash while it was created.
            FileHead::Unreadable if last && noted == 0 => return Ok(()),
            FileHead::Unreadable | FileHead::Aligned => {
                return Err(damaged(&format!("the head of the file {name} is damaged")));
            }
        };
        if last {
            let at = noted.max(batches.start);
            reader.seek(SeekFrom::Start(at))?;
            let mut reader = BufReader::new(reader);
            let end = readable_up_to(&mut reader, batches, at, size)?;
            if noted < size {
                tracing::info!(file = %name, from = end, size, "settling what may not be synced");
                // With the head of a file of which nothing is noted.
                self.settle(&path, noted..end)?;
            }
        }
        Ok(())
    }

    /// Makes a part of a file durable that the process before may not have synced, and cuts off what
    /// follows it. It is read back and written anew: where a sync has failed, the system may take what
    /// it holds in memory for written, and no later sync would write it.
    fn settle(&self, path: &Path, unsynced: Range<u64>) -> Result<()> {
        let handle = Arc::new(self.plain.open(path, Permission::ReadWrite)?);
        handle.truncate(unsynced.end as usize)?;
        let mut reader = self.plain.new_reader(handle.clone())?;
        let mut writer = self.plain.new_writer(handle.clone())?;
        let mut at = unsynced.start;
        while at < unsynced.end {
            let mut part = vec![0; (unsynced.end - at).min(SETTLED_AT_ONCE) as usize];
            reader.seek(SeekFrom::Start(at))?;
            reader.read_exact(&mut part)?;
            writer.seek(SeekFrom::Start(at))?;
            writer.write_all(&part)?;
            at += part.len() as u64;
        }
        handle.sync()
    }

    /// Where a log that raft-engine cannot read is damaged.
    pub(super) fn find_damage(plain: &F, dir: &Path, watch: &Watch<F>) -> Option<String> {
        // Without the note the directory was not even locked.
        let state = watch.state.lock();
        let note = state.note.as_ref()?;
        let mut paths: Vec<PathBuf> =
            std::fs::read_dir(dir).ok()?.filter_map(|entry| Some(entry.ok()?.path())).collect();
        paths.sort();
        paths.iter().find_map(|path| {
            let name = LogFileName::parse(path)?;
            let handle = Arc::new(plain.open(path, Permission::ReadOnly).ok()?);
            let size = handle.file_size().ok()? as u64;
            let mut reader = BufReader::new(plain.new_reader(handle).ok()?);
            let FileHead::Sound(batches) = file_head(&mut reader, name.number).ok()? else {
                // A file that was only begun is not damaged, whatever stands in the way.
                note.length(name)?;
                return Some(format!("the head of the file {name} is damaged"));
            };
            let end = readable_up_to(&mut reader, batches, batches.start, size).ok()?;
            (end < size)
                .then(|| format!("the file {name}, of {size} bytes, is damaged behind byte {end}"))
        })
    }

    /// Notes that a file is to be removed or used for something else.
    fn not_needed(&self, path: &Path) -> Result<()> {
        let Some(name) = LogFileName::parse(path) else { return Ok(()) };
        let mut state = self.watch.state.lock();
        if let Some(cause) = &state.failure {
            // Its copy may not be on disk.
            return Err(Error::other(format!("{name} is kept, since a sync failed: {cause}")));
        }
        match &mut state.note {
            Some(note) => note.note_first(name.queue, name.number + 1),
            None => Ok(()),
        }
    }
}

/// Where the last files without a gap between them begin. What is before a gap was not needed any more,
/// but was kept to be used again.
fn first_without_gap(numbers: &BTreeSet<u64>) -> u64 {
    let mut first = numbers.last().copied().unwrap_or(1);
    while first > 1 && numbers.contains(&(first - 1)) {
        first -= 1;
    }
    first
}

impl<F: FileSystem> FileSystem for WatchedFiles<F> {
    type Handle = WatchedHandle<F>;
    type Reader = F::Reader;
    type Writer = WatchedWriter<F>;

    fn create<P: AsRef<Path>>(&self, path: P) -> Result<WatchedHandle<F>> {
        self.prepare()?;
        let plain = self.plain.create(path.as_ref())?;
        Ok(self.handle(plain, path.as_ref(), Permission::ReadWrite))
    }

    fn open<P: AsRef<Path>>(&self, path: P, permission: Permission) -> Result<WatchedHandle<F>> {
        self.prepare()?;
        let plain = self.plain.open(path.as_ref(), permission)?;
        Ok(self.handle(plain, path.as_ref(), permission))
    }

    fn delete<P: AsRef<Path>>(&self, path: P) -> Result<()> {
        self.not_needed(path.as_ref())?;
        self.plain.delete(path)
    }

    fn rename<P: AsRef<Path>>(&self, from: P, to: P) -> Result<()> {
        self.not_needed(from.as_ref())?;
        self.plain.rename(from, to)
    }

    fn reuse<P: AsRef<Path>>(&self, from: P, to: P) -> Result<()> {
        self.not_needed(from.as_ref())?;
        self.plain.reuse(from, to)
    }

    fn delete_metadata<P: AsRef<Path>>(&self, path: P) -> Result<()> {
        self.plain.delete_metadata(path)
    }

    fn exists_metadata<P: AsRef<Path>>(&self, path: P) -> bool {
        self.plain.exists_metadata(path)
    }

    fn new_reader(&self, handle: Arc<WatchedHandle<F>>) -> Result<F::Reader> {
        self.plain.new_reader(handle.plain.clone())
    }

    fn new_writer(&self, handle: Arc<WatchedHandle<F>>) -> Result<WatchedWriter<F>> {
        let plain = self.plain.new_writer(handle.plain.clone())?;
        let (written, watch) = (handle.written.clone(), self.watch.clone());
        Ok(WatchedWriter { plain, at: 0, written, watch })
    }
}

impl<F: FileSystem> Handle for WatchedHandle<F> {
    /// Called while the log is opened, for what cannot be read.
    fn truncate(&self, offset: usize) -> Result<()> {
        if let Some(name) = self.name {
            let mut state = self.watch.state.lock();
            let noted = state.note.as_ref().and_then(|note| note.length(name)).unwrap_or(0);
            let closed = self.permission == Permission::ReadOnly;
            let synced = if closed { self.plain.file_size()? as u64 } else { noted };
            if (offset as u64) < synced {
                let lost = synced - offset as u64;
                let text =
                    format!("the file {name} is readable up to byte {offset} only, but {synced}");
                let error = damaged(&format!("{text} bytes of it were synced: {lost} are damaged"));
                state.refusal = Some(error.to_string());
                return Err(error);
            }
        }
        self.plain.truncate(offset)
    }

    fn file_size(&self) -> Result<usize> {
        self.plain.file_size()
    }

    fn sync(&self) -> Result<()> {
        // Under the lock, so that no later sync succeeds while the first failure is being noted.
        let mut state = self.watch.state.lock();
        if state.failure.is_some() {
            return Ok(());
        }
        // Before the sync, which covers what was written by now.
        let written = *self.written.lock();
        let synced = self.plain.sync().and_then(|()| self.note(&mut state, written));
        let Err(error) = synced else { return Ok(()) };
        state.failure = Some(error.to_string());
        if state.closing {
            tracing::warn!(%error, "the log cannot be synced on closing");
            return Ok(());
        }
        Err(error)
    }
}

impl<F: FileSystem> WatchedHandle<F> {
    fn note(&self, state: &mut State<F>, written: Written) -> Result<()> {
        let (Some(name), Some(end), Some(note)) = (self.name, written.end, &mut state.note) else {
            return Ok(());
        };
        if written.new {
            self.written.lock().new = false;
            return Ok(());
        }
        note.note_length(name, end)
    }
}

/// Writes to a file, and remembers how far.
pub(super) struct WatchedWriter<F: FileSystem> {
    plain: F::Writer,
    at: u64,
    written: Arc<Mutex<Written>>,
    watch: Arc<Watch<F>>,
}

impl<F: FileSystem> WatchedWriter<F> {
    fn moved(&mut self, at: u64) {
        self.at = at;
        self.written.lock().end = Some(at);
    }
}

impl<F: FileSystem> Write for WatchedWriter<F> {
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        let begins = self.at == 0 && self.watch.state.lock().opened;
        let length = self.plain.write(bytes)?;
        self.moved(self.at + length as u64);
        if begins {
            self.written.lock().new = true;
        }
        Ok(length)
    }

    fn flush(&mut self) -> Result<()> {
        self.plain.flush()
    }
}

impl<F: FileSystem> Seek for WatchedWriter<F> {
    fn seek(&mut self, to: SeekFrom) -> Result<u64> {
        let at = self.plain.seek(to)?;
        self.moved(at);
        Ok(at)
    }
}

impl<F: FileSystem> WriteExt for WatchedWriter<F> {
    fn truncate(&mut self, offset: usize) -> Result<()> {
        self.plain.truncate(offset)?;
        self.moved(offset as u64);
        Ok(())
    }

    fn allocate(&mut self, offset: usize, size: usize) -> Result<()> {
        self.plain.allocate(offset, size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use raft_engine::env::DefaultFileSystem;

    #[test]
    fn the_first_failed_sync_is_noted_and_later_ones_do_nothing() {
        let dir = tempfile::tempdir().expect("a directory");
        let files = WatchedFiles::new(Arc::new(DefaultFileSystem), dir.path());
        // A device that cannot be synced: the failure is the kernel's own.
        let device = files.open("/dev/null", Permission::ReadWrite).expect("it is there");
        assert_eq!(files.watch.failure(), None);
        let error = device.sync().expect_err("a device has no data to sync");
        assert_eq!(files.watch.failure(), Some(error.to_string()));
        device.sync().expect("nothing is promised any more, so nothing is refused");
        assert_eq!(files.watch.failure(), Some(error.to_string()));
        let log = dir.path().join("0000000000000001.raftlog");
        drop(files.create(&log).expect("created"));
        let kept = files.delete(&log).expect_err("its copy may not be on disk").to_string();
        assert!(kept.contains("0000000000000001.raftlog is kept"), "{kept}");
        assert!(log.exists());
    }

    #[test]
    fn a_new_file_is_noted_with_the_sync_after_that_of_its_directory() {
        let dir = tempfile::tempdir().expect("a directory");
        let files = WatchedFiles::new(Arc::new(DefaultFileSystem), dir.path());
        let noted = |number| {
            let name = LogFileName { queue: Queue::Append, number };
            files.watch.state.lock().note.as_ref().expect("opened").length(name)
        };
        let begin = |number| {
            let path = dir.path().join(format!("{number:016}.raftlog"));
            let handle = Arc::new(files.create(path).expect("created"));
            let mut writer = files.new_writer(handle.clone()).expect("opened");
            writer.write_all(&[1; 69]).expect("written");
            handle.sync().expect("synced");
            (handle, writer)
        };
        let (_first, _writer) = begin(1);
        assert_eq!(noted(1), Some(69), "the directory is synced when all is open");
        files.watch.opened();
        let (handle, mut writer) = begin(2);
        assert_eq!(noted(2), None);
        writer.allocate(69, 10_000).expect("allocated");
        writer.write_all(&[2; 31]).expect("written");
        assert_eq!(noted(2), None);
        handle.sync().expect("synced");
        assert_eq!(noted(2), Some(100), "without what was only allocated");
    }

    #[test]
    fn files_before_a_gap_are_not_needed() {
        let first = |numbers: &[u64]| first_without_gap(&numbers.iter().copied().collect());
        assert_eq!(first(&[]), 1);
        assert_eq!(first(&[1, 2, 3]), 1);
        assert_eq!(first(&[1, 2, 5, 6]), 5);
    }
}
