//! What the life of regions costs those that use them: splits, changes of peers, handing over and a restart,
//! each under load.
//!
//! | part | does | says |
//! |---|---|---|
//! | `split` | one region becomes many, while clients write | the longest that any write took, retries included |
//! | `peers` | each region gets a peer on a fourth store, and loses it | writes a second, against the same without |
//! | `evict` | one store hands over all that it leads, while clients write | how long that took |
//! | `restart` | a store with many regions on disk starts | how long until it has answered a first write |
//!
//! A number that moved means: for `split`, that children wait for their leaders; for `peers`, that snapshots
//! or joint configurations are in the way of writes; for `evict`, that transfers wait for ticks; for
//! `restart`, that recovery became slower by the region.

use std::collections::BTreeMap;
use std::error::Error;
use std::ffi::OsString;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::{Parser, ValueEnum};
use crossbeam::channel::{unbounded, Receiver, Sender};
use parking_lot::RwLock;
use raftstore::{
    AdminRequest, Answer, InProcessTransport, MapCommand, NewRegion, OrderedMap, Peer, PeerChange,
    PeerId, ProposeError, RegionDescription, RegionId, SplitRequest, Store, StoreConfig,
    StoreHandle, StoreId, Write,
};

use crate::memory_stores;

type Failure = Box<dyn Error>;

/// Measures what the life of regions costs.
#[derive(Parser)]
#[command(bin_name = "stress life", version)]
struct Options {
    /// Which parts to measure; all by default
    parts: Vec<Part>,
    /// Regions; by default 1000, and 10000 for `restart`
    #[arg(long, value_parser = clap::value_parser!(u64).range(2..=100_000))]
    regions: Option<u64>,
    /// Client threads
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=64))]
    clients: u64,
    /// Writes of a client under way at the same time
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..=4096))]
    depth: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    Split,
    Peers,
    Evict,
    Restart,
}

/// Runs `stress life` with this command line, its name first.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    match run(&Options::parse_from(args)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("stress life: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<(), Failure> {
    let all = [Part::Split, Part::Peers, Part::Evict, Part::Restart];
    let parts = if options.parts.is_empty() { &all[..] } else { &options.parts };
    for part in parts {
        match part {
            Part::Split => split(options)?,
            Part::Peers => peers(options)?,
            Part::Evict => evict(options)?,
            Part::Restart => restart(options)?,
        }
    }
    Ok(())
}

/// Stores of one process, all in memory.
struct Cluster {
    stores: Vec<Store>,
    routes: Arc<Routes>,
}

impl Cluster {
    fn start(stores: u64, regions: &[RegionDescription]) -> Result<Self, Failure> {
        let (stores, _) = memory_stores::start(&config(), stores, regions)?;
        let cluster = Self { stores, routes: Arc::default() };
        for region in regions {
            cluster.handle(0).campaign(region.id);
            cluster.routes.learn(region);
        }
        let count = regions.len() as u64;
        wait_for("leaders", || cluster.handle(0).leaders() == count)?;
        Ok(cluster)
    }

    fn handle(&self, store: usize) -> StoreHandle {
        self.stores[store].handle()
    }
}

fn config() -> StoreConfig {
    let mut config = StoreConfig::default();
    config.raft.tick_interval = Duration::from_millis(100);
    config
}

fn key(number: u64) -> Bytes {
    Bytes::copy_from_slice(&number.to_be_bytes())
}

/// Region `number` of `count`, which tile the space of keys up to `KEYS`.
fn describe(number: u64, count: u64, stores: u64) -> RegionDescription {
    let bound = |at: u64| key(at * KEYS / count);
    RegionDescription::new(
        RegionId::new(number),
        if number == 1 { Bytes::new() } else { bound(number - 1) },
        if number == count { Bytes::new() } else { bound(number) },
        (1..=stores)
            .map(|store| Peer::voter(PeerId::new(number * 16 + store), StoreId::new(store))),
    )
}

const KEYS: u64 = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(120);

