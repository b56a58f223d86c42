//! A snapshot that leaves: the state machine's view, read as fast as the receiver takes it.

use super::frames::{put_end, put_piece};
use super::message::{SnapshotBody, SnapshotId};
use crate::state_machine::{SnapshotSource, StateMachineError, MAX_PIECE_BYTES};
use bytes::{Bytes, BytesMut};
use region::{AppliedState, Envelope, Peer, PeerId, Region};
use std::collections::VecDeque;

/// Bytes of a chunk, but for the last one.
const CHUNK_BYTES: usize = 256 << 10;
/// Chunks that may be on their way.
const WINDOW: usize = 4;

/// Whether what a state machine says that it has made is of a region's log; if not, the region is named. Sent all
/// the same, it would leave a hole in the log of its receiver, for ever.
pub(crate) fn is_of_log(region: &Region, to: PeerId, made: &AppliedState) -> bool {
    let AppliedState { index, term, .. } = made;
    // What was handed out may be applied without the region's having heard of it.
    let handed_out = region.status().emitted;
    let expected = region.term_at(*index).filter(|_| *index <= handed_out);
    // The log may have been cut since it was made: then another one is.
    if expected != Some(*term) && *index >= region.truncated().index {
        let region = region.id();
        let expected = expected.unwrap_or_default();
        tracing::error!(
            %region, %to, %index, %term, %handed_out, %expected,
            "the state machine's snapshot is beyond what it was given, or of another term; it is not sent"
        );
    }
    expected == Some(*term)
}

struct Chunk {
    number: u64,
    last: bool,
    bytes: Bytes,
}

/// One snapshot for one peer.
///
/// Invariant: `unanswered` holds the chunks from the first that the receiver lacks, at most a window.
pub(super) struct Sending {
    pub(super) id: SnapshotId,
    pub(super) to: Peer,
    source: Box<dyn SnapshotSource>,
    /// raft-rs's message, once it has given one out.
    pub(super) offer: Option<Box<Envelope>>,
    /// Framed and not yet in a chunk.
    framed: BytesMut,
    pieces: u32,
    read_to_end: bool,
    cut_to_end: bool,
    unanswered: VecDeque<Chunk>,
    /// Number of the next chunk.
    next: u64,
    /// What the receiver last wanted.
    wanted: Option<u64>,
    /// Ticks without a sign of the receiver.
    pub(super) idle_ticks: u32,
}

impl Sending {
    pub(super) fn new(id: SnapshotId, to: Peer, source: Box<dyn SnapshotSource>) -> Self {
        Self {
            id,
            to,
            source,
            offer: None,
            framed: BytesMut::new(),
            pieces: 0,
            read_to_end: false,
            cut_to_end: false,
            unanswered: VecDeque::new(),
            next: 0,
            wanted: None,
            idle_ticks: 0,
        }
    }

    /// The receiver has all chunks before `number`. Adds what is to be sent now.
    pub(super) fn wants(&mut self, number: u64, out: &mut Vec<SnapshotBody>) {
        self.idle_ticks = 0;
        while self.unanswered.front().is_some_and(|chunk| chunk.number < number) {
            self.unanswered.pop_front();
        }
        // Asked for twice: it was lost.
        if self.wanted.replace(number) == Some(number) {
            self.repeat(out);
        }
    }

    /// The first chunk that is not answered, or the offer, once more.
    pub(super) fn repeat(&self, out: &mut Vec<SnapshotBody>) {
        match (self.unanswered.front(), &self.offer) {
            (Some(chunk), _) => out.push(chunk.body()),
            (None, Some(offer)) if self.wanted.is_none() => {
                out.push(SnapshotBody::Offer(offer.clone()));
            }
            _ => {}
        }
    }

    /// Whether there is more to send, and room for it on the way.
    pub(super) fn has_more(&self) -> bool {
        self.wanted.is_some() && !self.cut_to_end && self.unanswered.len() < WINDOW
    }

    /// The next chunk.
    ///
    /// # Errors
    /// When the state machine cannot read its view, or a piece of it is too large.
    pub(super) fn next_chunk(&mut self) -> Result<SnapshotBody, StateMachineError> {
        while self.framed.len() < CHUNK_BYTES && !self.read_to_end {
            match self.source.next_piece()? {
                Some(piece) if piece.len() > MAX_PIECE_BYTES => {
                    let (number, bytes) = (self.pieces, piece.len());
                    return Err(StateMachineError(format!(
                        "piece {number} has {bytes} bytes, allowed are {MAX_PIECE_BYTES}"
                    )));
                }
                Some(piece) => {
                    put_piece(&piece, &mut self.framed);
                    self.pieces += 1;
                }
                None => {
                    put_end(self.pieces, &mut self.framed);
                    self.read_to_end = true;
                }
            }
        }
        let bytes = self.framed.split_to(self.framed.len().min(CHUNK_BYTES)).freeze();
        self.cut_to_end = self.read_to_end && self.framed.is_empty();
        let chunk = Chunk { number: self.next, last: self.cut_to_end, bytes };
        self.next += 1;
        let body = chunk.body();
        self.unanswered.push_back(chunk);
        Ok(body)
    }
}

impl Chunk {
    fn body(&self) -> SnapshotBody {
        SnapshotBody::Chunk {
            number: self.number,
            last: self.last,
            checksum: crc32fast::hash(&self.bytes),
            bytes: self.bytes.clone(),
        }
    }
}
