//! The relay against a bare producer that sends the same bytes with the same headers to the same
//! topic: interleaved, in one run, so that only their ratio is to be trusted.
//!
//! Three figures of the relay: a backlog that it meets at its start (leases, tails and the wait for
//! each partition's first record are in it), a backlog that one commit puts before a running relay, and
//! rows that come while it runs. The ratio is of the second: both have begun when the clock starts.
//!
//! `cargo bench --bench relay [-- ROWS ROUNDS]`. Uses the services that the environment names, or
//! starts a pair.

#[path = "../tests/harness/mod.rs"]
mod harness;
#[path = "../tests/outbox/mod.rs"]
mod outbox;

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use harness::Harness;
use rdkafka::ClientContext;
use rdkafka::producer::{BaseRecord, DeliveryResult, ProducerContext, ThreadedProducer};
use throughline::health::Health;
use throughline::kafka::{Record, client};
use throughline::relay;
use throughline::settings::Settings;
use throughline::store::Destination;
use tokio::sync::Notify;
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

const BYTES: i32 = 250;
/// Rows of one transaction while PostgreSQL appends beside the relay.
const BATCH: i64 = 500;

#[derive(Default)]
struct Acknowledged(Arc<AtomicI64>);
impl ClientContext for Acknowledged {}
impl ProducerContext for Acknowledged {
    type DeliveryOpaque = ();
    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        assert!(result.is_ok(), "the bare producer fails");
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

fn main() {
    let numbers: Vec<i64> = std::env::args().filter_map(|argument| argument.parse().ok()).collect();
    let rows = numbers.first().copied().unwrap_or(300_000);
    let rounds = numbers.get(1).copied().unwrap_or(5);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    runtime.block_on(compare(rows, rounds));
}

async fn compare(rows: i64, rounds: i64) {
    let harness = Harness::new("bench_relay").await;
    let mut client = harness.client().await;
    let events = outbox::events(&client, &harness.names().events()).await;
    let each = rows / i64::from(events.partitions);
    let rows = each * i64::from(events.partitions);
    println!("{rows} records of {BYTES} bytes and 12 headers in {} partitions, {rounds} rounds", events.partitions);
    println!(
        "{:>5}  {:>14}  {:>14}  {:>14}  {:>14}  {:>6}",
        "round", "from its start", "running", "bare", "beside appends", "ratio"
    );
    let (mut ratios, mut started, mut relayed, mut live) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut last = 0;
    for round in 1..=rounds {
        for partition in 0..events.partitions {
            outbox::append_of(&mut client, events.id, partition, each, BYTES).await;
        }
        last += each;
        let cold = drain(&harness.settings, &client, &events, last).await;

        let records: Vec<Record> = (0..events.partitions)
            .flat_map(|partition| outbox::read_last(&harness.settings, &events.name, partition, each))
            .collect();
        let settings = harness.settings.clone();
        let bare = tokio::task::spawn_blocking(move || send(&settings, &records)).await.expect("no panic");

        let (relaying, stop) = start(&harness.settings);
        // A row in each partition tells that the relay has begun.
        append_everywhere(&mut client, &events, 1).await;
        last += 1;
        until_published(&client, &events, last).await;
        append_everywhere(&mut client, &events, each).await;
        last += each;
        let committed = Instant::now();
        until_published(&client, &events, last).await;
        let running = committed.elapsed();
        let beside = beside_appends(&harness, &client, &events, each, &mut last).await;
        stop.cancel();
        relaying.await.expect("no panic").expect("a clean end");

        let rate = |elapsed: Duration| rows as f64 / elapsed.as_secs_f64();
        let ratio = rate(running) / rate(bare);
        let [cold, running, bare, beside] = [cold, running, bare, beside].map(rate);
        println!("{round:>5}  {cold:>14.0}  {running:>14.0}  {bare:>14.0}  {beside:>14.0}  {ratio:>6.2}");
        ratios.push(ratio);
        started.push(cold);
        relayed.push(running);
        live.push(beside);
    }
    for (name, unit, figures) in [
        ("relay, backlog at its start", "events/s", &mut started),
        ("relay, running, backlog", "events/s", &mut relayed),
        ("relay beside appends", "events/s", &mut live),
        ("running relay / bare producer", "", &mut ratios),
    ] {
        figures.sort_by(f64::total_cmp);
        let (low, middle, high) = (figures[0], figures[figures.len() / 2], figures[figures.len() - 1]);
        println!("{name}: median {middle:.2} {unit} (lowest {low:.2}, highest {high:.2})");
    }
}

/// Rows that become visible all at once.
async fn append_everywhere(client: &mut Client, events: &Destination, each: i64) {
    let transaction = client.transaction().await.expect("begin");
    for partition in 0..events.partitions {
        let first = outbox::take(&transaction, events.id, partition, each).await;
        outbox::insert(&transaction, events.id, partition, first, each, BYTES).await;
    }
    transaction.commit().await.expect("commit");
}

/// Time from the first append to the last mark, while a running relay follows the writer.
async fn beside_appends(
    harness: &Harness,
    client: &Client,
    events: &Destination,
    each: i64,
    last: &mut i64,
) -> Duration {
    let mut writer = harness.client().await;
    let started = Instant::now();
    let mut appended = 0;
    while appended < each {
        let count = (BATCH / i64::from(events.partitions)).min(each - appended);
        append_everywhere(&mut writer, events, count).await;
        appended += count;
    }
    *last += each;
    until_published(client, events, *last).await;
    started.elapsed()
}

type Running = tokio::task::JoinHandle<Result<(), relay::RelayError>>;

fn start(settings: &Settings) -> (Running, CancellationToken) {
    let stop = CancellationToken::new();
    let health = Health::new(Duration::MAX);
    let running = tokio::spawn(relay::run(Arc::new(settings.clone()), Arc::new(Notify::new()), health, stop.clone()));
    (running, stop)
}

async fn until_published(client: &Client, events: &Destination, last: i64) {
    let done = "select bool_and(published = $2) from throughline.relay_leases where topic = $1";
    while !client.query_one(done, &[&events.id, &last]).await.expect("leases").get::<_, bool>(0) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Time of a relay, from its start (leases, tails and all) to the last mark.
async fn drain(settings: &Settings, client: &Client, events: &Destination, last: i64) -> Duration {
    let started = Instant::now();
    let (running, stop) = start(settings);
    until_published(client, events, last).await;
    let elapsed = started.elapsed();
    stop.cancel();
    running.await.expect("no panic").expect("a clean end");
    elapsed
}

/// Time of a bare idempotent producer that has begun, to the last acknowledgement. The records wait in
/// memory; their headers are made while sending, as any producer has to.
fn send(settings: &Settings, records: &[Record]) -> Duration {
    let acknowledged = Arc::new(AtomicI64::new(0));
    let producer: ThreadedProducer<Acknowledged> = client::producer(&settings.kafka, 5)
        .create_with_context(Acknowledged(acknowledged.clone()))
        .expect("a producer");
    let until = |count: usize| {
        while acknowledged.load(Ordering::Relaxed) < count as i64 {
            std::thread::sleep(Duration::from_millis(1));
        }
    };
    // One record to each partition tells that it has begun.
    let per_partition = records.chunk_by(|one, next| one.source == next.source);
    let warm = per_partition.map(|same| send_one(&producer, &same[0])).count();
    until(warm);
    let started = Instant::now();
    for record in records {
        send_one(&producer, record);
    }
    until(warm + records.len());
    started.elapsed()
}

fn send_one(producer: &ThreadedProducer<Acknowledged>, record: &Record) {
    let record = BaseRecord::to(&record.source.topic)
        .partition(record.source.partition)
        .key(record.key.as_deref().expect("a key"))
        .payload(record.value.as_deref().expect("a value"))
        .timestamp(record.timestamp_ms)
        .headers(record.headers().expect("readable headers").to_native());
    producer.send(record).map_err(|(error, _)| error).expect("room for every record");
}
