//! A command that breaks its batch is found and parked; its neighbours do not notice.

use std::sync::Arc;

use serde_json::json;
use uuid::Uuid;

use crate::floor::{Running, Source, command, consumed, decided, number, sound};
use crate::fragile::{FragileCodec, FragileContext};
use crate::harness::{Harness, eventually};

fn ask(order: Uuid, command: Uuid, trouble: Option<&str>) -> serde_json::Value {
    json!({"orderId": order, "commandId": command, "trouble": trouble})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn poison_is_parked_and_neighbours_go_on() {
    let harness = Harness::new("processor_poison").await;
    let (client, source) = (harness.client().await, Source::new(&harness));
    let troubles = ["decide", "evolve", "encode", "append", "append", "refuse", "parse", "bulk"];
    let order = Uuid::new_v4();
    let mut records = Vec::new();
    let mut ids = Vec::new();
    for round in 0..200 {
        let trouble = troubles.get(round / 20).copied().filter(|_| round % 20 == 7);
        let id = Uuid::new_v4();
        // Some share the stream of the poison, some do not.
        let order = if round % 2 == 0 { Uuid::new_v4() } else { order };
        records.push(command(&harness, &ask(order, id, trouble)));
        ids.push((id, trouble));
    }
    source.produce(&records);
    let running = Running::start_as::<FragileContext>(&harness.settings, Arc::new(FragileCodec));
    consumed(&client, 200).await;
    running.stop().await;

    let good: Vec<Uuid> = ids.iter().filter(|(_, trouble)| trouble.is_none()).map(|(id, _)| *id).collect();
    assert!(decided(&client, &good).await.iter().all(|outcome| outcome.accepted));
    let failed: Vec<Uuid> = ids
        .iter()
        .filter(|(_, trouble)| trouble.is_some_and(|trouble| !["refuse", "parse"].contains(&trouble)))
        .map(|(id, _)| *id)
        .collect();
    let outcomes = decided(&client, &failed).await;
    assert_eq!(outcomes.len(), 6);
    assert!(outcomes.iter().all(|outcome| outcome.code.as_deref() == Some("COMMAND_FAILED")), "{outcomes:?}");
    let parked = "select count(*) from throughline.dead_letters where reason_code = 'COMMAND_FAILED'";
    assert_eq!(number(&client, parked).await, 6);
    let refused =
        "select count(*) from throughline.commands where code = 'REFUSED' and length(reason) between 900 and 1000";
    assert_eq!(number(&client, refused).await, 1);
    let longest = "select max(length(value))::bigint from throughline.outbox";
    assert!(number(&client, longest).await < 2_000, "no record is too large for the relay");
    assert_eq!(number(&client, "select count(*) from throughline.commands where code = 'INVALID_COMMAND'").await, 1);
    assert_eq!(number(&client, "select count(*) from throughline.events").await, 192);
    sound(&client).await;
}

/// An event that cannot be read halts the partition that asks for it, and only that one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unreadable_event_halts_its_partition_alone() {
    let mut harness = Harness::new("processor_corrupt").await;
    harness.settings.processor.snapshot_every_events = 1_000;
    let (client, source) = (harness.client().await, Source::new(&harness));
    let order = Uuid::new_v4();
    let first = Uuid::new_v4();
    source.produce(&[command(&harness, &ask(order, first, Some("decode")))]);
    let running = Running::start_as::<FragileContext>(&harness.settings, Arc::new(FragileCodec));
    assert!(decided(&client, &[first]).await[0].accepted);
    running.stop().await;

    // The stream is loaded anew; its one event is spoiled. Others come before, between and after.
    let mut records = Vec::new();
    let mut ids = Vec::new();
    for number in 0..60 {
        let id = Uuid::new_v4();
        let mut record = command(&harness, &ask(if number == 30 { order } else { Uuid::new_v4() }, id, None));
        record.partition = Some(if number == 30 { 1 } else { [0, 2, 3, 4, 5][number % 5] });
        records.push(record);
        ids.push(id);
    }
    source.produce(&records);
    let running = Running::start_as::<FragileContext>(&harness.settings, Arc::new(FragileCodec));
    ids.remove(30);
    assert!(decided(&client, &ids).await.iter().all(|outcome| outcome.accepted));
    eventually("the others moved on", async || {
        (number(&client, "select count(*) from throughline.events").await == 60).then_some(())
    })
    .await;
    running.stop().await;
    assert_eq!(number(&client, "select count(*) from throughline.commands").await, 60, "the 31st waits");
    sound(&client).await;
}
