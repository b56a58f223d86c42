//! Reads show everything that was acknowledged, or shown to somebody, before they began; with real threads.

mod common;

use bytes::Bytes;
use common::{config, eventually, region, Cluster, DEADLINE};
use raftstore::{
    AdminRequest, Envelope, InProcessTransport, Index, MapCommand, MemoryLogStore, NewRegion,
    OrderedMap, PeerId, ReadError, ReadRequest, ReadWay, RegionEpoch, RegionId, SnapshotMessage,
    SplitRequest, StoreBuilder, StoreConfig, StoreHandle, StoreId, StorePing, Transport,
};
use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const REGION: RegionId = RegionId::new(1);
const KEY: &[u8] = b"k";

fn put(value: u64) -> Bytes {
    MapCommand::put(KEY, value.to_be_bytes().to_vec()).encode()
}

fn number(value: Option<Bytes>) -> u64 {
    value.map_or(0, |bytes| u64::from_be_bytes(bytes[..].try_into().expect("eight bytes")))
}

fn count_of(handle: &raftstore::Store, way: &str) -> u64 {
    let name =
        format!("raftstore_reads_total{{store=\"{}\",way=\"{way}\"}} ", handle.handle().store_id());
    let text = handle.metrics_text();
    let line = text.lines().find_map(|line| line.strip_prefix(&name));
    line.map_or(0, |value| value.parse().expect("a number"))
}

/// Three stores, the first of which leads the one region and has a lease.
fn led(config: &StoreConfig) -> Cluster {
    let cluster = Cluster::in_memory(config);
    cluster.lead_from_the_first(1);
    cluster.write(REGION, &put(1)).expect("written");
    eventually("there is a lease", || way_of(&cluster, 0) == Ok(ReadWay::Lease));
    cluster
}

fn way_of(cluster: &Cluster, store: usize) -> Result<ReadWay, &'static str> {
    let seen = cluster.handle(store).read(REGION, ReadRequest::default(), |point| point.way);
    seen.map_err(|error| error.label())
}

/// Elections take their time, so that what rests on a lease is seen.
fn slow_elections() -> StoreConfig {
    let mut config = config();
    config.raft.election_ticks = 50;
    config
}

#[test]
fn each_way_shows_what_was_acknowledged() {
    let cluster = led(&config());
    let read = |store: usize, request| {
        let map = cluster.maps[store].clone();
        let see = |point: &raftstore::ReadPoint| (number(map.get(REGION, KEY)), point.way);
        cluster.handle(store).read(REGION, request, see)
    };
    for value in 2..20 {
        cluster.write(REGION, &put(value)).expect("written");
        let (seen, way) = read(0, ReadRequest::leader_only()).expect("read");
        assert_eq!(seen, value);
        assert!(matches!(way, ReadWay::Lease | ReadWay::Index));
        let (seen, way) = read(1, ReadRequest::linearizable()).expect("read");
        assert_eq!((seen, way), (value, ReadWay::Follower));
    }
    assert!(matches!(read(2, ReadRequest::leader_only()), Err(ReadError::NotLeader { .. })));
    let last = cluster.write(REGION, &put(99)).expect("written").index;
    assert_eq!(read(2, ReadRequest::stale(last)), Ok((99, ReadWay::Stale)));
    assert!(read(2, ReadRequest::stale(Index::new(0))).is_ok());
    let known = RegionEpoch { conf_ver: 1, version: 1 };
    assert!(read(0, ReadRequest::default().at_epoch(known)).is_ok());
    for (store, version) in [(0, 0), (0, 2), (1, 0)] {
        let other = RegionEpoch { conf_ver: 1, version };
        let refused = read(store, ReadRequest::default().at_epoch(other));
        assert!(matches!(refused, Err(ReadError::EpochNotMatch { .. })), "{refused:?}");
    }
    let nowhere = cluster.handle(0).read(RegionId::new(9), ReadRequest::default(), |_| ());
    assert!(matches!(nowhere, Err(ReadError::RegionNotFound { .. })));
    assert!(count_of(&cluster.stores[0], "lease") > 0);
    assert!(count_of(&cluster.stores[1], "follower") >= 18);
    assert!(count_of(&cluster.stores[2], "stale") >= 2);
    cluster.shutdown();
}

