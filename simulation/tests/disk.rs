//! The real log store over a disk that crashes, fails and rots: what was synced is there afterwards, in
//! order, and damage is told from what a crash tore.
//!
//! `DISK_HISTORIES=20000` runs longer, `DISK_SEED=7` one history again.

use raftstore::{
    ByteSize, Bytes, EngineConfig, Entry, HardState, Index, LogBatch, LogReader, LogStore,
    LogStoreError, Peer, PeerId, PeerRole, RaftEngineLogStore, RegionDescription, RegionId,
    RegionRecord, RegionWrite, StoreId, StoreIdent, Term, TruncatedState,
};
use simulation::disk::{SimFiles, Struck, WriteFault};
use simulation::Random;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

const HISTORIES: u64 = 120;
const REGIONS: u64 = 4;

type Log = RaftEngineLogStore<SimFiles>;

/// What a region has written.
#[derive(Clone, PartialEq)]
struct Region {
    term: u64,
    truncated: u64,
    /// Term and content, by index.
    entries: BTreeMap<u64, (u64, Bytes)>,
}

impl std::fmt::Debug for Region {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "term {}, after {}:", self.term, self.truncated)?;
        self.entries.iter().try_for_each(|(index, (term, data))| {
            write!(f, " {index}@{term}={:?}x{}", data.first(), data.len())
        })
    }
}

/// What a log holds.
#[derive(Clone, Debug, Default, PartialEq)]
struct Model {
    used: bool,
    regions: BTreeMap<u64, Region>,
}

fn record(id: u64) -> RegionRecord {
    let peer_id = PeerId::new(id);
    let peers = vec![Peer { id: peer_id, store: StoreId::new(1), role: PeerRole::Voter }];
    let (id, key) = (RegionId::new(id), |id: u64| Bytes::from(vec![id as u8]));
    let (start_key, end_key) = (key(id.get()), key(id.get() + 1));
    let description = RegionDescription::new(id, start_key, end_key, peers);
    RegionRecord::new(description, peer_id)
}

impl Model {
    /// Draws a batch, and takes it in.
    fn draw(&mut self, random: &mut Random) -> LogBatch {
        let mut batch = LogBatch::default();
        if !self.used {
            batch.ident = Some(StoreIdent { cluster_id: 1, store_id: StoreId::new(1) });
            self.used = true;
        }
        for _ in 0..random.within(1..4) {
            let id = random.within(1..REGIONS + 1);
            if batch.writes.iter().any(|write| write.region_id.get() == id) {
                continue;
            }
            let mut write = RegionWrite { region_id: RegionId::new(id), ..RegionWrite::default() };
            let region = self.regions.entry(id).or_insert_with(|| {
                write.record = Some(Box::new(record(id)));
                Region { term: 5, truncated: 5, entries: BTreeMap::new() }
            });
            region.draw(&mut write, random);
            batch.writes.push(write);
        }
        batch
    }

    fn read(log: &Log) -> Result<Self, String> {
        let stored = log.load().map_err(|error| error.to_string())?;
        if let Some(damaged) = stored.damaged.first() {
            return Err(damaged.reason.clone());
        }
        let mut model = Self { used: stored.ident.is_some(), regions: BTreeMap::new() };
        for region in stored.regions {
            let id = region.record.description.id;
            assert_eq!(region.record, record(id.get()));
            let truncated = region.truncated.index.get();
            let (low, high) = (Index::new(truncated + 1), Index::new(region.last_index.get() + 1));
            let entries = log.entries(id, low, high, usize::MAX);
            let entries = entries.map_err(|error| error.to_string())?;
            let entries = entries.into_iter().map(|e| (e.index, (e.term, e.data))).collect();
            let term = region.hard_state.map_or(5, |state| state.term);
            model.regions.insert(id.get(), Region { term, truncated, entries });
        }
        Ok(model)
    }
}

