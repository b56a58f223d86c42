//! Bytes of a stranger: decoded, and handed to a follower, a leader or a learner.
//!
//! Input: a byte that chooses the region, then frames. A frame is its length (2 bytes, little-endian,
//! cut to what is left) and its bytes, an [`Envelope`] if they decode.

#![no_main]

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::{Buf, Bytes};
use libfuzzer_sys::{fuzz_target, Corpus};
use raft::eraftpb::{Entry, HardState};
use region::{AppliedState, Envelope, Index, Term, TruncatedState};
use region_fuzz::disk::Contents;
use region_fuzz::driven::{description, Driven};

/// A log of 8 entries and three terms, partly committed, less of it applied.
fn driven(choice: u8) -> Driven {
    let (voters, learners) = [(3, 0), (2, 1), (1, 1), (3, 1)][usize::from(choice / 2 % 4)];
    let terms = [5, 5, 6, 6, 6, 8, 8, 8];
    let entry = |index, term| {
        let (context, data) = ([1u8, 1, 1, 1][..].into(), vec![b'x'; 100].into());
        Entry { index, term, context, data, ..Entry::default() }
    };
    let entries = (6..).zip(terms).map(|(index, term)| (index, entry(index, term)));
    let contents = Contents {
        truncated: TruncatedState::INITIAL,
        entries: entries.collect::<BTreeMap<_, _>>(),
        hard_state: Some(HardState { term: 8, vote: 2, commit: 10, ..HardState::default() }),
    };
    let described = description(voters, learners);
    let applied = AppliedState {
        index: Index::new(9),
        term: Term::new(6),
        description: Arc::new(described.clone()),
    };
    let mut driven = Driven::restore(described, contents, Some(applied)).expect("sound");
    if choice % 2 == 1 {
        driven.elect();
        assert!(driven.region().is_leader());
        driven.propose(3, 50);
    }
    driven
}

fn round_trip(envelope: &Envelope) {
    let again = Envelope::decode(&envelope.encode()).expect("encoded here");
    // What is compared includes sizes that encoding has left behind.
    again.encode();
    assert_eq!(again, *envelope);
}

fuzz_target!(|input: &[u8]| -> Corpus {
    let mut input = Bytes::copy_from_slice(input);
    if input.len() < 4 {
        return Corpus::Reject;
    }
    let choice = input.get_u8();
    let mut driven = None;
    while input.len() > 2 && driven.as_ref().is_none_or(|driven: &Driven| !driven.has_failed()) {
        let length = usize::from(input.get_u16_le()).min(input.len());
        let frame = input.split_to(length);
        let Ok(envelope) = Envelope::decode(&frame) else { continue };
        round_trip(&envelope);
        let driven = driven.get_or_insert_with(|| self::driven(choice));
        driven.step(envelope);
        match choice / 8 % 3 {
            0 => driven.drain(),
            1 => drop(driven.collect()),
            _ => driven.tick(1),
        }
    }
    if let Some(mut driven) = driven {
        driven.drain();
        driven.tick(30);
        driven.drain();
    }
    Corpus::Keep
});
