//! Brings regions to life: new ones, those that a leader or a split brings, and those found in the log.
//!
//! A record is durable before its region can promise anything. So a crash anywhere leaves a region that the
//! next start finds, or none.

use crate::cold::ColdRegions;
use crate::error::StoreFailure;
use crate::events::{CreatedBy, Observers, RegionEvent};
use crate::health::Health;
use crate::liveness::Liveness;
use crate::log_store::{LogBatch, LogStore, LogStoreError, RegionWrite, Stored, StoredRegion};
use crate::message::{RegionMessage, StoreMessage};
use crate::metrics::Metrics;
use crate::peers::Peers;
use crate::published::Directory;
use crate::range_map::RangeMap;
use crate::read_gate::ReadGates;
use crate::region_fsm::{RegionFsm, RegionRouter};
use crate::rest::Rest;
use crate::snapshot::{
    flush, forget, install_staged, staged_name, Arrival, Chore, ChoreQueue, NotInstalled,
    SnapshotFiles, StagedName,
};
use crate::state_machine::StateMachine;
use crate::store_fsm::SetAside;
use crate::write_path::persist::write_log;
use batch_system::Priority;
use region::{
    is_sound_id, snapshot_of, AdminCommand, AppliedState, Callback, Effects, HardState, Index,
    LogReader, PeerId, Proposal, ProposeError, Region, RegionConfig, RegionDescription, RegionId,
    RegionRecord, Rejection, Removal, RestoredState, Role, SplitError, StoreId, TruncatedState,
};
use rustc_hash::{FxHashMap, FxHashSet};
use std::panic::{catch_unwind, resume_unwind, AssertUnwindSafe};
use std::sync::Arc;
use std::time::Duration;

/// Most peers that know nothing of their region yet. Each is a record that stays, and a message is enough to make
/// one; those beyond it come when others have got their snapshots.
const MAX_NEWCOMERS: usize = 1024;

/// Brings regions to life.
pub(crate) struct Creator {
    pub(crate) store_id: StoreId,
    pub(crate) region_config: Arc<RegionConfig>,
    pub(crate) tick_interval: Duration,
    /// How long a region sleeps before it is cold; `None`: it never is.
    pub(crate) cold_after: Option<Duration>,
    pub(crate) log_store: Arc<dyn LogStore>,
    pub(crate) state_machine: Arc<dyn StateMachine>,
    pub(crate) files: Arc<dyn SnapshotFiles>,
    pub(crate) ranges: Arc<RangeMap>,
    pub(crate) directory: Arc<Directory>,
    pub(crate) peers: Arc<Peers>,
    pub(crate) gates: Arc<ReadGates>,
    pub(crate) liveness: Arc<Liveness>,
    pub(crate) cold: Arc<ColdRegions>,
    pub(crate) set_aside: SetAside,
    pub(crate) health: Arc<Health>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) observers: Arc<Observers>,
    pub(crate) chores: Arc<ChoreQueue>,
    /// Held by each peer that knows nothing of its region yet, to count them.
    pub(crate) newcomers: Arc<()>,
    /// One bootstrap at a time.
    pub(crate) bootstrapping: parking_lot::Mutex<()>,
}

/// Where a region is once the log store has told of it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Not here, or set aside.
    Gone,
    /// It needs nothing, and was not built.
    Asleep,
    /// It has an Fsm.
    Built,
}

/// What is known of a region before it has an Fsm.
pub(crate) struct Past {
    /// As the metrics count it.
    pub(crate) role: Option<Role>,
    pub(crate) rest: Option<Rest>,
    pub(crate) writes: u64,
    /// Whether it [begins](Creator::begin), and is sent a tick for that; else it is when it wakes.
    pub(crate) ticking: bool,
}

/// Log store, state machine and snapshot files are asked, and may panic.
pub(crate) fn brought_back<T>(bring: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    let panicked = |_| Err("something panicked when it was brought back".to_owned());
    catch_unwind(AssertUnwindSafe(bring)).unwrap_or_else(panicked)
}

