//! What a run is made of: the cluster, its network and load, and what happens to it when.
//!
//! A plan is plain data. It follows from a scenario and a seed, can be written to a file and read back,
//! and can be shrunk: leave actions out, run it again.

use crate::ambush::{Sight, Slow, Strike};
use serde::{Deserialize, Serialize};

/// Everything about a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// The scenario it comes from.
    pub scenario: String,
    /// Decides everything that the plan leaves open.
    pub seed: u64,
    /// The stores.
    pub cluster: ClusterPlan,
    /// What happens to messages.
    pub network: NetworkPlan,
    /// What clients do.
    pub load: LoadPlan,
    /// How long faults and load go on, in microseconds of simulated time.
    pub duration_us: u64,
    /// In the order of their times.
    pub actions: Vec<Timed>,
}

/// Where the logs are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogKind {
    /// A model of a log in memory.
    Model,
    /// raft-engine over simulated files.
    Engine,
}

/// The stores of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterPlan {
    /// Stores, 1 to 7.
    pub stores: u64,
    /// Regions.
    pub regions: u64,
    /// Peers of each region, at most as many as stores.
    pub replicas: u64,
    /// Where the logs are.
    pub log: LogKind,
    /// Poller threads of a store.
    pub pollers: usize,
    /// Log writer threads of a store; 0: pollers write themselves.
    pub log_writers: usize,
    /// Apply threads of a store; 0: pollers apply in their rounds.
    pub apply_pollers: usize,
    /// A tick, in milliseconds.
    pub tick_ms: u64,
    /// Ticks of an election timeout.
    pub election_ticks: usize,
    /// Regions of a round.
    pub batch_size: usize,
    /// Messages of a region and round.
    pub message_budget: usize,
    /// Messages that wait for a region.
    pub mailbox_capacity: usize,
    /// A log is cut beyond so many entries.
    pub compact_after_entries: u64,
    /// Whether regions are split and get other peers; then clients look up where their keys are.
    #[serde(default)]
    pub regions_move: bool,
    /// Whether a placement hears of the regions, and orders them about.
    #[serde(default)]
    pub placed: bool,
    /// Ticks after which an idle region sleeps; 0 for never.
    #[serde(default)]
    pub sleep_after_ticks: usize,
    /// Ticks of sleep after which a region is cold; 0 for never.
    #[serde(default)]
    pub cold_after_ticks: u32,
    /// Whether leaders answer reads by a lease. Then clocks go no further apart than leases bear.
    #[serde(default)]
    pub leases: bool,
    /// Stores whose first start is cut short at this call to a seam.
    pub crash_at_bootstrap: Option<(u64, u64)>,
}

/// What happens to messages, when nothing special is going on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkPlan {
    /// From and to, in microseconds.
    pub delay_us: (u64, u64),
    /// Of 1,000 messages, so many are lost.
    pub drop_pm: u64,
    /// Of 1,000 packets, so many come twice.
    pub duplicate_pm: u64,
    /// Of 1,000 packets, so many take much longer.
    pub straggler_pm: u64,
    /// Whether the packets of a link arrive in order.
    pub in_order: bool,
    /// Whether messages pass through their encoded form.
    pub encodes: bool,
}

impl Default for NetworkPlan {
    fn default() -> Self {
        Self {
            delay_us: (100, 1000),
            drop_pm: 0,
            duplicate_pm: 0,
            straggler_pm: 0,
            in_order: true,
            encodes: false,
        }
    }
}

/// What clients do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoadPlan {
    /// Clients, each with one operation under way.
    pub clients: u64,
    /// Between an answer and the next operation, from and to, in microseconds.
    pub think_us: (u64, u64),
    /// Registers of a region.
    pub keys: u64,
    /// Of 1,000 operations, so many go to the first region.
    pub hot_pm: u64,
    /// Of 1,000 operations, so many read through the log.
    pub read_pm: u64,
    /// Of 1,000 operations, so many read at the leader alone, or at who is taken for it.
    #[serde(default)]
    pub leader_read_pm: u64,
    /// Of 1,000 operations, so many read at any store what is acknowledged.
    #[serde(default)]
    pub any_read_pm: u64,
    /// Of 1,000 operations, so many read at any store what is applied there.
    #[serde(default)]
    pub stale_read_pm: u64,
    /// Of 1,000 operations, so many compare and set.
    pub compare_pm: u64,
    /// Of 1,000 operations, so many carry kilobytes.
    pub big_pm: u64,
    /// Of 1,000 operations, so many name a wrong epoch.
    pub wrong_epoch_pm: u64,
    /// A client waits so long for an answer before it goes on without.
    pub patience_us: u64,
}

