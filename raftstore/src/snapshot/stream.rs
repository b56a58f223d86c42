//! The thread that sends and receives snapshots.

use super::files::SnapshotFiles;
use super::frames::FrameReader;
use super::message::{reception_name, SnapshotBody, SnapshotId, SnapshotMessage};
use super::receive::{Arrival, Receiving, Took};
use super::send::Sending;
use crate::cold::ColdRegions;
use crate::error::StoreFailure;
use crate::events::{Observers, RegionEvent};
use crate::health::Health;
use crate::message::{RegionMessage, StoreMessage};
use crate::metrics::Metrics;
use crate::peers::{Peers, Refused};
use crate::published::Directory;
use crate::range_map::RangeMap;
use crate::region_fsm::RegionRouter;
use crate::state_machine::{StateMachine, StateMachineError};
use crate::transport::Transport;
use crate::work_queue::{Taken, WorkQueue};
use protobuf::Message as _;
use region::{snapshot_of, AppliedState, Envelope, Peer, PeerId, RegionId, StoreId};
use std::collections::BTreeMap;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Ticks without an answer after which something is sent again.
const REPEAT_TICKS: u32 = 2;
/// Ticks without an answer after which a snapshot is given up.
const GIVE_UP_TICKS: u32 = 20;
/// Weight of a task without contents.
pub(crate) const TASK_WEIGHT: usize = 256;

/// What the thread is asked to do.
pub(crate) enum StreamTask {
    /// A region's peer needs a snapshot.
    Make(RegionId, Peer),
    /// raft-rs's message for one that was made.
    Send(Box<Envelope>),
    /// From another store.
    Message(Box<SnapshotMessage>),
}

impl StreamTask {
    /// For the bound of the queue.
    pub(crate) fn weight(&self) -> usize {
        match self {
            StreamTask::Message(message) => match &message.body {
                SnapshotBody::Chunk { bytes, .. } => TASK_WEIGHT + bytes.len(),
                SnapshotBody::Offer(envelope) => TASK_WEIGHT + bytes_of(envelope),
                _ => TASK_WEIGHT,
            },
            _ => TASK_WEIGHT,
        }
    }
}

/// About what an offer of a stranger holds in memory.
fn bytes_of(envelope: &Envelope) -> usize {
    let described = envelope.description.as_ref().map_or(0, |description| {
        let keys = description.start_key.len() + description.end_key.len();
        keys + size_of_val(description.peers.as_slice())
    });
    described + envelope.message.compute_size() as usize
}

/// The thread's queue.
pub(crate) type StreamQueue = WorkQueue<StreamTask>;

/// How much at once, in each direction.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StreamLimits {
    pub(crate) snapshots: usize,
    pub(crate) bytes_per_tick: u64,
    pub(crate) tick: Duration,
}

/// What the thread works with.
pub(crate) struct StreamWorker {
    pub(crate) cluster_id: u64,
    pub(crate) store_id: StoreId,
    pub(crate) queue: Arc<StreamQueue>,
    pub(crate) limits: StreamLimits,
    pub(crate) state_machine: Arc<dyn StateMachine>,
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) files: Arc<dyn SnapshotFiles>,
    pub(crate) ranges: Arc<RangeMap>,
    pub(crate) peers: Arc<Peers>,
    pub(crate) directory: Arc<Directory>,
    pub(crate) cold: Arc<ColdRegions>,
    pub(crate) health: Arc<Health>,
    pub(crate) router: RegionRouter,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) observers: Arc<Observers>,
    pub(crate) traffic: Traffic,
    pub(crate) counts: Arc<TrafficCounts>,
}

/// How many snapshots are on their way, for whoever asks.
#[derive(Debug, Default)]
pub(crate) struct TrafficCounts {
    pub(crate) sending: AtomicUsize,
    pub(crate) receiving: AtomicUsize,
}

