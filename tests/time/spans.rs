//! Time partitions: no hole whatever widths were set, none waited for behind readers, and none kept for rows that
//! others have published.

use std::time::{Duration, Instant};

use throughline::settings::Settings;
use throughline::store::partitions::{self, Turn};
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::floor::{Running, Source, command, decided, number, place};
use crate::harness::{Harness, eventually};
use crate::outbox;

/// The spans of a table's partitions put together: one where there is no hole and no overlap.
async fn united(client: &Client, parent: &str) -> (i32, String) {
    let row = client
        .query_one(
            "select coalesce((select count(*) from unnest(range_agg(tstzrange(lower_bound, upper_bound)))), 0)::int,
                    range_agg(tstzrange(lower_bound, upper_bound))::text
             from throughline.spans($1)",
            &[&parent],
        )
        .await
        .expect("spans");
    (row.get(0), row.get(1))
}

/// Every width after every other; the window ahead is covered by as many widths as asked for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn widths_may_change_without_a_hole() {
    let harness = Harness::new("time_widths").await;
    let client = harness.client().await;
    let mut settings = harness.settings.database.clone();
    for (days, minutes) in [(30, 7), (10, 30), (7, 45), (1, 1), (366, 44_640), (3, 13), (10, 30)] {
        (settings.command_partition_days, settings.outbox_partition_minutes) = (days, minutes);
        partitions::maintain(&client, &settings).await.expect("a turn");
        for parent in ["outbox", "commands"] {
            let (parts, spans) = united(&client, parent).await;
            assert_eq!(parts, 1, "{parent} after widths of {days} days, {minutes} min: {spans}");
        }
        for coverage in partitions::coverage(&client, &settings).await.expect("coverage") {
            assert!(!coverage.is_short, "{coverage:?}");
        }
        let again = partitions::maintain(&client, &settings).await.expect("a turn");
        assert_eq!(again.created, 0, "the second turn finds nothing to do: {again:?}");
    }
}

/// Holes that somebody else left, of every kind, are filled exactly.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn holes_are_filled_exactly() {
    let harness = Harness::new("time_holes").await;
    let client = harness.client().await;
    let settings = &harness.settings.database;
    let nth = async |n: i64| -> String {
        let named = "select name::text from throughline.spans('outbox') order by lower_bound offset $1 limit 1";
        client.query_one(named, &[&n]).await.unwrap().get(0)
    };
    // The one of now; two neighbours ahead, with a sliver of another width between.
    for (dropped, left) in [(&[1][..], None), (&[3, 3], None), (&[4], Some("10 minutes")), (&[2, 2], Some("1 second"))]
    {
        let mut at = None;
        for n in dropped {
            let name = nth(*n).await;
            let bound = "select lower_bound from throughline.spans('outbox') where name = $1::text::name";
            at = Some(client.query_one(bound, &[&name]).await.unwrap().get::<_, jiff::Timestamp>(0));
            client.batch_execute(&format!("drop table throughline.\"{name}\"")).await.unwrap();
        }
        if let (Some(width), Some(at)) = (left, at) {
            let sliver = format!(
                "do $$ begin execute format('create table throughline.%I partition of throughline.outbox for values
                     from (%L) to (%L)', 'sliver_' || extract(epoch from timestamptz '{at}')::bigint,
                     timestamptz '{at}' + interval '7 minutes', timestamptz '{at}' + interval '7 minutes' + interval '{width}');
                 end $$"
            );
            client.batch_execute(&sliver).await.unwrap();
        }
        let turn = partitions::maintain(&client, settings).await.expect("a turn");
        assert!(turn.created >= 1, "{turn:?}");
        assert_eq!(united(&client, "outbox").await.0, 1, "{}", united(&client, "outbox").await.1);
    }
}

