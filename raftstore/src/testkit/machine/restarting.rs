//! What a restart finds.

use super::{expect_contents, fail, place, Contents, Driven, Run, StateMachineSubject};
use crate::testkit::Draws;
use crate::{Index, RegionCommands, StateMachine};

pub(super) fn all<S: StateMachineSubject>(subject: &S) {
    what_is_found_is_a_step_that_was(subject);
    what_was_flushed_is_found(subject);
}

/// A region with all it has done, and its contents after each step.
struct Recorded {
    region: Driven,
    steps: Vec<(RegionCommands, Contents)>,
    durable: Index,
}

impl Recorded {
    fn last_index(&self) -> Index {
        self.steps.last().map_or(Index::new(0), |(part, _)| part.applied.index)
    }

    /// Sampled after each step of any region.
    fn watch_durable<S: StateMachineSubject>(&mut self, run: &Run<'_, S>) {
        let (id, durable) = (self.region.id(), run.machine().durable_index(self.region.id()));
        if durable > self.last_index() {
            let applied = self.last_index();
            let what = format!("region {id} is applied up to {applied}");
            fail("durable-not-ahead", &format!("{what}, and durable up to {durable}"));
        }
        if durable < self.durable {
            let what = format!("region {id} was durable up to {}", self.durable);
            fail("durable-grows", &format!("{what}, now up to {durable}"));
        }
        self.durable = durable;
    }

    /// Finds a step that was, and carries out again what came after it.
    fn check_restart<S: StateMachineSubject>(&mut self, run: &Run<'_, S>) {
        let id = self.region.id();
        let found = run.applied_state(id);
        let index = found.as_ref().map_or(Index::new(0), |applied| applied.index);
        if index < self.durable {
            let what = format!("region {id} was durable up to {}", self.durable);
            fail("durable-not-ahead", &format!("{what}, a restart finds {index}"));
        }
        let done = self.steps.iter().take_while(|(part, _)| part.applied.index <= index).count();
        let (state, contents) = match done.checked_sub(1) {
            Some(last) => (Some(&self.steps[last].0.applied), &self.steps[last].1),
            None => (None, &Contents::new()),
        };
        if state != found.as_ref() {
            let what = format!("after a restart: found {}", place(found.as_ref()));
            fail("applied-with-effects", &format!("{what}, and the step was {}", place(state)));
        }
        let what = format!("region {id}, restarted and applied up to {index}");
        let here = run.contents(&self.region);
        expect_contents("applied-with-effects", &what, contents, &here);
        self.durable = run.machine().durable_index(id);
        if self.durable > index {
            let what = format!("region {id} is applied up to {index} after a restart");
            fail("durable-not-ahead", &format!("{what}, and durable up to {}", self.durable));
        }
        for (part, contents) in &self.steps[done..] {
            run.apply(vec![part.clone()]);
            let what = format!("region {id}, applied again up to {}", part.applied.index);
            let here = run.contents(&self.region);
            expect_contents("same-on-every-store", &what, contents, &here);
        }
    }
}

fn what_is_found_is_a_step_that_was<S: StateMachineSubject>(subject: &S) {
    let mut run = Run::new(subject);
    let regions = [Driven::new(1, "a", "f"), Driven::new(2, "f", "m"), Driven::new(3, "m", "")];
    let mut regions =
        regions.map(|region| Recorded { region, steps: Vec::new(), durable: Index::new(0) });
    let mut draws = Draws(3);
    for life in 0..4 {
        for step in 0..30 {
            let at = draws.next(3) as usize;
            let recorded = &mut regions[at];
            let start =
                String::from_utf8_lossy(&recorded.region.description.start_key).into_owned();
            let key = format!("{start}k{}", draws.next(6));
            let put = subject.put(key.as_bytes(), format!("{life} {step}").as_bytes());
            let payloads = if draws.next(5) == 0 { Vec::new() } else { vec![put] };
            let part = recorded.region.next(payloads);
            run.apply(vec![part.clone()]);
            let contents = run.contents(&recorded.region);
            recorded.steps.push((part, contents));
            if life % 2 == 1 && step % 11 == 7 {
                run.flush();
            }
            regions.iter_mut().for_each(|recorded| recorded.watch_durable(&run));
        }
        run.restart();
        regions.iter_mut().for_each(|recorded| recorded.check_restart(&run));
    }
}

fn what_was_flushed_is_found<S: StateMachineSubject>(subject: &S) {
    let mut run = Run::new(subject);
    let rule = "flush-makes-durable";
    let (mut left, mut right) = (Driven::new(1, "", "m"), Driven::new(2, "m", ""));
    run.flush();
    run.put(&mut left, "b", "one");
    run.put(&mut right, "n", "one");
    run.apply(vec![right.next(Vec::new())]);
    run.flush();
    if subject.is_volatile() {
        return;
    }
    for region in [&left, &right] {
        let durable = run.machine().durable_index(region.id());
        if durable.get() != region.index {
            let what = format!("region {} is applied up to {}", region.id(), region.index);
            fail(rule, &format!("{what} and flushed, and durable up to {durable}"));
        }
    }
    let contents = [run.contents(&left), run.contents(&right)];
    run.restart();
    for (region, contents) in [&left, &right].into_iter().zip(&contents) {
        run.expect_applied(rule, "flushed, and restarted", region);
        expect_contents(rule, "flushed, and restarted", contents, &run.contents(region));
    }
}