/// An action and its time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timed {
    /// Microseconds from the start.
    pub at_us: u64,
    /// What happens.
    #[serde(flatten)]
    pub action: Action,
}

/// What happens to the cluster at a time, and for how long.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case")]
#[allow(missing_docs, reason = "fields are stores, microseconds and counts, as they are named")]
pub enum Action {
    /// A store's process ends at once and starts again after a while.
    Crash { store: u64, down_us: u64 },
    /// The same, at the so-manieth call from now that the process makes to log, state machine or
    /// transport.
    CrashInside { store: u64, calls: u64, down_us: u64 },
    /// A store is shut down in order and starts again after a while.
    Restart { store: u64, down_us: u64 },
    /// A store stands still.
    Pause { store: u64, for_us: u64 },
    /// A store's clock leaps forward.
    JumpClock { store: u64, by_us: u64 },
    /// A store's clock runs at so many thousandths of the true speed.
    DriftClock { store: u64, speed_pm: u64, for_us: u64 },
    /// Nothing passes between these stores and the others.
    Partition { side: Vec<u64>, for_us: u64 },
    /// Nothing passes from one store to another.
    CutOneWay { from: u64, to: u64, for_us: u64 },
    /// Nothing passes between two stores.
    CutBetween { one: u64, other: u64, for_us: u64 },
    /// A link is slow.
    SlowLink { from: u64, to: u64, by_us: u64, for_us: u64 },
    /// The transport takes nothing for a store.
    FullPipe { from: u64, to: u64, for_us: u64 },
    /// More messages are lost, of 1,000 so many.
    Lose { drop_pm: u64, for_us: u64 },
    /// Old messages come again.
    Replay { count: u64 },
    /// A store's next write fails.
    FailWrite { store: u64 },
    /// A store's next sync fails.
    FailSync { store: u64 },
    /// A store's disk is full.
    FillDisk { store: u64, for_us: u64 },
    /// Each write of a store takes longer.
    SlowDisk { store: u64, by_us: u64, for_us: u64 },
    /// A store's writes do not return.
    HangDisk { store: u64, for_us: u64 },
    /// A store's process ends, and a bit of its log flips; it is repaired after a while.
    DamageLog { store: u64, down_us: u64, for_us: u64 },
    /// A store's state machine makes everything durable.
    Flush { store: u64 },
    /// A store gives back disk space of its log.
    Reclaim { store: u64 },
    /// Many proposals at once to one region of a store.
    Burst { store: u64, region: u64, count: u64 },
    /// A peer stands for election.
    Campaign { store: u64, region: u64 },
    /// A region gets other peers: which region, and which ones, follows from the numbers.
    ChangePeers { region: u64, choice: u64 },
    /// A region is split.
    Split { region: u64, choice: u64 },
    /// A region's leader hands over.
    Transfer { region: u64, choice: u64 },
    /// A region comes to one more store.
    Add { region: u64, choice: u64 },
    /// The youngest region loses its peer on the store that the first region has come to last.
    Uproot,
    /// A thread of a store stands still.
    Stall { store: u64, thread: Slow, for_us: u64 },
    /// The first store that is seen in the midst of something is struck.
    Ambush { sight: Sight, strike: Strike },
    /// All regions that sleep now must be led after this time, by another store than the one named. A store that
    /// is deaf and not mute has peers follow it as soon as a region wakes there.
    ExpectLeaders {
        without: u64,
        within_us: u64,
        #[serde(default)]
        deaf: bool,
    },
    /// Every region must answer a write within this time, whatever else is going on.
    ExpectService { within_us: u64 },
}

