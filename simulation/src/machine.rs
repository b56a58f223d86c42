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
    AppliedState, Bytes, Command, Index, InstallError, PeerRole, Pieces, RegionCommands,
    RegionDescription, RegionId, RegionSplit, SnapshotSource, StateMachine, StateMachineError,
};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What was there before a step.
#[derive(Debug, Default)]
struct Undo {
    applied: Option<AppliedState>,
    /// In the order of the changes.
    registers: Vec<(u64, Option<u64>)>,
    /// Regions that came from this one in this step.
    children: Vec<RegionId>,
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
    /// What was split off regions that are destroyed, since the last flush.
    orphans: Vec<RegionId>,
}

impl MachineState {
    /// Makes everything durable. Returns how many regions had something to flush.
    pub(crate) fn flush(&mut self) -> usize {
        self.orphans.clear();
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
        for orphan in std::mem::take(&mut self.orphans) {
            if random.chance(500) {
                self.forget(orphan);
            }
        }
        // Parents come before what is split off them.
        let ids: Vec<RegionId> = self.regions.keys().copied().collect();
        for id in ids {
            let Some(region) = self.regions.get_mut(&id) else { continue };
            let kept = random.index(region.undo.len() + 1);
            if kept < region.undo.len() {
                fired.note(FaultKind::UnflushedLost);
            }
            let mut unborn = Vec::new();
            for undo in region.undo.drain(kept..).rev() {
                for (key, register) in undo.registers.into_iter().rev() {
                    set(&mut region.registers, key, register);
                }
                region.applied = undo.applied;
                unborn.extend(undo.children);
            }
            // What has survived the crash is on disk.
            region.undo.clear();
            region.flushed = applied_index(region);
            unborn.into_iter().for_each(|child| self.forget(child));
        }
    }

    /// A region, and all that was split off it since the last flush, has never been.
    fn forget(&mut self, id: RegionId) {
        let Some(region) = self.regions.remove(&id) else { return };
        let children = region.undo.into_iter().flat_map(|undo| undo.children);
        children.for_each(|child| self.forget(child));
    }

    /// Another region that has a part of a range.
    fn overlapping(&self, range: &RegionDescription) -> Option<RegionId> {
        let begins_before = |start: &Bytes, end: &Bytes| end.is_empty() || start < end;
        let overlaps = |other: &RegionDescription| {
            other.id != range.id
                && begins_before(&other.start_key, &range.end_key)
                && begins_before(&range.start_key, &other.end_key)
        };
        let all = self.regions.values().filter_map(|region| region.applied.as_ref());
        let mut others = all.filter(|applied| overlaps(&applied.description));
        others.next().map(|applied| applied.description.id)
    }

    /// What a register of a region holds, and up to where that is applied.
    pub(crate) fn look(&self, region: RegionId, key: u64) -> (Option<u64>, Index) {
        let region = self.regions.get(&region);
        let applied = region.map_or_else(Index::default, applied_index);
        let value = region.and_then(|region| region.registers.get(&key).copied());
        // A region that was created begins there, with nothing.
        (value, applied.max(BEGINNING))
    }

    /// What a region's registers hold, and up to where that is applied.
    pub(crate) fn contents(&self, region: RegionId) -> (BTreeMap<u64, u64>, Index) {
        let region = self.regions.get(&region);
        region.map_or_else(Default::default, |region| {
            (region.registers.clone(), applied_index(region))
        })
    }
}

/// The index at which every region begins.
const BEGINNING: Index = Index::new(5);

fn applied_index(region: &RegionState) -> Index {
    region.applied.as_ref().map_or_else(Index::default, |applied| applied.index)
}

/// The key of a register, as ranges of regions know it: the number of the table that all registers of a
/// region belong to, and the register's own.
pub(crate) fn table_key(table: u64, key: u64) -> Vec<u8> {
    [table.to_be_bytes(), key.to_be_bytes()].concat()
}

