//! Plans by name: what a scenario sets, and what it leaves to the seed.

mod asleep;
mod reads;

use crate::faults::FaultKind;
use crate::moving::{ambushes, moves, placed, steps};
use crate::plan::{
    Action, ClusterPlan, LoadPlan, LogKind, NetworkPlan, Plan, Timed, FAIR_SPEEDS_PM,
};
use crate::random::Random;

pub(crate) const MS: u64 = 1000;
pub(crate) const SECOND: u64 = 1_000_000;

/// How long faults and load go on.
const DURATION_US: u64 = 54 * SECOND;

/// A scenario.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// Its name on the command line.
    pub name: &'static str,
    /// What it is about.
    pub about: &'static str,
    /// Of all seeds, its share is in proportion to this.
    pub share: u64,
    /// Faults that it promises: over a run of many seeds each must fire.
    pub promises: &'static [FaultKind],
    build: fn(&Scenario, &mut Random) -> Plan,
}

/// The plan of a seed: of a scenario, or of one that the seed picks.
pub fn plan(seed: u64, scenario: Option<&Scenario>) -> Plan {
    let mut random = Random::new(seed).fork("plan");
    let scenario = scenario.unwrap_or_else(|| pick(seed));
    let mut plan = (scenario.build)(scenario, &mut random);
    plan.seed = seed;
    plan.scenario = scenario.name.to_owned();
    // From a source of its own, so that all else is as it was without.
    let mut random = Random::new(seed).fork("sleep");
    plan.cluster.cold_after_ticks = *random.pick(&[0, 1, 4, 20]);
    if plan.cluster.sleep_after_ticks == 0 {
        plan.cluster.sleep_after_ticks = *random.pick(&[0, 2, 5, 20]);
    }
    plan.actions.sort_by_key(|timed| timed.at_us);
    plan.keep_clocks_fair();
    plan
}

/// The scenario of this name.
pub fn find(name: &str) -> Option<&'static Scenario> {
    SCENARIOS.iter().find(|scenario| scenario.name == name)
}

/// The scenario of a seed: steps by the golden ratio, so that any stretch of seeds holds each scenario in
/// proportion to its share. Picked at random, 50 seeds could leave out a kind of fault altogether.
fn pick(seed: u64) -> &'static Scenario {
    const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;
    let shares: u64 = SCENARIOS.iter().map(|scenario| scenario.share).sum();
    let place = u128::from(seed.wrapping_mul(GOLDEN));
    let mut draw = ((place * u128::from(shares)) >> 64) as u64;
    for scenario in SCENARIOS {
        if draw < scenario.share {
            return scenario;
        }
        draw -= scenario.share;
    }
    unreachable!("the draw is below the sum")
}

/// Messages that are late, lost, doubled, out of order.
const ROUGH_NET: &[FaultKind] = &[
    FaultKind::MessageDropped,
    FaultKind::MessageDuplicated,
    FaultKind::MessageReordered,
    FaultKind::MessageReplayed,
];

pub(crate) const CRASHES: &[FaultKind] = &[
    FaultKind::Crash,
    FaultKind::CrashInsideStep,
    FaultKind::UnflushedLost,
    FaultKind::CleanRestart,
];

pub(crate) const CUTS: &[FaultKind] = &[
    FaultKind::PartitionSymmetric,
    FaultKind::PartitionOneWay,
    FaultKind::PartitionPartial,
    FaultKind::SlowLink,
    FaultKind::FullPipe,
];

const DISKS: &[FaultKind] = &[
    FaultKind::WriteError,
    FaultKind::SyncError,
    FaultKind::DiskFull,
    FaultKind::SlowDisk,
    FaultKind::HungDisk,
    FaultKind::FlippedBit,
];

/// Regions that are split, get other peers and other leaders; and what comes of it.
pub(crate) const MOVES: &[FaultKind] = &[
    FaultKind::PeersChanged,
    FaultKind::RegionSplit,
    FaultKind::LeaderMoved,
    FaultKind::SnapshotInstalled,
    FaultKind::PeerDestroyed,
];

const CLOCKS: &[FaultKind] = &[FaultKind::Pause, FaultKind::ClockJump, FaultKind::ClockDrift];

const LOADS: &[FaultKind] =
    &[FaultKind::MailboxOverflow, FaultKind::BigValue, FaultKind::WrongEpoch];

