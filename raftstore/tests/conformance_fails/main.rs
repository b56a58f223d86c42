//! The conformance kit finds what is broken: state machines and log stores with one fault each.

#![cfg(feature = "testkit")]

mod broken_log_store;
mod broken_state_machine;

use std::panic::{catch_unwind, AssertUnwindSafe};

/// `check` must panic at this rule.
fn breaks(rule: &str, check: impl FnOnce()) {
    let panic = catch_unwind(AssertUnwindSafe(check)).expect_err("nothing was found");
    let text = panic.downcast_ref::<String>().cloned().unwrap_or_default();
    assert!(text.starts_with(&format!("rule `{rule}` is broken (")), "{rule}: {text}");
}
