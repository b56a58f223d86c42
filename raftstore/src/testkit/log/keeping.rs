//! What a log store that is opened again must find.

use super::{expect, fail, hard_state, record, truncated, LogStoreSubject, Model, Run};
use crate::{LogBatch, LogStore, RegionWrite, StoreId, StoreIdent, Stored};
use std::sync::Arc;

pub(super) fn all<S: LogStoreSubject>(subject: &S) {
    parts_are_replaced_whole_or_stay(subject);
    identity_is_kept(subject);
    synced_writes_are_kept(subject);
    a_batch_is_found_in_its_order(subject);
    a_batch_with_a_cut_is_found_whole_or_not(subject);
}

fn parts_are_replaced_whole_or_stay<S: LogStoreSubject>(subject: &S) {
    let rule = "parts-are-whole";
    let mut run = Run::new(subject);
    let (mut model, begin) = Model::begin(1);
    let (other, begin_other) = Model::begin(2);
    run.write(vec![begin, begin_other], true);
    let mut changed = record(1, false);
    Arc::make_mut(&mut changed.description).epoch.version = 9;
    changed.installing = Some(truncated(8, 6));
    let steps: Vec<(&str, RegionWrite)> = vec![
        ("a hard state", model.write(|write| write.hard_state = Some(hard_state(6, 11, 5)))),
        ("entries", model.append(6, 8, 6, 0)),
        (
            "a hard state without a vote",
            model.write(|write| {
                write.hard_state = Some(hard_state(7, 0, 0));
            }),
        ),
        ("a record", model.write(|write| write.record = Some(Box::new(changed)))),
        ("a truncated index", model.write(|write| write.truncated = Some(truncated(8, 6)))),
        ("nothing", model.write(|_| {})),
    ];
    // As it stands after all of them; each by itself is seen in the last.
    for (_, write) in steps {
        run.write(vec![write], true);
    }
    let check = |run: &Run<'_, S>, what: &str, stored: &Stored| {
        model.check(rule, what, run, stored);
        other.check("only-its-own", what, run, stored);
    };
    check(&run, "written part by part", &run.load());
    if !run.is_volatile() {
        let stored = run.restart();
        check(&run, "written part by part, and opened again", &stored);
    }
}

fn identity_is_kept<S: LogStoreSubject>(subject: &S) {
    let rule = "ident-is-kept";
    let mut run = Run::new(subject);
    let ident = StoreIdent { cluster_id: 7, store_id: StoreId::new(3) };
    let (model, begin) = Model::begin(1);
    let mut batch = LogBatch { writes: vec![begin], ident: Some(ident) };
    super::ok("write", run.store().write(&mut batch, true));
    if !batch.is_empty() {
        fail("batch-is-emptied", &format!("{batch:?} is left"));
    }
    expect(rule, "written", Some(ident), run.load().ident);
    if run.is_volatile() {
        return;
    }
    for _ in 0..2 {
        let stored = run.restart();
        expect(rule, "opened again", Some(ident), stored.ident);
        model.check("batch-is-atomic", "written with the identity", &run, &stored);
    }
}

fn synced_writes_are_kept<S: LogStoreSubject>(subject: &S) {
    let mut run = Run::new(subject);
    if run.is_volatile() {
        return;
    }
    let mut models = Vec::new();
    let mut begin = Vec::new();
    for id in 1..=50 {
        let (model, write) = Model::begin(id);
        models.push(model);
        begin.push(write);
    }
    run.write(begin, true);
    for life in 0..3 {
        for round in 0..10 {
            let mut batch = Vec::new();
            for model in models.iter_mut().skip(round % 3).step_by(3) {
                let (term, last) = (6 + life * 10 + round as u64, model.last_index());
                let replaced = u64::from(last > 12 && round % 4 == 1);
                batch.push(model.append(last + 1 - replaced, 3, term, 50));
                batch.push(model.write(|write| {
                    write.hard_state = Some(hard_state(term, 1, last));
                    let cut = last.saturating_sub(4).max(5);
                    write.truncated = (round % 5 == 4).then(|| truncated(cut, 6));
                }));
            }
            // The last one of each life is synced, and so all before it are.
            run.write(batch, round == 9);
        }
        let stored = run.restart();
        expect("synced-is-kept", "number of regions", models.len(), stored.regions.len());
        for model in &models {
            model.check("synced-is-kept", &format!("opened again ({life})"), &run, &stored);
        }
    }
}

/// Regions that have one entry, synced.
fn begin_with_an_entry<S: LogStoreSubject>(run: &Run<'_, S>, count: u64) -> Vec<Model> {
    let mut models = Vec::new();
    let mut begin = Vec::new();
    for id in 1..=count {
        let (mut model, mut write) = Model::begin(id);
        write.entries = model.append(6, 1, 6, 0).entries;
        models.push(model);
        begin.push(write);
    }
    run.write(begin, true);
    models
}

/// Where the logs end, in the order of the regions.
fn ends(stored: &Stored, count: usize) -> Vec<u64> {
    let mut ends: Vec<(u64, u64)> = stored
        .regions
        .iter()
        .map(|region| (region.record.description.id.get(), region.last_index.get()))
        .collect();
    ends.sort_unstable();
    expect("synced-is-kept", "number of regions", count, ends.len());
    ends.into_iter().map(|(_, end)| end).collect()
}

fn a_batch_is_found_in_its_order<S: LogStoreSubject>(subject: &S) {
    let mut run = Run::new(subject);
    if run.is_volatile() {
        return;
    }
    let mut models = begin_with_an_entry(&run, 200);
    // Not synced: each batch appends one entry to every region.
    for index in 7..12 {
        let batch = models.iter_mut().map(|model| model.append(index, 1, 6, 0)).collect();
        run.write(batch, false);
        for model in &models {
            run.expect_log("visible-at-once", "one batch for 200 regions", model.id, &model.log);
        }
    }
    let stored = run.restart();
    let ends = ends(&stored, models.len());
    // No batch before the one before it, and none but from its first write on.
    let in_order = ends.is_sorted_by(|one, next| one >= next) && ends[0] <= ends[199] + 1;
    if !in_order {
        fail(
            "batch-is-in-order",
            &format!("200 regions in each batch: their logs end at {ends:?}"),
        );
    }
    if ends[199] < 6 {
        fail("synced-is-kept", &format!("entries up to 6 were synced, logs end at {ends:?}"));
    }
    for (model, end) in models.iter_mut().zip(ends) {
        model.log.retain(|entry| entry.index <= end);
        model.check("order-is-kept", "written without sync, and opened again", &run, &stored);
    }
}

fn a_batch_with_a_cut_is_found_whole_or_not<S: LogStoreSubject>(subject: &S) {
    let mut run = Run::new(subject);
    if run.is_volatile() {
        return;
    }
    let mut models = begin_with_an_entry(&run, 200);
    let mut batch: Vec<RegionWrite> =
        models.iter_mut().map(|model| model.append(7, 1, 6, 0)).collect();
    batch.push(models[100].write(|write| write.truncated = Some(truncated(6, 6))));
    run.write(batch, false);
    let stored = run.restart();
    let ends = ends(&stored, models.len());
    if ends.iter().any(|end| *end != ends[0]) {
        let what = format!("one batch for 200 regions, one of which is cut: logs end at {ends:?}");
        fail("batch-is-atomic", &what);
    }
    if ends[0] == 7 {
        models[100].check("batch-is-atomic", "cut in a batch, and opened again", &run, &stored);
    }
}
