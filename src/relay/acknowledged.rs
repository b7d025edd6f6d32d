//! What Kafka has of one partition, as acknowledgements told in their order. Pure: who sends is the publisher's matter,
//! and what counts is the watermark in PostgreSQL.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};

/// Where publishing starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Beginning {
    /// Behind this number.
    pub after: i64,
    /// Numbers up to it that the topic does not hold, by the operator's leave.
    pub missing: i64,
}

/// Acknowledgements of one partition within one generation: every record up to `seq` is in Kafka.
#[derive(Debug)]
pub struct Acknowledged {
    seq: AtomicI64,
    /// Numbers that the topic is known to lack: accepted by an operator.
    missing: i64,
    /// Bytes of values on their way.
    bytes: AtomicUsize,
}

impl Acknowledged {
    /// Nothing beyond `start` is known to be in Kafka.
    pub fn new(start: Beginning) -> Arc<Self> {
        Arc::new(Self { seq: AtomicI64::new(start.after), missing: start.missing, bytes: AtomicUsize::new(0) })
    }

    /// The contiguous watermark.
    pub fn seq(&self) -> i64 {
        self.seq.load(Ordering::Acquire)
    }

    /// Bytes of values handed over and not yet reported on.
    pub fn in_flight_bytes(&self) -> u64 {
        self.bytes.load(Ordering::Acquire) as u64
    }

    /// So many bytes are handed over.
    pub(super) fn handed(&self, bytes: usize) {
        self.bytes.fetch_add(bytes, Ordering::AcqRel);
    }

    /// So many bytes are reported on.
    pub(super) fn left(&self, bytes: usize) {
        self.bytes.fetch_sub(bytes, Ordering::AcqRel);
    }

    /// Moves to `seq`, which Kafka holds at `offset`: below zero where the broker did not tell.
    ///
    /// # Errors
    /// It is not the next number; or it stands where its predecessors have no room: a topic made anew
    /// or cut off beneath us takes any record.
    pub(super) fn advance(&self, seq: i64, offset: i64) -> Result<(), String> {
        if offset >= 0 && offset + 1 < seq - self.missing {
            return Err(format!("seq {seq} was put at offset {offset}: records before it are gone from the topic"));
        }
        let moved = self.seq.compare_exchange(seq - 1, seq, Ordering::AcqRel, Ordering::Acquire);
        moved.map(drop).map_err(|last| format!("seq {seq} was acknowledged out of turn, after {last}"))
    }
}
