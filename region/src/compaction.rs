//! When the log's head may go.
//!
//! The leader decides: when the log has become long, large or old, it goes up to what every peer has, less
//! a few entries. A peer that is slow or down is spared up to a bound; beyond it the log goes on without
//! it, and a snapshot will have to help. The decision is an entry of the log, so that all peers cut at the
//! same place; each cuts no further than its own state machine has flushed.

use crate::config::RegionConfig;
use crate::ids::Index;

/// A leader's plans for the log's head.
#[derive(Default)]
pub(crate) struct Compaction {
    /// Target of the last entry proposed.
    target: u64,
    /// Index of the last entry proposed.
    proposed: u64,
    /// Ticks since then.
    ticks: u64,
    /// Somebody needs the disk space.
    urgent: bool,
}

/// Where the log stands.
pub(crate) struct LogState {
    pub(crate) truncated: Index,
    pub(crate) applied: Index,
    /// Size of what is not truncated, about.
    pub(crate) bytes: u64,
    /// Last entry that every peer has.
    pub(crate) matched_by_all: Index,
    /// The oldest snapshot on its way to a peer.
    pub(crate) snapshot: Option<Index>,
}

impl Compaction {
    /// Up to where to cut, if it is worth an entry now.
    pub(crate) fn target(&self, config: &RegionConfig, state: &LogState) -> Option<Index> {
        let (truncated, applied) = (state.truncated.get(), state.applied.get());
        if self.proposed > applied || applied <= truncated {
            return None;
        }
        let held = applied - truncated;
        let long = held > config.compact_after_entries;
        let large = state.bytes > config.compact_after_bytes;
        let old = self.ticks >= config.compact_after_ticks;
        if !(long || large || old || self.urgent) {
            return None;
        }
        let keep = if long { config.compact_keep_entries } else { 0 };
        let spared = state.matched_by_all.get().min(applied).saturating_sub(keep);
        let target = spared.max(self.forced(config, state));
        // A state machine that has not flushed, or a slow peer, must not draw an entry a tick.
        let step = match long {
            true => (config.compact_after_entries - config.compact_keep_entries) / 2,
            false => 1,
        };
        let worth_it = target >= truncated.max(self.target) + step.max(1);
        worth_it.then(|| Index::new(target))
    }

    /// Up to where to cut whoever lacks it, 0 if nowhere.
    ///
    /// Invariant: not past a snapshot on its way, unless it has been for so long that the log has grown to
    /// twice its bound; its receiver would need another one at once.
    fn forced(&self, config: &RegionConfig, state: &LogState) -> u64 {
        let (truncated, applied) = (state.truncated.get(), state.applied.get());
        let held = applied - truncated;
        let too_large = state.bytes > config.spare_bytes;
        if held <= config.spare_entries && !too_large {
            return 0;
        }
        let target = applied.saturating_sub(config.compact_keep_entries);
        match state.snapshot {
            Some(snapshot) if held <= 2 * config.spare_entries => target.min(snapshot.get()),
            _ => target,
        }
    }

    /// A tick of a leader.
    pub(crate) fn tick(&mut self) {
        self.ticks += 1;
    }

    /// The disk runs full of what this log holds.
    pub(crate) fn hurry(&mut self) {
        self.urgent = true;
    }

    /// An entry with `target` was appended at `index`.
    pub(crate) fn proposed(&mut self, target: Index, index: Index) {
        (self.target, self.proposed) = (target.get(), index.get());
        (self.ticks, self.urgent) = (0, false);
    }

    /// Leadership is new: what was planned under an earlier one may have been overwritten.
    pub(crate) fn forget(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(compaction: &Compaction, truncated: u64, applied: u64, all: u64) -> Option<u64> {
        let config = RegionConfig {
            compact_after_entries: 100,
            compact_keep_entries: 10,
            spare_entries: 10_000,
            ..RegionConfig::new(1)
        };
        let state = LogState {
            truncated: Index::new(truncated),
            applied: Index::new(applied),
            bytes: 0,
            matched_by_all: Index::new(all),
            snapshot: None,
        };
        compaction.target(&config, &state).map(Index::get)
    }

    #[test]
    fn a_slow_peer_holds_the_log() {
        let compaction = Compaction::default();
        assert_eq!(target(&compaction, 5, 105, 105), None);
        assert_eq!(target(&compaction, 5, 106, 106), Some(96));
        assert_eq!(target(&compaction, 5, 106, 59), None);
        assert_eq!(target(&compaction, 5, 106, 60), Some(50));
        assert_eq!(target(&compaction, 5, 5_000, 7), None);
    }

    #[test]
    fn one_entry_at_a_time_and_none_twice() {
        let mut compaction = Compaction::default();
        compaction.proposed(Index::new(96), Index::new(107));
        assert_eq!(target(&compaction, 5, 106, 107), None);
        assert_eq!(target(&compaction, 5, 130, 130), None);
        assert_eq!(target(&compaction, 5, 160, 160), Some(150));
        compaction.forget();
        assert_eq!(target(&compaction, 5, 130, 130), Some(120));
    }

    #[test]
    fn a_peer_that_lags_too_far_is_left_behind_but_not_while_its_snapshot_travels() {
        let compaction = Compaction::default();
        assert_eq!(target(&compaction, 5, 10_005, 7), None);
        assert_eq!(target(&compaction, 5, 10_006, 7), Some(9_996));
        let config = RegionConfig {
            compact_after_entries: 100,
            compact_keep_entries: 10,
            spare_entries: 200,
            ..RegionConfig::new(1)
        };
        let target = |applied: u64, bytes: u64, snapshot: Option<u64>| {
            let state = LogState {
                truncated: Index::new(5),
                applied: Index::new(applied),
                bytes,
                matched_by_all: Index::new(5),
                snapshot: snapshot.map(Index::new),
            };
            compaction.target(&config, &state).map(Index::get)
        };
        assert_eq!(target(300, 0, Some(120)), Some(120));
        assert_eq!(target(300, 0, Some(20)), None);
        assert_eq!(target(500, 0, Some(20)), Some(490));
        assert_eq!(target(20, 1 << 40, None), Some(10));
    }

    #[test]
    fn a_log_that_is_short_but_old_or_in_the_way_is_cut_whole() {
        let mut compaction = Compaction::default();
        assert_eq!(target(&compaction, 5, 9, 9), None);
        compaction.hurry();
        assert_eq!(target(&compaction, 5, 9, 9), Some(9));
        compaction.proposed(Index::new(9), Index::new(10));
        assert_eq!(target(&compaction, 9, 12, 12), None);
        (0..RegionConfig::new(1).compact_after_ticks).for_each(|_| compaction.tick());
        assert_eq!(target(&compaction, 9, 12, 12), Some(12));
    }
}