/// Holds what a dump of the database holds: ACCESS SHARE on every table that there is.
async fn dump(client: &Client) {
    client
        .batch_execute(
            "set idle_in_transaction_session_timeout = 0; begin isolation level repeatable read;
             do $$ declare t regclass; begin
                 for t in select oid from pg_class where relkind in ('r', 'p') and relnamespace = 'throughline'::regnamespace loop
                     execute format('lock table %s in access share mode', t);
                 end loop;
             end $$",
        )
        .await
        .expect("a dump begins");
}

/// A dump goes on for as long as 180 partitions of the outbox take: time passes by making the partitions of each
/// next minute, and dropping is due all the while. No command waits for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_dump_holds_nobody_up() {
    let mut harness = Harness::bare("time_dump").await;
    harness.settings.database.outbox_partition_minutes = 1;
    harness.install().await;
    let (client, dumper) = (harness.client().await, harness.client().await);
    // Of the past, and published: a turn wants to drop them.
    client
        .batch_execute(
            "do $$ begin for n in 10 .. 40 loop
                 execute format('create table throughline.outbox_past_%s partition of throughline.outbox for values
                     from (%L) to (%L)', n, date_trunc('hour', now()) - n * interval '1 hour',
                     date_trunc('hour', now()) - n * interval '1 hour' + interval '1 min');
             end loop; end $$",
        )
        .await
        .unwrap();
    let processor = Running::start(&harness.settings).await;
    let (relay, token, _) = outbox::start(&harness.settings);
    // The processor has its partitions.
    let (source, first) = (Source::new(&harness), Uuid::now_v7());
    source.produce(&[command(&harness, &place(Uuid::now_v7(), first))]);
    decided(&client, &[first]).await;
    dump(&dumper).await;

    let turns = tokio::spawn(keep_house(harness.settings.clone()));
    let stop = CancellationToken::new();
    let waits = tokio::spawn(longest_lock_wait(harness.client().await, stop.clone()));
    let mut longest = Duration::ZERO;
    while !turns.is_finished() {
        let id = Uuid::now_v7();
        let sent = Instant::now();
        source.produce(&[command(&harness, &place(Uuid::now_v7(), id))]);
        decided(&client, &[id]).await;
        longest = longest.max(sent.elapsed());
    }
    let slowest = turns.await.expect("no panic");
    stop.cancel();
    let locked = waits.await.expect("no panic");
    let made = number(&client, "select count(*) from throughline.spans('outbox')").await;
    eprintln!(
        "the longest wait of a command {longest:?}, for a lock {locked:.3} s, the longest turn {slowest:?}, {made} partitions"
    );
    assert!(made >= 180, "{made} partitions");
    // A refusal is 200 ms; the rest is what a busy machine adds.
    assert!(locked < 1.0, "somebody waited {locked} s for a lock");
    assert!(longest < Duration::from_secs(2), "a command waited {longest:?}");

    dumper.batch_execute("rollback").await.unwrap();
    eventually("what was published goes", async || {
        partitions::maintain(&client, &harness.settings.database).await.expect("a turn");
        let past = "select count(*) from throughline.spans('outbox') where name like 'outbox_past_%'";
        (number(&client, past).await == 0).then_some(())
    })
    .await;
    processor.stop().await;
    outbox::stop(relay, token).await;
}

