//! How many reads a second two threads get through, at 1,000 regions of one leader: alone, and nine reads to
//! one write.
//!
//! A read by lease takes no message, no mailbox and no lock but the state machine's. A first figure that falls
//! says that the look before and after has become dearer, or that threads wait for each other's caches. A second
//! one that falls further than the first says that writes make reads go through the region: see the ways.
//! Compare figures of one run only; the bare look at the same map, in the same run, is the measure.

use std::ffi::OsString;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::Parser;
use hdrhistogram::Histogram;
use raftstore::{
    MapCommand, OrderedMap, Peer, PeerId, ReadRequest, ReadWay, RegionDescription, RegionId, Store,
    StoreConfig, StoreHandle, StoreId,
};

use crate::memory_stores;

const STORES: u64 = 3;

/// What the threads do: so many of ten calls are writes, and reads ask for the lease or do not.
#[derive(Clone, Copy, Debug)]
struct Mix {
    name: &'static str,
    writes_of_ten: u64,
    /// Looks into the state machine without asking anybody.
    bare: bool,
}

const MIXES: [Mix; 4] = [
    Mix { name: "bare look", writes_of_ten: 0, bare: true },
    Mix { name: "reads", writes_of_ten: 0, bare: false },
    Mix { name: "writes", writes_of_ten: 10, bare: false },
    Mix { name: "90:10", writes_of_ten: 1, bare: false },
];

/// Measures reads of the state machine under the leader's lease.
#[derive(Parser, Debug)]
#[command(bin_name = "stress reads", version)]
struct Options {
    /// Regions, all led by one store.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    regions: u64,
    /// Threads that read.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=64))]
    threads: u64,
    /// Seconds for each figure.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    seconds: u64,
    /// Rounds; of each mix the median is told.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=1_000))]
    rounds: u64,
}

/// What the threads of one figure have done.
#[derive(Debug)]
struct Figure {
    reads: u64,
    writes: u64,
    latency_ns: Histogram<u64>,
    by_lease: u64,
    took: Duration,
}

/// Runs `stress reads` with this command line, its name first.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let options = Options::parse_from(args);
    let (stores, maps) = start(options.regions);
    let handle = stores[0].handle();
    let mut figures: Vec<Vec<Figure>> = MIXES.iter().map(|_| Vec::new()).collect();
    for _ in 0..options.rounds {
        for (mix, figures) in MIXES.iter().zip(&mut figures) {
            figures.push(measure(&options, &handle, &maps[0], *mix));
        }
    }
    for (mix, figures) in MIXES.iter().zip(&figures) {
        let latency =
            |quantile| median(figures, |f| f.latency_ns.value_at_quantile(quantile) as f64);
        let lease = |f: &Figure| 100.0 * f.by_lease as f64 / f.reads.max(1) as f64;
        println!(
            "{:>9}: {:>9.0} reads/s, {:>7.0} writes/s, read p50 {} ns, p99 {} ns, {:.2} % by lease",
            mix.name,
            median(figures, |f| f.rate(f.reads)),
            median(figures, |f| f.rate(f.writes)),
            latency(0.5),
            latency(0.99),
            median(figures, lease),
        );
    }
    let writes = |at: usize| median(&figures[at], |f| f.rate(f.writes));
    println!(
        "of {} rounds the medians; writes at 90:10 are {:.0} % of the writes alone",
        options.rounds,
        100.0 * writes(3) / writes(2)
    );
    ExitCode::SUCCESS
}

impl Figure {
    fn rate(&self, count: u64) -> f64 {
        count as f64 / self.took.as_secs_f64()
    }
}

