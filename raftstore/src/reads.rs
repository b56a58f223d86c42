//! Reads of the state machine that show everything acknowledged before them.
//!
//! | who reads | what it takes |
//! |---|---|
//! | at the leader, under its lease | the caller's thread, and nothing else |
//! | at the leader, without | a round trip to a quorum, shared by all reads that wait |
//! | at a follower | the same, asked through the leader; then until it is applied here |
//! | content with an index | until that is applied here |
//!
//! A read is a function that looks at the state machine. It may be run more than once, where the region changed
//! while it looked: then what it returned is thrown away. What it looks at must be the region's contents at
//! that moment or later, as in a lookup under a lock or in a snapshot that it takes itself; a snapshot taken
//! before is worth nothing.

use crate::handle::{HandleInner, StoreHandle};
use crate::in_turn::in_turn;
use crate::message::RegionMessage;
use crate::read_gate::ReadGate;
use batch_system::SendError;
use futures_channel::oneshot;
use region::{
    Index, ProposeError, Read, ReadAnswer, ReadCallback, ReadError, ReadMode, ReadPoint,
    RegionEpoch, RegionId,
};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

/// How often a read looks again because the region changed meanwhile.
const MAX_LOOKS: usize = 8;

/// What a read must see.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReadRequest {
    mode: ReadMode,
    epoch: Option<RegionEpoch>,
}

impl ReadRequest {
    /// Everything that was acknowledged before the read began. The default.
    pub fn linearizable() -> Self {
        Self::default()
    }

    /// The same; at a store that does not lead the region the answer is `NotLeader` instead of a question to
    /// the leader.
    pub fn leader_only() -> Self {
        Self { mode: ReadMode::LeaderOnly, epoch: None }
    }

    /// Everything up to this log index, whatever has happened since: on any store, without a message.
    pub fn stale(at_least: Index) -> Self {
        Self { mode: ReadMode::Stale { at_least }, epoch: None }
    }

    /// The epoch of the region as the caller knows it: with another one, before or after the look, the answer
    /// is `EpochNotMatch`. Without it a read of a key that has left the region by a split sees what the state
    /// machine shows of such a key: it should be nothing, as in the maps of this crate, for what another region
    /// has here of it may be old.
    pub fn at_epoch(mut self, epoch: RegionEpoch) -> Self {
        self.epoch = Some(epoch);
        self
    }
}

impl StoreHandle {
    /// Looks with `f`, and returns what it saw. Waits where the lease does not stand; then not from a callback.
    ///
    /// `f` may be run more than once, where the region changed while it looked: what it returned before is then
    /// thrown away. It must look at the contents as they are when it is run: by a lookup under a lock, or in a
    /// snapshot or iterator that it opens itself. One that was opened before is worth nothing.
    ///
    /// # Errors
    /// See [`ReadError`]. A read that failed may always be repeated, here or at another store.
    pub fn read<T>(
        &self,
        region: RegionId,
        request: ReadRequest,
        mut f: impl FnMut(&ReadPoint) -> T,
    ) -> Result<T, ReadError> {
        let gate = self.inner.gates.find(region);
        self.read_through(gate.as_ref(), region, request, &mut f)
    }

    /// Looks with `f`, and gives what it saw to `callback`, exactly once: on this thread where that is
    /// possible at once, else on one of the store. Both should be short and must not wait for the store.
    pub fn read_with<T: 'static>(
        &self,
        region: RegionId,
        request: ReadRequest,
        mut f: impl FnMut(&ReadPoint) -> T + Send + 'static,
        callback: impl FnOnce(Result<T, ReadError>) + Send + 'static,
    ) {
        let callback = move |value| in_turn(move || callback(value));
        let gate = self.inner.gates.find(region);
        match self.inner.look_at_once(gate.as_ref(), request, &mut f) {
            Some(value) => callback(Ok(value)),
            None => self.inner.ask_with(region, request, f, callback, MAX_LOOKS),
        }
    }

    /// Looks with `f`; what it saw is a future.
    pub fn read_async<T: Send + 'static>(
        &self,
        region: RegionId,
        request: ReadRequest,
        f: impl FnMut(&ReadPoint) -> T + Send + 'static,
    ) -> ReadFuture<T> {
        let (sender, receiver) = oneshot::channel();
        self.read_with(region, request, f, move |value| drop(sender.send(value)));
        ReadFuture { region, receiver }
    }

    /// Reads one region many times: without looking for it each time.
    pub fn reader(&self, region: RegionId) -> RegionReader {
        RegionReader { handle: self.clone(), region, gate: self.inner.gates.find(region) }
    }

    fn read_through<T>(
        &self,
        gate: Option<&Arc<ReadGate>>,
        region: RegionId,
        request: ReadRequest,
        f: &mut impl FnMut(&ReadPoint) -> T,
    ) -> Result<T, ReadError> {
        if let Some(value) = self.inner.look_at_once(gate, request, f) {
            return Ok(value);
        }
        for _ in 0..MAX_LOOKS {
            let (sender, answer) = crossbeam::channel::bounded(1);
            let callback = ReadCallback::new(region, move |answer| drop(sender.send(answer)));
            self.inner.ask(region, request, callback);
            let stopped = ReadError::Stopped { region_id: region };
            let point = match answer.recv().unwrap_or(Err(stopped)) {
                Ok(point) => point,
                Err(error) => return Err(self.inner.metrics.count_refused_read(error)),
            };
            let gate = self.inner.gates.find(region);
            if let Some(value) = gate.and_then(|gate| gate.look_at(&point, f)) {
                self.inner.metrics.count_read(point.way);
                return Ok(value);
            }
        }
        Err(self.inner.metrics.count_refused_read(keeps_changing(region)))
    }
}

