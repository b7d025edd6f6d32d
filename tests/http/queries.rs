//! Reads: pages, one order, its history, sums, freshness, and a stream of changes.

use futures_util::StreamExt as _;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::harness::{Harness, eventually};
use crate::server::{Answer, Server, a_payment, an_order};

/// Groups take their time to gather on a busy machine: reads wait for them.
async fn patient(name: &str) -> Harness {
    let mut harness = Harness::bare(name).await;
    harness.settings.http.consistency_wait_ms = 25_000;
    harness.install().await;
    harness
}

/// Reads `path` with a token.
async fn read_after(server: &Server, path: &str, token: &str) -> Answer {
    let request = server.get(path).header("Consistency-Token", token);
    Answer::of(request.send().await.expect("an answer")).await
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_show_what_a_token_stands_for() {
    let harness = patient("http_queries").await;
    let server = Server::whole(&harness).await;
    let placed = server.send("/api/orders/sync", &an_order()).await;
    assert_eq!(placed.status, 201, "{placed:?}");
    let order_id = placed.text("orderId").to_owned();
    let order = format!("/api/orders/{order_id}");
    let paid = server.send(&format!("{order}/payments/sync"), &a_payment("39.98")).await;
    let token = paid.header("consistency-token");

    let details = read_after(&server, &order, token).await;
    assert_eq!(
        (details.status, details.header("consistency"), details.header("etag")),
        (200, "met", "\"2\""),
        "{details:?}"
    );
    assert!(!details.header("as-of").is_empty() && details.header("as-of-positions").contains(':'));
    let expected = json!({"orderId": order_id, "customerId": "customer-42", "status": "paid", "currency": "USD",
        "total": "39.98", "paid": "39.98", "version": 2,
        "items": [{"productId": Uuid::from_u128(7), "quantity": 2, "unitPrice": "19.99", "lineTotal": "39.98"}]});
    for (name, value) in expected.as_object().unwrap() {
        assert_eq!(&details.body[name], value, "{name}");
    }
    let unchanged = server.get(&order).header("If-None-Match", "\"2\"").send().await.unwrap();
    assert_eq!((unchanged.status().as_u16(), unchanged.text().await.unwrap().len()), (304, 0));

    let history = read_after(&server, &format!("{order}/history"), token).await;
    let types: Vec<&str> =
        history.body["events"].as_array().unwrap().iter().map(|e| e["type"].as_str().unwrap()).collect();
    assert_eq!(types, ["OrderPlaced", "PaymentReceived"]);
    let then = server.read(&format!("{order}/history?atVersion=1")).await;
    assert_eq!(then.body["state"]["status"], "placed");
    assert_eq!(then.body["state"]["paid"], "0.00");
    assert_eq!(then.body["state"]["version"], 1);
    let at_time = history.body["events"][1]["recordedAt"].as_str().unwrap();
    assert_eq!(server.read(&format!("{order}/history?atTime={at_time}")).await.body["state"]["status"], "paid");
    server.read(&format!("{order}/history?atTime=1999-01-01T00:00:00Z")).await.is_problem(404, "NOT_FOUND");
    server.read(&format!("{order}/history?atVersion=3")).await.is_problem(404, "NOT_FOUND");
    server.read(&format!("{order}/history?atVersion=1&atTime={at_time}")).await.is_problem(400, "INVALID_REQUEST");
    // Had the clock been a day ahead at first, the second event would not be there before the first.
    let ahead = "update read.order_history set recorded_at = recorded_at + interval '1 day' where version = 1";
    harness.client().await.execute(ahead, &[]).await.unwrap();
    server.read(&format!("{order}/history?atTime={at_time}")).await.is_problem(404, "NOT_FOUND");
    assert_eq!(
        server.read(&format!("{order}/history?atTime=2999-01-01T00:00:00Z")).await.body["state"]["status"],
        "paid"
    );

    let customer = read_after(&server, "/api/customers/customer-42", token).await;
    assert_eq!(customer.body["orders"], 1);
    assert_eq!(customer.body["currencies"][0]["paid"], "39.98");
    let sales = read_after(&server, &format!("/api/sales/daily?productId={}", Uuid::from_u128(7)), token).await;
    assert_eq!((&sales.body["items"][0]["quantity"], &sales.body["items"][0]["revenue"]), (&json!(2), &json!("39.98")));
    assert_eq!(server.read("/api/sales/daily?from=2999-01-01").await.body["items"], json!([]));
    server.read("/api/sales/daily?from=yesterday").await.is_problem(400, "INVALID_REQUEST");
    server.read(&format!("/api/orders/{}", Uuid::new_v4())).await.is_problem(404, "NOT_FOUND");
    server.read("/api/customers/nobody").await.is_problem(404, "NOT_FOUND");
    read_after(&server, &order, "made-up").await.is_problem(400, "INVALID_CONSISTENCY_TOKEN");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_hold_every_order_once() {
    let harness = patient("http_pages").await;
    let server = Server::whole(&harness).await;
    let mut placed = Vec::new();
    let mut tokens = Vec::new();
    for number in 0..7 {
        let mut body = an_order();
        body["customerId"] = if number % 2 == 0 { "even".into() } else { "odd".into() };
        let answer = server.send("/api/orders/sync", &body).await;
        placed.push(answer.text("orderId").to_owned());
        tokens.push(answer.header("consistency-token").to_owned());
    }
    let first = read_after(&server, "/api/orders?limit=3", &tokens.join(",")).await;
    assert_eq!((first.status, first.header("consistency")), (200, "met"), "{first:?}");
    let walk = async |filter: &str| {
        let mut found: Vec<String> = Vec::new();
        let mut cursor = String::new();
        loop {
            let page = server.read(&format!("/api/orders?limit=3{filter}{cursor}")).await;
            assert_eq!(page.status, 200, "{page:?}");
            found.extend(
                page.body["items"].as_array().unwrap().iter().map(|o| o["orderId"].as_str().unwrap().to_owned()),
            );
            match page.body["nextCursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => return found,
            }
        }
    };
    assert_eq!(walk("&sort=placedAt").await, placed);
    placed.reverse();
    assert_eq!(walk("").await, placed);
    assert_eq!(walk("&customerId=odd").await.len(), 3);
    assert_eq!(walk("&status=placed&customerId=even&sort=placedAt").await.len(), 4);
    assert_eq!(walk("&status=shipped").await.len(), 0);
    let cursor = first.text("nextCursor");
    server.read(&format!("/api/orders?status=paid&cursor={cursor}")).await.is_problem(400, "INVALID_REQUEST");
    let long = format!("customerId={}", "c".repeat(129));
    for bad in
        ["limit=0", "limit=501", "limit=x", "status=lost", "sort=total", "cursor=zz", "unknown=1", "customerId=", &long]
    {
        server.read(&format!("/api/orders?{bad}")).await.is_problem(400, "INVALID_REQUEST");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_not_met_in_time_is_told() {
    let mut harness = Harness::bare("http_stale").await;
    harness.settings.http.consistency_wait_ms = 200;
    harness.install().await;
    let server = Server::start(&harness, &["api", "processor", "relay"]).await;
    let placed = server.send("/api/orders/sync", &an_order()).await;
    let list = read_after(&server, "/api/orders", placed.header("consistency-token")).await;
    assert_eq!((list.status, list.header("consistency")), (200, "not-met"));
    assert_eq!(list.body["items"], json!([]));
    let order = format!("/api/orders/{}", placed.text("orderId"));
    // Nobody can say that it is not there: the table is behind the write.
    let behind = read_after(&server, &order, placed.header("consistency-token")).await;
    assert_eq!((behind.status, behind.header("consistency")), (503, "not-met"));
    assert!(!behind.header("retry-after").is_empty(), "{behind:?}");
    // Nobody projects, which is known after a while.
    let missing = eventually("the reason is known", || async {
        let missing = read_after(&server, &order, placed.header("consistency-token")).await;
        Some(missing).filter(|missing| missing.body["code"] != "NOT_SHOWN_YET")
    })
    .await;
    missing.is_problem(503, "PROJECTION_STANDING");
    assert_eq!(missing.header("consistency"), "not-met");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_tells_every_change_once_and_goes_on_after_a_reconnect() {
    let harness = patient("http_stream").await;
    let server = Server::whole(&harness).await;
    let placed = server.send("/api/orders/sync", &an_order()).await;
    let order = format!("/api/orders/{}", placed.text("orderId"));
    server.read(&format!("/api/orders/{}/events", Uuid::new_v4())).await.is_problem(404, "NOT_FOUND");
    let open = async |last: &str| {
        let request = server
            .get(&format!("{order}/events"))
            .header("Consistency-Token", placed.header("consistency-token"))
            .header("Last-Event-ID", last);
        let response = request.send().await.unwrap();
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        response.bytes_stream()
    };
    let mut stream = Box::pin(open("0").await);
    assert_eq!(next_event(&mut stream).await["version"], 1);
    server.send(&format!("{order}/payments"), &a_payment("39.98")).await;
    let second = next_event(&mut stream).await;
    assert_eq!((&second["version"], &second["type"]), (&json!(2), &json!("PaymentReceived")));
    drop(stream);
    let mut again = Box::pin(open("1").await);
    assert_eq!(next_event(&mut again).await["version"], 2);
    server.stop().await;
}

/// The data of the next event of a stream; each comes in one piece.
async fn next_event(
    stream: &mut (impl futures_util::Stream<Item = reqwest::Result<axum::body::Bytes>> + Unpin),
) -> Value {
    let wait = std::time::Duration::from_secs(20);
    loop {
        let piece =
            tokio::time::timeout(wait, stream.next()).await.expect("an event in time").expect("no end").unwrap();
        let text = String::from_utf8(piece.to_vec()).unwrap();
        if let Some(data) = text.lines().find_map(|line| line.strip_prefix("data: ")) {
            return serde_json::from_str(data).unwrap();
        }
    }
}
