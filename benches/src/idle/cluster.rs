//! The stores of `stress idle`: started, watched, lost, and started anew.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use prometheus::proto::Metric;
use prometheus::Registry;
use raftstore::{
    InProcessTransport, LogStore, MemoryLogStore, Peer, PeerId, RegionDescription, RegionId,
    RegionInfo, Role, Store, StoreConfig, StoreHandle, StoreId,
};

use crate::stress::error::StressError;
use crate::stress::interrupt::Interrupt;
use crate::stress::ledger::{Ledger, Tally};
use crate::stress::progress::Progress;
use crate::stress::subject::failed;
use crate::stress::table::grouped;

/// How long anything may take before the run is given up.
const PATIENCE: Duration = Duration::from_secs(300);
/// Regions created and elected at a time, on all stores, before any of them stands for election by itself.
const BATCH: usize = 1000;
const PAUSE: Duration = Duration::from_millis(1);
/// Looking at all regions is work. Between two looks passes this many times what the last one took.
const REST: u32 = 9;

/// Who is told how far a row has come, and may end it.
#[derive(Clone, Debug)]
pub struct Watch {
    /// Regions of the row.
    pub regions: u64,
    /// The bar on the terminal.
    pub progress: Progress,
    /// Ctrl-C.
    pub interrupt: Interrupt,
}

impl Watch {
    /// An error line with the row and the phase.
    pub fn failed(&self, phase: &str, problem: impl std::fmt::Display) -> StressError {
        failed(self.regions, phase, &problem)
    }

    /// Waits until `steps` are done, as `done` counts them.
    ///
    /// # Errors
    /// When that takes too long, or the run is interrupted.
    pub fn until(
        &self,
        phase: &str,
        steps: u64,
        mut done: impl FnMut() -> u64,
    ) -> Result<(), StressError> {
        self.begin(phase, steps);
        let start = Instant::now();
        loop {
            let asked = Instant::now();
            let so_far = done();
            let took = asked.elapsed();
            self.progress.set(so_far);
            if so_far >= steps {
                return Ok(());
            }
            self.go_on()?;
            if start.elapsed() > PATIENCE {
                let problem = format!("{so_far} of {steps} after {} s", PATIENCE.as_secs());
                return Err(self.failed(phase, problem));
            }
            std::thread::park_timeout(PAUSE.max(took * REST));
        }
    }

    /// Lets a time pass.
    ///
    /// # Errors
    /// When the run is interrupted.
    pub fn pass(&self, phase: &str, duration: Duration) -> Result<(), StressError> {
        self.begin(phase, duration.as_millis() as u64);
        let start = Instant::now();
        loop {
            let passed = start.elapsed();
            if passed >= duration {
                return Ok(());
            }
            self.go_on()?;
            self.progress.set(passed.as_millis() as u64);
            // Seldom, so that little of what is measured is our own.
            std::thread::park_timeout(Duration::from_millis(100).min(duration - passed));
        }
    }

    /// Starts a phase under the progress bar.
    pub fn begin(&self, phase: &str, steps: u64) {
        self.progress.begin(&format!("{} regions: {phase}", grouped(self.regions)), steps);
    }

    /// # Errors
    /// When the run is interrupted.
    pub fn go_on(&self) -> Result<(), StressError> {
        match self.interrupt.is_requested() {
            true => Err(StressError::Interrupted),
            false => Ok(()),
        }
    }
}

/// What of a store outlives it.
struct Node {
    /// `None` while it is lost.
    store: Option<Store>,
    registry: Registry,
    log: Log,
    ledger: Arc<Ledger>,
}

enum Log {
    Memory(Arc<dyn LogStore>),
    Directory(PathBuf),
}

/// Running stores that hold the same regions.
pub struct Cluster {
    nodes: Vec<Node>,
    network: InProcessTransport,
    config: StoreConfig,
    /// Who is told, and how many regions there are.
    pub watch: Watch,
}