/// What is on its way.
#[derive(Default)]
pub(crate) struct Traffic {
    /// By region and receiving peer.
    sending: BTreeMap<(RegionId, PeerId), Sending>,
    receiving: BTreeMap<RegionId, Receiving>,
    attempts: u64,
    receptions: u64,
    /// Bytes sent and received since the last tick.
    sent: u64,
    received: u64,
    tasks: Vec<StreamTask>,
}

impl StreamWorker {
    /// The body of the thread: until the queue is closed and empty. Calls to what users bring are guarded one by
    /// one; what is not (the end of a source, say) stops the store, by name.
    pub(crate) fn run(self) {
        let health = self.health.clone();
        if catch_unwind(AssertUnwindSafe(|| self.serve())).is_err() {
            health.fail(StoreFailure::Panicked("the thread that sends and receives snapshots"));
        }
    }

    fn serve(mut self) {
        let mut ticked = Instant::now();
        loop {
            let taken = self.queue.take_for(&mut self.traffic.tasks, self.limits.tick);
            self.work();
            if ticked.elapsed() >= self.limits.tick {
                ticked = Instant::now();
                self.tick();
            }
            if taken == Taken::Closed {
                return;
            }
        }
    }

    /// Whether somebody has asked for something.
    pub(crate) fn has_work(&self) -> bool {
        !self.queue.is_empty()
    }

    /// One wake: does all that waits.
    pub(crate) fn wake(&mut self) {
        self.queue.take_now(&mut self.traffic.tasks);
        self.work();
    }

    fn work(&mut self) {
        for task in std::mem::take(&mut self.traffic.tasks) {
            match task {
                StreamTask::Make(region, to) => self.make(region, to),
                StreamTask::Send(envelope) => self.offer(envelope),
                StreamTask::Message(message) => self.hear(*message),
            }
        }
        self.count();
    }

    fn count(&self) {
        let Traffic { sending, receiving, .. } = &self.traffic;
        self.counts.sending.store(sending.len(), Ordering::Relaxed);
        self.counts.receiving.store(receiving.len(), Ordering::Relaxed);
    }

    /// A tick has passed: what is not answered is repeated or given up.
    pub(crate) fn tick(&mut self) {
        (self.traffic.sent, self.traffic.received) = (0, 0);
        for key in self.traffic.sending.keys().copied().collect::<Vec<_>>() {
            let Some(sending) = self.traffic.sending.get_mut(&key) else { continue };
            sending.idle_ticks += 1;
            let idle = sending.idle_ticks;
            if idle >= GIVE_UP_TICKS {
                self.give_up(key, true);
                continue;
            }
            let mut out = Vec::new();
            if idle % REPEAT_TICKS == 0 {
                sending.repeat(&mut out);
            }
            self.send_all(key, out);
            self.pump(key);
        }
        for region in self.traffic.receiving.keys().copied().collect::<Vec<_>>() {
            let Some(receiving) = self.traffic.receiving.get_mut(&region) else { continue };
            receiving.idle_ticks += 1;
            let held_back = std::mem::take(&mut receiving.held_back);
            if receiving.idle_ticks >= GIVE_UP_TICKS {
                self.drop_received(region);
            } else if held_back {
                self.answer(region);
            }
        }
        self.count();
    }

    /// Opens the state machine's view of a region for a peer.
    fn make(&mut self, region: RegionId, to: Peer) {
        let key = (region, to.id);
        self.traffic.sending.remove(&key);
        let made = match self.traffic.sending.len() >= self.limits.snapshots {
            true => None,
            false => self.open(region, to),
        };
        let applied = made.map(|sending| {
            let applied = sending.0;
            self.traffic.sending.insert(key, sending.1);
            self.metrics.snapshot("made");
            applied
        });
        let ready = RegionMessage::SnapshotReady(to.id, applied.map(Box::new));
        let _ = self.router.force_send(region.get(), ready);
    }

