//! A bad day of everybody else: under load PostgreSQL is stopped, killed, read-only and silent, Kafka is frozen
//! and killed, and odd records lie in the way. Nobody restarts anything of ours; `throughline status` tells
//! each while it lasts; afterwards every command is decided once, published once and in the read tables.

use std::collections::{HashMap, HashSet};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rdkafka::producer::{FutureProducer, FutureRecord, Producer as _};
use serde_json::{Value, json};
use throughline::app::dev::{Layout, PostgresStop, Services};
use throughline::kafka::voice::Quiet;
use throughline::kafka::{Peek, Record, Tended, TopicPartition, client, headers, tended};
use throughline::settings::{DevRunner, DevSettings, Settings};
use tokio::task::JoinHandle;
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

use crate::harness::{Harness, eventually, odd, scale};
use crate::one_order::place_order;
use crate::process::{Process, command, ended};

/// From a fault to its being told, at most; the debug build and the load take their part of it.
const TOLD_WITHIN: Duration = Duration::from_secs(20);

struct Day {
    harness: Harness,
    services: Services,
    settings: DevSettings,
}

/// Orders that are placed, paid and shipped, one after the other, for as long as it runs.
struct Load {
    sent: Arc<Mutex<Vec<Uuid>>>,
    stop: Arc<AtomicBool>,
    sending: JoinHandle<()>,
}

impl Load {
    fn start(harness: &Harness) -> Self {
        let (sent, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let config = client::producer(&harness.settings.kafka, 5);
        let producer: Tended<FutureProducer<Quiet>> = Tended::producer(&config, Quiet).expect("a producer");
        let kafka = harness.settings.kafka.clone();
        let (topic, orders, stopped) = (harness.names().commands(), sent.clone(), stop.clone());
        let sending = tokio::spawn(async move {
            let mut deliveries = tokio::task::JoinSet::new();
            // Nobody restarts this client either.
            let _tending = AbortOnDropHandle::new(tokio::spawn(tended::run(kafka)));
            while !stopped.load(Ordering::Relaxed) {
                let order = Uuid::now_v7();
                for (number, command) in life_of(order).into_iter().enumerate() {
                    let (producer, topic, key) = (producer.clone(), topic.clone(), order.to_string());
                    let value = command.to_string();
                    let record = FutureRecord::to(&topic).key(&key).payload(&value);
                    // Queued in order, here; only the acknowledgement is waited for apart.
                    let delivery =
                        producer.send_result(record).unwrap_or_else(|(error, _)| panic!("{number}: {error}"));
                    deliveries.spawn(async move { delivery.await.expect("a report").map_err(|(error, _)| error) });
                }
                orders.lock().unwrap().push(order);
                tokio::time::sleep(Duration::from_millis(25)).await;
            }
            while let Some(delivered) = deliveries.join_next().await {
                delivered.expect("a delivery").expect("acknowledged");
            }
        });
        Self { sent, stop, sending }
    }

    /// Waits until Kafka has all that was sent; the orders.
    async fn end(self) -> Vec<Uuid> {
        self.stop.store(true, Ordering::Relaxed);
        self.sending.await.expect("the load ends well");
        Arc::try_unwrap(self.sent).expect("nobody else holds it").into_inner().unwrap()
    }
}

fn life_of(order: Uuid) -> [Value; 3] {
    let id = |step: u128| Uuid::from_u128(order.as_u128() ^ (step << 56));
    [
        place_order(order, id(1)),
        json!({"type": "RecordPayment", "commandId": id(2), "orderId": order, "paymentId": id(4), "amount": "39.98",
               "currency": "USD"}),
        json!({"type": "ShipOrder", "commandId": id(3), "orderId": order, "carrier": "DHL", "trackingNumber": "JD1"}),
    ]
}

impl Day {
    async fn begin() -> Self {
        let directory = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("neighbours");
        let settings = DevSettings { directory, runner: DevRunner::Local, ..Settings::default().dev };
        throughline::app::dev::reset(&settings).await.expect("nothing is left of an earlier run");
        let services = Services::start_or_find(&settings).await.expect("services start");
        let harness = Harness::on("neighbours", services.kafka_brokers.clone(), services.database_url.clone()).await;
        harness.install().await;
        Self { harness, services, settings }
    }

    fn run(&self, roles: &[&str]) -> Process {
        let mut run = command(&self.harness, &[&["run"], roles].concat());
        run.env("THROUGHLINE__PROJECTION__ON_FAILURE", "park");
        Process::start(run)
    }

