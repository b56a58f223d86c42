//! Where claims wait for a poller, and how pollers sleep and wake.
//!
//! Every poller has an [`Inbox`] that others push claims into, and a [`RunList`] that it takes its
//! next claim from. The two are apart so that a poller's own bookkeeping does not contend with
//! senders; both are reachable by other pollers, so that a poller with nothing to do can take over
//! what waits behind a slow one.
//!
//! Invariant: a claim that was pushed is run. A poller goes to sleep only under its inbox's lock, with
//! the inbox empty, and a push takes the same lock: it finds the poller either before its last look
//! or marked asleep, and then wakes it.
//!
//! Which inbox: an FSM has a *home*, its address modulo the number of pollers, so that one FSM's state
//! stays in one core's cache. Others take its claims only when they would otherwise sleep.

use crate::fsm::{Fsm, Priority};
use crate::mailbox::Claim;
use crate::sync::{AtomicUsize, Condvar, Mutex, Ordering};
use crossbeam::utils::CachePadded;
use std::collections::VecDeque;
use std::time::Instant;

/// A poller that falls asleep keeps room for so many claims, and gives back what a burst took beyond.
const KEPT_CLAIMS: usize = 1024;

/// Of this many high-priority claims in a row, the last gives way to a normal one.
const HIGH_IN_A_ROW: u8 = 8;

pub(crate) struct Scheduler<N: Fsm, C: Fsm> {
    inboxes: Box<[CachePadded<Inbox<N, C>>]>,
    /// How many pollers run. Homes are computed from it.
    active: AtomicUsize,
    /// How many pollers sleep: a hint for when to wake one that would steal.
    sleeping: AtomicUsize,
    /// An inbox longer than this is worth waking another poller for.
    steal_threshold: usize,
}

pub(crate) struct Inbox<N: Fsm, C: Fsm> {
    incoming: Mutex<Incoming<N, C>>,
    wake: Condvar,
    list: Mutex<RunList<N>>,
}

struct Incoming<N: Fsm, C: Fsm> {
    claims: Vec<Claim<N>>,
    control: Option<Claim<C>>,
    /// When the inbox last went from empty to not empty.
    since: Option<Instant>,
    /// Whether its poller sleeps in `wake`.
    asleep: bool,
    /// Something other than a claim wants the poller's attention.
    poked: bool,
    /// No poller serves this inbox.
    retired: bool,
    /// How often the poller has looked in here, for noticing that it is stuck.
    pulls: u64,
}

/// What a poller runs next.
pub(crate) struct RunList<N: Fsm> {
    high: VecDeque<Claim<N>>,
    normal: VecDeque<Claim<N>>,
    /// Those that had mail left after their last round.
    hot: VecDeque<Claim<N>>,
    high_in_a_row: u8,
}

/// What [`Scheduler::pull`] moved.
pub(crate) struct Pulled<C: Fsm> {
    pub(crate) control: Option<Claim<C>>,
    pub(crate) since: Option<Instant>,
    pub(crate) retired: bool,
}

impl<N: Fsm> RunList<N> {
    fn new() -> Self {
        Self {
            high: VecDeque::new(),
            normal: VecDeque::new(),
            hot: VecDeque::new(),
            high_in_a_row: 0,
        }
    }

    fn push(&mut self, claim: Claim<N>) {
        match claim.priority() {
            Priority::High => self.high.push_back(claim),
            Priority::Normal => self.normal.push_back(claim),
        }
    }

    /// The next claim, and whether it is a hot one. Fresh ones go first unless `hot_first`.
    fn pop(&mut self, hot_first: bool) -> Option<(Claim<N>, bool)> {
        if hot_first {
            if let Some(claim) = self.hot.pop_front() {
                return Some((claim, true));
            }
        }
        if self.high_in_a_row < HIGH_IN_A_ROW {
            if let Some(claim) = self.high.pop_front() {
                self.high_in_a_row += 1;
                return Some((claim, false));
            }
        }
        self.high_in_a_row = 0;
        if let Some(claim) = self.normal.pop_front().or_else(|| self.high.pop_front()) {
            return Some((claim, false));
        }
        self.hot.pop_front().map(|claim| (claim, true))
    }

    fn give_back_room(&mut self) {
        [&mut self.high, &mut self.normal, &mut self.hot]
            .into_iter()
            .for_each(|queue| queue.shrink_to(KEPT_CLAIMS));
    }

    fn len(&self) -> usize {
        self.high.len() + self.normal.len() + self.hot.len()
    }

