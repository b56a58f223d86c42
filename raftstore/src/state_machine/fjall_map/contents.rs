//! Contents of a region on their way: out of the database, and into it.

use super::tables::{bounds, range_of, Filling, KeyRange, Tables};
use super::{check_key, MapCommand};
use crate::state_machine::{Cutter, InstallError, RegionSize, SnapshotSource, StateMachineError};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use fjall::Readable;
use parking_lot::Mutex;
use region::{AppliedState, RegionDescription, RegionId};

/// Of a snapshot. A larger pair is a piece of its own.
const PIECE_BYTES: usize = 256 << 10;

/// The contents of a region at one moment, read as they are asked for.
///
/// Pieces are those of the [`OrderedMap`](crate::OrderedMap): each pair is its length in 4 bytes and the
/// command that puts it.
pub(super) struct View {
    applied: AppliedState,
    pairs: fjall::Iter,
    /// The pair that did not fit into the piece before.
    left: Option<Bytes>,
    tables: Tables,
}

impl View {
    pub(super) fn open(tables: &Tables, region: RegionId) -> Result<Self, StateMachineError> {
        let view = tables.db.snapshot();
        let unknown = || StateMachineError(format!("region {region} is not here"));
        let applied = tables.applied_at(&view, region)?.ok_or_else(unknown)?;
        let bounds = bounds(range_of(&applied.description)).ok_or_else(unknown)?;
        // Keeps the snapshot as long as it lives.
        let pairs = view.range::<&[u8], _>(&tables.data, bounds);
        Ok(Self { applied, pairs, left: None, tables: tables.clone() })
    }

    fn next_pair(&mut self) -> Result<Option<Bytes>, StateMachineError> {
        if let Some(pair) = self.left.take() {
            return Ok(Some(pair));
        }
        let Some(pair) = self.pairs.next() else { return Ok(None) };
        let (key, value) =
            pair.into_inner().map_err(|error| self.tables.error("cannot read", error))?;
        let put = MapCommand::Put {
            key: Bytes::copy_from_slice(&key),
            value: Bytes::copy_from_slice(&value),
        };
        Ok(Some(put.encode()))
    }
}

impl SnapshotSource for View {
    fn applied(&self) -> &AppliedState {
        &self.applied
    }

    fn next_piece(&mut self) -> Result<Option<Bytes>, StateMachineError> {
        let mut piece = BytesMut::new();
        while let Some(pair) = self.next_pair()? {
            if !piece.is_empty() && piece.len() + pair.len() > PIECE_BYTES {
                self.left = Some(pair);
                break;
            }
            piece.put_u32(u32::try_from(pair.len()).expect("a pair is shorter than 4 GiB"));
            piece.put_slice(&pair);
        }
        Ok((!piece.is_empty()).then(|| piece.freeze()))
    }
}

/// Calls `each` with every key of a region and the bytes of the pair, until it says that it needs no more.
fn read_all(
    tables: &Tables,
    region: RegionId,
    mut each: impl FnMut(&[u8], u64) -> bool,
) -> Result<(), StateMachineError> {
    for pair in View::open(tables, region)?.pairs {
        let (key, value) = pair.into_inner().map_err(|error| tables.error("cannot read", error))?;
        if !each(&key, (key.len() + value.len()) as u64) {
            break;
        }
    }
    Ok(())
}

/// Reads a whole region to say how much it holds.
pub(super) fn count(tables: &Tables, region: RegionId) -> Result<RegionSize, StateMachineError> {
    let mut size = RegionSize::default();
    read_all(tables, region, |_, bytes| {
        size.bytes += bytes;
        size.keys += 1;
        true
    })?;
    Ok(size)
}

/// Where to cut a region that holds about `bytes`.
pub(super) fn cut(
    tables: &Tables,
    region: RegionId,
    bytes: u64,
    max_bytes: u64,
) -> Result<Vec<Bytes>, StateMachineError> {
    let Some(mut cutter) = Cutter::new(bytes, max_bytes) else { return Ok(Vec::new()) };
    read_all(tables, region, |key, bytes| cutter.add(key, bytes))?;
    Ok(cutter.finish())
}

