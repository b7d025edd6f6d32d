//! The reference application whole: orders that are placed with a payment, and the routes of payments.

use reference::checkout::payment_of;
use serde_json::{Value, json};
use throughline::app::install;
use uuid::Uuid;

use crate::harness::{Harness, eventually};
use crate::server::{Answer, Server, an_order};

async fn shop(name: &str) -> (Harness, Server) {
    let mut harness = Harness::bare(name).await;
    (harness.settings.topics.event_partitions, harness.settings.topics.command_partitions) = (2, 2);
    install::ready(&reference::app(), &harness.settings).await.expect("installed");
    let server = Server::of(&reference::app(), &harness, &[]).await;
    (harness, server)
}

/// Places an order that is paid by this token.
async fn placed_with(server: &Server, token: &str) -> Uuid {
    let mut order = an_order();
    order["payment"] = json!({"token": token});
    let placed = server.send("/api/orders/sync", &order).await;
    assert_eq!(placed.status, 201, "{placed:?}");
    placed.body["orderId"].as_str().and_then(|id| id.parse().ok()).expect("an id")
}

async fn until(server: &Server, path: &str, is_so: impl Fn(&Value) -> bool) -> Answer {
    eventually(path, || async {
        let read = server.read(path).await;
        (read.status == 200 && is_so(&read.body)).then_some(read)
    })
    .await
}

fn payment_path(payment: Uuid) -> String {
    format!("/api/payments/{payment}")
}

fn status_is(status: &'static str) -> impl Fn(&Value) -> bool {
    move |payment| payment["requested"]["status"] == status
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_with_a_payment_is_paid_captured_or_cancelled_by_itself() {
    let (_harness, server) = shop("http_checkout").await;
    let [paid, declined] = [placed_with(&server, "tok_approve").await, placed_with(&server, "tok_decline").await];
    until(&server, &format!("/api/orders/{paid}"), |order| order["status"] == "paid").await;
    let held = until(&server, &payment_path(payment_of(paid)), status_is("authorized")).await;
    assert_eq!(held.body["requested"]["due"]["orderId"], paid.to_string(), "{held:?}");
    let shipment = json!({"carrier": "DHL", "trackingNumber": "1"});
    let shipped = server.send(&format!("/api/orders/{paid}/shipments/sync"), &shipment).await;
    assert_eq!(shipped.status, 201, "{shipped:?}");
    until(&server, &payment_path(payment_of(paid)), status_is("captured")).await;
    until(&server, &format!("/api/orders/{declined}"), |order| order["status"] == "cancelled").await;
    let history = server.read(&format!("/api/orders/{declined}/history")).await;
    assert!(history.body.to_string().contains("PAYMENT_DECLINED"), "{history:?}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn payments_have_routes_of_their_own_and_tell_what_is_wrong() {
    let (_harness, server) = shop("http_payments").await;
    let ask =
        |amount: &str| json!({"orderId": Uuid::new_v4(), "amount": amount, "currency": "USD", "token": "tok_approve"});
    let wrong = server.send("/api/payments/sync", &ask("1.999")).await;
    assert_eq!((wrong.status, wrong.body["code"].as_str()), (422, Some("INVALID_COMMAND")), "{wrong:?}");
    assert!(wrong.body["detail"].as_str().is_some_and(|detail| detail.starts_with("/amount must")), "{wrong:?}");
    let asked = server.send("/api/payments/sync", &ask("19.99")).await;
    assert_eq!(asked.status, 201, "{asked:?}");
    let payment: Uuid = asked.body["paymentId"].as_str().and_then(|id| id.parse().ok()).expect("an id");
    // A token of payments says nothing of orders: their reads neither wait for it nor refuse it.
    let token = asked.header("consistency-token");
    let read = server.client.get(format!("{}/api/orders", server.base)).header("Consistency-Token", token);
    let read = Answer::of(read.send().await.expect("an answer")).await;
    assert_eq!((read.status, read.header("consistency")), (200, "met"), "{read:?}");
    let path = payment_path(payment);
    until(&server, &path, status_is("authorized")).await;
    let early = server.send(&format!("{path}/refund/sync"), &json!({})).await;
    assert_eq!((early.status, early.body["code"].as_str()), (409, Some("PAYMENT_NOT_CAPTURED")), "{early:?}");
    for (step, status) in [("capture", "captured"), ("refund", "refunded")] {
        let done = server.send(&format!("{path}/{step}/sync"), &json!({})).await;
        assert_eq!(done.status, 201, "{done:?}");
        until(&server, &path, status_is(status)).await;
    }
    // Its rows would hold the tokens that pay.
    assert_eq!(server.read(&format!("{path}/history")).await.status, 404);
    let nobody = server.send(&format!("{}/void/sync", payment_path(Uuid::new_v4())), &json!({})).await;
    assert_eq!((nobody.status, nobody.body["code"].as_str()), (409, Some("PAYMENT_NOT_FOUND")), "{nobody:?}");
    assert_eq!(server.read(&payment_path(Uuid::new_v4())).await.status, 404);
    let page = server.read("/problems/PAYMENT_NOT_VOIDABLE").await;
    assert_eq!(page.status, 200, "{page:?}");
    server.stop().await;
}

/// One key, and so one command id and one stream id, in two contexts: each has its effect, and it is said which is meant.
#[tokio::test(flavor = "multi_thread")]
async fn a_command_id_of_two_contexts_is_told_apart_by_the_name_of_the_stream() {
    let (_harness, server) = shop("http_two_contexts").await;
    let payment = json!({"orderId": Uuid::new_v4(), "amount": "1", "currency": "USD", "token": "tok_approve"});
    let id = Uuid::new_v4();
    let send = async |path: &str, mut body: Value, field: &str| {
        body["commandId"] = json!(id);
        let answer = server.send(path, &body).await;
        assert_eq!(answer.status, 202, "{answer:?}");
        let place = format!("/api/commands/{id}?{field}={}", answer.text(field));
        assert_eq!(answer.header("location"), place);
        place
    };
    let unknown = server.read(&format!("/api/commands/{id}")).await;
    assert_eq!((unknown.text("status"), unknown.header("retry-after")), ("pending", "1"), "{unknown:?}");
    assert_eq!((&unknown.body["orderId"], &unknown.body["reason"]), (&Value::Null, &Value::Null));
    let order = send("/api/orders", an_order(), "orderId").await;
    until(&server, &format!("/api/commands/{id}"), |status| status["status"] == "accepted").await;
    let payment = send("/api/payments", payment, "paymentId").await;
    for place in [&order, &payment] {
        until(&server, place, |status| status["status"] == "accepted").await;
    }
    let many = server.read(&format!("/api/commands/{id}")).await;
    many.is_problem(409, "COMMAND_ID_AMBIGUOUS");
    let mut places = [order.clone(), payment];
    places.sort();
    assert_eq!(many.body["choices"], json!(places));
    let crossed = order.replace("orderId", "paymentId");
    assert_eq!(server.read(&crossed).await.text("status"), "pending", "the id counts in the order");
    for wrong in ["accountId=1", "orderId=7", &format!("orderId={id}&paymentId={id}"), &format!("accountId={id}")] {
        server.read(&format!("/api/commands/{id}?{wrong}")).await.is_problem(400, "INVALID_REQUEST");
    }
    server.stop().await;
}
