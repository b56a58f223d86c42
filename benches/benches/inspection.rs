//! What it costs to look at all regions of a store, which waits for none of them.
//!
//! A moved number means that summaries grew, or that reading one takes another lock or copy. The figure to
//! compare with is `statuses`: as many regions asked one after the other, each by a message to its mailbox.
//!
//! `cargo bench -p benches --bench inspection [REGIONS]`

use raftstore::{
    InProcessTransport, MemoryLogStore, OrderedMap, Peer, PeerId, RegionDescription, RegionId,
    Store, StoreConfig, StoreId,
};
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

const REPEAT: usize = 11;

fn region(id: u64) -> RegionDescription {
    RegionDescription::new(
        RegionId::new(id),
        id.to_be_bytes().to_vec(),
        (id + 1).to_be_bytes().to_vec(),
        [Peer::voter(PeerId::new(id), StoreId::new(1))],
    )
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn measure(mut what: impl FnMut()) -> Duration {
    let times = (0..REPEAT).map(|_| {
        let start = Instant::now();
        what();
        start.elapsed()
    });
    median(times.collect())
}

fn main() {
    let count = std::env::args().find_map(|argument| argument.parse().ok()).unwrap_or(100_000);
    let mut config = StoreConfig { pollers: 1, ..StoreConfig::default() };
    config.raft.tick_interval = Duration::from_secs(5);
    let store = Store::builder(StoreId::new(1))
        .config(config)
        .log_store(Arc::new(MemoryLogStore::new()))
        .state_machine(Arc::new(OrderedMap::new()))
        .transport(InProcessTransport::new())
        .start()
        .expect("the store starts");
    let handle = store.handle();
    handle.bootstrap(&(1..=count).map(region).collect::<Vec<_>>()).expect("sound regions");
    (1..=count).for_each(|id| assert!(handle.campaign(RegionId::new(id)), "its mailbox is empty"));
    while handle.leaders() < count {
        std::thread::yield_now();
    }
    let regions = measure(|| drop(black_box(handle.regions())));
    let one = measure(|| drop(black_box(handle.region(RegionId::new(count / 2)))));
    let status = measure(|| drop(black_box(handle.store_status())));
    let start = Instant::now();
    let asked = 1_000.min(count);
    for id in 1..=asked {
        black_box(handle.region_status(RegionId::new(id)));
    }
    let statuses = start.elapsed().mul_f64(count as f64 / asked as f64);
    println!("{count} regions, all led here; medians of {REPEAT}");
    println!("  regions()       {regions:>12.1?}");
    println!("  region(id)      {one:>12.1?}");
    println!("  store_status()  {status:>12.1?}");
    println!("  statuses        {statuses:>12.1?}  (by {asked} of them)");
}
