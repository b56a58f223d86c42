//! From address to mailbox.

use crate::broadcast::Broadcasts;
use crate::fsm::{CloseReason, Fsm, Priority};
use crate::mailbox::{Cell, SendError, Sent};
use crate::outbox::Outbox;
use crate::pool::Limits;
use crate::scheduler::Scheduler;
use crate::stats::Stats;
use crate::sync::{Arc, AtomicBool, AtomicUsize, Ordering, RwLock};
use crate::timer::{Mail, Time, Timers};
use crate::watch::Watch;
use crossbeam::utils::CachePadded;
use rustc_hash::FxHashMap;
use std::fmt;

const SHARDS: usize = 64;

type Shard<N> = FxHashMap<u64, Arc<Cell<N>>>;

/// Where many FSMs have ended, their places are given back.
fn give_back_room<N: Fsm>(shard: &mut Shard<N>) {
    if shard.len() < shard.capacity() / 8 {
        shard.shrink_to_fit();
    }
}

/// Everything the sending side, the pollers and the pool have in common.
pub(crate) struct Shared<N: Fsm, C: Fsm> {
    pub(crate) limits: Limits,
    /// Begins as the limit of that name, and may be changed.
    pub(crate) batch_size: AtomicUsize,
    shards: Box<[CachePadded<RwLock<Shard<N>>>]>,
    control: Arc<Cell<C>>,
    pub(crate) scheduler: Scheduler<N, C>,
    pub(crate) broadcasts: Broadcasts<N>,
    pub(crate) timers: Timers<N, C>,
    pub(crate) watch: Watch,
    pub(crate) stats: Stats,
    /// Cells of normal FSMs that exist, registered or not.
    population: Arc<AtomicUsize>,
    /// FSMs that have not come to their end, the control FSM included, and one more until shutdown has
    /// closed them all: the pollers of a pool that happens to be empty must not end.
    unfinished: AtomicUsize,
    /// Set once, by shutdown: nothing is registered any more.
    closing: AtomicBool,
}

/// Sends to FSMs by address, and says which there are. Clones are cheap.
pub struct Router<N: Fsm, C: Fsm> {
    pub(crate) shared: Arc<Shared<N, C>>,
}

impl<N: Fsm, C: Fsm> Clone for Router<N, C> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone() }
    }
}

impl<N: Fsm, C: Fsm> fmt::Debug for Router<N, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Router")
            .field("alive", &self.alive())
            .field("leaked", &self.leaked())
            .finish_non_exhaustive()
    }
}

/// A handle on one FSM's mailbox, for senders that send to it often: no look-up.
///
/// It outlives the FSM; sends to a closed one are refused, also when the address has been registered
/// anew.
pub struct Mailbox<N: Fsm, C: Fsm> {
    cell: Arc<Cell<N>>,
    shared: Arc<Shared<N, C>>,
}

impl<N: Fsm, C: Fsm> Clone for Mailbox<N, C> {
    fn clone(&self) -> Self {
        Self { cell: self.cell.clone(), shared: self.shared.clone() }
    }
}

/// Why an FSM could not be registered; it is given back.
pub enum RegisterError<N> {
    /// The address is taken.
    Taken(Box<N>),
    /// The pool shuts down.
    ShuttingDown(Box<N>),
}

impl<N> RegisterError<N> {
    /// The FSM.
    pub fn into_fsm(self) -> Box<N> {
        match self {
            RegisterError::Taken(fsm) | RegisterError::ShuttingDown(fsm) => fsm,
        }
    }
}

impl<N> fmt::Debug for RegisterError<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            RegisterError::Taken(_) => "Taken(..)",
            RegisterError::ShuttingDown(_) => "ShuttingDown(..)",
        })
    }
}

impl<N> fmt::Display for RegisterError<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            RegisterError::Taken(_) => "an FSM is registered at this address already",
            RegisterError::ShuttingDown(_) => "the pool is shutting down",
        })
    }
}

impl<N> std::error::Error for RegisterError<N> {}