    fn iter(&self) -> impl Iterator<Item = &Claim<N>> {
        self.high.iter().chain(&self.normal).chain(&self.hot)
    }

    fn remove(&mut self, address: u64) -> Option<Claim<N>> {
        [&mut self.high, &mut self.normal, &mut self.hot].into_iter().find_map(|queue| {
            let at = queue.iter().position(|claim| claim.address() == address)?;
            queue.remove(at)
        })
    }

    /// The later half of the fresh claims, or of the hot ones where nothing is fresh.
    fn split(&mut self) -> Vec<Claim<N>> {
        for queue in [&mut self.high, &mut self.normal] {
            if !queue.is_empty() {
                let keep = queue.len() / 2;
                return queue.split_off(keep).into();
            }
        }
        let keep = self.hot.len() / 2;
        self.hot.split_off(keep).into()
    }

    fn drain(&mut self) -> Vec<Claim<N>> {
        let mut all: Vec<_> = self.high.drain(..).collect();
        all.extend(self.normal.drain(..));
        all.extend(self.hot.drain(..));
        all
    }
}

impl<N: Fsm, C: Fsm> Scheduler<N, C> {
    /// Room for `slots` pollers, of which the first `active` are served.
    pub(crate) fn new(slots: usize, active: usize, steal_threshold: usize) -> Self {
        let inboxes = (0..slots)
            .map(|index| {
                CachePadded::new(Inbox {
                    incoming: Mutex::new(Incoming {
                        claims: Vec::new(),
                        control: None,
                        since: None,
                        asleep: false,
                        poked: false,
                        retired: index >= active,
                        pulls: 0,
                    }),
                    wake: Condvar::new(),
                    list: Mutex::new(RunList::new()),
                })
            })
            .collect();
        Self {
            inboxes,
            active: AtomicUsize::new(active),
            sleeping: AtomicUsize::new(0),
            steal_threshold,
        }
    }

    pub(crate) fn slots(&self) -> usize {
        self.inboxes.len()
    }

    pub(crate) fn active(&self) -> usize {
        self.active.load(Ordering::Acquire)
    }

    /// Whether a poller could take over what waits with another.
    pub(crate) fn has_helpers(&self) -> bool {
        self.active() > 1
    }

    /// The poller that usually runs the FSM of this address.
    pub(crate) fn home(&self, address: u64) -> usize {
        let active = self.active();
        if active == 1 {
            return 0;
        }
        // Fibonacci hashing: addresses are often dense or share their low bits.
        let mixed = address.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
        (mixed as usize) % active
    }

    /// Hands a claim to its home.
    pub(crate) fn schedule(&self, claim: Claim<N>) {
        let mut claim = Some(claim);
        loop {
            let Some(next) = claim.take() else { return };
            let home = self.home(next.address());
            let inbox = &self.inboxes[home];
            let mut incoming = inbox.incoming.lock();
            if incoming.retired {
                // The pool shrank between the look at `active` and the lock.
                claim = Some(next);
                continue;
            }
            incoming.note_arrival();
            incoming.claims.push(next);
            return self.wake_after_push(home, incoming);
        }
    }

    /// Hands all these claims, whose home is `home`, over at once; those of an inbox that was retired
    /// meanwhile go one by one.
    pub(crate) fn schedule_many(&self, home: usize, claims: &mut Vec<Claim<N>>) {
        if claims.is_empty() {
            return;
        }
        let mut incoming = self.inboxes[home].incoming.lock();
        if incoming.retired {
            drop(incoming);
            claims.drain(..).for_each(|claim| self.schedule(claim));
            return;
        }
        incoming.note_arrival();
        incoming.claims.append(claims);
        self.wake_after_push(home, incoming);
    }

    /// Hands the control FSM's claim to poller 0, which always exists.
    pub(crate) fn schedule_control(&self, claim: Claim<C>) {
        let mut incoming = self.inboxes[0].incoming.lock();
        incoming.note_arrival();
        incoming.control = Some(claim);
        self.wake_after_push(0, incoming);
    }

    /// Puts claims straight on the list of the poller that calls.
    pub(crate) fn schedule_locally(&self, index: usize, claims: &mut Vec<Claim<N>>) {
        if !claims.is_empty() {
            let mut list = self.inboxes[index].list.lock();
            claims.drain(..).for_each(|claim| list.push(claim));
        }
    }

    /// Puts a claim that has mail again back on its poller's list: a hot one behind all fresh ones,
    /// any other where fresh ones go.
    pub(crate) fn requeue(&self, index: usize, claim: Claim<N>) {
        let mut list = self.inboxes[index].list.lock();
        match claim.is_hot() {
            true => list.hot.push_back(claim),
            false => list.push(claim),
        }
    }

