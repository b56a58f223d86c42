//! Settings, read from text.

#![no_main]

use libfuzzer_sys::{fuzz_target, Corpus};
use raftstore::StoreConfig;

fuzz_target!(|input: &[u8]| -> Corpus {
    let Ok(text) = std::str::from_utf8(input) else { return Corpus::Reject };
    let config = match StoreConfig::from_toml(text) {
        Ok(config) => config,
        Err(error) => {
            let error = error.to_string();
            assert!(!error.contains('\n'), "one line: {error:?}");
            return Corpus::Keep;
        }
    };
    config.validate().expect("it was accepted");
    let written = toml::to_string(&config).expect("what was read can be written");
    let again = StoreConfig::from_toml(&written).expect("what was accepted is accepted again");
    assert_eq!(again, config, "{written}");
    Corpus::Keep
});
