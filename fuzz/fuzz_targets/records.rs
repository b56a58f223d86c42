//! Everything that is read back from disk: read from bytes, and what was understood written again.
//!
//! The first byte chooses the record, so that each keeps its own corner of the corpus.

#![no_main]

use std::fmt::Debug;

use bytes::Bytes;
use libfuzzer_sys::{fuzz_target, Corpus};
use protobuf::Message;
use raft::eraftpb::{Entry, HardState};
use region::{
    AppliedState, Command, DecodeError, RegionDescription, RegionId, RegionRecord, StoreIdent,
    TruncatedState,
};

fn check<T: PartialEq + Debug>(
    bytes: &[u8],
    decode: impl Fn(&[u8]) -> Result<T, DecodeError>,
    encode: impl Fn(&T) -> Vec<u8>,
) {
    if let Ok(record) = decode(bytes) {
        let again = decode(&encode(&record)).expect("what was accepted is accepted again");
        assert_eq!(again, record);
    }
}

/// An entry as the log store reads it.
fn check_entry(bytes: &[u8]) {
    let Ok(entry) = Entry::parse_from_carllerche_bytes(&Bytes::copy_from_slice(bytes)) else {
        return;
    };
    let region = RegionId::new(1);
    let Ok(command) = Command::decode(region, entry.clone()) else { return };
    // A command is understood only if nothing about its entry was overlooked.
    let whole = Entry {
        entry_type: entry.entry_type,
        index: entry.index,
        term: entry.term,
        context: entry.context.clone(),
        data: entry.data.clone(),
        sync_log: entry.sync_log,
        ..Entry::default()
    };
    assert_eq!(entry.write_to_bytes().ok(), whole.write_to_bytes().ok(), "{command:?}");
    let written = Bytes::from(entry.write_to_bytes().expect("writing to memory"));
    let again = Entry::parse_from_carllerche_bytes(&written).expect("what was written is read");
    assert_eq!(Command::decode(region, again), Ok(command));
}

/// A hard state as the log store reads it.
fn check_hard_state(bytes: &[u8]) {
    let mut state = HardState::default();
    if state.merge_from_bytes(bytes).is_err() {
        return;
    }
    let written = state.write_to_bytes().expect("writing to memory");
    let mut again = HardState::default();
    again.merge_from_bytes(&written).expect("what was written is read");
    assert_eq!((again.term, again.vote, again.commit), (state.term, state.vote, state.commit));
}

fuzz_target!(|input: &[u8]| -> Corpus {
    let Some((kind, bytes)) = input.split_first() else { return Corpus::Reject };
    match kind {
        0 => check(bytes, RegionDescription::decode, RegionDescription::encode),
        1 => check(bytes, RegionRecord::decode, RegionRecord::encode),
        2 => check(bytes, AppliedState::decode, AppliedState::encode),
        3 => check(bytes, TruncatedState::decode, TruncatedState::encode),
        4 => check(bytes, StoreIdent::decode, StoreIdent::encode),
        5 => check_entry(bytes),
        6 => check_hard_state(bytes),
        _ => return Corpus::Reject,
    }
    Corpus::Keep
});
