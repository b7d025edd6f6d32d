//! Four processors, twelve partitions, duplicated ids, kills, zombies, restarts: every command id has
//! one outcome, every stream is 1..n, and the events equal a replay of the log through `decide`.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use rdkafka::Message as _;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::producer::{FutureProducer, FutureRecord};
use reference::orders::OrdersCodec;
use reference::orders::OrdersContext;
use reference::orders::domain::{Order, OrderEvent};
use serde_json::json;
use throughline::engine::{Aggregate as _, BoundedContext as _, EventCodec as _};
use throughline::kafka::client;
use uuid::Uuid;

use crate::harness::{Harness, eventually};
use crate::one_order::place_order;
use crate::process::Process;

const COMMANDS: usize = 20_000;
const PROCESSORS: usize = 4;
const PARTITIONS: i32 = 12;
/// How long the commands keep coming while processes die.
const SPAN: Duration = Duration::from_secs(30);

/// Commands in the order sent: a fresh one, or one of before again (one in ten), each for an order of
/// its own life: placed, paid in two parts, shipped or cancelled; refusals on the way are welcome.
fn commands(random: &mut StdRng) -> Vec<(Uuid, String)> {
    let mut sent: Vec<(Uuid, String)> = Vec::with_capacity(COMMANDS);
    while sent.len() < COMMANDS {
        if !sent.is_empty() && random.random_ratio(1, 10) {
            let again = sent[random.random_range(0..sent.len())].clone();
            sent.push(again);
            continue;
        }
        let order = Uuid::from_u128(u128::from(random.random_range(1..=4_000_u32)));
        let id = Uuid::from_u128(random.random());
        let value = match random.random_range(0..5_u8) {
            0 | 1 => place_order(order, id),
            2 => json!({"type": "RecordPayment", "commandId": id, "orderId": order, "currency": "USD",
                        "paymentId": Uuid::from_u128(random.random()), "amount": "19.99"}),
            3 => {
                json!({"type": "ShipOrder", "commandId": id, "orderId": order, "carrier": "DHL", "trackingNumber": "1"})
            }
            _ if random.random_ratio(1, 4) => {
                json!({"type": "CancelOrder", "commandId": id, "orderId": order, "reason": "chaos"})
            }
            _ => json!({"type": "RecordPayment", "commandId": id, "orderId": order, "currency": "USD",
                        "paymentId": Uuid::from_u128(random.random()), "amount": "20.00"}),
        };
        sent.push((order, value.to_string()));
    }
    sent
}

/// The log of the commands topic: values in order per partition.
fn log(harness: &Harness) -> Vec<Vec<u8>> {
    let consumer: BaseConsumer = client::base(&harness.settings.kafka)
        .set("group.id", "unused")
        .set("enable.auto.commit", "false")
        .create()
        .expect("a consumer");
    let wait = Duration::from_secs(10);
    let topic = harness.names().commands();
    let mut values = Vec::new();
    for partition in 0..PARTITIONS {
        let (low, high) = consumer.fetch_watermarks(&topic, partition, wait).expect("watermarks");
        let mut list = rdkafka::TopicPartitionList::new();
        list.add_partition_offset(&topic, partition, rdkafka::Offset::Offset(low)).expect("an offset");
        consumer.assign(&list).expect("assign");
        let mut next = low;
        while next < high {
            let message = consumer.poll(wait).expect("a record in time").expect("a record");
            next = message.offset() + 1;
            values.push(message.payload().unwrap_or_default().to_vec());
        }
    }
    values
}

/// What the log has to come to, by the pure domain alone: events by stream, ids decided.
fn replay(log: &[Vec<u8>]) -> (BTreeMap<Uuid, Vec<OrderEvent>>, HashSet<Uuid>) {
    let mut states: HashMap<Uuid, Order> = HashMap::new();
    let mut streams: BTreeMap<Uuid, Vec<OrderEvent>> = BTreeMap::new();
    let mut ids = HashSet::new();
    for value in log {
        let command = OrdersContext::parse_command(value, Uuid::nil()).expect("a valid command");
        if !ids.insert(command.meta.command_id) {
            continue;
        }
        let state = states.entry(command.meta.stream_id).or_default();
        for event in state.decide(&command.payload).unwrap_or_default() {
            state.evolve(&event);
            streams.entry(command.meta.stream_id).or_default().push(event);
        }
    }
    (streams, ids)
}

