//! What users of a running store hold.

use crate::clock::Clock;
use crate::cold::ColdRegions;
use crate::creator::Creator;
use crate::error::{StartError, StoreFailure};
use crate::health::Health;
use crate::in_turn::in_turn;
use crate::inspect::Queues;
use crate::liveness::{Liveness, StorePing};
use crate::message::{RegionMessage, StoreMessage};
use crate::metrics::Metrics;
use crate::published::Directory;
use crate::range_map::RangeMap;
use crate::read_gate::ReadGates;
use crate::region_fsm::RegionRouter;
use crate::snapshot::{SnapshotMessage, StreamTask};
use crate::store_fsm::SetAside;
use batch_system::SendError;
use bytes::Bytes;
use futures_channel::oneshot;
use parking_lot::Mutex;
use raft::eraftpb::MessageType;
use region::{
    Answer, Callback, Envelope, Proposal, ProposeError, RegionDescription, RegionEpoch, RegionId,
    RegionStatus, StoreId,
};
use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::task::{Context, Poll};

/// A command to propose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    payload: Bytes,
    epoch: Option<RegionEpoch>,
}

impl Write {
    /// A command for the state machine.
    pub fn new(payload: impl Into<Bytes>) -> Self {
        Self { payload: payload.into(), epoch: None }
    }

    /// The epoch of the region as the caller knows it: if the region has another one when the command
    /// is proposed or applied, the answer is `EpochNotMatch` and the command has no effect. Without
    /// it, the region's epoch at the time of the proposal is taken.
    pub fn at_epoch(mut self, epoch: RegionEpoch) -> Self {
        self.epoch = Some(epoch);
        self
    }
}

impl<T: Into<Bytes>> From<T> for Write {
    fn from(payload: T) -> Self {
        Self::new(payload)
    }
}

/// A handle on a running store. Clones are cheap and may outlive the store: then everything is
/// refused.
#[derive(Clone)]
pub struct StoreHandle {
    pub(crate) inner: Arc<HandleInner>,
}

pub(crate) struct HandleInner {
    pub(crate) store_id: StoreId,
    pub(crate) cluster_id: u64,
    pub(crate) router: RegionRouter,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) health: Arc<Health>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) ranges: Arc<RangeMap>,
    pub(crate) gates: Arc<ReadGates>,
    pub(crate) set_aside: SetAside,
    pub(crate) directory: Arc<Directory>,
    pub(crate) queues: Queues,
    pub(crate) liveness: Arc<Liveness>,
    pub(crate) cold: Arc<ColdRegions>,
    /// Gone once the store has stopped, so that a handle does not keep the log store open.
    pub(crate) creator: Mutex<Option<Arc<Creator>>>,
    pub(crate) stopped: AtomicBool,
    pub(crate) max_proposal_bytes: usize,
}

impl fmt::Debug for StoreHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreHandle")
            .field("store", &self.inner.store_id)
            .field("regions", &self.region_count())
            .field("leaders", &self.inner.metrics.leaders())
            .finish_non_exhaustive()
    }
}

impl StoreHandle {
    /// The store.
    pub fn store_id(&self) -> StoreId {
        self.inner.store_id
    }

    /// Proposes and waits for the answer. Not from a callback: that would block a poller.
    ///
    /// # Errors
    /// See [`ProposeError`]; each says what to do.
    pub fn propose(&self, region: RegionId, write: impl Into<Write>) -> Answer {
        let (sender, answer) = crossbeam::channel::bounded(1);
        self.propose_with(region, write, move |answer| {
            let _ = sender.send(answer);
        });
        answer.recv().unwrap_or_else(|_| Err(unknown(region)))
    }

    /// Proposes; the answer is given to `callback`, exactly once, on a thread of the store, or on
    /// this one if it is refused at once. The callback should be short. It may propose, but must not
    /// wait for anything of the store: not [`propose`](Self::propose), [`bootstrap`](Self::bootstrap)
    /// or [`region_status`](Self::region_status), nor the store's shutdown or drop.
    pub fn propose_with(
        &self,
        region: RegionId,
        write: impl Into<Write>,
        callback: impl FnOnce(Answer) + Send + 'static,
    ) {
        let Write { payload, epoch } = write.into();
        let callback = Callback::new(callback);
        let stamp = self.inner.clock.now().as_nanos() as u64;
        let proposal = Proposal { payload, epoch, callback, stamp };
        if self.inner.health.has_failed() {
            let stopped = Err(ProposeError::Stopped { region_id: region });
            return refuse_in_turn(proposal.callback, stopped);
        }
        let (size_bytes, limit_bytes) = (proposal.payload.len(), self.inner.max_proposal_bytes);
        if size_bytes > limit_bytes {
            // Here, so that a mailbox never holds what cannot be proposed.
            let large = ProposeError::TooLarge { region_id: region, size_bytes, limit_bytes };
            return refuse_in_turn(proposal.callback, Err(large));
        }
        self.send_or_refuse(region, RegionMessage::Propose(proposal));
    }

