//! History from the event store to another topic: the same keys, partitions, sequence numbers and
//! headers, with values in the newest schema versions.
//!
//! Goes on behind the last sequence number that the target holds, so an interrupted run is simply
//! repeated. Never touches the outbox or the leases. The pipeline's own events topic gets what was published,
//! byte for byte, where it lost it: the relay stands before such a topic, and goes on once it holds that.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio_postgres::Client;
use uuid::fmt::Hyphenated;

use super::acknowledged::{Acknowledged, Beginning};
use super::publisher::{Handed, Outgoing, Publisher};
use super::reader::source_of;
use super::tail::{self, Tail, TailRequest};
use crate::engine::{Encoded, UndecodableEvent};
use crate::kafka::headers::Envelope;
use crate::kafka::{KafkaError, TopicPartition};
use crate::settings::Settings;
use crate::store::events::{History, Span, StoredEvent};
use crate::store::{Destination, StoreError};

/// Records looked back through at the target's end for a sequence number.
const LOOK_BACK: i64 = 1_000;
/// Events of one partition read at a time, at most, and their bytes.
const PAGE: (i64, usize) = (2_000, 8 * 1024 * 1024);

/// Kafka's silence is told first after this, and then this often: whoever watches may end the run.
const SILENCE: Duration = Duration::from_secs(3);
const SILENCE_TOLD_EVERY: Duration = Duration::from_secs(10);

