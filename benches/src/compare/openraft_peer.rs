//! openraft, with everything in one process and in memory.
//!
//! A region is three `Raft`s, which reach each other by calling each other. Clients are callbacks here as well:
//! the responder of a write proposes the client's next one.
//!
//! What it is given, besides a log and a state machine that never wait:
//!
//! - tokio's multi-threaded runtime with a worker a core, shared by all stores;
//! - appends of up to 4,096 entries;
//! - heartbeats and election timeouts as long as those of our stores (1 s, and 5 to 10 s), so that no leader is
//!   lost to a short timeout;
//! - a snapshot, which is a copy of a book, each 10,000 entries, so that logs do not grow without end.
//!
//! A worker of tokio prefers the tasks of its own queue, which are those it has woken lately, and looks into the
//! common queue, where those beyond 256 wait, each 61st turn only: with many regions, a few hot ones run and the
//! others starve. With [`Fair`] it looks there every other turn, and for timers each 8th. Of eight settings tried,
//! among them a runtime of one thread for each store, this one had the lowest 99th percentile at 100 and at 1,000
//! regions; it does about as much as the default.

use std::collections::BTreeMap;
use std::future::Future;
use std::marker::PhantomData;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context as Task, Poll, Waker};

use bytes::Bytes;
use openraft::error::{Fatal, RPCError, RaftError, RemoteError, ReplicationClosed, StreamingError};
use openraft::network::RPCOption;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse,
};
use openraft::{
    Config, EmptyNode, Raft, RaftNetwork, RaftNetworkFactory, ServerState, Snapshot,
    SnapshotPolicy, Vote,
};
use tokio::runtime::{Builder, Runtime};

use super::books::Books;
use super::openraft_store::{Log, Machine, Types, Write};
use crate::stress::error::StressError;
use crate::stress::ledger::Tally;
use crate::stress::options::Options;
use crate::stress::run::Context;
use crate::stress::subject::{failed, Outcome, Subject, Target};

const MAX_PAYLOAD_ENTRIES: u64 = 4_096;
const SNAPSHOT_AFTER_ENTRIES: u64 = 10_000;

/// All peers of a region, by store; empty until the last one is made.
type Region = Arc<OnceLock<Vec<Raft<Types>>>>;

/// How the tasks of openraft get their turns.
pub trait Scheduling {
    /// Settings of the runtime.
    fn tune(runtime: &mut Builder);
}

/// As tokio does it by default.
pub struct Usual;

/// Those that wait in the common queue get every other turn.
pub struct Fair;

impl Scheduling for Usual {
    fn tune(_runtime: &mut Builder) {}
}

impl Scheduling for Fair {
    fn tune(runtime: &mut Builder) {
        runtime.global_queue_interval(2).event_interval(8);
    }
}

/// Regions on openraft, scheduled by `S`.
pub struct Openraft<S> {
    regions: Arc<Vec<Region>>,
    books: Vec<Arc<Books>>,
    elected: Arc<AtomicU64>,
    runtime: Runtime,
    scheduling: PhantomData<S>,
}

impl<S: Scheduling> Subject for Openraft<S> {
    type Target = Rafts;

    fn start(options: &Options, regions: u64, ctx: &Context) -> Result<Self, StressError> {
        let mut runtime = Builder::new_multi_thread();
        runtime.worker_threads(ctx.machine.cores).enable_time();
        S::tune(&mut runtime);
        let runtime = runtime.build().map_err(|error| failed(regions, "start", &error))?;
        let config = Arc::new(config(ctx, regions)?);
        let stores = options.stores;
        let books: Vec<_> = (0..stores).map(|_| Arc::new(Books::new(regions))).collect();
        ctx.begin(regions, "create", regions);
        let mut all = Vec::new();
        for number in 1..=regions {
            let region = Region::default();
            let peers = books.iter().zip(1..).map(|(books, id)| {
                let machine = Machine::new(books.clone(), number);
                let network = Network(region.clone());
                let made = Raft::new(id, config.clone(), network, Log::default(), machine);
                let made = runtime.block_on(made);
                made.map_err(|error| failed(regions, "create", &error))
            });
            let peers: Vec<_> = peers.collect::<Result<_, _>>()?;
            region.get_or_init(|| peers);
            all.push(region);
            ctx.progress.set(number);
        }
        Ok(Self {
            regions: Arc::new(all),
            books,
            elected: Arc::default(),
            runtime,
            scheduling: PhantomData,
        })
    }

    fn campaign(&self, region: u64, store: usize) {
        let raft = peers(&self.regions, region)[store].clone();
        let members: BTreeMap<u64, EmptyNode> =
            (1..=self.books.len() as u64).map(|id| (id, EmptyNode::new())).collect();
        let elected = self.elected.clone();
        self.runtime.spawn(async move {
            // A region that does not get there is missed by who waits for all leaders.
            let leads = match raft.initialize(members).await {
                Ok(()) => raft.wait(None).state(ServerState::Leader, "first leader").await.is_ok(),
                Err(_) => false,
            };
            elected.fetch_add(u64::from(leads), Ordering::Relaxed);
        });
    }

