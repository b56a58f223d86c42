//! An ordered map whose memory counts as a disk, with one fault.

use crate::breaks;
use parking_lot::Mutex;
use raftstore::testkit::{self, StateMachineSubject};
use raftstore::{
    AppliedState, Bytes, Index, InstallError, MapCommand, OrderedMap, RegionCommands,
    RegionDescription, RegionId, RegionSplit, SnapshotSource, StateMachine, StateMachineError,
};
use std::collections::BTreeMap;
use std::sync::Arc;

#[derive(Clone, Copy, PartialEq, Debug)]
enum Fault {
    None,
    StateWithoutCommandsForgotten,
    StateOlderThanEffects,
    PartsBackwards,
    CommandsReversed,
    AnswersLostInLargeBatches,
    DurableAtOnceAndMore,
    DurableLost,
    FlushForgotten,
    ChildEmpty,
    ParentStateForgotten,
    SnapshotReadLate,
    InstalledOverOld,
    InstalledBeforeTheEnd,
    InstalledNotDurable,
    DestroyForgotten,
    DestroyTakesNeighbour,
}

/// What outlives the machine.
struct Disk {
    map: OrderedMap,
    durable: Mutex<BTreeMap<RegionId, Index>>,
}

struct Broken {
    fault: Fault,
    disk: Arc<Disk>,
}

/// Reads at the first piece only.
struct Late {
    applied: AppliedState,
    disk: Arc<Disk>,
    source: Option<Box<dyn SnapshotSource>>,
}

impl SnapshotSource for Late {
    fn applied(&self) -> &AppliedState {
        &self.applied
    }

    fn next_piece(&mut self) -> Result<Option<Bytes>, StateMachineError> {
        if self.source.is_none() {
            self.source = Some(self.disk.map.snapshot(self.applied.description.id)?);
        }
        self.source.as_mut().expect("just opened").next_piece()
    }
}

fn nothing_but(applied: &AppliedState) -> RegionCommands {
    RegionCommands {
        region_id: applied.description.id,
        commands: Vec::new(),
        applied: applied.clone(),
    }
}

impl StateMachine for Broken {
    fn apply(&self, batch: &mut [RegionCommands]) -> Result<(), StateMachineError> {
        match self.fault {
            Fault::StateWithoutCommandsForgotten => {
                for part in batch.iter_mut().filter(|part| !part.commands.is_empty()) {
                    self.disk.map.apply(std::slice::from_mut(part))?;
                }
                Ok(())
            }
            Fault::PartsBackwards => batch
                .iter_mut()
                .rev()
                .try_for_each(|part| self.disk.map.apply(std::slice::from_mut(part))),
            Fault::CommandsReversed => {
                self.disk.map.apply(batch)?;
                batch.iter_mut().for_each(|part| part.commands.reverse());
                Ok(())
            }
            Fault::AnswersLostInLargeBatches if batch.len() > 6 => {
                self.disk.map.apply(batch)?;
                let commands = batch.iter_mut().flat_map(|part| &mut part.commands);
                commands.for_each(|command| command.output = Bytes::new());
                Ok(())
            }
            _ => self.disk.map.apply(batch),
        }
    }

    fn applied_state(&self, region: RegionId) -> Result<Option<AppliedState>, StateMachineError> {
        self.disk.map.applied_state(region)
    }

    fn durable_index(&self, region: RegionId) -> Index {
        let applied = self.disk.map.fingerprint(region).0;
        match self.fault {
            Fault::DurableAtOnceAndMore if applied.get() > 0 => applied.next(),
            _ => self.disk.durable.lock().get(&region).copied().unwrap_or_default(),
        }
    }

    fn split(&self, split: &RegionSplit) -> Result<(), StateMachineError> {
        let before = self.applied_state(split.parent.description.id)?;
        self.disk.map.split(split)?;
        match self.fault {
            Fault::ChildEmpty => {
                self.disk.map.destroy(split.children[0].description.id)?;
                self.disk.map.apply(&mut [nothing_but(&split.children[0])])
            }
            Fault::ParentStateForgotten => {
                self.disk.map.apply(&mut [nothing_but(&before.expect("it is there"))])
            }
            _ => Ok(()),
        }
    }

    fn snapshot(&self, region: RegionId) -> Result<Box<dyn SnapshotSource>, StateMachineError> {
        let source = self.disk.map.snapshot(region)?;
        match self.fault {
            Fault::SnapshotReadLate => Ok(Box::new(Late {
                applied: source.applied().clone(),
                disk: self.disk.clone(),
                source: None,
            })),
            _ => Ok(source),
        }
    }