impl Creator {
    pub(crate) fn write_records(
        &self,
        records: impl Iterator<Item = RegionRecord>,
    ) -> Result<(), LogStoreError> {
        let mut batch = LogBatch::default();
        batch.writes.extend(records.map(|record| {
            let initialised = record.description.is_initialised();
            RegionWrite {
                region_id: record.description.id,
                // What an earlier peer of the region has promised is no concern of this one.
                hard_state: (!initialised).then(HardState::default),
                clear: !initialised,
                truncated: (!initialised).then_some(TruncatedState::INITIAL),
                record: Some(Box::new(record)),
                ..RegionWrite::default()
            }
        }));
        let written = write_log(&*self.log_store, &mut batch, true);
        written.map(|_| ()).map_err(|failure| {
            let reason = failure.to_string();
            self.health.fail(failure);
            LogStoreError::Write(reason)
        })
    }

    /// A peer that knows nothing of its region yet: the region's leader has spoken to it.
    pub(crate) fn create_for_leader(
        &self,
        router: &RegionRouter,
        region: RegionId,
        peer: PeerId,
        conf_ver: u64,
    ) -> bool {
        let sound = is_sound_id(region.get()) && is_sound_id(peer.get());
        if !sound || self.set_aside.lock().contains_key(&region) {
            return false;
        }
        // The store holds one as well.
        if Arc::strong_count(&self.newcomers) > MAX_NEWCOMERS {
            self.metrics.count_dropped("too_many_newcomers", 1);
            return false;
        }
        if self.health.has_failed() || self.peers.create(region, peer).is_err() {
            return false;
        }
        let record = RegionRecord::new(RegionDescription::uninitialised(region, conf_ver), peer);
        if self.write_records(std::iter::once(record.clone())).is_err() {
            return false;
        }
        self.count_created(region, peer, CreatedBy::Leader);
        self.restore(router, new_region(record));
        true
    }

    /// A snapshot is complete: steps raft-rs's message of it, if the range is free. One that the region takes
    /// gets the name by which the installation finds it; another is removed.
    ///
    /// The state machine is flushed before: the log that gives way may hold a split that would have to be
    /// replayed after a crash, and the region itself may have begun with one.
    pub(crate) fn step_snapshot(
        &self,
        region: &mut Region,
        Arrival { envelope, file }: Arrival,
    ) -> Result<(), Rejection> {
        let Ok(applied) = snapshot_of(&envelope) else {
            self.remove_file(&file);
            return Err(Rejection::MalformedSnapshot);
        };
        let had_range = region.has_range();
        // A region that has a range keeps it until the new contents are installed: they lie within it.
        let free = match had_range {
            true => self.ranges.is_free_for(&applied.description),
            false => {
                self.peers.take_range(region.id(), || self.ranges.replace(&applied.description))
            }
        };
        if free && had_range {
            if let Err(failure) = flush(&*self.state_machine) {
                self.health.fail(failure);
                return Err(Rejection::Stopped);
            }
        }
        let stepped = match free {
            true => region.step(envelope),
            false => Err(Rejection::Backlog),
        };
        if !region.takes_snapshot(applied.index) {
            if free && !had_range {
                self.ranges.remove_region(region.id());
            }
            self.remove_file(&file);
            return stepped;
        }
        let name = staged_name(region.id(), region.peer().id, applied.index, applied.term);
        if let Err(error) = self.files.rename(&file, &name) {
            // The region will promise what it cannot keep, unless nothing is written any more.
            let reason = error.to_string();
            self.health.fail(StoreFailure::Snapshot { name: file, reason });
            return Err(Rejection::Stopped);
        }
        stepped
    }

    fn remove_file(&self, name: &str) {
        if let Err(error) = self.files.remove(name) {
            tracing::warn!(name, %error, "a snapshot cannot be removed");
        }
    }

    /// A snapshot is complete, and nobody takes it.
    pub(crate) fn discard_snapshot(&self, arrival: &Arrival) {
        self.remove_file(&arrival.file);
    }

