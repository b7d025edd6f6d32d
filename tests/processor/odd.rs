//! Commands topics that hold anything: every record ends with an outcome, and its neighbours do not notice.

use std::collections::HashMap;
use std::process::Output;
use std::sync::Arc;

use rdkafka::producer::Producer as _;
use serde_json::Value;
use throughline::kafka::{Record, RecordHeaders};
use throughline::store::dead_letters::{self, Filter, Parked};
use tokio_postgres::Client;
use uuid::Uuid;

use crate::floor::{Running, Source, command, consumed, decided, number, place, sound};
use crate::fragile::{FragileCodec, FragileContext, mend};
use crate::harness::odd::{self, Odd, odd_records};
use crate::harness::{Harness, PATIENCE, eventually};

/// Runs a command of ours to its end.
pub async fn throughline(harness: &Harness, arguments: &[&str]) -> Output {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_throughline"));
    command.args(arguments).envs(harness.environment()).env_remove("RUST_LOG").stdin(std::process::Stdio::null());
    tokio::time::timeout(PATIENCE, command.output()).await.expect("it ends").expect("it starts")
}

pub fn told(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

pub async fn letters(client: &Client) -> Vec<Parked> {
    dead_letters::find(client, &Filter::default(), 1_000).await.expect("dead letters")
}

#[track_caller]
fn assert_whole(letter: &Parked, odd: &Odd) {
    let kept = &letter.letter;
    assert_eq!((&kept.key, &kept.value), (&odd.key, &odd.value), "{}", odd.what);
    let mut headers = RecordHeaders::default();
    match &kept.headers {
        Some(all) => all.iter().for_each(|(name, value)| headers.push(name, value)),
        None => return assert!(odd.headers.len() > 100_000, "{}", odd.what),
    }
    assert_eq!(headers, odd.headers, "{}", odd.what);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn odd_records_end_as_outcomes_and_are_replayed_as_they_came() {
    let harness = Harness::new("processor_odd").await;
    let (client, source) = (harness.client().await, Source::new(&harness));
    let topic = harness.names().commands();
    let order = Uuid::new_v4();
    let value = place(order, Uuid::new_v4()).to_string();
    let named = ["command-id", "correlation-id", "causation-id", "traceparent", "reply-to", "principal"];
    let odd = odd_records(order.to_string().as_bytes(), value.as_bytes(), &named);
    let producer = odd::producer(&harness.settings.kafka, None);
    let mut good = Vec::new();
    for (number, one) in odd.iter().enumerate() {
        odd::produce(&producer, &topic, 2, one);
        producer.flush(PATIENCE).expect("acknowledged");
        if number % 10 == 0 {
            let id = Uuid::new_v4();
            let mut between = command(&harness, &place(Uuid::new_v4(), id));
            between.partition = Some(2);
            source.produce(&[between]);
            good.push(id);
        }
    }
    let running = Running::start(&harness.settings).await;
    consumed(&client, (odd.len() + good.len()) as i64).await;
    assert!(decided(&client, &good).await.iter().all(|outcome| outcome.accepted), "neighbours do not notice");
    sound(&client).await;
    let by_offset: HashMap<i64, &Odd> =
        odd.iter().enumerate().map(|(number, one)| ((number + number.div_ceil(10)) as i64, one)).collect();
    let parked = letters(&client).await;
    assert!(parked.len() >= 10, "{} letters", parked.len());
    for letter in &parked {
        assert_whole(letter, by_offset[&letter.letter.source_offset.expect("an offset")]);
    }
    // No header at all is not one that could not be read.
    let bare = |letter: &&Parked| letter.letter.headers.as_ref().is_some_and(|all| all.iter().next().is_none());
    assert!(parked.iter().filter(bare).count() >= 5, "letters of records without headers");
    running.stop().await;
    shows_and_replays(&harness, &client, &parked).await;
}

/// Every letter can be looked at, and the records that come of a replay are those that came.
async fn shows_and_replays(harness: &Harness, client: &Client, parked: &[Parked]) {
    let topic = harness.names().commands();
    for letter in parked {
        let shown = throughline(harness, &["dlq", "show", &letter.id.to_string()]).await;
        assert!(shown.status.success(), "{}", told(&shown));
        serde_json::from_slice::<Value>(&shown.stdout).expect("JSON");
    }
    let listed = throughline(harness, &["dlq", "list", "--output", "json"]).await;
    assert!(listed.status.success() && !listed.stdout.contains(&0), "{}", told(&listed));
    let (_, end) = odd::watermarks(&harness.settings.kafka, &topic, 2);
    let replayed = throughline(harness, &["dlq", "replay", "--yes"]).await;
    let able: Vec<&Parked> = parked.iter().filter(|letter| letter.letter.headers.is_some()).collect();
    assert_eq!((able.len(), replayed.status.code()), (parked.len(), Some(0)), "{}", told(&replayed));
    let records = read_from(harness, &topic, end);
    assert_eq!(records.len(), able.len());
    for (record, letter) in records.iter().zip(&able) {
        let mut headers = RecordHeaders::default();
        letter.letter.headers.iter().flat_map(|all| all.iter()).for_each(|(name, value)| headers.push(name, value));
        assert_eq!((&record.key, &record.value), (&letter.letter.key, &letter.letter.value));
        assert_eq!(record.headers(), Some(&headers));
    }
    let open = "select count(*) from throughline.dead_letters where status = 'parked'";
    assert_eq!(number(client, open).await, 0);
}

fn read_from(harness: &Harness, topic: &str, offset: i64) -> Vec<Record> {
    let source = throughline::kafka::TopicPartition { topic: topic.into(), partition: 2 };
    let mut records = Vec::new();
    throughline::kafka::Peek::new(&harness.settings.kafka)
        .and_then(|peek| {
            peek.visit(&source, offset, |record| {
                records.push(record);
                std::ops::ControlFlow::Continue(())
            })
        })
        .expect("reads");
    records
}

/// Markers and aborted records behind the last command, and then nothing: retention has taken all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn offsets_without_a_record_are_no_commands_that_were_lost() {
    let harness = Harness::new("processor_markers").await;
    let client = harness.client().await;
    let (kafka, topic) = (&harness.settings.kafka, harness.names().commands());
    let ids: Vec<Uuid> = (0..4).map(|_| Uuid::new_v4()).collect();
    let send = |producer: &rdkafka::producer::ThreadedProducer<_>, partition: i32, id: Uuid| {
        let record = command(&harness, &place(Uuid::new_v4(), id));
        let odd = Odd { what: String::new(), key: record.key, value: record.value, headers: RecordHeaders::default() };
        odd::produce(producer, &topic, partition, &odd);
    };
    let producer = odd::producer(kafka, Some(&format!("{topic}-sender")));
    // Partition 0 ends with a marker, 1 with aborted records and theirs, 2 with many of both, 3 holds markers only.
    odd::transaction(&producer, true, |producer| (0..3).for_each(|at| send(producer, at, ids[at as usize])));
    odd::transaction(&producer, false, |producer| (0..3).for_each(|_| send(producer, 1, Uuid::new_v4())));
    for round in 0..4 {
        odd::transaction(&producer, round % 2 == 0, |producer| {
            (0..usize::from(round % 2 == 1) * 5).for_each(|_| send(producer, 2, Uuid::new_v4()));
            send(producer, if round % 2 == 0 { 4 } else { 3 }, Uuid::new_v4());
        });
    }
    let running = Running::start(&harness.settings).await;
    decided(&client, &ids[..3]).await;
    // Stopped at once, it looks at the ends once more; later, one that goes on does so by itself.
    running.stop().await;
    for partition in 0..5 {
        let stored = format!(
            "select next_offset from throughline.offsets where source_topic = '{topic}' and partition = {partition}"
        );
        assert_eq!(number(&client, &stored).await, odd::watermarks(kafka, &topic, partition).1, "{partition}");
    }
    for partition in 0..5 {
        odd::delete_all_records(kafka, &topic, partition).await;
    }
    let running = Running::start(&harness.settings).await;
    odd::transaction(&producer, true, |producer| send(producer, 1, ids[3]));
    decided(&client, &ids[3..]).await;
    eventually("the running processor passes the new marker by itself", async || {
        let stored =
            format!("select next_offset from throughline.offsets where source_topic = '{topic}' and partition = 1");
        (number(&client, &stored).await == odd::watermarks(kafka, &topic, 1).1).then_some(())
    })
    .await;
    running.stop().await;
    odd::delete_all_records(kafka, &topic, 1).await;
    let running = Running::start(&harness.settings).await;
    let last = Uuid::new_v4();
    (0..5).for_each(|partition| {
        odd::transaction(&producer, true, |producer| {
            send(producer, partition, if partition == 0 { last } else { Uuid::new_v4() });
        })
    });
    decided(&client, &[last]).await;
    eventually("every partition goes on", async || {
        (number(&client, "select count(*) from throughline.commands where accepted").await == 4 + 2 + 5).then_some(())
    })
    .await;
    running.stop().await;
    sound(&client).await;
}

/// A command that failed by a defect is decided anew once that is mended, once, under the id that it had.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_command_is_decided_anew_and_once() {
    let harness = Harness::new("processor_replayed").await;
    let (client, source) = (harness.client().await, Source::new(&harness));
    let ids: Vec<Uuid> = (0..4).map(|_| Uuid::new_v4()).collect();
    let ask = |id: Uuid| serde_json::json!({"orderId": Uuid::new_v4(), "commandId": id, "trouble": "mendable"});
    let mut records: Vec<_> = ids.iter().map(|id| command(&harness, &ask(*id))).collect();
    records.iter_mut().for_each(|record| record.partition = Some(0));
    records[1].headers.push(("traceparent", "00-x".into()));
    source.produce(&records);
    // One without an id of its own: its place makes one.
    let nameless = serde_json::json!({"orderId": Uuid::new_v4(), "trouble": "mendable"});
    let mut nameless = command(&harness, &nameless);
    nameless.partition = Some(0);
    source.produce(std::slice::from_ref(&nameless));
    let running = Running::start_as::<FragileContext>(&harness.settings, Arc::new(FragileCodec));
    consumed(&client, 5).await;
    let made =
        client.query_one("select command_id from throughline.commands where command_id <> all($1)", &[&ids]).await;
    let ids = [ids, vec![made.expect("an outcome").get(0)]].concat();
    let failed = decided(&client, &ids).await;
    assert!(failed.iter().all(|one| one.code.as_deref() == Some("COMMAND_FAILED")), "{failed:?}");

    // Somebody else's copy is a duplicate, before and after: only an operator has a command decided anew.
    source.produce(&records[..1]);
    consumed(&client, 6).await;
    mend("mendable");
    source.produce(&records[..1]);
    consumed(&client, 7).await;
    assert_eq!(decided(&client, &ids[..1]).await[0].code.as_deref(), Some("COMMAND_FAILED"));

    let parked = letters(&client).await;
    assert_eq!(parked.len(), 5);
    // Killed after the permit, and after the record: run again, all end as they should.
    for (letter, point) in parked.iter().zip(["dlq.after_permit", "dlq.after_produce"].iter().cycle()) {
        let mut killed = tokio::process::Command::new(env!("CARGO_BIN_EXE_throughline"));
        killed.args(["dlq", "replay", "--yes", "--id", &letter.id.to_string()]).envs(harness.environment());
        let ended = killed.env("THROUGHLINE_CRASH_AT", point).output().await.expect("it starts");
        assert!(!ended.status.success(), "{}", told(&ended));
    }
    let replayed = throughline(&harness, &["dlq", "replay", "--yes"]).await;
    assert!(replayed.status.success(), "{}", told(&replayed));
    eventually("all are decided anew", async || {
        let accepted = decided(&client, &ids).await.iter().all(|outcome| outcome.accepted);
        accepted.then_some(())
    })
    .await;
    // A second copy under a permit that is used up is a duplicate.
    source.produce(&records);
    eventually("the copies are met", async || {
        let (_, end) = odd::watermarks(&harness.settings.kafka, &harness.names().commands(), 0);
        (number(&client, "select sum(next_offset)::bigint from throughline.offsets").await == end).then_some(())
    })
    .await;
    assert_eq!(number(&client, "select count(*) from throughline.events").await, 5);
    assert_eq!(number(&client, "select count(*) from throughline.commands").await, 5, "one outcome an id");
    assert_eq!(number(&client, "select count(*) from throughline.replays").await, 0);
    assert_eq!(number(&client, "select count(*) from throughline.dead_letters where status = 'replayed'").await, 5);
    running.stop().await;
    sound(&client).await;
    for id in [parked[0].id, 999_999] {
        let again = throughline(&harness, &["dlq", "replay", "--yes", "--id", &id.to_string()]).await;
        assert_eq!(again.status.code(), Some(1), "{}", told(&again));
        assert!(told(&again).contains(&format!("dead letter {id} cannot be replayed")), "{}", told(&again));
    }
}

