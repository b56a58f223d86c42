//! Regions that are read from at every store, while those who lead them are cut off, hand over, stand still
//! and are replaced, under clocks as far apart as leases bear.

use super::{act, any_move, calm, cluster, load, trouble, MS, SECOND};
use crate::faults::FaultKind;
use crate::plan::{Action, Plan, FAIR_SPEEDS_PM};
use crate::random::Random;

/// What leases must bear.
pub(super) const PROMISES: &[FaultKind] = &[
    FaultKind::LeaseRead,
    FaultKind::IndexRead,
    FaultKind::FollowerRead,
    FaultKind::StaleRead,
    FaultKind::ReadWaited,
    FaultKind::DeposedAsked,
    FaultKind::Pause,
    FaultKind::ClockJump,
    FaultKind::ClockDrift,
    FaultKind::PartitionSymmetric,
    FaultKind::LeaderMoved,
    FaultKind::RegionSplit,
    FaultKind::PeersChanged,
];

/// A plan of such a run.
pub(super) fn reads(random: &mut Random) -> Plan {
    let stores = *random.pick(&[3, 3, 3, 5]);
    let (mut cluster, mut load) = (cluster(random, stores), load(random));
    cluster.regions = random.within(1..5);
    cluster.replicas = if random.chance(800) { 3 } else { stores };
    cluster.tick_ms = *random.pick(&[50, 100]);
    // Short ones, so that more elections fall close to the end of a lease.
    cluster.election_ticks = *random.pick(&[6, 6, 10]);
    cluster.mailbox_capacity = 4096;
    cluster.leases = true;
    load.clients = random.within(4..9);
    load.think_us = (0, random.within(3..30) * MS);
    load.keys = random.within(1..3);
    (load.read_pm, load.compare_pm, load.big_pm) = (50, 100, 0);
    (load.leader_read_pm, load.any_read_pm, load.stale_read_pm) = (250, 250, 50);
    // Much less than an election timeout: who has waited for a leader that is cut off is there for the next.
    load.patience_us = random.within(1..5) * cluster.election_us() / 40;
    let moves = random.chance(600);
    let election_us = cluster.election_us() / 2;
    let mut plan = calm(cluster, load);
    trouble(&mut plan, random, &[]);
    plan.cluster.regions_move = moves;
    drift(&mut plan, random);
    let mut at_us = SECOND;
    while at_us + 4 * election_us < plan.duration_us {
        at_us += event(&mut plan, random, at_us, election_us, moves);
        at_us += random.within(0..election_us);
    }
    plan
}

/// A plan of nothing but leaders that are cut off, and of leases that end when others are elected, or just
/// before.
pub(super) fn leases(random: &mut Random) -> Plan {
    let (mut cluster, mut load) = (cluster(random, 3), load(random));
    cluster.regions = random.within(4..10);
    cluster.tick_ms = *random.pick(&[50, 100]);
    cluster.election_ticks = 6;
    cluster.mailbox_capacity = 4096;
    cluster.leases = true;
    load.clients = random.within(10..20);
    load.think_us = (0, random.within(3..20) * MS);
    (load.keys, load.hot_pm, load.big_pm) = (1, 0, 0);
    (load.read_pm, load.compare_pm, load.stale_read_pm) = (0, 100, 0);
    (load.leader_read_pm, load.any_read_pm) = (200, 400);
    load.patience_us = random.within(1..5) * cluster.election_us() / 40;
    let election_us = cluster.election_us() / 2;
    let mut plan = calm(cluster, load);
    plan.network.delay_us = *random.pick(&[(50, 200), (100, 2_000)]);
    // Shorter than others: there is more going on.
    plan.duration_us = 30 * SECOND;
    let mut at_us = SECOND;
    while at_us + 4 * election_us < plan.duration_us {
        at_us += leader_with_the_slowest_clock(&mut plan, random, at_us, election_us);
        at_us += random.within(0..election_us);
    }
    plan
}

/// Each store's clock has a speed of its own, mostly one of the two that are furthest apart.
fn drift(plan: &mut Plan, random: &mut Random) {
    for store in 1..=plan.cluster.stores {
        let (slowest, fastest) = (*FAIR_SPEEDS_PM.start(), *FAIR_SPEEDS_PM.end());
        let speed_pm = *random.pick(&[slowest, slowest, 1000, fastest, fastest]);
        act(plan, 0, Action::DriftClock { store, speed_pm, for_us: plan.duration_us });
    }
}

