//! Damage to a log on disk: told by name, or without effect, and never a log that is silently shorter.

use bytes::Bytes;
use raft::eraftpb::{Entry, HardState};
use raftstore::{
    ByteSize, EngineConfig, Index, LogBatch, LogReader, LogStore, Peer, PeerId, PeerRole,
    RaftEngineLogStore, RegionDescription, RegionId, RegionRecord, RegionWrite, StoreId,
    StoreIdent, Term, TruncatedState,
};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const REGIONS: u64 = 6;

fn settings() -> EngineConfig {
    EngineConfig {
        target_file_size: ByteSize::kib(8),
        purge_threshold: ByteSize::kib(32),
        recovery_threads: 1,
        ..EngineConfig::default()
    }
}

/// What a region has written.
#[derive(Clone, Debug, PartialEq)]
struct Region {
    record: RegionRecord,
    hard_state: HardState,
    truncated: TruncatedState,
    entries: BTreeMap<u64, Bytes>,
}

fn record(id: u64) -> RegionRecord {
    let peer_id = PeerId::new(id * 10);
    let peer = Peer { id: peer_id, store: StoreId::new(1), role: PeerRole::Voter };
    let description = RegionDescription::new(
        RegionId::new(id),
        Bytes::from(vec![id as u8]),
        Bytes::from(vec![id as u8 + 1]),
        [peer],
    );
    RegionRecord::new(description, peer_id)
}

fn entry(index: u64, data: Bytes) -> Entry {
    Entry { index, term: 5, data, ..Entry::default() }
}

/// Writes a log of several files of both kinds, and what is in it.
fn write_log(dir: &Path) -> BTreeMap<u64, Region> {
    let log = RaftEngineLogStore::open(dir, &settings()).expect("opens");
    let ident = Some(StoreIdent { cluster_id: 1, store_id: StoreId::new(1) });
    log.write(&mut LogBatch { ident, ..LogBatch::default() }, true).expect("written");
    let mut regions = BTreeMap::new();
    for step in 0..240u64 {
        let id = 1 + step % REGIONS;
        let mut write = RegionWrite { region_id: RegionId::new(id), ..RegionWrite::default() };
        let region = regions.entry(id).or_insert_with(|| Region {
            record: record(id),
            hard_state: HardState::default(),
            truncated: TruncatedState::INITIAL,
            entries: BTreeMap::new(),
        });
        if step < REGIONS {
            write.record = Some(Box::new(region.record.clone()));
        }
        let next = region.entries.keys().next_back().map_or(6, |last| last + 1);
        for index in next..next + 1 + step % 3 {
            let data = Bytes::from(vec![(step + index) as u8; 40 + (step * 7 % 300) as usize]);
            write.entries.push(entry(index, data.clone()));
            region.entries.insert(index, data);
        }
        region.hard_state.term = 5 + step;
        write.hard_state = Some(region.hard_state.clone());
        if step % 60 >= 54 {
            let index = next - 4;
            region.truncated = TruncatedState { index: Index::new(index), term: Term::new(5) };
            region.entries = region.entries.split_off(&(index + 1));
            write.truncated = Some(region.truncated);
        }
        log.write(&mut LogBatch { writes: vec![write], ident: None }, true).expect("written");
        if step % 50 == 49 {
            log.reclaim().expect("reclaimed");
        }
    }
    regions
}

/// Opens a log and reads all of it. An error is what names the damage.
fn read_log(dir: &Path) -> Result<BTreeMap<u64, Region>, String> {
    let log = RaftEngineLogStore::open(dir, &settings()).map_err(|error| error.to_string())?;
    let stored = log.load().map_err(|error| error.to_string())?;
    if let Some(damaged) = stored.damaged.first() {
        return Err(format!("{damaged:?}"));
    }
    assert!(stored.ident.is_some(), "the store's identity is gone");
    let mut regions = BTreeMap::new();
    for region in stored.regions {
        let id = region.record.description.id;
        let (low, high) = (region.truncated.index.get() + 1, region.last_index.get() + 1);
        let entries = log
            .entries(id, Index::new(low), Index::new(high), usize::MAX)
            .map_err(|error| error.to_string())?;
        let entries = entries.into_iter().map(|entry| (entry.index, entry.data)).collect();
        let (record, truncated) = (region.record, region.truncated);
        let hard_state = region.hard_state.unwrap_or_default();
        regions.insert(id.get(), Region { record, hard_state, truncated, entries });
    }
    Ok(regions)
}

