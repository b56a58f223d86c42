//! What holds when a region comes from another store, or goes.

use super::{expect_contents, fail, ok, place, Contents, Driven, Image, Run, StateMachineSubject};
use crate::{RegionCommands, StateMachine};

pub(super) fn all<S: StateMachineSubject>(subject: &S) {
    a_snapshot_is_one_moment(subject);
    a_snapshot_taken_amid_writes_is_one_moment(subject);
    an_installation_replaces_what_was(subject);
    an_installation_cut_short_is_no_harm(subject);
    destruction_removes_all_and_only_its_own(subject);
}

/// Of a large value.
const LARGE: usize = 64 << 10;

/// Puts so many large values from `start` on.
fn fill<S: StateMachineSubject>(run: &Run<'_, S>, region: &mut Driven, start: &str, count: usize) {
    for number in 0..count {
        let value = format!("{number:04}").repeat(LARGE / 4);
        run.put(region, &format!("{start}{number:04}"), &value);
    }
}

fn a_snapshot_is_one_moment<S: StateMachineSubject>(subject: &S) {
    let rule = "snapshot-is-one-moment";
    let run = Run::new(subject);
    let (mut before, mut after) = (Driven::new(8, "", "c"), Driven::new(9, "m", ""));
    run.put(&mut before, "bz", "before");
    run.put(&mut after, "m", "after");
    let mut region = Driven::new(1, "c", "m");
    fill(&run, &mut region, "d", 30);
    let (then, contents) = (region.clone(), run.contents(&region));
    let mut source = ok("snapshot", run.machine().snapshot(region.id()));
    // In front of, within and behind what the source has read, if it reads as it goes.
    run.put(&mut region, "c0", "later");
    run.put(&mut region, "d0001", "later");
    let first = ok("next_piece", source.next_piece());
    run.put(&mut region, "lz", "later");
    run.put(&mut region, "d0029", "later");
    if let Some(delete) = subject.delete(b"d0028") {
        run.apply(vec![region.next(vec![delete])]);
    }
    run.flush();
    let mut image = Image::read(&mut *source);
    drop(source);
    image.pieces.splice(0..0, first);
    if image.applied != then.applied() {
        let (expected, found) = (place(Some(&then.applied())), place(Some(&image.applied)));
        fail(rule, &format!("taken at {expected}, it says {found}"));
    }
    let other = Run::new(subject);
    other.install(&image);
    expect_contents(rule, "installed elsewhere", &contents, &other.contents(&then));
    other.expect_applied(rule, "installed elsewhere", &then);
    for beside in [&before, &after] {
        let what = format!("region {} where 1 was installed", beside.id());
        expect_contents("only-its-own", &what, &Contents::new(), &other.contents(beside));
    }
    // What it does next is the same on both.
    let mut twin = then.clone();
    other.put(&mut twin, "e", "next");
    other.expect_applied("install-replaces", "a step after it", &twin);
    if other.contents(&twin).len() != contents.len() + 1 {
        fail("install-replaces", "a put after it does not show in the contents");
    }
    // A region without contents.
    let mut empty = Driven::new(2, "x", "z");
    let run = Run::new(subject);
    run.apply(vec![empty.next(Vec::new())]);
    let image = run.read(empty.id());
    other.install(&image);
    other.expect_applied(rule, "an empty region installed elsewhere", &empty);
}

fn a_snapshot_taken_amid_writes_is_one_moment<S: StateMachineSubject>(subject: &S) {
    let rule = "snapshot-is-one-moment";
    let mut region = Driven::new(1, "c", "m");
    let mut steps: Vec<(RegionCommands, Contents)> = Vec::new();
    let recorder = Run::new(subject);
    for number in 0..200 {
        let value = format!("value {number}");
        // Two ends of the region in one step.
        let put = |key: String| subject.put(key.as_bytes(), value.as_bytes());
        let part =
            region.next(vec![put(format!("d{}", number % 3)), put(format!("k{}", number % 5))]);
        recorder.apply(vec![part.clone()]);
        steps.push((part, recorder.contents(&region)));
    }
    let run = Run::new(subject);
    let machine = run.machine();
    run.apply(vec![steps[0].0.clone()]);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for (part, _) in &steps[1..] {
                ok("apply", machine.apply(&mut [part.clone()]));
            }
        });
        loop {
            let last = writer.is_finished();
            let image = run.read(region.id());
            let step = steps.iter().find(|(part, _)| part.applied == image.applied);
            let Some((_, contents)) = step else {
                fail(rule, &format!("there was no step {}", place(Some(&image.applied))));
            };
            let other = Run::new(subject);
            other.install(&image);
            let what = format!("taken amid writes at {}", image.applied.index);
            expect_contents(rule, &what, contents, &other.contents(&region));
            if last {
                break;
            }
        }
    });
}

/// A region as it is on another store: after it gave the end of its range away.
fn remote<S: StateMachineSubject>(subject: &S) -> (Driven, Image, Contents) {
    let run = Run::new(subject);
    let mut region = Driven::new(1, "c", "p");
    region.index += 1000;
    region.reshape("c", "m");
    fill(&run, &mut region, "d", 20);
    run.put(&mut region, "c", "first key");
    run.put(&mut region, "lzzz", "last key");
    let (image, contents) = (run.read(region.id()), run.contents(&region));
    (region, image, contents)
}

/// A store with an old state of region 1, and regions on both sides of it.
struct Old<'a, S: StateMachineSubject> {
    run: Run<'a, S>,
    region: Driven,
    contents: Contents,
    beside: Vec<(Driven, Contents)>,
}