#[test]
fn callbacks_futures_and_readers_see_the_same_and_end_with_the_store() {
    let cluster = led(&config());
    let (leader, follower) = (cluster.handle(0), cluster.handle(1));
    let mut reader = leader.reader(REGION);
    assert!(reader.read(ReadRequest::default(), |_| ()).is_ok());
    let answers = Arc::new(Mutex::new(Vec::new()));
    for handle in [&leader, &follower] {
        let sink = answers.clone();
        let callback = move |seen: Result<_, ReadError>| sink.lock().expect("sound").push(seen);
        handle.read_with(REGION, ReadRequest::default(), |point| point.way, callback);
    }
    eventually("both are answered", || answers.lock().expect("sound").len() == 2);
    assert_eq!(*answers.lock().expect("sound"), [Ok(ReadWay::Lease), Ok(ReadWay::Follower)]);
    let seen = block_on(follower.read_async(REGION, ReadRequest::default(), |point| point.way));
    assert_eq!(seen, Ok(ReadWay::Follower));
    // One that waits for what will not come, and those that come too late.
    let never = leader.read_async(REGION, ReadRequest::stale(Index::new(1 << 40)), |_| ());
    cluster.shutdown();
    assert_eq!(block_on(never), Err(ReadError::Stopped { region_id: REGION }));
    assert!(reader.read(ReadRequest::default(), |_| ()).is_err());
    assert!(leader.read(REGION, ReadRequest::default(), |_| ()).is_err());
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    struct Unpark(std::thread::Thread);
    impl std::task::Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Arc::new(Unpark(std::thread::current())).into();
    let mut context = std::task::Context::from_waker(&waker);
    let mut future = std::pin::pin!(future);
    loop {
        match future.as_mut().poll(&mut context) {
            std::task::Poll::Ready(value) => return value,
            std::task::Poll::Pending => std::thread::park_timeout(Duration::from_millis(10)),
        }
    }
}

/// Reads at the first store until it is answered. Never the old value.
fn reads_nothing_old(cluster: &Cluster, old: u64) {
    let map = cluster.maps[0].clone();
    let see = move |point: &raftstore::ReadPoint| (number(map.get(REGION, KEY)), point.way);
    match cluster.handle(0).read(REGION, ReadRequest::default(), see) {
        Ok((seen, way)) => assert!(seen > old, "{seen} by {way:?}"),
        Err(error) => assert!(error.is_retryable()),
    }
}

/// Writes at the other stores until one of them leads.
fn write_elsewhere(cluster: &Cluster, value: u64) {
    let start = Instant::now();
    for store in [1, 2].into_iter().cycle() {
        if cluster.handle(store).propose(REGION, put(value)).is_ok() {
            return;
        }
        assert!(start.elapsed() < DEADLINE, "nobody leads");
        std::thread::park_timeout(Duration::from_millis(1));
    }
}

/// Whether the leader on the first store knows that all have all of its log.
fn knows_all_to_follow(cluster: &Cluster) -> bool {
    let info = cluster.handle(0).region(REGION).expect("there");
    info.peers.len() == 3 && info.peers.iter().all(|peer| peer.lag == 0)
}

/// What the deposed leader is asked for comes within its old lease, or it says nothing: whether it did.
fn hands_over_and_hears_nothing_more() -> bool {
    let cluster = led(&slow_elections());
    // Else the peer it hands over to would have to tell first how far it has come.
    eventually("all follow", || knows_all_to_follow(&cluster));
    // From here on it is not told that it is followed no more.
    cluster.network.disconnect(StoreId::new(1));
    let start = Instant::now();
    let had_lease = way_of(&cluster, 0) == Ok(ReadWay::Lease);
    let to = Some(PeerId::new(12));
    cluster.handle(0).admin_with(REGION, AdminRequest::transfer_leader(to), |_| ());
    write_elsewhere(&cluster, 2);
    let lease = slow_elections().raft.tick_interval * 45;
    let in_time = start.elapsed() < lease;
    reads_nothing_old(&cluster, 1);
    cluster.shutdown();
    had_lease && in_time
}

#[test]
fn a_leader_that_hands_over_and_hears_nothing_more_does_not_read_by_its_lease() {
    // On a busy machine it may come too late to say anything.
    assert!((0..5).any(|_| hands_over_and_hears_nothing_more()), "never in time");
}