impl<N: Fsm, C: Fsm> Shared<N, C> {
    pub(crate) fn new(limits: Limits, active: usize, control: Box<C>, time: Time) -> Self {
        Self {
            scheduler: Scheduler::new(limits.max_pollers, active, limits.batch_size),
            shards: (0..SHARDS).map(|_| CachePadded::new(RwLock::new(Shard::default()))).collect(),
            control: Arc::new(Cell::new(
                u64::MAX,
                control,
                Priority::High,
                Arc::new(AtomicUsize::new(0)),
            )),
            broadcasts: Broadcasts::new(),
            timers: Timers::new(time),
            watch: Watch::new(),
            stats: Stats::default(),
            population: Arc::new(AtomicUsize::new(0)),
            unfinished: AtomicUsize::new(2),
            closing: AtomicBool::new(false),
            batch_size: AtomicUsize::new(limits.batch_size),
            limits,
        }
    }

    fn shard(&self, address: u64) -> &RwLock<Shard<N>> {
        // The high half of the product; FxHashMap uses its own mix within the shard.
        let mixed = address.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 58;
        &self.shards[mixed as usize % SHARDS]
    }

    pub(crate) fn send(
        &self,
        address: u64,
        message: N::Message,
        limit: usize,
    ) -> Result<Sent<N>, SendError<N::Message>> {
        let sent = match self.shard(address).read().get(&address) {
            Some(cell) => cell.send(message, limit),
            None => Err(SendError::Closed(message)),
        };
        self.stats.note_refusal(&sent);
        sent
    }

    pub(crate) fn force_send(
        &self,
        address: u64,
        message: N::Message,
    ) -> Result<Sent<N>, SendError<N::Message>> {
        self.stats.forced.fetch_add(1, Ordering::Relaxed);
        self.send(address, message, self.limits.forced_capacity)
    }

    pub(crate) fn send_after(
        &self,
        address: u64,
        delay: std::time::Duration,
        message: N::Message,
    ) -> bool {
        let Some(cell) = self.shard(address).read().get(&address).cloned() else { return false };
        let due = self.timers.add(delay, Mail::Normal(cell, message));
        self.watch.timer_added(due);
        true
    }

    pub(crate) fn dispatch(&self, sent: Sent<N>) {
        if let Sent::Schedule(claim) = sent {
            self.scheduler.schedule(claim);
        }
    }

    pub(crate) fn send_control(
        &self,
        message: C::Message,
        limit: usize,
    ) -> Result<(), SendError<C::Message>> {
        let sent = self.control.send(message, limit);
        self.stats.note_refusal(&sent);
        if let Sent::Schedule(claim) = sent? {
            self.scheduler.schedule_control(claim);
        }
        Ok(())
    }

    pub(crate) fn close(&self, address: u64) -> bool {
        let cell = {
            let mut shard = self.shard(address).write();
            let cell = shard.remove(&address);
            give_back_room(&mut shard);
            cell
        };
        let Some(cell) = cell else { return false };
        let closed = cell.close(CloseReason::Requested);
        closed.map(|sent| self.dispatch(sent)).is_some()
    }

    pub(crate) fn send_control_after(&self, delay: std::time::Duration, message: C::Message) {
        if !self.is_closing() {
            let due = self.timers.add(delay, Mail::Control(message));
            self.watch.timer_added(due);
        }
    }

    /// Takes the address off the map, if it still leads to this cell.
    pub(crate) fn forget(&self, cell: &Arc<Cell<N>>) {
        let mut shard = self.shard(cell.address()).write();
        if shard.get(&cell.address()).is_some_and(|found| Arc::ptr_eq(found, cell)) {
            shard.remove(&cell.address());
            give_back_room(&mut shard);
        }
    }

    /// Cells of one shard, as they are now.
    pub(crate) fn cells_of_shard(&self, shard: usize) -> Option<Vec<Arc<Cell<N>>>> {
        Some(self.shards.get(shard)?.read().values().cloned().collect())
    }

    pub(crate) fn finished_one(&self) {
        if self.unfinished.fetch_sub(1, Ordering::AcqRel) == 1 {
            (0..self.scheduler.slots()).for_each(|index| self.scheduler.poke(index));
        }
    }