fn keeps_changing(region_id: RegionId) -> ReadError {
    ReadError::Busy { region_id, reason: "the region keeps changing" }
}

impl HandleInner {
    /// Looks without asking the region, if that is possible.
    fn look_at_once<T>(
        &self,
        gate: Option<&Arc<ReadGate>>,
        request: ReadRequest,
        f: &mut impl FnMut(&ReadPoint) -> T,
    ) -> Option<T> {
        if self.health.has_failed() {
            return None;
        }
        let (value, way) = gate?.look(request.mode, request.epoch, || self.clock.now(), f)?;
        self.metrics.count_read(way);
        Some(value)
    }

    fn ask(&self, region: RegionId, request: ReadRequest, callback: ReadCallback) {
        let ReadRequest { mode, epoch } = request;
        if self.health.has_failed() {
            return callback.call(Err(ReadError::Stopped { region_id: region }));
        }
        let message = RegionMessage::Read(Read { mode, epoch, callback });
        if let Err(refused) = self.send(region, message) {
            let error = read_error(self.refusal(region, &refused));
            if let SendError::Full(RegionMessage::Read(read))
            | SendError::Closed(RegionMessage::Read(read)) = refused
            {
                read.callback.call(Err(error));
            }
        }
    }

    fn ask_with<T: 'static>(
        self: &Arc<Self>,
        region: RegionId,
        request: ReadRequest,
        mut f: impl FnMut(&ReadPoint) -> T + Send + 'static,
        callback: impl FnOnce(Result<T, ReadError>) + Send + 'static,
        looks: usize,
    ) {
        // Not strong: a read that waits in a mailbox would keep the mailbox, and whatever the store has, alive.
        let inner = Arc::downgrade(self);
        let answered = move |answer: ReadAnswer| {
            let Some(inner) = inner.upgrade() else {
                return callback(Err(ReadError::Stopped { region_id: region }));
            };
            let point = match answer {
                Ok(point) => point,
                Err(error) => return callback(Err(inner.metrics.count_refused_read(error))),
            };
            let gate = inner.gates.find(region);
            match gate.and_then(|gate| gate.look_at(&point, &mut f)) {
                Some(value) => {
                    inner.metrics.count_read(point.way);
                    callback(Ok(value));
                }
                None if looks > 1 => inner.ask_with(region, request, f, callback, looks - 1),
                None => callback(Err(inner.metrics.count_refused_read(keeps_changing(region)))),
            }
        };
        self.ask(region, request, ReadCallback::new(region, answered));
    }
}

/// A region that is not there for proposals is not there for reads either.
pub(crate) fn read_error(error: ProposeError) -> ReadError {
    match error {
        ProposeError::Busy { region_id, reason } => ReadError::Busy { region_id, reason },
        ProposeError::RegionNotFound { region_id } => ReadError::RegionNotFound { region_id },
        ProposeError::Quarantined { region_id } => ReadError::Quarantined { region_id },
        other => ReadError::Stopped { region_id: other.region_id() },
    }
}

/// Reads one region. Cheap to clone; each thread should have its own.
#[derive(Clone)]
pub struct RegionReader {
    handle: StoreHandle,
    region: RegionId,
    gate: Option<Arc<ReadGate>>,
}

impl RegionReader {
    /// As [`StoreHandle::read`].
    ///
    /// # Errors
    /// As there.
    pub fn read<T>(
        &mut self,
        request: ReadRequest,
        mut f: impl FnMut(&ReadPoint) -> T,
    ) -> Result<T, ReadError> {
        if self.gate.as_ref().is_none_or(|gate| gate.has_ended()) {
            self.gate = self.handle.inner.gates.find(self.region);
        }
        self.handle.read_through(self.gate.as_ref(), self.region, request, &mut f)
    }

    /// The region.
    pub fn region_id(&self) -> RegionId {
        self.region
    }
}

impl std::fmt::Debug for RegionReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RegionReader").field("region", &self.region).finish_non_exhaustive()
    }
}

/// What a read will have seen.
#[derive(Debug)]
#[must_use = "a future does nothing unless awaited; the read is under way all the same"]
pub struct ReadFuture<T> {
    region: RegionId,
    receiver: oneshot::Receiver<Result<T, ReadError>>,
}

impl<T> Future for ReadFuture<T> {
    type Output = Result<T, ReadError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let stopped = ReadError::Stopped { region_id: self.region };
        Pin::new(&mut self.receiver).poll(context).map(|seen| seen.unwrap_or(Err(stopped)))
    }
}