impl Cluster {
    /// Starts the stores, with logs below `data` or in memory; creates the regions on all of them, and has each
    /// elect the store whose turn it is. Returns when all have leaders.
    ///
    /// # Errors
    /// As the stores say; or when that takes too long, or is interrupted.
    pub fn start(
        config: StoreConfig,
        stores: u64,
        data: Option<PathBuf>,
        watch: &Watch,
    ) -> Result<Self, StressError> {
        let network = InProcessTransport::new();
        let log = |id: u64| match &data {
            Some(data) => Log::Directory(data.join(format!("store-{id}"))),
            None => Log::Memory(Arc::new(MemoryLogStore::new())),
        };
        let node = |id: u64| Node {
            store: None,
            registry: Registry::new(),
            log: log(id),
            ledger: Arc::new(Ledger::outliving(watch.regions)),
        };
        let nodes = (1..=stores).map(node).collect();
        let mut cluster = Self { nodes, network, config, watch: watch.clone() };
        for at in 0..cluster.nodes.len() {
            cluster.start_store(at)?;
        }
        cluster.create()?;
        cluster.watch.until("elect", watch.regions, || cluster.leaders())?;
        Ok(cluster)
    }

    /// Starts the store of this number, counted from 0, with the log that it has.
    ///
    /// # Errors
    /// As the store says.
    pub fn start_store(&mut self, at: usize) -> Result<(), StressError> {
        let node = &mut self.nodes[at];
        let builder = Store::builder(StoreId::new(at as u64 + 1))
            .config(self.config.clone())
            .transport(self.network.clone())
            .registry(node.registry.clone());
        let builder = match &node.log {
            Log::Memory(log) => builder.log_store(log.clone()),
            Log::Directory(dir) => builder.data_dir(dir),
        };
        // The state machine has what it had, as one on disk would.
        let started = builder.state_machine(node.ledger.clone()).start();
        let store = started.map_err(|error| self.watch.failed("start", error))?;
        self.network.connect(store.handle());
        node.store = Some(store);
        Ok(())
    }

    /// Cuts the store of this number off and stops it.
    pub fn stop_store(&mut self, at: usize) {
        self.network.disconnect(StoreId::new(at as u64 + 1));
        if let Some(mut store) = self.nodes[at].store.take() {
            store.shutdown();
        }
    }

    fn create(&self) -> Result<(), StressError> {
        let (count, stores) = (self.watch.regions, self.nodes.len() as u64);
        let regions: Vec<_> = (1..=count).map(|id| describe(id, count, stores)).collect();
        let handles: Vec<StoreHandle> = self.handles().map(|(_, handle)| handle).collect();
        self.watch.begin("create", count);
        for batch in regions.chunks(BATCH) {
            self.watch.go_on()?;
            for handle in &handles {
                handle.bootstrap(batch).map_err(|error| self.watch.failed("create", error))?;
            }
            for region in batch {
                handles[(region.id.get() % stores) as usize].campaign(region.id);
            }
            self.watch.progress.set(batch.last().map_or(count, |region| region.id.get()));
        }
        Ok(())
    }

