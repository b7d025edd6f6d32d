//! The database's clock is set while everything runs: nothing is lost, doubled, stuck or forgotten.

use std::sync::Arc;
use std::time::{Duration, Instant};

use throughline::app::maintenance;
use throughline::health::Health;
use throughline::store::partitions::{self, Stopwatch};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::floor::{Running, Source, command, decided, number, pay, place};
use crate::harness::{Harness, eventually, services};
use crate::outbox;
use crate::server::Server;

const HOUR: i64 = 3_600;
const DAY: i64 = 24 * HOUR;

/// A pipeline on a server whose clock can be set.
struct Bed {
    // Dropped in this order: the database goes before its server.
    harness: Harness,
    server: Server,
}

impl Bed {
    async fn new(name: &str) -> Self {
        let server = Server::start().await;
        let harness = Harness::on(name, services().await.0, server.url()).await;
        harness.install().await;
        Self { harness, server }
    }
}

/// The clock goes an hour each way, and forty days forward and back, while commands flow; each command is sent a
/// second time under a later clock.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_clock_leaps_under_load() {
    let bed = Bed::new("time_leaps").await;
    let harness = &bed.harness;
    let client = harness.client().await;
    let events = outbox::events(&client, &harness.names().events()).await;
    let results = outbox::events(&client, &harness.names().results()).await;
    let source = Source::new(harness);
    let processor = Running::start(&harness.settings).await;
    let (relay, stop_relay, _) = outbox::start(&harness.settings);
    let (stop, health) = (CancellationToken::new(), Health::new(Duration::MAX));
    let keeping = tokio::spawn(maintenance::run(Arc::new(harness.settings.clone()), health.clone(), stop.clone()));

    let (mut first, mut sent) = (Vec::new(), Vec::new());
    for (round, clock) in [0, HOUR, 0, -HOUR, 0, 40 * DAY, 0, -40 * DAY, 40 * DAY, 0].into_iter().enumerate() {
        bed.server.set_clock(clock);
        for batch in 0..3 {
            // What was decided before the clock was set comes again, among what is new.
            let mut records: Vec<_> = [first.clone(), sent.clone()].concat();
            let ids: Vec<Uuid> = (0..40).map(|_| Uuid::now_v7()).collect();
            for chunk in ids.chunks(2) {
                let order = Uuid::now_v7();
                records.push(command(harness, &place(order, chunk[0])));
                records.push(command(harness, &pay(order, chunk[1], "5.00")));
            }
            sent = records.split_off(records.len() - ids.len());
            records.extend(sent.clone());
            first = if round == 0 { sent.clone() } else { first };
            let produced = Instant::now();
            source.produce(&records);
            let outcomes = decided(&client, &ids).await;
            assert!(outcomes.iter().all(|outcome| outcome.accepted), "{outcomes:?}");
            eprintln!("round {round}, clock {clock:+} s: {} commands in {:?}", records.len(), produced.elapsed());
            assert!(produced.elapsed() < Duration::from_secs(10), "stuck for {:?}", produced.elapsed());
            if batch == 1 {
                // A turn under this clock, whenever the next would be due.
                partitions::maintain(&client, &harness.settings.database).await.expect("a turn");
            }
        }
    }
    let commands = number(&client, "select count(*) from throughline.commands").await;
    assert_eq!(commands, 10 * 3 * 40, "one outcome a command, and none is gone");
    assert_eq!(number(&client, "select count(*) from throughline.events").await, commands);
    processor.stop().await;
    for topic in [&events, &results] {
        for partition in 0..topic.partitions {
            let last = "select last_seq from throughline.counters where partition = $1 and topic = $2";
            let last: i64 = client.query_one(last, &[&partition, &topic.id]).await.unwrap().get(0);
            outbox::published(&client, topic, &[(partition, last)]).await;
            let records = outbox::read_partition(&harness.settings, &topic.name, partition);
            assert_eq!(outbox::repetitions(&outbox::seqs(&records), last), 0);
        }
    }
    outbox::stop(relay, stop_relay).await;
    stop.cancel();
    keeping.await.unwrap().unwrap();
    assert!(health.readiness().iter().all(|check| check.ok), "{:?}", health.readiness());
}

