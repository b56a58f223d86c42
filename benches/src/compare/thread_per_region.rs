//! raft-rs as its own examples use it, for many regions: a thread for each peer of each region.
//!
//! The pattern is that of `five_mem_node`: a thread that owns a `RawNode` waits on a channel, steps what comes,
//! ticks, and works off one `Ready`. Three things are better than there, so that it is a fair rival: nobody
//! sleeps; a turn takes all messages that wait, and makes one proposal of all writes among them; appends leave
//! before the leader has stored its own entries. Settings of raft-rs are those of our stores.
//!
//! Caveat: there are no snapshots. A leader keeps what a follower lacks, and a follower the last
//! `KEPT_ENTRIES`; one that lacks more of a new leader's log would stay behind, and the row would fail.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam::channel::{unbounded, Receiver, RecvTimeoutError, Sender};
use raft::eraftpb::{Entry, Message, MessageType};
use raft::{Config, RawNode, StateRole};
use slog::{o, Discard, Logger};

use super::books::Books;
use crate::stress::bare::LeanStorage;
use crate::stress::error::StressError;
use crate::stress::ledger::Tally;
use crate::stress::options::Options;
use crate::stress::run::Context;
use crate::stress::subject::{failed, Outcome, Subject, Target, Whom};

/// Applied entries that every peer keeps.
const KEPT_ENTRIES: u64 = 10_000;
/// A log is cut when so many more than those are in it.
const CUT_ENTRIES: u64 = 10_000;
/// A peer's frames are few; thousands of threads with the usual 2 MiB would run out of addresses elsewhere.
const STACK_BYTES: usize = 256 << 10;

type Done = Box<dyn FnOnce(Outcome) + Send>;

/// What a peer's thread waits for.
enum Mail {
    Raft(Message),
    Write(Bytes, Done),
    Campaign,
    Stop,
}

/// By region, and then by store.
type Inboxes = Arc<Vec<Vec<Sender<Mail>>>>;

/// Regions with a thread for each of their peers.
pub struct ThreadPerRegion {
    inboxes: Inboxes,
    books: Vec<Arc<Books>>,
    leaderships: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
}

impl Subject for ThreadPerRegion {
    type Target = Senders;

    fn start(options: &Options, regions: u64, ctx: &Context) -> Result<Self, StressError> {
        let stores = options.stores;
        let (mut inboxes, mut receivers) = (Vec::new(), Vec::new());
        for _ in 0..regions {
            let (senders, waiting): (Vec<_>, Vec<_>) = (0..stores).map(|_| unbounded()).unzip();
            inboxes.push(senders);
            receivers.push(waiting);
        }
        let mut started = Self {
            inboxes: Arc::new(inboxes),
            books: (0..stores).map(|_| Arc::new(Books::new(regions))).collect(),
            leaderships: Arc::default(),
            threads: Vec::new(),
        };
        ctx.begin(regions, "create", regions);
        for (region, waiting) in (1..=regions).zip(receivers) {
            for (id, inbox) in (1..=stores).zip(waiting) {
                let peer = Peer::new(&started, region, id, inbox, ctx);
                let thread = thread::Builder::new()
                    .name(format!("region-{region}"))
                    .stack_size(STACK_BYTES)
                    .spawn(move || peer.run());
                started.threads.push(thread.map_err(|error| failed(regions, "start", &error))?);
            }
            ctx.progress.set(region);
        }
        Ok(started)
    }

    fn campaign(&self, region: u64, store: usize) {
        send(&self.inboxes, region, store, Mail::Campaign);
    }

    fn leaders(&self) -> u64 {
        self.leader_changes()
    }

    fn leader_changes(&self) -> u64 {
        self.leaderships.load(Ordering::Relaxed)
    }

    fn target(&self) -> Senders {
        Senders(self.inboxes.clone())
    }

    fn tallies(&self, region: u64) -> Vec<Tally> {
        self.books.iter().map(|books| books.tally(region)).collect()
    }

