//! What is the world's is waited out, on a new session; what is too much is done with less; neither is ever blamed
//! on a command.

use std::time::{Duration, Instant};

use uuid::Uuid;

use crate::floor::{Produced, Running, Source, command, consumed, decided, number, pay, place, sound};
use crate::harness::way::Way;
use crate::harness::{Harness, eventually};

fn orders(harness: &Harness, count: usize) -> (Vec<Uuid>, Vec<Produced>) {
    let ids: Vec<Uuid> = (0..count).map(|_| Uuid::new_v4()).collect();
    let records = ids.iter().map(|id| command(harness, &place(Uuid::new_v4(), *id))).collect();
    (ids, records)
}

const TERMINATE: &str = "select pg_terminate_backend(pid) from pg_stat_activity
                         where datname = current_database() and pid <> pg_backend_pid()";

/// Read only, tables away, rights revoked, sessions killed, in one life of a processor.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_spell_of_the_database_is_waited_out() {
    let mut harness = Harness::new("processor_spells").await;
    harness.settings.processor.retry_wait_max_ms = 200;
    let (client, source) = (harness.client().await, Source::new(&harness));
    let database = client.query_one("select current_database()::text", &[]).await.expect("a name").get::<_, String>(0);
    let read_only = format!("alter database {database} set default_transaction_read_only = on; {TERMINATE}");
    let writable = format!("alter database {database} reset default_transaction_read_only");
    let spells = [
        ("read only", read_only.as_str(), writable.as_str()),
        (
            "a table is away",
            "alter table throughline.events rename to gone",
            "alter table throughline.gone rename to events",
        ),
        (
            "rights are revoked",
            "revoke insert on throughline.outbox from throughline_writer",
            "grant insert on throughline.outbox to throughline_writer",
        ),
        (
            "a function is away",
            "alter table throughline.counters rename column last_seq to gone",
            "alter table throughline.counters rename column gone to last_seq",
        ),
        ("sessions are killed", TERMINATE, TERMINATE),
    ];
    let running = Running::start(&harness.settings).await;
    let mut total = 0;
    for (name, begin, end) in spells {
        let (mut ids, records) = orders(&harness, 60);
        source.produce(&records[..30]);
        decided(&client, &ids[..30]).await;
        client.batch_execute(begin).await.unwrap_or_else(|error| panic!("{name}: {error}"));
        source.produce(&records[30..]);
        tokio::time::sleep(Duration::from_secs(1)).await;
        client.batch_execute(end).await.unwrap_or_else(|error| panic!("{name}: {error}"));
        let since = Instant::now();
        let outcomes = decided(&client, &ids.split_off(30)).await;
        eprintln!("{name}: all decided {:?} after it was over", since.elapsed());
        assert!(outcomes.iter().all(|outcome| outcome.accepted), "{name}");
        total += 60;
        consumed(&client, total).await;
    }
    running.stop().await;
    assert_eq!(number(&client, "select count(*) from throughline.dead_letters").await, 0);
    assert_eq!(number(&client, "select count(*) from throughline.events").await, total);
    sound(&client).await;
}