/// One thing happens to whoever may be the leader. Returns how long it takes.
fn event(plan: &mut Plan, random: &mut Random, at_us: u64, election_us: u64, moves: bool) -> u64 {
    let stores = plan.cluster.stores;
    let one = 1 + random.below(stores);
    let other = 1 + (one + random.below(stores - 1)) % stores;
    let long_us = random.within(5 * election_us / 4..3 * election_us);
    let after_us = random.below(60 * MS);
    let cut_off = |store, for_us| Action::Partition { side: vec![store], for_us };
    match random.below(16) {
        0..4 => leader_with_the_slowest_clock(plan, random, at_us, election_us),
        4..6 => {
            // It goes on with what has come meanwhile, and does not hear of its successor.
            act(plan, at_us, Action::Pause { store: one, for_us: long_us });
            act(plan, at_us + after_us, cut_off(one, 3 * long_us / 2));
            3 * long_us / 2 + after_us
        }
        6..8 => {
            // Whoever hands over does not hear that it has succeeded.
            for region in 0..plan.cluster.regions {
                let choice = random.number();
                act(plan, at_us, Action::Transfer { region, choice });
            }
            if random.chance(500) {
                act(plan, at_us + after_us, cut_off(one, election_us));
                return election_us + after_us;
            }
            for from in (1..=stores).filter(|store| *store != one) {
                act(plan, at_us, Action::CutOneWay { from, to: one, for_us: election_us });
            }
            election_us
        }
        8..10 => voter_that_forgets(plan, random, at_us, (one, other), election_us, long_us),
        10 => {
            act(plan, at_us, Action::Restart { store: one, down_us: after_us + 1 });
            after_us
        }
        11 => leader_that_hears_late(plan, random, at_us, one, election_us, long_us),
        12 | 13 => {
            // Whoever takes over is followed long before anything of its term is written.
            let by_us = random.within(3..6) * plan.cluster.tick_ms * MS;
            for store in 1..=stores {
                act(plan, at_us, Action::SlowDisk { store, by_us, for_us: 2 * long_us });
            }
            act(plan, at_us, cut_off(one, long_us));
            2 * long_us
        }
        _ if moves => {
            let region = random.below(plan.cluster.regions);
            let kind = *random.pick(&[FaultKind::PeersChanged, FaultKind::RegionSplit]);
            for _ in 0..random.within(1..4) {
                act(plan, at_us, any_move(kind, random));
            }
            let store = *random.pick(&plan.cluster.stores_of(1 + region));
            act(plan, at_us + after_us, cut_off(store, election_us));
            election_us + after_us
        }
        _ => {
            let region = 1 + random.below(plan.cluster.regions);
            let store = *random.pick(&plan.cluster.stores_of(region));
            act(plan, at_us, Action::Campaign { store, region });
            after_us
        }
    }
}

/// One store is cut off, mostly while its clock is the slowest.
fn leader_with_the_slowest_clock(
    plan: &mut Plan,
    random: &mut Random,
    at_us: u64,
    election_us: u64,
) -> u64 {
    let stores = plan.cluster.stores;
    let one = 1 + random.below(stores);
    let other = 1 + (one + random.below(stores - 1)) % stores;
    let long_us = random.within(5 * election_us / 4..3 * election_us);
    act(plan, at_us, Action::Partition { side: vec![one], for_us: long_us });
    if random.chance(700) {
        // Its clock is the slowest.
        let for_us = plan.duration_us;
        for store in 1..=stores {
            let speed_pm = match store == one {
                true => *FAIR_SPEEDS_PM.start(),
                false => *FAIR_SPEEDS_PM.end(),
            };
            act(plan, at_us, Action::DriftClock { store, speed_pm, for_us });
        }
    }
    if random.chance(500) {
        // Somebody else's promise seems to end early.
        let by_us = random.within(1..3_000) * MS;
        let later_us = random.below(election_us);
        act(plan, at_us + later_us, Action::JumpClock { store: other, by_us });
    }
    long_us
}

/// Another store leads behind the back of the first.
fn voter_that_forgets(
    plan: &mut Plan,
    random: &mut Random,
    at_us: u64,
    (one, other): (u64, u64),
    election_us: u64,
    long_us: u64,
) -> u64 {
    let stores = plan.cluster.stores;
    // The second store, which has all of the log, forgets that it has heard of the leader, when the
    // third one has not heard of it for long.
    let cut_us = random.within(election_us..3 * election_us);
    let (for_us, down_us) = (cut_us + long_us, random.within(5..50) * MS);
    act(plan, at_us, Action::CutBetween { one, other, for_us });
    let second = (1..=stores).find(|store| ![one, other].contains(store)).unwrap_or(one);
    act(plan, at_us + cut_us, Action::Crash { store: second, down_us });
    act(plan, at_us + cut_us, Action::Partition { side: vec![one], for_us: long_us });
    for region in 1..=plan.cluster.regions {
        let later_us = cut_us + down_us + random.within(1..200) * MS;
        act(plan, at_us + later_us, Action::Campaign { store: second, region });
    }
    for_us
}

/// One store hears everything late, and is not heard itself.
fn leader_that_hears_late(
    plan: &mut Plan,
    random: &mut Random,
    at_us: u64,
    one: u64,
    election_us: u64,
    long_us: u64,
) -> u64 {
    let stores = plan.cluster.stores;
    // What it hears is old, and what it says is not heard any more.
    let by_us = random.within(3..12) * plan.cluster.tick_ms * MS;
    for from in (1..=stores).filter(|store| *store != one) {
        let for_us = election_us + long_us;
        act(plan, at_us, Action::SlowLink { from, to: one, by_us, for_us });
        let silence = Action::CutOneWay { from: one, to: from, for_us: long_us };
        act(plan, at_us + election_us, silence);
    }
    election_us + long_us
}
