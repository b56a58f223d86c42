//! What was replaced must stay away, also where old files are rewritten and removed.
//!
//! The trap: something is written; reclaiming copies it from an old file to a new place; it is replaced or
//! marked as gone; reclaiming removes the file with that mark; after opening again the copy is taken for
//! what holds. raft-engine does that with keys that were *deleted*.

use super::{hard_state, record, truncated, LogStoreSubject, Model, Run};
use crate::{LogReader, LogStore, RegionId};

pub(super) fn all<S: LogStoreSubject>(subject: &S) {
    what_was_replaced_stays_away(subject);
}

/// Of an entry that fills files.
const LARGE: usize = 16 << 10;

/// Writes entries of a region and cuts them off again, and reclaims meanwhile, some 3 MiB.
fn churn<S: LogStoreSubject>(run: &Run<'_, S>, filler: &mut Model) {
    for _ in 0..12 {
        for _ in 0..4 {
            let from = filler.last_index() + 1;
            run.write(vec![filler.append(from, 4, 6, LARGE)], true);
        }
        let cut = filler.last_index() - 1;
        run.write(vec![filler.write(|write| write.truncated = Some(truncated(cut, 6)))], true);
        super::ok("reclaim", run.store().reclaim());
    }
}

fn what_was_replaced_stays_away<S: LogStoreSubject>(subject: &S) {
    let rule = "old-never-returns";
    let mut run = Run::new(subject);
    let mut models = Vec::new();
    for id in 1..=7 {
        let (mut model, write) = Model::begin(id);
        run.write(vec![write, model.append(6, 6, 6, 200)], true);
        run.write(vec![model.write(|write| write.hard_state = Some(hard_state(6, 11, 7)))], true);
        models.push(model);
    }
    let (mut filler, begin) = Model::begin(9);
    run.write(vec![begin], true);
    churn(&run, &mut filler);
    // Everything in its own way: regions 3 and 7 as by a snapshot that is ahead of their logs, and 7 goes on
    // at once. Region 5 stays as it is, region 6 is changed last of all.
    let [destroyed, voted, cut, replaced, _, late, moved] = &mut models[..] else { unreachable!() };
    let writes = vec![
        destroyed.write(|write| {
            write.record = Some(Box::new(record(1, true)));
            write.truncated = Some(truncated(11, 6));
        }),
        voted.write(|write| write.hard_state = Some(hard_state(9, 0, 0))),
        cut.write(|write| write.truncated = Some(truncated(30, 7))),
        replaced.append(7, 2, 8, 200),
        moved.write(|write| write.truncated = Some(truncated(40, 7))),
        moved.append(41, 3, 8, 200),
    ];
    run.write(writes, true);
    churn(&run, &mut filler);
    run.write(vec![late.write(|write| write.hard_state = Some(hard_state(8, 12, 6)))], true);
    let check = |run: &Run<'_, S>, models: &[Model], stored: &crate::Stored, what: &str| {
        let rule_of = |model: &Model| match model.id {
            1 => "tombstone-is-kept",
            5 | 9 => "reclaim-keeps-all",
            _ => rule,
        };
        for model in models.iter().chain([&filler]) {
            model.check(rule_of(model), what, run, stored);
        }
        for (id, index) in [(1, 8), (3, 8), (7, 8)] {
            let read = run.store().term(RegionId::new(id), crate::Index::new(index));
            if let Some(term) = super::ok("term", read) {
                let text = format!("{what}: entry {index} of region {id} is back with term {term}");
                super::fail(rule, &text);
            }
        }
    };
    check(&run, &models, &run.load(), "replaced and reclaimed");
    if run.is_volatile() {
        return;
    }
    for life in 0..3 {
        let stored = run.restart();
        check(&run, &models, &stored, &format!("replaced, reclaimed and opened again ({life})"));
        // They go on where they were cut.
        for model in &mut models {
            run.write(vec![model.append(model.last_index() + 1, 2, 9, 200)], true);
        }
        super::ok("reclaim", run.store().reclaim());
    }
}