/// A network from which one store at a time is cut off, in both directions.
struct Cut {
    network: InProcessTransport,
    me: u64,
    /// 0: nobody.
    store: Arc<AtomicU64>,
}

impl Cut {
    fn is_between(&self, to: StoreId) -> bool {
        let cut = self.store.load(Ordering::SeqCst);
        cut == self.me || cut == to.get()
    }
}

impl Transport for Cut {
    fn send(&self, to: StoreId, messages: &mut Vec<Box<Envelope>>) -> usize {
        match self.is_between(to) {
            true => messages.drain(..).count(),
            false => self.network.send(to, messages),
        }
    }

    fn send_snapshot(&self, message: SnapshotMessage) -> bool {
        !self.is_between(message.to) && self.network.send_snapshot(message)
    }

    fn send_ping(&self, ping: StorePing) -> bool {
        !self.is_between(ping.to) && self.network.send_ping(ping)
    }
}

#[test]
fn a_leader_that_is_cut_off_reads_nothing_that_another_has_replaced() {
    let (network, cut) = (InProcessTransport::new(), Arc::new(AtomicU64::new(0)));
    let with_log = |builder: StoreBuilder, me| {
        let (network, store) = (network.clone(), cut.clone());
        builder.log_store(Arc::new(MemoryLogStore::new())).transport(Cut { network, me, store })
    };
    let cluster = Cluster::build(&config(), |_| OrderedMap::new(), with_log);
    (0..3).for_each(|store| network.connect(cluster.handle(store)));
    cluster.lead_from_the_first(1);
    let seen = checked(&cluster, |seen| {
        for _ in 0..5 {
            eventually("some are read by lease", || {
                let before = seen.by_lease.load(Ordering::Relaxed);
                std::thread::park_timeout(Duration::from_millis(5));
                seen.is_done() || seen.by_lease.load(Ordering::Relaxed) > before
            });
            let leader = (0..3).find(|store| cluster.handle(*store).leaders() == 1);
            let Some(leader) = leader else { continue };
            cut.store(leader as u64 + 1, Ordering::SeqCst);
            let others = || (0..3).filter(|store| *store != leader);
            eventually("another leads", || {
                seen.is_done() || others().any(|store| cluster.handle(store).leaders() == 1)
            });
            let before = seen.highest.load(Ordering::SeqCst);
            eventually("writes go on", || {
                seen.is_done() || seen.highest.load(Ordering::SeqCst) > before + 5
            });
            cut.store(0, Ordering::SeqCst);
        }
    });
    assert!(seen.by_lease.into_inner() > 5);
    cluster.shutdown();
}

/// What everybody has seen so far: the floor for every read that begins now.
#[derive(Default)]
struct Seen {
    highest: AtomicU64,
    done: AtomicBool,
    reads: AtomicU64,
    by_lease: AtomicU64,
}

impl Seen {
    fn note(&self, value: u64) {
        self.highest.fetch_max(value, Ordering::SeqCst);
    }

    fn is_done(&self) -> bool {
        self.done.load(Ordering::SeqCst)
    }

