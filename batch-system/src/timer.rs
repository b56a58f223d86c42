//! Messages that are sent after a delay.
//!
//! A hashed wheel of slots: what is due in slot `s` of any turn is in slot `s`, with the tick at which
//! it is due. An FSM that did not ask for a timer costs nothing, and a wheel that is empty is not
//! turned.
//!
//! Time comes from outside, as the time since the pool began: from the pool's timer thread, or from
//! whoever drives by hand.

use crate::fsm::Fsm;
use crate::mailbox::Cell;
use crate::outbox::Outbox;
use crate::router::Shared;
use crate::sync::{Arc, AtomicU64, Mutex, Ordering};
use std::time::{Duration, Instant};

/// How exact timers are: a message is sent at its time or up to this much later when driven by hand;
/// a pool's thread looks at the clock as often as that, which may add as much again.
pub const TIMER_GRANULARITY: Duration = Duration::from_millis(5);

const SLOTS: usize = 1024;
const _: () = assert!(SLOTS.is_power_of_two());

pub(crate) struct Timers<N: Fsm, C: Fsm> {
    time: Time,
    wheel: Mutex<Wheel<N, C>>,
}

/// Where the time since the pool began comes from.
pub(crate) enum Time {
    /// From the machine, since this instant.
    Real(Instant),
    /// From whoever drives by hand, in nanoseconds.
    Driven(AtomicU64),
}

impl Time {
    /// The time since the pool began.
    pub(crate) fn elapsed(&self) -> Duration {
        match self {
            Time::Real(start) => start.elapsed(),
            Time::Driven(nanos) => Duration::from_nanos(nanos.load(Ordering::Acquire)),
        }
    }

    /// Moves driven time forward.
    pub(crate) fn advance(&self, by: Duration) {
        match self {
            Time::Real(_) => unreachable!("only a driver moves time"),
            Time::Driven(nanos) => {
                nanos.fetch_add(by.as_nanos() as u64, Ordering::AcqRel);
            }
        }
    }
}

struct Wheel<N: Fsm, C: Fsm> {
    slots: Vec<Vec<Timer<N, C>>>,
    /// Ticks done.
    now: u64,
    /// Timers waiting, in all slots.
    count: usize,
}

struct Timer<N: Fsm, C: Fsm> {
    due: u64,
    mail: Mail<N, C>,
}

/// A message, and who it is for.
pub(crate) enum Mail<N: Fsm, C: Fsm> {
    Normal(Arc<Cell<N>>, N::Message),
    Control(C::Message),
}

impl<N: Fsm, C: Fsm> Timers<N, C> {
    pub(crate) fn new(time: Time) -> Self {
        Self { time, wheel: Mutex::new(Wheel { slots: Vec::new(), now: 0, count: 0 }) }
    }

    pub(crate) fn time(&self) -> &Time {
        &self.time
    }

    /// Adds a timer, and returns the tick at which it is due.
    pub(crate) fn add(&self, delay: Duration, mail: Mail<N, C>) -> u64 {
        let due = ticks_up(self.time.elapsed().saturating_add(delay));
        let mut wheel = self.wheel.lock();
        // Not in the past of the wheel: that slot would come round only after a whole turn.
        let due = due.max(wheel.now + 1);
        wheel.insert(Timer { due, mail });
        due
    }

    /// Sends everything that is due, and returns the tick at which the next timer is.
    pub(crate) fn advance(&self, shared: &Shared<N, C>, outbox: &mut Outbox<N, C>) -> Option<u64> {
        let target = ticks_down(self.time.elapsed());
        loop {
            let due = {
                let mut wheel = self.wheel.lock();
                if wheel.count == 0 || wheel.now >= target {
                    wheel.now = wheel.now.max(target);
                    return wheel.next_due();
                }
                wheel.turn()
            };
            for timer in due {
                self.fire(timer.mail, shared, outbox);
            }
        }
    }

    /// Forgets all timers: their FSMs are at their end.
    pub(crate) fn clear(&self) {
        let mut wheel = self.wheel.lock();
        let slots = std::mem::take(&mut wheel.slots);
        wheel.count = 0;
        drop(wheel);
        // Not under the lock: the drop of a message may set a timer.
        drop(slots);
    }

    fn fire(&self, mail: Mail<N, C>, shared: &Shared<N, C>, outbox: &mut Outbox<N, C>) {
        let limit = shared.limits.forced_capacity;
        let refused = match mail {
            Mail::Normal(cell, message) => match cell.send(message, limit) {
                Ok(sent) => return outbox.note(sent),
                Err(error) if error.is_full() => Mail::Normal(cell, error.into_message()),
                Err(_) => return,
            },
            Mail::Control(message) => match shared.send_control(message, limit) {
                Err(error) if error.is_full() => Mail::Control(error.into_message()),
                _ => return,
            },
        };
        // A timer often carries the one message that keeps a chain of timers going: try again.
        self.add(TIMER_GRANULARITY, refused);
    }
}

fn ticks_up(time: Duration) -> u64 {
    u64::try_from(time.as_nanos().div_ceil(TIMER_GRANULARITY.as_nanos())).unwrap_or(u64::MAX)
}

fn ticks_down(time: Duration) -> u64 {
    u64::try_from(time.as_nanos() / TIMER_GRANULARITY.as_nanos()).unwrap_or(u64::MAX)
}

/// The time of a tick since the pool began.
pub(crate) fn time_of_tick(tick: u64) -> Duration {
    Duration::from_nanos(tick.saturating_mul(TIMER_GRANULARITY.as_nanos() as u64))
}

impl<N: Fsm, C: Fsm> Wheel<N, C> {
    fn insert(&mut self, timer: Timer<N, C>) {
        if self.slots.is_empty() {
            self.slots.resize_with(SLOTS, Vec::new);
        }
        self.count += 1;
        self.slots[timer.due as usize % SLOTS].push(timer);
    }

    /// The tick of the next slot with something in it: never later than the next timer.
    fn next_due(&self) -> Option<u64> {
        if self.count == 0 {
            return None;
        }
        (self.now + 1..=self.now + SLOTS as u64)
            .find(|tick| !self.slots[*tick as usize % SLOTS].is_empty())
    }

    /// Goes on by one tick and takes out what is due.
    fn turn(&mut self) -> Vec<Timer<N, C>> {
        self.now += 1;
        let now = self.now;
        let slot = &mut self.slots[now as usize % SLOTS];
        let due: Vec<_> = if slot.iter().all(|timer| timer.due <= now) {
            std::mem::take(slot)
        } else {
            let (due, later) = std::mem::take(slot).into_iter().partition(|timer| timer.due <= now);
            *slot = later;
            due
        };
        self.count -= due.len();
        due
    }
}
