//! What stands in the overflow topic, as the drainer takes it out and puts it into a lane: a record of any bytes
//! with the lane that it is bound for, and the reports of those that were sent on. Knows no admission.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError as ClientError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message as _};
use rdkafka::producer::{DeliveryResult, ProducerContext};

use crate::kafka::Lane;
use crate::kafka::{Record, RecordHeaders, voice};

/// Header of an overflowed record: the lane it is bound for.
pub const LANE_HEADER: &str = "lane";

/// A record read from overflow and not yet moved: a command, or whatever somebody wrote there.
pub(super) struct Overflowed {
    pub record: Record,
    pub lane: Lane,
    /// Without the one that names the lane; none where they cannot be read.
    pub headers: Option<RecordHeaders>,
}

pub(super) fn detach(message: &BorrowedMessage<'_>) -> Overflowed {
    let record = Record::detach(message, message.topic().into());
    let mut lane = Lane::Normal;
    let headers = record.headers().map(|headers| {
        // Ours is the last: what came before it is the caller's, whatever its name.
        let ours = headers.iter().rposition(|(name, _)| name == LANE_HEADER.as_bytes());
        let mut others = RecordHeaders::default();
        for (index, (name, value)) in headers.iter().enumerate() {
            if Some(index) == ours {
                let name = value.and_then(|value| std::str::from_utf8(value).ok());
                lane = name.and_then(Lane::from_name).unwrap_or_default();
            } else {
                others.push(name, value);
            }
        }
        others
    });
    Overflowed { record, lane, headers }
}

/// Counts the delivery reports of one batch.
#[derive(Default)]
pub(super) struct Acknowledgements {
    pub delivered: AtomicU64,
    /// For what the record, or its batch, is: trying again would not help.
    pub refused: AtomicU64,
    pub failed: AtomicU64,
}

#[derive(Clone)]
pub(super) struct Counting(pub Arc<Acknowledgements>);

impl ClientContext for Counting {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        voice::log(level, facility, message);
    }

    fn error(&self, error: ClientError, reason: &str) {
        voice::error(&error, reason);
    }
}

impl ProducerContext for Counting {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        let counter = match result {
            Ok(_) => &self.0.delivered,
            Err((error, _)) if is_refusal(error) => &self.0.refused,
            Err(_) => &self.0.failed,
        };
        counter.fetch_add(1, Ordering::Release);
    }
}

/// The broker or the client says that it will not take what it was given, now or later.
pub(super) fn is_refusal(error: &ClientError) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(
        error.rdkafka_error_code(),
        Some(Code::MessageSizeTooLarge | Code::InvalidRecord | Code::InvalidMessageSize)
    )
}
