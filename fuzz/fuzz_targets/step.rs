//! Messages that are nearly right, in any order with everything else that happens to a region.
//!
//! raft-rs panics on messages that it takes for impossible; the guard is there so that none reaches
//! it. The state on disk at the start is nearly right as well: it is refused, or all goes well.

#![no_main]

use libfuzzer_sys::fuzz_target;
use region_fuzz::history::History;

fuzz_target!(|history: History| history.run());
