//! An events topic that holds anything: what the relay did not write stops nobody, or stops its partition alone
//! and can be skipped.

use std::collections::BTreeMap;
use std::time::Instant;

use rdkafka::producer::Producer as _;
use throughline::kafka::{Peek, RecordHeaders, TopicPartition, topic_id};
use throughline::projection::{checkpoint, skip};
use throughline::settings::FailurePolicy;
use throughline::store::dead_letters::{self, Filter, Parked};
use throughline::store::{self, DatabaseRole, DeadLetter};

use super::bed::{Bed, expired};
use super::fold::assert_folded;
use super::harness::odd::{self, Odd, odd_records};
use super::scenario::lives;

const NAME: &str = "order-list";
const NAMED: [&str; 6] = ["seq", "ce_id", "ce_subject", "stream-version", "ce_time", "correlation-id"];

/// The odd records of this topic: with a good event's key and value, and with absurd sequence numbers.
fn odd_of(bed: &Bed) -> Vec<Odd> {
    let event = bed.log.last().expect("an event");
    let mut odd = odd_records(event.stream_id.to_string().as_bytes(), &event.payload, &NAMED);
    for seq in ["0", "-7", "007", "+9", "9223372036854775807", "9223372036854775808", "1e3", " 5", "5\u{0}"] {
        let mut headers = RecordHeaders::default();
        headers.push(b"seq", Some(seq.as_bytes()));
        let (key, value) = (Some(b"somebody".to_vec()), Some(b"hello".to_vec()));
        odd.push(Odd { what: format!("seq {seq:?}"), key, value, headers });
    }
    odd
}

async fn letters(bed: &Bed) -> Vec<Parked> {
    dead_letters::find(&bed.owner, &Filter::default(), 1_000).await.expect("dead letters")
}

