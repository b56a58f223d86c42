//! How a [`FjallMap`](super::FjallMap) is set up.

use crate::config::exactly;
use crate::state_machine::StateMachineError;
use bytesize::ByteSize;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Below this fjall refuses to work.
const MIN_JOURNAL: ByteSize = ByteSize::mib(64);
const MAX_WORKERS: usize = 64;
const MAX_INTERVAL: Duration = Duration::from_secs(600);

/// How a [`FjallMap`](crate::FjallMap) is set up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FjallConfig {
    /// Blocks of tables that are kept in memory.
    #[serde(serialize_with = "exactly")]
    pub cache: ByteSize,
    /// Journals beyond this size have their contents moved to tables. At least 64 MiB.
    #[serde(serialize_with = "exactly")]
    pub max_journal: ByteSize,
    /// Threads that write tables and compact them; 1 to 64.
    pub workers: usize,
    /// What was applied is synced after this time at the latest; 1 ms to 10 min. The log of a region is
    /// kept that much longer, and so much may have to be applied again after a power loss.
    #[serde(with = "humantime_serde")]
    pub sync_interval: Duration,
    /// What was applied is synced once it is this much; at least 1 byte.
    #[serde(serialize_with = "exactly")]
    pub sync_bytes: ByteSize,
}

impl Default for FjallConfig {
    fn default() -> Self {
        Self {
            cache: ByteSize::mib(32),
            max_journal: ByteSize::mib(512),
            workers: 2,
            sync_interval: Duration::from_secs(1),
            sync_bytes: ByteSize::mib(32),
        }
    }
}

impl FjallConfig {
    /// Checks each value against its range.
    ///
    /// # Errors
    /// Names the first key that is out of range, its value, and what is allowed.
    pub fn validate(&self) -> Result<(), StateMachineError> {
        let refuse = |key: &str, value: String, allowed: &str| {
            Err(StateMachineError(format!("FjallConfig: {key} is {value}, allowed is {allowed}")))
        };
        if self.max_journal < MIN_JOURNAL {
            return refuse("max_journal", self.max_journal.to_string(), "64 MiB and more");
        }
        if !(1..=MAX_WORKERS).contains(&self.workers) {
            return refuse("workers", self.workers.to_string(), "1 to 64");
        }
        if !(Duration::from_millis(1)..=MAX_INTERVAL).contains(&self.sync_interval) {
            return refuse("sync_interval", format!("{:?}", self.sync_interval), "1ms to 10min");
        }
        if self.sync_bytes.as_u64() == 0 {
            return refuse("sync_bytes", self.sync_bytes.to_string(), "1 B and more");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_out_of_range_are_refused_by_name() {
        let sound = FjallConfig::default();
        assert!(sound.validate().is_ok());
        for (config, key) in [
            (FjallConfig { max_journal: ByteSize::mib(63), ..sound.clone() }, "max_journal"),
            (FjallConfig { workers: 0, ..sound.clone() }, "workers"),
            (FjallConfig { sync_interval: Duration::ZERO, ..sound.clone() }, "sync_interval"),
            (FjallConfig { sync_bytes: ByteSize::b(0), ..sound.clone() }, "sync_bytes"),
        ] {
            let error = config.validate().expect_err(key).to_string();
            assert!(error.starts_with(&format!("FjallConfig: {key} is ")), "{error}");
        }
    }
}