    fn leaders(&self) -> u64 {
        self.elected.load(Ordering::Relaxed)
    }

    /// The terms of all regions: each begins with an election, of which nearly all have a winner.
    fn leader_changes(&self) -> u64 {
        let newest = |region: u64| -> u64 {
            let terms = peers(&self.regions, region)
                .iter()
                .map(|raft| raft.metrics().borrow().current_term);
            terms.max().unwrap_or(0)
        };
        (1..=self.regions.len() as u64).map(newest).sum()
    }

    fn target(&self) -> Rafts {
        Rafts(self.regions.clone())
    }

    fn tallies(&self, region: u64) -> Vec<Tally> {
        self.books.iter().map(|books| books.tally(region)).collect()
    }

    fn failure(&self) -> Option<String> {
        (1..=self.regions.len() as u64).find_map(|region| {
            peers(&self.regions, region).iter().find_map(|raft| {
                let problem = raft.metrics().borrow().running_state.clone().err()?;
                Some(format!("region {region}: {problem}"))
            })
        })
    }

    /// Dropping the runtime drops all tasks.
    fn shutdown(self) {}
}

fn peers(regions: &[Region], region: u64) -> &[Raft<Types>] {
    regions[(region - 1) as usize].get().map_or(&[], Vec::as_slice)
}

fn config(ctx: &Context, regions: u64) -> Result<Config, StressError> {
    let raft = &ctx.config.raft;
    let ticks = |count: usize| (raft.tick_interval * count as u32).as_millis() as u64;
    let config = Config {
        cluster_name: "stress".to_owned(),
        heartbeat_interval: ticks(raft.heartbeat_ticks),
        election_timeout_min: ticks(raft.election_ticks),
        election_timeout_max: ticks(2 * raft.election_ticks),
        max_payload_entries: MAX_PAYLOAD_ENTRIES,
        snapshot_policy: SnapshotPolicy::LogsSinceLast(SNAPSHOT_AFTER_ENTRIES),
        // Beyond the distance between two snapshots, or followers would be sent one again and again.
        replication_lag_threshold: 10 * SNAPSHOT_AFTER_ENTRIES,
        install_snapshot_timeout: ticks(raft.election_ticks),
        ..Config::default()
    };
    config.validate().map_err(|error| failed(regions, "start", &error))
}

/// The handles of all peers.
pub struct Rafts(Arc<Vec<Region>>);

impl Target for Rafts {
    fn stores(&self) -> usize {
        peers(&self.0, 1).len()
    }

    fn submit<F>(&self, store: usize, region: u64, write: Bytes, done: F)
    where
        F: FnOnce(Outcome) + Send + 'static,
    {
        let raft = &peers(&self.0, region)[store];
        let sent = pin!(raft.client_write_ff(Write::new(write, Box::new(done))));
        // It puts the write into an unbounded queue, and waits only to tell why there is none any more; its
        // callback hears of that when it is dropped.
        match sent.poll(&mut Task::from_waker(Waker::noop())) {
            Poll::Ready(_) | Poll::Pending => {}
        }
    }
}

/// Reaches the peers of a region by calling them.
#[derive(Clone)]
struct Network(Region);

impl RaftNetworkFactory<Types> for Network {
    type Network = Connection;

    async fn new_client(&mut self, target: u64, _node: &EmptyNode) -> Connection {
        Connection { region: self.0.clone(), target }
    }
}

/// Calls one peer.
struct Connection {
    region: Region,
    target: u64,
}

type CallError = RPCError<u64, EmptyNode, RaftError<u64>>;

impl Connection {
    /// Invariant: all peers of a region are made before one of them campaigns, so before anybody calls.
    fn peer(&self) -> &Raft<Types> {
        &self.region.get().expect("all peers are made")[(self.target - 1) as usize]
    }

    fn remote(&self, error: RaftError<u64>) -> CallError {
        RPCError::RemoteError(RemoteError::new(self.target, error))
    }
}

impl RaftNetwork<Types> for Connection {
    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<Types>,
        _option: RPCOption,
    ) -> Result<AppendEntriesResponse<u64>, CallError> {
        self.peer().append_entries(rpc).await.map_err(|error| self.remote(error))
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<u64>,
        _option: RPCOption,
    ) -> Result<VoteResponse<u64>, CallError> {
        self.peer().vote(rpc).await.map_err(|error| self.remote(error))
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote<u64>,
        snapshot: Snapshot<Types>,
        _cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<u64>, StreamingError<Types, Fatal<u64>>> {
        let installed = self.peer().install_full_snapshot(vote, snapshot).await;
        installed.map_err(|fatal| RemoteError::new(self.target, fatal).into())
    }
}