/// The clock goes ahead by forty days and stays there: nothing that is kept for thirty goes, before that time was
/// seen to pass; and then it does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_clock_alone_deletes_what_is_kept_for_a_time() {
    let bed = Bed::new("time_kept").await;
    let (client, settings) = (bed.harness.client().await, &bed.harness.settings.database);
    let spans = "select count(*) from throughline.spans('commands')";
    for days in [-60, -45, 40] {
        bed.server.set_clock(days * DAY);
        partitions::maintain(&client, settings).await.expect("a turn");
    }
    let before = number(&client, spans).await;
    // Two that keep house, for one of which no time passes; both together see no more than passed.
    let mut watches = [Stopwatch::default(), Stopwatch::default()];
    let started = Instant::now();
    for turn in 0..20 {
        bed.server.set_clock(if turn % 2 == 0 { 40 * DAY } else { 80 * DAY });
        for watch in &mut watches {
            watch.tell(&client).await.expect("time is told");
        }
        let turned = partitions::maintain(&client, settings).await.expect("a turn");
        assert!(turned.dropped.iter().all(|name| name.starts_with("outbox")), "{turned:?}");
    }
    let seen = "select extract(epoch from elapsed)::float8 from throughline.clock";
    let seen: f64 = client.query_one(seen, &[]).await.unwrap().get(0);
    assert!(seen > 0.0 && seen <= started.elapsed().as_secs_f64(), "{seen} s in {:?}", started.elapsed());
    assert!(number(&client, spans).await >= before);

    // Forty days pass, but for the one into which something is written on the last of them.
    client.batch_execute("update throughline.clock set elapsed = elapsed + interval '40 days'").await.unwrap();
    client
        .batch_execute(
            "insert into throughline.commands (partition, topic, command_id, stream_id, payload_hash, accepted,
                                               correlation_id, decided_at)
             select 0, 1, gen_random_uuid(), gen_random_uuid(), '', true, '', lower_bound
             from throughline.spans('commands') order by lower_bound limit 1;
             select pg_stat_force_next_flush()",
        )
        .await
        .unwrap();
    let oldest = "select name::text from throughline.spans('commands') order by lower_bound limit 1";
    let written: String = client.query_one(oldest, &[]).await.unwrap().get(0);
    let turned = partitions::maintain(&client, settings).await.expect("a turn");
    assert!(turned.dropped.iter().any(|name| name.starts_with("commands")), "{turned:?}");
    assert!(!turned.dropped.contains(&written), "it was written to: {turned:?}");
    assert_eq!(client.query_one(oldest, &[]).await.unwrap().get::<_, String>(0), written);
}

/// What an owner left behind that died before the clock was set back is not believed, of leases and of members.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_is_not_held_for_a_leap() {
    let bed = Bed::new("time_leases").await;
    let harness = &bed.harness;
    let mut client = harness.client().await;
    let events = outbox::events(&client, &harness.names().events()).await;
    for leap in [HOUR, 40 * DAY] {
        bed.server.set_clock(leap);
        let (relay, token, _) = outbox::start(&harness.settings);
        let owned = "select count(*) from throughline.relay_leases where owner <> ''";
        eventually("it owns all", async || (number(&client, owned).await == 12).then_some(())).await;
        // It dies: nothing is given back.
        relay.abort();
        drop(token);
        let ghost = "insert into throughline.relay_members (owner, renewed_at, expires_at)
                     values ('ghost', now(), now() + interval '2 s')";
        client.execute(ghost, &[]).await.unwrap();
        bed.server.set_clock(0);
        for partition in 0..events.partitions {
            outbox::append(&mut client, events.id, partition, 1).await;
        }
        let waits = Instant::now();
        let (relay, token, _) = outbox::start(&harness.settings);
        for partition in 0..events.partitions {
            let last = "select last_seq from throughline.counters where partition = $1 and topic = $2";
            let last: i64 = client.query_one(last, &[&partition, &events.id]).await.unwrap().get(0);
            outbox::published(&client, &events, &[(partition, last)]).await;
        }
        assert!(waits.elapsed() < Duration::from_secs(15), "taken over after {:?}", waits.elapsed());
        outbox::stop(relay, token).await;
        client.execute("delete from throughline.relay_members where owner = 'ghost'", &[]).await.unwrap();
    }
}

/// Partitions are gone that rows of now need, and nobody keeps house: the writer makes them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_writer_without_a_partition_makes_it() {
    let harness = Harness::new("time_writer").await;
    let (client, source) = (harness.client().await, Source::new(&harness));
    let processor = Running::start(&harness.settings).await;
    for parents in [&["outbox"][..], &["commands"], &["outbox", "commands"]] {
        for parent in parents {
            let children = format!("select name::text from throughline.spans('{parent}')");
            for row in client.query(&children, &[]).await.unwrap() {
                let drop = format!("drop table throughline.\"{}\"", row.get::<_, &str>(0));
                client.batch_execute(&drop).await.unwrap();
            }
        }
        let id = Uuid::now_v7();
        let sent = Instant::now();
        source.produce(&[command(&harness, &place(Uuid::now_v7(), id))]);
        assert!(decided(&client, &[id]).await[0].accepted);
        assert!(sent.elapsed() < Duration::from_secs(5), "decided after {:?}", sent.elapsed());
    }
    processor.stop().await;
}
