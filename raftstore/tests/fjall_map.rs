//! The map on disk: what the conformance kit does not ask of every state machine.

#![cfg(feature = "fjall")]

mod common;

use common::{copy_directory, eventually, region};
use raftstore::{
    AppliedState, ByteSize, Bytes, Command, FjallConfig, FjallMap, Index, InstallError, MapAnswer,
    MapCommand, OrderedMap, Pieces, RegionCommands, RegionDescription, RegionId, StateMachine,
    Term,
};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

fn open(path: &Path) -> FjallMap {
    FjallMap::open(path, &FjallConfig::default()).expect("opens")
}

fn described(id: u64, start: &str, end: &str) -> RegionDescription {
    let (start_key, end_key) = (Bytes::from(start.to_owned()), Bytes::from(end.to_owned()));
    RegionDescription { start_key, end_key, ..region(id, 1) }
}

fn applied(description: &RegionDescription, index: u64) -> AppliedState {
    let (index, term) = (Index::new(index), Term::new(6));
    AppliedState { index, term, description: Arc::new(description.clone()) }
}

/// Commands that end at this index.
fn part(description: &RegionDescription, index: u64, commands: &[MapCommand]) -> RegionCommands {
    let first = index + 1 - commands.len() as u64;
    let command = |(command, at): (&MapCommand, u64)| Command {
        index: Index::new(at),
        term: Term::new(6),
        payload: command.encode(),
        output: Bytes::new(),
    };
    RegionCommands {
        region_id: description.id,
        commands: commands.iter().zip(first..).map(command).collect(),
        applied: applied(description, index),
    }
}

fn put(key: &str, value: &str) -> MapCommand {
    MapCommand::put(key.to_owned(), value.to_owned())
}

fn apply(map: &FjallMap, parts: Vec<RegionCommands>) -> Vec<String> {
    let mut parts = parts;
    map.apply(&mut parts).expect("applied");
    let commands = parts.iter().flat_map(|part| &part.commands);
    let text = |command: &Command| match MapAnswer::decode(command.output.clone()) {
        Ok(MapAnswer::Done(None)) => String::new(),
        Ok(MapAnswer::Done(Some(value))) => String::from_utf8_lossy(&value).into_owned(),
        Ok(MapAnswer::Refused(reason)) => format!("refused: {reason}"),
        Err(error) => panic!("{error}"),
    };
    commands.map(text).collect()
}

fn keys(map: &FjallMap) -> Vec<String> {
    let pairs = map.scan_all(usize::MAX).expect("readable");
    pairs.into_iter().map(|(key, _)| String::from_utf8_lossy(&key).into_owned()).collect()
}

#[test]
fn answers_are_values_before_and_reasons() {
    let dir = tempfile::tempdir().expect("a directory");
    let map = open(dir.path());
    let left = described(1, "", "m");
    let narrow = described(1, "", "c");
    let long = "k".repeat(65_536);
    let commands = [put("a", "1"), put("a", "2"), MapCommand::delete("a"), put("a", "3")];
    let outputs = apply(
        &map,
        vec![
            part(&left, 9, &commands),
            part(&left, 13, &[put("m", "x"), put("", "x"), put(&long, "x"), put("d", "1")]),
            // Its range has changed since.
            part(&narrow, 16, &[put("d", "2"), MapCommand::delete("d"), put("b", "1")]),
        ],
    );
    let outside = "refused: the key is not in the range of the region";
    let empty = "refused: a key must not be empty";
    let too_long = "refused: a key must not be longer than 65535 bytes";
    let expected = ["", "1", "2", "", outside, empty, too_long, "", outside, outside, ""];
    assert_eq!(outputs, expected);
    // The rest is not the region's any more, also where it is there.
    assert_eq!(keys(&map), ["a", "b", "d"]);
    let (one, two) = (RegionId::new(1), RegionId::new(2));
    let get = |region, key: &[u8]| map.get(region, key).expect("readable");
    assert_eq!(get(one, b"a").as_deref(), Some(&b"3"[..]));
    assert_eq!((get(one, b"m"), get(one, b"d"), get(two, b"d")), (None, None, None));
    let right = described(2, "c", "");
    apply(&map, vec![part(&right, 6, &[])]);
    assert_eq!((get(one, b"d"), get(two, b"d").as_deref()), (None, Some(&b"1"[..])));
    assert_eq!(map.scan(one, b"", 1).expect("readable").len(), 1);
    assert_eq!(map.scan(one, b"aa", 9).expect("readable"), [("b".into(), "1".into())]);
    assert_eq!(map.scan(one, b"d", 9).expect("readable"), []);
    assert_eq!(map.scan(two, b"", 9).expect("readable"), [("d".into(), "1".into())]);
    let mut damaged = part(&left, 17, &[put("a", "4")]);
    damaged.commands[0].payload = Bytes::from_static(b"no");
    assert_eq!(apply(&map, vec![damaged]), ["refused: not a map command: shorter than its header"]);
}

