//! What is on a store's disk, as it ought to be: what is durable, what is written, and what lies between.

use crate::check::{Ledger, Written};
use raftstore::{
    Entry, HardState, Index, LogBatch, RegionId, RegionRecord, RegionWrite, StoreIdent, Stored,
    StoredRegion, TruncatedState,
};
use std::collections::{BTreeMap, VecDeque};

/// One region's log.
#[derive(Clone, Debug)]
pub struct RegionLog {
    /// The record, once written.
    pub record: Option<Box<RegionRecord>>,
    /// The hard state, once written.
    pub hard_state: Option<HardState>,
    /// Where the log begins.
    pub truncated: TruncatedState,
    /// Contiguous, from the one after `truncated`.
    pub entries: VecDeque<Entry>,
    /// What peers held that are destroyed: it was durable when they said so.
    pub buried: Vec<(Index, VecDeque<Entry>)>,
}

impl Default for RegionLog {
    fn default() -> Self {
        let truncated = TruncatedState::INITIAL;
        Self {
            record: None,
            hard_state: None,
            truncated,
            entries: VecDeque::new(),
            buried: Vec::new(),
        }
    }
}

impl RegionLog {
    /// The last entry's index; the truncated one where there is none.
    pub fn last_index(&self) -> u64 {
        self.truncated.index.get() + self.entries.len() as u64
    }

    /// The term of an entry that is there, or of the last that is not.
    pub fn term(&self, index: u64) -> Option<u64> {
        let begin = self.truncated.index.get();
        if index == begin {
            return Some(self.truncated.term.get());
        }
        let at = usize::try_from(index.checked_sub(begin + 1)?).ok()?;
        self.entries.get(at).map(|entry| entry.term)
    }

    /// Whether the entry is or was there.
    fn holds(&self, index: u64, term: u64) -> bool {
        let had = |(begin, entries): &(Index, VecDeque<Entry>)| {
            index <= begin.get()
                || entries.iter().any(|entry| (entry.index, entry.term) == (index, term))
        };
        index <= self.truncated.index.get()
            || self.term(index) == Some(term)
            || self.buried.iter().any(had)
    }

    /// The term of the hard state.
    pub fn durable_term(&self) -> u64 {
        self.hard_state.as_ref().map_or(region_initial_term(), |state| state.term)
    }

    fn apply(&mut self, write: RegionWrite) -> Result<(), String> {
        if write.clear {
            let entries = std::mem::take(&mut self.entries);
            if write.record.as_ref().is_some_and(|record| record.tombstone) {
                self.buried.push((self.truncated.index, entries));
            }
            self.truncated = write.truncated.unwrap_or(TruncatedState::INITIAL);
        }
        if let Some(first) = write.entries.first() {
            let (begin, last) = (self.truncated.index.get() + 1, self.last_index());
            if first.index < begin || first.index > last + 1 {
                return Err(format!(
                    "region {}: entries from {} leave a hole in a log of {begin} to {last}",
                    write.region_id, first.index
                ));
            }
            self.entries.truncate((first.index - begin) as usize);
            self.entries.extend(write.entries);
        }
        if let Some(truncated) = write.truncated {
            let gone = truncated.index.get().saturating_sub(self.truncated.index.get()) as usize;
            self.entries.drain(..gone.min(self.entries.len()));
            self.truncated = truncated;
        }
        self.hard_state = write.hard_state.or(self.hard_state.take());
        self.record = write.record.or(self.record.take());
        Ok(())
    }
}

fn region_initial_term() -> u64 {
    TruncatedState::INITIAL.term.get()
}

/// All logs of a store.
#[derive(Clone, Debug, Default)]
pub struct Image {
    /// Whose they are.
    pub ident: Option<StoreIdent>,
    /// By region.
    pub regions: BTreeMap<RegionId, RegionLog>,
}

impl Image {
    /// Whether a region has the entry of this index and term, or had it before its log was cut.
    pub fn holds(&self, region: RegionId, index: u64, term: u64) -> bool {
        self.regions.get(&region).is_some_and(|log| log.holds(index, term))
    }