impl Region {
    fn draw(&mut self, write: &mut RegionWrite, random: &mut Random) {
        let last = self.entries.keys().next_back().copied().unwrap_or(self.truncated);
        let mut next = last + 1;
        if random.chance(150) {
            // A new leader replaces a tail.
            next = random.within(self.truncated + 1..next + 1);
            self.term += 1;
            let hard_state = HardState { term: self.term, ..HardState::default() };
            write.hard_state = Some(hard_state);
        }
        self.entries.split_off(&next);
        for index in next..next + random.below(4) + u64::from(next <= last) {
            let length = if random.chance(50) { 3000 } else { random.index(200) };
            let data = Bytes::from(vec![random.number() as u8; length]);
            let entry = Entry { index, term: self.term, data: data.clone(), ..Entry::default() };
            write.entries.push(entry);
            self.entries.insert(index, (self.term, data));
        }
        if random.chance(100) && self.entries.len() > 3 {
            self.truncated += random.within(1..self.entries.len() as u64 - 1);
            let term = Term::new(self.entries[&self.truncated].0);
            self.entries = self.entries.split_off(&(self.truncated + 1));
            let index = Index::new(self.truncated);
            write.truncated = Some(TruncatedState { index, term });
        }
    }
}

/// How often what happened, over all histories.
#[derive(Debug, Default)]
struct Counts {
    crashes: u64,
    closes: u64,
    failures: u64,
    flips: u64,
    flips_told: u64,
    batches: u64,
    batches_lost: u64,
}

/// One disk and what may be on it.
struct History<'a> {
    random: Random,
    files: SimFiles,
    dir: &'a Path,
    config: EngineConfig,
    /// Since the last sync, that included; what is there after a crash is one of them.
    possible: Vec<Model>,
}

impl History<'_> {
    fn open(&self) -> Result<Log, LogStoreError> {
        Log::open_with_file_system(self.dir, &self.config, Arc::new(self.files.clone()))
    }

    /// Opens the log, which is whole.
    fn come_back(&mut self, counts: &mut Counts) -> Log {
        let log = self.open().unwrap_or_else(|error| panic!("a crash is not damage: {error}"));
        let found = Model::read(&log).unwrap_or_else(|error| panic!("unreadable: {error}"));
        let at = self.possible.iter().rposition(|model| *model == found);
        let at = at.unwrap_or_else(|| {
            panic!("{found:#?}\nis none of these: {:#?}", self.possible);
        });
        counts.batches_lost += (self.possible.len() - 1 - at) as u64;
        self.possible = vec![found];
        log
    }

    fn set_a_fault(&mut self) {
        let random = &mut self.random;
        match random.below(3) {
            0 => {
                let fault = *random.pick(&[WriteFault::Io, WriteFault::NoSpace]);
                self.files.fail_write(random.below(20), fault, random.chance(500));
            }
            1 => self.files.fail_sync(random.below(20)),
            _ => self.files.set_capacity(Some(self.files.used_bytes() + random.below(20_000))),
        }
    }

    /// Writes and purges, until a fault strikes at the latest. Whether it did.
    fn live(&mut self, log: &Log, counts: &mut Counts) -> bool {
        for _ in 0..self.random.within(1..60) {
            if self.random.chance(100) {
                if log.reclaim().is_err() {
                    return true;
                }
                continue;
            }
            let mut model = self.possible.last().expect("at least one").clone();
            let mut batch = model.draw(&mut self.random);
            self.possible.push(model);
            counts.batches += 1;
            let sync = self.random.chance(400);
            let Ok(written) = log.write(&mut batch, sync) else { return true };
            // Where nothing was written, nothing is synced.
            if sync && written > 0 {
                self.possible.drain(..self.possible.len() - 1);
            }
        }
        false
    }

    /// Flips one bit of a log that was closed, and looks whether that is told or without effect.
    fn rot(&mut self, counts: &mut Counts) {
        let Some(flip) = self.files.flip_bit(&mut self.random) else { return };
        counts.flips += 1;
        let found = self.open().map_err(|error| error.to_string());
        match found.and_then(|log| Model::read(&log)) {
            Ok(found) => assert_eq!(Some(&found), self.possible.last(), "{flip:?} is not told"),
            Err(_) => counts.flips_told += 1,
        }
        self.files.undo(&flip);
    }

    fn run(&mut self, counts: &mut Counts) {
        for _ in 0..self.random.within(2..7) {
            let log = self.come_back(counts);
            if self.random.chance(200) {
                self.set_a_fault();
            }
            let before = self.files.struck();
            let failed = self.live(&log, counts);
            counts.failures += u64::from(failed);
            self.files.set_capacity(None);
            if failed || self.random.chance(500) {
                // Killed, or with the power cut.
                counts.crashes += 1;
                self.files.freeze();
                drop(log);
                self.files.crash(&mut self.random);
            } else {
                drop(log);
                let no_space = self.files.struck().no_space;
                if self.files.struck() == (Struck { no_space, ..before }) {
                    counts.closes += 1;
                    self.possible.drain(..self.possible.len() - 1);
                    self.rot(counts);
                } else {
                    // A sync failed while it was closed. Its data may be in memory only, and nobody
                    // could tell: the machine goes down too.
                    self.files.crash(&mut self.random);
                }
            }
            assert_eq!(self.files.open_handles(), 0, "handles leaked");
        }
        drop(self.come_back(counts));
    }
}

