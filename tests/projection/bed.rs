//! A test bed of its own database, topic and groups on the real services, and a small publisher.
//!
//! Addresses come from `KAFKA_BROKERS` and `DATABASE_URL`. Knows no processor and no relay: events
//! are appended and published by hand, so that duplicates and holes can be made at will.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer as _, ThreadedProducer};
use rdkafka::{Offset, TopicPartitionList};
use reference::orders::domain::OrderEvent;
use reference::orders::{OrdersCodec, projections, schemas};
use throughline::engine::{EventCodec, Projection, destination_partition};
use throughline::health::Health;
use throughline::kafka::headers::Envelope;
use throughline::kafka::topics::{self, TopicNames};
use throughline::kafka::{client, headers};
use throughline::projection::{self, Projector};
use throughline::settings::Settings;
use throughline::store::{self, DatabaseRole};
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

pub const PARTITIONS: i32 = 3;
/// A loop that is silent for longer counts as hung.
pub const SILENCE_MAX: Duration = Duration::from_secs(2);
const DEADLINE: Duration = Duration::from_secs(30);

/// An appended event: where it stands, and its bytes.
#[derive(Clone)]
pub struct Stored {
    pub partition: i32,
    pub seq: i64,
    pub stream_id: Uuid,
    pub version: i64,
    pub event_id: Uuid,
    pub recorded_at: Timestamp,
    pub event_type: &'static str,
    pub schema_version: i16,
    pub payload: Vec<u8>,
}

pub struct Bed {
    pub settings: Arc<Settings>,
    pub names: TopicNames,
    pub codec: Arc<OrdersCodec>,
    pub owner: Client,
    pub log: Vec<Stored>,
    pub health: Arc<Health>,
    producer: ThreadedProducer<DefaultProducerContext>,
    topic_id: i16,
    seqs: HashMap<i32, i64>,
    versions: HashMap<Uuid, i64>,
}

/// A projection that runs.
pub struct Running {
    shutdown: CancellationToken,
    task: tokio::task::JoinHandle<Result<(), projection::ProjectionLoopError>>,
}

impl Running {
    /// Stops it and waits: its group is empty then.
    pub async fn stop(self) {
        self.shutdown.cancel();
        self.task.await.expect("the loop does not panic").expect("the loop ends well");
    }
}

fn address(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("set {name}, for example by `throughline dev env`"))
}

/// Polls `condition` until it holds.
#[track_caller]
pub fn expired(since: Instant, what: &str) {
    assert!(since.elapsed() < DEADLINE, "not within {DEADLINE:?}: {what}");
}

impl Bed {
    pub async fn new() -> Self {
        Self::with(|_| {}).await
    }

    pub async fn with(adjust: impl FnOnce(&mut Settings)) -> Self {
        let _ = tracing_subscriber::fmt()
            .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
            .with_test_writer()
            .try_init();
        let tag = Uuid::new_v4().simple().to_string()[..12].to_owned();
        let mut settings = Settings::default();
        settings.kafka.brokers = address("KAFKA_BROKERS");
        settings.kafka.session_timeout_ms = 2_000;
        settings.database.url = address("DATABASE_URL").into();
        settings.topics.prefix = format!("projection-{tag}-");
        settings.topics.event_partitions = PARTITIONS;
        settings.projection.state_poll_ms = 50;
        settings.projection.retry_wait_ms = 5;
        settings.projection.retries_max = 2;
        let admin = store::connect::connect(&settings.database, &DatabaseRole::Owner).await.expect("connects");
        let database = format!("projection_{tag}");
        admin.batch_execute(&format!("create database {database}")).await.expect("creates the database");
        let url = address("DATABASE_URL");
        let (head, _) = url.rsplit_once('/').expect("the URL names a database");
        settings.database.url = format!("{head}/{database}").into();
        adjust(&mut settings);
        let names = TopicNames::new("orders", &settings.topics);
        let specs: Vec<_> =
            topics::specs(&names, &settings.topics).into_iter().filter(|spec| spec.name == names.events()).collect();
        topics::apply(&settings.kafka, &specs).await.expect("creates the topic");
        let mut owner = store::connect::connect(&settings.database, &DatabaseRole::Owner).await.expect("connects");
        store::migrate::apply(&mut owner).await.expect("migrates");
        let topic_id =
            store::destinations::register(&mut owner, &names.events(), PARTITIONS).await.expect("registers").id;
        for one in projections::all() {
            projection::install(&mut owner, one.read_model()).await.expect("installs");
        }
        let catalogue = schemas::catalogue().expect("the schemas are sound").of_topic(names.events());
        let ids = throughline::avro::ids::register(&owner, &catalogue).await.expect("registers schemas");
        Self {
            producer: client::producer(&settings.kafka, 1).create().expect("a producer"),
            codec: Arc::new(OrdersCodec::new(&ids).expect("a codec")),
            settings: Arc::new(settings),
            names,
            owner,
            log: Vec::new(),
            health: Health::new(SILENCE_MAX),
            topic_id,
            seqs: HashMap::new(),
            versions: HashMap::new(),
        }
    }

