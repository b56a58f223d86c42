//! One row of `stress idle`: a cluster that is kept awake, and one that sleeps.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::clients::{Clients, Latency};
use super::cluster::{spread, Cluster, Watch};
use super::options::Options;
use crate::stress::error::StressError;
use crate::stress::machine::{process_cpu_time, ProcessSample};

/// A quorum goes on only where there are more.
const STORES_TO_LOSE_ONE: u64 = 3;
/// The store that is lost, from 0 on.
const VICTIM: usize = 0;

/// So many cold regions are written to at once.
const THAWED: usize = 2_000;

/// With fewer of those that are due, regions that are awake are too much for the machine.
const ENOUGH_HEARTBEATS: f64 = 0.8;
/// Where they are, they may never settle.
const PATIENCE_AWAKE: Duration = Duration::from_secs(60);

/// What was measured with one region count.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Row {
    /// Regions, each with a peer on each store.
    pub regions: u64,
    /// From nothing to a leader for each region.
    pub cold: Cold,
    /// Nothing happens, and nobody may sleep.
    pub awake: Quiet,
    /// Nothing happens, and all sleep.
    pub asleep: Quiet,
    /// Nothing happens, and all have slept for long.
    pub slept_long: Quiet,
    /// A few are written to, and all others sleep.
    pub active: Active,
    /// Writes to regions that are awake and idle, each to another one.
    ///
    /// Not where those that are awake are [too much](Quiet::is_too_much) for the machine.
    pub write_awake: Option<Latency>,
    /// Writes to regions that sleep, each to another one.
    pub write_asleep: Latency,
    /// Writes to regions that have slept for long, each to another one.
    pub write_cold: Latency,
    /// CPU of one peer of a region that comes back from having slept for long, microseconds: what a write to such
    /// a region costs more than to one that sleeps, shared among the stores. The entry with which a cold leader
    /// goes on is part of it.
    pub thaw_cpu_us: f64,
    /// A store is lost while all sleep; not with fewer than three stores.
    pub failover: Option<Failover>,
    /// It is started anew.
    pub restart: Restart,
}

/// From nothing to a leader for each region.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Cold {
    /// Seconds.
    pub seconds: f64,
    /// CPU seconds.
    pub cpu_s: f64,
}

/// While nothing happens.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Quiet {
    /// CPU, in percent of one core.
    pub cpu_percent: f64,
    /// Bytes allocated for a region on a store, the log store and the state machine included.
    pub allocated_bytes: f64,
    /// Bytes resident for a region on a store. The allocator keeps for a while what the cluster measured
    /// before has given back, so this may be too much, and never too little.
    pub rss_bytes: f64,
    /// Heartbeats that were sent, of those that were due; none with one store. Well below 1 when awake: the
    /// machine is too small for so many regions, ticks are late, and the CPU is what there was.
    pub heartbeats_sent: Option<f64>,
    /// Changes of leaders. More than none is an error, unless it is all too much for the machine.
    pub leader_changes: u64,
}

impl Quiet {
    /// Whether ticks are so late that the CPU says nothing of the regions but that there was no more.
    pub fn is_too_much(&self) -> bool {
        self.heartbeats_sent.is_some_and(|sent| sent < ENOUGH_HEARTBEATS)
    }
}

/// While some regions are written to.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Active {
    /// So many regions.
    pub regions: u64,
    /// Of them awake at the end: the others fell asleep between two writes.
    pub awake: u64,
    /// CPU, in percent of one core; the client's included.
    pub cpu_percent: f64,
    /// Their writes.
    pub latency: Latency,
}

/// What the loss of a store led to.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Failover {
    /// Regions that the store led.
    pub led: u64,
    /// Until others led all of them, seconds.
    pub seconds: f64,
    /// The same in election timeouts.
    pub election_timeouts: f64,
    /// CPU seconds, the stop of the store included.
    pub cpu_s: f64,
    /// CPU seconds up to the end of the stop of the store.
    pub stop_cpu_s: f64,
    /// Regions that are awake then, or were: all that the store led, and no others.
    pub woken: u64,
    /// How often a store told one of its peers to wake.
    pub wakes: u64,
}

/// A store with regions that sleep elsewhere comes back.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Restart {
    /// Until it had all regions, seconds.
    pub registered_s: f64,
    /// Until it knew a leader of each of them, and had applied all that the leader has, seconds.
    pub led_s: f64,
    /// Until all regions slept on all stores, seconds.
    pub asleep_s: f64,
    /// CPU seconds until then.
    pub cpu_s: f64,
}

/// What a row needs besides the options.
#[derive(Clone, Debug)]
pub struct Context {
    /// Who is told how far it has come.
    pub watch: Watch,
    /// Cores of the machine.
    pub cores: usize,
    /// An empty directory for logs on disk; `None` for logs in memory.
    pub data_dir: Option<PathBuf>,
    /// The process before it had done anything.
    pub at_first: ProcessSample,
}

