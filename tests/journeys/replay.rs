//! Replay by Kafka's own tool: the reset group's table comes back with the same rows.

use tokio_postgres::Client;
use uuid::Uuid;

use crate::harness::{Harness, eventually};
use crate::one_order::{kcat, place_order};
use crate::process::Process;

async fn rows(client: &Client) -> Vec<String> {
    client
        .query("select to_jsonb(o)::text from read.order_list o order by order_id", &[])
        .await
        .expect("read.order_list is there")
        .iter()
        .map(|row| row.get(0))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn resetting_a_stopped_projections_group_rebuilds_its_table() {
    let harness = Harness::new("replay").await;
    let client = harness.client().await;
    let writers = Process::run(&harness, &["processor", "relay"]);
    let projection = Process::run(&harness, &["projection:order-list"]);
    let orders = 60;
    for number in 1..=orders {
        let order = Uuid::from_u128(number);
        kcat(
            &harness,
            &harness.names().commands(),
            &order.to_string(),
            &place_order(order, Uuid::from_u128(number << 64)).to_string(),
            &[],
        );
    }
    eventually("all rows", || async { (rows(&client).await.len() == orders as usize).then_some(()) }).await;
    assert_eq!(projection.terminate().await, 0);
    let before = rows(&client).await;
    // Vandalism that only a replay can mend.
    client.batch_execute("update read.order_list set customer_id = 'wrong', total = 0").await.expect("an update");
    client
        .batch_execute("delete from read.order_list where order_id < '00000000-0000-0000-0000-000000000010'")
        .await
        .expect("a delete");

    let tools = std::env::var("KAFKA_BIN").expect("KAFKA_BIN names Kafka's tools: eval \"$(throughline dev env)\"");
    let group = harness.names().projection_group("order-list");
    let output = tokio::process::Command::new(format!("{tools}/kafka-consumer-groups"))
        .args(["--bootstrap-server", &harness.settings.kafka.brokers, "--group", &group])
        .args(["--topic", &harness.names().events(), "--reset-offsets", "--to-earliest", "--execute"])
        .output()
        .await
        .expect("Kafka's tool runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    assert!(!String::from_utf8_lossy(&output.stdout).contains("Error"), "{}", String::from_utf8_lossy(&output.stdout));

    let projection = Process::run(&harness, &["projection:order-list"]);
    eventually("the same rows again", || async { (rows(&client).await == before).then_some(()) }).await;
    assert_eq!(projection.terminate().await, 0);
    assert_eq!(writers.terminate().await, 0);
}
