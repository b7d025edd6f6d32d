//! The relay against a broker that fails on purpose (librdkafka's mock cluster): retriable errors,
//! fatal ones, refused batches, an absence. Order never breaks and nothing is skipped.

mod harness;
mod outbox;

use std::sync::Arc;
use std::time::Duration;

use harness::{Harness, eventually};
use rdkafka::mocking::MockCluster;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use throughline::health::Health;
use throughline::relay;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failing_broker_causes_no_hole_and_no_inversion() {
    let mut harness = Harness::new("relay_faults").await;
    let mut client = harness.client().await;
    let events = outbox::events(&client, &harness.names().events()).await;
    let cluster = MockCluster::new(1).expect("a mock cluster");
    for topic in [harness.names().events(), harness.names().results()] {
        cluster.create_topic(&topic, events.partitions, 1).expect("a topic");
    }
    harness.settings.kafka.brokers = cluster.bootstrap_servers();
    let stop = CancellationToken::new();
    let health = Health::new(Duration::MAX);
    let running =
        tokio::spawn(relay::run(Arc::new(harness.settings.clone()), Arc::new(Notify::new()), health, stop.clone()));

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
    stop.cancel();
    running.await.expect("no panic").expect("a clean end");
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
