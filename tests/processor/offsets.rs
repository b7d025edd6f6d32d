//! Offsets that are not there any more are explained, never passed over.

use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::{Offset, TopicPartitionList};
use throughline::kafka::{client, topics};
use throughline::settings::LostOffsets;
use uuid::Uuid;

use crate::floor::{Running, Source, command, consumed, decided, number, place};
use crate::harness::{Harness, eventually};

fn admin(harness: &Harness) -> AdminClient<DefaultClientContext> {
    client::base(&harness.settings.kafka).create().expect("an admin client")
}

fn to_one_partition(harness: &Harness, count: usize) -> (Vec<crate::floor::Produced>, Vec<Uuid>) {
    let ids: Vec<Uuid> = (0..count).map(|_| Uuid::new_v4()).collect();
    let records = ids.iter().map(|id| {
        let mut record = command(harness, &place(Uuid::new_v4(), *id));
        record.partition = Some(2);
        record
    });
    (records.collect(), ids)
}

/// Retention ran ahead of the processor.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_expired_offset_halts_until_the_loss_is_accepted() {
    let mut harness = Harness::new("processor_expired").await;
    let (client, source) = (harness.client().await, Source::new(&harness));
    let (records, ids) = to_one_partition(&harness, 2);
    source.produce(&records);
    let running = Running::start(&harness.settings).await;
    decided(&client, &ids).await;
    running.stop().await;

    let (records, lost) = to_one_partition(&harness, 3);
    source.produce(&records);
    let mut before = TopicPartitionList::new();
    before.add_partition_offset(&harness.names().commands(), 2, Offset::Offset(4)).expect("an offset");
    admin(&harness).delete_records(&before, &AdminOptions::new()).await.expect("delete records");

    let epoch = "select max(epoch) from throughline.offsets where partition = 2";
    let claimed = number(&client, epoch).await;
    let running = Running::start(&harness.settings).await;
    let mut other = command(&harness, &place(Uuid::new_v4(), Uuid::new_v4()));
    other.partition = Some(3);
    let id: Uuid = serde_json::from_slice::<serde_json::Value>(other.value.as_deref().expect("a value")).expect("json")
        ["commandId"]
        .as_str()
        .expect("an id")
        .parse()
        .expect("a uuid");
    source.produce(&[other]);
    decided(&client, &[id]).await;
    eventually("the partition was claimed", async || (number(&client, epoch).await > claimed).then_some(())).await;
    running.stop().await;
    assert_eq!(number(&client, "select count(*) from throughline.commands").await, 3, "the partition stood still");

    harness.settings.processor.on_lost_offsets = LostOffsets::Earliest;
    let running = Running::start(&harness.settings).await;
    decided(&client, &lost[2..]).await;
    running.stop().await;
    assert_eq!(number(&client, "select count(*) from throughline.commands").await, 4, "two were lost, and said so");
}

/// The topic was deleted and created again while nobody looked, and already holds as many records.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_created_again_halts_until_the_loss_is_accepted() {
    let mut harness = Harness::new("processor_recreated").await;
    let (client, source) = (harness.client().await, Source::new(&harness));
    let (records, ids) = to_one_partition(&harness, 2);
    source.produce(&records);
    let running = Running::start(&harness.settings).await;
    decided(&client, &ids).await;
    running.stop().await;

    let topic = harness.names().commands();
    admin(&harness).delete_topics(&[&topic], &AdminOptions::new()).await.expect("delete");
    let specs = topics::specs(&harness.names(), &harness.settings.topics);
    eventually("the topic exists again", async || {
        let created = topics::apply(&harness.settings.kafka, &specs).await.expect("apply");
        created.contains(&topic).then_some(())
    })
    .await;
    let (records, fresh) = to_one_partition(&harness, 3);
    Source::new(&harness).produce(&records);
    let epoch = "select max(epoch) from throughline.offsets where partition = 2";
    let claimed = number(&client, epoch).await;
    let running = Running::start(&harness.settings).await;
    eventually("the partition was claimed", async || (number(&client, epoch).await > claimed).then_some(())).await;
    running.stop().await;
    assert_eq!(number(&client, "select count(*) from throughline.commands").await, 2, "nothing of the new topic");

    harness.settings.processor.on_lost_offsets = LostOffsets::Earliest;
    let running = Running::start(&harness.settings).await;
    decided(&client, &fresh).await;
    consumed(&client, 3).await;
    running.stop().await;
}

/// The same under a running processor, so quickly that no assignment changes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_created_again_while_running_halts_too() {
    let harness = Harness::new("processor_recreated_live").await;
    let (client, source) = (harness.client().await, Source::new(&harness));
    let (records, ids) = to_one_partition(&harness, 2);
    source.produce(&records);
    let running = Running::start(&harness.settings).await;
    decided(&client, &ids).await;
    let epoch = "select max(epoch) from throughline.offsets where partition = 2";
    let claimed = number(&client, epoch).await;
    let topic = harness.names().commands();
    let specs = topics::specs(&harness.names(), &harness.settings.topics);
    admin(&harness).delete_topics(&[&topic], &AdminOptions::new()).await.expect("delete");
    eventually("the topic exists again", async || {
        let created = topics::apply(&harness.settings.kafka, &specs).await.expect("apply");
        created.contains(&topic).then_some(())
    })
    .await;
    let (records, _) = to_one_partition(&harness, 2);
    Source::new(&harness).produce(&records);
    eventually("it was claimed anew", async || (number(&client, epoch).await > claimed).then_some(())).await;
    // As many records as before fit the old offset; whatever comes now waits for an operator.
    let (records, late) = to_one_partition(&harness, 3);
    Source::new(&harness).produce(&records);
    let mut other = command(&harness, &place(Uuid::new_v4(), Uuid::new_v4()));
    other.topic = harness.names().lanes()[0].clone();
    Source::new(&harness).produce(&[other]);
    eventually("other lanes go on", async || {
        (number(&client, "select count(*) from throughline.commands").await >= 3).then_some(())
    })
    .await;
    running.stop().await;
    let decided =
        throughline::store::commands::outcomes(&client, &harness.names().events(), &late).await.expect("outcomes");
    assert!(decided.is_empty(), "nothing of the new topic after the claim");
}
