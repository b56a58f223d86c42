//! Callbacks that are run on their caller's thread, one after the other.
//!
//! A callback may ask again, and be answered at once. It would then run inside the one that asked, that one's
//! successor inside it, and so on until the stack is used up. So what comes while a callback runs is run after
//! it.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::panic::{catch_unwind, resume_unwind, AssertUnwindSafe};

type Job = Box<dyn FnOnce()>;

thread_local! {
    /// There while a callback runs on this thread: what came meanwhile.
    static WAITING: RefCell<Option<VecDeque<Job>>> = const { RefCell::new(None) };
}

/// Runs a callback now, or, inside another one, after it.
///
/// # Panics
/// With the callback's panic, once what it has brought forth has run, too.
pub(crate) fn in_turn(callback: impl FnOnce() + 'static) {
    if WAITING.with_borrow(Option::is_some) {
        return WAITING.with_borrow_mut(|waiting| {
            if let Some(waiting) = waiting {
                waiting.push_back(Box::new(callback));
            }
        });
    }
    WAITING.set(Some(VecDeque::new()));
    let mut panic = catch_unwind(AssertUnwindSafe(callback)).err();
    while let Some(next) = next() {
        panic = panic.or(catch_unwind(AssertUnwindSafe(next)).err());
    }
    if let Some(panic) = panic {
        resume_unwind(panic);
    }
}

/// What comes next; after the last one the next callback runs at once again.
fn next() -> Option<Job> {
    WAITING.with_borrow_mut(|waiting| {
        let next = waiting.as_mut().and_then(VecDeque::pop_front);
        if next.is_none() {
            *waiting = None;
        }
        next
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::rc::Rc;

    #[test]
    fn what_a_callback_brings_forth_runs_after_it() {
        let said = Rc::new(RefCell::new(Vec::new()));
        let say = |what: &'static str| {
            let said = said.clone();
            move || said.borrow_mut().push(what)
        };
        let (first, second) = (say("inside"), say("inside, too"));
        let last = say("outside");
        in_turn(move || {
            in_turn(first);
            in_turn(second);
            last();
        });
        say("afterwards")();
        assert_eq!(*said.borrow(), ["outside", "inside", "inside, too", "afterwards"]);
    }

    #[test]
    fn a_panic_leaves_nothing_behind_and_takes_nothing_along() {
        let ran = Rc::new(Cell::new(0));
        let count = {
            let ran = ran.clone();
            move || ran.set(ran.get() + 1)
        };
        let inner = count.clone();
        let caught = catch_unwind(AssertUnwindSafe(|| {
            in_turn(move || {
                in_turn(inner);
                panic!("on purpose");
            });
        }));
        assert!(caught.is_err());
        assert_eq!(ran.get(), 1, "what waited has run");
        in_turn(count);
        assert_eq!(ran.get(), 2, "and nothing waits for what has ended");
    }

    #[test]
    fn a_million_in_a_row_need_no_stack() {
        fn again(left: u32, end: Rc<Cell<bool>>) {
            match left {
                0 => end.set(true),
                _ => in_turn(move || again(left - 1, end)),
            }
        }
        let end = Rc::new(Cell::new(false));
        again(1_000_000, end.clone());
        assert!(end.get());
    }
}
