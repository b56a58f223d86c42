//! What is given back: the head of the log on disk, entries that nobody will ask for soon, and memory that is
//! needed only for work.

use raft::ProgressState;

use crate::command::compact_log_entry;
use crate::compaction::LogState;
use crate::ids::Index;
use crate::region::Region;
use crate::storage::Eviction;

impl Region {
    /// Gives back all memory that is needed only while there is work.
    pub fn shrink(&mut self) {
        self.raw.raft.maybe_free_inflight_buffers();
        self.raw.raft.msgs.shrink_to_fit();
        self.headers.shrink();
        self.proposals.shrink();
        self.reading.shrink();
        self.trim();
        self.raw.mut_store().shrink();
        self.applying.shrink();
    }

    /// Lets entries go that nobody will ask for soon.
    pub(crate) fn trim(&mut self) {
        let Some(first) = self.raw.store().first_cached() else { return };
        let done = self.persisted_index().min(self.applying.emitted());
        let least = self.config.entry_cache_bytes.min(self.config.max_unapplied_bytes);
        if first > done && self.raw.store().cached_bytes() <= least {
            return;
        }
        let matched = self.is_leader().then(|| self.matched_by_all().get());
        self.trim_for(matched);
    }

    /// Lets entries go, but for those beyond `matched`, as far as the cache may hold them.
    pub(crate) fn trim_for(&mut self, matched: Option<u64>) {
        let persisted = self.persisted_index();
        let done = persisted.min(self.applying.emitted());
        let (cache, most) = (self.config.entry_cache_bytes, self.config.max_unapplied_bytes);
        let free = matched.map_or(done, |matched| done.min(Index::new(matched)));
        // Persisted, but not handed out: bounded, if less tightly.
        let loose = [(done, cache), (persisted, most)];
        self.raw.mut_store().evict(&Eviction { free, loose });
    }

    /// Has the log's head cut if that is worth an entry. Asked after every report of applied
    /// entries, so that a busy log is cut in many small steps.
    pub(crate) fn propose_compaction(&mut self) {
        let state = LogState {
            truncated: self.truncated().index,
            applied: self.applying.applied(),
            bytes: self.raw.store().log_bytes(),
            matched_by_all: self.matched_by_all(),
            snapshot: self.oldest_snapshot_under_way(),
        };
        if let Some(target) = self.compaction.target(&self.config, &state) {
            let entry = compact_log_entry(self.description.epoch, target);
            if let Some(index) = self.append(vec![entry]) {
                self.compaction.proposed(target, index);
            }
        }
    }

    /// Up to where the oldest snapshot reaches that is on its way.
    fn oldest_snapshot_under_way(&self) -> Option<Index> {
        let all = self.raw.raft.prs().iter().map(|(_, progress)| progress);
        let on_their_way = all.filter(|progress| progress.state == ProgressState::Snapshot);
        on_their_way.map(|progress| Index::new(progress.pending_snapshot)).min()
    }

    /// Last entry that every peer, this one included, has persisted.
    pub(crate) fn matched_by_all(&self) -> Index {
        Index::new(self.raw.raft.prs().iter().map(|(_, pr)| pr.matched).min().unwrap_or(0))
    }
}
