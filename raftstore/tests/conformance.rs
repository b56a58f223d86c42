//! Our own state machines and log stores, against the contracts of their seams.

#![cfg(all(feature = "testkit", feature = "fjall"))]

mod common;

use bytesize::ByteSize;
use common::copy_directory;
use raftstore::testkit::{self, LogStoreSubject, StateMachineSubject};
use raftstore::{
    Bytes, EngineConfig, FjallConfig, FjallMap, MapCommand, MemoryLogStore, OrderedMap,
    RaftEngineLogStore, RegionDescription,
};
use std::path::PathBuf;
use std::time::Duration;
use tempfile::TempDir;

fn put(key: &[u8], value: &[u8]) -> Bytes {
    MapCommand::put(key.to_vec(), value.to_vec()).encode()
}

fn delete(key: &[u8]) -> Option<Bytes> {
    Some(MapCommand::delete(key.to_vec()).encode())
}

fn directory() -> TempDir {
    tempfile::tempdir().expect("a directory")
}

struct InMemory;

impl StateMachineSubject for InMemory {
    type Home = ();
    type Machine = OrderedMap;

    fn home(&self) {}

    fn open(&self, _: &mut ()) -> OrderedMap {
        OrderedMap::new()
    }

    fn is_volatile(&self) -> bool {
        true
    }

    fn put(&self, key: &[u8], value: &[u8]) -> Bytes {
        put(key, value)
    }

    fn delete(&self, key: &[u8]) -> Option<Bytes> {
        delete(key)
    }

    fn contents(&self, map: &OrderedMap, region: &RegionDescription) -> Vec<(Bytes, Bytes)> {
        let pairs = map.scan(region.id, &region.start_key, usize::MAX);
        pairs.into_iter().filter(|(key, _)| region.contains(key)).collect()
    }
}

/// A map on disk.
struct OnDisk {
    config: FjallConfig,
    /// Whether it ends as a process that is killed: a copy of its files is opened next.
    killed: bool,
}

/// A directory, and within it the one that counts.
struct Lives {
    parent: TempDir,
    number: u32,
}

impl Lives {
    fn path(&self) -> PathBuf {
        self.parent.path().join(self.number.to_string())
    }

    /// What the next life finds: the files as they are while the one before still runs.
    fn copy(&mut self) {
        let from = self.path();
        self.number += 1;
        copy_directory(&from, &self.path());
    }
}

impl StateMachineSubject for OnDisk {
    type Home = Lives;
    type Machine = FjallMap;

    fn home(&self) -> Lives {
        Lives { parent: directory(), number: 0 }
    }

    fn open(&self, home: &mut Lives) -> FjallMap {
        FjallMap::open(home.path(), &self.config).expect("opens")
    }

    fn end(&self, home: &mut Lives, map: FjallMap) {
        if self.killed {
            home.copy();
        }
        drop(map);
    }

    fn put(&self, key: &[u8], value: &[u8]) -> Bytes {
        put(key, value)
    }

    fn delete(&self, key: &[u8]) -> Option<Bytes> {
        delete(key)
    }

    fn contents(&self, map: &FjallMap, region: &RegionDescription) -> Vec<(Bytes, Bytes)> {
        map.scan(region.id, &region.start_key, usize::MAX).expect("readable")
    }
}

#[test]
fn ordered_map_conforms() {
    testkit::state_machine(&InMemory);
}

#[test]
fn fjall_map_conforms() {
    testkit::state_machine(&OnDisk { config: FjallConfig::default(), killed: false });
}

#[test]
fn fjall_map_that_is_killed_conforms() {
    // Syncs while steps are applied; the other one hardly ever does by itself.
    let sync_interval = Duration::from_millis(1);
    let config = FjallConfig { sync_interval, ..FjallConfig::default() };
    testkit::state_machine(&OnDisk { config, killed: true });
}

struct MemoryLog;

impl LogStoreSubject for MemoryLog {
    type Home = ();
    type Store = MemoryLogStore;

    fn home(&self) {}

    fn open(&self, _: &mut ()) -> MemoryLogStore {
        MemoryLogStore::new()
    }
}

/// raft-engine with files so small that it purges all the time.
struct EngineLog;

impl LogStoreSubject for EngineLog {
    type Home = TempDir;
    type Store = RaftEngineLogStore;

    fn home(&self) -> TempDir {
        directory()
    }

    fn open(&self, home: &mut TempDir) -> RaftEngineLogStore {
        let config = EngineConfig {
            purge_threshold: ByteSize::kib(256),
            target_file_size: ByteSize::kib(64),
            ..EngineConfig::default()
        };
        RaftEngineLogStore::open(home.path(), &config).expect("opens")
    }
}

#[test]
fn memory_log_store_conforms() {
    testkit::log_store(&MemoryLog);
}

#[test]
fn raft_engine_log_store_conforms() {
    testkit::log_store(&EngineLog);
}
