//! The settings of all regions of a store.

use std::time::Duration;

use crate::ids::{Index, PeerId};

/// Settings, shared by all regions of a store as `Arc<RegionConfig>`. Every bound on a region's
/// queues and memory is here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegionConfig {
    /// The cluster; messages of another one are refused.
    pub cluster_id: u64,
    /// Ticks without a word of the leader after which a follower may campaign. The real wait is
    /// drawn from here to twice as many.
    pub election_ticks: usize,
    /// Ticks between two heartbeats of a leader.
    pub heartbeat_ticks: usize,
    /// Largest message of a leader to a follower, in bytes, unless a single entry is larger. Receivers
    /// take up to 64 MiB whatever theirs is.
    pub max_size_per_msg_bytes: usize,
    /// Messages to one follower under way at the same time.
    pub max_inflight_msgs: usize,
    /// Largest payload of a command that is proposed here. Followers take up to 64 MiB.
    pub max_proposal_bytes: usize,
    /// Proposals waiting for their entry to commit; more are `Busy`. As many reads may wait besides.
    pub max_pending_proposals: usize,
    /// Payload bytes that a leader has appended and not yet seen committed; more are `Busy`.
    pub max_uncommitted_bytes: usize,
    /// Bytes handed out to be applied and not yet reported as applied, beyond which no more are
    /// handed out, proposals are `Busy` and a follower drops appends.
    pub max_unapplied_bytes: usize,
    /// A page: most committed bytes handed out at once, and most bytes of the log read at once.
    pub max_committed_bytes_per_ready: usize,
    /// Bytes of entries kept in memory beyond those that the region itself still needs, for
    /// followers that lag a little.
    pub entry_cache_bytes: usize,
    /// Ticks without leadership after which waiting proposals are answered as unknown.
    pub unknown_after_ticks: usize,
    /// Ticks without any progress of the log's writes after which a leader gives up its leadership,
    /// so that a disk that hangs does not hold the region.
    pub write_stall_ticks: usize,
    /// Applied entries in the log from which on a leader has it cut.
    pub compact_after_entries: u64,
    /// Entries that a cut leaves, for followers that lag a little.
    pub compact_keep_entries: u64,
    /// Bytes of applied entries in the log from which on a leader has it cut.
    pub compact_after_bytes: u64,
    /// Ticks after the last cut from which on a leader has a log cut that is neither long nor large.
    pub compact_after_ticks: u64,
    /// Applied entries that a leader keeps for a follower that lacks them. Beyond, the log is cut, and the
    /// follower needs a snapshot.
    pub spare_entries: u64,
    /// The same in bytes.
    pub spare_bytes: u64,
    /// Ticks without anything to do after which a leader asks the others to sleep; 0 for never.
    pub sleep_after_ticks: usize,
    /// How long after something was sent that a quorum has answered a leader may read alone; zero for
    /// never. Must be shorter than `election_ticks - 1` ticks of any peer by what their clocks and the
    /// leader's may differ in rate: a peer counts whole ticks, and the first may come at once. Nobody here
    /// knows how long a tick is, so whoever does has to check it.
    pub lease: Duration,
    /// A number that no other life of the store's process has: else the answer to the question of an earlier
    /// life for a read could be taken for one of this life.
    pub incarnation: u64,
    /// Seed of the election timeouts. The same on all stores does no harm: they differ by peer.
    pub seed: u64,
}

/// A setting outside its allowed range.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("region config: {field} is {value}, allowed is {allowed}")]
pub struct ConfigError {
    /// Name of the setting.
    pub field: &'static str,
    /// Its value.
    pub value: u64,
    /// What it may be.
    pub allowed: String,
}

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;
const GIB: usize = 1 << 30;

/// No setting may allow larger commands or messages, and a receiver refuses what is larger: its own
/// settings may lag behind the sender's while a new one is rolled out.
pub(crate) const MAX_COMMAND_BYTES: usize = 64 * MIB;

impl RegionConfig {
    /// Sensible settings for a cluster.
    pub fn new(cluster_id: u64) -> Self {
        Self {
            cluster_id,
            election_ticks: 10,
            heartbeat_ticks: 2,
            max_size_per_msg_bytes: MIB,
            max_inflight_msgs: 256,
            max_proposal_bytes: 8 * MIB,
            max_pending_proposals: 65_536,
            max_uncommitted_bytes: 64 * MIB,
            max_unapplied_bytes: 64 * MIB,
            max_committed_bytes_per_ready: MIB,
            entry_cache_bytes: 64 * KIB,
            unknown_after_ticks: 20,
            write_stall_ticks: 40,
            compact_after_entries: 1_000,
            compact_keep_entries: 128,
            compact_after_bytes: 64 * MIB as u64,
            compact_after_ticks: 1_200,
            spare_entries: 100_000,
            spare_bytes: 256 * MIB as u64,
            sleep_after_ticks: 0,
            lease: Duration::ZERO,
            incarnation: 0,
            seed: 0,
        }
    }

