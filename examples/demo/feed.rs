//! Produces the order book onto the commands topic, as any client would.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, bail};
use rdkafka::ClientContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseRecord, DeliveryResult, ProducerContext, ThreadedProducer};
use throughline::kafka::client;
use throughline::settings::KafkaSettings;

use super::orderbook::{Expected, OrderBook};

/// Delivery reports, counted.
#[derive(Default)]
pub struct Deliveries {
    pub acknowledged: AtomicU64,
    pub failed: AtomicU64,
}

struct Count(Arc<Deliveries>);

impl ClientContext for Count {}

impl ProducerContext for Count {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        let counter = if result.is_ok() { &self.0.acknowledged } else { &self.0.failed };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// Sends every command of `book`; returns once Kafka acknowledged them all. Blocks.
pub fn send(
    settings: &KafkaSettings,
    topic: &str,
    book: &OrderBook,
    deliveries: Arc<Deliveries>,
) -> anyhow::Result<Expected> {
    let producer: ThreadedProducer<Count> = client::producer(settings, 5)
        .create_with_context(Count(deliveries.clone()))
        .context("cannot make a producer")?;
    let mut failure = None;
    let expected = book.for_each(|command| {
        let key = command.order_id.to_string();
        let mut record = BaseRecord::to(topic).key(&key).payload(&command.value);
        while failure.is_none() {
            match producer.send(record) {
                Ok(()) => return,
                // The client's own queue is bounded: the book waits for Kafka.
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), returned)) => {
                    record = returned;
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err((error, _)) => {
                    failure = Some(error);
                    return;
                }
            }
        }
    });
    if let Some(error) = failure {
        return Err(error).context("cannot send a command");
    }
    while deliveries.acknowledged.load(Ordering::Relaxed) + deliveries.failed.load(Ordering::Relaxed)
        < expected.commands
    {
        std::thread::sleep(Duration::from_millis(2));
    }
    if deliveries.failed.load(Ordering::Relaxed) > 0 {
        bail!("Kafka did not take {} commands", deliveries.failed.load(Ordering::Relaxed));
    }
    Ok(expected)
}
