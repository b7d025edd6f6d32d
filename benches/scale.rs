//! What a store of many events costs beside a small one: append, load, relay and rebuild, heap and indexes.
//!
//! `cargo bench --bench scale -- [EVENTS…]` (100,000 and 1,000,000) on the PostgreSQL at `DATABASE_URL`. Makes a
//! database of its own, fills it up to each number in turn, measures there, and drops it. Orders are placed,
//! paid and shipped among 5,000 others; `IDS=random` gives them random ids instead of ids in the order of time.
//! Only the lines beside each other mean anything.

use std::sync::Arc;
use std::time::Instant;

use reference::orders::domain::{
    Currency, Order, OrderCommand, OrderEvent, OrderedItem, PlaceOrder, Quantity, RecordPayment, ShipOrder, UnitPrice,
};
use reference::orders::{OrdersCodec, schemas};
use throughline::engine::{
    Aggregate as _, Applied, EventCodec as _, Projection, ReadModel, Recorded, destination_partition,
};
use throughline::kafka::topics::TopicNames;
use throughline::projection::{Projector, RebuildMode, install, rebuild};
use throughline::settings::{LoadedSettings, Settings};
use throughline::store::{DatabaseRole, connect, destinations, migrate, partitions};
use tokio_postgres::{Client, Transaction};
use uuid::Uuid;

/// Orders that are open at a time.
const OVERLAP_ORDERS: usize = 5_000;
/// Rows of a batch, and batches of a measurement.
const BATCH: usize = 1_000;
const BATCHES: usize = 40;

const APPEND: &str = "
    with appended as (
        select * from unnest($2::int[], $3::bigint[], $4::uuid[], $5::bigint[], $6::bytea[])
            as a (partition, seq, stream_id, version, payload)
    ), stored as (
        insert into throughline.events (topic, partition, seq, stream_id, version, event_id, type, schema_version,
                                        command_id, correlation_id, recorded_at, payload)
        select $1::smallint, partition, seq, stream_id, version, gen_random_uuid(), 'OrderPlaced', 3::smallint, stream_id,
               stream_id::text, now(), payload
        from appended
    )
    insert into throughline.outbox (topic, partition, seq, key, type, message_id, subject, schema_version, stream_version,
                                    command_id, correlation_id, created_at, value)
    select $1::smallint, partition, seq, stream_id, 'throughline.orders.OrderPlaced', stream_id, stream_id, 3::smallint,
           version, stream_id, stream_id::text, now(), payload
    from appended where $7::boolean";
const LOAD: &str = "
    select count(e.version) from unnest($2::int[], $3::uuid[]) as w (partition, stream_id)
    left join lateral (
        select version, payload from throughline.events
        where partition = w.partition and topic = $1 and stream_id = w.stream_id and version > 0
        order by version) e on true";
const READ: &str = "
    select o.* from unnest($2::int[], $3::bigint[]) as wanted (partition, after)
    cross join lateral (
        select * from throughline.outbox o
        where o.partition = wanted.partition and o.topic = $1 and o.seq > wanted.after
        order by o.seq limit 2000) o";

#[tokio::main]
async fn main() {
    let wanted: Vec<usize> = std::env::args().skip(1).filter_map(|arg| arg.parse().ok()).collect();
    let wanted = if wanted.is_empty() { vec![100_000, 1_000_000] } else { wanted };
    let url = std::env::var("DATABASE_URL").expect("set DATABASE_URL");
    let mut settings = LoadedSettings::load(None, &[]).expect("settings of the environment").settings;
    settings.database.statement_timeout_ms = 0;
    let admin = connect::connect(&settings.database, &DatabaseRole::Owner).await.expect("connects");
    let database = format!("bench_scale_{}", Uuid::new_v4().simple());
    admin.batch_execute(&format!("create database {database}")).await.expect("creates the database");
    let (head, _) = url.rsplit_once('/').expect("the URL names a database");
    settings.database.url = format!("{head}/{database}").into();
    measure(Arc::new(settings), &wanted).await;
    admin.batch_execute(&format!("drop database {database} with (force)")).await.expect("drops the database");
}