    /// Waits until `status` tells something that contains one of `words`; it ends with 3 then.
    async fn told(&self, what: &str, words: &[&str]) {
        let started = Instant::now();
        loop {
            let status = ended(&mut command(&self.harness, &["status", "--output", "json"])).await;
            let text = status.stdout.to_lowercase();
            if status.code == 3 && words.iter().any(|word| text.contains(&word.to_lowercase())) {
                println!("{what}: told after {:?}", started.elapsed());
                return;
            }
            assert!(
                started.elapsed() < TOLD_WITHIN,
                "{what}: not told: {} {}{}",
                status.code,
                status.stdout,
                status.stderr
            );
        }
    }

    async fn is_well(&self) {
        eventually("status is green", async || {
            let status = ended(&mut command(&self.harness, &["status", "--output", "json"])).await;
            if status.code != 0 {
                let said: Value = serde_json::from_str(&status.stdout).unwrap_or_default();
                eprintln!("not green yet: {} {} {}", said["away"], said["problems"], status.stderr);
                tokio::time::sleep(Duration::from_secs(2)).await;
            }
            (status.code == 0).then_some(())
        })
        .await;
    }

    /// Signals every process of a service that the launcher started.
    fn signal(&self, postgres: bool, signal: Signal) {
        let state = Layout::of(&self.settings).expect("a layout").read_state().expect("it runs");
        let identity = if postgres { state.postgres } else { state.kafka };
        let pid = serde_json::to_value(identity.expect("it runs")).expect("JSON")["pid"].as_i64().expect("a pid");
        for pid in family(i32::try_from(pid).expect("a pid")) {
            // A backend may end meanwhile.
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }

    async fn read_only(&self, on: bool) {
        let database = self.harness.settings.database.url.expose().rsplit('/').next().expect("a name").to_owned();
        let (client, connection) =
            tokio_postgres::connect(&self.services.database_url, tokio_postgres::NoTls).await.expect("connect");
        let driver = tokio::spawn(connection);
        let change = format!(
            "alter database {database} set default_transaction_read_only = {on};
             select pg_terminate_backend(pid) from pg_stat_activity where datname = '{database}'"
        );
        client.batch_execute(&change).await.expect("the database is changed");
        driver.abort();
    }
}

/// A process and its children.
fn family(pid: i32) -> Vec<i32> {
    let mut all = vec![pid];
    for entry in std::fs::read_dir("/proc").expect("/proc").flatten() {
        let Some(child) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        let Ok(stat) = std::fs::read_to_string(format!("/proc/{child}/stat")) else { continue };
        let parent = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1)?.parse::<i32>().ok());
        if parent == Some(pid) {
            all.push(child);
        }
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_neighbours_do_everything_is_decided_published_and_projected_once() {
    let day = Day::begin().await;
    let roles = [&["processor", "api"][..], &["processor"], &["relay"], &["relay"], &["projections", "processes"]];
    let processes: Vec<Process> = roles.iter().map(|roles| day.run(roles)).collect();
    let pids: Vec<u32> = processes.iter().map(Process::id).collect();
    let load = Load::start(&day.harness);
    day.is_well().await;

    for how in [PostgresStop::Fast, PostgresStop::Kill] {
        day.services.stop_postgres(how).await.expect("PostgreSQL stops");
        day.told(&format!("PostgreSQL is down ({how:?})"), &["postgresql"]).await;
        day.services.start_postgres().await.expect("PostgreSQL starts");
        day.is_well().await;
    }

    day.read_only(true).await;
    let read_only = Instant::now();
    day.told("PostgreSQL is read-only", &["takes no writes"]).await;
    tokio::time::sleep(Duration::from_secs(5).saturating_sub(read_only.elapsed())).await;
    day.read_only(false).await;
    day.is_well().await;

    day.signal(true, Signal::SIGSTOP);
    let silent = Instant::now();
    day.told("PostgreSQL is silent", &["postgresql"]).await;
    tokio::time::sleep(
        Duration::from_secs(scale("THROUGHLINE_SILENT_SECONDS", 8) as u64).saturating_sub(silent.elapsed()),
    )
    .await;
    day.signal(true, Signal::SIGCONT);
    day.is_well().await;

    day.signal(false, Signal::SIGSTOP);
    let frozen = Instant::now();
    day.told("Kafka is frozen", &["kafka"]).await;
    tokio::time::sleep(
        Duration::from_secs(scale("THROUGHLINE_FROZEN_SECONDS", 15) as u64).saturating_sub(frozen.elapsed()),
    )
    .await;
    day.signal(false, Signal::SIGCONT);
    day.is_well().await;

    day.services.kill_kafka().await.expect("the broker dies");
    day.told("Kafka is dead", &["kafka"]).await;
    day.services.start_kafka().await.expect("the broker starts");
    day.is_well().await;

    poison(&day.harness).await;
    let orders = load.end().await;
    println!("{} orders", orders.len());
    decided_published_and_projected_once(&day.harness, &orders).await;
    day.is_well().await;
    assert_eq!(processes.iter().map(Process::id).collect::<Vec<_>>(), pids, "nobody was restarted");
    for process in processes {
        assert_eq!(process.terminate().await, 0);
    }
    day.services.stop().await.expect("the services stop");
    throughline::app::dev::reset(&day.settings).await.expect("nothing is left");
}

/// More than fifty odd records each, on a commands partition and on a partition of the events topic.
async fn poison(harness: &Harness) {
    let order = Uuid::now_v7();
    let value = place_order(order, Uuid::now_v7()).to_string();
    let producer = odd::producer(&harness.settings.kafka, None);
    for one in odd::odd_records(order.to_string().as_bytes(), value.as_bytes(), &["command-id"]) {
        odd::produce(&producer, &harness.names().commands(), 2, &one);
    }
    for one in odd::odd_records(b"key", b"value", &["seq", "ce_id"]) {
        odd::produce(&producer, &harness.names().events(), 1, &one);
    }
    producer.flush(Duration::from_secs(30)).expect("acknowledged");
}

async fn decided_published_and_projected_once(harness: &Harness, orders: &[Uuid]) {
    let client = harness.client().await;
    eventually("every order is shipped in the read table", async || {
        let shipped: i64 = client
            .query_one(
                "select count(*) from read.order_list where status = 'shipped' and order_id = any($1)",
                &[&orders],
            )
            .await
            .expect("read.order_list")
            .get(0);
        (shipped == orders.len() as i64).then_some(())
    })
    .await;
    let one = async |query: &str| -> i64 { client.query_one(query, &[&orders]).await.expect(query).get(0) };
    let commands = "select count(*) from throughline.commands where stream_id = any($1) and accepted";
    let distinct = "select count(distinct (stream_id, command_id)) from throughline.commands where stream_id = any($1)";
    assert_eq!((one(commands).await, one(distinct).await), (3 * orders.len() as i64, 3 * orders.len() as i64));
    let events = "select count(*) from throughline.events where stream_id = any($1)";
    assert_eq!(one(events).await, 3 * orders.len() as i64);
    let details =
        "select count(*) from read.order_details where order_id = any($1) and status = 'shipped' and version = 3";
    let history = "select count(*) from read.order_history where order_id = any($1)";
    for (table, rows) in [(details, orders.len()), (history, 3 * orders.len())] {
        eventually(table, async || (one(table).await == rows as i64).then_some(())).await;
    }

    // The topic, as a reader that drops repetitions sees it, is what the store holds.
    let mut last: HashMap<i32, i64> = HashMap::new();
    let mut published = HashSet::new();
    for record in records(harness, &harness.names().events()) {
        let partition = record.source.partition;
        let header = |name: &str| record.sole_header(name).ok().flatten().map(str::to_owned);
        let Some(seq) = headers::seq_of(&record) else { continue };
        let before = last.entry(partition).or_default();
        assert!(seq <= *before + 1, "partition {partition}: seq {seq} follows {before}");
        if seq == *before + 1 {
            *before = seq;
            assert!(published.insert(header("ce_id").expect("an id")), "an event is published under one seq only");
        }
    }
    let stored: i64 = client.query_one("select count(*) from throughline.events", &[]).await.expect("events").get(0);
    assert_eq!(published.len() as i64, stored);
}

/// Every record of a topic, of any bytes, in order per partition.
fn records(harness: &Harness, topic: &str) -> Vec<Record> {
    let peek = Peek::new(&harness.settings.kafka).expect("a reader");
    let mut all = Vec::new();
    for partition in 0..harness.settings.topics.event_partitions {
        let source = TopicPartition { topic: topic.into(), partition };
        peek.visit(&source, 0, |record| {
            all.push(record);
            ControlFlow::Continue(())
        })
        .expect("the partition is read to its end");
    }
    all
}
