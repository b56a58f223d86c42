//! Stores in this process, for tests.

#![allow(dead_code, unreachable_pub, reason = "each test file uses a part of it")]

pub mod killing;
pub mod process;

use bytes::Bytes;
use prometheus::TextEncoder;
use raftstore::{
    AdminRequest, Answer, DrivenStore, InProcessTransport, Index, LogStore, MapCommand,
    MemoryLogStore, NewRegion, OrderedMap, Peer, PeerId, PeerRole, RegionDescription, RegionId,
    Registry, Role, SplitRequest, StateMachine, Store, StoreConfig, StoreHandle, StoreId,
};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Long enough for a machine under load; nothing waits for it unless something is broken.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Waits until the condition holds.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < DEADLINE, "not within {DEADLINE:?}: {what}");
        std::thread::park_timeout(Duration::from_millis(1));
    }
}

/// Short ticks, so that elections are quick, and few pollers.
pub fn config() -> StoreConfig {
    let mut config = StoreConfig { pollers: 2, ..StoreConfig::default() };
    config.raft.tick_interval = Duration::from_millis(20);
    config
}

/// Region `id` of `count` regions that tile the key space, with peers on stores 1 to 3.
pub fn region(id: u64, count: u64) -> RegionDescription {
    let bound = |number: u64| match number {
        0 => Bytes::new(),
        last if last == count => Bytes::new(),
        inner => Bytes::from(format!("{inner:04}")),
    };
    let voter = |store| Peer {
        id: PeerId::new(10 * id + store),
        store: StoreId::new(store),
        role: PeerRole::Voter,
    };
    RegionDescription::new(RegionId::new(id), bound(id - 1), bound(id), (1..=3).map(voter))
}

/// A region with voters: `(peer, store)`.
pub fn described(
    id: u64,
    start: &'static str,
    end: &'static str,
    peers: &[(u64, u64)],
) -> RegionDescription {
    let voter = |(peer, store): &(u64, u64)| Peer::voter(PeerId::new(*peer), StoreId::new(*store));
    RegionDescription::new(RegionId::new(id), start, end, peers.iter().map(voter))
}

/// A split at one key.
pub fn split_at(key: &'static str, id: u64, peers: &[u64]) -> AdminRequest {
    let peers = peers.iter().map(|peer| PeerId::new(*peer)).collect();
    AdminRequest::split(SplitRequest {
        keys: vec![key.into()],
        regions: vec![NewRegion { id: RegionId::new(id), peers }],
        parent_is_right: false,
    })
}

/// Asks a store to stand for election until it leads.
pub fn lead(handle: &StoreHandle, id: u64) {
    let region = RegionId::new(id);
    eventually("it leads", || {
        handle.campaign(region);
        std::thread::park_timeout(Duration::from_millis(20));
        handle.region_status(region).is_some_and(|status| status.role == Role::Leader)
    });
}

/// Puts a key at the leader.
pub fn put(handle: &StoreHandle, id: u64, key: &'static str) {
    let command = MapCommand::put(key, "value").encode();
    handle.propose(RegionId::new(id), command).expect("it leads");
}

pub fn regions(count: u64) -> Vec<RegionDescription> {
    (1..=count).map(|id| region(id, count)).collect()
}

/// A key in the range that [`region`] gives a region.
pub fn key_in(region: RegionId, name: impl std::fmt::Display) -> String {
    format!("{:04}/{name}", region.get() - 1)
}

