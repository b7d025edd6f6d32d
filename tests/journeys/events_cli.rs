//! Operators look into the store: tail, streams through time, schemas, history to a new topic.

use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use reference::orders::OrdersCodec;
use serde_json::{Value, json};
use throughline::engine::{EventCodec as _, destination_partition};
use throughline::kafka::topics;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio_postgres::Client;
use uuid::Uuid;

use crate::harness::{Harness, PATIENCE, eventually};
use crate::one_order::{kcat, place_order, records_on};
use crate::process::{Ended, Process, command, ended};
use crate::rolling_upgrade::{append, golden};

async fn run(harness: &Harness, arguments: &[&str]) -> Ended {
    ended(&mut command(harness, arguments)).await
}

/// The lines of an `ndjson` answer that must succeed.
async fn rows(harness: &Harness, arguments: &[&str]) -> Vec<Value> {
    let ended = run(harness, &[arguments, &["--output", "ndjson"]].concat()).await;
    assert_eq!(ended.code, 0, "{arguments:?}: {}", ended.stderr);
    ended.stdout.lines().map(|line| serde_json::from_str(line).expect("a JSON line")).collect()
}

async fn events_in_store(client: &Client, number: i64) {
    eventually(&format!("{number} events in the store"), || async {
        let row = client.query_one("select count(*) from throughline.events", &[]).await.expect("events");
        (row.get::<_, i64>(0) == number).then_some(())
    })
    .await;
}

fn send(harness: &Harness, order: Uuid, command: &Value) {
    kcat(harness, &harness.names().commands(), &order.to_string(), &command.to_string(), &["correlation-id=look"]);
}

