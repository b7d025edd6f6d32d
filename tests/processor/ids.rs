//! Ids and equality: where a command id counts, what makes a command the same, and what a record's headers may say.

use std::collections::HashSet;

use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};
use serde_json::{Value, json};
use throughline::engine::fingerprint;
use throughline::kafka::client;
use tokio_postgres::Client;
use uuid::Uuid;

use crate::floor::{Produced, Running, Source, command, consumed, decided, number, pay, place, sound};
use crate::harness::{Harness, PATIENCE};

async fn results(client: &Client) -> Vec<Value> {
    let rows = client
        .query("select value from throughline.outbox where type like '%CommandResult' order by partition, seq", &[])
        .await
        .expect("results");
    rows.iter().map(|row| serde_json::from_slice(row.get(0)).expect("json")).collect()
}

/// Twelve orders under one id, twice, on whatever partitions and in whatever batches: twelve effects, and no two
/// records share an id.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_id_for_twelve_orders_has_twelve_effects() {
    let harness = Harness::new("ids_twelve").await;
    let (client, source) = (harness.client().await, Source::new(&harness));
    let (id, orders) = (Uuid::new_v4(), [(); 12].map(|()| Uuid::new_v4()));
    let asked =
        |command: &Value| Produced { headers: vec![("reply-to", "me".into())], ..self::command(&harness, command) };
    let placed: Vec<_> = orders.iter().map(|order| asked(&place(*order, id))).collect();
    source.produce(&placed);
    let running = Running::start(&harness.settings).await;
    consumed(&client, 12).await;
    source.produce(&placed);
    // In one of them it is used again, for something else.
    source.produce(&[command(&harness, &pay(orders[0], id, "5.00"))]);
    consumed(&client, 25).await;
    running.stop().await;

    let outcomes = "select count(*) filter (where accepted), count(distinct stream_id) from throughline.commands";
    let row = client.query_one(outcomes, &[]).await.expect("outcomes");
    assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1)), (12, 12));
    let ids = "select count(*), count(distinct event_id), count(distinct stream_id) from throughline.events";
    let row = client.query_one(ids, &[]).await.expect("events");
    assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1), row.get::<_, i64>(2)), (12, 12, 12));
    // One result an order, told twice under the same id, and the refusal under one of its own.
    let told = "select count(*), count(distinct message_id), count(distinct (subject, message_id))
                from throughline.outbox where type like '%CommandResult'";
    let row = client.query_one(told, &[]).await.expect("results");
    assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1), row.get::<_, i64>(2)), (25, 13, 13));
    let reused: Vec<Value> = results(&client).await.into_iter().filter(|r| r["code"] == "COMMAND_ID_REUSED").collect();
    assert_eq!(reused.len(), 1);
    assert_eq!(reused[0]["orderId"], json!(orders[0]));
    sound(&client).await;
}

