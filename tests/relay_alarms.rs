//! What stops a partition of the relay, loudly, while the others go on.

mod harness;
mod outbox;

use std::time::Duration;

use harness::{Harness, eventually};
use outbox::{published, start, stop};
use tokio_postgres::Client;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_oversized_record_stops_its_partition_and_no_other() {
    let mut harness = Harness::new("relay_oversized").await;
    harness.settings.topics.event_bytes_max = 2_000_000;
    let mut client = harness.client().await;
    let events = outbox::events(&client, &harness.names().events()).await;
    harness.set_topic_option(&events.name, "max.message.bytes", "1048588").await;
    let (running, token, _) = start(&harness.settings);
    // Partitions 0, 4 and 5: more than our own bound. Partition 1: more than the topic's (1 MiB), which
    // cannot be compressed away. All between good records.
    for partition in [0, 4, 5] {
        outbox::append(&mut client, events.id, partition, 5).await;
        outbox::append_of(&mut client, events.id, partition, 1, 2_000_001).await;
        outbox::append(&mut client, events.id, partition, 5).await;
    }
    outbox::append(&mut client, events.id, 1, 5).await;
    append_incompressible(&mut client, events.id, 1, 1_500_000).await;
    outbox::append(&mut client, events.id, 1, 5).await;
    // Partition 3: the very first record of its producer, of whom the broker knows nothing that could
    // tell it that the batches behind leave something out.
    append_incompressible(&mut client, events.id, 3, 1_500_000).await;
    outbox::append(&mut client, events.id, 3, 1_000).await;
    for _ in 0..5 {
        outbox::append(&mut client, events.id, 2, 20).await;
    }
    // What stands before a record that stops its partition goes out although others take the producer
    // with them meanwhile; it does not wait for the next look at a stopped partition, 30 s later.
    let before = [(0, 5), (1, 5), (2, 100), (4, 5), (5, 5)];
    tokio::time::timeout(Duration::from_secs(25), published(&client, &events, &before)).await.expect("at once");
    let alarms = || async {
        let rows = client
            .query("select partition, halted from throughline.relay_leases where halted is not null order by 1", &[])
            .await
            .unwrap();
        rows.iter().map(|row| (row.get::<_, i32>(0), row.get::<_, String>(1))).collect::<Vec<_>>()
    };
    let alarms = eventually("each of them raises an alarm", || async {
        Some(alarms().await).filter(|alarms| alarms.len() == 5)
    })
    .await;
    assert!(alarms[0].0 == 0 && alarms[0].1.contains("topics.event_bytes_max"), "{alarms:?}");
    assert!(alarms[1].0 == 1 && alarms[1].1.contains("max.message.bytes"), "{alarms:?}");
    assert!(alarms[2].0 == 3 && alarms[2].1.contains("max.message.bytes"), "{alarms:?}");
    outbox::append(&mut client, events.id, 2, 20).await;
    published(&client, &events, &[(2, 120)]).await;
    stop(running, token).await;
    for (partition, last) in [(0, 5), (1, 5), (2, 120), (3, 0), (4, 5), (5, 5)] {
        let records = outbox::read_partition(&harness.settings, &events.name, partition);
        assert_eq!(outbox::seqs(&records), (1..=last).collect::<Vec<i64>>(), "partition {partition}");
    }
}

/// Appends one row that no compression makes smaller.
async fn append_incompressible(client: &mut Client, topic: i16, partition: i32, bytes: i32) {
    let transaction = client.transaction().await.unwrap();
    let seq = outbox::take(&transaction, topic, partition, 1).await;
    transaction
        .execute(
            "insert into throughline.outbox (partition, topic, seq, key, type, message_id, subject, command_id,
                 correlation_id, created_at, value)
             select $1, $2, $3, gen_random_uuid(), 'throughline.orders.Large', gen_random_uuid(), gen_random_uuid(),
                    gen_random_uuid(), '', now(), string_agg(decode(md5(random()::text) || md5(random()::text), 'hex'), '')
             from generate_series(1, $4 / 32)",
            &[&partition, &topic, &seq, &bytes],
        )
        .await
        .unwrap();
    transaction.commit().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_is_missing_stops_its_partition_until_it_is_back() {
    let harness = Harness::new("relay_missing").await;
    let mut client = harness.client().await;
    let events = outbox::events(&client, &harness.names().events()).await;
    outbox::append(&mut client, events.id, 0, 10).await;
    outbox::append(&mut client, events.id, 1, 10).await;
    client
        .batch_execute(
            "create table kept as select * from throughline.outbox where partition = 0 and seq = 6;
                        delete from throughline.outbox where partition = 0 and seq = 6",
        )
        .await
        .unwrap();
    let (running, token, _) = start(&harness.settings);
    published(&client, &events, &[(0, 5), (1, 10)]).await;
    let alarm = eventually("an alarm", || async {
        let halted = "select halted from throughline.relay_leases where topic = $1 and partition = 0";
        client.query_one(halted, &[&events.id]).await.unwrap().get::<_, Option<String>>(0)
    })
    .await;
    assert!(alarm.contains("holds seq 7 where 6 is next"), "{alarm}");
    stop(running, token).await;
    assert_eq!(outbox::seqs(&outbox::read_partition(&harness.settings, &events.name, 0)), [1, 2, 3, 4, 5]);
    client.batch_execute("insert into throughline.outbox select * from kept").await.unwrap();
    let (running, token, _) = start(&harness.settings);
    published(&client, &events, &[(0, 10)]).await;
    stop(running, token).await;
    let records = outbox::read_partition(&harness.settings, &events.name, 0);
    assert_eq!(outbox::seqs(&records), (1..=10).collect::<Vec<i64>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_lost_records_stops_its_partition_with_the_next_step() {
    let mut harness = Harness::new("relay_lost").await;
    let mut client = harness.client().await;
    let events = outbox::events(&client, &harness.names().events()).await;
    // Published, says the store; Kafka has never seen it.
    outbox::append(&mut client, events.id, 0, 5).await;
    client
        .execute("update throughline.relay_leases set published = 3 where topic = $1 and partition = 0", &[&events.id])
        .await
        .unwrap();
    let (running, token, _) = start(&harness.settings);
    outbox::append(&mut client, events.id, 1, 5).await;
    published(&client, &events, &[(1, 5)]).await;
    let alarm = eventually("an alarm", || async {
        let row = client
            .query_one("select halted from throughline.relay_leases where topic = $1 and partition = 0", &[&events.id])
            .await
            .unwrap();
        row.get::<_, Option<String>>(0)
    })
    .await;
    assert!(alarm.contains("created anew") && alarm.contains("events republish"), "{alarm}");
    assert!(outbox::read_partition(&harness.settings, &events.name, 0).is_empty());
    stop(running, token).await;
    // An operator who accepts the loss says so.
    harness.settings.relay.accept_lost_records_of = format!("other,{}", events.name);
    let (running, token, _) = start(&harness.settings);
    published(&client, &events, &[(0, 5)]).await;
    stop(running, token).await;
    assert_eq!(outbox::seqs(&outbox::read_partition(&harness.settings, &events.name, 0)), [4, 5]);
}
