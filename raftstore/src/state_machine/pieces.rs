//! Contents of a region that are in memory already.

use super::{SnapshotSource, StateMachineError};
use bytes::Bytes;
use region::AppliedState;

/// A [`SnapshotSource`] for state machines that are small or whose pieces are an iterator anyway.
pub struct Pieces {
    applied: AppliedState,
    pieces: Box<dyn Iterator<Item = Bytes> + Send>,
}

impl Pieces {
    /// Contents as of `applied`.
    pub fn new(
        applied: AppliedState,
        pieces: impl IntoIterator<Item = Bytes, IntoIter: Send + 'static>,
    ) -> Self {
        Self { applied, pieces: Box::new(pieces.into_iter()) }
    }
}

impl SnapshotSource for Pieces {
    fn applied(&self) -> &AppliedState {
        &self.applied
    }

    fn next_piece(&mut self) -> Result<Option<Bytes>, StateMachineError> {
        Ok(self.pieces.next())
    }
}