/// Other bytes, the same command: in the same batch, in a later one, and after a restart.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_command_written_otherwise_has_one_effect() {
    let harness = Harness::new("ids_equal").await;
    let (client, source) = (harness.client().await, Source::new(&harness));
    let (order, id) = (Uuid::new_v4(), Uuid::new_v4());
    let value = place(order, id);
    let written = |value: String| Produced { value: Some(value.into_bytes()), ..command(&harness, &place(order, id)) };
    let mut nulls = value.clone();
    nulls["expectedVersion"] = Value::Null;
    let fields = value.as_object().expect("an object").iter().rev();
    let reversed: Vec<String> = fields.map(|(name, value)| format!("{name:?} : {value}")).collect();
    let variants = [
        written(format!("{value:#}\n")),
        written(format!("{{{}}}", reversed.join(","))),
        written(value.to_string().replace("customer", "\\u0063ustomer")),
        written(nulls.to_string()),
        written(value.to_string().replace(&id.to_string(), &id.to_string().to_uppercase())),
        written(value.to_string().replace("\"10.00\"", "\"10\"")),
    ];
    source.produce(&variants);
    let running = Running::start(&harness.settings).await;
    consumed(&client, 6).await;
    source.produce(&[written(value.to_string())]);
    consumed(&client, 7).await;
    running.stop().await;
    let running = Running::start(&harness.settings).await;
    source.produce(&variants);
    consumed(&client, 13).await;
    assert!(decided(&client, &[id]).await[0].accepted);
    assert_eq!(results(&client).await, Vec::<Value>::new(), "nothing was refused");

    // An outcome of an earlier release knows the bytes alone: the same bytes are the same command.
    let kept = fingerprint(variants[0].value.as_deref().expect("a value"));
    let rewrite = "update throughline.commands set payload_hash = $1";
    assert_eq!(client.execute(rewrite, &[&kept.as_slice()]).await.expect("rewritten"), 1);
    source.produce(&[variants[0].clone()]);
    consumed(&client, 14).await;
    assert_eq!(results(&client).await, Vec::<Value>::new(), "a retry across the upgrade is a retry");
    let mut another = value;
    another["expectedVersion"] = json!(0);
    source.produce(&[written(another.to_string())]);
    consumed(&client, 15).await;
    running.stop().await;
    assert_eq!(results(&client).await[0]["code"], "COMMAND_ID_REUSED", "what it expects is part of what it means");
    assert_eq!(number(&client, "select count(*) from throughline.events").await, 1);
    sound(&client).await;
}

type Headers<'a> = &'a [(&'a str, Option<&'a [u8]>)];

