//! What raft-rs logs, as `tracing` events of the target `raft`.
//!
//! raft-rs logs through `slog`. One root logger serves all regions; raft-rs adds `raft_id` itself.
//! Where a level is off, a record costs one check and is not formatted. In release builds slog
//! compiles `debug` and `trace` away, so the hot path has no check either.

use std::fmt::{self, Write};
use std::sync::OnceLock;

use slog::{Drain, Key, Level, Logger, Never, OwnedKVList, Record, Serializer, KV};

/// The logger handed to raft-rs.
pub(crate) fn raft_logger() -> &'static Logger {
    static LOGGER: OnceLock<Logger> = OnceLock::new();
    LOGGER.get_or_init(|| Logger::root(TracingDrain, slog::o!()))
}

struct TracingDrain;

macro_rules! forward {
    ($level:ident, $record:expr, $values:expr) => {
        if tracing::enabled!(target: "raft", tracing::Level::$level) {
            let text = format($record, $values);
            tracing::event!(target: "raft", tracing::Level::$level, "{text}");
        }
    };
}

impl Drain for TracingDrain {
    type Ok = ();
    type Err = Never;

    fn log(&self, record: &Record<'_>, values: &OwnedKVList) -> Result<(), Never> {
        match record.level() {
            Level::Critical | Level::Error => forward!(ERROR, record, values),
            Level::Warning => forward!(WARN, record, values),
            Level::Info => forward!(INFO, record, values),
            Level::Debug => forward!(DEBUG, record, values),
            Level::Trace => forward!(TRACE, record, values),
        }
        Ok(())
    }
}

/// `message key=value key=value`.
fn format(record: &Record<'_>, values: &OwnedKVList) -> String {
    struct Pairs(String);

    impl Serializer for Pairs {
        fn emit_arguments(&mut self, key: Key, value: &fmt::Arguments<'_>) -> slog::Result {
            write!(self.0, " {key}={value}").map_err(|_| slog::Error::Other)
        }
    }

    let mut pairs = Pairs(record.msg().to_string());
    // A value that fails to print is left out; there is nobody to tell.
    let _ = record.kv().serialize(record, &mut pairs);
    let _ = values.serialize(record, &mut pairs);
    pairs.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_carry_their_values() {
        struct Check;
        impl Drain for Check {
            type Ok = ();
            type Err = Never;
            fn log(&self, record: &Record<'_>, values: &OwnedKVList) -> Result<(), Never> {
                assert_eq!(format(record, values), "became leader term=7 raft_id=3");
                Ok(())
            }
        }
        let logger = Logger::root(Check, slog::o!("raft_id" => 3));
        slog::info!(logger, "became leader"; "term" => 7);
    }
}
