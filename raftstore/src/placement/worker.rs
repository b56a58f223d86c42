//! The thread that talks to the placement.
//!
//! Invariant: every order that it is given is reported once, when its region has answered or the store ends.
//! Regions answer on pollers; their answers come here first, so that no poller waits for the placement.

use super::requests::{Refusal, Requests};
use super::{
    Operator, Order, OrderReport, Outcome, Placement, RegionHeartbeat, SplitPolicy, StoreHeartbeat,
};
use crate::admin::Regions;
use crate::clock::Clock;
use crate::handle::StoreHandle;
use crate::inspect::{RegionInfo, RegionState};
use crate::metrics::Metrics;
use crate::state_machine::{RegionSize, StateMachine};
use crossbeam::channel::{Receiver, Sender};
use region::{PeerProgress, RegionId, Role};
use rustc_hash::FxHashMap;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Most orders and splits at once. More are refused, to be given again.
const MAX_UNDER_WAY: usize = 1_024;

/// Most regions whose state machine is asked for their size between two heartbeats. Those behind have
/// their turn next time.
const MAX_SIZES: usize = 1_024;

/// Entries that a peer may lack without being told of.
const PENDING_ENTRIES: u64 = 1_024;

/// How it works.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Habits {
    pub(crate) interval: Duration,
    pub(crate) batch: usize,
    pub(crate) down_ticks: u64,
    pub(crate) max_snapshots: usize,
    pub(crate) split: SplitPolicy,
}

/// What is known of a region that this store leads.
#[derive(Default)]
struct Led {
    /// As of the last heartbeat, and when that was.
    writes: u64,
    at: Option<Duration>,
    size: Option<RegionSize>,
    /// Writes, and the version of its range, when its size was asked for.
    sized: Option<(u64, u64)>,
    splits: bool,
}

pub(crate) struct PlacementWorker {
    placement: Arc<dyn Placement>,
    state_machine: Arc<dyn StateMachine>,
    handle: StoreHandle,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
    habits: Habits,
    led: FxHashMap<RegionId, Led>,
    /// The region whose size was asked for last.
    cursor: RegionId,
    reports: (Sender<OrderReport>, Receiver<OrderReport>),
    under_way: usize,
    first: bool,
    /// Since the last heartbeats, where the store is driven by hand.
    passed: Duration,
}

impl PlacementWorker {
    pub(crate) fn new(
        placement: Arc<dyn Placement>,
        state_machine: Arc<dyn StateMachine>,
        handle: StoreHandle,
        clock: Arc<dyn Clock>,
        metrics: Arc<Metrics>,
        habits: Habits,
    ) -> Self {
        Self {
            placement,
            state_machine,
            handle,
            clock,
            metrics,
            habits,
            led: FxHashMap::default(),
            cursor: RegionId::default(),
            reports: crossbeam::channel::unbounded(),
            under_way: 0,
            first: true,
            passed: Duration::ZERO,
        }
    }

    /// The body of the thread: until `stop` is closed, which comes after the last answer of a region.
    pub(crate) fn run(mut self, stop: &Receiver<()>) {
        let reports = self.reports.1.clone();
        let mut due = Instant::now();
        loop {
            crossbeam::channel::select! {
                recv(stop) -> _ => return self.take_reports(),
                recv(reports) -> report => report.into_iter().for_each(|report| self.report(report)),
                recv(crossbeam::channel::at(due)) -> _ => {
                    self.beat();
                    due = Instant::now() + self.habits.interval;
                }
            }
        }
    }

    /// Time has passed for a store that is driven by hand.
    pub(crate) fn advance(&mut self, by: Duration) {
        self.take_reports();
        self.passed += by;
        if self.passed >= self.habits.interval {
            self.passed = Duration::ZERO;
            self.beat();
        }
    }

    fn take_reports(&mut self) {
        while let Ok(report) = self.reports.1.try_recv() {
            self.report(report);
        }
    }

