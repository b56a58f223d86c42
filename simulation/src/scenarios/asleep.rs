//! Regions that sleep most of the time, while the stores that lead them are lost in every way there is.

use super::{act, calm, cluster, flush_now_and_then, load, MS, SECOND};
use crate::faults::FaultKind;
use crate::plan::{Action, Plan};
use crate::random::Random;

/// What such runs must have seen.
pub(super) const PROMISES: &[FaultKind] = &[
    FaultKind::Slept,
    FaultKind::SleepersElected,
    FaultKind::Chilled,
    FaultKind::Crash,
    FaultKind::CleanRestart,
    FaultKind::Pause,
    FaultKind::PartitionSymmetric,
    FaultKind::PartitionOneWay,
    FaultKind::PartitionPartial,
];

/// A plan of such a run.
pub(super) fn asleep(random: &mut Random) -> Plan {
    let stores = *random.pick(&[3, 3, 3, 5]);
    let (mut cluster, mut load) = (cluster(random, stores), load(random));
    cluster.regions = random.within(3..40);
    cluster.replicas = if random.chance(800) { 3 } else { stores };
    cluster.tick_ms = *random.pick(&[50, 100]);
    cluster.election_ticks = *random.pick(&[6, 10]);
    cluster.mailbox_capacity = 4096;
    cluster.sleep_after_ticks = random.within(2..8) as usize;
    load.clients = random.within(1..3);
    // Mostly nobody wants anything; then it is a surprise.
    load.think_us = (random.below(300 * MS), random.within(2..10) * SECOND);
    load.keys = random.within(1..3);
    load.patience_us = 2 * cluster.election_us();
    let mut plan = calm(cluster, load);
    plan.network.delay_us = *random.pick(&[(50, 200), (100, 2_000)]);
    plan.network.encodes = random.chance(500);
    flush_now_and_then(&mut plan, random);
    let quiet_us = quiet_us(&plan);
    let mut at_us = 2 * SECOND + quiet_us;
    while at_us + 8 * plan.cluster.election_us() < plan.duration_us {
        at_us += loss(&mut plan, random, at_us);
        at_us += quiet_us + random.within(0..SECOND);
    }
    plan
}

/// After so long without anything all regions sleep.
fn quiet_us(plan: &Plan) -> u64 {
    let cluster = &plan.cluster;
    let asleep_ticks = cluster.sleep_after_ticks as u64 + 6;
    2 * cluster.election_us() + asleep_ticks * cluster.tick_ms * MS
}

/// A store is lost to others. Returns how long that takes.
fn loss(plan: &mut Plan, random: &mut Random, at_us: u64) -> u64 {
    let stores = plan.cluster.stores;
    let one = 1 + random.below(stores);
    let other = 1 + (one + random.below(stores - 1)) % stores;
    // What is promised, and the granularity of timers and turns.
    let within_us = plan.cluster.election_us() + 200 * MS;
    let long_us = within_us + random.within(MS..2 * SECOND);
    let others = || (1..=stores).filter(move |store| *store != one);
    let (mut without, mut deaf, mut lasts_us) = (one, false, long_us);
    match random.below(8) {
        0 => act(plan, at_us, Action::Crash { store: one, down_us: long_us }),
        1 => {
            // It is back at once, and knows nothing of having led.
            let down_us = random.within(MS..500 * MS);
            act(plan, at_us, Action::Restart { store: one, down_us });
            (without, lasts_us) = (0, within_us + down_us);
        }
        2 => act(plan, at_us, Action::Pause { store: one, for_us: long_us }),
        3 => act(plan, at_us, Action::Partition { side: vec![one], for_us: long_us }),
        4 => {
            for to in others() {
                act(plan, at_us, Action::CutOneWay { from: one, to, for_us: long_us });
            }
        }
        5 => {
            deaf = true;
            for from in others() {
                act(plan, at_us, Action::CutOneWay { from, to: one, for_us: long_us });
            }
        }
        // Only these two do not hear each other: whoever leads may go on.
        6 => {
            act(plan, at_us, Action::CutBetween { one, other, for_us: long_us });
            without = 0;
        }
        _ => {
            act(plan, at_us, Action::CutOneWay { from: one, to: other, for_us: long_us });
            without = 0;
        }
    }
    // Before the loss, so that it is known who slept then.
    act(plan, at_us - 1, Action::ExpectLeaders { without, within_us: within_us + 1, deaf });
    if random.chance(300) {
        let region = 1 + random.below(plan.cluster.regions);
        act(plan, at_us + random.below(long_us), Action::Burst { store: other, region, count: 3 });
    }
    lasts_us
}
