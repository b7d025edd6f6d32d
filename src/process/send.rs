//! Sending what was committed: at least once, in the order in which an instance asked for it.
//!
//! One sender at a time, by a lease, so that little is sent twice. Order does not hang on it: whoever sends a command has
//! sent those before it, or found them marked as acknowledged. So however many send, the first of each command comes
//! in order, and the others count for nothing.
//!
//! Records never expire in the producer: what is behind one must not overtake it. A producer that fails is replaced,
//! and sends again whatever is not marked.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::future_producer::{DeliveryFuture, OwnedDeliveryResult};
use rdkafka::producer::{FutureProducer, FutureRecord};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{Managed, ProcessError};
use crate::engine::ProcessManager;
use crate::health::{Heartbeat, Told};
use crate::kafka::topics::TopicNames;
use crate::kafka::voice::Quiet;
use crate::kafka::{KafkaError, Tended, client, headers};
use crate::store::{Line, StoreError, bounded};

/// A sender that says nothing for so long is not the sender any more.
const LEASE_SECONDS: f64 = 3.0;
/// It renews its lease this often.
const RENEW: Duration = Duration::from_secs(1);
/// A wait for commands to gather, milliseconds.
const LINGER_MS: u32 = 2;

/// A command to send.
struct Outgoing {
    number: i64,
    topic: String,
    key: String,
    value: Vec<u8>,
    headers: OwnedHeaders,
}

/// Sends until `stop`, whatever happens.
pub(super) async fn run<P: ProcessManager>(
    managed: Arc<Managed<P>>,
    wake: Arc<Notify>,
    heartbeat: Heartbeat,
    stop: CancellationToken,
) {
    let breaks = Told::new(format!("process {} cannot send; it is tried again", P::NAME));
    let poll = Duration::from_millis(managed.settings.process.poll_ms);
    while !stop.is_cancelled() {
        let started = Instant::now();
        if let Err(error) = session(&managed, &wake, &heartbeat, &breaks, &stop).await {
            heartbeat.not_ready(error.to_string());
            breaks.ended_after(started.elapsed(), &error.to_string());
        }
        stop.run_until_cancelled(heartbeat.during(tokio::time::sleep(poll))).await;
    }
    heartbeat.retire();
}

/// One connection, and one producer once no other one sends. Ends where another one does.
async fn session<P: ProcessManager>(
    managed: &Managed<P>,
    wake: &Notify,
    heartbeat: &Heartbeat,
    breaks: &Told,
    stop: &CancellationToken,
) -> Result<(), ProcessError> {
    let limit = managed.settings.database.round_trip();
    let poll = Duration::from_millis(managed.settings.process.poll_ms);
    let line = heartbeat.while_waiting("a connection", managed.connect()).await?;
    let sender = Uuid::new_v4();
    while !heartbeat.while_waiting("the sender's lease", bounded(limit, LEASE, lease::<P>(&line, sender))).await? {
        heartbeat.ready();
        // Another one sends.
        if stop.run_until_cancelled(heartbeat.during(tokio::time::sleep(poll))).await.is_none() {
            return Ok(());
        }
    }
    let producer = producer(managed)?;
    let most = managed.settings.process.in_flight_max;
    let (mut in_flight, mut acknowledged) = (HashSet::new(), FuturesUnordered::new());
    let mut renewed = Instant::now();
    loop {
        if renewed.elapsed() > RENEW {
            let leased = bounded(limit, LEASE, lease::<P>(&line, sender));
            if !heartbeat.while_waiting("the sender's lease", leased).await? {
                return Ok(());
            }
            renewed = Instant::now();
        }
        if in_flight.len() < most && !stop.is_cancelled() {
            let looked = unsent(managed, &line, &in_flight, most - in_flight.len());
            let looked =
                heartbeat.while_waiting("commands to send", bounded(limit, "look for commands", looked)).await?;
            for one in looked {
                in_flight.insert(one.number);
                let sent = produce(&producer, &one)?;
                acknowledged.push(async move { (one.number, sent.await.ok()) });
            }
        }
        if stop.is_cancelled() && in_flight.is_empty() {
            return Ok(());
        }
        let mut done = Vec::new();
        tokio::select! {
            Some(first) = acknowledged.next() => {
                done.push(number(first)?);
                // With the others that are there already.
                while let Some(Some(next)) = futures_util::FutureExt::now_or_never(acknowledged.next()) {
                    done.push(number(next)?);
                }
            }
            () = wake.notified() => {}
            () = tokio::time::sleep(poll) => {}
        }
        crate::crash_point!("process.send.acknowledged");
        if !done.is_empty() {
            let marked = bounded(limit, "mark commands as sent", mark::<P>(&line, &done));
            heartbeat.while_waiting("marking what was sent", marked).await?;
            crate::crash_point!("process.send.marked");
            in_flight.retain(|number| !done.contains(number));
            metrics::counter!("throughline_process_commands_total", "process" => P::NAME).increment(done.len() as u64);
            breaks.well();
        }
        heartbeat.ready();
    }
}

