//! Whether the store may still promise anything.

use crate::error::StoreFailure;
use parking_lot::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

/// Set once, by the first failure: from then on nothing is written, sent or acknowledged.
#[derive(Debug, Default)]
pub(crate) struct Health {
    failed: AtomicBool,
    cause: Mutex<Option<Arc<StoreFailure>>>,
}

impl Health {
    pub(crate) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    /// The first failure is kept.
    pub(crate) fn fail(&self, failure: StoreFailure) {
        let mut cause = self.cause.lock();
        if cause.is_none() {
            tracing::error!(%failure, "the store stops");
            *cause = Some(Arc::new(failure));
            self.failed.store(true, Ordering::Release);
        }
    }

    pub(crate) fn cause(&self) -> Option<Arc<StoreFailure>> {
        self.cause.lock().clone()
    }
}