    /// A call of the placement; `None` if it panics.
    fn ask<T>(&self, call: impl FnOnce(&dyn Placement) -> T) -> Option<T> {
        let asked = catch_unwind(AssertUnwindSafe(|| call(&*self.placement)));
        if asked.is_err() {
            tracing::error!("the placement panicked");
            self.metrics.count_placement_failure();
        }
        asked.ok()
    }

    fn report(&mut self, report: OrderReport) {
        self.under_way -= 1;
        self.tell(&report);
    }

    fn tell(&mut self, report: &OrderReport) {
        self.metrics.count_operator(report.operator.name(), report.outcome.name());
        if let (None, Some(led)) = (report.order, self.led.get_mut(&report.region)) {
            // It is another region now, or another time.
            (led.splits, led.sized) = (false, None);
        }
        self.ask(|placement| placement.report(report));
    }

    /// One round of heartbeats, and what comes of them.
    fn beat(&mut self) {
        let leads =
            |info: &RegionInfo| info.role == Role::Leader && info.state == RegionState::Live;
        let mut led = self.handle.regions();
        led.retain(leads);
        self.led
            .retain(|region, _| led.binary_search_by_key(region, |info| info.region_id).is_ok());
        self.ask_sizes(&led);
        self.beat_for_store();
        let now = self.clock.now();
        let mut splits = Vec::new();
        for batch in led.chunks(self.habits.batch) {
            let beats: Vec<_> = batch.iter().map(|info| self.beat_for(info, now)).collect();
            splits.extend(
                beats.iter().zip(batch).filter_map(|(beat, info)| self.wants_split(beat, info)),
            );
            let orders = self.ask(|placement| placement.region_heartbeats(&beats));
            orders.into_iter().flatten().for_each(|order| self.carry_out(order));
        }
        for (info, part_bytes) in splits {
            self.split(info, part_bytes);
        }
    }

    fn beat_for_store(&mut self) {
        let sizes = self.led.values().filter_map(|led| led.size);
        let led_size = sizes.fold(RegionSize::default(), |sum, size| RegionSize {
            bytes: sum.bytes.saturating_add(size.bytes),
            keys: sum.keys.saturating_add(size.keys),
        });
        let heartbeat = StoreHeartbeat {
            status: self.handle.store_status(),
            first: self.first,
            led_size,
            max_snapshots: self.habits.max_snapshots,
        };
        let heard = self.ask(|placement| placement.store_heartbeat(&heartbeat));
        self.first &= heard.is_none();
    }

    fn beat_for(&mut self, info: &RegionInfo, now: Duration) -> RegionHeartbeat {
        let others = || info.peers.iter().filter(|peer| peer.peer_id != info.peer_id);
        let down = others().filter(|peer| self.silent_ticks(info, peer) >= self.habits.down_ticks);
        let down = down.map(|peer| peer.peer_id).collect();
        let led = self.led.entry(info.region_id).or_default();
        let since = led.at.replace(now);
        let writes = match since {
            Some(_) => info.writes.saturating_sub(led.writes),
            None => 0,
        };
        led.writes = info.writes;
        let pending = others().filter(|peer| peer.in_snapshot || peer.lag > PENDING_ENTRIES);
        RegionHeartbeat {
            store: self.handle.store_id(),
            leader: info.peer_id,
            term: info.term,
            description: info.description.clone(),
            size: led.size,
            writes,
            elapsed: since.map_or(Duration::ZERO, |since| now.saturating_sub(since)),
            pending: pending.map(|peer| peer.peer_id).collect(),
            down,
        }
    }

    /// A leader that sleeps hears of no peer; it has its store listen for theirs.
    fn silent_ticks(&self, info: &RegionInfo, peer: &PeerProgress) -> u64 {
        let store = info.description.peer(peer.peer_id).map(|peer| peer.store);
        let lost = store.filter(|_| info.asleep);
        let lost = lost.and_then(|store| self.handle.inner.liveness.lost_for(store));
        lost.unwrap_or(0).max(peer.silent_ticks)
    }