fn run(seed: u64, counts: &mut Counts) {
    let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
    let dir = dir.expect("a directory");
    let mut random = Random::new(seed);
    let file_size = random.within(1..8);
    let config = EngineConfig {
        target_file_size: ByteSize::kib(file_size),
        purge_threshold: ByteSize::kib(file_size * random.within(2..5)),
        compression_threshold: ByteSize::b(*random.pick(&[0, 500])),
        recovery_threads: 1,
    };
    let (files, possible) = (SimFiles::new(), vec![Model::default()]);
    History { random, files, dir: dir.path(), config, possible }.run(counts);
}

fn setting(name: &str) -> Option<u64> {
    Some(std::env::var(name).ok()?.parse().unwrap_or_else(|_| panic!("{name} is not a number")))
}

#[test]
fn what_was_synced_outlives_crashes_and_damage_is_told() {
    let mut counts = Counts::default();
    let seeds = match setting("DISK_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..setting("DISK_HISTORIES").unwrap_or(HISTORIES),
    };
    let all = seeds.end - seeds.start > 1;
    for seed in seeds {
        let history = std::panic::AssertUnwindSafe(|| run(seed, &mut counts));
        if let Err(panic) = std::panic::catch_unwind(history) {
            eprintln!("DISK_SEED={seed}");
            std::panic::resume_unwind(panic);
        }
    }
    println!("{counts:?}");
    if all {
        assert!(counts.crashes > 0 && counts.closes > 0 && counts.failures > 0, "{counts:?}");
        assert!(counts.batches_lost > 0 && counts.flips_told * 5 > counts.flips, "{counts:?}");
    }
}

#[test]
fn entries_torn_in_front_of_a_whole_batch_are_cut_off_with_it() {
    let mut kept = BTreeMap::new();
    for seed in 0..200 {
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
        let dir = dir.expect("a directory");
        let target_file_size = ByteSize::kib(64);
        let config = EngineConfig { target_file_size, ..EngineConfig::default() };
        let files = SimFiles::new();
        let open = || {
            Log::open_with_file_system(dir.path(), &config, Arc::new(files.clone())).expect("opens")
        };
        let log = open();
        let write = |index: u64, length: usize, sync: bool| {
            let data = Bytes::from(vec![index as u8; length]);
            let entries = vec![Entry { index, term: 5, data, ..Entry::default() }];
            let record = (index == 6).then(|| Box::new(record(1)));
            let region_id = RegionId::new(1);
            let write = RegionWrite { region_id, entries, record, ..RegionWrite::default() };
            log.write(&mut LogBatch { writes: vec![write], ident: None }, sync).expect("written");
        };
        write(6, 10, true);
        write(7, 3000, false);
        write(8, 10, false);
        files.freeze();
        drop(log);
        files.crash(&mut Random::new(seed));
        let found = Model::read(&open()).expect("readable");
        let entries = &found.regions[&1].entries;
        assert!(entries.keys().copied().eq(6..6 + entries.len() as u64), "seed {seed}: {found:?}");
        *kept.entry(entries.len()).or_insert(0) += 1;
    }
    assert!(kept.len() == 3, "all of them, the first two, or what was synced: {kept:?}");
}
