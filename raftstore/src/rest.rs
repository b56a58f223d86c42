//! How a region's FSM rests: when it is not sent ticks, and who is watched meanwhile.

use crate::liveness::Liveness;
use crate::message::RegionMessage;
use crate::region_fsm::{RegionFsm, RegionOutbox};
use region::StoreId;
use std::time::Duration;

/// An FSM whose region sleeps.
pub(crate) struct Rest {
    since: Duration,
    /// The store that leads, if that is another one.
    leader: Option<StoreId>,
}

impl RegionFsm {
    /// Wakes the region if there is something for it to do. `now` is no later than the messages were taken.
    pub(crate) fn rouse(
        &mut self,
        messages: &[RegionMessage],
        liveness: &Liveness,
        now: Duration,
        tick: Duration,
    ) {
        let Some(rest) = &self.rest else { return };
        if !messages.iter().any(RegionMessage::rouses) {
            return;
        }
        let id = self.region.id();
        let silent = match rest.leader {
            Some(store) if liveness.doubts(id, store) => whole_ticks(now, rest.since, tick),
            _ => 0,
        };
        self.region.wake(silent);
        self.leave(liveness);
    }

    /// A round has ended: begins or ends the region's rest. `now` must be read after everything of the round
    /// was handled; a rest that seemed longer than it was could break what the region owes its leader.
    pub(crate) fn settle_down(
        &mut self,
        liveness: &Liveness,
        now: impl FnOnce() -> Duration,
        tick: Duration,
        outbox: &mut RegionOutbox,
    ) {
        let id = self.region.id();
        if !self.region.is_asleep() {
            self.leave(liveness);
            if !std::mem::replace(&mut self.ticking, true) {
                outbox.send_after(id.get(), tick, RegionMessage::Tick);
            }
            return;
        }
        if self.rest.is_some() {
            return;
        }
        self.publisher.hurry();
        liveness.note_asleep(true);
        let led_by = self.region.leader().filter(|leader| leader.id != self.region.peer().id);
        self.rest = Some(Rest { since: now(), leader: led_by.map(|leader| leader.store) });
        match (led_by, self.region.relies_on_life()) {
            (Some(leader), Some(life)) => {
                if !liveness.watch_leader(id, leader.store, life) {
                    // Forced: nobody else would wake it.
                    let _ = outbox.force_send(id.get(), RegionMessage::StoreLost(leader.store));
                }
            }
            _ => self.others().for_each(|store| liveness.watch_follower(store)),
        }
    }

    /// The region sleeps no more.
    pub(crate) fn leave(&mut self, liveness: &Liveness) {
        let Some(rest) = self.rest.take() else { return };
        self.publisher.hurry();
        liveness.note_asleep(false);
        match rest.leader {
            Some(store) => liveness.leave_leader(self.region.id(), store),
            None => self.others().for_each(|store| liveness.leave_follower(store)),
        }
    }

    /// The other stores with a peer. The same for as long as the region sleeps.
    fn others(&self) -> impl Iterator<Item = StoreId> + '_ {
        let own = self.region.peer().store;
        let peers = self.region.description().peers.iter();
        peers.map(|peer| peer.store).filter(move |store| *store != own)
    }
}

/// Ticks that have passed in full.
fn whole_ticks(now: Duration, since: Duration, tick: Duration) -> usize {
    let ticks = now.saturating_sub(since).as_nanos() / tick.as_nanos().max(1);
    usize::try_from(ticks).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_count_when_they_have_passed_in_full() {
        let ms = Duration::from_millis;
        assert_eq!(whole_ticks(ms(199), ms(100), ms(100)), 0);
        assert_eq!(whole_ticks(ms(300), ms(100), ms(100)), 2);
        assert_eq!(whole_ticks(ms(50), ms(100), ms(100)), 0, "the round began before the rest");
    }
}
