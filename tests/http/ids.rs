//! Ids and equality at every door: HTTP bodies and paths, the keys and values of Kafka records.

use std::collections::BTreeSet;
use std::time::Duration;

use rdkafka::producer::{FutureProducer, FutureRecord};
use serde_json::{Value, json};
use throughline::kafka::client;
use uuid::Uuid;

use crate::harness::{Harness, eventually};
use crate::server::{Answer, Server, a_payment, an_order};

/// Produces a command, as any Kafka client would.
async fn produce(harness: &Harness, key: &str, value: &str) {
    let producer: FutureProducer = client::producer(&harness.settings.kafka, 0).create().unwrap();
    let topic = harness.names().commands();
    let record = FutureRecord::to(&topic).key(key).payload(value);
    producer.send(record, Duration::from_secs(30)).await.map_err(|(error, _)| error).unwrap();
}

/// `PlaceOrder` as a record says it.
fn placing(order: &str, command: &str) -> Value {
    let mut value = an_order();
    value["type"] = json!("PlaceOrder");
    value["orderId"] = json!(order);
    value["commandId"] = json!(command);
    value
}

/// Asks again while the server says that it cannot answer now, as a caller does.
async fn asked(request: impl Fn() -> reqwest::RequestBuilder) -> Answer {
    eventually("an answer", || async {
        let answer = Answer::of(request().send().await.unwrap()).await;
        (answer.status != 503).then_some(answer)
    })
    .await
}

async fn read(server: &Server, path: &str) -> Answer {
    asked(|| server.get(path)).await
}

async fn send(server: &Server, path: &str, body: &Value) -> Answer {
    asked(|| server.post(path, body)).await
}

async fn decided(server: &Server, path: &str) -> Answer {
    eventually("the command is decided", || async {
        let status = read(server, path).await;
        (status.text("status") != "pending").then_some(status)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn one_id_for_twelve_orders_is_answered_for_each() {
    let harness = Harness::new("http_twelve").await;
    let server = Server::whole(&harness).await;
    let id = Uuid::new_v4();
    let orders: Vec<String> = (0..12).map(|_| Uuid::new_v4().to_string()).collect();
    let place = |order: &str| {
        let mut body = an_order();
        body["orderId"] = json!(order);
        body["commandId"] = json!(id);
        body
    };
    let bodies: Vec<Value> = orders.iter().map(|order| place(order)).collect();
    // All at once: nobody is answered with another order's outcome.
    let answers =
        futures_util::future::join_all(bodies.iter().map(|body| send(&server, "/api/orders/sync", body))).await;
    for (answer, order) in answers.iter().zip(&orders) {
        assert_eq!((answer.status, answer.text("orderId")), (201, order.as_str()), "{answer:?}");
    }
    let events = "select count(*), count(distinct event_id) from throughline.events";
    let row = harness.client().await.query_one(events, &[]).await.unwrap();
    assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1)), (12, 12));

    // The id alone names twelve: it is said which, and each of them answers.
    let ambiguous = read(&server, &format!("/api/commands/{id}")).await;
    ambiguous.is_problem(409, "COMMAND_ID_AMBIGUOUS");
    let choices: BTreeSet<&str> =
        ambiguous.body["choices"].as_array().unwrap().iter().map(|choice| choice.as_str().unwrap()).collect();
    let wanted: Vec<String> = orders.iter().map(|order| format!("/api/commands/{id}?orderId={order}")).collect();
    assert_eq!(choices, wanted.iter().map(String::as_str).collect());
    for (choice, order) in wanted.iter().zip(&orders) {
        let status = read(&server, choice).await;
        assert_eq!((status.text("status"), status.text("orderId")), ("accepted", order.as_str()));
    }
    // Retries know their order: the same answer, and for another command none.
    let again = send(&server, "/api/orders/sync", &bodies[3]).await;
    assert_eq!((again.status, again.text("orderId")), (201, orders[3].as_str()));
    let mut other = bodies[3].clone();
    other["customerId"] = json!("somebody else");
    send(&server, "/api/orders/sync", &other).await.is_problem(422, "COMMAND_ID_REUSED");
    // A thirteenth, over 202: its Location is about it alone.
    let next = Uuid::new_v4().to_string();
    let pending = format!("/api/commands/{id}?orderId={next}");
    let status = read(&server, &pending).await;
    assert_eq!((status.text("status"), status.text("orderId")), ("pending", next.as_str()));
    let accepted = send(&server, "/api/orders", &place(&next)).await;
    assert_eq!((accepted.status, accepted.header("location")), (202, pending.as_str()), "{accepted:?}");
    assert_eq!(decided(&server, &pending).await.text("orderId"), next);
    server.stop().await;
}

