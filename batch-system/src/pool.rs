//! The threads.

use crate::fsm::{Fsm, Handler};
use crate::poller::Poller;
use crate::router::{Router, Shared};
use crate::sync::{thread, Arc, Mutex};
use crate::timer::Time;
use crate::watch;
use std::fmt;
use std::time::Instant;

/// The bounds of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// How many pollers the pool can grow to.
    pub max_pollers: usize,
    /// FSMs a round.
    pub batch_size: usize,
    /// Messages of one FSM a round; what is left makes it hot, behind all others.
    pub message_budget: usize,
    /// Messages a mailbox holds before ordinary sends are refused.
    pub mailbox_capacity: usize,
    /// Messages a mailbox holds before even forced sends are refused.
    pub forced_capacity: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_pollers: 64,
            batch_size: 64,
            message_budget: 256,
            mailbox_capacity: 4096,
            forced_capacity: 16_384,
        }
    }
}

impl Limits {
    /// # Panics
    /// When a limit is zero, or the forced capacity is below the ordinary one.
    pub(crate) fn check(&self) {
        let Self { max_pollers, batch_size, message_budget, .. } = *self;
        assert!(max_pollers > 0 && batch_size > 0 && message_budget > 0, "zero in {self:?}");
        assert!(self.mailbox_capacity > 0, "zero in {self:?}");
        assert!(self.forced_capacity >= self.mailbox_capacity, "forced below ordinary in {self:?}");
    }
}

/// Why the number of pollers could not be changed.
#[derive(Debug)]
pub enum ResizeError {
    /// Fewer than one, or more than [`Limits::max_pollers`].
    OutOfRange {
        /// What was asked for.
        asked: usize,
        /// The most there may be.
        max: usize,
    },
    /// The operating system gives no thread.
    Spawn(std::io::Error),
    /// The pool was shut down.
    ShutDown,
}

impl fmt::Display for ResizeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ResizeError::OutOfRange { asked, max } => {
                write!(f, "{asked} pollers asked for, allowed are 1 to {max}")
            }
            ResizeError::Spawn(error) => write!(f, "cannot start a poller thread: {error}"),
            ResizeError::ShutDown => f.write_str("the pool was shut down"),
        }
    }
}

impl std::error::Error for ResizeError {}

/// A running pool. [`shutdown`](Pool::shutdown) ends it; dropping it does the same.
pub struct Pool<N: Fsm, C: Fsm> {
    router: Router<N, C>,
    name: String,
    threads: Mutex<Vec<thread::JoinHandle<()>>>,
    watch: Mutex<Option<thread::JoinHandle<()>>>,
    make_poller: MakePoller<N, C>,
}

/// Makes the poller with this number; what comes back starts its thread. In two steps, because the
/// first runs the user's closure, which may panic, and an inbox must not be open without its poller.
type MakePoller<N, C> = Box<dyn Fn(&str, usize, &Router<N, C>) -> StartPoller + Send + Sync>;

type StartPoller = Box<dyn FnOnce() -> std::io::Result<thread::JoinHandle<()>>>;

impl<N: Fsm, C: Fsm> Pool<N, C> {
    /// Starts `pollers` threads, named `{name}-{number}`, and the watch thread `{name}-watch`. Each
    /// poller gets a handler of its own from `make_handler`.
    ///
    /// # Errors
    /// When `pollers` is out of range or a thread cannot be started; then none is left running.
    ///
    /// # Panics
    /// When a limit is zero, or the forced capacity is below the ordinary one.
    pub fn start<H: Handler<N, C>>(
        name: &str,
        pollers: usize,
        limits: Limits,
        control: Box<C>,
        make_handler: impl Fn(usize, &Router<N, C>) -> H + Send + Sync + 'static,
    ) -> Result<Self, ResizeError> {
        limits.check();
        check_range(pollers, limits.max_pollers)?;
        let shared = Shared::new(limits, pollers, control, Time::Real(Instant::now()));
        let router = Router { shared: Arc::new(shared) };
        let pool = Self {
            router,
            name: name.to_owned(),
            threads: Mutex::new(Vec::new()),
            watch: Mutex::new(None),
            make_poller: Box::new(move |name, index, router| {
                let poller = Poller::new(index, router, make_handler(index, router));
                let name = format!("{name}-{index}");
                Box::new(move || spawn(name, move || poller.run()))
            }),
        };
        for index in 0..pollers {
            let started = (pool.make_poller)(name, index, &pool.router)();
            pool.threads.lock().push(started.map_err(ResizeError::Spawn)?);
        }
        let router = pool.router.clone();
        let watch = spawn(format!("{name}-watch"), move || watch::run(&router));
        *pool.watch.lock() = Some(watch.map_err(ResizeError::Spawn)?);
        Ok(pool)
    }

