//! What holds when a region is divided.

use super::{expect_contents, fail, ok, place, Contents, Driven, Run, StateMachineSubject};
use crate::{RegionSplit, StateMachine};

pub(super) fn all<S: StateMachineSubject>(subject: &S) {
    nothing_is_lost(subject, false);
    nothing_is_lost(subject, true);
    a_child_takes_nothing_with_it(subject);
}

/// A region from `a` to the end, with keys on both sides of each place where it is divided.
fn filled<S: StateMachineSubject>(run: &Run<'_, S>) -> Driven {
    let mut parent = Driven::new(1, "b", "");
    for key in ["b", "c", "h", "h0", "hz", "i", "p", "pz", "q", "zz"] {
        run.put(&mut parent, key, &format!("value of {key}"));
    }
    parent
}

/// The parent keeps the middle.
fn divide(parent: &mut Driven) -> (RegionSplit, [Driven; 3]) {
    let before = Driven::new(2, "b", "h");
    let after = Driven::new(3, "p", "");
    parent.index += 1;
    parent.reshape("h", "p");
    let first =
        |child: &Driven| crate::AppliedState { term: crate::Term::new(5), ..child.applied() };
    let split =
        RegionSplit { parent: parent.applied(), children: vec![first(&before), first(&after)] };
    (split, [before, parent.clone(), after])
}

fn nothing_is_lost<S: StateMachineSubject>(subject: &S, restart: bool) {
    let mut run = Run::new(subject);
    let mut other = Driven::new(9, "a", "b");
    run.put(&mut other, "a1", "beside");
    let mut parent = filled(&run);
    let (whole, old) = (run.contents(&parent), parent.clone());
    let beside = run.contents(&other);
    let (split, mut parts) = divide(&mut parent);
    ok("split", run.machine().split(&split));
    if restart && !subject.is_volatile() {
        run.restart();
        let found: Vec<bool> =
            parts.iter().map(|part| run.applied_state(part.id()).is_some()).collect();
        let done = run.applied_state(parent.id()).is_some_and(|found| found == split.parent);
        if found[0] != done || found[2] != done {
            let what = format!("after a restart the parent is divided: {done}");
            fail("split-is-one-step", &format!("{what}, the children are there: {found:?}"));
        }
        if !done {
            // It was lost, and so was what came before, perhaps: nothing to be seen here.
            return;
        }
    }
    let states = std::iter::once(&split.parent).chain(&split.children);
    for expected in states {
        let found = run.applied_state(expected.description.id);
        if found.as_ref() != Some(expected) {
            let (expected, found) = (place(Some(expected)), place(found.as_ref()));
            fail("split-is-one-step", &format!("expected {expected}, found {found}"));
        }
    }
    let pieces: Contents = parts.iter().flat_map(|part| run.contents(part)).collect();
    expect_contents("split-loses-nothing", "parent and children together", &whole, &pieces);
    for part in &parts {
        let own = whole.iter().filter(|(key, _)| part.description.contains(key)).cloned();
        let what = format!("region {} after the split", part.id());
        expect_contents("split-loses-nothing", &what, &own.collect(), &run.contents(part));
    }
    expect_contents("only-its-own", "a region beside the split", &beside, &run.contents(&other));
    // They go on, each by itself.
    let mut expected = run.contents(&parts[0]);
    run.put(&mut parts[1], "ha", "later");
    run.put(&mut parts[2], "pa", "later");
    expect_contents("only-its-own", "a child", &expected, &run.contents(&parts[0]));
    run.put(&mut parts[0], "ba", "later");
    expected.clear();
    expected.extend(parts.iter().flat_map(|part| run.contents(part)));
    if expected.len() != whole.len() + 3 {
        let (before, now) = (whole.len(), expected.len());
        let what = format!("three new keys after the split of region {}", old.id());
        fail("split-loses-nothing", &format!("{what}: {before} pairs became {now}"));
    }
}

fn a_child_takes_nothing_with_it<S: StateMachineSubject>(subject: &S) {
    let run = Run::new(subject);
    let mut parent = filled(&run);
    let (split, [before, middle, after]) = divide(&mut parent);
    ok("split", run.machine().split(&split));
    let (left, kept) = (run.contents(&before), run.contents(&middle));
    ok("destroy", run.machine().destroy(after.id()));
    let rule = "only-its-own";
    expect_contents(rule, "a child whose sibling is destroyed", &left, &run.contents(&before));
    expect_contents(rule, "the parent of a destroyed child", &kept, &run.contents(&middle));
    run.expect_applied(rule, "the parent of a destroyed child", &middle);
    let gone = run.contents(&after);
    expect_contents("destroy-removes-all", "a destroyed child", &Contents::new(), &gone);
}
