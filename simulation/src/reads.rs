//! Reads beside the log: through the store's handle, by lease, by asking, at followers, or stale.
//!
//! A read looks at the state machine itself, and notes with the register up to where the log was applied
//! then. So its place among the operations that went through the log is known, and the witness checks it
//! like theirs.
//!
//! A pause stops the threads of a store and not those of whoever reads there: what a lease says holds by the
//! clock, and not by when a poller has its turn.

use crate::check::{Kind, Ledger, Moment, Outcome, Through};
use crate::clients::{Clients, Heard, Record, NOBODY};
use crate::faults::FaultKind;
use crate::machine::table_key;
use crate::process::Running;
use raftstore::{Index, ReadError, ReadPoint, ReadRequest, ReadWay, RegionEpoch, RegionId};

/// Recent operations, whose answers a client remembers.
const REMEMBERED: usize = 64;

/// What a read has seen.
#[derive(Debug)]
pub(crate) struct Seen {
    /// In the register.
    value: Option<u64>,
    /// Up to where the state machine had applied the log.
    applied: Index,
    /// What the store had said before.
    point: ReadPoint,
}

/// What becomes of a read.
pub(crate) type ReadOutcome = Result<Seen, ReadError>;

/// How a client reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manner {
    /// Through the log, at the leader.
    Log,
    /// At the leader alone.
    LeaderOnly,
    /// At any store.
    Anywhere,
    /// At any store, what is applied there.
    Stale,
}

impl Clients {
    /// How the next read is done that is to go beside the log, if it is; going by a number below 1,000.
    pub(crate) fn manner(&self, draw: u64) -> Option<Manner> {
        let load = &self.load;
        let kinds = [
            (load.read_pm, Manner::Log),
            (load.leader_read_pm, Manner::LeaderOnly),
            (load.any_read_pm, Manner::Anywhere),
            (load.stale_read_pm, Manner::Stale),
        ];
        let mut below = 0;
        let mut kinds = kinds.into_iter();
        kinds.find_map(|(pm, manner)| {
            below += pm;
            (draw < below).then_some(manner)
        })
    }

    /// Notes how an operation that is a read is done, and where.
    pub(crate) fn set_manner(&mut self, number: u64, manner: Manner) {
        let region = self.records[number as usize].region;
        let through = match manner {
            Manner::Log => return,
            Manner::LeaderOnly | Manner::Anywhere => Through::Read,
            Manner::Stale => {
                let known = self.newest_known(region);
                // Also before what is known, and beyond it.
                let at_least = match self.random.below(5) {
                    0 => 0,
                    1 => known + 1 + self.random.below(3),
                    _ => known,
                };
                Through::StaleRead { at_least }
            }
        };
        let at_leader = manner == Manner::LeaderOnly && self.random.chance(500);
        let store = match at_leader {
            true => self.leader(region),
            // Also one that holds it no more.
            false if self.random.chance(100) => 1 + self.random.below(self.cluster.stores),
            false => *self.random.pick(&self.directory.stores_of(region)),
        };
        let record = &mut self.records[number as usize];
        (record.through, record.store) = (through, store);
        record.leader_only = manner == Manner::LeaderOnly;
    }

    /// Notes a read of everything acknowledged that no client does: of a table, at a region and a store.
    pub(crate) fn record_read(&mut self, now_us: u64, to: (u64, u64, u64), key: u64) -> u64 {
        let number = self.record(now_us, NOBODY, to, key, Kind::Read);
        self.records[number as usize].through = Through::Read;
        number
    }

    /// The latest index of a region's log that an answer has told of.
    fn newest_known(&self, region: u64) -> u64 {
        let recent = self.records.iter().rev().take(REMEMBERED);
        let of_region = recent.filter(|record| record.region == region);
        let index = |record: &Record| match record.outcome {
            Outcome::Done { index, .. } => index,
            _ => 0,
        };
        of_region.map(index).max().unwrap_or(0)
    }

