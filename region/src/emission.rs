//! From committed entries to commands to apply.
//!
//! The second look at the epoch is here: between propose and commit a region may have been split or
//! have got other peers. A command of another epoch is carried out by no peer, and its proposer is
//! told what the region is now.

use std::sync::Arc;

use raft::eraftpb::Entry;

use crate::admission::epoch_not_match;
use crate::answer::{Answer, Callback};
use crate::command::{Command, CommandError};
use crate::description::{AppliedState, RegionDescription};
use crate::effects::{ApplyBatch, ApplyCommand};
use crate::entry_cache::entry_bytes;
use crate::ids::{Index, Term};
use crate::proposals::ProposalQueue;

/// What committed entries come to.
#[derive(Debug)]
pub(crate) struct Emission {
    pub(crate) batch: ApplyBatch,
    /// Size of the entries in memory.
    pub(crate) bytes: usize,
    /// Up to where the log may be cut, once the batch is applied.
    pub(crate) compact_request: Option<Index>,
}

/// Understands committed entries and joins them with their proposals. `None` if there are none.
///
/// # Errors
/// At the first entry that is not understood: nothing is handed out then, and the proposals among
/// the entries are answered as unknown, since they are dropped.
pub(crate) fn emit(
    description: &Arc<RegionDescription>,
    committed: Vec<Entry>,
    proposals: &mut ProposalQueue,
    answers: &mut Vec<(Callback, Answer)>,
) -> Result<Option<Emission>, CommandError> {
    let Some(last) = committed.last() else { return Ok(None) };
    let region_id = description.id;
    let applied = AppliedState {
        index: Index::new(last.index),
        term: Term::new(last.term),
        description: description.clone(),
    };
    let bytes = committed.iter().map(entry_bytes).sum();
    let mut commands = Vec::with_capacity(committed.len());
    let mut compact_request = None;
    for entry in committed {
        let (index, term) = (Index::new(entry.index), Term::new(entry.term));
        let proposal = proposals.committed(index, term, answers);
        let (callback, stamp) = match proposal {
            Some(proposal) => (Some(proposal.callback), proposal.stamp),
            None => (None, 0),
        };
        match Command::decode(region_id, &entry)? {
            Command::User { epoch, payload } if epoch == description.epoch => {
                commands.push(ApplyCommand { index, term, payload, callback, stamp });
            }
            Command::User { .. } => {
                answers.extend(callback.map(|c| (c, Err(epoch_not_match(description)))));
            }
            Command::CompactLog { index, .. } => compact_request = Some(index),
            Command::Empty => {}
        }
    }
    let batch = ApplyBatch { region_id, commands, applied };
    Ok(Some(Emission { batch, bytes, compact_request }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::{compact_log_entry, HeaderCache};
    use crate::description::tests::description;
    use crate::description::RegionEpoch;
    use crate::error::ProposeError;
    use crate::ids::RegionId;

    fn at(index: u64, mut entry: Entry) -> Entry {
        (entry.index, entry.term) = (index, 6);
        entry
    }

    fn waiting(indexes: std::ops::Range<u64>) -> ProposalQueue {
        let mut proposals = ProposalQueue::new(RegionId::new(1), 9);
        for index in indexes {
            proposals.push(Index::new(index), Term::new(6), Callback::new(|_| ()), index);
        }
        proposals
    }

    #[test]
    fn a_command_of_another_epoch_is_not_applied_and_its_proposer_is_told() {
        let described = Arc::new(description(1, 1));
        let moved = RegionEpoch { version: 2, ..described.epoch };
        let mut headers = HeaderCache::default();
        let committed = vec![
            at(6, headers.user_entry(moved, "other".into())),
            at(7, headers.user_entry(described.epoch, "own".into())),
            at(8, compact_log_entry(described.epoch, Index::new(5))),
        ];
        let mut answers = Vec::new();
        let emission = emit(&described, committed, &mut waiting(6..8), &mut answers);
        let emission = emission.unwrap().unwrap();
        let [command] = emission.batch.commands.as_slice() else { panic!("{emission:?}") };
        assert_eq!((command.index.get(), command.stamp, &command.payload[..]), (7, 7, &b"own"[..]));
        assert_eq!(emission.batch.applied.index, Index::new(8));
        assert_eq!(emission.compact_request, Some(Index::new(5)));
        assert!(matches!(answers.as_slice(), [(_, Err(ProposeError::EpochNotMatch { .. }))]));
    }

    #[test]
    fn one_entry_that_is_not_understood_keeps_back_all() {
        let described = Arc::new(description(1, 1));
        let good = HeaderCache::default().user_entry(described.epoch, "good".into());
        let bad = Entry { context: vec![9].into(), ..Entry::default() };
        let mut proposals = waiting(6..7);
        let committed = vec![at(6, good), at(7, bad)];
        let failed = emit(&described, committed, &mut proposals, &mut Vec::new());
        assert_eq!(failed.unwrap_err().index, Index::new(7));
        assert_eq!(proposals.len(), 0);
    }
}
