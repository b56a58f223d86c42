//! Linearizability of one register by search, from what its clients saw and nothing else.
//!
//! The search is that of Wing and Gong ("Testing and verifying concurrent objects", 1993): of the
//! operations not yet placed, one that no other was answered before may come next, if its answer fits
//! what the register holds; after the last of them the history is linearizable, and where none fits, the
//! search goes back. With the memory of Lowe ("Testing for linearizability", 2017) it looks at each
//! configuration once, that is, at each pair of the set of placed operations and the register's value.
//!
//! # Unanswered operations
//!
//! A run with faults has many of them, each may come anywhere after its invocation or never, and taken
//! naively every one doubles the number of configurations. Three rules leave few of them. None loses an
//! order, and none needs the values to be unique, although they cut most if they are:
//!
//! 1. One that changes nothing is left out.
//! 2. One is placed only if somebody waits for its value: an operation that may come next and was
//!    answered with it, perhaps through a chain of unanswered compare-and-sets. In an order where nobody
//!    saw its value before the next was written, it might as well not have happened.
//! 3. Of several that do the same, the first invoked is placed first.
//!
//! And one rule for the answered: one that fits and changes nothing is placed at once, without trying
//! anything else. In whatever order there is from here, it may as well come first.
//!
//! # Caveats
//!
//! The search is exponential in the worst case, and so there are bounds: [`MAX_OPERATIONS`],
//! [`MAX_OPEN`], [`MAX_CONFIGURATIONS`]. Beyond them the verdict is [`Verdict::TooLong`], which says
//! nothing about the history. Where no value is written twice, a thousand operations of five clients
//! take about a thousand configurations, good history or bad, whatever part of it went unanswered. Where
//! values repeat, good histories take about as few, but to refute a bad one that has many unanswered
//! operations usually takes more than the bound.

use std::error::Error;
use std::fmt;

use rustc_hash::{FxHashMap, FxHashSet};

use super::history::{shown, Kind, Moment, Operation, OperationId, Outcome, Register};

/// Operations of a register, refused ones not counted, up to which it is searched.
pub const MAX_OPERATIONS: usize = 1000;

/// Answered operations of a register that may be open at the same moment for it to be searched: five
/// clients have no more, if each waits for one answer before it asks again.
pub const MAX_OPEN: usize = 5;

/// Configurations after which a search is given up. One takes some 200 bytes.
pub const MAX_CONFIGURATIONS: usize = 500_000;

/// What a search has come to.
#[must_use]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// There is an order that explains all answers.
    Linearizable {
        /// What the search cost: how many configurations it looked at.
        configurations: usize,
    },
    /// There is none.
    NotLinearizable(LinearError),
    /// The history is too long, or the search was: nobody knows.
    TooLong {
        /// Operations, refused ones not counted; compare with [`MAX_OPERATIONS`].
        operations: usize,
        /// Most answered operations open at the same moment; compare with [`MAX_OPEN`].
        open: usize,
        /// Configurations looked at; compare with [`MAX_CONFIGURATIONS`].
        configurations: usize,
    },
}

/// Why a history is not linearizable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinearError {
    /// An operation was answered before it was invoked: the history is unusable.
    AnsweredBeforeInvoked {
        /// The operation.
        operation: OperationId,
        /// When it was invoked.
        invoked_at: Moment,
        /// When it was answered.
        answered_at: Moment,
    },
    /// No order explains all answers. This is the end of one that explains most.
    Stuck {
        /// The register.
        register: Register,
        /// How many answered operations it explains.
        explained: usize,
        /// What the register holds after them.
        holds: Option<u64>,
        /// The operations of which one had to come next, and what their clients were told.
        waiting: Vec<(OperationId, Option<u64>)>,
    },
}

impl fmt::Display for LinearError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AnsweredBeforeInvoked { operation, invoked_at, answered_at } => {
                write!(f, "{operation} was answered at {answered_at}, ")?;
                write!(f, "before it was invoked at {invoked_at}")
            }
            Self::Stuck { register, explained, holds, waiting } => {
                write!(f, "{register} holds {} after {explained} operations", shown(*holds))?;
                write!(f, " in the best order found, and none of these can go on:")?;
                for (operation, told) in waiting {
                    write!(f, " {operation} was told {};", shown(*told))?;
                }
                Ok(())
            }
        }
    }
}

impl Error for LinearError {}

/// Searches for an order of a register's operations that explains what their clients were told. Terms
/// and indexes are not looked at. The operations may come in any order.
///
/// # Panics
///
/// If the operations are of several registers.
pub fn check_register(operations: &[Operation]) -> Verdict {
    check_within(operations, MAX_CONFIGURATIONS)
}

