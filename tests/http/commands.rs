//! Commands over HTTP: accepted, decided, refused, repeated.

use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};
use uuid::Uuid;

use crate::harness::{Harness, eventually};
use crate::server::{Answer, Server, a_payment, an_order};

#[tokio::test(flavor = "multi_thread")]
async fn a_command_is_accepted_then_decided() {
    let harness = Harness::new("http_commands").await;
    let server = Server::whole(&harness).await;
    let request = server.post("/api/orders", &an_order()).header("X-Correlation-ID", "story-1");
    let accepted = Answer::of(request.send().await.unwrap()).await;
    assert_eq!(accepted.status, 202, "{accepted:?}");
    assert_eq!(accepted.header("location"), format!("/api/commands/{}", accepted.text("commandId")));
    assert_eq!((accepted.header("x-correlation-id"), accepted.text("correlationId")), ("story-1", "story-1"));
    let decided = eventually("the command is decided", || async {
        let status = server.read(accepted.header("location")).await;
        assert_eq!(status.status, 200);
        if status.text("status") == "pending" {
            assert_eq!(status.header("retry-after"), "1");
            return None;
        }
        Some(status)
    })
    .await;
    assert_eq!(decided.text("status"), "accepted");
    assert_eq!(decided.text("orderId"), accepted.text("orderId"));
    assert_eq!(decided.body["version"], 1);
    assert!(decided.body["position"]["seq"].as_i64().unwrap() >= 1);
    assert_eq!(decided.text("correlationId"), "story-1");
    assert_eq!(decided.header("etag"), "\"1\"");
    assert!(!decided.header("consistency-token").is_empty());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_orders_life_over_sync_calls() {
    let harness = Harness::new("http_life").await;
    let server = Server::whole(&harness).await;
    let placed = server.send("/api/orders/sync", &an_order()).await;
    assert_eq!(placed.status, 201, "{placed:?}");
    let order = format!("/api/orders/{}", placed.text("orderId"));
    assert_eq!((placed.header("location"), placed.header("etag")), (order.as_str(), "\"1\""));
    assert_eq!(placed.text("status"), "accepted");

    let early =
        server.send(&format!("{order}/shipments/sync"), &json!({"carrier": "DHL", "trackingNumber": "1"})).await;
    early.is_problem(409, "ORDER_NOT_PAID");
    assert!(!early.text("commandId").is_empty());

    let prefer = server.post(&format!("{order}/payments"), &a_payment("39.98")).header("Prefer", "wait=10");
    let paid = Answer::of(prefer.send().await.unwrap()).await;
    assert_eq!((paid.status, paid.header("preference-applied"), paid.header("etag")), (201, "wait=10", "\"2\""));

    let too_much = server.send(&format!("{order}/payments/sync"), &a_payment("0.01")).await;
    too_much.is_problem(409, "PAYMENT_EXCEEDS_TOTAL");

    let shipment = json!({"carrier": "DHL", "trackingNumber": "JD014600"});
    let stale = server.post(&format!("{order}/shipments/sync"), &shipment).header("If-Match", "\"1\"");
    let stale = Answer::of(stale.send().await.unwrap()).await;
    stale.is_problem(412, "VERSION_MISMATCH");
    let right = server.post(&format!("{order}/shipments/sync"), &shipment).header("If-Match", "\"2\"");
    assert_eq!(Answer::of(right.send().await.unwrap()).await.status, 201);

    let cancel = server.send(&format!("{order}/cancellation/sync"), &json!({"reason": "late"})).await;
    cancel.is_problem(409, "ORDER_ALREADY_SHIPPED");
    let nowhere = format!("/api/orders/{}/payments/sync", Uuid::new_v4());
    server.send(&nowhere, &a_payment("1.00")).await.is_problem(409, "ORDER_NOT_FOUND");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_no_record_can_carry_is_answered_and_parked() {
    let mut harness = Harness::bare("http_bulky").await;
    harness.settings.topics.event_bytes_max = 2_000;
    harness.install().await;
    let server = Server::whole(&harness).await;
    let mut bulky = an_order();
    bulky["items"] = vec![bulky["items"][0].clone(); 100].into();
    let small = an_order();
    let (refused, placed) =
        tokio::join!(server.send("/api/orders/sync", &bulky), server.send("/api/orders/sync", &small));
    refused.is_problem(422, "COMMAND_FAILED");
    assert!(refused.text("detail").contains("topics.event_bytes_max"), "{refused:?}");
    assert_eq!(placed.status, 201, "{placed:?}");
    let page = server.get(refused.text("type")).send().await.unwrap();
    assert_eq!(page.status(), 200, "what `type` refers to is there");
    let parked = "select reason_code from throughline.dead_letters";
    let parked = harness.client().await.query(parked, &[]).await.unwrap();
    assert_eq!(parked.iter().map(|row| row.get(0)).collect::<Vec<&str>>(), ["COMMAND_FAILED"]);
    server.stop().await;
}

/// 202 says that Kafka has it: nothing else does, and the server goes on once Kafka takes commands again.
#[tokio::test(flavor = "multi_thread")]
async fn what_kafka_refuses_is_not_accepted() {
    let harness = Harness::new("http_refused").await;
    let server = Server::whole(&harness).await;
    let topic = harness.names().commands();
    let post = async |number: usize| {
        let request = server.post("/api/orders", &an_order()).header("Idempotency-Key", format!("refused-{number}"));
        Answer::of(request.send().await.unwrap()).await
    };
    harness.set_topic_option(&topic, "max.message.bytes", "100").await;
    // A key each: what was accepted before the option held is answered so for ever.
    let tries = AtomicUsize::new(100);
    let refused = eventually("the topic takes nothing", async || {
        let answer = post(tries.fetch_add(1, Ordering::Relaxed)).await;
        (answer.status != 202).then_some(answer)
    })
    .await;
    refused.is_problem(503, "KAFKA_UNAVAILABLE");
    for number in 1..20 {
        post(number).await.is_problem(503, "KAFKA_UNAVAILABLE");
    }
    harness.set_topic_option(&topic, "max.message.bytes", "4194304").await;
    eventually("the topic takes commands", async || (post(20).await.status == 202).then_some(())).await;
    for number in 1..20 {
        let answer = post(number).await;
        assert_eq!(answer.status, 202, "{answer:?}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_makes_a_retry_one_effect_with_one_answer() {
    let harness = Harness::new("http_keys").await;
    let server = Server::whole(&harness).await;
    let keyed = |path: &'static str, body: Value| {
        let request = server.post(path, &body).header("Idempotency-Key", "\"order-4711\"");
        async { Answer::of(request.send().await.unwrap()).await }
    };
    let first = keyed("/api/orders", an_order()).await;
    let second = keyed("/api/orders", an_order()).await;
    assert_eq!((first.status, second.status), (202, 202), "{second:?}");
    let is_the_answer = |again: &Answer| {
        assert_eq!((again.status, &again.body), (202, &first.body));
        assert_eq!(again.header("x-correlation-id"), first.header("x-correlation-id"));
        assert_eq!(again.header("location"), first.header("location"));
    };
    is_the_answer(&second);
    let decided = keyed("/api/orders/sync", an_order()).await;
    assert_eq!(decided.status, 201, "{decided:?}");
    is_the_answer(&keyed("/api/orders", an_order()).await);
    let correlation = first.text("correlationId").to_owned();
    assert_eq!((decided.text("correlationId"), decided.header("x-correlation-id")), (&*correlation, &*correlation));
    // A retry that names a correlation id of its own has it echoed; the command keeps its first one.
    let named = server.post("/api/orders", &an_order()).header("Idempotency-Key", "order-4711");
    let named = Answer::of(named.header("X-Correlation-ID", "mine").send().await.unwrap()).await;
    assert_eq!((named.header("x-correlation-id"), &named.body), ("mine", &first.body));
    assert_eq!(keyed("/api/orders/sync", an_order()).await.header("etag"), decided.header("etag"));

    let mut other = an_order();
    other["customerId"] = "somebody-else".into();
    keyed("/api/orders/sync", other.clone()).await.is_problem(422, "COMMAND_ID_REUSED");
    keyed("/api/orders", other).await.is_problem(422, "COMMAND_ID_REUSED");

    let rows = harness.client().await.query("select correlation_id from throughline.events", &[]).await.unwrap();
    let events: Vec<&str> = rows.iter().map(|row| row.get(0)).collect();
    assert_eq!(events, [correlation], "one effect, under the id that was answered");

    // The body's own command id does the same.
    let command_id = Uuid::new_v4();
    let order_id = first.text("orderId").to_owned();
    let mut payment = a_payment("39.98");
    payment["commandId"] = json!(command_id);
    let pay = format!("/api/orders/{order_id}/payments/sync");
    for _ in 0..2 {
        let paid = server.send(&pay, &payment).await;
        assert_eq!((paid.status, paid.header("etag")), (201, "\"2\""), "{paid:?}");
    }
    payment["amount"] = "1.00".into();
    server.send(&pay, &payment).await.is_problem(422, "COMMAND_ID_REUSED");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_command_is_refused_at_the_door() {
    let mut harness = Harness::bare("http_door").await;
    harness.settings.http.body_bytes_max = 2_000;
    harness.install().await;
    let server = Server::start(&harness, &["api"]).await;
    let with = |name: &str, value: Value| {
        let mut body = an_order();
        body[name] = value;
        body
    };
    for body in [
        with("surprise", json!(1)),
        with("currency", json!("usd")),
        with("items", json!([])),
        with("items", json!([{"productId": Uuid::nil(), "quantity": 0, "unitPrice": "1"}])),
        with("items", json!([{"productId": Uuid::nil(), "quantity": 1, "unitPrice": 1.5}])),
        with("type", json!("ShipOrder")),
        json!([]),
        json!({}),
    ] {
        server.send("/api/orders", &body).await.is_problem(422, "INVALID_COMMAND");
    }
    let raw = |content_type: &'static str, body: String| {
        let request =
            server.request(reqwest::Method::POST, "/api/orders").header("Content-Type", content_type).body(body);
        async { Answer::of(request.send().await.unwrap()).await }
    };
    raw("application/json", "{\"customerId\":".into()).await.is_problem(400, "INVALID_JSON");
    raw("application/json", "[".repeat(1_000)).await.is_problem(400, "INVALID_JSON");
    raw("text/plain", an_order().to_string()).await.is_problem(415, "UNSUPPORTED_MEDIA_TYPE");
    raw("application/json", " ".repeat(3_000)).await.is_problem(413, "PAYLOAD_TOO_LARGE");
    let header = |name: &'static str, value: &'static str| {
        let request = server.post("/api/orders", &an_order()).header(name, value);
        async { Answer::of(request.send().await.unwrap()).await }
    };
    header("Idempotency-Key", "\"\"").await.is_problem(400, "INVALID_REQUEST");
    header("If-Match", "3").await.is_problem(400, "INVALID_REQUEST");
    header("X-Correlation-ID", "a b").await.is_problem(400, "INVALID_REQUEST");
    server.send("/api/orders?lane=express", &an_order()).await.is_problem(400, "INVALID_REQUEST");
    server.send("/api/orders/no-id/payments", &a_payment("1")).await.is_problem(400, "INVALID_REQUEST");
    server.read("/nowhere").await.is_problem(404, "NOT_FOUND");
    let deleted = server.request(reqwest::Method::DELETE, "/api/orders").send().await.unwrap();
    let deleted = Answer::of(deleted).await;
    deleted.is_problem(405, "METHOD_NOT_ALLOWED");
    assert!(deleted.header("allow").contains("POST"), "{deleted:?}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_that_runs_out_is_answered_202_and_lanes_are_topics() {
    let harness = Harness::new("http_waits").await;
    let server = Server::start(&harness, &["api"]).await;
    let request = server.post("/api/orders?lane=bulk", &an_order()).header("Prefer", "wait=1");
    let accepted = Answer::of(request.send().await.unwrap()).await;
    assert_eq!((accepted.status, accepted.header("preference-applied")), (202, "wait=1"));
    let status = server.read(accepted.header("location")).await;
    assert_eq!((status.status, status.text("status")), (200, "pending"));
    let bulk = &harness.names().lanes()[2];
    let consumer: rdkafka::consumer::BaseConsumer =
        throughline::kafka::client::base(&harness.settings.kafka).create().unwrap();
    let records: i64 = (0..harness.settings.topics.command_partitions)
        .map(|partition| {
            let wait = std::time::Duration::from_secs(10);
            rdkafka::consumer::Consumer::fetch_watermarks(&consumer, bulk, partition, wait).unwrap().1
        })
        .sum();
    assert_eq!(records, 1);
    // A processor that comes later decides it.
    let processor = Server::start(&harness, &["processor"]).await;
    eventually("the command is decided", || async {
        (server.read(accepted.header("location")).await.text("status") == "accepted").then_some(())
    })
    .await;
    processor.stop().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn looks_for_outcomes_read_what_they_find_also_in_a_young_table() {
    let harness = Harness::new("http_young").await;
    let server = Server::start(&harness, &["api", "processor"]).await;
    // Plans are made while the table is empty, and kept while it fills. No analyze ever comes.
    let owner = harness.client().await;
    let partitions = "select format('alter table %s set (autovacuum_enabled = off)', inhrelid::regclass)
                      from pg_inherits where inhparent = 'throughline.commands'::regclass";
    for row in owner.query(partitions, &[]).await.unwrap() {
        owner.batch_execute(row.get(0)).await.unwrap();
    }
    const WRITES: i64 = 60;
    for number in 0..WRITES {
        // Keyed: looked up before, waited for, and looked up by the caller.
        let keyed = server.post("/api/orders/sync", &an_order()).header("Idempotency-Key", format!("young-{number}"));
        let written = Answer::of(keyed.send().await.unwrap()).await;
        assert_eq!(written.status, 201, "{written:?}");
        let status = server.read(&format!("/api/commands/{}", written.text("commandId"))).await;
        assert_eq!(status.text("status"), "accepted");
    }
    server.stop().await;
    let read = "select coalesce(sum(seq_tup_read), 0)::bigint, coalesce(sum(idx_tup_fetch), 0)::bigint
                from pg_stat_user_tables where relname like 'commands_2%'";
    // Sessions report what they read when they end.
    let (walked, fetched) = eventually("statistics", || async {
        let row = owner.query_one(read, &[]).await.unwrap();
        let (walked, fetched): (i64, i64) = (row.get(0), row.get(1));
        (walked + fetched >= 2 * WRITES).then_some((walked, fetched))
    })
    .await;
    assert!(walked == 0 && fetched <= 4 * WRITES, "{walked} rows walked, {fetched} fetched for {WRITES} commands");
}
