//! Stores on a real disk, stopped and started.

mod common;

use bytes::Bytes;
use common::{config, eventually, key_in, regions, Cluster};
use raftstore::{
    EngineConfig, InProcessTransport, LogStore, MapCommand, OrderedMap, RaftEngineLogStore,
    RegionId, StartError, Store, StoreId,
};
use std::sync::Arc;

/// A key in the range of its region, with its number as the value.
fn put(region: RegionId, number: u64) -> Bytes {
    MapCommand::put(key_in(region, number), number.to_string()).encode()
}

#[test]
fn everything_acknowledged_is_there_after_a_restart() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut written = 0;
    for round in 0..4 {
        let mut config = config();
        // All ways to write: by log writers, and by the pollers themselves.
        config.log_writers = Some(round % 3);
        let cluster = Cluster::on_disk(&config, dir.path());
        cluster.bootstrap(&regions(5));
        for _ in 0..50 {
            let region = RegionId::new(1 + written % 5);
            cluster.write(region, &put(region, written)).expect("answered");
            written += 1;
        }
        cluster.converge(5);
        for key in 0..written {
            let region = RegionId::new(1 + key % 5);
            let value = cluster.maps[1].get(region, key_in(region, key).as_bytes());
            assert_eq!(value, Some(Bytes::from(key.to_string())), "key {key} in round {round}");
        }
        cluster.shutdown();
    }
}

#[test]
fn one_store_restarts_while_the_others_serve() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut cluster = Cluster::on_disk(&config(), dir.path());
    cluster.bootstrap(&regions(3));
    for number in 0..30 {
        let region = RegionId::new(1 + number % 3);
        cluster.write(region, &put(region, number)).expect("answered");
    }
    let stopped = StoreId::new(2);
    cluster.network.disconnect(stopped);
    cluster.stores[1].shutdown();
    for number in 30..60 {
        let region = RegionId::new(1 + number % 3);
        cluster.write(region, &put(region, number)).expect("answered");
    }
    let map = Arc::new(OrderedMap::new());
    // The old store and its handles are still there; its directory is free all the same.
    let store = Store::builder(StoreId::new(2))
        .config(config())
        .data_dir(dir.path().join("store-2"))
        .state_machine(map.clone())
        .transport(cluster.network.clone())
        .start()
        .expect("the directory is free after a shutdown");
    cluster.network.connect(store.handle());
    cluster.stores[1] = store;
    cluster.maps[1] = map;
    cluster.converge(3);
    assert_eq!(cluster.maps[1].len(RegionId::new(1)), 20);
    cluster.shutdown();
}

#[test]
fn a_directory_in_use_or_of_another_store_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let cluster = Cluster::on_disk(&config(), dir.path());
    let start = |id: u64, cluster_id, path: &str| {
        let config = raftstore::StoreConfig { cluster_id, ..config() };
        Store::builder(StoreId::new(id))
            .config(config)
            .data_dir(dir.path().join(path))
            .state_machine(Arc::new(OrderedMap::new()))
            .transport(InProcessTransport::new())
            .start()
    };
    let refused = start(1, 1, "store-1").expect_err("in use").to_string();
    assert!(refused.contains("store-1"), "{refused}");
    cluster.shutdown();
    let refused = start(9, 1, "store-1").expect_err("another store's");
    assert!(matches!(refused, StartError::WrongStore { .. }), "{refused}");
    let refused = start(1, 9, "store-1").expect_err("another cluster's");
    assert!(matches!(refused, StartError::WrongStore { .. }), "{refused}");
    std::fs::write(dir.path().join("file"), "not a directory").expect("written");
    let refused = start(1, 1, "file").expect_err("a file").to_string();
    assert!(refused.contains("file"), "{refused}");
}

