//! A simulated machine: a disk and a state machine that stay, and a store's process that comes and goes.

use crate::ambush::{stalls_until_us, Stalled};
use crate::check::Ledger;
use crate::disk::{Device, Engine, Flip, SimFiles, SimLog};
use crate::life::Life;
use crate::machine::{MachineState, SimMachine};
use crate::placement::SimPlacement;
use crate::plan::ClusterPlan;
use crate::random::Random;
use crate::transport::{Outgoing, SimTransport};
use parking_lot::Mutex;
use raftstore::{
    ByteSize, Bytes, Clock, DrivenStore, EngineConfig, LogStoreError, MemorySnapshotFiles, Peer,
    PeerId, PeerRole, RaftEngineLogStore, RegionDescription, RegionId, StartError, Store,
    StoreConfig, StoreId, StoreThread,
};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;

/// The largest command that may be proposed.
pub(crate) const MAX_PROPOSAL_BYTES: u64 = 64 << 10;

/// A store's own idea of the time.
#[derive(Clone, Debug, Default)]
struct SimClock(Arc<AtomicU64>);

impl Clock for SimClock {
    fn now(&self) -> Duration {
        Duration::from_micros(self.0.load(Ordering::Relaxed))
    }
}

/// One life of a store.
pub(crate) struct Running {
    /// The store.
    pub store: DrivenStore,
    /// Whether it lives.
    pub life: Arc<Life>,
    /// What its state machine holds, for whoever reads beside the log.
    pub machine: Arc<Mutex<MachineState>>,
    /// How often each thread gets its turn, in proportion.
    weights: Vec<u64>,
    /// Callbacks that have not been dropped hold a clone.
    pub callbacks: Arc<()>,
}

/// A machine with a store.
pub(crate) struct Process {
    /// The store's id.
    pub id: u64,
    /// Its disk.
    pub device: Device,
    /// Its state machine's state.
    pub machine: Arc<Mutex<MachineState>>,
    /// Snapshots that were received and not installed.
    pub snapshots: MemorySnapshotFiles,
    /// The store, while it runs.
    pub running: Option<Running>,
    /// Lives that have begun.
    pub lives: u64,
    /// Whether it stands still.
    pub paused: bool,
    /// Writes do not return before this time.
    pub disk_hangs_until_us: u64,
    /// Each write takes so much longer.
    pub disk_slow_us: u64,
    /// Threads that stand still.
    pub stalled: Vec<Stalled>,
    /// A write that is late returns then.
    pub write_due_us: Option<u64>,
    /// Whether a wake is on the agenda, and when.
    pub wake_at_us: Option<u64>,
    /// A store that cannot start until it is repaired.
    pub broken: bool,
    /// raft-engine's files, if the log is one.
    pub files: Option<EngineFiles>,
    /// The clock's speed in thousandths.
    pub speed_pm: u64,
    clock: SimClock,
    /// True time up to which the clock has run.
    clock_at_us: u64,
    /// What of the clock's time the store's timers have not seen.
    timers_behind_us: u64,
}

/// The files of a log, and the directory where they have their names.
pub(crate) struct EngineFiles {
    /// The contents.
    pub files: SimFiles,
    /// A bit that is flipped now.
    pub flip: Option<Flip>,
    names: TempDir,
}

impl EngineFiles {
    /// A new directory.
    ///
    /// # Errors
    /// When none can be made.
    pub(crate) fn new() -> std::io::Result<Self> {
        // Only names are there, but many: in memory, where there is such a place.
        let memory = Path::new("/dev/shm");
        let builder = tempfile::Builder::new();
        let names = match memory.is_dir() {
            true => builder.tempdir_in(memory),
            false => builder.tempdir(),
        }?;
        Ok(Self { files: SimFiles::new(), flip: None, names })
    }

    fn open(&self) -> Result<Engine, LogStoreError> {
        let config = EngineConfig {
            target_file_size: ByteSize::kib(32),
            purge_threshold: ByteSize::kib(64),
            recovery_threads: 1,
            ..EngineConfig::default()
        };
        let files = Arc::new(self.files.clone());
        let log = RaftEngineLogStore::open_with_file_system(self.names.path(), &config, files)?;
        Ok(Engine { log: Arc::new(log), files: self.files.clone() })
    }
}

/// What all stores have in common.
pub(crate) struct Surroundings {
    /// The cluster as planned.
    pub plan: ClusterPlan,
    /// Whether messages pass through their encoded form.
    pub encodes: bool,
    /// Decides election timeouts.
    pub seed: u64,
    /// What the cluster has done.
    pub ledger: Arc<Mutex<Ledger>>,
    /// What has been handed to the network.
    pub outgoing: Arc<Mutex<Outgoing>>,
    /// All disks.
    pub devices: Vec<Device>,
    /// Who orders regions about, if anybody does.
    pub placement: Option<Arc<SimPlacement>>,
}

