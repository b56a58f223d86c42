//! How many pollers, and how many regions in a round: what a person would only guess.
//!
//! Once a second somebody looks how long regions with mail have waited for a poller: how many waited on the mean over
//! that second, by how many had their turn in it. Where they wait for long there are too few pollers, or rounds are too
//! small to be worth their fixed costs; where they hardly wait there may be fewer and smaller ones. Upwards it goes
//! fast, by doubling, and downwards slowly, since too few hurt and too many only cost a little.
//!
//! A store begins with the most pollers that it may have, and gives up what it does not need: the first second of a
//! load after a start is no time to find out.

use crate::region_fsm::RegionFsm;
use crate::store_fsm::StoreFsm;
use batch_system::{Pool, StatsSnapshot, TIMER_GRANULARITY};
use crossbeam::channel::{Receiver, RecvTimeoutError};
use region::StoreId;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A region that waits for so long waits too long.
const LONG_WAIT: Duration = Duration::from_millis(1);

/// So long is no wait: a poller that sleeps needs some of it to wake.
const SHORT_WAIT: Duration = Duration::from_micros(200);

/// Of a wait more need not be known.
const MOST_LOOKS: f64 = 1e6;

/// After so many looks in a row at regions that hardly wait, there may be less of everything.
const CALM_LOOKS: u32 = 10;

/// Within what a store tunes itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Bounds {
    /// Pollers.
    pub(crate) pollers: RangeInclusive<usize>,
    /// Regions in a round.
    pub(crate) batch: RangeInclusive<usize>,
}

impl Bounds {
    /// Whether there is nothing to choose.
    pub(crate) fn are_fixed(&self) -> bool {
        [&self.pollers, &self.batch].into_iter().all(|range| range.start() == range.end())
    }
}

/// What is tuned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Settings {
    pollers: usize,
    batch: usize,
}

/// What happened between two looks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Seen {
    /// How long a region with mail waited.
    wait: Duration,
    rounds: u64,
    /// Regions handled in them.
    runs: u64,
}

impl Seen {
    fn between(before: &StatsSnapshot, now: &StatsSnapshot) -> Self {
        let since = |of: fn(&StatsSnapshot) -> u64| of(now).saturating_sub(of(before));
        let runs = since(|stats| stats.runs);
        // Where nobody had his turn, they wait still.
        let looks = since(|stats| stats.waiting) as f64 / runs.max(1) as f64;
        let wait = TIMER_GRANULARITY.mul_f64(looks.min(MOST_LOOKS));
        Self { wait, rounds: since(|stats| stats.rounds), runs }
    }
}

/// Decides, and knows of nothing but figures.
struct Tuner {
    bounds: Bounds,
    calm_looks: u32,
}

impl Tuner {
    fn new(bounds: Bounds) -> Self {
        Self { bounds, calm_looks: 0 }
    }

    fn look(&mut self, now: Settings, seen: &Seen) -> Settings {
        let wait = seen.wait;
        self.calm_looks = if wait < SHORT_WAIT { self.calm_looks + 1 } else { 0 };
        let Settings { mut pollers, mut batch } = now;
        if wait >= LONG_WAIT {
            pollers *= 2;
            let rounds_are_full = seen.runs * 4 >= seen.rounds * batch as u64 * 3;
            batch = if rounds_are_full { batch * 2 } else { batch };
        } else if self.calm_looks == CALM_LOOKS {
            (self.calm_looks, pollers, batch) = (0, pollers - 1, batch / 2);
        }
        let Bounds { pollers: few_to_most, batch: least_to_most } = &self.bounds;
        Settings {
            pollers: pollers.clamp(*few_to_most.start(), *few_to_most.end()),
            batch: batch.clamp(*least_to_most.start(), *least_to_most.end()),
        }
    }
}

/// Looks at a store's pool, and changes it.
pub(crate) struct Tuning {
    store_id: StoreId,
    tuner: Tuner,
    pool: Arc<Pool<RegionFsm, StoreFsm>>,
    /// At the last look.
    before: StatsSnapshot,
    /// The system gave no thread when it was asked last.
    failed: bool,
}

impl Tuning {
    pub(crate) fn new(
        store_id: StoreId,
        bounds: Bounds,
        pool: Arc<Pool<RegionFsm, StoreFsm>>,
    ) -> Self {
        let before = pool.router().stats().snapshot();
        Self { store_id, tuner: Tuner::new(bounds), pool, before, failed: false }
    }

    /// The body of the thread: until the sender is dropped.
    pub(crate) fn run(mut self, stopped: &Receiver<()>) {
        while stopped.recv_timeout(LOOK_EVERY) == Err(RecvTimeoutError::Timeout) {
            self.look();
        }
    }

