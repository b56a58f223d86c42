//! The settings of a store, as TOML with readable durations and sizes.
//!
//! ```toml
//! cluster_id = 7
//! pollers = 2
//! sync = true
//!
//! [raft]
//! tick_interval = "500ms"
//! max_proposal_size = "8 MiB"
//! ```

use crate::error::StartError;
use crate::log_store::EngineConfig;
use crate::tuning::Bounds;
use bytesize::ByteSize;
use region::RegionConfig;
use serde::{Deserialize, Serialize, Serializer};
use std::path::Path;
use std::time::Duration;

/// Fewest and most regions in a round where that is left to the store.
const MIN_BATCH: usize = 64;
const MAX_BATCH: usize = 256;

/// Entries that shortening a log leaves, for followers that lag a little.
const KEPT_ENTRIES: u64 = 128;

/// The settings of a store. Every field has a default; unknown keys are refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StoreConfig {
    /// The cluster this store belongs to; the same on all its stores.
    pub cluster_id: u64,
    /// Poller threads. 0 leaves the number to the store: at most one for each core of the machine and 8, at least
    /// half as many. Without [`self_tuning`](Self::self_tuning) it is always the most.
    pub pollers: usize,
    /// Threads that apply committed commands; 0 applies in the pollers' own rounds, which is cheaper
    /// unless the state machine is slow.
    pub apply_pollers: usize,
    /// Threads that write the log. 0 lets pollers write themselves, which is right for a log in
    /// memory; with a durable log one is enough for most disks. Left out: 1, or 0 in memory.
    pub log_writers: Option<usize>,
    /// Whether the log is synced before anything is promised. Without it a crash of the machine, not
    /// of the process, loses acknowledged writes.
    pub sync: bool,
    /// Regions a poller handles in one round. 0 leaves the number to the store: 64 to 256. Without
    /// [`self_tuning`](Self::self_tuning) it is always 64.
    pub batch_size: usize,
    /// Whether what is left to the store follows the load, by how long regions wait for a poller.
    pub self_tuning: bool,
    /// Messages of one region handled in one round.
    pub message_budget: usize,
    /// Messages that wait for one region; more are refused as busy, or dropped if they are Raft's.
    pub mailbox_capacity: usize,
    /// Bytes that wait for one log writer or apply thread; pollers wait beyond it.
    #[serde(serialize_with = "exactly")]
    pub queue_size: ByteSize,
    /// Snapshots on their way at the same time, in each direction.
    pub max_snapshots: usize,
    /// Bytes of snapshots a second, in each direction.
    #[serde(serialize_with = "exactly")]
    pub snapshot_rate: ByteSize,
    /// Raft's settings.
    pub raft: RaftSettings,
    /// The log on disk.
    pub log: EngineConfig,
    /// What is told to the placement, if there is one, and when the store splits regions by itself.
    pub placement: PlacementSettings,
}

/// What concerns the [placement](crate::Placement).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PlacementSettings {
    /// How often it hears of the store and of the regions that the store leads.
    #[serde(with = "humantime_serde")]
    pub interval: Duration,
    /// Regions in one call.
    pub batch: usize,
    /// Regions that hold more are split, if their state machine can say; 0 never splits them for that.
    #[serde(serialize_with = "exactly")]
    pub split_size: ByteSize,
    /// Regions with more writes a second are split in half; 0 never splits them for that.
    pub split_writes: u64,
}

impl Default for PlacementSettings {
    fn default() -> Self {
        let interval = Duration::from_secs(10);
        Self { interval, batch: 1024, split_size: ByteSize(0), split_writes: 0 }
    }
}