/// A record that stands in the way is parked by an operator's word, and the partition goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_in_the_way_is_skipped_on_record() {
    let mut harness = Harness::new("processor_skip").await;
    harness.settings.processor.snapshot_every_events = 1_000;
    harness.settings.kafka.halt_retry_ms = 200;
    let (client, source) = (harness.client().await, Source::new(&harness));
    let order = Uuid::new_v4();
    let ask =
        |id: Uuid, trouble: Option<&str>| serde_json::json!({"orderId": order, "commandId": id, "trouble": trouble});
    let (first, stuck, behind) = (Uuid::new_v4(), Uuid::new_v4(), Uuid::new_v4());
    let to = |value: &Value| {
        let mut record = command(&harness, value);
        record.partition = Some(1);
        record
    };
    source.produce(&[to(&ask(first, Some("decode")))]);
    let running = Running::start_as::<FragileContext>(&harness.settings, Arc::new(FragileCodec));
    decided(&client, &[first]).await;
    running.stop().await;
    let other = serde_json::json!({"orderId": Uuid::new_v4(), "commandId": behind});
    source.produce(&[to(&ask(stuck, None)), to(&other)]);
    let running = Running::start_as::<FragileContext>(&harness.settings, Arc::new(FragileCodec));
    let epochs = "select max(epoch) from throughline.offsets where partition = 1";
    let claimed = number(&client, epochs).await;
    eventually("it stands, and is tried again", async || (number(&client, epochs).await > claimed + 1).then_some(()))
        .await;
    let (topic, group) = (harness.names().commands(), harness.names().processor_group(1));
    let skip = async |place: String, reason: &str| {
        throughline(&harness, &["dlq", "skip", "--group", &group, &place, "--reason", reason, "--yes"]).await
    };
    for (place, reason) in [(format!("{topic}:1:2"), "wrong offset"), (format!("{topic}:1:1"), " ")] {
        let refused = skip(place, reason).await;
        assert_eq!(refused.status.code(), Some(1), "{}", told(&refused));
    }
    // It is claimed again now and then, which an operator may run into: then nothing was changed.
    eventually("it is skipped", async || {
        let skipped = skip(format!("{topic}:1:1"), "its stream is broken").await;
        skipped.status.success().then_some(())
    })
    .await;
    assert!(decided(&client, &[behind]).await[0].accepted, "the partition goes on by itself");
    running.stop().await;
    let parked = letters(&client).await;
    let letter = &parked[0].letter;
    assert_eq!((parked.len(), letter.reason_code.as_str(), letter.source_offset), (1, "SKIPPED", Some(1)));
    assert!(
        letter.reason.contains("its stream is broken") && letter.reason.contains("skipped by "),
        "{}",
        letter.reason
    );
    assert!(letter.topic_id.is_some());
}

/// Offsets begin anew in a topic made anew: its letters are others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn letters_of_a_topic_made_anew_are_letters_of_their_own() {
    let mut harness = Harness::new("processor_anew").await;
    harness.settings.processor.on_lost_offsets = throughline::settings::LostOffsets::Earliest;
    let client = harness.client().await;
    let topic = harness.names().commands();
    for round in 1..=2 {
        let odd = Odd {
            what: String::new(),
            key: None,
            value: Some(format!("{{nonsense {round}").into_bytes()),
            headers: RecordHeaders::default(),
        };
        let producer = odd::producer(&harness.settings.kafka, None);
        odd::produce(&producer, &topic, 0, &odd);
        producer.flush(PATIENCE).expect("acknowledged");
        let running = Running::start(&harness.settings).await;
        eventually("it is parked", async || (letters(&client).await.len() == round).then_some(())).await;
        running.stop().await;
        if round == 1 {
            harness.make_topic_anew(&topic).await;
        }
    }
    let parked = letters(&client).await;
    assert_eq!(parked[0].letter.source_offset, parked[1].letter.source_offset);
    assert_ne!(parked[0].letter.topic_id, parked[1].letter.topic_id);
    assert_ne!(parked[0].letter.value, parked[1].letter.value);
}