    fn look(&mut self) {
        let router = self.pool.router();
        let now = Settings { pollers: router.pollers(), batch: router.batch_size() };
        let stats = router.stats().snapshot();
        let seen = Seen::between(&std::mem::replace(&mut self.before, stats), &stats);
        let wanted = self.tuner.look(now, &seen);
        if wanted == now {
            return;
        }
        tracing::debug!(store = %self.store_id, ?now, ?wanted, ?seen, "the store tunes itself");
        router.set_batch_size(wanted.batch);
        if wanted.pollers == now.pollers {
            return;
        }
        let resized = self.pool.resize(wanted.pollers);
        if let Some(error) = resized.as_ref().err().filter(|_| !self.failed) {
            // It goes on with as many as there are, and tries again.
            tracing::warn!(store = %self.store_id, %error, "cannot change the number of pollers");
        }
        self.failed = resized.is_err();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: Settings = Settings { pollers: 8, batch: 256 };
    const LEAST: Settings = Settings { pollers: 2, batch: 64 };

    fn tuner() -> Tuner {
        Tuner::new(Bounds { pollers: 2..=8, batch: 64..=256 })
    }

    fn seen(wait: Duration, runs: u64) -> Seen {
        Seen { wait, rounds: 10, runs }
    }

    /// What comes of so many equal looks.
    fn after(looks: u32, begin: Settings, seen: &Seen) -> Settings {
        let mut tuner = tuner();
        (0..looks).fold(begin, |now, _| tuner.look(now, seen))
    }

    #[test]
    fn long_waits_double_pollers_and_full_rounds_up_to_the_bounds() {
        let full = |now: Settings| seen(LONG_WAIT, 10 * now.batch as u64);
        let mut now = LEAST;
        for (pollers, batch) in [(4, 128), (8, 256), (8, 256)] {
            now = tuner().look(now, &full(now));
            assert_eq!(now, Settings { pollers, batch });
        }
        assert_eq!(after(9, LEAST, &seen(LONG_WAIT, 100)), Settings { pollers: 8, batch: 64 });
    }

    #[test]
    fn calm_takes_away_a_little_at_a_time_and_down_to_the_bounds() {
        let calm = seen(SHORT_WAIT / 2, 10);
        assert_eq!(after(CALM_LOOKS - 1, MOST, &calm), MOST);
        assert_eq!(after(CALM_LOOKS, MOST, &calm), Settings { pollers: 7, batch: 128 });
        assert_eq!(after(2 * CALM_LOOKS, MOST, &calm), Settings { pollers: 6, batch: 64 });
        assert_eq!(after(100 * CALM_LOOKS, MOST, &calm), LEAST);
        let nothing = Seen { wait: Duration::ZERO, rounds: 0, runs: 0 };
        assert_eq!(after(100 * CALM_LOOKS, MOST, &nothing), LEAST);
    }

    #[test]
    fn between_short_and_long_nothing_changes_and_calm_is_counted_anew() {
        let middle = seen(LONG_WAIT / 2, 10_000);
        assert_eq!(after(1_000, LEAST, &middle), LEAST);
        assert_eq!(after(1_000, MOST, &middle), MOST);
        let mut tuner = tuner();
        for look in 1..10 * CALM_LOOKS {
            let wait = if look % CALM_LOOKS == 0 { SHORT_WAIT } else { Duration::ZERO };
            assert_eq!(tuner.look(MOST, &seen(wait, 10)), MOST, "look {look}");
        }
    }

    #[test]
    fn wait_is_how_many_waited_by_how_many_had_their_turn() {
        let at =
            |rounds, runs, waiting| StatsSnapshot { rounds, runs, waiting, ..Default::default() };
        let before = at(5, 1_000, 70);
        assert_eq!(
            Seen::between(&before, &at(15, 3_000, 1_070)),
            Seen { wait: TIMER_GRANULARITY / 2, rounds: 10, runs: 2_000 }
        );
        // A look that happens to find one that has just come does not make it a long wait.
        assert!(Seen::between(&before, &at(505, 1_500, 71)).wait < SHORT_WAIT);
        assert_eq!(Seen::between(&before, &before).wait, Duration::ZERO);
        assert_eq!(Seen::between(&before, &at(5, 1_000, 270)).wait, 200 * TIMER_GRANULARITY);
        assert!(Seen::between(&before, &at(5, 1_000, u64::MAX)).wait > LONG_WAIT);
    }

    #[test]
    fn what_is_given_is_left_alone() {
        let fixed = Bounds { pollers: 3..=3, batch: 64..=256 };
        assert!(!fixed.are_fixed());
        let now = Settings { pollers: 3, batch: 64 };
        let wanted = Tuner::new(fixed).look(now, &seen(LONG_WAIT, 10_000));
        assert_eq!(wanted, Settings { pollers: 3, batch: 128 });
        assert!(Bounds { pollers: 3..=3, batch: 5..=5 }.are_fixed());
    }
}