/// Every row takes its time, so that a full batch can never finish: it shrinks until it does, and nothing is parked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_that_cannot_finish_in_time_shrinks() {
    let mut harness = Harness::new("processor_slow").await;
    harness.settings.database.statement_timeout_ms = 500;
    harness.settings.database.round_trip_timeout_ms = 1_600;
    harness.settings.processor.retry_wait_max_ms = 200;
    harness.settings.processor.workers = 1;
    let (client, source) = (harness.client().await, Source::new(&harness));
    client
        .batch_execute(
            "create sequence throughline.tries;
             create function throughline.dawdle() returns trigger language plpgsql security definer as
                 $$ begin perform pg_sleep(0.01), nextval('throughline.tries'); return new; end $$;
             create trigger dawdles before insert on throughline.events
                 for each row execute function throughline.dawdle()",
        )
        .await
        .expect("a slow table");
    let (ids, records) = orders(&harness, 600);
    source.produce(&records);
    let since = Instant::now();
    let running = Running::start(&harness.settings).await;
    let outcomes = decided(&client, &ids).await;
    eprintln!("600 commands that take 6 s at least were decided within {:?}", since.elapsed());
    assert!(outcomes.iter().all(|outcome| outcome.accepted));
    // What was too much once is not asked for again: of the next few hardly any is tried in vain.
    let tried = number(&client, "select last_value from throughline.tries").await;
    let (ids, records) = orders(&harness, 600);
    source.produce(&records);
    decided(&client, &ids).await;
    let in_vain = number(&client, "select last_value from throughline.tries").await - tried - 600;
    eprintln!("{} rows of the first 600 and {in_vain} of the next were tried in vain", tried - 600);
    assert!(in_vain < 400, "{in_vain}");
    running.stop().await;
    assert_eq!(number(&client, "select count(*) from throughline.dead_letters").await, 0);
    sound(&client).await;
}

/// Somebody holds the lock of one partition's counter: that one waits, the others go on, nothing is parked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_whose_lock_is_held_stands_alone() {
    let mut harness = Harness::new("processor_locked").await;
    harness.settings.database.statement_timeout_ms = 300;
    harness.settings.processor.retry_wait_max_ms = 100;
    harness.settings.processor.workers = 1;
    let (client, mut holder, source) = (harness.client().await, harness.client().await, Source::new(&harness));
    holder
        .batch_execute("set statement_timeout = 0; set lock_timeout = 0; set idle_in_transaction_session_timeout = 0")
        .await
        .expect("patience");
    let running = Running::start(&harness.settings).await;
    let (first, records) = orders(&harness, 60);
    source.produce(&records);
    decided(&client, &first).await;
    let lock = holder.transaction().await.expect("begin");
    lock.execute("select from throughline.counters where partition = 0 for update", &[]).await.expect("lock");
    let (_, records) = orders(&harness, 120);
    source.produce(&records);
    // How many of them are not the locked partition's is known once all are decided.
    let elsewhere = "select count(*) from throughline.commands where partition <> 0";
    let mut last = (0, Instant::now());
    while last.1.elapsed() < Duration::from_secs(8) {
        let now = number(&client, elsewhere).await;
        last = if now == last.0 { last } else { (now, Instant::now()) };
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    lock.commit().await.expect("unlock");
    consumed(&client, 180).await;
    assert_eq!(number(&client, elsewhere).await, last.0, "the other partitions did not wait for the lock");
    running.stop().await;
    assert_eq!(number(&client, "select count(*) from throughline.dead_letters").await, 0);
    assert_eq!(number(&client, "select count(*) from throughline.events").await, 180);
    sound(&client).await;
}

/// A standby without the tail is promoted: what the cache knew of the old server is worth nothing on the new one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_session_has_seen_ends_with_it() {
    let mut harness = Harness::new("processor_set_back").await;
    harness.settings.processor.workers = 1;
    let (client, source) = (harness.client().await, Source::new(&harness));
    let running = Running::start(&harness.settings).await;
    let [order, placed, early, late, other] = std::array::from_fn(|_| Uuid::new_v4());
    source.produce(&[command(&harness, &place(order, placed))]);
    decided(&client, &[placed]).await;
    client
        .batch_execute(&format!(
            "begin;
             set local session_replication_role = replica;
             delete from throughline.events; delete from throughline.outbox; delete from throughline.commands;
             update throughline.counters set last_seq = 0; update throughline.offsets set next_offset = 0;
             {TERMINATE};
             commit"
        ))
        .await
        .expect("the tail is lost");
    // In another lane, where nothing was lost: nothing there tells that this server is another. The first of them only
    // opens the new session, since a batch that fails takes what is cached of its own orders with it anyway.
    let beside = |value| Produced { topic: harness.names().lanes()[0].clone(), ..command(&harness, &value) };
    source.produce(&[beside(place(Uuid::new_v4(), other))]);
    decided(&client, &[other]).await;
    source.produce(&[beside(pay(order, early, "20.00"))]);
    let outcomes = decided(&client, &[early]).await;
    assert_eq!(outcomes[0].code.as_deref(), Some("ORDER_NOT_FOUND"), "this server has no such order: {outcomes:?}");
    // What was lost is read again once its partition moves.
    source.produce(&[command(&harness, &pay(order, late, "20.00"))]);
    let outcomes = decided(&client, &[placed, late]).await;
    assert!(outcomes.iter().all(|outcome| outcome.accepted), "{outcomes:?}");
    running.stop().await;
    assert_eq!(number(&client, "select count(*) from throughline.events where version = 1").await, 2);
    sound(&client).await;
}