fn check_within(operations: &[Operation], max_configurations: usize) -> Verdict {
    let problem = match Problem::new(operations) {
        Ok(problem) => problem,
        Err(error) => return Verdict::NotLinearizable(error),
    };
    let asked = operations.iter().filter(|operation| operation.outcome != Outcome::Refused);
    let (asked, open) = (asked.count(), problem.most_open());
    if asked > MAX_OPERATIONS || open > MAX_OPEN {
        return Verdict::TooLong { operations: asked, open, configurations: 0 };
    }
    let mut search = Search::new(&problem);
    match search.run(max_configurations) {
        Found::Order => Verdict::Linearizable { configurations: search.seen.len() },
        Found::Nothing => Verdict::NotLinearizable(search.best),
        Found::NotYet => {
            let configurations = search.seen.len();
            Verdict::TooLong { operations: asked, open, configurations }
        }
    }
}

/// An answered operation.
struct Answered {
    id: OperationId,
    kind: Kind,
    invoked_at: Moment,
    answered_at: Moment,
    told: Option<u64>,
}

/// Unanswered operations that do the same.
struct Class {
    kind: Kind,
    /// When they were invoked, in order.
    invoked_at: Vec<Moment>,
    /// The bit of the first of them in [`Search::placed`].
    first_bit: usize,
}

/// What must be put in order.
struct Problem {
    register: Register,
    /// In the order of their invocations.
    answered: Vec<Answered>,
    classes: Vec<Class>,
    /// The classes that write a value.
    writers: FxHashMap<u64, Vec<usize>>,
    bits: usize,
}

impl Problem {
    fn new(operations: &[Operation]) -> Result<Self, LinearError> {
        let register = operations.first().map_or(Register { region: 0, key: 0 }, |o| o.register);
        let (mut answered, mut silent) = (Vec::new(), Vec::new());
        for &Operation { id, register: own, kind, invoked_at, outcome, .. } in operations {
            assert!(own == register, "{id} is of {own}, others are of {register}");
            match outcome {
                Outcome::Refused => {}
                Outcome::Pending if written(kind).is_none() => {}
                Outcome::Pending => silent.push((kind, invoked_at)),
                Outcome::Done { at: answered_at, .. } if answered_at < invoked_at => {
                    let operation = id;
                    return Err(LinearError::AnsweredBeforeInvoked {
                        operation,
                        invoked_at,
                        answered_at,
                    });
                }
                Outcome::Done { at: answered_at, output: told, .. } => {
                    answered.push(Answered { id, kind, invoked_at, answered_at, told });
                }
            }
        }
        answered.sort_by_key(|operation| operation.invoked_at);
        let classes = classes(silent, answered.len());
        let mut writers: FxHashMap<u64, Vec<usize>> = FxHashMap::default();
        for (class, Class { kind, .. }) in classes.iter().enumerate() {
            writers.entry(written(*kind).expect("others are left out")).or_default().push(class);
        }
        let silent: usize = classes.iter().map(|class| class.invoked_at.len()).sum();
        let bits = answered.len() + silent;
        Ok(Self { register, answered, classes, writers, bits })
    }

    /// How many answered operations are open at the same moment, at most.
    fn most_open(&self) -> usize {
        let mut ends: Vec<Moment> = self.answered.iter().map(|o| o.answered_at).collect();
        ends.sort_unstable();
        let (mut ended, mut most) = (0, 0);
        for (begun, operation) in self.answered.iter().enumerate() {
            while ends[ended] < operation.invoked_at {
                ended += 1;
            }
            most = most.max(begun + 1 - ended);
        }
        most
    }
}

/// The value that an operation can bring into a register, if it can change it at all.
fn written(kind: Kind) -> Option<u64> {
    match kind {
        Kind::Read => None,
        Kind::Write(value) => Some(value),
        Kind::CompareAndSet { expected, new } => (expected != Some(new)).then_some(new),
    }
}

fn classes(mut silent: Vec<(Kind, Moment)>, first_bit: usize) -> Vec<Class> {
    silent.sort_unstable();
    let mut classes: Vec<Class> = Vec::new();
    for (place, (kind, invoked_at)) in silent.into_iter().enumerate() {
        match classes.last_mut() {
            Some(class) if class.kind == kind => class.invoked_at.push(invoked_at),
            _ => {
                let first_bit = first_bit + place;
                classes.push(Class { kind, invoked_at: vec![invoked_at], first_bit });
            }
        }
    }
    classes
}

/// What may come next.
#[derive(Clone, Copy)]
enum Step {
    /// An answered operation, by its place.
    Answered(usize),
    /// The next unanswered operation of a class.
    Silent(usize),
}

