//! Reads that wait: to be asked for, for the answer, for the state machine.
//!
//! ```text
//!         ┌─► asked ─────────────────────► known ─────► answered, once `applied` is there
//! unasked │   one read index for all   index
//!         ◄── lost, or another leader ◄──┘
//! ```
//!
//! The index of a read is one that was committed after the read began, as a leader knows that a quorum still
//! followed after that. A state machine that has applied it shows everything that was acknowledged before
//! the read. One question is under way at a time, and all that come meanwhile share the next one. Answers get
//! lost; so after some ticks it is put again under another number, each time with more patience.
//!
//! Caveat: a follower's question is answered with the leader's commit index, but the follower may apply more
//! before the read looks. What was shown there must not be hidden by a later read elsewhere. A leader that is
//! asked by followers therefore holds its own reads back to its commit index (`lease`); and a follower's reads
//! are asked for again when leader or term change, since another leader does not know of them.

use std::panic::{catch_unwind, AssertUnwindSafe};
use std::time::Duration;

use crate::description::RegionEpoch;
use crate::error::ReadError;
use crate::ids::{Index, PeerId, RegionId, Term};

/// What a read must see.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum ReadMode {
    /// Everything that was acknowledged before the read began, on any peer that reaches the leader.
    #[default]
    Linearizable,
    /// The same, and only at the leader.
    LeaderOnly,
    /// Everything up to a log index, on any peer and without asking anybody.
    Stale {
        /// What must be applied.
        at_least: Index,
    },
}

/// How it became known that a read may look.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum ReadWay {
    /// The leader's lease stands.
    Lease,
    /// The leader asked a quorum.
    Index,
    /// A follower asked the leader.
    Follower,
    /// It was content with what is applied.
    Stale,
}

impl ReadWay {
    /// All of them.
    pub const ALL: [ReadWay; 4] =
        [ReadWay::Lease, ReadWay::Index, ReadWay::Follower, ReadWay::Stale];

    /// A word for metrics.
    pub const fn label(self) -> &'static str {
        match self {
            ReadWay::Lease => "lease",
            ReadWay::Index => "index",
            ReadWay::Follower => "follower",
            ReadWay::Stale => "stale",
        }
    }
}

/// The state machine may be read now, and for as long as the region's
/// [generation](crate::Serving::generation) is the same.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReadPoint {
    /// The region.
    pub region_id: RegionId,
    /// The peer here. With `generation` it sets the point apart from those of all other lives of the region.
    pub peer_id: PeerId,
    /// What the region is.
    pub epoch: RegionEpoch,
    /// At least this is applied.
    pub applied: Index,
    /// How that became known.
    pub way: ReadWay,
    /// The region's generation.
    pub generation: u64,
}

/// What a reader hears.
pub type ReadAnswer = Result<ReadPoint, ReadError>;

type Run = Box<dyn FnOnce(ReadAnswer) + Send>;

/// How a reader hears it.
///
/// Invariant: runs exactly once, and a panic in it ends there. Dropped unanswered, it runs with
/// [`ReadError::Stopped`].
pub struct ReadCallback {
    run: Option<Run>,
    region_id: RegionId,
}

impl ReadCallback {
    /// Wraps a function. It is run on the thread that answers, and should be short.
    pub fn new(region_id: RegionId, run: impl FnOnce(ReadAnswer) + Send + 'static) -> Self {
        Self { run: Some(Box::new(run)), region_id }
    }

    /// Answers.
    pub fn call(mut self, answer: ReadAnswer) {
        self.run_with(answer);
    }

    fn run_with(&mut self, answer: ReadAnswer) {
        let Some(run) = self.run.take() else { return };
        if catch_unwind(AssertUnwindSafe(|| run(answer))).is_err() {
            tracing::error!(region = %self.region_id, "a read's callback panicked");
        }
    }
}

impl Drop for ReadCallback {
    fn drop(&mut self) {
        let region_id = self.region_id;
        self.run_with(Err(ReadError::Stopped { region_id }));
    }
}

