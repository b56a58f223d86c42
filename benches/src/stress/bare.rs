//! The floor: Raft without a runtime.
//!
//! One thread, three peers a region, messages moved by hand, no disk, no encoding, no ticks. What
//! a committed write costs here is what raft-rs alone costs; a row of the stress report divides
//! its own CPU per write by this figure, measured in the same process on the same machine.
//!
//! A turn of one region, which is as lean as raft-rs 0.7 allows:
//!
//! 1. The leader steps **one** `MsgPropose` with all proposals of the turn.
//! 2. Its `Ready` is taken; the appends leave at once (Raft thesis 10.2.1).
//! 3. Each follower steps its append, stores the entries, answers. It also learns here of what
//!    the turn before committed, and drains it.
//! 4. The leader steps both answers and only then finishes its own `Ready`, so that one `Ready` a
//!    turn shows both the new entries and, in its second half, the committed ones.
//!
//! Caveat: each proposal brings its own payload allocation, as a client's would.

use std::time::Duration;

use raft::eraftpb::{ConfState, Entry, HardState, Message, MessageType, Snapshot};
use raft::{Config, GetEntriesContext, RaftState, RawNode, Storage, StorageError};
use rustix::time::{clock_gettime, ClockId};
use slog::{o, Discard, Logger};

/// More regions than this are measured as this many: all of them miss the cache by then.
pub const MAX_REGIONS: u64 = 100_000;
/// More proposals a turn than this are measured as this many: nothing amortises any further.
pub const MAX_DEPTH: u64 = 4_096;
/// The payload of one turn is kept below this by a smaller depth.
const MAX_TURN_BYTES: u64 = 64 << 20;

const PEERS: usize = 3;
const LEADER: usize = 0;
const LEADER_ID: u64 = 1;
/// The clock is looked at once in so many turns, or once a pass over all regions.
const TURNS_PER_CHECK: usize = 256;
/// An exchange always gets further; this many without an end is a broken invariant.
const MAX_EXCHANGES: usize = 1_000;

/// CPU microseconds per committed proposal, all three peers together.
///
/// `depth` proposals of `payload_bytes` each are outstanding in each of `regions` regions and
/// committed together. Runs for about `duration` of CPU time after the set-up; at least one turn
/// of each region. `regions` and `depth` are cut to [`MAX_REGIONS`] and [`MAX_DEPTH`].
pub fn measure(regions: u64, depth: u64, payload_bytes: usize, duration: Duration) -> f64 {
    let mut bare = BareRaft::new(regions, depth, payload_bytes);
    bare.run(Duration::ZERO); // One untimed pass: the buffers get their size.
    let start = thread_cpu_time();
    let committed = bare.run(duration);
    let spent = thread_cpu_time() - start;
    spent.as_secs_f64() * 1e6 / committed as f64
}

/// All regions of a bare loop.
pub struct BareRaft {
    regions: Vec<Group>,
    depth: usize,
    payload: Vec<u8>,
}

impl BareRaft {
    /// Creates the regions and elects their leaders.
    pub fn new(regions: u64, depth: u64, payload_bytes: usize) -> Self {
        let fitting = (MAX_TURN_BYTES / payload_bytes.max(1) as u64).max(1);
        let depth = depth.clamp(1, MAX_DEPTH).min(fitting);
        let logger = Logger::root(Discard, o!());
        Self {
            regions: (0..regions.clamp(1, MAX_REGIONS)).map(|_| Group::elected(&logger)).collect(),
            depth: depth as usize,
            payload: vec![0x5a; payload_bytes],
        }
    }

    /// Lets the regions commit one turn after another for about `duration` of CPU time, at least
    /// one turn each. Answers with the number of proposals committed and drained at the leaders.
    pub fn run(&mut self, duration: Duration) -> u64 {
        let deadline = thread_cpu_time() + duration;
        let mut committed = self.pass();
        // The clock costs as much as a turn does: with few regions, many turns a look.
        let passes = (TURNS_PER_CHECK / self.regions.len()).max(1);
        while thread_cpu_time() < deadline {
            for _ in 0..passes {
                committed += self.pass();
            }
        }
        committed
    }

    /// One turn of each region.
    fn pass(&mut self) -> u64 {
        let (depth, payload) = (self.depth, &self.payload);
        self.regions.iter_mut().map(|region| region.turn(depth, payload)).sum()
    }
}

/// The three peers of one region; the first leads.
struct Group {
    peers: [RawNode<LeanStorage>; PEERS],
}