    /// What a log store tells when it is opened.
    pub fn stored(&self) -> Stored {
        let regions = self.regions.values().filter_map(|log| {
            let record = *log.record.clone()?;
            let (truncated, last_index) = match record.description.is_initialised() {
                true => (log.truncated, log.last_index()),
                false if log.entries.is_empty() => (TruncatedState::NOTHING, 0),
                false => (TruncatedState::NOTHING, log.last_index()),
            };
            let (hard_state, last_index) = (log.hard_state.clone(), Index::new(last_index));
            Some(StoredRegion { record, hard_state, truncated, last_index })
        });
        Stored { ident: self.ident, regions: regions.collect(), damaged: Vec::new() }
    }

    fn apply(&mut self, batch: &LogBatch) -> Result<(), String> {
        self.ident = batch.ident.or(self.ident);
        for write in &batch.writes {
            self.regions.entry(write.region_id).or_default().apply(write.clone())?;
        }
        Ok(())
    }
}

/// What a crash may take one without the other, from the last one on: the contract of a log store keeps a
/// batch together only where it has a record, a cut, a `clear` or an identity.
fn parts(batch: &LogBatch) -> Vec<LogBatch> {
    let is_plain =
        |write: &RegionWrite| write.record.is_none() && write.truncated.is_none() && !write.clear;
    if batch.ident.is_some() || !batch.writes.iter().all(is_plain) {
        return vec![batch.clone()];
    }
    let part = |write: &RegionWrite| LogBatch { writes: vec![write.clone()], ident: None };
    batch.writes.iter().map(part).collect()
}

/// A store's disk: what is durable, and the parts of batches written since the last sync, in order.
#[derive(Debug, Default)]
pub struct Disk {
    durable: Image,
    current: Image,
    unsynced: Vec<LogBatch>,
}

impl Disk {
    /// What a crash cannot take away.
    pub fn durable(&self) -> &Image {
        &self.durable
    }

    /// What readers see.
    pub fn current(&self) -> &Image {
        &self.current
    }

    /// Parts that a crash may take away, from the last one on.
    pub fn unsynced(&self) -> usize {
        self.unsynced.len()
    }

    /// Writes a batch, and compares it with what all stores have written and this one has promised.
    ///
    /// # Errors
    /// When its entries leave a hole.
    pub fn write(
        &mut self,
        store: u64,
        batch: &LogBatch,
        ledger: &mut Ledger,
    ) -> Result<(), String> {
        self.current.ident = batch.ident.or(self.current.ident);
        for write in &batch.writes {
            let log = self.current.regions.entry(write.region_id).or_default();
            check(store, write, log, ledger);
            log.apply(write.clone())?;
        }
        self.unsynced.extend(parts(batch));
        Ok(())
    }

    /// A batch of which nobody knows whether it was written: its write failed.
    pub fn write_perhaps(&mut self, batch: &LogBatch) {
        self.unsynced.extend(parts(batch));
    }

    /// Makes everything durable that is written.
    pub fn sync(&mut self) {
        for batch in self.unsynced.drain(..) {
            self.durable.apply(&batch).expect("it was checked when it was written");
        }
    }

    /// A crash of which the first `kept` unsynced parts survive.
    pub fn crash(&mut self, kept: usize) {
        self.unsynced.truncate(kept);
        self.sync();
        self.current = self.durable.clone();
    }

    /// What might be found after a crash: the durable image, and then one with each further part.
    pub fn possible(&self) -> Vec<Image> {
        let mut images = vec![self.durable.clone()];
        for batch in &self.unsynced {
            let mut next = images.last().expect("there is one").clone();
            if next.apply(batch).is_err() {
                break;
            }
            images.push(next);
        }
        images
    }
}

