//! Both checkers on long histories: they pass the good ones, and fail those that were made bad.
//!
//! The histories to be spoilt have no unanswered operations and write no value twice, so that what is
//! done to them cannot have an innocent explanation.

use std::collections::BTreeMap;

use super::generate::{history, History, Shape};
use super::{
    by_register, check_log, check_register, Kind, LogEntry, Moment, Operation, OperationId,
    Outcome, Verdict, WitnessError,
};
use crate::Random;

const SPOILT: u64 = 300;

/// An operation that was answered.
#[derive(Clone, Copy)]
struct Done {
    place: usize,
    kind: Kind,
    invoked_at: Moment,
    at: Moment,
    output: Option<u64>,
}

impl Done {
    /// The value that it brought into its register, if any.
    fn wrote(&self) -> Option<u64> {
        let after = self.kind.after(self.output);
        after.filter(|_| after != self.output)
    }
}

impl History {
    /// Where the operation of an entry is.
    fn place(&self, entry: LogEntry) -> usize {
        let found = self.operations.iter().position(|o| o.id == entry.operation);
        found.expect("every entry is of an operation")
    }

    /// The answered operations of the first key in the order of the log.
    fn done(&self) -> Vec<Done> {
        let places = self.log.iter().map(|entry| self.place(*entry));
        let done = places.filter_map(|place| {
            let Operation { kind, invoked_at, outcome, register, .. } = self.operations[place];
            match outcome {
                Outcome::Done { at, output, .. } if register.key == 0 => {
                    Some(Done { place, kind, invoked_at, at, output })
                }
                _ => None,
            }
        });
        done.collect()
    }

    fn output(&mut self, place: usize) -> &mut Option<u64> {
        let Outcome::Done { output, .. } = &mut self.operations[place].outcome else {
            panic!("answered operations only")
        };
        output
    }

    fn entry(&mut self, place: usize) -> &mut LogEntry {
        let id = self.operations[place].id;
        self.log.iter_mut().find(|entry| entry.operation == id).expect("an applied operation")
    }

    /// Tells every client what the log says, as a store would that believed it.
    fn replay(&mut self) {
        let mut holds = BTreeMap::new();
        for entry in self.log.clone() {
            let place = self.place(entry);
            let Operation { register, kind, .. } = self.operations[place];
            let held = holds.get(&register).copied();
            if let Outcome::Done { output, term, index, .. } = &mut self.operations[place].outcome {
                (*output, *term, *index) = (held, entry.term, entry.index);
            }
            if let Some(value) = kind.after(held) {
                holds.insert(register, value);
            }
        }
    }

    fn linear_error(&self) -> Option<String> {
        by_register(&self.operations).values().find_map(|operations| {
            match check_register(operations) {
                Verdict::Linearizable { .. } => None,
                Verdict::NotLinearizable(error) => Some(error.to_string()),
                verdict @ Verdict::TooLong { .. } => panic!("{verdict:?}"),
            }
        })
    }
}

/// Spoils many histories; `spoil` says whether it found a place to do so. Each is good before, for both
/// checkers, and bad afterwards for the first, as `is_expected` says, and for the second too if
/// `clients_see_it`.
fn spoils(
    spoil: fn(&mut History, &mut Random) -> bool,
    is_expected: fn(&WitnessError) -> bool,
    clients_see_it: bool,
) {
    let mut spoilt = 0;
    for seed in 0..SPOILT {
        let mut random = Random::new(seed);
        let (pending_per_mille, unique) = (0, true);
        let shape = Shape { pending_per_mille, unique, ..Shape::any(&mut random) };
        let mut history = history(&mut random, shape);
        assert!(check_log(&history.operations, &history.log).is_ok(), "seed {seed}");
        assert_eq!(history.linear_error(), None, "seed {seed}");
        if !spoil(&mut history, &mut random) {
            continue;
        }
        spoilt += 1;
        let error = check_log(&history.operations, &history.log);
        let error = error.expect_err(&format!("seed {seed}: the witness checker sees nothing"));
        assert!(is_expected(&error), "seed {seed}: {error}");
        let error = history.linear_error();
        assert_eq!(error.is_some(), clients_see_it, "seed {seed}: {error:?} {history:?}");
    }
    assert!(spoilt > SPOILT / 4, "only {spoilt} of {SPOILT} histories could be spoilt");
}

/// One of the pairs of answered operations of the first key, in the order of the log, for which
/// `suits` holds.
fn pair(
    history: &History,
    random: &mut Random,
    suits: fn(&Done, &Done) -> bool,
) -> Option<(Done, Done)> {
    let done = history.done();
    let mut pairs = Vec::new();
    for (position, first) in done.iter().enumerate() {
        let later = done[position + 1..].iter().filter(|second| suits(first, second));
        pairs.extend(later.map(|second| (*first, *second)));
    }
    (!pairs.is_empty()).then(|| *random.pick(&pairs))
}

fn swap_indexes(history: &mut History, random: &mut Random) -> bool {
    let Some((first, second)) = pair(history, random, |_, _| true) else { return false };
    let outcomes = [first.place, second.place].map(|place| history.operations[place].outcome);
    for (place, other) in [(first.place, outcomes[1]), (second.place, outcomes[0])] {
        let Outcome::Done { term: other_term, index: other_index, .. } = other else {
            return false;
        };
        if let Outcome::Done { term, index, .. } = &mut history.operations[place].outcome {
            (*term, *index) = (other_term, other_index);
        }
    }
    true
}

#[test]
fn swapped_index_is_seen_by_the_log_alone() {
    spoils(swap_indexes, |error| matches!(error, WitnessError::Elsewhere { .. }), false);
}