impl std::fmt::Debug for ReadCallback {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ReadCallback(region {})", self.region_id)
    }
}

/// A read.
#[derive(Debug)]
pub struct Read {
    /// What it must see.
    pub mode: ReadMode,
    /// The epoch that the reader believes the region to have; without one any will do.
    pub epoch: Option<RegionEpoch>,
    /// Told when it may look.
    pub callback: ReadCallback,
}

/// A read, and for how many ticks it has waited.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) read: Read,
    ticks: usize,
}

/// A question under way.
#[derive(Debug)]
struct Asked {
    context: Context,
    at: Duration,
    ticks: usize,
    reads: Vec<Waiting>,
}

/// A read whose index is known.
#[derive(Debug)]
struct Known {
    index: Index,
    way: ReadWay,
    waiting: Waiting,
}

/// The reads of one peer that wait.
///
/// Invariant: every read that enters is taken out, or answered, exactly once. `count` is how many there
/// are, `lowest` at most the lowest index among `known`.
#[derive(Debug, Default)]
pub(crate) struct ReadQueue {
    unasked: Vec<Waiting>,
    asked: Option<Asked>,
    known: Vec<Known>,
    lowest: Index,
    count: usize,
    /// Ticks after which a question is put again.
    patience: usize,
}

/// What goes with a question and comes back with its answer: peer, its store's incarnation, number.
pub(crate) type Context = [u8; CONTEXT_BYTES];

/// Bytes of it.
pub(crate) const CONTEXT_BYTES: usize = 24;

/// The context of a question. No two are the same.
pub(crate) fn context(peer: PeerId, incarnation: u64, number: u64) -> Context {
    let mut context = [0; CONTEXT_BYTES];
    for (word, part) in context.chunks_exact_mut(8).zip([peer.get(), incarnation, number]) {
        word.copy_from_slice(&part.to_be_bytes());
    }
    context
}

impl ReadQueue {
    pub(crate) fn len(&self) -> usize {
        self.count
    }

    /// A read that must be asked for.
    pub(crate) fn push(&mut self, read: Read) {
        self.count += 1;
        self.unasked.push(Waiting { read, ticks: 0 });
    }

    /// A read that needs nothing but that `index` is applied.
    pub(crate) fn push_known(&mut self, read: Read, index: Index, way: ReadWay) {
        self.count += 1;
        self.add_known(Waiting { read, ticks: 0 }, index, way);
    }

    fn add_known(&mut self, waiting: Waiting, index: Index, way: ReadWay) {
        self.lowest = if self.known.is_empty() { index } else { index.min(self.lowest) };
        self.known.push(Known { index, way, waiting });
    }

    /// Whether there is a question to put.
    pub(crate) fn wants_to_ask(&self) -> bool {
        !self.unasked.is_empty() && self.asked.is_none()
    }

    /// Whether a read waits for no more than what is applied.
    pub(crate) fn has_answers(&self, applied: Index) -> bool {
        !self.known.is_empty() && self.lowest <= applied
    }

    /// All that wait to be asked for are, with a question of this context.
    pub(crate) fn ask(&mut self, context: Context, now: Duration) {
        debug_assert!(self.wants_to_ask());
        let reads = std::mem::take(&mut self.unasked);
        self.asked = Some(Asked { context, at: now, ticks: 0, reads });
    }

    /// When the question was put that is under way and that this belongs to.
    pub(crate) fn asked_at(&self, context: &[u8]) -> Option<Duration> {
        self.asked.as_ref().filter(|asked| asked.context == context).map(|asked| asked.at)
    }

    /// The answer to a question. Of a question that is not under way any more it means nothing.
    pub(crate) fn learn(&mut self, context: &[u8], index: Index, way: ReadWay) {
        let Some(asked) = self.asked.take_if(|asked| asked.context == context) else { return };
        self.patience = 0;
        asked.reads.into_iter().for_each(|waiting| self.add_known(waiting, index, way));
    }

