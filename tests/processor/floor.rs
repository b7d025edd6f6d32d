//! What these tests stand on: a processor in this process, a producer, and the store's tables.

use std::sync::Arc;

use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};
use reference::orders::OrdersCodec;
use reference::orders::OrdersContext;
use serde_json::{Value, json};
use throughline::engine::BoundedContext;
use throughline::health::Health;
use throughline::kafka::client;
use throughline::processor::{self, ProcessorError};
use throughline::settings::Settings;
use throughline::store::commands::{StoredOutcome, outcomes};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::harness::{Harness, PATIENCE, eventually};

/// A processor that runs until it is stopped.
pub struct Running {
    shutdown: CancellationToken,
    task: JoinHandle<Result<(), ProcessorError>>,
}

impl Running {
    /// Starts one with `settings`.
    pub async fn start(settings: &Settings) -> Self {
        let codec = OrdersCodec::installed(settings).await.expect("codec");
        Self::start_as::<OrdersContext>(settings, codec)
    }

    /// Starts one of another context.
    pub fn start_as<C: BoundedContext>(settings: &Settings, codec: Arc<C::Codec>) -> Self {
        let shutdown = CancellationToken::new();
        let settings = Arc::new(settings.clone());
        let health = Health::new(std::time::Duration::MAX);
        let run = processor::run::<C>(settings, codec, Arc::new(Notify::new()), health, shutdown.clone());
        Self { shutdown, task: tokio::spawn(run) }
    }

    /// Stops it gracefully.
    pub async fn stop(self) {
        self.shutdown.cancel();
        let ended = tokio::time::timeout(PATIENCE, self.task).await.expect("the processor stops");
        ended.expect("no panic").expect("no error");
    }
}

/// Produces records and waits for their acknowledgement.
pub struct Source {
    producer: ThreadedProducer<DefaultProducerContext>,
}

/// A record to produce.
#[derive(Default, Clone)]
pub struct Produced {
    pub topic: String,
    pub partition: Option<i32>,
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    pub headers: Vec<(&'static str, String)>,
}

impl Source {
    pub fn new(harness: &Harness) -> Self {
        Self { producer: client::producer(&harness.settings.kafka, 1).create().expect("a producer") }
    }

    /// Produces in order; returns when all are acknowledged.
    pub fn produce(&self, records: &[Produced]) {
        for record in records {
            let mut headers = OwnedHeaders::new();
            for (key, value) in &record.headers {
                headers = headers.insert(Header { key, value: Some(value) });
            }
            let mut base = BaseRecord::<[u8], [u8]>::to(&record.topic).headers(headers);
            if let Some(partition) = record.partition {
                base = base.partition(partition);
            }
            if let Some(key) = &record.key {
                base = base.key(key.as_slice());
            }
            if let Some(value) = &record.value {
                base = base.payload(value.as_slice());
            }
            self.producer.send(base).map_err(|(error, _)| error).expect("queued");
        }
        self.producer.flush(PATIENCE).expect("acknowledged");
    }
}

/// A command to the normal lane, keyed by its order.
pub fn command(harness: &Harness, value: &Value) -> Produced {
    Produced {
        topic: harness.names().commands(),
        key: Some(value["orderId"].as_str().expect("orderId").as_bytes().to_vec()),
        value: Some(value.to_string().into_bytes()),
        ..Produced::default()
    }
}

/// A valid order of one item worth 20.00.
pub fn place(order: Uuid, command: Uuid) -> Value {
    json!({
        "type": "PlaceOrder", "commandId": command, "orderId": order, "customerId": "customer-1", "currency": "USD",
        "items": [{"productId": Uuid::from_u128(9), "quantity": 2, "unitPrice": "10.00"}],
    })
}

/// A payment of `amount`.
pub fn pay(order: Uuid, command: Uuid, amount: &str) -> Value {
    json!({
        "type": "RecordPayment", "commandId": command, "orderId": order, "paymentId": command, "amount": amount,
        "currency": "USD",
    })
}

/// Waits until each id has its outcome, and returns them in the order of `ids`.
pub async fn decided(client: &Client, ids: &[Uuid]) -> Vec<StoredOutcome> {
    let events = "select name from throughline.topics where name like '%orders-events'";
    let events: String = client.query_one(events, &[]).await.expect("the events topic").get(0);
    let mut found = eventually("every command has an outcome", async || {
        let found = outcomes(client, &events, ids).await.expect("outcomes");
        (found.len() >= ids.len()).then_some(found)
    })
    .await;
    assert_eq!(found.len(), ids.len(), "one outcome per id");
    found.sort_by_key(|outcome| ids.iter().position(|id| *id == outcome.command_id));
    found
}

/// Waits until the processor has moved past everything produced: the offsets sum up to `records`.
pub async fn consumed(client: &Client, records: i64) {
    eventually("all records are consumed", async || {
        let sum: i64 = number(client, "select coalesce(sum(next_offset), 0)::bigint from throughline.offsets").await;
        assert!(sum <= records, "{sum} records consumed of {records}");
        (sum == records).then_some(())
    })
    .await;
}

/// The one number that a query gives.
pub async fn number(client: &Client, query: &str) -> i64 {
    client.query_one(query, &[]).await.expect("a number").get(0)
}

/// What must hold whatever happened: dense streams, dense destinations, one outcome an id, and an
/// outbox that equals the events.
pub async fn sound(client: &Client) {
    for (what, query) in [
        (
            "streams are 1..n",
            "select count(*) from (select stream_id, count(*) n, min(version) a, max(version) b
             from throughline.events group by 1) s where a <> 1 or b <> n",
        ),
        (
            "outbox partitions are 1..n and their counters agree",
            "select count(*) from throughline.counters c left join (
                select partition, topic, count(*) n, min(seq) a, max(seq) b from throughline.outbox group by 1, 2) o
             using (partition, topic) where coalesce(o.n, 0) <> c.last_seq or o.a <> 1 or o.b <> o.n",
        ),
        (
            "one outcome an id and stream",
            "select count(*) from (select stream_id, command_id from throughline.commands group by 1, 2
             having count(*) > 1) d",
        ),
        (
            "no two records of a topic share an id, but a result that was asked for again",
            "select (count(*) - count(distinct message_id)) from throughline.outbox where type not like '%CommandResult'",
        ),
        (
            "the outbox holds every event as it is stored",
            "select count(*) from throughline.events e left join throughline.outbox o using (partition, topic, seq)
             where o.value is distinct from e.payload or o.message_id is distinct from e.event_id",
        ),
    ] {
        assert_eq!(number(client, query).await, 0, "{what}");
    }
}
