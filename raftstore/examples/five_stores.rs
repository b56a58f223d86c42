//! One leader alone in its region; four more stores join it, each initialised by a snapshot; then a hundred
//! proposals, each answered before the next is made; and in the end all five hold the same.
//!
//! It is the story of raft-rs's example `five_mem_node`, told on this runtime: there every node is a thread
//! that drives its `RawNode` and sleeps between two looks at its mailbox, and here nobody drives anything.

use raftstore::{
    AdminRequest, InProcessTransport, MapCommand, MemoryLogStore, OrderedMap, Peer, PeerChange,
    PeerId, RegionDescription, RegionId, Store, StoreId,
};
use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

const REGION: RegionId = RegionId::new(1);
const PROPOSALS: u32 = 100;
const PATIENCE: Duration = Duration::from_secs(10);

fn main() -> Result<(), Box<dyn Error>> {
    let network = InProcessTransport::new();
    let maps: Vec<Arc<OrderedMap>> = (0..5).map(|_| Arc::new(OrderedMap::new())).collect();
    let mut stores = Vec::new();
    for (id, map) in (1..).zip(&maps) {
        let store = Store::builder(StoreId::new(id))
            .log_store(Arc::new(MemoryLogStore::new()))
            .state_machine(map.clone())
            .transport(network.clone())
            .start()?;
        network.connect(store.handle());
        stores.push(store);
    }

    let first = stores[0].handle();
    let peer = |id| (PeerId::new(id), StoreId::new(id));
    first.bootstrap(&[RegionDescription::new(
        REGION,
        "",
        "",
        [Peer::voter(peer(1).0, peer(1).1)],
    )])?;
    first.campaign(REGION);
    wait_for("a leader", || first.leaders() == 1)?;
    first.propose(REGION, MapCommand::put("the first", "before the others came").encode())?;
    println!("store 1 leads region {REGION}, alone");

    let start = Instant::now();
    let learners: Vec<PeerChange> =
        (2..=5).map(|id| PeerChange::Add(Peer::learner(peer(id).0, peer(id).1))).collect();
    first.admin(REGION, AdminRequest::change_peers(learners))?;
    wait_for("four snapshots", || maps[1..].iter().all(|map| map.len(REGION) == 1))?;
    println!("stores 2 to 5 have joined as learners, with a snapshot each: {:?}", start.elapsed());

    let start = Instant::now();
    let voters: Vec<PeerChange> = (2..=5).map(|id| PeerChange::Promote(PeerId::new(id))).collect();
    let regions = first.admin(REGION, AdminRequest::change_peers(voters))?;
    println!("and are voters, by one joint change: {:?}", start.elapsed());
    println!("the region is at epoch {:?}", regions[0].epoch);

    let start = Instant::now();
    for number in 0..PROPOSALS {
        let command = MapCommand::put(format!("key {number:03}"), format!("value {number}"));
        first.propose(REGION, command.encode())?;
    }
    let took = start.elapsed();
    println!("{PROPOSALS} proposals, answered one after the other: {took:?}");

    wait_for("all to have the same", || {
        let all: Vec<_> = maps.iter().map(|map| map.fingerprint(REGION)).collect();
        all.windows(2).all(|two| two[0] == two[1])
    })?;
    let (applied, contents) = maps[0].fingerprint(REGION);
    println!(
        "all five hold the same {} keys, applied up to {applied}: {contents:016x}",
        maps[4].len(REGION)
    );
    Ok(())
}

/// Looks until it is so.
fn wait_for(what: &str, is_so: impl Fn() -> bool) -> Result<(), String> {
    let start = Instant::now();
    while !is_so() {
        if start.elapsed() > PATIENCE {
            return Err(format!("waited in vain for {what}"));
        }
        std::thread::yield_now();
    }
    Ok(())
}
