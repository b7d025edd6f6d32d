//! The events topic is deleted and made again beneath a running pipeline: the alarm tells a cure, the cure
//! brings all history back, byte for byte, and everybody goes on without being restarted.

use std::time::Duration;

use rdkafka::producer::{FutureProducer, FutureRecord};
use throughline::kafka::client;
use uuid::Uuid;

use crate::harness::{Harness, eventually};
use crate::one_order::{events_on_topic, place_order};
use crate::process::{Process, command, ended};

async fn place_orders(harness: &Harness, numbers: std::ops::Range<u128>) {
    let producer: FutureProducer = client::producer(&harness.settings.kafka, 2).create().expect("a producer");
    let topic = harness.names().commands();
    for number in numbers {
        let order = Uuid::from_u128(number);
        let value = place_order(order, Uuid::from_u128(1 << 64 | number)).to_string();
        let key = order.to_string();
        let record = FutureRecord::to(&topic).key(&key).payload(&value);
        producer.send(record, Duration::from_secs(20)).await.expect("acknowledged");
    }
}

async fn number(client: &tokio_postgres::Client, sql: &str) -> i64 {
    client.query_one(sql, &[]).await.expect(sql).get(0)
}

async fn until_equal(harness: &Harness, what: &str, sql: &str, expected: i64) {
    let client = harness.client().await;
    eventually(what, || async { (number(&client, sql).await == expected).then_some(()) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cure_that_is_told_brings_all_history_back() {
    let harness = Harness::new("topic_anew").await;
    let events = harness.names().events();
    let mut pipeline = command(&harness, &["run", "processor", "relay", "projection:order-list"]);
    pipeline.env("THROUGHLINE__RELAY__HALT_RETRY_MS", "300").env("THROUGHLINE__KAFKA__HALT_RETRY_MS", "1000");
    let pipeline = Process::start(pipeline);
    place_orders(&harness, 1..101).await;
    let listed = "select count(*) from read.order_list";
    until_equal(&harness, "100 orders listed", listed, 100).await;
    let mut original = events_on_topic(&harness);
    assert_eq!(original.len(), 100);

    harness.make_topic_anew(&events).await;
    place_orders(&harness, 101..131).await;
    let client = harness.client().await;
    let stands = "select halted from throughline.relay_leases where halted like '%republish%' limit 1";
    let alarm: String =
        eventually("an alarm", || async { client.query_opt(stands, &[]).await.expect("alarms").map(|row| row.get(0)) })
            .await;
    assert!(alarm.contains("`throughline events republish --to-topic"), "{alarm}");

    // A record may have been put where others belong: then the topic is not filled, and the cure is told again.
    let republish = || command(&harness, &["events", "republish", "--to-topic", &events, "--yes"]);
    let told = ended(&mut republish()).await;
    if told.code != 0 {
        assert!(told.stderr.contains("delete") && told.stderr.contains("run this again"), "{}", told.stderr);
    }
    harness.delete_topic(&events).await;
    let cured = ended(&mut republish()).await;
    assert_eq!(cured.code, 0, "{}", cured.stderr);

    until_equal(&harness, "130 orders listed", listed, 130).await;
    place_orders(&harness, 131..151).await;
    until_equal(&harness, "150 orders listed", listed, 150).await;
    until_equal(&harness, "no alarm", "select count(*) from throughline.relay_leases where halted is not null", 0)
        .await;
    assert_eq!(pipeline.terminate().await, 0);

    let place = |record: &(i32, Vec<(String, String)>, String, Vec<u8>)| {
        let seq = record.1.iter().find(|(name, _)| name == "seq").and_then(|(_, seq)| seq.parse::<i64>().ok());
        (record.0, seq.expect("a sequence number"))
    };
    let mut now = events_on_topic(&harness);
    for partition in 0..harness.settings.topics.event_partitions {
        let mut last = 0;
        for (_, seq) in now.iter().map(place).filter(|(at, _)| *at == partition) {
            assert!(seq <= last + 1, "partition {partition}: a reader meets seq {seq} after {last}");
            last = last.max(seq);
        }
    }
    original.sort_by_key(place);
    now.sort_by_key(place);
    now.dedup_by_key(|record| place(record));
    assert_eq!(now.len(), 150);
    now.retain(|record| original.iter().any(|old| place(old) == place(record)));
    assert_eq!(now, original, "place, headers, key and value");
    // Nothing is left to do.
    let again = ended(&mut republish()).await;
    assert_eq!(again.code, 0, "{}", again.stderr);
    assert!(again.stderr.contains("nothing to send"), "{}", again.stderr);
}
