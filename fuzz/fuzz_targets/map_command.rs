//! Commands of the ordered map, read from bytes.

#![no_main]

use libfuzzer_sys::fuzz_target;
use raftstore::{Bytes, MapCommand};

fuzz_target!(|input: &[u8]| {
    let bytes = Bytes::copy_from_slice(input);
    if let Ok(command) = MapCommand::decode(bytes.clone()) {
        // There is one way only to write a command.
        assert_eq!(command.encode(), bytes);
    }
});