    pub(crate) fn all_finished(&self) -> bool {
        self.unfinished.load(Ordering::Acquire) == 0
    }

    pub(crate) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }

    /// Refuses new FSMs and closes all there are, the control FSM last. Only the first call does so.
    pub(crate) fn close_all(&self) {
        // Registration looks at `closing` under its shard's lock, and below each shard is locked once
        // after the flag was set: no FSM slips in behind.
        if self.closing.swap(true, Ordering::AcqRel) {
            return;
        }
        for shard in &self.shards {
            let cells: Vec<_> = shard.write().drain().map(|(_, cell)| cell).collect();
            for cell in cells {
                if let Some(sent) = cell.close(CloseReason::Shutdown) {
                    self.dispatch(sent);
                }
            }
        }
        if let Some(Sent::Schedule(claim)) = self.control.close(CloseReason::Shutdown) {
            self.scheduler.schedule_control(claim);
        }
        self.finished_one();
    }

    /// Forgets what still waits for FSMs that are at their end.
    pub(crate) fn clear(&self) {
        self.timers.clear();
        self.broadcasts.clear();
    }
}

impl<N: Fsm, C: Fsm> Router<N, C> {
    /// Registers an FSM; it is parked until its first message.
    ///
    /// # Errors
    /// When the address is taken or the pool shuts down; the FSM comes back.
    pub fn register(
        &self,
        address: u64,
        fsm: Box<N>,
        priority: Priority,
    ) -> Result<Mailbox<N, C>, RegisterError<N>> {
        let shared = &self.shared;
        let mut shard = shared.shard(address).write();
        if shared.is_closing() {
            return Err(RegisterError::ShuttingDown(fsm));
        }
        if shard.contains_key(&address) {
            return Err(RegisterError::Taken(fsm));
        }
        shared.unfinished.fetch_add(1, Ordering::Relaxed);
        let cell = Arc::new(Cell::new(address, fsm, priority, shared.population.clone()));
        shard.insert(address, cell.clone());
        Ok(Mailbox { cell, shared: shared.clone() })
    }

    /// Sends a message to an address.
    ///
    /// # Errors
    /// `Full` and `Closed`, with the message.
    pub fn send(&self, address: u64, message: N::Message) -> Result<(), SendError<N::Message>> {
        let sent = self.shared.send(address, message, self.shared.limits.mailbox_capacity)?;
        self.shared.dispatch(sent);
        Ok(())
    }

    /// Sends what must not be refused for fullness: the limit is the (larger) forced capacity, and
    /// each use is counted.
    ///
    /// # Errors
    /// `Full` beyond the forced capacity, and `Closed`, with the message.
    pub fn force_send(
        &self,
        address: u64,
        message: N::Message,
    ) -> Result<(), SendError<N::Message>> {
        let sent = self.shared.force_send(address, message)?;
        self.shared.dispatch(sent);
        Ok(())
    }

    /// Sends to the control FSM.
    ///
    /// # Errors
    /// `Full` and `Closed`, with the message.
    pub fn send_control(&self, message: C::Message) -> Result<(), SendError<C::Message>> {
        self.shared.send_control(message, self.shared.limits.mailbox_capacity)
    }

    /// Sends to the control FSM up to the forced capacity.
    ///
    /// # Errors
    /// `Full` beyond the forced capacity, and `Closed`, with the message.
    pub fn force_send_control(&self, message: C::Message) -> Result<(), SendError<C::Message>> {
        self.shared.stats.forced.fetch_add(1, Ordering::Relaxed);
        self.shared.send_control(message, self.shared.limits.forced_capacity)
    }

    /// Sends to the control FSM after a delay, up to [`TIMER_GRANULARITY`](crate::TIMER_GRANULARITY) later.
    /// Forced; if even then its mailbox is full, it is tried again.
    pub fn send_control_after(&self, delay: std::time::Duration, message: C::Message) {
        self.shared.send_control_after(delay, message);
    }

