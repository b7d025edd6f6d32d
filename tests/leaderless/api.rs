//! The API: orders of the dead broker's partitions are told so at once, the others notice nothing.

use std::time::{Duration, Instant};

use futures_util::stream::{self, StreamExt as _};
use serde_json::json;
use throughline::engine::destination_partition;
use uuid::Uuid;

use super::harness::{Harness, eventually};
use super::server::{Answer, Server, an_order};
use super::{Cluster, PARTITIONS, lives};

async fn place(server: &Server, order: Uuid) -> Answer {
    let mut body = an_order();
    body["orderId"] = json!(order);
    server.send("/api/orders", &body).await
}

fn order(living: bool) -> Uuid {
    let is_wanted = |id: &Uuid| lives(destination_partition(*id, PARTITIONS)) == living;
    std::iter::repeat_with(Uuid::new_v4).find(is_wanted).expect("one")
}

async fn orders_of_others_go_on(server: &Server) {
    // Dead ones first, and more than requests may be open at once.
    let dead = stream::iter(0..200).map(|_| place(server, order(false))).buffer_unordered(200).collect::<Vec<_>>();
    let living = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let started = Instant::now();
        let answers: Vec<Answer> =
            stream::iter(0..200).map(|_| place(server, order(true))).buffer_unordered(16).collect().await;
        (answers, started.elapsed())
    };
    let (dead, (living, took)) = tokio::join!(dead, living);
    assert!(living.iter().all(|answer| answer.status == 202), "{living:?}");
    assert!(took < Duration::from_secs(5), "{took:?}");
    for answer in dead {
        assert_eq!(answer.status, 503, "{answer:?}");
        assert!(["KAFKA_UNAVAILABLE", "QUEUE_FULL"].contains(&answer.text("code")), "{answer:?}");
    }
}

fn few_requests(harness: &mut Harness) {
    harness.settings.http.concurrent_requests_max = 300;
    harness.settings.http.request_timeout_ms = 10_000;
    harness.settings.http.admission.sample_ms = 50;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn orders_of_a_broker_that_is_away_are_refused_and_others_taken() {
    let cluster = Cluster::up().await;
    let mut harness = cluster.harness("api_leaderless").await;
    few_requests(&mut harness);
    let server = Server::start(&harness, &["api"]).await;
    assert_eq!(place(&server, order(false)).await.status, 202);
    cluster.kill_second().await;
    // Nobody knows yet.
    orders_of_others_go_on(&server).await;
    let told = eventually("it is known", || async {
        let answer = place(&server, order(false)).await;
        Some(answer).filter(|answer| answer.text("detail").contains("no broker leads"))
    })
    .await;
    told.is_problem(503, "KAFKA_UNAVAILABLE");
    orders_of_others_go_on(&server).await;
    cluster.start_second().await;
    eventually("all are taken again", || async { (place(&server, order(false)).await.status == 202).then_some(()) })
        .await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_starts_without_a_broker_takes_what_the_other_leads() {
    let cluster = Cluster::up().await;
    let mut harness = cluster.harness("api_leaderless_start").await;
    few_requests(&mut harness);
    cluster.kill_second().await;
    let server = Server::start(&harness, &["api"]).await;
    orders_of_others_go_on(&server).await;
    cluster.start_second().await;
    eventually("all are taken", || async { (place(&server, order(false)).await.status == 202).then_some(()) }).await;
    server.stop().await;
}