/// What another wrote under the same version is a conflict, and no command's fault.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_conflict_is_looked_at_again_and_not_blamed_on_the_command() {
    let mut harness = Harness::new("processor_conflict").await;
    harness.settings.processor.retry_wait_max_ms = 100;
    let (client, source) = (harness.client().await, Source::new(&harness));
    let running = Running::start(&harness.settings).await;
    let (first, records) = orders(&harness, 20);
    source.produce(&records);
    decided(&client, &first).await;
    // As if an event had been written under the number that comes next, without its counter.
    client
        .batch_execute(
            "insert into throughline.events (partition, topic, seq, stream_id, version, event_id, type, schema_version,
                                             command_id, correlation_id, recorded_at, payload)
             select partition, topic, last_seq + 1, gen_random_uuid(), 1, gen_random_uuid(), 'Odd', 1, gen_random_uuid(), 'odd', now(), ''
             from throughline.counters where topic = (select min(topic) from throughline.events)",
        )
        .await
        .expect("a row that is in the way");
    let (ids, records) = orders(&harness, 20);
    source.produce(&records);
    tokio::time::sleep(Duration::from_secs(2)).await;
    client
        .batch_execute("set session_replication_role = replica; delete from throughline.events where type = 'Odd'")
        .await
        .expect("it is taken away");
    let outcomes = decided(&client, &ids).await;
    assert!(outcomes.iter().all(|outcome| outcome.accepted), "{outcomes:?}");
    running.stop().await;
    sound(&client).await;
}

/// The network swallows everything: the worker is told so by its own limits, and goes on afterwards.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_network_is_left_and_found_again() {
    let mut harness = Harness::new("processor_silence").await;
    let (client, source) = (harness.client().await, Source::new(&harness));
    let (way, url) = Way::new(harness.settings.database.url.expose()).await;
    harness.settings.database.url = url.as_str().into();
    harness.settings.database.statement_timeout_ms = 1_000;
    harness.settings.database.round_trip_timeout_ms = 2_000;
    harness.settings.database.pool_wait_ms = 1_000;
    harness.settings.processor.retry_wait_max_ms = 200;
    let running = Running::start(&harness.settings).await;
    let (first, records) = orders(&harness, 50);
    source.produce(&records);
    decided(&client, &first).await;
    way.silence(true);
    let (ids, records) = orders(&harness, 50);
    source.produce(&records);
    tokio::time::sleep(Duration::from_secs(8)).await;
    way.silence(false);
    let since = Instant::now();
    assert!(decided(&client, &ids).await.iter().all(|outcome| outcome.accepted));
    eprintln!("all decided {:?} after the silence", since.elapsed());
    assert!(since.elapsed() < Duration::from_secs(8));
    running.stop().await;
    eventually("nothing doubled", async || {
        (number(&client, "select count(*) from throughline.events").await == 100).then_some(())
    })
    .await;
    sound(&client).await;
}