/// In memory where the machine has that: hundreds of logs are opened, and each syncs.
fn fast_dir() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a directory")
}

/// A closed log and what is in it, to be damaged again and again.
struct Sample {
    dir: tempfile::TempDir,
    regions: BTreeMap<u64, Region>,
    /// By name, the lock left out.
    files: BTreeMap<String, Vec<u8>>,
}

impl Sample {
    fn new() -> Self {
        let dir = fast_dir();
        let regions = write_log(&dir.path().join("original"));
        let mut files = BTreeMap::new();
        for file in std::fs::read_dir(dir.path().join("original")).expect("a directory") {
            let path = file.expect("a file").path();
            let name = path.file_name().expect("named").to_str().expect("UTF-8").to_owned();
            if name != "LOCK" && !name.ends_with(".reserved") {
                files.insert(name, std::fs::read(path).expect("readable"));
            }
        }
        let count = |kind: &str| files.keys().filter(|name| name.ends_with(kind)).count();
        assert!(count(".raftlog") >= 3 && count(".rewrite") >= 2, "{:?}", files.keys());
        Self { dir, regions, files }
    }

    /// A directory in which one file is not as it was; `None` if it is not there at all.
    fn with(&self, name: &str, bytes: Option<&[u8]>) -> PathBuf {
        let dir = self.dir.path().join("damaged");
        if dir.exists() {
            std::fs::remove_dir_all(&dir).expect("removed");
        }
        std::fs::create_dir(&dir).expect("created");
        for (file, sound) in &self.files {
            let bytes = if file == name { bytes } else { Some(&sound[..]) };
            if let Some(bytes) = bytes {
                std::fs::write(dir.join(file), bytes).expect("written");
            }
        }
        dir
    }

    /// Whether the damage was told; it is without effect otherwise.
    fn is_told(&self, what: &str, dir: &Path) -> bool {
        match read_log(dir) {
            Ok(found) => {
                assert!(found == self.regions, "{what}: it opens with something else in it");
                false
            }
            Err(error) => {
                assert!(
                    error.contains("damaged")
                        || error.contains("lost")
                        || error.contains("Corruption")
                        || error.contains("missing")
                        || error.contains("panicked"),
                    "{what}: {error}"
                );
                true
            }
        }
    }

    fn logs(&self) -> impl Iterator<Item = (&String, &Vec<u8>)> {
        self.files.iter().filter(|(name, _)| *name != "synced")
    }
}

#[test]
fn an_undamaged_log_opens_with_everything_in_it() {
    let sample = Sample::new();
    let dir = sample.with("", None);
    for _ in 0..3 {
        assert_eq!(read_log(&dir).expect("undamaged"), sample.regions);
    }
}

#[test]
fn a_flipped_bit_is_told_or_without_effect() {
    let sample = Sample::new();
    let mut told = BTreeMap::new();
    for (name, bytes) in &sample.files {
        // The heads of file and batch thoroughly, the rest here and there.
        let positions =
            (0..bytes.len()).filter(|at| at % 211 == 0 || (60..100).contains(at) && at % 4 == 0);
        for at in positions {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1 << (at / 3 % 8);
            let dir = sample.with(name, Some(&damaged));
            let counts: &mut (u32, u32) = told.entry(name).or_default();
            counts.0 += 1;
            counts.1 += u32::from(sample.is_told(&format!("byte {at} of {name}"), &dir));
        }
    }
    // In the note itself it is without effect, and in the last files nearly always told.
    for (name, _) in sample.logs() {
        let (flips, told) = told[name];
        println!("{name}: {told} of {flips} flips are told");
    }
    assert_eq!(told[&"synced".to_owned()].1, 0);
    let (last, _) =
        sample.logs().filter(|(name, _)| name.ends_with(".raftlog")).last().expect("some");
    let (flips, told) = told[last];
    assert!(told * 10 >= flips * 9, "the last file was synced whole: {told} of {flips}");
}

