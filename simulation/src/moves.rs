//! Regions that move: what a placement service would ask of them, and more than it ever would.

use crate::faults::FaultKind;
use crate::machine::table_key;
use crate::random::Random;
use crate::world::World;
use raftstore::{
    AdminRequest, Bytes, NewRegion, Peer, PeerChange, PeerId, PeerRole, RegionDescription,
    RegionId, SplitRequest, StoreId,
};

/// What is asked for, in a run of which nobody may wait for an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    Peers,
    Split,
    Transfer,
}

/// Regions of a run, at most: each takes its time to be checked in the end.
pub(crate) const MOST_REGIONS: usize = 40;

/// A region of those that there are by now.
fn pick(world: &World, region: u64) -> u64 {
    let ids = world.clients.directory.ids();
    ids[region as usize % ids.len()]
}

/// A region gets other peers.
pub(crate) fn change_peers(world: &mut World, region: u64, choice: u64) {
    let region = pick(world, region);
    let mut random = Random::new(choice);
    let description = world.clients.directory.get(region).description.clone();
    let mut changes = Vec::new();
    // Mostly one at a time, sometimes several.
    let count = *random.pick(&[1, 1, 1, 2, 3]);
    for _ in 0..count {
        let change = change(world, &description, &mut random);
        let same = |other: &PeerChange| match (other, &change) {
            (PeerChange::Add(one), PeerChange::Add(other)) => one.store == other.store,
            (one, other) => one.peer_id() == other.peer_id(),
        };
        if !changes.iter().any(same) {
            changes.push(change);
        }
    }
    ask(world, region, AdminRequest::change_peers(changes), Asked::Peers);
}

fn change(world: &mut World, region: &RegionDescription, random: &mut Random) -> PeerChange {
    let stores = world.plan.cluster.stores;
    let free: Vec<u64> =
        (1..=stores).filter(|id| region.peer_on(StoreId::new(*id)).is_none()).collect();
    let learners = region.peers.iter().filter(|peer| peer.role == PeerRole::Learner);
    let learners: Vec<PeerId> = learners.map(|peer| peer.id).collect();
    let someone = random.pick(&region.peers).id;
    match random.below(10) {
        0..4 if !free.is_empty() => {
            let id = PeerId::new(world.clients.directory.new_peer());
            let store = StoreId::new(*random.pick(&free));
            let role = if random.chance(700) { PeerRole::Learner } else { PeerRole::Voter };
            PeerChange::Add(Peer { id, store, role })
        }
        0..7 if !learners.is_empty() => PeerChange::Promote(*random.pick(&learners)),
        7 => PeerChange::Demote(someone),
        _ => PeerChange::Remove(someone),
    }
}

/// A region comes to one more store, if there is one.
pub(crate) fn add(world: &mut World, region: u64, choice: u64) {
    let region = pick(world, region);
    let mut random = Random::new(choice);
    let description = world.clients.directory.get(region).description.clone();
    let stores = 1..=world.plan.cluster.stores;
    let free: Vec<u64> =
        stores.filter(|id| description.peer_on(StoreId::new(*id)).is_none()).collect();
    if free.is_empty() {
        return;
    }
    let id = PeerId::new(world.clients.directory.new_peer());
    let peer = Peer { id, store: StoreId::new(*random.pick(&free)), role: PeerRole::Learner };
    ask(world, region, AdminRequest::change_peers(vec![PeerChange::Add(peer)]), Asked::Peers);
}

/// The youngest region loses its peer on the store that the first region has come to last.
pub(crate) fn uproot(world: &mut World) {
    let ids = world.clients.directory.ids();
    let (first, youngest) = (ids[0], ids[ids.len() - 1]);
    let description = &world.clients.directory.get(first).description;
    let Some(last) = description.peers.iter().max_by_key(|peer| peer.id) else { return };
    let youngest_there = world.clients.directory.get(youngest).description.peer_on(last.store);
    if let Some(peer) = youngest_there.map(|peer| peer.id) {
        let removal = AdminRequest::change_peers(vec![PeerChange::Remove(peer)]);
        ask(world, youngest, removal, Asked::Peers);
    }
}

/// A region is split at one or two of its registers, which are few.
pub(crate) fn split(world: &mut World, region: u64, choice: u64) {
    if world.clients.directory.ids().len() >= MOST_REGIONS {
        return;
    }
    let region = pick(world, region);
    let table = world.table_of(region);
    let mut random = Random::new(choice);
    let description = world.clients.directory.get(region).description.clone();
    let most = world.plan.load.keys.max(2) + 2;
    let mut keys: Vec<u64> =
        (0..*random.pick(&[1, 1, 2])).map(|_| 1 + random.below(most)).collect();
    keys.sort_unstable();
    keys.dedup();
    let directory = &mut world.clients.directory;
    let new_region = |_: &u64| NewRegion {
        id: RegionId::new(directory.new_region()),
        peers: description.peers.iter().map(|_| PeerId::new(directory.new_peer())).collect(),
    };
    let regions = keys.iter().map(new_region).collect();
    let keys = keys.iter().map(|key| Bytes::from(table_key(table, *key))).collect();
    let parent_is_right = random.chance(500);
    let request = SplitRequest { keys, regions, parent_is_right };
    ask(world, region, AdminRequest::split(request), Asked::Split);
}

/// A region's leader hands over.
pub(crate) fn transfer(world: &mut World, region: u64, choice: u64) {
    let region = pick(world, region);
    let mut random = Random::new(choice);
    let peers = &world.clients.directory.get(region).description.peers;
    let target = random.chance(700).then(|| random.pick(peers).id);
    hand_over(world, region, target);
}

/// A region's leader hands over to a peer, or to whom it likes.
pub(crate) fn hand_over(world: &mut World, region: u64, target: Option<PeerId>) {
    ask(world, region, AdminRequest::transfer_leader(target), Asked::Transfer);
}

fn ask(world: &mut World, region: u64, request: AdminRequest, asked: Asked) {
    let store = world.clients.leader(region);
    if let Some(running) = &world.processes[store as usize - 1].running {
        let (life, held) = (running.life.clone(), running.callbacks.clone());
        let inbox = world.moved.clone();
        let callback = move |answer: raftstore::Regions| {
            if life.is_alive() {
                inbox.lock().push((asked, answer.is_ok()));
            }
            drop(held);
        };
        running.store.handle().admin_with(RegionId::new(region), request, callback);
    }
    world.settle(store);
}

/// Counts what was done of what was asked for.
pub(crate) fn hear(world: &mut World) {
    for (asked, done) in std::mem::take(&mut *world.moved.lock()) {
        if done {
            world.fired.note(match asked {
                Asked::Peers => FaultKind::PeersChanged,
                Asked::Split => FaultKind::RegionSplit,
                Asked::Transfer => FaultKind::LeaderMoved,
            });
        }
    }
}
