//! One order, produced with kcat, through roles that run as separate processes.

use rdkafka::Message as _;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::Headers as _;
use reference::orders::OrdersCodec;
use reference::orders::domain::OrderEvent;
use serde_json::{Value, json};
use std::io::Write as _;
use std::process::Stdio;
use throughline::engine::{EventCodec as _, destination_partition};
use throughline::kafka::client;
use uuid::Uuid;

use crate::harness::{Harness, eventually};
use crate::process::{Process, command, ended};

/// Produces one record with kcat: key, `|`, value.
pub fn kcat(harness: &Harness, topic: &str, key: &str, value: &str, headers: &[&str]) {
    let mut kcat = std::process::Command::new("kcat")
        .args(["-b", &harness.settings.kafka.brokers, "-P", "-t", topic, "-K", "|", "-X", "message.max.bytes=8000000"])
        .args(headers.iter().flat_map(|header| ["-H", header]))
        .stdin(Stdio::piped())
        .spawn()
        .expect("kcat is installed (deploy/setup.sh installs it)");
    writeln!(kcat.stdin.take().expect("stdin is piped"), "{key}|{value}").expect("kcat reads");
    assert!(kcat.wait().expect("kcat ends").success());
}

pub fn place_order(order: Uuid, command: Uuid) -> Value {
    json!({"type": "PlaceOrder", "commandId": command, "orderId": order, "customerId": "customer-42", "currency": "USD",
           "items": [{"productId": Uuid::from_u128(7), "quantity": 2, "unitPrice": "19.99"}]})
}

/// A record as a test looks at it: partition, headers, key, value.
pub type Seen = (i32, Vec<(String, String)>, String, Vec<u8>);

/// Every record on the events topic now, in order per partition.
pub fn events_on_topic(harness: &Harness) -> Vec<Seen> {
    records_on(harness, &harness.names().events())
}

/// Every record on a topic with as many partitions as the events topic.
pub fn records_on(harness: &Harness, topic: &str) -> Vec<Seen> {
    let consumer: BaseConsumer = client::base(&harness.settings.kafka)
        .set("group.id", "unused")
        .set("enable.auto.commit", "false")
        .create()
        .expect("a consumer");
    let wait = std::time::Duration::from_secs(10);
    let mut found = Vec::new();
    for partition in 0..harness.settings.topics.event_partitions {
        let (low, high) = consumer.fetch_watermarks(topic, partition, wait).expect("watermarks");
        let mut list = rdkafka::TopicPartitionList::new();
        list.add_partition_offset(topic, partition, rdkafka::Offset::Offset(low)).expect("an offset");
        consumer.assign(&list).expect("assign");
        let mut next = low;
        while next < high {
            let message = consumer.poll(wait).expect("a record in time").expect("a record");
            next = message.offset() + 1;
            let headers = message.headers().map_or_else(Vec::new, |headers| {
                headers
                    .iter()
                    .map(|header| {
                        (header.key.to_owned(), String::from_utf8_lossy(header.value.unwrap_or_default()).into_owned())
                    })
                    .collect()
            });
            let key = String::from_utf8_lossy(message.key().unwrap_or_default()).into_owned();
            found.push((partition, headers, key, message.payload().unwrap_or_default().to_vec()));
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_from_kcat_reaches_the_read_tables_http_and_the_events_topic() {
    let harness = Harness::new("one_order").await;
    let roles = ["processor", "relay", "projections", "api"].map(|role| Process::run(&harness, &[role]));
    let (order, command_id) = (Uuid::now_v7(), Uuid::now_v7());
    kcat(
        &harness,
        &harness.names().commands(),
        &order.to_string(),
        &place_order(order, command_id).to_string(),
        &["correlation-id=journey-1"],
    );

    let client = harness.client().await;
    let row = eventually("the order in read.order_list", || async {
        client
            .query_opt("select customer_id, status, total::text from read.order_list where order_id = $1", &[&order])
            .await
            .expect("read.order_list is there")
    })
    .await;
    assert_eq!((row.get::<_, String>(0), row.get::<_, String>(1)), ("customer-42".into(), "placed".into()));
    assert_eq!(row.get::<_, String>(2).trim_end_matches('0'), "39.98");

    let url = roles[3].http_url().await;
    let http = reqwest::Client::new();
    let body: Value = eventually("the order over HTTP", || async {
        let response = http.get(format!("{url}/api/orders/{order}")).send().await.expect("the API answers");
        if response.status() == 200 { Some(response.json().await.expect("JSON")) } else { None }
    })
    .await;
    assert_eq!(body["status"], "placed");
    assert_eq!(body["total"], "39.98");
    assert_eq!(body["items"][0]["quantity"], 2);

    let status =
        ended(&mut command(&harness, &["command", "status", &command_id.to_string(), "--output", "ndjson"])).await;
    assert_eq!(status.code, 0, "{}", status.stderr);
    let outcome: Value = serde_json::from_str(&status.stdout).expect("JSON");
    assert_eq!(outcome["status"], "accepted");
    assert_eq!(outcome["correlationId"], "journey-1");

    assert_event_record(&harness, order, command_id).await;
    for role in roles {
        assert_eq!(role.terminate().await, 0);
    }
}

async fn assert_event_record(harness: &Harness, order: Uuid, command_id: Uuid) {
    let events = events_on_topic(harness);
    assert_eq!(events.len(), 1);
    let (partition, headers, key, value) = &events[0];
    assert_eq!(*partition, destination_partition(order, harness.settings.topics.event_partitions));
    assert_eq!(*key, order.to_string());
    let header = |name: &str| headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
    for (name, expected) in [
        ("ce_specversion", "1.0"),
        ("ce_type", "throughline.orders.OrderPlaced"),
        ("ce_subject", &order.to_string()),
        ("content-type", "application/avro"),
        ("stream-version", "1"),
        ("seq", "1"),
        ("command-id", &command_id.to_string()),
        ("correlation-id", "journey-1"),
    ] {
        assert_eq!(header(name).as_deref(), Some(expected), "header {name}");
    }
    for name in ["ce_id", "ce_source", "ce_time", "schema-version"] {
        assert!(header(name).is_some_and(|value| !value.is_empty()), "header {name}");
    }
    let codec = OrdersCodec::installed(&harness.settings).await.expect("a codec");
    match codec.decode(value).expect("the value decodes") {
        OrderEvent::OrderPlaced(placed) => assert_eq!(placed.order_id, order),
        other => panic!("not an OrderPlaced: {other:?}"),
    }
}