/// One order placed, paid and shipped, and one of the first schema version.
async fn history(harness: &Harness, client: &Client) -> (Uuid, Uuid) {
    let (order, old) = (Uuid::now_v7(), Uuid::now_v7());
    send(harness, order, &place_order(order, Uuid::now_v7()));
    let payment = Uuid::now_v7();
    send(
        harness,
        order,
        &json!({"type": "RecordPayment", "orderId": order, "paymentId": payment, "amount": "39.98", "currency": "USD"}),
    );
    let shipment = json!({"type": "ShipOrder", "orderId": order, "carrier": "DHL", "trackingNumber": "JD014600"});
    send(harness, order, &shipment);
    events_in_store(client, 3).await;
    let id: i32 = client
        .query_one("select id from throughline.schemas where event_type = 'OrderPlaced' and version = 1", &[])
        .await
        .expect("schemas")
        .get(0);
    append(harness, client, old, 1, &golden("OrderPlaced.v1", id, old)).await;
    (order, old)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_store_can_be_looked_into_and_sent_again() {
    let harness = Harness::new("events_cli").await;
    let client = harness.client().await;
    let processor = Process::run(&harness, &["processor"]);
    let (order, old) = history(&harness, &client).await;
    outbox_tells_what_waits(&harness).await;
    tail_shows_everything(&harness, order, old).await;
    stream_shows_states(&harness, order).await;
    republish_repeats_history(&harness, &client, old).await;
    tail_follows_until_nobody_reads(&harness).await;
    an_interrupted_tail_ends_its_array(&harness).await;
    usage_that_cannot_be_meant_is_told_by_the_exit_code(&harness).await;
    schemas_can_be_compared(&harness, &client).await;
    assert_eq!(processor.terminate().await, 0);
}

/// Four events wait until a relay comes.
async fn outbox_tells_what_waits(harness: &Harness) {
    let pending = ["outbox", "status", "--pending"];
    let depth = |rows: &[Value]| rows.iter().filter_map(|row| row["depth"].as_i64()).sum::<i64>();
    let waiting = rows(harness, &pending).await;
    assert_eq!(depth(&waiting), 4, "{waiting:?}");
    for row in &waiting {
        assert_eq!((row["state"].as_str(), row["owner"].as_str()), (Some("unowned"), None), "{row}");
        assert!(row["oldestAgeSeconds"].as_f64() > Some(0.0), "{row}");
    }
    let relay = Process::run(harness, &["relay"]);
    eventually("nothing waits", || async { rows(harness, &pending).await.is_empty().then_some(()) }).await;
    let all = rows(harness, &["outbox", "status"]).await;
    assert!(all.iter().all(|row| row["state"] == "publishing" && row["owner"].is_string()), "{all:?}");
    assert!(all.iter().all(|row| row["ratePerSecond"] == 0.0 && row["published"] == row["lastSeq"]), "{all:?}");
    assert_eq!(relay.terminate().await, 0);
}

async fn tail_shows_everything(harness: &Harness, order: Uuid, old: Uuid) {
    let all = rows(harness, &["events", "tail", "--from", "beginning"]).await;
    let types: Vec<_> = all.iter().map(|row| row["type"].as_str().expect("a type")).collect();
    assert_eq!(types, ["OrderPlaced", "PaymentReceived", "OrderShipped", "OrderPlaced"]);
    assert_eq!((&all[1]["payload"]["paid"], &all[1]["correlationId"]), (&json!("39.98"), &json!("look")));
    // Upcast to the newest shape, or raw as it was written.
    assert_eq!((&all[3]["orderId"], &all[3]["schemaVersion"]), (&json!(old), &json!(1)));
    assert_eq!((&all[3]["payload"]["currency"], &all[3]["payload"]["total"]), (&json!("USD"), &json!("140.00")));
    let raw = rows(harness, &["events", "tail", "--from", "beginning", "--raw"]).await;
    assert!(raw[3]["payload"]["customerId"].is_string() && raw[3]["payload"]["total"].is_null(), "{}", raw[3]);
    assert!(raw[0]["payload"]["customer"]["id"].is_string(), "{}", raw[0]);

    let partition = destination_partition(order, harness.settings.topics.event_partitions);
    let place = format!("{partition}:{}", all[1]["seq"]);
    let from = rows(harness, &["events", "tail", "--from", &place, "--max", "1"]).await;
    assert_eq!(from, [all[1].clone()]);
    let table = run(harness, &["events", "tail", "--from", "beginning", "--max", "2"]).await;
    assert_eq!((table.code, table.stdout.lines().count()), (0, 3), "{}", table.stdout);
    let json = run(harness, &["events", "tail", "--from", "beginning", "--output", "json"]).await;
    assert_eq!(serde_json::from_str::<Vec<Value>>(&json.stdout).expect("an array"), all);
    assert!(rows(harness, &["events", "tail", "--no-follow"]).await.is_empty());
    assert_eq!(run(harness, &["events", "tail", "--from", "99:1"]).await.code, 1);
    assert_eq!(run(harness, &["events", "tail", "--from", "nowhere"]).await.code, 2);
}

/// `tail --from end` prints what comes, and ends without an error when its reader goes away.
async fn tail_follows_until_nobody_reads(harness: &Harness) {
    let mut tail = command(harness, &["events", "tail", "--from", "end", "--output", "ndjson", "--follow"]);
    let mut tail = tail.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("tail starts");
    let mut lines = BufReader::new(tail.stdout.take().expect("stdout is piped")).lines();
    // It may not have found the end yet: orders are placed until one is seen.
    let deadline = std::time::Instant::now() + PATIENCE;
    let line = loop {
        assert!(std::time::Instant::now() < deadline, "no event was printed");
        let order = Uuid::now_v7();
        send(harness, order, &place_order(order, Uuid::now_v7()));
        if let Ok(line) = tokio::time::timeout(Duration::from_millis(500), lines.next_line()).await {
            break line.expect("readable").expect("a line");
        }
    };
    assert!(line.contains("OrderPlaced"), "{line}");
    drop(lines);
    let order = Uuid::now_v7();
    send(harness, order, &place_order(order, Uuid::now_v7()));
    let ended = tokio::time::timeout(PATIENCE, tail.wait_with_output()).await.expect("tail ends");
    let ended = ended.expect("tail ran");
    assert!(ended.status.success(), "{:?} {}", ended.status, String::from_utf8_lossy(&ended.stderr));
}

/// Ctrl-C is how following ends: what was printed is JSON all the same.
async fn an_interrupted_tail_ends_its_array(harness: &Harness) {
    let mut tail = command(harness, &["events", "tail", "--from", "beginning", "--output", "json", "--follow"]);
    let mut tail = tail.stdout(Stdio::piped()).spawn().expect("tail starts");
    let mut lines = BufReader::new(tail.stdout.take().expect("stdout is piped")).lines();
    let mut text = String::new();
    for _ in 0..2 {
        text.push_str(&lines.next_line().await.expect("readable").expect("an event"));
    }
    let id = Pid::from_raw(tail.id().expect("it runs") as i32);
    kill(id, Signal::SIGINT).expect("signal the process");
    while let Some(line) = lines.next_line().await.expect("readable") {
        text.push_str(&line);
    }
    assert_eq!(tail.wait().await.expect("tail ends").code(), Some(130));
    let printed: Vec<Value> = serde_json::from_str(&text).expect("an array that is closed");
    assert_eq!(printed[0]["type"], "OrderPlaced");
}

async fn usage_that_cannot_be_meant_is_told_by_the_exit_code(harness: &Harness) {
    let new = format!("{}new", harness.settings.topics.prefix);
    let ours = harness.names().commands();
    for (line, says) in [
        ("events tail --from 0:1 --from 0:2", "partition 0 twice"),
        ("events tail --from beginning --from end", "alone"),
        (&format!("events republish --from end --to-topic {new}"), "sends nothing"),
        (&format!("events republish --yes --to-topic {ours}"), "belongs to the pipeline"),
        ("events republish --dry-run --to-topic bad!", "a topic's name is"),
        ("schema diff OrderPlaced 0 1", "0 is not in 1.."),
        ("schema show OrderPlaced 0", "0 is not in 1.."),
        ("schema diff OrderPlaced 4", "compared with itself"),
    ] {
        let ended = run(harness, &line.split(' ').collect::<Vec<_>>()).await;
        assert!(ended.code == 2 && ended.stderr.contains(says), "{line}: {} {}", ended.code, ended.stderr);
    }
    let unknown = run(harness, &["schema", "diff", "OrderPlaced", "9", "1"]).await;
    assert!(unknown.code == 1 && unknown.stderr.contains("there is no 9"), "{}", unknown.stderr);
    let beyond = ["events", "republish", "--to-topic", &new, "--from", "0:999999"];
    let beyond = run(harness, &beyond).await;
    assert!(beyond.code == 0 && beyond.stderr.contains("nothing to send"), "{} {}", beyond.code, beyond.stderr);
    let made = topics::partition_count(&harness.settings.kafka, &new).await.expect("Kafka answers");
    assert_eq!(made, None, "no topic is made for nothing");
}

async fn stream_shows_states(harness: &Harness, order: Uuid) {
    let id = order.to_string();
    let show = async |more: &[&str]| run(harness, &[&["stream", "show", &id], more].concat()).await;
    let whole = show(&["--output", "json", "--diff"]).await;
    let whole: Value = serde_json::from_str(&whole.stdout).expect("an object");
    assert_eq!((&whole["version"], &whole["state"]["status"]), (&json!(3), &json!("shipped")));
    let change = json!({"path": "status", "from": "placed", "to": "paid"});
    assert!(whole["events"][1]["changes"].as_array().expect("changes").contains(&change), "{whole:#}");
    for key in ["commandId", "correlationId", "recordedAt", "principal", "payload"] {
        assert!(whole["events"][0].get(key).is_some(), "{key}");
    }
    let then = rows(harness, &["stream", "show", &id, "--at-version", "1"]).await;
    assert_eq!((then.len(), &then[0]["state"]["status"]), (1, &json!("placed")));
    let paid_at = whole["events"][1]["recordedAt"].as_str().expect("a time");
    let then = rows(harness, &["stream", "show", &id, "--at-time", paid_at]).await;
    assert_eq!(then.last().expect("events")["payload"], whole["events"][then.len() - 1]["payload"]);
    let text = show(&["--diff"]).await.stdout;
    assert!(text.contains("~ status: \"placed\" -> \"paid\"") && text.contains("state at version 3"), "{text}");
    assert!(show(&["--at-version", "4"]).await.stderr.contains("versions 1 to 3"));
    assert!(show(&["--at-time", "2001-01-01T00:00:00Z"]).await.stderr.contains("had no event yet"));
    // Had the clock been a day ahead at the first event, the others would not be there before it.
    let set_clock = async |days: &str| {
        let statement = format!(
            "alter table throughline.events disable trigger events_are_immutable;
             update throughline.events set recorded_at = recorded_at + interval '{days} days'
             where stream_id = '{id}' and version = 1;
             alter table throughline.events enable trigger events_are_immutable"
        );
        harness.client().await.batch_execute(&statement).await.expect("the clock was set");
    };
    set_clock("1").await;
    assert!(show(&["--at-time", paid_at]).await.stderr.contains("had no event yet"));
    set_clock("-1").await;
    let unknown = run(harness, &["stream", "show", &Uuid::now_v7().to_string()]).await;
    assert_eq!(unknown.code, 1);
    assert!(unknown.stderr.contains("no stream"), "{}", unknown.stderr);
}

async fn republish_repeats_history(harness: &Harness, client: &Client, old: Uuid) {
    let target = format!("{}again", harness.settings.topics.prefix);
    let republish = async |more: &[&str]| {
        run(harness, &[&["events", "republish", "--to-topic", &target, "--output", "ndjson"], more].concat()).await
    };
    let plan = rows(harness, &["events", "republish", "--to-topic", &target, "--dry-run"]).await;
    assert_eq!(plan.iter().filter_map(|row| row["events"].as_i64()).sum::<i64>(), 4);
    assert_eq!(republish(&[]).await.code, 2, "consent is asked for");
    // Onto the events topic it would give back what that lacks; the others are not for events.
    let onto_ours = ["events", "republish", "--yes", "--to-topic", &harness.names().commands()];
    assert!(run(harness, &onto_ours).await.stderr.contains("belongs to the pipeline"));

    let sent = republish(&["--yes"]).await;
    assert_eq!((sent.code, sent.stdout.contains("\"sent\":4")), (0, true), "{} {}", sent.stdout, sent.stderr);
    assert!(republish(&["--yes"]).await.stdout.contains("\"sent\":0"), "a second run finds all there");
    assert_same_history(harness, client, &target, old).await;

    let all = rows(harness, &["events", "tail", "--from", "beginning", "--no-follow"]).await;
    let second = all.iter().find(|row| row["seq"] == 2).expect("a partition with two events");
    let part = format!("{target}-part");
    let begun_at =
        async |from: &str| run(harness, &["events", "republish", "--to-topic", &part, "--yes", "--from", from]).await;
    let from = format!("{}:2", second["partition"]);
    assert_eq!(begun_at(&from).await.code, 0);
    assert_eq!(begun_at(&from).await.code, 0, "the same again goes on");
    let earlier = begun_at("beginning").await;
    assert!(earlier.code == 1 && earlier.stderr.contains("lacks some from 1 on"), "{}", earlier.stderr);

    let late = Uuid::now_v7();
    send(harness, late, &place_order(late, Uuid::now_v7()));
    events_in_store(client, 5).await;
    assert!(republish(&["--yes"]).await.stdout.contains("\"sent\":1"), "and goes on behind it");
    assert_same_history(harness, client, &target, old).await;
}

/// The topic holds the store: places, keys, headers; and every value in the newest version.
async fn assert_same_history(harness: &Harness, client: &Client, target: &str, old: Uuid) {
    let statement = "select partition, seq, stream_id, event_id, version, type, recorded_at
                     from throughline.events order by partition, seq";
    let stored = client.query(statement, &[]).await.expect("events");
    let records = records_on(harness, target);
    assert_eq!(records.len(), stored.len());
    let codec = OrdersCodec::installed(&harness.settings).await.expect("a codec");
    let newest: i32 = client
        .query_one("select id from throughline.schemas where event_type = 'OrderPlaced' and version = 4", &[])
        .await
        .expect("schemas")
        .get(0);
    for ((partition, headers, key, value), row) in records.iter().zip(&stored) {
        let header = |name: &str| headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str());
        assert_eq!((*partition, key.as_str()), (row.get(0), row.get::<_, Uuid>(2).to_string().as_str()));
        assert_eq!(header("seq"), Some(row.get::<_, i64>(1).to_string().as_str()));
        assert_eq!(header("ce_id"), Some(row.get::<_, Uuid>(3).to_string().as_str()));
        assert_eq!(header("stream-version"), Some(row.get::<_, i64>(4).to_string().as_str()));
        assert_eq!(header("ce_type"), Some(format!("throughline.orders.{}", row.get::<_, &str>(5)).as_str()));
        assert_eq!(header("ce_source"), Some("/throughline/orders"));
        codec.decode(value).expect("the value decodes");
        if *key == old.to_string() {
            assert_eq!((header("schema-version"), &value[1..5]), (Some("4"), &newest.to_be_bytes()[..]));
        }
    }
}