    fn install(&self, snapshot: &mut dyn SnapshotSource) -> Result<(), InstallError> {
        let applied = snapshot.applied().clone();
        let region = applied.description.id;
        if self.fault == Fault::InstalledBeforeTheEnd {
            self.disk.map.apply(&mut [nothing_but(&applied)])?;
        }
        let old = self.disk.map.scan(region, b"", usize::MAX);
        self.disk.map.install(snapshot)?;
        if self.fault == Fault::InstalledOverOld {
            let mut again = nothing_but(&applied);
            again.commands.extend(old.into_iter().map(|(key, value)| raftstore::Command {
                index: applied.index,
                term: applied.term,
                payload: MapCommand::Put { key, value }.encode(),
                output: Bytes::new(),
            }));
            self.disk.map.apply(&mut [again])?;
        }
        if self.fault != Fault::InstalledNotDurable {
            self.disk.durable.lock().insert(region, applied.index);
        }
        Ok(())
    }

    fn destroy(&self, region: RegionId) -> Result<(), StateMachineError> {
        if self.fault == Fault::DestroyForgotten {
            return Ok(());
        }
        if self.fault == Fault::DestroyTakesNeighbour {
            self.disk.map.destroy(RegionId::new(region.get() + 8))?;
        }
        self.disk.durable.lock().remove(&region);
        self.disk.map.destroy(region)
    }

    fn flush(&self) -> Result<(), StateMachineError> {
        if self.fault == Fault::FlushForgotten {
            return Ok(());
        }
        let mut durable = self.disk.durable.lock();
        for id in 1..=9 {
            let region = RegionId::new(id);
            if let Some(applied) = self.disk.map.applied_state(region)? {
                durable.insert(region, applied.index);
            }
        }
        Ok(())
    }
}

impl StateMachineSubject for Fault {
    type Home = Arc<Disk>;
    type Machine = Broken;

    fn home(&self) -> Arc<Disk> {
        Arc::new(Disk { map: OrderedMap::new(), durable: Mutex::default() })
    }

    fn open(&self, home: &mut Arc<Disk>) -> Broken {
        Broken { fault: *self, disk: home.clone() }
    }

    fn end(&self, home: &mut Arc<Disk>, machine: Broken) {
        match self {
            Fault::DurableLost => *home = self.home(),
            Fault::StateOlderThanEffects => {
                let region = RegionId::new(1);
                let state = machine.applied_state(region).expect("in memory");
                let mut state = state.expect("it was written to");
                state.index = Index::new(state.index.get() - 3);
                home.map.apply(&mut [nothing_but(&state)]).expect("in memory");
            }
            _ => {}
        }
    }

    fn put(&self, key: &[u8], value: &[u8]) -> Bytes {
        MapCommand::put(key.to_vec(), value.to_vec()).encode()
    }

    fn delete(&self, key: &[u8]) -> Option<Bytes> {
        Some(MapCommand::delete(key.to_vec()).encode())
    }

    fn contents(&self, machine: &Broken, region: &RegionDescription) -> Vec<(Bytes, Bytes)> {
        let pairs = machine.disk.map.scan(region.id, &region.start_key, usize::MAX);
        pairs.into_iter().filter(|(key, _)| region.contains(key)).collect()
    }
}

#[test]
fn a_state_machine_without_a_fault_conforms() {
    testkit::state_machine(&Fault::None);
}

#[test]
fn each_fault_of_a_state_machine_breaks_its_rule() {
    for (fault, rule) in [
        (Fault::StateWithoutCommandsForgotten, "applied-with-effects"),
        (Fault::StateOlderThanEffects, "applied-with-effects"),
        (Fault::PartsBackwards, "parts-in-order"),
        (Fault::CommandsReversed, "commands-in-place"),
        (Fault::AnswersLostInLargeBatches, "same-on-every-store"),
        (Fault::DurableAtOnceAndMore, "durable-not-ahead"),
        (Fault::DurableLost, "durable-not-ahead"),
        (Fault::FlushForgotten, "flush-makes-durable"),
        (Fault::ChildEmpty, "split-loses-nothing"),
        (Fault::ParentStateForgotten, "split-is-one-step"),
        (Fault::SnapshotReadLate, "snapshot-is-one-moment"),
        (Fault::InstalledOverOld, "install-replaces"),
        (Fault::InstalledBeforeTheEnd, "install-cut-short"),
        (Fault::InstalledNotDurable, "install-is-durable"),
        (Fault::DestroyForgotten, "destroy-removes-all"),
        (Fault::DestroyTakesNeighbour, "only-its-own"),
    ] {
        println!("{fault:?}");
        breaks(rule, || testkit::state_machine(&fault));
    }
}