#[test]
fn a_log_batch_covers_hard_states_and_entries_across_a_restart() {
    use raft::eraftpb::{Entry, HardState};
    use raftstore::{Index, LogBatch, LogReader, RegionWrite, Term};
    let dir = tempfile::tempdir().expect("a directory");
    let open = || RaftEngineLogStore::open(dir.path(), &EngineConfig::default()).expect("opens");
    let log = open();
    let ids = [1, 4097, 8193, 77];
    let mut batch = LogBatch::default();
    for (number, id) in (1..).zip(ids) {
        let description = common::region(1, 1);
        let description = raftstore::RegionDescription { id: RegionId::new(id), ..description };
        let hard_state = HardState { term: 5 + number, commit: 6, ..HardState::default() };
        let entry = |index| Entry {
            index,
            term: 5 + number,
            data: Bytes::from(format!("{id}/{index}")),
            ..Entry::default()
        };
        batch.writes.push(RegionWrite {
            region_id: RegionId::new(id),
            entries: vec![entry(6), entry(7)],
            hard_state: Some(hard_state),
            record: Some(Box::new(raftstore::RegionRecord::new(
                description.clone(),
                description.peers[0].id,
            ))),
            ..RegionWrite::default()
        });
    }
    log.write(&mut batch, true).expect("written");
    assert!(batch.is_empty());
    drop(log);
    let log = open();
    let stored = log.load().expect("loads");
    assert!(stored.damaged.is_empty(), "{:?}", stored.damaged);
    let found: Vec<u64> = stored.regions.iter().map(|r| r.record.description.id.get()).collect();
    assert_eq!(found, [1, 77, 4097, 8193], "regions of one shard group do not mix");
    for region in &stored.regions {
        let id = region.record.description.id;
        assert_eq!(region.last_index, Index::new(7));
        let term = region.hard_state.as_ref().expect("written").term;
        let entries = log.entries(id, Index::new(6), Index::new(8), usize::MAX).expect("read");
        assert_eq!(entries.len(), 2);
        assert_eq!(entries[1].data, format!("{id}/7"));
        assert_eq!(log.term(id, Index::new(7)).expect("read"), Some(Term::new(term)));
    }
}

#[test]
fn entries_without_a_record_are_a_damaged_region() {
    use raft::eraftpb::Entry;
    use raftstore::{LogBatch, RegionWrite};
    let dir = tempfile::tempdir().expect("a directory");
    let log = RaftEngineLogStore::open(dir.path(), &EngineConfig::default()).expect("opens");
    let entry = Entry { index: 6, term: 6, ..Entry::default() };
    let region_id = RegionId::new(7);
    let write = RegionWrite { region_id, entries: vec![entry], ..RegionWrite::default() };
    log.write(&mut LogBatch { writes: vec![write], ident: None }, true).expect("written");
    let stored = log.load().expect("loads");
    let damaged = stored.damaged.first().expect("a log that has lost its first file looks so");
    assert_eq!(damaged.region_id, region_id);
    assert!(damaged.reason.contains("record is missing"), "{}", damaged.reason);
}

#[test]
fn a_region_alone_on_its_store_serves_however_the_log_is_written() {
    for log_writers in [0, 1] {
        let dir = tempfile::tempdir().expect("a directory");
        let description = common::region(1, 1);
        let description =
            raftstore::RegionDescription { peers: vec![description.peers[0]], ..description };
        let config = raftstore::StoreConfig { log_writers: Some(log_writers), ..config() };
        let store = Store::builder(StoreId::new(1))
            .config(config)
            .data_dir(dir.path())
            .state_machine(Arc::new(OrderedMap::new()))
            .transport(InProcessTransport::new())
            .start()
            .expect("starts");
        let handle = store.handle();
        handle.bootstrap(&[description]).expect("sound");
        handle.campaign(RegionId::new(1));
        // One round brings forth a vote, a leader, its first entry and its commit, each after a write.
        eventually("it leads", || handle.leaders() == 1);
        handle.propose(RegionId::new(1), put(RegionId::new(1), 1)).expect("it serves");
    }
}

#[test]
fn a_thread_that_reads_two_logs_gets_the_entries_of_each() {
    use raftstore::{Entry, Index, LogBatch, LogReader, RegionWrite, Term};
    let dir = tempfile::tempdir().expect("a directory");
    let region_id = RegionId::new(1);
    let log = |number: u64| {
        let path = dir.path().join(number.to_string());
        let log = RaftEngineLogStore::open(&path, &EngineConfig::default()).expect("opens");
        // At the same place of the same file, and as long.
        let data = Bytes::from(number.to_string());
        let entries = vec![Entry { index: 6, term: number, data, ..Entry::default() }];
        let write = RegionWrite { region_id, entries, ..RegionWrite::default() };
        log.write(&mut LogBatch { writes: vec![write], ident: None }, true).expect("written");
        log
    };
    let logs = [log(1), log(2)];
    for number in [1, 2, 1, 2, 2, 1] {
        let log = &logs[number as usize - 1];
        let entries = log.entries(region_id, Index::new(6), Index::new(7), usize::MAX);
        assert_eq!(entries.expect("read")[0].data, number.to_string());
        assert_eq!(log.term(region_id, Index::new(6)).expect("read"), Some(Term::new(number)));
    }
}