/// All scenarios there are.
pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "mixed",
        about: "any cluster, any load, any faults together",
        share: 30,
        promises: &FaultKind::ALL,
        build: mixed,
    },
    Scenario {
        name: "network",
        about: "three or five stores on a network that loses, doubles, delays and cuts",
        share: 10,
        promises: &[],
        build: |_, random| themed(random, &[ROUGH_NET, CUTS]),
    },
    Scenario {
        name: "crashes",
        about: "stores end between steps, within steps and in order, and start again",
        share: 12,
        promises: CRASHES,
        build: |_, random| themed(random, &[CRASHES]),
    },
    Scenario {
        name: "disks",
        about: "disks fail, fill up, hang, and flip bits, one store at a time",
        share: 10,
        promises: DISKS,
        build: |_, random| themed(random, &[DISKS]),
    },
    Scenario {
        name: "engine",
        about: "raft-engine over files that lose, fail and rot",
        share: 6,
        promises: DISKS,
        build: engine,
    },
    Scenario {
        name: "clocks",
        about: "clocks leap and drift, stores stand still",
        share: 6,
        promises: CLOCKS,
        build: |_, random| themed(random, &[CLOCKS, CUTS]),
    },
    Scenario {
        name: "overload",
        about: "bursts beyond the mailboxes, values of many kilobytes, hot regions",
        share: 6,
        promises: LOADS,
        build: overload,
    },
    Scenario {
        name: "alone",
        about: "one store alone, which crashes and fails",
        share: 8,
        promises: &[],
        build: alone,
    },
    Scenario {
        name: "bootstrap",
        about: "a store is killed while it starts for the first time",
        share: 4,
        promises: &[FaultKind::CrashInsideStep],
        build: bootstrap,
    },
    Scenario {
        name: "hung-disk",
        about: "a store's disk hangs for long: its regions are served by the others meanwhile",
        share: 3,
        promises: &[FaultKind::HungDisk],
        build: hung_disk,
    },
    Scenario {
        name: "minority",
        about: "two of five stores are cut off: the others serve all regions",
        share: 3,
        promises: &[FaultKind::PartitionSymmetric],
        build: minority,
    },
    Scenario {
        name: "moves",
        about: "regions are split, get other peers and other leaders, all the time",
        share: 10,
        promises: MOVES,
        build: |_, random| moves(random, &[MOVES, CUTS]),
    },
    Scenario {
        name: "moves-and-crashes",
        about: "the same, while stores end and start",
        share: 10,
        promises: MOVES,
        build: |_, random| moves(random, &[MOVES, CRASHES]),
    },
    Scenario {
        name: "steps",
        about: "each move of a region is cut short at one of its steps, on one of its stores",
        share: 8,
        promises: &[FaultKind::CrashInsideStep, FaultKind::RegionSplit, FaultKind::PeersChanged],
        build: steps,
    },
    Scenario {
        name: "ambushes",
        about: "stores are struck as soon as they are seen amid a move; the end comes early",
        share: 24,
        promises: &[FaultKind::CrashInsideStep, FaultKind::SnapshotInstalled],
        build: ambushes,
    },
    Scenario {
        name: "reads",
        about: "leaders are cut off, hand over and stand still, and every store is read from",
        share: 16,
        promises: reads::PROMISES,
        build: |_, random| reads::reads(random),
    },
    Scenario {
        name: "leases",
        about: "leaders are cut off, and read from until their leases end",
        share: 8,
        promises: &[FaultKind::LeaseRead, FaultKind::DeposedAsked, FaultKind::ClockDrift],
        build: |_, random| reads::leases(random),
    },
    matrix("matrix", "five stores without faults", 2, |_, random| switches(random, "")),
    matrix("matrix-u", "10 % of messages lost", 2, |_, random| switches(random, "u")),
    matrix("matrix-p", "a new cut every 0.5 to 0.7 s", 2, |_, random| switches(random, "p")),
    matrix("matrix-c", "all stores stop and start", 2, |_, random| switches(random, "c")),
    matrix("matrix-uc", "lost messages, restarts", 2, |_, random| switches(random, "uc")),
    matrix("matrix-cp", "restarts, cuts", 2, |_, random| switches(random, "cp")),
    matrix("matrix-ucp", "lost messages, restarts, cuts", 2, |_, random| switches(random, "ucp")),
    matrix("matrix-L", "logs of 100 entries", 2, |_, random| switches(random, "L")),
    matrix("matrix-uL", "lost messages, short logs", 2, |_, random| switches(random, "uL")),
    matrix("matrix-cL", "restarts, short logs", 2, |_, random| switches(random, "cL")),
    matrix("matrix-ucL", "both, short logs", 2, |_, random| switches(random, "ucL")),
    matrix("matrix-ucpL", "all three, short logs", 2, |_, random| switches(random, "ucpL")),
    matrix("matrix-cf", "restarts, other peers", 2, |_, random| switches(random, "cf")),
    matrix("matrix-uf", "lost messages, other peers", 2, |_, random| switches(random, "uf")),
    matrix("matrix-ucf", "both, other peers", 2, |_, random| switches(random, "ucf")),
    matrix("matrix-ucLf", "the same, short logs", 2, |_, random| switches(random, "ucLf")),
    matrix("matrix-ucpLf", "and cuts", 2, |_, random| switches(random, "ucpLf")),
    matrix("matrix-cs", "restarts, splits", 2, |_, random| switches(random, "cs")),
    matrix("matrix-us", "lost messages, splits", 2, |_, random| switches(random, "us")),
    matrix("matrix-ucs", "both, splits", 2, |_, random| switches(random, "ucs")),
    matrix("matrix-ucLfs", "other peers, splits, short logs", 2, |_, random| {
        switches(random, "ucLfs")
    }),
    matrix("matrix-ucpLfs", "everything", 2, |_, random| switches(random, "ucpLfs")),
    Scenario {
        name: "placed",
        about: "a placement orders regions about, and hears what becomes of it",
        share: 6,
        promises: &[FaultKind::PeersChanged, FaultKind::RegionSplit, FaultKind::LeaderMoved],
        build: placed,
    },
    Scenario {
        name: "asleep",
        about: "regions sleep while the stores that lead them are lost, in every way there is",
        share: 16,
        promises: asleep::PROMISES,
        build: |_, random| asleep::asleep(random),
    },
];

