//! The outbox by hand: appends as the processor does, and reads back what a partition of Kafka holds.
#![allow(dead_code, reason = "each test program uses its own part")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::Message as _;
use rdkafka::{Offset, TopicPartitionList};
use throughline::health::Health;
use throughline::kafka::{Record, client};
use throughline::relay;
use throughline::settings::Settings;
use throughline::store::{Destination, destinations};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_postgres::{Client, Transaction};
use tokio_util::sync::CancellationToken;

use super::harness::eventually;

/// The events topic's destination.
pub async fn events(client: &Client, name: &str) -> Destination {
    destinations::find(client, name).await.expect("a registered topic")
}

/// Takes the counter's lock and `count` numbers; held until the transaction ends. Returns the first.
pub async fn take(transaction: &Transaction<'_>, topic: i16, partition: i32, count: i64) -> i64 {
    let row = transaction
        .query_one(
            "update throughline.counters set last_seq = last_seq + $3 where partition = $1 and topic = $2 returning last_seq",
            &[&partition, &topic, &count],
        )
        .await
        .expect("take numbers");
    row.get::<_, i64>(0) - count + 1
}

/// Inserts rows `first..first + count`, each with `bytes` bytes of value that name their number.
pub async fn insert(transaction: &Transaction<'_>, topic: i16, partition: i32, first: i64, count: i64, bytes: i32) {
    transaction
        .execute(
            "insert into throughline.outbox (partition, topic, seq, key, type, message_id, subject, schema_version,
                 stream_version, command_id, correlation_id, causation_id, created_at, value)
             select $1, $2, seq, md5((seq % 97)::text)::uuid, 'throughline.orders.OrderPlaced',
                    md5('message' || seq)::uuid, md5((seq % 97)::text)::uuid, 3::smallint, seq / 97 + 1,
                    md5('command' || seq)::uuid, 'correlation-' || seq, null, now(),
                    convert_to(rpad(seq || ':', greatest($5, 12), md5(seq::text)), 'UTF8')
             from generate_series($3::bigint, $3 + $4::bigint - 1) seq",
            &[&partition, &topic, &first, &count, &bytes],
        )
        .await
        .expect("insert outbox rows");
}

/// Appends `count` rows in one transaction.
pub async fn append(client: &mut Client, topic: i16, partition: i32, count: i64) {
    append_of(client, topic, partition, count, 250).await;
}

/// As [`append`], with values of `bytes` bytes.
pub async fn append_of(client: &mut Client, topic: i16, partition: i32, count: i64, bytes: i32) {
    let transaction = client.transaction().await.expect("begin");
    let first = take(&transaction, topic, partition, count).await;
    insert(&transaction, topic, partition, first, count, bytes).await;
    transaction.commit().await.expect("commit");
}

/// `published` of one partition.
pub async fn watermark(client: &Client, topic: i16, partition: i32) -> i64 {
    let row = client
        .query_one(
            "select published from throughline.relay_leases where topic = $1 and partition = $2",
            &[&topic, &partition],
        )
        .await
        .expect("read a lease");
    row.get(0)
}

/// A relay in this process.
pub type Running = JoinHandle<Result<(), relay::RelayError>>;

/// Starts a relay; returns it with what ends it and what wakes it.
pub fn start(settings: &Settings) -> (Running, CancellationToken, Arc<Notify>) {
    let (running, stop, wake, _) = start_with(settings);
    (running, stop, wake)
}

/// As [`start`], with where it tells of its partitions.
pub fn start_told(settings: &Settings) -> (Running, CancellationToken, Arc<Health>) {
    let (running, stop, _, health) = start_with(settings);
    (running, stop, health)
}

fn start_with(settings: &Settings) -> (Running, CancellationToken, Arc<Notify>, Arc<Health>) {
    let filter = tracing_subscriber::EnvFilter::from_default_env();
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
    let (wake, stop) = (Arc::new(Notify::new()), CancellationToken::new());
    let health = Health::new(Duration::MAX);
    let running = tokio::spawn(relay::run(Arc::new(settings.clone()), wake.clone(), health.clone(), stop.clone()));
    (running, stop, wake, health)
}

/// Ends a relay cleanly.
pub async fn stop(running: Running, token: CancellationToken) {
    token.cancel();
    running.await.expect("no panic").expect("a clean end");
}

/// Waits until `published` of each partition is `wanted`.
pub async fn published(client: &Client, destination: &Destination, wanted: &[(i32, i64)]) {
    for (partition, seq) in wanted {
        let what = format!("partition {partition} is published up to {seq}");
        eventually(&what, || async { (watermark(client, destination.id, *partition).await == *seq).then_some(()) })
            .await;
    }
}

/// Everything a partition holds now, in offset order.
pub fn read_partition(settings: &Settings, topic: &str, partition: i32) -> Vec<Record> {
    read_last(settings, topic, partition, i64::MAX)
}

/// The last `count` records of a partition, in offset order.
pub fn read_last(settings: &Settings, topic: &str, partition: i32, count: i64) -> Vec<Record> {
    let mut config = client::base(&settings.kafka);
    config.set("group.id", "test-reader").set("enable.auto.commit", "false").set("auto.offset.reset", "error");
    let consumer: BaseConsumer = config.create().expect("a consumer");
    let wait = Duration::from_secs(10);
    let (low, high) = consumer.fetch_watermarks(topic, partition, wait).expect("watermarks");
    let low = low.max(high.saturating_sub(count));
    let mut records = Vec::new();
    if low == high {
        return records;
    }
    let mut assignment = TopicPartitionList::new();
    assignment.add_partition_offset(topic, partition, Offset::Offset(low)).expect("an offset");
    consumer.assign(&assignment).expect("assign");
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(30) {
        let Some(Ok(message)) = consumer.poll(Duration::from_millis(100)) else { continue };
        records.push(Record::detach(&message, topic.into()));
        if message.offset() + 1 >= high {
            return records;
        }
    }
    panic!("{topic}/{partition}: read {} records of [{low}, {high})", records.len());
}

/// The sequence numbers of `records`.
pub fn seqs(records: &[Record]) -> Vec<i64> {
    records.iter().map(|record| record.header("seq").expect("a seq header").parse().expect("a number")).collect()
}

/// Repetitions among `seqs`; panics unless what is left when readers drop `seq <= last` is 1..=`last`.
#[track_caller]
pub fn repetitions(seqs: &[i64], last: i64) -> usize {
    let mut applied = 0;
    let mut repeated = 0;
    for seq in seqs {
        if *seq <= applied {
            repeated += 1;
        } else {
            assert_eq!(*seq, applied + 1, "a hole");
            applied = *seq;
        }
    }
    assert_eq!(applied, last, "records are missing at the end");
    repeated
}

/// The value that [`insert`] gives a row.
pub fn names_seq(record: &Record) -> i64 {
    let value = record.value.as_deref().expect("a value");
    let text = std::str::from_utf8(value).expect("text");
    text.split_once(':').expect("a number").0.parse().expect("a number")
}