/// How long any session of this database waited for a lock, seconds, until told to stop.
async fn longest_lock_wait(client: Client, stop: CancellationToken) -> f64 {
    let waiting = "select coalesce(max(extract(epoch from clock_timestamp() - waitstart)), 0)::float8 from pg_locks
                   where not granted and database = (select oid from pg_database where datname = current_database())";
    let mut longest = 0.0_f64;
    while !stop.is_cancelled() {
        longest = longest.max(client.query_one(waiting, &[]).await.expect("locks").get(0));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    longest
}

/// Turns, each of which has the partitions of some more minutes to make; returns how long the slowest took.
async fn keep_house(settings: Settings) -> Duration {
    let role = throughline::store::DatabaseRole::Maintenance;
    let client = throughline::store::connect::connect(&settings.database, &role).await.expect("connects");
    let mut slowest = Duration::ZERO;
    for turn in 1..=15 {
        let started = Instant::now();
        let ahead = "select throughline.create_time_partitions('outbox', interval '1 min', $1)";
        let made: i32 = client.query_one(ahead, &[&(12 * turn)]).await.expect("made").get(0);
        assert!(made > 0 || turn == 1, "turn {turn} was refused");
        partitions::maintain(&client, &settings.database).await.expect("a turn");
        slowest = slowest.max(started.elapsed());
    }
    slowest
}

/// One destination partition stands for a day: the others' published rows go all the same, and its own are
/// published when it goes on, in order and without a hole.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standing_partition_keeps_its_own_rows_alone() {
    let harness = Harness::new("time_standing").await;
    let mut client = harness.client().await;
    let events = outbox::events(&client, &harness.names().events()).await;
    let settings = &harness.settings.database;
    let spans = |hours: i32| {
        format!(
            "create table throughline.outbox_h{hours} partition of throughline.outbox for values
             from ('2020-01-01 {hours:02}:00:00+00') to ('2020-01-01 {hours:02}:30:00+00');
             update throughline.outbox set created_at = '2020-01-01 {hours:02}:10:00+00'
             where created_at > '2021-01-01'"
        )
    };
    for hour in 1..=3 {
        for partition in 0..events.partitions {
            outbox::append(&mut client, events.id, partition, 100).await;
        }
        client.batch_execute(&spans(hour)).await.unwrap();
    }
    // Somebody else owns partition 2, and does not publish.
    client
        .batch_execute(
            "update throughline.relay_leases set owner = 'stands', renewed_at = now(), expires_at = now() + interval '1 day'
             where partition = 2",
        )
        .await
        .unwrap();
    let (relay, token, _) = outbox::start(&harness.settings);
    outbox::published(&client, &events, &[(0, 300), (1, 300), (3, 300), (4, 300), (5, 300)]).await;
    // A reader of one of them holds up that one alone.
    let reader = harness.client().await;
    reader.batch_execute("begin; lock table throughline.outbox_h1 in access share mode").await.unwrap();
    assert_eq!(partitions::maintain(&client, settings).await.unwrap(), Turn::default());
    reader.batch_execute("rollback").await.unwrap();
    for hour in 1..=3 {
        let turn = eventually("one is thinned out", async || {
            // The relay reads meanwhile, for moments.
            let turn = partitions::maintain(&client, settings).await.unwrap();
            (!turn.held.is_empty()).then_some(turn)
        })
        .await;
        assert_eq!((turn.held, turn.dropped), (vec![format!("outbox_h{hour}_held")], vec![]));
    }
    assert_eq!(partitions::maintain(&client, settings).await.unwrap(), Turn::default(), "and not again");
    let rows = "select count(*) from throughline.outbox where created_at < '2021-01-01'";
    assert_eq!(number(&client, rows).await, 300);
    assert_eq!(number(&client, &rows.replace("where", "where partition <> 2 and")).await, 0);

    client
        .batch_execute("update throughline.relay_leases set owner = '', expires_at = '-infinity' where partition = 2")
        .await
        .unwrap();
    outbox::published(&client, &events, &[(2, 300)]).await;
    let records = outbox::read_partition(&harness.settings, &events.name, 2);
    assert_eq!(outbox::seqs(&records), (1..=300).collect::<Vec<i64>>());
    assert_eq!(records.iter().map(outbox::names_seq).collect::<Vec<_>>(), (1..=300).collect::<Vec<i64>>());
    outbox::stop(relay, token).await;
    eventually("all of it goes", async || {
        partitions::maintain(&client, settings).await.unwrap();
        (number(&client, rows).await == 0
            && number(&client, "select count(*) from throughline.spans('outbox') where name like '%_held'").await == 0)
            .then_some(())
    })
    .await;
}
