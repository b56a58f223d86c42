//! A store's log in the simulation: raft-engine over simulated files, or a model of it in memory, which
//! is faster. Both fail as the plan says, and both are compared with what ought to be there.

use super::{Disk, Image, SimFiles, WriteFault};
use crate::check::Ledger;
use crate::faults::{FaultKind, Fired};
use crate::life::Life;
use parking_lot::Mutex;
use raftstore::{
    DamagedRegion, Entry, Index, LogBatch, LogReadError, LogReader, LogStore, LogStoreError,
    RegionId, Stored, StoredRegion, Term,
};
use std::sync::Arc;

/// What goes wrong next. Set by the plan's actions.
#[derive(Debug, Default)]
pub struct Troubles {
    /// The next write fails.
    pub fail_write: bool,
    /// The next sync fails.
    pub fail_sync: bool,
    /// Every write finds the disk full.
    pub full: bool,
    /// This region's log is unreadable at the next start.
    pub damaged: Option<RegionId>,
    /// A bit of raft-engine's files is not what it was.
    pub flipped: bool,
    /// Batches written since the world last looked: regions, entries, and whether they were synced.
    pub wrote: Vec<(usize, usize, bool)>,
    /// A write has failed: there must not be another one.
    failed: bool,
    /// Everything that has struck.
    pub fired: Fired,
}

impl Troubles {
    /// Nothing goes wrong any more. A store that is damaged stays so.
    pub fn heal(&mut self) {
        self.fail_write = false;
        self.fail_sync = false;
        self.full = false;
    }

    /// Whether the log of the present life has failed as planned.
    pub fn has_failed(&self) -> bool {
        self.failed || self.flipped
    }

    /// Whether a region may be set aside.
    pub fn excuse(&self, region: RegionId) -> bool {
        self.flipped || self.damaged == Some(region)
    }
}

/// What all lives of a store share: the disk, and what is wrong with it.
#[derive(Clone, Debug, Default)]
pub struct Device {
    /// What ought to be there.
    pub disk: Arc<Mutex<Disk>>,
    /// What goes wrong.
    pub troubles: Arc<Mutex<Troubles>>,
}

/// The log of one life of a store.
pub struct SimLog {
    store: u64,
    life: Arc<Life>,
    device: Device,
    ledger: Arc<Mutex<Ledger>>,
    /// The real one; without it the disk itself is read.
    engine: Option<Engine>,
}

/// raft-engine over simulated files.
pub struct Engine {
    /// The log.
    pub log: Arc<dyn LogStore>,
    /// Its files.
    pub files: SimFiles,
}

impl SimLog {
    /// The log for a life that begins.
    pub fn new(
        store: u64,
        life: Arc<Life>,
        device: Device,
        ledger: Arc<Mutex<Ledger>>,
        engine: Option<Engine>,
    ) -> Self {
        device.troubles.lock().failed = false;
        Self { store, life, device, ledger, engine }
    }

    fn fail(&self, text: &str) -> LogStoreError {
        LogStoreError::Write(text.to_owned())
    }

    /// Does to the disk as it ought to be what became of the real one.
    fn carry_out(
        &self,
        batch: &LogBatch,
        attempt: &Attempt,
        sync: bool,
        disk: &mut Disk,
    ) -> Result<(), String> {
        match attempt {
            Attempt::Nothing(failure) => return Err(failure.clone()),
            Attempt::Perhaps(failure) => {
                disk.write_perhaps(batch);
                return Err(failure.clone());
            }
            Attempt::Written(_) | Attempt::Unsynced(_) => {}
        }
        let mut ledger = self.ledger.lock();
        if let Err(hole) = disk.write(self.store, batch, &mut ledger) {
            ledger.violate("writes of a region stay in order", hole.clone());
            return Err(hole);
        }
        if let Attempt::Unsynced(failure) = attempt {
            return Err(failure.clone());
        }
        if sync {
            disk.sync();
        }
        Ok(())
    }

