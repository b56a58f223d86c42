//! What holds when commands are applied.

use super::{expect_contents, fail, Contents, Driven, Run, StateMachineSubject};
use crate::testkit::Draws;
use crate::{RegionCommands, RegionId, StateMachine};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::Arc;

pub(super) fn all<S: StateMachineSubject>(subject: &S) {
    nothing_is_known_of_a_new_region(subject);
    effects_come_with_the_applied_state(subject);
    parts_are_carried_out_in_order(subject);
    batching_changes_nothing(subject);
    threads_do_not_disturb_each_other(subject);
}

fn nothing_is_known_of_a_new_region<S: StateMachineSubject>(subject: &S) {
    let run = Run::new(subject);
    let region = Driven::new(7, "", "");
    let rule = "unknown-region";
    if let Some(applied) = run.applied_state(region.id()) {
        fail(rule, &format!("region 7 is applied up to {}", applied.index));
    }
    let durable = run.machine().durable_index(region.id());
    if durable.get() != 0 {
        fail(rule, &format!("region 7 is durable up to {durable}"));
    }
    expect_contents(rule, "region 7", &Contents::new(), &run.contents(&region));
    if run.machine().snapshot(region.id()).is_ok() {
        fail("snapshot-of-unknown", "region 7 has a snapshot");
    }
}

fn effects_come_with_the_applied_state<S: StateMachineSubject>(subject: &S) {
    let run = Run::new(subject);
    let (mut left, mut right) = (Driven::new(1, "", "m"), Driven::new(2, "m", ""));
    run.put(&mut right, "n", "right");
    let beside = run.contents(&right);
    if beside.is_empty() {
        fail("applied-with-effects", "a put does not show in the contents");
    }
    run.put(&mut left, "b", "one");
    run.expect_applied("applied-with-effects", "after a put", &left);
    let first = run.contents(&left);
    if first.is_empty() {
        fail("applied-with-effects", "a put to region 1 does not show in its contents");
    }
    expect_contents("only-its-own", "region 2 after a put to 1", &beside, &run.contents(&right));
    run.put(&mut left, "c", "two");
    let second = run.contents(&left);
    if second == first {
        fail("applied-with-effects", "a second put does not show in the contents");
    }
    // As after an empty entry of a new leader.
    run.apply(vec![left.next(Vec::new())]);
    run.expect_applied("applied-with-effects", "after no command", &left);
    expect_contents("applied-with-effects", "after no command", &second, &run.contents(&left));
    run.expect_applied("only-its-own", "region 2 after steps of 1", &right);
    // Both in one batch.
    let put = |key: &str| vec![subject.put(key.as_bytes(), b"both")];
    run.apply(vec![left.next(put("d")), right.next(put("o"))]);
    run.expect_applied("applied-with-effects", "after a batch of two regions", &left);
    run.expect_applied("applied-with-effects", "after a batch of two regions", &right);
    if run.contents(&left) == second || run.contents(&right) == beside {
        fail("applied-with-effects", "a batch of two regions does not show in both");
    }
}

fn parts_are_carried_out_in_order<S: StateMachineSubject>(subject: &S) {
    let rule = "parts-in-order";
    let put = |key: &str, value: &str| subject.put(key.as_bytes(), value.as_bytes());
    let build = || {
        let (mut left, mut right) = (Driven::new(1, "", "m"), Driven::new(2, "m", ""));
        let mut parts = vec![
            left.next(vec![put("b", "1"), put("c", "1")]),
            right.next(vec![put("n", "1")]),
            left.next(vec![put("b", "2")]),
        ];
        // Its peers change in between.
        let mut description = (*left.description).clone();
        description.epoch.conf_ver += 1;
        description.peers.truncate(2);
        left.description = Arc::new(description);
        parts.push(left.next(vec![put("c", "3"), put("b", "3")]));
        parts.push(right.next(vec![put("n", "2")]));
        parts.push(left.next(Vec::new()));
        (left, right, parts)
    };
    let (left, right, parts) = build();
    let (together, apart) = (Run::new(subject), Run::new(subject));
    let at_once = together.apply(parts.clone());
    let one_by_one: Vec<RegionCommands> =
        parts.into_iter().flat_map(|part| apart.apply(vec![part])).collect();
    for region in [&left, &right] {
        let what = format!("region {} several times in a batch", region.id());
        together.expect_applied(rule, &what, region);
        expect_contents(rule, &what, &apart.contents(region), &together.contents(region));
    }
    for (part, other) in at_once.iter().zip(&one_by_one) {
        for (command, other) in part.commands.iter().zip(&other.commands) {
            if command.output != other.output {
                let (region, index) = (part.region_id, command.index);
                let (alone, batched) = (&other.output, &command.output);
                let what = format!("region {region}, index {index}: answers {alone:?} alone");
                fail(rule, &format!("{what} and {batched:?} in a batch with others"));
            }
        }
    }
}

