//! SIGTERM: callers are told before they are refused; a second signal ends the process at once.

use std::time::{Duration, Instant};

use crate::harness::{Harness, eventually};
use crate::process::{Process, command};

const NOTICE: Duration = Duration::from_secs(3);

fn api(harness: &Harness, notice: Duration) -> Process {
    let mut api = command(harness, &["run", "api"]);
    api.env("THROUGHLINE__HTTP__SHUTDOWN_NOTICE_MS", notice.as_millis().to_string());
    Process::start(api)
}

/// The status answered on a new connection; none where it is refused.
async fn status(url: &str) -> Option<u16> {
    reqwest::get(url).await.ok().map(|answer| answer.status().as_u16())
}

async fn until_ready(api: &Process) -> (String, String) {
    let (base, admin) = (api.http_url().await, api.admin_url().await);
    eventually("ready", || async { (status(&format!("{admin}/readyz")).await == Some(200)).then_some(()) }).await;
    (format!("{base}/api/orders"), admin)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_stops_says_so_before_it_refuses_anybody() {
    let harness = Harness::new("notice").await;
    let api = api(&harness, NOTICE);
    let (orders, admin) = until_ready(&api).await;
    assert_eq!(status(&format!("{admin}/startupz")).await, Some(200));
    api.ask_to_stop();
    let asked = Instant::now();
    eventually("not ready", || async { (status(&format!("{admin}/readyz")).await == Some(503)).then_some(()) }).await;
    assert!(asked.elapsed() < NOTICE / 2, "it was told late: after {:?}", asked.elapsed());
    let mut answered = 0;
    while status(&orders).await == Some(200) {
        answered += 1;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let refused_after = asked.elapsed();
    assert!(refused_after >= NOTICE && answered > 5, "refused after {refused_after:?}, {answered} answered");
    assert_eq!(api.ended().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_the_process_at_once() {
    let harness = Harness::new("second_signal").await;
    // In the notice, and behind an open request.
    for notice in [Duration::from_secs(20), Duration::ZERO] {
        let api = api(&harness, notice);
        let (orders, _) = until_ready(&api).await;
        // Nobody decides: this call waits, and an orderly stop with it.
        let body = serde_json::json!({"customerId": "customer-42", "currency": "USD",
            "items": [{"productId": uuid::Uuid::from_u128(7), "quantity": 1, "unitPrice": "1.00"}]});
        let open = reqwest::Client::new().post(orders).header("Prefer", "wait=20").json(&body);
        let open = tokio::spawn(open.send());
        tokio::time::sleep(Duration::from_millis(500)).await;
        api.ask_to_stop();
        api.logged("signal received").await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        let asked = Instant::now();
        api.ask_to_stop();
        assert_eq!(api.ended().await, 130);
        assert!(asked.elapsed() < Duration::from_secs(2), "after {:?}", asked.elapsed());
        assert!(open.await.expect("no panic").is_err(), "the open request was cut off");
    }
}