/// Replaces what there is of a region by a snapshot. The order of writes:
///
/// 1. what an earlier one has left that was cut short is cleared;
/// 2. the region is marked: it is not applied any more, and its remains lie in the range before and in
///    the one that comes;
/// 3. both ranges are cleared, but for what of the range before belongs to others by now;
/// 4. the pairs are put;
/// 5. the applied state is put and the marks are taken away, in one step.
///
/// After a crash the journal holds a prefix of this, and the same begins again.
///
/// Invariant: nothing is cleared after another region began to be put there. So marking and clearing are
/// done under one lock, `moving`, for all regions: whoever comes later sees the marks of the one before.
pub(super) fn install(
    tables: &Tables,
    moving: &Mutex<()>,
    snapshot: &mut dyn SnapshotSource,
) -> Result<(), InstallError> {
    let applied = snapshot.applied().clone();
    let description = &applied.description;
    let region = description.id;
    {
        let _moving = moving.lock();
        clear_sparing_others(tables, region, &tables.marks(region)?)?;
        let before = tables.applied(region)?.map(|applied| applied.description);
        tables.mark_installation(region, before.as_deref(), description)?;
        if let Some(before) = before.filter(|before| !is_within(before, description)) {
            clear_sparing_others(tables, region, &[(*before).clone()])?;
        }
        tables.clear(range_of(description))?;
    }
    put_pairs(tables, description, snapshot)?;
    Ok(tables.settle(region, Some(&applied))?)
}

/// Removes what there is of a region, its applied state last. Of one whose state is damaged it is unknown which
/// keys are its own: they stay, and give way to whatever is installed there.
pub(super) fn destroy(
    tables: &Tables,
    moving: &Mutex<()>,
    region: RegionId,
) -> Result<(), StateMachineError> {
    let _moving = moving.lock();
    let unknown = |error: StateMachineError| tracing::warn!(%error, "keys may stay behind");
    let marks = tables.marks(region).map_err(unknown).unwrap_or_default();
    clear_sparing_others(tables, region, &marks)?;
    if let Some(applied) = tables.applied(region).map_err(unknown).ok().flatten() {
        tables.clear(range_of(&applied.description))?;
    }
    tables.settle(region, None)
}

fn is_within(inner: &RegionDescription, outer: &RegionDescription) -> bool {
    let ends = |description: &RegionDescription| match description.end_key.is_empty() {
        true => None,
        false => Some(description.end_key.clone()),
    };
    outer.start_key <= inner.start_key
        && match (ends(inner), ends(outer)) {
            (_, None) => true,
            (None, Some(_)) => false,
            (Some(inner), Some(outer)) => inner <= outer,
        }
}

/// Clears ranges that a region has had, but for what belongs to other regions by now: such a range may have
/// been larger, and the rest of it may have been given to others since. Reads what is known of all regions,
/// so it is for the rare cases.
fn clear_sparing_others(
    tables: &Tables,
    region: RegionId,
    ranges: &[RegionDescription],
) -> Result<(), StateMachineError> {
    if ranges.is_empty() {
        return Ok(());
    }
    let mut others = Vec::new();
    let mut unreadable = None;
    tables.regions(|id, description, _| match description {
        _ if id == region => {}
        Ok(description) => others.push((description.start_key, description.end_key)),
        Err(error) => unreadable = Some(error),
    })?;
    if let Some(error) = unreadable {
        return Err(error);
    }
    others.sort();
    for description in ranges {
        for (start, end) in gaps(range_of(description), &others) {
            tables.clear((&start, &end))?;
        }
    }
    Ok(())
}