    /// Handles of the stores that run, and their numbers from 0 on.
    pub fn handles(&self) -> impl Iterator<Item = (usize, StoreHandle)> + '_ {
        let running = |(at, node): (usize, &Node)| Some((at, node.store.as_ref()?.handle()));
        self.nodes.iter().enumerate().filter_map(running)
    }

    /// How many regions the running stores lead, as they count.
    pub fn leaders(&self) -> u64 {
        self.handles().map(|(_, handle)| handle.leaders()).sum()
    }

    /// How often leadership changed on any store that runs.
    pub fn leader_changes(&self) -> u64 {
        self.handles().map(|(_, handle)| handle.leader_changes()).sum()
    }

    /// How many peers sleep, on all stores that run.
    pub fn asleep(&self) -> u64 {
        self.figure("raftstore_regions_asleep", None)
    }

    /// Waits until all regions have slept for so long that they have given back their memory.
    ///
    /// # Errors
    /// When that takes too long, or is interrupted.
    pub fn become_cold(&self) -> Result<(), StressError> {
        let cold = || self.figure("raftstore_regions_cold", None);
        self.watch.until("become cold", self.peers(), cold)
    }

    /// How long an election timeout is.
    pub fn election_timeout(&self) -> Duration {
        self.config.raft.tick_interval * self.config.raft.election_ticks as u32
    }

    /// Heartbeats that leaders have sent, and how many are due in a time when all regions are awake.
    pub fn heartbeats(&self, time: Duration) -> (u64, f64) {
        let raft = &self.config.raft;
        let each = time.div_duration_f64(raft.tick_interval * raft.heartbeat_ticks as u32);
        let due = each * (self.peers() - self.watch.regions) as f64;
        (self.figure_of("raftstore_raft_messages_sent_total", "heartbeat"), due)
    }

    /// Peers of regions on the stores that run.
    pub fn peers(&self) -> u64 {
        self.handles().count() as u64 * self.watch.regions
    }

    /// A metric, summed over the stores that run, but for one.
    pub fn figure(&self, name: &str, but: Option<usize>) -> u64 {
        self.sum(name, |at, _| Some(at) != but)
    }

    /// A metric, summed over the stores that run, and over what has this value of some label.
    pub fn figure_of(&self, name: &str, value: &str) -> u64 {
        let has = |metric: &Metric| metric.get_label().iter().any(|it| it.get_value() == value);
        self.sum(name, |_, metric| has(metric))
    }

    fn sum(&self, name: &str, counts: impl Fn(usize, &Metric) -> bool) -> u64 {
        let mut sum = 0.0;
        let running = |(_, node): &(usize, &Node)| node.store.is_some();
        for (at, node) in self.nodes.iter().enumerate().filter(running) {
            for family in node.registry.gather().iter().filter(|it| it.get_name() == name) {
                for metric in family.get_metric().iter().filter(|it| counts(at, it)) {
                    // Of the two the one that the metric is not is 0.
                    sum += metric.get_gauge().get_value() + metric.get_counter().get_value();
                }
            }
        }
        sum as u64
    }

    /// Waits until every peer sleeps.
    ///
    /// # Errors
    /// When that takes too long, or is interrupted.
    pub fn fall_asleep(&self) -> Result<(), StressError> {
        self.watch.until("fall asleep", self.peers(), || self.asleep())
    }

    /// Waits until all stores that run know the same leader of each region, and have applied all that it has.
    ///
    /// # Errors
    /// When that takes too long, or is interrupted.
    pub fn settle(&self) -> Result<(), StressError> {
        self.watch.until("settle", self.watch.regions, || self.settled())
    }

    /// The same for no longer than this; says whether they did.
    ///
    /// # Errors
    /// When it is interrupted.
    pub fn settle_within(&self, most: Duration) -> Result<bool, StressError> {
        let (start, all) = (Instant::now(), self.watch.regions);
        let (mut done, mut settled) = (false, 0);
        self.watch.until("settle", all, || {
            settled = self.settled();
            done = settled >= all;
            // Over, one way or the other.
            if start.elapsed() > most {
                all
            } else {
                settled
            }
        })?;
        Ok(done)
    }

    fn settled(&self) -> u64 {
        let stores: Vec<Vec<RegionInfo>> = self.handles().map(|(_, it)| it.regions()).collect();
        let Some((first, others)) = stores.split_first() else { return 0 };
        let settled = |(at, info): &(usize, &RegionInfo)| {
            let same = |of: &Vec<RegionInfo>| {
                let other = of.get(*at);
                other.is_some_and(|it| it.leader == info.leader && it.applied == info.last)
            };
            info.leader.is_some() && info.applied == info.last && others.iter().all(same)
        };
        first.iter().enumerate().filter(settled).count() as u64
    }

    /// By region, from 1 on: which store leads it, by its own word. What is at 0 says nothing.
    pub fn led_by(&self) -> Vec<Option<usize>> {
        let mut led_by = vec![None; self.watch.regions as usize + 1];
        for (at, handle) in self.handles() {
            for info in handle.regions().iter().filter(|info| info.role == Role::Leader) {
                led_by[info.region_id.get() as usize] = Some(at);
            }
        }
        led_by
    }

    /// Regions of which any peer is awake, on the stores that run.
    pub fn awake(&self) -> BTreeSet<u64> {
        let all = self.handles().flat_map(|(_, handle)| handle.regions());
        all.filter(|info| !info.asleep).map(|info| info.region_id.get()).collect()
    }

    /// By region, from 1 on: the highest term that a store which runs knows of. What is at 0 says nothing.
    pub fn terms(&self) -> Vec<u64> {
        let mut terms = vec![0; self.watch.regions as usize + 1];
        for info in self.handles().flat_map(|(_, handle)| handle.regions()) {
            let term = &mut terms[info.region_id.get() as usize];
            *term = info.term.get().max(*term);
        }
        terms
    }

    /// What the state machine of each store that runs has applied for a region.
    pub fn tallies(&self, region: u64) -> Vec<Tally> {
        let running = self.nodes.iter().filter(|node| node.store.is_some());
        running.map(|node| node.ledger.tally(region)).collect()
    }

    /// Whether all is well: every region has a leader by its own word, no store has failed, none has set a
    /// region aside.
    ///
    /// # Errors
    /// Names what is not, also some time later.
    pub fn check(&self, phase: &str) -> Result<(), StressError> {
        for (at, handle) in self.handles() {
            let failure = handle.failure().map(|failure| failure.to_string());
            let aside = handle.set_aside().into_iter().next();
            let aside = aside.map(|(region, reason)| format!("region {region}: {reason}"));
            if let Some(problem) = failure.or(aside) {
                return Err(self.watch.failed(phase, format!("store {}: {problem}", at + 1)));
            }
        }
        // What regions show of themselves may be a tick old.
        let led = || self.led_by().iter().flatten().count() as u64;
        self.watch.until(&format!("{phase}: regions with a leader"), self.watch.regions, led)
    }

    /// Stops all stores.
    pub fn shutdown(mut self) {
        (0..self.nodes.len()).for_each(|at| self.stop_store(at));
    }
}