    fn failure(&self) -> Option<String> {
        let ended = self.threads.iter().position(JoinHandle::is_finished)?;
        Some(format!("a thread of region {} has ended", ended / self.books.len() + 1))
    }

    /// Dropping it does that.
    fn shutdown(self) {}
}

impl Drop for ThreadPerRegion {
    fn drop(&mut self) {
        for inbox in self.inboxes.iter().flatten() {
            // Who is not there any more needs no stopping.
            drop(inbox.send(Mail::Stop));
        }
        for thread in self.threads.drain(..) {
            // It has told of its panic already, and `failure` too.
            drop(thread.join());
        }
    }
}

fn send(inboxes: &Inboxes, region: u64, store: usize, mail: Mail) {
    // A peer that has stopped hears nothing; `failure` says so, where nobody stopped it.
    if let Err(unheard) = inboxes[(region - 1) as usize][store].send(mail) {
        if let Mail::Write(_, done) = unheard.0 {
            done(Outcome::Unknown);
        }
    }
}

/// The inboxes of all peers.
pub struct Senders(Inboxes);

impl Target for Senders {
    fn stores(&self) -> usize {
        self.0[0].len()
    }

    fn submit<F>(&self, store: usize, region: u64, write: Bytes, done: F)
    where
        F: FnOnce(Outcome) + Send + 'static,
    {
        send(&self.0, region, store, Mail::Write(write, Box::new(done)));
    }
}

/// What one thread owns.
struct Peer {
    region: u64,
    node: RawNode<LeanStorage>,
    inbox: Receiver<Mail>,
    inboxes: Inboxes,
    books: Arc<Books>,
    leaderships: Arc<AtomicU64>,
    tick: Duration,
    /// The writes of this turn.
    writes: Vec<(Bytes, Done)>,
    /// Proposed and not yet applied: index, term, and who wants to know.
    proposed: VecDeque<(u64, u64, Done)>,
}

impl Peer {
    fn new(
        cluster: &ThreadPerRegion,
        region: u64,
        id: u64,
        inbox: Receiver<Mail>,
        ctx: &Context,
    ) -> Self {
        let stores = cluster.books.len() as u64;
        let log = LeanStorage::new((1..=stores).collect());
        let logger = Logger::root(Discard, o!());
        Self {
            region,
            node: RawNode::new(&config(id, ctx), log, &logger).expect("the settings are sound"),
            inbox,
            inboxes: cluster.inboxes.clone(),
            books: cluster.books[(id - 1) as usize].clone(),
            leaderships: cluster.leaderships.clone(),
            tick: ctx.config.raft.tick_interval,
            writes: Vec::new(),
            proposed: VecDeque::new(),
        }
    }

