//! What the fuzz targets share: one region, its disk, and whoever drives it.
//!
//! | module | what it is |
//! |---|---|
//! | [`disk`] | a log in memory |
//! | [`driven`] | a region whose effects are carried out one by one, and its peers |
//! | [`history`] | a start and events, made of the fuzzer's bytes |
//!
//! Nothing here looks for panics: they are the fuzzer's business. What is asserted is what a region
//! promises to whoever drives it, and none of it may depend on what strangers send.

#![forbid(unsafe_code)]

pub mod disk;
pub mod driven;
pub mod history;