async fn decided(client: &tokio_postgres::Client) -> i64 {
    client.query_one("select count(*) from throughline.commands", &[]).await.expect("commands").get(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn kills_zombies_and_restarts_lose_and_double_nothing() {
    let mut harness = Harness::bare("chaos").await;
    harness.settings.topics.event_partitions = PARTITIONS;
    harness.settings.topics.command_partitions = PARTITIONS;
    harness.install().await;
    let seed: u64 = std::env::var("CHAOS_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random);
    eprintln!("chaos: CHAOS_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let commands = commands(&mut random);
    let start = || Process::run(&harness, &["processor"]);
    let mut processors: Vec<Process> = std::iter::repeat_with(start).take(PROCESSORS).collect();

    let feeding = tokio::spawn(feed(harness.settings.kafka.clone(), harness.names().commands(), commands));
    let (mut kills, mut zombies, mut restarts) = (0, 0, 0);
    let started = Instant::now();
    let mut tick = tokio::time::interval(Duration::from_secs(2));
    tick.tick().await;
    while started.elapsed() < SPAN {
        tick.tick().await;
        let victim = random.random_range(0..processors.len());
        match random.random_range(0..4_u8) {
            0 => {
                // Past the session timeout: its partitions are given away while it sleeps.
                processors[victim].pause();
                tokio::time::sleep(Duration::from_millis(u64::from(harness.settings.kafka.session_timeout_ms) * 2))
                    .await;
                processors[victim].wake();
                zombies += 1;
            }
            1 => {
                let stopped = std::mem::replace(&mut processors[victim], start());
                // Before it listens for signals, one ends it as any program.
                stopped.admin_url().await;
                assert_eq!(stopped.terminate().await, 0, "a rolling restart ends cleanly");
                restarts += 1;
            }
            _ => {
                let killed = std::mem::replace(&mut processors[victim], start());
                killed.kill().await;
                kills += 1;
            }
        }
    }
    feeding.await.expect("the feed ends");
    eprintln!("chaos: {kills} kills, {zombies} zombies, {restarts} restarts in {:?}", started.elapsed());

    let (streams, ids) = replay(&log(&harness));
    let client = harness.client().await;
    eventually("every command id decided", || async { (decided(&client).await >= ids.len() as i64).then_some(()) })
        .await;
    check(&harness, &client, &streams, &ids).await;
    for processor in processors {
        assert_eq!(processor.terminate().await, 0);
    }
    // Nothing moves any more once the last processor ended.
    check(&harness, &client, &streams, &ids).await;
}

/// Spreads the commands over the span, so that there is load whenever something dies.
async fn feed(settings: throughline::settings::KafkaSettings, topic: String, commands: Vec<(Uuid, String)>) {
    let producer: FutureProducer = client::producer(&settings, 2).create().expect("a producer");
    let chunk = commands.len() / (SPAN.as_millis() as usize / 100);
    let mut tick = tokio::time::interval(Duration::from_millis(100));
    for part in commands.chunks(chunk.max(1)) {
        tick.tick().await;
        let mut deliveries = Vec::with_capacity(part.len());
        for (order, value) in part {
            let key = order.to_string();
            let record = FutureRecord::to(&topic).key(&key).payload(value);
            deliveries.push(producer.send_result(record).map_err(|(error, _)| error).expect("queued"));
        }
        for delivery in deliveries {
            delivery.await.expect("a report").map_err(|(error, _)| error).expect("acknowledged");
        }
    }
}

async fn check(
    harness: &Harness,
    client: &tokio_postgres::Client,
    streams: &BTreeMap<Uuid, Vec<OrderEvent>>,
    ids: &HashSet<Uuid>,
) {
    let rows = client.query("select command_id from throughline.commands", &[]).await.expect("commands");
    let outcomes: Vec<Uuid> = rows.iter().map(|row| row.get(0)).collect();
    assert_eq!(outcomes.len(), ids.len(), "exactly one outcome an id");
    assert_eq!(outcomes.into_iter().collect::<HashSet<_>>(), *ids);

    let codec = OrdersCodec::installed(&harness.settings).await.expect("a codec");
    let rows = client
        .query("select stream_id, version, payload from throughline.events order by stream_id, version", &[])
        .await
        .expect("events");
    let mut found: BTreeMap<Uuid, Vec<OrderEvent>> = BTreeMap::new();
    for row in &rows {
        let stream = found.entry(row.get(0)).or_default();
        stream.push(codec.decode(row.get(2)).expect("the payload decodes"));
        assert_eq!(row.get::<_, i64>(1), stream.len() as i64, "versions are 1..n");
    }
    assert_eq!(found.len(), streams.len());
    for (stream, events) in streams {
        assert_eq!(found.get(stream), Some(events), "stream {stream} differs from the replay of the log");
    }
    let holes: i64 = client
        .query_one(
            "select count(*) from (select partition, max(seq) as last, count(*) as n from throughline.events
                                   group by partition) p where last <> n",
            &[],
        )
        .await
        .expect("events")
        .get(0);
    assert_eq!(holes, 0, "seq is dense");
}