fn wait_for(what: &str, is_so: impl Fn() -> bool) -> Result<(), Failure> {
    let start = Instant::now();
    while !is_so() {
        if start.elapsed() > PATIENCE {
            return Err(format!("waited in vain for {what}").into());
        }
        std::thread::park_timeout(Duration::from_micros(200));
    }
    Ok(())
}

/// What clients know of regions, and of their leaders.
#[derive(Default)]
struct Routes {
    regions: RwLock<BTreeMap<Bytes, (RegionDescription, usize)>>,
}

impl Routes {
    fn learn(&self, region: &RegionDescription) {
        let mut regions = self.regions.write();
        let leader = regions.values().find(|(known, _)| known.id == region.id).map(|(_, l)| *l);
        let newer = |known: &RegionDescription| {
            let (old, new) = (known.epoch, region.epoch);
            new.version > old.version || new.version == old.version && new.conf_ver >= old.conf_ver
        };
        if let Some((known, _)) = regions.get(&region.start_key) {
            if !newer(known) {
                return;
            }
        }
        regions.retain(|_, (known, _)| known.id != region.id || !newer(known));
        regions.insert(region.start_key.clone(), (region.clone(), leader.unwrap_or(0)));
    }

    fn find(&self, key: &[u8]) -> Option<(RegionDescription, usize)> {
        let regions = self.regions.read();
        let up_to = (std::ops::Bound::Unbounded, std::ops::Bound::Included(key));
        regions.range::<[u8], _>(up_to).next_back().map(|(_, known)| known.clone())
    }

    fn lead(&self, region: RegionId, store: usize) {
        for (known, leader) in self.regions.write().values_mut() {
            if known.id == region {
                *leader = store;
            }
        }
    }
}

/// Clients at work, until they are stopped.
struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    threads: Vec<std::thread::JoinHandle<Tally>>,
}

/// What a client has seen.
#[derive(Default)]
struct Tally {
    writes: u64,
    retries: u64,
    failed: u64,
    unknown: u64,
    longest: Duration,
}

struct Under {
    key: Bytes,
    began: Instant,
    region: RegionId,
}

impl Load {
    fn start(cluster: &Cluster, options: &Options) -> Self {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let handles: Vec<StoreHandle> = cluster.stores.iter().map(Store::handle).collect();
        let client = |number: u64| {
            let client = Client {
                handles: handles.clone(),
                routes: cluster.routes.clone(),
                stop: stop.clone(),
                done: done.clone(),
                answers: unbounded(),
                tally: Tally::default(),
                state: number.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1,
            };
            let depth = options.depth;
            std::thread::spawn(move || client.run(depth))
        };
        let threads = (1..=options.clients).map(client).collect();
        Self { stop, done, threads }
    }

    /// Writes a second over a while.
    fn rate(&self, over: Duration) -> f64 {
        let (before, start) = (self.done.load(Ordering::Relaxed), Instant::now());
        std::thread::sleep(over);
        let writes = self.done.load(Ordering::Relaxed) - before;
        writes as f64 / start.elapsed().as_secs_f64()
    }

    fn end(self) -> Tally {
        self.stop.store(true, Ordering::Release);
        let mut all = Tally::default();
        for thread in self.threads {
            let tally = thread.join().expect("clients do not panic");
            all.writes += tally.writes;
            all.retries += tally.retries;
            all.failed += tally.failed;
            all.unknown += tally.unknown;
            all.longest = all.longest.max(tally.longest);
        }
        all
    }
}

/// A write, and what became of it.
type Told = (Under, Answer);

struct Client {
    handles: Vec<StoreHandle>,
    routes: Arc<Routes>,
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    answers: (Sender<Told>, Receiver<Told>),
    tally: Tally,
    state: u64,
}