impl Process {
    /// A machine whose store has never run.
    pub(crate) fn new(id: u64, device: Device) -> Self {
        Self {
            id,
            device,
            machine: Arc::default(),
            snapshots: MemorySnapshotFiles::default(),
            running: None,
            lives: 0,
            paused: false,
            disk_hangs_until_us: 0,
            disk_slow_us: 0,
            stalled: Vec::new(),
            write_due_us: None,
            wake_at_us: None,
            broken: false,
            files: None,
            speed_pm: 1000,
            clock: SimClock::default(),
            clock_at_us: 0,
            timers_behind_us: 0,
        }
    }

    /// Whether the store runs and is not paused.
    pub(crate) fn is_awake(&self) -> bool {
        self.running.is_some() && !self.paused
    }

    /// Starts the store, and creates those of its regions that are not on its disk.
    ///
    /// # Errors
    /// As the store says.
    pub(crate) fn start(
        &mut self,
        around: &Surroundings,
        random: &mut Random,
    ) -> Result<(), StartError> {
        assert!(self.running.is_none(), "store {} runs", self.id);
        self.lives += 1;
        let life = Arc::new(Life::default());
        if around.plan.crash_at_bootstrap.is_some_and(|(store, _)| store == self.id)
            && self.lives == 1
        {
            life.end_after(around.plan.crash_at_bootstrap.map_or(1, |(_, calls)| calls));
        }
        let (ledger, device) = (&around.ledger, &self.device);
        let engine = match &self.files {
            Some(files) => Some(files.open()?),
            None => None,
        };
        let log = SimLog::new(self.id, life.clone(), device.clone(), ledger.clone(), engine);
        let machine = SimMachine::new(
            self.id,
            life.clone(),
            self.machine.clone(),
            ledger.clone(),
            around.devices.clone(),
        );
        let transport = SimTransport::new(
            self.id,
            life.clone(),
            device.clone(),
            ledger.clone(),
            around.outgoing.clone(),
            around.encodes,
        );
        let builder = Store::builder(StoreId::new(self.id))
            .config(store_config(&around.plan, around.seed))
            .log_store(Arc::new(log))
            .state_machine(Arc::new(machine))
            .transport(transport)
            .snapshot_files(Arc::new(self.snapshots.clone()))
            .clock(self.clock.clone());
        let started = match &around.placement {
            Some(placement) => builder.placement(placement.clone()).start_driven(),
            None => builder.start_driven(),
        };
        // Whatever it says: a process that is gone says nothing.
        let store = match started {
            Ok(store) => store,
            Err(_) if !life.is_alive() => return Ok(()),
            Err(error) => return Err(error),
        };
        let weights = (0..8).map(|_| random.within(1..10)).collect();
        self.timers_behind_us = 0;
        self.write_due_us = None;
        self.stalled.clear();
        let created = store.handle().bootstrap(&self.missing(around));
        if let Err(error) = created {
            if life.is_alive() && store.handle().failure().is_none() {
                return Err(error);
            }
        }
        let machine = self.machine.clone();
        self.running = Some(Running { store, life, machine, weights, callbacks: Arc::default() });
        Ok(())
    }

    /// Regions that are to be here and are not on disk.
    fn missing(&self, around: &Surroundings) -> Vec<RegionDescription> {
        let disk = self.device.disk.lock();
        let known = &disk.current().regions;
        let damaged = self.device.troubles.lock().damaged;
        if self.device.troubles.lock().flipped {
            // Who knows what is missing.
            return Vec::new();
        }
        (1..=around.plan.regions)
            .filter(|region| around.plan.stores_of(*region).contains(&self.id))
            .filter(|region| {
                let id = RegionId::new(*region);
                known.get(&id).is_none_or(|log| log.record.is_none()) && damaged != Some(id)
            })
            .map(|region| describe(&around.plan, region))
            .collect()
    }

    /// Moves the store's clock to where it stands at this true time.
    pub(crate) fn set_clock(&mut self, now_us: u64) {
        let passed_us = (now_us - self.clock_at_us) * self.speed_pm / 1000;
        // What division cuts off is not lost: the clock stays behind until it makes a microsecond.
        self.clock_at_us += passed_us * 1000 / self.speed_pm;
        self.leap(passed_us);
    }

    /// The store's clock leaps forward.
    pub(crate) fn leap(&mut self, by_us: u64) {
        self.clock.0.fetch_add(by_us, Ordering::Relaxed);
        self.timers_behind_us += by_us;
    }