/// How a search ended.
enum Found {
    Order,
    Nothing,
    NotYet,
}

/// What a step changes beside the sets, to take it back.
#[derive(Clone, Copy)]
struct Position {
    /// What the register holds.
    value: Option<u64>,
    /// All answered operations below this place are placed.
    all_below: usize,
    /// How many answered operations are placed.
    explained: usize,
}

struct Search<'a> {
    problem: &'a Problem,
    position: Position,
    /// A bit for each placed operation: the answered ones, then class by class.
    placed: Vec<u64>,
    /// By class: how many are placed.
    used: Vec<usize>,
    /// The configurations looked at: the bits, then the register's value.
    seen: FxHashSet<Box<[u64]>>,
    /// Where the order ended that explains most.
    best: LinearError,
    best_explained: usize,
}

impl<'a> Search<'a> {
    fn new(problem: &'a Problem) -> Self {
        let position = Position { value: None, all_below: 0, explained: 0 };
        let mut search = Self {
            problem,
            position,
            placed: vec![0; problem.bits.div_ceil(64)],
            used: vec![0; problem.classes.len()],
            seen: FxHashSet::default(),
            best: LinearError::Stuck {
                register: problem.register,
                explained: 0,
                holds: None,
                waiting: Vec::new(),
            },
            best_explained: 0,
        };
        search.best = search.stuck();
        search
    }

    /// Not recursive: a history may be deeper than a stack.
    fn run(&mut self, max_configurations: usize) -> Found {
        let mut path: Vec<(Step, Position, Vec<Step>)> = Vec::new();
        let mut choices = self.choices();
        while self.position.explained < self.problem.answered.len() {
            if let Some(step) = choices.pop() {
                let before = self.position;
                self.place(step);
                path.push((step, before, choices));
                choices = if self.remember() { self.choices() } else { Vec::new() };
            } else if let Some((step, before, rest)) = path.pop() {
                self.take_back(step, before);
                choices = rest;
            } else {
                return Found::Nothing;
            }
            if self.seen.len() >= max_configurations {
                return Found::NotYet;
            }
        }
        Found::Order
    }

    /// Whether this configuration is new.
    fn remember(&mut self) -> bool {
        if self.position.explained > self.best_explained {
            self.best_explained = self.position.explained;
            self.best = self.stuck();
        }
        let value = self.position.value;
        let rest = [value.unwrap_or(0), u64::from(value.is_some())];
        self.seen.insert(self.placed.iter().copied().chain(rest).collect())
    }

    fn stuck(&self) -> LinearError {
        let told = |place: usize| {
            let operation = &self.problem.answered[place];
            (operation.id, operation.told)
        };
        LinearError::Stuck {
            register: self.problem.register,
            explained: self.position.explained,
            holds: self.position.value,
            waiting: self.window().0.into_iter().map(told).collect(),
        }
    }

    fn is_placed(&self, bit: usize) -> bool {
        self.placed[bit / 64] & 1 << (bit % 64) != 0
    }

    /// The answered operations that may come next, as far as time goes, and the moment at which the
    /// first of them was answered: what is invoked later must wait.
    fn window(&self) -> (Vec<usize>, Option<Moment>) {
        let (mut window, mut end) = (Vec::new(), None);
        let answered = &self.problem.answered;
        for (place, operation) in answered.iter().enumerate().skip(self.position.all_below) {
            if end.is_some_and(|end| end < operation.invoked_at) {
                break;
            }
            if !self.is_placed(place) {
                window.push(place);
                end = Some(end.map_or(operation.answered_at, |end| operation.answered_at.min(end)));
            }
        }
        // Those taken up before a shorter one was met are kept: they were invoked before it, and so
        // before its answer.
        (window, end)
    }

    /// What may come next; the last of them is tried first.
    fn choices(&self) -> Vec<Step> {
        let value = self.position.value;
        let (window, end) = self.window();
        let operations = &self.problem.answered;
        let fits = |place: &&usize| operations[**place].told == value;
        let is_still = |place: &&usize| operations[**place].kind.after(value) == value;
        if let Some(still) = window.iter().filter(fits).find(is_still) {
            return vec![Step::Answered(*still)];
        }
        let mut steps = end.map_or_else(Vec::new, |end| self.silent_choices(&window, end));
        steps.extend(window.iter().rev().filter(fits).map(|place| Step::Answered(*place)));
        steps
    }

