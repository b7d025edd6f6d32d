//! History goes to another topic although the run dies three times: the copy equals the topic that
//! the relay wrote, headers and all.

use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use throughline::kafka::client;
use uuid::Uuid;

use crate::harness::{Harness, PATIENCE, eventually};
use crate::one_order::{events_on_topic, place_order, records_on};
use crate::process::{Process, command, ended};

const ORDERS: u128 = 3_000;
const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

/// Every third command carries the optional headers.
async fn place_orders(harness: &Harness) {
    let producer: FutureProducer = client::producer(&harness.settings.kafka, 2).create().expect("a producer");
    let topic = harness.names().commands();
    let mut deliveries = Vec::new();
    for number in 1..=ORDERS {
        let order = Uuid::from_u128(number);
        let value = place_order(order, Uuid::from_u128(1 << 64 | number)).to_string();
        let key = order.to_string();
        let mut headers = OwnedHeaders::new();
        if number % 3 == 0 {
            for (key, value) in [("traceparent", TRACE), ("reply-to", "answers"), ("causation-id", "a cause")] {
                headers = headers.insert(Header { key, value: Some(value) });
            }
        }
        let record = FutureRecord::to(&topic).key(&key).payload(&value).headers(headers);
        deliveries.push(producer.send_result(record).map_err(|(error, _)| error).expect("queued"));
    }
    for delivery in deliveries {
        delivery.await.expect("a report").map_err(|(error, _)| error).expect("acknowledged");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_three_times_it_still_repeats_the_topic_exactly() {
    let harness = Harness::new("republish").await;
    let pipeline = Process::run(&harness, &["processor", "relay"]);
    place_orders(&harness).await;
    eventually("every event published", || async {
        (events_on_topic(&harness).len() == ORDERS as usize).then_some(())
    })
    .await;
    assert_eq!(pipeline.terminate().await, 0);

    let target = format!("{}copy", harness.settings.topics.prefix);
    let republish = || command(&harness, &["events", "republish", "--to-topic", &target, "--yes"]);
    for nth in [500, 1, 900] {
        let mut killed = republish();
        killed.env("THROUGHLINE_CRASH_AT", format!("republish.after_hand_over:{nth}"));
        let status = tokio::time::timeout(PATIENCE, killed.status()).await.expect("it ends").expect("it starts");
        assert_eq!(status.code(), None, "it died of a signal");
    }
    let finished = ended(&mut republish()).await;
    assert_eq!(finished.code, 0, "{}", finished.stderr);

    let place = |record: &(i32, Vec<(String, String)>, String, Vec<u8>)| {
        let seq = record.1.iter().find(|(name, _)| name == "seq").and_then(|(_, seq)| seq.parse::<i64>().ok());
        (record.0, seq.expect("a sequence number"))
    };
    let (mut published, mut copied) = (events_on_topic(&harness), records_on(&harness, &target));
    published.sort_by_key(place);
    copied.sort_by_key(place);
    assert_eq!(copied.len(), published.len());
    for (copy, original) in copied.iter().zip(&published) {
        assert_eq!(copy, original, "place, headers, key and value");
    }
    let traced = copied.iter().filter(|(_, headers, ..)| headers.iter().any(|(_, value)| value == TRACE)).count();
    assert_eq!(traced, ORDERS as usize / 3);
}
