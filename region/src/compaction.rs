//! When the log's head may go.
//!
//! The leader decides: the log goes up to what every peer has, less a few entries, and not before
//! it is worth it. Its decision is an entry of the log, so that all peers cut at the same place;
//! each cuts no further than its own state machine has flushed.

use crate::config::RegionConfig;
use crate::ids::Index;

/// A leader's plans for the log's head.
#[derive(Default)]
pub(crate) struct Compaction {
    /// Target of the last entry proposed.
    target: u64,
    /// Index of the last entry proposed.
    proposed: u64,
}

/// Where the log stands.
pub(crate) struct LogState {
    pub(crate) truncated: Index,
    pub(crate) applied: Index,
    /// Last entry that every peer has.
    pub(crate) matched_by_all: Index,
}

impl Compaction {
    /// Up to where to cut, if it is worth an entry now.
    ///
    /// Invariant: never past the match of any peer, since nothing but a snapshot could help it then.
    pub(crate) fn target(&self, config: &RegionConfig, state: &LogState) -> Option<Index> {
        let (truncated, applied) = (state.truncated.get(), state.applied.get());
        if applied - truncated <= config.compact_after_entries || self.proposed > applied {
            return None;
        }
        let target = state.matched_by_all.get().min(applied);
        let target = target.saturating_sub(config.compact_keep_entries);
        // A state machine that has not flushed, or a slow peer, must not draw an entry a tick.
        let step = (config.compact_after_entries - config.compact_keep_entries) / 2;
        let worth_it = target >= truncated.max(self.target) + step.max(1);
        worth_it.then(|| Index::new(target))
    }

    /// An entry with `target` was appended at `index`.
    pub(crate) fn proposed(&mut self, target: Index, index: Index) {
        self.target = target.get();
        self.proposed = index.get();
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
            ..RegionConfig::new(1)
        };
        let state = LogState {
            truncated: Index::new(truncated),
            applied: Index::new(applied),
            matched_by_all: Index::new(all),
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
}
