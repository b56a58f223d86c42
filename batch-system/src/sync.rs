//! The synchronisation primitives of this crate, in one place, so that a model checker can stand in
//! for them: parking_lot by default, loom or shuttle behind the features of the same names.
//!
//! All three are shaped alike: locks are not poisoned, and [`Condvar::wait`] consumes and returns the
//! lock's hold.

#[cfg(not(any(feature = "loom", feature = "shuttle")))]
mod imp {
    pub(crate) use parking_lot::{Mutex, MutexGuard, RwLock};
    pub(crate) use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
    pub(crate) use std::sync::Arc;
    pub(crate) use std::thread;

    #[derive(Default)]
    pub(crate) struct Condvar(parking_lot::Condvar);

    impl Condvar {
        pub(crate) fn new() -> Self {
            Self::default()
        }

        pub(crate) fn wait<'a, T>(&self, mut held: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
            self.0.wait(&mut held);
            held
        }

        pub(crate) fn wait_for<'a, T>(
            &self,
            mut held: MutexGuard<'a, T>,
            timeout: std::time::Duration,
        ) -> MutexGuard<'a, T> {
            self.0.wait_for(&mut held, timeout);
            held
        }

        pub(crate) fn notify_one(&self) {
            self.0.notify_one();
        }
    }
}

#[cfg(any(feature = "loom", feature = "shuttle"))]
mod imp {
    #[cfg(feature = "loom")]
    use loom as model;
    #[cfg(all(feature = "shuttle", not(feature = "loom")))]
    use shuttle as model;

    pub(crate) use model::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
    pub(crate) use model::sync::{MutexGuard, RwLockReadGuard, RwLockWriteGuard};
    // The real one: loom's cannot be the type of a `self`, and no hand-over here rests on its counts.
    pub(crate) use model::thread;
    pub(crate) use std::sync::Arc;

    pub(crate) struct Mutex<T>(model::sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(model::sync::Mutex::new(value))
        }

        pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
            self.0.lock().expect("no holder panics")
        }
    }

    pub(crate) struct RwLock<T>(model::sync::RwLock<T>);

    impl<T> RwLock<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(model::sync::RwLock::new(value))
        }

        pub(crate) fn read(&self) -> RwLockReadGuard<'_, T> {
            self.0.read().expect("no holder panics")
        }

        pub(crate) fn write(&self) -> RwLockWriteGuard<'_, T> {
            self.0.write().expect("no holder panics")
        }
    }

    pub(crate) struct Condvar(model::sync::Condvar);

    impl Condvar {
        pub(crate) fn new() -> Self {
            Self(model::sync::Condvar::new())
        }

        pub(crate) fn wait<'a, T>(&self, held: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
            self.0.wait(held).expect("no holder panics")
        }

        /// The models have no time: this never times out, so a wake-up that is lost shows as a deadlock.
        pub(crate) fn wait_for<'a, T>(
            &self,
            held: MutexGuard<'a, T>,
            timeout: std::time::Duration,
        ) -> MutexGuard<'a, T> {
            self.0.wait_timeout(held, timeout).expect("no holder panics").0
        }

        pub(crate) fn notify_one(&self) {
            self.0.notify_one();
        }
    }
}

pub(crate) use imp::*;