impl Client {
    fn run(mut self, depth: u64) -> Tally {
        (0..depth).for_each(|_| self.begin());
        let mut open = depth;
        while open > 0 {
            let Ok((under, answer)) = self.answers.1.recv() else { break };
            let ended = match answer {
                Ok(_) => {
                    self.done.fetch_add(1, Ordering::Relaxed);
                    self.tally.writes += 1;
                    self.tally.longest = self.tally.longest.max(under.began.elapsed());
                    true
                }
                Err(error) => self.refused(&under, &error),
            };
            if !ended {
                self.propose(under.key, under.began);
            } else if self.stop.load(Ordering::Acquire) {
                open -= 1;
            } else {
                self.begin();
            }
        }
        self.tally
    }

    /// Whether the write is over.
    fn refused(&mut self, under: &Under, error: &ProposeError) -> bool {
        match error {
            ProposeError::EpochNotMatch { current, .. } => {
                current.iter().for_each(|region| self.routes.learn(region));
            }
            ProposeError::NotLeader { leader: Some(leader), .. } => {
                self.routes.lead(under.region, leader.store.get() as usize - 1);
            }
            ProposeError::Unknown { .. } => {
                self.tally.unknown += 1;
                return true;
            }
            error if !error.is_retryable() => {
                self.tally.failed += 1;
                return true;
            }
            _ => std::thread::yield_now(),
        }
        self.tally.retries += 1;
        false
    }

    fn begin(&mut self) {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.propose(key(self.state % KEYS), Instant::now());
    }

    fn propose(&self, key: Bytes, began: Instant) {
        let Some((region, leader)) = self.routes.find(&key) else { return };
        let command = MapCommand::put(key.clone(), key.clone()).encode();
        let write = Write::new(command).at_epoch(region.epoch);
        let (sender, id) = (self.answers.0.clone(), region.id);
        let handle = &self.handles[leader.min(self.handles.len() - 1)];
        handle.propose_with(id, write, move |answer| {
            let _ = sender.send((Under { key, began, region: id }, answer));
        });
    }
}

/// One region becomes many.
fn split(options: &Options) -> Result<(), Failure> {
    let count = options.regions.unwrap_or(1000);
    let cluster = Cluster::start(3, &[describe(1, 1, 3)])?;
    let load = Load::start(&cluster, options);
    let quiet = load.rate(Duration::from_secs(1));
    let start = Instant::now();
    for number in 2..=count {
        // In an order that halves what is there.
        let at = key((number - 1).reverse_bits() >> (64 - 20));
        loop {
            let Some((region, leader)) = cluster.routes.find(&at) else { continue };
            let peers = (1..=3).map(|store| PeerId::new(number * 16 + store)).collect();
            let request = SplitRequest {
                keys: vec![at.clone()],
                regions: vec![NewRegion { id: RegionId::new(number), peers }],
                parent_is_right: false,
            };
            match cluster.handle(leader).admin(region.id, AdminRequest::split(request)) {
                Ok(regions) => {
                    regions.iter().for_each(|region| cluster.routes.learn(region));
                    break;
                }
                Err(ProposeError::NotLeader { leader: Some(leader), .. }) => {
                    cluster.routes.lead(region.id, leader.store.get() as usize - 1);
                }
                Err(error) if error.is_retryable() => std::thread::yield_now(),
                Err(error) => return Err(error.into()),
            }
        }
    }
    let took = start.elapsed();
    let tally = load.end();
    println!(
        "split: 1 to {count} regions in {took:.2?}; {quiet:.0} writes/s before; {} writes, {} \
         retried, {} failed, {} unknown; longest write {:.1?} (aim: 300 ms)",
        tally.writes, tally.retries, tally.failed, tally.unknown, tally.longest
    );
    Ok(())
}

