//! What holds of entries while the log store is open.

use super::{entries, expect, fail, truncated, LogStoreSubject, Model, Run};
use crate::{Index, LogBatch, LogReader, LogStore, RegionId, RegionWrite};
use std::panic::{catch_unwind, AssertUnwindSafe};

pub(super) fn all<S: LogStoreSubject>(subject: &S) {
    tails_are_replaced(subject);
    heads_are_cut(subject);
    limits_are_kept(subject);
    holes_are_refused(subject);
    threads_do_not_disturb_each_other(subject);
}

fn tails_are_replaced<S: LogStoreSubject>(subject: &S) {
    let run = Run::new(subject);
    let (mut model, begin) = Model::begin(1);
    let (mut other, begin_other) = Model::begin(2);
    run.write(vec![begin, begin_other], true);
    run.expect_missing("term-of-entry", "before the first entry", 1, 6);
    run.write(vec![model.append(6, 10, 6, 0), other.append(6, 3, 6, 0)], false);
    run.expect_log("visible-at-once", "written without sync", 1, &model.log);
    run.write(vec![model.append(16, 5, 6, 0)], true);
    run.expect_log("visible-at-once", "appended", 1, &model.log);
    // A new leader replaces a tail by a shorter one, by one of equal length, and all of it.
    for (from, count, term) in [(12, 2, 7), (12, 2, 8), (6, 1, 9), (7, 20, 9)] {
        run.write(vec![model.append(from, count, term, 0)], from % 2 == 0);
        let what = format!("{count} entries of term {term} from {from} on");
        run.expect_log("tail-is-replaced", &what, 1, &model.log);
    }
    run.expect_log("only-its-own", "beside replaced tails", 2, &other.log);
    // Several writes for one region in a batch.
    let writes = vec![
        model.append(27, 4, 9, 0),
        other.append(9, 1, 7, 0),
        model.append(29, 1, 10, 0),
        model.append(30, 2, 10, 0),
    ];
    run.write(writes, false);
    run.expect_log("writes-in-order", "three writes in a batch", 1, &model.log);
    run.expect_log("writes-in-order", "between two writes of another region", 2, &other.log);
}

fn heads_are_cut<S: LogStoreSubject>(subject: &S) {
    let rule = "truncated-is-gone";
    let run = Run::new(subject);
    let (mut model, begin) = Model::begin(1);
    let (mut other, begin_other) = Model::begin(2);
    run.write(vec![begin, begin_other], false);
    run.write(vec![model.append(6, 20, 6, 0), other.append(6, 20, 6, 0)], false);
    for (index, sync) in [(10, false), (11, true), (20, false)] {
        run.write(vec![model.write(|write| write.truncated = Some(truncated(index, 6)))], sync);
        let what = format!("cut up to {index}");
        run.expect_log(rule, &what, 1, &model.log);
        expect(rule, &format!("{what}, term of entry 9"), None, run.term(1, 9));
        match run.term(1, index) {
            None | Some(6) => {}
            Some(term) => fail("term-of-entry", &format!("{what}, that entry has term {term}")),
        }
        let read = || run.store().entries(RegionId::new(1), Index::new(9), Index::new(22), 1000);
        if let Ok(Ok(found)) = catch_unwind(AssertUnwindSafe(read)) {
            let what = format!("{what}: {} entries were read from 9 on", found.len());
            fail("missing-is-an-error", &what);
        }
        model.check(rule, &what, &run, &run.load());
    }
    run.expect_log("only-its-own", "beside a log that is cut", 2, &other.log);
    // To its end, and on.
    run.write(vec![model.write(|write| write.truncated = Some(truncated(25, 6)))], false);
    model.check(rule, "cut to its end", &run, &run.load());
    run.expect_missing(rule, "cut to its end", 1, 26);
    run.write(vec![model.append(26, 4, 8, 0)], false);
    model.check(rule, "cut to its end and appended", &run, &run.load());
}