async fn measure(settings: Arc<Settings>, wanted: &[usize]) {
    let mut owner = connect::connect(&settings.database, &DatabaseRole::Owner).await.expect("connects");
    migrate::apply(&mut owner).await.expect("migrates");
    partitions::maintain(&owner, &settings.database).await.expect("time partitions");
    // As the processor's sessions are set up.
    let planner = "set plan_cache_mode = force_generic_plan; set enable_seqscan = off; set enable_hashjoin = off; \
                   set enable_mergejoin = off";
    owner.batch_execute(planner).await.expect("the planner's settings");
    let names = TopicNames::new("orders", &settings.topics);
    let count = settings.topics.event_partitions;
    let topic = destinations::register(&mut owner, &names.events(), count).await.expect("registers").id;
    let ids = throughline::avro::ids::register(&owner, &schemas::catalogue().expect("schemas")).await.expect("ids");
    let codec = Arc::new(OrdersCodec::new(&ids).expect("a codec"));
    let reading: Arc<dyn Projection<Event = OrderEvent>> = Arc::new(Reading);
    install(&mut owner, reading.read_model()).await.expect("installs");
    let projector = Projector::new(settings.clone(), &names, reading, codec.clone());
    let mut store = Store { topic, lives: lives(&codec), seqs: vec![0; count as usize], orders: Vec::new(), owner };
    println!(
        "{:>11} {:>12} {:>11} {:>12} {:>14} {:>9} {:>10} {:>13}",
        "events", "append µs", "load µs", "relay µs", "rebuild ev./s", "heap MB", "index MB", "freeze a child"
    );
    for events in wanted {
        let started = Instant::now();
        store.fill(events / 3).await;
        // Each by itself: a vacuum is no part of a transaction.
        for settle in ["vacuum analyze throughline.events", "checkpoint"] {
            store.owner.batch_execute(settle).await.expect("settles");
        }
        eprintln!("{events} events after {:.0} s more", started.elapsed().as_secs_f64());
        let (append, load, relay) = (store.append().await, store.load().await, store.relay().await);
        store.note_checkpoints().await;
        let report = rebuild(&projector, &Arc::default(), RebuildMode::Checked).await.expect("rebuilds");
        let per_second = report.events as f64 / report.fill_seconds;
        let (heap, index) = store.sizes().await;
        let started = Instant::now();
        store.owner.batch_execute("vacuum (freeze) throughline.events_0").await.expect("freezes");
        let freeze = started.elapsed().as_secs_f64();
        println!(
            "{:>11} {append:>12.1} {load:>11.1} {relay:>12.2} {per_second:>14.0} {heap:>9} {index:>10} {freeze:>12.1} s",
            report.events
        );
    }
}

/// Reads and decodes, and no more: the part of a rebuild that the store's size could change.
struct Reading;

impl Projection for Reading {
    type Event = OrderEvent;

    fn read_model(&self) -> ReadModel {
        ReadModel {
            name: "reading",
            version: 1,
            ddl: "create table reading (partition int not null)",
            indexes: &[],
            tables: &["reading"],
            views: &[],
        }
    }

    fn apply<'a>(&'a self, _: &'a Transaction<'a>, _: &'a [Recorded<OrderEvent>]) -> Applied<'a> {
        Box::pin(std::future::ready(Ok(())))
    }
}

/// The events of some hundred lives, encoded; every order of the store lives one of them.
fn lives(codec: &OrdersCodec) -> Vec<Vec<Vec<u8>>> {
    let life = |number: usize| {
        let order_id = Uuid::from_u128(1 + number as u128);
        let item = |line: usize| OrderedItem {
            product_id: Uuid::from_u128(1 + ((number * 7 + line * 13) % 2_000) as u128),
            quantity: Quantity::new(1 + line as i64).expect("in range"),
            unit_price: UnitPrice::from_ten_thousandths(10_000 * (1 + number as i64)).expect("in range"),
        };
        let (mut order, mut encoded) = (Order::default(), Vec::new());
        let mut decide = |order: &mut Order, command| {
            for event in order.decide(&command).expect("accepted") {
                order.evolve(&event);
                encoded.push(codec.encode(&event).expect("encodes").bytes);
            }
        };
        let customer_id = format!("customer-{number}");
        let place = PlaceOrder {
            order_id,
            customer_id,
            currency: Currency::USD,
            items: (0..4).map(item).collect(),
            payment_token: None,
        };
        decide(&mut order, OrderCommand::PlaceOrder(place));
        let amount = order.placed().expect("placed").total;
        decide(&mut order, OrderCommand::RecordPayment(RecordPayment { order_id, payment_id: order_id, amount }));
        let ship = ShipOrder { order_id, carrier: "DHL".into(), tracking_number: "JD014600".into() };
        decide(&mut order, OrderCommand::ShipOrder(ship));
        encoded
    };
    (0..500).map(life).collect()
}

struct Store {
    owner: Client,
    topic: i16,
    lives: Vec<Vec<Vec<u8>>>,
    seqs: Vec<i64>,
    orders: Vec<Uuid>,
}

impl Store {
    fn new_order(&mut self) -> Uuid {
        let random = std::env::var("IDS").is_ok_and(|ids| ids == "random");
        let id = if random { Uuid::new_v4() } else { Uuid::now_v7() };
        self.orders.push(id);
        id
    }