impl Group {
    fn elected(logger: &Logger) -> Self {
        let peers = [1, 2, 3].map(|id| {
            RawNode::new(&config(id), LeanStorage::new(vec![1, 2, 3]), logger)
                .expect("the config is valid")
        });
        let mut region = Self { peers };
        region.peers[LEADER].campaign().expect("peer 1 campaigns");
        // The new leader's empty entry is the first in the log.
        region.exchange_until(1);
        region
    }

    /// Commits `depth` proposals; how many the leader drained.
    fn turn(&mut self, depth: usize, payload: &[u8]) -> u64 {
        let leader = &mut self.peers[LEADER];
        let target = leader.raft.raft_log.last_index() + depth as u64;
        leader.step(proposals(depth, payload)).expect("the leader accepts proposals");
        self.exchange_until(target)
    }

    /// Moves messages until all peers stored everything up to `target` and the leader drained it.
    fn exchange_until(&mut self, target: u64) -> u64 {
        let mut drained = 0;
        for _ in 0..MAX_EXCHANGES {
            drained += self.exchange();
            if self.peers[LEADER].store().compacted >= target
                && self.peers.iter().all(|p| p.store().last_index() >= target)
            {
                return drained;
            }
        }
        panic!("a region did not commit up to {target} in {MAX_EXCHANGES} exchanges");
    }

    /// The leader's messages to the followers, and their answers back to it.
    fn exchange(&mut self) -> u64 {
        let [leader, followers @ ..] = &mut self.peers;
        let mut ready = None;
        let mut drained = 0;
        if leader.has_ready() {
            let mut taken = leader.ready();
            drained += taken.take_committed_entries().len();
            deliver(taken.take_messages(), followers);
            ready = Some(taken);
        }
        for follower in followers.iter_mut() {
            if follower.has_ready() {
                for answer in follower_ready(follower) {
                    step(leader, answer);
                }
            }
        }
        if let Some(mut taken) = ready {
            leader.mut_store().persist(&mut taken);
            let votes = taken.take_persisted_messages();
            let mut light = leader.advance_append(taken);
            drained += light.take_committed_entries().len();
            deliver(votes, followers);
            deliver(light.take_messages(), followers);
        }
        finish_apply(leader, drained);
        drained as u64
    }
}

/// Stores a follower's entries and drains what is committed; its answers to the leader.
fn follower_ready(follower: &mut RawNode<LeanStorage>) -> Vec<Message> {
    let mut ready = follower.ready();
    follower.mut_store().persist(&mut ready);
    let mut drained = ready.take_committed_entries().len();
    let answers = ready.take_persisted_messages();
    let mut light = follower.advance_append(ready);
    drained += light.take_committed_entries().len();
    finish_apply(follower, drained);
    answers
}

/// Tells raft that the next `drained` entries are applied, and drops them from the log.
///
/// A leader has all its followers' answers at the end of an exchange, so nobody needs the dropped
/// entries any more.
fn finish_apply(peer: &mut RawNode<LeanStorage>, drained: usize) {
    if drained > 0 {
        let applied = peer.mut_store().compact(drained);
        peer.advance_apply_to(applied);
    }
}

fn deliver(messages: Vec<Message>, followers: &mut [RawNode<LeanStorage>]) {
    for message in messages {
        // Peer ids start at 1, and the first one leads.
        step(&mut followers[message.to as usize - 2], message);
    }
}

fn step(peer: &mut RawNode<LeanStorage>, message: Message) {
    peer.step(message).expect("a peer's message is accepted");
}

/// One message with all proposals of a turn; raft-rs takes it at less than half the price of as
/// many single proposals.
fn proposals(depth: usize, payload: &[u8]) -> Message {
    let mut entries = Vec::with_capacity(depth);
    for _ in 0..depth {
        entries.push(Entry { data: payload.to_vec().into(), ..Entry::default() });
    }
    Message {
        msg_type: MessageType::MsgPropose,
        from: LEADER_ID,
        entries: entries.into(),
        ..Message::default()
    }
}

fn config(id: u64) -> Config {
    Config {
        id,
        election_tick: 10,
        heartbeat_tick: 2,
        max_size_per_msg: 1 << 20,
        max_inflight_msgs: 256,
        check_quorum: true,
        pre_vote: true,
        skip_bcast_commit: true,
        ..Config::default()
    }
}

/// The CPU time of this thread, so that a busy machine does not count.
fn thread_cpu_time() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

/// A log in memory, owned by its peer: no lock, and only what nobody has dropped yet.
///
/// Invariant: `entries` holds the indexes `compacted + 1 ..= last_index()` without a gap.
pub(crate) struct LeanStorage {
    voters: Vec<u64>,
    hard_state: HardState,
    entries: Vec<Entry>,
    compacted: u64,
    compacted_term: u64,
}