    /// Reads at one store until it is over; no read may show less than was seen before it began.
    fn read_on(&self, handle: &StoreHandle, map: &Arc<OrderedMap>) {
        let mut reader = handle.reader(REGION);
        while !self.is_done() {
            let floor = self.highest.load(Ordering::SeqCst);
            let look = |point: &raftstore::ReadPoint| (number(map.get(REGION, KEY)), *point);
            let Ok((value, point)) = reader.read(ReadRequest::default(), look) else {
                std::thread::park_timeout(Duration::from_micros(200));
                continue;
            };
            assert!(
                value >= floor,
                "store {} shows {value} after {floor}: {point:?}",
                handle.store_id()
            );
            self.note(value);
            self.reads.fetch_add(1, Ordering::Relaxed);
            if point.way == ReadWay::Lease {
                self.by_lease.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Writes ever higher numbers.
    fn write_on(&self, cluster: &Cluster) {
        for value in 2.. {
            if self.is_done() {
                return;
            }
            if cluster.write(REGION, &put(value)).is_ok() {
                self.note(value);
            }
        }
    }
}

/// Ends the threads also when one of them, or the test, panics.
struct EndsAll<'a>(&'a Seen);

impl Drop for EndsAll<'_> {
    fn drop(&mut self) {
        self.0.done.store(true, Ordering::SeqCst);
    }
}

fn checked(cluster: &Cluster, meanwhile: impl FnOnce(&Seen)) -> Seen {
    let seen = Seen::default();
    std::thread::scope(|scope| {
        for store in 0..3 {
            let (seen, handle, map) = (&seen, cluster.handle(store), &cluster.maps[store]);
            scope.spawn(move || {
                let _ends_all = EndsAll(seen);
                seen.read_on(&handle, map);
            });
        }
        scope.spawn(|| {
            let _ends_all = EndsAll(&seen);
            seen.write_on(cluster);
        });
        let _ends_all = EndsAll(&seen);
        meanwhile(&seen);
    });
    seen
}

#[test]
fn no_read_goes_back_while_leadership_moves() {
    let cluster = led(&config());
    let mut moved = 0;
    let seen = checked(&cluster, |seen| {
        let start = Instant::now();
        for to in (1..=3).cycle() {
            if moved == 40 || seen.is_done() || start.elapsed() > DEADLINE {
                break;
            }
            let request = AdminRequest::transfer_leader(Some(PeerId::new(10 + to)));
            for store in 0..3 {
                if cluster.handle(store).admin(REGION, request.clone()).is_ok() {
                    moved += 1;
                    let before = seen.by_lease.load(Ordering::Relaxed);
                    eventually("some are read by lease", || {
                        seen.is_done() || seen.by_lease.load(Ordering::Relaxed) > before
                    });
                }
            }
        }
    });
    assert!(moved >= 40, "leadership moved {moved} times only");
    assert!(seen.by_lease.into_inner() >= 40 && seen.reads.into_inner() > 200);
    cluster.shutdown();
}

#[test]
fn reads_across_splits_find_all_that_was_there_or_hear_of_the_new_epoch() {
    let cluster = Cluster::in_memory(&config());
    cluster.lead_from_the_first(1);
    let key = |n: u32| Bytes::from(format!("{n:04}"));
    for n in 0..64 {
        let command = MapCommand::put(key(n), key(n)).encode();
        cluster.write(REGION, &command).expect("written");
    }
    let (done, refused, found) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for store in 0..3 {
            let (handle, map) = (cluster.handle(store), &cluster.maps[store]);
            let (done, refused, found) = (&done, &refused, &found);
            let mut known = region(1, 1);
            scope.spawn(move || {
                for n in (0..64).cycle() {
                    if done.load(Ordering::SeqCst) {
                        return;
                    }
                    let key = key(n);
                    if !holds(&known, &key) {
                        continue;
                    }
                    let request = ReadRequest::default().at_epoch(known.epoch);
                    match handle.read(REGION, request, |_| map.get(REGION, &key)) {
                        Ok(value) => {
                            assert_eq!(
                                value.as_ref(),
                                Some(&key),
                                "on store {}",
                                handle.store_id()
                            );
                            found.fetch_add(1, Ordering::Relaxed);
                        }
                        Err(ReadError::EpochNotMatch { current, .. }) => {
                            refused.fetch_add(1, Ordering::Relaxed);
                            if current[0].epoch.version > known.epoch.version {
                                known = current[0].clone();
                            }
                        }
                        Err(_) => std::thread::park_timeout(Duration::from_micros(200)),
                    }
                }
            });
        }
        for round in 0..12u32 {
            let before = found.load(Ordering::Relaxed);
            eventually("some are found", || found.load(Ordering::Relaxed) > before + 20);
            let id = 100 + u64::from(round);
            let new = NewRegion {
                id: RegionId::new(id),
                peers: (1..=3).map(|store| PeerId::new(10 * id + store)).collect(),
            };
            let (keys, regions) = (vec![key(60 - 4 * round)], vec![new]);
            let split = AdminRequest::split(SplitRequest { keys, regions, parent_is_right: false });
            eventually("the region is split", || {
                (0..3).any(|store| cluster.handle(store).admin(REGION, split.clone()).is_ok())
            });
        }
        eventually("all have heard of it", || refused.load(Ordering::Relaxed) >= 3);
        done.store(true, Ordering::SeqCst);
    });
    cluster.shutdown();
}

fn holds(description: &raftstore::RegionDescription, key: &Bytes) -> bool {
    let end = &description.end_key;
    *key >= description.start_key && (end.is_empty() || key < end)
}
