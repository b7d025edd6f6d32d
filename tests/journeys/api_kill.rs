//! The API dies by SIGKILL: what it answered 202 for is decided; what it did not answer for may be
//! sent again under the same key, and happens once.

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use serde_json::{Value, json};
use throughline::kafka::client;
use uuid::Uuid;

use crate::harness::{Harness, eventually};
use crate::process::Process;

const ROUNDS: usize = 5;

fn request(http: &reqwest::Client, url: &str, key: &str) -> reqwest::RequestBuilder {
    http.post(format!("{url}/api/orders")).header("Idempotency-Key", format!("\"{key}\"")).json(&json!({
        "customerId": "customer-42", "currency": "USD",
        "items": [{"productId": Uuid::from_u128(7), "quantity": 2, "unitPrice": "19.99"}]
    }))
}

async fn ready(http: &reqwest::Client, url: &str, key: &str) -> Value {
    eventually("a 202", || async {
        let answer = request(http, url, key).send().await.ok()?;
        if answer.status() == 202 { answer.json().await.ok() } else { None }
    })
    .await
}

/// Records on the commands topic.
pub fn produced(harness: &Harness) -> i64 {
    let consumer: BaseConsumer = client::base(&harness.settings.kafka).create().expect("a client");
    let wait = std::time::Duration::from_secs(10);
    (0..harness.settings.topics.command_partitions)
        .map(|partition| consumer.fetch_watermarks(&harness.names().commands(), partition, wait).expect("watermarks").1)
        .sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_api_loses_nothing_that_it_answered_for_and_a_retry_happens_once() {
    let harness = Harness::new("api_kill").await;
    let client = harness.client().await;
    let processor = Process::run(&harness, &["processor"]);
    let http = reqwest::Client::new();
    let mut keys = 0_i64;
    for round in 0..ROUNDS {
        // Killed right after a 202.
        let api = Process::run(&harness, &["api"]);
        let url = api.http_url().await;
        let answered = ready(&http, &url, &format!("answered-{round}")).await;
        keys += 1;
        // Killed with a request on its way: whether it reached Kafka is unknown to the caller.
        let unknown = format!("unknown-{round}");
        let sending = tokio::spawn(request(&http, &url, &unknown).send());
        tokio::time::sleep(std::time::Duration::from_millis(round as u64)).await;
        api.kill().await;
        drop(sending.await);

        let command: Uuid = answered["commandId"].as_str().and_then(|id| id.parse().ok()).expect("a command id");
        eventually("the answered command is decided", || async {
            let statement = "select accepted from throughline.commands where command_id = $1";
            let row = client.query_opt(statement, &[&command]).await.expect("commands");
            row.map(|row| assert!(row.get::<_, bool>(0)))
        })
        .await;

        let api = Process::run(&harness, &["api"]);
        let url = api.http_url().await;
        let first = ready(&http, &url, &unknown).await;
        let again = ready(&http, &url, &unknown).await;
        assert_eq!(first["commandId"], again["commandId"]);
        keys += 1;
        api.kill().await;
    }
    let counted = || async {
        let statement = "select (select count(*) from throughline.commands), (select count(*) from throughline.events)";
        let row = client.query_one(statement, &[]).await.expect("the store");
        (row.get::<_, i64>(0), row.get::<_, i64>(1))
    };
    eventually("every key decided", || async { (counted().await.0 == keys).then_some(()) }).await;
    let produced = produced(&harness);
    eventually("the whole topic consumed", || async {
        let statement = "select coalesce(sum(next_offset), 0)::bigint from throughline.offsets where source_topic = $1";
        let row = client.query_one(statement, &[&harness.names().commands()]).await.expect("offsets");
        (row.get::<_, i64>(0) == produced).then_some(())
    })
    .await;
    assert_eq!(processor.terminate().await, 0);
    assert_eq!(counted().await, (keys, keys), "one outcome and one event a key");
}
