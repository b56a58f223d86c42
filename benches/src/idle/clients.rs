//! Writes of which each is accounted for: answered once, and found once on every store.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crossbeam::channel::{unbounded, Receiver, Sender};
use hdrhistogram::Histogram;
use raftstore::{Answer, RegionId, StoreHandle};
use serde::Serialize;

use super::cluster::Cluster;
use crate::stress::error::StressError;
use crate::stress::ledger::encode;
use crate::stress::machine::process_cpu_time;

const PAYLOAD_BYTES: usize = 16;
const PATIENCE: Duration = Duration::from_secs(60);
/// Writes that are due are proposed this often: seldom, so that little of the CPU is the clients'.
const PACE: Duration = Duration::from_millis(10);

/// How long writes took, from propose to answer.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Latency {
    /// How many.
    pub writes: u64,
    /// Half of them took no longer, milliseconds.
    pub p50_ms: f64,
    /// 99 of 100 took no longer, milliseconds.
    pub p99_ms: f64,
    /// The longest, milliseconds.
    pub max_ms: f64,
    /// CPU of the whole process meanwhile, for each of them, microseconds.
    pub cpu_us: f64,
}

/// An answer: of which write, what, and after how long.
struct Told {
    region: u64,
    identity: u64,
    answer: Answer,
    took: Duration,
}

/// Who writes, and remembers what they were told.
///
/// Invariant: `identity` counts the writes proposed, and so many answers come.
pub struct Clients {
    handles: Vec<StoreHandle>,
    led_by: Vec<Option<usize>>,
    identity: u64,
    answers: (Sender<Told>, Receiver<Told>),
    answered: u64,
    /// By region: successes, and the exclusive-or of their identities.
    told: BTreeMap<u64, (u64, u64)>,
    latencies_ns: Histogram<u64>,
}

impl Clients {
    /// Of a cluster all of whose stores run, and whose leaders stay what they are.
    pub fn new(cluster: &Cluster) -> Self {
        Self {
            handles: cluster.handles().map(|(_, handle)| handle).collect(),
            led_by: cluster.led_by(),
            identity: 0,
            answers: unbounded(),
            answered: 0,
            told: BTreeMap::new(),
            latencies_ns: Histogram::new_with_bounds(1, 600_000_000_000, 3).expect("a sound range"),
        }
    }

    /// Writes once to each of these regions, one after the other.
    ///
    /// # Errors
    /// When a write is refused or not answered, or the run is interrupted.
    pub fn one_by_one(
        &mut self,
        cluster: &Cluster,
        phase: &str,
        regions: &[u64],
    ) -> Result<Latency, StressError> {
        let before = self.begin(cluster, phase, regions.len() as u64);
        for (number, region) in regions.iter().enumerate() {
            cluster.watch.go_on()?;
            self.propose(*region);
            self.all_answered(cluster, phase)?;
            cluster.watch.progress.set(number as u64);
        }
        Ok(self.latency(before))
    }

    /// Writes to all of these regions at once.
    ///
    /// # Errors
    /// When a write is refused or not answered, or the run is interrupted.
    pub fn at_once(
        &mut self,
        cluster: &Cluster,
        phase: &str,
        regions: &[u64],
    ) -> Result<Latency, StressError> {
        let before = self.begin(cluster, phase, regions.len() as u64);
        regions.iter().for_each(|region| self.propose(*region));
        self.all_answered(cluster, phase)?;
        Ok(self.latency(before))
    }

