//! Who asks a peer for its vote at the very moment when it begins here.

mod common;

use common::{config, counted, eventually, region};
use parking_lot::Mutex;
use raft::eraftpb::MessageType;
use raftstore::{
    AdminRequest, CreatedBy, Envelope, InProcessTransport, MemoryLogStore, NewRegion, Observer,
    OrderedMap, PeerId, RegionEvent, RegionId, Registry, SnapshotMessage, SplitRequest, Store,
    StoreId, StorePing, Transport,
};
use std::sync::Arc;

const PARENT: RegionId = RegionId::new(1);
const CHILD: RegionId = RegionId::new(7);

/// Keeps the child's requests for pre-votes back, each until its store is about to begin the child.
#[derive(Clone)]
struct Withholding {
    network: InProcessTransport,
    requests: Arc<Mutex<Vec<Box<Envelope>>>>,
    registry: Registry,
}

impl Transport for Withholding {
    fn send(&self, to: StoreId, messages: &mut Vec<Box<Envelope>>) -> usize {
        let asks = |envelope: &mut Box<Envelope>| {
            envelope.region_id == CHILD
                && envelope.message.get_msg_type() == MessageType::MsgRequestPreVote
        };
        self.requests.lock().extend(messages.extract_if(.., asks));
        self.network.send(to, messages)
    }

    fn send_snapshot(&self, message: SnapshotMessage) -> bool {
        self.network.send_snapshot(message)
    }

    fn send_ping(&self, ping: StorePing) -> bool {
        self.network.send_ping(ping)
    }
}

/// Stands between the decision to create the child's peer and its creation.
struct Midwife(Withholding);

impl Observer for Midwife {
    fn observe(&self, store: StoreId, region: RegionId, event: &RegionEvent) {
        let begins = matches!(event, RegionEvent::Created { by: CreatedBy::Split, .. });
        if !begins || region != CHILD || store == StoreId::new(1) {
            return;
        }
        let take = || {
            let mut requests = self.0.requests.lock();
            let its = requests.iter().position(|envelope| envelope.to.store == store);
            its.map(|at| requests.remove(at))
        };
        let mut request = None;
        eventually("the first store asks for the vote", || {
            request = take();
            request.is_some()
        });
        let request = request.expect("it has asked");
        // Behind it one that is dropped and counted: then the store has looked at both.
        let stray = Envelope { cluster_id: 99, ..*request.clone() };
        self.0.network.send(store, &mut vec![request, Box::new(stray)]);
        let label = format!("reason=\"wrong_recipient\",store=\"{store}\"");
        let name = "raftstore_raft_messages_dropped_total";
        eventually("they are looked at", || counted(&self.0.registry, name, &label) >= 1.0);
    }
}

#[test]
fn a_vote_that_is_asked_of_a_child_while_it_begins_is_not_lost() {
    let withholding = Withholding {
        network: InProcessTransport::new(),
        requests: Arc::default(),
        registry: Registry::new(),
    };
    let mut config = config();
    // Nobody stands for election by himself before the test is given up.
    config.raft.election_ticks = 10_000;
    let start = |id: u64| {
        let store = Store::builder(StoreId::new(id))
            .config(config.clone())
            .log_store(Arc::new(MemoryLogStore::new()))
            .state_machine(Arc::new(OrderedMap::new()))
            .transport(withholding.clone())
            .registry(withholding.registry.clone())
            .observer(Arc::new(Midwife(withholding.clone())))
            .start()
            .expect("starts");
        withholding.network.connect(store.handle());
        store
    };
    let stores: Vec<Store> = (1..=3).map(start).collect();
    for store in &stores {
        store.handle().bootstrap(&[region(1, 1)]).expect("sound");
    }
    let first = stores[0].handle();
    first.campaign(PARENT);
    eventually("the first store leads", || first.leaders() == 1);
    let split = SplitRequest {
        keys: vec!["m".into()],
        regions: vec![NewRegion { id: CHILD, peers: [71, 72, 73].map(PeerId::new).into() }],
        parent_is_right: false,
    };
    first.admin(PARENT, AdminRequest::split(split)).expect("divided");
    eventually("it leads the child, too", || first.leaders() == 2);
}