    fn run(mut self) {
        let mut next_tick = Instant::now() + self.tick;
        loop {
            match self.inbox.recv_deadline(next_tick) {
                Ok(mail) => {
                    // What comes while this turn goes on is the next one's.
                    let waiting = self.inbox.len();
                    if self.take(mail).is_stop() {
                        return;
                    }
                    for _ in 0..waiting {
                        let Ok(mail) = self.inbox.try_recv() else { break };
                        if self.take(mail).is_stop() {
                            return;
                        }
                    }
                    self.propose();
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            let now = Instant::now();
            if now >= next_tick {
                self.node.tick();
                next_tick = now + self.tick;
            }
            self.work_off();
        }
    }

    fn take(&mut self, mail: Mail) -> Then {
        match mail {
            // An error is a message that raft-rs has no use for, such as one of a peer it does not know.
            Mail::Raft(message) => drop(self.node.step(message)),
            Mail::Write(bytes, done) => self.writes.push((bytes, done)),
            Mail::Campaign => drop(self.node.campaign()),
            Mail::Stop => return Then::Stop,
        }
        Then::GoOn
    }

    /// Proposes all writes of the turn at once.
    fn propose(&mut self) {
        if self.writes.is_empty() {
            return;
        }
        let raft = &self.node.raft;
        let refusal = match (raft.state, raft.leader_id) {
            (StateRole::Leader, _) => None,
            (_, 0) => Some(Whom::Next),
            (_, leader) => Some(Whom::Store((leader - 1) as usize)),
        };
        if let Some(whom) = refusal {
            self.writes.drain(..).for_each(|(_, done)| done(Outcome::Again(whom)));
            return;
        }
        let (first, term, from) = (raft.raft_log.last_index() + 1, raft.term, raft.id);
        let entries: Vec<Entry> = self
            .writes
            .iter()
            .map(|(bytes, _)| Entry { data: bytes.clone(), ..Entry::default() })
            .collect();
        let message = Message {
            msg_type: MessageType::MsgPropose,
            from,
            entries: entries.into(),
            ..Message::default()
        };
        let dropped = self.node.step(message).is_err();
        for (index, (_, done)) in (first..).zip(self.writes.drain(..)) {
            match dropped {
                true => done(Outcome::Again(Whom::Same)),
                false => self.proposed.push_back((index, term, done)),
            }
        }
    }

    /// Works off a `Ready`, if there is one.
    fn work_off(&mut self) {
        while self.node.has_ready() {
            let mut ready = self.node.ready();
            if ready.ss().is_some_and(|soft| soft.raft_state == StateRole::Leader) {
                self.leaderships.fetch_add(1, Ordering::Relaxed);
            }
            self.send(ready.take_messages());
            self.apply(ready.take_committed_entries());
            self.node.mut_store().persist(&mut ready);
            self.send(ready.take_persisted_messages());
            let mut light = self.node.advance_append(ready);
            self.send(light.take_messages());
            self.apply(light.take_committed_entries());
            self.cut();
        }
    }

    fn send(&self, messages: Vec<Message>) {
        for message in messages {
            send(&self.inboxes, self.region, (message.to - 1) as usize, Mail::Raft(message));
        }
    }

    fn apply(&mut self, entries: Vec<Entry>) {
        let Some(last) = entries.last().map(|entry| entry.index) else { return };
        let mut book = self.books.of(self.region);
        let leaders_own = |entry: &&Entry| !entry.data.is_empty();
        entries.iter().filter(leaders_own).for_each(|entry| book.apply(&entry.data));
        drop(book);
        self.node.advance_apply_to(last);
        for entry in &entries {
            while self.proposed.front().is_some_and(|(index, _, _)| *index <= entry.index) {
                let Some((index, term, done)) = self.proposed.pop_front() else { break };
                // Another leader's entry in its place: it is gone.
                let ours = index == entry.index && term == entry.term;
                done(if ours { Outcome::Applied } else { Outcome::Again(Whom::Next) });
            }
        }
    }

    /// Drops old entries that no follower lacks.
    fn cut(&mut self) {
        let raft = &self.node.raft;
        let compacted = self.node.store().compacted();
        if raft.raft_log.applied < compacted + KEPT_ENTRIES + CUT_ENTRIES {
            return;
        }
        let mut upto = raft.raft_log.applied - KEPT_ENTRIES;
        if raft.state == StateRole::Leader {
            let slowest = raft.prs().iter().map(|(_, progress)| progress.matched).min();
            upto = upto.min(slowest.unwrap_or(0));
        }
        if upto > compacted {
            self.node.mut_store().compact((upto - compacted) as usize);
        }
    }
}

/// Whether a thread goes on.
enum Then {
    GoOn,
    Stop,
}

impl Then {
    fn is_stop(&self) -> bool {
        matches!(self, Self::Stop)
    }
}

/// As `RegionConfig::for_raft` has it.
fn config(id: u64, ctx: &Context) -> Config {
    let raft = &ctx.config.raft;
    Config {
        id,
        election_tick: raft.election_ticks,
        heartbeat_tick: raft.heartbeat_ticks,
        max_size_per_msg: raft.max_append_size.as_u64(),
        max_inflight_msgs: raft.max_inflight_appends,
        max_uncommitted_size: raft.max_uncommitted_size.as_u64(),
        max_committed_size_per_ready: 1 << 20,
        check_quorum: true,
        pre_vote: true,
        skip_bcast_commit: true,
        batch_append: true,
        ..Config::default()
    }
}
