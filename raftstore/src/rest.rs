//! How a region's FSM rests: when it is not sent ticks, and who is watched meanwhile.

use crate::liveness::Liveness;
use crate::message::RegionMessage;
use crate::region_fsm::{RegionFsm, RegionOutbox};
use region::{RegionDescription, StoreId};
use std::time::Duration;

/// An FSM whose region sleeps, or has slept and not heard of its leader since.
///
/// Invariant: as long as there is one that names a leader's store, that store is watched for the region.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Rest {
    asleep: bool,
    /// At which tick of the store it fell asleep.
    since: u64,
    /// The store that leads, if that is another one.
    leader: Option<StoreId>,
}

impl Rest {
    /// Of a region that has slept since that tick of the store, and is led on that store if not on this one.
    pub(crate) fn asleep(since: u64, leader: Option<StoreId>) -> Self {
        Self { asleep: true, since, leader }
    }

    /// Of a region that has just been built, and has not heard yet of the leader that it presumes on this store.
    pub(crate) fn presumed(leader: StoreId) -> Self {
        // It has heard nobody in this life.
        Self { asleep: false, since: 0, leader: Some(leader) }
    }

    /// At which tick of the store it began.
    pub(crate) fn since(&self) -> u64 {
        self.since
    }

    /// It is over for a region of this description.
    pub(crate) fn end(self, description: &RegionDescription, liveness: &Liveness) {
        if self.asleep {
            liveness.note_asleep(false);
        }
        match self.leader {
            Some(store) => liveness.leave_leader(description.id, store),
            None => liveness.leave_followers(description),
        }
    }
}

impl RegionFsm {
    /// Wakes the region if there is something for it to do.
    pub(crate) fn rouse(&mut self, messages: &[RegionMessage], liveness: &Liveness) {
        let Some(rest) = &mut self.rest else { return };
        let leads = rest.leader.is_none();
        if !messages.iter().any(|message| message.rouses(leads)) {
            return;
        }
        let id = self.region.id();
        let silent = rest.leader.map_or(0, |store| liveness.silent_ticks(id, store, rest.since));
        self.cooling = false;
        let woke = std::mem::replace(&mut rest.asleep, false);
        if woke {
            liveness.note_asleep(false);
            self.publisher.hurry();
        }
        if leads {
            // Now: its peers may be others by the end of the round.
            self.leave(liveness);
        }
        self.region.wake(usize::try_from(silent).unwrap_or(usize::MAX));
    }

    /// A round has ended: begins or ends the region's rest.
    pub(crate) fn settle_down(
        &mut self,
        liveness: &Liveness,
        cold_after: Option<Duration>,
        tick: Duration,
        outbox: &mut RegionOutbox,
    ) {
        let id = self.region.id();
        if !self.region.is_asleep() {
            if !self.region.is_unheeded() {
                self.leave(liveness);
            }
            if !std::mem::replace(&mut self.ticking, true) {
                outbox.send_after(id.get(), tick, RegionMessage::Tick);
            }
            return;
        }
        if self.rest.as_ref().is_some_and(|rest| rest.asleep) {
            return;
        }
        self.leave(liveness);
        self.publisher.hurry();
        liveness.note_asleep(true);
        let led_by = self.region.leader().filter(|leader| leader.id != self.region.peer().id);
        let leader = led_by.map(|leader| leader.store);
        let since = liveness.ticks();
        self.rest = Some(Rest::asleep(since, leader));
        if let Some(cold_after) = cold_after {
            outbox.send_after(id.get(), cold_after, RegionMessage::Cool(since));
        }
        match (led_by, self.region.relies_on_life()) {
            (Some(leader), Some(life)) => {
                if !liveness.watch_leader(id, leader.store, life) {
                    // Forced: nobody else would wake it.
                    let _ = outbox.force_send(id.get(), RegionMessage::StoreLost(leader.store));
                }
            }
            _ => liveness.watch_followers(self.region.description()),
        }
    }

    /// Whether it has slept since that tick.
    pub(crate) fn sleeps_since(&self, since: u64) -> bool {
        self.region.is_asleep()
            && self.rest.as_ref().is_some_and(|rest| rest.asleep && rest.since == since)
    }

    /// The region sleeps no more, and relies on no store's life.
    pub(crate) fn leave(&mut self, liveness: &Liveness) {
        if let Some(rest) = self.rest.take() {
            rest.end(self.region.description(), liveness);
        }
    }
}
