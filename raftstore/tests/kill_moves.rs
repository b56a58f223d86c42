//! A real process with four stores on a real disk, killed at random moments while its regions move: they are
//! split, get other peers by snapshots, lose peers, and get other leaders.
//!
//! The test runs itself as a child, as `kill.rs` does. Each child first finds everything that was acknowledged,
//! and the regions at rest: see [`find_at_rest`]. Then it writes and moves regions until it is killed.
//!
//! `KILL_CYCLES=200 cargo test -p raftstore --features fjall --test kill_moves` runs it for longer.

mod common;

use common::killing::{life, Killing};
use common::process::{key, read_expectation, say, say_acknowledged, task, Acknowledged};
use common::{config, regions, Cluster, TestMap, DEADLINE};
use raftstore::{
    AdminRequest, Bytes, Index, MapCommand, NewRegion, Peer, PeerChange, PeerId, PeerRole,
    RegionDescription, RegionId, RegionInfo, RegionState, Role, SplitRequest, StoreId, Write,
};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

const STORES: u64 = 4;
/// The regions at first.
const FIRST: u64 = 4;
const CLIENTS: u64 = 4;
/// Of ids that one child may hand out.
const IDS_OF_A_LIFE: u64 = 1_000_000;

#[test]
fn killed_stores_keep_every_write_and_region_while_regions_move() {
    kill_again_and_again("in memory");
}

#[cfg(feature = "fjall")]
#[test]
fn killed_stores_keep_every_write_and_region_while_regions_move_on_disk() {
    kill_again_and_again("on disk");
}

fn kill_again_and_again(task: &str) {
    let dir = tempfile::tempdir().expect("a directory");
    let (child, dir) = ("child_whose_regions_move", dir.path());
    let wanted = &["split", "added", "promoted", "replaced", "removed", "transferred", "installed"];
    Killing { child, task, dir, cycles: 14, wanted, load_ms: 500, start_ms: 500 }.run();
}

/// Does nothing unless the test runs it.
#[test]
fn child_whose_regions_move() {
    let Some((dir, task)) = task() else { return };
    let stores = dir.join("stores");
    match task.as_str() {
        #[cfg(feature = "fjall")]
        "on disk" => {
            let mut config = config();
            config.raft.compact_after_entries = 50;
            live(Cluster::with_maps_on_disk(STORES, &config, &stores), &dir, true);
        }
        _ => live(Cluster::with_logs_on_disk(STORES, &config(), &stores), &dir, false),
    }
}

/// What a map may hold besides its regions.
trait Leftovers: TestMap {
    /// Keys outside of the ranges of these regions.
    fn leftovers(&self, _here: &[&RegionDescription]) -> Vec<Bytes> {
        Vec::new()
    }
}

impl Leftovers for raftstore::OrderedMap {}

#[cfg(feature = "fjall")]
impl Leftovers for raftstore::FjallMap {
    fn leftovers(&self, here: &[&RegionDescription]) -> Vec<Bytes> {
        let pairs = self.scan_all(usize::MAX).expect("readable");
        let keys = pairs.into_iter().map(|(key, _)| key);
        keys.filter(|key| !here.iter().any(|region| region.contains(key))).collect()
    }
}

fn live<M: Leftovers>(cluster: Cluster<M>, dir: &Path, on_disk: bool) {
    let bootstrapped = dir.join("bootstrapped");
    if !bootstrapped.exists() {
        cluster.bootstrap(&regions(FIRST));
        std::fs::write(&bootstrapped, "").expect("written");
    }
    let acknowledged = read_expectation(dir);
    let found = find_at_rest(&cluster, dir, on_disk)
        .and_then(|regions| find_writes(&cluster, &regions, &acknowledged));
    if let Err(problem) = found {
        say(&format!("lost {problem}"));
        std::process::exit(1);
    }
    say("checked");
    let life = life(dir);
    let mover = Mover {
        cluster: &cluster,
        on_disk,
        next_id: (life + 1) * IDS_OF_A_LIFE,
        most_regions: (FIRST + 2 * (life + 1)).min(30) as usize,
        random: u64::from(std::process::id()) * 2 + 1,
        installed: 0,
    };
    std::thread::scope(|scope| {
        for client in 0..CLIENTS {
            let begin = acknowledged.get(&client).copied().unwrap_or(0);
            let cluster = &cluster;
            scope.spawn(move || {
                for number in begin.. {
                    write(cluster, client, number);
                }
            });
        }
        scope.spawn(|| mover.run());
    });
}