const fn matrix(
    name: &'static str,
    about: &'static str,
    share: u64,
    build: fn(&Scenario, &mut Random) -> Plan,
) -> Scenario {
    Scenario { name, about, share, promises: &[], build }
}

pub(crate) fn cluster(random: &mut Random, stores: u64) -> ClusterPlan {
    ClusterPlan {
        stores,
        regions: random.within(1..12),
        replicas: if stores >= 5 && random.chance(500) { 5 } else { stores.min(3) },
        // The real log is slower to simulate.
        log: if random.chance(150) { LogKind::Engine } else { LogKind::Model },
        pollers: 1 + random.index(3),
        log_writers: random.index(3),
        apply_pollers: random.index(3),
        tick_ms: *random.pick(&[50, 100, 200]),
        election_ticks: 10,
        batch_size: *random.pick(&[1, 4, 64]),
        message_budget: *random.pick(&[1, 8, 256]),
        mailbox_capacity: *random.pick(&[32, 256, 4096]),
        compact_after_entries: *random.pick(&[10, 100, 1000]),
        regions_move: false,
        placed: false,
        sleep_after_ticks: 0,
        cold_after_ticks: 0,
        leases: random.chance(800),
        crash_at_bootstrap: None,
    }
}

pub(crate) fn load(random: &mut Random) -> LoadPlan {
    let quick = random.within(10..200) * MS;
    LoadPlan {
        clients: random.within(1..6),
        think_us: (0, quick),
        keys: random.within(1..6),
        hot_pm: *random.pick(&[0, 0, 500, 900]),
        read_pm: 150,
        compare_pm: 200,
        leader_read_pm: *random.pick(&[0, 100, 200]),
        any_read_pm: *random.pick(&[0, 100, 100]),
        stale_read_pm: *random.pick(&[0, 20, 50]),
        big_pm: *random.pick(&[0, 0, 20]),
        wrong_epoch_pm: *random.pick(&[0, 20]),
        patience_us: random.within(500..4_000) * MS,
    }
}

pub(crate) fn calm(cluster: ClusterPlan, load: LoadPlan) -> Plan {
    Plan {
        scenario: String::new(),
        seed: 0,
        cluster,
        network: NetworkPlan::default(),
        load,
        duration_us: DURATION_US,
        actions: Vec::new(),
    }
}

fn mixed(_: &Scenario, random: &mut Random) -> Plan {
    // Each seed leaves out about half of the kinds: faults that always come together hide each other.
    let kinds: Vec<FaultKind> = FaultKind::ALL.into_iter().filter(|_| random.chance(500)).collect();
    let stores = *random.pick(&[1, 2, 3, 3, 3, 3, 4, 5, 5, 7]);
    let (cluster, load) = (cluster(random, stores), load(random));
    let mut plan = calm(cluster, load);
    trouble(&mut plan, random, &kinds);
    plan
}

