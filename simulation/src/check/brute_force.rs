//! Both checkers against the definition, on histories so short that all orders can be tried.

use super::{
    check_log, check_register, ClientId, Kind, LogEntry, Moment, Operation, OperationId, Outcome,
    Register, Through, Verdict,
};
use crate::Random;

const MOST: u64 = 6;

/// Whether this order of some of the operations explains all answers. From the definition, and all
/// pairs: nothing is shared with the checkers.
fn explains(operations: &[Operation], order: &[usize]) -> bool {
    let mut value = None;
    for (position, place) in order.iter().enumerate() {
        let operation = operations[*place];
        let told = match operation.outcome {
            Outcome::Refused => return false,
            Outcome::Pending => value,
            Outcome::Done { at, output, .. } => {
                let ahead = order[..position].iter().map(|other| operations[*other].invoked_at);
                if ahead.into_iter().any(|invoked_at| at.sequence < invoked_at.sequence) {
                    return false;
                }
                output
            }
        };
        if told != value {
            return false;
        }
        match operation.kind {
            Kind::Write(new) => value = Some(new),
            Kind::CompareAndSet { expected, new } if value == expected => value = Some(new),
            _ => {}
        }
    }
    let done = |place: usize| matches!(operations[place].outcome, Outcome::Done { .. });
    (0..operations.len()).all(|place| !done(place) || order.contains(&place))
}

/// Whether any order of any of the operations explains all answers.
fn any_explains(operations: &[Operation], order: &mut Vec<usize>) -> bool {
    if explains(operations, order) {
        return true;
    }
    for place in 0..operations.len() {
        if !order.contains(&place) {
            order.push(place);
            if any_explains(operations, order) {
                return true;
            }
            order.pop();
        }
    }
    false
}

fn kind(random: &mut Random) -> Kind {
    match random.below(5) {
        0 | 1 => Kind::Read,
        2 => Kind::Write(random.below(3)),
        _ => {
            let expected = random.chance(700).then(|| random.below(3));
            Kind::CompareAndSet { expected, new: random.below(3) }
        }
    }
}

/// Operations at random times with answers that come from some order, most of them, and that order.
fn guess(random: &mut Random) -> (Vec<Operation>, Vec<usize>) {
    let count = 1 + random.below(MOST);
    let span = *random.pick(&[4, 12, 40]);
    let mut operations: Vec<Operation> = (0..count)
        .map(|n| {
            let invoked_at = Moment { sequence: random.below(span), time_us: 0 };
            let outcome = *random.pick(&[Outcome::Pending, Outcome::Pending, Outcome::Refused]);
            let (id, client) = (OperationId(10 + n), ClientId(n));
            let register = Register { region: 1, key: 1 };
            let (kind, through) = (kind(random), Through::Log);
            Operation { id, client, register, kind, through, invoked_at, outcome }
        })
        .collect();
    let mut order: Vec<usize> = (0..operations.len()).collect();
    let near_time = random.chance(700);
    for place in (1..order.len()).rev() {
        order.swap(place, random.index(place + 1));
    }
    if near_time {
        order.sort_by_key(|place| operations[*place].invoked_at);
    }
    order.retain(|_| random.chance(900));
    let mut value = None;
    let noise = *random.pick(&[0, 0, 300]);
    for (position, place) in order.iter().enumerate() {
        let operation = &mut operations[*place];
        if random.chance(650) {
            let told = if random.chance(noise) { Some(random.below(3)) } else { value };
            let sequence = operation.invoked_at.sequence + random.below(6);
            let at = Moment { sequence, time_us: 0 };
            let index = position as u64 + 1;
            operation.outcome = Outcome::Done { at, term: 1, index, output: told };
        } else if random.chance(900) {
            operation.outcome = Outcome::Pending;
        }
        value = operation.kind.after(value);
    }
    (operations, order)
}

#[test]
fn checkers_agree_with_the_definition() {
    let (mut linearizable, mut witnessed, cases) = (0, 0, 20_000);
    for seed in 0..cases {
        let (operations, order) = guess(&mut Random::new(seed));
        let any = any_explains(&operations, &mut Vec::new());
        match check_register(&operations) {
            Verdict::Linearizable { .. } => assert!(any, "seed {seed}: {operations:?}"),
            Verdict::NotLinearizable(_) => assert!(!any, "seed {seed}: {operations:?}"),
            // Six at once are more than it promises to search.
            Verdict::TooLong { open, .. } => assert_eq!(open, 6, "seed {seed}: {operations:?}"),
        }
        let entry = |(position, place): (usize, &usize)| LogEntry {
            index: position as u64 + 1,
            term: 1,
            operation: operations[*place].id,
        };
        let log: Vec<LogEntry> = order.iter().enumerate().map(entry).collect();
        let by_log = check_log(&operations, &log);
        let explained = explains(&operations, &order);
        assert_eq!(by_log.is_ok(), explained, "seed {seed}: {by_log:?} {operations:?}");
        linearizable += u64::from(any);
        witnessed += u64::from(explained);
    }
    for count in [linearizable, witnessed, cases - linearizable, cases - witnessed] {
        assert!(count > cases / 10, "{linearizable} and {witnessed} are too one-sided");
    }
}
