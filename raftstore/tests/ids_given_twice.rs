//! Splits whose new regions get ids that others have: a mistake of whoever hands out ids. Nobody's keys are
//! lost by it.

mod common;

use bytes::Bytes;
use common::{config, described, eventually, lead, put, split_at, Cluster, TestMap};
use raftstore::{
    MemoryLogStore, OrderedMap, ProposeError, ReadRequest, RegionDescription, RegionId, Regions,
    SplitError, StoreHandle,
};
use std::sync::mpsc::Sender;
use std::sync::Arc;

fn rid(id: u64) -> RegionId {
    RegionId::new(id)
}

/// Two regions that tile the keys, on the first `stores` stores.
fn two_regions(stores: u64) -> [RegionDescription; 2] {
    let peers = |of: u64| (1..=stores).map(|store| (10 * of + store, store)).collect::<Vec<_>>();
    [described(1, "", "m", &peers(1)), described(2, "m", "", &peers(2))]
}

/// Regions 1 and 2 are split at once, both with a new region 3.
fn split_both(one: &StoreHandle, two: &StoreHandle, peers: [&[u64]; 2]) -> [Regions; 2] {
    for (handle, region, keys) in [(one, 1, ["a", "g"]), (two, 2, ["n", "x"])] {
        lead(handle, region);
        keys.into_iter().for_each(|key| put(handle, region, key));
    }
    let ask = |handle: &StoreHandle, region, request, sender: Sender<Regions>| {
        handle.admin_with(rid(region), request, move |answer| drop(sender.send(answer)));
    };
    let ((first, one_says), (second, two_says)) =
        (std::sync::mpsc::channel(), std::sync::mpsc::channel());
    ask(one, 1, split_at("f", 3, peers[0]), first);
    ask(two, 2, split_at("t", 3, peers[1]), second);
    [one_says, two_says].map(|answer| answer.recv().expect("an answer"))
}

fn is_refused(answer: &Regions) -> bool {
    let in_use = SplitError::RegionIdInUse(rid(3));
    matches!(answer, Err(ProposeError::InvalidSplit { cause, .. }) if **cause == in_use)
}

/// Whether a store shows a key in the region that has it there.
fn shows<M: TestMap>(cluster: &Cluster<M>, store: usize, key: &str) -> bool {
    let region = cluster.handle(store).region_of_key(key.as_bytes());
    region.is_some_and(|region| cluster.maps[store].value(region, key.as_bytes()).is_some())
}

fn nothing_is_lost<M: TestMap>(cluster: &Cluster<M>) {
    for store in 0..cluster.stores.len() {
        assert!(cluster.handle(store).failure().is_none());
        for key in ["a", "g", "n", "x"] {
            eventually("every store has every key", || shows(cluster, store, key));
        }
        for (region, reason) in cluster.handle(store).set_aside() {
            assert!([rid(1), rid(2)].contains(&region), "{region}: {reason}");
            let expected = "would create region 3, which";
            assert!(reason.contains(expected) && reason.contains("handed out twice"), "{reason}");
        }
    }
}

/// Whether each store has carried out one of the splits. The other one may not be heard of everywhere: where two
/// stores have set its region aside, that has no quorum.
fn all_have_split<M: TestMap>(cluster: &Cluster<M>) -> bool {
    cluster.stores.iter().all(|store| store.handle().region(rid(3)).is_some())
}

#[test]
fn of_two_splits_with_one_id_on_one_store_the_second_is_refused() {
    let cluster = Cluster::build_of(
        1,
        &config(),
        |_| OrderedMap::new(),
        |builder, _| builder.log_store(Arc::new(MemoryLogStore::new())),
    );
    cluster.bootstrap(&two_regions(1));
    let handle = cluster.handle(0);
    let answers = split_both(&handle, &handle, [&[31], &[32]]);
    assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 1, "{answers:?}");
    assert_eq!(answers.iter().filter(|answer| is_refused(answer)).count(), 1, "{answers:?}");
    nothing_is_lost(&cluster);
    assert!(handle.set_aside().is_empty());
    // What was refused may be asked again, with another id.
    let (region, key) = if answers[0].is_ok() { (2, "t") } else { (1, "f") };
    handle.admin(rid(region), split_at(key, 4, &[41])).expect("a new id");
    nothing_is_lost(&cluster);
}

#[test]
fn of_two_splits_with_one_id_each_store_carries_out_one() {
    for _ in 0..5 {
        let cluster = Cluster::in_memory(&config());
        cluster.bootstrap(&two_regions(3));
        let (one, two) = (cluster.handle(0), cluster.handle(1));
        let answers = split_both(&one, &two, [&[31, 32, 33], &[34, 35, 36]]);
        if !answers.iter().any(is_refused) {
            eventually("all have decided", || all_have_split(&cluster));
        }
        nothing_is_lost(&cluster);
    }
}

#[cfg(feature = "fjall")]
#[test]
fn of_two_splits_with_one_id_each_store_carries_out_one_on_disk() {
    let dir = tempfile::tempdir().expect("a directory");
    let open = || Cluster::with_maps_on_disk(3, &config(), dir.path());
    let cluster = open();
    cluster.bootstrap(&two_regions(3));
    let (one, two) = (cluster.handle(0), cluster.handle(1));
    let answers = split_both(&one, &two, [&[31, 32, 33], &[34, 35, 36]]);
    let both = !answers.iter().any(is_refused);
    let look = |cluster: Cluster<_>| {
        if both {
            eventually("all have decided", || all_have_split(&cluster));
        }
        nothing_is_lost(&cluster);
        cluster.shutdown();
    };
    look(cluster);
    look(open());
}

/// Region 1 is split on three stores, and the id of its child is that of a region on the second.
fn split_over_a_region_of_a_follower(peers: &[u64]) {
    let cluster = Cluster::in_memory(&config());
    let whole = described(1, "", "m", &[(11, 1), (12, 2), (13, 3)]);
    cluster.bootstrap(&[whole, described(9, "m", "", &[(92, 2)])]);
    let (first, second) = (cluster.handle(0), cluster.handle(1));
    lead(&second, 9);
    lead(&first, 1);
    put(&second, 9, "x");
    put(&first, 1, "g");
    first.admin(rid(1), split_at("f", 9, peers)).expect("two of three stores can");
    eventually("set aside", || second.set_aside().contains_key(&rid(1)));
    let reason = &second.set_aside()[&rid(1)];
    let expected = "would create region 9, which is here already: ids were handed out twice";
    assert!(reason.starts_with("its split at index ") && reason.contains(expected), "{reason}");
    let map = cluster.maps[1].clone();
    let read = second.read(rid(9), ReadRequest::linearizable(), move |_| map.get(rid(9), b"x"));
    assert_eq!(read.expect("it leads"), Some(Bytes::from_static(b"value")));
    put(&second, 9, "y");
    // The others go on with both parts.
    put(&first, 1, "a");
    lead(&first, 9);
    put(&first, 9, "h");
    assert_eq!(second.region_of_key(b"g"), Some(rid(1)), "what is set aside keeps its range");
    assert!(second.failure().is_none());
}

#[test]
fn a_split_spares_a_region_of_a_follower_that_has_the_childs_id() {
    split_over_a_region_of_a_follower(&[94, 95, 96]);
}

#[test]
fn a_split_spares_a_region_of_a_follower_that_has_the_childs_ids_of_region_and_peer() {
    split_over_a_region_of_a_follower(&[91, 92, 93]);
}

#[test]
fn a_split_spares_a_region_of_a_follower_with_an_earlier_peer() {
    split_over_a_region_of_a_follower(&[81, 82, 83]);
}