    /// A sender of many messages. Pollers have their own: see [`Outbox`].
    pub fn outbox(&self) -> Outbox<N, C> {
        Outbox::new(self.shared.clone(), None)
    }

    /// The mailbox at an address.
    pub fn mailbox(&self, address: u64) -> Option<Mailbox<N, C>> {
        let cell = self.shared.shard(address).read().get(&address).cloned()?;
        Some(Mailbox { cell, shared: self.shared.clone() })
    }

    /// Sends to every FSM registered now, in the background: the call returns at once, and pollers do
    /// a bounded slice of the work in each of their rounds, so that nobody waits for it. FSMs
    /// registered or closed meanwhile may or may not get the message. Forced, so that a full mailbox
    /// gets it too.
    pub fn broadcast(&self, message: impl Fn(u64) -> N::Message + Send + 'static) {
        if self.shared.is_closing() {
            return;
        }
        self.shared.broadcasts.add(Box::new(message));
        self.shared.scheduler.poke(0);
    }

    /// Closes an address. Its FSM ends on a poller, through
    /// [`Handler::closed`](crate::Handler::closed), with the messages it never handled. The address
    /// may be registered anew at once. Says whether it was registered.
    pub fn close(&self, address: u64) -> bool {
        self.shared.close(address)
    }

    /// How many FSMs are registered.
    pub fn alive(&self) -> usize {
        self.shared.shards.iter().map(|shard| shard.read().len()).sum()
    }

    /// How many mailboxes exist that are not registered any more: closed ones that somebody still
    /// holds on to. Grows without end only if there is a leak.
    pub fn leaked(&self) -> usize {
        let population = self.shared.population.load(Ordering::Relaxed);
        population.saturating_sub(self.alive())
    }

    /// What the pool has done so far.
    pub fn stats(&self) -> &Stats {
        &self.shared.stats
    }

    /// How many pollers run.
    pub fn pollers(&self) -> usize {
        self.shared.scheduler.active()
    }

    /// How many FSMs a poller handles in one round at most.
    pub fn batch_size(&self) -> usize {
        self.shared.batch_size.load(Ordering::Relaxed)
    }

    /// Changes that number, from the next round of each poller on. Zero counts as one.
    pub fn set_batch_size(&self, batch_size: usize) {
        self.shared.batch_size.store(batch_size.max(1), Ordering::Relaxed);
    }

    /// How many claims wait for each poller that runs.
    pub fn waiting(&self) -> Vec<usize> {
        let scheduler = &self.shared.scheduler;
        (0..scheduler.active()).map(|index| scheduler.waiting(index)).collect()
    }
}

impl<N: Fsm, C: Fsm> Mailbox<N, C> {
    /// The address it was registered at.
    pub fn address(&self) -> u64 {
        self.cell.address()
    }

    /// Sends a message.
    ///
    /// # Errors
    /// `Full` and `Closed`, with the message.
    pub fn send(&self, message: N::Message) -> Result<(), SendError<N::Message>> {
        let sent = self.enqueue(message)?;
        self.shared.dispatch(sent);
        Ok(())
    }

    /// Sends a message to the FSM after a delay; up to
    /// [`TIMER_GRANULARITY`](crate::TIMER_GRANULARITY) later. The message is forced; if even then the
    /// mailbox is full, it is tried again. A closed FSM gets none.
    pub fn send_after(&self, delay: std::time::Duration, message: N::Message) {
        if self.shared.is_closing() {
            return;
        }
        let due = self.shared.timers.add(delay, Mail::Normal(self.cell.clone(), message));
        self.shared.watch.timer_added(due);
    }

    /// How many messages wait.
    pub fn len(&self) -> usize {
        self.cell.len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(crate) fn enqueue(&self, message: N::Message) -> Result<Sent<N>, SendError<N::Message>> {
        let sent = self.cell.send(message, self.shared.limits.mailbox_capacity);
        self.shared.stats.note_refusal(&sent);
        sent
    }
}

impl<N: Fsm, C: Fsm> fmt::Debug for Mailbox<N, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mailbox({}, {} waiting)", self.address(), self.len())
    }
}