impl Action {
    /// How long it goes on before it is taken back; `None` if it is over at once.
    pub fn lasts_us(&self) -> Option<u64> {
        match self {
            Action::Pause { for_us, .. }
            | Action::DriftClock { for_us, .. }
            | Action::Partition { for_us, .. }
            | Action::CutOneWay { for_us, .. }
            | Action::CutBetween { for_us, .. }
            | Action::SlowLink { for_us, .. }
            | Action::FullPipe { for_us, .. }
            | Action::Lose { for_us, .. }
            | Action::FillDisk { for_us, .. }
            | Action::SlowDisk { for_us, .. }
            | Action::HangDisk { for_us, .. }
            | Action::DamageLog { for_us, .. } => Some(*for_us),
            _ => None,
        }
    }
}

impl Action {
    /// The region that it concerns, if it is one.
    pub fn region(&self) -> Option<u64> {
        match self {
            Action::Burst { region, .. } | Action::Campaign { region, .. } => Some(*region),
            _ => None,
        }
    }

    /// The stores that it names.
    fn stores(&self) -> Vec<u64> {
        match self {
            Action::Crash { store, .. }
            | Action::CrashInside { store, .. }
            | Action::Restart { store, .. }
            | Action::Pause { store, .. }
            | Action::JumpClock { store, .. }
            | Action::DriftClock { store, .. }
            | Action::FailWrite { store }
            | Action::FailSync { store }
            | Action::FillDisk { store, .. }
            | Action::SlowDisk { store, .. }
            | Action::HangDisk { store, .. }
            | Action::DamageLog { store, .. }
            | Action::Flush { store }
            | Action::Reclaim { store }
            | Action::Burst { store, .. }
            | Action::Stall { store, .. }
            | Action::Campaign { store, .. } => vec![*store],
            Action::CutOneWay { from, to, .. }
            | Action::SlowLink { from, to, .. }
            | Action::FullPipe { from, to, .. } => vec![*from, *to],
            Action::CutBetween { one, other, .. } => vec![*one, *other],
            Action::Partition { side, .. } => side.clone(),
            Action::Lose { .. }
            | Action::Replay { .. }
            | Action::ChangePeers { .. }
            | Action::Split { .. }
            | Action::Transfer { .. }
            | Action::Add { .. }
            | Action::Uproot
            | Action::Ambush { .. }
            | Action::ExpectLeaders { .. }
            | Action::ExpectService { .. } => Vec::new(),
        }
    }
}

impl Plan {
    /// Checks a plan that was read from a file.
    ///
    /// # Errors
    /// Names the figure that is out of range.
    pub fn validate(&self) -> Result<(), String> {
        let cluster = &self.cluster;
        let figures = [
            ("cluster.stores", cluster.stores, 1, 7),
            ("cluster.regions", cluster.regions, 1, 1000),
            ("cluster.replicas", cluster.replicas, 1, cluster.stores),
            ("cluster.pollers", cluster.pollers as u64, 1, 8),
            ("cluster.log_writers", cluster.log_writers as u64, 0, 16),
            ("cluster.apply_pollers", cluster.apply_pollers as u64, 0, 64),
            ("cluster.tick_ms", cluster.tick_ms, 5, 60_000),
            ("cluster.election_ticks", cluster.election_ticks as u64, 4, 1000),
            ("cluster.sleep_after_ticks", cluster.sleep_after_ticks as u64, 0, 1000),
            ("cluster.cold_after_ticks", u64::from(cluster.cold_after_ticks), 0, 1000),
            ("cluster.batch_size", cluster.batch_size as u64, 1, 4096),
            ("cluster.message_budget", cluster.message_budget as u64, 1, 65_536),
            ("cluster.mailbox_capacity", cluster.mailbox_capacity as u64, 16, 1 << 20),
            ("cluster.compact_after_entries", cluster.compact_after_entries, 1, 1 << 40),
            ("network.delay_us", self.network.delay_us.1, self.network.delay_us.0, 60_000_000),
            ("network.drop_pm", self.network.drop_pm, 0, 1000),
            ("network.duplicate_pm", self.network.duplicate_pm, 0, 1000),
            ("network.straggler_pm", self.network.straggler_pm, 0, 1000),
            ("load.think_us", self.load.think_us.1, self.load.think_us.0, 3_600_000_000),
            ("load.patience_us", self.load.patience_us, 1, 3_600_000_000),
            ("load.clients", self.load.clients, 1, 1000),
            ("load.keys", self.load.keys, 1, 900),
            ("duration_us", self.duration_us, 1, 3_600_000_000),
        ];
        for (name, value, min, max) in figures {
            if !(min..=max).contains(&value) {
                return Err(format!("{name} is {value}, allowed is {min} to {max}"));
            }
        }
        let load = &self.load;
        let kinds_pm = [load.read_pm, load.compare_pm, load.leader_read_pm, load.any_read_pm]
            .iter()
            .fold(load.stale_read_pm, |sum, pm| sum.saturating_add(*pm));
        if kinds_pm > 1000 {
            return Err(format!(
                "{kinds_pm} of 1,000 operations read or compare, allowed are 1,000"
            ));
        }
        self.check_clocks()?;
        for Timed { at_us, action } in &self.actions {
            if *at_us > self.duration_us || action.lasts_us() > Some(3_600_000_000) {
                return Err(format!("{action:?} at {at_us} begins or ends after the run"));
            }
            if matches!(action, Action::Burst { count, .. } if *count > 100_000) {
                return Err(format!("{action:?} has too many proposals, allowed are 100,000"));
            }
            let store_is_there = |store: u64| (1..=cluster.stores).contains(&store);
            let region_is_there =
                action.region().is_none_or(|region| (1..=cluster.regions).contains(&region));
            if !action.stores().into_iter().all(store_is_there) || !region_is_there {
                return Err(format!("{action:?} names a store or region that is not there"));
            }
        }
        Ok(())
    }
}

