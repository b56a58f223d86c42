//! Plans in which regions move: are split, get other peers and other leaders.

use crate::ambush::{Sight, Slow, Strike};
use crate::faults::FaultKind;
use crate::plan::{Action, Plan};
use crate::random::Random;
use crate::scenarios::{
    act, action, any_move, calm, cluster, flush_now_and_then, load, trouble, Scenario, CRASHES,
    CUTS, MOVES, MS, SECOND,
};

/// Regions that move a lot, some of them twice at the same time.
pub(crate) fn moves(random: &mut Random, themes: &[&[FaultKind]]) -> Plan {
    let stores = *random.pick(&[3, 4, 5, 5]);
    let (mut cluster, mut load) = (cluster(random, stores), load(random));
    cluster.regions = random.within(1..4);
    cluster.compact_after_entries = *random.pick(&[10, 100]);
    load.keys = random.within(2..8);
    let mut plan = calm(cluster, load);
    trouble(&mut plan, random, &themes.concat());
    let mut at_us = SECOND;
    while at_us < plan.duration_us {
        let kind = *random.pick(&MOVES[..3]);
        if let Some(action) = action(kind, &plan.cluster, random) {
            act(&mut plan, at_us, action);
        }
        at_us += random.within(10..3_000) * MS;
    }
    plan
}

/// Regions that a placement moves, by nothing but heartbeats and orders.
pub(crate) fn placed(_: &Scenario, random: &mut Random) -> Plan {
    let stores = *random.pick(&[3, 4, 5]);
    let (mut cluster, mut load) = (cluster(random, stores), load(random));
    cluster.regions = random.within(1..4);
    load.keys = random.within(2..8);
    let mut plan = calm(cluster, load);
    let kinds = *random.pick(&[CRASHES, CUTS]);
    trouble(&mut plan, random, kinds);
    (plan.cluster.regions_move, plan.cluster.placed) = (true, true);
    plan
}

/// Moves with time to recover between them, and a store that ends at one of the next calls that it makes to
/// log store, state machine or transport.
pub(crate) fn steps(_: &Scenario, random: &mut Random) -> Plan {
    let stores = *random.pick(&[3, 4, 5]);
    let (mut cluster, mut load) = (cluster(random, stores), load(random));
    cluster.regions = random.within(1..3);
    cluster.compact_after_entries = *random.pick(&[10, 100]);
    load.keys = random.within(2..8);
    let gap_us = 2 * cluster.election_us();
    let mut plan = calm(cluster, load);
    plan.cluster.regions_move = true;
    flush_now_and_then(&mut plan, random);
    let mut at_us = 2 * SECOND;
    while at_us + SECOND < plan.duration_us {
        let kind = *random.pick(&MOVES[..3]);
        act(&mut plan, at_us, any_move(kind, random));
        let store = 1 + random.below(stores);
        let (calls, down_us) = (random.within(1..25), random.within(20..1_000) * MS);
        let after_us = random.below(3 * MS);
        act(&mut plan, at_us + after_us, Action::CrashInside { store, calls, down_us });
        at_us += random.within(gap_us / 4..gap_us);
    }
    plan
}

/// Moves, peers that fall behind, and ambushes. A run is short: whatever hangs then has no time to be helped
/// by something that comes later.
pub(crate) fn ambushes(_: &Scenario, random: &mut Random) -> Plan {
    let stores = *random.pick(&[3, 4, 5]);
    let (mut cluster, mut load) = (cluster(random, stores), load(random));
    cluster.regions = random.within(1..3);
    cluster.compact_after_entries = 10;
    load.keys = random.within(2..8);
    let gap_us = cluster.election_us();
    let mut plan = calm(cluster, load);
    plan.duration_us = random.within(8 * SECOND..24 * SECOND);
    plan.cluster.regions_move = true;
    plan.network.drop_pm = *random.pick(&[0, 0, 50]);
    flush_now_and_then(&mut plan, random);
    // What takes its time comes to its end where less happens besides.
    let pace = *random.pick(&[1, 1, 5]);
    if pace == 1 && random.chance(300) {
        // When it is heard again, others may be there, and lead, of whom it knows nothing.
        let (store, at_us) = (1 + random.below(stores), random.within(2..6) * SECOND);
        let for_us = plan.duration_us - at_us;
        act(&mut plan, at_us, Action::Partition { side: vec![store], for_us });
    }
    let mut at_us = SECOND;
    while at_us + SECOND < plan.duration_us {
        if pace == 1 || random.chance(300) {
            act(&mut plan, at_us, ambush(random));
        }
        let kind = *random.pick(&[MOVES[0], MOVES[0], MOVES[1], MOVES[2]]);
        act(&mut plan, at_us, any_move_of(kind, random));
        if random.chance(120) {
            overtake(&mut plan, at_us, random);
        }
        if random.chance(250 / pace) {
            let behind =
                [FaultKind::Crash, FaultKind::PartitionPartial, FaultKind::PartitionSymmetric];
            let action = action(*random.pick(&behind), &plan.cluster, random);
            if let Some(action) = action {
                act(&mut plan, at_us + random.below(3 * MS), action);
            }
        }
        if random.chance(120 * pace) {
            fall_behind(&mut plan, at_us, random);
        }
        at_us += pace * random.within(gap_us / 16..gap_us / 2);
    }
    // What belongs to an action near the end may come too late.
    let duration_us = plan.duration_us;
    plan.actions.retain(|timed| timed.at_us <= duration_us);
    plan
}

