//! The state machine of a simulated store: registers that lose what was not flushed.
//!
//! It keeps the contract of a state machine on disk. Commands and applied state of a region change in
//! one step; a crash takes steps away from the last on, never below what was flushed, and region by
//! region for itself.

use crate::check::{Applied, Ledger};
use crate::disk::Device;
use crate::faults::{FaultKind, Fired};
use crate::life::Life;
use crate::operation::{encode_output, Operation};
use crate::random::Random;
use parking_lot::Mutex;
use raftstore::{
    AppliedState, Command, Index, PeerRole, RegionCommands, RegionId, StateMachine,
    StateMachineError,
};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What was there before a step.
#[derive(Debug)]
struct Undo {
    applied: Option<AppliedState>,
    /// In the order of the changes.
    registers: Vec<(u64, Option<u64>)>,
}

#[derive(Debug, Default)]
struct RegionState {
    registers: BTreeMap<u64, u64>,
    applied: Option<AppliedState>,
    /// Up to where a crash takes nothing away.
    flushed: Index,
    /// Steps since then.
    undo: Vec<Undo>,
}

/// The state of all regions of a store; outlives its process.
#[derive(Debug, Default)]
pub(crate) struct MachineState {
    regions: BTreeMap<RegionId, RegionState>,
}

impl MachineState {
    /// Makes everything durable. Returns how many regions had something to flush.
    pub(crate) fn flush(&mut self) -> usize {
        let mut flushed = 0;
        for region in self.regions.values_mut().filter(|region| !region.undo.is_empty()) {
            region.undo.clear();
            region.flushed = applied_index(region);
            flushed += 1;
        }
        flushed
    }

    /// The process has ended at once: each region keeps a part of its steps since the last flush.
    pub(crate) fn crash(&mut self, random: &mut Random, fired: &mut Fired) {
        for region in self.regions.values_mut() {
            let kept = random.index(region.undo.len() + 1);
            if kept < region.undo.len() {
                fired.note(FaultKind::UnflushedLost);
            }
            for undo in region.undo.drain(kept..).rev() {
                for (key, register) in undo.registers.into_iter().rev() {
                    set(&mut region.registers, key, register);
                }
                region.applied = undo.applied;
            }
            // What has survived the crash is on disk.
            region.undo.clear();
            region.flushed = applied_index(region);
        }
    }

    /// What a region's registers hold, and up to where that is applied.
    pub(crate) fn contents(&self, region: RegionId) -> (BTreeMap<u64, u64>, Index) {
        let region = self.regions.get(&region);
        region.map_or_else(Default::default, |region| {
            (region.registers.clone(), applied_index(region))
        })
    }
}

fn applied_index(region: &RegionState) -> Index {
    region.applied.as_ref().map_or_else(Index::default, |applied| applied.index)
}

fn set(registers: &mut BTreeMap<u64, u64>, key: u64, register: Option<u64>) {
    match register {
        Some(value) => registers.insert(key, value),
        None => registers.remove(&key),
    };
}

/// The state machine of one life of a store.
pub(crate) struct SimMachine {
    store: u64,
    life: Arc<Life>,
    state: Arc<Mutex<MachineState>>,
    ledger: Arc<Mutex<Ledger>>,
    /// The disks of all stores: what is applied must be durable on most of them.
    devices: Vec<Device>,
}

impl SimMachine {
    /// The state machine for a life that begins.
    pub(crate) fn new(
        store: u64,
        life: Arc<Life>,
        state: Arc<Mutex<MachineState>>,
        ledger: Arc<Mutex<Ledger>>,
        devices: Vec<Device>,
    ) -> Self {
        Self { store, life, state, ledger, devices }
    }

    fn apply_region(&self, state: &mut RegionState, batch: &mut RegionCommands) {
        let before = applied_index(state);
        if batch.applied.index < before {
            let text = format!(
                "region {}: store {} applies up to {} after {before}",
                batch.region_id, self.store, batch.applied.index
            );
            self.ledger.lock().violate("applied goes forward", text);
        }
        let mut undo = Undo { applied: state.applied.clone(), registers: Vec::new() };
        let mut last = before;
        for command in &mut batch.commands {
            if command.index <= last || command.index > batch.applied.index {
                let text = format!(
                    "region {}: store {} applies index {} after {last}, up to {}",
                    batch.region_id, self.store, command.index, batch.applied.index
                );
                self.ledger.lock().violate("commands are applied in order, once", text);
            }
            last = command.index;
            self.carry_out(batch.region_id, state, command, &mut undo, &batch.applied);
        }
        state.applied = Some(batch.applied.clone());
        state.undo.push(undo);
    }

