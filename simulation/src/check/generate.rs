//! Histories that are linearizable, for the tests: clients, registers that hold one value at a time,
//! and messages that take a while or get lost.

use std::collections::BTreeMap;

use super::{ClientId, Kind, LogEntry, Moment, Operation, OperationId, Outcome, Register, Through};
use crate::Random;

pub(super) const REGION: u64 = 7;

/// What kind of history.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) clients: usize,
    pub(super) keys: u64,
    pub(super) operations: usize,
    /// How many of 1,000 operations are given up by their client.
    pub(super) pending_per_mille: u64,
    pub(super) refused_per_mille: u64,
    /// All values differ; otherwise there are three of them.
    pub(super) unique: bool,
}

impl Shape {
    pub(super) fn any(random: &mut Random) -> Self {
        Self {
            clients: 1 + random.index(5),
            keys: 1 + random.below(3),
            operations: 1 + random.index(60),
            pending_per_mille: *random.pick(&[0, 50, 300]),
            refused_per_mille: *random.pick(&[0, 50, 300]),
            unique: random.chance(500),
        }
    }
}

/// A history and the log that is its witness.
#[derive(Clone, Debug)]
pub(super) struct History {
    pub(super) operations: Vec<Operation>,
    pub(super) log: Vec<LogEntry>,
}

/// A client's own view of what it has asked for.
#[derive(Clone, Copy)]
struct Open {
    place: usize,
    /// How it will end, where that is not with an answer.
    fate: Option<Outcome>,
}

struct Generator<'a> {
    random: &'a mut Random,
    shape: Shape,
    now: Moment,
    index: u64,
    term: u64,
    values: u64,
    holds: BTreeMap<u64, u64>,
    history: History,
    /// By place: what the register held, and where the operation is in the log.
    applied: Vec<Option<(LogEntry, Option<u64>)>>,
}

/// A linearizable history.
pub(super) fn history(random: &mut Random, shape: Shape) -> History {
    let history = History { operations: Vec::new(), log: Vec::new() };
    let mut generator = Generator {
        random,
        shape,
        now: Moment { sequence: 0, time_us: 0 },
        index: 0,
        term: 1,
        values: 0,
        holds: BTreeMap::new(),
        history,
        applied: Vec::new(),
    };
    generator.run();
    generator.history
}

impl Generator<'_> {
    fn run(&mut self) {
        let mut clients: Vec<Option<Open>> = vec![None; self.shape.clients];
        // On their way, though their clients have given them up.
        let mut adrift: Vec<usize> = Vec::new();
        while self.history.operations.len() < self.shape.operations
            || clients.iter().any(Option::is_some)
        {
            if !adrift.is_empty() && self.random.chance(50) {
                let place = adrift.swap_remove(self.random.index(adrift.len()));
                if self.random.chance(700) {
                    self.apply(place);
                }
                continue;
            }
            let client = self.random.index(clients.len());
            clients[client] = match clients[client] {
                None if self.history.operations.len() == self.shape.operations => None,
                None => Some(self.invoke(client)),
                Some(Open { place, fate: Some(outcome) }) => {
                    if outcome == Outcome::Pending && self.applied[place].is_none() {
                        adrift.push(place);
                    }
                    self.history.operations[place].outcome = outcome;
                    None
                }
                Some(Open { place, .. }) if self.applied[place].is_some() => {
                    self.answer(place);
                    None
                }
                Some(open) => {
                    self.apply(open.place);
                    Some(open)
                }
            };
        }
    }

    fn moment(&mut self) -> Moment {
        self.now.sequence += 1;
        self.now.time_us += self.random.below(3);
        self.now
    }

    fn invoke(&mut self, client: usize) -> Open {
        let place = self.history.operations.len();
        let key = self.random.below(self.shape.keys);
        let kind = match self.random.below(5) {
            0 | 1 => Kind::Read,
            2 | 3 => Kind::Write(self.value()),
            _ => {
                let guess = self.random.below(self.values.max(3));
                let holds = self.holds.get(&key).copied();
                let expected = if self.random.chance(700) { holds } else { Some(guess) };
                Kind::CompareAndSet { expected, new: self.value() }
            }
        };
        let operation = Operation {
            // Not its place, so that nobody takes the one for the other.
            id: OperationId(1000 + 3 * place as u64),
            client: ClientId(client as u64),
            register: Register { region: REGION, key },
            kind,
            through: Through::Log,
            invoked_at: self.moment(),
            outcome: Outcome::Pending,
        };
        self.history.operations.push(operation);
        self.applied.push(None);
        let refused = self.random.chance(self.shape.refused_per_mille);
        let pending = self.random.chance(self.shape.pending_per_mille);
        if pending && self.random.chance(500) {
            self.apply(place); // And the answer gets lost.
        }
        let fate = pending.then_some(Outcome::Pending);
        Open { place, fate: fate.or(refused.then_some(Outcome::Refused)) }
    }

    fn value(&mut self) -> u64 {
        self.values += 1;
        if self.shape.unique {
            self.values
        } else {
            self.random.below(3)
        }
    }

    fn apply(&mut self, place: usize) {
        if self.random.chance(50) {
            self.term += 1;
            self.index += 1; // The entry by which the new leader begins.
        }
        self.index += 1;
        let Operation { id, register, kind, .. } = self.history.operations[place];
        let entry = LogEntry { index: self.index, term: self.term, operation: id };
        let held = self.holds.get(&register.key).copied();
        if let Some(value) = kind.after(held) {
            self.holds.insert(register.key, value);
        }
        self.history.log.push(entry);
        self.applied[place] = Some((entry, held));
    }

    fn answer(&mut self, place: usize) {
        let (LogEntry { index, term, .. }, output) = self.applied[place].expect("applied");
        let at = self.moment();
        self.history.operations[place].outcome = Outcome::Done { at, term, index, output };
    }
}
