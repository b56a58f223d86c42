//! Memory that is given back: entries that nobody will ask for soon, and what is needed only for work.

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
    }

    /// Lets entries go that nobody will ask for soon.
    pub(crate) fn trim(&mut self) {
        let matched = self.is_leader().then(|| self.matched_by_all().get());
        self.trim_for(matched);
    }

    /// Lets entries go, but for those beyond `matched`, as far as the cache may hold them.
    pub(crate) fn trim_for(&mut self, matched: Option<u64>) {
        if self.raw.store().cached_entries() == 0 {
            return;
        }
        let persisted = self.persisted_index();
        let done = persisted.min(self.applying.emitted());
        let (cache, most) = (self.config.entry_cache_bytes, self.config.max_unapplied_bytes);
        let free = matched.map_or(done, |matched| done.min(Index::new(matched)));
        let store = self.raw.mut_store();
        store.evict(&Eviction { free, loose: done, max_bytes: cache });
        // Persisted, but not handed out: bounded, if less tightly.
        store.evict(&Eviction { free, loose: persisted, max_bytes: most });
    }
}
