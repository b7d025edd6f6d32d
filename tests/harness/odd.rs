//! Records as nobody of ours writes them, and transactions: what a topic may hold all the same.

use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};
use rdkafka::{Offset, TopicPartitionList};
use throughline::kafka::{RecordHeaders, client};
use throughline::settings::KafkaSettings;

/// One odd record, with what is odd about it.
#[derive(Debug, Clone)]
pub struct Odd {
    pub what: String,
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    pub headers: RecordHeaders,
}

type Bytes = &'static [u8];

/// More than fifty of them. `key` and `value` are those of a good record, for records that are odd in their
/// headers alone; `named` are the headers that readers of the topic look for.
pub fn odd_records(key: &[u8], value: &[u8], named: &[&str]) -> Vec<Odd> {
    let mut odd = Vec::new();
    let mut add = |what: &str, key: Option<&[u8]>, value: Option<&[u8]>, headers: &[(&[u8], Option<&[u8]>)]| {
        let mut all = RecordHeaders::default();
        headers.iter().for_each(|(name, value)| all.push(name, *value));
        let (key, value) = (key.map(<[u8]>::to_vec), value.map(<[u8]>::to_vec));
        odd.push(Odd { what: what.to_owned(), key, value, headers: all });
    };
    let (good_key, good_value) = (Some(key), Some(value));
    let names: [(&str, Bytes); 8] = [
        ("no UTF-8", b"\xff\xfe"),
        ("half a character", b"name-\xc3"),
        ("a surrogate", b"\xed\xa0\x80"),
        ("empty", b""),
        ("NUL", b"\0"),
        ("NUL inside", b"command-id\0x"),
        ("control characters", b"\x01\x1b[2J\r\n"),
        ("quotes and braces", b"\"}{'\\"),
    ];
    for (what, name) in names {
        add(&format!("header name: {what}"), good_key, good_value, &[(name, Some(b"value"))]);
        add(&format!("header name, null value: {what}"), good_key, good_value, &[(name, None)]);
    }
    let values: [(&str, Option<Bytes>); 6] = [
        ("null", None),
        ("empty", Some(b"")),
        ("NUL", Some(b"a\0b")),
        ("no UTF-8", Some(b"\xc3\x28\xff")),
        ("a huge number", Some(b"99999999999999999999999999")),
        ("a negative number", Some(b"-1")),
    ];
    for (what, bytes) in values {
        add(&format!("header value: {what}"), good_key, good_value, &[(b"anything", bytes)]);
        for name in named {
            add(&format!("{name}: {what}"), good_key, good_value, &[(name.as_bytes(), bytes)]);
        }
    }
    for name in named {
        let name = name.as_bytes();
        let twice: [(&[u8], Option<&[u8]>); 3] = [(name, Some(b"1")), (name, Some(b"2")), (name, None)];
        add(&format!("{} three times", String::from_utf8_lossy(name)), good_key, good_value, &twice);
    }
    let many: Vec<(Vec<u8>, Vec<u8>)> = (0..10_000)
        .map(|number: u32| (format!("h{}", number % 7).into_bytes(), number.to_be_bytes().to_vec()))
        .collect();
    let many: Vec<(&[u8], Option<&[u8]>)> = many.iter().map(|(name, value)| (&name[..], Some(&value[..]))).collect();
    add("10,000 headers", good_key, good_value, &many);
    let too_many: Vec<(&[u8], Option<&[u8]>)> = vec![(b"", None); 100_001];
    add("more headers than the client reads", good_key, good_value, &too_many);
    add("a long header name", good_key, good_value, &[(&[b'n'; 70_000], Some(b"v"))]);
    add("a long header value", good_key, good_value, &[(b"n", Some(&[0xff; 300_000]))]);
    let long = noise(100_000);
    let keys: [(&str, Option<&[u8]>); 6] = [
        ("null", None),
        ("empty", Some(b"")),
        ("100 kB", Some(&long)),
        ("no UTF-8", Some(b"\xff\xfe\0")),
        ("one NUL", Some(b"\0")),
        ("no id", Some(b"order-1")),
    ];
    for (what, key) in keys {
        add(&format!("key: {what}"), key, good_value, &[]);
        add(&format!("key and value: {what}"), key, key, &[(b"\xff", None), (b"\xff", Some(b"\0"))]);
    }
    let values: [(&str, Option<&[u8]>); 9] = [
        ("null", None),
        ("empty", Some(b"")),
        ("one NUL", Some(b"\0")),
        ("no UTF-8", Some(b"\xff\xfe\xfd")),
        ("text with NUL", Some(b"{\"orderId\": \"\0\"}")),
        ("not closed", Some(b"{\"type\": \"PlaceOrder\"")),
        ("an escaped NUL", Some(br#"{"type": "PlaceOrder\u0000", "orderId": "\u0000"}"#)),
        ("a lone surrogate", Some(br#"{"type": "\ud800"}"#)),
        ("binary", Some(&long)),
    ];
    for (what, value) in values {
        add(&format!("value: {what}"), good_key, value, &[]);
    }
    let deep = [vec![b'['; 100_000], vec![b']'; 100_000]].concat();
    add("value: nested deeply", good_key, Some(&deep), &[(b"\0", Some(b"\0"))]);
    assert!(odd.len() >= 50, "{} odd records", odd.len());
    odd
}

/// Bytes that no compression makes fewer; the same each time.
pub fn noise(count: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..count).map(|_| next()).collect()
}

/// Produces one record to a partition, and waits until Kafka has it.
pub fn produce(producer: &ThreadedProducer<DefaultProducerContext>, topic: &str, partition: i32, odd: &Odd) {
    let mut record: BaseRecord<'_, [u8], [u8]> =
        BaseRecord::to(topic).partition(partition).headers(odd.headers.to_native());
    record.key = odd.key.as_deref();
    record.payload = odd.value.as_deref();
    producer.send(record).map_err(|(error, _)| error).expect("queued");
}

/// A producer, and with a name one of transactions.
pub fn producer(settings: &KafkaSettings, transactional: Option<&str>) -> ThreadedProducer<DefaultProducerContext> {
    let mut config = client::producer(settings, 1);
    if let Some(name) = transactional {
        config.set("transactional.id", name).set("transaction.timeout.ms", "20000");
    }
    let producer: ThreadedProducer<DefaultProducerContext> = config.create().expect("a producer");
    if transactional.is_some() {
        producer.init_transactions(Duration::from_secs(30)).expect("transactions begin");
    }
    producer
}

/// Runs `work` in a transaction that is committed or aborted: either leaves a marker.
pub fn transaction(
    producer: &ThreadedProducer<DefaultProducerContext>,
    commit: bool,
    work: impl FnOnce(&ThreadedProducer<DefaultProducerContext>),
) {
    producer.begin_transaction().expect("a transaction");
    work(producer);
    producer.flush(Duration::from_secs(30)).expect("delivered");
    if commit {
        producer.commit_transaction(Duration::from_secs(30)).expect("committed");
    } else {
        producer.abort_transaction(Duration::from_secs(30)).expect("aborted");
    }
}

/// First offset kept, and the next to be written.
pub fn watermarks(settings: &KafkaSettings, topic: &str, partition: i32) -> (i64, i64) {
    let consumer: BaseConsumer = client::base(settings).create().expect("a client");
    consumer.fetch_watermarks(topic, partition, Duration::from_secs(10)).expect("watermarks")
}

/// Removes everything that a partition holds, as retention would.
pub async fn delete_all_records(settings: &KafkaSettings, topic: &str, partition: i32) {
    use rdkafka::admin::{AdminClient, AdminOptions};
    use rdkafka::client::DefaultClientContext;
    let (_, end) = watermarks(settings, topic, partition);
    let mut before = TopicPartitionList::new();
    before.add_partition_offset(topic, partition, Offset::Offset(end)).expect("an offset");
    let admin: AdminClient<DefaultClientContext> = client::base(settings).create().expect("an admin client");
    admin.delete_records(&before, &AdminOptions::new()).await.expect("delete records");
    super::eventually("the records are gone", async || (watermarks(settings, topic, partition).0 == end).then_some(()))
        .await;
}
