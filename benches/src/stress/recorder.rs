//! Latencies of the answers, recorded from many threads at little cost.
//!
//! Each thread writes to a shard of its own (threads share shards only when there are more of
//! them than shards), so a record is one uncontended lock and one counter. Nothing counts outside
//! the measuring window: the load runs before and after it all the same.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use parking_lot::Mutex;

/// Latencies beyond this are recorded as this.
const MAX_LATENCY_NS: u64 = 300_000_000_000;
/// Differences below this are of no interest; keeps a shard's counters few.
const RESOLUTION_NS: u64 = 100;
/// Three digits: a figure is right to a tenth of a percent.
const SIGNIFICANT_DIGITS: u8 = 3;

/// Hands each thread its number, which picks its shard.
static NEXT_THREAD: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static THREAD: Cell<usize> = Cell::new(NEXT_THREAD.fetch_add(1, Ordering::Relaxed));
}

/// One thread's counters, alone on its cache lines.
#[repr(align(128))]
struct Shard {
    counts: Mutex<Counts>,
}

struct Counts {
    latencies_ns: Histogram<u64>,
    /// Of the coldest regions, where they are told apart.
    cold_ns: Option<Histogram<u64>>,
    errors: u64,
}

/// Records the latency of each answer inside a measuring window.
pub struct Recorder {
    open: AtomicBool,
    opened_at: Mutex<Option<Instant>>,
    /// The number of shards is a power of two, so that picking one is a mask.
    shards: Box<[Shard]>,
}

impl Recorder {
    /// Creates a recorder for about `threads` recording threads. The window is closed.
    pub fn new(threads: usize) -> Self {
        Self::with_shards(threads, Shard::new)
    }

    /// One that also keeps the latencies of the coldest regions apart.
    pub fn with_cold(threads: usize) -> Self {
        Self::with_shards(threads, Shard::with_cold)
    }

    fn with_shards(threads: usize, shard: fn() -> Shard) -> Self {
        let shards = threads.max(1).next_power_of_two();
        Self {
            open: AtomicBool::new(false),
            opened_at: Mutex::new(None),
            shards: (0..shards).map(|_| shard()).collect(),
        }
    }

    /// Starts the measuring window; forgets what an earlier window recorded.
    pub fn open_window(&self) {
        for shard in &self.shards {
            let mut counts = shard.counts.lock();
            counts.latencies_ns.reset();
            if let Some(cold) = &mut counts.cold_ns {
                cold.reset();
            }
            counts.errors = 0;
        }
        *self.opened_at.lock() = Some(Instant::now());
        self.open.store(true, Ordering::Release);
    }

    /// Records an answered write that took `latency`, to one of the coldest regions or another. Ignored outside
    /// the window.
    #[inline]
    pub fn record(&self, latency: Duration, cold: bool) {
        if !self.is_open() {
            return;
        }
        let nanos = u64::try_from(latency.as_nanos()).unwrap_or(MAX_LATENCY_NS);
        let mut counts = self.shard().counts.lock();
        counts.latencies_ns.saturating_record(nanos);
        if let (true, Some(latencies)) = (cold, &mut counts.cold_ns) {
            latencies.saturating_record(nanos);
        }
    }

    /// Records a write answered with an error. Ignored outside the window.
    #[inline]
    pub fn record_error(&self) {
        if self.is_open() {
            self.shard().counts.lock().errors += 1;
        }
    }

    /// Whether records count at present.
    #[inline]
    pub fn is_open(&self) -> bool {
        self.open.load(Ordering::Relaxed)
    }

    /// Ends the window and merges what all threads recorded.
    ///
    /// Caveat: an answer that is being recorded at this very moment may or may not count, at most
    /// one a thread.
    ///
    /// Panics when the window was not opened.
    pub fn close_window(&self) -> Summary {
        let opened_at = self.opened_at.lock().take();
        let elapsed = opened_at.expect("the window is open").elapsed();
        self.open.store(false, Ordering::Release);
        let mut all = empty_histogram();
        let (mut cold, mut errors) = (empty_histogram(), 0);
        for shard in &self.shards {
            let counts = shard.counts.lock();
            all.add(&counts.latencies_ns).expect("all shards have the same bounds");
            if let Some(latencies) = &counts.cold_ns {
                cold.add(latencies).expect("all shards have the same bounds");
            }
            errors += counts.errors;
        }
        Summary {
            writes: all.len(),
            errors,
            elapsed,
            p50_ms: quantile_ms(&all, 0.50),
            p99_ms: quantile_ms(&all, 0.99),
            p999_ms: quantile_ms(&all, 0.999),
            cold_p99_ms: (!cold.is_empty()).then(|| quantile_ms(&cold, 0.99)),
            max_ms: if all.is_empty() { 0.0 } else { to_ms(all.max()) },
        }
    }