/// Writes a key to the region that has it, until that is acknowledged.
fn write<M: TestMap>(cluster: &Cluster<M>, client: u64, number: u64) {
    let key = key(client, number);
    // The same key and value: writing it twice does no harm.
    let command = MapCommand::put(key.clone(), key.clone()).encode();
    for store in (0..cluster.stores.len()).cycle() {
        let handle = cluster.handle(store);
        let region = handle.region_of_key(key.as_bytes());
        let info = region.and_then(|region| handle.region(region));
        let Some(info) = info.filter(|info| info.role == Role::Leader) else {
            std::thread::yield_now();
            continue;
        };
        let description = info.description;
        if description.contains(key.as_bytes()) {
            let write = Write::new(command.clone()).at_epoch(description.epoch);
            if handle.propose(description.id, write).is_ok() {
                return say_acknowledged(client, number);
            }
        }
    }
}

/// Moves regions, one thing at a time.
struct Mover<'a, M: TestMap> {
    cluster: &'a Cluster<M>,
    on_disk: bool,
    next_id: u64,
    most_regions: usize,
    random: u64,
    installed: u64,
}

impl<M: TestMap> Mover<'_, M> {
    fn run(mut self) {
        loop {
            self.move_one();
            let installed = self.cluster.stores.iter().map(|store| {
                let text = store.metrics_text();
                let lines = text.lines().filter(|line| line.contains("outcome=\"installed\""));
                lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum::<u64>()
            });
            let installed = installed.sum();
            (self.installed..installed).for_each(|_| say("count installed"));
            self.installed = installed;
        }
    }

    fn draw(&mut self, below: u64) -> u64 {
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.random >> 33) % below
    }

    fn new_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    fn move_one(&mut self) {
        let key = key(self.draw(CLIENTS), self.draw(1000));
        let Some((store, info)) = self.leader_of(key.as_bytes()) else {
            return std::thread::yield_now();
        };
        let id = info.region_id;
        // A map in memory is split again from the begin of the log at each start. So there the regions that are
        // split, and their parts, keep their peers, and those that change their peers are not split.
        let changes = id.get() <= FIRST / 2;
        let (may_split, may_change) = (self.on_disk || !changes, self.on_disk || changes);
        let regions = self.cluster.stores.iter().flat_map(|store| store.handle().regions());
        let count = regions.map(|info| info.region_id).collect::<std::collections::BTreeSet<_>>();
        let may_split = may_split && count.len() < self.most_regions;
        match self.draw(4) {
            0 => self.transfer(store, &info),
            1 | 2 if may_split => self.split(store, &info, key),
            _ if may_change => self.change(store, &info),
            _ => {}
        }
    }

    /// The store that leads the region of a key, and how the region stands there.
    fn leader_of(&self, key: &[u8]) -> Option<(usize, RegionInfo)> {
        (0..self.cluster.stores.len()).find_map(|store| {
            let handle = self.cluster.handle(store);
            let info = handle.region(handle.region_of_key(key)?)?;
            (info.role == Role::Leader).then_some((store, info))
        })
    }

    fn ask(&self, store: usize, info: &RegionInfo, request: AdminRequest, count: &str) -> bool {
        let done = self.cluster.handle(store).admin(info.region_id, request).is_ok();
        if done {
            say(&format!("count {count}"));
        }
        done
    }

    fn transfer(&mut self, store: usize, info: &RegionInfo) {
        self.ask(store, info, AdminRequest::transfer_leader(None), "transferred");
    }

    fn split(&mut self, store: usize, info: &RegionInfo, key: String) {
        let id = RegionId::new(self.new_id());
        let peers = info.description.peers.iter().map(|_| PeerId::new(self.new_id())).collect();
        let request = SplitRequest {
            keys: vec![Bytes::from(key)],
            regions: vec![NewRegion { id, peers }],
            parent_is_right: self.on_disk && self.draw(2) == 0,
        };
        self.ask(store, info, AdminRequest::split(request), "split");
    }

    /// The next step for the peers of a region, from wherever a kill has left them.
    fn change(&mut self, store: usize, info: &RegionInfo) {
        let peers = &info.description.peers;
        let learner = peers.iter().find(|peer| peer.role == PeerRole::Learner);
        let voters: Vec<&Peer> = peers.iter().filter(|peer| peer.role.is_voter()).collect();
        let some_voter = voters[self.draw(voters.len() as u64) as usize];
        let mut stores = (1..=STORES).map(StoreId::new);
        let free = stores.find(|store| peers.iter().all(|peer| peer.store != *store));
        match (learner, free) {
            (Some(learner), _) if voters.len() > 2 => {
                let swap = [PeerChange::Promote(learner.id), PeerChange::Remove(some_voter.id)];
                self.ask(store, info, AdminRequest::change_peers(swap), "replaced");
            }
            (Some(learner), _) => {
                let promotion = [PeerChange::Promote(learner.id)];
                self.ask(store, info, AdminRequest::change_peers(promotion), "promoted");
            }
            (None, Some(free)) if voters.len() < 3 || self.draw(2) == 0 => {
                let learner = Peer::learner(PeerId::new(self.new_id()), free);
                let addition = [PeerChange::Add(learner)];
                self.ask(store, info, AdminRequest::change_peers(addition), "added");
            }
            _ => {
                let removal = [PeerChange::Remove(some_voter.id)];
                self.ask(store, info, AdminRequest::change_peers(removal), "removed");
            }
        }
    }
}

