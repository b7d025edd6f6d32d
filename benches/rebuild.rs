//! How fast a projection is rebuilt from the event store, held against a bare COPY of its rows.
//!
//! `cargo bench --bench rebuild -- [EVENTS] [PROJECTION…]` on the PostgreSQL at `DATABASE_URL` (Kafka
//! is not needed). Makes a database of its own and drops it. The store holds orders of four lines
//! that were placed, paid and shipped.
//!
//! `seconds` is the whole of `projection rebuild`: reading, folding, writing, indexes (`fill s` up to
//! here), the comparison with the live tables and the switch. Two references:
//! - `copy`: one COPY of the rows that the projection ends up with, into tables with the same keys and
//!   indexes. Where few rows come of many events it says little: it never sees the events.
//! - `events+copy`: that, and beforehand the reading and decoding of every event, as a rebuild of a
//!   projection that does nothing with them takes; in the first line.

use std::sync::Arc;
use std::time::Instant;

use futures_util::{SinkExt as _, TryStreamExt as _, pin_mut};
use jiff::Timestamp;
use reference::orders::domain::{
    Currency, Order, OrderCommand, OrderEvent, OrderedItem, PlaceOrder, Quantity, RecordPayment, ShipOrder, UnitPrice,
};
use reference::orders::{OrdersCodec, projections, schemas};
use throughline::engine::{
    Aggregate as _, Applied, EventCodec as _, Projection, ReadModel, Recorded, destination_partition,
};
use throughline::kafka::topics::TopicNames;
use throughline::projection::{Projector, RebuildMode, install, rebuild};
use throughline::settings::{LoadedSettings, Settings};
use throughline::store::{DatabaseRole, connect, destinations, migrate};
use tokio_postgres::{Client, Transaction};
use uuid::Uuid;

/// Orders whose lives overlap; `OVERLAP` sets another number. With all of them each order's events are in
/// three different chunks, and what was written by COPY is changed by statements twice.
const OVERLAP_ORDERS: usize = 5_000;
const INSERT_EVENTS: usize = 5_000;

#[tokio::main]
async fn main() {
    let mut args = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).peekable();
    let events: usize = args.next_if(|arg| arg.parse::<usize>().is_ok()).map_or(1_000_000, |n| n.parse().unwrap());
    let wanted: Vec<String> = args.collect();
    let url = std::env::var("DATABASE_URL").expect("set DATABASE_URL");
    let mut settings = LoadedSettings::load(None, &[]).expect("settings of the environment").settings;
    settings.database.statement_timeout_ms = 0;
    let admin = connect::connect(&settings.database, &DatabaseRole::Owner).await.expect("connects");
    let database = format!("bench_rebuild_{}", Uuid::new_v4().simple());
    admin.batch_execute(&format!("create database {database}")).await.expect("creates the database");
    let (head, _) = url.rsplit_once('/').expect("the URL names a database");
    settings.database.url = format!("{head}/{database}").into();
    measure(Arc::new(settings), events, &wanted).await;
    admin.batch_execute(&format!("drop database {database} with (force)")).await.expect("drops the database");
}

