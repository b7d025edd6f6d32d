//! What no honest caller sends: text that PostgreSQL cannot hold, forged cursors, made-up methods, other hosts.

use reqwest::Method;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::harness::{Harness, eventually};
use crate::server::{Answer, Server, a_payment, an_order};

/// A cursor made by somebody who has read how ours are made.
fn forged(list: &str, fields: &[&str]) -> String {
    let text = fields.join("\n");
    let check = Sha256::digest(format!("{list}\n\n{text}"));
    check[..4].iter().chain(text.as_bytes()).map(|byte| format!("{byte:02x}")).collect()
}

/// The read tables are there, and empty.
async fn server(name: &str) -> (Harness, Server) {
    let harness = Harness::new(name).await;
    let server = Server::start(&harness, &["api", "projections"]).await;
    (harness, server)
}

async fn is_refused(server: &Server, method: Method, path: &str) {
    let request = server.request(method.clone(), path).json(&an_order());
    Answer::of(request.send().await.unwrap()).await.is_problem(400, "INVALID_REQUEST");
}

#[tokio::test(flavor = "multi_thread")]
async fn text_that_postgresql_cannot_hold_is_the_callers_on_every_route() {
    let (_harness, server) = server("http_nul").await;
    let document = server.read("/openapi.json").await;
    let routes = document.body["paths"].as_object().unwrap();
    assert!(routes.len() >= 13, "{}", routes.len());
    for (path, item) in routes {
        for (method, operation) in item.as_object().unwrap() {
            let method: Method = method.to_uppercase().parse().unwrap();
            let parameters = operation["parameters"].as_array().cloned().unwrap_or_default();
            let filled = |nul: &str| {
                let id = Uuid::nil().to_string();
                let fill = |path: String, name: &str| {
                    path.replace(&format!("{{{name}}}"), if name == nul { "a%00b" } else { &id })
                };
                ["orderId", "commandId", "customerId"].iter().fold(path.clone(), |path, name| fill(path, name))
            };
            for parameter in &parameters {
                let name = parameter["name"].as_str().unwrap();
                match parameter["in"].as_str().unwrap() {
                    "path" => is_refused(&server, method.clone(), &filled(name)).await,
                    "query" => {
                        for value in ["%00", "a%00b", "%00%00"] {
                            is_refused(&server, method.clone(), &format!("{}?{name}={value}", filled(""))).await;
                        }
                    }
                    // No client can send one in a header; the server would not read on.
                    _ => {}
                }
            }
        }
    }
    // In a body it is one of the texts that are no valid field.
    for (path, body) in [
        ("/api/orders", json!({"customerId": "a\0b", "currency": "USD", "items": an_order()["items"]})),
        ("/api/orders", json!({"customerId": "a", "currency": "U\0D", "items": an_order()["items"]})),
        ("/api/orders", json!({"customerId": "a", "currency": "USD", "items": an_order()["items"], "a\0": 1})),
        ("/api/orders/{id}/payments", json!({"paymentId": Uuid::from_u128(8), "amount": "1\0", "currency": "USD"})),
        ("/api/orders/{id}/shipments", json!({"carrier": "a\0b", "trackingNumber": "c"})),
        ("/api/orders/{id}/shipments", json!({"carrier": "a", "trackingNumber": "\0"})),
        ("/api/orders/{id}/cancellation", json!({"reason": "\0"})),
    ] {
        let path = path.replace("{id}", &Uuid::from_u128(7).to_string());
        for path in [path.clone(), format!("{path}/sync")] {
            server.send(&path, &body).await.is_problem(422, "INVALID_COMMAND");
        }
    }
    // The registry tells it in the shape of a registry.
    for path in ["/subjects/a%00b/versions", "/subjects?subjectPrefix=%00", "/config/%00", "/subjects/%00/versions/1"] {
        let told = server.read(path).await;
        assert_eq!((told.status, &told.body["error_code"]), (400, &json!(400)), "{path}: {told:?}");
    }
    let looked_up = server.send("/subjects/a%00b", &json!({"schema": "\"int\""})).await;
    assert_eq!((looked_up.status, &looked_up.body["error_code"]), (400, &json!(400)), "{looked_up:?}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn forged_cursors_are_the_callers() {
    let (_harness, server) = server("http_cursors").await;
    let id = Uuid::nil().to_string();
    let (orders, sales) = ("NewestFirst/None/None", "None/None/None");
    let honest = forged(orders, &["1700000000000000", &id]);
    assert_eq!(server.read(&format!("/api/orders?cursor={honest}")).await.status, 200, "it is made as ours are");
    let honest = forged(sales, &["2026-01-31", &id, "USD"]);
    assert_eq!(server.read(&format!("/api/sales/daily?cursor={honest}")).await.status, 200);
    let long = "9".repeat(400);
    let mut bad: Vec<(&str, String)> = Vec::new();
    for micros in [
        "-377705023201000000",
        "-210866803200000001",
        "253402300800000000",
        "99999999999999999999",
        "-1e3",
        "",
        "x",
        "\0",
        &long,
    ] {
        bad.push(("/api/orders", forged(orders, &[micros, &id])));
    }
    for place in [&["1"][..], &["1", ""], &["1", "no-id"], &["1", &id, "more"], &["1", "\0"], &[], &["1", &long]] {
        bad.push(("/api/orders", forged(orders, place)));
    }
    for day in ["-009999-01-01", "0000-01-01", "+10000-01-01", "2026-13-01", "99999-01-01", "", "\0"] {
        bad.push(("/api/sales/daily", forged(sales, &[day, &id, "USD"])));
    }
    for currency in ["US\0", "\0\0\0", "", "usd", "XYZ", &long] {
        bad.push(("/api/sales/daily", forged(sales, &["2026-01-31", &id, currency])));
    }
    for path in ["/api/orders", "/api/sales/daily"] {
        // Bad base 16, base 64 instead, another list's, cut, signs, huge, none.
        let whole = forged(if path == "/api/orders" { sales } else { orders }, &["1", &id]);
        for text in [
            "zz",
            "=",
            "eyJhIjoxfQ==",
            "AAAAAAAAAAAA",
            "%2B0%2B0%2B0%2B0%2B0%2B0",
            "%F0%9F%98%80",
            "",
            "00",
            "%00",
            &whole,
            &whole[..20],
            &"0".repeat(1_024),
            &"f".repeat(60_000),
        ] {
            bad.push((path, text.to_owned()));
        }
    }
    for (path, cursor) in bad {
        let answer = server.read(&format!("{path}?cursor={cursor}")).await;
        assert_eq!((answer.status, answer.text("code")), (400, "INVALID_REQUEST"), "{path} {cursor}: {answer:?}");
    }
    // What else takes a place in a list.
    for (name, value) in [("Last-Event-ID", "-1"), ("Last-Event-ID", "99999999999999999999"), ("Last-Event-ID", "1x")] {
        let request = server.get(&format!("/api/orders/{id}/events")).header(name, value);
        Answer::of(request.send().await.unwrap()).await.is_problem(400, "INVALID_REQUEST");
    }
    for query in [
        "atTime=-009999-01-01T00:00:00Z",
        "atTime=+999999-01-01T00:00:00Z",
        "atVersion=9999999999999999999",
        "atVersion=-1",
    ] {
        server.read(&format!("/api/orders/{id}/history?{query}")).await.is_problem(400, "INVALID_REQUEST");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_do_not_grow_with_what_callers_make_up() {
    let (_harness, server) = server("http_labels").await;
    let metrics =
        async || server.client.get(format!("{}/metrics", server.admin)).send().await.unwrap().text().await.unwrap();
    for number in 0..40 {
        let word = format!("MADEUP{number}");
        for path in ["/api/orders", "/nowhere", "/subjects", "/docs/"] {
            let method = Method::from_bytes(word.as_bytes()).unwrap();
            server.request(method, path).send().await.unwrap();
        }
        for path in [
            format!("/{word}"),
            format!("/api/{word}?x={word}"),
            format!("/subjects/{word}/versions"),
            format!("/subjects/{word}/{word}"),
            format!("/problems/{word}"),
            format!("/docs/{word}"),
            format!("/api/customers/{word}"),
            format!("/api/orders?lane={word}&status={word}"),
        ] {
            server.get(&path).header("X-Correlation-ID", &word).send().await.unwrap();
        }
        let body = json!({"type": word, "customerId": word, "currency": word});
        server.post(&format!("/api/orders?lane={word}"), &body).header("Prefer", &word).send().await.unwrap();
        server.post("/api/orders", &body).header("Idempotency-Key", &word).send().await.unwrap();
    }
    let text = metrics().await;
    let words: Vec<&str> = text.lines().filter(|line| line.contains("MADEUP")).collect();
    assert!(words.is_empty(), "a caller's word is a label: {words:?}");
    assert!(text.contains("method=\"other\""), "they are counted all the same");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_name_than_ours_is_not_answered_while_nobody_is_asked_who_they_are() {
    let mut harness = Harness::bare("http_hosts").await;
    harness.settings.http.allowed_hosts = vec!["proxy.internal".into()];
    harness.install().await;
    let server = Server::start(&harness, &["api"]).await;
    let named = async |base: &str, path: &str, host: &str| {
        let request = server.client.get(format!("{base}{path}")).header("Host", host);
        Answer::of(request.send().await.unwrap()).await
    };
    let ports = [
        (&server.base, "/api/orders"),
        (&server.base, "/openapi.json"),
        (&server.base, "/subjects"),
        (&server.admin, "/livez"),
        (&server.admin, "/metrics"),
        (&server.admin, "/nowhere"),
    ];
    for (base, path) in ports {
        for host in
            ["evil.example", "evil.example:8080", "localhost.evil.example", "10.0.0.1", "127.0.0.1.nip.io", "a b"]
        {
            let answer = named(base, path, host).await;
            answer.is_problem(421, "HOST_NOT_ALLOWED");
            assert_eq!(answer.header("x-content-type-options"), "nosniff");
        }
        for host in ["localhost", "localhost:99", "127.0.0.1", "127.1.2.3:80", "[::1]:1", "proxy.internal:8080"] {
            assert_ne!(named(base, path, host).await.status, 421, "{path} as {host}");
        }
    }
    let command = server.post("/api/orders", &an_order()).header("Host", "evil.example");
    Answer::of(command.send().await.unwrap()).await.is_problem(421, "HOST_NOT_ALLOWED");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_tells_browsers_what_they_may_do_with_it() {
    let harness = Harness::new("http_headers").await;
    let server = Server::whole(&harness).await;
    let placed = server.send("/api/orders/sync", &an_order()).await;
    let order = format!("/api/orders/{}", placed.text("orderId"));
    let found = eventually("the order is visible", || async {
        let found = server.read(&order).await;
        (found.status == 200).then_some(found)
    })
    .await;
    let accepted = server.send(&format!("{order}/payments"), &a_payment("39.98")).await;
    let own = "private, no-cache";
    let unchanged = server.get(&order).header("If-None-Match", found.header("etag")).send().await.unwrap();
    for (answer, cache) in [
        (placed, "no-store"),
        (accepted, "no-store"),
        (found, own),
        (Answer::of(unchanged).await, own),
        (server.read("/api/orders").await, "no-store"),
        (server.read("/nowhere").await, "no-store"),
        (server.read("/api/orders?limit=x").await, "no-store"),
        (server.read("/subjects").await, "no-store"),
        (server.read("/openapi.json").await, "max-age=300"),
        (server.read("/problems/QUEUE_FULL").await, "max-age=300"),
        (server.read("/problems/NONE").await, "no-store"),
        (Answer::of(server.client.get(format!("{}/metrics", server.admin)).send().await.unwrap()).await, "no-store"),
        (Answer::of(server.client.get(format!("{}/readyz", server.admin)).send().await.unwrap()).await, "no-store"),
    ] {
        assert_eq!(
            (answer.header("x-content-type-options"), answer.header("cache-control")),
            ("nosniff", cache),
            "{answer:?}"
        );
    }
    server.stop().await;
}