    /// Proposes a change of a region, unless ids that it brings are known here already. They are reserved
    /// until the proposal is answered.
    pub(crate) fn propose_admin(
        &self,
        region: &mut Region,
        command: &AdminCommand,
        mut proposal: Proposal,
        effects: &mut Effects,
    ) {
        if let AdminCommand::Split(request) = command {
            if region.is_leader() {
                let children: Vec<RegionId> = request.regions.iter().map(|new| new.id).collect();
                if let Err(used) = self.reserve(region.id(), &children) {
                    let refusal = ProposeError::InvalidSplit {
                        region_id: region.id(),
                        cause: Box::new(SplitError::RegionIdInUse(used)),
                        current: region.description().clone(),
                    };
                    return effects.answers.push((proposal.callback, Err(refusal)));
                }
                let (peers, callback) = (self.peers.clone(), proposal.callback);
                proposal.callback = Callback::new(move |answer| {
                    peers.release(&children);
                    callback.call(answer);
                });
            }
        }
        region.propose_admin(command, proposal, effects);
    }

    fn reserve(&self, parent: RegionId, children: &[RegionId]) -> Result<(), RegionId> {
        let set_aside = self.set_aside.lock();
        match children.iter().find(|id| set_aside.contains_key(*id)) {
            Some(taken) => Err(*taken),
            None => self.peers.reserve(parent, children),
        }
    }

    /// The split of a region is applied: its children here begin.
    pub(crate) fn begin_children(
        &self,
        router: &RegionRouter,
        parent: &Arc<RegionDescription>,
        children: &[RegionDescription],
        leading: bool,
    ) {
        let promised = |child: &&RegionDescription| {
            let peer = child.peer_on(self.store_id);
            peer.is_some_and(|peer| self.peers.keep_promise(child.id, peer.id))
        };
        let (wanted, others): (Vec<_>, Vec<_>) = children.iter().partition(promised);
        let wanted: Vec<_> = wanted.into_iter().cloned().map(Arc::new).collect();
        for child in others {
            // Its peer here was destroyed before it began, or a later one is here, which gets its contents by
            // a snapshot: as soon as the parent has given up the range, and not before.
            if let Err(failure) = forget(&*self.state_machine, child.id) {
                return self.health.fail(failure);
            }
        }
        let all: Vec<RegionId> = children.iter().map(|child| child.id).collect();
        self.peers.end_promise(&all);
        self.ranges.split(parent, &wanted);
        self.metrics.count_splits(wanted.len());
        self.observers.tell(parent.id, || RegionEvent::Split {
            parts: std::iter::once(&**parent).chain(children).cloned().collect(),
        });
        for child in wanted {
            self.begin_child(router, child, leading);
        }
    }

    pub(crate) fn count_created(&self, region: RegionId, peer: PeerId, by: CreatedBy) {
        self.metrics.count_created(by.name());
        self.observers.tell(region, || RegionEvent::Created { peer, by });
    }

    /// A region does nothing here any more.
    pub(crate) fn set_aside(&self, region: RegionId, reason: String) {
        self.observers.tell(region, || RegionEvent::SetAside { reason: reason.clone() });
        self.set_aside.lock().insert(region, reason);
    }

    fn begin_child(&self, router: &RegionRouter, child: Arc<RegionDescription>, leading: bool) {
        let id = child.id;
        if self.set_aside.lock().contains_key(&id) {
            return;
        }
        let begin = || RegionMessage::BeginFromSplit(child.clone());
        if router.mailbox(id.get()).is_some() {
            let _ = router.force_send(id.get(), begin());
        } else if let Some(peer) = child.peer_on(self.store_id) {
            self.count_created(id, peer.id, CreatedBy::Split);
            self.restore(router, new_region(RegionRecord::new(child.clone(), peer.id)));
        }
        if leading {
            let _ = router.force_send(id.get(), RegionMessage::Campaign);
        }
    }

