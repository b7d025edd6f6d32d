//! A token from a 201 makes the next read see the write, while the projections are under load.
//! `THROUGHLINE_TOKENS` says how many writes (500).

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::stream::{self, StreamExt as _};
use serde_json::Value;

use crate::harness::flood::Flood;
use crate::harness::{Harness, scale};
use crate::server::{Answer, Server, an_order};

/// Writers at once, and connections of the load beside them.
const WRITERS: usize = 12;
const LOAD: usize = 4;

/// The reads that must show a new order of a new customer, one a projection: its path, and whether an
/// answer shows it.
fn read_of(number: usize, order: &str, customer: &str) -> (String, fn(&Answer, &str) -> bool) {
    match number % 4 {
        0 => (format!("/api/orders/{order}"), |answer, order| answer.text("orderId") == order),
        1 => {
            (format!("/api/orders?customerId={customer}"), |answer, order| answer.body["items"][0]["orderId"] == order)
        }
        2 => (format!("/api/orders/{order}/history"), |answer, _| answer.body["events"][0]["type"] == "OrderPlaced"),
        _ => (format!("/api/customers/{customer}"), |answer, _| answer.body["orders"] == 1),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_with_the_token_of_a_write_sees_the_write() {
    let mut harness = Harness::bare("http_tokens").await;
    // How long it takes is the machine's matter; that it is seen is ours.
    harness.settings.http.consistency_wait_ms = 25_000;
    harness.install().await;
    let server = Server::whole(&harness).await;
    let writes = scale("THROUGHLINE_TOKENS", 500);
    // Groups gather before the load begins.
    let first = server.send("/api/orders/sync", &an_order()).await;
    assert_eq!(first.status, 201, "{first:?}");

    let blind = AtomicUsize::new(0);
    let write_and_read = async |number: usize| {
        let customer = format!("token-{number}");
        let mut body = an_order();
        body["customerId"] = Value::from(customer.as_str());
        let written = server.send("/api/orders/sync", &body).await;
        assert_eq!(written.status, 201, "{written:?}");
        let (path, shows) = read_of(number, written.text("orderId"), &customer);
        // Without the token the write is commonly not seen yet: the token is what makes the difference.
        if !shows(&server.read(&path).await, written.text("orderId")) {
            blind.fetch_add(1, Ordering::Relaxed);
        }
        let asked = Instant::now();
        let read = server.get(&path).header("Consistency-Token", written.header("consistency-token"));
        let read = Answer::of(read.send().await.expect("an answer")).await;
        assert_eq!((read.status, read.header("consistency")), (200, "met"), "write {number}: {read:?}");
        assert!(shows(&read, written.text("orderId")), "write {number}, {path}: {read:?}");
        asked.elapsed()
    };
    let flood = Flood { base: server.base.clone(), path: "/api/orders", connections: LOAD };
    let load = tokio::spawn(async move {
        let mut sent = 0;
        loop {
            sent += flood.span(Duration::from_secs(1)).await.len();
            LOADED.store(sent, Ordering::Relaxed);
        }
    });
    let started = Instant::now();
    let waits: Vec<Duration> = stream::iter(0..writes).map(write_and_read).buffer_unordered(WRITERS).collect().await;
    let seconds = started.elapsed().as_secs_f64();
    load.abort();
    assert!(load.await.is_err_and(|ended| ended.is_cancelled()), "the load went on to the end");
    let blind = blind.into_inner();
    println!(
        "{writes} writes in {seconds:.1} s beside {} others; {blind} reads without a token missed theirs, none with it; \
         longest wait {:.0} ms",
        LOADED.load(Ordering::Relaxed),
        waits.iter().max().expect("waits").as_secs_f64() * 1_000.0
    );
    assert!(blind > 0, "no read was ever early: nothing was shown");
    server.stop().await;
}

/// Orders of the load.
static LOADED: AtomicUsize = AtomicUsize::new(0);