/// Measures one row.
///
/// # Errors
/// When something that was to be measured did not happen, or what must not happen did; or when the run is
/// interrupted.
pub fn run_row(options: &Options, ctx: &Context) -> Result<Row, StressError> {
    let mut row = Row { regions: ctx.watch.regions, ..Row::default() };
    measure_awake(options, ctx, &mut row)?;
    measure_asleep(options, ctx, &mut row)?;
    Ok(row)
}

/// Wall time and CPU since a moment.
struct Since(Instant, Duration);

impl Since {
    fn now() -> Self {
        Self(Instant::now(), process_cpu_time())
    }

    fn seconds(&self) -> f64 {
        self.0.elapsed().as_secs_f64()
    }

    fn cpu_s(&self) -> f64 {
        (process_cpu_time() - self.1).as_secs_f64()
    }

    fn cpu_percent(&self) -> f64 {
        100.0 * self.cpu_s() / self.seconds()
    }
}

fn start(options: &Options, ctx: &Context, sleep: bool) -> Result<Cluster, StressError> {
    let data = ctx.data_dir.as_ref();
    let data = data.map(|dir| dir.join(if sleep { "asleep" } else { "awake" }));
    Cluster::start(options.config(sleep, ctx.cores), options.stores, data, &ctx.watch)
}

fn measure_awake(options: &Options, ctx: &Context, row: &mut Row) -> Result<(), StressError> {
    const PHASE: &str = "idle, awake";
    let (before, since) = (ProcessSample::take(), Since::now());
    let cluster = start(options, ctx, false)?;
    row.cold = Cold { seconds: since.seconds(), cpu_s: since.cpu_s() };
    let settled = cluster.settle_within(PATIENCE_AWAKE)?;
    let changes = cluster.leader_changes();
    row.awake = quiet(&cluster, options, (PHASE, &before, &ctx.at_first))?;
    row.awake.leader_changes = cluster.leader_changes() - changes;
    if row.awake.is_too_much() {
        // What came now would be the machine's, and so are elections.
        cluster.shutdown();
        return Ok(());
    }
    if !settled {
        return Err(ctx.watch.failed(PHASE, "not all stores know of all leaders"));
    }
    unchanged(&cluster, PHASE, changes)?;
    let mut clients = Clients::new(&cluster);
    let chosen = spread(options.samples, row.regions, options.stores);
    row.write_awake = Some(clients.one_by_one(&cluster, "write, awake", &chosen)?);
    clients.verify(&cluster)?;
    unchanged(&cluster, "write, awake", changes)?;
    cluster.check("awake")?;
    cluster.shutdown();
    Ok(())
}

fn measure_asleep(options: &Options, ctx: &Context, row: &mut Row) -> Result<(), StressError> {
    let before = ProcessSample::take();
    let mut cluster = start(options, ctx, true)?;
    cluster.fall_asleep()?;
    let changes = cluster.leader_changes();
    row.asleep = quiet(&cluster, options, ("idle, asleep", &before, &ctx.at_first))?;
    if cluster.asleep() < cluster.peers() {
        let problem = format!("{} peers woke unasked", cluster.peers() - cluster.asleep());
        return Err(cluster.watch.failed("idle, asleep", problem));
    }
    let mut clients = Clients::new(&cluster);
    let chosen = spread(options.samples, row.regions, options.stores);
    row.write_asleep = clients.one_by_one(&cluster, "write, asleep", &chosen)?;
    cluster.become_cold()?;
    row.slept_long = quiet(&cluster, options, ("idle, cold", &before, &ctx.at_first))?;
    row.write_cold = clients.one_by_one(&cluster, "write, cold", &chosen)?;
    row.thaw_cpu_us = thaw(&cluster, options, &mut clients, &chosen)?;
    cluster.fall_asleep()?;
    row.active = write_to_few(&cluster, options, &mut clients)?;
    cluster.fall_asleep()?;
    unchanged(&cluster, "asleep", changes)?;
    clients.verify(&cluster)?;
    if options.stores >= STORES_TO_LOSE_ONE {
        row.failover = Some(lose_store(&mut cluster)?);
    } else {
        cluster.stop_store(VICTIM);
    }
    row.restart = restart(&mut cluster)?;
    clients.verify(&cluster)?;
    cluster.check("restart")?;
    cluster.shutdown();
    Ok(())
}

/// The CPU of a peer that comes back: of writes to many cold regions at once, so that what it costs to wake threads
/// is shared among many, and of the same writes once these regions sleep. Not `chosen`, which are warm.
fn thaw(
    cluster: &Cluster,
    options: &Options,
    clients: &mut Clients,
    chosen: &[u64],
) -> Result<f64, StressError> {
    let warm: BTreeSet<u64> = chosen.iter().copied().collect();
    let cold = (1..=cluster.watch.regions).filter(|region| !warm.contains(region));
    let cold: Vec<u64> = cold.take(THAWED).collect();
    if cold.is_empty() {
        return Ok(0.0);
    }
    let thawed = clients.at_once(cluster, "thaw", &cold)?;
    cluster.fall_asleep()?;
    let woken = clients.at_once(cluster, "wake", &cold)?;
    Ok((thawed.cpu_us - woken.cpu_us) / options.stores as f64)
}