    /// Sends what carries a callback, or has the callback hear why that is not possible.
    pub(crate) fn send_or_refuse(&self, region: RegionId, message: RegionMessage) {
        if let Err(refused) = self.inner.send(region, message) {
            let error = self.inner.refusal(region, &refused);
            match refused.into_message() {
                RegionMessage::Propose(Proposal { callback, .. })
                | RegionMessage::Admin(_, Proposal { callback, .. })
                | RegionMessage::TransferLeader(_, callback) => self.refuse(callback, error),
                _ => {}
            }
        }
    }

    /// Proposes; the answer is a future, which any executor can await. The proposal is under way when
    /// this returns, and stays so if the future is dropped.
    pub fn propose_async(&self, region: RegionId, write: impl Into<Write>) -> AnswerFuture {
        let (sender, receiver) = oneshot::channel();
        self.propose_with(region, write, move |answer| {
            let _ = sender.send(answer);
        });
        AnswerFuture { region, receiver }
    }

    /// Creates regions of which this store holds a peer, durably; returns when they serve. Regions
    /// without a peer here are passed over. Must be called with equal descriptions on every store
    /// that holds a peer, sooner or later: one that is late finds a peer here that knows nothing but
    /// what others have told it, and completes it.
    ///
    /// May be repeated, also after a crash half-way, and also when regions have changed since: those that exist
    /// already as described, or in a later epoch, are left alone, and those whose peer here has left since are
    /// passed over, with a note in the log.
    ///
    /// # Errors
    /// When it is called by an [`Observer`](crate::Observer); when a description is unsound, overlaps another
    /// region, or contradicts one that exists; when the state machine has keys in its range; or when the disk
    /// fails, then some of the list may have been created.
    pub fn bootstrap(&self, regions: &[RegionDescription]) -> Result<(), StartError> {
        let creator = self.inner.creator.lock().clone();
        creator.ok_or(StartError::Stopped)?.bootstrap(self, regions)
    }

    /// Makes the peer here stand for election: now, or as soon as its log is applied and, after a restart,
    /// no vote of before can bind it, which takes an election timeout. It does not if it hears of a leader
    /// first, or has heard of one within an election timeout: ask that one to
    /// [hand over](crate::AdminRequest::transfer_leader). Says whether the region is here and its mailbox not
    /// full.
    pub fn campaign(&self, region: RegionId) -> bool {
        self.inner.send(region, RegionMessage::Campaign).is_ok()
    }

    /// How a region stands here, to the last figure; waits for its turn in the pool, so not from a callback.
    /// `None` if it is not here, or its mailbox is full. To look without waiting, or at many regions, use
    /// [`region`](Self::region) and [`regions`](Self::regions).
    pub fn region_status(&self, region: RegionId) -> Option<RegionStatus> {
        if let Some((status, _)) = self.inner.cold.status(region) {
            return Some(status);
        }
        let (sender, status) = crossbeam::channel::bounded(1);
        let answer = Box::new(move |status| {
            let _ = sender.send(status);
        });
        self.inner.send(region, RegionMessage::Status(answer)).ok()?;
        status.recv().ok()
    }

    /// The region of this store whose range holds `key`.
    pub fn region_of_key(&self, key: &[u8]) -> Option<RegionId> {
        self.inner.ranges.find(key)
    }

    /// How many regions are here.
    pub fn region_count(&self) -> usize {
        self.inner.router.alive() + self.inner.cold.len()
    }

    /// How many regions this store leads.
    pub fn leaders(&self) -> u64 {
        self.inner.metrics.leaders()
    }

    /// How often a region here became or ceased to be the leader.
    pub fn leader_changes(&self) -> u64 {
        self.inner.metrics.leader_changes()
    }

    /// Regions that were set aside because they are damaged or their handler panicked, and why. Each can be
    /// repaired from its other peers: see [`discard`](Self::discard) and `docs/repair.md`.
    pub fn set_aside(&self) -> BTreeMap<RegionId, String> {
        self.inner.set_aside.lock().clone()
    }

    /// Why the store stopped by itself, if it did.
    pub fn failure(&self) -> Option<Arc<StoreFailure>> {
        self.inner.health.cause()
    }

    /// Takes Raft messages from another store: for implementers of a
    /// [`Transport`](crate::Transport)'s receiving side. What does not fit is dropped and counted;
    /// Raft makes it good. So is a `MsgSnapshot`: it comes with its contents, by
    /// [`deliver_snapshot`](Self::deliver_snapshot), or would cost the peer its log for nothing.
    pub fn deliver(&self, messages: &mut Vec<Box<Envelope>>) {
        let mut outbox = self.inner.router.outbox();
        for envelope in messages.drain(..) {
            // Before it wakes anybody: what is not for this store at all.
            let ours = envelope.cluster_id == self.inner.cluster_id
                && envelope.to.store == self.inner.store_id;
            if !ours {
                self.inner.metrics.count_dropped("wrong_recipient", 1);
                continue;
            }
            if envelope.message.get_msg_type() == MessageType::MsgSnapshot {
                self.inner.metrics.count_dropped("snapshot_without_contents", 1);
                continue;
            }
            let region = envelope.region_id;
            let sent = outbox.send(region.get(), RegionMessage::Raft(envelope));
            match sent.or_else(|refused| self.inner.reach(region, refused)) {
                Ok(()) => {}
                Err(SendError::Full(_)) => self.inner.metrics.count_dropped("mailbox_full", 1),
                Err(SendError::Closed(message)) => {
                    self.inner.metrics.count_dropped("region_not_found", 1);
                    if let RegionMessage::Raft(envelope) = message {
                        // A full control mailbox has strays enough.
                        let _ = outbox.send_control(StoreMessage::Stray(envelope));
                    }
                }
            }
        }
    }

