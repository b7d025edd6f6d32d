//! A rebuild under live load, killed three times on its way, then switched, then rolled back.
//!
//! Everything is the real binary: processor, relay and projection go on, a reader asks the read
//! tables without a pause. `REBUILD_EVENTS` sets how much history there is (1,000,000 by hand),
//! `REBUILD_PROJECTION` which projection.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use rdkafka::producer::{BaseRecord, Producer as _, ThreadedProducer};
use serde_json::json;
use throughline::settings::Settings;
use throughline::store::{DatabaseRole, connect};
use tokio::task::JoinHandle;
use uuid::Uuid;

use super::bed::{Bed, PARTITIONS};
use super::binary::{Ended, command, dies_at, ended, stops, until_stopped};
use super::fold::{assert_same, fold, rows};
use super::scenario::lives;

const HISTORY_EVENTS: usize = 30_000;
/// Orders a second that the live load places, pays and mostly ships.
const LIVE_ORDERS: u64 = 40;

fn setting<T: std::str::FromStr>(name: &str, default: T) -> T {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

/// What a reader counts: orders, whichever table knows them.
fn count_of(projection: &str) -> &'static str {
    match projection {
        "order-list" => "select count(*) from read.order_list",
        "order-details" => "select count(*) from read.order_details",
        "customer-summary" => "select coalesce(sum(orders), 0)::bigint from read.customer_summary",
        "daily-sales" => "select coalesce(sum(orders), 0)::bigint from read.daily_sales",
        "order-history" => "select count(*) from read.order_history where version = 1",
        other => panic!("no count for {other}"),
    }
}

/// Events in the store, published and applied, and the read tables made of them.
async fn history(bed: &mut Bed, name: &str, events: usize) {
    let mut seed = 0;
    while bed.log.len() < events {
        seed += 1;
        let mut appended = bed.append(&lives(9_000 + seed, 2_000)).await;
        // The bed's days run ahead of the clock; Kafka takes no time of the future.
        appended.iter_mut().for_each(|stored| stored.recorded_at = Timestamp::now());
        bed.publish(&appended).await;
    }
    bed.owner
        .batch_execute(
            "analyze throughline.events;
             update throughline.relay_leases l set published = k.last_seq
             from throughline.counters k where k.partition = l.partition and k.topic = l.topic",
        )
        .await
        .expect("published");
    bed.owner
        .execute(
            "insert into throughline.checkpoints (partition, projection, next_offset, seq)
             select partition, $1, last_seq, last_seq from throughline.counters
             where topic = (select id from throughline.topics where name = $2)",
            &[&name, &bed.names.events()],
        )
        .await
        .expect("checkpoints");
    bed.log.clear();
    let refused = rebuild(bed, name, &[]).await;
    assert_eq!(refused.code, Some(3), "the empty tables differ: {refused:?}");
    assert!(refused.stderr.contains("no known reason") && refused.stderr.contains("--force"), "{refused:?}");
    let first = rebuild(bed, name, &["--force"]).await;
    assert_eq!(first.code, Some(0), "{first:?}");
}

async fn rebuild(bed: &Bed, name: &str, more: &[&str]) -> Ended {
    let arguments = [&["projection", "rebuild", name, "--yes", "--output", "ndjson"], more].concat();
    ended(command(bed, &arguments).spawn().expect("it starts")).await
}

/// Places, pays and mostly ships orders through Kafka until told to stop. Orders placed.
fn live_load(settings: &Settings, topic: String, stop: Arc<AtomicBool>) -> JoinHandle<u64> {
    let producer: ThreadedProducer<_> =
        throughline::kafka::client::producer(&settings.kafka, 1).create().expect("a producer");
    tokio::spawn(async move {
        let mut tick = tokio::time::interval(Duration::from_micros(1_000_000 / LIVE_ORDERS));
        let mut placed = 0;
        while !stop.load(Ordering::Acquire) {
            tick.tick().await;
            let (order, product) = (Uuid::new_v4(), Uuid::from_u128(1 + u128::from(placed % 9)));
            let mut commands = vec![
                json!({"type": "PlaceOrder", "commandId": Uuid::new_v4(), "orderId": order,
                       "customerId": format!("customer-{}", placed % 12), "currency": "USD",
                       "items": [{"productId": product, "quantity": 2, "unitPrice": "19.99"}]}),
                json!({"type": "RecordPayment", "commandId": Uuid::new_v4(), "orderId": order,
                       "paymentId": Uuid::new_v4(), "amount": "39.98", "currency": "USD"}),
            ];
            if placed % 3 > 0 {
                commands.push(json!({"type": "ShipOrder", "commandId": Uuid::new_v4(), "orderId": order,
                                     "carrier": "DHL", "trackingNumber": "JD014600"}));
            }
            for command in commands {
                let (key, value) = (order.to_string(), command.to_string());
                let record = BaseRecord::to(&topic).key(&key).payload(&value);
                producer.send(record).map_err(|(error, _)| error).expect("queued");
            }
            placed += 1;
        }
        producer.flush(Duration::from_secs(30)).expect("delivered");
        placed
    })
}

/// What the reader saw.
#[derive(Default)]
struct Reading {
    stop: AtomicBool,
    /// No answer may fall below: half a table would.
    floor: AtomicI64,
    reads: AtomicU64,
    slowest_ms: AtomicU64,
}