/// Waits until all regions are at rest, and everything acknowledged is applied.
///
/// * The newest descriptions of all regions tile the key space.
/// * Each store has the peers that they say and no others, and they live. Nothing is set aside.
/// * One peer of a region leads, and all have applied the same, up to the last entry.
/// * No state machine and no snapshot directory holds anything else.
fn find_at_rest<M: Leftovers>(
    cluster: &Cluster<M>,
    dir: &Path,
    on_disk: bool,
) -> Result<Vec<RegionDescription>, String> {
    let wait = |with_contents: bool| {
        let start = Instant::now();
        loop {
            match look(cluster, dir, on_disk, with_contents) {
                Ok(regions) => return Ok(regions),
                Err(why) if start.elapsed() > DEADLINE => return Err(format!("rest: {why}")),
                Err(_) => std::thread::park_timeout(Duration::from_millis(2)),
            }
        }
    };
    for region in wait(false)? {
        // What comes after everything that was acknowledged before.
        let barrier = MapCommand::put([&region.start_key[..], b"!"].concat(), "").encode();
        cluster.write(region.id, &barrier).map_err(|error| format!("service: {error}"))?;
    }
    wait(true)
}

fn look<M: Leftovers>(
    cluster: &Cluster<M>,
    dir: &Path,
    on_disk: bool,
    with_contents: bool,
) -> Result<Vec<RegionDescription>, String> {
    let demand = |holds: bool, what: &dyn Fn() -> String| if holds { Ok(()) } else { Err(what()) };
    let mut newest: BTreeMap<RegionId, RegionDescription> = BTreeMap::new();
    let stores: Vec<Vec<RegionInfo>> =
        cluster.stores.iter().map(|store| store.handle().regions()).collect();
    for info in stores.iter().flatten() {
        demand(info.state == RegionState::Live, &|| {
            format!("region {} with peer {} is {:?}", info.region_id, info.peer_id, info.state)
        })?;
        let known = newest.entry(info.region_id).or_insert_with(|| (*info.description).clone());
        let age = |region: &RegionDescription| (region.epoch.version, region.epoch.conf_ver);
        if age(&info.description) > age(known) {
            *known = (*info.description).clone();
        }
    }
    let mut regions: Vec<RegionDescription> = newest.into_values().collect();
    regions.sort_by(|left, right| left.start_key.cmp(&right.start_key));
    let mut end = Some(Bytes::new());
    for region in &regions {
        demand(end.as_ref() == Some(&region.start_key), &|| {
            format!("there is a hole or an overlap before {region:?}")
        })?;
        end = Some(region.end_key.clone()).filter(|end| !end.is_empty());
        demand(!region.joint, &|| format!("{region:?} is joint"))?;
    }
    demand(end.is_none() && !regions.is_empty(), &|| format!("the space ends at {end:?}"))?;
    for (at, infos) in stores.iter().enumerate() {
        look_at_store(cluster, dir, on_disk, at, infos, &regions)?;
    }
    for region in &regions {
        look_at_region(cluster, region, &stores, with_contents)?;
    }
    Ok(regions)
}