    /// Takes a message about a snapshot from another store: for implementers of a
    /// [`Transport`](crate::Transport)'s receiving side. Says whether it was taken; what is not is sent
    /// again.
    pub fn deliver_snapshot(&self, message: SnapshotMessage) -> bool {
        let task = StreamTask::Message(Box::new(message));
        let weight = task.weight();
        let taken = self.inner.queues.streams.try_push(task, weight).is_ok();
        if !taken {
            self.inner.metrics.count_dropped("queue_full", 1);
        }
        taken
    }

    /// Takes what another store asks or answers about who lives: for implementers of a
    /// [`Transport`](crate::Transport)'s receiving side. Says whether it was taken.
    pub fn deliver_ping(&self, ping: StorePing) -> bool {
        let taken = self.inner.router.force_send_control(StoreMessage::Ping(ping)).is_ok();
        if !taken {
            self.inner.metrics.count_dropped("mailbox_full", 1);
        }
        taken
    }

    /// A full mailbox is answered by a poller, between two rounds: a callback that proposes again at
    /// once then waits its turn, and the mailbox has been emptied meanwhile.
    fn refuse(&self, callback: Callback, error: ProposeError) {
        if !matches!(error, ProposeError::Busy { .. }) {
            return refuse_in_turn(callback, Err(error));
        }
        let answer = StoreMessage::Answer(callback, Err(error));
        if let Err(refused) = self.inner.router.force_send_control(answer) {
            if let StoreMessage::Answer(callback, answer) = refused.into_message() {
                refuse_in_turn(callback, answer);
            }
        }
    }
}

impl HandleInner {
    /// Sends to a region, also to one that is cold.
    pub(crate) fn send(
        &self,
        region: RegionId,
        message: RegionMessage,
    ) -> Result<(), SendError<RegionMessage>> {
        let sent = self.router.send(region.get(), message);
        sent.or_else(|refused| self.reach(region, refused))
    }

    fn reach(
        &self,
        region: RegionId,
        refused: SendError<RegionMessage>,
    ) -> Result<(), SendError<RegionMessage>> {
        let message = match refused {
            SendError::Closed(message) => message,
            full => return Err(full),
        };
        if self.cold.len() == 0 {
            // It may have become warm since.
            return self.router.send(region.get(), message);
        }
        let creator = self.creator.lock().clone();
        match creator {
            Some(creator) => creator.reach(&self.router, region, message),
            None => Err(SendError::Closed(message)),
        }
    }

    /// Why a message for a region was not taken.
    pub(crate) fn refusal(
        &self,
        region_id: RegionId,
        refused: &SendError<RegionMessage>,
    ) -> ProposeError {
        if refused.is_full() {
            return ProposeError::Busy { region_id, reason: "the mailbox is full" };
        }
        if self.stopped.load(Ordering::Acquire) {
            return ProposeError::Stopped { region_id };
        }
        // Asked first: once the address is free it is known why.
        let ends = self.router.mailbox(region_id.get()).is_some();
        match self.set_aside.lock().contains_key(&region_id) {
            true => ProposeError::Quarantined { region_id },
            false if ends => ProposeError::Stopped { region_id },
            false => ProposeError::RegionNotFound { region_id },
        }
    }
}

/// Tells a refusal on this thread. A callback that proposes again and is refused again does not run
/// deeper in the stack but after the one that runs now.
fn refuse_in_turn(callback: Callback, answer: Answer) {
    in_turn(move || callback.call(answer));
}

fn unknown(region_id: RegionId) -> ProposeError {
    ProposeError::Unknown { region_id, reason: "the callback was lost" }
}

/// The answer to come.
#[derive(Debug)]
#[must_use = "a future does nothing unless awaited; the proposal is under way all the same"]
pub struct AnswerFuture {
    region: RegionId,
    receiver: oneshot::Receiver<Answer>,
}

impl AnswerFuture {
    /// Of whatever is asked with this callback.
    pub(crate) fn new(region: RegionId, ask: impl FnOnce(Callback)) -> Self {
        let (sender, receiver) = oneshot::channel();
        ask(Callback::new(move |answer| drop(sender.send(answer))));
        Self { region, receiver }
    }
}

impl Future for AnswerFuture {
    type Output = Answer;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Answer> {
        let region = self.region;
        let polled = Pin::new(&mut self.receiver).poll(context);
        polled.map(|received| received.unwrap_or_else(|_| Err(unknown(region))))
    }
}