#[test]
fn what_is_applied_becomes_durable_by_itself() {
    let dir = tempfile::tempdir().expect("a directory");
    let all = described(1, "", "");
    let never = Duration::from_secs(600);
    for (sync_interval, sync_bytes) in
        [(Duration::from_millis(1), ByteSize::gib(1)), (never, ByteSize::b(1000))]
    {
        let config = FjallConfig { sync_interval, sync_bytes, ..FjallConfig::default() };
        let map = FjallMap::open(dir.path(), &config).expect("opens");
        let begin = map.durable_index(all.id).get().max(5);
        for index in begin + 1..=begin + 5 {
            apply(&map, vec![part(&all, index, &[put("key", &"x".repeat(500))])]);
        }
        // With 500 bytes each the last one may be left for the next sync.
        let enough = begin + if sync_interval == never { 4 } else { 5 };
        eventually("it is synced", || map.durable_index(all.id).get() >= enough);
    }
}

#[test]
fn a_map_that_cannot_be_opened_says_why() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("map");
    let config = FjallConfig::default();
    let open = |path: &Path, config| FjallMap::open(path, config).expect_err("refused").to_string();
    let map = FjallMap::open(&path, &config).expect("opens");
    let error = open(&path, &config);
    assert!(error.contains("in use by another process"), "{error}");
    assert!(error.contains(path.to_str().expect("UTF-8")), "{error}");
    drop(map);
    let file = dir.path().join("file");
    std::fs::write(&file, "no directory").expect("written");
    assert!(open(&file, &config).contains(file.to_str().expect("UTF-8")));
    let error = open(&path, &FjallConfig { workers: 0, ..config });
    assert_eq!(error, "FjallConfig: workers is 0, allowed is 1 to 64");
}

#[test]
fn a_damaged_applied_state_names_its_region_and_leaves_the_others() {
    let dir = tempfile::tempdir().expect("a directory");
    let (left, right) = (described(1, "", "m"), described(2, "m", ""));
    let parts = vec![part(&left, 6, &[put("a", "1")]), part(&right, 6, &[put("n", "1")])];
    apply(&open(dir.path()), parts);
    {
        let db = fjall::Database::builder(dir.path()).open().expect("opens");
        let meta = db.keyspace("meta", Default::default).expect("there");
        meta.insert(1u64.to_be_bytes(), "no state").expect("written");
    }
    let map = open(dir.path());
    for error in [
        map.applied_state(left.id).expect_err("damaged").to_string(),
        map.snapshot(left.id).err().expect("damaged").to_string(),
    ] {
        assert!(error.starts_with("region 1: its applied state in "), "{error}");
        assert!(error.contains("Remove this peer") && error.contains("docs/repair.md"), "{error}");
    }
    assert_eq!(map.applied_state(right.id).expect("sound"), Some(applied(&right, 6)));
    assert_eq!(map.durable_index(left.id), Index::new(0));
    assert_eq!(map.durable_index(right.id), Index::new(6), "what was opened is synced");
    // It can be discarded. Which keys were its own is not known: they stay until something is installed there.
    map.destroy(left.id).expect("destroyed");
    assert_eq!(map.applied_state(left.id).expect("nothing is there"), None);
    assert_eq!(map.applied_state(right.id).expect("sound"), Some(applied(&right, 6)));
    assert_eq!(keys(&map), ["a", "n"]);
    map.install(&mut Pieces::new(applied(&left, 9), [piece(&[("b", "2")])])).expect("installed");
    assert_eq!(keys(&map), ["b", "n"]);
}

