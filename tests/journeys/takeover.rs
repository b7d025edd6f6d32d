//! Two processors share the partitions; one is killed; nothing is lost or doubled.

use std::collections::HashSet;
use std::time::Duration;

use rdkafka::producer::{FutureProducer, FutureRecord};
use throughline::kafka::client;
use uuid::Uuid;

use crate::harness::{Harness, eventually};
use crate::one_order::{events_on_topic, place_order};
use crate::process::Process;

const ORDERS: u128 = 3_000;

async fn owners(client: &tokio_postgres::Client, topic: &str) -> HashSet<String> {
    let rows = client
        .query("select distinct owner from throughline.offsets where source_topic = $1 and owner <> ''", &[&topic])
        .await
        .expect("offsets");
    rows.iter().map(|row| row.get(0)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_processor_is_taken_over_without_loss_or_double() {
    let harness = Harness::new("takeover").await;
    let client = harness.client().await;
    let topic = harness.names().commands();
    let first = Process::run(&harness, &["processor"]);
    let second = Process::run(&harness, &["processor"]);
    let relay = Process::run(&harness, &["relay"]);
    eventually("both processors own partitions", || async { (owners(&client, &topic).await.len() == 2).then_some(()) })
        .await;

    let producer: FutureProducer = client::producer(&harness.settings.kafka, 2).create().expect("a producer");
    let mut second = Some(second);
    for number in 1..=ORDERS {
        let order = Uuid::from_u128(number);
        let value = place_order(order, Uuid::from_u128(1 << 64 | number)).to_string();
        let key = order.to_string();
        producer
            .send(FutureRecord::to(&topic).key(&key).payload(&value), Duration::from_secs(30))
            .await
            .expect("acknowledged");
        // Every tenth command is sent twice.
        if number % 10 == 0 {
            producer
                .send(FutureRecord::to(&topic).key(&key).payload(&value), Duration::from_secs(30))
                .await
                .expect("acknowledged");
        }
        if number == ORDERS / 2
            && let Some(second) = second.take()
        {
            second.kill().await;
        }
    }

    eventually("every order decided", || async {
        let row = client.query_one("select count(*) from throughline.commands", &[]).await.expect("commands");
        (row.get::<_, i64>(0) >= ORDERS as i64).then_some(())
    })
    .await;
    assert_eq!(first.terminate().await, 0);
    // A young table has no statistics: a plan that walks a partition for every stream would show here.
    let walked: i64 = client
        .query_one(
            "select sum(idx_tup_read)::bigint from pg_stat_user_indexes where indexrelname ~ '^events_[0-9]+_pkey'",
            &[],
        )
        .await
        .expect("statistics")
        .get(0);
    assert_eq!(walked, 0, "events are loaded by stream, never by walking the partition");
    let row = client
        .query_one(
            "select count(*), count(distinct stream_id), count(*) filter (where version <> 1) from throughline.events",
            &[],
        )
        .await
        .expect("events");
    assert_eq!((row.get(0), row.get(1), row.get(2)), (ORDERS as i64, ORDERS as i64, 0_i64));

    eventually("every event published", || async {
        (events_on_topic(&harness).len() >= ORDERS as usize).then_some(())
    })
    .await;
    let mut next = vec![1_i64; harness.settings.topics.event_partitions as usize];
    for (partition, headers, ..) in events_on_topic(&harness) {
        let seq = headers.iter().find(|(name, _)| name == "seq").and_then(|(_, seq)| seq.parse::<i64>().ok());
        assert_eq!(seq, Some(next[partition as usize]), "partition {partition}");
        next[partition as usize] += 1;
    }
    assert_eq!(relay.terminate().await, 0);
}