    /// Makes a poller look around.
    pub(crate) fn poke(&self, index: usize) {
        let mut incoming = self.inboxes[index].incoming.lock();
        incoming.poked = true;
        self.wake_after_push(index, incoming);
    }

    /// Moves what came in to the poller's own list, for a round to begin.
    pub(crate) fn pull(&self, index: usize) -> Pulled<C> {
        let mut incoming = self.inboxes[index].incoming.lock();
        incoming.poked = false;
        let control = incoming.control.take();
        let retired = incoming.retired;
        let since = self.pull_claims(index, &mut incoming);
        Pulled { control, since, retired }
    }

    /// Moves the claims that came in to the poller's own list, within a round: the control FSM stays
    /// where another poller can still take it. Returns when the first came.
    pub(crate) fn pull_more(&self, index: usize) -> Option<Instant> {
        let mut incoming = self.inboxes[index].incoming.lock();
        self.pull_claims(index, &mut incoming)
    }

    fn pull_claims(&self, index: usize, incoming: &mut Incoming<N, C>) -> Option<Instant> {
        incoming.pulls += 1;
        if !incoming.claims.is_empty() {
            let mut list = self.inboxes[index].list.lock();
            incoming.claims.drain(..).for_each(|claim| list.push(claim));
        }
        let since = incoming.since;
        incoming.note_departure();
        since
    }

    /// The poller's next claim, and whether it is a hot one.
    pub(crate) fn pop(&self, index: usize, hot_first: bool) -> Option<(Claim<N>, bool)> {
        self.inboxes[index].list.lock().pop(hot_first)
    }

    /// Takes over the control FSM, or else about half of what waits with the first other poller that
    /// has something waiting.
    pub(crate) fn steal(&self, thief: usize) -> usize {
        for offset in 1..self.inboxes.len() {
            let index = (thief + offset) % self.inboxes.len();
            let inbox = &self.inboxes[index];
            let (control, mut stolen) = {
                let mut incoming = inbox.incoming.lock();
                let control = incoming.control.take();
                let keep = if control.is_some() {
                    incoming.claims.len()
                } else {
                    incoming.claims.len() / 2
                };
                let stolen = incoming.claims.split_off(keep);
                incoming.note_departure();
                (control, stolen)
            };
            if let Some(control) = control {
                // Into its inbox, which it looks into next: a round begins with the control FSM.
                self.inboxes[thief].incoming.lock().control = Some(control);
                return 1;
            }
            if stolen.is_empty() {
                stolen = inbox.list.lock().split();
            }
            if !stolen.is_empty() {
                let count = stolen.len();
                self.schedule_locally(thief, &mut stolen);
                return count;
            }
        }
        0
    }

    /// Sleeps until something is pushed or the poller is poked. Returns at once if something is there.
    pub(crate) fn sleep(&self, index: usize) {
        let inbox = &self.inboxes[index];
        let mut incoming = inbox.incoming.lock();
        if incoming.wants_attention() {
            return;
        }
        incoming.claims.shrink_to(KEPT_CLAIMS);
        inbox.list.lock().give_back_room();
        incoming.asleep = true;
        self.sleeping.fetch_add(1, Ordering::Relaxed);
        while !incoming.wants_attention() {
            incoming = inbox.wake.wait(incoming);
        }
        incoming.asleep = false;
        self.sleeping.fetch_sub(1, Ordering::Relaxed);
    }

    /// Whether the poller's inbox has something for it.
    pub(crate) fn has_incoming(&self, index: usize) -> bool {
        self.inboxes[index].incoming.lock().wants_attention()
    }

    /// Wakes one sleeping poller, if there is one, so that it steals. Says whether there was.
    pub(crate) fn wake_a_thief(&self, not: usize) -> bool {
        if self.sleeping.load(Ordering::Relaxed) == 0 {
            return false;
        }
        for (index, inbox) in self.inboxes.iter().enumerate() {
            if index == not {
                continue;
            }
            let mut incoming = inbox.incoming.lock();
            if incoming.asleep && !incoming.poked {
                incoming.poked = true;
                drop(incoming);
                inbox.wake.notify_one();
                return true;
            }
        }
        false
    }