/// The speeds of clocks that leases bear, in thousandths: no two differ by 10 %.
pub(crate) const FAIR_SPEEDS_PM: std::ops::RangeInclusive<u64> = 955..=1045;

impl Plan {
    /// Where there are leases, clocks do no worse than a lease is promised to bear: their rates differ by less
    /// than 10 %; and one leaps once in two election timeouts, since each leap makes a tick come early, and
    /// the lease is shorter than the election timeout by one tick for that.
    fn check_clocks(&self) -> Result<(), String> {
        let mut leapt = std::collections::BTreeMap::new();
        for Timed { at_us, action } in self.actions.iter().filter(|_| self.cluster.leases) {
            let unfair = match action {
                Action::DriftClock { speed_pm, .. } => !FAIR_SPEEDS_PM.contains(speed_pm),
                Action::JumpClock { store, .. } => leapt
                    .insert(*store, *at_us)
                    .is_some_and(|last: u64| *at_us < last + self.cluster.election_us()),
                _ => false,
            };
            if unfair {
                return Err(format!("{action:?} at {at_us} is more than leases bear"));
            }
        }
        Ok(())
    }

    /// Leaves out leaps of clocks that leases do not bear. The actions are in order.
    pub(crate) fn keep_clocks_fair(&mut self) {
        if !self.cluster.leases {
            return;
        }
        let (gap_us, mut leapt) = (self.cluster.election_us(), std::collections::BTreeMap::new());
        self.actions.retain(|timed| {
            let Action::JumpClock { store, .. } = timed.action else { return true };
            let last = leapt.get(&store).copied();
            let is_fair = last.is_none_or(|last: u64| timed.at_us >= last + gap_us);
            if is_fair {
                leapt.insert(store, timed.at_us);
            }
            is_fair
        });
    }
}

impl ClusterPlan {
    /// The longest that a follower waits for its leader, in microseconds.
    pub fn election_us(&self) -> u64 {
        2 * self.election_ticks as u64 * self.tick_ms * 1000
    }

    /// The stores that hold a region, by number from 1.
    pub fn stores_of(&self, region: u64) -> Vec<u64> {
        (0..self.replicas).map(|peer| 1 + (region + peer) % self.stores).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn actions_survive_json() {
        let timed = Timed { at_us: 7, action: Action::Partition { side: vec![1, 2], for_us: 9 } };
        let text = serde_json::to_string(&timed).expect("serialisable");
        assert_eq!(text, r#"{"at_us":7,"do":"partition","side":[1,2],"for_us":9}"#);
        assert_eq!(serde_json::from_str::<Timed>(&text).expect("sound"), timed);
    }
}
