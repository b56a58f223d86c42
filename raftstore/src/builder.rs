//! A store, before it runs.

use crate::clock::{Clock, SystemClock};
use crate::config::StoreConfig;
use crate::driven::DrivenStore;
use crate::error::StartError;
use crate::events::{Observer, Observers};
use crate::log_store::{LogBatch, LogStore, LogStoreError, RaftEngineLogStore, Stored};
use crate::metrics::Metrics;
use crate::parts::{Parts, Seams};
use crate::placement::Placement;
use crate::snapshot::{DirectorySnapshotFiles, GuardedFiles, MemorySnapshotFiles, SnapshotFiles};
use crate::state_machine::StateMachine;
use crate::store::Store;
use crate::store_mark;
use crate::transport::Transport;
use prometheus::Registry;
use region::{StoreId, StoreIdent};
use std::path::PathBuf;
use std::sync::Arc;

/// Builds a [`Store`].
#[must_use]
pub struct StoreBuilder {
    store_id: StoreId,
    config: StoreConfig,
    data_dir: Option<PathBuf>,
    log_store: Option<Arc<dyn LogStore>>,
    state_machine: Option<Arc<dyn StateMachine>>,
    transport: Option<Arc<dyn Transport>>,
    snapshot_files: Option<Arc<dyn SnapshotFiles>>,
    clock: Arc<dyn Clock>,
    placement: Option<Arc<dyn Placement>>,
    observers: Vec<Arc<dyn Observer>>,
    registry: Registry,
}

impl StoreBuilder {
    pub(crate) fn new(store_id: StoreId) -> Self {
        Self {
            store_id,
            config: StoreConfig::default(),
            data_dir: None,
            log_store: None,
            state_machine: None,
            transport: None,
            snapshot_files: None,
            clock: Arc::new(SystemClock::default()),
            placement: None,
            observers: Vec::new(),
            registry: Registry::new(),
        }
    }

    /// The settings; defaults otherwise.
    pub fn config(mut self, config: StoreConfig) -> Self {
        self.config = config;
        self
    }

    /// Keeps the log on disk, in `raft-log` below this directory, and received snapshots in `snapshots`.
    pub fn data_dir(mut self, path: impl Into<PathBuf>) -> Self {
        self.data_dir = Some(path.into());
        self
    }

    /// Keeps the log in this log store.
    pub fn log_store(mut self, log_store: Arc<dyn LogStore>) -> Self {
        self.log_store = Some(log_store);
        self
    }

    /// What carries out the commands.
    pub fn state_machine(mut self, state_machine: Arc<dyn StateMachine>) -> Self {
        self.state_machine = Some(state_machine);
        self
    }

    /// What carries messages to the other stores.
    pub fn transport(mut self, transport: impl Transport) -> Self {
        self.transport = Some(Arc::new(transport));
        self
    }

    /// Where received snapshots wait until they are installed. Otherwise in memory with a
    /// [`log_store`](Self::log_store) of one's own: then a crash between a snapshot's arrival and its
    /// installation costs the peer, which is set aside.
    pub fn snapshot_files(mut self, files: Arc<dyn SnapshotFiles>) -> Self {
        self.snapshot_files = Some(files);
        self
    }

    /// Where the metrics go; a registry of the store's own otherwise. Several stores may share one.
    pub fn registry(mut self, registry: Registry) -> Self {
        self.registry = registry;
        self
    }

    /// Looks on at what happens to the store's regions; there may be several.
    pub fn observer(mut self, observer: Arc<dyn Observer>) -> Self {
        self.observers.push(observer);
        self
    }

    /// Who hands out ids, hears of the regions and says what should become of them. Otherwise nobody: the
    /// store then does only what its handle is asked.
    pub fn placement(mut self, placement: Arc<dyn Placement>) -> Self {
        self.placement = Some(placement);
        self
    }

    /// The clock; the machine's otherwise.
    pub fn clock(mut self, clock: impl Clock) -> Self {
        self.clock = Arc::new(clock);
        self
    }

    /// Opens the log, brings back the regions in it, and starts the threads.
    ///
    /// # Errors
    /// When something is missing or wrong; nothing is left running.
    pub fn start(self) -> Result<Store, StartError> {
        let (parts, stored, registry) = self.prepare()?;
        let metrics = parts.metrics.clone();
        let assembled = Store::assemble(parts, stored, &registry);
        if assembled.is_err() {
            metrics.unregister(&registry);
        }
        assembled
    }

