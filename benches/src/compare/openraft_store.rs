//! What openraft is given to store things in: a log and a state machine, both in memory.
//!
//! Nothing here waits: entries are in the log, and called persisted, before an append returns. A lock stands
//! around the log because openraft reads it from its replication tasks as well; it is held for moments.

use std::collections::VecDeque;
use std::fmt::{self, Debug};
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;

use bytes::Bytes;
use openraft::error::ClientWriteError;
use openraft::raft::responder::Responder;
use openraft::raft::ClientWriteResult;
use openraft::storage::{LogFlushed, RaftLogStorage, RaftStateMachine};
use openraft::{
    EmptyNode, Entry, EntryPayload, LogId, LogState, RaftLogReader, RaftSnapshotBuilder, Snapshot,
    SnapshotMeta, StorageError, StoredMembership, Vote,
};
use parking_lot::Mutex;

use super::books::Books;
use crate::stress::ledger::Book;
use crate::stress::subject::{Outcome, Whom};

openraft::declare_raft_types!(
    /// The types openraft is used with: a snapshot is a copy of the book, handed over as it is.
    pub Types:
        D = Write,
        R = (),
        NodeId = u64,
        Node = EmptyNode,
        Entry = Entry<Types>,
        SnapshotData = Book,
        Responder = Callback,
        AsyncRuntime = openraft::TokioRuntime,
);

type Stored<T> = Result<T, StorageError<u64>>;
type Done = Box<dyn FnOnce(Outcome) + Send>;

/// A write on its way to the leader, and later in the logs.
pub struct Write {
    bytes: Bytes,
    /// Taken out before the write is appended; the lock is there because openraft shares what it logs.
    done: Mutex<Option<Done>>,
}

impl Write {
    /// A write whose `done` is called once.
    pub fn new(bytes: Bytes, done: Done) -> Self {
        Self { bytes, done: Mutex::new(Some(done)) }
    }
}

impl Clone for Write {
    fn clone(&self) -> Self {
        Self { bytes: self.bytes.clone(), done: Mutex::new(None) }
    }
}

/// Hears of one write's end. Dropped unheard, as when a Raft is gone, it says that nobody knows.
pub struct Callback(Option<Done>);

impl Responder<Types> for Callback {
    type Receiver = ();

    fn from_app_data(write: Write) -> (Write, Self, ()) {
        let done = write.done.lock().take();
        (write, Self(done), ())
    }

    fn send(mut self, result: ClientWriteResult<Types>) {
        let outcome = match result {
            Ok(_) => Outcome::Applied,
            Err(ClientWriteError::ForwardToLeader(forward)) => {
                Outcome::Again(match forward.leader_id {
                    Some(leader) => Whom::Store((leader - 1) as usize),
                    None => Whom::Next,
                })
            }
            Err(ClientWriteError::ChangeMembershipError(_)) => Outcome::Refused,
        };
        if let Some(done) = self.0.take() {
            done(outcome);
        }
    }
}

impl Drop for Callback {
    fn drop(&mut self) {
        if let Some(done) = self.0.take() {
            done(Outcome::Unknown);
        }
    }
}

/// The log of one peer. Clones share it.
#[derive(Clone, Default)]
pub struct Log(Arc<Mutex<LogInner>>);

#[derive(Default)]
struct LogInner {
    vote: Option<Vote<u64>>,
    purged: Option<LogId<u64>>,
    /// Invariant: without a gap, and the first one follows `purged`.
    entries: VecDeque<Entry<Types>>,
}

impl LogInner {
    /// How many entries lie before `index`.
    fn before(&self, index: u64) -> usize {
        let first = self.entries.front().map_or(index, |entry| entry.log_id.index);
        (index.saturating_sub(first) as usize).min(self.entries.len())
    }
}

impl RaftLogReader<Types> for Log {
    async fn try_get_log_entries<R>(&mut self, range: R) -> Stored<Vec<Entry<Types>>>
    where
        R: RangeBounds<u64> + Clone + Debug + Send,
    {
        let log = self.0.lock();
        let from = match range.start_bound() {
            Bound::Included(index) => log.before(*index),
            Bound::Excluded(index) => log.before(*index + 1),
            Bound::Unbounded => 0,
        };
        let to = match range.end_bound() {
            Bound::Included(index) => log.before(*index + 1),
            Bound::Excluded(index) => log.before(*index),
            Bound::Unbounded => log.entries.len(),
        };
        Ok(log.entries.range(from..to.max(from)).cloned().collect())
    }
}

