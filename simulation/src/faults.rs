//! The kinds of fault there are, and how often each has struck.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A kind of fault. It counts as fired when it changed something: a partition when it stopped a message,
/// a crash when the store was up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs, reason = "each is described by `FaultKind::describe`")]
pub enum FaultKind {
    MessageDropped,
    MessageDuplicated,
    MessageReordered,
    MessageReplayed,
    PartitionSymmetric,
    PartitionOneWay,
    PartitionPartial,
    SlowLink,
    FullPipe,
    Crash,
    CrashInsideStep,
    UnsyncedLost,
    UnflushedLost,
    CleanRestart,
    Pause,
    ClockJump,
    ClockDrift,
    WriteError,
    SyncError,
    DiskFull,
    SlowDisk,
    HungDisk,
    FlippedBit,
    MailboxOverflow,
    BigValue,
    WrongEpoch,
    PeersChanged,
    RegionSplit,
    LeaderMoved,
    SnapshotInstalled,
    PeerDestroyed,
    LeaseRead,
    IndexRead,
    FollowerRead,
    StaleRead,
    ReadWaited,
    DeposedAsked,
    Slept,
    SleepersElected,
    Chilled,
}

impl FaultKind {
    /// All of them.
    pub const ALL: [FaultKind; 40] = [
        FaultKind::MessageDropped,
        FaultKind::MessageDuplicated,
        FaultKind::MessageReordered,
        FaultKind::MessageReplayed,
        FaultKind::PartitionSymmetric,
        FaultKind::PartitionOneWay,
        FaultKind::PartitionPartial,
        FaultKind::SlowLink,
        FaultKind::FullPipe,
        FaultKind::Crash,
        FaultKind::CrashInsideStep,
        FaultKind::UnsyncedLost,
        FaultKind::UnflushedLost,
        FaultKind::CleanRestart,
        FaultKind::Pause,
        FaultKind::ClockJump,
        FaultKind::ClockDrift,
        FaultKind::WriteError,
        FaultKind::SyncError,
        FaultKind::DiskFull,
        FaultKind::SlowDisk,
        FaultKind::HungDisk,
        FaultKind::FlippedBit,
        FaultKind::MailboxOverflow,
        FaultKind::BigValue,
        FaultKind::WrongEpoch,
        FaultKind::PeersChanged,
        FaultKind::RegionSplit,
        FaultKind::LeaderMoved,
        FaultKind::SnapshotInstalled,
        FaultKind::PeerDestroyed,
        FaultKind::LeaseRead,
        FaultKind::IndexRead,
        FaultKind::FollowerRead,
        FaultKind::StaleRead,
        FaultKind::ReadWaited,
        FaultKind::DeposedAsked,
        FaultKind::Slept,
        FaultKind::SleepersElected,
        FaultKind::Chilled,
    ];

    /// What it is, and when it counts.
    pub fn describe(self) -> &'static str {
        match self {
            FaultKind::MessageDropped => "a message was lost by chance",
            FaultKind::MessageDuplicated => "a message was delivered twice",
            FaultKind::MessageReordered => "messages arrived before earlier ones of their link",
            FaultKind::MessageReplayed => "a message arrived again, seconds later",
            FaultKind::PartitionSymmetric => "a cut between two halves stopped a message",
            FaultKind::PartitionOneWay => "a cut in one direction stopped a message",
            FaultKind::PartitionPartial => {
                "a cut between two stores, both connected to others, did"
            }
            FaultKind::SlowLink => "a message was late on a slow link",
            FaultKind::FullPipe => "the transport refused messages",
            FaultKind::Crash => "a store ended between two steps",
            FaultKind::CrashInsideStep => "a store ended within a step, at one of its seams",
            FaultKind::UnsyncedLost => "a crash lost written batches that were not synced",
            FaultKind::UnflushedLost => "a crash lost what the state machine had not flushed",
            FaultKind::CleanRestart => "a store was shut down in order and started again",
            FaultKind::Pause => "a store stood still while messages and time went on",
            FaultKind::ClockJump => "a store's clock leapt forward",
            FaultKind::ClockDrift => "a store's clock ran faster or slower",
            FaultKind::WriteError => "a write of the log failed",
            FaultKind::SyncError => "a sync of the log failed",
            FaultKind::DiskFull => "a write found the disk full",
            FaultKind::SlowDisk => "a write of the log was late",
            FaultKind::HungDisk => "a write of the log hung for long",
            FaultKind::FlippedBit => "a bit of the log flipped while its store was down",
            FaultKind::MailboxOverflow => "a full mailbox refused a proposal",
            FaultKind::BigValue => "a proposal of many kilobytes, or one that is too large",
            FaultKind::WrongEpoch => "a proposal with an epoch that is not the region's",
            FaultKind::PeersChanged => "a region got other peers, as it was asked to",
            FaultKind::RegionSplit => "a region was split, as it was asked to",
            FaultKind::LeaderMoved => "a leader handed over, as it was asked to",
            FaultKind::SnapshotInstalled => "a state machine was replaced by a snapshot",
            FaultKind::PeerDestroyed => "a peer that had left its region was destroyed",
            FaultKind::LeaseRead => "no fault: a leader answered a read by its lease",
            FaultKind::IndexRead => "no fault: a leader asked a quorum for a read",
            FaultKind::FollowerRead => "no fault: a follower asked its leader for a read",
            FaultKind::StaleRead => "no fault: a read was content with what is applied",
            FaultKind::ReadWaited => "a read was not answered at once, and later with success",
            FaultKind::DeposedAsked => "a read went to a leader that did not know of the next one",
            FaultKind::Slept => "no fault: a region had a turn and sleeps",
            FaultKind::SleepersElected => "a region that slept elected another leader unasked",
            FaultKind::Chilled => {
                "no fault: a region was cold when a store was lost, or at the end"
            }
        }
    }
}

/// How often each kind has struck.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Fired(BTreeMap<FaultKind, u64>);

impl Fired {
    /// It has struck.
    pub fn note(&mut self, kind: FaultKind) {
        self.note_many(kind, 1);
    }

    /// It has struck so many times.
    pub fn note_many(&mut self, kind: FaultKind, times: u64) {
        if times > 0 {
            *self.0.entry(kind).or_default() += times;
        }
    }

    /// How often it has struck.
    pub fn count(&self, kind: FaultKind) -> u64 {
        self.0.get(&kind).copied().unwrap_or(0)
    }

    /// Adds what another run has seen.
    pub fn add(&mut self, other: &Fired) {
        other.0.iter().for_each(|(kind, times)| self.note_many(*kind, *times));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_listed_once() {
        let mut kinds = FaultKind::ALL.to_vec();
        kinds.sort();
        kinds.dedup();
        assert_eq!(kinds.len(), FaultKind::ALL.len());
        assert_eq!(FaultKind::Chilled as usize + 1, kinds.len());
    }
}