/// One store has what it should have, and nothing else.
fn look_at_store<M: Leftovers>(
    cluster: &Cluster<M>,
    dir: &Path,
    on_disk: bool,
    at: usize,
    infos: &[RegionInfo],
    regions: &[RegionDescription],
) -> Result<(), String> {
    let fail = |what: String| Err(format!("store {}: {what}", at + 1));
    let (handle, map) = (cluster.handle(at), &cluster.maps[at]);
    let mut here = Vec::new();
    for region in regions {
        let info = infos.iter().find(|info| info.region_id == region.id);
        let peer = region.peer_on(handle.store_id());
        let known = info.map(|info| (info.peer_id, &*info.description));
        if known != peer.map(|peer| (peer.id, region)) {
            return fail(format!("{known:?} instead of {region:?}"));
        }
        let inside = [&region.start_key[..], b"!"].concat();
        if handle.region_of_key(&inside) != peer.map(|_| region.id) {
            return fail(format!("{region:?} is not where its keys are looked for"));
        }
        match peer {
            Some(_) => here.push(region),
            None if map.state(region.id).0 > Index::default() => {
                return fail(format!("contents of region {} are left", region.id));
            }
            None => {}
        }
    }
    let leftovers = map.leftovers(&here);
    if !leftovers.is_empty() {
        return fail(format!("{} keys are left, {:?} first", leftovers.len(), leftovers[0]));
    }
    let status = handle.store_status();
    let at_rest = status.queues.chores + status.snapshots.sending + status.snapshots.receiving;
    if at_rest > 0 || !status.set_aside.is_empty() || status.failure.is_some() {
        return fail(format!("{status:?}"));
    }
    let files = dir.join(format!("stores/store-{}/snapshots", at + 1));
    for file in std::fs::read_dir(files).expect("readable") {
        let name = file.expect("readable").file_name().into_string().expect("UTF-8");
        // Contents that are not on disk elsewhere are installed again at the next start.
        let is_of = |info: &RegionInfo| {
            name.starts_with(&format!("region-{}-peer-{}-", info.region_id, info.peer_id))
        };
        if on_disk || name.ends_with(".part") || !infos.iter().any(is_of) {
            return fail(format!("{name} is left"));
        }
    }
    Ok(())
}

/// All peers of a region are equal.
fn look_at_region<M: TestMap>(
    cluster: &Cluster<M>,
    region: &RegionDescription,
    stores: &[Vec<RegionInfo>],
    with_contents: bool,
) -> Result<(), String> {
    let infos = stores.iter().flatten().filter(|info| info.region_id == region.id);
    let leaders: Vec<&RegionInfo> = infos.filter(|info| info.role == Role::Leader).collect();
    let [leader] = leaders[..] else {
        return Err(format!("region {} has {} leaders", region.id, leaders.len()));
    };
    if !with_contents {
        return Ok(());
    }
    let at = |peer: &Peer| peer.store.get() as usize - 1;
    let states: Vec<(Index, u64)> =
        region.peers.iter().map(|peer| cluster.maps[at(peer)].state(region.id)).collect();
    match states.iter().all(|state| *state == states[0] && state.0 == leader.last) {
        true => Ok(()),
        false => Err(format!("peers of {region:?} up to {} have {states:?}", leader.last)),
    }
}

/// Each acknowledged write is on each peer of its region.
fn find_writes<M: TestMap>(
    cluster: &Cluster<M>,
    regions: &[RegionDescription],
    acknowledged: &Acknowledged,
) -> Result<(), String> {
    for (client, count) in acknowledged {
        for number in 0..*count {
            let key = key(*client, number);
            let region = regions.iter().find(|region| region.contains(key.as_bytes()));
            let region = region.expect("they tile the space");
            for peer in &region.peers {
                let map = &cluster.maps[peer.store.get() as usize - 1];
                let found = map.value(region.id, key.as_bytes());
                if found.as_deref() != Some(key.as_bytes()) {
                    return Err(format!("{key} of {region:?} at peer {}: {found:?}", peer.id));
                }
            }
        }
    }
    Ok(())
}