/// Raft's settings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RaftSettings {
    /// The unit of all other times of Raft.
    #[serde(with = "humantime_serde")]
    pub tick_interval: Duration,
    /// A follower campaigns after between once and twice this many ticks without a leader.
    pub election_ticks: usize,
    /// A leader sends heartbeats this often.
    pub heartbeat_ticks: usize,
    /// How long a leader may answer reads alone after it sent what a quorum has answered. Left out: two ticks
    /// less than the election timeout, and that less the [drift](Self::MAX_CLOCK_DRIFT) of clocks. Zero: it
    /// asks for each read.
    #[serde(with = "humantime_serde")]
    pub lease: Option<Duration>,
    /// The largest command that may be proposed.
    #[serde(serialize_with = "exactly")]
    pub max_proposal_size: ByteSize,
    /// Entries of one append message.
    #[serde(serialize_with = "exactly")]
    pub max_append_size: ByteSize,
    /// Append messages on their way to one follower.
    pub max_inflight_appends: usize,
    /// Proposals of one region that wait for their answer.
    pub max_pending_proposals: usize,
    /// Entries of one region that are proposed and not committed.
    #[serde(serialize_with = "exactly")]
    pub max_uncommitted_size: ByteSize,
    /// Entries of one region that are committed and not applied.
    #[serde(serialize_with = "exactly")]
    pub max_unapplied_size: ByteSize,
    /// Entries of one region kept in memory for followers that lag a little.
    #[serde(serialize_with = "exactly")]
    pub entry_cache_size: ByteSize,
    /// The log of a region is shortened when it has this many entries more than needed.
    pub compact_after_entries: u64,
    /// It is also shortened when it is larger than this.
    #[serde(serialize_with = "exactly")]
    pub compact_after_size: ByteSize,
    /// And after so many ticks, however short it is.
    pub compact_after_ticks: u64,
    /// A region without anything to do for so many ticks falls asleep: it sends no heartbeats and costs no time
    /// until somebody wants something of it, or the store that leads it is lost. 0: never.
    pub sleep_after_ticks: usize,
    /// A region that has slept for so many ticks gives back its memory but for a few hundred bytes, until
    /// somebody wants something of it. 0: never.
    pub cold_after_ticks: u32,
    /// Each region that sleeps, cold or not, wakes once in so many ticks to see whether its peer still belongs to
    /// it: what it was not told because messages were lost it would not learn otherwise. 0: never.
    pub look_around_ticks: u64,
    /// Entries that are kept for a follower that lacks them; beyond, it needs a snapshot.
    pub spare_entries: u64,
    /// The same in bytes.
    #[serde(serialize_with = "exactly")]
    pub spare_size: ByteSize,
    /// Seed of election timeouts.
    pub seed: u64,
}

/// Writes a size so that the same is read back: `ByteSize` by itself is written with one digit after
/// the point, and 1,000,000 bytes would come back as 976.6 KiB.
pub(crate) fn exactly<S: Serializer>(size: &ByteSize, serializer: S) -> Result<S::Ok, S::Error> {
    let units = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10), ("B", 0)];
    let bytes = size.as_u64();
    let (unit, shift) = units
        .into_iter()
        .find(|(_, shift)| bytes > 0 && bytes.trailing_zeros() >= *shift)
        .unwrap_or(("B", 0));
    serializer.collect_str(&format_args!("{} {unit}", bytes >> shift))
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self {
            cluster_id: 1,
            pollers: 0,
            apply_pollers: 0,
            log_writers: None,
            sync: true,
            batch_size: 0,
            self_tuning: true,
            message_budget: 256,
            mailbox_capacity: 4096,
            queue_size: ByteSize::mib(64),
            max_snapshots: 8,
            snapshot_rate: ByteSize::mib(100),
            raft: RaftSettings::default(),
            log: EngineConfig::default(),
            placement: PlacementSettings::default(),
        }
    }
}

impl Default for RaftSettings {
    fn default() -> Self {
        let region = RegionConfig::new(1);
        Self {
            tick_interval: Duration::from_millis(500),
            election_ticks: region.election_ticks,
            heartbeat_ticks: region.heartbeat_ticks,
            lease: None,
            max_proposal_size: ByteSize(region.max_proposal_bytes as u64),
            max_append_size: ByteSize(region.max_size_per_msg_bytes as u64),
            max_inflight_appends: region.max_inflight_msgs,
            max_pending_proposals: region.max_pending_proposals,
            max_uncommitted_size: ByteSize(region.max_uncommitted_bytes as u64),
            max_unapplied_size: ByteSize(region.max_unapplied_bytes as u64),
            entry_cache_size: ByteSize(region.entry_cache_bytes as u64),
            compact_after_entries: region.compact_after_entries,
            compact_after_size: ByteSize(region.compact_after_bytes),
            compact_after_ticks: region.compact_after_ticks,
            sleep_after_ticks: 20,
            cold_after_ticks: 100,
            look_around_ticks: 7_200,
            spare_entries: region.spare_entries,
            spare_size: ByteSize(region.spare_bytes),
            seed: region.seed,
        }
    }
}

impl RaftSettings {
    /// By how much the rates of two stores' clocks may differ. A cluster with worse clocks must not use
    /// leases.
    pub const MAX_CLOCK_DRIFT: f64 = 0.1;