async fn measure(settings: Arc<Settings>, events: usize, wanted: &[String]) {
    let mut owner = connect::connect(&settings.database, &DatabaseRole::Owner).await.expect("connects");
    migrate::apply(&mut owner).await.expect("migrates");
    let names = TopicNames::new("orders", &settings.topics);
    let partitions = settings.topics.event_partitions;
    let topic = destinations::register(&mut owner, &names.events(), partitions).await.expect("registers").id;
    let catalogue = schemas::catalogue().expect("sound schemas");
    let ids = throughline::avro::ids::register(&owner, &catalogue).await.expect("registers schemas");
    let codec = Arc::new(OrdersCodec::new(&ids).expect("a codec"));
    let started = Instant::now();
    fill_store(&owner, &codec, topic, partitions, events / 3).await;
    eprintln!("{} events in the store after {:.1} s", events / 3 * 3, started.elapsed().as_secs_f64());
    println!(
        "{:<17} {:>9} {:>8} {:>8} {:>10} {:>10} {:>8} {:>10} {:>14}",
        "projection", "events", "fill s", "seconds", "events/s", "rows", "copy s", "ratio copy", "ratio ev.+copy"
    );
    let mut events_seconds = 0.0;
    let nothing: Arc<dyn Projection<Event = OrderEvent>> = Arc::new(Nothing);
    for projection in std::iter::once(nothing).chain(projections::all()) {
        let name = projection.read_model().name;
        if name != NOTHING && !wanted.is_empty() && !wanted.iter().any(|one| one == name) {
            continue;
        }
        install(&mut owner, projection.read_model()).await.expect("installs");
        owner
            .execute(
                "insert into throughline.checkpoints (partition, projection, next_offset, seq)
                 select partition, $1, last_seq, last_seq from throughline.counters where topic = $2",
                &[&name, &topic],
            )
            .await
            .expect("checkpoints");
        let projector = Projector::new(settings.clone(), &names, projection.clone(), codec.clone());
        // The first makes the live tables; the second, compared with them, counts.
        rebuild(&projector, &Arc::default(), RebuildMode::Forced).await.expect("rebuilds");
        owner.batch_execute("checkpoint").await.ok();
        let report = rebuild(&projector, &Arc::default(), RebuildMode::Checked).await.expect("rebuilds");
        assert!(report.compared && report.differences.is_empty(), "{:?}", report.differences);
        let (mut rows, mut copy) = (0, 0.0);
        for table in projection.read_model().tables {
            owner.batch_execute("checkpoint").await.ok();
            let (copied, seconds) = bare_copy(&owner, table).await;
            rows += copied;
            copy += seconds;
        }
        if name == NOTHING {
            events_seconds = report.seconds;
        }
        println!(
            "{name:<17} {:>9} {:>8.2} {:>8.2} {:>10.0} {rows:>10} {copy:>8.2} {:>10.2} {:>14.2}",
            report.events,
            report.fill_seconds,
            report.seconds,
            report.events as f64 / report.seconds,
            copy / report.seconds,
            (events_seconds + copy) / report.seconds
        );
    }
}

/// Reads and decodes, and no more: what every rebuild pays for.
struct Nothing;
const NOTHING: &str = "nothing";

impl Projection for Nothing {
    type Event = OrderEvent;

    fn read_model(&self) -> ReadModel {
        ReadModel {
            name: NOTHING,
            version: 1,
            ddl: "create table nothing (partition int not null)",
            indexes: &[],
            tables: &["nothing"],
            views: &[],
        }
    }

    fn apply<'a>(&'a self, _: &'a Transaction<'a>, _: &'a [Recorded<OrderEvent>]) -> Applied<'a> {
        Box::pin(std::future::ready(Ok(())))
    }
}

/// Copies the rows of a table into an empty one with the same keys and indexes. Rows and seconds.
async fn bare_copy(owner: &Client, table: &str) -> (u64, f64) {
    let target = format!("read.copy_of_{table}");
    owner
        .batch_execute(&format!(
            "drop table if exists {target}; create table {target} (like read.{table} including all)"
        ))
        .await
        .expect("a table");
    let out = owner.copy_out(&format!("copy read.{table} to stdout (format binary)")).await.expect("copies out");
    let chunks: Vec<_> = out.try_collect().await.expect("all rows");
    let started = Instant::now();
    let sink = owner.copy_in(&format!("copy {target} from stdin (format binary)")).await.expect("copies in");
    pin_mut!(sink);
    for chunk in chunks {
        sink.feed(chunk).await.expect("taken");
    }
    let rows = sink.finish().await.expect("copied");
    let seconds = started.elapsed().as_secs_f64();
    owner.batch_execute(&format!("drop table {target}")).await.expect("drops");
    (rows, seconds)
}

