//! A region whose effects are carried out one by one.
//!
//! The region is peer 1 on store 1. Its peers are as many as its description says; they say nothing
//! by themselves, but [`Driven::answer`] answers what the region has sent them as an honest follower
//! would, so that elections are won and entries commit.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use raft::eraftpb::{Message, MessageType};
use region::{
    AppliedState, ApplyBatch, Callback, Effects, Envelope, Index, LogWrite, Peer, PeerId,
    Persisted, Proposal, Region, RegionConfig, RegionDescription, RegionEpoch, RegionFailure,
    RegionId, RegionRecord, Response, RestoredState, StoreId, INITIAL_INDEX,
};

use crate::disk::{Contents, Disk};

/// The region of all targets.
pub const REGION: RegionId = RegionId::new(1);

/// The cluster of all targets.
pub const CLUSTER: u64 = 7;

/// The region's epoch.
pub const EPOCH: RegionEpoch = RegionEpoch { conf_ver: 1, version: 1 };

/// Messages that wait for an answer. More are forgotten, the oldest first.
const MOST_SENT: usize = 64;

/// Peer `n` on store `n`, a voter.
pub const fn voter(n: u64) -> Peer {
    Peer::voter(PeerId::new(n), StoreId::new(n))
}

/// A region over all keys with this many voters, and learners after them.
pub fn description(voters: u64, learners: u64) -> RegionDescription {
    let learner = |n| Peer::learner(PeerId::new(n), StoreId::new(n));
    let peers = (1..=voters).map(voter).chain((voters + 1..=voters + learners).map(learner));
    RegionDescription::new(REGION, Bytes::new(), Bytes::new(), peers)
}

/// Bounds so low that a short history reaches them.
fn config() -> RegionConfig {
    RegionConfig {
        max_committed_bytes_per_ready: 600,
        max_unapplied_bytes: 2_000,
        max_uncommitted_bytes: 4_000,
        max_proposal_bytes: 1_000,
        max_size_per_msg_bytes: 700,
        max_inflight_msgs: 4,
        max_pending_proposals: 16,
        entry_cache_bytes: 500,
        compact_after_entries: 12,
        compact_keep_entries: 2,
        ..RegionConfig::new(CLUSTER)
    }
}

/// A region, its disk, and what is on its way to it.
pub struct Driven {
    region: Region,
    config: Arc<RegionConfig>,
    record: RegionRecord,
    disk: Arc<Disk>,
    applied: Option<AppliedState>,
    writes: VecDeque<LogWrite>,
    batches: VecDeque<ApplyBatch>,
    sent: VecDeque<Box<Envelope>>,
    compact_request: Option<Index>,
    failed: bool,
}

impl Driven {
    /// Restores a region.
    ///
    /// # Errors
    /// What the region says about the state on disk.
    pub fn restore(
        description: RegionDescription,
        contents: Contents,
        applied: Option<AppliedState>,
    ) -> Result<Self, RegionFailure> {
        let config = config();
        assert_eq!(config.validate(), Ok(()));
        let config = Arc::new(config);
        let record = RegionRecord::new(description, PeerId::new(1));
        let disk = Arc::new(Disk::new(contents));
        let region = restore(&record, &disk, applied.clone(), &config)?;
        Ok(Self {
            region,
            config,
            record,
            disk,
            applied,
            writes: VecDeque::new(),
            batches: VecDeque::new(),
            sent: VecDeque::new(),
            compact_request: None,
            failed: false,
        })
    }

    /// The region.
    pub fn region(&self) -> &Region {
        &self.region
    }

    /// Whether the region has stopped itself. Nothing can be expected of it any more.
    pub fn has_failed(&self) -> bool {
        self.failed
    }

    /// What the region has sent lately.
    pub fn sent(&self) -> impl Iterator<Item = &Envelope> {
        self.sent.iter().map(AsRef::as_ref)
    }

    /// Hands a message to the region. Whether it is refused is the region's business.
    pub fn step(&mut self, envelope: Envelope) {
        let _ = self.region.step(Box::new(envelope));
    }

    /// Lets ticks pass.
    pub fn tick(&mut self, count: u8) {
        let mut effects = Effects::default();
        for _ in 0..count {
            self.region.tick(&mut effects);
        }
        self.carry_out(effects);
    }

    /// Campaigns, if the region may.
    pub fn campaign(&mut self) {
        let _ = self.region.campaign();
    }

    /// Proposes commands of a size.
    pub fn propose(&mut self, count: u8, size_bytes: usize) {
        let proposal = |_| Proposal {
            payload: Bytes::from(vec![b'.'; size_bytes]),
            epoch: Some(EPOCH),
            callback: Callback::new(|_| ()),
            stamp: 1,
        };
        let mut proposals = (0..count).map(proposal).collect();
        let mut effects = Effects::default();
        self.region.propose(&mut proposals, &mut effects);
        self.carry_out(effects);
    }

    /// Collects one Ready. Returns whether there was one.
    pub fn collect(&mut self) -> bool {
        if !self.region.has_ready() {
            return false;
        }
        let mut effects = Effects::default();
        self.region.collect(&mut effects);
        self.carry_out(effects);
        true
    }