    /// How long a region sleeps before it is cold.
    pub(crate) fn cold_after(&self) -> Option<Duration> {
        let ticks = self.cold_after_ticks;
        (ticks > 0).then(|| self.tick_interval.saturating_mul(ticks))
    }

    /// So many ticks less than an election timeout, by the slowest clock.
    fn lease_below(&self, ticks: usize) -> Duration {
        let ticks = self.election_ticks.saturating_sub(ticks).min(10_000);
        self.tick_interval.mul_f64(ticks as f64 * (1.0 - Self::MAX_CLOCK_DRIFT))
    }
}

impl StoreConfig {
    /// Reads settings from a file.
    ///
    /// # Errors
    /// When the file cannot be read, is not TOML, has an unknown key, or a value out of its range;
    /// the error names the file, the key and what is allowed.
    pub fn from_file(path: &Path) -> Result<Self, StartError> {
        let fail = |reason: String| StartError::Config(format!("{}: {reason}", path.display()));
        let text = std::fs::read_to_string(path).map_err(|error| fail(error.to_string()))?;
        Self::from_toml(&text).map_err(|error| match error {
            StartError::Config(reason) => fail(reason),
            other => other,
        })
    }

    /// Reads settings from TOML text.
    ///
    /// # Errors
    /// As for [`from_file`](Self::from_file).
    pub fn from_toml(text: &str) -> Result<Self, StartError> {
        let config: Self = toml::from_str(text).map_err(|error| {
            let at = error.span().map_or(0, |span| span.start);
            let line = 1 + text[..at].matches('\n').count();
            // Which key it is, serde does not say.
            let shown = text.lines().nth(line - 1).unwrap_or_default().trim();
            let message = error.message().replace('\n', " ");
            StartError::Config(format!("line {line} ({shown}): {message}"))
        })?;
        config.validate()?;
        Ok(config)
    }

    /// Checks every value.
    ///
    /// # Errors
    /// Names the first field that is out of its range, its value, and the range.
    pub fn validate(&self) -> Result<(), StartError> {
        let bounded = [
            ("pollers", self.pollers, 0, 64),
            ("apply_pollers", self.apply_pollers, 0, 64),
            ("log_writers", self.log_writers.unwrap_or(0), 0, 16),
            ("batch_size", self.batch_size, 0, 4096),
            ("message_budget", self.message_budget, 1, 65_536),
            ("mailbox_capacity", self.mailbox_capacity, 16, 1 << 20),
            ("max_snapshots", self.max_snapshots, 1, 1024),
            ("placement.batch", self.placement.batch, 1, 65_536),
            ("raft.look_around_ticks", self.raft.look_around_ticks as usize, 0, 1_000_000_000),
            ("raft.cold_after_ticks", self.raft.cold_after_ticks as usize, 0, 1_000_000),
            ("log.recovery_threads", self.log.recovery_threads, 1, 64),
        ];
        for (field, value, min, max) in bounded {
            if !(min..=max).contains(&value) {
                return Err(out_of_range(field, value, min, max));
            }
        }
        let tick = self.raft.tick_interval;
        if tick < Duration::from_millis(5) || tick > Duration::from_secs(60) {
            return Err(StartError::Config(format!(
                "raft.tick_interval is {tick:?}, allowed is 5ms to 60s"
            )));
        }
        let interval = self.placement.interval;
        if interval < Duration::from_millis(10) || interval > Duration::from_secs(3600) {
            return Err(StartError::Config(format!(
                "placement.interval is {interval:?}, allowed is 10ms to 1h"
            )));
        }
        let sizes = [
            ("queue_size", self.queue_size, ByteSize::kib(64), ByteSize::gib(16)),
            ("snapshot_rate", self.snapshot_rate, ByteSize::kib(64), ByteSize::tib(1)),
            ("log.target_file_size", self.log.target_file_size, ByteSize::kib(4), ByteSize::gib(4)),
            ("log.purge_threshold", self.log.purge_threshold, ByteSize::kib(8), ByteSize::tib(1)),
        ];
        for (field, value, min, max) in sizes {
            if !(min..=max).contains(&value) {
                return Err(out_of_range(field, value, min, max));
            }
        }
        if self.log.purge_threshold < self.log.target_file_size {
            return Err(StartError::Config(format!(
                "log.purge_threshold is {}, allowed is log.target_file_size ({}) and more",
                self.log.purge_threshold, self.log.target_file_size
            )));
        }
        // A peer counts whole ticks, and the first may come at once: its promise may be a tick shorter.
        let (lease, most) = (self.raft.lease.unwrap_or_default(), self.raft.lease_below(1));
        if lease > most {
            return Err(StartError::Config(format!(
                "raft.lease is {lease:?}, allowed is 0s to {most:?}: by clocks and a tick less than the election timeout"
            )));
        }
        self.region_config().validate().map_err(|error| {
            let key = key_of(error.field);
            StartError::Config(format!("{key} is {}, allowed is {}", error.value, error.allowed))
        })
    }

