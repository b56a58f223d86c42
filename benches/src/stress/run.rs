//! One row: elect, warm up, load, measure, verify.

use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use prometheus::Registry;
use raftstore::StoreConfig;

use super::disk::{Disk, DiskSample};
use super::error::StressError;
use super::interrupt::Interrupt;
use super::ledger::Tally;
use super::load::{Load, Running, Told};
use super::machine::{process_cpu_time, Machine, ProcessSample};
use super::options::Options;
use super::progress::Progress;
use super::recorder::Summary;
use super::report::{Cost, Fairness, Health, Latency, Memory, Row, Stages};
use super::stages::StageSample;
use super::subject::{elect, failed, first_leader, wait_until, Subject, Target};
use super::table::grouped;

/// How often a phase that lasts a given time looks at the interrupt and moves the bar.
const PACE: Duration = Duration::from_millis(20);

/// What a row may use besides the options.
pub struct Context {
    /// The machine, for automatic choices.
    pub machine: Machine,
    /// Look at it in every phase; end with what is measured when it is requested.
    pub interrupt: Interrupt,
    /// The bar on the terminal.
    pub progress: Progress,
    /// Served at `/metrics` where that was asked for. A new one each repeat, so that each may
    /// register its metrics anew and count from zero.
    pub registry: Registry,
    /// The stores' settings; options of the command line go before them.
    pub config: StoreConfig,
    /// An empty directory of this repeat for the logs of all stores; `None` for logs in memory.
    pub data_dir: Option<PathBuf>,
    /// Differs between repeats, equal between runs with the same `--seed`.
    pub seed: u64,
}

impl Context {
    /// Lets `duration` pass under a progress bar; how much of it passed before an interrupt.
    pub fn wait(&self, regions: u64, phase: &str, duration: Duration) -> Duration {
        self.begin(regions, phase, duration.as_millis() as u64);
        let start = Instant::now();
        loop {
            let passed = start.elapsed();
            if passed >= duration || self.interrupt.is_requested() {
                return passed.min(duration);
            }
            self.progress.set(passed.as_millis() as u64);
            thread::sleep(PACE.min(duration - passed));
        }
    }

    /// Starts a phase of `steps` under a progress bar.
    pub fn begin(&self, regions: u64, phase: &str, steps: u64) {
        self.progress.begin(&format!("{} regions: {phase}", grouped(regions)), steps);
    }
}

/// Measures one row of `regions` regions on `S`, once.
///
/// The caller repeats, chooses the median, and adds the figure of the bare loop. `Row::repeats`
/// and the bare figures stay at their defaults here.
///
/// Errors with [`StressError::Interrupted`] when an interrupt came before the measuring window
/// held anything; a window cut short is a row with `interrupted` set.
pub fn run_row<S: Subject>(
    options: &Options,
    regions: u64,
    ctx: &Context,
) -> Result<Row, StressError> {
    let before = ProcessSample::take();
    let subject = S::start(options, regions, ctx)?;
    let stores = options.stores as usize;
    let election = elect(&subject, stores, regions, ctx)?;
    let leaders = (1..=regions).map(|region| first_leader(region, stores) as u8).collect();
    let outstanding = options.outstanding_for(regions);
    let payload = options.payload as usize;
    let load = Load::start(subject.target(), leaders, options.keys, outstanding, payload, ctx.seed);
    ctx.wait(regions, "warm up", options.warmup);
    let elected = subject.leader_changes();
    let measured = measure(options, regions, ctx, &load);
    let leader_changes = subject.leader_changes() - elected;
    let loaded = ProcessSample::take();
    let interrupted = ctx.interrupt.is_requested();
    let verified = finish(&subject, &load, regions, ctx)?;
    load.join();
    subject.shutdown();
    if measured.summary.writes == 0 {
        return match interrupted {
            true => Err(StressError::Interrupted),
            false => Err(failed(regions, "measure", &"no write was answered")),
        };
    }
    let per_region = |now: u64, then: u64| now.saturating_sub(then) as f64 / regions as f64;
    let Summary { writes, errors, p50_ms, p99_ms, p999_ms, cold_p99_ms, .. } = measured.summary;
    Ok(Row {
        regions,
        log: options.log.name(),
        sync: options.sync(),
        outstanding,
        interrupted,
        writes,
        writes_per_s: measured.summary.writes_per_s(),
        latency: Latency { p50_ms, p99_ms, p999_ms },
        fairness: Fairness::new(cold_p99_ms, p99_ms),
        disk: measured.disk,
        cost: Cost {
            cpu_us_per_write: measured.cpu.as_secs_f64() * 1e6 / writes as f64,
            ..Cost::default()
        },
        memory: Memory {
            rss_bytes_per_region: per_region(loaded.rss_bytes, before.rss_bytes),
            allocated_bytes_per_region: per_region(loaded.allocated_bytes, before.allocated_bytes),
        },
        health: Health {
            election_s: election.as_secs_f64(),
            leader_changes,
            errors,
            lost: verified.lost,
            duplicated: verified.duplicated,
        },
        stages: measured.stages,
        ..Row::default()
    })
}