    /// Brings all regions back that the log store holds, on so many threads; with none, on this one.
    pub(crate) fn restore_all(&self, router: &RegionRouter, mut stored: Stored, threads: usize) {
        let damaged: Vec<RegionId> = stored.damaged.iter().map(|region| region.region_id).collect();
        for damaged in stored.damaged {
            tracing::error!(region = %damaged.region_id, damaged.reason, "region set aside");
            self.set_aside(damaged.region_id, damaged.reason);
        }
        stored.regions.iter().for_each(|region| self.peers.load(&region.record));
        self.remove_stray_snapshots(&stored.regions);
        let unborn = self.unborn(&stored.regions);
        self.set_orphans_aside(&mut stored.regions, &unborn);
        for (region, origin) in &unborn {
            if !self.set_aside.lock().contains_key(region) {
                self.peers.expect(*region, origin.parent);
            }
        }
        let mut replay: FxHashMap<RegionId, Index> = FxHashMap::default();
        for (_, origin) in &unborn {
            let index = replay.entry(origin.parent).or_default();
            *index = origin.index.max(*index);
        }
        for region in stored.regions.iter_mut() {
            let Some(index) = replay.get(&region.record.description.id) else { continue };
            // The split was applied before; so it is committed, whatever the hard state says.
            if let Some(hard_state) = &mut region.hard_state {
                hard_state.commit = hard_state.commit.max(index.get().min(region.last_index.get()));
            }
        }
        // Who replays a split, or waits for one, has something to do.
        let busy: FxHashSet<RegionId> =
            unborn.iter().flat_map(|(waiting, origin)| [*waiting, origin.parent]).collect();
        // None begins before all are there: one that replays its split must find its parts.
        let registered = in_threads(stored.regions, threads, |region| {
            let recorded = region.record.description.clone();
            Some((self.register(router, region, !busy.contains(&recorded.id)), recorded))
        });
        self.set_aside_with_parents(router, &unborn);
        // Only now: those that are sound have the first say.
        for (_, recorded) in registered.iter().filter(|(place, _)| *place == Place::Gone) {
            if self.set_aside.lock().contains_key(&recorded.id) {
                self.keep_range(recorded.id, Some(recorded.clone()));
            }
        }
        damaged.into_iter().for_each(|region| self.keep_range(region, None));
        in_threads(registered, threads, |(place, recorded)| {
            if place == Place::Built && router.mailbox(recorded.id.get()).is_some() {
                self.begin(router, recorded.id);
            }
            None::<()>
        });
        // Not before: a question counts as unanswered in a few ticks, and what it wakes would begin too early.
        router.send_control_after(self.tick_interval, StoreMessage::AskOthers);
    }

    /// What is set aside keeps its range: its contents are there, and somebody may repair its records.
    fn keep_range(&self, region: RegionId, recorded: Option<Arc<RegionDescription>>) {
        let applied = self.known_to_state_machine(region).ok().flatten();
        let known = applied.map(|applied| applied.description).or(recorded);
        // Where a sound region has a part of it, what is known of it is old.
        if known.is_none_or(|known| known.is_initialised() && self.ranges.insert(&known).is_err()) {
            self.ranges.add_unknown(region);
        }
    }

    /// What was received and is not needed to finish an installation. What others have put there stays.
    fn remove_stray_snapshots(&self, regions: &[StoredRegion]) {
        let expected = |stored: &StoredRegion| {
            let TruncatedState { index, term } = stored.record.installing?;
            let region = stored.record.description.id;
            Some((staged_name(region, stored.record.peer_id, index, term), (region, index)))
        };
        let expected: FxHashMap<String, _> = regions.iter().filter_map(expected).collect();
        // A crash may have come between the end of the installation and that of the file.
        let installed = |region: RegionId, index: Index| {
            let applied = self.known_to_state_machine(region).ok().flatten();
            applied.is_some_and(|applied| applied.index >= index)
                && self.durable_index(region) >= index
        };
        let needed = |name: &String| {
            expected.get(name).is_some_and(|(region, index)| !installed(*region, *index))
        };
        let names = self.files.list().unwrap_or_else(|error| {
            tracing::warn!(%error, "snapshots cannot be listed");
            Vec::new()
        });
        let ours = |name: &String| StagedName::parse(name).is_some();
        for name in names.into_iter().filter(|name| ours(name) && !needed(name)) {
            if let Err(error) = self.files.remove(&name) {
                tracing::warn!(name, %error, "a snapshot cannot be removed");
            }
        }
    }

