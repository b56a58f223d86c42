//! What can go wrong with a store as a whole. For proposals see [`ProposeError`](region::ProposeError).

use crate::log_store::LogStoreError;
use crate::state_machine::StateMachineError;
use region::{RegionId, StoreId};
use std::path::PathBuf;

/// Why a store did not start, or a region was not created.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A setting is wrong; the text names it.
    #[error("configuration: {0}")]
    Config(String),
    /// The builder was not told something it needs; the text names everything.
    #[error("the store's builder lacks {0}")]
    Incomplete(String),
    /// The log store cannot be opened, read or written.
    #[error(transparent)]
    LogStore(#[from] LogStoreError),
    /// The directory of received snapshots cannot be created. Make room for it, or take away what is in its place.
    #[error("cannot open the snapshots in {}: {reason}", .path.display())]
    Snapshots {
        /// The directory.
        path: PathBuf,
        /// What the operating system says.
        reason: String,
    },
    /// The log store belongs to somebody else.
    #[error("the log store{} belongs to store {found_store} of cluster {found_cluster}, not to store {store} of cluster {cluster}", show_place(.place))]
    WrongStore {
        /// The data directory, where there is one.
        place: Option<PathBuf>,
        /// This store.
        store: StoreId,
        /// This cluster.
        cluster: u64,
        /// Whose it is.
        found_store: StoreId,
        /// Whose it is.
        found_cluster: u64,
    },
    /// A region to be created is unsound, or contradicts one that exists.
    #[error("region {region_id}: {reason}")]
    Region {
        /// The region.
        region_id: RegionId,
        /// What is wrong with it.
        reason: String,
    },
    /// Regions are to be created by an [`Observer`](crate::Observer), on the thread that tells it something: that
    /// would wait for itself. Let another thread do it.
    #[error(
        "an observer must not create regions where it is told something: let another thread do it"
    )]
    InObserver,
    /// The operating system gives no thread.
    #[error("cannot start the store's threads: {0}")]
    Threads(String),
    /// The metrics cannot be registered: a registry takes each store once.
    #[error(
        "cannot register the metrics of store {store} (is it in this registry already?): {cause}"
    )]
    Metrics {
        /// The store.
        store: StoreId,
        /// What the registry says.
        cause: prometheus::Error,
    },
    /// The store has stopped.
    #[error("the store has stopped")]
    Stopped,
}

fn show_place(place: &Option<PathBuf>) -> String {
    place.as_ref().map(|place| format!(" in {}", place.display())).unwrap_or_default()
}

/// Why a running store stopped by itself: it could not make something durable, so it cannot promise
/// anything any more. Restart it once the cause is gone.
#[derive(Debug, thiserror::Error)]
pub enum StoreFailure {
    /// The log could not be written or synced.
    #[error(transparent)]
    LogStore(#[from] LogStoreError),
    /// The state machine could not apply.
    #[error("the state machine failed: {0}")]
    StateMachine(#[from] StateMachineError),
    /// A snapshot that a region has taken could not be given its name, so that the next start would not find it.
    #[error("snapshot {name} cannot be kept: {reason}")]
    Snapshot {
        /// The name of its file.
        name: String,
        /// What failed.
        reason: String,
    },
    /// A thread of the store panicked.
    #[error("{0} panicked")]
    Panicked(&'static str),
}
