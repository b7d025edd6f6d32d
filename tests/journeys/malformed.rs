//! Bad commands: each ends recorded with a reason, and the partition moves on.

use rdkafka::producer::{FutureProducer, FutureRecord};
use serde_json::json;
use std::time::Duration;
use throughline::kafka::client;
use uuid::Uuid;

use crate::harness::{Harness, eventually};
use crate::one_order::place_order;
use crate::process::Process;

#[tokio::test(flavor = "multi_thread")]
async fn every_malformed_command_is_recorded_with_a_reason_and_blocks_nothing() {
    let harness = Harness::new("malformed").await;
    let client = harness.client().await;
    let processor = Process::run(&harness, &["processor"]);
    let order = |number: u128| Uuid::from_u128(number).to_string();
    let good = |number: u128| place_order(Uuid::from_u128(number), Uuid::from_u128(number << 64));
    let with = |number: u128, change: &dyn Fn(&mut serde_json::Value)| {
        let mut command = good(number);
        change(&mut command);
        command.to_string()
    };
    let oversized = "x".repeat(2 * 1024 * 1024);
    let bad: Vec<(&str, Option<String>, Option<String>)> = vec![
        ("not JSON", Some(order(1)), Some("{nonsense".into())),
        ("not UTF-8 JSON object", Some(order(2)), Some("[1,2,3]".into())),
        ("unknown type", Some(order(3)), Some(with(3, &|c| c["type"] = json!("DestroyOrder")))),
        ("missing fields", Some(order(4)), Some(with(4, &|c| drop(c.as_object_mut().unwrap().remove("items"))))),
        ("negative quantity", Some(order(5)), Some(with(5, &|c| c["items"][0]["quantity"] = json!(-2)))),
        ("bad UUID", Some("no-uuid".into()), Some(with(6, &|c| c["orderId"] = json!("no-uuid")))),
        ("null key", None, Some(good(7).to_string())),
        ("2 MiB value", Some(order(8)), Some(oversized)),
        ("tombstone", Some(order(9)), None),
        ("unknown field", Some(order(10)), Some(with(10, &|c| c["surprise"] = json!(true)))),
        ("key of another order", Some(order(99)), Some(good(11).to_string())),
    ];
    let producer: FutureProducer = client::producer(&harness.settings.kafka, 0).create().expect("a producer");
    let topic = harness.names().commands();
    for (what, key, value) in &bad {
        let mut record = FutureRecord::<String, String>::to(&topic).partition(0);
        record.key = key.as_ref();
        record.payload = value.as_ref();
        producer.send(record, Duration::from_secs(30)).await.unwrap_or_else(|(error, _)| panic!("{what}: {error}"));
    }
    // A good one behind them all, on the same partition.
    let last = place_order(Uuid::from_u128(500), Uuid::from_u128(500 << 64)).to_string();
    producer
        .send(FutureRecord::to(&topic).partition(0).key(&order(500)).payload(&last), Duration::from_secs(30))
        .await
        .expect("acknowledged");

    eventually("the good command behind them", || async {
        let outcome = client
            .query_opt(
                "select accepted from throughline.commands where command_id = $1",
                &[&Uuid::from_u128(500 << 64)],
            )
            .await
            .expect("commands");
        outcome.filter(|row| row.get(0))
    })
    .await;
    let refused: i64 = client
        .query_one(
            "select count(*) from throughline.commands
             where not accepted and code = 'INVALID_COMMAND' and length(reason) > 0",
            &[],
        )
        .await
        .expect("commands")
        .get(0);
    assert_eq!(refused, bad.len() as i64, "one refusal a bad record");
    let events: i64 = client.query_one("select count(*) from throughline.events", &[]).await.expect("events").get(0);
    assert_eq!(events, 1, "bad records leave no event");
    // What no order can answer for is kept whole.
    let parked = client
        .query(
            "select reason, coalesce(octet_length(value), 0) from throughline.dead_letters where kind = 'command'",
            &[],
        )
        .await
        .expect("dead letters");
    assert!(!parked.is_empty() && parked.iter().all(|row| !row.get::<_, String>(0).is_empty()));
    assert!(parked.iter().any(|row| row.get::<_, i32>(1) == 2 * 1024 * 1024), "the oversized record is kept");
    assert_eq!(processor.terminate().await, 0);
}
