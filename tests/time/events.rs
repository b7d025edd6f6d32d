//! The event store's parts: one a destination partition, each as protected as the whole, and what was stored in one
//! table before moves into them as it was.

use throughline::app::install;
use throughline::store::{destinations, migrate};
use uuid::Uuid;

use crate::floor::{Running, Source, command, decided, number, pay, place, sound};
use crate::harness::Harness;

/// Every part refuses what the whole refuses, to its owner, too; a topic with more partitions gets more parts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_part_is_as_protected_as_the_whole() {
    let harness = Harness::new("time_parts").await;
    let mut client = harness.client().await;
    let parts = "select count(*) from pg_inherits where inhparent = 'throughline.events'::regclass";
    assert_eq!(number(&client, parts).await, i64::from(harness.settings.topics.event_partitions));
    destinations::register(&mut client, "payments-events", 9).await.expect("registers");
    destinations::register(&mut client, "payments-events", 9).await.expect("and again");
    assert_eq!(number(&client, parts).await, 9);

    let (source, processor) = (Source::new(&harness), Running::start(&harness.settings).await);
    let ids: Vec<Uuid> = (0..60).map(|_| Uuid::now_v7()).collect();
    source.produce(&ids.iter().map(|id| command(&harness, &place(Uuid::now_v7(), *id))).collect::<Vec<_>>());
    decided(&client, &ids).await;
    processor.stop().await;
    let tables =
        "select c.relname::text from pg_class c where relname ~ '^events(_[0-9]+)?$' and relkind in ('r', 'p')";
    let tables: Vec<String> = client.query(tables, &[]).await.unwrap().iter().map(|row| row.get(0)).collect();
    assert_eq!(tables.len(), 10);
    for table in &tables {
        for change in ["truncate throughline.T", "delete from throughline.T", "update throughline.T set version = 1"] {
            let change = change.replace('T', table);
            let rows = number(&client, &format!("select count(*) from throughline.{table}")).await;
            match client.batch_execute(&change).await {
                Err(error) => assert!(error.as_db_error().unwrap().message().contains("never changed"), "{error:?}"),
                Ok(()) => assert_eq!((rows, change.contains("truncate")), (0, false), "{change}"),
            }
        }
        // By name a part is nobody's; through the whole the writer may append.
        let rights = format!(
            "select count(*) from pg_roles r where rolname ~ '^throughline_(writer|relay|projector|reader|maintenance)$'
             and has_table_privilege(r.oid, 'throughline.{table}', 'select, insert, update, delete, truncate')"
        );
        assert_eq!(number(&client, &rights).await > 0, table == "events", "{table}");
    }
    assert_eq!(number(&client, "select count(*) from throughline.events").await, 60);
}

/// A store of before, with events: they move as they are, and everything goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stored_events_move_into_the_parts() {
    let harness = Harness::new("time_move").await;
    let (mut client, source) = (harness.client().await, Source::new(&harness));
    let processor = Running::start(&harness.settings).await;
    let order = Uuid::now_v7();
    let mut ids = vec![Uuid::now_v7()];
    let mut records = vec![command(&harness, &place(order, ids[0]))];
    for _ in 0..40 {
        ids.push(Uuid::now_v7());
        records.push(command(&harness, &place(Uuid::now_v7(), ids[ids.len() - 1])));
    }
    source.produce(&records);
    decided(&client, &ids).await;
    processor.stop().await;
    // As the migrations before made it.
    client
        .batch_execute(
            "create table throughline.before (like throughline.events including all);
             insert into throughline.before select * from throughline.events;
             drop table throughline.events;
             alter table throughline.before rename to events;
             create trigger events_are_immutable before update or delete on throughline.events
                 for each row execute function throughline.refuse_change();
             create trigger events_are_never_truncated before truncate on throughline.events
                 for each statement execute function throughline.refuse_change();
             grant select, insert on throughline.events to throughline_writer;
             grant select on throughline.events to throughline_projector;
             drop function throughline.create_event_partitions(int);
             delete from throughline.migrations where number = 15",
        )
        .await
        .expect("a store of before");
    let content = "select count(*), md5(string_agg(e::text, '|' order by partition, seq)) from throughline.events e";
    let before = client.query_one(content, &[]).await.unwrap();
    assert_eq!(migrate::apply(&mut client).await.expect("migrates"), ["events by partition"]);
    let after = client.query_one(content, &[]).await.unwrap();
    assert_eq!(
        (before.get::<_, i64>(0), before.get::<_, String>(1)),
        (after.get::<_, i64>(0), after.get::<_, String>(1)),
    );
    let misplaced = "select count(*) from throughline.events e join pg_class c on c.oid = e.tableoid
                     where c.relname <> 'events_' || e.partition";
    assert_eq!(number(&client, misplaced).await, 0);
    install::apply_database(&crate::harness::orders(), &harness.settings).await.expect("installs again");

    let processor = Running::start(&harness.settings).await;
    let paid = Uuid::now_v7();
    source.produce(&[command(&harness, &pay(order, paid, "5.00"))]);
    assert_eq!(decided(&client, &[paid]).await[0].version, Some(2));
    processor.stop().await;
    sound(&client).await;
    assert!(client.batch_execute("delete from throughline.events").await.is_err());
}