    /// Takes out what may look now.
    pub(crate) fn take_applied(&mut self, applied: Index, mut give: impl FnMut(Read, ReadWay)) {
        if !self.has_answers(applied) {
            return;
        }
        let (now, later): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.known).into_iter().partition(|known| known.index <= applied);
        self.known = later;
        self.lowest = self.known.iter().map(|known| known.index).min().unwrap_or_default();
        self.count -= now.len();
        now.into_iter().for_each(|known| give(known.waiting.read, known.way));
    }

    /// A tick: puts a lost question again, and takes out what has waited for `limit` ticks.
    pub(crate) fn tick(&mut self, least_patience: usize, limit: usize, mut give: impl FnMut(Read)) {
        if self.count == 0 {
            return;
        }
        self.patience = self.patience.max(least_patience);
        let lost = self.asked.take_if(|asked| {
            asked.ticks += 1;
            asked.ticks >= self.patience
        });
        if let Some(asked) = lost {
            self.patience = self.patience.saturating_mul(2);
            self.unasked.splice(0..0, asked.reads);
        }
        self.filter(|read, ticks| {
            *ticks += 1;
            match *ticks >= limit {
                true => {
                    give(read);
                    None
                }
                false => Some(read),
            }
        });
    }

    /// Another leader or term, of which earlier answers do not speak. `keep` says what is to be asked for anew
    /// (stale reads are in any case left alone); the rest is taken out.
    pub(crate) fn start_anew(&mut self, keep: impl Fn(&Read) -> bool, mut give: impl FnMut(Read)) {
        let asked = self.asked.take().map(|asked| asked.reads).unwrap_or_default();
        self.unasked.splice(0..0, asked);
        let (stale, others): (Vec<_>, Vec<_>) = std::mem::take(&mut self.known)
            .into_iter()
            .partition(|known| known.way == ReadWay::Stale);
        self.known = stale;
        self.unasked.splice(0..0, others.into_iter().map(|known| known.waiting));
        self.patience = 0;
        let unasked = std::mem::take(&mut self.unasked);
        for waiting in unasked {
            match keep(&waiting.read) {
                true => self.unasked.push(waiting),
                false => {
                    self.count -= 1;
                    give(waiting.read);
                }
            }
        }
    }

    /// Takes everything out.
    pub(crate) fn drain(&mut self, mut give: impl FnMut(Read)) {
        self.filter(|read, _| {
            give(read);
            None
        });
        *self = Self::default();
    }

    /// Passes everything through `keep`.
    fn filter(&mut self, mut keep: impl FnMut(Read, &mut usize) -> Option<Read>) {
        let count = &mut self.count;
        let mut pass = |mut waiting: Waiting| {
            let kept = keep(waiting.read, &mut waiting.ticks);
            *count -= usize::from(kept.is_none());
            kept.map(|read| Waiting { read, ticks: waiting.ticks })
        };
        let unasked = std::mem::take(&mut self.unasked);
        self.unasked = unasked.into_iter().filter_map(&mut pass).collect();
        if let Some(asked) = &mut self.asked {
            let reads = std::mem::take(&mut asked.reads);
            asked.reads = reads.into_iter().filter_map(&mut pass).collect();
        }
        let known = std::mem::take(&mut self.known);
        let passed =
            |Known { index, way, waiting }| Some(Known { index, way, waiting: pass(waiting)? });
        self.known = known.into_iter().filter_map(passed).collect();
    }
}