    /// Writes to each of these regions at a steady rate, in turn, for a time.
    ///
    /// # Errors
    /// When a write is refused or not answered, or the run is interrupted.
    pub fn steadily(
        &mut self,
        cluster: &Cluster,
        (regions, rate): (&[u64], f64),
        duration: Duration,
    ) -> Result<Latency, StressError> {
        let phase = "write to few";
        let before = self.begin(cluster, phase, duration.as_millis() as u64);
        let (start, mut proposed) = (Instant::now(), 0);
        while start.elapsed() < duration {
            cluster.watch.go_on()?;
            // The first at once, so that each has its turn within its time.
            let due = 1 + (start.elapsed().as_secs_f64() * rate * regions.len() as f64) as usize;
            for number in proposed..due {
                self.propose(regions[number % regions.len()]);
            }
            proposed = due;
            while let Ok(told) = self.answers.1.try_recv() {
                self.note(cluster, phase, &told)?;
            }
            cluster.watch.progress.set(start.elapsed().as_millis() as u64);
            std::thread::park_timeout(PACE);
        }
        self.all_answered(cluster, phase)?;
        Ok(self.latency(before))
    }

    /// What is told from here on counts. Returns the CPU time so far, for [`latency`](Self::latency).
    fn begin(&mut self, cluster: &Cluster, phase: &str, steps: u64) -> Duration {
        cluster.watch.begin(phase, steps);
        self.latencies_ns.reset();
        process_cpu_time()
    }

    fn propose(&mut self, region: u64) {
        self.identity += 1;
        let (identity, sender, start) = (self.identity, self.answers.0.clone(), Instant::now());
        let leader = self.led_by[region as usize].expect("looked at once all regions had leaders");
        let write = encode(identity, identity, PAYLOAD_BYTES);
        self.handles[leader].propose_with(RegionId::new(region), write, move |answer| {
            let _ = sender.send(Told { region, identity, answer, took: start.elapsed() });
        });
    }

    fn all_answered(&mut self, cluster: &Cluster, phase: &str) -> Result<(), StressError> {
        while self.answered < self.identity {
            let told = self.answers.1.recv_timeout(PATIENCE).map_err(|_| {
                let open = self.identity - self.answered;
                cluster.watch.failed(phase, format!("{open} writes were never answered"))
            })?;
            self.note(cluster, phase, &told)?;
        }
        Ok(())
    }

    fn note(&mut self, cluster: &Cluster, phase: &str, told: &Told) -> Result<(), StressError> {
        self.answered += 1;
        if let Err(error) = &told.answer {
            let problem = format!("a write to region {} was refused: {error}", told.region);
            return Err(cluster.watch.failed(phase, problem));
        }
        self.latencies_ns.saturating_record(told.took.as_nanos() as u64);
        let (count, identities) = self.told.entry(told.region).or_default();
        (*count, *identities) = (*count + 1, *identities ^ told.identity);
        Ok(())
    }

    fn latency(&self, cpu_before: Duration) -> Latency {
        let ms = |nanos: u64| nanos as f64 / 1e6;
        let cpu = process_cpu_time().saturating_sub(cpu_before);
        Latency {
            writes: self.latencies_ns.len(),
            p50_ms: ms(self.latencies_ns.value_at_quantile(0.5)),
            p99_ms: ms(self.latencies_ns.value_at_quantile(0.99)),
            max_ms: ms(self.latencies_ns.max()),
            cpu_us: cpu.as_secs_f64() * 1e6 / self.latencies_ns.len().max(1) as f64,
        }
    }

    /// Compares what was told with what every store has applied, once it has caught up.
    ///
    /// # Errors
    /// Names a region in which a write is missing, or doubled.
    pub fn verify(&self, cluster: &Cluster) -> Result<(), StressError> {
        let watch = &cluster.watch;
        let all_there = |(region, (count, _)): &(&u64, &(u64, u64))| {
            cluster.tallies(**region).iter().all(|tally| tally.count >= *count)
        };
        let total = self.told.len() as u64;
        watch.until("verify", total, || self.told.iter().filter(all_there).count() as u64)?;
        for (region, (count, identities)) in &self.told {
            for (at, tally) in cluster.tallies(*region).iter().enumerate() {
                if (tally.count, tally.identities) != (*count, *identities) {
                    let problem = format!(
                        "region {region}: {count} writes answered, {} applied on store {}",
                        tally.count,
                        at + 1
                    );
                    return Err(watch.failed("verify", problem));
                }
            }
        }
        Ok(())
    }
}
