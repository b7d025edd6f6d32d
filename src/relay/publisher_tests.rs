//! The producer's bookkeeping, its options, and its end: one that cannot go on says so, whatever it was at, and
//! whoever uses it replaces it then.

use std::time::Instant;

use rdkafka::bindings::rd_kafka_test_fatal_error;
use rdkafka::mocking::MockCluster;
use rdkafka::types::RDKafkaRespErr;

use super::super::acknowledged::Beginning;
use super::*;

/// Idle, and with a record on its way that no broker takes.
#[test]
fn a_fatal_error_ends_a_producer_idle_or_busy() {
    let cluster = MockCluster::new(1).expect("a mock cluster");
    cluster.create_topic("t", 1, 1).expect("a topic");
    let settings = KafkaSettings { brokers: cluster.bootstrap_servers(), ..KafkaSettings::default() };
    let target = TopicPartition { topic: "t".into(), partition: 0 };
    let acknowledged = Acknowledged::new(Beginning { after: 0, missing: 0 });
    for busy in [false, true] {
        let publisher = Publisher::new(&settings, 10, Arc::new(Notify::new())).expect("a producer");
        let hand_over = || {
            publisher.hand_over(Outgoing {
                target: &target,
                acknowledged: &acknowledged,
                seq: 1,
                key: "key",
                headers: OwnedHeaders::new(),
                created_ms: 1,
                value: b"value",
            })
        };
        if busy {
            cluster.broker_down(1).expect("down");
            assert_eq!(hand_over(), Handed::Taken);
        }
        let (code, reason) = (RDKafkaRespErr::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER, c"as a test wants it");
        // SAFETY: the client lives as long as `publisher`, and the text for ever.
        let raised =
            unsafe { rd_kafka_test_fatal_error(publisher.producer.client().native_ptr(), code, reason.as_ptr()) };
        assert_eq!(raised, RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR);
        let since = Instant::now();
        while !publisher.has_failed() {
            assert!(since.elapsed() < std::time::Duration::from_secs(10), "busy: {busy}: the producer is kept");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        assert_eq!(hand_over(), Handed::Failed, "busy: {busy}");
        let told = publisher.end().expect("a reason").reason;
        assert!(told.contains("as a test wants it"), "busy: {busy}: {told}");
    }
}

#[test]
fn acknowledgements_count_without_a_hole() {
    let acknowledged = Acknowledged::new(Beginning { after: 7, missing: 0 });
    assert!(acknowledged.advance(9, 8).is_err() && acknowledged.advance(7, 8).is_err());
    assert!(acknowledged.advance(8, 7).is_ok() && acknowledged.advance(9, 20).is_ok());
    assert!(acknowledged.advance(10, -1).is_ok(), "a broker that took it before does not tell where");
    assert_eq!(acknowledged.seq(), 10);
}

#[test]
fn a_record_where_its_predecessors_have_no_room_is_told() {
    let acknowledged = Acknowledged::new(Beginning { after: 7, missing: 0 });
    assert!(acknowledged.advance(8, 6).unwrap_err().contains("offset 6"));
    assert_eq!(acknowledged.seq(), 7);
    let accepted = Acknowledged::new(Beginning { after: 7, missing: 7 });
    assert!(accepted.advance(8, 0).is_ok() && accepted.advance(9, 0).is_err());
}

#[test]
fn what_keeps_the_topic_whole_cannot_be_switched_off() {
    let mut settings = KafkaSettings::default();
    let wanted = [
        ("message.timeout.ms", "0"),
        ("enable.idempotence", "true"),
        ("enable.gapless.guarantee", "true"),
        ("acks", "all"),
    ];
    for (name, _) in wanted.into_iter().chain([("delivery.timeout.ms", "")]) {
        settings.librdkafka.insert(name.to_owned(), "1".to_owned());
    }
    let config = config(&settings);
    for (name, value) in wanted {
        assert_eq!(config.get(name), Some(value), "{name}");
    }
    assert_eq!(config.get("delivery.timeout.ms"), None, "another name of message.timeout.ms");
}
