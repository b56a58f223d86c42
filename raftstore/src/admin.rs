//! What users of a running store ask of a region as a whole: to split, to get other peers, to get another
//! leader. Each in three ways: waiting, with a callback, as a future.

use crate::handle::{AnswerFuture, StoreHandle};
use crate::message::RegionMessage;
use region::{
    regions_of_answer, AdminCommand, Answer, Callback, PeerChange, PeerId, Proposal, ProposeError,
    RegionDescription, RegionEpoch, RegionId, SplitRequest,
};
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

/// A request about a region as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminRequest {
    what: What,
    epoch: Option<RegionEpoch>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum What {
    Command(AdminCommand),
    Transfer(Option<PeerId>),
}

impl AdminRequest {
    /// Become several regions. Answered with all of them, the region itself first, as soon as they are
    /// there on the leader's store; their peers there stand for election at once.
    pub fn split(request: SplitRequest) -> Self {
        Self { what: What::Command(AdminCommand::Split(request)), epoch: None }
    }

    /// Get other peers, all at once. Several go through a joint configuration, in which a majority of the
    /// old voters and one of the new ones are needed; it is left by itself. Answered with the region when
    /// that is done. New peers are created by the leader's first message, and get a snapshot.
    pub fn change_peers(changes: impl Into<Vec<PeerChange>>) -> Self {
        Self { what: What::Command(AdminCommand::ChangePeers(changes.into())), epoch: None }
    }

    /// Get another leader: this peer, or with `None` the one that is furthest. Answered with the region
    /// when it leads. Meanwhile proposals are refused as busy; those before are carried out.
    pub fn transfer_leader(to: Option<PeerId>) -> Self {
        Self { what: What::Transfer(to), epoch: None }
    }

    /// The epoch of the region as the caller knows it: with another one the answer is `EpochNotMatch`. Not
    /// looked at for transfers.
    pub fn at_epoch(mut self, epoch: RegionEpoch) -> Self {
        self.epoch = Some(epoch);
        self
    }
}

/// The regions that a request has led to.
pub type Regions = Result<Vec<RegionDescription>, ProposeError>;

/// Between two attempts to hand leadership over.
const EVICT_AGAIN: Duration = Duration::from_millis(20);

impl StoreHandle {
    /// Asks and waits for the answer. Not from a callback.
    ///
    /// # Errors
    /// See [`ProposeError`]; each says what to do, and those about the request itself carry the region as it
    /// is.
    pub fn admin(&self, region: RegionId, request: AdminRequest) -> Regions {
        let (sender, answer) = crossbeam::channel::bounded(1);
        self.admin_with(region, request, move |answer| {
            let _ = sender.send(answer);
        });
        let lost = ProposeError::Unknown { region_id: region, reason: "the callback was lost" };
        answer.recv().unwrap_or(Err(lost))
    }

    /// Asks; the answer is given to `callback`, as for [`propose_with`](Self::propose_with).
    pub fn admin_with(
        &self,
        region: RegionId,
        request: AdminRequest,
        callback: impl FnOnce(Regions) + Send + 'static,
    ) {
        self.ask(region, request, Callback::new(move |answer| callback(regions_in(answer))));
    }

    /// Asks; the answer is a future.
    pub fn admin_async(&self, region: RegionId, request: AdminRequest) -> RegionsFuture {
        RegionsFuture(AnswerFuture::new(region, |callback| self.ask(region, request, callback)))
    }

    fn ask(&self, region: RegionId, request: AdminRequest, callback: Callback) {
        let AdminRequest { what, epoch } = request;
        let message = match what {
            What::Command(command) => {
                let stamp = self.inner.clock.now().as_nanos() as u64;
                let payload = bytes::Bytes::new();
                let proposal = Proposal { payload, epoch, callback, stamp };
                RegionMessage::Admin(Box::new(command), proposal)
            }
            What::Transfer(target) => RegionMessage::TransferLeader(target, callback),
        };
        self.send_or_refuse(region, message);
    }

    /// Hands over the leadership of every region that this store leads, for a stop without a gap. Waits for
    /// it, and tries again where it was refused, for as long as `patience` says. Returns how many regions it
    /// still leads. Not from a callback.
    pub fn evict_leaders(&self, patience: Duration) -> u64 {
        let start = Instant::now();
        loop {
            let (sender, answers) = crossbeam::channel::unbounded::<()>();
            let for_others = sender.clone();
            self.inner.router.broadcast(move |_| {
                let sender = for_others.clone();
                let callback = Callback::new(move |_| {
                    let _ = sender.send(());
                });
                RegionMessage::TransferLeader(None, callback)
            });
            for region in self.inner.cold.led() {
                let sender = sender.clone();
                self.ask(
                    region,
                    AdminRequest::transfer_leader(None),
                    Callback::new(move |_| {
                        let _ = sender.send(());
                    }),
                );
            }
            drop(sender);
            // Every region answers, and then nobody holds a sender any more.
            while let Some(left) = patience.checked_sub(start.elapsed()) {
                if answers.recv_timeout(left).is_err() {
                    break;
                }
            }
            let left = patience.saturating_sub(start.elapsed());
            if self.leaders() == 0 || left.is_zero() {
                return self.leaders();
            }
            // Whoever was refused just now would be so again.
            std::thread::park_timeout(left.min(EVICT_AGAIN));
        }
    }
}

fn regions_in(answer: Answer) -> Regions {
    let response = answer?;
    regions_of_answer(&response).map_err(|_| ProposeError::Unknown {
        region_id: response.region_id,
        reason: "the answer is not decodable",
    })
}

/// The answer to come.
#[derive(Debug)]
#[must_use = "a future does nothing unless awaited; the request is under way all the same"]
pub struct RegionsFuture(AnswerFuture);

impl Future for RegionsFuture {
    type Output = Regions;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Regions> {
        Pin::new(&mut self.0).poll(context).map(regions_in)
    }
}
