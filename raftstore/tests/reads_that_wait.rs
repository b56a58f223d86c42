//! Reads that wait while their peer is destroyed, or its contents replaced by a snapshot; with real threads. While
//! their region is set aside: `failures.rs`.

mod common;

use common::{config, eventually, region, Cluster};
use parking_lot::Mutex;
use raftstore::{
    AdminRequest, Bytes, Index, MapCommand, Peer, PeerChange, PeerId, ReadError, ReadPoint,
    ReadRequest, ReadWay, RegionId, StoreHandle, StoreId,
};
use std::sync::Arc;

const REGION: RegionId = RegionId::new(1);
/// No log gets there.
const NEVER: Index = Index::new(1 << 40);

fn put(number: u64) -> Bytes {
    MapCommand::put(format!("{number:04}"), vec![7; 2000]).encode()
}

type Answers = Arc<Mutex<Vec<Result<(PeerId, ReadWay), ReadError>>>>;

/// Reads whose answers are gathered, one for each of the requests.
fn ask(handle: &StoreHandle, answers: &Answers, requests: &[ReadRequest]) {
    for request in requests {
        let sink = answers.clone();
        let look = |point: &ReadPoint| (point.peer_id, point.way);
        handle.read_with(REGION, *request, look, move |seen| sink.lock().push(seen));
    }
}

/// Everybody who waited has heard the same kind of error, once.
fn all_refused(answers: &Answers, count: usize, label: &str) {
    eventually("all are answered", || answers.lock().len() >= count);
    let answers = std::mem::take(&mut *answers.lock());
    assert_eq!(answers.len(), count);
    for answer in answers {
        assert_eq!(answer.map_err(|error| error.label()), Err(label.to_owned().as_str()));
    }
}

#[test]
fn reads_that_wait_hear_when_their_peer_is_destroyed_and_its_successor_answers_others() {
    let cluster = Cluster::in_memory(&config());
    cluster.lead_from_the_first(1);
    let (leader, third) = (cluster.handle(0), cluster.handle(2));
    let mut reader = third.reader(REGION);
    let before = cluster.write(REGION, &put(0)).expect("written").index;
    let seen = reader.read(ReadRequest::stale(before), |point| point.peer_id);
    assert_eq!(seen, Ok(PeerId::new(13)));

    let answers = Answers::default();
    ask(&third, &answers, &[ReadRequest::stale(NEVER); 3]);
    let gone = region(1, 1).peers[2].id;
    leader.admin(REGION, AdminRequest::change_peers([PeerChange::Remove(gone)])).expect("removed");
    eventually("it is destroyed", || third.region_count() == 0);
    all_refused(&answers, 3, "stopped");
    let nowhere = reader.read(ReadRequest::stale(Index::new(0)), |_| ());
    assert_eq!(nowhere, Err(ReadError::RegionNotFound { region_id: REGION }));

    // It comes again, under a new id, and nobody is answered by what was there before.
    let again = Peer::learner(PeerId::new(50), StoreId::new(3));
    leader.admin(REGION, AdminRequest::change_peers([PeerChange::Add(again)])).expect("added");
    let last = cluster.write(REGION, &put(1)).expect("written").index;
    let map = cluster.maps[2].clone();
    eventually("it is read from", || {
        let look = |point: &ReadPoint| (point.peer_id, map.len(REGION));
        match reader.read(ReadRequest::stale(last), look) {
            Ok(seen) => {
                assert_eq!(seen, (again.id, 2));
                true
            }
            Err(error) => {
                assert!(error.is_retryable(), "{error}");
                false
            }
        }
    });
    let seen = reader.read(ReadRequest::linearizable(), |point| (point.peer_id, point.way));
    assert_eq!(seen, Ok((again.id, ReadWay::Follower)));
    cluster.shutdown();
}

#[test]
fn a_read_that_waits_across_an_installation_sees_the_new_contents() {
    let mut config = config();
    config.raft.compact_after_entries = 20;
    config.raft.spare_entries = 20;
    let cluster = Cluster::in_memory(&config);
    cluster.lead_from_the_first(1);
    let (leader, third) = (cluster.handle(0), cluster.handle(2));
    cluster.write(REGION, &put(0)).expect("written");
    cluster.converge(1);
    assert!(cluster.network.disconnect(StoreId::new(3)));
    let mut last = Index::new(0);
    for number in 1..200 {
        last = leader.propose(REGION, put(number)).expect("written").index;
    }
    let cut = || {
        let status = leader.region_status(REGION).expect("it is here");
        let lags = status.matched.iter().filter(|(_, matched)| *matched < status.truncated);
        status.truncated.get() > 150 && lags.count() > 0
    };
    eventually("the log is cut", cut);

    // Content with what only the snapshot brings. After twice the election timeout it gives up, so it is asked
    // anew until the store is there again and has caught up.
    let map = cluster.maps[2].clone();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let read = || {
        let (map, sink) = (map.clone(), seen.clone());
        let look = move |point: &ReadPoint| (point.applied, map.len(REGION));
        let callback = move |answer| sink.lock().push(answer);
        third.read_with(REGION, ReadRequest::stale(last), look, callback);
    };
    read();
    cluster.network.connect(cluster.handle(2));
    eventually("it is answered", || match seen.lock().pop() {
        Some(Ok((applied, len))) => {
            assert!(applied >= last && len == 200, "{len} at {applied}");
            true
        }
        Some(Err(ReadError::TimedOut { .. })) => {
            read();
            false
        }
        other => {
            assert!(other.is_none(), "{other:?}");
            false
        }
    });
    cluster.shutdown();
}