/// Each region gets a peer on a fourth store, and loses it.
fn peers(options: &Options) -> Result<(), Failure> {
    let count = options.regions.unwrap_or(1000);
    let regions: Vec<_> = (1..=count).map(|number| describe(number, count, 3)).collect();
    let cluster = Cluster::start(4, &regions)?;
    let load = Load::start(&cluster, options);
    let quiet = load.rate(Duration::from_secs(3));
    let (before, start) = (load.done.load(Ordering::Relaxed), Instant::now());
    for region in &regions {
        let new = Peer::learner(PeerId::new(region.id.get() * 16 + 9), StoreId::new(4));
        ask(&cluster, region.id, &[PeerChange::Add(new)])?;
        ask(&cluster, region.id, &[PeerChange::Promote(new.id)])?;
        let gone = region.peers[2].id;
        ask(&cluster, region.id, &[PeerChange::Remove(gone)])?;
    }
    let took = start.elapsed();
    let during = (load.done.load(Ordering::Relaxed) - before) as f64 / took.as_secs_f64();
    let tally = load.end();
    println!(
        "peers: {} changes of {count} regions in {took:.2?}; {quiet:.0} writes/s before, {during:.0} \
         during: {:.0} % (aim: 60 %); {} retried, {} failed, {} unknown; longest write {:.1?}",
        3 * count,
        100.0 * during / quiet,
        tally.retries,
        tally.failed,
        tally.unknown,
        tally.longest
    );
    Ok(())
}

fn ask(cluster: &Cluster, region: RegionId, changes: &[PeerChange]) -> Result<(), Failure> {
    let start = Instant::now();
    loop {
        match cluster.handle(0).admin(region, AdminRequest::change_peers(changes)) {
            Ok(regions) => {
                regions.iter().for_each(|region| cluster.routes.learn(region));
                return Ok(());
            }
            Err(error) if error.is_retryable() && start.elapsed() < PATIENCE => {
                std::thread::park_timeout(Duration::from_micros(200));
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// One store hands over all that it leads.
fn evict(options: &Options) -> Result<(), Failure> {
    let count = options.regions.unwrap_or(1000);
    let regions: Vec<_> = (1..=count).map(|number| describe(number, count, 3)).collect();
    let cluster = Cluster::start(3, &regions)?;
    let load = Load::start(&cluster, options);
    load.rate(Duration::from_secs(1));
    let start = Instant::now();
    let left = cluster.handle(0).evict_leaders(PATIENCE);
    let took = start.elapsed();
    let tally = load.end();
    println!(
        "evict: {count} leaders handed over in {took:.2?} (aim: 2 s), {left} left; {} writes, {} \
         retried, {} failed, {} unknown; longest write {:.1?}",
        tally.writes, tally.retries, tally.failed, tally.unknown, tally.longest
    );
    Ok(())
}

/// A store with many regions on disk starts.
fn restart(options: &Options) -> Result<(), Failure> {
    let count = options.regions.unwrap_or(10_000);
    let dir = tempfile::tempdir()?;
    let regions: Vec<_> = (1..=count).map(|number| describe(number, count, 1)).collect();
    let open = || {
        Store::builder(StoreId::new(1))
            .config(config())
            .data_dir(dir.path())
            .state_machine(Arc::new(OrderedMap::new()))
            .transport(InProcessTransport::new())
            .start()
    };
    let mut store = open()?;
    store.handle().bootstrap(&regions)?;
    let handle = store.handle();
    for region in &regions {
        handle.campaign(region.id);
    }
    wait_for("leaders", || handle.leaders() == count)?;
    for region in &regions {
        let key = region.start_key.clone();
        handle.propose_with(region.id, MapCommand::put(key, "value").encode(), drop);
    }
    let last = RegionId::new(count);
    handle.propose(last, MapCommand::put("last", "value").encode())?;
    store.shutdown();
    drop(store);

    let start = Instant::now();
    let store = open()?;
    let opened = start.elapsed();
    store.handle().campaign(last);
    let command = MapCommand::put("again", "value").encode();
    while let Err(error) = store.handle().propose(last, command.clone()) {
        if !error.is_retryable() || start.elapsed() > PATIENCE {
            return Err(error.into());
        }
        std::thread::yield_now();
    }
    println!(
        "restart: {count} regions open after {opened:.2?}, first write answered after {:.2?} (aim: 1 s \
         at 10000)",
        start.elapsed()
    );
    Ok(())
}