impl LeanStorage {
    /// An empty log of a peer of these voters.
    pub(crate) fn new(voters: Vec<u64>) -> Self {
        Self {
            voters,
            hard_state: HardState::default(),
            entries: Vec::new(),
            compacted: 0,
            compacted_term: 0,
        }
    }

    fn last_index(&self) -> u64 {
        self.compacted + self.entries.len() as u64
    }

    /// The index of the last entry that was dropped.
    pub(crate) fn compacted(&self) -> u64 {
        self.compacted
    }

    /// Stores what a `Ready` has to be stored. Entries that a new leader replaces go.
    pub(crate) fn persist(&mut self, ready: &mut raft::Ready) {
        if let Some(hard_state) = ready.hs() {
            self.hard_state = hard_state.clone();
        }
        let mut entries = ready.take_entries();
        let Some(first) = entries.first() else { return };
        if first.index <= self.last_index() {
            assert!(first.index > self.compacted, "what is applied is not replaced");
            self.entries.truncate((first.index - self.compacted - 1) as usize);
        }
        assert_eq!(first.index, self.last_index() + 1, "the log has a hole");
        if self.entries.is_empty() {
            self.entries = entries;
        } else {
            self.entries.append(&mut entries);
        }
    }

    /// Drops the first `count` entries; the index of the last one dropped.
    pub(crate) fn compact(&mut self, count: usize) -> u64 {
        self.compacted_term = self.entries[count - 1].term;
        self.compacted += count as u64;
        if count == self.entries.len() {
            // Frees the buffer: the next entries bring their own.
            self.entries = Vec::new();
        } else {
            self.entries.drain(..count);
        }
        self.compacted
    }
}

impl Storage for LeanStorage {
    fn initial_state(&self) -> raft::Result<RaftState> {
        let conf_state = ConfState::from((self.voters.clone(), vec![]));
        Ok(RaftState::new(self.hard_state.clone(), conf_state))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        if low <= self.compacted {
            return Err(StorageError::Compacted.into());
        }
        let from = (low - self.compacted - 1) as usize;
        let to = (high - self.compacted - 1) as usize;
        let mut entries = self.entries[from..to].to_vec();
        if let Some(limit) = max_size.into().filter(|limit| *limit != u64::MAX) {
            raft::util::limit_size(&mut entries, Some(limit));
        }
        Ok(entries)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index == self.compacted {
            return Ok(self.compacted_term);
        }
        if index < self.compacted {
            return Err(StorageError::Compacted.into());
        }
        let offset = (index - self.compacted - 1) as usize;
        match self.entries.get(offset) {
            Some(entry) => Ok(entry.term),
            None => Err(StorageError::Unavailable.into()),
        }
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.compacted + 1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last_index())
    }

    fn snapshot(&self, _request_index: u64, _to: u64) -> raft::Result<Snapshot> {
        Err(StorageError::SnapshotTemporarilyUnavailable.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_region_commits_what_was_proposed() {
        let mut bare = BareRaft::new(5, 7, 16);
        assert_eq!(bare.run(Duration::ZERO), 5 * 7);
        assert_eq!(bare.run(Duration::ZERO), 5 * 7);
        for region in &bare.regions {
            for peer in &region.peers {
                // One entry of the election and two turns.
                assert_eq!(peer.store().last_index(), 15);
                assert_eq!(peer.raft.term, 1);
            }
        }
    }

    #[test]
    fn log_stays_bounded_while_running() {
        let mut bare = BareRaft::new(1, 3, 16);
        for _ in 0..100 {
            bare.run(Duration::ZERO);
        }
        for peer in &bare.regions[0].peers {
            assert!(peer.store().entries.len() <= 3);
            assert!(peer.store().compacted > 290);
        }
    }

    #[test]
    fn turn_larger_than_a_message_commits() {
        // 4 MiB a turn and peer, against messages of 1 MiB.
        let mut bare = BareRaft::new(1, 4, 1 << 20);
        assert_eq!(bare.run(Duration::ZERO), 4);
        assert_eq!(bare.run(Duration::ZERO), 4);
    }

    #[test]
    fn sizes_beyond_the_bounds_are_cut() {
        let bare = BareRaft::new(1, u64::MAX, 1 << 20);
        assert_eq!(bare.depth, 64);
        let bare = BareRaft::new(0, 0, 0);
        assert_eq!((bare.regions.len(), bare.depth), (1, 1));
    }

    #[test]
    fn measured_cost_is_a_positive_number() {
        let cost = measure(10, 4, 16, Duration::from_millis(20));
        assert!(cost.is_finite() && cost > 0.0, "{cost}");
    }
}
