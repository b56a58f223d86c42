//! Regions that sleep while something happens to the store that leads them: somebody else must lead them in
//! time, although nobody asks for it.

use crate::agenda::Occasion;
use crate::faults::FaultKind;
use crate::world::World;
use raftstore::{Index, RegionStatus, Role};
use std::collections::BTreeMap;

/// Regions that slept when something happened, and must be led a while later.
#[derive(Debug)]
pub(crate) struct Sleepers {
    /// Each with the term in which it slept, and the last entry of its log.
    regions: BTreeMap<u64, (u64, Index)>,
    since_us: u64,
    /// A store that does not count, since it is cut off, 0 for none; and whether it can still be heard.
    without: (u64, bool),
}

impl World {
    /// All regions that sleep now on all their stores must be led after this time by a store other than
    /// `without`.
    pub(crate) fn expect_leaders(&mut self, without: (u64, bool), within_us: u64) {
        self.note_cold();
        let mut regions = BTreeMap::new();
        for region in self.clients.directory.ids() {
            let stores = self.clients.directory.stores_of(region);
            let statuses: Vec<_> =
                stores.iter().filter_map(|store| self.status(*store, region)).collect();
            if statuses.len() == stores.len() && statuses.iter().all(|status| status.asleep) {
                let last = statuses.iter().map(|status| (status.term.get(), status.last)).max();
                regions.extend(last.map(|last| (region, last)));
            }
        }
        let expectation = self.sleepers.len();
        let since_us = self.agenda.now_us();
        self.sleepers.push(Sleepers { regions, since_us, without });
        self.agenda.add_in(within_us, Occasion::Leaders { expectation });
    }

    /// Counts the regions that are cold now.
    pub(crate) fn note_cold(&mut self) {
        let running = self.processes.iter().filter_map(|process| process.running.as_ref());
        let cold: usize = running.map(|it| it.store.handle().store_status().cold).sum();
        if cold > 0 {
            self.fired.note_many(FaultKind::Chilled, cold as u64);
        }
    }

    /// The time is up.
    pub(crate) fn look_for_leaders(&mut self, expectation: usize) {
        let Sleepers { regions, since_us, without } = &self.sleepers[expectation];
        let (regions, since_us, (without, deaf)) = (regions.clone(), *since_us, *without);
        for (region, (slept_in, last)) in regions {
            let stores = self.clients.directory.stores_of(region);
            let statuses: Vec<(u64, RegionStatus)> = stores
                .iter()
                .filter_map(|store| Some((*store, self.status(*store, region)?)))
                .collect();
            match term_led(&statuses, without) {
                Some(term) if term > slept_in => self.fired.note(FaultKind::SleepersElected),
                Some(_) => {}
                // Then it did not sleep any more, and its peers may have heard of their leader since.
                None if self.was_asked(region, since_us) => {}
                // Its leader has looked around: it did not sleep any more, either.
                None if deaf && statuses.iter().any(|it| it.0 == without && !it.1.asleep) => {}
                None => {
                    let lines: Vec<String> = statuses.iter().map(describe).collect();
                    let lines = lines.join("; ");
                    let text = format!(
                        "region {region} slept in term {slept_in}, last entry {last}; now, with store {without} apart: {lines}"
                    );
                    let rule = "sleeping regions are led in time";
                    self.around.ledger.lock().violate(rule, text);
                }
            }
        }
    }

    /// Whether a client has asked something of a region since then.
    fn was_asked(&self, region: u64, since_us: u64) -> bool {
        let records = self.clients.records().iter().rev();
        let mut recent = records.take_while(|record| record.at.time_us >= since_us);
        recent.any(|record| record.region == region)
    }

    /// How a region stands on a store; waking nobody.
    fn status(&mut self, store: u64, region: u64) -> Option<RegionStatus> {
        let running = self.process(store).running.as_mut()?;
        let status = running.store.region_status(raftstore::RegionId::new(region));
        self.settle(store);
        status
    }
}

fn describe((store, status): &(u64, RegionStatus)) -> String {
    let RegionStatus { role, term, leader, last, asleep, .. } = status;
    let asleep = if *asleep { ", asleep" } else { "" };
    format!("store {store} {role:?} in term {term}, leader {leader:?}, last entry {last}{asleep}")
}

/// The latest term in which one of these stores leads, `without` not counted.
fn term_led(statuses: &[(u64, RegionStatus)], without: u64) -> Option<u64> {
    let leads =
        |(store, status): &&(u64, RegionStatus)| *store != without && status.role == Role::Leader;
    statuses.iter().filter(leads).map(|(_, status)| status.term.get()).max()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::some_status;
    use raftstore::Term;

    #[test]
    fn the_store_that_is_apart_does_not_count() {
        let of = |role, term| RegionStatus { role, term: Term::new(term), ..some_status() };
        let old = (1, of(Role::Leader, 6));
        let new = (2, of(Role::Leader, 7));
        let other = (3, of(Role::PreCandidate, 7));
        assert_eq!(term_led(&[old.clone(), other.clone()], 1), None);
        assert_eq!(term_led(&[old.clone(), new, other.clone()], 1), Some(7));
        assert_eq!(term_led(&[old, other], 0), Some(6));
    }
}