    fn open(&mut self, region: RegionId, to: Peer) -> Option<(region::AppliedState, Sending)> {
        let opened = catch_unwind(AssertUnwindSafe(|| {
            let source = self.state_machine.snapshot(region)?;
            Ok::<_, StateMachineError>((source.applied().clone(), source))
        }));
        let (applied, source) = match opened {
            Ok(Ok(opened)) => opened,
            Ok(Err(error)) => {
                tracing::warn!(%region, %error, "no snapshot can be made");
                return None;
            }
            Err(_) => {
                tracing::error!(%region, "the state machine panicked when it made a snapshot");
                return None;
            }
        };
        if applied.description.id != region {
            let shown = applied.description.id;
            tracing::error!(%region, %shown, "the state machine's snapshot is of another region; it is not sent");
            return None;
        }
        // The peer may be newer than what is applied yet.
        applied.description.peer(to.id)?;
        self.traffic.attempts += 1;
        let id = SnapshotId {
            region,
            peer: to.id,
            index: applied.index,
            term: applied.term,
            attempt: self.traffic.attempts,
        };
        Some((applied, Sending::new(id, to, source)))
    }

    /// raft-rs's message for a snapshot that was made.
    fn offer(&mut self, envelope: Box<Envelope>) {
        let (region, to) = (envelope.region_id, envelope.to.id);
        let index = envelope.message.get_snapshot().get_metadata().index;
        let key = (region, to);
        let known = self.traffic.sending.get_mut(&key);
        let Some(sending) = known.filter(|sending| sending.id.index.get() == index) else {
            return self.report(region, to, false);
        };
        sending.offer = Some(envelope);
        sending.idle_ticks = 0;
        let mut out = Vec::new();
        sending.repeat(&mut out);
        self.send_all(key, out);
    }

    fn hear(&mut self, message: SnapshotMessage) {
        if message.cluster_id != self.cluster_id || message.to != self.store_id {
            return self.metrics.count_dropped("wrong_cluster", 1);
        }
        match message.body {
            SnapshotBody::Offer(envelope) => self.be_offered(message.from, message.id, envelope),
            SnapshotBody::Chunk { number, last, checksum, bytes } => {
                let region = message.id.region;
                let known = self.traffic.receiving.get_mut(&region);
                let Some(receiving) = known.filter(|known| known.is(message.from, message.id))
                else {
                    return self.say(message.from, message.id, SnapshotBody::Refused);
                };
                self.traffic.received += bytes.len() as u64;
                match receiving.take(number, last, checksum, &bytes) {
                    Ok(Took::Answer) => self.answer(region),
                    Ok(Took::Complete) => self.complete(region),
                    Err(error) => {
                        tracing::warn!(%region, %error, "a snapshot cannot be kept");
                        self.refuse(region);
                    }
                }
            }
            SnapshotBody::Cancelled => {
                let region = message.id.region;
                let known = self.traffic.receiving.get(&region);
                let from = message.from;
                if known.is_some_and(|known| known.is(from, message.id) && !known.is_complete()) {
                    self.drop_received(region);
                }
            }
            answer => self.hear_answer(message.from, message.id, &answer),
        }
    }

    /// What a receiver says.
    fn hear_answer(&mut self, from: StoreId, id: SnapshotId, answer: &SnapshotBody) {
        let key = (id.region, id.peer);
        let known = self.traffic.sending.get_mut(&key);
        let Some(sending) = known.filter(|known| known.id == id && known.to.store == from) else {
            return;
        };
        match answer {
            SnapshotBody::Wants(number) => {
                let mut out = Vec::new();
                sending.wants(*number, &mut out);
                self.send_all(key, out);
                self.pump(key);
            }
            SnapshotBody::Arrived => {
                self.traffic.sending.remove(&key);
                self.metrics.snapshot("sent");
                let (to, index) = (id.peer, id.index);
                self.observers.tell(id.region, || RegionEvent::SnapshotSent { to, index });
                self.report(id.region, id.peer, true);
            }
            _ => self.give_up(key, false),
        }
    }