    /// Asks the state machine for the sizes of those that were written to, a bounded number of them.
    fn ask_sizes(&mut self, led: &[RegionInfo]) {
        let behind = led.partition_point(|info| info.region_id <= self.cursor);
        let in_turn = led[behind..].iter().chain(&led[..behind]);
        let mut asked = 0;
        for info in in_turn {
            let region = self.led.entry(info.region_id).or_default();
            let state = (info.writes, info.description.epoch.version);
            if region.sized == Some(state) {
                continue;
            }
            if asked == MAX_SIZES {
                return;
            }
            asked += 1;
            self.cursor = info.region_id;
            let state_machine = &self.state_machine;
            let size = catch_unwind(AssertUnwindSafe(|| state_machine.size(info.region_id)));
            region.size = size.ok().flatten();
            region.sized = Some(state);
        }
    }

    /// Whether the store itself wants a region split, and how large its parts may be.
    fn wants_split<'a>(
        &self,
        beat: &RegionHeartbeat,
        info: &'a RegionInfo,
    ) -> Option<(&'a RegionInfo, u64)> {
        let led = self.led.get(&info.region_id)?;
        if self.habits.split.is_off() || led.splits || info.description.joint {
            return None;
        }
        let seconds = beat.elapsed.as_secs_f64();
        let load = if seconds > 0.0 { beat.writes as f64 / seconds } else { 0.0 };
        let part_bytes = self.habits.split.part_bytes(beat.size?, load)?;
        Some((info, part_bytes))
    }

    fn split(&mut self, info: &RegionInfo, part_bytes: u64) {
        let keys = self.requests().keys(&info.description, part_bytes);
        if keys.is_empty() || self.under_way >= MAX_UNDER_WAY {
            return;
        }
        tracing::info!(region = %info.region_id, parts = keys.len() + 1, "the region is to be split");
        if let Some(led) = self.led.get_mut(&info.region_id) {
            led.splits = true;
        }
        self.start(None, info, Operator::SplitAt(keys));
    }

    fn carry_out(&mut self, order: Order) {
        let Order { id, region, operator } = order;
        let store = self.handle.store_id();
        let refusal = match self.handle.region(region) {
            _ if self.under_way >= MAX_UNDER_WAY => "too many orders are under way".to_owned(),
            Some(info) => return self.start(Some(id), &info, operator),
            None => format!("region {region} is not on store {store}"),
        };
        let outcome = Outcome::Refused { reason: refusal, is_retryable: true };
        self.tell(&OrderReport { order: Some(id), store, region, operator, outcome });
    }

    fn requests(&self) -> Requests<'_> {
        Requests { placement: &*self.placement, state_machine: &*self.state_machine }
    }

    fn start(&mut self, order: Option<u64>, info: &RegionInfo, operator: Operator) {
        let (store, region) = (self.handle.store_id(), info.region_id);
        let report =
            move |operator, outcome| OrderReport { order, store, region, operator, outcome };
        match self.requests().request(info, &operator) {
            Ok(request) => {
                self.under_way += 1;
                let sender = self.reports.0.clone();
                self.handle.admin_with(region, request, move |answer| {
                    // Nobody listens any more once the store has ended.
                    let _ = sender.send(report(operator, outcome(answer)));
                });
            }
            Err(Refusal { reason, is_retryable }) => {
                let outcome = Outcome::Refused { reason, is_retryable };
                self.tell(&report(operator, outcome));
            }
        }
    }
}

fn outcome(answer: Regions) -> Outcome {
    match answer {
        Ok(regions) => Outcome::Done(regions),
        Err(error) if error.may_have_happened() => Outcome::Unknown { reason: error.to_string() },
        Err(error) => {
            Outcome::Refused { reason: error.to_string(), is_retryable: error.is_retryable() }
        }
    }
}