fn reader(bed: &Bed, sql: &'static str, reading: Arc<Reading>) -> JoinHandle<()> {
    let database = bed.settings.database.clone();
    tokio::spawn(async move {
        let client = connect::connect(&database, &DatabaseRole::Reader).await.expect("connects");
        while !reading.stop.load(Ordering::Acquire) {
            let (floor, started) = (reading.floor.load(Ordering::Acquire), Instant::now());
            let count: i64 = client.query_one(sql, &[]).await.expect("every read is answered").get(0);
            assert!(count >= floor, "{count} orders where {floor} had been seen: a reader met half a table");
            reading.slowest_ms.fetch_max(started.elapsed().as_millis() as u64, Ordering::AcqRel);
            reading.reads.fetch_add(1, Ordering::AcqRel);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
}

const LOCKED: &str = "exists (select from pg_locks where locktype = 'advisory'
                      and classid::bigint = (hashtext('throughline.rebuild')::bigint & 4294967295))";

/// The lock of a killed rebuild goes with its connection; PostgreSQL may take a moment to notice.
async fn until_unlocked(bed: &Bed) {
    bed.until(&format!("select not {LOCKED}")).await;
}

async fn killed_midway(bed: &Bed, name: &str) {
    let arguments = ["projection", "rebuild", name, "--yes"];
    dies_at(bed, &arguments, "projection.rebuild.after_chunk:2").await;
    until_unlocked(bed).await;
    // From outside, in the middle of the fill; meanwhile a second one is refused.
    let mut running = command(bed, &arguments)
        .env("THROUGHLINE_STOP_AT", "projection.rebuild.after_chunk")
        .spawn()
        .expect("it starts");
    until_stopped(&running).await;
    let second = rebuild(bed, name, &[]).await;
    assert_eq!(second.code, Some(1), "{second:?}");
    assert!(second.stderr.contains("a rebuild, rollback or replay of it is running"), "{second:?}");
    running.start_kill().expect("SIGKILL");
    assert!(ended(running).await.killed);
    until_unlocked(bed).await;
    dies_at(bed, &arguments, "projection.rebuild.before_switch").await;
    until_unlocked(bed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_three_times_under_load_it_ends_in_the_fold() {
    let name = setting("REBUILD_PROJECTION", "customer-summary".to_owned());
    let mut bed = Bed::new().await;
    let installed = ended(command(&bed, &["topics", "apply"]).spawn().expect("it starts")).await;
    assert_eq!(installed.code, Some(0), "{installed:?}");
    history(&mut bed, &name, setting("REBUILD_EVENTS", HISTORY_EVENTS)).await;
    let sql = count_of(&name);
    let reading = Arc::<Reading>::default();
    reading.floor.store(bed.number(sql).await, Ordering::Release);
    assert!(reading.floor.load(Ordering::Acquire) > 0);
    let read = reader(&bed, sql, reading.clone());

    let roles = ["run", "processor", "relay", &format!("projection:{name}")].map(str::to_owned);
    let roles: Vec<&str> = roles.iter().map(String::as_str).collect();
    let live = command(&bed, &roles)
        .env("RUST_LOG", "warn")
        .stderr(std::process::Stdio::inherit())
        .spawn()
        .expect("it starts");
    let stop = Arc::new(AtomicBool::new(false));
    let load = live_load(&bed.settings, bed.names.commands(), stop.clone());
    let grows = format!("select ({sql}) > {}", reading.floor.load(Ordering::Acquire));
    bed.until(&grows).await;

    killed_midway(&bed, &name).await;
    // What was seen stays seen: the switch takes nothing back.
    reading.floor.store(bed.number(sql).await, Ordering::Release);
    let report = rebuild(&bed, &name, &[]).await;
    assert_eq!(report.code, Some(0), "{report:?}");
    eprintln!("rebuilt: {}", report.stdout.trim());
    assert!(report.stdout.contains("\"digests\":\"equal\""), "{report:?}");
    let before_rollback = bed.number(sql).await;
    bed.until(&format!("select ({sql}) > {before_rollback}")).await;

    // The previous generation is older by what came since; the reader may see that, and no less.
    let back = ended(command(&bed, &["projection", "rollback", &name, "--yes"]).spawn().expect("it starts")).await;
    assert_eq!(back.code, Some(0), "{back:?}");
    bed.until(&format!("select ({sql}) > {before_rollback}")).await;
    stop.store(true, Ordering::Release);
    let placed = load.await.expect("the load runs");
    settle(&mut bed, &name, placed).await;
    assert_same(&rows(&bed, &name, "read").await, &fold(&bed, &name, &bed.log));
    // And forward again, beside a fold that knows everything.
    let again = rebuild(&bed, &name, &[]).await;
    assert_eq!(again.code, Some(0), "{again:?}");
    assert_same(&rows(&bed, &name, "read").await, &fold(&bed, &name, &bed.log));
    reading.stop.store(true, Ordering::Release);
    read.await.expect("every read was answered");
    let (reads, slowest) = (reading.reads.load(Ordering::Acquire), reading.slowest_ms.load(Ordering::Acquire));
    assert!(reads > 10);
    eprintln!("{} events; {placed} orders placed meanwhile; {reads} reads, the slowest {slowest} ms", bed.log.len());
    stops(live).await;
}

/// Waits until every command is decided and every event applied; takes the log from the store.
async fn settle(bed: &mut Bed, name: &str, placed: u64) {
    let commands = 2 * placed + placed - placed.div_ceil(3);
    bed.until(&format!("select count(*) = {commands} from throughline.commands")).await;
    bed.caught_up(name).await;
    bed.log = bed.stored().await;
    assert!(bed.log.len() as u64 > commands, "{PARTITIONS} partitions of history and load");
}
