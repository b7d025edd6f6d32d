//! Commands become events, in order, whatever lane and worker they came through.

use serde_json::json;
use uuid::Uuid;

use crate::floor::{Produced, Running, Source, command, consumed, decided, number, pay, place, sound};
use crate::harness::{Harness, eventually};

/// The life of an order, and a refusal at each wrong turn.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_lives() {
    let harness = Harness::new("processor_life").await;
    let (client, source) = (harness.client().await, Source::new(&harness));
    let running = Running::start(&harness.settings).await;
    let (order, ids) = (Uuid::new_v4(), [(); 6].map(|()| Uuid::new_v4()));
    let ship =
        json!({"type": "ShipOrder", "commandId": ids[2], "orderId": order, "carrier": "DHL", "trackingNumber": "J1"});
    let mut early = ship.clone();
    early["commandId"] = json!(ids[3]);
    let mut stale = pay(order, ids[4], "1.00");
    stale["expectedVersion"] = json!(7);
    let records: Vec<Produced> =
        [place(order, ids[0]), early, stale, pay(order, ids[1], "20.00"), ship, place(order, ids[5])]
            .iter()
            .map(|value| command(&harness, value))
            .collect();
    source.produce(&records);

    let outcomes = decided(&client, &ids).await;
    let seen: Vec<_> = outcomes.iter().map(|o| (o.accepted, o.code.as_deref(), o.version, o.seq.is_some())).collect();
    assert_eq!(
        seen,
        [
            (true, None, Some(1), true),
            (true, None, Some(2), true),
            (true, None, Some(3), true),
            (false, Some("ORDER_NOT_PAID"), Some(1), false),
            (false, Some("VERSION_MISMATCH"), Some(1), false),
            (false, Some("ORDER_ALREADY_PLACED"), Some(3), false),
        ]
    );
    running.stop().await;
    sound(&client).await;
    let results = "select count(*) from throughline.outbox where type = 'throughline.orders.CommandResult'";
    assert_eq!(number(&client, results).await, 3, "refusals are published");
}

/// Two workers, three lanes, one order addressed through all of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lanes_and_workers_share_streams() {
    let mut harness = Harness::new("processor_lanes").await;
    harness.settings.processor.workers = 2;
    harness.settings.processor.batch_commands_max = 50;
    let (client, source) = (harness.client().await, Source::new(&harness));
    let orders: Vec<Uuid> = (0..40).map(|_| Uuid::new_v4()).collect();
    let mut records = Vec::new();
    for order in &orders {
        records.push(command(&harness, &place(*order, Uuid::new_v4())));
    }
    source.produce(&records);
    let running = Running::start(&harness.settings).await;
    consumed(&client, 40).await;
    let mut payments = Vec::new();
    for round in 0..10 {
        for order in &orders {
            let mut record = command(&harness, &pay(*order, Uuid::new_v4(), "2.00"));
            record.topic = harness.names().lanes()[round % 3].clone();
            payments.push(record);
        }
    }
    source.produce(&payments);
    consumed(&client, 440).await;
    running.stop().await;
    sound(&client).await;
    let accepted = "select count(*) from throughline.commands where accepted";
    assert_eq!(number(&client, accepted).await, 440, "forty orders and ten payments each");
}

/// Loading a long stream costs what comes after its snapshot; one that does not decode is ignored.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn snapshots_stand_for_the_past() {
    let mut harness = Harness::new("processor_snapshots").await;
    harness.settings.processor.snapshot_every_events = 10;
    let (client, source) = (harness.client().await, Source::new(&harness));
    let order = Uuid::new_v4();
    let mut records = vec![command(&harness, &place(order, Uuid::new_v4()))];
    records.extend((0..95).map(|_| command(&harness, &pay(order, Uuid::new_v4(), "0.10"))));
    harness.settings.processor.batch_commands_max = 7;
    source.produce(&records);
    let running = Running::start(&harness.settings).await;
    consumed(&client, 96).await;
    running.stop().await;
    let version = number(&client, "select version from throughline.snapshots").await;
    assert!((86..=96).contains(&version), "a snapshot within the last ten events: {version}");

    // The stream grows by a past of 100,000 events that nobody could read: none of them is.
    client.batch_execute(LONG_PAST).await.expect("a long past");
    let scans = "select coalesce(sum(idx_scan), 0)::bigint from pg_stat_user_indexes where relname ~ '^events_[0-9]+$'";
    let read =
        "select coalesce(sum(idx_tup_read), 0)::bigint from pg_stat_user_indexes where relname ~ '^events_[0-9]+$'";
    let (scans_before, before) = (number(&client, scans).await, number(&client, read).await);
    let id = Uuid::new_v4();
    source.produce(&[command(&harness, &pay(order, id, "0.10"))]);
    let running = Running::start(&harness.settings).await;
    assert_eq!(decided(&client, &[id]).await[0].version, Some(100_097));
    running.stop().await;
    eventually("the statistics of the ended session", || async {
        (number(&client, scans).await > scans_before).then_some(())
    })
    .await;
    let read = number(&client, read).await - before;
    assert!(read <= 20, "one command read {read} events of a stream of 100,096");
}

/// Puts 100,000 unreadable events before those of the only stream.
const LONG_PAST: &str = "
    alter table throughline.events disable trigger events_are_immutable;
    update throughline.events set version = version + 100000, seq = seq + 100000;
    update throughline.snapshots set version = version + 100000;
    update throughline.counters c set last_seq = last_seq + 100000
    from throughline.events e where e.version = 100001 and c.partition = e.partition and c.topic = e.topic;
    update throughline.relay_leases l set published = published + 100000
    from throughline.events e where e.version = 100001 and l.partition = e.partition and l.topic = e.topic;
    insert into throughline.events (partition, topic, seq, stream_id, version, event_id, type, schema_version, command_id,
                                    correlation_id, recorded_at, payload)
    select e.partition, e.topic, n, e.stream_id, n, gen_random_uuid(), e.type, e.schema_version, gen_random_uuid(), '',
           e.recorded_at, '\\x00'
    from throughline.events e, generate_series(1, 100000) n where e.version = 100001;
    alter table throughline.events enable trigger events_are_immutable;";

/// A snapshot that does not decode, or is of another shape, is no loss.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_that_cannot_be_used_is_ignored() {
    let mut harness = Harness::new("processor_snapshot_unreadable").await;
    harness.settings.processor.snapshot_every_events = 2;
    let (client, source) = (harness.client().await, Source::new(&harness));
    let order = Uuid::new_v4();
    let mut records = vec![command(&harness, &place(order, Uuid::new_v4()))];
    records.extend((0..5).map(|_| command(&harness, &pay(order, Uuid::new_v4(), "1.00"))));
    source.produce(&records);
    let running = Running::start(&harness.settings).await;
    consumed(&client, 6).await;
    running.stop().await;
    for (version, spoil) in [
        (7, "state = '{\"no\": \"such\"}'"),
        // What this program would read without a complaint, and wrongly.
        (8, "snapshot_version = snapshot_version + 1, state = jsonb_set(state, '{placed,status}', '\"cancelled\"')"),
    ] {
        let spoilt = client.execute(&format!("update throughline.snapshots set {spoil}"), &[]).await.expect("spoil it");
        assert_eq!(spoilt, 1);
        let id = Uuid::new_v4();
        source.produce(&[command(&harness, &pay(order, id, "1.00"))]);
        let running = Running::start(&harness.settings).await;
        let outcome = &decided(&client, &[id]).await[0];
        assert_eq!((outcome.code.as_deref(), outcome.version), (None, Some(version)));
        running.stop().await;
    }
    sound(&client).await;
}