impl RaftLogStorage<Types> for Log {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Stored<LogState<Types>> {
        let log = self.0.lock();
        let last_log_id = log.entries.back().map(|entry| entry.log_id).or(log.purged);
        Ok(LogState { last_purged_log_id: log.purged, last_log_id })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote<u64>) -> Stored<()> {
        self.0.lock().vote = Some(*vote);
        Ok(())
    }

    async fn read_vote(&mut self) -> Stored<Option<Vote<u64>>> {
        Ok(self.0.lock().vote)
    }

    async fn append<I>(&mut self, entries: I, callback: LogFlushed<Types>) -> Stored<()>
    where
        I: IntoIterator<Item = Entry<Types>> + Send,
        I::IntoIter: Send,
    {
        self.0.lock().entries.extend(entries);
        callback.log_io_completed(Ok(()));
        Ok(())
    }

    async fn truncate(&mut self, log_id: LogId<u64>) -> Stored<()> {
        let mut log = self.0.lock();
        let kept = log.before(log_id.index);
        log.entries.truncate(kept);
        Ok(())
    }

    async fn purge(&mut self, log_id: LogId<u64>) -> Stored<()> {
        let mut log = self.0.lock();
        let gone = log.before(log_id.index + 1);
        log.entries.drain(..gone);
        log.purged = Some(log_id);
        Ok(())
    }
}

/// The state machine of one peer.
pub struct Machine {
    books: Arc<Books>,
    region: u64,
    applied: Option<LogId<u64>>,
    membership: StoredMembership<u64, EmptyNode>,
    snapshot: Arc<Mutex<Option<Snapshot<Types>>>>,
}

impl Machine {
    /// Applies the writes of a region to its book among these.
    pub fn new(books: Arc<Books>, region: u64) -> Self {
        Self {
            books,
            region,
            applied: None,
            membership: StoredMembership::default(),
            snapshot: Arc::default(),
        }
    }
}

impl RaftStateMachine<Types> for Machine {
    type SnapshotBuilder = Builder;

    async fn applied_state(
        &mut self,
    ) -> Stored<(Option<LogId<u64>>, StoredMembership<u64, EmptyNode>)> {
        Ok((self.applied, self.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Stored<Vec<()>>
    where
        I: IntoIterator<Item = Entry<Types>> + Send,
        I::IntoIter: Send,
    {
        let mut book = self.books.of(self.region);
        let mut answers = Vec::new();
        for entry in entries {
            self.applied = Some(entry.log_id);
            match entry.payload {
                EntryPayload::Normal(write) => book.apply(&write.bytes),
                EntryPayload::Membership(membership) => {
                    self.membership = StoredMembership::new(Some(entry.log_id), membership);
                }
                EntryPayload::Blank => {}
            }
            answers.push(());
        }
        Ok(answers)
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        let meta = SnapshotMeta {
            last_log_id: self.applied,
            last_membership: self.membership.clone(),
            snapshot_id: self.applied.map_or(String::new(), |applied| applied.to_string()),
        };
        let book = Box::new(self.books.of(self.region).clone());
        Builder { made: Snapshot { meta, snapshot: book }, current: self.snapshot.clone() }
    }

    async fn begin_receiving_snapshot(&mut self) -> Stored<Box<Book>> {
        Ok(Box::default())
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta<u64, EmptyNode>,
        snapshot: Box<Book>,
    ) -> Stored<()> {
        *self.books.of(self.region) = (*snapshot).clone();
        self.applied = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        *self.snapshot.lock() = Some(Snapshot { meta: meta.clone(), snapshot });
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Stored<Option<Snapshot<Types>>> {
        Ok(self.snapshot.lock().clone())
    }
}

/// Keeps a copy of the book that was taken when this was made.
pub struct Builder {
    made: Snapshot<Types>,
    current: Arc<Mutex<Option<Snapshot<Types>>>>,
}

impl RaftSnapshotBuilder<Types> for Builder {
    async fn build_snapshot(&mut self) -> Stored<Snapshot<Types>> {
        *self.current.lock() = Some(self.made.clone());
        Ok(self.made.clone())
    }
}

impl Debug for Write {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.bytes.len())
    }
}