#[test]
fn a_cut_or_missing_file_is_told() {
    let sample = Sample::new();
    for (name, bytes) in sample.logs() {
        let mut cuts: Vec<usize> = (0..bytes.len()).step_by(397).collect();
        cuts.extend([1, 68, 69, 70, bytes.len() - 1]);
        for length in cuts {
            let dir = sample.with(name, Some(&bytes[..length]));
            assert!(sample.is_told(&format!("{name} cut to {length}"), &dir), "{name} at {length}");
        }
        let dir = sample.with(name, None);
        assert!(sample.is_told(&format!("{name} removed"), &dir), "{name} was not missed");
    }
}

#[test]
fn a_cut_says_which_file_and_how_much_and_what_to_do() {
    let sample = Sample::new();
    let (name, bytes) =
        sample.logs().filter(|(name, _)| name.ends_with(".raftlog")).last().expect("some");
    let size = bytes.len();
    let dir = sample.with(name, Some(&bytes[..size - 10]));
    let error = read_log(&dir).expect_err("cut");
    let path = dir.display().to_string();
    let lost =
        format!("{name} ends at byte {}, but {size} bytes of it were synced: 10 bytes", size - 10);
    let mut flipped = bytes.clone();
    flipped[size - 20] ^= 1;
    for part in [&path, &lost, "must be rebuilt from its peers"] {
        assert!(error.contains(part), "{part}: {error}");
    }
    let error = read_log(&sample.with(name, Some(&flipped))).expect_err("damaged");
    for part in
        [name, "is readable up to byte", &format!("{size} bytes of it were synced"), "peers"]
    {
        assert!(error.contains(part), "{part}: {error}");
    }
}

#[test]
fn a_log_without_a_note_opens_and_is_noted_from_then_on() {
    let sample = Sample::new();
    let dir = sample.with("synced", None);
    assert_eq!(read_log(&dir).expect("as one written before there were notes"), sample.regions);
    let last = sample.logs().filter(|(name, _)| name.ends_with(".raftlog")).last().expect("some").0;
    let path = dir.join(last);
    let bytes = std::fs::read(&path).expect("there");
    std::fs::write(&path, &bytes[..bytes.len() - 5]).expect("written");
    assert!(read_log(&dir).expect_err("cut").contains("5 bytes are lost"));
}

#[test]
fn a_deleted_key_of_raft_engine_comes_back() {
    // Why this log store only overwrites. Once this fails, it may delete.
    let dir = tempfile::tempdir().expect("a directory");
    let open = || {
        let config = raft_engine::Config {
            dir: dir.path().to_str().expect("UTF-8").to_owned(),
            target_file_size: raft_engine::ReadableSize::kb(1),
            purge_threshold: raft_engine::ReadableSize::kb(4),
            ..raft_engine::Config::default()
        };
        raft_engine::Engine::open(config).expect("opens")
    };
    let engine = open();
    let write = |batch: &mut raft_engine::LogBatch| engine.write(batch, true).expect("written");
    let fill = || {
        for _ in 0..12 {
            let mut batch = raft_engine::LogBatch::default();
            batch.put(2, b"fill".to_vec(), vec![0; 600]).expect("small");
            write(&mut batch);
        }
        engine.purge_expired_files().expect("purged");
    };
    let mut batch = raft_engine::LogBatch::default();
    batch.put(1, b"key".to_vec(), b"old".to_vec()).expect("small");
    write(&mut batch);
    fill();
    let mut batch = raft_engine::LogBatch::default();
    batch.delete(1, b"key".to_vec());
    write(&mut batch);
    fill();
    fill();
    assert_eq!(engine.get(1, b"key"), None);
    drop(engine);
    assert_eq!(open().get(1, b"key"), Some(b"old".to_vec()));
}