fn themed(random: &mut Random, themes: &[&[FaultKind]]) -> Plan {
    let stores = *random.pick(&[3, 3, 5]);
    let (cluster, load) = (cluster(random, stores), load(random));
    let mut plan = calm(cluster, load);
    trouble(&mut plan, random, &themes.concat());
    plan
}

fn overload(_: &Scenario, random: &mut Random) -> Plan {
    let (mut cluster, mut load) = (cluster(random, 3), load(random));
    cluster.regions = random.within(1..4);
    cluster.mailbox_capacity = 32;
    cluster.message_budget = *random.pick(&[1, 8]);
    load.big_pm = 50;
    load.wrong_epoch_pm = 20;
    load.hot_pm = 800;
    let mut plan = calm(cluster, load);
    trouble(&mut plan, random, &[FaultKind::MailboxOverflow, FaultKind::BigValue]);
    plan
}

fn engine(_: &Scenario, random: &mut Random) -> Plan {
    let mut plan = themed(random, &[DISKS, CRASHES]);
    plan.cluster.log = LogKind::Engine;
    plan
}

fn alone(_: &Scenario, random: &mut Random) -> Plan {
    let (cluster, load) = (cluster(random, 1), load(random));
    let mut plan = calm(cluster, load);
    trouble(&mut plan, random, &[CRASHES, &[FaultKind::WriteError, FaultKind::SyncError]].concat());
    plan
}

fn bootstrap(_: &Scenario, random: &mut Random) -> Plan {
    let mut plan = themed(random, &[CRASHES]);
    let store = 1 + random.below(plan.cluster.stores);
    plan.cluster.crash_at_bootstrap = Some((store, random.within(1..8)));
    plan
}

fn hung_disk(_: &Scenario, random: &mut Random) -> Plan {
    let (mut cluster, load) = (cluster(random, 3), load(random));
    cluster.mailbox_capacity = 4096;
    let within_us = 4 * cluster.election_us();
    let mut plan = calm(cluster, load);
    for round in 0..3 {
        let at_us = (5 + 15 * round) * SECOND;
        let store = 1 + random.below(3);
        act(&mut plan, at_us, Action::HangDisk { store, for_us: within_us + SECOND });
        act(&mut plan, at_us, Action::ExpectService { within_us });
    }
    plan
}

fn minority(_: &Scenario, random: &mut Random) -> Plan {
    let (mut cluster, load) = (cluster(random, 5), load(random));
    cluster.replicas = 5;
    let within_us = 3 * cluster.election_us();
    let mut plan = calm(cluster, load);
    for round in 0..3 {
        let at_us = (5 + 15 * round) * SECOND;
        let side = two_of_five(random);
        act(&mut plan, at_us, Action::Partition { side, for_us: within_us + SECOND });
        act(&mut plan, at_us, Action::ExpectService { within_us });
    }
    plan
}

fn two_of_five(random: &mut Random) -> Vec<u64> {
    let first = 1 + random.below(5);
    vec![first, 1 + (first + random.below(4)) % 5]
}

/// TinyKV's GenericTest: five stores, a tick of 50 ms, an election timeout of 10, one or twenty clients.
fn switches(random: &mut Random, on: &str) -> Plan {
    let mut cluster = cluster(random, 5);
    cluster.replicas = 5;
    cluster.regions = random.within(1..4);
    cluster.tick_ms = 50;
    cluster.mailbox_capacity = 4096;
    cluster.compact_after_entries = if on.contains('L') { 100 } else { 1000 };
    let mut load = load(random);
    load.clients = *random.pick(&[1, 20]);
    let mut plan = calm(cluster, load);
    plan.network.in_order = false;
    if on.contains('u') {
        plan.network.drop_pm = 100;
    }
    let mut at_us = SECOND;
    while on.contains('p') && at_us < DURATION_US {
        let for_us = random.within(500..700) * MS;
        let side: Vec<u64> = (1..=5).filter(|_| random.chance(500)).collect();
        act(&mut plan, at_us, Action::Partition { side, for_us });
        at_us += for_us;
    }
    let mut at_us = 3 * SECOND;
    while on.contains('c') && at_us < DURATION_US {
        for store in 1..=5 {
            let down_us = random.within(50..1000) * MS;
            let action = match random.chance(500) {
                true => Action::Crash { store, down_us },
                false => Action::Restart { store, down_us },
            };
            act(&mut plan, at_us, action);
        }
        at_us += random.within(2..6) * SECOND;
    }
    let mut at_us = 2 * SECOND;
    while on.contains('f') && at_us < DURATION_US {
        act(&mut plan, at_us, any_move(FaultKind::PeersChanged, random));
        at_us += random.within(0..200) * MS;
    }
    let mut at_us = 2 * SECOND;
    while on.contains('s') && at_us < DURATION_US {
        act(&mut plan, at_us, any_move(FaultKind::RegionSplit, random));
        at_us += random.within(300..6_000) * MS;
    }
    plan.cluster.regions_move = on.contains('f') || on.contains('s');
    flush_now_and_then(&mut plan, random);
    plan
}