    /// Checks every setting.
    ///
    /// # Errors
    /// Names the first setting outside its range, its value, and the range.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let ranges = [
            ("cluster_id", self.cluster_id, 1, u64::MAX),
            ("heartbeat_ticks", self.heartbeat_ticks as u64, 1, 1_000),
            // Below twice the heartbeat one lost heartbeat would cost the leadership.
            (
                "election_ticks",
                self.election_ticks as u64,
                (self.heartbeat_ticks as u64).saturating_mul(2).saturating_add(1),
                10_000,
            ),
            (
                "max_size_per_msg_bytes",
                self.max_size_per_msg_bytes as u64,
                1,
                MAX_COMMAND_BYTES as u64,
            ),
            ("max_inflight_msgs", self.max_inflight_msgs as u64, 1, 4_096),
            ("max_proposal_bytes", self.max_proposal_bytes as u64, 1, MAX_COMMAND_BYTES as u64),
            ("max_pending_proposals", self.max_pending_proposals as u64, 1, 1 << 24),
            (
                "max_uncommitted_bytes",
                self.max_uncommitted_bytes as u64,
                self.max_size_per_msg_bytes.max(self.max_proposal_bytes) as u64,
                4 * GIB as u64,
            ),
            (
                "max_committed_bytes_per_ready",
                self.max_committed_bytes_per_ready as u64,
                1,
                64 * MIB as u64,
            ),
            (
                "max_unapplied_bytes",
                self.max_unapplied_bytes as u64,
                self.max_committed_bytes_per_ready as u64,
                4 * GIB as u64,
            ),
            ("entry_cache_bytes", self.entry_cache_bytes as u64, 0, GIB as u64),
            ("unknown_after_ticks", self.unknown_after_ticks as u64, 1, 1_000_000),
            ("write_stall_ticks", self.write_stall_ticks as u64, 1, 1_000_000),
            // Of less, the entry that has the log cut would itself be a reason to cut it.
            ("compact_after_entries", self.compact_after_entries, 4, 1 << 40),
            ("compact_keep_entries", self.compact_keep_entries, 0, self.compact_after_entries),
            ("compact_after_bytes", self.compact_after_bytes, 1, 1 << 50),
            ("compact_after_ticks", self.compact_after_ticks, 1, 1 << 40),
            ("sleep_after_ticks", self.sleep_after_ticks as u64, 0, 1_000_000),
            ("spare_entries", self.spare_entries, self.compact_after_entries, 1 << 40),
            ("spare_bytes", self.spare_bytes, self.compact_after_bytes, 1 << 50),
        ];
        for (field, value, least, most) in ranges {
            if value < least || value > most {
                return Err(ConfigError { field, value, allowed: format!("{least} to {most}") });
            }
        }
        Ok(())
    }
}

impl RegionConfig {
    /// What raft-rs is to know of it.
    pub(crate) fn for_raft(&self, id: PeerId, applied: Index) -> raft::Config {
        raft::Config {
            id: id.get(),
            applied: applied.get(),
            election_tick: self.election_ticks,
            heartbeat_tick: self.heartbeat_ticks,
            max_size_per_msg: self.max_size_per_msg_bytes as u64,
            max_inflight_msgs: self.max_inflight_msgs,
            max_uncommitted_size: self.max_uncommitted_bytes as u64,
            max_committed_size_per_ready: self.max_committed_bytes_per_ready as u64,
            check_quorum: true,
            pre_vote: true,
            skip_bcast_commit: true,
            batch_append: true,
            ..raft::Config::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_sound() {
        RegionConfig::new(1).validate().unwrap();
    }

    #[test]
    fn errors_name_field_value_and_range() {
        let config = RegionConfig { election_ticks: 4, ..RegionConfig::new(1) };
        assert_eq!(
            config.validate().unwrap_err().to_string(),
            "region config: election_ticks is 4, allowed is 5 to 10000"
        );
        let config = RegionConfig { max_uncommitted_bytes: 9, ..RegionConfig::new(1) };
        assert_eq!(config.validate().unwrap_err().field, "max_uncommitted_bytes");
        assert_eq!(RegionConfig::new(0).validate().unwrap_err().field, "cluster_id");
    }
}