    /// Takes what was found on disk for what is there, if it can be what was written.
    fn compare(&self, engine: &dyn LogStore, found: &Stored) {
        let mut disk = self.device.disk.lock();
        let possible = disk.possible();
        // The longest that fits: batches that change nothing cannot be told apart.
        let flipped = self.device.troubles.lock().flipped;
        let kept = possible.iter().rposition(|image| fits(image, engine, found, flipped));
        match kept {
            Some(kept) => disk.crash(kept),
            None => {
                let images = possible.iter().map(|image| describe(&image.stored()));
                let text = format!(
                    "store {}: the log holds\n{}\nwhich is none of\n{}",
                    self.store,
                    describe(found),
                    images.collect::<Vec<_>>().join("\n")
                );
                self.ledger.lock().violate("the log keeps what was synced", text);
            }
        }
    }
}

/// A store's log in a line.
fn describe(stored: &Stored) -> String {
    let region = |region: &StoredRegion| {
        let state = region.hard_state.as_ref().map(|state| (state.term, state.vote, state.commit));
        let (id, truncated) = (region.record.description.id, region.truncated.index);
        format!("r{id} {state:?} {truncated}..={}", region.last_index)
    };
    let regions: Vec<String> = stored.regions.iter().map(region).collect();
    format!("{:?} {}", stored.ident.map(|ident| ident.store_id.get()), regions.join(", "))
}

/// How a write goes.
struct Fate {
    full: bool,
    fail_write: bool,
    fail_sync: bool,
    /// Whether it is synced.
    sync: bool,
}

/// What became of a write.
enum Attempt {
    /// It is written, in so many bytes, and synced if it was to be.
    Written(u64),
    /// It is written, and its sync failed.
    Unsynced(String),
    /// Nobody knows.
    Perhaps(String),
    /// It is not there.
    Nothing(String),
}

impl Fate {
    fn of_the_model(&self) -> Attempt {
        if self.full {
            Attempt::Nothing("no space left on the device".to_owned())
        } else if self.fail_write {
            Attempt::Nothing("input/output error".to_owned())
        } else if self.fail_sync {
            Attempt::Unsynced("the sync failed: input/output error".to_owned())
        } else {
            Attempt::Written(0)
        }
    }

    /// What it counts as if it fails.
    fn kind(&self) -> FaultKind {
        if self.full {
            FaultKind::DiskFull
        } else if self.fail_write {
            FaultKind::WriteError
        } else {
            FaultKind::SyncError
        }
    }
}

impl Engine {
    /// The faults strike the files, and raft-engine says what it makes of them.
    fn write(&self, batch: &LogBatch, fate: &Fate) -> Attempt {
        if fate.fail_write {
            // Some are written in part before they fail.
            self.files.fail_write(0, WriteFault::Io, batch.writes.len() % 2 == 1);
        }
        if fate.fail_sync {
            self.files.fail_sync(0);
        }
        match self.log.write(&mut batch.clone(), fate.sync) {
            Ok(bytes) => Attempt::Written(bytes),
            Err(error) => Attempt::Perhaps(error.to_string()),
        }
    }
}

/// Whether a log store holds exactly this, but for what it says it cannot read because of a flipped bit.
fn fits(image: &Image, engine: &dyn LogStore, found: &Stored, flipped: bool) -> bool {
    let expected = image.stored();
    if found.ident != expected.ident || found.regions.len() != expected.regions.len() {
        return false;
    }
    let mut regions: Vec<_> = found.regions.iter().collect();
    regions.sort_by_key(|region| region.record.description.id);
    regions.iter().zip(&expected.regions).all(|(found, expected)| {
        let id = expected.record.description.id;
        let (low, high) = (expected.truncated.index.get() + 1, expected.last_index.get() + 1);
        let same = found.record == expected.record
            && found.hard_state == expected.hard_state
            && found.truncated == expected.truncated
            && found.last_index == expected.last_index;
        same && (low == high
            || engine
                .entries(id, Index::new(low), Index::new(high), usize::MAX)
                .map_or(flipped, |entries| image.regions[&id].entries.iter().eq(entries.iter())))
    })
}

