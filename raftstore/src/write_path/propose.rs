//! Station 1. In: one region's messages of this round. Out: the region has stepped them, and all
//! proposals among them have become one `MsgPropose`, or were refused.

use crate::message::RegionMessage;
use crate::metrics::LocalMetrics;
use crate::region_fsm::{RegionFsm, RegionOutbox};
use crate::write_path::Stage;
use region::{Effects, Proposal, ProposeError};
use std::time::Duration;

pub(crate) struct ProposeStation {
    tick_interval: Duration,
    /// The proposals of one region, between two calls empty.
    proposals: Vec<Proposal>,
}

impl ProposeStation {
    pub(crate) fn new(tick_interval: Duration) -> Self {
        Self { tick_interval, proposals: Vec::new() }
    }

    /// Answers what a panic has left here: it was not proposed.
    pub(crate) fn refuse_leftovers(&mut self, error: &ProposeError) {
        for proposal in self.proposals.drain(..) {
            proposal.callback.call(Err(error.clone()));
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
        let region = &mut fsm.region;
        for message in messages.drain(..) {
            match message {
                RegionMessage::Raft(envelope) => {
                    metrics.count_received(envelope.message.get_msg_type());
                    if let Err(rejection) = region.step(envelope) {
                        metrics.count_dropped(rejection.label(), 1);
                    }
                }
                RegionMessage::Propose(proposal) => self.proposals.push(proposal),
                RegionMessage::Persisted(persisted) => region.persisted(persisted),
                RegionMessage::Applied(index) => region.applied(index),
                RegionMessage::Tick => {
                    region.tick(effects);
                    // A region that was closed meanwhile needs no further tick.
                    outbox.send_after(region.id().get(), self.tick_interval, RegionMessage::Tick);
                }
                // Where it is not possible now, the election timeout will see to it.
                RegionMessage::Campaign => drop(region.campaign()),
                RegionMessage::Continue => {}
                RegionMessage::Status(answer) => answer(region.status()),
            }
        }
        if let Some(oldest) = self.proposals.first() {
            let waited = now.saturating_sub(Duration::from_nanos(oldest.stamp));
            metrics.observe(Stage::Propose, waited);
            metrics.proposals.inc_by(self.proposals.len() as u64);
            // From here on the stamp says when the proposal was appended.
            let stamp = now.as_nanos() as u64;
            self.proposals.iter_mut().for_each(|proposal| proposal.stamp = stamp);
            fsm.region.propose(&mut self.proposals, effects);
        }
    }
}
