//! A rolling upgrade: a new writer beside old readers. The old ones never guess what they do not
//! know; the new one reads everything. And events of long ago, put into the store by hand.

use reference::orders::schemas;
use throughline::avro::{Catalogue, Codec, Published, SchemaIds, Upcasters, ids};
use throughline::engine::destination_partition;
use tokio_postgres::Client;
use uuid::Uuid;

use crate::harness::{Harness, eventually};
use crate::process::{Process, command, ended};

/// The golden datum of a type and version, about the order `order`, framed with `id`.
pub fn golden(name: &str, id: i32, order: Uuid) -> Vec<u8> {
    let path = format!("{}/../../tests/golden/orders/{name}.hex", env!("CARGO_MANIFEST_DIR"));
    let hex: Vec<u8> = std::fs::read(path).expect("golden bytes").into_iter().filter(u8::is_ascii_hexdigit).collect();
    let digit = |byte: u8| (byte as char).to_digit(16).expect("a hex digit") as u8;
    let datum: Vec<u8> = hex.chunks_exact(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect();
    let written = b"0198c0de-7a3e-7000-8000-00000000a001";
    let at = datum.windows(written.len()).position(|part| part == written).expect("the golden order id");
    let mut bytes = vec![0];
    bytes.extend(id.to_be_bytes());
    bytes.extend(&datum[..at]);
    bytes.extend(order.to_string().into_bytes());
    bytes.extend(&datum[at + written.len()..]);
    bytes
}

/// Appends one `OrderPlaced` to the store, as the processor would: counter, event, outbox row.
pub async fn append(harness: &Harness, client: &Client, order: Uuid, schema_version: i16, payload: &[u8]) {
    let partition = destination_partition(order, harness.settings.topics.event_partitions);
    let topic = harness.names().events();
    client
        .execute(
            "with topic as (select id from throughline.topics where name = $1),
             counter as (update throughline.counters set last_seq = last_seq + 1
                         where partition = $2 and topic = (select id from topic) returning last_seq),
             event as (insert into throughline.events (partition, topic, seq, stream_id, version, event_id, type,
                           schema_version, command_id, correlation_id, recorded_at, payload)
                       select $2, (select id from topic), last_seq, $3, 1, $3, 'OrderPlaced', $4, $3, 'old', now(), $5
                       from counter)
             insert into throughline.outbox (partition, topic, seq, key, type, message_id, subject, schema_version,
                 stream_version, command_id, correlation_id, created_at, value)
             select $2, (select id from topic), last_seq, $3, 'throughline.orders.OrderPlaced', $3, $3, $4, 1, $3, 'old',
                    now(), $5
             from counter",
            &[&topic, &partition, &order, &schema_version, &payload],
        )
        .await
        .expect("append an event");
}

/// The schemas of the next release: OrderPlaced has a version 5 with a field `channel`.
fn next_release() -> (Catalogue, Upcasters) {
    let newest = schemas::PUBLISHED.iter().find(|one| one.event_type == "OrderPlaced" && one.version == 4);
    let definition = newest.expect("version 4").definition.trim_end();
    let fields = definition.strip_suffix("]\n}").expect("fields come last").trim_end();
    let definition = format!("{fields}, {{\"name\": \"channel\", \"type\": \"string\", \"default\": \"unknown\"}}]}}");
    let mut published = schemas::PUBLISHED.to_vec();
    published.push(Published { event_type: "OrderPlaced", version: 5, definition: &definition });
    let catalogue = Catalogue::new(schemas::EVENTS_TOPIC, schemas::NAMESPACE, &published).expect("a catalogue");
    let upcasters = schemas::upcasters().with("OrderPlaced", 4, |fields| {
        fields.set("channel", apache_avro::types::Value::String("unknown".to_owned()));
        Ok(())
    });
    (catalogue, upcasters)
}

/// Ids of orders that share a partition.
fn neighbours(harness: &Harness) -> [Uuid; 2] {
    let partitions = harness.settings.topics.event_partitions;
    let first = Uuid::from_u128(0x0198_c0de_7a3e_7000_8000_0000_0000_b001);
    let home = destination_partition(first, partitions);
    let other = (1..).map(|n| Uuid::from_u128(first.as_u128() + n));
    [first, other.into_iter().find(|id| destination_partition(*id, partitions) == home).expect("one in a few")]
}

async fn listed(client: &Client, table: &str, order: Uuid) -> bool {
    let statement = format!("select from read.{table} where order_id = $1");
    client.query_opt(&statement, &[&order]).await.expect("the read table").is_some()
}

#[tokio::test(flavor = "multi_thread")]
async fn old_readers_park_or_halt_on_a_newer_version_and_new_ones_read_both() {
    let harness = Harness::new("rolling_upgrade").await;
    let client = harness.client().await;
    let mut parks = command(&harness, &["run", "projection:order-list"]);
    parks.env("THROUGHLINE__PROJECTION__ON_FAILURE", "park");
    let (relay, parks) = (Process::run(&harness, &["relay"]), Process::start(parks));
    let halts = Process::run(&harness, &["projection:order-details"]);
    // Started before the upgrade: they know the schemas of their time.
    for process in [&relay, &parks, &halts] {
        process.logged("admin listens").await;
    }

    // The new release is installed: its version 5 gets an id. Then it writes.
    let (catalogue, upcasters) = next_release();
    let catalogue = catalogue.of_topic(harness.names().events());
    let ids = ids::register(&client, &catalogue).await.expect("register version 5");
    let id = |version| ids.id_of("OrderPlaced", version).expect("an id");
    let [known, newer] = neighbours(&harness);
    let fourth = golden("OrderPlaced.v4", id(4), known);
    // Avro writes a record's fields one after the other: the new one goes behind.
    let fifth = [golden("OrderPlaced.v4", id(5), newer), b"\x06web".to_vec()].concat();
    append(&harness, &client, known, 4, &fourth).await;
    append(&harness, &client, newer, 5, &fifth).await;

    // Old readers: one parks it and goes on, one halts before it. Neither makes a row of it.
    let reason: String = eventually("the event is parked", || async {
        let statement = "select reason from throughline.dead_letters where kind = 'event' and key = $1";
        let key = newer.to_string().into_bytes();
        client.query_opt(statement, &[&key]).await.expect("dead letters").map(|row| row.get(0))
    })
    .await;
    assert!(reason.contains(&format!("schema id {} is not registered", id(5))), "{reason}");
    halts.logged("is not registered").await;
    for table in ["order_list", "order_details"] {
        assert!(eventually("the known order", || async { listed(&client, table, known).await.then_some(true) }).await);
        assert!(!listed(&client, table, newer).await, "{table} guessed");
    }

    // An old program that starts now says what it lacks, and does not start.
    let refused = ended(&mut command(&harness, &["run", "processor"])).await;
    assert_eq!(refused.code, 1, "{}", refused.stderr);
    assert!(refused.stderr.contains("OrderPlaced version 5 (1 events)"), "{}", refused.stderr);
    let arguments = ["events", "tail", "--from", "beginning", "--output", "ndjson"];
    let tail = ended(&mut command(&harness, &arguments)).await;
    assert_eq!(tail.code, 3, "{}", tail.stderr);
    assert!(tail.stdout.contains("OrderPlaced version 5, which this program does not know"), "{}", tail.stdout);

    // The new reader reads both.
    let codec = Codec::new(catalogue, upcasters, &ids).expect("the new release's codec");
    assert_eq!(channel(&codec, &fourth), "unknown");
    assert_eq!(channel(&codec, &fifth), "web");
    // An old codec that knows of the id refuses it by name, one that does not by number.
    assert_refusals(&ids, &fifth);
    for process in [relay, parks, halts] {
        assert_eq!(process.terminate().await, 0);
    }
}

fn channel(codec: &Codec, bytes: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Newest {
        channel: String,
    }
    let (handle, datum) = codec.newest_datum(bytes).expect("known");
    codec.read::<Newest>(handle, &datum).expect("reads").channel
}

fn assert_refusals(ids: &SchemaIds, bytes: &[u8]) {
    let old = |ids: &SchemaIds| {
        let codec = Codec::new(schemas::catalogue().expect("a catalogue"), schemas::upcasters(), ids).expect("a codec");
        codec.newest_datum(bytes).expect_err("unknown").to_string()
    };
    assert!(old(ids).contains("OrderPlaced version 5"), "{}", old(ids));
    let before = ids.iter().filter(|(_, name, version)| (*name, *version) != ("OrderPlaced", 5));
    let before = SchemaIds::new(before.map(|(id, name, version)| (name.to_owned(), version, id)));
    assert!(old(&before).contains("is not registered"), "{}", old(&before));
}
