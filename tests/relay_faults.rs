//! The relay against a broker that fails on purpose (librdkafka's mock cluster): retriable errors,
//! fatal ones, refused batches, an absence. Order never breaks and nothing is skipped.

mod harness;
mod outbox;

use std::time::Duration;

use harness::{Harness, eventually};
use metrics_exporter_prometheus::PrometheusBuilder;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use throughline::health::PartitionState;

const RETRIABLE: [RDKafkaRespErr; 3] = [
    RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION,
    RDKafkaRespErr::RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT,
    RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS_AFTER_APPEND,
];
/// End the producer, or the batch.
const FINAL: [RDKafkaRespErr; 4] = [
    RDKafkaRespErr::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER,
    RDKafkaRespErr::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE,
    RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNSUPPORTED_FOR_MESSAGE_FORMAT,
    RDKafkaRespErr::RD_KAFKA_RESP_ERR_INVALID_PRODUCER_EPOCH,
];

/// A relay's settings, with a broker that can be made to fail.
fn failing_broker(harness: &mut Harness, partitions: i32) -> MockCluster<'static, DefaultProducerContext> {
    let cluster = MockCluster::new(1).expect("a mock cluster");
    for topic in [harness.names().events(), harness.names().results()] {
        cluster.create_topic(&topic, partitions, 1).expect("a topic");
    }
    harness.settings.kafka.brokers = cluster.bootstrap_servers();
    cluster
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failing_broker_causes_no_hole_and_no_inversion() {
    let mut harness = Harness::new("relay_faults").await;
    let mut client = harness.client().await;
    let events = outbox::events(&client, &harness.names().events()).await;
    let cluster = failing_broker(&mut harness, events.partitions);
    let (running, token, _) = outbox::start(&harness.settings);

    let mut last = 0;
    let errors = RETRIABLE.iter().chain(&FINAL);
    for error in errors.clone().chain(errors) {
        // Several requests are under way when one of them fails.
        for _ in 0..3 {
            for partition in 0..events.partitions {
                outbox::append_of(&mut client, events.id, partition, 100, 1_000).await;
            }
            last += 100;
        }
        cluster.request_errors(RDKafkaApiKey::Produce, &[*error]);
        for partition in 0..events.partitions {
            outbox::append(&mut client, events.id, partition, 100).await;
        }
        last += 100;
    }
    cluster.broker_down(1).expect("down");
    for partition in 0..events.partitions {
        outbox::append(&mut client, events.id, partition, 100).await;
    }
    last += 100;
    // Away for longer than a lease: it is kept, since PostgreSQL is there.
    tokio::time::sleep(Duration::from_millis(harness.settings.relay.lease_ms * 2)).await;
    cluster.broker_up(1).expect("up");

    for partition in 0..events.partitions {
        eventually("all is published", || async {
            (outbox::watermark(&client, events.id, partition).await == last).then_some(())
        })
        .await;
    }
    outbox::stop(running, token).await;
    let mut repeated = 0;
    for partition in 0..events.partitions {
        let records = outbox::read_partition(&harness.settings, &events.name, partition);
        let seqs = outbox::seqs(&records);
        assert_eq!(seqs, records.iter().map(outbox::names_seq).collect::<Vec<_>>());
        repeated += outbox::repetitions(&seqs, last);
    }
    eprintln!(
        "{} records in {} partitions, {repeated} repeated",
        last * i64::from(events.partitions),
        events.partitions
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_that_grow_all_at_once_wait_outside() {
    const LARGE: i32 = 300_000;
    const ROWS: i64 = 40;
    const ROOM: usize = 4_000_000;
    let metrics = PrometheusBuilder::new().install_recorder().expect("the only recorder");
    let mut harness = Harness::new("relay_growing").await;
    let mut client = harness.client().await;
    let events = outbox::events(&client, &harness.names().events()).await;
    let cluster = failing_broker(&mut harness, events.partitions);
    harness.settings.relay.in_flight_bytes_max = ROOM;
    let (running, token, _) = outbox::start(&harness.settings);
    // Small values, by which the next page is reckoned.
    outbox::append(&mut client, events.id, 0, ROWS).await;
    outbox::published(&client, &events, &[(0, ROWS)]).await;
    cluster.broker_down(1).expect("down");
    outbox::append_of(&mut client, events.id, 0, ROWS, LARGE).await;
    let in_flight = || {
        let text = metrics.render();
        let line = text.lines().find_map(|line| line.strip_prefix("throughline_relay_in_flight_bytes "));
        line.map_or(0.0, |value| value.parse::<f64>().expect("a number"))
    };
    eventually("the partition's share is full", || async { (in_flight() >= 600_000.0).then_some(()) }).await;
    // Longer than a page waits for room: the connection is left and made anew, with fewer rows.
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(in_flight() <= ROOM as f64 / 2.0, "{} bytes on their way, all of one partition", in_flight());
    cluster.broker_up(1).expect("up");
    outbox::published(&client, &events, &[(0, 2 * ROWS)]).await;
    outbox::stop(running, token).await;
    let records = outbox::read_partition(&harness.settings, &events.name, 0);
    assert_eq!(outbox::repetitions(&outbox::seqs(&records), 2 * ROWS), 0);
}

/// The connection is left with what does not fit, right when a partition stops: the alarm is told all
/// the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_alarm_is_written_down_although_the_connection_was_left() {
    let mut harness = Harness::new("relay_unnoted").await;
    let mut client = harness.client().await;
    let events = outbox::events(&client, &harness.names().events()).await;
    let cluster = failing_broker(&mut harness, events.partitions);
    harness.settings.relay.in_flight_bytes_max = 20_000;
    harness.settings.topics.event_bytes_max = 5_000;
    let (running, token, _) = outbox::start(&harness.settings);
    for partition in 0..events.partitions {
        outbox::append(&mut client, events.id, partition, 2).await;
        outbox::published(&client, &events, &[(partition, 2)]).await;
    }
    cluster.broker_down(1).expect("down");
    // In one page: a row that stops its partition, and behind it more than the producer has room for.
    let transaction = client.transaction().await.expect("begin");
    for partition in 0..events.partitions {
        let (rows, bytes) = if partition == 0 { (1, 6_000) } else { (60, 900) };
        let first = outbox::take(&transaction, events.id, partition, rows).await;
        outbox::insert(&transaction, events.id, partition, first, rows, bytes).await;
    }
    transaction.commit().await.expect("commit");
    eventually("the alarm is told", || async {
        let query = "select halted from throughline.relay_leases where topic = $1 and partition = 0";
        client.query_one(query, &[&events.id]).await.expect("a lease").get::<_, Option<String>>(0)
    })
    .await;
    cluster.broker_up(1).expect("up");
    for partition in 1..events.partitions {
        outbox::published(&client, &events, &[(partition, 62)]).await;
    }
    outbox::stop(running, token).await;
}

/// Where PostgreSQL keeps all partitions waiting, they stand after a while, and go on by themselves.
async fn stands_while(name: &str, begin: &str, end: &str, word: &str) {
    let mut harness = Harness::new(name).await;
    harness.settings.relay.silence_ms = 1_000;
    let mut client = harness.client().await;
    let events = outbox::events(&client, &harness.names().events()).await;
    let (running, token, health) = outbox::start_told(&harness.settings);
    let states = |state: PartitionState| {
        let reports = health.partition_reports();
        reports.into_iter().filter(|report| report.state == state).collect::<Vec<_>>()
    };
    eventually("all run", || async { (states(PartitionState::Running).len() == 12).then_some(()) }).await;
    client.batch_execute(begin).await.unwrap();
    let standing = eventually("all stand", || async {
        Some(states(PartitionState::Standing)).filter(|standing| standing.len() == 12)
    })
    .await;
    assert!(
        standing.iter().all(|one| one.reason.as_deref().is_some_and(|reason| reason.contains(word))),
        "{standing:?}"
    );
    client.batch_execute(end).await.unwrap();
    outbox::append(&mut client, events.id, 1, 5).await;
    outbox::published(&client, &events, &[(1, 5)]).await;
    eventually("all run again", || async { (states(PartitionState::Running).len() == 12).then_some(()) }).await;
    outbox::stop(running, token).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_stand_while_the_outbox_may_not_be_read() {
    let revoke = "revoke select on throughline.outbox from throughline_relay";
    stands_while("relay_rights", revoke, "grant select on throughline.outbox to throughline_relay", "permission").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_stand_while_the_outbox_is_not_there() {
    let hide = "alter table throughline.outbox rename to hidden";
    stands_while("relay_hidden", hide, "alter table throughline.hidden rename to outbox", "outbox").await;
}