    /// Appends one event of each of `orders` in a statement of its own; seconds.
    async fn append_step(&mut self, orders: &[Uuid], step: usize, outbox: bool) -> f64 {
        let parts: Vec<i32> =
            orders.iter().map(|order| destination_partition(*order, self.seqs.len() as i32)).collect();
        let next = |part: &i32| {
            self.seqs[*part as usize] += 1;
            self.seqs[*part as usize]
        };
        let seqs: Vec<i64> = parts.iter().map(next).collect();
        let versions = vec![step as i64 + 1; orders.len()];
        let payloads: Vec<&[u8]> =
            orders.iter().map(|order| self.lives[order.as_u128() as usize % 500][step].as_slice()).collect();
        let started = Instant::now();
        self.owner
            .execute(APPEND, &[&self.topic, &parts, &seqs, &orders, &versions, &payloads, &outbox])
            .await
            .expect("appends");
        started.elapsed().as_secs_f64()
    }

    async fn fill(&mut self, orders: usize) {
        while self.orders.len() < orders {
            let batch: Vec<Uuid> =
                (0..OVERLAP_ORDERS.min(orders - self.orders.len())).map(|_| self.new_order()).collect();
            for step in 0..3 {
                self.append_step(&batch, step, false).await;
            }
        }
        self.note_counters().await;
    }

    async fn note_counters(&self) {
        let parts: Vec<i32> = (0..self.seqs.len() as i32).collect();
        let statement = "update throughline.counters c set last_seq = m.last_seq
                         from unnest($2::int[], $3::bigint[]) as m (partition, last_seq)
                         where c.topic = $1 and c.partition = m.partition";
        self.owner.execute(statement, &[&self.topic, &parts, &self.seqs]).await.expect("counters");
    }

    /// A rebuild goes as far as the live tables are.
    async fn note_checkpoints(&self) {
        let statement = "insert into throughline.checkpoints (partition, projection, next_offset, seq)
                         select partition, 'reading', last_seq, last_seq from throughline.counters where topic = $1
                         on conflict (partition, projection, generation) do update
                         set next_offset = excluded.next_offset, seq = excluded.seq";
        self.owner.execute(statement, &[&self.topic]).await.expect("checkpoints");
    }

    /// Microseconds an event, with its outbox row.
    async fn append(&mut self) -> f64 {
        let mut seconds = Vec::new();
        for _ in 0..BATCHES {
            let batch: Vec<Uuid> = (0..BATCH).map(|_| self.new_order()).collect();
            seconds.push(self.append_step(&batch, 0, true).await);
            // What was measured is part of the store from now on, whole.
            self.append_step(&batch, 1, false).await;
            self.append_step(&batch, 2, false).await;
        }
        self.note_counters().await;
        per_row(seconds, BATCH)
    }

    /// Microseconds a stream, of streams from anywhere in the store.
    async fn load(&self) -> f64 {
        let load = self.owner.prepare(LOAD).await.expect("prepares");
        let mut seconds = Vec::new();
        for _ in 0..BATCHES {
            let orders: Vec<Uuid> = (0..BATCH).map(|_| self.orders[rand::random_range(0..self.orders.len())]).collect();
            let parts: Vec<i32> =
                orders.iter().map(|order| destination_partition(*order, self.seqs.len() as i32)).collect();
            let started = Instant::now();
            let row = self.owner.query_one(&load, &[&self.topic, &parts, &orders]).await.expect("loads");
            seconds.push(started.elapsed().as_secs_f64());
            assert_eq!(row.get::<_, i64>(0), 3 * BATCH as i64);
        }
        per_row(seconds, BATCH)
    }

    /// Microseconds a row of the outbox, read as the relay does.
    async fn relay(&self) -> f64 {
        let read = self.owner.prepare(READ).await.expect("prepares");
        let parts: Vec<i32> = (0..self.seqs.len() as i32).collect();
        let mut seconds = Vec::new();
        for _ in 0..BATCHES {
            let after: Vec<i64> = vec![0; parts.len()];
            let started = Instant::now();
            let rows = self.owner.query(&read, &[&self.topic, &parts, &after]).await.expect("reads");
            seconds.push(started.elapsed().as_secs_f64() / rows.len() as f64);
        }
        per_row(seconds, 1)
    }

    /// Megabytes of heap and of indexes.
    async fn sizes(&self) -> (i64, i64) {
        let statement = "select (sum(pg_table_size(inhrelid)) / 1000000)::bigint, (sum(pg_indexes_size(inhrelid)) / 1000000)::bigint
                         from pg_inherits where inhparent = 'throughline.events'::regclass";
        let row = self.owner.query_one(statement, &[]).await.expect("sizes");
        (row.get(0), row.get(1))
    }
}

/// The median, as microseconds a row.
fn per_row(mut seconds: Vec<f64>, rows: usize) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2] * 1e6 / rows as f64
}