/// A move of any region.
pub(crate) fn any_move(kind: FaultKind, random: &mut Random) -> Action {
    let (region, choice) = (random.below(1 << 20), random.number());
    match kind {
        FaultKind::PeersChanged => Action::ChangePeers { region, choice },
        FaultKind::RegionSplit => Action::Split { region, choice },
        _ => Action::Transfer { region, choice },
    }
}

pub(crate) fn act(plan: &mut Plan, at_us: u64, action: Action) {
    plan.actions.push(Timed { at_us, action });
}

pub(crate) fn flush_now_and_then(plan: &mut Plan, random: &mut Random) {
    for store in 1..=plan.cluster.stores {
        let mut at_us = random.below(3 * SECOND);
        while at_us < plan.duration_us {
            act(plan, at_us, Action::Flush { store });
            if random.chance(300) {
                act(plan, at_us, Action::Reclaim { store });
            }
            at_us += random.within(200..5000) * MS;
        }
    }
}

/// Fills a plan with faults of these kinds.
pub(crate) fn trouble(plan: &mut Plan, random: &mut Random, kinds: &[FaultKind]) {
    let has = |kind| kinds.contains(&kind);
    plan.network = NetworkPlan {
        delay_us: *random.pick(&[(50, 200), (100, 2_000), (1_000, 30_000)]),
        drop_pm: if has(FaultKind::MessageDropped) { random.within(1..150) } else { 0 },
        duplicate_pm: if has(FaultKind::MessageDuplicated) { random.within(1..100) } else { 0 },
        straggler_pm: if has(FaultKind::MessageReordered) { random.within(1..100) } else { 0 },
        in_order: !has(FaultKind::MessageReordered),
        encodes: random.chance(500),
    };
    flush_now_and_then(plan, random);
    plan.cluster.regions_move = MOVES.iter().any(|kind| has(*kind));
    // Alone a store serves nobody while it is down and until it leads again.
    let election_us = plan.cluster.election_us();
    let gap_us = match plan.cluster.stores {
        1 | 2 => random.within(election_us..3 * election_us),
        _ => random.within(election_us / 4..election_us),
    };
    let mut at_us = random.within(0..2 * gap_us);
    while at_us < plan.duration_us {
        // Storms with calms between them: what never gets anywhere has nothing to lose.
        let calm = at_us % (4 * election_us) >= 5 * election_us / 2;
        if !kinds.is_empty() && !calm {
            let kind = *random.pick(kinds);
            let action = action(kind, &plan.cluster, random);
            if let Some(Action::Burst { store, .. }) = action {
                // A store that stands still finds its mailboxes full when it goes on.
                let for_us = random.within(20..300) * MS;
                if random.chance(500) {
                    act(plan, at_us, Action::Pause { store, for_us });
                }
            }
            if let Some(action) = action {
                act(plan, at_us, action);
            }
        }
        if random.chance(50) {
            let region = 1 + random.below(plan.cluster.regions);
            let store = *random.pick(&plan.cluster.stores_of(region));
            act(plan, at_us, Action::Campaign { store, region });
        }
        at_us += random.within(1..2 * gap_us);
    }
}