/// Lets nothing happen for a while.
fn quiet(
    cluster: &Cluster,
    options: &Options,
    (phase, before, at_first): (&str, &ProcessSample, &ProcessSample),
) -> Result<Quiet, StressError> {
    let (sent, _) = cluster.heartbeats(Duration::ZERO);
    let since = Since::now();
    cluster.watch.pass(phase, options.duration)?;
    let cpu_percent = since.cpu_percent();
    let (now_sent, due) = cluster.heartbeats(since.0.elapsed());
    let now = ProcessSample::take();
    let each = |now: u64, before: u64| now.saturating_sub(before) as f64 / cluster.peers() as f64;
    Ok(Quiet {
        cpu_percent,
        allocated_bytes: each(now.allocated_bytes, before.allocated_bytes),
        rss_bytes: each(now.rss_bytes, at_first.rss_bytes),
        leader_changes: 0,
        heartbeats_sent: (due > 0.0).then(|| (now_sent - sent) as f64 / due),
    })
}

fn unchanged(cluster: &Cluster, phase: &str, before: u64) -> Result<(), StressError> {
    let changes = cluster.leader_changes() - before;
    match changes {
        0 => Ok(()),
        _ => Err(cluster.watch.failed(phase, format!("{changes} changes of leaders, unasked"))),
    }
}

/// A few regions are written to, and all others sleep.
fn write_to_few(
    cluster: &Cluster,
    options: &Options,
    clients: &mut Clients,
) -> Result<Active, StressError> {
    let regions = options.active_of(cluster.watch.regions);
    let chosen = spread(regions, cluster.watch.regions, options.stores);
    let load = (&chosen[..], options.rate);
    // Each is written to once before it counts, so that all are awake.
    clients.steadily(cluster, load, Duration::from_secs_f64(1.0 / options.rate))?;
    let since = Since::now();
    let latency = clients.steadily(cluster, load, options.duration)?;
    let cpu_percent = since.cpu_percent();
    let (awake, chosen) = (cluster.awake(), chosen.into_iter().collect::<BTreeSet<u64>>());
    if let Some(region) = awake.difference(&chosen).next() {
        let problem = format!("region {region} is awake, and nobody has written to it");
        return Err(cluster.watch.failed("write to few", problem));
    }
    Ok(Active { regions, awake: awake.len() as u64, cpu_percent, latency })
}

/// A store is lost while all sleep.
fn lose_store(cluster: &mut Cluster) -> Result<Failover, StressError> {
    const PHASE: &str = "fail over";
    const WAKES: &str = "raftstore_woken_regions_total";
    let (led_by, terms) = (cluster.led_by(), cluster.terms());
    let all = 1..=cluster.watch.regions;
    let led = |id: &u64| led_by[*id as usize] == Some(VICTIM);
    let led: BTreeSet<u64> = all.clone().filter(led).collect();
    let wakes = cluster.figure(WAKES, Some(VICTIM));
    let since = Since::now();
    cluster.stop_store(VICTIM);
    let stop_cpu_s = since.cpu_s();
    let regions = cluster.watch.regions;
    cluster.watch.until(PHASE, regions, || cluster.leaders())?;
    let (seconds, cpu_s) = (since.seconds(), since.cpu_s());
    cluster.check(PHASE)?;
    let now = cluster.terms();
    let mut woken = cluster.awake();
    woken.extend(all.filter(|id| terms[*id as usize] != now[*id as usize]));
    if let Some(region) = woken.difference(&led).next() {
        let problem = format!("region {region} woke, which the lost store did not lead");
        return Err(cluster.watch.failed(PHASE, problem));
    }
    Ok(Failover {
        led: led.len() as u64,
        seconds,
        election_timeouts: seconds / cluster.election_timeout().as_secs_f64(),
        cpu_s,
        stop_cpu_s,
        woken: woken.len() as u64,
        wakes: cluster.figure(WAKES, Some(VICTIM)) - wakes,
    })
}

/// The store comes back that was stopped.
fn restart(cluster: &mut Cluster) -> Result<Restart, StressError> {
    let since = Since::now();
    cluster.watch.begin("start anew", 1);
    cluster.start_store(VICTIM)?;
    let regions = cluster.watch.regions;
    let here = || cluster.handles().map(|(_, handle)| handle.region_count() as u64).min();
    cluster.watch.until("register", regions, || here().unwrap_or(0))?;
    let registered_s = since.seconds();
    cluster.settle()?;
    let led_s = since.seconds();
    cluster.fall_asleep()?;
    Ok(Restart { registered_s, led_s, asleep_s: since.seconds(), cpu_s: since.cpu_s() })
}