    fn shard(&self) -> &Shard {
        let thread = THREAD.with(Cell::get);
        &self.shards[thread & (self.shards.len() - 1)]
    }
}

impl Shard {
    fn new() -> Self {
        Self::of(None)
    }

    fn with_cold() -> Self {
        Self::of(Some(empty_histogram()))
    }

    fn of(cold_ns: Option<Histogram<u64>>) -> Self {
        Self { counts: Mutex::new(Counts { latencies_ns: empty_histogram(), cold_ns, errors: 0 }) }
    }
}

/// What one window recorded.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// Writes answered with success.
    pub writes: u64,
    /// Writes answered with an error.
    pub errors: u64,
    /// How long the window was open.
    pub elapsed: Duration,
    /// Median latency, milliseconds.
    pub p50_ms: f64,
    /// 99th percentile, milliseconds.
    pub p99_ms: f64,
    /// 99.9th percentile, milliseconds.
    pub p999_ms: f64,
    /// 99th percentile of the coldest regions alone; `None` where they are not told apart, or had no write.
    pub cold_p99_ms: Option<f64>,
    /// The slowest, milliseconds.
    pub max_ms: f64,
}

impl Summary {
    /// Writes answered with success in a second.
    pub fn writes_per_s(&self) -> f64 {
        self.writes as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }
}

fn empty_histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(RESOLUTION_NS, MAX_LATENCY_NS, SIGNIFICANT_DIGITS)
        .expect("the bounds are constants")
}

fn quantile_ms(histogram: &Histogram<u64>, quantile: f64) -> f64 {
    if histogram.is_empty() {
        0.0
    } else {
        to_ms(histogram.value_at_quantile(quantile))
    }
}

fn to_ms(nanos: u64) -> f64 {
    nanos as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    #[test]
    fn answers_outside_the_window_do_not_count() {
        let recorder = Recorder::new(2);
        recorder.record(Duration::from_millis(1), false);
        recorder.open_window();
        recorder.record(Duration::from_millis(5), false);
        recorder.record_error();
        let summary = recorder.close_window();
        recorder.record(Duration::from_millis(1), false);
        assert_eq!((summary.writes, summary.errors), (1, 1));
        assert!((summary.p50_ms - 5.0).abs() < 0.01, "{summary:?}");
        recorder.open_window();
        assert_eq!(recorder.close_window().writes, 0);
    }

    #[test]
    fn percentiles_cover_all_threads() {
        let recorder = Recorder::new(3);
        recorder.open_window();
        thread::scope(|scope| {
            for thread in 0..8_u64 {
                let recorder = &recorder;
                scope.spawn(move || {
                    for i in 0..125 {
                        recorder.record(Duration::from_micros(thread * 125 + i + 1), false);
                    }
                });
            }
        });
        let summary = recorder.close_window();
        assert_eq!(summary.writes, 1_000);
        assert!((summary.p50_ms - 0.5).abs() < 0.002, "{summary:?}");
        assert!((summary.p99_ms - 0.99).abs() < 0.002, "{summary:?}");
        assert!((summary.max_ms - 1.0).abs() < 0.002, "{summary:?}");
    }

    #[test]
    fn cold_regions_are_told_apart_where_that_was_asked_for() {
        for (recorder, cold) in [(Recorder::new(1), None), (Recorder::with_cold(1), Some(7.0))] {
            recorder.record(Duration::from_millis(90), true);
            recorder.open_window();
            recorder.record(Duration::from_millis(1), false);
            recorder.record(Duration::from_millis(7), true);
            let summary = recorder.close_window();
            assert_eq!((summary.writes, summary.cold_p99_ms.map(f64::round)), (2, cold));
        }
    }

    #[test]
    fn latency_beyond_the_scale_is_recorded_as_the_largest() {
        let recorder = Recorder::new(1);
        recorder.open_window();
        recorder.record(Duration::from_secs(1_000_000), false);
        let summary = recorder.close_window();
        assert_eq!(summary.writes, 1);
        assert!(summary.max_ms >= 300_000.0, "{summary:?}");
    }
}