    fn carry_out(
        &self,
        region: RegionId,
        state: &mut RegionState,
        command: &mut Command,
        undo: &mut Undo,
        applied: &AppliedState,
    ) {
        let Some(operation) = Operation::decode(&command.payload) else {
            let text = format!("region {region}: index {} is no command", command.index);
            return self.ledger.lock().violate("commands arrive as they were proposed", text);
        };
        let register = state.registers.get(&operation.key).copied();
        let next = operation.kind.after(register);
        if next != register {
            undo.registers.push((operation.key, register));
            set(&mut state.registers, operation.key, next);
        }
        command.output = encode_output(register);
        let (index, term) = (command.index.get(), command.term.get());
        let output = register.unwrap_or(u64::MAX);
        let noted = Applied { term, operation: operation.id, output };
        let first = self.ledger.lock().applies(self.store, region.get(), index, noted);
        if first {
            let peers = applied.description.peers.iter();
            let voters = peers.filter(|peer| peer.role == PeerRole::Voter);
            let voters: Vec<u64> = voters.map(|peer| peer.store.get()).collect();
            let durable = self.durable_on(&voters, region, index, term);
            if durable * 2 <= voters.len() {
                let text = format!(
                    "region {region}: store {} applies index {index} of term {term}, which is \
                     durable on {durable} of {} voters",
                    self.store,
                    voters.len()
                );
                self.ledger.lock().violate("applied is durable on a quorum", text);
            }
        }
    }

    /// On how many stores an entry is durable.
    fn durable_on(&self, stores: &[u64], region: RegionId, index: u64, term: u64) -> usize {
        let holds = |store: &&u64| {
            let disk = self.devices[**store as usize - 1].disk.lock();
            disk.durable().holds(region, index, term)
        };
        stores.iter().filter(holds).count()
    }
}

impl StateMachine for SimMachine {
    fn apply(&self, batch: &mut [RegionCommands]) -> Result<(), StateMachineError> {
        let mut state = self.state.lock();
        for region in batch {
            // A crash falls between two regions: each changes in one step.
            if !self.life.call() {
                return Err(StateMachineError("the process is gone".to_owned()));
            }
            self.apply_region(state.regions.entry(region.region_id).or_default(), region);
        }
        Ok(())
    }

    fn applied_state(&self, region: RegionId) -> Result<Option<AppliedState>, StateMachineError> {
        Ok(self.state.lock().regions.get(&region).and_then(|region| region.applied.clone()))
    }

    fn durable_index(&self, region: RegionId) -> Index {
        self.state.lock().regions.get(&region).map_or_else(Index::default, |region| region.flushed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Kind;
    use raftstore::{Bytes, Peer, PeerId, RegionDescription, RegionEpoch, StoreId, Term};

    const REGION: RegionId = RegionId::new(1);

    fn machine() -> (SimMachine, Arc<Mutex<MachineState>>, Arc<Mutex<Ledger>>) {
        let (state, ledger) = (Arc::default(), Arc::default());
        let devices = vec![Device::default()];
        let machine =
            SimMachine::new(1, Arc::default(), Arc::clone(&state), Arc::clone(&ledger), devices);
        (machine, state, ledger)
    }

    fn batch(index: u64, key: u64, value: u64) -> RegionCommands {
        let peer = Peer { id: PeerId::new(1), store: StoreId::new(1), role: PeerRole::Voter };
        let description = RegionDescription {
            id: REGION,
            start_key: Bytes::new(),
            end_key: Bytes::new(),
            epoch: RegionEpoch { conf_ver: 1, version: 1 },
            peers: vec![peer],
        };
        let (index, term) = (Index::new(index), Term::new(6));
        let payload = Operation { id: index.get(), key, kind: Kind::Write(value) }.encode(0);
        RegionCommands {
            region_id: REGION,
            commands: vec![Command { index, term, payload, output: Bytes::new() }],
            applied: AppliedState { index, term, description: Arc::new(description) },
        }
    }

    #[test]
    fn a_crash_takes_unflushed_steps_away_and_no_others() {
        let (machine, state, _) = machine();
        for index in 6..10 {
            machine.apply(&mut [batch(index, 1, index)]).expect("alive");
        }
        assert_eq!(machine.durable_index(REGION), Index::new(0));
        assert_eq!(state.lock().flush(), 1);
        assert_eq!(machine.durable_index(REGION), Index::new(9));
        for index in 10..20 {
            machine.apply(&mut [batch(index, 1, index)]).expect("alive");
        }
        let mut fired = Fired::default();
        state.lock().crash(&mut Random::new(3), &mut fired);
        let (registers, applied) = state.lock().contents(REGION);
        assert!((9..20).contains(&applied.get()));
        assert_eq!(registers[&1], applied.get(), "effects and applied state go together");
        assert_eq!(fired.count(FaultKind::UnflushedLost), 1);
    }

    #[test]
    fn what_is_not_durable_on_a_quorum_may_not_be_applied() {
        let (machine, _, ledger) = machine();
        machine.apply(&mut [batch(6, 1, 1)]).expect("alive");
        let rule = ledger.lock().violation().map(|violation| violation.rule);
        assert_eq!(rule, Some("applied is durable on a quorum"));
    }

    #[test]
    fn an_index_applied_again_is_seen() {
        let (machine, _, ledger) = machine();
        machine.devices[0].disk.lock().sync();
        machine.apply(&mut [batch(6, 1, 1)]).expect("alive");
        *ledger.lock() = Ledger::default();
        machine.apply(&mut [batch(6, 1, 1)]).expect("alive");
        let rule = ledger.lock().violation().map(|violation| violation.rule);
        assert_eq!(rule, Some("commands are applied in order, once"));
    }

    #[test]
    fn nothing_is_applied_after_the_end() {
        let (machine, state, _) = machine();
        machine.life.end();
        assert!(machine.apply(&mut [batch(6, 1, 1)]).is_err());
        assert_eq!(state.lock().contents(REGION).1, Index::default());
    }
}
