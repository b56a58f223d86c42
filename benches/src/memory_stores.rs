//! Stores of one process with everything in memory, for what measures other things than the disk.

use std::sync::Arc;

use raftstore::{
    InProcessTransport, MemoryLogStore, OrderedMap, RegionDescription, StartError, Store,
    StoreConfig, StoreId,
};

/// Starts stores 1 to `count` with these regions, and hands out their state machines as well.
///
/// # Errors
/// As the stores say.
pub(crate) fn start(
    config: &StoreConfig,
    count: u64,
    regions: &[RegionDescription],
) -> Result<(Vec<Store>, Vec<Arc<OrderedMap>>), StartError> {
    let network = InProcessTransport::new();
    let (mut stores, mut maps) = (Vec::new(), Vec::new());
    for id in 1..=count {
        let map = Arc::new(OrderedMap::new());
        let store = Store::builder(StoreId::new(id))
            .config(config.clone())
            .log_store(Arc::new(MemoryLogStore::new()))
            .state_machine(map.clone())
            .transport(network.clone())
            .start()?;
        network.connect(store.handle());
        store.handle().bootstrap(regions)?;
        stores.push(store);
        maps.push(map);
    }
    Ok((stores, maps))
}