    /// Wakes a sleeping poller where something waits with one that has not looked into its inbox since
    /// the last call. `seen` remembers from call to call. Broadcasts wait with poller 0. Says whether anything
    /// waits at all.
    pub(crate) fn help_the_stuck(&self, seen: &mut [u64], broadcasts: bool) -> bool {
        let mut any_waits = false;
        // Retired ones too: one that blocks hands nothing on.
        for (index, seen) in seen.iter_mut().enumerate() {
            let (pulls, control) = {
                let incoming = self.inboxes[index].incoming.lock();
                (incoming.pulls, incoming.control.is_some())
            };
            let waits = control || (broadcasts && index == 0) || self.waiting(index) > 0;
            if pulls == *seen && waits {
                self.wake_a_thief(index);
            }
            *seen = pulls;
            any_waits |= waits;
        }
        any_waits
    }

    /// Whether no poller has anything to do.
    pub(crate) fn all_asleep(&self) -> bool {
        self.sleeping.load(Ordering::Relaxed) >= self.active()
    }

    /// How many claims wait with this poller, in its inbox and on its list.
    pub(crate) fn waiting(&self, index: usize) -> usize {
        let inbox = &self.inboxes[index];
        let incoming = inbox.incoming.lock().claims.len();
        incoming + inbox.list.lock().len()
    }

    /// Changes the number of pollers served. Those retired are woken; each must then call
    /// [`hand_on`](Self::hand_on) and end.
    pub(crate) fn set_active(&self, active: usize) {
        assert!((1..=self.inboxes.len()).contains(&active), "{active} pollers");
        // First open or keep the new ones, then let senders see the number, then retire the others:
        // a sender never finds all the inboxes it may choose from retired.
        for inbox in &self.inboxes[..active] {
            inbox.incoming.lock().retired = false;
        }
        self.active.store(active, Ordering::Release);
        for inbox in &self.inboxes[active..] {
            inbox.incoming.lock().retired = true;
            inbox.wake.notify_one();
        }
    }

    /// Gives all that waits with a retired poller to the others.
    pub(crate) fn hand_on(&self, index: usize) {
        let inbox = &self.inboxes[index];
        let mut all = {
            let mut incoming = inbox.incoming.lock();
            debug_assert!(incoming.retired && incoming.control.is_none());
            std::mem::take(&mut incoming.claims)
        };
        all.append(&mut inbox.list.lock().drain());
        all.into_iter().for_each(|claim| self.schedule(claim));
    }

    /// Addresses scheduled with this poller, in the order in which they would run. For driving by hand.
    pub(crate) fn scheduled(&self, index: usize) -> Vec<u64> {
        let inbox = &self.inboxes[index];
        let incoming = inbox.incoming.lock();
        let list = inbox.list.lock();
        list.iter().chain(&incoming.claims).map(Claim::address).collect()
    }

    /// Whether the control FSM is scheduled. For driving by hand.
    pub(crate) fn control_scheduled(&self) -> bool {
        self.inboxes.iter().any(|inbox| inbox.incoming.lock().control.is_some())
    }

    /// Takes the claim of one address out, wherever it waits. For driving by hand.
    pub(crate) fn take_out(&self, address: u64) -> Option<Claim<N>> {
        self.inboxes.iter().find_map(|inbox| {
            let mut incoming = inbox.incoming.lock();
            match incoming.claims.iter().position(|claim| claim.address() == address) {
                Some(at) => {
                    let claim = incoming.claims.remove(at);
                    incoming.note_departure();
                    Some(claim)
                }
                None => inbox.list.lock().remove(address),
            }
        })
    }

    /// Takes the control FSM's claim out. For driving by hand.
    pub(crate) fn take_out_control(&self) -> Option<Claim<C>> {
        self.inboxes.iter().find_map(|inbox| {
            let mut incoming = inbox.incoming.lock();
            let claim = incoming.control.take()?;
            incoming.note_departure();
            Some(claim)
        })
    }

    fn wake_after_push(&self, index: usize, incoming: crate::sync::MutexGuard<'_, Incoming<N, C>>) {
        let asleep = incoming.asleep;
        let backlog = incoming.claims.len();
        drop(incoming);
        if asleep {
            self.inboxes[index].wake.notify_one();
        } else if backlog > self.steal_threshold {
            self.wake_a_thief(index);
        }
    }
}

impl<N: Fsm, C: Fsm> Incoming<N, C> {
    fn note_arrival(&mut self) {
        if self.since.is_none() {
            self.since = Some(Instant::now());
        }
    }

    /// After claims were taken out: an empty inbox has nothing that waits.
    fn note_departure(&mut self) {
        if self.claims.is_empty() && self.control.is_none() {
            self.since = None;
        }
    }

    fn wants_attention(&self) -> bool {
        !self.claims.is_empty() || self.control.is_some() || self.poked || self.retired
    }
}