/// What of a range lies in none of the others, which are sorted.
fn gaps(range: KeyRange<'_>, others: &[(Bytes, Bytes)]) -> Vec<(Bytes, Bytes)> {
    let (mut start, end) = (range.0.to_vec(), range.1);
    let mut found = Vec::new();
    let ends_before = |key: &[u8]| !end.is_empty() && end <= key;
    for (other_start, other_end) in others {
        if !other_end.is_empty() && other_end[..] <= start[..] {
            continue;
        }
        if ends_before(other_start) {
            break;
        }
        if start[..] < other_start[..] {
            found.push((Bytes::from(start.clone()), other_start.clone()));
        }
        if other_end.is_empty() || ends_before(other_end) {
            return found;
        }
        start = other_end.to_vec();
    }
    if end.is_empty() || start[..] < *end {
        found.push((Bytes::from(start), Bytes::copy_from_slice(end)));
    }
    found
}

fn put_pairs(
    tables: &Tables,
    description: &RegionDescription,
    snapshot: &mut dyn SnapshotSource,
) -> Result<(), InstallError> {
    let refuse = |what: &str| {
        let region = description.id;
        Err(InstallError::Unsound(format!("region {region}: a piece of its snapshot {what}")))
    };
    let mut filling = Filling::new(tables);
    let mut last: Option<Bytes> = None;
    while let Some(mut piece) = snapshot.next_piece()? {
        while !piece.is_empty() {
            if piece.len() < 4 {
                return refuse("is cut");
            }
            let length = piece.get_u32() as usize;
            if length > piece.len() {
                return refuse("is cut");
            }
            let (key, value) = match MapCommand::decode(piece.split_to(length)) {
                Ok(MapCommand::Put { key, value }) => (key, value),
                other => return refuse(&format!("holds no pair but {other:?}")),
            };
            if let Err(reason) = check_key(description, &key) {
                return refuse(&format!("holds the key {key:?}: {reason}"));
            }
            // A key twice in one batch would be two values of one age.
            if last.as_ref().is_some_and(|last| *last >= key) {
                return refuse(&format!("holds the key {key:?} out of order"));
            }
            filling.insert(&key, &value)?;
            last = Some(key);
        }
    }
    Ok(filling.finish()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_within_another_ends_no_later() {
        let region = |start: &'static str, end: &'static str| {
            RegionDescription::new(RegionId::new(1), start, end, [])
        };
        for (inner, outer, within) in [
            (("", ""), ("", ""), true),
            (("b", "c"), ("b", "c"), true),
            (("b", "c"), ("b", ""), true),
            (("b", ""), ("b", "c"), false),
            (("a", "c"), ("b", "c"), false),
            (("b", "d"), ("b", "c"), false),
        ] {
            let found = is_within(&region(inner.0, inner.1), &region(outer.0, outer.1));
            assert_eq!(found, within, "{inner:?} {outer:?}");
        }
    }

    #[test]
    fn gaps_are_what_no_other_region_has() {
        let others = |ranges: &[(&'static str, &'static str)]| -> Vec<(Bytes, Bytes)> {
            ranges.iter().map(|(start, end)| (Bytes::from(*start), Bytes::from(*end))).collect()
        };
        let check = |range: (&str, &str), there: &[(&'static str, &'static str)], left| {
            let found = gaps((range.0.as_bytes(), range.1.as_bytes()), &others(there));
            assert_eq!(found, others(left), "{range:?} without {there:?}");
        };
        check(("", ""), &[], &[("", "")]);
        check(("", ""), &[("", "")], &[]);
        check(("", ""), &[("b", "c")], &[("", "b"), ("c", "")]);
        check(("b", "f"), &[("", "b"), ("f", "")], &[("b", "f")]);
        check(("b", "f"), &[("", "c"), ("d", "e"), ("e", "g")], &[("c", "d")]);
        check(("b", "f"), &[("b", "c"), ("e", "")], &[("c", "e")]);
        check(("b", "f"), &[("a", "g")], &[]);
        check(("b", ""), &[("c", "d")], &[("b", "c"), ("d", "")]);
    }
}
