//! The stores of one row: started, their regions created and led, compared at the end.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use raftstore::{
    InProcessTransport, MemoryLogStore, Peer, PeerId, PeerRole, RegionDescription, RegionId, Store,
    StoreBuilder, StoreConfig, StoreHandle, StoreId,
};

use super::error::StressError;
use super::ledger::Ledger;
use super::options::{LogKind, Options};
use super::run::Context;

/// How long an election, or followers catching up, may take before the run is given up.
const PATIENCE: Duration = Duration::from_secs(120);

const PAUSE: Duration = Duration::from_millis(1);

/// Running stores that hold the same regions.
#[derive(Debug)]
pub struct Cluster {
    stores: Vec<Store>,
    ledgers: Vec<Arc<Ledger>>,
    network: InProcessTransport,
    regions: u64,
}

impl Cluster {
    /// Starts the stores and creates the regions on all of them.
    pub fn start(options: &Options, regions: u64, ctx: &Context) -> Result<Self, StressError> {
        let network = InProcessTransport::new();
        let mut cluster =
            Self { stores: Vec::new(), ledgers: Vec::new(), network: network.clone(), regions };
        for id in 1..=options.stores {
            let ledger = Arc::new(Ledger::new(regions));
            let builder = Store::builder(StoreId::new(id))
                .config(config(options, ctx))
                .state_machine(ledger.clone())
                .transport(network.clone())
                .registry(ctx.registry.clone());
            let store = with_log(builder, options, ctx, id)
                .start()
                .map_err(|error| failed(regions, "start", &error))?;
            network.connect(store.handle());
            cluster.stores.push(store);
            cluster.ledgers.push(ledger);
        }
        let descriptions: Vec<_> =
            (1..=regions).map(|region| describe(region, regions, options.stores)).collect();
        ctx.begin(regions, "create", options.stores);
        for (number, store) in cluster.stores.iter().enumerate() {
            let created = store.handle().bootstrap(&descriptions);
            created.map_err(|error| failed(regions, "create", &error))?;
            ctx.progress.set(number as u64 + 1);
        }
        Ok(cluster)
    }

    /// Has each region elect the store whose turn it is; returns how long that took.
    pub fn elect(&self, ctx: &Context) -> Result<Duration, StressError> {
        ctx.begin(self.regions, "elect", self.regions);
        let start = Instant::now();
        for region in 1..=self.regions {
            self.stores[self.first_leader(region)].handle().campaign(RegionId::new(region));
        }
        loop {
            let leaders: u64 = self.handles().iter().map(StoreHandle::leaders).sum();
            ctx.progress.set(leaders);
            if leaders >= self.regions {
                return Ok(start.elapsed());
            }
            if ctx.interrupt.is_requested() {
                return Err(StressError::Interrupted);
            }
            if start.elapsed() > PATIENCE {
                let problem = format!("{leaders} leaders after {} s", PATIENCE.as_secs());
                return Err(failed(self.regions, "elect", &problem));
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// The store, counted from 0, that a region elects first.
    pub fn first_leader(&self, region: u64) -> usize {
        (region % self.stores.len() as u64) as usize
    }

    /// Handles of all stores, in order.
    pub fn handles(&self) -> Vec<StoreHandle> {
        self.stores.iter().map(Store::handle).collect()
    }

    /// State machines of all stores, in order.
    pub fn ledgers(&self) -> &[Arc<Ledger>] {
        &self.ledgers
    }

    /// How many regions there are.
    pub fn regions(&self) -> u64 {
        self.regions
    }

    /// How often leadership of a region changed hands so far, the first election included.
    pub fn leader_changes(&self) -> u64 {
        self.handles().iter().map(StoreHandle::leader_changes).sum()
    }

    /// What a store says of itself if it has failed.
    pub fn failure(&self) -> Option<String> {
        self.handles().iter().find_map(|handle| {
            let aside = handle.set_aside().into_iter().next();
            let aside = aside.map(|(region, reason)| format!("region {region}: {reason}"));
            let problem = handle.failure().map(|failure| failure.to_string()).or(aside)?;
            Some(format!("store {}: {problem}", handle.store_id()))
        })
    }

    /// Waits until all stores have applied the same, as far as `done` says.
    pub fn wait_until(&self, mut done: impl FnMut(&Self) -> bool) -> bool {
        let start = Instant::now();
        while !done(self) {
            if start.elapsed() > PATIENCE || self.failure().is_some() {
                return false;
            }
            std::thread::sleep(5 * PAUSE);
        }
        true
    }

    /// Stops all stores.
    pub fn shutdown(mut self) {
        for store in &mut self.stores {
            self.network.disconnect(store.handle().store_id());
            store.shutdown();
        }
    }
}

/// One error line with the row and the phase.
pub fn failed(regions: u64, phase: &str, problem: &dyn std::fmt::Display) -> StressError {
    StressError::Store(format!("{regions} regions: {phase}: {problem}"))
}

fn config(options: &Options, ctx: &Context) -> StoreConfig {
    let mut config = ctx.config.clone();
    config.pollers = options.pollers_for(ctx.machine.cores) as usize;
    config.apply_pollers = options.apply_pollers as usize;
    config.log_writers = Some(options.log_writers() as usize);
    config.sync = options.sync();
    config.raft.seed = ctx.seed;
    config
}

fn with_log(builder: StoreBuilder, options: &Options, ctx: &Context, id: u64) -> StoreBuilder {
    match (&options.log, &ctx.data_dir) {
        (LogKind::RaftEngine, Some(dir)) => builder.data_dir(dir.join(format!("store-{id}"))),
        _ => builder.log_store(Arc::new(MemoryLogStore::new())),
    }
}

/// Region `region` of `regions`, which tile the key space, with a peer on every store.
fn describe(region: u64, regions: u64, stores: u64) -> RegionDescription {
    let bound = |number: u64| match number {
        0 => Bytes::new(),
        last if last == regions => Bytes::new(),
        inner => Bytes::copy_from_slice(&inner.to_be_bytes()),
    };
    RegionDescription::new(
        RegionId::new(region),
        bound(region - 1),
        bound(region),
        (1..=stores).map(|store| Peer {
            id: PeerId::new(region * 16 + store),
            store: StoreId::new(store),
            role: PeerRole::Voter,
        }),
    )
}
