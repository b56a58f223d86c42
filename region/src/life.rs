//! Whether a region works.
//!
//! `Live` goes to `Stopped`; or to `Failing` and, once the failure is reported, to `Failed`; or, when the
//! peer is not in its region any more, to `Removing` and, once that is reported, to `Stopped`. There is no
//! way back: a region that ended is dropped.

use crate::effects::RegionFailure;
use crate::guard::Rejection;
use crate::records::Removal;

/// Whether a region works.
#[derive(Debug)]
pub(crate) enum Life {
    /// It does.
    Live,
    /// Shut down.
    Stopped,
    /// Not of the region any more; still to be reported.
    Removing(Box<Removal>),
    /// Failed; the failure is still to be reported.
    Failing(Box<RegionFailure>),
    /// Failed, and reported.
    Failed,
}

impl Life {
    /// Whether the region works.
    pub(crate) fn is_live(&self) -> bool {
        matches!(self, Life::Live)
    }

    /// Why messages are dropped, if they are.
    pub(crate) fn check(&self) -> Result<(), Rejection> {
        match self {
            Life::Live => Ok(()),
            Life::Stopped | Life::Removing(_) => Err(Rejection::Stopped),
            Life::Failing(_) | Life::Failed => Err(Rejection::Quarantined),
        }
    }

    /// Ends a region that is live; others have ended before.
    pub(crate) fn end(&mut self, as_what: Life) {
        if self.is_live() {
            *self = as_what;
        }
    }

    /// The failure, if it is not reported yet.
    pub(crate) fn take_failure(&mut self) -> Option<RegionFailure> {
        if !matches!(self, Life::Failing(_)) {
            return None;
        }
        match std::mem::replace(self, Life::Failed) {
            Life::Failing(failure) => Some(*failure),
            _ => None,
        }
    }

    /// The region that the peer has left, if that is not reported yet.
    pub(crate) fn take_removal(&mut self) -> Option<Removal> {
        if !matches!(self, Life::Removing(_)) {
            return None;
        }
        match std::mem::replace(self, Life::Stopped) {
            Life::Removing(removal) => Some(*removal),
            _ => None,
        }
    }
}
