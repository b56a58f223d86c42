//! The one thread of a pool that runs no FSM: it turns the timer wheel, and sees to it that what waits
//! behind a handler that blocks is taken over by a poller that sleeps.
//!
//! While pollers work, or anything waits with one, it looks every few milliseconds. When all have slept for two
//! looks it sleeps too, until the next timer; a poller that wakes then wakes it as well, which costs a system call
//! once per quiet spell and a lock otherwise. Where there is one poller nobody could take anything over from it: while
//! nothing waits the watch is there for the timers alone.

use crate::fsm::Fsm;
use crate::router::Router;
use crate::sync::{Condvar, Mutex, Ordering};
use crate::timer::{time_of_tick, TIMER_GRANULARITY};
use std::time::Duration;

/// So many looks in a row at a pool asleep with nothing to do, and the watch sleeps. Not one: pollers that sleep and
/// wake thousands of times a second must not have it do the same.
const QUIET_LOOKS: u32 = 2;

/// The longest sleep; its end does nothing but look.
const LONGEST_SLEEP: Duration = Duration::from_secs(3600);

pub(crate) struct Watch {
    state: Mutex<WatchState>,
    wake: Condvar,
}

struct WatchState {
    /// The tick until which the watch sleeps; `None` while it looks every few milliseconds.
    asleep_until: Option<u64>,
    /// Something happened since the watch began its look: what it saw is out of date, and it must not
    /// sleep on it.
    noticed: bool,
    stop: bool,
}

impl Watch {
    pub(crate) fn new() -> Self {
        Self {
            state: Mutex::new(WatchState { asleep_until: None, noticed: false, stop: false }),
            wake: Condvar::new(),
        }
    }

    /// A timer was added that is due at this tick.
    pub(crate) fn timer_added(&self, due: u64) {
        self.wake_if(|until| due < until);
    }

    /// A poller woke up.
    pub(crate) fn pool_woke(&self) {
        self.wake_if(|_| true);
    }

    pub(crate) fn stop(&self) {
        self.state.lock().stop = true;
        self.wake.notify_one();
    }

    fn wake_if(&self, wanted: impl FnOnce(u64) -> bool) {
        let mut state = self.state.lock();
        match state.asleep_until {
            None => state.noticed = true,
            Some(until) if wanted(until) => {
                state.asleep_until = None;
                drop(state);
                self.wake.notify_one();
            }
            Some(_) => {}
        }
    }

    /// The watch is about to look at the pool; what happens from now on keeps it from sleeping.
    pub(crate) fn begin_look(&self) {
        self.state.lock().noticed = false;
    }

    /// Sleeps; says whether to go on. A sleep until a tick is given up if something happened since
    /// [`begin_look`](Self::begin_look).
    pub(crate) fn pause(&self, how_long: Duration, until: Option<u64>) -> bool {
        let mut state = self.state.lock();
        if state.stop {
            return false;
        }
        if until.is_some() && state.noticed {
            return true;
        }
        state.asleep_until = until;
        state = self.wake.wait_for(state, how_long);
        state.asleep_until = None;
        !state.stop
    }
}

/// The body of the watch thread.
pub(crate) fn run<N: Fsm, C: Fsm>(router: &Router<N, C>) {
    let shared = &router.shared;
    let mut outbox = router.outbox();
    let mut quiet = 0;
    let mut seen = vec![0; shared.scheduler.slots()];
    loop {
        shared.watch.begin_look();
        // Before the timers: what they wake now has not waited.
        let waiting: usize = router.waiting().iter().sum();
        shared.stats.waiting.fetch_add(waiting as u64, Ordering::Relaxed);
        let next_due = shared.timers.advance(shared, &mut outbox);
        outbox.flush();
        let waits = shared.scheduler.help_the_stuck(&mut seen, !shared.broadcasts.is_empty());
        // One poller alone may work as it likes: nobody could help it.
        let alone = !shared.scheduler.has_helpers();
        let is_quiet = !waits && (alone || shared.scheduler.all_asleep());
        quiet = if is_quiet { quiet + 1 } else { 0 };
        let enough = if alone { 1 } else { QUIET_LOOKS };
        let (how_long, until) = if quiet < enough {
            (TIMER_GRANULARITY, None)
        } else {
            let elapsed = shared.timers.time().elapsed();
            let how_long = next_due.map_or(LONGEST_SLEEP, |due| {
                time_of_tick(due).saturating_sub(elapsed).min(LONGEST_SLEEP)
            });
            (how_long, Some(next_due.unwrap_or(u64::MAX)))
        };
        if !shared.watch.pause(how_long, until) {
            return;
        }
    }
}