    /// Brings a region to life from what the log store holds.
    pub(crate) fn restore(&self, router: &RegionRouter, stored: StoredRegion) {
        let region = stored.record.description.id;
        if self.register(router, stored, false) == Place::Built {
            self.begin(router, region);
        }
    }

    /// Makes a region from what the log store holds; says where it is. One that is damaged is set aside,
    /// and the others go on. One that needs nothing is not made before somebody wants something of it, if it
    /// `may_sleep`.
    fn register(&self, router: &RegionRouter, stored: StoredRegion, may_sleep: bool) -> Place {
        let region_id = stored.record.description.id;
        let restored = brought_back(|| match stored.record.tombstone {
            true => self.finish_destroying(&stored.record).map(|()| Place::Gone),
            false => self.try_register(router, stored, may_sleep),
        });
        restored.unwrap_or_else(|reason| {
            if !self.chores.is_closed() {
                tracing::error!(region = %region_id, reason, "region set aside");
                self.set_aside(region_id, reason);
            }
            Place::Gone
        })
    }

    /// A crash may have come between the tombstone and the end of the contents.
    fn finish_destroying(&self, record: &RegionRecord) -> Result<(), String> {
        let region = record.description.id;
        let Some(applied) = self.known_to_state_machine(region)? else { return Ok(()) };
        self.check_remains(record, &applied)?;
        forget(&*self.state_machine, region).map_err(|error| error.to_string())
    }

    fn try_register(
        &self,
        router: &RegionRouter,
        stored: StoredRegion,
        may_sleep: bool,
    ) -> Result<Place, String> {
        let peer = stored.record.peer_id;
        let applied = self.applied_state(&stored.record)?;
        if let Some(applied) = &applied {
            if applied.description.peer(peer).is_none() {
                // It had left before the crash, and only its tombstone is missing.
                self.check_leave(&stored, applied)?;
                let left_at = Some(TruncatedState { index: applied.index, term: applied.term });
                let last = Removal { description: applied.description.clone(), left_at };
                self.peers.bury(peer, &last);
                let chore = Chore::Destroy(last, peer);
                let _ = self.chores.push_always(chore, 1);
                return Ok(Place::Gone);
            }
        }
        if let Some(applied) = applied.as_ref().filter(|_| may_sleep) {
            if let Some(leader) = self.needs_nothing(&stored, applied) {
                self.insert_range(&applied.description)?;
                self.sleep_on(stored, applied.clone(), leader);
                return Ok(Place::Asleep);
            }
        }
        let region = self.build(stored, applied)?;
        if region.has_range() {
            self.insert_range(region.description())?;
        }
        self.metrics.region_added(None);
        let past = Past { role: None, rest: None, writes: 0, ticking: true };
        self.enter(router, region, past)?;
        Ok(Place::Built)
    }

    fn insert_range(&self, description: &Arc<RegionDescription>) -> Result<(), String> {
        let inserted = self.ranges.insert(description);
        inserted.map_err(|other| format!("its range overlaps that of region {other}"))
    }

    /// A region as it is on disk.
    pub(crate) fn build(
        &self,
        stored: StoredRegion,
        applied: Option<AppliedState>,
    ) -> Result<Region, String> {
        let reader: Arc<dyn LogReader> = self.log_store.clone();
        let state = RestoredState {
            record: stored.record,
            // A peer that knew nothing and has not voted has promised nothing.
            hard_state: stored.hard_state.filter(|state| *state != HardState::default()),
            truncated: stored.truncated,
            last_index: stored.last_index,
            applied,
        };
        Region::restore(state, self.store_id, self.region_config.clone(), reader)
            .map_err(|failure| failure.to_string())
    }

