//! Deciding a batch, without a database: what repeats, what coalesces, what is refused.

use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};
use uuid::Uuid;

use super::batch::{Batch, Source};
use super::cache::Cached;
use super::decide::{Decided, decide};
use super::intake::{Ask, Intake};
use super::load::Loaded;
use super::retry::Failure;
use super::{Payload, Scope};
use crate::avro::SchemaIds;
use crate::kafka::{Record, TopicPartition};
use crate::orders::domain::Order;
use crate::orders::{OrdersCodec, OrdersContext, schemas};
use crate::store::Destination;

const PARTITIONS: i32 = 4;

type OrdersBatch = Batch<Payload<OrdersContext>>;

pub(super) fn place(order: Uuid, command: Uuid) -> Value {
    json!({
        "type": "PlaceOrder", "commandId": command, "orderId": order, "customerId": "c", "currency": "USD",
        "items": [{"productId": Uuid::from_u128(9), "quantity": 1, "unitPrice": "10.00"}],
    })
}

fn pay(order: Uuid, command: Uuid, amount: &str) -> Value {
    json!({
        "type": "RecordPayment", "commandId": command, "orderId": order, "paymentId": command, "amount": amount,
        "currency": "USD",
    })
}

/// A batch of (source partition, command), keyed by their orders, each partition from offset 0.
pub(super) fn batch_of(commands: &[(i32, Value)]) -> OrdersBatch {
    let intake = Intake { partitions: PARTITIONS, command_bytes_max: 10_000 };
    let mut batch = Batch { sources: Vec::new(), commands: Vec::new() };
    for (partition, command) in commands {
        let place = TopicPartition { topic: "orders-commands".into(), partition: *partition };
        let index = batch.sources.iter().position(|source: &Source| source.place == place).unwrap_or_else(|| {
            let place = place.clone();
            batch.sources.push(Source { lane: 1, place, epoch: 1, expected: 0, next: 0, out: false, lost: false });
            batch.sources.len() - 1
        });
        let key = command["orderId"].as_str().map(|key| key.as_bytes().to_vec());
        let offset = batch.sources[index].next;
        let record = Record::new(place, offset, key, Some(command.to_string().into_bytes()));
        batch.sources[index].next += 1;
        let admitted = intake.admit::<OrdersContext>(record, index, &batch.sources[index], "orders-commands");
        batch.commands.push(admitted);
    }
    batch
}

fn scope() -> Scope<OrdersContext> {
    let ids = SchemaIds::in_order(&schemas::catalogue().expect("catalogue"));
    let topic = |id: i16, name: &str| Destination { id, name: name.into(), partitions: PARTITIONS };
    Scope {
        events: topic(1, "orders-events"),
        results: topic(2, "orders-command-results"),
        groups: Vec::new(),
        codec: Arc::new(OrdersCodec::new(&ids).expect("codec")),
        type_prefix: "throughline.orders.".into(),
        event_bytes_max: 1_000,
        topic_ids: Arc::default(),
    }
}

/// An empty store whose counters all stand at 100.
fn loaded(batch: &OrdersBatch) -> Loaded<Order> {
    let empty = || Cached { state: Order::default(), version: 0, snapshot_version: 0 };
    Loaded {
        now: Timestamp::UNIX_EPOCH,
        last_seq: (0..PARTITIONS).flat_map(|partition| [((partition, 1), 100), ((partition, 2), 100)]).collect(),
        streams: batch.commands.iter().map(|command| (command.stream_id, empty())).collect(),
        outcomes: HashMap::new(),
    }
}

fn decided(batch: &OrdersBatch) -> Decided<Order> {
    decide(&scope(), batch, loaded(batch)).expect("decided")
}

fn codes(decided: &Decided<Order>) -> Vec<&str> {
    decided.outcomes.iter().map(|outcome| outcome.code.as_deref().unwrap_or("ACCEPTED")).collect()
}

#[test]
fn commands_of_one_stream_see_each_other_and_take_dense_numbers() {
    let (order, id) = (Uuid::from_u128(1), Uuid::from_u128);
    let mut stale = pay(order, id(14), "1.00");
    stale["expectedVersion"] = json!(1);
    let batch = batch_of(&[
        (0, place(order, id(11))),
        (0, pay(order, id(12), "4.00")),
        (0, pay(order, id(13), "7.00")),
        (0, stale),
        (0, pay(order, id(15), "6.00")),
    ]);
    let decided = decided(&batch);
    assert_eq!(codes(&decided), ["ACCEPTED", "ACCEPTED", "PAYMENT_EXCEEDS_TOTAL", "VERSION_MISMATCH", "ACCEPTED"]);
    let places: Vec<_> = decided.events.iter().map(|event| (event.version, event.seq)).collect();
    assert_eq!(places, [(1, 101), (2, 102), (3, 103)]);
    assert_eq!(decided.results.iter().map(|result| result.seq).collect::<Vec<_>>(), [101, 102]);
    assert_eq!(decided.streams[&order].version, 3);
}

#[test]
fn a_repeated_id_has_one_outcome_and_another_payload_is_refused() {
    let (order, id) = (Uuid::from_u128(1), Uuid::from_u128(11));
    let batch = batch_of(&[(0, place(order, id)), (0, place(order, id)), (0, pay(order, id, "1.00"))]);
    let decided = decided(&batch);
    assert_eq!(codes(&decided), ["ACCEPTED"]);
    assert_eq!((decided.events.len(), decided.results.len()), (1, 1));
    let result: Value = serde_json::from_slice(&decided.results[0].value).expect("json");
    assert_eq!(result["code"], "COMMAND_ID_REUSED");
    assert_eq!((decided.tally["DUPLICATE"], decided.tally["COMMAND_ID_REUSED"]), (1, 1));
}

#[test]
fn a_source_that_is_out_takes_its_commands_along() {
    let id = Uuid::from_u128;
    let mut batch = batch_of(&[(0, place(id(1), id(11))), (1, place(id(2), id(12)))]);
    batch.sources[0].out = true;
    let decided = decided(&batch);
    assert_eq!(decided.outcomes.len(), 1);
    assert_eq!(decided.outcomes[0].command_id, id(12));
    assert_eq!(batch.moving().count(), 1);
}

#[test]
fn a_failed_command_keeps_its_place_and_is_parked() {
    let id = Uuid::from_u128;
    let mut batch = batch_of(&[(0, place(id(1), id(11))), (0, place(id(2), id(12)))]);
    batch.commands[0].fail("it broke".into());
    assert!(matches!(batch.commands[0].ask, Ask::Refuse { park: true, .. }));
    let decided = decided(&batch);
    assert_eq!(codes(&decided), ["COMMAND_FAILED", "ACCEPTED"]);
    assert_eq!(decided.parked.len(), 1);
}

#[test]
fn an_event_that_no_record_can_carry_names_its_command() {
    let id = Uuid::from_u128;
    let mut large = place(id(2), id(12));
    large["items"] = vec![large["items"][0].clone(); 40].into();
    let batch = batch_of(&[(0, place(id(1), id(11))), (0, large)]);
    match decide(&scope(), &batch, loaded(&batch)) {
        Err(Failure::Command(1, reason)) => assert!(reason.contains("topics.event_bytes_max"), "{reason}"),
        other => panic!("{:?}", other.map(|decided| codes(&decided).join(" "))),
    }
}