    /// Carries out the oldest write. Returns whether there was one.
    pub fn persist(&mut self) -> bool {
        let Some(mut write) = self.writes.pop_front() else { return false };
        self.disk.write(&write);
        let proof = Persisted::after_sync(&write);
        let released = write.take_held().release(&proof);
        self.region.persisted(proof);
        self.send(released);
        true
    }

    /// Applies the oldest batch. Returns whether there was one.
    pub fn apply(&mut self) -> bool {
        let Some(batch) = self.batches.pop_front() else { return false };
        let mut last = self.applied.as_ref().map_or(INITIAL_INDEX, |state| state.index);
        for command in batch.commands {
            assert!(command.index > last, "{} is applied after {last}", command.index);
            last = command.index;
            let (region_id, term, index) = (REGION, command.term, command.index);
            if let Some(callback) = command.callback {
                callback.call(Ok(Response { region_id, term, index, value: command.payload }));
            }
        }
        let index = batch.applied.index;
        assert!(index >= last, "{index} is applied after {last}");
        self.applied = Some(batch.applied);
        self.region.applied(index);
        true
    }

    /// Cuts the log as far as the region has asked for.
    pub fn compact(&mut self) {
        let applied = self.applied.as_ref().map_or(INITIAL_INDEX, |state| state.index);
        let Some(request) = self.compact_request.take() else { return };
        if let Some(truncated) = self.region.compact_to(request.min(applied)) {
            self.disk.truncate(truncated);
        }
    }

    /// Does everything that there is to do, but for answers.
    pub fn drain(&mut self) {
        loop {
            let mut moved = self.collect();
            moved |= self.persist();
            moved |= self.apply();
            if !moved {
                return;
            }
        }
    }

    /// Answers what was sent, as honest followers with the same log would.
    pub fn answer(&mut self) {
        for envelope in std::mem::take(&mut self.sent) {
            if let Some(message) = honest_answer(&envelope.message) {
                let answer =
                    Envelope { from: envelope.to, to: envelope.from, message, ..*envelope };
                self.step(answer);
            }
        }
    }

    /// Wins an election where that is possible.
    pub fn elect(&mut self) {
        self.drain();
        // A peer that has just started stands for election only when every lease is over that it may have granted.
        for _ in 0..self.config.election_ticks {
            self.tick(1);
        }
        self.drain();
        self.campaign();
        // Pre-votes, votes, the first append, and the commit index after it.
        for _ in 0..4 {
            self.drain();
            self.answer();
        }
        self.drain();
    }

    /// The process ends, with what is not written, and begins anew.
    ///
    /// # Errors
    /// What the region says about the state on disk: whom it believed may have lied.
    pub fn restart(&mut self) -> Result<(), RegionFailure> {
        self.writes.clear();
        self.batches.clear();
        self.sent.clear();
        self.compact_request = None;
        self.region = restore(&self.record, &self.disk, self.applied.clone(), &self.config)?;
        self.failed = false;
        Ok(())
    }

    fn carry_out(&mut self, effects: Effects) {
        self.send(effects.messages);
        self.writes.extend(effects.write);
        self.batches.extend(effects.apply);
        self.compact_request = effects.compact_request.or(self.compact_request);
        self.failed |= effects.fatal.is_some();
        for (callback, answer) in effects.answers {
            callback.call(answer);
        }
    }

    fn send(&mut self, messages: Vec<Box<Envelope>>) {
        self.sent.extend(messages);
        let forgotten = self.sent.len().saturating_sub(MOST_SENT);
        self.sent.drain(..forgotten);
    }
}

fn restore(
    record: &RegionRecord,
    disk: &Arc<Disk>,
    applied: Option<AppliedState>,
    config: &Arc<RegionConfig>,
) -> Result<Region, RegionFailure> {
    let contents = disk.contents();
    let state = RestoredState {
        record: record.clone(),
        last_index: contents.last_index(),
        hard_state: contents.hard_state,
        truncated: contents.truncated,
        applied,
    };
    Region::restore(state, StoreId::new(1), config.clone(), disk.clone())
}

fn honest_answer(message: &Message) -> Option<Message> {
    use MessageType::{
        MsgAppend, MsgAppendResponse, MsgHeartbeat, MsgHeartbeatResponse, MsgRequestPreVote,
        MsgRequestPreVoteResponse, MsgRequestVote, MsgRequestVoteResponse,
    };
    let (msg_type, index) = match message.get_msg_type() {
        MsgRequestPreVote => (MsgRequestPreVoteResponse, 0),
        MsgRequestVote => (MsgRequestVoteResponse, 0),
        MsgHeartbeat => (MsgHeartbeatResponse, 0),
        MsgAppend => (MsgAppendResponse, message.index + message.entries.len() as u64),
        _ => return None,
    };
    Some(Message {
        msg_type,
        from: message.to,
        to: message.from,
        term: message.term,
        index,
        ..Message::default()
    })
}
