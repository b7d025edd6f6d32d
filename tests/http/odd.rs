//! An overflow topic that holds anything: all of it is moved as it is, or kept where people find it.

use std::time::Duration;

use rdkafka::producer::Producer as _;
use throughline::kafka::{Peek, Record, RecordHeaders, TopicPartition};
use throughline::store::dead_letters::{self, Filter};

use crate::harness::odd::{self, Odd, odd_records};
use crate::harness::{Harness, eventually};
use crate::server::Server;

fn records(harness: &Harness, topic: &str) -> Vec<Record> {
    let peek = Peek::new(&harness.settings.kafka).expect("a reader");
    let mut all = Vec::new();
    for partition in 0..harness.settings.topics.command_partitions {
        let source = TopicPartition { topic: topic.into(), partition };
        peek.visit(&source, 0, |record| {
            all.push(record);
            std::ops::ControlFlow::Continue(())
        })
        .expect("reads");
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_records_of_overflow_are_moved_as_they_are_or_kept() {
    let harness = Harness::new("http_odd").await;
    let names = harness.names();
    let mut odd = odd_records(b"7b0c3a52-11aa-4f0e-9d8e-0c6a4c5a3b01", b"{}", &["command-id", "lane"]);
    // Taken by overflow, and by no lane.
    odd.push(Odd {
        what: "larger than its lane takes".into(),
        key: None,
        value: Some(odd::noise(900_000)),
        headers: RecordHeaders::default(),
    });
    for lane in names.lanes() {
        harness.set_topic_option(&lane, "max.message.bytes", "700000").await;
    }
    let producer = odd::producer(&harness.settings.kafka, None);
    for one in &odd {
        // As the server writes it: the lane stands last.
        let mut written = one.clone();
        if one.headers.len() <= 100_000 {
            written.headers.push(b"lane", Some(b"bulk"));
        }
        odd::produce(&producer, &names.overflow(), 1, &written);
        producer.flush(Duration::from_secs(60)).expect("acknowledged");
    }
    let sender = odd::producer(&harness.settings.kafka, Some(&format!("{}-sender", names.overflow())));
    odd::transaction(&sender, false, |sender| odd::produce(sender, &names.overflow(), 1, &odd[0]));
    let server = Server::start(&harness, &["api"]).await;
    let client = harness.client().await;
    eventually("all are moved or kept", async || {
        let kept = dead_letters::find(&client, &Filter::default(), 100).await.expect("dead letters");
        let moved: usize = names.lanes().iter().map(|lane| records(&harness, lane).len()).sum();
        (kept.len() == 2 && moved >= odd.len() - 2).then_some(())
    })
    .await;
    let moved: Vec<Record> = names.lanes().iter().flat_map(|lane| records(&harness, lane)).collect();
    let kept = dead_letters::find(&client, &Filter::default(), 100).await.expect("dead letters");
    for one in &odd {
        let is_same = |record: &&Record| {
            record.key == one.key && record.value == one.value && record.headers() == Some(&one.headers)
        };
        let is_kept = kept.iter().any(|letter| letter.letter.value == one.value && letter.letter.key == one.key);
        assert!(moved.iter().any(|record| is_same(&record)) || is_kept, "{}", one.what);
    }
    assert!(kept.iter().all(|letter| letter.letter.reason_code == "UNMOVABLE"), "{kept:?}");
    // Nothing counts as left behind: what stands at the end is no record.
    eventually("overflow counts as drained", async || {
        let source = TopicPartition { topic: names.overflow().into(), partition: 1 };
        let mut list = rdkafka::TopicPartitionList::new();
        list.add_partition(&source.topic, 1);
        let consumer: rdkafka::consumer::BaseConsumer =
            throughline::kafka::client::consumer(&harness.settings.kafka, &names.overflow_group(), "")
                .create()
                .expect("a client");
        let committed = rdkafka::consumer::Consumer::committed_offsets(&consumer, list, Duration::from_secs(10));
        let committed = committed.expect("committed offsets").elements()[0].offset();
        let (_, end) = odd::watermarks(&harness.settings.kafka, &source.topic, 1);
        (committed == rdkafka::Offset::Offset(end)).then_some(())
    })
    .await;
    server.stop().await;
}
