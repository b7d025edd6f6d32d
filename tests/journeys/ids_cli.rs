//! Ids on the command line: one id with several outcomes, keys however a file writes them, and kcat's partitioner.

use std::process::Stdio;

use serde_json::{Value, json};
use throughline::engine::destination_partition;
use tokio::io::AsyncWriteExt as _;
use uuid::Uuid;

use crate::harness::{Harness, eventually};
use crate::one_order::{events_on_topic, kcat, place_order};
use crate::process::{Ended, Process, command, ended};

/// `throughline command send`, with these lines.
async fn send(harness: &Harness, lines: &[Value]) -> Ended {
    let mut child = command(harness, &["command", "send"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    let mut stdin = child.stdin.take().expect("stdin is piped");
    stdin.write_all(text.as_bytes()).await.expect("it reads");
    drop(stdin);
    let output = child.wait_with_output().await.expect("it ends");
    Ended {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

async fn status(harness: &Harness, arguments: &[&str]) -> (i32, Vec<Value>) {
    let arguments = [&["command", "status"], arguments, &["--output", "ndjson"]].concat();
    let ended = ended(&mut command(harness, &arguments)).await;
    (ended.code, ended.stdout.lines().map(|line| serde_json::from_str(line).expect("a JSON line")).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_of_three_orders_is_told_for_each() {
    let harness = Harness::new("ids_cli").await;
    let roles = Process::run(&harness, &["processor", "relay"]);
    let (id, orders) = (Uuid::now_v7(), [(); 3].map(|()| Uuid::now_v7()));
    // The first as some programs write ids; the last with a cause.
    let mut shouted = place_order(orders[0], id);
    shouted["orderId"] = json!(orders[0].to_string().to_uppercase());
    shouted["commandId"] = json!(id.to_string().to_uppercase());
    let sent = send(&harness, &[shouted, place_order(orders[1], id)]).await;
    assert_eq!((sent.code, sent.stdout), (0, format!("{id}\n{id}\n")), "{}", sent.stderr);
    let topic = harness.names().commands();
    kcat(
        &harness,
        &topic,
        &orders[2].to_string(),
        &place_order(orders[2], id).to_string(),
        &["causation-id=invoice-7"],
    );

    let text = id.to_string();
    let rows = eventually("three outcomes", || async {
        let (_, rows) = status(&harness, &[&text]).await;
        (rows.len() == 3).then_some(rows)
    })
    .await;
    let mut told: Vec<&str> = rows.iter().map(|row| row["orderId"].as_str().expect("an order")).collect();
    let mut wanted = orders.map(|order| order.to_string());
    told.sort_unstable();
    wanted.sort_unstable();
    assert_eq!(told, wanted);
    assert!(rows.iter().all(|row| row["status"] == "accepted"), "{rows:?}");
    let (code, rows) = status(&harness, &[&text, "--stream", &wanted[1]]).await;
    assert_eq!((code, rows.len(), rows[0]["orderId"].as_str()), (0, 1, Some(wanted[1].as_str())));
    let (code, rows) = status(&harness, &[&text, "--stream", &Uuid::now_v7().to_string()]).await;
    assert_eq!((code, rows[0]["status"].as_str()), (3, Some("pending")));

    // Every event on the topic has an id of its own, and says what caused it.
    let published = eventually("three events published", || async {
        let published = events_on_topic(&harness);
        (published.len() == 3).then_some(published)
    })
    .await;
    let header = |name: &str| -> Vec<String> {
        let of = |headers: &[(String, String)]| headers.iter().find(|(key, _)| key == name).expect(name).1.clone();
        let mut values: Vec<String> = published.iter().map(|(_, headers, ..)| of(headers)).collect();
        values.sort_unstable();
        values.dedup();
        values
    };
    assert_eq!(header("ce_id").len(), 3);
    assert_eq!(header("causation-id"), [text.clone(), "invoice-7".to_owned()]);
    let shown = ended(&mut command(&harness, &["stream", "show", &orders[2].to_string()])).await;
    assert!(shown.stdout.contains("cause        invoice-7"), "{}", shown.stdout);
    let shown = ended(&mut command(&harness, &["stream", "show", &orders[1].to_string()])).await;
    assert!(shown.stdout.contains(&format!("cause        {id}")), "{}", shown.stdout);
    assert_eq!(roles.terminate().await, 0);
}

/// A line that cannot be addressed is found before anything is sent.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_with_a_bad_id_sends_nothing() {
    let harness = Harness::new("ids_file").await;
    let client = harness.client().await;
    let (good, last) = (Uuid::now_v7(), Uuid::now_v7());
    for (field, value) in [
        ("orderId", json!(good.simple().to_string())),
        ("orderId", json!(Uuid::nil())),
        ("orderId", Value::Null),
        ("commandId", json!("4711")),
        ("commandId", json!(7)),
    ] {
        let mut bad = place_order(Uuid::now_v7(), Uuid::now_v7());
        bad[field] = value;
        let sent = send(&harness, &[place_order(good, good), bad]).await;
        assert_eq!((sent.code, sent.stdout.as_str()), (1, ""), "{}", sent.stderr);
        assert!(sent.stderr.contains("line 2; nothing was sent") && sent.stderr.contains(field), "{}", sent.stderr);
    }
    for arguments in [["command", "status"], ["stream", "show"]] {
        let simple = good.simple().to_string();
        let ended = ended(&mut command(&harness, &[&arguments[..], &[&simple]].concat())).await;
        assert_eq!(ended.code, 2, "{arguments:?}: {}", ended.stderr);
    }
    let processor = Process::run(&harness, &["processor"]);
    assert_eq!(send(&harness, &[place_order(last, last)]).await.code, 0);
    let decided = eventually("the good one is decided", || async {
        let rows = client.query("select command_id from throughline.commands", &[]).await.expect("outcomes");
        (!rows.is_empty()).then(|| rows.iter().map(|row| row.get(0)).collect::<Vec<Uuid>>())
    })
    .await;
    assert_eq!(decided, [last]);
    assert_eq!(processor.terminate().await, 0);
}

/// As README.md tells: kcat's own partitioner is another; with this setting an order has one commands partition.
#[tokio::test(flavor = "multi_thread")]
async fn kcat_agrees_about_the_partition_when_it_is_told_to() {
    let harness = Harness::new("ids_kcat").await;
    let topic = harness.names().commands();
    let orders = [(); 20].map(|()| Uuid::new_v4());
    let text: String = orders.iter().map(|order| format!("{order}|{{}}\n")).collect();
    let mut kcat = tokio::process::Command::new("kcat")
        .args([
            "-b",
            &harness.settings.kafka.brokers,
            "-P",
            "-t",
            &topic,
            "-K",
            "|",
            "-X",
            "partitioner=murmur2_random",
        ])
        .stdin(Stdio::piped())
        .spawn()
        .expect("kcat starts");
    let mut stdin = kcat.stdin.take().expect("stdin is piped");
    stdin.write_all(text.as_bytes()).await.expect("kcat reads");
    drop(stdin);
    assert!(kcat.wait().await.expect("kcat ends").success());
    let partitions = harness.settings.topics.command_partitions;
    assert_eq!(partitions, harness.settings.topics.event_partitions, "as many, so that the test's reader reads all");
    let found = crate::one_order::records_on(&harness, &topic);
    assert_eq!(found.len(), orders.len());
    for (partition, _, key, _) in &found {
        assert_eq!(*partition, destination_partition(key.parse().expect("an id"), partitions), "{key}");
    }
}