/// What ends a republication.
#[derive(Debug, thiserror::Error)]
pub enum RepublishError {
    /// The target cannot take this history.
    #[error("{target} cannot be written: {reason}")]
    Target { target: TopicPartition, reason: String },
    /// Another run is under way.
    #[error("another run republishes to {topic} at the moment; wait for it, or stop it and try again")]
    Busy { topic: String },
    /// An event that this program cannot read.
    #[error("event {partition}:{seq} cannot be read: {reason}")]
    Event { partition: i32, seq: i64, reason: String },
    /// A record that did not get through.
    #[error("{target} seq {seq} was not taken: {reason}. What is there stays; run it again to go on")]
    Refused { target: TopicPartition, seq: i64, reason: String },
    /// The producer as a whole gave up.
    #[error("the producer gave up: {0}. What is there stays; run it again to go on")]
    Producer(String),
    #[error(transparent)]
    Kafka(#[from] KafkaError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What was published of a destination, by partition: what its own topic should hold. The relay sends the rest.
pub async fn published(client: &Client, destination: &Destination) -> Result<Vec<Span>, StoreError> {
    let rows = client
        .query(
            "select partition, published from throughline.relay_leases where topic = $1 order by partition",
            &[&destination.id],
        )
        .await
        .map_err(StoreError::at("read how far a topic is published"))?;
    Ok(rows.iter().map(|row| Span { partition: row.get(0), after: 0, upto: row.get(1) }).collect())
}

/// What is left to send of `wanted`, by what the target holds. Spans without anything left stay, empty.
/// `cure` is what helps where the target cannot take the history.
///
/// # Errors
/// A target that holds records of others, has lost its records, or would get a hole.
pub async fn plan(settings: &Settings, topic: &str, wanted: &[Span], cure: &str) -> Result<Vec<Span>, RepublishError> {
    let name: Arc<str> = topic.into();
    let target = |span: &Span| TopicPartition { topic: name.clone(), partition: span.partition };
    let requests: Vec<_> =
        wanted.iter().map(|span| TailRequest { target: target(span), published: 0, look_back: LOOK_BACK }).collect();
    let kafka = settings.kafka.clone();
    let tails = tokio::task::spawn_blocking(move || tail::read(&kafka, &requests))
        .await
        .map_err(|error| RepublishError::Producer(error.to_string()))??;
    let mut spans = Vec::new();
    for (span, tail) in wanted.iter().zip(tails) {
        let refused = |reason: String| RepublishError::Target { target: target(span), reason };
        let after = match tail? {
            Tail::Untouched => span.after,
            Tail::At { seq, .. } if seq < span.after => {
                return Err(refused(format!(
                    "it ends at seq {seq}; beginning with {} would leave a hole",
                    span.after + 1
                )));
            }
            // Too few records for all from the first one wanted: what came before cannot be added any more.
            Tail::At { seq, offset } if offset < seq - span.after - 1 => {
                return Err(refused(format!(
                    "it holds seq {seq} and lacks some from {} on: it was begun later; {cure}",
                    span.after + 1
                )));
            }
            Tail::At { seq, .. } => seq,
            Tail::Expired { .. } => return Err(refused(format!("its records have expired; {cure}"))),
            Tail::Foreign { .. } => return Err(refused(format!("it holds records of others; {cure}"))),
        };
        spans.push(Span { after: after.min(span.upto.max(span.after)), ..*span });
    }
    Ok(spans)
}

/// Makes the newest version of a stored event.
pub type Renew = dyn Fn(&[u8]) -> Result<Encoded, UndecodableEvent> + Send + Sync;

/// Sends `spans` to `topic`; returns how many records Kafka acknowledged. `progress` is told that
/// number now and then. `namespace` goes before event types, such as `acme.bank`. Values go as they are stored,
/// or as `renew` makes them: in the newest versions.
pub async fn run(
    settings: &Settings,
    client: &Client,
    (destination, topic): (&Destination, &str),
    namespace: &str,
    spans: &[Span],
    renew: Option<&Renew>,
    progress: impl FnMut(u64),
) -> Result<u64, RepublishError> {
    lock(client, topic).await?;
    let notify = Arc::new(Notify::new());
    let publisher = Publisher::new(&settings.kafka, settings.relay.in_flight_max, notify.clone())?;
    let name: Arc<str> = topic.into();
    let lanes = spans.iter().map(|span| {
        let target = TopicPartition { topic: name.clone(), partition: span.partition };
        // A target may begin anywhere in the history: what it lacks is not ours to judge.
        let start = Beginning { after: span.after, missing: span.after };
        (span.partition, (target, Acknowledged::new(start), span.after))
    });
    let mut sending = Sending { settings, namespace, publisher, notify, lanes: lanes.collect(), progress };
    let outcome = sending.all(client, History::new(destination, spans, PAGE.0, PAGE.1), renew).await;
    let done = sending.done();
    // Ending the producer blocks, and tells best what it failed from.
    let publisher = sending.publisher;
    let failure = tokio::task::spawn_blocking(move || publisher.end()).await.ok().flatten();
    match (outcome, failure) {
        (Err(error), _) => Err(error),
        (Ok(()), None) => Ok(done),
        (Ok(()), Some(failure)) => Err(match failure.record {
            Some((target, seq)) => RepublishError::Refused { target, seq, reason: failure.reason },
            None => RepublishError::Producer(failure.reason),
        }),
    }
}

/// One run a target at a time: two would interleave. Held until the connection ends.
async fn lock(client: &Client, topic: &str) -> Result<(), RepublishError> {
    let statement = "select pg_try_advisory_lock(hashtextextended('throughline republish ' || $1, 0))";
    let row =
        client.query_one(statement, &[&topic]).await.map_err(StoreError::at("take the lock of a republication"))?;
    if row.get(0) { Ok(()) } else { Err(RepublishError::Busy { topic: topic.to_owned() }) }
}

struct Sending<'a, P> {
    settings: &'a Settings,
    namespace: &'a str,
    publisher: Publisher,
    notify: Arc<Notify>,
    /// By partition: the target, what it acknowledged, and where it began.
    lanes: HashMap<i32, (TopicPartition, Arc<Acknowledged>, i64)>,
    progress: P,
}

impl<P: FnMut(u64)> Sending<'_, P> {
    /// Ok when everything was acknowledged, or the publisher failed and tells why itself.
    async fn all(
        &mut self,
        client: &Client,
        mut history: History,
        renew: Option<&Renew>,
    ) -> Result<(), RepublishError> {
        loop {
            let events = history.next(client).await?;
            if events.is_empty() {
                break;
            }
            for event in &events {
                if !self.send(event, renew).await? {
                    return Ok(());
                }
                crate::crash_point!("republish.after_hand_over");
            }
            self.report();
        }
        while self.publisher.in_flight() > 0 && !self.publisher.has_failed() {
            self.acknowledgements().await;
        }
        self.report();
        Ok(())
    }

    /// Waits for as long as it takes: nothing is lost, and what was handed over cannot be taken back.
    async fn acknowledgements(&mut self) {
        let mut silence = Silence::new(self.done(), Instant::now());
        while tokio::time::timeout(Duration::from_secs(1), self.notify.notified()).await.is_err() {
            self.report();
            if let Some(silent) = silence.due(self.done(), Instant::now()) {
                let seconds = silent.as_secs();
                tracing::warn!(seconds, "Kafka has acknowledged nothing; it goes on by itself when Kafka answers");
            }
        }
    }

