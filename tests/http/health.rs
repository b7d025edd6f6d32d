//! Loops whose database goes away: alive, not ready, and ready again by themselves.

use std::time::{Duration, Instant};

use crate::harness::way::Way;
use crate::harness::{Harness, eventually};
use crate::server::{Answer, Server, an_order};

/// Silence that counts as a hang here; the outage lasts longer.
const SILENCE_MAX: Duration = Duration::from_secs(8);

#[tokio::test(flavor = "multi_thread")]
async fn without_a_database_every_loop_lives_and_none_is_ready() {
    let mut harness = Harness::new("http_health").await;
    let (mut way, url) = Way::new(harness.settings.database.url.expose()).await;
    harness.settings.database.url = url.as_str().into();
    harness.settings.database.pool_wait_ms = 2_000;
    harness.settings.http.heartbeat_silence_max_ms = SILENCE_MAX.as_millis() as u64;
    let server = Server::whole(&harness).await;
    let get = async |path: &str| {
        let url = format!("{}{path}?verbose", server.admin);
        Answer::of(server.client.get(url).send().await.expect("an answer")).await
    };
    // Every loop is on the list, and has begun.
    let started = get("/startupz").await;
    assert_eq!(started.status, 200, "{started:?}");
    let loops: Vec<&str> =
        started.body["checks"].as_array().unwrap().iter().map(|check| check["name"].as_str().unwrap()).collect();
    for name in [
        "api orders",
        "api outcomes orders",
        "processor worker orders 0",
        "projection order-list",
        "relay",
        "relay leases",
    ] {
        assert!(loops.contains(&name), "{name} of {loops:?}");
    }

    // The processor has its partitions: only then a command meets the missing database.
    let before = server.send("/api/orders/sync", &an_order()).await;
    assert_eq!(before.status, 201, "{before:?}");
    way.cut().await;
    let cut = Instant::now();
    // Accepting needs no database; deciding does.
    let accepted = server.send("/api/orders", &an_order()).await;
    assert_eq!(accepted.status, 202, "{accepted:?}");
    // Also the worker that has nothing to do.
    for name in [
        "api orders",
        "processor worker orders 0",
        "processor worker orders 1",
        "projection order-list",
        "relay",
        "relay leases",
    ] {
        eventually(&format!("{name} misses the database"), || async {
            let ready = get("/readyz").await;
            let missing = |check: &serde_json::Value| {
                check["ok"] == false && check["name"].as_str().is_some_and(|found| found.starts_with(name))
            };
            (ready.status == 503 && ready.body["checks"].as_array().unwrap().iter().any(missing)).then_some(())
        })
        .await;
    }
    while cut.elapsed() < SILENCE_MAX + Duration::from_secs(2) {
        let live = get("/livez").await;
        assert_eq!(live.status, 200, "a loop that tries again lives: {live:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(get("/startupz").await.status, 200, "started once is started");

    way.open().await;
    eventually("ready again", || async { (get("/readyz").await.status == 200).then_some(()) }).await;
    eventually("what was accepted meanwhile is decided", || async {
        let status = server.read(accepted.header("location")).await;
        (status.status == 200 && status.text("status") == "accepted").then_some(())
    })
    .await;
    let metrics = server.client.get(format!("{}/metrics", server.admin)).send().await.unwrap().text().await.unwrap();
    assert!(metrics.contains("throughline_loop_silence_seconds{loop=\"relay\"}"), "the gauge of each loop");
    server.stop().await;
}
