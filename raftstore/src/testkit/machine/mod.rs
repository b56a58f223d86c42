//! Checks for state machines.

mod applying;
mod moving;
mod restarting;
mod splitting;

use super::{broken, Rule};
use crate::{
    AppliedState, Command, Index, RegionCommands, RegionDescription, RegionEpoch, RegionId,
    SnapshotSource, StateMachine, StateMachineError, Term, INITIAL_INDEX, MAX_PIECE_BYTES,
};
use bytes::Bytes;
use std::collections::VecDeque;
use std::sync::Arc;

/// The rules that [`state_machine`] checks: name, and what it demands.
pub const STATE_MACHINE_RULES: &[(&str, &str)] = &[
    ("calls-succeed", "what the contract allows to be asked is done"),
    ("unknown-region", "a region never heard of has no applied state, contents or durable index"),
    ("applied-with-effects", "effects and applied state are stored in one atomic step"),
    (
        "parts-in-order",
        "parts of a batch for one region are carried out in order, the last state counts",
    ),
    ("commands-in-place", "apply fills in outputs and touches nothing else of a command"),
    ("same-on-every-store", "the same commands have the same outputs and effects, however batched"),
    ("only-its-own", "what is done to a region does not show in another"),
    ("durable-not-ahead", "durable_index says no more than what is applied, and a restart finds"),
    ("durable-grows", "durable_index does not go back while the state machine runs"),
    ("flush-makes-durable", "after flush all that was applied is durable, and a restart finds it"),
    ("split-loses-nothing", "children and parent have together what the parent had"),
    ("split-is-one-step", "a split stores the applied states of all, or of none"),
    (
        "snapshot-is-one-moment",
        "a snapshot is the contents as of its applied state, later steps do not show",
    ),
    ("snapshot-in-pieces", "no piece is empty or larger than MAX_PIECE_BYTES"),
    ("snapshot-of-unknown", "there is no snapshot of a region never heard of"),
    ("install-replaces", "after install there is what the snapshot has and nothing else"),
    ("install-is-durable", "an installed snapshot is durable on return"),
    ("install-again", "a snapshot can be installed over itself"),
    ("install-cut-short", "half an installation does not count as applied, and can be done again"),
    ("destroy-removes-all", "after destroy there is nothing of the region, also after a restart"),
];

/// A kind of state machine, to be checked by [`state_machine`].
///
/// The kit sees contents as pairs of key and value. One that is no map may present itself so: what matters
/// is that contents differ once something else was put, and that a key's part of them goes where the key
/// goes when the region splits.
pub trait StateMachineSubject {
    /// Where one lives: a directory, say; `()` if it lives in memory only.
    type Home;
    /// The state machine.
    type Machine: StateMachine;

    /// A place for a new one, empty.
    fn home(&self) -> Self::Home;

    /// Opens the one that lives there.
    fn open(&self, home: &mut Self::Home) -> Self::Machine;

    /// Ends it, before it is opened again. Override it to leave only what a killed process would.
    fn end(&self, home: &mut Self::Home, machine: Self::Machine) {
        let _ = home;
        drop(machine);
    }

    /// Whether it is empty when it is opened again.
    fn is_volatile(&self) -> bool {
        false
    }

    /// A command that puts `value` at `key`.
    fn put(&self, key: &[u8], value: &[u8]) -> Bytes;

    /// A command that removes what is at `key`; `None` if there is no such command.
    fn delete(&self, key: &[u8]) -> Option<Bytes> {
        let _ = key;
        None
    }

    /// What the state machine has in the range of `region`, in order. It is asked with ranges that are not
    /// the region's too, and for regions that it does not know: then there is nothing.
    fn contents(&self, machine: &Self::Machine, region: &RegionDescription) -> Vec<(Bytes, Bytes)>;
}