/// The same for a register that belongs to a region.
pub(crate) fn register_key(range: &RegionDescription, key: u64) -> Vec<u8> {
    let table = range.start_key.get(..8).unwrap_or_default();
    [table, &key.to_be_bytes()].concat()
}

/// Whether a region's range holds a register of its table.
pub(crate) fn holds(range: &RegionDescription, key: u64) -> bool {
    range.contains(&register_key(range, key))
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
        let mut undo = Undo { applied: state.applied.clone(), ..Undo::default() };
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
            // A batch may hold a change of peers; what was before it was decided by those before.
            let before = state.applied.iter().map(|applied| &applied.description);
            let mut deciders = before.chain(std::iter::once(&applied.description));
            if !deciders.any(|peers| self.is_decided(peers, region, index, term)) {
                let text = format!(
                    "region {region}: store {} applies index {index} of term {term}, which is \
                     durable on no majority of {:?}",
                    self.store, applied.description.peers
                );
                self.ledger.lock().violate("applied is durable on a quorum", text);
            }
        }
    }

    /// Whether an entry is durable on a majority of the voters; of both kinds while they change.
    fn is_decided(
        &self,
        peers: &RegionDescription,
        region: RegionId,
        index: u64,
        term: u64,
    ) -> bool {
        let majority = |counts: fn(PeerRole) -> bool| {
            let voters = peers.peers.iter().filter(|peer| counts(peer.role));
            let voters: Vec<u64> = voters.map(|peer| peer.store.get()).collect();
            self.durable_on(&voters, region, index, term) * 2 > voters.len()
        };
        let was = |role: PeerRole| role.is_voter() && role != PeerRole::IncomingVoter;
        majority(PeerRole::stays_voter) && (!peers.joint || majority(was))
    }

    fn note(&self, kind: FaultKind) {
        self.devices[self.store as usize - 1].troubles.lock().fired.note(kind);
    }

    /// The process calls its state machine, and may die of it.
    fn call(&self) -> Result<(), StateMachineError> {
        match self.life.call() {
            true => Ok(()),
            false => Err(StateMachineError("the process is gone".to_owned())),
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
            self.call()?;
            self.apply_region(state.regions.entry(region.region_id).or_default(), region);
        }
        Ok(())
    }

    /// Both ways are seen in each run.
    fn gains_from_batches(&self) -> bool {
        !self.store.is_multiple_of(2)
    }

    fn applied_state(&self, region: RegionId) -> Result<Option<AppliedState>, StateMachineError> {
        Ok(self.state.lock().regions.get(&region).and_then(|region| region.applied.clone()))
    }

    fn durable_index(&self, region: RegionId) -> Index {
        self.state.lock().regions.get(&region).map_or_else(Index::default, |region| region.flushed)
    }

    fn split(&self, split: &RegionSplit) -> Result<(), StateMachineError> {
        self.call()?;
        let mut state = self.state.lock();
        let parent = state.regions.entry(split.parent.description.id).or_default();
        let mut undo = Undo { applied: parent.applied.clone(), ..Undo::default() };
        let mut children = Vec::new();
        for applied in &split.children {
            let range = &applied.description;
            let is_childs = |key: &u64| holds(range, *key);
            let moved: Vec<u64> = parent.registers.keys().copied().filter(is_childs).collect();
            let mut child = RegionState { applied: Some(applied.clone()), ..Default::default() };
            for key in moved {
                let value = parent.registers.remove(&key);
                undo.registers.push((key, value));
                set(&mut child.registers, key, value);
            }
            undo.children.push(range.id);
            children.push((range.id, child));
        }
        parent.applied = Some(split.parent.clone());
        parent.undo.push(undo);
        let (parent, index) = (split.parent.description.id.get(), split.parent.index.get());
        for applied in &split.children {
            self.ledger.lock().begins(parent, index, &applied.description);
        }
        for (id, child) in children {
            if state.regions.insert(id, child).is_some_and(|child| child.applied.is_some()) {
                let text = format!("region {id}: store {} has it when it is split off", self.store);
                self.ledger.lock().violate("a region begins once", text);
            }
        }
        Ok(())
    }

    fn snapshot(&self, region: RegionId) -> Result<Box<dyn SnapshotSource>, StateMachineError> {
        let state = self.state.lock();
        let nothing = || StateMachineError(format!("region {region} is not here"));
        let region = state.regions.get(&region).ok_or_else(nothing)?;
        let applied = region.applied.clone().ok_or_else(nothing)?;
        let pieces = region
            .registers
            .clone()
            .into_iter()
            .map(|(key, value)| Bytes::from([key.to_le_bytes(), value.to_le_bytes()].concat()));
        Ok(Box::new(Pieces::new(applied, pieces)))
    }

    fn install(&self, snapshot: &mut dyn SnapshotSource) -> Result<(), InstallError> {
        let id = snapshot.applied().description.id;
        // Not atomic: a crash may fall between any two pieces.
        self.call()?;
        let overlapping = self.state.lock().overlapping(&snapshot.applied().description);
        if let Some(other) = overlapping {
            // Where all regions share one ordered space, it would clear what the other one has.
            let text = format!("store {}: region {id} comes where {other} is", self.store);
            self.ledger.lock().violate("regions of a store do not overlap", text);
        }
        self.state.lock().regions.insert(id, RegionState::default());
        while let Some(piece) = snapshot.next_piece()? {
            self.call()?;
            let word = |at: usize| piece.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
            let (Some(key), Some(value)) = (word(0), word(8)) else {
                return Err(InstallError::Unsound("a piece of a snapshot is cut".to_owned()));
            };
            let mut state = self.state.lock();
            let registers = &mut state.regions.entry(id).or_default().registers;
            registers.insert(u64::from_le_bytes(key), u64::from_le_bytes(value));
        }
        self.call()?;
        let mut state = self.state.lock();
        let region = state.regions.entry(id).or_default();
        region.applied = Some(snapshot.applied().clone());
        // What is durable is so in order: a split that this region began with is durable, too.
        region.undo.push(Undo::default());
        state.flush();
        self.note(FaultKind::SnapshotInstalled);
        Ok(())
    }

    fn destroy(&self, region: RegionId) -> Result<(), StateMachineError> {
        self.call()?;
        let mut state = self.state.lock();
        if let Some(gone) = state.regions.remove(&region) {
            state.orphans.extend(gone.undo.into_iter().flat_map(|undo| undo.children));
            self.note(FaultKind::PeerDestroyed);
        }
        Ok(())
    }

    fn flush(&self) -> Result<(), StateMachineError> {
        self.call()?;
        self.state.lock().flush();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Kind;
    use raftstore::{Peer, PeerId, RegionDescription, StoreId, Term};

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
        let description = RegionDescription::new(REGION, Bytes::new(), Bytes::new(), [peer]);
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
    fn a_snapshot_that_comes_over_another_region_is_seen() {
        let applied = |id: u64, start: &'static [u8], end: &'static [u8]| {
            let mut applied = batch(9, 1, 1).applied;
            let description = Arc::make_mut(&mut applied.description);
            description.id = RegionId::new(id);
            (description.start_key, description.end_key) = (start.into(), end.into());
            applied
        };
        let cases: [(&'static [u8], &'static [u8], bool); 5] = [
            (b"b", b"c", false),
            (b"", b"a", false),
            (b"a", b"b", true),
            (b"", b"", true),
            (b"aa", b"", true),
        ];
        for (start, end, seen) in cases {
            let (machine, _, ledger) = machine();
            let nothing = || std::iter::empty();
            for applied in [applied(1, b"a", b"b"), applied(1, b"a", b"b"), applied(2, start, end)]
            {
                machine.install(&mut Pieces::new(applied, nothing())).expect("alive");
            }
            let rule = ledger.lock().violation().map(|violation| violation.rule);
            let expected = seen.then_some("regions of a store do not overlap");
            assert_eq!(rule, expected, "{start:?} to {end:?}");
        }
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
