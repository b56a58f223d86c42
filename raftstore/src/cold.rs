//! Regions that have slept for long: without an Fsm, a mailbox, a gate or a summary.
//!
//! ```text
//!            has slept for long                  nothing came meanwhile
//!   Fsm ────────────────────────► cooling ───────────────────────────────► cold
//!    ▲                               │ something came                        │ a message for it
//!    └───────────────────────────────┴───────────────────────────────────────┘
//! ```
//!
//! Who sends to a region looks for its mailbox first, and here only if there is none. The region is noted as
//! cooling *before* its address is taken off the router, so it is found in one of the two places at any time.
//! What is sent while it cools waits in the note. The lock of a note is held until the region is registered
//! again: two senders never make two Fsms.
//!
//! At the start of a store, regions that need nothing are noted here as the log store has them, and built when
//! something comes.
//!
//! Invariant: a region is registered, or noted here, or both while it cools; and never an Fsm of it exists
//! beside a cold one.

use crate::creator::{brought_back, Creator, Past};
use crate::log_store::StoredRegion;
use crate::message::RegionMessage;
use crate::region_fsm::{RegionFsm, RegionRouter};
use crate::rest::Rest;
use batch_system::{Priority, SendError};
use parking_lot::{Mutex, MutexGuard};
use region::{
    AppliedState, ColdRegion, LogReader, Peer, PeerId, RegionId, RegionStatus, Role, Term,
};
use rustc_hash::FxHashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;

const SHARDS: usize = 64;

/// Most messages that wait for a region while it cools, which takes no longer than a round.
const MAX_WAITING: usize = 1024;

type Shard = FxHashMap<RegionId, Note>;

enum Note {
    Cooling(Box<Cooling>),
    Cold(Box<Cold>),
    /// Not built since the start of the store.
    Stored(Box<Stored>),
}

/// Its Fsm is on its way out.
#[derive(Default)]
struct Cooling {
    /// What has come since.
    waiting: Vec<RegionMessage>,
}

struct Stored {
    region: StoredRegion,
    /// What the state machine has, and has had to the end of the log.
    applied: AppliedState,
    leader: Peer,
}

impl Stored {
    /// As of the end of the last life; who leads is presumed.
    fn status(&self) -> RegionStatus {
        let Self { region: stored, applied, leader } = self;
        RegionStatus::at_rest(
            applied.description.clone(),
            (stored.record.peer_id, leader.id),
            Term::new(stored.hard_state.as_ref().map_or(0, |state| state.term)),
            (stored.truncated.index, stored.last_index),
        )
    }
}

struct Cold {
    region: ColdRegion,
    /// At which tick of the store it fell asleep.
    since: u64,
    /// As its summary had it.
    writes: u64,
}

impl Cold {
    fn rest(&self) -> Rest {
        let leader = (!self.region.is_leader()).then(|| self.region.leader().store);
        Rest::asleep(self.since, leader)
    }
}

/// To be called when something was removed: most may have been, the regions being cold.
pub(crate) fn give_back_room<T>(table: &mut FxHashMap<RegionId, T>) {
    if table.len() < table.capacity() / 8 {
        table.shrink_to_fit();
    }
}

/// The cold regions of a store.
pub(crate) struct ColdRegions {
    shards: Box<[Mutex<Shard>]>,
    /// Notes of all kinds.
    count: AtomicUsize,
}

impl Default for ColdRegions {
    fn default() -> Self {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        Self { shards, count: AtomicUsize::new(0) }
    }
}