    /// Sends what there is room for.
    fn pump(&mut self, key: (RegionId, PeerId)) {
        while self.traffic.sent < self.limits.bytes_per_tick {
            let known = self.traffic.sending.get_mut(&key);
            let Some(sending) = known.filter(|sending| sending.has_more()) else { return };
            match catch_unwind(AssertUnwindSafe(|| sending.next_chunk())) {
                Ok(Ok(chunk)) => self.send_all(key, vec![chunk]),
                Ok(Err(error)) => {
                    tracing::error!(region = %key.0, to = %key.1, %error, "a snapshot cannot be read");
                    return self.give_up(key, true);
                }
                Err(_) => {
                    tracing::error!(region = %key.0, to = %key.1, "the source of a snapshot panicked");
                    return self.give_up(key, true);
                }
            }
        }
    }

    fn send_all(&mut self, key: (RegionId, PeerId), bodies: Vec<SnapshotBody>) {
        let Some(sending) = self.traffic.sending.get(&key) else { return };
        let (id, to) = (sending.id, sending.to.store);
        for body in bodies {
            if let SnapshotBody::Chunk { bytes, .. } = &body {
                self.traffic.sent += bytes.len() as u64;
                self.metrics.snapshot_bytes("sent", bytes.len());
            }
            self.say(to, id, body);
        }
    }

    fn say(&self, to: StoreId, id: SnapshotId, body: SnapshotBody) {
        let (cluster_id, from) = (self.cluster_id, self.store_id);
        let message = SnapshotMessage { cluster_id, from, to, id, body };
        let sent = catch_unwind(AssertUnwindSafe(|| self.transport.send_snapshot(message)));
        if !sent.unwrap_or(false) {
            self.metrics.count_dropped("unreachable", 1);
        }
    }

    fn give_up(&mut self, key: (RegionId, PeerId), tell: bool) {
        if let Some(sending) = self.traffic.sending.remove(&key) {
            self.metrics.snapshot("given_up");
            if tell && sending.offer.is_some() {
                self.say(sending.to.store, sending.id, SnapshotBody::Cancelled);
            }
            self.report(key.0, key.1, false);
        }
    }

    fn report(&self, region: RegionId, to: PeerId, arrived: bool) {
        let _ = self.router.force_send(region.get(), RegionMessage::SnapshotSent(to, arrived));
    }

    /// A store offers a snapshot.
    fn be_offered(&mut self, from: StoreId, id: SnapshotId, envelope: Box<Envelope>) {
        let region = id.region;
        let known = self.traffic.receiving.get(&region);
        if known.is_some_and(|known| known.is(from, id)) {
            return self.answer(region);
        }
        if self.is_there_already(id) {
            return self.say(from, id, SnapshotBody::Arrived);
        }
        let under_way = known.and_then(|known| known.offer.as_ref());
        let term = under_way.map_or(0, |offer| offer.message.term);
        // Only what might be taken ends what is under way.
        let sound = self.check(from, id, &envelope).filter(|_| term <= envelope.message.term);
        let begun = sound.and_then(|applied| {
            self.drop_received(region);
            self.begin(from, id, applied, envelope)
        });
        match begun {
            Some(receiving) => {
                self.traffic.receiving.insert(region, receiving);
                self.answer(region);
            }
            None => {
                self.metrics.snapshot("refused");
                self.say(from, id, SnapshotBody::Refused);
            }
        }
    }

    /// The peer has all that is offered: the snapshot came late or twice, or the leader has not heard. What the
    /// peer has shown of itself may be old, but what was committed stays so.
    fn is_there_already(&self, id: SnapshotId) -> bool {
        if let Some((cold, _)) = self.cold.status(id.region) {
            return cold.peer_id == id.peer && cold.committed >= id.index;
        }
        let shown = self.directory.find(id.region).map(|published| published.read());
        shown.is_some_and(|shown| shown.peer_id == id.peer && shown.committed >= id.index)
    }