/// Within an implementation of `StateMachine`: these methods are those of a field.
#[macro_export]
macro_rules! passes_on {
    ($field:ident: $($method:ident),+) => { $($crate::passes_on!(@$method $field);)+ };
    (@apply $field:ident) => {
        fn apply(
            &self,
            batch: &mut [raftstore::RegionCommands],
        ) -> Result<(), raftstore::StateMachineError> {
            self.$field.apply(batch)
        }
    };
    (@applied_state $field:ident) => {
        fn applied_state(
            &self,
            region: raftstore::RegionId,
        ) -> Result<Option<raftstore::AppliedState>, raftstore::StateMachineError> {
            self.$field.applied_state(region)
        }
    };
    (@durable_index $field:ident) => {
        fn durable_index(&self, region: raftstore::RegionId) -> raftstore::Index {
            self.$field.durable_index(region)
        }
    };
    (@split $field:ident) => {
        fn split(&self, split: &raftstore::RegionSplit) -> Result<(), raftstore::StateMachineError> {
            self.$field.split(split)
        }
    };
    (@snapshot $field:ident) => {
        fn snapshot(
            &self,
            region: raftstore::RegionId,
        ) -> Result<Box<dyn raftstore::SnapshotSource>, raftstore::StateMachineError> {
            self.$field.snapshot(region)
        }
    };
    (@install $field:ident) => {
        fn install(
            &self,
            snapshot: &mut dyn raftstore::SnapshotSource,
        ) -> Result<(), raftstore::InstallError> {
            self.$field.install(snapshot)
        }
    };
    (@destroy $field:ident) => {
        fn destroy(&self, region: raftstore::RegionId) -> Result<(), raftstore::StateMachineError> {
            self.$field.destroy(region)
        }
    };
    (@flush $field:ident) => {
        fn flush(&self) -> Result<(), raftstore::StateMachineError> {
            self.$field.flush()
        }
    };
}

/// What tests ask of a state machine that takes `MapCommand`s.
pub trait TestMap: StateMachine {
    fn value(&self, region: RegionId, key: &[u8]) -> Option<Bytes>;

    /// What has been applied, and a hash of the contents.
    fn state(&self, region: RegionId) -> (Index, u64);
}

impl TestMap for OrderedMap {
    fn value(&self, region: RegionId, key: &[u8]) -> Option<Bytes> {
        self.get(region, key)
    }

    fn state(&self, region: RegionId) -> (Index, u64) {
        self.fingerprint(region)
    }
}

#[cfg(feature = "fjall")]
impl TestMap for raftstore::FjallMap {
    fn value(&self, region: RegionId, key: &[u8]) -> Option<Bytes> {
        self.get(region, key).expect("readable")
    }

    fn state(&self, region: RegionId) -> (Index, u64) {
        use std::hash::{DefaultHasher, Hash, Hasher};
        let Some(applied) = self.applied_state(region).expect("readable") else {
            return (Index::default(), 0);
        };
        let pairs = self.scan(region, b"", usize::MAX).expect("readable");
        let mut hasher = DefaultHasher::new();
        pairs.hash(&mut hasher);
        (applied.index, hasher.finish())
    }
}

/// Copies a directory with all in it.
pub fn copy_directory(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("created");
    for entry in std::fs::read_dir(from).expect("readable") {
        let entry = entry.expect("readable");
        let to = to.join(entry.file_name());
        match entry.file_type().expect("readable").is_dir() {
            true => copy_directory(&entry.path(), &to),
            false => drop(std::fs::copy(entry.path(), to).expect("copied")),
        }
    }
}

/// Three stores with a map each.
pub struct Cluster<M = OrderedMap> {
    pub network: InProcessTransport,
    pub stores: Vec<Store>,
    pub maps: Vec<Arc<M>>,
}

impl Cluster {
    /// With logs in memory.
    pub fn in_memory(config: &StoreConfig) -> Self {
        Self::build(
            config,
            |_| OrderedMap::new(),
            |builder, _| builder.log_store(Arc::new(MemoryLogStore::new())),
        )
    }

    /// With logs below this directory.
    pub fn on_disk(config: &StoreConfig, dir: &Path) -> Self {
        Self::with_logs_on_disk(3, config, dir)
    }

    /// So many stores with logs below this directory.
    pub fn with_logs_on_disk(stores: u64, config: &StoreConfig, dir: &Path) -> Self {
        Self::build_of(
            stores,
            config,
            |_| OrderedMap::new(),
            |builder, id| builder.data_dir(dir.join(format!("store-{id}"))),
        )
    }

    /// With these log stores.
    pub fn with_logs(config: &StoreConfig, logs: &[Arc<dyn LogStore>]) -> Self {
        Self::build(
            config,
            |_| OrderedMap::new(),
            |builder, id| builder.log_store(logs[id as usize - 1].clone()),
        )
    }
}

