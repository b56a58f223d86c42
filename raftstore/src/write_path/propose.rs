//! Station 1. In: one region's messages of this round. Out: the region has stepped them, and all
//! proposals among them have become one `MsgPropose`, or were refused.

use crate::creator::Creator;
use crate::message::RegionMessage;
use crate::metrics::LocalMetrics;
use crate::reads::read_error;
use crate::region_fsm::{RegionFsm, RegionOutbox};
use crate::snapshot::is_of_log;
use crate::write_path::Stage;
use raft::eraftpb::MessageType;
use region::{Effects, Proposal, ProposeError, Read};
use std::sync::Arc;
use std::time::Duration;

pub(crate) struct ProposeStation {
    tick_interval: Duration,
    creator: Arc<Creator>,
    /// The proposals of one region, between two calls empty.
    proposals: Vec<Proposal>,
    /// Its reads, likewise.
    reads: Vec<Read>,
}

impl ProposeStation {
    pub(crate) fn new(tick_interval: Duration, creator: Arc<Creator>) -> Self {
        Self { tick_interval, creator, proposals: Vec::new(), reads: Vec::new() }
    }

    /// Answers what a panic has left here: it was not proposed.
    pub(crate) fn refuse_leftovers(&mut self, error: &ProposeError) {
        for proposal in self.proposals.drain(..) {
            proposal.callback.call(Err(error.clone()));
        }
        for read in self.reads.drain(..) {
            read.callback.call(Err(read_error(error.clone())));
        }
    }

    /// Steps all messages. Refusals and other immediate results are added to `effects`.
    pub(crate) fn run(
        &mut self,
        fsm: &mut RegionFsm,
        messages: &mut Vec<RegionMessage>,
        now: Duration,
        effects: &mut Effects,
        metrics: &mut LocalMetrics,
        outbox: &mut RegionOutbox,
    ) {
        debug_assert!(self.proposals.is_empty(), "proposals of another region");
        metrics.mailbox_messages.observe(messages.len() as f64);
        for message in messages.drain(..) {
            let region = &mut fsm.region;
            match message {
                RegionMessage::Raft(envelope) => {
                    metrics.count_received(envelope.message.get_msg_type());
                    if let Err(rejection) = region.step(envelope) {
                        metrics.count_dropped(rejection.label(), 1);
                    }
                }
                RegionMessage::SnapshotArrived(arrival) => {
                    metrics.count_received(MessageType::MsgSnapshot);
                    fsm.publisher.hurry();
                    if let Err(rejection) = self.creator.step_snapshot(region, *arrival) {
                        metrics.count_dropped(rejection.label(), 1);
                    }
                }
                RegionMessage::Admin(command, proposal) => {
                    self.creator.propose_admin(region, &command, proposal, effects);
                }
                RegionMessage::TransferLeader(target, callback) => {
                    region.transfer_leader(target, callback, effects);
                }
                RegionMessage::SnapshotReady(to, made) => {
                    let made = made.filter(|made| is_of_log(region, to, made));
                    region.snapshot_ready(to, made.as_deref());
                }
                RegionMessage::SnapshotSent(to, arrived) => region.snapshot_sent(to, arrived),
                RegionMessage::BeginFromSplit(description) => {
                    fsm.publisher.hurry();
                    region.begin_from_split(&description);
                }
                RegionMessage::CompactSoon => region.compact_soon(),
                RegionMessage::Propose(proposal) => self.proposals.push(proposal),
                RegionMessage::Read(read) => self.reads.push(read),
                RegionMessage::Persisted(persisted) => region.persisted(persisted),
                RegionMessage::Applied(index) => {
                    let installed = region.installs_up_to() == Some(index);
                    region.applied(index);
                    if installed {
                        fsm.publisher.hurry();
                        // What the contents no longer cover is free now, and not before.
                        self.creator.ranges.replace(region.description());
                    }
                }
                RegionMessage::StoreLost(store) => drop(region.leader_lost(store)),
                RegionMessage::Cool(since) => fsm.cooling = fsm.sleeps_since(since),
                RegionMessage::Tick => self.tick(fsm, effects, outbox),
                // Where it is not possible now, the election timeout will see to it.
                RegionMessage::Campaign => drop(region.campaign()),
                // It has woken for it.
                RegionMessage::LookAround | RegionMessage::Continue => {}
                RegionMessage::Status(answer) => answer(region.status()),
            }
        }
        self.enter(fsm, now, effects, metrics);
    }

    /// A region that sleeps gets no further one.
    fn tick(&self, fsm: &mut RegionFsm, effects: &mut Effects, outbox: &mut RegionOutbox) {
        fsm.ticking = !fsm.region.is_asleep();
        if fsm.ticking {
            fsm.publisher.hurry();
            fsm.region.tick(effects);
            // A region that was closed meanwhile needs no further tick.
            outbox.send_after(fsm.region.id().get(), self.tick_interval, RegionMessage::Tick);
        }
    }

    /// What was gathered on the way, all at once.
    fn enter(
        &mut self,
        fsm: &mut RegionFsm,
        now: Duration,
        effects: &mut Effects,
        metrics: &LocalMetrics,
    ) {
        if let Some(oldest) = self.proposals.first() {
            let waited = now.saturating_sub(Duration::from_nanos(oldest.stamp));
            metrics.observe(Stage::Propose, waited);
            metrics.proposals.inc_by(self.proposals.len() as u64);
            // From here on the stamp says when the proposal was appended.
            let stamp = now.as_nanos() as u64;
            self.proposals.iter_mut().for_each(|proposal| proposal.stamp = stamp);
            let (given, answered) = (self.proposals.len(), effects.answers.len());
            fsm.region.propose(&mut self.proposals, effects);
            fsm.publisher.writes += (given + answered - effects.answers.len()) as u64;
        }
        if !self.reads.is_empty() {
            fsm.region.read(&mut self.reads, effects);
        }
    }
}