/// Tells a read what another had seen overwritten before the read was invoked.
fn read_stale(history: &mut History, random: &mut Random) -> bool {
    let found = pair(history, random, |first, second| {
        first.wrote().is_some() && second.kind == Kind::Read && first.at < second.invoked_at
    });
    let Some((overwritten, read)) = found else { return false };
    *history.output(read.place) = overwritten.output;
    true
}

#[test]
fn stale_read_is_seen_by_both() {
    spoils(read_stale, |error| matches!(error, WitnessError::WrongOutput { .. }), true);
}

/// Takes an answered write out of the log, and out of what later clients are told.
fn lose_write(history: &mut History, random: &mut Random) -> bool {
    let found = pair(history, random, |first, second| {
        first.wrote().is_some() && first.at < second.invoked_at
    });
    let Some((write, _)) = found else { return false };
    let id = history.operations[write.place].id;
    history.log.retain(|entry| entry.operation != id);
    history.replay();
    true
}

#[test]
fn lost_write_is_seen_by_both() {
    spoils(lose_write, |error| matches!(error, WitnessError::Lost { .. }), true);
}

/// Applies a write again, ahead of an operation that was invoked when it had been overwritten for good.
fn double_write(history: &mut History, random: &mut Random) -> bool {
    let done = history.done();
    let found = pair(history, random, |first, second| {
        first.wrote().is_some() && first.at < second.invoked_at
    });
    let Some((overwriting, victim)) = found else { return false };
    let Some(write) = done
        .iter()
        .find(|done| done.wrote() == overwriting.output && matches!(done.kind, Kind::Write(_)))
    else {
        return false;
    };
    let before = *history.entry(victim.place);
    let position = history.log.iter().position(|entry| *entry == before).expect("applied");
    let again = LogEntry { operation: history.operations[write.place].id, ..before };
    history.log[position..].iter_mut().for_each(|entry| entry.index += 1);
    history.log.insert(position, again);
    let outcome = history.operations[write.place].outcome;
    history.replay();
    history.operations[write.place].outcome = outcome;
    true
}

#[test]
fn doubled_write_is_seen_by_both() {
    spoils(double_write, |error| matches!(error, WitnessError::Doubled { .. }), true);
}

/// Refuses what another operation has seen the value of.
fn refuse_what_was_applied(history: &mut History, random: &mut Random) -> bool {
    let found = pair(history, random, |first, second| {
        first.wrote().is_some() && second.output == first.wrote()
    });
    let Some((write, _)) = found else { return false };
    history.operations[write.place].outcome = Outcome::Refused;
    true
}

#[test]
fn refused_but_present_is_seen_by_both() {
    let expected = |error: &_| matches!(error, WitnessError::RefusedButApplied { .. });
    spoils(refuse_what_was_applied, expected, true);
}

/// Tells a client a value that nobody wrote.
fn answer_wrong(history: &mut History, random: &mut Random) -> bool {
    let done = history.done();
    if done.is_empty() {
        return false;
    }
    *history.output(random.pick(&done).place) = Some(1_000_000);
    true
}

#[test]
fn wrong_answer_is_seen_by_both() {
    spoils(answer_wrong, |error| matches!(error, WitnessError::WrongOutput { .. }), true);
}

/// Exchanges two operations that followed each other in time, and answers as that order wants.
fn invert_real_time(history: &mut History, random: &mut Random) -> bool {
    let found = pair(history, random, |first, second| {
        let blind = |done: &Done| matches!(done.kind, Kind::Write(_));
        blind(first)
            && first.at < second.invoked_at
            && second.output == first.wrote()
            && (blind(second) || second.kind == Kind::Read)
    });
    let Some((first, second)) = found else { return false };
    let ids: [OperationId; 2] = [first, second].map(|done| history.operations[done.place].id);
    history.entry(first.place).operation = OperationId(u64::MAX);
    history.entry(second.place).operation = ids[0];
    let freed = history.log.iter_mut().find(|entry| entry.operation == OperationId(u64::MAX));
    freed.expect("just named").operation = ids[1];
    history.replay();
    true
}

#[test]
fn real_time_inversion_is_seen_by_both() {
    spoils(invert_real_time, |error| matches!(error, WitnessError::RealTime { .. }), true);
}

#[test]
fn good_histories_pass_both() {
    let (mut answered, mut silent) = (0, 0);
    for seed in 0..3000 {
        let mut random = Random::new(seed);
        let shape = Shape::any(&mut random);
        let history = history(&mut random, shape);
        match check_log(&history.operations, &history.log) {
            Ok(witnessed) => {
                answered += witnessed.answered;
                silent += witnessed.silent;
            }
            Err(error) => panic!("seed {seed}: {error}; {history:?}"),
        }
        assert_eq!(history.linear_error(), None, "seed {seed}: {history:?}");
    }
    assert!(answered > 50_000 && silent > 5_000, "{answered} and {silent} are few");
}

#[test]
fn thousand_operations_take_few_configurations() {
    let mut most = [0, 0];
    for seed in 0..40 {
        let unique = seed % 2 == 0;
        let shape = Shape {
            clients: 5,
            keys: 1,
            operations: 1000,
            pending_per_mille: 100,
            refused_per_mille: 20,
            unique,
        };
        let history = history(&mut Random::new(seed), shape);
        match check_register(&history.operations) {
            Verdict::Linearizable { configurations } => {
                let most = &mut most[usize::from(unique)];
                *most = configurations.max(*most);
            }
            verdict => panic!("seed {seed}: {verdict:?}"),
        }
    }
    assert!(most.iter().all(|most| *most < 1200), "{most:?} configurations");
}