    /// What a snapshot is of, if it is sound and has a place here.
    fn check(&self, from: StoreId, id: SnapshotId, offer: &Envelope) -> Option<AppliedState> {
        let applied = snapshot_of(offer).ok()?;
        let described = &applied.description;
        let sound = offer.cluster_id == self.cluster_id
            && offer.from.store == from
            && offer.region_id == id.region
            && described.id == id.region
            && offer.to.store == self.store_id
            && offer.to.id == id.peer
            && (applied.index, applied.term) == (id.index, id.term)
            && described.peer(id.peer).is_some_and(|peer| peer.store == self.store_id);
        if !sound || !self.ranges.is_free_for(described) {
            return None;
        }
        if let Some(Refused::Tombstone(..)) = self.peers.refusal(id.region, id.peer) {
            return None;
        }
        Some(applied)
    }

    fn begin(
        &mut self,
        from: StoreId,
        id: SnapshotId,
        applied: AppliedState,
        offer: Box<Envelope>,
    ) -> Option<Receiving> {
        let under_way = self.traffic.receiving.values().filter(|known| !known.is_complete());
        if under_way.count() >= self.limits.snapshots {
            return None;
        }
        self.traffic.receptions += 1;
        let file = reception_name(&id, self.traffic.receptions);
        match self.files.begin(&file) {
            Ok(staged) => Some(Receiving::new(id, from, file, applied, offer, staged)),
            Err(error) => {
                tracing::warn!(region = %id.region, %error, "a snapshot cannot be kept");
                None
            }
        }
    }

    /// Tells the sender how far it is, unless too much came in since the last tick.
    fn answer(&mut self, region: RegionId) {
        let full = self.traffic.received >= self.limits.bytes_per_tick;
        let Some(receiving) = self.traffic.receiving.get_mut(&region) else { return };
        if full && !receiving.is_complete() {
            receiving.held_back = true;
            return;
        }
        let (from, id, body) = (receiving.from, receiving.id, receiving.stands());
        self.say(from, id, body);
    }

    /// All of it is here, and durable.
    fn complete(&mut self, region: RegionId) {
        let Some(receiving) = self.traffic.receiving.get_mut(&region) else { return };
        let file = receiving.file.clone();
        let sound = self.files.open(&file).map_err(|error| error.to_string()).and_then(|bytes| {
            let reader = FrameReader::new(receiving.applied.clone(), file.clone(), bytes);
            reader.check().map_err(|error| error.to_string())
        });
        if let Err(error) = sound {
            tracing::warn!(%region, error, "a snapshot that was received is damaged");
            return self.refuse(region);
        }
        if let Some(envelope) = receiving.offer.take() {
            let arrived = StoreMessage::SnapshotArrived(Box::new(Arrival { envelope, file }));
            if let Err(refused) = self.router.force_send_control(arrived) {
                if let StoreMessage::SnapshotArrived(arrival) = refused.into_message() {
                    receiving.offer = Some(arrival.envelope);
                }
                return self.refuse(region);
            }
            self.metrics.snapshot("received");
        }
        self.answer(region);
    }

    fn refuse(&mut self, region: RegionId) {
        if let Some(receiving) = self.traffic.receiving.get(&region) {
            let (from, id) = (receiving.from, receiving.id);
            self.say(from, id, SnapshotBody::Refused);
        }
        self.drop_received(region);
    }

    fn drop_received(&mut self, region: RegionId) {
        let Some(receiving) = self.traffic.receiving.remove(&region) else { return };
        let (file, passed_on) = (receiving.file.clone(), receiving.offer.is_none());
        drop(receiving);
        // Its file, too, was passed on with the offer.
        if !passed_on {
            if let Err(error) = self.files.remove(&file) {
                tracing::warn!(%region, %error, "a snapshot that was given up cannot be removed");
            }
        }
    }
}