/// Region `id` of `count`, which tile the space of keys, with a voter on each store.
fn describe(id: u64, count: u64, stores: u64) -> RegionDescription {
    let bound = |number: u64| match number == 0 || number == count {
        true => Bytes::new(),
        false => Bytes::copy_from_slice(&number.to_be_bytes()),
    };
    let voter = |store| Peer::voter(PeerId::new(id * 16 + store), StoreId::new(store));
    RegionDescription::new(RegionId::new(id), bound(id - 1), bound(id), (1..=stores).map(voter))
}

/// `count` regions of `regions`, far apart and of all leaders; all, if there are no more.
pub fn spread(count: u64, regions: u64, stores: u64) -> Vec<u64> {
    let count = count.min(regions);
    let step = regions / count;
    // Without the last term, neighbours that are a multiple of the stores apart have one leader.
    let shift = |at: u64| if step > stores { at % stores } else { 0 };
    (0..count).map(|at| 1 + at * step + shift(at)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_that_are_chosen_are_different_and_of_all_leaders() {
        for (count, regions) in [(10, 30), (30, 30), (500, 30), (100, 10_000), (1, 7), (300, 1_000)]
        {
            let chosen = spread(count, regions, 3);
            let different: BTreeSet<u64> = chosen.iter().copied().collect();
            assert_eq!(different.len() as u64, count.min(regions));
            assert!(different.iter().all(|id| (1..=regions).contains(id)), "{chosen:?}");
        }
        let leaders: BTreeSet<u64> = spread(100, 30_000, 3).iter().map(|id| id % 3).collect();
        assert_eq!(leaders.len(), 3);
    }
}
