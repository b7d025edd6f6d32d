//! Who lost a claim changes nothing, even inside its transaction.

use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use crate::floor::{Running, Source, command, consumed, decided, number, place, sound};
use crate::harness::way::Way;
use crate::harness::{Harness, eventually};

/// A claim of another process raises the epoch while ours is inside its transaction, waiting for
/// the counter's lock: our compare-and-set matches nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_zombie_inside_its_transaction_changes_nothing() {
    let harness = Harness::new("processor_zombie").await;
    let (client, mut holder, source) = (harness.client().await, harness.client().await, Source::new(&harness));
    let running = Running::start(&harness.settings).await;
    let first = Uuid::new_v4();
    source.produce(&[command(&harness, &place(Uuid::new_v4(), first))]);
    decided(&client, &[first]).await;
    let partitions = 3 * i64::from(harness.settings.topics.command_partitions);
    eventually("every partition is claimed", async || {
        (number(&client, "select count(*) from throughline.offsets").await == partitions).then_some(())
    })
    .await;

    let lock = holder.transaction().await.expect("begin");
    lock.execute("select from throughline.counters for update", &[]).await.expect("lock");
    let ids: Vec<Uuid> = (0..20).map(|_| Uuid::new_v4()).collect();
    let records: Vec<_> = ids.iter().map(|id| command(&harness, &place(Uuid::new_v4(), *id))).collect();
    source.produce(&records);
    eventually("the processor waits for the lock", async || {
        let waiting = "select count(*) from pg_stat_activity where datname = current_database()
                       and wait_event_type = 'Lock' and query like '%throughline.counters%'";
        (number(&client, waiting).await > 0).then_some(())
    })
    .await;
    // Another process takes over every partition, and handles nothing.
    client.batch_execute("update throughline.offsets set epoch = epoch + 1, owner = 'another'").await.expect("steal");
    lock.commit().await.expect("unlock");
    // The claims are lost, the batch has no effect; still assigned, they are claimed anew.
    let outcomes = decided(&client, &ids).await;
    assert!(outcomes.iter().all(|outcome| outcome.accepted));
    consumed(&client, 21).await;
    running.stop().await;
    assert!(
        number(&client, "select min(epoch) from throughline.offsets where owner <> 'another' and next_offset > 0")
            .await
            >= 3
    );
    sound(&client).await;
}

/// Two processors, members of one group; more commands than one batch; both stop and start.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processors_come_and_go_without_loss() {
    let mut harness = Harness::new("processor_two").await;
    harness.settings.processor.batch_commands_max = 20;
    let (client, source) = (harness.client().await, Source::new(&harness));
    let mut total = 0;
    let mut one = Running::start(&harness.settings).await;
    for _ in 0..3 {
        let records: Vec<_> = (0..300).map(|_| command(&harness, &place(Uuid::new_v4(), Uuid::new_v4()))).collect();
        source.produce(&records);
        total += 300;
        let two = Running::start(&harness.settings).await;
        source.produce(&records);
        total += 300;
        one.stop().await;
        one = two;
    }
    consumed(&client, total).await;
    one.stop().await;
    assert_eq!(number(&client, "select count(*) from throughline.commands").await, 900);
    assert_eq!(number(&client, "select count(*) from throughline.events").await, 900);
    sound(&client).await;
}

/// The connection is cut again and again; nothing is lost or doubled, and Kafka's offsets follow.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_cut_is_survived() {
    let mut harness = Harness::new("processor_cut").await;
    harness.settings.processor.batch_commands_max = 10;
    let (client, source) = (Arc::new(harness.client().await), Source::new(&harness));
    let records: Vec<_> = (0..1_000).map(|_| command(&harness, &place(Uuid::new_v4(), Uuid::new_v4()))).collect();
    source.produce(&records);
    let running = Running::start(&harness.settings).await;
    let killer = tokio::spawn({
        let client = client.clone();
        async move {
            let mut every = tokio::time::interval(Duration::from_millis(40));
            for _ in 0..40 {
                every.tick().await;
                let kill = "select pg_terminate_backend(pid) from pg_stat_activity
                            where datname = current_database() and pid <> pg_backend_pid()";
                client.batch_execute(kill).await.expect("kill");
            }
        }
    });
    consumed(&client, 1_000).await;
    killer.await.expect("killer");
    running.stop().await;
    assert_eq!(number(&client, "select count(*) from throughline.events").await, 1_000);
    sound(&client).await;
}

/// The commit happens and its answer is lost: the same batch, tried again under the same claim, is
/// told by its position that it is done. Nothing is doubled, also not an answer on the results topic.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_whose_answer_is_lost_is_not_repeated() {
    let mut harness = Harness::new("processor_lost_answer").await;
    let (client, source) = (harness.client().await, Source::new(&harness));
    let (way, url) = Way::new(harness.settings.database.url.expose()).await;
    harness.settings.database.url = url.as_str().into();
    harness.settings.processor.batch_commands_max = 10;
    let ids: Vec<Uuid> = (0..200).map(|_| Uuid::new_v4()).collect();
    let records: Vec<_> = ids
        .iter()
        .map(|id| {
            let mut record = command(&harness, &place(Uuid::new_v4(), *id));
            record.headers.push(("reply-to", "orders-command-results".to_owned()));
            record
        })
        .collect();
    source.produce(&records);
    way.lose(5);
    let running = Running::start(&harness.settings).await;
    assert!(decided(&client, &ids).await.iter().all(|outcome| outcome.accepted));
    consumed(&client, 200).await;
    running.stop().await;
    assert_eq!(way.lost(), 5);
    assert_eq!(number(&client, "select count(*) from throughline.events").await, 200);
    let answers = "select count(*) from throughline.outbox where schema_version is null";
    assert_eq!(number(&client, answers).await, 200, "one answer a command");
    sound(&client).await;
}