    /// Gives a region its place among the others.
    ///
    /// # Errors
    /// When the pool shuts down.
    pub(crate) fn enter(
        &self,
        router: &RegionRouter,
        region: Region,
        Past { role, rest, writes, ticking }: Past,
    ) -> Result<(), String> {
        let region_id = region.id();
        let gate = self.gates.open(region_id, region.peer().id);
        let newcomer = (!region.description().is_initialised()).then(|| self.newcomers.clone());
        let mut fsm = Box::new(RegionFsm::new(region, gate.clone(), newcomer));
        (fsm.role, fsm.rest, fsm.publisher.writes, fsm.ticking) = (role, rest, writes, ticking);
        self.directory.add(region_id, fsm.publisher.published());
        let registered = router.register(region_id.get(), fsm, Priority::Normal);
        registered.map(drop).map_err(|error| {
            self.gates.close(&gate);
            error.to_string()
        })
    }

    /// From now on the region does something.
    pub(crate) fn begin(&self, router: &RegionRouter, region: RegionId) {
        self.start_ticking(router, region);
        let _ = router.force_send_control(StoreMessage::Created(region));
    }

    /// What the state machine has, after the installation of a snapshot that a crash has interrupted.
    fn applied_state(&self, record: &RegionRecord) -> Result<Option<AppliedState>, String> {
        let region = record.description.id;
        let known = self.known_to_state_machine(region)?;
        let Some(TruncatedState { index, term }) = record.installing else { return Ok(known) };
        if known.as_ref().is_some_and(|known| known.index >= index) {
            return Ok(known);
        }
        let description = record.description.clone();
        let applied = AppliedState { index, term, description };
        let state_machine = &*self.state_machine;
        match install_staged(state_machine, &*self.files, applied.clone(), record.peer_id) {
            Ok(()) => {
                self.metrics.snapshot("installed");
                self.observers.tell(region, || RegionEvent::SnapshotInstalled { index });
                Ok(Some(applied))
            }
            Err(NotInstalled::Unsound(reason)) => Err(reason),
            Err(NotInstalled::Failed(failure)) => {
                let reason = failure.to_string();
                self.health.fail(failure);
                Err(reason)
            }
        }
    }

    /// A time within a tick, which differs by region and store.
    pub(crate) fn offset_in_tick(&self, region: RegionId) -> Duration {
        let mixed = (region.get() ^ self.store_id.get() << 56).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let part = (mixed >> 40) as f64 / (1u64 << 24) as f64;
        self.tick_interval.mul_f64(part)
    }

    /// Regions tick at different times, so that the work spreads over the interval.
    fn start_ticking(&self, router: &RegionRouter, region: RegionId) {
        let offset = self.offset_in_tick(region);
        router.outbox().send_after(region.get(), offset, RegionMessage::Tick);
        // What recovery left to do (replaying the log) begins now and not with the first tick.
        let _ = router.force_send(region.get(), RegionMessage::Continue);
    }
}

/// Does something with all items, on so many threads; with none, on this one. What comes of it is in no order.
fn in_threads<T: Send, R: Send>(
    items: Vec<T>,
    threads: usize,
    each: impl Fn(T) -> Option<R> + Sync,
) -> Vec<R> {
    if threads == 0 {
        return items.into_iter().filter_map(each).collect();
    }
    let share = items.len().div_ceil(threads).max(1);
    std::thread::scope(|scope| {
        let mut items = items.into_iter();
        let mut workers = Vec::new();
        loop {
            let part: Vec<T> = items.by_ref().take(share).collect();
            if part.is_empty() {
                break;
            }
            let each = &each;
            workers
                .push(scope.spawn(move || part.into_iter().filter_map(each).collect::<Vec<R>>()));
        }
        let done = workers.into_iter();
        done.flat_map(|worker| worker.join().unwrap_or_else(|panic| resume_unwind(panic))).collect()
    })
}

/// A region of which nothing but the record is written.
pub(crate) fn new_region(record: RegionRecord) -> StoredRegion {
    let truncated = match record.description.is_initialised() {
        true => TruncatedState::INITIAL,
        false => TruncatedState::NOTHING,
    };
    StoredRegion { record, hard_state: None, truncated, last_index: truncated.index }
}