impl ColdRegions {
    fn shard(&self, region: RegionId) -> MutexGuard<'_, Shard> {
        self.shards[region.get() as usize % SHARDS].lock()
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }

    /// The region is about to be cold; its address is taken off the router next.
    pub(crate) fn begin(&self, region: RegionId) {
        let before = self.shard(region).insert(region, Note::Cooling(Box::default()));
        debug_assert!(before.is_none(), "{region} is cold twice");
        self.count.fetch_add(1, Ordering::AcqRel);
    }

    /// Whether a region is cold, or about to be.
    pub(crate) fn contains(&self, region: RegionId) -> bool {
        self.shard(region).contains_key(&region)
    }

    /// How a cold region stands, and its writes so far; `None` if it is not cold.
    pub(crate) fn status(&self, region: RegionId) -> Option<(RegionStatus, u64)> {
        match self.shard(region).get(&region)? {
            Note::Cold(cold) => Some((cold.region.status(), cold.writes)),
            Note::Stored(stored) => Some((stored.status(), 0)),
            Note::Cooling(_) => None,
        }
    }

    /// How all cold regions stand, in no order. One shard is locked at a time.
    pub(crate) fn all(&self) -> Vec<(RegionStatus, u64)> {
        let mut all = Vec::with_capacity(self.len());
        for shard in &self.shards {
            all.extend(shard.lock().values().filter_map(|note| match note {
                Note::Cold(cold) => Some((cold.region.status(), cold.writes)),
                Note::Stored(stored) => Some((stored.status(), 0)),
                Note::Cooling(_) => None,
            }));
        }
        all
    }

    /// The cold regions that this store leads.
    pub(crate) fn led(&self) -> Vec<RegionId> {
        let mut led = Vec::new();
        for shard in &self.shards {
            led.extend(shard.lock().values().filter_map(|note| match note {
                Note::Cold(cold) if cold.region.is_leader() => Some(cold.region.id()),
                _ => None,
            }));
        }
        led
    }

    /// A region was about to be cold and has ended otherwise: what has come for it since.
    pub(crate) fn abandon(&self, region: RegionId) -> Vec<RegionMessage> {
        let mut shard = self.shard(region);
        match shard.remove(&region) {
            Some(Note::Cooling(cooling)) => {
                self.is_warm();
                cooling.waiting
            }
            Some(cold) => {
                shard.insert(region, cold);
                Vec::new()
            }
            None => Vec::new(),
        }
    }

    /// One that was noted here is registered, or gone.
    fn is_warm(&self) {
        self.count.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Creator {
    /// An Fsm that was to become cold has ended: what is left of it is noted, or, if something has come
    /// meanwhile, it goes on. Gives it back if it can do neither, the pool being shut down.
    pub(crate) fn freeze(
        &self,
        router: &RegionRouter,
        mut fsm: Box<RegionFsm>,
        mut messages: Vec<RegionMessage>,
    ) -> Option<(Box<RegionFsm>, Vec<RegionMessage>)> {
        let id = fsm.region.id();
        let mut shard = self.cold.shard(id);
        if let Some(Note::Cooling(cooling)) = shard.remove(&id) {
            messages.extend(cooling.waiting);
        }
        let since = fsm.rest.as_ref().map(Rest::since);
        if let Some(since) = since.filter(|_| messages.is_empty() && fsm.region.may_freeze()) {
            let RegionFsm { region, rest, publisher, gate, .. } = *fsm;
            let cold = Cold { region: region.freeze(), since, writes: publisher.writes };
            debug_assert_eq!(rest, Some(cold.rest()));
            shard.insert(id, Note::Cold(Box::new(cold)));
            // Only now: whoever looks at all regions finds it here or there.
            self.gates.close(&gate);
            self.directory.remove(id, &publisher.published());
            return None;
        }
        (fsm.cooling, fsm.ticking) = (false, false);
        // What is under way to the mailbox that is gone will not come; it gets a tick of its own.
        messages.retain(|message| !matches!(message, RegionMessage::Tick));
        messages.push(RegionMessage::Continue);
        let registered = router.register(id.get(), fsm, Priority::Normal);
        self.cold.is_warm();
        if let Err(refused) = registered {
            return Some((refused.into_fsm(), messages));
        }
        drop(shard);
        if let (Some(since), Some(cold_after)) = (since, self.cold_after) {
            // What came may not have woken it.
            router.outbox().send_after(id.get(), cold_after, RegionMessage::Cool(since));
        }
        for message in messages {
            // Forced, and the mailbox is empty.
            let _ = router.force_send(id.get(), message);
        }
        None
    }

    /// Sends to a region that has no mailbox, if that is because it is cold.
    ///
    /// # Errors
    /// `Closed` if it is not, with the message; `Full` if too many wait for it.
    pub(crate) fn reach(
        &self,
        router: &RegionRouter,
        region: RegionId,
        message: RegionMessage,
    ) -> Result<(), SendError<RegionMessage>> {
        let mut shard = self.cold.shard(region);
        if let Some(Note::Cooling(cooling)) = shard.get_mut(&region) {
            if cooling.waiting.len() >= MAX_WAITING {
                return Err(SendError::Full(message));
            }
            cooling.waiting.push(message);
            return Ok(());
        }
        self.warm_up(router, region, shard);
        // It may have been warm by then.
        router.send(region.get(), message)
    }

    /// Whether a region is here, cold or not.
    pub(crate) fn is_here(&self, router: &RegionRouter, region: RegionId) -> bool {
        let has_mailbox = || router.mailbox(region.get()).is_some();
        // Once more: it may have become warm between the two.
        has_mailbox() || self.cold.contains(region) || has_mailbox()
    }

    /// Whether a region has a mailbox, or gets one now, being cold.
    pub(crate) fn warm(&self, router: &RegionRouter, region: RegionId) -> bool {
        let mut shard = self.cold.shard(region);
        if let Some(Note::Cooling(cooling)) = shard.get_mut(&region) {
            cooling.waiting.push(RegionMessage::Continue);
            return true;
        }
        self.warm_up(router, region, shard);
        router.mailbox(region.get()).is_some()
    }

    fn warm_up(&self, router: &RegionRouter, region: RegionId, mut shard: MutexGuard<'_, Shard>) {
        let made = match shard.remove(&region) {
            Some(Note::Cold(cold)) => self.register_anew(router, region, *cold),
            Some(Note::Stored(stored)) => self.build_late(router, *stored),
            Some(cooling) => {
                shard.insert(region, cooling);
                return;
            }
            None => return,
        };
        // Not before: who finds neither a mailbox nor anything cold looks for a mailbox again.
        self.cold.is_warm();
        drop(shard);
        if let Err(reason) = made {
            tracing::error!(%region, reason, "region set aside");
            // Not under the lock: observers are told, and may look at any region.
            self.set_aside(region, reason);
        }
    }

    /// Whether what the last life of the store has left needs nothing: it is applied to the end, and this peer has
    /// voted for another one. That one leads, if anybody leads this term: of three voters nobody else has another two
    /// votes. (Unless there were more of them when it began; then somebody else may be watched, and the leader is heard
    /// as soon as there is anything to hear.) If nobody leads, somebody is awake who asks for votes, having voted for
    /// itself. Says who leads.
    pub(crate) fn needs_nothing(
        &self,
        stored: &StoredRegion,
        applied: &AppliedState,
    ) -> Option<Peer> {
        let hard_state = stored.hard_state.as_ref()?;
        let description = &applied.description;
        let record = &stored.record;
        let voters = description.peers.iter().filter(|peer| peer.role.is_voter()).count();
        let own = description.peer(record.peer_id)?;
        let leader = description.peer(PeerId::new(hard_state.vote))?;
        let quiet = self.region_config.sleep_after_ticks > 0
            && self.cold_after.is_some()
            && !description.joint
            && voters <= 3
            && own.role.is_voter()
            && own.store == self.store_id
            && leader.role.is_voter()
            && leader.store != self.store_id
            && applied.index == stored.last_index
            && stored.truncated.index <= applied.index
            && hard_state.commit <= applied.index.get();
        quiet.then_some(*leader)
    }

    /// It sleeps on, watched like any other.
    pub(crate) fn sleep_on(&self, mut stored: StoredRegion, applied: AppliedState, leader: Peer) {
        let region = applied.description.id;
        // One is enough to keep.
        stored.record.description = applied.description.clone();
        self.liveness.watch_presumed(region, leader.store);
        self.liveness.note_asleep(true);
        self.metrics.region_added(Some(Role::Follower));
        let note = Note::Stored(Box::new(Stored { region: stored, applied, leader }));
        self.cold.shard(region).insert(region, note);
        self.cold.count.fetch_add(1, Ordering::AcqRel);
    }

    /// Somebody wants something of a region that was not built at the start. Says why it must be set aside, if it
    /// must.
    fn build_late(&self, router: &RegionRouter, stored: Stored) -> Result<(), String> {
        let Stored { region: stored, applied, leader } = stored;
        let (region, role) = (applied.description.id, Some(Role::Follower));
        self.liveness.note_asleep(false);
        let doubted = self.liveness.silent_ticks(region, leader.store, 0) > 0;
        let built = brought_back(|| self.build(stored, Some(applied)));
        // As long as it has not heard of its leader, that one's store is watched.
        let rest = (built.is_ok() && !doubted).then(|| Rest::presumed(leader.store));
        if rest.is_none() {
            self.liveness.leave_leader(region, leader.store);
        }
        let mut built = built.inspect_err(|_| self.metrics.region_gone(role))?;
        built.count_as_passed(self.liveness.ticks());
        if rest.is_some() {
            built.presume_leader(leader.id);
        }
        match self.enter(router, built, Past { role, rest, writes: 0, ticking: true }) {
            Ok(()) => self.begin(router, region),
            // The pool shuts down.
            Err(_) => self.metrics.region_gone(role),
        }
        Ok(())
    }

    /// Says why it must be set aside, if it must.
    fn register_anew(
        &self,
        router: &RegionRouter,
        region: RegionId,
        cold: Cold,
    ) -> Result<(), String> {
        let rest = cold.rest();
        let Cold { region: cold, since, writes } = cold;
        let description = cold.description().clone();
        let role = Some(if cold.is_leader() { Role::Leader } else { Role::Follower });
        let reader: Arc<dyn LogReader> = self.log_store.clone();
        let thawed = match cold.thaw(self.store_id, self.region_config.clone(), reader) {
            Ok(thawed) => thawed,
            Err(failure) => {
                rest.end(&description, &self.liveness);
                self.metrics.region_gone(role);
                return Err(failure.to_string());
            }
        };
        let past = Past { role, rest: Some(rest), writes, ticking: false };
        let entered = self.enter(router, thawed, past);
        if let (Ok(()), Some(cold_after)) = (entered, self.cold_after) {
            // What it comes for may not wake it.
            router.outbox().send_after(region.get(), cold_after, RegionMessage::Cool(since));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::size_of;

    #[test]
    fn a_note_is_small() {
        // A table is at least seven sixteenths full, and has a byte beside each entry.
        let entry = (size_of::<(RegionId, Note)>() + 1) * 16 / 7;
        let all = size_of::<Cold>() + entry;
        assert!(all < 256, "{all} bytes: {} + {entry}", size_of::<Cold>());
    }
}
