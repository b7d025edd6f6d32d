//! What stops a partition of the relay, loudly, while the others go on.

mod harness;
mod outbox;

use std::time::Duration;

use harness::{Harness, eventually};
use metrics_exporter_prometheus::PrometheusBuilder;
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

/// Why the events partition stopped, as an operator sees it; none while it does not.
async fn halted(client: &Client, topic: i16, partition: i32) -> Option<String> {
    let query = "select halted from throughline.relay_leases where topic = $1 and partition = $2";
    client.query_one(query, &[&topic, &partition]).await.unwrap().get(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_is_missing_stops_its_partition_until_it_is_back() {
    let mut harness = Harness::new("relay_missing").await;
    harness.settings.relay.halt_retry_ms = 200;
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
    let alarm = eventually("an alarm", || halted(&client, events.id, 0)).await;
    assert!(alarm.contains("holds seq 7 where 6 is next"), "{alarm}");
    // Each look finds the same: the alarm stands.
    for _ in 0..100 {
        assert_eq!(halted(&client, events.id, 0).await.as_ref(), Some(&alarm));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(outbox::seqs(&outbox::read_partition(&harness.settings, &events.name, 0)), [1, 2, 3, 4, 5]);
    client.batch_execute("insert into throughline.outbox select * from kept").await.unwrap();
    published(&client, &events, &[(0, 10)]).await;
    eventually("the alarm is over", || async { halted(&client, events.id, 0).await.is_none().then_some(()) }).await;
    stop(running, token).await;
    let records = outbox::read_partition(&harness.settings, &events.name, 0);
    assert_eq!(outbox::seqs(&records), (1..=10).collect::<Vec<i64>>());
}

/// By hand, beneath a relay that runs and keeps its lease.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watermark_that_was_moved_by_hand_is_told_and_heard() {
    let mut harness = Harness::new("relay_moved").await;
    harness.settings.relay.halt_retry_ms = 200;
    let mut client = harness.client().await;
    let events = outbox::events(&client, &harness.names().events()).await;
    let (running, token, _) = start(&harness.settings);
    outbox::append(&mut client, events.id, 0, 10).await;
    published(&client, &events, &[(0, 10)]).await;
    let move_to = async |published: i64| {
        let update = "update throughline.relay_leases set published = $2 where topic = $1 and partition = 0";
        assert_eq!(client.execute(update, &[&events.id, &published]).await.unwrap(), 1);
    };
    move_to(15).await;
    let mut writer = harness.client().await;
    outbox::append(&mut writer, events.id, 0, 3).await;
    let alarm = eventually("an alarm", || halted(&client, events.id, 0)).await;
    assert!(alarm.contains("although 15 were published") && alarm.contains("moved by hand"), "{alarm}");
    move_to(10).await;
    published(&client, &events, &[(0, 13)]).await;
    // Backward: Kafka's tail tells better.
    move_to(5).await;
    outbox::append(&mut writer, events.id, 0, 3).await;
    published(&client, &events, &[(0, 16)]).await;
    eventually("no alarm is left", || async { halted(&client, events.id, 0).await.is_none().then_some(()) }).await;
    stop(running, token).await;
    let records = outbox::read_partition(&harness.settings, &events.name, 0);
    assert_eq!(outbox::seqs(&records), (1..=16).collect::<Vec<i64>>());
}

/// A new topic takes any record of a producer that it does not know: only where it puts it tells.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_made_anew_beneath_a_running_relay_is_not_filled_from_the_middle() {
    let mut harness = Harness::new("relay_anew").await;
    harness.settings.relay.halt_retry_ms = 200;
    let mut client = harness.client().await;
    let events = outbox::events(&client, &harness.names().events()).await;
    let (running, token, _) = start(&harness.settings);
    outbox::append(&mut client, events.id, 0, 100).await;
    published(&client, &events, &[(0, 100)]).await;
    harness.make_topic_anew(&events.name).await;
    outbox::append(&mut client, events.id, 0, 1).await;
    let alarm = eventually("an alarm", || halted(&client, events.id, 0)).await;
    assert!(alarm.contains("created anew") || alarm.contains("missing from the topic"), "{alarm}");
    outbox::append(&mut client, events.id, 0, 100).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(outbox::watermark(&client, events.id, 0).await, 100);
    stop(running, token).await;
    let kept = outbox::read_partition(&harness.settings, &events.name, 0).len();
    assert!(kept <= 1, "{kept} records were put where others belong");
    // Accepted, it goes on, and holds the new records against the new topic.
    harness.settings.relay.accept_lost_records_of = events.name.clone();
    let (running, token, _) = start(&harness.settings);
    published(&client, &events, &[(0, 201)]).await;
    stop(running, token).await;
    let seqs = outbox::seqs(&outbox::read_partition(&harness.settings, &events.name, 0));
    assert_eq!(seqs, (101..=201).collect::<Vec<i64>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_is_not_there_holds_up_no_other() {
    let harness = Harness::new("relay_absent").await;
    let mut client = harness.client().await;
    let events = outbox::events(&client, &harness.names().events()).await;
    harness.delete_topic(&harness.names().results()).await;
    for partition in 0..events.partitions {
        outbox::append(&mut client, events.id, partition, 10).await;
    }
    let (running, token, _) = start(&harness.settings);
    let all: Vec<_> = (0..events.partitions).map(|partition| (partition, 10)).collect();
    tokio::time::timeout(Duration::from_secs(15), published(&client, &events, &all)).await.expect("at once");
    eventually("each partition of the other is told", || async {
        let query = "select count(*) from throughline.relay_leases where topic <> $1 and halted is not null";
        let told: i64 = client.query_one(query, &[&events.id]).await.unwrap().get(0);
        (told == i64::from(events.partitions)).then_some(())
    })
    .await;
    stop(running, token).await;
}

/// What a relay no longer owns is another's to measure; its last word must not stand for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gauges_of_a_partition_end_with_its_lease() {
    let metrics = PrometheusBuilder::new().install_recorder().expect("the only recorder");
    let harness = Harness::new("relay_gauges").await;
    let mut client = harness.client().await;
    let events = outbox::events(&client, &harness.names().events()).await;
    outbox::append(&mut client, events.id, 0, 1).await;
    client.batch_execute("delete from throughline.outbox").await.unwrap();
    outbox::append(&mut client, events.id, 0, 5).await;
    let gauge = |name: &str| {
        let line = format!("{name}{{topic=\"{}\",partition=\"0\"}} ", events.name);
        let text = metrics.render();
        text.lines().find_map(|found| found.strip_prefix(&line)).map(|value| value.parse::<f64>().unwrap())
    };
    let (running, token, _) = start(&harness.settings);
    eventually("the gauges tell", || async {
        (gauge("throughline_outbox_depth") == Some(6.0) && gauge("throughline_relay_halted") == Some(1.0)).then_some(())
    })
    .await;
    client
        .batch_execute(
            "update throughline.relay_leases
             set owner = 'another', epoch = epoch + 1, renewed_at = now(), expires_at = now() + interval '1 hour'",
        )
        .await
        .unwrap();
    for name in ["throughline_outbox_depth", "throughline_outbox_oldest_age_seconds", "throughline_relay_halted"] {
        eventually(name, || async { (gauge(name) == Some(0.0)).then_some(()) }).await;
    }
    stop(running, token).await;
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
