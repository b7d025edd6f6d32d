//! The context of payments on real services: its commands, its gateway, its read table, beside another context.

use std::time::Duration;

use rdkafka::producer::{FutureProducer, FutureRecord};
use serde_json::{Value, json};
use throughline::App;
use throughline::app::lifecycle::Lifecycle;
use throughline::app::{install, roles};
use throughline::kafka::client;
use throughline::kafka::topics::TopicNames;
use uuid::Uuid;

use crate::harness::{Harness, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn the_gateway_answers_what_is_asked_and_payments_go_their_ways() {
    let mut harness = Harness::bare("payments").await;
    (harness.settings.topics.event_partitions, harness.settings.topics.command_partitions) = (2, 2);
    harness.settings.http.admin_listen = "127.0.0.1:0".parse().expect("an address");
    let app = App::new("test").context(reference::orders::context()).context(reference::payments::context());
    install::ready(&app, &harness.settings).await.expect("installed");
    let lifecycle = Lifecycle::embedded();
    let wanted = ["processor:payments", "relay", "projection:payments"].map(str::to_owned);
    let wanted = roles::parse(&app, &wanted).expect("roles");
    roles::start(&app, &wanted, &harness.settings, &lifecycle).await.expect("started");

    let producer: FutureProducer = client::producer(&harness.settings.kafka, 2).create().expect("a producer");
    let topic = TopicNames::new("payments", &harness.settings.topics).commands();
    let send = async |payment: Uuid, mut command: Value| {
        command["paymentId"] = payment.to_string().into();
        let (key, value) = (payment.to_string(), command.to_string());
        let record = FutureRecord::to(&topic).key(&key).payload(&value);
        producer.send(record, Duration::from_secs(30)).await.map_err(|(error, _)| error).expect("sent");
    };
    let store = harness.client().await;
    let until = async |payment: Uuid, status: &str| {
        eventually(&format!("{payment} is {status}"), || async {
            let query = "select state->'requested'->>'status' from read.payments where stream_id = $1";
            let row = store.query_opt(query, &[&payment]).await.expect("an answer")?;
            (row.get::<_, &str>(0) == status).then_some(())
        })
        .await;
    };
    let ask = async |token: &str| {
        let payment = Uuid::new_v4();
        let order = Uuid::new_v4();
        send(
            payment,
            json!({"type": "AuthorizePayment", "orderId": order, "amount": "39.98", "currency": "USD", "token": token}),
        )
        .await;
        payment
    };
    let (approved, given_up, slow) = (ask("tok_approve").await, ask("tok_approve").await, ask("tok_slow").await);
    let (declined, silent) = (ask("tok_decline").await, ask("tok_silent").await);
    until(approved, "authorized").await;
    until(given_up, "authorized").await;
    until(declined, "declined").await;
    until(slow, "authorized").await;
    until(silent, "requested").await;
    send(approved, json!({"type": "CapturePayment"})).await;
    send(given_up, json!({"type": "VoidPayment"})).await;
    send(silent, json!({"type": "VoidPayment"})).await;
    until(approved, "captured").await;
    send(approved, json!({"type": "RefundPayment"})).await;
    until(approved, "refunded").await;
    until(given_up, "voided").await;
    until(silent, "voided").await;
    let refused = "select count(*) from throughline.commands where not accepted";
    assert_eq!(store.query_one(refused, &[]).await.expect("a number").get::<_, i64>(0), 0);
    lifecycle.shutdown().cancel();
}