/// A piece as the maps write it.
fn piece(pairs: &[(&str, &str)]) -> Bytes {
    let mut piece = Vec::new();
    for (key, value) in pairs {
        let put = put(key, value).encode();
        piece.extend_from_slice(&(put.len() as u32).to_be_bytes());
        piece.extend_from_slice(&put);
    }
    piece.into()
}

#[test]
fn pieces_that_do_not_belong_are_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let map = open(dir.path());
    let (mine, other) = (described(1, "b", "m"), described(2, "m", ""));
    apply(&map, vec![part(&other, 6, &[put("n", "1")])]);
    let whole = piece(&[("c", "1")]);
    for (pieces, reason) in [
        (vec![piece(&[("c", "1"), ("n", "2")])], "not in the range"),
        (vec![piece(&[("d", "1")]), piece(&[("c", "1")])], "out of order"),
        (vec![piece(&[("c", "1"), ("c", "2")])], "out of order"),
        (vec![whole.slice(..whole.len() - 1)], "is cut"),
        (vec![whole.slice(..3)], "is cut"),
    ] {
        let mut source = Pieces::new(applied(&mine, 9), pieces);
        let error = map.install(&mut source).expect_err("refused");
        assert!(matches!(error, InstallError::Unsound(_)), "the disk has not failed: {error:?}");
        let error = error.to_string();
        assert!(error.starts_with("region 1: a piece of its snapshot "), "{error}");
        assert!(error.contains(reason), "{error}");
        assert_eq!(map.applied_state(mine.id).expect("readable"), None);
    }
    map.install(&mut Pieces::new(applied(&mine, 9), [whole])).expect("sound");
    assert_eq!(keys(&map), ["c", "n"]);
}

#[test]
fn what_an_installation_leaves_is_cleared_but_for_what_others_have_by_now() {
    let dir = tempfile::tempdir().expect("a directory");
    let (old, new) = (described(1, "b", "z"), described(1, "b", "d"));
    let cut = || Pieces::new(applied(&new, 9), [piece(&[("c", "half")]), piece(&[("a", "no")])]);
    for then_destroy in [false, true] {
        let path = dir.path().join(then_destroy.to_string());
        let map = open(&path);
        let commands: Vec<MapCommand> = ["b", "c", "e", "p", "y"].map(|key| put(key, "old")).into();
        apply(&map, vec![part(&old, 10, &commands)]);
        map.install(&mut cut()).expect_err("cut short");
        drop(map);
        let map = open(&path);
        // The rest of the old range has gone to others meanwhile.
        let (child, last) = (described(2, "e", "p"), described(3, "p", ""));
        apply(&map, vec![part(&child, 6, &[put("f", "1")]), part(&last, 6, &[put("p", "1")])]);
        if then_destroy {
            map.destroy(new.id).expect("destroyed");
            assert_eq!(keys(&map), ["f", "p"]);
        } else {
            let mut whole = Pieces::new(applied(&new, 9), [piece(&[("c", "whole")])]);
            map.install(&mut whole).expect("sound");
            assert_eq!(keys(&map), ["c", "f", "p"]);
        }
        map.destroy(child.id).expect("destroyed");
        map.destroy(last.id).expect("destroyed");
        map.destroy(new.id).expect("destroyed");
        assert_eq!(keys(&map), [""; 0]);
    }
}

#[test]
fn an_installation_spares_what_others_have_of_the_range_before() {
    let dir = tempfile::tempdir().expect("a directory");
    let map = open(dir.path());
    let (old, new, child) =
        (described(1, "b", "z"), described(1, "b", "d"), described(2, "e", "p"));
    let commands: Vec<MapCommand> = ["b", "c", "d", "q"].map(|key| put(key, "old")).into();
    apply(&map, vec![part(&old, 10, &commands)]);
    // It came by a snapshot of its own, before the parent heard of the split.
    map.install(&mut Pieces::new(applied(&child, 9), [piece(&[("f", "1")])])).expect("sound");
    map.install(&mut Pieces::new(applied(&new, 11), [piece(&[("bb", "1")])])).expect("sound");
    assert_eq!(keys(&map), ["bb", "f"]);
}