/// What the measuring window held.
struct Measured {
    summary: Summary,
    cpu: Duration,
    stages: Stages,
    disk: Option<Disk>,
}

fn measure<T: Target>(
    options: &Options,
    regions: u64,
    ctx: &Context,
    load: &Running<T>,
) -> Measured {
    let (stages, disk) = (StageSample::take(&ctx.registry), DiskSample::take(&ctx.registry));
    let cpu = process_cpu_time();
    load.recorder().open_window();
    ctx.wait(regions, "measure", options.duration);
    let summary = load.recorder().close_window();
    let cpu = process_cpu_time() - cpu;
    let (payload, stores) = (options.payload, options.stores);
    let disk = DiskSample::take(&ctx.registry).since(&disk, summary.writes, payload, stores);
    Measured { summary, cpu, stages: StageSample::take(&ctx.registry).since(&stages), disk }
}

/// What the stores hold against what clients were told.
#[derive(Default)]
struct Verified {
    lost: u64,
    duplicated: u64,
}

/// Ends the load, lets followers catch up, and compares.
fn finish<S: Subject>(
    subject: &S,
    load: &Running<S::Target>,
    regions: u64,
    ctx: &Context,
) -> Result<Verified, StressError> {
    ctx.begin(regions, "verify", regions);
    load.stop();
    if !wait_until(subject, |_| load.outstanding() == 0) {
        let problem = subject
            .failure()
            .unwrap_or_else(|| format!("{} writes were never answered", load.outstanding()));
        return Err(failed(regions, "verify", &problem));
    }
    let mut verified = Verified::default();
    for region in 1..=regions {
        let applied = settled(subject, region).map_err(|found| {
            let problem = format!("region {region} differs between stores: {found:?}");
            failed(regions, "verify", &problem)
        })?;
        verify_region(applied, load.told(region), region, &mut verified);
        if region % 128 == 0 {
            ctx.progress.set(region);
        }
    }
    Ok(verified)
}

/// What all stores have applied to a region once none lags; what each has, where that differs for good.
fn settled<S: Subject>(subject: &S, region: u64) -> Result<Tally, Vec<Tally>> {
    // A follower hears of the last commits with the next heartbeat.
    let equal = wait_until(subject, |subject| {
        subject.tallies(region).windows(2).all(|pair| pair[0].count == pair[1].count)
    });
    let found = subject.tallies(region);
    if !equal || found.windows(2).any(|pair| pair[0] != pair[1]) {
        return Err(found);
    }
    Ok(found[0])
}