    /// How many poller threads that makes to begin with, which is as many as there may ever be.
    pub fn poller_count(&self) -> usize {
        match self.pollers {
            0 => std::thread::available_parallelism().map_or(1, |cores| cores.get().min(8)),
            given => given,
        }
    }

    /// How many regions a round takes to begin with, which is as few as it may ever be.
    pub(crate) fn round_size(&self) -> usize {
        match self.batch_size {
            0 => MIN_BATCH,
            given => given,
        }
    }

    /// Within what the store tunes itself; `None` where there is nothing to tune.
    pub(crate) fn tuning_bounds(&self) -> Option<Bounds> {
        let most = self.poller_count();
        // Half of them, and two where there are two: those that wait for a slow state machine must not hold all
        // regions.
        let fewest = most.div_ceil(2).max(2).min(most);
        let pollers = if self.pollers == 0 { fewest..=most } else { most..=most };
        let size = self.round_size();
        let batch = if self.batch_size == 0 { size..=MAX_BATCH } else { size..=size };
        let bounds = Bounds { pollers, batch };
        (self.self_tuning && !bounds.are_fixed()).then_some(bounds)
    }

    pub(crate) fn region_config(&self) -> RegionConfig {
        let raft = &self.raft;
        let bytes = |size: ByteSize| usize::try_from(size.as_u64()).unwrap_or(usize::MAX);
        RegionConfig {
            election_ticks: raft.election_ticks,
            heartbeat_ticks: raft.heartbeat_ticks,
            max_size_per_msg_bytes: bytes(raft.max_append_size),
            max_inflight_msgs: raft.max_inflight_appends,
            max_proposal_bytes: bytes(raft.max_proposal_size),
            max_pending_proposals: raft.max_pending_proposals,
            max_uncommitted_bytes: bytes(raft.max_uncommitted_size),
            max_unapplied_bytes: bytes(raft.max_unapplied_size),
            entry_cache_bytes: bytes(raft.entry_cache_size),
            // Asked for before the ticks are known to be sound.
            unknown_after_ticks: raft.election_ticks.saturating_mul(2),
            compact_after_entries: raft.compact_after_entries,
            compact_keep_entries: KEPT_ENTRIES.min(raft.compact_after_entries / 2),
            compact_after_bytes: raft.compact_after_size.as_u64(),
            compact_after_ticks: raft.compact_after_ticks,
            sleep_after_ticks: raft.sleep_after_ticks,
            spare_entries: raft.spare_entries,
            spare_bytes: raft.spare_size.as_u64(),
            lease: raft.lease.unwrap_or_else(|| raft.lease_below(2)),
            seed: raft.seed,
            ..RegionConfig::new(self.cluster_id)
        }
    }
}

/// The key of a setting that the region crate knows by another name.
fn key_of(field: &'static str) -> String {
    let key = match field {
        "cluster_id" => return field.to_owned(),
        "max_size_per_msg_bytes" => "max_append_size",
        "max_inflight_msgs" => "max_inflight_appends",
        "max_proposal_bytes" => "max_proposal_size",
        "max_uncommitted_bytes" => "max_uncommitted_size",
        "max_unapplied_bytes" => "max_unapplied_size",
        "entry_cache_bytes" => "entry_cache_size",
        "compact_after_bytes" => "compact_after_size",
        "spare_bytes" => "spare_size",
        // Derived from this one.
        "unknown_after_ticks" => "election_ticks",
        other => other,
    };
    format!("raft.{key}")
}