async fn schemas_can_be_compared(harness: &Harness, client: &Client) {
    assert_eq!(run(harness, &["schema", "check"]).await.code, 0);
    let list = rows(harness, &["schema", "list"]).await;
    assert!(list.len() == 10 && list.iter().all(|row| row["id"].is_i64()), "{list:?}");
    // A stock client builds the subject from the topic's whole name.
    let subject = format!("{}-throughline.orders.OrderPlaced", harness.names().events());
    assert!(list.iter().any(|row| row["subject"] == subject.as_str()), "{list:?}");
    let shown = run(harness, &["schema", "show", "OrderPlaced", "1"]).await.stdout;
    assert!(serde_json::from_str::<Value>(&shown).expect("a schema")["name"] == "OrderPlaced");
    assert!(run(harness, &["schema", "show", "OrderLost"]).await.stderr.contains("OrderCancelled, OrderPlaced"));
    let changes = rows(harness, &["schema", "diff", "OrderPlaced", "1", "4"]).await;
    let added: Vec<_> = changes.iter().filter(|row| row["change"] == "added").map(|row| &row["field"]).collect();
    assert_eq!(
        added,
        ["currency", "customer", "customer.id", "items[].lineTotal", "payment", "payment.token", "total"]
    );
    assert_eq!(run(harness, &["schema", "diff", "--database"]).await.code, 0);
    client
        .execute("update throughline.schemas set fingerprint = 'other' where event_type = 'OrderShipped'", &[])
        .await
        .expect("update");
    let differs = run(harness, &["schema", "diff", "--database"]).await;
    assert_eq!((differs.code, differs.stdout.matches("differs").count()), (3, 2), "{}", differs.stdout);
}