/// Produces `value` with headers of any bytes.
fn produce(harness: &Harness, value: &Value, headers: Headers<'_>) {
    let producer: ThreadedProducer<DefaultProducerContext> =
        client::producer(&harness.settings.kafka, 1).create().expect("a producer");
    let mut owned = OwnedHeaders::new();
    for (key, value) in headers {
        owned = owned.insert(Header { key, value: *value });
    }
    let (topic, text) = (harness.names().commands(), value.to_string());
    let key = value["orderId"].as_str().expect("an order");
    let record = BaseRecord::to(&topic).key(key).payload(&text).headers(owned);
    producer.send(record).map_err(|(error, _)| error).expect("queued");
    producer.flush(PATIENCE).expect("acknowledged");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_id_header_is_read_or_told() {
    let harness = Harness::new("ids_header").await;
    let client = harness.client().await;
    let running = Running::start(&harness.settings).await;
    let id = Uuid::new_v4();
    let (text, simple, braced) = (id.to_string(), id.simple().to_string(), id.braced().to_string());
    let (urn, nil, spaced) = (id.urn().to_string(), Uuid::nil().to_string(), format!(" {id}"));
    let other = Uuid::new_v4().to_string();
    let once = |value| vec![("command-id", Some(value))];
    let refused: Vec<(Vec<(&str, Option<&[u8]>)>, &str)> = vec![
        (once(id.as_bytes().as_slice()), "is not text"),
        (once(b"\xff\xfe"), "is not text"),
        (once(b""), "must be a UUID"),
        (vec![("command-id", None)], "is not text"),
        (once(b"4711"), "must be a UUID"),
        (once(simple.as_bytes()), "must be a UUID"),
        (once(braced.as_bytes()), "must be a UUID"),
        (once(urn.as_bytes()), "must be a UUID"),
        (once(spaced.as_bytes()), "must be a UUID"),
        (once(nil.as_bytes()), "must not be the nil UUID"),
        ([once(text.as_bytes()), once(other.as_bytes())].concat(), "more than once"),
        ([once(b"\xff"), vec![("other", None)], once(text.as_bytes())].concat(), "more than once"),
    ];
    for (headers, reason) in &refused {
        let (order, own) = (Uuid::new_v4(), Uuid::new_v4());
        produce(&harness, &place(order, own), headers);
        let outcome = decided(&client, &[own]).await.remove(0);
        assert_eq!((outcome.code.as_deref(), outcome.stream_id), (Some("INVALID_COMMAND"), order), "{headers:?}");
        let told = outcome.reason.expect("a reason");
        assert!(told.starts_with("header command-id ") && told.contains(reason), "{headers:?}: {told}");
    }
    // Without an id in the value, the place of the record names the refusal.
    let mut nameless = place(Uuid::new_v4(), id);
    nameless.as_object_mut().expect("an object").remove("commandId");
    produce(&harness, &nameless, &once(b"\xff"));
    consumed(&client, refused.len() as i64 + 1).await;
    let told =
        "select count(*) from throughline.commands where code = 'INVALID_COMMAND' and reason like 'header command-id%'";
    assert_eq!(number(&client, told).await, refused.len() as i64 + 1);

    // The header's id is the command's, in either case.
    let upper = text.to_uppercase();
    for header in [&text, &upper] {
        produce(&harness, &place(Uuid::new_v4(), Uuid::new_v4()), &once(header.as_bytes()));
    }
    consumed(&client, refused.len() as i64 + 3).await;
    running.stop().await;
    let accepted = client
        .query_one("select count(*), count(distinct command_id) from throughline.commands where accepted", &[])
        .await
        .expect("outcomes");
    assert_eq!((accepted.get::<_, i64>(0), accepted.get::<_, i64>(1)), (2, 1));
    sound(&client).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_only_travels_along_never_refuses_a_command() {
    const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let harness = Harness::new("ids_along").await;
    let client = harness.client().await;
    let running = Running::start(&harness.settings).await;
    let long = "é".repeat(200);
    let cut = "é".repeat(128);
    // What a header says, and what becomes of it: correlation id, causation id, trace; none = the command's id, or nothing.
    type Told<'a> = (Option<&'a str>, Option<&'a str>, Option<&'a str>);
    let cases: Vec<(Vec<(&str, Option<&[u8]>)>, Told<'_>)> = vec![
        (vec![], (None, None, None)),
        (vec![("causation-id", Some(b"a cause")), ("correlation-id", Some(b"c"))], (Some("c"), Some("a cause"), None)),
        (vec![("causation-id", Some(b"")), ("correlation-id", None)], (None, None, None)),
        (
            vec![("causation-id", Some(b"\xff1")), ("correlation-id", Some(b"\xfe2"))],
            (Some("\u{fffd}2"), Some("\u{fffd}1"), None),
        ),
        (
            vec![("causation-id", Some(b"n\0l")), ("correlation-id", Some(long.as_bytes()))],
            (Some(&cut), Some("n\u{fffd}l"), None),
        ),
        (vec![("causation-id", Some(b"1")), ("causation-id", Some(b"2"))], (None, Some("2"), None)),
        (vec![("traceparent", Some(TRACE.as_bytes()))], (None, None, Some(TRACE))),
        (vec![("traceparent", Some(b"00-x"))], (None, None, None)),
        (vec![("traceparent", Some(b"\xff"))], (None, None, None)),
    ];
    for (headers, (correlation, causation, trace)) in &cases {
        let id = Uuid::new_v4();
        produce(&harness, &place(Uuid::new_v4(), id), headers);
        let outcome = decided(&client, &[id]).await.remove(0);
        assert!(outcome.accepted, "{headers:?}: {outcome:?}");
        for table in ["events", "outbox"] {
            let select = format!(
                "select correlation_id, causation_id, traceparent from throughline.{table} where command_id = $1"
            );
            let row = client.query_one(&select, &[&id]).await.expect("one row");
            let (own, seen): (String, Told<'_>) = (id.to_string(), (row.get(0), row.get(1), row.get(2)));
            let wanted = (correlation.or(Some(&own)), causation.or(Some(&own)), *trace);
            assert_eq!(seen, wanted, "{headers:?} in {table}");
        }
    }
    running.stop().await;
    let causes: HashSet<bool> = results(&client).await.iter().map(|result| result["code"].is_null()).collect();
    assert!(causes.is_empty(), "nobody asked for a reply");
    sound(&client).await;
}