fn check(store: u64, write: &RegionWrite, log: &RegionLog, ledger: &mut Ledger) {
    let region = write.region_id;
    if let Some(first) = write.entries.first() {
        let before = first.index.saturating_sub(1);
        let mut previous_term = match write.truncated.filter(|_| write.clear) {
            Some(begin) if begin.index.get() == before => begin.term.get(),
            _ => log.term(before).unwrap_or(0),
        };
        for entry in &write.entries {
            let written = Written { digest: digest(entry), previous_term };
            ledger.writes(store, region.get(), entry.index, entry.term, written);
            previous_term = entry.term;
        }
    }
    if let (Some(before), Some(now)) = (&log.record, &write.record) {
        if before.tombstone && !now.tombstone && now.peer_id <= before.peer_id {
            let (gone, peer) = (before.peer_id, now.peer_id);
            let text =
                format!("region {region}: store {store} has peer {peer}, and destroyed {gone}");
            ledger.violate("a destroyed peer never returns", text);
        }
    }
    // The tombstone ends what the peer has promised; one that comes later begins anew.
    let other_peer =
        |record: &RegionRecord| record.tombstone || !record.description.is_initialised();
    if write.clear && write.record.as_deref().is_some_and(other_peer) {
        return;
    }
    if let (Some(new), Some(old)) = (&write.hard_state, &log.hard_state) {
        let vote_changed = new.term == old.term && old.vote != 0 && new.vote != old.vote;
        if new.term < old.term || vote_changed || new.commit < old.commit {
            let text = format!("region {region}: store {store} writes {new:?} over {old:?}");
            ledger.violate("hard state goes forward", text);
        }
    }
}

fn digest(entry: &Entry) -> u64 {
    use std::hash::Hasher;
    let mut hasher = crate::trace::Fnv(0xCBF2_9CE4_8422_2325);
    hasher.write(&entry.data);
    hasher.write(&entry.context);
    hasher.write_i32(entry.entry_type as i32);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    const REGION: RegionId = RegionId::new(3);

    fn write(disk: &mut Disk, batch: &LogBatch) -> Result<Ledger, String> {
        let mut ledger = Ledger::default();
        disk.write(1, batch, &mut ledger).map(|()| ledger)
    }

    fn entries(terms: &[(u64, u64)]) -> LogBatch {
        let entries = terms.iter().map(|(index, term)| Entry {
            index: *index,
            term: *term,
            ..Entry::default()
        });
        let write =
            RegionWrite { region_id: REGION, entries: entries.collect(), ..Default::default() };
        LogBatch { writes: vec![write], ident: None }
    }

    #[test]
    fn a_crash_takes_the_unsynced_batches_away_from_the_last_on() {
        let mut disk = Disk::default();
        write(&mut disk, &entries(&[(6, 6)])).expect("sound");
        disk.sync();
        for index in 7..10 {
            write(&mut disk, &entries(&[(index, 6)])).expect("sound");
        }
        assert_eq!(disk.possible().len(), 4);
        assert_eq!(disk.current().regions[&REGION].last_index(), 9);
        disk.crash(1);
        assert_eq!(disk.current().regions[&REGION].last_index(), 7);
        assert!(disk.durable().holds(REGION, 7, 6) && !disk.durable().holds(REGION, 8, 6));
    }

    #[test]
    fn a_hole_is_refused_and_a_tail_is_replaced() {
        let mut disk = Disk::default();
        write(&mut disk, &entries(&[(6, 6), (7, 6), (8, 6)])).expect("sound");
        write(&mut disk, &entries(&[(7, 7)])).expect("sound");
        assert_eq!(disk.current().regions[&REGION].last_index(), 7);
        assert!(write(&mut disk, &entries(&[(9, 7)])).is_err());
    }

    #[test]
    fn a_vote_or_a_term_taken_back_is_seen() {
        let state = |term, vote| {
            let hard_state = Some(HardState { term, vote, ..HardState::default() });
            let write = RegionWrite { region_id: REGION, hard_state, ..Default::default() };
            LogBatch { writes: vec![write], ident: None }
        };
        for (next, sound) in [((7, 2), true), ((8, 3), true), ((7, 3), false), ((6, 2), false)] {
            let mut disk = Disk::default();
            write(&mut disk, &state(7, 2)).expect("sound");
            let ledger = write(&mut disk, &state(next.0, next.1)).expect("no hole");
            assert_eq!(ledger.violation().is_none(), sound, "{next:?}");
        }
    }
}