fn limits_are_kept<S: LogStoreSubject>(subject: &S) {
    let rule = "entries-in-limits";
    let run = Run::new(subject);
    let (mut model, begin) = Model::begin(1);
    run.write(vec![begin, model.append(6, 30, 6, 1000)], true);
    let data = 1000;
    for max_bytes in [0, 1, data - 1, data, data + 1, 5 * data, 29 * data, 100 * data, usize::MAX] {
        for (low, high) in [(6, 36), (10, 11), (20, 36)] {
            let (from, to) = (Index::new(low), Index::new(high));
            let read = run.store().entries(RegionId::new(1), from, to, max_bytes);
            let found = super::ok("entries", read);
            let what = format!("entries {low} to {high} in {max_bytes} bytes");
            if found.is_empty() {
                fail(rule, &format!("{what}: none"));
            }
            let bytes: usize = found.iter().map(|entry| entry.data.len()).sum();
            if found.len() > 1 && bytes > max_bytes {
                fail(rule, &format!("{what}: {} of {bytes} bytes", found.len()));
            }
            let prefix = &model.log[(low - 6) as usize..(high - 6) as usize];
            if found.len() > prefix.len() || found[..] != prefix[..found.len()] {
                fail(rule, &format!("{what}: {} that are no prefix", found.len()));
            }
            if max_bytes >= 100 * data && found.len() < prefix.len() {
                fail(rule, &format!("{what}: only {} of {}", found.len(), prefix.len()));
            }
        }
    }
}

fn holes_are_refused<S: LogStoreSubject>(subject: &S) {
    let rule = "no-holes";
    for (what, from, cut) in [
        ("one entry further", 17, 5),
        ("far behind the log", 100, 5),
        ("before the log begins", 8, 10),
    ] {
        let run = Run::new(subject);
        let (mut model, begin) = Model::begin(1);
        run.write(vec![begin, model.append(6, 10, 6, 0)], true);
        if cut > 5 {
            run.write(vec![model.write(|write| write.truncated = Some(truncated(cut, 6)))], true);
        }
        let hole = RegionWrite {
            region_id: RegionId::new(1),
            entries: entries(1, from, 1, 6, 0),
            ..RegionWrite::default()
        };
        // A panic is a refusal too: the store stops at either.
        let write = || run.store().write(&mut LogBatch { writes: vec![hole], ident: None }, true);
        if matches!(catch_unwind(AssertUnwindSafe(write)), Ok(Ok(_))) {
            let log = format!("a log of {} to 15", cut + 1);
            fail(rule, &format!("an entry at {from}, {what}, was taken into {log}"));
        }
    }
}

fn threads_do_not_disturb_each_other<S: LogStoreSubject>(subject: &S) {
    let run = Run::new(subject);
    let mut models = Vec::new();
    let mut histories = Vec::new();
    for id in 1..=4 {
        let (mut model, begin) = Model::begin(id);
        let mut writes = vec![begin];
        for round in 0..60 {
            // Every fourth replaces what the one before has written.
            let from = model.last_index() + 1 - if round % 4 == 3 { 2 } else { 0 };
            writes.push(model.append(from, 3, 6 + round / 4, 100));
        }
        models.push(model);
        histories.push(writes);
    }
    let store = run.store();
    std::thread::scope(|scope| {
        for (writes, id) in histories.into_iter().zip(1..) {
            scope.spawn(move || {
                for (number, write) in writes.into_iter().enumerate() {
                    let last = write.entries.last().cloned();
                    let mut batch = LogBatch { writes: vec![write], ident: None };
                    super::ok("write", store.write(&mut batch, number % 7 == 0));
                    let Some(last) = last else { continue };
                    let (low, high) = (Index::new(last.index), Index::new(last.index + 1));
                    let read = store.entries(RegionId::new(id), low, high, 0);
                    let what = format!("the last entry of region {id}, while others write");
                    expect("visible-at-once", &what, vec![last], super::ok("entries", read));
                }
            });
        }
    });
    let stored = run.load();
    for model in &models {
        model.check("only-its-own", "written while others were", &run, &stored);
    }
}