/// What a command means is what counts, whichever door it came through first.
#[tokio::test(flavor = "multi_thread")]
async fn the_same_command_through_two_doors_has_one_effect() {
    let harness = Harness::new("http_two_doors").await;
    let server = Server::whole(&harness).await;
    let [first, second] = [(); 2].map(|()| (Uuid::new_v4().to_string(), Uuid::new_v4().to_string()));
    let request = |(order, command): &(String, String)| {
        let mut body = placing(order, &command.to_uppercase());
        body["items"][0]["unitPrice"] = json!("19.990");
        body["expectedVersion"] = Value::Null;
        body
    };
    // Kafka, then HTTP.
    produce(&harness, &first.0, &format!("  {:#}", placing(&first.0, &first.1))).await;
    assert_eq!(decided(&server, &format!("/api/commands/{}", first.1)).await.text("status"), "accepted");
    let retried = send(&server, "/api/orders/sync", &request(&first)).await;
    assert_eq!((retried.status, retried.header("etag")), (201, "\"1\""), "{retried:?}");
    // HTTP, then Kafka; and then one that differs, to see that the record was looked at.
    assert_eq!(send(&server, "/api/orders/sync", &request(&second)).await.status, 201);
    produce(&harness, &second.0, &format!("{:#}", placing(&second.0, &second.1))).await;
    let mut other = placing(&second.0, &second.1);
    other["customerId"] = json!("somebody else");
    produce(&harness, &second.0, &other.to_string()).await;
    let client = harness.client().await;
    let refusals = eventually("the other command is refused", || async {
        let select = "select convert_from(value, 'UTF8')::jsonb->>'code' from throughline.outbox
                      where type like '%CommandResult'";
        let rows = client.query(select, &[]).await.unwrap();
        (!rows.is_empty()).then(|| rows.iter().map(|row| row.get(0)).collect::<Vec<String>>())
    })
    .await;
    assert_eq!(refusals, ["COMMAND_ID_REUSED"]);
    let events: i64 = client.query_one("select count(*) from throughline.events", &[]).await.unwrap().get(0);
    assert_eq!(events, 2);
    server.stop().await;
}