/// Checks a kind of state machine against the contract of [`StateMachine`].
///
/// # Panics
/// When a rule is broken; the text names it, one of [`STATE_MACHINE_RULES`].
pub fn state_machine<S: StateMachineSubject>(subject: &S) {
    applying::all(subject);
    restarting::all(subject);
    splitting::all(subject);
    moving::all(subject);
}

type Contents = Vec<(Bytes, Bytes)>;

fn fail(rule: &str, details: &str) -> ! {
    broken(rule, STATE_MACHINE_RULES as &[Rule], details)
}

/// `expected` and `found`, where they are not the same.
fn difference(expected: &Contents, found: &Contents) -> String {
    let at = expected.iter().zip(found).take_while(|(one, other)| one == other).count();
    let pair = |pairs: &Contents| match pairs.get(at) {
        Some((key, value)) => format!("{key:?} with {} bytes", value.len()),
        None => "the end".to_owned(),
    };
    let (there, here) = (expected.len(), found.len());
    let (wanted, got) = (pair(expected), pair(found));
    format!("expected {there} pairs and found {here}; at pair {at} expected {wanted}, found {got}")
}

/// An applied state in few words.
fn place(applied: Option<&AppliedState>) -> String {
    let Some(applied) = applied else { return "nothing".to_owned() };
    let RegionDescription { id, start_key, end_key, epoch, peers, .. } = &*applied.description;
    let (index, term, peers) = (applied.index, applied.term, peers.len());
    let RegionEpoch { conf_ver, version } = epoch;
    format!(
        "region {id} [{start_key:?}, {end_key:?}) of epoch {conf_ver}/{version} with {peers} peers, \
         applied up to {index} of term {term}"
    )
}

fn expect_contents(rule: &str, what: &str, expected: &Contents, found: &Contents) {
    if expected != found {
        fail(rule, &format!("{what}: {}", difference(expected, found)));
    }
}

/// A region as the kit drives it.
#[derive(Clone)]
struct Driven {
    description: Arc<RegionDescription>,
    index: u64,
    term: u64,
}

impl Driven {
    fn new(id: u64, start: &str, end: &str) -> Self {
        let description = Arc::new(super::description(id, start, end));
        Self { description, index: INITIAL_INDEX.get(), term: 6 }
    }

    fn id(&self) -> RegionId {
        self.description.id
    }

    fn applied(&self) -> AppliedState {
        AppliedState {
            index: Index::new(self.index),
            term: Term::new(self.term),
            description: self.description.clone(),
        }
    }

    /// Its next commands.
    fn next(&mut self, payloads: Vec<Bytes>) -> RegionCommands {
        let mut commands = Vec::new();
        for payload in payloads {
            self.index += 1;
            let (index, term) = (Index::new(self.index), Term::new(self.term));
            commands.push(Command { index, term, payload, output: Bytes::new() });
        }
        if commands.is_empty() {
            self.index += 1;
        }
        RegionCommands { region_id: self.id(), commands, applied: self.applied() }
    }

    /// Its range and epoch from now on.
    fn reshape(&mut self, start: &str, end: &str) {
        let mut description = (*self.description).clone();
        description.start_key = Bytes::copy_from_slice(start.as_bytes());
        description.end_key = Bytes::copy_from_slice(end.as_bytes());
        description.epoch.version += 1;
        self.description = Arc::new(description);
    }
}

/// One state machine, and where it lives.
struct Run<'a, S: StateMachineSubject> {
    subject: &'a S,
    home: S::Home,
    machine: Option<S::Machine>,
}

impl<'a, S: StateMachineSubject> Run<'a, S> {
    fn new(subject: &'a S) -> Self {
        let mut home = subject.home();
        let machine = Some(subject.open(&mut home));
        Self { subject, home, machine }
    }

    fn machine(&self) -> &S::Machine {
        self.machine.as_ref().expect("it is open")
    }