    /// The unanswered operations for whose value somebody in the window waits.
    fn silent_choices(&self, window: &[usize], end: Moment) -> Vec<Step> {
        let value = self.position.value;
        let mut wanted: Vec<u64> = Vec::new();
        for told in window.iter().filter_map(|place| self.problem.answered[*place].told) {
            if Some(told) != value && !wanted.contains(&told) {
                wanted.push(told);
            }
        }
        let (mut steps, mut next) = (Vec::new(), 0);
        while let Some(result) = wanted.get(next) {
            next += 1;
            for class in self.problem.writers.get(result).into_iter().flatten() {
                let Class { kind, invoked_at, .. } = &self.problem.classes[*class];
                if invoked_at.get(self.used[*class]).is_none_or(|invoked_at| *invoked_at > end) {
                    continue;
                }
                match *kind {
                    Kind::Write(_) => steps.push(Step::Silent(*class)),
                    Kind::CompareAndSet { expected, .. } if expected == value => {
                        steps.push(Step::Silent(*class));
                    }
                    Kind::CompareAndSet { expected: Some(expected), .. }
                        if !wanted.contains(&expected) =>
                    {
                        wanted.push(expected);
                    }
                    _ => {}
                }
            }
        }
        steps
    }

    fn place(&mut self, step: Step) {
        let position = &mut self.position;
        let (kind, bit) = match step {
            Step::Answered(place) => {
                position.explained += 1;
                (self.problem.answered[place].kind, place)
            }
            Step::Silent(class) => {
                self.used[class] += 1;
                let Class { kind, first_bit, .. } = self.problem.classes[class];
                (kind, first_bit + self.used[class] - 1)
            }
        };
        position.value = kind.after(position.value);
        self.placed[bit / 64] |= 1 << (bit % 64);
        while self.position.all_below < self.problem.answered.len()
            && self.is_placed(self.position.all_below)
        {
            self.position.all_below += 1;
        }
    }