    /// As [`start`](Self::start), but without threads: the caller says who runs when, and what time it
    /// is.
    ///
    /// # Errors
    /// When something is missing or wrong.
    pub fn start_driven(self) -> Result<DrivenStore, StartError> {
        let (parts, stored, registry) = self.prepare()?;
        let metrics = parts.metrics.clone();
        let assembled = DrivenStore::assemble(parts, stored, &registry);
        if assembled.is_err() {
            metrics.unregister(&registry);
        }
        assembled
    }

    /// Everything but what runs.
    fn prepare(self) -> Result<(Parts, Stored, Registry), StartError> {
        self.config.validate()?;
        if self.store_id.get() == 0 {
            return Err(StartError::Config("the store id is 0, allowed is 1 and more".to_owned()));
        }
        let (Some(state_machine), Some(transport)) =
            (self.state_machine.clone(), self.transport.clone())
        else {
            return Err(self.incomplete());
        };
        let log_store = self.open_log_store()?;
        let stored = log_store.load()?;
        self.check_ident(&stored, &*log_store)?;
        if let Some(path) = &self.data_dir {
            store_mark::leave(path, self.ident())?;
        }
        let snapshot_files = Arc::new(GuardedFiles(self.open_snapshot_files()?));
        let metrics = Metrics::register(&self.registry, self.store_id)
            .map_err(|cause| StartError::Metrics { store: self.store_id, cause })?;
        let metrics = Arc::new(metrics);
        let (clock, placement) = (self.clock, self.placement);
        let observers = Arc::new(Observers::new(self.store_id, self.observers));
        let seams = Seams {
            log_store,
            state_machine,
            transport,
            snapshot_files,
            clock,
            placement,
            observers,
        };
        let parts = Parts::new(self.store_id, self.config, seams, metrics);
        Ok((parts, stored, self.registry))
    }

    fn ident(&self) -> StoreIdent {
        StoreIdent { cluster_id: self.config.cluster_id, store_id: self.store_id }
    }

    fn incomplete(&self) -> StartError {
        let parts = [
            (self.state_machine.is_none(), "a state_machine"),
            (self.transport.is_none(), "a transport"),
            (self.log_store.is_none() && self.data_dir.is_none(), "a data_dir or a log_store"),
        ];
        let missing: Vec<_> = parts.iter().filter(|part| part.0).map(|part| part.1).collect();
        StartError::Incomplete(missing.join(", "))
    }

    fn open_log_store(&self) -> Result<Arc<dyn LogStore>, StartError> {
        match (&self.log_store, &self.data_dir) {
            (Some(log_store), None) => Ok(log_store.clone()),
            (None, Some(path)) => {
                let path = path.join("raft-log");
                Ok(Arc::new(RaftEngineLogStore::open(&path, &self.config.log)?))
            }
            (None, None) => Err(self.incomplete()),
            (Some(_), Some(_)) => {
                let both = "both a log_store and a data_dir were given".to_owned();
                Err(StartError::Config(both))
            }
        }
    }

    fn open_snapshot_files(&self) -> Result<Arc<dyn SnapshotFiles>, StartError> {
        match (&self.snapshot_files, &self.data_dir) {
            (Some(files), _) => Ok(files.clone()),
            (None, Some(path)) => {
                let path = path.join("snapshots");
                let files = DirectorySnapshotFiles::new(&path).map_err(|error| {
                    let reason = error.to_string();
                    StartError::Snapshots { path: path.clone(), reason }
                })?;
                Ok(Arc::new(files))
            }
            (None, None) => Ok(Arc::new(MemorySnapshotFiles::default())),
        }
    }

    /// The first start signs the log; later ones compare.
    fn check_ident(&self, stored: &Stored, log_store: &dyn LogStore) -> Result<(), StartError> {
        let ours = self.ident();
        if let Some(path) = &self.data_dir {
            store_mark::check(path, stored.ident)?;
        }
        match stored.ident {
            Some(found) if found != ours => Err(StartError::WrongStore {
                place: self.data_dir.clone(),
                store: ours.store_id,
                cluster: ours.cluster_id,
                found_store: found.store_id,
                found_cluster: found.cluster_id,
            }),
            Some(_) => Ok(()),
            None if !stored.regions.is_empty() || !stored.damaged.is_empty() => {
                // The identity is written before any region: a part of the log is gone, and votes may
                // have gone with it.
                let regions = stored.regions.len() + stored.damaged.len();
                let reason = format!("it holds {regions} regions, and its identity is missing");
                Err(LogStoreError::Read(reason).into())
            }
            None => {
                let mut batch = LogBatch { ident: Some(ours), ..LogBatch::default() };
                log_store.write(&mut batch, true)?;
                Ok(())
            }
        }
    }
}