/// How a region stands to readers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Serving {
    /// Goes up with whatever makes what was found out about reads before worthless: another term, role or
    /// leader, other peers, another range, a snapshot, the end. What was read while it changed may be
    /// nothing; read again.
    pub generation: u64,
    /// What the region is.
    pub epoch: RegionEpoch,
    /// What is applied. Shown to readers only while `contents` says so.
    pub applied: Index,
    /// Whether the state machine has the region's contents, and will keep them.
    pub contents: bool,
    /// The peer's term.
    pub term: Term,
    /// Until when the state machine, as it is, shows everything acknowledged; by the clock of
    /// [`set_time`](crate::Region::set_time).
    pub lease_until: Option<Duration>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    const FIRST: Context = [1; CONTEXT_BYTES];
    const NOW: Duration = Duration::from_secs(1);

    fn read(mode: ReadMode) -> Read {
        let callback = ReadCallback::new(RegionId::new(1), |_| ());
        Read { mode, epoch: None, callback }
    }

    fn queue(reads: usize) -> ReadQueue {
        let mut queue = ReadQueue::default();
        (0..reads).for_each(|_| queue.push(read(ReadMode::Linearizable)));
        queue
    }

    fn taken(queue: &mut ReadQueue, applied: u64) -> usize {
        let mut count = 0;
        queue.take_applied(Index::new(applied), |_, _| count += 1);
        count
    }

    #[test]
    fn reads_share_a_question_and_wait_for_their_index() {
        let mut queue = queue(3);
        queue.ask(FIRST, NOW);
        assert_eq!(queue.asked_at(&FIRST), Some(NOW));
        queue.push(read(ReadMode::Linearizable));
        assert!(!queue.wants_to_ask(), "one question at a time");
        queue.learn(&FIRST, Index::new(9), ReadWay::Index);
        assert!(queue.wants_to_ask());
        assert_eq!((taken(&mut queue, 8), taken(&mut queue, 9), queue.len()), (0, 3, 1));
    }

    #[test]
    fn answers_to_others_and_to_an_earlier_life_mean_nothing() {
        let me = PeerId::new(3);
        let asked = context(me, 77, 1);
        let others = [context(me, 76, 1), context(PeerId::new(4), 77, 1), context(me, 77, 2)];
        let mut queue = queue(1);
        queue.ask(asked, NOW);
        for other in others {
            queue.learn(&other, Index::new(1), ReadWay::Index);
        }
        queue.learn(&asked[..16], Index::new(1), ReadWay::Index);
        assert_eq!((taken(&mut queue, 9), queue.len()), (0, 1));
        queue.learn(&asked, Index::new(1), ReadWay::Index);
        assert_eq!(taken(&mut queue, 9), 1);
    }

    #[test]
    fn a_lost_question_is_put_again_with_growing_patience_and_in_the_end_given_up() {
        let mut queue = queue(1);
        let mut given_up = 0;
        let mut asked_at = Vec::new();
        for tick in 0..30 {
            if queue.wants_to_ask() {
                queue.ask(FIRST, NOW);
                asked_at.push(tick);
            }
            queue.tick(3, 20, |_| given_up += 1);
        }
        assert_eq!((asked_at, given_up, queue.len()), (vec![0, 3, 9], 1, 0));
    }

    #[test]
    fn another_leader_is_asked_anew_and_stale_reads_do_not_care() {
        let mut queue = queue(2);
        queue.ask(FIRST, NOW);
        queue.push(read(ReadMode::LeaderOnly));
        queue.push_known(read(ReadMode::default()), Index::new(5), ReadWay::Stale);
        queue.push_known(read(ReadMode::default()), Index::new(5), ReadWay::Follower);
        let mut refused = 0;
        queue.start_anew(|read| read.mode != ReadMode::LeaderOnly, |_| refused += 1);
        queue.learn(&FIRST, Index::new(1), ReadWay::Follower);
        assert_eq!((refused, queue.len(), taken(&mut queue, 9)), (1, 4, 1));
        assert!(queue.wants_to_ask());
        let mut ended = 0;
        queue.drain(|_| ended += 1);
        assert_eq!((ended, queue.len()), (3, 0));
    }

    #[test]
    fn a_callback_runs_once_and_when_it_is_dropped() {
        let answers = Arc::new(Mutex::new(Vec::new()));
        let sink = || {
            let answers = answers.clone();
            ReadCallback::new(RegionId::new(1), move |answer| answers.lock().unwrap().push(answer))
        };
        sink().call(Err(ReadError::Quarantined { region_id: RegionId::new(1) }));
        drop(sink());
        let heard: Vec<_> =
            answers.lock().unwrap().iter().map(|a| a.as_ref().unwrap_err().label()).collect();
        assert_eq!(heard, ["quarantined", "stopped"]);
    }
}