fn life(number: usize) -> (Uuid, Vec<reference::orders::domain::OrderEvent>) {
    let order_id = Uuid::new_v5(&Uuid::NAMESPACE_OID, &number.to_be_bytes());
    let item = |line: usize| OrderedItem {
        product_id: Uuid::from_u128(1 + ((number * 7 + line * 13) % 2_000) as u128),
        quantity: Quantity::new(1 + (line as i64)).expect("in range"),
        unit_price: UnitPrice::from_ten_thousandths(10_000 * (1 + (number % 900) as i64)).expect("in range"),
    };
    let mut order = Order::default();
    let mut events = Vec::new();
    let mut decide = |order: &mut Order, command| {
        for event in order.decide(&command).expect("accepted") {
            order.evolve(&event);
            events.push(event);
        }
    };
    let customer_id = format!("customer-{}", number % 20_000);
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
    (order_id, events)
}

#[derive(Default)]
struct Columns {
    partition: Vec<i32>,
    seq: Vec<i64>,
    stream_id: Vec<Uuid>,
    version: Vec<i64>,
    event_id: Vec<Uuid>,
    event_type: Vec<&'static str>,
    schema_version: Vec<i16>,
    recorded_at: Vec<Timestamp>,
    payload: Vec<Vec<u8>>,
}

async fn fill_store(owner: &Client, codec: &OrdersCodec, topic: i16, partitions: i32, orders: usize) {
    let overlap =
        std::env::var("OVERLAP").map_or(OVERLAP_ORDERS, |n| n.parse().expect("OVERLAP is a number of orders"));
    let mut seqs = vec![0i64; partitions as usize];
    let mut numbers = (0..orders).peekable();
    while numbers.peek().is_some() {
        let batch: Vec<_> = numbers.by_ref().take(overlap).map(|number| (number, life(number))).collect();
        // Lives overlap within a batch: all are placed, then paid, then shipped.
        for step in 0..3 {
            for some in batch.chunks(INSERT_EVENTS) {
                let mut columns = Columns::default();
                for (number, (order_id, events)) in some {
                    let partition = destination_partition(*order_id, partitions);
                    let seq = &mut seqs[partition as usize];
                    *seq += 1;
                    let encoded = codec.encode(&events[step]).expect("encodes");
                    let second = 1_760_000_000 + (*number as i64) * 30 + step as i64;
                    columns.partition.push(partition);
                    columns.seq.push(*seq);
                    columns.stream_id.push(*order_id);
                    columns.version.push(step as i64 + 1);
                    columns.event_id.push(Uuid::new_v4());
                    columns.event_type.push(encoded.event_type);
                    columns.schema_version.push(encoded.schema_version);
                    columns.recorded_at.push(Timestamp::from_second(second).expect("in range"));
                    columns.payload.push(encoded.bytes);
                }
                append(owner, topic, &columns).await;
            }
        }
    }
    for (partition, seq) in seqs.iter().enumerate() {
        owner
            .execute(
                "update throughline.counters set last_seq = $3 where partition = $1 and topic = $2",
                &[&(partition as i32), &topic, seq],
            )
            .await
            .expect("counters");
    }
    owner.batch_execute("analyze throughline.events").await.expect("analyzes");
}

async fn append(owner: &Client, topic: i16, columns: &Columns) {
    owner
        .execute(
            "insert into throughline.events (topic, partition, seq, stream_id, version, event_id, type,
                    schema_version, command_id, correlation_id, recorded_at, payload)
             select $1, e.partition, e.seq, e.stream_id, e.version, e.event_id, e.type, e.schema_version,
                    e.event_id, e.event_id::text, e.recorded_at, e.payload
             from unnest($2::int[], $3::bigint[], $4::uuid[], $5::bigint[], $6::uuid[], $7::text[], $8::smallint[],
                         $9::timestamptz[], $10::bytea[])
                  e (partition, seq, stream_id, version, event_id, type, schema_version, recorded_at, payload)",
            &[
                &topic,
                &columns.partition,
                &columns.seq,
                &columns.stream_id,
                &columns.version,
                &columns.event_id,
                &columns.event_type,
                &columns.schema_version,
                &columns.recorded_at,
                &columns.payload,
            ],
        )
        .await
        .expect("appends");
}