    /// The router.
    pub fn router(&self) -> &Router<N, C> {
        &self.router
    }

    /// How many pollers run.
    pub fn pollers(&self) -> usize {
        self.threads.lock().len()
    }

    /// Changes the number of pollers while the pool runs. Returns when the threads asked for are
    /// started and those too many have ended; nothing is lost meanwhile.
    ///
    /// # Errors
    /// When the number is out of range, the pool was shut down, or a thread cannot be started; then as
    /// many run as could be.
    ///
    /// Must not be called from a handler: it waits for pollers.
    pub fn resize(&self, pollers: usize) -> Result<(), ResizeError> {
        check_range(pollers, self.router.shared.limits.max_pollers)?;
        let mut threads = self.threads.lock();
        if self.router.shared.is_closing() {
            return Err(ResizeError::ShutDown);
        }
        let scheduler = &self.router.shared.scheduler;
        if pollers < threads.len() {
            scheduler.set_active(pollers);
            for thread in threads.drain(pollers..) {
                thread.join().expect("a poller catches the panics of its FSMs");
            }
            return Ok(());
        }
        for index in threads.len()..pollers {
            let start = (self.make_poller)(&self.name, index, &self.router);
            scheduler.set_active(index + 1);
            match start() {
                Ok(thread) => threads.push(thread),
                Err(error) => {
                    scheduler.set_active(index);
                    scheduler.hand_on(index);
                    return Err(ResizeError::Spawn(error));
                }
            }
        }
        Ok(())
    }

    /// Begins to end the pool, and returns at once: nothing can be registered any more, and every mailbox is closed.
    /// [`shutdown`](Pool::shutdown) waits for the rest.
    pub fn close(&self) {
        self.router.shared.close_all();
    }

    /// Ends the pool: nothing can be registered any more, every mailbox is closed, every FSM comes to
    /// its end through [`Handler::closed`] with the messages it never handled, and every thread has
    /// ended when this returns. May be called more than once.
    ///
    /// Must not be called from a handler: it waits for the pollers. Nor with an [`Outbox`] at hand that
    /// was not flushed: it waits for the FSMs in there.
    ///
    /// [`Outbox`]: crate::Outbox
    pub fn shutdown(&self) {
        let mut threads = self.threads.lock();
        self.router.shared.close_all();
        for thread in threads.drain(..) {
            thread.join().expect("a poller catches the panics of its FSMs");
        }
        self.router.shared.watch.stop();
        if let Some(watch) = self.watch.lock().take() {
            watch.join().expect("the watch runs no user's code");
        }
        self.router.shared.clear();
    }
}

impl<N: Fsm, C: Fsm> Drop for Pool<N, C> {
    fn drop(&mut self) {
        self.shutdown();
    }
}

impl<N: Fsm, C: Fsm> fmt::Debug for Pool<N, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("name", &self.name)
            // Not by the threads, whose lock a change of their number holds for as long as a poller takes.
            .field("pollers", &self.router.pollers())
            .field("waiting", &self.router.waiting())
            .field("router", &self.router)
            .field("stats", self.router.stats())
            .finish()
    }
}

fn check_range(asked: usize, max: usize) -> Result<(), ResizeError> {
    if (1..=max).contains(&asked) {
        Ok(())
    } else {
        Err(ResizeError::OutOfRange { asked, max })
    }
}

fn spawn(
    name: String,
    body: impl FnOnce() + Send + 'static,
) -> std::io::Result<thread::JoinHandle<()>> {
    #[cfg(feature = "loom")]
    return {
        drop(name);
        Ok(thread::spawn(body))
    };
    #[cfg(not(feature = "loom"))]
    thread::Builder::new().name(name).spawn(body)
}