    /// False when the publisher failed.
    async fn send(&mut self, stored: &StoredEvent, renew: Option<&Renew>) -> Result<bool, RepublishError> {
        let unreadable = |error: UndecodableEvent| RepublishError::Event {
            partition: stored.partition,
            seq: stored.seq,
            reason: error.to_string(),
        };
        let newest = renew.map(|renew| renew(&stored.payload).map_err(unreadable)).transpose()?;
        // What is in the newest version already goes byte for byte.
        let newest = newest.filter(|newest| newest.schema_version != stored.schema_version);
        let (value, schema_version) = match &newest {
            Some(newest) => (&newest.bytes, newest.schema_version),
            None => (&stored.payload, stored.schema_version),
        };
        let message_type = format!("{}.{}", self.namespace, stored.event_type);
        let source = source_of(&message_type);
        let mut key = [0; Hyphenated::LENGTH];
        let key: &str = stored.stream_id.hyphenated().encode_lower(&mut key);
        let limits = &self.settings.relay;
        loop {
            let full = self.publisher.in_flight() >= limits.in_flight_max
                || self.publisher.in_flight_bytes() >= limits.in_flight_bytes_max;
            let (target, acknowledged, _) =
                self.lanes.get(&stored.partition).expect("history reads the partitions of the lanes");
            let handed = if full {
                Handed::Full
            } else {
                self.publisher.hand_over(Outgoing {
                    target,
                    acknowledged,
                    seq: stored.seq,
                    key,
                    headers: envelope(stored, &message_type, &source, schema_version).headers(),
                    created_ms: stored.recorded_at.as_millisecond(),
                    value,
                })
            };
            match handed {
                Handed::Taken => return Ok(true),
                Handed::Failed => return Ok(false),
                Handed::TooLarge => {
                    let reason = format!("{} bytes are more than the client takes", value.len());
                    return Err(RepublishError::Refused { target: target.clone(), seq: stored.seq, reason });
                }
                Handed::Full if self.publisher.has_failed() => return Ok(false),
                Handed::Full => {
                    self.acknowledgements().await;
                    self.report();
                }
            }
        }
    }

    fn done(&self) -> u64 {
        self.lanes.values().map(|(_, acknowledged, began)| acknowledged.seq().abs_diff(*began)).sum()
    }

    fn report(&mut self) {
        let done = self.done();
        (self.progress)(done);
    }
}

/// How long nothing has been acknowledged.
struct Silence {
    done: u64,
    since: Instant,
    tell_at: Instant,
}

impl Silence {
    fn new(done: u64, now: Instant) -> Self {
        Self { done, since: now, tell_at: now + SILENCE }
    }

    /// The silence, when it is time to tell it.
    fn due(&mut self, done: u64, now: Instant) -> Option<Duration> {
        if done != self.done {
            *self = Self::new(done, now);
        }
        (now >= self.tell_at).then(|| {
            self.tell_at = now + SILENCE_TOLD_EVERY;
            now - self.since
        })
    }
}

/// The envelope that the relay gives the record of an event.
pub fn envelope<'a>(
    stored: &'a StoredEvent,
    message_type: &'a str,
    source: &'a str,
    schema_version: i16,
) -> Envelope<'a> {
    Envelope {
        id: stored.event_id,
        message_type,
        source,
        time: stored.recorded_at,
        subject: stored.stream_id,
        content_type: "application/avro",
        schema_version: Some(schema_version),
        stream_version: Some(stored.version),
        seq: stored.seq,
        command_id: stored.command_id,
        correlation_id: &stored.correlation_id,
        causation_id: stored.causation_id.as_deref(),
        traceparent: stored.traceparent.as_deref(),
        reply_to: stored.reply_to.as_deref(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_told_soon_then_now_and_then_and_anew_after_an_answer() {
        let start = Instant::now();
        let mut silence = Silence::new(0, start);
        let mut told = |seconds: std::ops::Range<u64>, done| {
            seconds.filter(|at| silence.due(done, start + Duration::from_secs(*at)).is_some()).collect::<Vec<_>>()
        };
        assert_eq!(told(0..30, 0), [3, 13, 23]);
        assert_eq!(told(30..50, 7), [33, 43], "counted from the answer on");
        let silent = silence.due(7, start + Duration::from_secs(53));
        assert_eq!(silent, Some(Duration::from_secs(23)));
    }
}
