//! Files in memory, for a log that is crashed, filled up and damaged on purpose.

use super::content::Content;
use crate::Random;
use parking_lot::Mutex;
use raftstore::engine_files::{FileSystem, Handle, Permission, WriteExt};
use std::collections::BTreeMap;
use std::fmt;
use std::io::{Error, ErrorKind, Read, Result, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A disk of one machine: give it to `RaftEngineLogStore::open_with_file_system` again and again.
///
/// Clones are the same disk. The contents are in memory; for each file there is an empty one of the same
/// name on the real disk, since raft-engine lists its directory there.
///
/// * A crash is [`freeze`](Self::freeze), dropping the store, and [`crash`](Self::crash).
/// * Creating, removing and renaming a file is durable at once. (raft-engine syncs its directory, but
///   past this seam.)
/// * What a failed sync covered may be lost in a crash even if a later sync succeeds.
///
/// It draws no random number but from what is handed in, and the order of its files is that of their
/// creation, so the same calls give the same files.
#[derive(Clone, Default)]
pub struct SimFiles {
    disk: Arc<Mutex<Disk>>,
}

/// How a write fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteFault {
    /// EIO: the device failed.
    Io,
    /// ENOSPC: the device is full.
    NoSpace,
}

/// How often each fault has struck.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Struck {
    /// Writes that failed with EIO.
    pub io: u64,
    /// Writes that failed with ENOSPC, for want of capacity too.
    pub no_space: u64,
    /// Syncs that failed.
    pub sync: u64,
    /// Calls that came after the process was dead.
    pub frozen: u64,
}

/// A bit that was flipped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flip {
    /// The file's name at the time.
    pub path: PathBuf,
    /// Which byte.
    pub offset: usize,
    /// Which bit of it, from the lowest.
    pub bit: u8,
    inode: u64,
    was: u8,
}

#[derive(Debug, Default)]
struct Disk {
    names: BTreeMap<PathBuf, u64>,
    inodes: BTreeMap<u64, Inode>,
    next_inode: u64,
    /// Processes so far. A handle of an earlier one is dead.
    process: u64,
    frozen: bool,
    capacity: Option<u64>,
    /// Writes to come before the one that fails, how, and whether a part of it is written.
    write_fault: Option<(u64, WriteFault, bool)>,
    /// Syncs to come before the one that fails.
    sync_fault: Option<u64>,
    struck: Struck,
}

/// A file, named or not.
#[derive(Debug, Default)]
struct Inode {
    content: Content,
    handles: u64,
    named: bool,
}

impl SimFiles {
    /// An empty disk without bounds.
    pub fn new() -> Self {
        Self::default()
    }

    /// From now on the process is dead: every call fails and changes nothing, until the
    /// [`crash`](Self::crash).
    pub fn freeze(&self) {
        self.disk.lock().frozen = true;
    }

    /// Takes away what was not synced, or a part of it, file by file: all, none, what was written
    /// last, or any of the sectors of 512 bytes. What was cut off may be there again. Then the next process
    /// may come; handles of the one before are dead for good. Faults that have not struck are taken back.
    pub fn crash(&self, random: &mut Random) {
        let mut disk = self.disk.lock();
        for inode in disk.inodes.values_mut() {
            inode.content.crash(random);
        }
        disk.frozen = false;
        disk.process += 1;
        disk.write_fault = None;
        disk.sync_fault = None;
    }

    /// Flips a bit of what is synced: in half of all cases in the last file of a kind, else in any file.
    /// `None` if there is nothing to flip.
    pub fn flip_bit(&self, random: &mut Random) -> Option<Flip> {
        let mut disk = self.disk.lock();
        let mut last_of_kind = BTreeMap::new();
        let mut all = Vec::new();
        for (path, inode) in &disk.names {
            if disk.inodes[inode].content.synced_len() > 0 {
                last_of_kind.insert(path.extension().map(ToOwned::to_owned), (path, *inode));
                all.push((path, *inode));
            }
        }
        if all.is_empty() {
            return None;
        }
        let candidates =
            if random.chance(500) { last_of_kind.into_values().collect() } else { all };
        let (path, inode) = *random.pick(&candidates);
        let path = path.clone();
        let content = &mut disk.inodes.get_mut(&inode).expect("named").content;
        let offset = random.index(content.synced_len());
        let bit = random.below(8) as u8;
        let was = content.synced_byte(offset);
        content.exchange(offset, None, was ^ 1 << bit);
        Some(Flip { path, offset, bit, inode, was })
    }

