//! The state machine of the stress run: an ordered map in which every write is accounted for.
//!
//! A write is 8 bytes of key, 8 bytes that identify the write, and filling. Besides the map, a region
//! keeps the number of writes applied and the exclusive-or of their identities: compared with what
//! clients were told, they show a lost or doubled write, and name it if it is the only one. A hash
//! over the sequence shows whether two stores applied the same in the same order.

use std::collections::BTreeMap;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use parking_lot::Mutex;
use raftstore::{
    AppliedState, Index, InstallError, Pieces, RegionCommands, RegionId, SnapshotSource,
    StateMachine, StateMachineError,
};

/// Keys of one region. Few, so that a long run does not fill the memory.
pub const KEYS_PER_REGION: u64 = 64;

/// What one region of one store has applied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Writes.
    pub count: u64,
    /// Exclusive-or of their identities.
    pub identities: u64,
    /// Hash over keys and identities, in order.
    pub sequence: u64,
}

/// The state machine of one store, for regions 1 to `regions`.
#[derive(Debug)]
pub struct Ledger {
    regions: Vec<Mutex<RegionLedger>>,
    /// Whether it is still there when its store is started anew.
    outlives_store: bool,
}

/// The map of one region of one store, and the account of what came into it.
///
/// Every system that stress measures applies its writes to one of these, so that all of them do the
/// same work.
#[derive(Clone, Debug, Default)]
pub struct Book {
    map: BTreeMap<u64, Bytes>,
    tally: Tally,
}

impl Book {
    /// Applies a write of [`encode`].
    pub fn apply(&mut self, write: &Bytes) {
        let (key, identity) = decode(write);
        self.tally.count += 1;
        self.tally.identities ^= identity;
        let mixed = self.tally.sequence.rotate_left(5) ^ key ^ identity.rotate_left(32);
        self.tally.sequence = mixed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        self.map.insert(key, write.slice(8..));
    }

    /// What was applied so far.
    pub fn tally(&self) -> Tally {
        self.tally
    }
}

#[derive(Debug, Default)]
struct RegionLedger {
    book: Book,
    applied: Option<AppliedState>,
}

impl Ledger {
    /// An empty one, which ends with its store.
    pub fn new(regions: u64) -> Self {
        let regions = (0..regions).map(|_| Mutex::default()).collect();
        Self { regions, outlives_store: false }
    }

    /// An empty one, which the next life of its store is given: all that it has applied is as good as durable.
    pub fn outliving(regions: u64) -> Self {
        Self { outlives_store: true, ..Self::new(regions) }
    }

    /// What a region, counted from 1, has applied.
    pub fn tally(&self, region: u64) -> Tally {
        self.of(RegionId::new(region)).lock().book.tally()
    }

    fn of(&self, region: RegionId) -> &Mutex<RegionLedger> {
        &self.regions[(region.get() - 1) as usize]
    }
}

/// The bytes of one write, `size` of them and 16 at least.
pub fn encode(key: u64, identity: u64, size: usize) -> Bytes {
    let mut bytes = BytesMut::with_capacity(size.max(16));
    bytes.put_u64(key);
    bytes.put_u64(identity);
    bytes.resize(size.max(16), 0);
    bytes.freeze()
}

fn decode(payload: &Bytes) -> (u64, u64) {
    let word = |at: usize| {
        let bytes = payload.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
        u64::from_be_bytes(bytes.expect("every write of this program has 16 bytes or more"))
    };
    (word(0), word(8))
}

impl StateMachine for Ledger {
    fn apply(&self, batch: &mut [RegionCommands]) -> Result<(), StateMachineError> {
        for region in batch {
            let mut ledger = self.of(region.region_id).lock();
            for command in &region.commands {
                ledger.book.apply(&command.payload);
            }
            ledger.applied = Some(region.applied.clone());
        }
        Ok(())
    }

    fn gains_from_batches(&self) -> bool {
        false
    }

    fn applied_state(&self, region: RegionId) -> Result<Option<AppliedState>, StateMachineError> {
        Ok(self.of(region).lock().applied.clone())
    }

    fn durable_index(&self, region: RegionId) -> Index {
        let ledger = self.of(region).lock();
        let applied = ledger.applied.as_ref().filter(|_| self.outlives_store);
        applied.map_or(Index::new(0), |applied| applied.index)
    }

    fn snapshot(&self, region: RegionId) -> Result<Box<dyn SnapshotSource>, StateMachineError> {
        let ledger = self.of(region).lock();
        let nothing = || StateMachineError(format!("region {region} is not here"));
        let applied = ledger.applied.clone().ok_or_else(nothing)?;
        let Tally { count, identities, sequence } = ledger.book.tally;
        let mut tally = BytesMut::new();
        [count, identities, sequence].into_iter().for_each(|word| tally.put_u64(word));
        let values = ledger.book.map.clone().into_iter().map(|(key, value)| {
            let mut piece = BytesMut::with_capacity(8 + value.len());
            piece.put_u64(key);
            piece.put_slice(&value);
            piece.freeze()
        });
        Ok(Box::new(Pieces::new(applied, std::iter::once(tally.freeze()).chain(values))))
    }

    fn install(&self, snapshot: &mut dyn SnapshotSource) -> Result<(), InstallError> {
        let cut = || InstallError::Unsound("a piece of a snapshot is cut".to_owned());
        let mut words = snapshot.next_piece()?.filter(|piece| piece.len() == 24).ok_or_else(cut)?;
        let (count, identities) = (words.get_u64(), words.get_u64());
        let tally = Tally { count, identities, sequence: words.get_u64() };
        let mut map = BTreeMap::new();
        while let Some(mut piece) = snapshot.next_piece()? {
            if piece.len() < 8 {
                return Err(cut());
            }
            map.insert(piece.get_u64(), piece);
        }
        let applied = snapshot.applied().clone();
        let mut ledger = self.of(applied.description.id).lock();
        *ledger = RegionLedger { book: Book { map, tally }, applied: Some(applied) };
        Ok(())
    }

    fn destroy(&self, region: RegionId) -> Result<(), StateMachineError> {
        *self.of(region).lock() = RegionLedger::default();
        Ok(())
    }

    fn flush(&self) -> Result<(), StateMachineError> {
        Ok(())
    }
}
