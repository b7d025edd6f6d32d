//! Confluent's stock Python client reads the events topic, with our API as its schema registry.

use serde_json::{Value, json};
use tokio::process::Command;
use uuid::Uuid;

use crate::harness::Harness;
use crate::one_order::{kcat, place_order};
use crate::process::Process;
use crate::python::{folder, programs, succeed};

#[tokio::test(flavor = "multi_thread")]
async fn the_stock_python_client_reads_events_through_our_registry() {
    let harness = Harness::new("python_client").await;
    let (order, command) = (Uuid::now_v7(), Uuid::now_v7());
    let roles = [&["processor", "relay"][..], &["api"]].map(|roles| Process::run(&harness, roles));
    let payment = Uuid::now_v7();
    let send = |command: &Value| {
        kcat(
            &harness,
            &harness.names().commands(),
            &order.to_string(),
            &command.to_string(),
            &["correlation-id=snake"],
        );
    };
    send(&place_order(order, command));
    send(
        &json!({"type": "RecordPayment", "orderId": order, "paymentId": payment, "amount": "39.98", "currency": "USD"}),
    );
    send(&json!({"type": "ShipOrder", "orderId": order, "carrier": "DHL", "trackingNumber": "JD014600"}));

    let registry = roles[1].http_url().await;
    let mut read = Command::new(programs("client.txt").await.join("python"));
    read.arg(folder().join("read_events.py")).args([
        &harness.settings.kafka.brokers,
        &harness.names().events(),
        &registry,
        "3",
    ]);
    let printed = succeed(&mut read, "the stock client could not read").await;
    let rows: Vec<Value> = printed.lines().map(|line| serde_json::from_str(line).expect("a JSON line")).collect();
    assert!(rows.iter().all(|row| row["key"] == json!(order)), "{rows:?}");
    let values: Vec<&Value> = rows.iter().map(|row| &row["value"]).collect();
    assert_eq!(
        *values[0],
        json!({
            "orderId": order, "customer": {"id": "customer-42"}, "currency": "USD", "total": 3998,
            "items": [{"productId": Uuid::from_u128(7), "quantity": 2, "unitPrice": 199_900, "lineTotal": 3998}], "payment": null,
        })
    );
    assert_eq!(
        *values[1],
        json!({"orderId": order, "paymentId": payment, "amount": 3998, "currency": "USD", "paid": 3998, "outstanding": 0})
    );
    assert_eq!(*values[2], json!({"orderId": order, "carrier": "DHL", "trackingNumber": "JD014600"}));
    let header = |row: usize, name: &str| rows[row]["headers"][name].as_str().unwrap_or_default().to_owned();
    assert_eq!((header(0, "ce_type"), header(2, "seq")), ("throughline.orders.OrderPlaced".into(), "3".into()));
    assert_eq!((header(0, "command-id"), header(1, "correlation-id")), (command.to_string(), "snake".into()));
    for role in roles {
        assert_eq!(role.terminate().await, 0);
    }
}
