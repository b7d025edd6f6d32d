//! A processor that stands still inside its open transaction, is taken over, and wakes up: nothing of
//! what it held in its hands may count.

use rdkafka::producer::{FutureProducer, FutureRecord};
use throughline::kafka::client;
use tokio_postgres::Client;
use uuid::Uuid;

use crate::harness::{Harness, PATIENCE, eventually};
use crate::one_order::place_order;
use crate::process::{Process, command};

const ORDERS: u128 = 200;

/// The session of the stopped process keeps its locks until PostgreSQL ends it.
const IDLE_MS: &str = "8000";

#[tokio::test(flavor = "multi_thread")]
async fn stopped_after_it_decided_it_changes_nothing() {
    stopped_at("processor.after_decide").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stopped_before_its_commit_it_changes_nothing() {
    stopped_at("processor.before_commit").await;
}

fn processor(harness: &Harness, stop_at: Option<&str>) -> Process {
    let mut command = command(harness, &["run", "processor"]);
    // One worker: a second could commit in the moment between the point and the stop.
    command
        .env("THROUGHLINE__DATABASE__IDLE_IN_TRANSACTION_TIMEOUT_MS", IDLE_MS)
        .env("THROUGHLINE__PROCESSOR__WORKERS", "1");
    command.envs(stop_at.map(|point| ("THROUGHLINE_STOP_AT", point)));
    Process::start(command)
}

async fn number(client: &Client, query: &str) -> i64 {
    client.query_one(query, &[]).await.expect("a number").get(0)
}

/// Every order is sent twice: a second effect would show as a second event.
async fn place(harness: &Harness, numbers: std::ops::RangeInclusive<u128>) {
    let producer: FutureProducer = client::producer(&harness.settings.kafka, 2).create().expect("a producer");
    let topic = harness.names().commands();
    for number in numbers.clone().chain(numbers) {
        let order = Uuid::from_u128(number);
        let value = place_order(order, Uuid::from_u128(1 << 64 | number)).to_string();
        let key = order.to_string();
        producer.send(FutureRecord::to(&topic).key(&key).payload(&value), PATIENCE).await.expect("acknowledged");
    }
}

async fn until_decided(client: &Client, orders: u128) {
    eventually("every order decided", || async {
        (number(client, "select count(*) from throughline.commands").await >= orders as i64).then_some(())
    })
    .await;
}

async fn stopped_at(point: &str) {
    const OPEN: &str = "select count(*) from pg_stat_activity
                        where datname = current_database() and state = 'idle in transaction'
                          and backend_xid is not null";
    let harness = Harness::new("zombie").await;
    let client = harness.client().await;
    place(&harness, 1..=ORDERS).await;
    let zombie = processor(&harness, Some(point));
    zombie.logged(&format!("crash point {point}")).await;
    eventually("it stands inside its transaction, with its locks", || async {
        (number(&client, OPEN).await == 1).then_some(())
    })
    .await;
    assert_eq!(number(&client, "select count(*) from throughline.commands").await, 0);

    let successor = processor(&harness, None);
    until_decided(&client, ORDERS).await;
    zombie.wake();
    place(&harness, ORDERS + 1..=2 * ORDERS).await;
    until_decided(&client, 2 * ORDERS).await;
    // Alone again, the woken process goes on as if nothing had been.
    assert_eq!(successor.terminate().await, 0);
    place(&harness, 2 * ORDERS + 1..=3 * ORDERS).await;
    until_decided(&client, 3 * ORDERS).await;
    assert_eq!(zombie.terminate().await, 0);

    let once = 3 * ORDERS as i64;
    assert_eq!(number(&client, "select count(*) from throughline.commands").await, once);
    assert_eq!(number(&client, "select count(*) from throughline.events").await, once);
    assert_eq!(number(&client, "select count(*) from throughline.events where version = 1").await, once);
    assert_eq!(number(&client, "select count(distinct stream_id) from throughline.events").await, once);
    let counted = "select sum(last_seq)::bigint from throughline.counters c join throughline.topics t on t.id = c.topic
                   where t.name like '%events'";
    assert_eq!(number(&client, counted).await, once, "no sequence number without its event");
}
