//! What happens to regions, told to observers as it happens.

use region::{Index, PeerId, RegionDescription, RegionId, Role, StoreId, Term};
use serde::{Deserialize, Serialize};
use std::cell::Cell;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::Arc;

/// How a peer came to this store.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CreatedBy {
    /// The user, with [`bootstrap`](crate::StoreHandle::bootstrap).
    Bootstrap,
    /// A message of its region's leader, after a change of peers.
    Leader,
    /// The split of its parent.
    Split,
}

impl CreatedBy {
    pub(crate) fn name(self) -> &'static str {
        match self {
            CreatedBy::Bootstrap => "bootstrap",
            CreatedBy::Leader => "leader",
            CreatedBy::Split => "split",
        }
    }
}

/// What happened to a region's peer on a store.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum RegionEvent {
    /// A peer began here. Regions that a start brings back are not told;
    /// [`regions`](crate::StoreHandle::regions) lists them.
    Created {
        /// Its id.
        peer: PeerId,
        /// What brought it.
        by: CreatedBy,
    },
    /// Its role, its term, or who leads has changed.
    RoleChanged {
        /// What it is now.
        role: Role,
        /// Its term.
        term: Term,
        /// Who leads, as far as it knows.
        leader: Option<PeerId>,
    },
    /// The region was split, and its contents here are divided.
    Split {
        /// What became of it: first the region itself, then the new ones.
        parts: Vec<RegionDescription>,
    },
    /// The region has other peers, or peers with other roles.
    PeersChanged {
        /// Before.
        before: Arc<RegionDescription>,
        /// From now on.
        after: Arc<RegionDescription>,
    },
    /// A transfer of leadership that this peer, as the leader, had begun came to its end.
    LeaderTransferred {
        /// Who was to lead.
        to: PeerId,
        /// Whether it does.
        done: bool,
    },
    /// A peer elsewhere has received a snapshot of this one.
    SnapshotSent {
        /// Which.
        to: PeerId,
        /// The last entry that is in it.
        index: Index,
    },
    /// The contents here gave way to those of a snapshot.
    SnapshotInstalled {
        /// The last entry that is in it.
        index: Index,
    },
    /// The log was shortened.
    LogCompacted {
        /// The last entry that is gone.
        index: Index,
    },
    /// The peer has left its region and is gone with its contents.
    Destroyed {
        /// Its id.
        peer: PeerId,
    },
    /// The region does nothing here any more: it is damaged, or its code panicked.
    SetAside {
        /// Why.
        reason: String,
    },
}

/// Looks on while regions live.
///
/// # Contract
/// * Called on the thread on which the event happens, a poller's for instance: it must be quick and must
///   not wait, least of all for an answer of the store. Whoever has more to do hands the event on, through
///   a queue with a bound.
/// * Events of one region come one after the other where one thread makes them; those of pollers, apply
///   threads and the thread of snapshots may overtake each other. What is described is a fact by then, and
///   [`region`](crate::StoreHandle::region) may tell of it a little later.
/// * What was not durable before a crash happens again, and is told again.
/// * A panic is caught, logged, and does no harm.
pub trait Observer: Send + Sync + 'static {
    /// This has happened to the peer of this region on this store.
    fn observe(&self, store: StoreId, region: RegionId, event: &RegionEvent);
}

thread_local! {
    /// Whether an observer is told something on this thread.
    static OBSERVING: Cell<bool> = const { Cell::new(false) };
}

/// Whether this is called from an observer, which must not wait for anything of the store.
pub(crate) fn is_observing() -> bool {
    OBSERVING.get()
}

/// The observers of a store.
#[derive(Default)]
pub(crate) struct Observers {
    store: StoreId,
    all: Vec<Arc<dyn Observer>>,
}

impl Observers {
    pub(crate) fn new(store: StoreId, all: Vec<Arc<dyn Observer>>) -> Self {
        Self { store, all }
    }

    /// Tells all of them; `event` is made only if there are any.
    pub(crate) fn tell(&self, region: RegionId, event: impl FnOnce() -> RegionEvent) {
        if self.all.is_empty() {
            return;
        }
        let event = event();
        let outer = OBSERVING.replace(true);
        for observer in &self.all {
            let told = catch_unwind(AssertUnwindSafe(|| {
                observer.observe(self.store, region, &event);
            }));
            if told.is_err() {
                tracing::error!(%region, ?event, "an observer panicked");
            }
        }
        OBSERVING.set(outer);
    }
}
