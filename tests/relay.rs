//! The relay against a real Kafka and a real PostgreSQL: order, no hole, leases, takeover.

mod harness;
mod outbox;

use std::time::Duration;

use harness::{Harness, eventually};
use outbox::{published, start, stop};
use throughline::store::partitions;
use tokio_postgres::Client;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_are_published_in_order_with_headers_and_bytes_unchanged() {
    let harness = Harness::new("relay_order").await;
    let mut client = harness.client().await;
    let events = outbox::events(&client, &harness.names().events()).await;
    for _ in 0..5 {
        for partition in 0..events.partitions {
            outbox::append(&mut client, events.id, partition, 40).await;
        }
    }
    let (running, token, wake) = start(&harness.settings);
    published(&client, &events, &[(0, 200), (5, 200)]).await;
    outbox::append(&mut client, events.id, 3, 1).await;
    wake.notify_one();
    published(&client, &events, &[(3, 201), (1, 200), (2, 200), (4, 200)]).await;
    stop(running, token).await;

    for partition in 0..events.partitions {
        let records = outbox::read_partition(&harness.settings, &events.name, partition);
        let last = if partition == 3 { 201 } else { 200 };
        assert_eq!(outbox::seqs(&records), (1..=last).collect::<Vec<i64>>());
        assert_eq!(records.iter().map(outbox::names_seq).collect::<Vec<_>>(), (1..=last).collect::<Vec<_>>());
    }
    let records = outbox::read_partition(&harness.settings, &events.name, 0);
    let (record, row) = (
        &records[7],
        client
            .query_one(
                "select key::text, message_id::text, subject::text, command_id::text, created_at, value
                 from throughline.outbox where topic = $1 and partition = 0 and seq = 8",
                &[&events.id],
            )
            .await
            .unwrap(),
    );
    let created_at: jiff::Timestamp = row.get(4);
    assert_eq!(record.key.as_deref(), Some(row.get::<_, &str>(0).as_bytes()));
    assert_eq!(record.value.as_deref(), Some(row.get::<_, &[u8]>(5)));
    assert_eq!(record.timestamp_ms, created_at.as_millisecond());
    for (name, value) in [
        ("ce_specversion", "1.0"),
        ("ce_id", row.get(1)),
        ("ce_type", "throughline.orders.OrderPlaced"),
        ("ce_source", "/throughline/orders"),
        ("ce_time", created_at.to_string().as_str()),
        ("ce_subject", row.get(2)),
        ("content-type", "application/avro"),
        ("schema-version", "3"),
        ("stream-version", "1"),
        ("seq", "8"),
        ("command-id", row.get(3)),
        ("correlation-id", "correlation-8"),
    ] {
        assert_eq!(record.header(name), Some(value), "{name}");
    }
    assert_eq!(record.header("causation-id"), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_that_commit_in_inverse_order_neither_skip_nor_invert() {
    let harness = Harness::new("relay_inverse").await;
    let (mut first, mut second) = (harness.client().await, harness.client().await);
    let client = harness.client().await;
    let events = outbox::events(&client, &harness.names().events()).await;
    let (running, token, _wake) = start(&harness.settings);

    // The session that began first commits last, on another partition, and takes its numbers on the
    // contested one in between: the row lock makes it wait for, or be waited for by, the other.
    let early = first.transaction().await.unwrap();
    let at_1 = outbox::take(&early, events.id, 1, 3).await;
    outbox::insert(&early, events.id, 1, at_1, 3, 250).await;
    let late = second.transaction().await.unwrap();
    let at_0 = outbox::take(&late, events.id, 0, 2).await;
    outbox::insert(&late, events.id, 0, at_0, 2, 250).await;

    // `early` asks for partition 0 while `late` holds its lock.
    let id = events.id;
    let asking = async {
        let at = outbox::take(&early, id, 0, 2).await;
        outbox::insert(&early, id, 0, at, 2, 250).await;
        assert_eq!(at, 3, "numbers are given out in commit order");
        early.commit().await.unwrap();
    };
    let committing = async {
        // The wait for the lock is seen in the server, then the holder commits.
        eventually("a session waits for the counter", || async {
            let row = client
                .query_one("select count(*) from pg_locks where not granted and locktype = 'transactionid'", &[])
                .await
                .unwrap();
            (row.get::<_, i64>(0) > 0).then_some(())
        })
        .await;
        assert_eq!(outbox::watermark(&client, id, 0).await, 0, "nothing is published before it is committed");
        assert_eq!(outbox::watermark(&client, id, 1).await, 0);
        late.commit().await.unwrap();
    };
    tokio::join!(asking, committing);

    // One that is rolled back leaves no hole.
    let given_up = second.transaction().await.unwrap();
    let at = outbox::take(&given_up, id, 0, 5).await;
    outbox::insert(&given_up, id, 0, at, 5, 250).await;
    given_up.rollback().await.unwrap();
    outbox::append(&mut second, id, 0, 1).await;

    published(&client, &events, &[(0, 5), (1, 3)]).await;
    stop(running, token).await;
    for (partition, last) in [(0, 5), (1, 3)] {
        let records = outbox::read_partition(&harness.settings, &events.name, partition);
        assert_eq!(outbox::seqs(&records), (1..=last).collect::<Vec<i64>>());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn relays_share_partitions_and_one_takes_over_without_a_repetition() {
    let harness = Harness::new("relay_takeover").await;
    let (mut client, reader) = (harness.client().await, harness.client().await);
    let events = outbox::events(&client, &harness.names().events()).await;
    let owners = || async {
        let rows = reader
            .query(
                "select owner, count(*) from throughline.relay_leases where owner <> '' and expires_at > now()
                    group by owner order by count(*)",
                &[],
            )
            .await
            .unwrap();
        rows.iter().map(|row| row.get::<_, i64>(1)).collect::<Vec<_>>()
    };
    let (one, one_token, _) = start(&harness.settings);
    eventually("one relay owns all", || async { (owners().await == [12]).then_some(()) }).await;
    let (other, _other_token, _) = start(&harness.settings);
    let id = events.id;
    let mut rounds = 0;
    // Under load: shares, then the abrupt end of one, then the takeover.
    loop {
        for partition in 0..events.partitions {
            outbox::append(&mut client, id, partition, 50).await;
        }
        rounds += 1;
        if owners().await == [6, 6] && rounds > 10 {
            break;
        }
        assert!(rounds < 5_000, "shares never became fair: {:?}", owners().await);
    }
    other.abort();
    for _ in 0..20 {
        for partition in 0..events.partitions {
            outbox::append(&mut client, id, partition, 50).await;
        }
        rounds += 1;
    }
    let last = rounds * 50;
    published(&client, &events, &(0..events.partitions).map(|p| (p, last)).collect::<Vec<_>>()).await;
    eventually("the survivor owns all", || async { (owners().await == [12]).then_some(()) }).await;
    stop(one, one_token).await;
    assert!(owners().await.is_empty(), "leases are handed back");
    let mut repeated = 0;
    for partition in 0..events.partitions {
        let records = outbox::read_partition(&harness.settings, &events.name, partition);
        repeated += outbox::repetitions(&outbox::seqs(&records), last);
    }
    assert_eq!(repeated, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_that_lost_its_epoch_cannot_move_the_watermark() {
    let harness = Harness::new("relay_zombie").await;
    let mut client = harness.client().await;
    let events = outbox::events(&client, &harness.names().events()).await;
    let (running, token, _) = start(&harness.settings);
    outbox::append(&mut client, events.id, 0, 10).await;
    published(&client, &events, &[(0, 10)]).await;
    // Another owner, as the running relay will find out.
    client
        .execute(
            "update throughline.relay_leases set owner = 'other', epoch = epoch + 1, expires_at = now() + interval '1 hour'
             where topic = $1 and partition = 0",
            &[&events.id],
        )
        .await
        .unwrap();
    outbox::append(&mut client, events.id, 0, 10).await;
    outbox::append(&mut client, events.id, 1, 10).await;
    published(&client, &events, &[(1, 10)]).await;
    assert_eq!(outbox::watermark(&client, events.id, 0).await, 10, "the watermark stays where the new owner left it");
    // The new owner is gone: the first takes over again, by Kafka's tail, without a repetition.
    client.execute("update throughline.relay_leases set expires_at = now() where owner = 'other'", &[]).await.unwrap();
    published(&client, &events, &[(0, 20)]).await;
    stop(running, token).await;
    let records = outbox::read_partition(&harness.settings, &events.name, 0);
    assert_eq!(outbox::seqs(&records), (1..=20).collect::<Vec<i64>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn time_partitions_go_only_when_all_their_rows_are_published() {
    let harness = Harness::new("relay_partitions").await;
    let mut client = harness.client().await;
    let events = outbox::events(&client, &harness.names().events()).await;
    outbox::append(&mut client, events.id, 0, 10).await;
    client
        .batch_execute(
            "create table throughline.outbox_past partition of throughline.outbox
             for values from ('2001-01-01 00:00:00+00') to ('2001-01-02 00:00:00+00');
             update throughline.outbox set created_at = '2001-01-01 12:00:00+00' where seq <= 4",
        )
        .await
        .unwrap();
    let exists = async |client: &Client| -> bool {
        client.query_one("select to_regclass('throughline.outbox_past') is not null", &[]).await.unwrap().get(0)
    };
    partitions::maintain(&client, &harness.settings.database).await.unwrap();
    assert!(exists(&client).await, "unpublished rows keep their partition");
    let (running, token, _) = start(&harness.settings);
    published(&client, &events, &[(0, 10)]).await;
    // A writer that is still open in that partition keeps it, too.
    let mut writer = harness.client().await;
    let open = writer.transaction().await.unwrap();
    open.execute("lock table throughline.outbox_past in row exclusive mode", &[]).await.unwrap();
    partitions::maintain(&client, &harness.settings.database).await.unwrap();
    assert!(exists(&client).await, "an open writer keeps the partition");
    open.commit().await.unwrap();
    let turn = partitions::maintain(&client, &harness.settings.database).await.unwrap();
    assert!(turn.dropped.iter().any(|name| name == "outbox_past"), "{turn:?}");
    assert!(!exists(&client).await);
    // Several programs that start at once keep house at once. With nothing due none does anything, but
    // for the one that meets the end of a span.
    let turns = (0..8).map(|_| async {
        let client = harness.client().await;
        partitions::maintain(&client, &harness.settings.database).await.unwrap()
    });
    let turns = futures_util::future::join_all(turns).await;
    assert!(turns.iter().filter(|turn| **turn != partitions::Turn::default()).count() <= 1, "{turns:?}");
    outbox::append(&mut client, events.id, 0, 1).await;
    published(&client, &events, &[(0, 11)]).await;
    stop(running, token).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_kafka_already_holds_is_not_published_again() {
    let harness = Harness::new("relay_tail").await;
    let mut client = harness.client().await;
    let events = outbox::events(&client, &harness.names().events()).await;
    outbox::append(&mut client, events.id, 0, 10).await;
    let (running, token, _) = start(&harness.settings);
    published(&client, &events, &[(0, 10)]).await;
    stop(running, token).await;
    // The watermark was lost, as by a kill between acknowledgement and mark.
    client.batch_execute("update throughline.relay_leases set published = 3 where published = 10").await.unwrap();
    outbox::append(&mut client, events.id, 0, 5).await;
    let (running, token, _) = start(&harness.settings);
    published(&client, &events, &[(0, 15)]).await;
    stop(running, token).await;
    let records = outbox::read_partition(&harness.settings, &events.name, 0);
    assert_eq!(outbox::seqs(&records), (1..=15).collect::<Vec<i64>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_database_may_go_away_for_a_while() {
    let harness = Harness::new("relay_database").await;
    let mut client = harness.client().await;
    let events = outbox::events(&client, &harness.names().events()).await;
    let (running, token, _) = start(&harness.settings);
    for round in 1..=10 {
        outbox::append(&mut client, events.id, 0, 20).await;
        client
            .execute(
                "select pg_terminate_backend(pid) from pg_stat_activity
                 where datname = current_database() and pid <> pg_backend_pid()",
                &[],
            )
            .await
            .unwrap();
        published(&client, &events, &[(0, round * 20)]).await;
    }
    stop(running, token).await;
    let records = outbox::read_partition(&harness.settings, &events.name, 0);
    assert_eq!(outbox::repetitions(&outbox::seqs(&records), 200), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_relay_publishes_at_once() {
    let harness = Harness::new("relay_latency").await;
    let mut client = harness.client().await;
    let events = outbox::events(&client, &harness.names().events()).await;
    let (running, token, wake) = start(&harness.settings);
    outbox::append(&mut client, events.id, 0, 1).await;
    published(&client, &events, &[(0, 1)]).await;
    let mut waits: Vec<Duration> = Vec::new();
    for seq in 2..=30 {
        outbox::append(&mut client, events.id, 0, 1).await;
        let committed = std::time::Instant::now();
        wake.notify_one();
        published(&client, &events, &[(0, seq)]).await;
        waits.push(committed.elapsed());
    }
    waits.sort();
    stop(running, token).await;
    // Includes the wait for the mark (50 ms) and for this look (20 ms); a nibbling or sleeping
    // relay takes several polls more.
    assert!(waits[waits.len() / 2] < Duration::from_millis(200), "{waits:?}");
}
