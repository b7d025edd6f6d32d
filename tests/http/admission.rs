//! Admission with the processor away: each policy, and what is accepted is decided later.

use std::collections::BTreeSet;

use futures_util::stream::{self, StreamExt as _};
use throughline::settings::AdmissionPolicy;
use uuid::Uuid;

use crate::harness::{Harness, eventually};
use crate::server::{Answer, Server, a_payment, an_order};

async fn harness(name: &str, policy: AdmissionPolicy, commands_max: u64) -> Harness {
    let mut harness = Harness::bare(name).await;
    harness.settings.http.admission.policy = policy;
    harness.settings.http.admission.queue_commands_max = commands_max;
    harness.settings.http.admission.wait_ms = 500;
    harness.settings.http.admission.sample_ms = 50;
    harness.install().await;
    harness
}

/// Sends `count` orders, 32 at a time.
async fn flood(server: &Server, count: usize) -> Vec<Answer> {
    stream::iter(0..count)
        .map(|_| async { server.send("/api/orders", &an_order()).await })
        .buffer_unordered(32)
        .collect()
        .await
}

/// Command ids that have an outcome.
async fn decided(harness: &Harness) -> BTreeSet<String> {
    let rows = harness.client().await.query("select command_id from throughline.commands", &[]).await.unwrap();
    rows.iter().map(|row| row.get::<_, Uuid>(0).to_string()).collect()
}

fn accepted(answers: &[Answer]) -> BTreeSet<String> {
    answers.iter().filter(|answer| answer.status == 202).map(|answer| answer.text("commandId").to_owned()).collect()
}

async fn everything_accepted_is_decided(harness: &Harness, accepted: &BTreeSet<String>) {
    let processor = Server::start(harness, &["processor"]).await;
    eventually("every accepted command is decided", || async { (decided(harness).await == *accepted).then_some(()) })
        .await;
    processor.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reject_answers_503_with_retry_after_from_the_limit_on() {
    let harness = harness("http_reject", AdmissionPolicy::Reject, 200).await;
    let server = Server::start(&harness, &["api"]).await;
    let mut answers = flood(&server, 300).await;
    // A sample taken during the flood counts what was under way twice: the rest fits after the next.
    while accepted(&answers).len() < 200 {
        answers.extend(flood(&server, 10).await);
    }
    answers.extend(flood(&server, 50).await);
    let accepted = accepted(&answers);
    assert_eq!(accepted.len(), 200);
    for refused in answers.iter().filter(|answer| answer.status != 202) {
        refused.is_problem(503, "QUEUE_FULL");
        assert!(refused.header("retry-after").parse::<u64>().unwrap() >= 1);
    }
    everything_accepted_is_decided(&harness, &accepted).await;
    eventually("there is room again", || async {
        (server.send("/api/orders", &an_order()).await.status == 202).then_some(())
    })
    .await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wait_blocks_then_answers_503_or_goes_on_when_there_is_room() {
    let mut harness = harness("http_wait", AdmissionPolicy::Wait, 10).await;
    let server = Server::start(&harness, &["api"]).await;
    let mut answers = flood(&server, 10).await;
    while accepted(&answers).len() < 10 {
        answers.extend(flood(&server, 1).await);
    }
    let started = std::time::Instant::now();
    server.send("/api/orders", &an_order()).await.is_problem(503, "QUEUE_FULL");
    assert!(started.elapsed().as_millis() >= 450, "it waited");
    server.stop().await;
    harness.settings.http.admission.wait_ms = 30_000;
    let server = Server::start(&harness, &["api"]).await;
    let (waiting, processor) =
        futures_util::join!(flood(&server, 5), async { Server::start(&harness, &["processor"]).await });
    assert_eq!(accepted(&waiting).len(), 5, "{waiting:?}");
    processor.stop().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn overflow_accepts_survives_a_restart_and_keeps_the_order_of_orders() {
    let harness = harness("http_overflow", AdmissionPolicy::Overflow, 20).await;
    let server = Server::start(&harness, &["api"]).await;
    // Two commands an order, the second sent after the first was accepted: most of both overflow.
    let pair = async |server: &Server| {
        let placed = server.send("/api/orders", &an_order()).await;
        let pay = format!("/api/orders/{}/payments", placed.text("orderId"));
        let paid = server.send(&pay, &a_payment("39.98")).await;
        [placed, paid]
    };
    let before: Vec<Answer> = stream::iter(0..60)
        .map(|_| pair(&server))
        .buffer_unordered(16)
        .collect::<Vec<_>>()
        .await
        .into_iter()
        .flatten()
        .collect();
    server.stop().await;
    let server = Server::start(&harness, &["api"]).await;
    let after: Vec<Answer> = stream::iter(0..20)
        .map(|_| pair(&server))
        .buffer_unordered(16)
        .collect::<Vec<_>>()
        .await
        .into_iter()
        .flatten()
        .collect();
    let all: Vec<Answer> = before.into_iter().chain(after).collect();
    let refused: Vec<&Answer> = all.iter().filter(|answer| answer.status != 202).collect();
    assert!(refused.is_empty(), "{refused:?}");
    let accepted = accepted(&all);
    assert_eq!(accepted.len(), 160);
    assert!(decided(&harness).await.is_empty());
    everything_accepted_is_decided(&harness, &accepted).await;
    // Nothing was overtaken: a payment before its order would have been refused.
    let row = harness.client().await.query_one("select count(*) from throughline.commands where accepted", &[]).await;
    assert_eq!(row.unwrap().get::<_, i64>(0), 160);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_has_its_share_and_no_more() {
    let mut harness = Harness::bare("http_rate").await;
    harness.settings.http.admission.caller_commands_per_second_max = 5;
    harness.install().await;
    let server = Server::start(&harness, &["api"]).await;
    let answers = flood(&server, 30).await;
    assert!((5..=15).contains(&accepted(&answers).len()), "{}", accepted(&answers).len());
    let limited = answers.iter().find(|answer| answer.status == 429).expect("a refusal");
    limited.is_problem(429, "RATE_LIMITED");
    assert!(limited.header("retry-after").parse::<u64>().unwrap() >= 1);
    assert_eq!(server.read("/api/orders").await.status, 200, "reads are not commands");
    server.stop().await;
}