fn median(figures: &[Figure], of: impl Fn(&Figure) -> f64) -> f64 {
    let mut values: Vec<f64> = figures.iter().map(of).collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// In the range of region `id`.
fn key_of(id: u64) -> Bytes {
    Bytes::from(format!("{:08}/key", id - 1))
}

fn describe(id: u64, count: u64) -> RegionDescription {
    let bound = |at: u64| match at == 0 || at == count {
        true => Bytes::new(),
        false => Bytes::from(format!("{at:08}")),
    };
    let voter = |store| Peer::voter(PeerId::new(10 * id + store), StoreId::new(store));
    RegionDescription::new(RegionId::new(id), bound(id - 1), bound(id), (1..=STORES).map(voter))
}

fn start(regions: u64) -> (Vec<Store>, Vec<Arc<OrderedMap>>) {
    let descriptions: Vec<_> = (1..=regions).map(|id| describe(id, regions)).collect();
    let config = StoreConfig { pollers: 1, ..StoreConfig::default() };
    let started = memory_stores::start(&config, STORES, &descriptions);
    let (stores, maps) = started.expect("stores in memory start");
    let first = stores[0].handle();
    for id in 1..=regions {
        first.campaign(RegionId::new(id));
    }
    for id in 1..=regions {
        let command = MapCommand::put(key_of(id), vec![7; 16]).encode();
        while first.propose(RegionId::new(id), command.clone()).is_err() {
            std::thread::park_timeout(Duration::from_millis(1));
        }
    }
    (stores, maps)
}

fn measure(options: &Options, handle: &StoreHandle, map: &Arc<OrderedMap>, mix: Mix) -> Figure {
    let start = Instant::now();
    let length = Duration::from_secs(options.seconds);
    let threads: Vec<Figure> = std::thread::scope(|scope| {
        let run = |thread| move || run_on(options.regions, handle, map, mix, thread, length);
        let threads: Vec<_> = (0..options.threads).map(|thread| scope.spawn(run(thread))).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    let took = start.elapsed();
    let mut all = Figure { reads: 0, writes: 0, latency_ns: latencies(), by_lease: 0, took };
    for one in threads {
        all.reads += one.reads;
        all.writes += one.writes;
        all.by_lease += one.by_lease;
        all.latency_ns.add(one.latency_ns).expect("of the same range");
    }
    all
}

fn latencies() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("a sound range")
}

/// One thread: a region after the other, spread over all of them.
fn run_on(
    regions: u64,
    handle: &StoreHandle,
    map: &Arc<OrderedMap>,
    mix: Mix,
    thread: u64,
    length: Duration,
) -> Figure {
    let mut readers: Vec<_> = (1..=regions).map(|id| handle.reader(RegionId::new(id))).collect();
    let (written, answered) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let keys: Vec<Bytes> = (1..=regions).map(key_of).collect();
    let command = |key: &Bytes| MapCommand::put(key.clone(), vec![thread as u8; 16]).encode();
    let commands: Vec<Bytes> = keys.iter().map(command).collect();
    let (mut reads, mut by_lease, mut proposed, mut at) = (0, 0, 0, thread * regions / 2);
    let mut latency_ns = latencies();
    let start = Instant::now();
    for count in 0u64.. {
        at = (at + 389) % regions;
        let region = RegionId::new(at + 1);
        if count % 10 < mix.writes_of_ten {
            let (written, answered) = (written.clone(), answered.clone());
            proposed += 1;
            handle.propose_with(region, commands[at as usize].clone(), move |answer| {
                written.fetch_add(u64::from(answer.is_ok()), Ordering::Relaxed);
                answered.fetch_add(1, Ordering::Relaxed);
            });
        } else {
            let timed = (count % 16 == 7).then(Instant::now);
            let look = || map.get(region, &keys[at as usize]).is_some();
            let seen = match mix.bare {
                true => Ok((look(), ReadWay::Stale)),
                false => {
                    let request = ReadRequest::default();
                    readers[at as usize].read(request, |point| (look(), point.way))
                }
            };
            if let Ok((found, way)) = seen {
                assert!(found, "every region has the key");
                reads += 1;
                by_lease += u64::from(way == ReadWay::Lease);
            }
            if let Some(timed) = timed {
                latency_ns.saturating_record(timed.elapsed().as_nanos() as u64);
            }
        }
        if count % 1024 == 1023 && start.elapsed() >= length {
            break;
        }
        // So many writes under way, as many as regions.
        while proposed - answered.load(Ordering::Relaxed) > regions && start.elapsed() < length {
            std::thread::yield_now();
        }
    }
    let writes = written.load(Ordering::Relaxed);
    Figure { reads, writes, latency_ns, by_lease, took: start.elapsed() }
}
