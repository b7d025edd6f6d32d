//! Asks the gateway about each payment that is requested, outside of any transaction, and sends its answer as a command.
//!
//! A request is done once its answer is on the commands topic; until then Kafka's committed offset stays before it, and
//! whoever goes on asks again. The gateway answers the same under the same payment id, and the command has an id that
//! follows from the event: so it counts once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use rdkafka::consumer::{CommitMode, Consumer as _, StreamConsumer};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::{Message as _, Offset, TopicPartitionList};
use serde_json::json;
use throughline::engine::{EventCodec as _, ids};
use throughline::health::{Health, Told};
use throughline::kafka::topics::TopicNames;
use throughline::kafka::voice::Quiet;
use throughline::kafka::{Record, Tended, client, headers};
use throughline::plain::{PlainCodec, PlainContext as _};
use throughline::settings::Settings;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::Payments;
use super::domain::PaymentEvent;
use super::gateway::{Answer, Gateway, Request};

/// A gateway that has not answered by then will not; whoever waits has a deadline of its own.
const ANSWER_WAIT: Duration = Duration::from_secs(30);
/// Payments asked about at a time.
const ASKED_MAX: usize = 256;
/// Between two tries.
const RETRY: Duration = Duration::from_secs(1);

/// Asks until `shutdown`. Trouble never ends it: it starts over where Kafka has it.
pub(super) async fn run(
    settings: Arc<Settings>,
    codec: Arc<PlainCodec<Payments>>,
    gateway: Arc<dyn Gateway>,
    health: Arc<Health>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let heartbeat = health.register("gateway");
    let breaks = Told::new("the loop that asks the payment gateway starts over");
    while !shutdown.is_cancelled() {
        let session = Session::new(&settings, codec.clone(), gateway.clone());
        let asked = async {
            let mut session = session?;
            heartbeat.ready();
            session.ask().await
        };
        match shutdown.run_until_cancelled(heartbeat.during(asked)).await {
            None | Some(Ok(())) => return Ok(()),
            Some(Err(error)) => {
                let error: anyhow::Error = error;
                heartbeat.not_ready(error.to_string());
                breaks.failed(&format!("{error:#}"));
            }
        }
        shutdown.run_until_cancelled(heartbeat.during(tokio::time::sleep(RETRY))).await;
    }
    Ok(())
}

struct Session {
    consumer: Tended<StreamConsumer<Quiet>>,
    producer: Tended<FutureProducer<Quiet>>,
    codec: Arc<PlainCodec<Payments>>,
    gateway: Arc<dyn Gateway>,
    events: String,
    commands: String,
    /// Requests that are not done, by partition.
    open: BTreeMap<i32, BTreeSet<i64>>,
    /// The end of what was read, by partition.
    read: BTreeMap<i32, i64>,
}

impl Session {
    fn new(settings: &Settings, codec: Arc<PlainCodec<Payments>>, gateway: Arc<dyn Gateway>) -> anyhow::Result<Self> {
        let names = TopicNames::new(Payments::NAME, &settings.topics);
        let group = format!("{}-gateway", names.events());
        let mut config = client::consumer(&settings.kafka, &group, "");
        config.set("auto.offset.reset", "earliest");
        let consumer: Tended<StreamConsumer<Quiet>> = Tended::consumer(&config, Quiet)?;
        consumer.subscribe(&[&names.events()])?;
        let producer = Tended::producer(&client::producer(&settings.kafka, 2), Quiet)?;
        let (open, read) = (BTreeMap::new(), BTreeMap::new());
        Ok(Self { consumer, producer, codec, gateway, events: names.events(), commands: names.commands(), open, read })
    }

    async fn ask(&mut self) -> anyhow::Result<()> {
        let mut asked = FuturesUnordered::new();
        loop {
            let next = tokio::select! {
                next = self.consumer.recv(), if asked.len() < ASKED_MAX => Some(next?),
                Some(done) = asked.next() => {
                    let (partition, offset): (i32, i64) = done?;
                    self.open.entry(partition).or_default().remove(&offset);
                    self.commit(partition)?;
                    None
                }
            };
            let Some(message) = next else { continue };
            let (partition, offset) = (message.partition(), message.offset());
            let record = Record::detach(&message, self.events.as_str().into());
            drop(message);
            self.read.insert(partition, offset + 1);
            match request(&self.codec, &record) {
                Some((event_id, correlation_id, request)) => {
                    self.open.entry(partition).or_default().insert(offset);
                    let (gateway, producer, topic) =
                        (self.gateway.clone(), self.producer.clone(), self.commands.clone());
                    asked.push(async move {
                        answer(&*gateway, &producer, &topic, (event_id, &correlation_id), &request).await?;
                        anyhow::Ok((partition, offset))
                    });
                }
                None => self.commit(partition)?,
            }
        }
    }

    /// Lets Kafka's offset follow up to the first request that is not done.
    fn commit(&self, partition: i32) -> anyhow::Result<()> {
        let first_open = self.open.get(&partition).and_then(|open| open.first().copied());
        let Some(next) = first_open.or_else(|| self.read.get(&partition).copied()) else { return Ok(()) };
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&self.events, partition, Offset::Offset(next))?;
        // One that is refused, since the partition is another's now, leaves work to be done once more.
        let _ = self.consumer.commit(&list, CommitMode::Async);
        Ok(())
    }
}

/// What a record asks of the gateway, if anything. What cannot be read stands parked where it matters.
fn request(codec: &PlainCodec<Payments>, record: &Record) -> Option<(Uuid, String, Request)> {
    let event_id = Uuid::try_parse(record.header(headers::CE_ID)?).ok()?;
    let correlation_id = record.header(headers::CORRELATION_ID).unwrap_or_default().to_owned();
    let payment_id = Uuid::try_parse(record.header(headers::CE_SUBJECT)?).ok()?;
    match codec.decode(record.value.as_deref()?).ok()? {
        PaymentEvent::PaymentRequested { due, token } => {
            Some((event_id, correlation_id, Request { payment_id, amount: due.amount, token }))
        }
        _ => None,
    }
}

async fn answer(
    gateway: &dyn Gateway,
    producer: &FutureProducer<Quiet>,
    topic: &str,
    (event_id, correlation_id): (Uuid, &str),
    request: &Request,
) -> anyhow::Result<()> {
    let Ok(answered) = tokio::time::timeout(ANSWER_WAIT, gateway.authorize(request)).await else { return Ok(()) };
    let mut command = match answered? {
        Answer::Authorized(id) => json!({"type": "RecordAuthorization", "authorizationId": id}),
        Answer::Declined(reason) => json!({"type": "RecordDecline", "reason": reason}),
    };
    let command_id = ids::process_command_id("payments-gateway", request.payment_id, event_id, 0);
    command["commandId"] = command_id.to_string().into();
    command["paymentId"] = request.payment_id.to_string().into();
    let (key, value, cause) = (request.payment_id.to_string(), command.to_string(), event_id.to_string());
    let header = |key, value| rdkafka::message::Header { key, value: Some(value) };
    let all = rdkafka::message::OwnedHeaders::new()
        .insert(header(headers::CORRELATION_ID, correlation_id))
        .insert(header(headers::CAUSATION_ID, cause.as_str()));
    let record = FutureRecord::to(topic).key(&key).payload(&value).headers(all);
    producer.send(record, Duration::from_secs(60)).await.map_err(|(error, _)| error)?;
    Ok(())
}