impl LogReader for SimLog {
    fn entries(
        &self,
        region: RegionId,
        low: Index,
        high: Index,
        max_bytes: usize,
    ) -> Result<Vec<Entry>, LogReadError> {
        if let Some(engine) = &self.engine {
            return engine.log.entries(region, low, high, max_bytes);
        }
        let disk = self.device.disk.lock();
        let fail = |cause: String| LogReadError { region_id: region, low, high, cause };
        let log = disk.current().regions.get(&region);
        let log = log.ok_or_else(|| fail("no such region".to_owned()))?;
        let begin = log.truncated.index.get() + 1;
        if low.get() < begin || high.get() > log.last_index() + 1 {
            return Err(fail(format!("the log holds {begin} to {}", log.last_index())));
        }
        let mut bytes = 0;
        let range = (low.get() - begin) as usize..(high.get() - begin) as usize;
        let fitting = log.entries.range(range).enumerate().take_while(|(at, entry)| {
            bytes += entry.data.len() + entry.context.len();
            bytes <= max_bytes || *at == 0
        });
        Ok(fitting.map(|(_, entry)| entry.clone()).collect())
    }

    fn term(&self, region: RegionId, index: Index) -> Result<Option<Term>, LogReadError> {
        if let Some(engine) = &self.engine {
            return engine.log.term(region, index);
        }
        let disk = self.device.disk.lock();
        let log = disk.current().regions.get(&region);
        Ok(log.and_then(|log| log.term(index.get())).map(Term::new))
    }
}

impl LogStore for SimLog {
    fn load(&self) -> Result<Stored, LogStoreError> {
        let mut stored = match &self.engine {
            Some(engine) => {
                let stored = engine.log.load()?;
                self.compare(&*engine.log, &stored);
                stored
            }
            None => {
                let mut disk = self.device.disk.lock();
                // What a log store returns is durable.
                disk.sync();
                disk.current().stored()
            }
        };
        let mut troubles = self.device.troubles.lock();
        if let Some(region_id) = troubles.damaged {
            let before = stored.regions.len();
            stored.regions.retain(|region| region.record.description.id != region_id);
            if stored.regions.len() < before {
                troubles.fired.note(FaultKind::FlippedBit);
                let reason = "its hard state is damaged".to_owned();
                stored.damaged.push(DamagedRegion { region_id, reason });
            }
        }
        Ok(stored)
    }

    fn write(&self, batch: &mut LogBatch, sync: bool) -> Result<u64, LogStoreError> {
        let batch = std::mem::take(batch);
        if !self.life.call() {
            return Err(self.fail("the process is gone"));
        }
        let mut troubles = self.device.troubles.lock();
        let mut disk = self.device.disk.lock();
        if troubles.failed {
            let text = format!("store {} writes its log after a write had failed", self.store);
            self.ledger.lock().violate("no write after a failed one", text);
        }
        // A process that dies here has written and not synced.
        let alive = self.life.call();
        let fate = Fate {
            full: troubles.full && !batch.is_empty(),
            fail_write: std::mem::take(&mut troubles.fail_write),
            fail_sync: sync && alive && std::mem::take(&mut troubles.fail_sync),
            sync: sync && alive,
        };
        let attempt = match &self.engine {
            Some(engine) => engine.write(&batch, &fate),
            None => fate.of_the_model(),
        };
        if let Err(failure) = self.carry_out(&batch, &attempt, fate.sync, &mut disk) {
            troubles.failed = true;
            troubles.fired.note(fate.kind());
            return Err(self.fail(&failure));
        }
        if !alive {
            return Err(self.fail("the process is gone"));
        }
        let entries = batch.writes.iter().map(|write| write.entries.len()).sum();
        troubles.wrote.push((batch.writes.len(), entries, sync));
        Ok(match attempt {
            Attempt::Written(bytes) => bytes,
            _ => 0,
        })
    }

    fn is_volatile(&self) -> bool {
        false
    }

    fn reclaim(&self) -> Result<Vec<RegionId>, LogStoreError> {
        match &self.engine {
            Some(engine) if self.life.call() => {
                let reclaimed = engine.log.reclaim();
                if reclaimed.is_err() {
                    // It writes and syncs too, and meets the same faults.
                    self.device.troubles.lock().failed = true;
                }
                reclaimed
            }
            _ => Ok(Vec::new()),
        }
    }
}
