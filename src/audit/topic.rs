//! Each record of an events topic is the event of its sequence number, byte for byte. Pure: told both, it compares.

use std::collections::BTreeSet;

use rdkafka::message::Headers as _;
use uuid::Uuid;

use super::Finding;
use crate::kafka::headers::{self, CE_ID};
use crate::kafka::{Record, TopicPartition};
use crate::relay::republish;
use crate::store::events::StoredEvent;

/// A run along one partition's records, in the order of their offsets.
pub(super) struct Along {
    place: TopicPartition,
    namespace: &'static str,
    /// The last sequence number met; none before the first record.
    reached: Option<i64>,
    /// Records that came again, whole.
    pub repeated: u64,
}

impl Along {
    /// Begins behind `reached`; where that is none, with whatever the first record is.
    pub fn new(place: TopicPartition, namespace: &'static str, reached: Option<i64>) -> Self {
        Self { place, namespace, reached, repeated: 0 }
    }

    /// The last sequence number met.
    pub fn reached(&self) -> Option<i64> {
        self.reached
    }

    /// The sequence numbers that `records` tell, in order, each once.
    pub fn seqs(records: &[Record]) -> Vec<i64> {
        let seqs: BTreeSet<i64> = records.iter().filter_map(headers::seq_of).collect();
        seqs.into_iter().collect()
    }

    /// A topic that ended before what is marked as published.
    pub fn ends_before(&self, published: i64) -> Option<Finding> {
        super::verify::ends_before(&self.place, self.reached, published)
    }

    /// Holds `records` against `events`, which are those of [`Along::seqs`], in order.
    pub fn compare(&mut self, records: &[Record], events: &[StoredEvent]) -> Vec<Finding> {
        let mut findings = Vec::new();
        for record in records {
            let Some(seq) = headers::seq_of(record) else {
                let what =
                    format!("offset {}: a record without a sequence number: the relay did not write it", record.offset);
                findings.push(self.finding(None, None, what));
                continue;
            };
            match self.reached {
                Some(reached) if seq > reached + 1 => {
                    let what = format!(
                        "offset {}: the topic goes from seq {reached} to {seq}: those between are missing",
                        record.offset
                    );
                    findings.push(self.finding(Some(reached + 1), None, what));
                }
                Some(reached) if seq <= reached => self.repeated += 1,
                _ => {}
            }
            self.reached = Some(self.reached.map_or(seq, |reached| reached.max(seq)));
            let Ok(at) = events.binary_search_by_key(&seq, |event| event.seq) else {
                let what = format!("offset {}: a record of an event that the store does not have", record.offset);
                findings.push(self.finding(Some(seq), stream_of(record), what));
                continue;
            };
            let event = &events[at];
            findings.extend(
                differences(record, event, self.namespace)
                    .into_iter()
                    .map(|what| self.finding(Some(seq), Some(event.stream_id), what)),
            );
        }
        findings
    }

    fn finding(&self, seq: Option<i64>, stream_id: Option<Uuid>, what: String) -> Finding {
        Finding { topic: self.place.topic.to_string(), partition: self.place.partition, seq, stream_id, what }
    }
}

fn stream_of(record: &Record) -> Option<Uuid> {
    Uuid::try_parse_ascii(record.key.as_deref()?).ok()
}

/// Where a record differs from its event.
fn differences(record: &Record, event: &StoredEvent, namespace: &str) -> Vec<String> {
    let mut found = Vec::new();
    let message_type = format!("{namespace}.{}", event.event_type);
    let source = crate::relay::source_of(&message_type);
    let expected = republish::envelope(event, &message_type, &source, event.schema_version).headers();
    for header in expected.iter() {
        let stored = header.value.map(String::from_utf8_lossy).unwrap_or_default();
        let published = record.header(header.key);
        if published != Some(&*stored) {
            let published = published.map_or_else(|| "none".to_owned(), |text| format!("{text:?}"));
            let which = if header.key == CE_ID { "another event: " } else { "" };
            found.push(format!(
                "{which}its header {} is {published} on the topic and {stored:?} in the store",
                header.key
            ));
        }
    }
    if stream_of(record) != Some(event.stream_id) {
        found.push("its key on the topic is another".to_owned());
    }
    match &record.value {
        Some(value) if *value == event.payload => {}
        Some(value) => found.push(told_bytes(value, &event.payload)),
        None => found.push("its value on the topic is null".to_owned()),
    }
    found
}

fn told_bytes(topic: &[u8], store: &[u8]) -> String {
    let at = topic.iter().zip(store).take_while(|(one, other)| one == other).count();
    format!("its value differs from byte {at} on: {} bytes on the topic, {} in the store", topic.len(), store.len())
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::kafka::RecordHeaders;

    fn event(seq: i64) -> StoredEvent {
        StoredEvent {
            partition: 1,
            seq,
            stream_id: Uuid::from_u128(7),
            version: seq,
            event_id: Uuid::from_u128(seq as u128),
            event_type: "Counted".into(),
            schema_version: 1,
            command_id: Uuid::from_u128(9),
            correlation_id: "c".into(),
            causation_id: None,
            principal: None,
            traceparent: None,
            reply_to: None,
            recorded_at: Timestamp::UNIX_EPOCH,
            payload: vec![0, 0, 0, 0, 1, seq as u8],
        }
    }

    fn record(event: &StoredEvent) -> Record {
        let headers = republish::envelope(event, "acme.Counted", "/acme", 1).headers();
        let mut read = RecordHeaders::default();
        headers.iter().for_each(|header| read.push(header.key.as_bytes(), header.value));
        let place = TopicPartition { topic: "e".into(), partition: 1 };
        let key = event.stream_id.to_string().into_bytes();
        Record::new(place, event.seq - 1, Some(key), Some(event.payload.clone())).with_headers(Some(read))
    }

    fn told(records: &[Record], events: &[StoredEvent]) -> Vec<String> {
        let place = TopicPartition { topic: "e".into(), partition: 1 };
        Along::new(place, "acme", Some(0)).compare(records, events).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_record_is_its_event_or_a_finding() {
        let events = [event(1), event(2), event(3)];
        let records: Vec<Record> = events.iter().map(record).collect();
        assert_eq!(told(&records, &events), [""; 0]);
        let again = [records[0].clone(), records[1].clone(), records[0].clone(), records[2].clone()];
        assert_eq!(told(&again, &events), [""; 0], "what comes again counts once");
        let hole = told(&[records[0].clone(), records[2].clone()], &events);
        assert!(hole.len() == 1 && hole[0].contains("from seq 1 to 3"), "{hole:?}");
        let lost = told(&records, &events[..2]);
        assert!(lost.len() == 1 && lost[0].contains("seq 3") && lost[0].contains("does not have"), "{lost:?}");

        let changed = |change: fn(&mut StoredEvent)| {
            let mut other = event(2);
            change(&mut other);
            let found = told(&[records[0].clone(), record(&other), records[2].clone()], &events);
            assert_eq!(found.len(), 1, "{found:?}");
            found[0].clone()
        };
        assert!(changed(|event| event.payload[5] = 77).contains("from byte 5 on"));
        assert!(changed(|event| event.event_id = Uuid::nil()).contains("another event"));
        assert!(changed(|event| event.version = 9).contains("stream-version"));
        assert!(changed(|event| event.correlation_id = "d".into()).contains("correlation-id"));
        let foreign = [records[0].clone().with_headers(None)];
        assert!(told(&foreign, &events)[0].contains("did not write it"));
    }
}
