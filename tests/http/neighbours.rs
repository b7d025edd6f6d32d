//! What happens in one commands partition, or at one server, is nobody else's trouble: admission by each policy,
//! spills of servers that came before, and lanes that grow alone or while nobody reads them.

use std::time::{Duration, Instant};

use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use serde_json::json;
use throughline::kafka::client;
use throughline::settings::AdmissionPolicy;
use uuid::Uuid;

use crate::harness::{Harness, eventually, odd};
use crate::partitions::{fill, grow, order_in, pay, place};
use crate::server::Server;

/// A server with one partition of the normal lane in which nobody decides anything.
async fn beside_one_that_stands(name: &str, policy: AdmissionPolicy) -> (Harness, Server, i32) {
    let mut harness = Harness::bare(name).await;
    harness.settings.http.admission.policy = policy;
    harness.settings.http.admission.queue_commands_max = 300;
    harness.settings.http.admission.wait_ms = 1_500;
    harness.settings.http.admission.sample_ms = 50;
    harness.install().await;
    fill(&harness, &harness.names().commands(), 2, 1_000);
    let server = Server::start(&harness, &["api"]).await;
    let count = harness.settings.topics.command_partitions;
    (harness, server, count)
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_waits_for_a_partition_that_is_not_theirs() {
    let (_harness, server, count) = beside_one_that_stands("http_others_wait", AdmissionPolicy::Wait).await;
    eventually("it is seen to stand", || async {
        (place(&server, order_in(4, count)).await.status == 202).then_some(())
    })
    .await;
    let stuck = async {
        let begun = Instant::now();
        place(&server, order_in(2, count)).await.is_problem(503, "QUEUE_FULL");
        begun.elapsed()
    };
    let others = async {
        let begun = Instant::now();
        for number in 0..20 {
            let answer = place(&server, order_in([0, 1, 3, 4, 5][number % 5], count)).await;
            assert_eq!(answer.status, 202, "{answer:?}");
        }
        begun.elapsed()
    };
    let (stuck, others) = tokio::join!(stuck, others);
    assert!(stuck >= Duration::from_millis(1_400), "its own orders wait as the policy says: {stuck:?}");
    assert!(others < Duration::from_millis(1_400), "20 orders of others took {others:?}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_spills_for_a_partition_that_is_not_theirs() {
    let (harness, server, count) = beside_one_that_stands("http_others_spill", AdmissionPolicy::Overflow).await;
    let spilled = |partition| odd::watermarks(&harness.settings.kafka, &harness.names().overflow(), partition).1;
    eventually("others go to their lane", || async {
        // Slowly: nobody decides these either, and they have their part of the limit.
        tokio::time::sleep(Duration::from_millis(500)).await;
        let before = spilled(4);
        assert_eq!(place(&server, order_in(4, count)).await.status, 202);
        (spilled(4) == before).then_some(())
    })
    .await;
    let before = spilled(2);
    for _ in 0..5 {
        assert_eq!(place(&server, order_in(2, count)).await.status, 202);
    }
    assert_eq!(spilled(2), before + 5, "its own spill");
    server.stop().await;
}

/// It has sampled nothing when the order's next command comes.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_starts_finds_what_others_spilled() {
    const ORDERS: i64 = 24;
    let mut harness = Harness::bare("http_spilled_before").await;
    harness.settings.http.admission.policy = AdmissionPolicy::Overflow;
    harness.settings.http.admission.queue_commands_max = 10;
    harness.settings.http.admission.sample_ms = 5_000;
    harness.install().await;
    let first = Server::start(&harness, &["api"]).await;
    let orders: Vec<Uuid> = (0..ORDERS).map(|_| Uuid::new_v4()).collect();
    for order in &orders {
        assert_eq!(place(&first, *order).await.status, 202);
    }
    // The one goes, or stays: the next one learns of its spills from Kafka alone.
    let stays = Server::start(&harness, &["api"]).await;
    for order in &orders[..12] {
        assert_eq!(pay(&stays, *order).await.status, 202);
    }
    first.stop().await;
    let late = Server::start(&harness, &["api"]).await;
    for order in &orders[12..] {
        assert_eq!(pay(&late, *order).await.status, 202);
    }
    let processor = Server::start(&harness, &["processor"]).await;
    let client = harness.client().await;
    let count = async |query: &str| client.query_one(query, &[]).await.expect("a count").get::<_, i64>(0);
    eventually("all are decided", || async {
        (count("select count(*) from throughline.commands").await == 2 * ORDERS).then_some(())
    })
    .await;
    assert_eq!(count("select count(*) from throughline.commands where not accepted").await, 0, "none was overtaken");
    for server in [processor, stays, late] {
        server.stop().await;
    }
}

/// One order to each of these partitions, by a program that is not ours.
fn produce_to(harness: &Harness, topic: &str, partitions: std::ops::Range<i32>) {
    let producer: BaseProducer = client::producer(&harness.settings.kafka, 5).create().expect("a producer");
    for partition in partitions {
        let order = Uuid::new_v4();
        let value = json!({
            "type": "PlaceOrder", "commandId": Uuid::new_v4(), "orderId": order, "customerId": "customer-1", "currency": "USD",
            "items": [{"productId": Uuid::from_u128(9), "quantity": 2, "unitPrice": "10.00"}],
        });
        let (key, value) = (order.to_string(), value.to_string());
        producer.send(BaseRecord::to(topic).partition(partition).key(&key).payload(&value)).expect("queued");
    }
    producer.flush(Duration::from_secs(30)).expect("sent");
}

async fn accepted(harness: &Harness, wanted: i64) {
    let client = harness.client().await;
    eventually("every order is placed, once", || async {
        let found = "select count(*), count(*) filter (where accepted) from throughline.commands";
        let row = client.query_one(found, &[]).await.expect("outcomes");
        assert!(row.get::<_, i64>(0) <= wanted);
        (row.get::<_, i64>(1) == wanted).then_some(())
    })
    .await;
}

/// One lane grows, and grows again, with two processors that share it; the others stay as they are.
#[tokio::test(flavor = "multi_thread")]
async fn a_lane_that_grows_is_shared_by_all_who_read_it() {
    let harness = Harness::new("http_grown_lane").await;
    let lane = harness.names().lanes().into_iter().next().expect("a lane");
    let processors = [Server::start(&harness, &["processor"]).await, Server::start(&harness, &["processor"]).await];
    let client = harness.client().await;
    let mut sent = 0;
    for partitions in [8, 11] {
        grow(&harness, &lane, partitions as usize).await;
        produce_to(&harness, &lane, 0..partitions);
        sent += i64::from(partitions);
        accepted(&harness, sent).await;
    }
    let read = "select count(*), count(distinct source_topic) filter (where partition >= 6) from throughline.offsets
                where source_topic = $1 or partition >= 6";
    let row = client.query_one(read, &[&lane]).await.expect("offsets");
    assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1)), (11, 1), "this lane and no other");
    for processor in processors {
        processor.stop().await;
    }
}

/// New partitions are read from their beginning by whoever starts next.
#[tokio::test(flavor = "multi_thread")]
async fn a_lane_that_grew_while_nobody_ran_is_read_from_its_beginning() {
    let harness = Harness::new("http_grown_away").await;
    let processor = Server::start(&harness, &["processor"]).await;
    produce_to(&harness, &harness.names().commands(), 0..6);
    accepted(&harness, 6).await;
    processor.stop().await;
    grow(&harness, &harness.names().commands(), 10).await;
    produce_to(&harness, &harness.names().commands(), 3..10);
    let processor = Server::start(&harness, &["processor"]).await;
    accepted(&harness, 13).await;
    processor.stop().await;
}