/// A store stops applying and is cut off, and the first region is split just before that or just after. It is
/// given a snapshot while what it has been handed out still waits to be applied.
fn fall_behind(plan: &mut Plan, at_us: u64, random: &mut Random) {
    let stores = plan.cluster.stores;
    let (store, for_us) = (1 + random.below(stores), random.within(1_500..5_000) * MS);
    let end_us = (at_us + for_us / 2).min(plan.duration_us);
    act(plan, at_us, Action::Stall { store, thread: Slow::Apply, for_us });
    let cut_us = at_us + random.within(1..100) * MS;
    let split_us = *random.pick(&[at_us, at_us, cut_us + MS]);
    act(plan, split_us, Action::Split { region: 0, choice: random.number() });
    act(plan, cut_us, Action::Partition { side: vec![store], for_us: for_us / 2 });
    // Logs grow beyond what is kept for it; its own, where it leads, by what nobody else has.
    for other in 1..=stores {
        let (region, count) = (1, random.within(15..40));
        act(
            plan,
            cut_us + random.below(end_us - at_us),
            Action::Burst { store: other, region, count },
        );
    }
    if random.chance(500) {
        let strike = Strike::Crash { calls: random.within(1..9) };
        act(plan, end_us, Action::Ambush { sight: Sight::Installs, strike });
    }
}

/// The first region comes to a store that is slow with snapshots, and is split meanwhile: its parts are there
/// before it, and one may have left again when it comes.
fn overtake(plan: &mut Plan, at_us: u64, random: &mut Random) {
    let (choice, for_us) = (random.number(), random.within(300..1_000) * MS);
    let strike = Strike::Stall { thread: Slow::Snapshots, for_us };
    act(plan, at_us, Action::Ambush { sight: Sight::Newcomer, strike });
    act(plan, at_us, Action::Add { region: 0, choice });
    let split_us = at_us + random.within(20..200) * MS;
    act(plan, split_us, Action::Split { region: 0, choice: random.number() });
    for _ in 0..2 {
        act(plan, split_us + random.within(20..300) * MS, Action::Uproot);
    }
}

/// A move of any region; of the first one more often than of the others.
fn any_move_of(kind: FaultKind, random: &mut Random) -> Action {
    let region = random.below(1 << 20) * random.below(2);
    match any_move(kind, random) {
        Action::ChangePeers { choice, .. } => Action::ChangePeers { region, choice },
        Action::Transfer { choice, .. } => Action::Transfer { region, choice },
        split => split,
    }
}

fn ambush(random: &mut Random) -> Action {
    let sights = [
        Sight::Chore,
        Sight::Chore,
        Sight::Installs,
        Sight::Installs,
        Sight::Splits,
        Sight::Changes,
        Sight::Newcomer,
        Sight::Starts,
    ];
    let sight = *random.pick(&sights);
    let for_us = random.within(20..3_000) * MS;
    let strike = match random.below(20) {
        0..11 => Strike::Crash { calls: random.within(1..9) },
        11..17 => {
            let thread = *random.pick(&[Slow::Apply, Slow::Log, Slow::Snapshots, Slow::Chores]);
            Strike::Stall { thread, for_us }
        }
        _ => Strike::Promote { for_us },
    };
    Action::Ambush { sight, strike }
}
