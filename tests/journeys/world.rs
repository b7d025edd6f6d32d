//! What the database goes through, under load, with every role in one process: it is waited out, and nobody
//! restarts anything. Afterwards everything sent is decided once, published and projected.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rdkafka::producer::{FutureProducer, FutureRecord};
use throughline::kafka::client;
use tokio_postgres::Client;
use uuid::Uuid;

use crate::harness::way::Way;
use crate::harness::{Harness, eventually};
use crate::one_order::place_order;
use crate::process::Process;

/// Sends orders, some every tenth of a second, until told to end; their command ids.
async fn load(harness: &Harness, end: Arc<AtomicBool>) -> tokio::task::JoinHandle<Vec<Uuid>> {
    let producer: FutureProducer = client::producer(&harness.settings.kafka, 2).create().expect("a producer");
    let topic = harness.names().commands();
    tokio::spawn(async move {
        let mut ids = Vec::new();
        let mut tick = tokio::time::interval(Duration::from_millis(100));
        while !end.load(Ordering::Acquire) {
            tick.tick().await;
            let mut deliveries = Vec::new();
            for _ in 0..20 {
                let (order, id) = (Uuid::new_v4(), Uuid::new_v4());
                let (key, value) = (order.to_string(), place_order(order, id).to_string());
                let record = FutureRecord::to(&topic).key(&key).payload(&value);
                deliveries.push(producer.send_result(record).map_err(|(error, _)| error).expect("queued"));
                ids.push(id);
            }
            for delivery in deliveries {
                delivery.await.expect("a report").map_err(|(error, _)| error).expect("acknowledged");
            }
        }
        ids
    })
}

async fn number(client: &Client, query: &str) -> i64 {
    client.query_one(query, &[]).await.expect("a number").get(0)
}

/// Everything sent is decided once, published, and applied by every projection.
async fn settled(client: &Client, sent: i64) {
    eventually("everything is decided", || async {
        (number(client, "select count(*) from throughline.commands").await >= sent).then_some(())
    })
    .await;
    let behind = "select count(*) from throughline.counters c join throughline.relay_leases l using (partition, topic)
                  where c.last_seq > l.published";
    eventually("everything is published", || async { (number(client, behind).await == 0).then_some(()) }).await;
    let unapplied = "select count(*) from throughline.counters c
                     join (select distinct partition, topic from throughline.events) e using (partition, topic)
                     cross join throughline.projections p
                     left join throughline.checkpoints k
                          on k.partition = c.partition and k.projection = p.name and k.generation = 'read'
                     where p.name <> 'payments' and coalesce(k.seq, 0) < c.last_seq";
    eventually("everything is projected", || async { (number(client, unapplied).await == 0).then_some(()) }).await;
    for (what, query, expected) in [
        ("one outcome a command", "select count(*) from throughline.commands", sent),
        ("one event a command", "select count(*) from throughline.events", sent),
        ("one row an order", "select count(*) from read.order_list", sent),
        ("nothing is given up", "select count(*) from throughline.dead_letters", 0),
    ] {
        assert_eq!(number(client, query).await, expected, "{what}");
    }
}

async fn readiness(admin: &str) -> serde_json::Value {
    let answer = reqwest::get(format!("{admin}/readyz?verbose")).await.expect("an answer");
    answer.json().await.expect("checks")
}

/// Each loop's name, and whether it says that it can work; those that only know Kafka are left out.
async fn loops(admin: &str) -> BTreeMap<String, bool> {
    let body = readiness(admin).await;
    let checks = body["checks"].as_array().expect("a list").clone();
    let named = checks.iter().map(|check| (check["name"].as_str().unwrap_or_default().to_owned(), check["ok"] == true));
    named.filter(|(name, _)| !name.starts_with("consumer ")).collect()
}

async fn all_ready(admin: &str) {
    let since = Instant::now();
    loop {
        let loops = loops(admin).await;
        if loops.values().all(|ok| *ok) {
            return eprintln!("every loop is ready {:?} after it was over", since.elapsed());
        }
        assert!(since.elapsed() < Duration::from_secs(60), "not ready: {}", readiness(admin).await);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_spell_is_waited_out_by_every_role() {
    let harness = Harness::new("read_only").await;
    let client = harness.client().await;
    let process = Process::run(&harness, &[]);
    let admin = process.admin_url().await;
    let end = Arc::new(AtomicBool::new(false));
    let feeding = load(&harness, end.clone()).await;
    eventually("the first are projected", || async {
        (number(&client, "select count(*) from read.order_list").await > 100).then_some(())
    })
    .await;
    let database = client.query_one("select current_database()::text", &[]).await.expect("a name").get::<_, String>(0);
    client
        .batch_execute(&format!(
            "alter database {database} set default_transaction_read_only = on;
             select pg_terminate_backend(pid) from pg_stat_activity
             where datname = current_database() and pid <> pg_backend_pid()"
        ))
        .await
        .expect("read only");
    eventually("it is told", || async { loops(&admin).await.values().any(|ok| !ok).then_some(()) }).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    client
        .batch_execute(&format!("alter database {database} reset default_transaction_read_only"))
        .await
        .expect("writable");
    all_ready(&admin).await;
    end.store(true, Ordering::Release);
    let sent = feeding.await.expect("the feed ends").len() as i64;
    settled(&client, sent).await;
    assert_eq!(process.terminate().await, 0, "it never ended by itself");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_network_is_noticed_in_seconds_by_every_loop() {
    let mut harness = Harness::new("silence").await;
    let client = harness.client().await;
    let (way, url) = Way::new(harness.settings.database.url.expose()).await;
    harness.settings.database.url = url.as_str().into();
    let process = Process::run(&harness, &[]);
    let admin = process.admin_url().await;
    let end = Arc::new(AtomicBool::new(false));
    let feeding = load(&harness, end.clone()).await;
    eventually("the first are projected", || async {
        (number(&client, "select count(*) from read.order_list").await > 100).then_some(())
    })
    .await;
    way.silence(true);
    let since = Instant::now();
    let mut noticed: BTreeMap<String, Duration> = BTreeMap::new();
    while since.elapsed() < Duration::from_secs(30) {
        for (name, _) in loops(&admin).await.into_iter().filter(|(_, ok)| !ok) {
            noticed.entry(name).or_insert_with(|| since.elapsed());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for (name, after) in &noticed {
        eprintln!("{name} noticed after {after:?}");
    }
    let asks_postgres = |name: &&String| {
        let begins = |with: &str| name.starts_with(with);
        *name == "api orders"
            || ["processor worker", "relay", "projection"].into_iter().any(begins) && !name.ends_with(" consumer")
    };
    for name in loops(&admin).await.keys().filter(asks_postgres) {
        let after = noticed.get(name).unwrap_or_else(|| panic!("{name} did not notice"));
        assert!(*after < Duration::from_secs(15), "{name} noticed only after {after:?}");
    }
    way.silence(false);
    all_ready(&admin).await;
    end.store(true, Ordering::Release);
    let sent = feeding.await.expect("the feed ends").len() as i64;
    settled(&client, sent).await;
    assert_eq!(process.terminate().await, 0, "it never ended by itself");
}
