//! Sends many messages and hands the woken FSMs over in batches.

use crate::fsm::Fsm;
use crate::mailbox::{Claim, SendError, Sent};
use crate::router::{Mailbox, Router, Shared};
use crate::sync::Arc;
use std::time::Duration;

/// So many claims for one poller are handed over without waiting for a flush.
const HAND_OVER: usize = 64;

/// A sender for more than one message.
///
/// A message enters its mailbox at once and in order; what waits for [`flush`](Outbox::flush), for 64
/// hand-overs to one poller, or for the drop of the outbox is only the *wake-up* of FSMs that were
/// parked. One lock and one wake then serve many. Pollers flush theirs at the end of each round.
///
/// Caveat: an FSM that waits in here for a flush does not run and cannot end, and
/// [`Pool::shutdown`](crate::Pool::shutdown) waits for it. Flush before you wait for anything.
pub struct Outbox<N: Fsm, C: Fsm> {
    shared: Arc<Shared<N, C>>,
    /// By home.
    claims: Vec<Vec<Claim<N>>>,
    /// The poller this outbox belongs to, whose claims need no hand-over.
    poller: Option<usize>,
}

impl<N: Fsm, C: Fsm> Outbox<N, C> {
    pub(crate) fn new(shared: Arc<Shared<N, C>>, poller: Option<usize>) -> Self {
        Self { shared, claims: Vec::new(), poller }
    }

    /// Sends to an address.
    ///
    /// # Errors
    /// `Full` and `Closed`, with the message.
    pub fn send(&mut self, address: u64, message: N::Message) -> Result<(), SendError<N::Message>> {
        let sent = self.shared.send(address, message, self.shared.limits.mailbox_capacity)?;
        self.note(sent);
        Ok(())
    }

    /// Sends what must not be refused for fullness: up to the forced capacity.
    ///
    /// # Errors
    /// `Full` beyond the forced capacity, and `Closed`, with the message.
    pub fn force_send(
        &mut self,
        address: u64,
        message: N::Message,
    ) -> Result<(), SendError<N::Message>> {
        let sent = self.shared.force_send(address, message)?;
        self.note(sent);
        Ok(())
    }

    /// Sends to a mailbox, without looking up its address.
    ///
    /// # Errors
    /// `Full` and `Closed`, with the message.
    pub fn send_to(
        &mut self,
        mailbox: &Mailbox<N, C>,
        message: N::Message,
    ) -> Result<(), SendError<N::Message>> {
        let sent = mailbox.enqueue(message)?;
        self.note(sent);
        Ok(())
    }

    /// Sends to an address after a delay, up to [`TIMER_GRANULARITY`](crate::TIMER_GRANULARITY) later.
    /// Forced; if even then the mailbox is full, it is tried again. Says whether the address is
    /// registered.
    pub fn send_after(&self, address: u64, delay: Duration, message: N::Message) -> bool {
        self.shared.send_after(address, delay, message)
    }

    /// Sends to the control FSM.
    ///
    /// # Errors
    /// `Full` and `Closed`, with the message.
    pub fn send_control(&self, message: C::Message) -> Result<(), SendError<C::Message>> {
        self.shared.send_control(message, self.shared.limits.mailbox_capacity)
    }

    /// Sends to the control FSM after a delay; see
    /// [`Router::send_control_after`](crate::Router::send_control_after).
    pub fn send_control_after(&self, delay: Duration, message: C::Message) {
        self.shared.send_control_after(delay, message);
    }

    /// A router to the same mailboxes.
    pub fn router(&self) -> Router<N, C> {
        Router { shared: self.shared.clone() }
    }

    /// Closes an address; see [`Router::close`](crate::Router::close).
    pub fn close(&self, address: u64) -> bool {
        self.shared.close(address)
    }

    /// Hands over every FSM woken so far.
    pub fn flush(&mut self) {
        for (home, claims) in self.claims.iter_mut().enumerate() {
            if self.poller == Some(home) {
                self.shared.scheduler.schedule_locally(home, claims);
            } else {
                self.shared.scheduler.schedule_many(home, claims);
            }
        }
    }

    pub(crate) fn note(&mut self, sent: Sent<N>) {
        if let Sent::Schedule(claim) = sent {
            let home = self.shared.scheduler.home(claim.address());
            if self.claims.len() <= home {
                self.claims.resize_with(home + 1, Vec::new);
            }
            self.claims[home].push(claim);
            if self.claims[home].len() >= HAND_OVER && self.poller != Some(home) {
                self.shared.scheduler.schedule_many(home, &mut self.claims[home]);
            }
        }
    }
}

impl<N: Fsm, C: Fsm> Drop for Outbox<N, C> {
    fn drop(&mut self) {
        self.flush();
    }
}