/// Random commands, the same each time.
fn history<S: StateMachineSubject>(subject: &S, regions: &mut [Driven]) -> Vec<RegionCommands> {
    let mut draws = Draws(7);
    let mut parts = Vec::new();
    for number in 0..150 {
        let at = draws.next(regions.len() as u64) as usize;
        let region = &mut regions[at];
        let mut payloads = Vec::new();
        for _ in 0..draws.next(4) {
            let start = String::from_utf8_lossy(&region.description.start_key).into_owned();
            let key = format!("{start}k{}", draws.next(5));
            let delete = subject.delete(key.as_bytes()).filter(|_| draws.next(3) == 0);
            let put = || subject.put(key.as_bytes(), format!("value {number}").as_bytes());
            payloads.push(delete.unwrap_or_else(put));
        }
        parts.push(region.next(payloads));
    }
    parts
}

fn outputs(parts: &[RegionCommands]) -> BTreeMap<(RegionId, u64), Bytes> {
    let commands =
        parts.iter().flat_map(|part| part.commands.iter().map(|command| (part.region_id, command)));
    commands
        .map(|(region, command)| ((region, command.index.get()), command.output.clone()))
        .collect()
}

fn batching_changes_nothing<S: StateMachineSubject>(subject: &S) {
    let rule = "same-on-every-store";
    let mut regions = [Driven::new(1, "a", "f"), Driven::new(2, "f", "m"), Driven::new(3, "m", "")];
    let parts = history(subject, &mut regions);
    let (one, other) = (Run::new(subject), Run::new(subject));
    let apart: Vec<RegionCommands> =
        parts.iter().flat_map(|part| one.apply(vec![part.clone()])).collect();
    let mut draws = Draws(11);
    let (mut batched, mut left) = (Vec::new(), &parts[..]);
    while !left.is_empty() {
        let (batch, rest) = left.split_at((1 + draws.next(12) as usize).min(left.len()));
        batched.extend(other.apply(batch.to_vec()));
        left = rest;
    }
    let (apart, batched) = (outputs(&apart), outputs(&batched));
    for ((region, index), output) in &apart {
        let found = &batched[&(*region, *index)];
        if found != output {
            let what = format!("region {region}, index {index}: one answers {output:?}");
            fail(rule, &format!("{what}, the other {found:?}"));
        }
    }
    for region in &regions {
        let what = format!("region {} on two instances", region.id());
        expect_contents(rule, &what, &one.contents(region), &other.contents(region));
        other.expect_applied(rule, &what, region);
    }
}

fn threads_do_not_disturb_each_other<S: StateMachineSubject>(subject: &S) {
    let rule = "only-its-own";
    let regions: Vec<Driven> = [("a", "d"), ("d", "h"), ("h", "p"), ("p", "")]
        .iter()
        .zip(1..)
        .map(|((start, end), id)| Driven::new(id, start, end))
        .collect();
    let batches: Vec<(Driven, Vec<RegionCommands>)> = regions
        .into_iter()
        .map(|mut region| {
            let parts = history(subject, std::slice::from_mut(&mut region));
            (region, parts)
        })
        .collect();
    let (at_once, alone) = (Run::new(subject), Run::new(subject));
    let machine = at_once.machine();
    std::thread::scope(|scope| {
        for (_, parts) in &batches {
            scope.spawn(move || {
                for part in parts {
                    super::ok("apply", machine.apply(&mut [part.clone()]));
                }
            });
        }
    });
    for (region, parts) in &batches {
        for part in parts {
            alone.apply(vec![part.clone()]);
        }
        let what = format!("region {} applied while others were", region.id());
        expect_contents(rule, &what, &alone.contents(region), &at_once.contents(region));
        at_once.expect_applied(rule, &what, region);
    }
}
