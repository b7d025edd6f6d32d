//! One effect and one outcome per command id.

use serde_json::{Value, json};
use throughline::engine::ids::command_id_of_record;
use uuid::Uuid;

use crate::floor::{Running, Source, command, consumed, decided, number, pay, place, sound};
use crate::harness::Harness;

/// Duplicates within a batch, across batches and across restarts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_command_has_one_effect() {
    let harness = Harness::new("processor_duplicates").await;
    let (client, source) = (harness.client().await, Source::new(&harness));
    let (order, placed, paid) = (Uuid::new_v4(), Uuid::new_v4(), Uuid::new_v4());
    let place = command(&harness, &place(order, placed));
    let pay = command(&harness, &pay(order, paid, "5.00"));
    source.produce(&[place.clone(), place.clone(), pay.clone(), pay.clone(), place.clone()]);
    let running = Running::start(&harness.settings).await;
    consumed(&client, 5).await;
    source.produce(&[pay.clone(), place.clone()]);
    consumed(&client, 7).await;
    running.stop().await;
    let running = Running::start(&harness.settings).await;
    source.produce(&[pay, place]);
    consumed(&client, 9).await;
    running.stop().await;
    let outcomes = decided(&client, &[placed, paid]).await;
    assert!(outcomes.iter().all(|outcome| outcome.accepted));
    assert_eq!(number(&client, "select count(*) from throughline.events").await, 2);
    sound(&client).await;
}

/// The first outcome stays; the refusal of the second is published.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_id_used_again_for_another_command_is_refused() {
    let harness = Harness::new("processor_reuse").await;
    let (client, source) = (harness.client().await, Source::new(&harness));
    let (order, id) = (Uuid::new_v4(), Uuid::new_v4());
    source.produce(&[command(&harness, &place(order, id)), command(&harness, &pay(order, id, "5.00"))]);
    let running = Running::start(&harness.settings).await;
    consumed(&client, 2).await;
    source.produce(&[command(&harness, &pay(order, id, "6.00"))]);
    consumed(&client, 3).await;
    running.stop().await;
    let outcomes = decided(&client, &[id]).await;
    assert!(outcomes[0].accepted);
    assert_eq!(number(&client, "select count(*) from throughline.events").await, 1);
    let rows = client
        .query("select value, message_id from throughline.outbox where type like '%CommandResult'", &[])
        .await
        .expect("results");
    let codes: Vec<Value> =
        rows.iter().map(|row| serde_json::from_slice::<Value>(row.get(0)).expect("json")["code"].clone()).collect();
    assert_eq!(codes, ["COMMAND_ID_REUSED", "COMMAND_ID_REUSED"]);
    assert_ne!(rows[0].get::<_, Uuid>(1), rows[1].get::<_, Uuid>(1), "two records, two ids");
    sound(&client).await;
}

/// An id may come from the header, which wins, or be derived from where the record stands.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ids_come_from_the_header_or_the_place() {
    let harness = Harness::new("processor_ids").await;
    let (client, source) = (harness.client().await, Source::new(&harness));
    let (order, header) = (Uuid::new_v4(), Uuid::new_v4());
    let mut named = command(&harness, &place(order, Uuid::new_v4()));
    named.headers =
        vec![("command-id", header.to_string()), ("reply-to", "me".into()), ("correlation-id", "c-1".into())];
    let mut nameless = pay(order, Uuid::new_v4(), "5.00");
    nameless.as_object_mut().expect("an object").remove("commandId");
    source.produce(&[named.clone(), command(&harness, &nameless)]);
    let running = Running::start(&harness.settings).await;
    consumed(&client, 2).await;
    let outcome = decided(&client, &[header]).await.remove(0);
    assert_eq!((outcome.accepted, outcome.correlation_id.as_str()), (true, "c-1"));
    let derived: Uuid = client
        .query_one("select command_id from throughline.commands where command_id <> $1", &[&header])
        .await
        .expect("another outcome")
        .get(0);
    let topic_id: String = client
        .query_one(
            "select distinct topic_uuid from throughline.offsets where source_topic = $1",
            &[&harness.names().commands()],
        )
        .await
        .expect("a topic id")
        .get(0);
    let namespace = format!("{}@{topic_id}", harness.names().commands());
    assert!(
        (0..harness.settings.topics.command_partitions)
            .any(|partition| { (0..2).any(|offset| derived == command_id_of_record(&namespace, partition, offset)) })
    );
    // Asked again, with the wish for a reply: the same answer once more.
    source.produce(&[named]);
    consumed(&client, 3).await;
    running.stop().await;
    let rows = client
        .query("select value, reply_to from throughline.outbox where type like '%CommandResult' order by seq", &[])
        .await
        .expect("results");
    assert_eq!(rows.len(), 2);
    let replies: Vec<Value> = rows.iter().map(|row| serde_json::from_slice(row.get(0)).expect("json")).collect();
    assert_eq!(replies[0], replies[1]);
    assert_eq!(replies[0]["orderId"], json!(order));
    assert_eq!(replies[0]["position"]["seq"], json!(1));
    assert_eq!(rows[0].get::<_, String>(1), "me");
    sound(&client).await;
}
