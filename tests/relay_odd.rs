//! A relay whose partitions end with anything: it looks behind it and goes on.

mod harness;
mod outbox;

use std::time::Duration;

use harness::Harness;
use harness::odd::{self, Odd, odd_records};
use outbox::{published, start, stop};
use rdkafka::producer::Producer as _;
use throughline::kafka::{RecordHeaders, TopicPartition};
use throughline::relay::tail::{self, Tail, TailRequest};

const NAMED: [&str; 3] = ["seq", "ce_id", "ce_subject"];

fn flush(producer: &rdkafka::producer::ThreadedProducer<rdkafka::producer::DefaultProducerContext>) {
    producer.flush(Duration::from_secs(60)).expect("acknowledged");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn odd_records_at_the_end_of_a_partition_stop_no_relay() {
    let harness = Harness::new("relay_odd").await;
    let mut client = harness.client().await;
    let events = outbox::events(&client, &harness.names().events()).await;
    let results = outbox::events(&client, &harness.names().results()).await;
    for topic in [&events, &results] {
        outbox::append(&mut client, topic.id, 0, 10).await;
    }
    let (running, token, _) = start(&harness.settings);
    published(&client, &events, &[(0, 10)]).await;
    published(&client, &results, &[(0, 10)]).await;
    stop(running, token).await;

    let mut odd = odd_records(b"key", b"value", &NAMED);
    for seq in ["0", "-7", "007", "999", "9223372036854775807", "9223372036854775808", "11\u{0}"] {
        let mut headers = RecordHeaders::default();
        headers.push(b"seq", Some(seq.as_bytes()));
        odd.push(Odd { what: format!("seq {seq:?}"), key: None, value: None, headers });
    }
    let producer = odd::producer(&harness.settings.kafka, None);
    for topic in [&events.name, &results.name] {
        for one in &odd {
            odd::produce(&producer, topic, 0, one);
            flush(&producer);
            let target = TopicPartition { topic: topic.as_str().into(), partition: 0 };
            let (kafka, request) =
                (harness.settings.kafka.clone(), TailRequest { target, published: 10, look_back: 1_000 });
            let tails = tokio::task::spawn_blocking(move || tail::read(&kafka, &[request])).await.expect("no panic");
            let tail = tails.expect("a reader").remove(0).expect("a tail");
            assert_eq!(tail, Tail::At { seq: 10, offset: 9 }, "{}", one.what);
        }
    }
    for topic in [&events, &results] {
        outbox::append(&mut client, topic.id, 0, 10).await;
    }
    let (running, token, _) = start(&harness.settings);
    published(&client, &events, &[(0, 20)]).await;
    published(&client, &results, &[(0, 20)]).await;
    stop(running, token).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn offsets_without_a_record_at_the_end_stop_no_relay() {
    let harness = Harness::new("relay_markers").await;
    let mut client = harness.client().await;
    let events = outbox::events(&client, &harness.names().events()).await;
    for partition in 0..3 {
        outbox::append(&mut client, events.id, partition, 10).await;
    }
    let all = |seq| [(0, seq), (1, seq), (2, seq)];
    let (running, token, _) = start(&harness.settings);
    published(&client, &events, &all(10)).await;
    stop(running, token).await;
    let sender = odd::producer(&harness.settings.kafka, Some(&format!("{}-sender", events.name)));
    let stranger =
        Odd { what: String::new(), key: None, value: Some(b"stranger".to_vec()), headers: RecordHeaders::default() };
    // A marker alone behind the last event is that of a committed record; many are aborted; one partition is emptied.
    for (partition, commit, count) in [(0, true, 1), (1, false, 2_000), (2, false, 3), (2, true, 1)] {
        odd::transaction(&sender, commit, |sender| {
            (0..count).for_each(|_| odd::produce(sender, &events.name, partition, &stranger));
        });
    }
    odd::delete_all_records(&harness.settings.kafka, &events.name, 2).await;
    for partition in 0..3 {
        outbox::append(&mut client, events.id, partition, 10).await;
    }
    let (running, token, _) = start(&harness.settings);
    published(&client, &events, &all(20)).await;
    stop(running, token).await;
    assert_eq!(
        outbox::seqs(&outbox::read_last(&harness.settings, &events.name, 1, 10)),
        (11..=20).collect::<Vec<i64>>()
    );
}