    fn take_back(&mut self, step: Step, before: Position) {
        let bit = match step {
            Step::Answered(place) => place,
            Step::Silent(class) => {
                self.used[class] -= 1;
                self.problem.classes[class].first_bit + self.used[class]
            }
        };
        self.placed[bit / 64] &= !(1 << (bit % 64));
        self.position = before;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::{ClientId, Through};

    /// An operation that was invoked and answered at these places, each of its own client.
    fn operation(id: u64, kind: Kind, from: u64, answer: Option<(u64, Option<u64>)>) -> Operation {
        let at = |sequence| Moment { sequence, time_us: 0 };
        let outcome = answer.map_or(Outcome::Pending, |(until, output)| {
            // Not looked at.
            Outcome::Done { at: at(until), term: 0, index: 0, output }
        });
        Operation {
            id: OperationId(id),
            client: ClientId(id),
            register: Register { region: 1, key: 1 },
            kind,
            through: Through::Log,
            invoked_at: at(from),
            outcome,
        }
    }

    fn is_linearizable(operations: &[Operation]) -> bool {
        match check_register(operations) {
            Verdict::Linearizable { .. } => true,
            Verdict::NotLinearizable(_) => false,
            verdict @ Verdict::TooLong { .. } => panic!("{verdict:?}"),
        }
    }

    const SET_2: Kind = Kind::CompareAndSet { expected: Some(1), new: 2 };

    #[test]
    fn concurrent_operations_may_take_any_order_and_others_may_not() {
        let write = operation(1, Kind::Write(1), 0, Some((3, None)));
        let read = |from, until, told| operation(2, Kind::Read, from, Some((until, told)));
        assert!(is_linearizable(&[]));
        assert!(is_linearizable(&[write, read(1, 2, None)]));
        assert!(is_linearizable(&[write, read(1, 2, Some(1))]));
        assert!(!is_linearizable(&[write, read(4, 5, None)]));
        assert!(is_linearizable(&[write, read(3, 5, None)]), "the same moment is concurrent");
        let (read_1, read_2) = (read(1, 2, Some(1)), operation(3, Kind::Read, 3, Some((4, None))));
        assert!(!is_linearizable(&[write, read_1, read_2]), "what was seen stays");
    }

    #[test]
    fn unanswered_operation_happens_late_or_never() {
        let write = operation(1, Kind::Write(1), 0, None);
        let reads = |first, second| {
            let first = operation(2, Kind::Read, 10, Some((11, first)));
            [write, first, operation(3, Kind::Read, 12, Some((13, second)))]
        };
        assert!(is_linearizable(&reads(None, None)));
        assert!(is_linearizable(&reads(None, Some(1))));
        assert!(is_linearizable(&reads(Some(1), Some(1))));
        assert!(!is_linearizable(&reads(Some(1), None)));
        let late = operation(1, Kind::Write(1), 12, None);
        assert!(
            !is_linearizable(&[late, reads(Some(1), Some(1))[1]]),
            "seen before it was invoked"
        );
    }

    #[test]
    fn chain_of_unanswered_operations_explains_an_answer() {
        let write = operation(1, Kind::Write(1), 0, None);
        let set = operation(2, SET_2, 1, None);
        let read = |told| operation(3, Kind::Read, 2, Some((3, told)));
        assert!(is_linearizable(&[write, set, read(Some(2))]));
        assert!(!is_linearizable(&[set, read(Some(2))]), "nobody wrote what it expects");
        let again = operation(4, Kind::Read, 4, Some((5, Some(1))));
        assert!(!is_linearizable(&[write, set, read(Some(2)), again]), "written only once");
        let second = operation(5, Kind::Write(1), 0, None);
        assert!(is_linearizable(&[write, second, set, read(Some(2)), again]));
    }

    #[test]
    fn refused_operation_never_happens() {
        let mut write = operation(1, Kind::Write(1), 0, None);
        let read = |told| operation(2, Kind::Read, 2, Some((3, told)));
        write.outcome = Outcome::Refused;
        assert!(is_linearizable(&[write, read(None)]));
        assert!(!is_linearizable(&[write, read(Some(1))]));
    }

    #[test]
    fn error_names_where_the_best_order_ends() {
        let write = operation(1, Kind::Write(1), 0, Some((1, None)));
        let set = operation(2, SET_2, 2, Some((3, Some(1))));
        let read = operation(3, Kind::Read, 4, Some((5, Some(1))));
        let Verdict::NotLinearizable(error) = check_register(&[read, write, set]) else {
            panic!("a stale read passes")
        };
        assert_eq!(
            error.to_string(),
            "key 1 of region 1 holds 2 after 2 operations in the best order found, and none of \
             these can go on: operation 3 was told 1;"
        );
    }

    #[test]
    fn impossible_history_is_found() {
        let read = operation(1, Kind::Read, 3, Some((2, None)));
        let verdict = check_register(&[read]);
        assert!(matches!(
            verdict,
            Verdict::NotLinearizable(LinearError::AnsweredBeforeInvoked { .. })
        ));
    }

    #[test]
    fn history_beyond_the_bounds_is_not_judged() {
        let reads = |count, length| -> Vec<Operation> {
            let read = |n| operation(n, Kind::Read, n * 10, Some((n * 10 + length, None)));
            (0..count).map(read).collect()
        };
        assert!(is_linearizable(&reads(1000, 49)));
        let verdict = check_register(&reads(1001, 9));
        assert_eq!(verdict, Verdict::TooLong { operations: 1001, open: 1, configurations: 0 });
        let verdict = check_register(&reads(6, 50));
        assert_eq!(verdict, Verdict::TooLong { operations: 6, open: 6, configurations: 0 });
    }

    #[test]
    fn orders_that_lead_to_the_same_are_searched_once() {
        // Four orders in each round, and nothing fits in the end: without a memory, 4^100 orders.
        let round = |n: u64| {
            let write = |id, value, told| {
                let from = 10 * n + 1;
                operation(4 * n + id, Kind::Write(value), from, Some((from + 5, Some(told))))
            };
            [write(0, 1, 0), write(1, 1, 0), write(2, 0, 1), write(3, 0, 1)]
        };
        let first = operation(1000, Kind::Write(0), 0, Some((0, None)));
        let last = operation(1001, Kind::Read, 2000, Some((2001, Some(9))));
        let operations: Vec<Operation> = (0..100).flat_map(round).chain([first, last]).collect();
        assert!(is_linearizable(&operations[..401]));
        assert!(!is_linearizable(&operations));
    }

    #[test]
    fn search_that_explodes_is_given_up() {
        // Unanswered compare-and-sets of all values to all others, and an answer that never fits: what
        // no rule helps against.
        let sets = (0..900).map(|n| {
            let kind = Kind::CompareAndSet { expected: Some(n % 30), new: n * 7 / 30 % 30 };
            operation(n, kind, 0, None)
        });
        let reads = (0..50).map(|n| {
            let told = if n == 49 { 1000 } else { n * 11 % 30 };
            operation(1000 + n, Kind::Read, 10 + 2 * n, Some((11 + 2 * n, Some(told))))
        });
        let first = operation(2000, Kind::Write(0), 0, Some((1, None)));
        let operations: Vec<Operation> = sets.chain(reads).chain([first]).collect();
        let Verdict::TooLong { configurations, .. } = check_within(&operations, 5000) else {
            panic!("not given up")
        };
        assert_eq!(configurations, 5000);
    }
}
