//! Commands by partition: what one holds up, how an order keeps its order across servers, and topics that grow.

use std::collections::BTreeSet;

use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions};
use rdkafka::client::DefaultClientContext;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use serde_json::json;
use std::time::Duration;
use throughline::app::install;
use throughline::engine::destination_partition;
use throughline::kafka::{client, topics};
use throughline::settings::AdmissionPolicy;
use uuid::Uuid;

use crate::harness::{Harness, eventually};
use crate::server::{Answer, Server, a_payment, an_order};

/// An order that lives in `partition` of so many.
pub fn order_in(partition: i32, partitions: i32) -> Uuid {
    std::iter::repeat_with(Uuid::new_v4).find(|id| destination_partition(*id, partitions) == partition).expect("one")
}

pub async fn place(server: &Server, order: Uuid) -> Answer {
    let mut body = an_order();
    body["orderId"] = json!(order);
    server.send("/api/orders", &body).await
}

pub async fn pay(server: &Server, order: Uuid) -> Answer {
    server.send(&format!("/api/orders/{order}/payments"), &a_payment("39.98")).await
}

/// Junk that no processor takes, straight to one partition.
pub fn fill(harness: &Harness, topic: &str, partition: i32, records: usize) {
    let producer: BaseProducer = client::producer(&harness.settings.kafka, 5).create().expect("a producer");
    for _ in 0..records {
        producer.send(BaseRecord::<str, str>::to(topic).partition(partition).key("k").payload("{}")).expect("queued");
    }
    producer.flush(Duration::from_secs(30)).expect("sent");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_that_stands_refuses_its_own_orders_only() {
    let mut harness = Harness::bare("http_stands").await;
    harness.settings.http.admission.queue_commands_max = 300;
    harness.settings.http.admission.sample_ms = 50;
    harness.install().await;
    let count = harness.settings.topics.command_partitions;
    // Nobody decides partition 2, and there is nothing to decide elsewhere.
    fill(&harness, &harness.names().commands(), 2, 1_000);
    let server = Server::start(&harness, &["api"]).await;
    for partition in (0..count).filter(|partition| *partition != 2) {
        eventually("others are accepted", || async {
            (place(&server, order_in(partition, count)).await.status == 202).then_some(())
        })
        .await;
        place(&server, order_in(2, count)).await.is_problem(503, "QUEUE_FULL");
    }
    for _ in 0..20 {
        assert_eq!(place(&server, order_in(4, count)).await.status, 202);
    }
    // The bound is there for them as well.
    let mut accepted = 0;
    while place(&server, order_in(4, count)).await.status == 202 {
        accepted += 1;
        assert!(accepted < 300);
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_keeps_its_order_across_servers() {
    const ORDERS: usize = 40;
    let mut harness = Harness::bare("http_two_servers").await;
    harness.settings.http.admission.policy = AdmissionPolicy::Overflow;
    harness.settings.http.admission.queue_commands_max = 10;
    // What a server knows of the other by sampling is old.
    harness.settings.http.admission.sample_ms = 5_000;
    harness.install().await;
    let servers = [Server::start(&harness, &["api"]).await, Server::start(&harness, &["api"]).await];
    let mut accepted = BTreeSet::new();
    for number in 0..ORDERS {
        let order = Uuid::new_v4();
        // Both ways round.
        let placed = place(&servers[number % 2], order).await;
        let paid = pay(&servers[(number + 1) % 2], order).await;
        for answer in [placed, paid] {
            assert_eq!(answer.status, 202, "{answer:?}");
            accepted.insert(answer.text("commandId").to_owned());
        }
    }
    let processor = Server::start(&harness, &["processor"]).await;
    let client = harness.client().await;
    let count = async |query: &str| client.query_one(query, &[]).await.expect("a count").get::<_, i64>(0);
    eventually("all are decided", || async {
        (count("select count(*) from throughline.commands").await == 2 * ORDERS as i64).then_some(())
    })
    .await;
    assert_eq!(accepted.len(), 2 * ORDERS);
    // A payment before its order would have been refused.
    assert_eq!(count("select count(*) from throughline.commands where not accepted").await, 0);
    processor.stop().await;
    for server in servers {
        server.stop().await;
    }
}

pub async fn grow(harness: &Harness, topic: &str, partitions: usize) {
    let admin: AdminClient<DefaultClientContext> =
        client::base(&harness.settings.kafka).create().expect("an admin client");
    let grown = admin
        .create_partitions(&[NewPartitions::new(topic, partitions)], &AdminOptions::new())
        .await
        .expect("an answer");
    grown.into_iter().for_each(|topic| drop(topic.expect("it grows")));
    eventually("brokers tell so", || async {
        let count = topics::partition_count(&harness.settings.kafka, topic).await.expect("an answer");
        count.is_some_and(|count| usize::try_from(count) == Ok(partitions)).then_some(())
    })
    .await;
}

/// While everything runs, and over a restart: commands topics are read in full, the others stay as they are.
#[tokio::test(flavor = "multi_thread")]
async fn topics_that_grow_are_read_and_told() {
    let harness = Harness::new("http_grown").await;
    let names = harness.names();
    let server = Server::whole(&harness).await;
    let first = Uuid::new_v4();
    assert_eq!(place(&server, first).await.status, 202);
    for topic in names.lanes().into_iter().chain([names.overflow(), names.events(), names.results()]) {
        grow(&harness, &topic, 9).await;
    }
    let client = harness.client().await;
    let started = std::time::Instant::now();
    let claimed = "select count(*) from throughline.offsets where partition >= 6";
    eventually("the new partitions are claimed", || async {
        (client.query_one(claimed, &[]).await.expect("a count").get::<_, i64>(0) == 9).then_some(())
    })
    .await;
    assert!(started.elapsed() < Duration::from_secs(40), "{:?}", started.elapsed());
    let answer = eventually("a command of a new partition is decided", || async {
        let mut body = an_order();
        body["orderId"] = json!(order_in(7, 9));
        let answer = server.send("/api/orders/sync", &body).await;
        Some(answer).filter(|answer| answer.status == 201)
    })
    .await;
    assert!(!answer.text("orderId").is_empty(), "{answer:?}");
    let in_new = "select next_offset from throughline.offsets where partition = 7 and source_topic = $1";
    let next: i64 = client.query_one(in_new, &[&names.commands()]).await.expect("an offset").get(0);
    assert!(next > 0, "it went to partition 7");
    // An order from before, whose key leads elsewhere now.
    assert_eq!(pay(&server, first).await.status, 202);
    server.stop().await;

    // The next start finds nothing wrong; what is more than wanted is told.
    install::ready(&crate::harness::orders(), &harness.settings).await.expect("ready");
    let found =
        topics::check(&harness.settings.kafka, &install::topic_specs(&reference::orders::context(), &harness.settings))
            .await
            .expect("checked");
    assert!(found.len() == 6 && found.iter().all(|one| one.is_note), "{found:?}");
    let server = Server::whole(&harness).await;
    eventually("the first order is paid", || async {
        let answer = server.read(&format!("/api/orders/{first}")).await;
        (answer.status == 200 && answer.body["status"] == "paid").then_some(())
    })
    .await;
    server.stop().await;
    let mut settings = harness.settings.clone();
    // Another number of destinations than the store's is none.
    settings.topics.event_partitions = 9;
    install::ready(&crate::harness::orders(), &settings).await.expect("the store's number counts");
    assert_eq!(
        install::with_stored_partitions(&reference::orders::context(), &settings)
            .await
            .expect("stored")
            .topics
            .event_partitions,
        6
    );
    settings.topics.command_partitions = 12;
    let refused =
        install::ready(&crate::harness::orders(), &settings).await.expect_err("fewer than wanted").to_string();
    assert!(refused.contains("--partitions 12"), "{refused}");
}