    pub fn projection(&self, name: &str) -> Arc<dyn Projection<Event = OrderEvent>> {
        projections::all().into_iter().find(|one| one.read_model().name == name).expect("a projection of that name")
    }

    pub fn projector(&self, name: &str) -> Projector<OrderEvent> {
        Projector::new(self.settings.clone(), &self.names, self.projection(name), self.codec.clone())
    }

    pub fn start(&self, name: &str) -> Running {
        self.start_with(self.projection(name), self.settings.clone())
    }

    pub fn start_with(&self, projection: Arc<dyn Projection<Event = OrderEvent>>, settings: Arc<Settings>) -> Running {
        let shutdown = CancellationToken::new();
        let health = self.health.clone();
        let loops =
            projection::run(settings, self.names.clone(), projection, self.codec.clone(), health, shutdown.clone());
        Running { shutdown, task: tokio::spawn(loops) }
    }

    /// Appends events to the store, as the processor would. Returns them.
    pub async fn append(&mut self, events: &[OrderEvent]) -> Vec<Stored> {
        let mut stored = Vec::new();
        for event in events {
            let stream_id = event.order_id();
            let partition = destination_partition(stream_id, PARTITIONS);
            let seq = self.seqs.entry(partition).or_default();
            *seq += 1;
            let version = self.versions.entry(stream_id).or_default();
            *version += 1;
            let encoded = self.codec.encode(event).expect("encodes");
            // Days differ; microseconds, as PostgreSQL keeps them.
            let micros = 1_760_000_000_000_000 + self.log.len() as i64 * 7_000_000_000 / 3 + stored.len() as i64;
            stored.push(Stored {
                partition,
                seq: *seq,
                stream_id,
                version: *version,
                event_id: Uuid::new_v4(),
                recorded_at: Timestamp::from_microsecond(micros).expect("in range"),
                event_type: encoded.event_type,
                schema_version: encoded.schema_version,
                payload: encoded.bytes,
            });
        }
        let column = |pick: fn(&Stored) -> i64| stored.iter().map(pick).collect::<Vec<_>>();
        self.owner
            .execute(
                "insert into throughline.events (topic, partition, seq, stream_id, version, event_id, type,
                        schema_version, command_id, correlation_id, recorded_at, payload)
                 select $1, partition::int, seq, stream_id, version, event_id, type, schema_version::smallint, event_id, 'test', recorded_at,
                        payload
                 from unnest($2::bigint[], $3::bigint[], $4::uuid[], $5::bigint[], $6::uuid[], $7::text[],
                             $8::bigint[], $9::timestamptz[], $10::bytea[])
                      e (partition, seq, stream_id, version, event_id, type, schema_version, recorded_at, payload)",
                &[
                    &self.topic_id,
                    &column(|e| i64::from(e.partition)),
                    &column(|e| e.seq),
                    &stored.iter().map(|e| e.stream_id).collect::<Vec<_>>(),
                    &column(|e| e.version),
                    &stored.iter().map(|e| e.event_id).collect::<Vec<_>>(),
                    &stored.iter().map(|e| e.event_type).collect::<Vec<_>>(),
                    &column(|e| i64::from(e.schema_version)),
                    &stored.iter().map(|e| e.recorded_at).collect::<Vec<_>>(),
                    &stored.iter().map(|e| e.payload.as_slice()).collect::<Vec<_>>(),
                ],
            )
            .await
            .expect("appends");
        for (partition, seq) in &self.seqs {
            self.owner
                .execute("update throughline.counters set last_seq = $2 where partition = $1", &[partition, seq])
                .await
                .expect("moves the counter");
        }
        self.log.extend(stored.iter().cloned());
        stored
    }

    /// Every event of the store, whoever appended it; in order within each partition.
    pub async fn stored(&self) -> Vec<Stored> {
        let rows = self
            .owner
            .query(
                "select partition, seq, stream_id, version, event_id, recorded_at, type, schema_version, payload
                 from throughline.events where topic = $1 order by partition, seq",
                &[&self.topic_id],
            )
            .await
            .expect("reads the store");
        let types = ["OrderPlaced", "PaymentReceived", "OrderShipped", "OrderCancelled"];
        let named = |name: &str| types.into_iter().find(|known| *known == name).expect("a known type");
        rows.iter()
            .map(|row| Stored {
                partition: row.get(0),
                seq: row.get(1),
                stream_id: row.get(2),
                version: row.get(3),
                event_id: row.get(4),
                recorded_at: row.get(5),
                event_type: named(row.get(6)),
                schema_version: row.get(7),
                payload: row.get(8),
            })
            .collect()
    }

    /// Publishes appended events, as the relay would.
    pub async fn publish(&self, events: &[Stored]) {
        let topic = self.names.events();
        for stored in events {
            let key = stored.stream_id.to_string();
            let message_type = format!("throughline.orders.{}", stored.event_type);
            let envelope = Envelope {
                id: stored.event_id,
                message_type: &message_type,
                source: "/throughline/orders",
                time: stored.recorded_at,
                subject: stored.stream_id,
                content_type: "application/avro",
                schema_version: Some(stored.schema_version),
                stream_version: Some(stored.version),
                seq: stored.seq,
                command_id: stored.event_id,
                correlation_id: "test",
                causation_id: None,
                traceparent: None,
                reply_to: None,
            };
            let record = BaseRecord::to(&topic)
                .partition(stored.partition)
                .key(&key)
                .payload(&stored.payload)
                .timestamp(stored.recorded_at.as_millisecond())
                .headers(envelope.headers());
            self.producer.send(record).map_err(|(error, _)| error).expect("queued");
        }
        self.producer.flush(DEADLINE).expect("delivered");
    }

    /// Appends and publishes.
    pub async fn emit(&mut self, events: &[OrderEvent]) -> Vec<Stored> {
        let stored = self.append(events).await;
        self.publish(&stored).await;
        stored
    }

    /// Produces a record that no relay of ours wrote.
    pub async fn produce_raw(&self, partition: i32, key: &str, value: &[u8], seq: Option<i64>) {
        let topic = self.names.events();
        let mut all = rdkafka::message::OwnedHeaders::new();
        let text = seq.unwrap_or_default().to_string();
        if seq.is_some() {
            all = all.insert(rdkafka::message::Header { key: headers::SEQ, value: Some(&text) });
            let id = Uuid::new_v4().to_string();
            all = all.insert(rdkafka::message::Header { key: headers::CE_ID, value: Some(&id) });
        }
        let record = BaseRecord::to(&topic).partition(partition).key(key).payload(value).headers(all);
        self.producer.send(record).map_err(|(error, _)| error).expect("queued");
        self.producer.flush(DEADLINE).expect("delivered");
    }

    /// First and next offset of a partition.
    pub fn watermarks(&self, partition: i32) -> (i64, i64) {
        self.producer
            .client()
            .fetch_watermarks(&self.names.events(), partition, Duration::from_secs(10))
            .expect("watermarks")
    }

    /// Waits until the projection has applied everything appended.
    pub async fn caught_up(&self, name: &str) {
        let since = Instant::now();
        loop {
            let behind = throughline::projection::state::lags(&self.owner, &self.names.events(), name)
                .await
                .expect("reads the lag");
            if behind.iter().all(|lag| lag.events == 0) {
                return;
            }
            expired(since, &format!("{name} to catch up: {behind:?}"));
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// The sum of the projection's epochs: each claim of a partition raises it.
    pub async fn epochs(&self, name: &str) -> i64 {
        self.number(&format!(
            "select coalesce(sum(epoch), 0)::bigint from throughline.checkpoints
             where projection = '{name}' and generation = 'read'"
        ))
        .await
    }

    /// Waits until every partition was claimed once more.
    pub async fn claimed_since(&self, name: &str, epochs: i64) {
        self.until(&format!(
            "select coalesce(sum(epoch), 0) >= {epochs} + {PARTITIONS} from throughline.checkpoints
             where projection = '{name}' and generation = 'read'"
        ))
        .await;
    }

    /// Waits until a query answers true.
    pub async fn until(&self, sql: &str) {
        let since = Instant::now();
        // No row is not yet either.
        while !self.owner.query_opt(sql, &[]).await.expect("a query").is_some_and(|row| row.get::<_, bool>(0)) {
            expired(since, sql);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// One bigint.
    pub async fn number(&self, sql: &str) -> i64 {
        self.owner.query_one(sql, &[]).await.unwrap_or_else(|error| panic!("{sql}: {}", store::describe(&error))).get(0)
    }

    fn group_consumer(&self, name: &str) -> BaseConsumer {
        client::consumer(&self.settings.kafka, &self.names.projection_group(name), "").create().expect("a consumer")
    }

    /// Commits offsets with empty metadata for an empty group: what Kafka's own tool does.
    pub async fn reset(&self, name: &str, offsets: &[(i32, i64)]) {
        let consumer = self.group_consumer(name);
        let mut list = TopicPartitionList::new();
        for (partition, offset) in offsets {
            list.add_partition_offset(&self.names.events(), *partition, Offset::Offset(*offset)).expect("an offset");
        }
        let since = Instant::now();
        while let Err(error) = consumer.commit(&list, CommitMode::Sync) {
            expired(since, &format!("the group to take a reset: {error}"));
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// What Kafka holds for the group: offset and metadata by partition.
    pub fn committed(&self, name: &str) -> HashMap<i32, (i64, String)> {
        let mut list = TopicPartitionList::new();
        list.add_partition_range(&self.names.events(), 0, PARTITIONS - 1);
        let committed =
            self.group_consumer(name).committed_offsets(list, Duration::from_secs(10)).expect("committed offsets");
        let pair = |element: &rdkafka::topic_partition_list::TopicPartitionListElem<'_>| match element.offset() {
            Offset::Offset(offset) => Some((element.partition(), (offset, element.metadata().to_owned()))),
            _ => None,
        };
        committed.elements().iter().filter_map(pair).collect()
    }
}