    /// Reads beside the log.
    pub(crate) fn look(&mut self, number: u64, running: Option<&Running>) {
        let record = self.records[number as usize];
        let region_id = RegionId::new(record.region);
        let Some(running) = running else {
            // The connection is refused.
            let refused = Heard::Seen(Err(ReadError::Stopped { region_id }));
            return self.inbox.lock().push((number, refused));
        };
        if record.through == Through::Read && self.directory.is_deposed(record.region, record.store)
        {
            self.fired.note(FaultKind::DeposedAsked);
        }
        let (life, held) = (running.life.clone(), running.callbacks.clone());
        let (inbox, machine) = (self.inbox.clone(), running.machine.clone());
        let key = record.operation.key;
        let look = move |point: &ReadPoint| {
            let (value, applied) = machine.lock().look(region_id, key);
            Seen { value, applied, point: *point }
        };
        let callback = move |seen| {
            if life.is_alive() {
                inbox.lock().push((number, Heard::Seen(seen)));
            }
            drop(held);
        };
        let request = self.request(number);
        running.store.handle().read_with(region_id, request, look, callback);
        let at_once = self.inbox.lock().iter().any(|(heard, _)| *heard == number);
        self.records[number as usize].waited = !at_once;
    }

    fn request(&mut self, number: u64) -> ReadRequest {
        let record = self.records[number as usize];
        let request = match record.through {
            Through::StaleRead { at_least } => ReadRequest::stale(Index::new(at_least)),
            _ if record.leader_only => ReadRequest::leader_only(),
            _ => ReadRequest::linearizable(),
        };
        if record.client == NOBODY {
            return request;
        }
        if self.random.chance(self.load.wrong_epoch_pm) {
            self.fired.note(FaultKind::WrongEpoch);
            self.records[number as usize].doomed = Some("of a wrong epoch");
            return request.at_epoch(RegionEpoch { conf_ver: 1, version: 1 << 40 });
        }
        let key = table_key(record.table, record.operation.key);
        match self.cluster.regions_move {
            true => request.at_epoch(self.directory.epoch(record.region, &key)),
            false => request,
        }
    }

    /// What a read has seen is heard. Returns the error in a word.
    pub(crate) fn hear_read(
        &mut self,
        at: Moment,
        number: u64,
        seen: &ReadOutcome,
        ledger: &mut Ledger,
    ) -> &'static str {
        let record = &mut self.records[number as usize];
        let Seen { value, applied, point } = match seen {
            Ok(seen) => seen,
            Err(error) => {
                record.outcome = Outcome::Refused;
                let (region, store) = (record.region, record.store);
                self.learn_from_read(region, store, error);
                return error.label();
            }
        };
        let index = applied.get();
        record.outcome = Outcome::Done { at, term: 0, index, output: *value };
        if let Some(why) = record.doomed {
            let text = format!("a read {why} was answered: {record:?}");
            ledger.violate("what must be refused is refused", text);
        }
        if *applied < point.applied {
            let text = format!("{point:?} was promised, and no more than {applied} is applied");
            ledger.violate("a read finds what it was promised", text);
        }
        self.fired.note_many(FaultKind::ReadWaited, u64::from(record.waited));
        self.fired.note(match point.way {
            ReadWay::Lease => FaultKind::LeaseRead,
            ReadWay::Index => FaultKind::IndexRead,
            ReadWay::Follower => FaultKind::FollowerRead,
            ReadWay::Stale => FaultKind::StaleRead,
        });
        ""
    }

    /// Reads go anywhere; what they hear concerns writes only where it comes from the store that those go to.
    fn learn_from_read(&mut self, region: u64, store: u64, error: &ReadError) {
        if store != self.leader(region) {
            return;
        }
        match error {
            ReadError::NotLeader { leader: Some(peer), .. } if peer.store.get() != store => {
                self.directory.set_leader(region, peer.store.get());
            }
            ReadError::Busy { .. } | ReadError::EpochNotMatch { .. } => {}
            _ => self.try_another(region),
        }
    }
}
