//! The smallest program that links the library: three stores in this process, one region, and an own
//! state machine, a counter that commands add to.

use raftstore::{
    AppliedState, Bytes, InProcessTransport, Index, InstallError, MemoryLogStore, Peer, PeerId,
    PeerRole, Pieces, ProposeError, RegionCommands, RegionDescription, RegionId, SnapshotSource,
    StateMachine, StateMachineError, Store, StoreId,
};
use std::sync::{Arc, Mutex};

/// One region's counter, and up to where the log has been applied to it.
#[derive(Default)]
struct Counter(Mutex<(u64, Option<AppliedState>)>);

impl StateMachine for Counter {
    fn apply(&self, batch: &mut [RegionCommands]) -> Result<(), StateMachineError> {
        let mut counter = self.0.lock().expect("no panic while counting");
        for region in batch {
            for command in &mut region.commands {
                counter.0 += u64::from(*command.payload.first().unwrap_or(&0));
                command.output = counter.0.to_string().into();
            }
            counter.1 = Some(region.applied.clone());
        }
        Ok(())
    }

    fn applied_state(&self, _: RegionId) -> Result<Option<AppliedState>, StateMachineError> {
        Ok(self.0.lock().expect("no panic while counting").1.clone())
    }

    fn durable_index(&self, _: RegionId) -> Index {
        Index::new(0)
    }

    fn snapshot(&self, region: RegionId) -> Result<Box<dyn SnapshotSource>, StateMachineError> {
        let counter = self.0.lock().expect("no panic while counting");
        let nothing = || StateMachineError(format!("region {region} is not here"));
        let applied = counter.1.clone().ok_or_else(nothing)?;
        Ok(Box::new(Pieces::new(applied, [Bytes::copy_from_slice(&counter.0.to_le_bytes())])))
    }

    fn install(&self, snapshot: &mut dyn SnapshotSource) -> Result<(), InstallError> {
        let piece = snapshot.next_piece()?.unwrap_or_default();
        let bytes = piece[..].try_into().map_err(|_| InstallError::Unsound("no counter".into()))?;
        let mut counter = self.0.lock().expect("no panic while counting");
        *counter = (u64::from_le_bytes(bytes), Some(snapshot.applied().clone()));
        Ok(())
    }

    fn destroy(&self, _: RegionId) -> Result<(), StateMachineError> {
        *self.0.lock().expect("no panic while counting") = (0, None);
        Ok(())
    }

    fn flush(&self) -> Result<(), StateMachineError> {
        Ok(())
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let region = RegionId::new(1);
    let voter = |id| Peer { id: PeerId::new(id), store: StoreId::new(id), role: PeerRole::Voter };
    let description = RegionDescription::new(region, "", "", (1..=3).map(voter));
    let network = InProcessTransport::new();
    let mut stores = Vec::new();
    for id in 1..=3 {
        let store = Store::builder(StoreId::new(id))
            .log_store(Arc::new(MemoryLogStore::new()))
            .state_machine(Arc::new(Counter::default()))
            .transport(network.clone())
            .start()?;
        network.connect(store.handle());
        store.handle().bootstrap(std::slice::from_ref(&description))?;
        stores.push(store);
    }
    // Without this the first leader takes an election timeout.
    stores[0].handle().campaign(region);
    let mut store = 0;
    for add in [1u8, 2, 39] {
        // Until the election is over there is no leader; later the answer names it.
        let response = loop {
            match stores[store].handle().propose(region, vec![add]) {
                Err(ProposeError::NotLeader { leader, .. }) => {
                    store = leader.map_or(0, |peer| peer.store.get() as usize - 1);
                    std::thread::yield_now();
                }
                answer => break answer?,
            }
        };
        println!("added {add} at {}: {}", response.index, String::from_utf8_lossy(&response.value));
    }
    Ok(())
}