/// An action that brings a fault of this kind about; `None`: the kind goes on all the time, or comes
/// along with others.
pub(crate) fn action(
    kind: FaultKind,
    cluster: &ClusterPlan,
    random: &mut Random,
) -> Option<Action> {
    let store = 1 + random.below(cluster.stores);
    let other = 1 + (store + random.below(cluster.stores.max(2) - 1)) % cluster.stores;
    let down_us = random.within(20..3_000) * MS;
    let for_us = random.within(50..4_000) * MS;
    let region = 1 + random.below(cluster.regions);
    Some(match kind {
        FaultKind::MessageReplayed => Action::Replay { count: random.within(1..20) },
        FaultKind::MessageDropped => Action::Lose { drop_pm: random.within(100..600), for_us },
        FaultKind::PartitionSymmetric => {
            let side = (1..=cluster.stores).filter(|_| random.chance(500)).collect();
            Action::Partition { side, for_us }
        }
        FaultKind::PartitionOneWay => Action::CutOneWay { from: store, to: other, for_us },
        FaultKind::PartitionPartial => Action::CutBetween { one: store, other, for_us },
        FaultKind::SlowLink => {
            let by_us = random.within(5..800) * MS;
            Action::SlowLink { from: store, to: other, by_us, for_us }
        }
        FaultKind::FullPipe => Action::FullPipe { from: store, to: other, for_us },
        FaultKind::Crash | FaultKind::UnsyncedLost | FaultKind::UnflushedLost => {
            Action::Crash { store, down_us }
        }
        FaultKind::CrashInsideStep => {
            Action::CrashInside { store, calls: random.within(1..40), down_us }
        }
        FaultKind::CleanRestart => Action::Restart { store, down_us },
        FaultKind::Pause => Action::Pause { store, for_us },
        FaultKind::ClockJump => Action::JumpClock { store, by_us: random.within(1..5_000) * MS },
        FaultKind::ClockDrift => {
            let speed_pm = match cluster.leases {
                true => random.within(*FAIR_SPEEDS_PM.start()..*FAIR_SPEEDS_PM.end() + 1),
                false => random.within(300..3_000),
            };
            Action::DriftClock { store, speed_pm, for_us }
        }
        FaultKind::WriteError => Action::FailWrite { store },
        FaultKind::SyncError => Action::FailSync { store },
        FaultKind::DiskFull => Action::FillDisk { store, for_us },
        FaultKind::SlowDisk => {
            Action::SlowDisk { store, by_us: random.within(1..200) * MS, for_us }
        }
        FaultKind::HungDisk => Action::HangDisk { store, for_us },
        FaultKind::FlippedBit => Action::DamageLog { store, down_us, for_us: down_us + for_us },
        FaultKind::MailboxOverflow => {
            Action::Burst { store, region, count: random.within(20..200) }
        }
        FaultKind::PeersChanged | FaultKind::RegionSplit | FaultKind::LeaderMoved => {
            any_move(kind, random)
        }
        // What comes of others, or of what clients do.
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_stretch_of_seeds_holds_each_scenario_in_proportion() {
        let shares: u64 = SCENARIOS.iter().map(|scenario| scenario.share).sum();
        for first in [1, 12_345, u64::MAX - 1000] {
            for scenario in SCENARIOS {
                let seeds = first..first + 500;
                let picked = seeds.filter(|seed| pick(*seed).name == scenario.name).count() as u64;
                let due = 500 * scenario.share / shares;
                assert!(picked.abs_diff(due) <= 3, "{}: {picked} of {due}", scenario.name);
            }
        }
    }

    #[test]
    fn names_are_unique_and_plans_are_the_seeds() {
        for (at, scenario) in SCENARIOS.iter().enumerate() {
            assert!(SCENARIOS[..at].iter().all(|other| other.name != scenario.name));
            assert_eq!(plan(7, Some(scenario)), plan(7, Some(scenario)));
            assert_ne!(plan(7, Some(scenario)), plan(8, Some(scenario)));
        }
    }

    #[test]
    fn plans_are_sound() {
        for scenario in SCENARIOS {
            for seed in 0..50 {
                assert_eq!(plan(seed, Some(scenario)).validate(), Ok(()), "{}", scenario.name);
            }
        }
    }

    #[test]
    fn plans_survive_json() {
        for seed in 0..50 {
            let plan = plan(seed, None);
            let text = serde_json::to_string(&plan).expect("serialisable");
            assert_eq!(serde_json::from_str::<Plan>(&text).expect("sound"), plan);
        }
    }

    #[test]
    fn partial_cuts_are_between_two_stores() {
        let mut random = Random::new(1);
        let cluster = cluster(&mut random, 3);
        for _ in 0..100 {
            match action(FaultKind::PartitionPartial, &cluster, &mut random) {
                Some(Action::CutBetween { one, other, .. }) => assert_ne!(one, other),
                unexpected => panic!("{unexpected:?}"),
            }
        }
    }
}