impl<'a, S: StateMachineSubject> Old<'a, S> {
    fn new(subject: &'a S) -> Self {
        let run = Run::new(subject);
        let mut beside = vec![Driven::new(8, "", "c"), Driven::new(9, "p", "")];
        run.put(&mut beside[0], "bzzz", "before");
        run.put(&mut beside[1], "p", "after");
        run.put(&mut beside[1], "p1", "after");
        let mut region = Driven::new(1, "c", "p");
        for key in ["c", "c1", "d0001", "l", "lzzz", "m", "m1", "ozzz"] {
            run.put(&mut region, key, "old");
        }
        fill(&run, &mut region, "e", 10);
        run.flush();
        let contents = run.contents(&region);
        let beside = beside
            .into_iter()
            .map(|region| {
                let contents = run.contents(&region);
                (region, contents)
            })
            .collect();
        Self { run, region, contents, beside }
    }

    fn check_beside(&self, what: &str) {
        for (region, contents) in &self.beside {
            let what = format!("region {} {what}", region.id());
            expect_contents("only-its-own", &what, contents, &self.run.contents(region));
            self.run.expect_applied("only-its-own", &what, region);
        }
    }

    /// Of what the region had, or should have now, nothing else is left in the range that it had.
    fn check_range(&self, rule: &str, what: &str, expected: &Contents) {
        expect_contents(rule, what, expected, &self.run.contents(&self.region));
    }
}

fn an_installation_replaces_what_was<S: StateMachineSubject>(subject: &S) {
    let (region, image, contents) = remote(subject);
    let mut old = Old::new(subject);
    old.run.install(&image);
    old.run.expect_applied("install-replaces", "over an old state", &region);
    old.check_range("install-replaces", "over an old state of a larger range", &contents);
    old.check_beside("beside an installation");
    let durable = old.run.machine().durable_index(region.id());
    if !subject.is_volatile() && durable.get() != region.index {
        let what = format!("installed at {}, durable up to {durable}", region.index);
        fail("install-is-durable", &what);
    }
    old.run.install(&image);
    old.run.expect_applied("install-again", "twice", &region);
    old.check_range("install-again", "twice", &contents);
    if subject.is_volatile() {
        return;
    }
    old.run.restart();
    old.run.expect_applied("install-is-durable", "installed and restarted", &region);
    old.check_range("install-is-durable", "installed and restarted", &contents);
    old.check_beside("beside an installation, restarted");
}

fn an_installation_cut_short_is_no_harm<S: StateMachineSubject>(subject: &S) {
    let rule = "install-cut-short";
    let (region, image, contents) = remote(subject);
    let count = image.pieces.len();
    for (pieces, restart, destroy) in [
        (0, true, false),
        (1, true, false),
        (count / 2, true, false),
        (count / 2, false, false),
        (count / 2, true, true),
        (count, true, false),
        (count, true, true),
    ] {
        let mut old = Old::new(subject);
        let cut = format!("cut short after {pieces} of {count} pieces");
        if old.run.machine().install(&mut image.source(Some(pieces))).is_ok() {
            fail(rule, &format!("{cut}, it says that it succeeded"));
        }
        if restart {
            old.run.restart();
        }
        if let Some(found) = old.run.applied_state(region.id()) {
            if found == image.applied {
                fail(rule, &format!("{cut}, it is applied up to {}", found.index));
            }
            old.check_range(rule, &format!("{cut}, and applied as before"), &old.contents);
        }
        if restart && subject.is_volatile() {
            // The regions beside it are gone as well.
            old.beside.clear();
        }
        old.check_beside(&cut);
        if destroy {
            ok("destroy", old.run.machine().destroy(region.id()));
            let what = format!("{cut}, then destroyed");
            old.check_range("destroy-removes-all", &what, &Contents::new());
        } else {
            old.run.install(&image);
            old.run.expect_applied(rule, &format!("{cut}, then whole"), &region);
            old.check_range(rule, &format!("{cut}, then whole"), &contents);
        }
        old.check_beside(&format!("{cut}, then installed or destroyed"));
    }
}

fn destruction_removes_all_and_only_its_own<S: StateMachineSubject>(subject: &S) {
    let rule = "destroy-removes-all";
    let mut old = Old::new(subject);
    let id = old.region.id();
    let check = |old: &Old<'_, S>, what: &str| {
        if let Some(applied) = old.run.applied_state(id) {
            fail(rule, &format!("{what}: region {id} is applied up to {}", applied.index));
        }
        let durable = old.run.machine().durable_index(id);
        if durable.get() != 0 {
            fail(rule, &format!("{what}: region {id} is durable up to {durable}"));
        }
        old.check_range(rule, what, &Contents::new());
    };
    ok("destroy", old.run.machine().destroy(id));
    check(&old, "destroyed");
    old.check_beside("beside a destroyed region");
    ok("destroy", old.run.machine().destroy(id));
    check(&old, "destroyed twice");
    ok("destroy", old.run.machine().destroy(Driven::new(77, "", "").id()));
    old.check_beside("when an unknown region was destroyed");
    if !subject.is_volatile() {
        old.run.restart();
        check(&old, "destroyed, and restarted");
        old.check_beside("beside a destroyed region, restarted");
    }
    // It may come back, from the beginning.
    let mut again = Driven::new(1, "c", "p");
    old.run.put(&mut again, "d", "again");
    old.run.expect_applied(rule, "destroyed, and begun again", &again);
    if old.run.contents(&again).len() != 1 {
        let found = old.run.contents(&again).len();
        fail(rule, &format!("destroyed, and begun again with one key: {found} pairs are there"));
    }
}
