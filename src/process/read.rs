//! Records to inputs: duplicates dropped by sequence number, holes found, events read by their context's codec.
//!
//! Works on one batch in memory; which instance an outcome is for only the transaction can tell. Nobody is asked.

use std::collections::HashMap;

use serde::Deserialize;
use uuid::Uuid;

use crate::engine::{CommandOutcome, Concern, Input};
use crate::kafka::{Batch, Record, TopicPartition, headers};
use crate::panics;

/// Reads an event: what it says to whom, if to anybody; else why it cannot be read.
pub(super) type Reader<E> = Box<dyn Fn(&Record, i64) -> Result<Option<Told<E>>, String> + Send + Sync>;

/// What a topic carries.
pub(super) enum Feed<E> {
    Events(Reader<E>),
    /// Of commands of the context of this name.
    Outcomes(&'static str),
}

/// An input and whose it is.
#[derive(Debug, Clone)]
pub(super) struct Told<E> {
    pub instance: Uuid,
    /// Whether the instance begins with it.
    pub begins: bool,
    /// Id of the event, of the result record or of the deadline.
    pub cause: Uuid,
    pub correlation_id: String,
    pub input: Input<E>,
}

impl<E> Told<E> {
    /// What an event says to whom it concerns.
    pub fn event(concern: Concern<E>, cause: Uuid, correlation_id: String) -> Self {
        let (begins, instance, event) = match concern {
            Concern::Begins(instance, event) => (true, instance, event),
            Concern::Continues(instance, event) => (false, instance, event),
        };
        Self { instance, begins, cause, correlation_id, input: Input::Event(event) }
    }
}

/// The outcome of a command, whoever sent it.
#[derive(Debug, Clone)]
pub(super) struct Decided {
    pub command_id: Uuid,
    pub cause: Uuid,
    pub correlation_id: String,
    /// Its command is known by whoever sent it.
    pub outcome: CommandOutcome,
}

/// One record of a batch and what it is to us.
#[derive(Debug)]
pub(super) struct Item<E> {
    pub record: Record,
    /// Where its partition stands once this record is handled.
    pub seq: i64,
    pub body: Body<E>,
}

#[derive(Debug)]
pub(super) enum Body<E> {
    /// Handled before, or of no concern: only the offset moves.
    Passed,
    Told(Told<E>),
    Decided(Decided),
    /// To be parked: what is wrong with it, and whose it is where that is known.
    Poison(Fault, Option<Uuid>),
}

/// Why an input cannot be handled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fault {
    pub code: &'static str,
    pub reason: String,
}

impl Fault {
    pub fn new(code: &'static str, reason: impl Into<String>) -> Self {
        Self { code, reason: reason.into() }
    }
}

/// The code of a record that the relay did not write.
pub(super) const FOREIGN: &str = "FOREIGN_RECORD";

/// A batch ready to be handled.
pub(super) struct Reading<E> {
    pub items: Vec<Item<E>>,
    /// Partitions that stop once their items are handled.
    pub halts: Vec<(TopicPartition, String)>,
}

/// Reads a batch. Behind a hole nothing more of that partition is taken.
pub(super) fn read<E>(feeds: &HashMap<String, Feed<E>>, batch: Batch) -> Reading<E> {
    let mut reached: HashMap<TopicPartition, i64> =
        batch.claims.iter().map(|(source, claim)| (source.clone(), claim.seq)).collect();
    let mut reading = Reading { items: Vec::new(), halts: Vec::new() };
    for record in batch.records {
        let (Some(last), Some(feed)) = (reached.get_mut(&record.source), feeds.get(&*record.source.topic)) else {
            continue;
        };
        let Some(seq) = headers::seq_of(&record) else {
            let reason = "the record has no sequence number: the relay did not write it";
            let body = Body::Poison(Fault::new(FOREIGN, reason), None);
            reading.items.push(Item { record, seq: *last, body });
            continue;
        };
        if seq <= *last {
            reading.items.push(Item { record, seq: *last, body: Body::Passed });
            continue;
        }
        if seq > *last + 1 {
            match feed {
                Feed::Events(_) => {
                    let reason = format!(
                        "offset {}: seq {seq} follows {last}: {} event(s) are missing on the topic",
                        record.offset,
                        seq - *last - 1
                    );
                    reached.remove(&record.source);
                    reading.halts.push((record.source, reason));
                    continue;
                }
                // Outcomes are kept for a time only. Whoever waits for one has a deadline.
                Feed::Outcomes(_) => tracing::warn!(
                    topic = &*record.source.topic,
                    partition = record.source.partition,
                    from_seq = *last + 1,
                    to_seq = seq - 1,
                    "outcomes are not on the topic any more; going on behind them"
                ),
            }
        }
        *last = seq;
        let body = body(feed, &record, seq);
        reading.items.push(Item { record, seq, body });
    }
    reading
}

/// What a record of the relay's says.
pub(super) fn body<E>(feed: &Feed<E>, record: &Record, seq: i64) -> Body<E> {
    // A defect of a codec or of a route is this record's trouble and no other's.
    let read = panics::contain(|| match feed {
        Feed::Events(reader) => Ok(reader(record, seq)?.map_or(Body::Passed, Body::Told)),
        Feed::Outcomes(context) => decided(context, record).map(Body::Decided),
    });
    match read.unwrap_or_else(|panic| Err(format!("reading it panicked: {panic}"))) {
        Ok(body) => body,
        Err(reason) => Body::Poison(Fault::new("UNREADABLE_RECORD", reason), None),
    }
}

/// What is read of the value of a result record, whatever else its context writes there.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ResultIn {
    command_id: Uuid,
    status: String,
    code: Option<String>,
    reason: Option<String>,
    correlation_id: String,
}

fn decided(context: &str, record: &Record) -> Result<Decided, String> {
    let id = |name| -> Result<Uuid, String> {
        let text = record.header(name).ok_or_else(|| format!("header {name} is missing"))?;
        Uuid::try_parse(text).map_err(|_| format!("header {name} is not a UUID"))
    };
    let value = record.value.as_deref().ok_or("the value is null")?;
    let result: ResultIn = serde_json::from_slice(value).map_err(|error| format!("no result of a command: {error}"))?;
    Ok(Decided {
        command_id: result.command_id,
        cause: id(headers::CE_ID)?,
        correlation_id: result.correlation_id,
        outcome: CommandOutcome {
            context: context.to_owned(),
            command: String::new(),
            stream_id: id(headers::CE_SUBJECT)?,
            accepted: result.status == "accepted",
            code: result.code,
            reason: result.reason,
        },
    })
}
