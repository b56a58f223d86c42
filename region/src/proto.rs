//! The generated messages of `proto/region.proto`. Private: what they mean, and which of their
//! values are sound, is the business of the types that encode and decode them.
#![allow(
    missing_docs,
    rust_2018_idioms,
    unreachable_pub,
    dead_code,
    unknown_lints,
    mismatched_lifetime_syntaxes,
    unused_imports,
    unused_parens,
    unused_results,
    non_camel_case_types,
    non_snake_case,
    non_upper_case_globals,
    trivial_casts,
    clippy::all
)]

include!(concat!(env!("OUT_DIR"), "/region.rs"));