    /// Flips it back, if the byte was not written or cut off since. Returns whether it did.
    pub fn undo(&self, flip: &Flip) -> bool {
        let mut disk = self.disk.lock();
        let Some(inode) = disk.inodes.get_mut(&flip.inode) else { return false };
        let flipped = flip.was ^ 1 << flip.bit;
        inode.content.exchange(flip.offset, Some(flipped), flip.was).is_some()
    }

    /// The write after `after` others fails, once; before, `partly`, with a part of it written.
    pub fn fail_write(&self, after: u64, fault: WriteFault, partly: bool) {
        self.disk.lock().write_fault = Some((after, fault, partly));
    }

    /// The sync after `after` others fails with EIO, once.
    pub fn fail_sync(&self, after: u64) {
        self.disk.lock().sync_fault = Some(after);
    }

    /// Bounds what all files may hold, in bytes.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.disk.lock().capacity = bytes;
    }

    /// What all files hold, in bytes.
    pub fn used_bytes(&self) -> u64 {
        self.disk.lock().used_bytes()
    }

    /// Handles that were not dropped, readers and writers included.
    pub fn open_handles(&self) -> u64 {
        self.disk.lock().inodes.values().map(|inode| inode.handles).sum()
    }

    /// How often each fault has struck.
    pub fn struck(&self) -> Struck {
        self.disk.lock().struck
    }

    fn open_inode(&self, disk: &mut Disk, inode: u64, permission: Permission) -> SimHandle {
        disk.inodes.get_mut(&inode).expect("it has a name").handles += 1;
        SimHandle { disk: self.disk.clone(), inode, process: disk.process, permission }
    }
}

impl fmt::Debug for SimFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let disk = self.disk.lock();
        f.debug_struct("SimFiles").field("files", &disk.names.keys()).finish_non_exhaustive()
    }
}

fn io_error(text: &str) -> Error {
    Error::other(text.to_owned())
}

fn no_space() -> Error {
    // raft-engine looks for this word.
    Error::new(ErrorKind::StorageFull, "nospace")
}

impl Disk {
    fn used_bytes(&self) -> u64 {
        self.inodes.values().map(|inode| inode.content.len() as u64).sum()
    }

    fn alive(&mut self) -> Result<()> {
        if self.frozen {
            self.struck.frozen += 1;
            return Err(io_error("the process is dead"));
        }
        Ok(())
    }

    fn alive_in(&mut self, process: u64) -> Result<()> {
        if process != self.process {
            self.struck.frozen += 1;
            return Err(io_error("the process is dead"));
        }
        self.alive()
    }

    fn content(&mut self, inode: u64) -> &mut Content {
        &mut self.inodes.get_mut(&inode).expect("there while a handle is open").content
    }

    /// How many of the bytes there is room for.
    fn room(&mut self, inode: u64, at: usize, length: usize) -> usize {
        let Some(capacity) = self.capacity else { return length };
        let free = capacity.saturating_sub(self.used_bytes()) as usize;
        (self.content(inode).len() + free).saturating_sub(at).min(length)
    }

    fn write(&mut self, inode: u64, at: usize, bytes: &[u8]) -> Result<()> {
        if let Some((after, fault, partly)) = self.write_fault {
            self.write_fault = after.checked_sub(1).map(|after| (after, fault, partly));
            if after == 0 {
                let part = if partly { bytes.len() / 2 } else { 0 };
                self.content(inode).write(at, &bytes[..part]);
                return Err(match fault {
                    WriteFault::Io => {
                        self.struck.io += 1;
                        io_error("injected EIO")
                    }
                    WriteFault::NoSpace => {
                        self.struck.no_space += 1;
                        no_space()
                    }
                });
            }
        }
        let room = self.room(inode, at, bytes.len());
        self.content(inode).write(at, &bytes[..room]);
        if room < bytes.len() {
            self.struck.no_space += 1;
            return Err(no_space());
        }
        Ok(())
    }

