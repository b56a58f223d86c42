//! Messages about regions that nobody has created.

mod common;

use bytes::Bytes;
use common::{config, eventually};
use raft::eraftpb::{Message, MessageType};
use raftstore::{
    Envelope, InProcessTransport, MemoryLogStore, OrderedMap, Peer, PeerId, RegionDescription,
    RegionId, Store, StoreHandle, StoreId, MAX_ID,
};
use std::sync::Arc;

/// Peers that know nothing of their region, at once.
const MAX_NEWCOMERS: u64 = 1024;

/// What a leader on store 2 sends to its peer on store 1, which it takes to be there.
fn heartbeat(description: &RegionDescription) -> Box<Envelope> {
    let (to, from) = (description.peers[0], description.peers[1]);
    let message = Message {
        msg_type: MessageType::MsgHeartbeat,
        from: from.id.get(),
        to: to.id.get(),
        term: 6,
        ..Message::default()
    };
    Box::new(Envelope {
        cluster_id: 1,
        region_id: description.id,
        from,
        to,
        epoch: description.epoch,
        message,
        description: Some(Arc::new(description.clone())),
    })
}

fn described(id: u64, own: u64, leader: u64) -> RegionDescription {
    let peers = [(own, 1), (leader, 2)];
    let voters = peers.map(|(peer, store)| Peer::voter(PeerId::new(peer), StoreId::new(store)));
    let keys = (Bytes::from_static(b"p"), Bytes::from_static(b"q"));
    RegionDescription::new(RegionId::new(id), keys.0, keys.1, voters)
}

fn start(log: &Arc<MemoryLogStore>) -> Store {
    let builder = Store::builder(StoreId::new(1)).config(config());
    let builder = builder.state_machine(Arc::new(OrderedMap::new())).log_store(log.clone());
    builder.transport(InProcessTransport::new()).start().expect("it starts")
}

/// Delivers one message after the other, and waits until all are looked at.
fn deliver(handle: &StoreHandle, messages: Vec<Box<Envelope>>, proof: &RegionDescription) {
    for message in messages {
        handle.deliver(&mut vec![message]);
    }
    eventually("the last one is looked at", || {
        handle.deliver(&mut vec![heartbeat(proof)]);
        handle.region(proof.id).is_some()
    });
}

#[test]
fn no_peer_is_created_for_an_unsound_description() {
    let log = Arc::new(MemoryLogStore::new());
    let store = start(&log);
    let handle = store.handle();
    let mut turned = described(8, 12, 11);
    (turned.start_key, turned.end_key) = (turned.end_key, turned.start_key);
    let mut twice = described(9, 12, 11);
    twice.peers.push(twice.peers[1]);
    let unsound = [
        described(0, 12, 11),
        described(7, 0, 11),
        turned,
        twice,
        described(10, u64::MAX, 11),
        described(11, 12, u64::MAX),
        described(MAX_ID + 1, 12, 11),
    ];
    deliver(&handle, unsound.iter().map(heartbeat).collect(), &described(1, 12, 11));
    let here = |handle: &StoreHandle| {
        handle.regions().iter().map(|region| region.region_id.get()).collect::<Vec<_>>()
    };
    assert_eq!(here(&handle), [1]);
    assert!(handle.failure().is_none() && handle.set_aside().is_empty());
    let reason = "reason=\"unsound_description\"";
    let counted = store.metrics_text().lines().any(|line| line.contains(reason));
    assert!(counted, "{}", store.metrics_text());
    drop(store);
    let store = start(&log);
    assert_eq!(here(&store.handle()), [1]);
    assert!(store.handle().set_aside().is_empty());
}

#[test]
fn of_regions_that_know_nothing_there_are_not_too_many() {
    let log = Arc::new(MemoryLogStore::new());
    let store = start(&log);
    let handle = store.handle();
    for id in 1..=MAX_NEWCOMERS {
        let made_up = described(id, 12, 11);
        if id % 64 == 0 {
            deliver(&handle, Vec::new(), &made_up);
        } else {
            handle.deliver(&mut vec![heartbeat(&made_up)]);
        }
    }
    let count = || handle.region_count() as u64;
    for id in 1..=MAX_NEWCOMERS {
        deliver(&handle, Vec::new(), &described(id, 12, 11));
    }
    assert_eq!(count(), MAX_NEWCOMERS);
    let dropped = "reason=\"too_many_newcomers\"";
    eventually("dropped", || {
        handle.deliver(&mut vec![heartbeat(&described(5000, 12, 11))]);
        store.metrics_text().lines().any(|line| line.contains(dropped))
    });
    assert_eq!(count(), MAX_NEWCOMERS);
    // Who creates regions himself is not held up.
    let own = Peer::voter(PeerId::new(61), StoreId::new(1));
    let wanted = RegionDescription::new(RegionId::new(6000), "a", "b", [own]);
    handle.bootstrap(&[wanted]).expect("created");
}
