//! Three stores in a process that is stopped for longer than an election takes, as by a debugger, a
//! hypervisor or a machine that swaps, and goes on.

mod common;

use common::process::{
    key, region_of, say, say_acknowledged, task, Acknowledged, Running, REGIONS,
};
use common::{config, Cluster, DEADLINE};
use parking_lot::Mutex;
use raftstore::{
    Answer, Index, LogStore, MapCommand, RaftEngineLogStore, RegionId, StoreConfig, INITIAL_INDEX,
};
use rustix::process::Signal;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Proposals that wait at the same time.
const PROPOSERS: u64 = 16;

fn quick_elections() -> StoreConfig {
    let mut config = config();
    config.raft.tick_interval = Duration::from_millis(10);
    config
}

fn longest_election() -> Duration {
    let raft = quick_elections().raft;
    raft.tick_interval * 2 * raft.election_ticks as u32
}

#[test]
fn a_process_that_is_stopped_and_goes_on_answers_each_proposal_once_and_truly() {
    let dir = tempfile::tempdir().expect("a directory");
    let name = "child_of_the_stop_test";
    let mut child = Running::start(&[], name, "", dir.path(), Acknowledged::new());
    child.wait_for_writes(50);
    // Longer than an election takes, and shorter.
    for stop in [2 * longest_election(), Duration::from_millis(20)].repeat(4) {
        child.signal(Signal::STOP);
        // Reads what it has said before.
        child.read_for(stop);
        child.signal(Signal::CONT);
        child.wait_for_writes(50);
    }
    child.ask("stop the load");
    let outcome = child.end();
    outcome.assert_sound("a stop");
    println!("{:?}", outcome.said);
}

/// What became of each proposal, by its client and number.
#[derive(Default)]
struct Answers {
    done: BTreeMap<(u64, u64), Index>,
    refused: BTreeSet<(u64, u64)>,
    unknown: BTreeSet<(u64, u64)>,
}

impl Answers {
    fn add(&mut self, proposal: (u64, u64), answer: &Answer) {
        let new = match answer {
            Ok(response) => {
                assert_eq!(response.region_id, region_of(proposal.0, proposal.1));
                assert!(response.value.is_empty(), "written before: {response:?}");
                self.done.insert(proposal, response.index).is_none()
            }
            Err(error) if error.may_have_happened() => self.unknown.insert(proposal),
            Err(_) => self.refused.insert(proposal),
        };
        assert!(new, "{proposal:?} was answered twice");
    }
}

/// Does nothing unless the test above runs it.
#[test]
fn child_of_the_stop_test() {
    let Some((dir, _)) = task() else { return };
    let stores = dir.join("stores");
    let cluster = Cluster::on_disk(&quick_elections(), &stores);
    cluster.lead_from_the_first(REGIONS);
    let answers = Mutex::new(Answers::default());
    let (asked, answered) = (AtomicU64::new(0), std::sync::Arc::new(AtomicU64::new(0)));
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for client in 0..PROPOSERS {
            let (cluster, answers, asked, answered, stop) =
                (&cluster, &answers, &asked, &answered, &stop);
            scope.spawn(move || {
                let mut store = client as usize % 3;
                for number in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let key = key(client, number);
                    let payload = MapCommand::put(key.clone(), key).encode();
                    let (sender, answer) = std::sync::mpsc::channel();
                    let answered = answered.clone();
                    asked.fetch_add(1, Ordering::Relaxed);
                    let region = region_of(client, number);
                    cluster.handle(store).propose_with(region, payload, move |answer| {
                        answered.fetch_add(1, Ordering::Relaxed);
                        sender.send(answer).expect("awaited");
                    });
                    let answer = answer.recv_timeout(DEADLINE).expect("an answer");
                    answers.lock().add((client, number), &answer);
                    match answer {
                        Ok(_) => say_acknowledged(client, number),
                        // Never proposed again: what was refused must not be there.
                        Err(_) => {
                            store = (store + 1) % 3;
                            std::thread::park_timeout(Duration::from_millis(1));
                        }
                    }
                }
            });
        }
        scope.spawn(|| change_leaders(&cluster, &stop));
        // Until the parent says so.
        std::io::stdin().lines().next();
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(asked.into_inner(), answered.load(Ordering::Relaxed), "one answer each");
    for id in 1..=REGIONS {
        let barrier = MapCommand::put("barrier", "").encode();
        cluster.write(RegionId::new(id), &barrier).expect("the region serves");
    }
    cluster.converge(REGIONS);
    cluster.shutdown();
    for store in 1..=3 {
        compare(&stores.join(format!("store-{store}")), &answers.lock());
    }
    say("down");
}

/// Cuts one store after the other off, each for longer than an election takes, so that leaders change
/// and answers are open when the process stops.
fn change_leaders(cluster: &Cluster, stop: &AtomicBool) {
    let wait = |time| {
        let start = Instant::now();
        while start.elapsed() < time && !stop.load(Ordering::Relaxed) {
            std::thread::park_timeout(Duration::from_millis(5));
        }
    };
    for store in (0..3).cycle() {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        cluster.network.disconnect(cluster.handle(store).store_id());
        wait(3 * longest_election() / 2);
        cluster.network.connect(cluster.handle(store));
        wait(longest_election() / 2);
    }
}

/// Each proposal that was answered with success is in the log once, at the index of its answer; those
/// that were refused are not; of the others nobody knows.
fn compare(store: &Path, answers: &Answers) {
    let log = RaftEngineLogStore::open(&store.join("raft-log"), &config().log).expect("sound");
    let mut found = BTreeMap::new();
    for region in log.load().expect("sound").regions {
        let id = region.record.description.id;
        let (low, high) = (INITIAL_INDEX.get() + 1, region.last_index.get() + 1);
        let entries =
            raftstore::LogReader::entries(&log, id, Index::new(low), Index::new(high), usize::MAX);
        for entry in entries.expect("sound") {
            let Ok(MapCommand::Put { value, .. }) = MapCommand::decode(entry.data) else {
                continue;
            };
            let twice = found.insert((id, value.clone()), entry.index);
            assert!(
                twice.is_none() || value.is_empty(),
                "{value:?} at {twice:?} and {}",
                entry.index
            );
        }
    }
    let index = |(client, number): &(u64, u64)| {
        found.get(&(region_of(*client, *number), key(*client, *number).into())).copied()
    };
    for (proposal, answer) in &answers.done {
        assert_eq!(index(proposal), Some(answer.get()), "{proposal:?} was acknowledged");
    }
    for proposal in &answers.refused {
        assert_eq!(index(proposal), None, "{proposal:?} was refused");
    }
    let (done, refused) = (answers.done.len(), answers.refused.len());
    say(&format!("{done} done, {refused} refused, {} unknown", answers.unknown.len()));
}