    fn sync(&mut self, inode: u64) -> Result<()> {
        if let Some(after) = self.sync_fault {
            self.sync_fault = after.checked_sub(1);
            if after == 0 {
                self.struck.sync += 1;
                self.content(inode).fail_sync();
                return Err(io_error("injected EIO"));
            }
        }
        self.content(inode).sync();
        Ok(())
    }

    /// Gives up the name, and the file unless it is open.
    fn unlink(&mut self, path: &Path) -> Option<u64> {
        let inode = self.names.remove(path)?;
        self.inodes.get_mut(&inode)?.named = false;
        self.forget(inode);
        Some(inode)
    }

    fn forget(&mut self, inode: u64) {
        if self.inodes.get(&inode).is_some_and(|inode| inode.handles == 0 && !inode.named) {
            self.inodes.remove(&inode);
        }
    }
}

impl FileSystem for SimFiles {
    type Handle = SimHandle;
    type Reader = SimReader;
    type Writer = SimWriter;

    fn create<P: AsRef<Path>>(&self, path: P) -> Result<SimHandle> {
        let mut disk = self.disk.lock();
        disk.alive()?;
        let path = path.as_ref();
        let inode = match disk.names.get(path) {
            Some(inode) => *inode,
            None => {
                std::fs::File::create(path)?;
                let inode = disk.next_inode;
                disk.next_inode += 1;
                disk.names.insert(path.to_owned(), inode);
                disk.inodes.insert(inode, Inode { named: true, ..Inode::default() });
                inode
            }
        };
        Ok(self.open_inode(&mut disk, inode, Permission::ReadWrite))
    }

    fn open<P: AsRef<Path>>(&self, path: P, permission: Permission) -> Result<SimHandle> {
        let mut disk = self.disk.lock();
        disk.alive()?;
        let inode = disk.names.get(path.as_ref()).copied();
        let inode = inode.ok_or_else(|| Error::from(ErrorKind::NotFound))?;
        Ok(self.open_inode(&mut disk, inode, permission))
    }

    fn delete<P: AsRef<Path>>(&self, path: P) -> Result<()> {
        let mut disk = self.disk.lock();
        disk.alive()?;
        std::fs::remove_file(path.as_ref())?;
        disk.unlink(path.as_ref()).map(|_| ()).ok_or_else(|| Error::from(ErrorKind::NotFound))
    }

    fn rename<P: AsRef<Path>>(&self, from: P, to: P) -> Result<()> {
        let mut disk = self.disk.lock();
        disk.alive()?;
        std::fs::rename(from.as_ref(), to.as_ref())?;
        let inode = disk.names.remove(from.as_ref());
        let inode = inode.ok_or_else(|| Error::from(ErrorKind::NotFound))?;
        disk.unlink(to.as_ref());
        disk.names.insert(to.as_ref().to_owned(), inode);
        Ok(())
    }

    fn new_reader(&self, handle: Arc<SimHandle>) -> Result<SimReader> {
        Ok(SimReader { handle, at: 0 })
    }

    fn new_writer(&self, handle: Arc<SimHandle>) -> Result<SimWriter> {
        Ok(SimWriter { handle, at: 0 })
    }
}

/// An open file of [`SimFiles`].
pub struct SimHandle {
    disk: Arc<Mutex<Disk>>,
    inode: u64,
    process: u64,
    permission: Permission,
}

impl SimHandle {
    /// Runs a call of the process that opened it.
    fn call<T>(&self, call: impl FnOnce(&mut Disk, u64) -> Result<T>) -> Result<T> {
        let mut disk = self.disk.lock();
        disk.alive_in(self.process)?;
        call(&mut disk, self.inode)
    }