fn out_of_range(
    field: &str,
    value: impl std::fmt::Display,
    min: impl std::fmt::Display,
    max: impl std::fmt::Display,
) -> StartError {
    StartError::Config(format!("{field} is {value}, allowed is {min} to {max}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        StoreConfig::from_toml(text).expect_err("must be refused").to_string()
    }

    #[test]
    fn readable_values_are_read() {
        let text = "sync = false\n[raft]\ntick_interval = \"50ms\"\nmax_proposal_size = \"2 MiB\"";
        let config = StoreConfig::from_toml(text).expect("sound");
        assert!(!config.sync);
        assert_eq!(config.raft.tick_interval, Duration::from_millis(50));
        assert_eq!(config.region_config().max_proposal_bytes, 2 << 20);
    }

    #[test]
    fn a_lease_is_shorter_than_any_promise_by_the_slowest_clock() {
        let lease = |text: &str| StoreConfig::from_toml(text).expect("sound").region_config().lease;
        assert_eq!(lease(""), Duration::from_millis(3_600));
        assert_eq!(lease("[raft]\nlease = \"0s\""), Duration::ZERO);
        assert_eq!(lease("[raft]\nlease = \"4050ms\""), Duration::from_millis(4_050));
        assert_eq!(
            lease("[raft]\nheartbeat_ticks = 1\nelection_ticks = 3"),
            Duration::from_millis(450)
        );
    }

    #[test]
    fn logs_may_be_shortened_early() {
        let config = StoreConfig::from_toml("[raft]\ncompact_after_entries = 4").expect("sound");
        assert_eq!(config.region_config().compact_keep_entries, 2);
    }

    #[test]
    fn defaults_are_sound_and_survive_toml() {
        let text = toml::to_string(&StoreConfig::default()).expect("serialisable");
        assert_eq!(StoreConfig::from_toml(&text).expect("sound"), StoreConfig::default());
    }

    #[test]
    fn sizes_survive_toml_to_the_byte() {
        for (bytes, text) in [
            (1_000_000, "max_proposal_size = \"1000000 B\""),
            (1_048_577, "max_proposal_size = \"1048577 B\""),
            (3 << 10, "max_proposal_size = \"3 KiB\""),
            (8 << 20, "max_proposal_size = \"8 MiB\""),
        ] {
            let mut config = StoreConfig::default();
            config.raft.max_proposal_size = ByteSize(bytes);
            config.log.compression_threshold = ByteSize(u64::MAX - bytes);
            let written = toml::to_string(&config).expect("serialisable");
            assert!(written.contains(text), "{written}");
            assert_eq!(StoreConfig::from_toml(&written).expect("sound"), config);
        }
    }

    #[test]
    fn ticks_beyond_all_bounds_are_refused_like_others() {
        for spoil in [
            |raft: &mut RaftSettings| raft.election_ticks = usize::MAX,
            |raft: &mut RaftSettings| raft.heartbeat_ticks = usize::MAX,
        ] {
            let mut config = StoreConfig::default();
            spoil(&mut config.raft);
            let error = config.validate().expect_err("out of range").to_string();
            assert!(error.contains("_ticks is 18446744073709551615, allowed is"), "{error}");
        }
    }

    #[test]
    fn bad_values_are_refused_by_name() {
        for (text, names) in [
            ("pollars = 3", vec!["pollars", "line 1"]),
            ("\n[raft]\ntick = 3", vec!["tick", "line 3"]),
            ("pollers = 1000", vec!["pollers", "1000", "64"]),
            ("pollers = \"two\"", vec!["line 1 (pollers = ", "invalid type"]),
            ("[raft]\ntick_interval = \"1us\"", vec!["raft.tick_interval", "5ms"]),
            ("[raft]\nelection_ticks = 1", vec!["election_ticks"]),
            ("queue_size = \"1 B\"", vec!["queue_size"]),
            ("[log]\npurge_threshold = \"1 MiB\"", vec!["log.purge_threshold is 1", "128"]),
            ("[raft]\nlease = \"4060ms\"", vec!["raft.lease is 4.06s, allowed is 0s to 4.05s"]),
            ("[raft]\nlease = \"5s\"", vec!["raft.lease is 5s"]),
            ("[placement]\ninterval = \"1ms\"", vec!["placement.interval is 1ms", "10ms"]),
            ("[placement]\nbatch = 0", vec!["placement.batch is 0", "65536"]),
            ("cluster_id = 0", vec!["cluster_id is 0"]),
            ("[raft]\nmax_append_size = \"1 TiB\"", vec!["raft.max_append_size is"]),
        ] {
            let error = refused(text);
            for name in names {
                assert!(error.contains(name), "{text:?}: {error}");
            }
            assert!(!error.contains('\n'), "one line: {error:?}");
        }
    }
}