#[cfg(feature = "fjall")]
impl Cluster<raftstore::FjallMap> {
    /// So many stores with logs and maps below this directory. The maps are synced often, so that logs can be
    /// cut.
    pub fn with_maps_on_disk(stores: u64, config: &StoreConfig, dir: &Path) -> Self {
        let sync_interval = Duration::from_millis(20);
        let settings = raftstore::FjallConfig { sync_interval, ..Default::default() };
        let store_dir = |id: u64| dir.join(format!("store-{id}"));
        Self::build_of(
            stores,
            config,
            |id| raftstore::FjallMap::open(store_dir(id).join("map"), &settings).expect("opens"),
            |builder, id| builder.data_dir(store_dir(id)),
        )
    }
}

impl<M: TestMap> Cluster<M> {
    pub fn build(
        config: &StoreConfig,
        new_map: impl Fn(u64) -> M,
        with_log: impl Fn(raftstore::StoreBuilder, u64) -> raftstore::StoreBuilder,
    ) -> Self {
        Self::build_of(3, config, new_map, with_log)
    }

    pub fn build_of(
        stores: u64,
        config: &StoreConfig,
        new_map: impl Fn(u64) -> M,
        with_log: impl Fn(raftstore::StoreBuilder, u64) -> raftstore::StoreBuilder,
    ) -> Self {
        let network = InProcessTransport::new();
        let mut cluster = Self { network: network.clone(), stores: Vec::new(), maps: Vec::new() };
        for id in 1..=stores {
            let map = Arc::new(new_map(id));
            let builder = Store::builder(StoreId::new(id))
                .config(config.clone())
                .state_machine(map.clone() as Arc<dyn StateMachine>)
                .transport(network.clone());
            let store = with_log(builder, id).start().expect("the store starts");
            network.connect(store.handle());
            cluster.stores.push(store);
            cluster.maps.push(map);
        }
        cluster
    }

    pub fn handle(&self, store: usize) -> StoreHandle {
        self.stores[store].handle()
    }

    pub fn bootstrap(&self, regions: &[RegionDescription]) {
        for store in &self.stores {
            store.handle().bootstrap(regions).expect("sound regions");
        }
    }

    /// Creates `count` regions and has the first store lead them all.
    pub fn lead_from_the_first(&self, count: u64) {
        self.bootstrap(&regions(count));
        let first = self.handle(0);
        eventually("the first store leads", || {
            for id in 1..=count {
                first.campaign(RegionId::new(id));
            }
            eventually_some(|| first.leaders() == count, Duration::from_millis(500))
        });
    }

    /// Proposes to whoever leads until it is answered with success.
    pub fn write(&self, region: RegionId, payload: &Bytes) -> Answer {
        let start = Instant::now();
        let mut store = 0;
        loop {
            let answer = self.handle(store).propose(region, payload.clone());
            match &answer {
                Err(error) if error.is_retryable() && start.elapsed() < DEADLINE => {
                    store = (store + 1) % self.stores.len();
                    std::thread::park_timeout(Duration::from_millis(1));
                }
                _ => return answer,
            }
        }
    }

    /// Waits until all stores hold the same in all regions.
    pub fn converge(&self, count: u64) {
        eventually("all stores hold the same", || {
            (1..=count).map(RegionId::new).all(|region| {
                let first = self.maps[0].state(region);
                self.maps.iter().all(|map| map.state(region) == first)
            })
        });
    }

    pub fn shutdown(mut self) {
        self.stores.iter_mut().for_each(Store::shutdown);
    }
}

fn eventually_some(mut condition: impl FnMut() -> bool, within: Duration) -> bool {
    let start = Instant::now();
    while start.elapsed() < within {
        if condition() {
            return true;
        }
        std::thread::park_timeout(Duration::from_millis(1));
    }
    false
}

/// Runs every thread that has work, store by store, until none has.
pub fn run_until_idle(stores: &mut [DrivenStore]) {
    for _ in 0..10_000 {
        let mut ran = 0;
        for store in &mut *stores {
            for thread in store.runnable() {
                store.run(thread);
                ran += 1;
            }
        }
        if ran == 0 {
            return;
        }
    }
    panic!("it does not come to rest");
}

/// The sum of a metric's lines with this text in them.
pub fn counted(registry: &Registry, name: &str, label: &str) -> f64 {
    let text = TextEncoder::new().encode_to_string(&registry.gather()).expect("encodable");
    let lines = text.lines().filter(|line| line.starts_with(name) && line.contains(label));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}
