//! From committed entries to commands to apply.
//!
//! The second look at the epoch is here: between propose and commit a region may have been split or
//! have got other peers. A command of another epoch is carried out by no peer, and its proposer is
//! told what the region is now. So a look at a run of entries ends where the region changes, and goes on
//! with what it has become.

use std::collections::VecDeque;

use raft::eraftpb::{ConfChangeV2, Entry};

use crate::admission::epoch_not_match;
use crate::answer::{Answer, Callback};
use crate::command::{Command, CommandError, UsualHeader};
use crate::description::RegionDescription;
use crate::effects::ApplyCommand;
use crate::entry_cache::entry_bytes;
use crate::ids::{Index, Term};
use crate::proposals::ProposalQueue;
use crate::split::SplitRequest;

/// What committed entries come to, up to the first that changes the region itself.
#[derive(Debug)]
pub(crate) struct Emission {
    /// The user's commands among them.
    pub(crate) commands: Vec<ApplyCommand>,
    /// Index and term of the last entry looked at, a change included.
    pub(crate) last: (Index, Term),
    /// Size of the entries in memory.
    pub(crate) bytes: usize,
    /// Up to where the log may be cut, once the commands are applied.
    pub(crate) compact_request: Option<Index>,
    /// The change at which it ended. What follows must be looked at as the region is then.
    pub(crate) change: Option<Change>,
}

/// An entry that changes the region itself.
#[derive(Debug)]
pub(crate) enum Change {
    /// Become several.
    Split(SplitRequest, Option<Callback>),
    /// Get other peers.
    Peers(ConfChangeV2, Option<Callback>),
    /// Leave a joint configuration.
    LeaveJoint,
}

/// Understands committed entries and joins them with their proposals. `None` if there are none.
///
/// # Errors
/// At the first entry that is not understood: nothing is handed out then, and the proposals among
/// the entries are answered as unknown, since they are dropped.
pub(crate) fn emit(
    description: &RegionDescription,
    committed: &mut VecDeque<Entry>,
    proposals: &mut ProposalQueue,
    answers: &mut Vec<(Callback, Answer)>,
) -> Result<Option<Emission>, CommandError> {
    let Some(first) = committed.front() else { return Ok(None) };
    let mut emission = Emission {
        commands: Vec::with_capacity(committed.len()),
        last: (Index::new(first.index), Term::new(first.term)),
        bytes: 0,
        compact_request: None,
        change: None,
    };
    let own = description.epoch;
    let usual = UsualHeader::of(own);
    while let Some(mut entry) = committed.pop_front() {
        let (index, term) = (Index::new(entry.index), Term::new(entry.term));
        emission.last = (index, term);
        emission.bytes += entry_bytes(&entry);
        let (callback, stamp) = match proposals.committed(index, term, answers) {
            Some(proposal) => (Some(proposal.callback), proposal.stamp),
            None => (None, 0),
        };
        if let Some(payload) = usual.take_payload(&mut entry) {
            emission.commands.push(ApplyCommand { index, term, payload, callback, stamp });
            continue;
        }
        let stale = match Command::decode(description.id, entry)? {
            Command::User { epoch, payload } if epoch == own => {
                emission.commands.push(ApplyCommand { index, term, payload, callback, stamp });
                continue;
            }
            Command::CompactLog { index, .. } => {
                emission.compact_request = Some(index);
                continue;
            }
            Command::Empty => continue,
            Command::Split { epoch, request }
                if epoch == own && request.check(description).is_ok() =>
            {
                emission.change = Some(Change::Split(request, callback));
                break;
            }
            Command::ChangePeers { epoch, change } if epoch.conf_ver == own.conf_ver => {
                emission.change = Some(Change::Peers(change, callback));
                break;
            }
            Command::LeaveJoint if description.joint => {
                emission.change = Some(Change::LeaveJoint);
                break;
            }
            Command::User { .. } | Command::Split { .. } | Command::ChangePeers { .. } => callback,
            Command::LeaveJoint => None,
        };
        answers.extend(stale.map(|callback| (callback, Err(epoch_not_match(description)))));
    }
    Ok(Some(emission))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::{compact_log_entry, split_entry, HeaderCache};
    use crate::description::tests::description;
    use crate::description::RegionEpoch;
    use crate::error::ProposeError;
    use crate::ids::{PeerId, RegionId};
    use crate::split::NewRegion;

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
        let described = description(1, 1);
        let moved = RegionEpoch { version: 2, ..described.epoch };
        let mut headers = HeaderCache::default();
        let mut committed = VecDeque::from([
            at(6, headers.user_entry(moved, "other".into())),
            at(7, headers.user_entry(described.epoch, "own".into())),
            at(8, compact_log_entry(described.epoch, Index::new(5))),
        ]);
        let mut answers = Vec::new();
        let emission = emit(&described, &mut committed, &mut waiting(6..8), &mut answers);
        let emission = emission.unwrap().unwrap();
        let [command] = emission.commands.as_slice() else { panic!("{emission:?}") };
        assert_eq!((command.index.get(), command.stamp, &command.payload[..]), (7, 7, &b"own"[..]));
        assert_eq!(emission.last.0, Index::new(8));
        assert_eq!(emission.compact_request, Some(Index::new(5)));
        assert!(matches!(answers.as_slice(), [(_, Err(ProposeError::EpochNotMatch { .. }))]));
    }

    #[test]
    fn one_entry_that_is_not_understood_keeps_back_all() {
        let described = description(1, 1);
        let good = HeaderCache::default().user_entry(described.epoch, "good".into());
        let bad = Entry { context: vec![9].into(), ..Entry::default() };
        let mut proposals = waiting(6..7);
        let mut committed = VecDeque::from([at(6, good), at(7, bad)]);
        let failed = emit(&described, &mut committed, &mut proposals, &mut Vec::new());
        assert_eq!(failed.unwrap_err().index, Index::new(7));
        assert_eq!(proposals.len(), 0);
    }

    #[test]
    fn a_change_of_the_region_ends_the_look() {
        let described = description(1, 1);
        let request = SplitRequest {
            keys: vec!["k".into()],
            regions: vec![NewRegion { id: RegionId::new(2), peers: vec![PeerId::new(9)] }],
            parent_is_right: false,
        };
        let mut headers = HeaderCache::default();
        let mut committed = VecDeque::from([
            at(6, headers.user_entry(described.epoch, "before".into())),
            at(7, split_entry(described.epoch, &request)),
            at(8, headers.user_entry(described.epoch, "after".into())),
        ]);
        let mut answers = Vec::new();
        let emission = emit(&described, &mut committed, &mut waiting(6..9), &mut answers);
        let emission = emission.unwrap().unwrap();
        assert_eq!((emission.commands.len(), emission.last.0.get()), (1, 7));
        assert!(matches!(&emission.change, Some(Change::Split(r, Some(_))) if *r == request));
        assert_eq!((committed.len(), answers.len()), (1, 0));
    }
}