    fn restart(&mut self) {
        let machine = self.machine.take().expect("it is open");
        self.subject.end(&mut self.home, machine);
        self.machine = Some(self.subject.open(&mut self.home));
    }

    /// Applies one batch. Checks what must hold after each.
    fn apply(&self, batch: Vec<RegionCommands>) -> Vec<RegionCommands> {
        let mut carried_out = batch.clone();
        ok("apply", self.machine().apply(&mut carried_out));
        for (given, done) in batch.iter().zip(&carried_out) {
            let plain = |commands: &[Command]| -> Vec<(Index, Term, Bytes)> {
                commands.iter().map(|one| (one.index, one.term, one.payload.clone())).collect()
            };
            let (given_commands, done_commands) = (plain(&given.commands), plain(&done.commands));
            if given_commands != done_commands || given.region_id != done.region_id {
                let region = given.region_id;
                let (count, now) = (given_commands.len(), done_commands.len());
                let what = format!("region {region}: gave {count} commands, {now} came back");
                fail("commands-in-place", &format!("{what}, or others"));
            }
        }
        carried_out
    }

    fn put(&self, region: &mut Driven, key: &str, value: &str) {
        self.apply(vec![region.next(vec![self.subject.put(key.as_bytes(), value.as_bytes())])]);
    }

    fn contents(&self, region: &Driven) -> Contents {
        self.subject.contents(self.machine(), &region.description)
    }

    fn applied_state(&self, region: RegionId) -> Option<AppliedState> {
        ok("applied_state", self.machine().applied_state(region))
    }

    fn expect_applied(&self, rule: &str, what: &str, region: &Driven) {
        let found = self.applied_state(region.id());
        if found.as_ref() != Some(&region.applied()) {
            let (expected, found) = (place(Some(&region.applied())), place(found.as_ref()));
            fail(rule, &format!("{what}: expected {expected}, found {found}"));
        }
    }

    fn flush(&self) {
        ok("flush", self.machine().flush());
    }

    /// A snapshot, read to its end.
    fn read(&self, region: RegionId) -> Image {
        let mut source = ok("snapshot", self.machine().snapshot(region));
        Image::read(&mut *source)
    }

    fn install(&self, image: &Image) {
        ok("install", self.machine().install(&mut image.source(None)));
    }
}

fn ok<T, E: std::fmt::Display>(what: &str, result: Result<T, E>) -> T {
    result.unwrap_or_else(|error| fail("calls-succeed", &format!("{what} failed: {error}")))
}

/// A snapshot in memory.
struct Image {
    applied: AppliedState,
    pieces: Vec<Bytes>,
}

impl Image {
    fn read(source: &mut dyn SnapshotSource) -> Self {
        let applied = source.applied().clone();
        let mut pieces = Vec::new();
        while let Some(piece) = ok("next_piece", source.next_piece()) {
            if piece.is_empty() || piece.len() > MAX_PIECE_BYTES {
                let (number, bytes) = (pieces.len(), piece.len());
                fail("snapshot-in-pieces", &format!("piece {number} has {bytes} bytes"));
            }
            pieces.push(piece);
        }
        Self { applied, pieces }
    }

    /// Comes to its end, or fails after so many pieces.
    fn source(&self, fails_after: Option<usize>) -> Replay {
        let pieces = self.pieces.iter().take(fails_after.unwrap_or(usize::MAX)).cloned().collect();
        Replay { applied: self.applied.clone(), pieces, fails: fails_after.is_some() }
    }
}

struct Replay {
    applied: AppliedState,
    pieces: VecDeque<Bytes>,
    fails: bool,
}

impl SnapshotSource for Replay {
    fn applied(&self) -> &AppliedState {
        &self.applied
    }

    fn next_piece(&mut self) -> Result<Option<Bytes>, StateMachineError> {
        match self.pieces.pop_front() {
            None if self.fails => Err(StateMachineError("the snapshot is cut short".to_owned())),
            piece => Ok(piece),
        }
    }
}
