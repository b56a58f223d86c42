//! One write, from `propose` to its answer, station by station. Read the files in this order.
//!
//! ```text
//! propose ─► mailbox ─► 1 propose ─► 2 collect ─► 3 persist ─► 4 send ──┐ quorum (other stores, same path)
//! answer  ◄─ 6 respond ◄─ 5 apply  ◄──────── committed entries ◄────────┘
//! ```
//!
//! A station is a struct with what it gathers in a round and what it needs to carry that out. The
//! poller ([`crate::poller`]) owns one of each and calls them in this order.

pub(crate) mod propose;

pub(crate) mod collect;

pub(crate) mod persist;

pub(crate) mod send;

pub(crate) mod apply;

pub(crate) mod respond;

/// The stations, as metrics and reports name them. `Propose` and `Send` are measured for the oldest
/// proposal of a region and round, the others once a round, batch or task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    /// From the caller's `propose` until a poller has taken the proposal from the mailbox.
    Propose,
    /// From there until all regions of the round have been handled and their messages collected; where commands are
    /// applied region by region, that as well.
    Collect,
    /// Writing, and syncing, the log of a round; with log writers their queue included.
    Persist,
    /// From being appended by the leader until committed by a quorum: the other stores' stations 1
    /// to 4, and this store's persist.
    Send,
    /// Applying a round's committed commands, or the first region's of a round where they are applied region by region.
    Apply,
    /// Running a round's callbacks.
    Respond,
}

impl Stage {
    /// All of them, in the order of the path.
    pub const ALL: [Stage; 6] =
        [Stage::Propose, Stage::Collect, Stage::Persist, Stage::Send, Stage::Apply, Stage::Respond];

    /// The name in metrics and reports.
    pub const fn name(self) -> &'static str {
        match self {
            Stage::Propose => "propose",
            Stage::Collect => "collect",
            Stage::Persist => "persist",
            Stage::Send => "send",
            Stage::Apply => "apply",
            Stage::Respond => "respond",
        }
    }
}
