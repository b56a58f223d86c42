//! When what was applied becomes durable, and what is known to be.
//!
//! Nothing on the apply path syncs. A thread of its own does, once `sync_interval` has passed since the
//! first step that is not synced, or once `sync_bytes` were applied. While there is nothing to sync it
//! sleeps.
//!
//! Invariant: `durable` says no more than what was committed when a sync began that has succeeded. So the
//! indexes are taken before the sync, and an index is noted only after its batch is committed.

use crate::state_machine::StateMachineError;
use parking_lot::{Condvar, Mutex};
use region::{Index, RegionId};
use rustc_hash::FxHashMap;
use std::time::{Duration, Instant};

/// What is applied, and what of it is synced.
#[derive(Debug)]
pub(super) struct Syncing {
    state: Mutex<State>,
    wake: Condvar,
    /// Held while a sync is under way. Taken before `state`.
    one_at_a_time: Mutex<()>,
    sync_bytes: u64,
}

#[derive(Debug)]
struct State {
    /// Applied since the last sync began.
    unsynced: FxHashMap<RegionId, Index>,
    unsynced_bytes: u64,
    durable: FxHashMap<RegionId, Index>,
    /// Why nothing may be written any more.
    failed: Option<String>,
    stopped: bool,
}

impl Syncing {
    /// All of `durable` is synced already.
    pub(super) fn new(durable: FxHashMap<RegionId, Index>, sync_bytes: u64) -> Self {
        let state = State {
            unsynced: FxHashMap::default(),
            unsynced_bytes: 0,
            durable,
            failed: None,
            stopped: false,
        };
        let (state, one_at_a_time) = (Mutex::new(state), Mutex::default());
        Self { state, wake: Condvar::new(), one_at_a_time, sync_bytes }
    }

    /// Refuses once a sync has failed: what is on disk is unknown then.
    pub(super) fn check(&self) -> Result<(), StateMachineError> {
        match &self.state.lock().failed {
            Some(cause) => Err(StateMachineError(format!("an earlier sync failed: {cause}"))),
            None => Ok(()),
        }
    }

    /// Notes what has been committed, of so many bytes together.
    pub(super) fn note(&self, applied: impl Iterator<Item = (RegionId, Index)>, bytes: u64) {
        let mut state = self.state.lock();
        let was_idle = state.unsynced.is_empty();
        state.unsynced.extend(applied);
        let before = state.unsynced_bytes;
        state.unsynced_bytes += bytes;
        let filled = before < self.sync_bytes && state.unsynced_bytes >= self.sync_bytes;
        if was_idle || filled {
            self.wake.notify_all();
        }
    }

    pub(super) fn durable_index(&self, region: RegionId) -> Index {
        self.state.lock().durable.get(&region).copied().unwrap_or_default()
    }

    /// What is known of the region does not count any more. Nothing is applied to it meanwhile.
    pub(super) fn forget(&self, region: RegionId) {
        // A sync that has begun would bring its index back.
        let _none = self.one_at_a_time.lock();
        let mut state = self.state.lock();
        state.unsynced.remove(&region);
        state.durable.remove(&region);
    }

    /// Syncs everything that is committed, by `persist`.
    pub(super) fn sync(
        &self,
        persist: impl FnOnce() -> Result<(), StateMachineError>,
    ) -> Result<(), StateMachineError> {
        let _one = self.one_at_a_time.lock();
        let begun = {
            let mut state = self.state.lock();
            if let Some(cause) = &state.failed {
                return Err(StateMachineError(format!("an earlier sync failed: {cause}")));
            }
            state.unsynced_bytes = 0;
            std::mem::take(&mut state.unsynced)
        };
        let synced = persist();
        let mut state = self.state.lock();
        match synced {
            Ok(()) => {
                state.durable.extend(begun);
                Ok(())
            }
            Err(error) => {
                state.failed = Some(error.to_string());
                Err(error)
            }
        }
    }

    /// Ends [`run`](Self::run).
    pub(super) fn stop(&self) {
        self.state.lock().stopped = true;
        self.wake.notify_all();
    }

    /// The thread that syncs, until it is stopped or a sync fails.
    pub(super) fn run(
        &self,
        interval: Duration,
        persist: impl Fn() -> Result<(), StateMachineError>,
    ) {
        let _told = TellsPanic(self);
        while self.wait_for_work(interval) {
            if let Err(error) = self.sync(&persist) {
                // The next apply hears of it, and the store stops.
                tracing::error!(%error, "what was applied cannot be made durable");
                return;
            }
        }
    }

    /// Waits until there is something to sync and it is due. `false` means stop.
    fn wait_for_work(&self, interval: Duration) -> bool {
        let mut state = self.state.lock();
        while !state.stopped && state.unsynced.is_empty() {
            self.wake.wait(&mut state);
        }
        let due = Instant::now() + interval;
        while !state.stopped && state.unsynced_bytes < self.sync_bytes {
            if self.wake.wait_until(&mut state, due).timed_out() {
                break;
            }
        }
        !state.stopped
    }
}

/// Without its thread nothing would become durable any more, and the logs would grow for ever.
struct TellsPanic<'a>(&'a Syncing);

impl Drop for TellsPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.state.lock().failed.get_or_insert("the thread that syncs panicked".to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REGION: RegionId = RegionId::new(1);

    fn note(syncing: &Syncing, index: u64) {
        syncing.note([(REGION, Index::new(index))].into_iter(), 10);
    }

    #[test]
    fn what_is_applied_during_a_sync_is_not_durable_after_it() {
        let syncing = Syncing::new(FxHashMap::default(), 100);
        note(&syncing, 6);
        note(&syncing, 7);
        assert_eq!(syncing.durable_index(REGION), Index::new(0));
        let during = || {
            note(&syncing, 8);
            Ok(())
        };
        syncing.sync(during).expect("synced");
        assert_eq!(syncing.durable_index(REGION), Index::new(7));
        syncing.sync(|| Ok(())).expect("synced");
        assert_eq!(syncing.durable_index(REGION), Index::new(8));
        syncing.forget(REGION);
        syncing.sync(|| Ok(())).expect("synced");
        assert_eq!(syncing.durable_index(REGION), Index::new(0));
    }

    #[test]
    fn nothing_goes_on_after_a_failed_sync() {
        let syncing = Syncing::new(FxHashMap::default(), 100);
        note(&syncing, 6);
        syncing.sync(|| Ok(())).expect("synced");
        note(&syncing, 7);
        let full = || Err(StateMachineError("disk full".to_owned()));
        assert_eq!(syncing.sync(full).expect_err("it failed").to_string(), "disk full");
        assert_eq!(syncing.durable_index(REGION), Index::new(6));
        let again = syncing.sync(|| panic!("it must not sync once more")).expect_err("failed");
        assert_eq!(again.to_string(), "an earlier sync failed: disk full");
        assert_eq!(syncing.check().expect_err("failed").to_string(), again.to_string());
    }

    #[test]
    fn a_panic_of_the_thread_is_a_failed_sync() {
        let syncing = Syncing::new(FxHashMap::default(), 1);
        note(&syncing, 6);
        let run = || syncing.run(Duration::from_secs(60), || panic!("for the test"));
        std::thread::scope(|scope| scope.spawn(run).join()).expect_err("it panics");
        let error = syncing.check().expect_err("failed").to_string();
        assert_eq!(error, "an earlier sync failed: the thread that syncs panicked");
    }
}