/// How an id may be written: the text, whether a body or a path takes it, and whether a key does.
fn spellings(id: Uuid) -> Vec<(String, bool, bool)> {
    vec![
        (id.to_string(), true, true),
        (id.to_string().to_uppercase(), true, false),
        (id.simple().to_string(), false, false),
        (id.braced().to_string(), false, false),
        (id.urn().to_string(), false, false),
        (Uuid::nil().to_string(), false, false),
        (format!(" {id}"), false, false),
        ("4711".to_owned(), false, false),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn every_door_reads_an_id_alike() {
    let harness = Harness::new("http_doors").await;
    let server = Server::whole(&harness).await;
    let client = harness.client().await;
    let accepted_of = async |value: &Value| {
        eventually("the record has its outcome", || async {
            let select =
                "select accepted, code, reason from throughline.commands where command_id = $1 or reason like $2";
            let id = value["commandId"].as_str().and_then(|id| Uuid::try_parse(id).ok()).unwrap_or_default();
            let mark = format!("%{}%", value["orderId"].as_str().unwrap_or_default());
            let row = client.query_opt(select, &[&id, &mark]).await.unwrap()?;
            let refused = (row.get::<_, Option<String>>(1), row.get::<_, Option<String>>(2));
            assert!(row.get(0) || refused.0.as_deref() == Some("INVALID_COMMAND"), "{refused:?}");
            Some(row.get::<_, bool>(0))
        })
        .await
    };
    for number in 0..spellings(Uuid::new_v4()).len() {
        let fresh = || spellings(Uuid::new_v4()).swap_remove(number);
        // The order's id: in a record's value, with the right key; in a body.
        let (text, taken, _) = fresh();
        let key = Uuid::try_parse(text.trim()).map_or_else(|_| text.clone(), |id| id.to_string());
        let value = placing(&text, &Uuid::new_v4().to_string());
        produce(&harness, &key, &value.to_string()).await;
        assert_eq!(accepted_of(&value).await, taken, "orderId {text} in a record");
        let (text, taken, _) = fresh();
        let answer = send(&server, "/api/orders", &placing(&text, &Uuid::new_v4().to_string())).await;
        assert_eq!(answer.status == 202, taken, "orderId {text} in a body: {answer:?}");
        // As the record's key, and as a path.
        let (text, _, taken) = fresh();
        let order = Uuid::try_parse(text.trim()).unwrap_or_default();
        let order = if order.is_nil() { Uuid::new_v4() } else { order };
        let value = placing(&order.to_string(), &Uuid::new_v4().to_string());
        produce(&harness, &text, &value.to_string()).await;
        assert_eq!(accepted_of(&value).await, taken, "key {text}");
        let (text, taken, _) = fresh();
        let path = text.replace(' ', "%20").replace('{', "%7B").replace('}', "%7D");
        for path in
            [format!("/api/orders/{path}"), format!("/api/orders/{path}/history"), format!("/api/orders/{path}/events")]
        {
            let answer = read(&server, &path).await;
            assert_eq!(answer.status, if taken { 404 } else { 400 }, "{path}: {answer:?}");
        }
        let answer = send(&server, &format!("/api/orders/{path}/payments"), &a_payment("1.00")).await;
        assert_eq!(answer.status, if taken { 202 } else { 400 }, "order {text} in a path: {answer:?}");
        for path in [format!("/api/commands/{path}"), format!("/api/commands/{}?orderId={path}", Uuid::new_v4())] {
            let answer = read(&server, &path).await;
            assert_eq!(answer.status, if taken { 200 } else { 400 }, "{path}: {answer:?}");
        }
        // The command's id: in a record's value, and in a body.
        let (text, taken, _) = fresh();
        let (order, mut body) = (Uuid::new_v4().to_string(), an_order());
        body["commandId"] = json!(text);
        let answer = send(&server, "/api/orders", &body).await;
        assert_eq!(answer.status == 202, taken, "commandId {text} in a body: {answer:?}");
        if !taken {
            answer.is_problem(422, "INVALID_COMMAND");
        }
        let (text, taken, _) = fresh();
        produce(&harness, &order, &placing(&order, &text).to_string()).await;
        let outcome = eventually("the record has its outcome", || async {
            let select = "select accepted from throughline.commands where stream_id = $1";
            client.query_opt(select, &[&Uuid::try_parse(&order).unwrap()]).await.unwrap()
        })
        .await;
        assert_eq!(outcome.get::<_, bool>(0), taken, "commandId {text} in a record");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_history_tells_what_caused_each_event() {
    let harness = Harness::new("http_causes").await;
    let server = Server::whole(&harness).await;
    let placed = send(&server, "/api/orders/sync", &an_order()).await;
    let order = format!("/api/orders/{}", placed.text("orderId"));
    let (pay, payment) = (format!("{order}/payments/sync"), a_payment("1.00"));
    let paid = asked(|| server.post(&pay, &payment).header("X-Causation-ID", "an-invoice")).await;
    // On a busy machine the wait may run out; what happens is the same.
    assert!([placed.status, paid.status].iter().all(|status| [201, 202].contains(status)), "{placed:?}, {paid:?}");
    // As an event of a release that kept no cause is shown.
    let client = harness.client().await;
    let history = eventually("both events are visible", || async {
        let history = read(&server, &format!("{order}/history")).await;
        (history.body["events"].as_array().map(Vec::len) == Some(2)).then_some(history)
    })
    .await;
    let cause = |history: &Answer, at: usize| history.body["events"][at]["causationId"].as_str().unwrap().to_owned();
    assert_eq!(cause(&history, 0), placed.text("commandId"));
    assert_eq!(cause(&history, 1), "an-invoice");
    client.execute("update read.order_history set causation_id = null where version = 1", &[]).await.unwrap();
    assert_eq!(cause(&read(&server, &format!("{order}/history")).await, 0), placed.text("commandId"));
    server.stop().await;
}
