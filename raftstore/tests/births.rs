//! Regions that are created, and peers that must not come back.

mod common;

use bytes::Bytes;
use common::{config, eventually, Cluster};
use raftstore::{
    AdminRequest, MemoryLogStore, OrderedMap, Peer, PeerChange, PeerId, RegionDescription,
    RegionId, Role, StoreHandle, StoreId,
};
use std::sync::Arc;
use std::time::Duration;

fn rid(id: u64) -> RegionId {
    RegionId::new(id)
}

/// A region with voters: `(peer, store)`.
fn described(
    id: u64,
    start: &'static str,
    end: &'static str,
    peers: &[(u64, u64)],
) -> RegionDescription {
    let voters = peers.iter().map(|(peer, store)| {
        let (peer, store) = (PeerId::new(*peer), StoreId::new(*store));
        Peer::voter(peer, store)
    });
    let (start, end) = (Bytes::from_static(start.as_bytes()), Bytes::from_static(end.as_bytes()));
    RegionDescription::new(rid(id), start, end, voters)
}

fn stores_in_memory(count: u64) -> Cluster {
    Cluster::build_of(
        count,
        &config(),
        |_| OrderedMap::new(),
        |builder, _| builder.log_store(Arc::new(MemoryLogStore::new())),
    )
}

fn lead(handle: &StoreHandle, id: u64) {
    eventually("it leads", || {
        handle.campaign(rid(id));
        std::thread::park_timeout(Duration::from_millis(20));
        handle.region_status(rid(id)).is_some_and(|status| status.role == Role::Leader)
    });
}

/// Removes a peer of region 1, which the handle's store leads.
fn remove(handle: &StoreHandle, peer: u64) {
    let gone = PeerChange::Remove(PeerId::new(peer));
    eventually("removed", || handle.admin(rid(1), AdminRequest::change_peers([gone])).is_ok());
}

#[test]
fn a_bootstrap_that_fails_leaves_tombstones_as_they_were() {
    let cluster = stores_in_memory(2);
    let whole = described(1, "", "m", &[(11, 1), (12, 2)]);
    cluster.bootstrap(std::slice::from_ref(&whole));
    let (first, second) = (cluster.handle(0), cluster.handle(1));
    lead(&first, 1);
    remove(&first, 12);
    eventually("destroyed", || second.region(rid(1)).is_none());
    let later = described(1, "", "m", &[(11, 1), (13, 2)]);
    let mut unsound = described(2, "m", "", &[(21, 2)]);
    unsound.joint = true;
    let refused = second.bootstrap(&[later, unsound]).expect_err("unsound").to_string();
    assert!(refused.starts_with("region 2: "), "{refused}");
    let _ = second.bootstrap(&[whole]);
    assert!(second.region(rid(1)).is_none(), "a destroyed peer never returns");
}
