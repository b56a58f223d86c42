//! What state machines say of how much regions hold.

mod common;

use bytes::Bytes;
use common::region;
use raftstore::{
    AppliedState, Command, Index, MapAnswer, MapCommand, OrderedMap, RegionCommands,
    RegionDescription, RegionId, RegionSplit, StateMachine, Term,
};
use std::sync::Arc;

const REGION: RegionId = RegionId::new(1);

fn applied(description: &RegionDescription, index: u64) -> AppliedState {
    let description = Arc::new(description.clone());
    AppliedState { index: Index::new(index), term: Term::new(6), description }
}

/// The answers.
fn apply(
    machine: &dyn StateMachine,
    description: &RegionDescription,
    commands: &[MapCommand],
) -> Vec<Bytes> {
    let command = |command: &MapCommand| Command {
        index: Index::new(7),
        term: Term::new(6),
        payload: command.encode(),
        output: Bytes::new(),
    };
    let mut batch = [RegionCommands {
        region_id: description.id,
        commands: commands.iter().map(command).collect(),
        applied: applied(description, 7),
    }];
    machine.apply(&mut batch).expect("applied");
    batch[0].commands.iter().map(|command| command.output.clone()).collect()
}

fn size(machine: &dyn StateMachine, region: u64) -> Option<(u64, u64)> {
    machine.size(RegionId::new(region)).map(|size| (size.bytes, size.keys))
}

fn sizes_follow_every_step(machine: &dyn StateMachine) {
    let whole = region(1, 1);
    assert_eq!(size(machine, 1).unwrap_or_default(), (0, 0));
    let put = |key: u64, value: &str| MapCommand::put(format!("{key:02}"), value.to_owned());
    let ten: Vec<_> = (0..10).map(|key| put(key, "12345678")).collect();
    apply(machine, &whole, &ten);
    assert_eq!(size(machine, 1), Some((100, 10)));
    apply(
        machine,
        &whole,
        &[put(3, "1"), put(3, "12"), MapCommand::delete("04"), MapCommand::delete("04")],
    );
    assert_eq!(size(machine, 1), Some((84, 9)));
    apply(machine, &whole, &[put(3, "12345678"), put(4, "12345678")]);
    assert_eq!(size(machine, 1), Some((100, 10)));

    assert!(machine.split_keys(REGION, 100).is_empty());
    assert_eq!(machine.split_keys(REGION, 50), ["05"]);
    assert_eq!(machine.split_keys(REGION, 30), ["02", "05", "07"]);
    assert!(machine.split_keys(RegionId::new(9), 1).is_empty());

    let mut parent = whole.clone();
    (parent.end_key, parent.epoch.version) = ("07".into(), 2);
    let child = RegionDescription { start_key: "07".into(), end_key: Bytes::new(), ..region(2, 2) };
    let child = RegionDescription { epoch: parent.epoch, ..child };
    let split = RegionSplit { parent: applied(&parent, 8), children: vec![applied(&child, 5)] };
    machine.split(&split).expect("divided");
    assert_eq!((size(machine, 1), size(machine, 2)), (Some((70, 7)), Some((30, 3))));
    apply(machine, &child, &[MapCommand::put("99", "x")]);
    assert_eq!(size(machine, 2), Some((33, 4)));
    // Its key is another region's by now: refused, with a reason.
    let refused = apply(machine, &parent, &[MapCommand::put("07", "x")]);
    let reason = "the key is not in the range of the region".to_owned();
    assert_eq!(refused, [MapAnswer::Refused(reason).encode()]);
    assert_eq!(size(machine, 1), Some((70, 7)));

    let mut snapshot = machine.snapshot(child.id).expect("a snapshot");
    apply(machine, &child, &[MapCommand::delete("99")]);
    assert_eq!(size(machine, 2), Some((30, 3)));
    machine.install(&mut *snapshot).expect("installed");
    assert_eq!(size(machine, 2), Some((33, 4)));
    drop(snapshot);
    machine.destroy(child.id).expect("destroyed");
    assert_eq!(size(machine, 2).unwrap_or_default(), (0, 0));
    assert_eq!(size(machine, 1), Some((70, 7)));
}

#[test]
fn the_map_in_memory_says_what_regions_hold() {
    sizes_follow_every_step(&OrderedMap::new());
}

#[cfg(feature = "fjall")]
#[test]
fn the_map_on_disk_says_what_regions_hold() {
    let dir = tempfile::tempdir().expect("a directory");
    let map = raftstore::FjallMap::open(dir.path(), &raftstore::FjallConfig::default());
    sizes_follow_every_step(&map.expect("opens"));
}