fn kept_headers(letter: &DeadLetter) -> Option<RecordHeaders> {
    letter.headers.as_ref().map(|kept| {
        let mut headers = RecordHeaders::default();
        kept.iter().for_each(|(name, value)| headers.push(name, value));
        headers
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_records_are_parked_whole_and_stop_nothing() {
    let park = BTreeMap::from([(NAME.to_owned(), FailurePolicy::Park)]);
    let mut bed = Bed::with(|settings| settings.projection.policies = park).await;
    bed.emit(&lives(31, 60)).await;
    let (topic, odd) = (bed.names.events(), odd_of(&bed));
    let producer = odd::producer(&bed.settings.kafka, None);
    let first = bed.watermarks(1).1;
    for one in &odd {
        odd::produce(&producer, &topic, 1, one);
        producer.flush(std::time::Duration::from_secs(60)).expect("acknowledged");
    }
    bed.emit(&lives(32, 60)).await;
    let running = bed.start(NAME);
    bed.caught_up(NAME).await;
    bed.until(&format!("select count(*) = {} from throughline.dead_letters", odd.len())).await;
    running.stop().await;
    assert_folded(&bed, NAME).await;
    for (letter, one) in letters(&bed).await.iter().zip(&odd) {
        let kept = &letter.letter;
        assert_eq!((kept.source_offset.expect("an offset") - first) as usize, place(&odd, one), "{}", one.what);
        assert_eq!((&kept.key, &kept.value), (&one.key, &one.value), "{}", one.what);
        match kept_headers(kept) {
            Some(headers) => assert_eq!(headers, one.headers, "{}", one.what),
            None => assert!(one.headers.len() > 100_000, "{}", one.what),
        }
        assert!(kept.topic_id.is_some() && kept.reason_code == "FOREIGN_RECORD", "{}: {kept:?}", one.what);
    }
}

fn place(odd: &[Odd], one: &Odd) -> usize {
    odd.iter().position(|other| other.what == one.what).expect("one of them")
}

/// Skips the record that the projection stands at, as `dlq skip` does.
async fn skip_next(bed: &mut Bed, partition: i32) -> bool {
    let held = checkpoint::load(&bed.owner, NAME, "read").await.expect("checkpoints");
    let held = held.into_iter().find(|one| one.partition == partition).expect("a checkpoint");
    let source = TopicPartition { topic: bed.names.events().into(), partition };
    let peek = Peek::new(&bed.settings.kafka).expect("a reader");
    let record = peek.first_from(&source, held.next_offset).expect("reads").expect("a record");
    let client: rdkafka::consumer::BaseConsumer =
        throughline::kafka::client::base(&bed.settings.kafka).create().expect("a client");
    let wait = std::time::Duration::from_secs(10);
    let id = topic_id::topic_id(rdkafka::consumer::Consumer::client(&client), &source.topic, wait).expect("an id");
    let letter = DeadLetter {
        kind: "event",
        consumer: bed.projector(NAME).group,
        source_topic: source.topic.to_string(),
        topic_id: id,
        source_partition: partition,
        source_offset: Some(record.offset),
        seq: None,
        key: record.key.clone(),
        headers: record.headers().map(|headers| headers.iter().collect()),
        value: record.value.clone(),
        reason_code: "SKIPPED".into(),
        reason: "in the way".into(),
        command: None,
        instance: None,
    };
    let mut owner = store::connect::connect(&bed.settings.database, &DatabaseRole::Owner).await.expect("connects");
    skip(&mut owner, NAME, &record, held, letter).await.expect("a skip")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_odd_record_stops_its_partition_alone_until_it_is_skipped() {
    let mut bed = Bed::with(|settings| settings.kafka.halt_retry_ms = 100).await;
    bed.emit(&lives(33, 60)).await;
    let (topic, odd) = (bed.names.events(), odd_of(&bed));
    let running = bed.start(NAME);
    bed.caught_up(NAME).await;
    let producer = odd::producer(&bed.settings.kafka, None);
    for one in &odd {
        odd::produce(&producer, &topic, 1, one);
        producer.flush(std::time::Duration::from_secs(60)).expect("acknowledged");
    }
    bed.emit(&lives(34, 60)).await;
    for partition in [0, 2] {
        let all = bed.log.iter().filter(|e| e.partition == partition).count();
        bed.until(&format!(
            "select seq = {all} from throughline.checkpoints where projection = '{NAME}' and partition = {partition}"
        ))
        .await;
    }
    for _ in &odd {
        let since = Instant::now();
        // A claim made meanwhile fences an operator off, who tries again.
        while !skip_next(&mut bed, 1).await {
            expired(since, "the next odd record is skipped");
        }
    }
    bed.caught_up(NAME).await;
    running.stop().await;
    assert_folded(&bed, NAME).await;
    assert_eq!(letters(&bed).await.len(), odd.len());
}

/// Retention took everything, and behind the last event there was nothing but markers and aborted records.
#[tokio::test(flavor = "multi_thread")]
async fn offsets_without_a_record_hold_no_projection_up() {
    let mut bed = Bed::new().await;
    bed.emit(&lives(35, 40)).await;
    let running = bed.start(NAME);
    bed.caught_up(NAME).await;
    running.stop().await;
    let topic = bed.names.events();
    let sender = odd::producer(&bed.settings.kafka, Some(&format!("{topic}-sender")));
    let stranger =
        Odd { what: String::new(), key: None, value: Some(b"aborted".to_vec()), headers: RecordHeaders::default() };
    for partition in 0..3 {
        odd::transaction(&sender, false, |sender| {
            (0..partition * 2 + 1).for_each(|_| odd::produce(sender, &topic, partition, &stranger));
        });
    }
    // Some events never came from Kafka at all: the store has them.
    bed.emit(&lives(36, 10)).await;
    let published = "update throughline.relay_leases l set published = c.last_seq from throughline.counters c
                     where c.partition = l.partition and c.topic = l.topic";
    bed.owner.execute(published, &[]).await.expect("they were published, and are gone since");
    for partition in 0..3 {
        odd::delete_all_records(&bed.settings.kafka, &topic, partition).await;
    }
    let running = bed.start(NAME);
    bed.caught_up(NAME).await;
    bed.emit(&lives(37, 40)).await;
    bed.caught_up(NAME).await;
    running.stop().await;
    assert_folded(&bed, NAME).await;
}