#[test]
fn snapshots_of_the_two_maps_are_the_same() {
    let dir = tempfile::tempdir().expect("a directory");
    let map = open(dir.path());
    let mine = described(1, "b", "m");
    let large = "x".repeat(100 << 10);
    let commands: Vec<MapCommand> =
        (0..40).map(|number| put(&format!("c{number:03}"), &large)).collect();
    let parts = vec![part(&mine, 45, &commands)];
    apply(&map, parts.clone());
    let ordered = OrderedMap::new();
    ordered.apply(&mut parts.clone()).expect("in memory");
    let read = |machine: &dyn StateMachine| {
        let mut source = machine.snapshot(mine.id).expect("there");
        std::iter::from_fn(|| source.next_piece().expect("readable")).collect::<Vec<_>>()
    };
    let pieces = read(&map);
    assert_eq!(pieces, read(&ordered));
    assert!(pieces.len() > 10 && pieces.iter().all(|piece| piece.len() <= 256 << 10));
    let copy = OrderedMap::new();
    copy.install(&mut *map.snapshot(mine.id).expect("there")).expect("sound");
    assert_eq!(copy.fingerprint(mine.id), ordered.fingerprint(mine.id));
}

/// Steps over two regions at once; after each, what there must be.
fn steps(map: &FjallMap) -> Vec<BTreeMap<Bytes, Bytes>> {
    let (left, right) = (described(1, "", "m"), described(2, "m", ""));
    let mut states = vec![BTreeMap::new()];
    for number in 0..20u64 {
        let (one, other) = (format!("a{}", number % 4), format!("n{}", number % 3));
        let value = "v".repeat(1 + number as usize * 7) + &number.to_string();
        apply(
            map,
            vec![
                part(&left, 6 + number, &[put(&one, &value)]),
                part(&right, 6 + number, &[put(&other, &value)]),
            ],
        );
        let mut state = states.last().expect("not empty").clone();
        state.insert(one.into(), value.clone().into());
        state.insert(other.into(), value.into());
        states.push(state);
    }
    states
}

/// What there is must be one of these, and both regions must say which.
fn assert_is_a_step(map: &FjallMap, states: &[BTreeMap<Bytes, Bytes>], what: &str) -> u64 {
    let index = |id| {
        let applied = map.applied_state(RegionId::new(id)).expect("sound");
        applied.map_or(5, |applied| applied.index.get())
    };
    assert_eq!(index(1), index(2), "{what}: a batch is one step");
    let there: BTreeMap<Bytes, Bytes> = [1, 2]
        .into_iter()
        .flat_map(|id| map.scan(RegionId::new(id), b"", usize::MAX).expect("readable"))
        .collect();
    assert_eq!(there, states[index(1) as usize - 5], "{what}");
    index(1)
}

/// As a power loss leaves it: the journal ends anywhere, or holds a sector of zeros.
#[test]
fn a_torn_journal_is_a_step_that_was_or_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let whole = dir.path().join("whole");
    let map = open(&whole);
    let states = steps(&map);
    map.flush().expect("synced");
    let journals =
        std::fs::read_dir(&whole).expect("readable").map(|entry| entry.expect("readable"));
    let journal = journals
        .map(|entry| entry.file_name())
        .find(|name| name.to_string_lossy().ends_with(".jnl"))
        .expect("one journal");
    let bytes = std::fs::read(whole.join(&journal)).expect("readable");
    let end = bytes.iter().rposition(|byte| *byte != 0).expect("not empty") + 1;
    let (mut found, mut refused) = (Vec::new(), 0);
    for number in 0..60 {
        let at = end * (number / 2) / 30;
        let path = dir.path().join(number.to_string());
        copy_directory(&whole, &path);
        let mut torn = bytes.clone();
        match number % 2 {
            0 => torn.truncate(at),
            _ => torn[at..(at + 512).min(end)].fill(0),
        }
        std::fs::write(path.join(&journal), &torn).expect("written");
        let what = format!("journal of {end} bytes, torn at {at} ({})", number % 2);
        match FjallMap::open(&path, &FjallConfig::default()) {
            Ok(map) => found.push(assert_is_a_step(&map, &states, &what)),
            Err(error) => {
                assert!(number % 2 == 1, "{what}: {error}");
                assert!(error.to_string().contains(path.to_str().expect("UTF-8")), "{error}");
                refused += 1;
            }
        }
    }
    println!("{} opened, at {found:?}; {refused} refused", found.len());
    assert!(found.len() >= 30 && found.iter().max() > Some(&20), "{found:?}");
}
