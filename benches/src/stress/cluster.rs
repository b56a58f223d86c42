//! The stores of one row: started, with their regions.

use std::sync::Arc;

use bytes::Bytes;
use raftstore::{
    Answer, InProcessTransport, MemoryLogStore, Peer, PeerId, PeerRole, ProposeError,
    RegionDescription, RegionId, Store, StoreBuilder, StoreConfig, StoreHandle, StoreId,
};

use super::error::StressError;
use super::ledger::{Ledger, Tally};
use super::options::{LogKind, Options};
use super::run::Context;
use super::subject::{failed, Outcome, Subject, Target, Whom};

/// Running stores that hold the same regions.
#[derive(Debug)]
pub struct Cluster {
    stores: Vec<Store>,
    ledgers: Vec<Arc<Ledger>>,
    network: InProcessTransport,
}

impl Subject for Cluster {
    type Target = Handles;

    fn start(options: &Options, regions: u64, ctx: &Context) -> Result<Self, StressError> {
        let network = InProcessTransport::new();
        let mut cluster =
            Self { stores: Vec::new(), ledgers: Vec::new(), network: network.clone() };
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

    fn campaign(&self, region: u64, store: usize) {
        self.stores[store].handle().campaign(RegionId::new(region));
    }

    fn leaders(&self) -> u64 {
        self.stores.iter().map(|store| store.handle().leaders()).sum()
    }

    fn leader_changes(&self) -> u64 {
        self.stores.iter().map(|store| store.handle().leader_changes()).sum()
    }

    fn target(&self) -> Handles {
        Handles(self.stores.iter().map(Store::handle).collect())
    }

    fn tallies(&self, region: u64) -> Vec<Tally> {
        self.ledgers.iter().map(|ledger| ledger.tally(region)).collect()
    }

    fn failure(&self) -> Option<String> {
        self.stores.iter().map(Store::handle).find_map(|handle| {
            let aside = handle.set_aside().into_iter().next();
            let aside = aside.map(|(region, reason)| format!("region {region}: {reason}"));
            let problem = handle.failure().map(|failure| failure.to_string()).or(aside)?;
            Some(format!("store {}: {problem}", handle.store_id()))
        })
    }

    fn shutdown(mut self) {
        for store in &mut self.stores {
            self.network.disconnect(store.handle().store_id());
            store.shutdown();
        }
    }
}

/// The handles of all stores, in order.
pub struct Handles(Vec<StoreHandle>);

impl Target for Handles {
    fn stores(&self) -> usize {
        self.0.len()
    }

    fn submit<F>(&self, store: usize, region: u64, write: Bytes, done: F)
    where
        F: FnOnce(Outcome) + Send + 'static,
    {
        let answered = move |answer| done(outcome(&answer));
        self.0[store].propose_with(RegionId::new(region), write, answered);
    }
}

fn outcome(answer: &Answer) -> Outcome {
    match answer {
        Ok(_) => Outcome::Applied,
        Err(ProposeError::Unknown { .. }) => Outcome::Unknown,
        Err(ProposeError::NotLeader { leader: Some(peer), .. }) => {
            Outcome::Again(Whom::Store((peer.store.get() - 1) as usize))
        }
        Err(ProposeError::NotLeader { leader: None, .. }) => Outcome::Again(Whom::Next),
        Err(error) if error.is_retryable() => Outcome::Again(Whom::Same),
        Err(_) => Outcome::Refused,
    }
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