fn verify_region(applied: Tally, told: &Told, region: u64, verified: &mut Verified) {
    let unknown = told.unknown.load(Ordering::Acquire);
    let (count, identities) =
        (told.count.load(Ordering::Acquire), told.identities.load(Ordering::Acquire));
    let sound = applied.count == count && applied.identities == identities;
    if sound || (unknown > 0 && (count..=count + unknown).contains(&applied.count)) {
        return;
    }
    let lost = count.saturating_sub(applied.count);
    let duplicated = applied.count.saturating_sub(count + unknown);
    // Equal counts with unequal identities: one came instead of another.
    verified.lost += if lost == 0 && duplicated == 0 { 1 } else { lost };
    verified.duplicated += duplicated;
    eprintln!(
        "stress: region {region}: {count} writes answered, {} applied, {unknown} unknown; \
         the identities differ by {:#018x}",
        applied.count,
        applied.identities ^ identities,
    );
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;
    use crossbeam::channel::{unbounded, Sender};
    use parking_lot::Mutex;

    use super::super::ledger::Book;
    use super::super::subject::Outcome;
    use super::*;

    fn context() -> Context {
        Context {
            machine: Machine::detect(),
            interrupt: Interrupt::new(),
            progress: Progress::silent(),
            registry: Registry::new(),
            config: StoreConfig::default(),
            data_dir: None,
            seed: 1,
        }
    }

    #[test]
    fn interrupt_ends_a_wait() {
        let ctx = context();
        let short = Duration::from_millis(5);
        assert_eq!(ctx.wait(1, "measure", short), short);
        ctx.interrupt.request();
        let passed = ctx.wait(1, "measure", Duration::from_secs(3_600));
        assert!(passed < Duration::from_secs(60), "{passed:?}");
    }

    type Queued = (Bytes, Box<dyn FnOnce(Outcome) + Send>);

    /// One region on one store: a book, and a thread that applies the 100th write `TIMES` times.
    struct Faulty<const TIMES: usize> {
        book: Arc<Mutex<Book>>,
        queue: Sender<Queued>,
    }

    impl<const TIMES: usize> Subject for Faulty<TIMES> {
        type Target = Queue;

        fn start(_: &Options, _: u64, _: &Context) -> Result<Self, StressError> {
            let book = Arc::new(Mutex::new(Book::default()));
            let (queue, queued) = unbounded::<Queued>();
            let applying = book.clone();
            thread::spawn(move || {
                for (number, (write, done)) in queued.iter().enumerate() {
                    let times = if number == 99 { TIMES } else { 1 };
                    (0..times).for_each(|_| applying.lock().apply(&write));
                    done(Outcome::Applied);
                }
            });
            Ok(Self { book, queue })
        }

        fn campaign(&self, _: u64, _: usize) {}

        fn leaders(&self) -> u64 {
            1
        }

        fn leader_changes(&self) -> u64 {
            1
        }

        fn target(&self) -> Queue {
            Queue(self.queue.clone())
        }

        fn tallies(&self, _: u64) -> Vec<Tally> {
            vec![self.book.lock().tally()]
        }

        fn failure(&self) -> Option<String> {
            None
        }

        fn shutdown(self) {}
    }

    struct Queue(Sender<Queued>);

    impl Target for Queue {
        fn stores(&self) -> usize {
            1
        }

        fn submit<F>(&self, _: usize, _: u64, write: Bytes, done: F)
        where
            F: FnOnce(Outcome) + Send + 'static,
        {
            self.0.send((write, Box::new(done))).unwrap();
        }
    }

    #[test]
    fn write_that_is_not_applied_once_is_found() {
        let args = ["stress", "--stores", "1", "--warmup", "0s", "--duration", "100ms"];
        let options = Options::parse_args(args).unwrap();
        let health = |run: fn(&Options, u64, &Context) -> Result<Row, StressError>| {
            let health = run(&options, 1, &context()).unwrap().health;
            (health.lost, health.duplicated)
        };
        assert_eq!(health(run_row::<Faulty<1>>), (0, 0));
        assert_eq!(health(run_row::<Faulty<0>>), (1, 0));
        assert_eq!(health(run_row::<Faulty<3>>), (0, 2));
    }
}