fn produce(producer: &FutureProducer<Quiet>, one: &Outgoing) -> Result<DeliveryFuture, KafkaError> {
    crate::crash_point!("process.send.read");
    let record = FutureRecord::to(&one.topic).key(&one.key).payload(&one.value).headers(one.headers.clone());
    producer.send_result(record).map_err(|(error, _)| KafkaError::at("send a command")(error))
}

/// A producer whose records never expire.
fn producer<P: ProcessManager>(managed: &Managed<P>) -> Result<Tended<FutureProducer<Quiet>>, KafkaError> {
    let mut config = client::producer(&managed.settings.kafka, LINGER_MS);
    config.set("enable.gapless.guarantee", "true").set("message.timeout.ms", "0");
    Tended::producer(&config, Quiet)
}

const LEASE: &str = "take the lease of a sender";

/// Takes or renews the lease, by the time that was seen to pass. Whether this one sends.
async fn lease<P: ProcessManager>(line: &Line, sender: Uuid) -> Result<bool, StoreError> {
    let lease =
        "update throughline.process_managers m set sender = $2, sender_until = k.elapsed + make_interval(secs => $3)
                 from throughline.clock k where m.name = $1 and (m.sender = $2 or m.sender_until <= k.elapsed)";
    let taken = line.execute(lease, &[&P::NAME, &sender, &LEASE_SECONDS]).await.map_err(StoreError::at(LEASE))?;
    Ok(taken > 0)
}

/// The number of a command that was acknowledged; `sent` is none where the producer went away.
fn number((number, sent): (i64, Option<OwnedDeliveryResult>)) -> Result<i64, KafkaError> {
    match sent {
        Some(Ok(_)) => Ok(number),
        Some(Err((error, _))) => Err(KafkaError::at("send a command")(error)),
        None => Err(KafkaError::Fatal("the producer of a process ended".into())),
    }
}

/// The next commands, in order, without those that are under way.
async fn unsent<P: ProcessManager>(
    managed: &Managed<P>,
    line: &Line,
    in_flight: &HashSet<i64>,
    most: usize,
) -> Result<Vec<Outgoing>, StoreError> {
    let under_way: Vec<i64> = in_flight.iter().copied().collect();
    let rows = line
        .query(
            "select number, context, stream_id, value, correlation_id, cause from throughline.process_commands
             where process = $1 and sent_at is null and number <> all($2) order by number limit $3",
            &[&P::NAME, &under_way, &(most as i64)],
        )
        .await
        .map_err(StoreError::at("look for commands to send"))?;
    let outgoing = |row: &tokio_postgres::Row| {
        let (context, stream, cause): (&str, Uuid, Uuid) = (row.get(1), row.get(2), row.get(5));
        let (correlation_id, cause): (&str, String) = (row.get(4), cause.to_string());
        let header = |key, value| Header { key, value: Some(value) };
        Outgoing {
            number: row.get(0),
            topic: TopicNames::new(context, &managed.settings.topics).commands(),
            key: stream.to_string(),
            value: row.get(3),
            headers: OwnedHeaders::new_with_capacity(3)
                .insert(header(headers::CORRELATION_ID, correlation_id))
                .insert(header(headers::CAUSATION_ID, cause.as_str()))
                // Without it only a refusal is told.
                .insert(header(headers::REPLY_TO, managed.group.as_str())),
        }
    };
    Ok(rows.iter().map(outgoing).collect())
}

async fn mark<P: ProcessManager>(line: &Line, numbers: &[i64]) -> Result<(), StoreError> {
    line.execute(
        "update throughline.process_commands set sent_at = now() where process = $1 and number = any($2) and sent_at is null",
        &[&P::NAME, &numbers],
    )
    .await
    .map(drop)
    .map_err(StoreError::at("mark commands as sent"))
}