    fn change<T>(&self, call: impl FnOnce(&mut Disk, u64) -> Result<T>) -> Result<T> {
        if self.permission == Permission::ReadOnly {
            return Err(io_error("opened for reading only"));
        }
        self.call(call)
    }

    fn seek(&self, at: usize, to: SeekFrom) -> Result<usize> {
        let (from, offset) = match to {
            SeekFrom::Start(offset) => return Ok(offset as usize),
            SeekFrom::Current(offset) => (at, offset),
            SeekFrom::End(offset) => (self.file_size()?, offset),
        };
        from.checked_add_signed(offset as isize).ok_or_else(|| ErrorKind::InvalidInput.into())
    }
}

impl Handle for SimHandle {
    fn truncate(&self, offset: usize) -> Result<()> {
        self.change(|disk, inode| {
            disk.content(inode).truncate(offset);
            Ok(())
        })
    }

    fn file_size(&self) -> Result<usize> {
        self.call(|disk, inode| Ok(disk.content(inode).len()))
    }

    fn sync(&self) -> Result<()> {
        self.call(|disk, inode| disk.sync(inode))
    }
}

impl Drop for SimHandle {
    fn drop(&mut self) {
        let mut disk = self.disk.lock();
        if let Some(inode) = disk.inodes.get_mut(&self.inode) {
            inode.handles -= 1;
        }
        disk.forget(self.inode);
    }
}

impl fmt::Debug for SimHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimHandle").field("inode", &self.inode).finish_non_exhaustive()
    }
}

/// Reads a file of [`SimFiles`].
#[derive(Debug)]
pub struct SimReader {
    handle: Arc<SimHandle>,
    at: usize,
}

impl Read for SimReader {
    fn read(&mut self, bytes: &mut [u8]) -> Result<usize> {
        let at = self.at;
        let length = self.handle.call(|disk, inode| Ok(disk.content(inode).read(at, bytes)))?;
        self.at += length;
        Ok(length)
    }
}

impl Seek for SimReader {
    fn seek(&mut self, to: SeekFrom) -> Result<u64> {
        self.at = self.handle.seek(self.at, to)?;
        Ok(self.at as u64)
    }
}

/// Writes a file of [`SimFiles`].
#[derive(Debug)]
pub struct SimWriter {
    handle: Arc<SimHandle>,
    at: usize,
}

impl Write for SimWriter {
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        let at = self.at;
        self.handle.change(|disk, inode| disk.write(inode, at, bytes))?;
        self.at += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> Result<()> {
        Ok(())
    }
}

impl Seek for SimWriter {
    fn seek(&mut self, to: SeekFrom) -> Result<u64> {
        self.at = self.handle.seek(self.at, to)?;
        Ok(self.at as u64)
    }
}

impl WriteExt for SimWriter {
    fn truncate(&mut self, offset: usize) -> Result<()> {
        self.handle.truncate(offset)?;
        self.at = offset;
        Ok(())
    }

