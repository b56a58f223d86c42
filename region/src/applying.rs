//! How far commands are handed out to be applied, and how far they are.
//!
//! Applying may be asynchronous: a batch is handed out, and its index reported later. What lies
//! between is bounded in bytes.

use std::collections::VecDeque;

use crate::ids::Index;

/// Room for so many more than one is kept.
const KEPT_BATCHES: usize = 4;

/// Batches handed out.
///
/// Invariant: `applied <= emitted`, neither goes back; `bytes` is the sum over `first` and `more`, whose
/// indexes increase and end with `emitted`.
pub(crate) struct Applying {
    applied: Index,
    emitted: Index,
    /// The first batch lies here: seldom there are others, and room elsewhere is in nobody's cache.
    first: Option<(Index, usize)>,
    more: VecDeque<(Index, usize)>,
    bytes: usize,
    limit_bytes: usize,
}

impl Applying {
    pub(crate) fn new(applied: Index, limit_bytes: usize) -> Self {
        Self {
            applied,
            emitted: applied,
            first: None,
            more: VecDeque::new(),
            bytes: 0,
            limit_bytes,
        }
    }

    /// Last applied entry.
    pub(crate) fn applied(&self) -> Index {
        self.applied
    }

    /// Last entry handed out.
    pub(crate) fn emitted(&self) -> Index {
        self.emitted
    }

    /// Bytes handed out and not applied.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether no more may be handed out for now.
    ///
    /// Once a command can change the epoch, this is also the place that holds back everything
    /// behind it until it is applied: what follows must be checked against the new epoch.
    pub(crate) fn is_full(&self) -> bool {
        self.bytes >= self.limit_bytes
    }

    /// A batch up to `index` goes out.
    pub(crate) fn emit(&mut self, index: Index, bytes: usize) {
        debug_assert!(index > self.emitted, "{index} after {}", self.emitted);
        self.emitted = index;
        self.bytes += bytes;
        match self.first {
            None => self.first = Some((index, bytes)),
            Some(_) => self.more.push_back((index, bytes)),
        }
    }

    /// Everything up to `index` is applied. Returns whether that is news.
    pub(crate) fn report(&mut self, index: Index) -> bool {
        debug_assert!(index <= self.emitted, "{index} was not handed out, only {}", self.emitted);
        if index <= self.applied || index > self.emitted {
            return false;
        }
        self.applied = index;
        while let Some((_, bytes)) = self.first.filter(|(last, _)| *last <= index) {
            self.bytes -= bytes;
            self.first = self.more.pop_front();
        }
        debug_assert!(self.first.is_some() || self.bytes == 0);
        if self.more.is_empty() && self.more.capacity() > KEPT_BATCHES {
            self.more.shrink_to(KEPT_BATCHES);
        }
        true
    }

    /// Gives back memory that is needed only for work.
    pub(crate) fn shrink(&mut self) {
        self.more.shrink_to_fit();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_fill_up_and_drain() {
        let mut applying = Applying::new(Index::new(5), 100);
        applying.emit(Index::new(8), 60);
        assert!(!applying.is_full());
        applying.emit(Index::new(9), 60);
        assert!(applying.is_full());
        assert!(applying.report(Index::new(8)));
        assert!(!applying.is_full() && applying.bytes() == 60);
        assert!(!applying.report(Index::new(8)));
        assert!(applying.report(Index::new(9)));
        assert_eq!((applying.bytes(), applying.applied()), (0, Index::new(9)));
    }

    #[test]
    fn room_of_a_backlog_is_given_back() {
        let mut applying = Applying::new(Index::new(5), 100);
        (6..106).for_each(|index| applying.emit(Index::new(index), 1));
        assert!(applying.more.capacity() >= 99);
        assert!(applying.report(Index::new(105)));
        assert!(applying.more.capacity() <= KEPT_BATCHES);
        applying.shrink();
        assert_eq!(applying.more.capacity(), 0);
    }

    #[test]
    fn part_of_a_batch_frees_no_bytes() {
        let mut applying = Applying::new(Index::new(5), 100);
        applying.emit(Index::new(8), 60);
        assert!(applying.report(Index::new(7)));
        assert_eq!((applying.applied(), applying.bytes()), (Index::new(7), 60));
    }
}
