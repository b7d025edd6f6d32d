//! Records to events: duplicates dropped by sequence number, holes found, every version upcast.
//!
//! Works on one batch in memory. Neither Kafka nor PostgreSQL is asked anything.

use std::collections::{HashMap, HashSet};

use uuid::Uuid;

use super::Projector;
use crate::engine::{Position, Recorded, UndecodableEvent};
use crate::kafka::{Batch, Record, TopicPartition, headers};
use crate::panics;
use crate::settings::FailurePolicy;

/// One record of a batch and what it is to us.
#[derive(Debug)]
pub(super) struct Item {
    pub record: Record,
    /// Where its partition stands once this record is handled.
    pub seq: i64,
    pub body: Body,
}

#[derive(Debug)]
pub(super) enum Body {
    /// Index among the batch's events.
    Event(usize),
    /// Applied before; only the offset moves.
    Duplicate,
    /// An operator discarded it when it stood parked: it stays out.
    Discarded,
    /// To be parked: what is wrong with it.
    Poison { code: &'static str, reason: String },
}

/// A batch ready to be applied.
pub(super) struct Decoded<E> {
    pub items: Vec<Item>,
    pub events: Vec<Recorded<E>>,
    /// Partitions that stop once their items are applied.
    pub halts: Vec<(TopicPartition, String)>,
    pub duplicates: u64,
}

/// Reads a batch. After a record that stops its partition nothing more of that partition is taken.
/// `discarded`: seqs that operators discarded, by partition.
pub(super) fn decode<E: Send + Sync>(
    projector: &Projector<E>,
    batch: Batch,
    discarded: &HashMap<i32, HashSet<i64>>,
) -> Decoded<E> {
    let mut reached: HashMap<TopicPartition, i64> =
        batch.claims.iter().map(|(source, claim)| (source.clone(), claim.seq)).collect();
    let park = projector.policy() == FailurePolicy::Park;
    let mut decoded = Decoded { items: Vec::new(), events: Vec::new(), halts: Vec::new(), duplicates: 0 };
    for record in batch.records {
        let Some(last) = reached.get_mut(&record.source) else { continue };
        let discarded = discarded.get(&record.source.partition);
        let (seq, body) = match read(projector, &record, *last, discarded) {
            Reading::Event(event) => {
                let seq = event.position.seq;
                decoded.events.push(event);
                (seq, Body::Event(decoded.events.len() - 1))
            }
            Reading::Duplicate => {
                decoded.duplicates += 1;
                (*last, Body::Duplicate)
            }
            Reading::Poison { seq, code, reason } if park => (seq.unwrap_or(*last), Body::Poison { code, reason }),
            Reading::Discarded { seq } => (seq, Body::Discarded),
            Reading::Poison { reason, .. } | Reading::Hole(reason) => {
                let at = format!("offset {}: {reason}", record.offset);
                reached.remove(&record.source);
                decoded.halts.push((record.source, at));
                continue;
            }
        };
        *last = seq;
        decoded.items.push(Item { record, seq, body });
    }
    decoded
}

enum Reading<E> {
    Event(Recorded<E>),
    Duplicate,
    Discarded {
        seq: i64,
    },
    Hole(String),
    /// `seq` is none on a record that the relay did not write.
    Poison {
        seq: Option<i64>,
        code: &'static str,
        reason: String,
    },
}

fn read<E: Send + Sync>(
    projector: &Projector<E>,
    record: &Record,
    last: i64,
    discarded: Option<&HashSet<i64>>,
) -> Reading<E> {
    let Some(seq) = headers::seq_of(record) else {
        let reason = "the record has no sequence number: the relay did not write it".to_owned();
        return Reading::Poison { seq: None, code: "FOREIGN_RECORD", reason };
    };
    if seq <= last {
        return Reading::Duplicate;
    }
    if seq > last + 1 {
        return Reading::Hole(format!(
            "seq {seq} follows {last}: {} event(s) are missing on the topic. To take them from the event store: \
             `throughline projection reset {} --to-offset {}:{}`.",
            seq - last - 1,
            projector.name(),
            record.source.partition,
            record.offset
        ));
    }
    if discarded.is_some_and(|seqs| seqs.contains(&seq)) {
        return Reading::Discarded { seq };
    }
    // A defect of a codec is this record's trouble and no other's.
    let reading = panics::contain(|| recorded(record, seq, |bytes| projector.codec.decode(bytes)));
    match reading.unwrap_or_else(|panic| Err(format!("reading it panicked: {panic}"))) {
        Ok(event) => Reading::Event(event),
        Err(reason) => Reading::Poison { seq: Some(seq), code: "UNREADABLE_EVENT", reason },
    }
}

/// The event that the relay published as `record`, read by `decode`.
///
/// # Errors
/// Why it cannot be read.
pub fn recorded<E>(
    record: &Record,
    seq: i64,
    decode: impl FnOnce(&[u8]) -> Result<E, UndecodableEvent>,
) -> Result<Recorded<E>, String> {
    let text = |name: &'static str| record.header(name).ok_or_else(|| format!("header {name} is missing"));
    let uuid = |name: &'static str| -> Result<Uuid, String> {
        Uuid::parse_str(text(name)?).map_err(|_| format!("header {name} is not a UUID"))
    };
    let value = record.value.as_deref().ok_or("the value is null")?;
    Ok(Recorded {
        position: Position { partition: record.source.partition, seq },
        stream_id: uuid(headers::CE_SUBJECT)?,
        version: text(headers::STREAM_VERSION)?
            .parse()
            .map_err(|_| format!("header {} is not a number", headers::STREAM_VERSION))?,
        event_id: uuid(headers::CE_ID)?,
        command_id: uuid(headers::COMMAND_ID)?,
        correlation_id: text(headers::CORRELATION_ID)?.to_owned(),
        causation_id: record.header(headers::CAUSATION_ID).map(str::to_owned),
        recorded_at: text(headers::CE_TIME)?
            .parse()
            .map_err(|_| format!("header {} is not an RFC 3339 time", headers::CE_TIME))?,
        event: decode(value).map_err(|error| error.to_string())?,
    })
}