    fn allocate(&mut self, offset: usize, size: usize) -> Result<()> {
        self.handle.change(|disk, inode| {
            if disk.room(inode, offset, size) < size {
                return Err(no_space());
            }
            disk.content(inode).grow(offset + size);
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(files: &SimFiles, handle: &Arc<SimHandle>, at: u64, bytes: &[u8]) -> Result<()> {
        let mut writer = files.new_writer(handle.clone())?;
        writer.seek(SeekFrom::Start(at))?;
        writer.write_all(bytes)
    }

    fn read(files: &SimFiles, path: &Path) -> Vec<u8> {
        let handle = Arc::new(files.open(path, Permission::ReadOnly).expect("there"));
        let mut bytes = Vec::new();
        files.new_reader(handle).expect("opened").read_to_end(&mut bytes).expect("read");
        bytes
    }

    #[test]
    fn files_keep_their_contents_under_a_new_name_and_until_the_last_handle() {
        let dir = tempfile::tempdir().expect("a directory");
        let (one, two) = (dir.path().join("1.log"), dir.path().join("2.log"));
        let files = SimFiles::new();
        let handle = Arc::new(files.create(&one).expect("created"));
        write(&files, &handle, 0, b"hello").expect("written");
        files.rename(&one, &two).expect("renamed");
        assert!(!one.exists() && two.exists());
        write(&files, &handle, 5, b" world").expect("written under the new name");
        assert_eq!(read(&files, &two), b"hello world");
        let reading = files.open(&two, Permission::ReadOnly).expect("there");
        assert!(reading.truncate(0).is_err(), "only for reading");
        files.delete(&two).expect("deleted");
        assert!(!two.exists() && files.open(&two, Permission::ReadOnly).is_err());
        assert_eq!((handle.file_size().expect("open"), files.open_handles()), (11, 2));
        drop((handle, reading));
        assert_eq!((files.used_bytes(), files.open_handles()), (0, 0));
    }

    #[test]
    fn a_dead_process_changes_nothing() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("1.log");
        let files = SimFiles::new();
        let handle = Arc::new(files.create(&path).expect("created"));
        write(&files, &handle, 0, b"kept").expect("written");
        handle.sync().expect("synced");
        files.freeze();
        assert!(write(&files, &handle, 0, b"late").is_err() && handle.sync().is_err());
        assert!(files.delete(&path).is_err() && files.rename(&path, &path).is_err());
        assert!(files.create(dir.path().join("2.log")).is_err() && handle.truncate(0).is_err());
        files.crash(&mut Random::new(1));
        assert_eq!(read(&files, &path), b"kept");
        assert!(write(&files, &handle, 0, b"late").is_err(), "its process is dead for good");
        assert_eq!(files.struck().frozen, 7);
    }

    #[test]
    fn faults_strike_once_when_they_are_due() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("1.log");
        let files = SimFiles::new();
        let handle = Arc::new(files.create(&path).expect("created"));
        files.fail_write(1, WriteFault::Io, true);
        write(&files, &handle, 0, b"abcd").expect("not yet due");
        write(&files, &handle, 4, b"efgh").expect_err("due");
        assert_eq!(read(&files, &path), b"abcdef", "written in part");
        files.fail_write(0, WriteFault::NoSpace, false);
        let error = write(&files, &handle, 4, b"efgh").expect_err("due").to_string();
        assert!(error.contains("nospace"));
        files.fail_sync(0);
        handle.sync().expect_err("due");
        handle.sync().expect("once");
        files.set_capacity(Some(8));
        write(&files, &handle, 4, b"12345").expect_err("one byte too many");
        assert_eq!(read(&files, &path), b"abcd1234");
        let mut writer = files.new_writer(handle.clone()).expect("opened");
        writer.allocate(0, 8).expect("it has them");
        writer.allocate(8, 1).expect_err("full");
        let struck = Struck { io: 1, no_space: 2, sync: 1, frozen: 0 };
        assert_eq!((files.struck(), files.used_bytes()), (struck, 8));
    }

    #[test]
    fn a_flipped_bit_is_on_disk_and_can_be_flipped_back() {
        let dir = tempfile::tempdir().expect("a directory");
        let files = SimFiles::new();
        let mut random = Random::new(9);
        assert_eq!(files.flip_bit(&mut random), None);
        let mut hits = BTreeMap::new();
        for number in 1..=5 {
            let handle =
                Arc::new(files.create(dir.path().join(format!("{number}.log"))).expect("created"));
            write(&files, &handle, 0, &[7; 50]).expect("written");
            handle.sync().expect("synced");
        }
        for _ in 0..1000 {
            let flip = files.flip_bit(&mut random).expect("something is synced");
            files.crash(&mut random);
            assert_eq!(read(&files, &flip.path)[flip.offset], 7 ^ 1 << flip.bit);
            assert!(files.undo(&flip) && !files.undo(&flip));
            assert_eq!(read(&files, &flip.path), [7; 50]);
            *hits.entry(flip.path).or_insert(0) += 1;
        }
        assert!(hits.len() == 5 && hits[&dir.path().join("5.log")] > 500, "{hits:?}");
    }
}
