//! The commands of a round: PlaceOrder of one to four items for as many distinct orders.

use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};
use reference::orders::domain::Order;
use reference::orders::{OrdersCodec, parse_command, schemas};
use serde_json::json;
use throughline::avro::SchemaIds;
use throughline::engine::{Aggregate, EventCodec, destination_partition};
use throughline::kafka::client;
use uuid::Uuid;

use crate::harness::{Harness, PATIENCE};

/// One command, as JSON and as what it leads to.
pub struct Item {
    pub order: Uuid,
    pub command: Uuid,
    pub json: Vec<u8>,
    /// The encoded event.
    pub event: Vec<u8>,
}

pub struct Workload {
    pub items: Vec<Item>,
}

/// A codec under the ids of a fresh database.
pub fn codec() -> OrdersCodec {
    OrdersCodec::new(&SchemaIds::in_order(&schemas::catalogue().expect("catalogue"))).expect("codec")
}

impl Workload {
    pub fn new(commands: usize) -> Self {
        let codec = codec();
        let items = (0..commands).map(|number| {
            let (order, command) = (Uuid::new_v4(), Uuid::new_v4());
            let lines: Vec<_> = (0..=number % 4)
                .map(|line| json!({"productId": Uuid::new_v4(), "quantity": line + 1, "unitPrice": "19.99"}))
                .collect();
            let json = json!({"type": "PlaceOrder", "commandId": command, "orderId": order, "customerId": "customer-42",
                              "currency": "USD", "items": lines});
            let json = json.to_string().into_bytes();
            let parsed = parse_command(&json, command).expect("a valid command");
            let events = Order::default().decide(&parsed.payload).expect("accepted");
            Item { order, command, json, event: codec.encode(&events[0]).expect("encoded").bytes }
        });
        Self { items: items.collect() }
    }

    /// Puts the commands onto the normal lane.
    pub fn produce(&self, harness: &Harness) {
        let producer: ThreadedProducer<DefaultProducerContext> =
            client::producer(&harness.settings.kafka, 5).create().expect("a producer");
        let topic = harness.names().commands();
        for item in &self.items {
            let key = item.order.to_string();
            let partition = destination_partition(item.order, harness.settings.topics.command_partitions);
            let record = BaseRecord::to(&topic).key(key.as_bytes()).payload(&item.json).partition(partition);
            producer.send(record).map_err(|(error, _)| error).expect("queued");
        }
        producer.flush(PATIENCE).expect("acknowledged");
    }
}