    /// The store's timers see what time it is.
    pub(crate) fn turn_timers(&mut self) {
        if let Some(running) = &mut self.running {
            running.store.advance_time(Duration::from_micros(self.timers_behind_us));
            self.timers_behind_us = 0;
        }
    }

    /// The threads that may make a step now, and when the next one may that has to wait for the disk.
    pub(crate) fn runnable(
        &self,
        now_us: u64,
        disk_threads: DiskThreads,
    ) -> (Vec<StoreThread>, u64) {
        let Some(running) = self.running.as_ref().filter(|_| !self.paused) else {
            return (Vec::new(), u64::MAX);
        };
        let mut threads = running.store.runnable();
        let before = threads.len();
        let until_us = self.disk_hangs_until_us.max(self.write_due_us.unwrap_or(0));
        if until_us > now_us {
            threads.retain(|thread| !disk_threads.contains(*thread));
        }
        let mut waits_us = if threads.len() < before { until_us } else { u64::MAX };
        threads.retain(|thread| {
            let until_us = stalls_until_us(&self.stalled, *thread);
            let stands_still = until_us > now_us;
            if stands_still {
                waits_us = waits_us.min(until_us);
            }
            !stands_still
        });
        (threads, waits_us)
    }
}

/// Which of a store's threads wait for its disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DiskThreads {
    /// Log writers.
    Writers,
    /// Pollers, where there are no log writers.
    Pollers,
}

impl DiskThreads {
    /// Whether this thread does.
    pub(crate) fn contains(self, thread: StoreThread) -> bool {
        match self {
            DiskThreads::Writers => matches!(thread, StoreThread::LogWriter(_)),
            DiskThreads::Pollers => matches!(thread, StoreThread::Poller(_)),
        }
    }
}

impl Running {
    /// One of some threads, by weight.
    pub(crate) fn choose(&self, threads: &[StoreThread], random: &mut Random) -> StoreThread {
        let weight = |thread: &StoreThread| {
            let at = match *thread {
                StoreThread::Poller(number) => number,
                StoreThread::LogWriter(number) => 3 + number,
                StoreThread::Apply(number) => 5 + number,
                StoreThread::Snapshots => 7,
                StoreThread::Chores => 8,
            };
            self.weights[at % self.weights.len()]
        };
        let mut draw = random.below(threads.iter().map(weight).sum());
        for thread in threads {
            let weight = weight(thread);
            if draw < weight {
                return *thread;
            }
            draw -= weight;
        }
        unreachable!("the draw is below the sum")
    }
}

/// The description of a region at its creation.
pub(crate) fn describe(plan: &ClusterPlan, region: u64) -> RegionDescription {
    let key = |region: u64| Bytes::copy_from_slice(&region.to_be_bytes());
    let peers = plan.stores_of(region).into_iter().map(|store| Peer {
        id: PeerId::new(region * 10 + store),
        store: StoreId::new(store),
        role: PeerRole::Voter,
    });
    RegionDescription::new(RegionId::new(region), key(region), key(region + 1), peers)
}

fn store_config(plan: &ClusterPlan, seed: u64) -> StoreConfig {
    let mut config = StoreConfig {
        pollers: plan.pollers,
        apply_pollers: plan.apply_pollers,
        log_writers: Some(plan.log_writers),
        batch_size: plan.batch_size,
        message_budget: plan.message_budget,
        mailbox_capacity: plan.mailbox_capacity,
        queue_size: ByteSize::kib(64),
        ..StoreConfig::default()
    };
    config.raft.tick_interval = Duration::from_millis(plan.tick_ms);
    config.raft.election_ticks = plan.election_ticks;
    config.raft.compact_after_entries = plan.compact_after_entries;
    config.raft.sleep_after_ticks = plan.sleep_after_ticks;
    config.raft.cold_after_ticks = plan.cold_after_ticks;
    // Before the end everybody has to know where he belongs.
    config.raft.look_around_ticks = 60;
    config.raft.spare_entries = plan.compact_after_entries;
    config.raft.max_proposal_size = ByteSize(MAX_PROPOSAL_BYTES);
    config.raft.max_append_size = ByteSize::kib(128);
    config.raft.max_pending_proposals = 64;
    config.raft.max_uncommitted_size = ByteSize::kib(256);
    config.raft.max_unapplied_size = ByteSize::mib(1);
    config.raft.entry_cache_size = ByteSize::kib(32);
    config.raft.seed = seed;
    config.placement.interval = Duration::from_millis(plan.tick_ms);
    if !plan.leases {
        config.raft.lease = Some(Duration::ZERO);
    }
    config
}
