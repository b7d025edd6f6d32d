//! Events of a release that kept them in one table: rows, order, keys, protection, rights and remarks survive
//! the move into a table for each destination partition.

use throughline::store::destinations;

use crate::{before, lines, migrated, refused};

const ROWS: &str = "select e::text from throughline.events e order by partition, topic, seq";
const COLUMNS: &str = "
    select concat_ws(' ', attnum, attname, format_type(atttypid, atttypmod), attnotnull, attstorage, attidentity,
                     pg_get_expr(d.adbin, d.adrelid), col_description(attrelid, attnum))
    from pg_attribute left join pg_attrdef d on (adrelid, adnum) = (attrelid, attnum)
    where attrelid = 'throughline.events'::regclass and attnum > 0 and not attisdropped order by attnum";
const RIGHTS: &str = "
    select concat_ws(' ', case grantee when 0 then 'public' else grantee::regrole::text end, privilege_type, is_grantable, at)
    from (select a.*, null as at from pg_class c, aclexplode(c.relacl) a
          where c.oid = 'throughline.events'::regclass and a.grantee <> c.relowner
          union all
          select a.*, attname from pg_attribute t, aclexplode(t.attacl) a
          where t.attrelid = 'throughline.events'::regclass) as known order by 1";
const TRIGGERS: &str = "
    select concat_ws(' ', tgname, tgtype, tgenabled, tgfoid::regproc) from pg_trigger
    where tgrelid = 'throughline.events'::regclass order by 1";
const KEYS: &str = "
    select concat_ws(' ', contype, pg_get_constraintdef(oid)) from pg_constraint
    where conrelid = 'throughline.events'::regclass order by 1";

fn event(partition: i32, topic: i32, seq: i64, stream: i64, version: i64) -> String {
    format!(
        "insert into throughline.events
         values ({partition}, {topic}, {seq}, md5('{stream}')::uuid, {version}, md5('e{partition}-{topic}-{seq}')::uuid, 'T', 1,
                 md5('c{seq}')::uuid, 'c\u{e4}', nullif('x', 'x'), case when {seq} % 2 = 0 then 'who' end,
                 '2024-02-29 12:00:00.123456+00'::timestamptz + {seq} * interval '1 us', '\\x00000000010203'::bytea, null, 'r')"
    )
}

#[tokio::test]
async fn all_that_is_known_of_events_survives_their_move() {
    let (_harness, mut client) = before("upgrade_events", 15).await;
    client
        .batch_execute("insert into throughline.topics (name, partitions) values ('one', 3), ('two', 5)")
        .await
        .unwrap();
    // Written out of order; a partition that no topic has any more; a value that is stored out of line.
    for (partition, topic) in [(4, 2), (0, 1), (2, 1), (2, 2), (6, 1)] {
        for seq in [3, 1, 2] {
            client.batch_execute(&event(partition, topic, seq, i64::from(partition), seq)).await.unwrap();
        }
    }
    let large = "repeat('throughline', 100000)";
    client.batch_execute(&event(0, 1, 4, 9, 1).replace("'r')", &format!("{large})"))).await.unwrap();
    // What an operator added.
    let role = format!("upgrade_{}", std::process::id());
    client
        .batch_execute(&format!(
            "create role \"{role} Reports\" nologin;
             grant select on throughline.events to \"{role} Reports\" with grant option;
             grant select (type, recorded_at) on throughline.events to public;
             grant references on throughline.events to public"
        ))
        .await
        .unwrap();
    let mut known = Vec::new();
    for question in [ROWS, COLUMNS, RIGHTS, TRIGGERS, KEYS] {
        known.push((question, lines(&client, question).await));
    }
    assert!(known.iter().all(|(_, lines)| !lines.is_empty()), "{known:?}");
    migrated(&mut client).await;
    for (question, lines_before) in known {
        let mut lines_now = lines(&client, question).await;
        // Who came later has rights of its own.
        lines_now.retain(|line| !line.starts_with("throughline_auditor "));
        assert_eq!(lines_now, lines_before, "{question}");
    }
    let parts = "select relname || ' ' || count(*) from throughline.events e join pg_class c on c.oid = e.tableoid group by relname order by 1";
    assert_eq!(lines(&client, parts).await, ["events_0 4", "events_2 6", "events_4 3", "events_6 3"]);
    assert!(lines(&client, "select relname::text from pg_class where relname like '%in_one_table%'").await.is_empty());

    // It goes on: keys hold across the move, in what was there and in what comes.
    client.batch_execute("set role throughline_writer").await.unwrap();
    client.batch_execute(&event(2, 1, 4, 2, 4)).await.unwrap();
    assert_eq!(refused(&client, &event(2, 1, 4, 8, 1)).await, "23505", "a seq is given once");
    assert_eq!(refused(&client, &event(2, 1, 5, 2, 3)).await, "23505", "a version is given once");
    assert_eq!(refused(&client, "delete from throughline.events").await, "42501");
    client.batch_execute("reset role").await.unwrap();
    for change in
        ["delete from throughline.events", "update throughline.events set seq = 9", "truncate throughline.events_6"]
    {
        assert_eq!(refused(&client, change).await, "23000", "{change}");
    }
    client.batch_execute(&format!("drop owned by \"{role} Reports\"; drop role \"{role} Reports\"")).await.unwrap();
}

#[tokio::test]
async fn a_store_without_events_or_topics_moves_as_well() {
    let (_harness, mut client) = before("upgrade_no_events", 15).await;
    let columns = lines(&client, COLUMNS).await;
    migrated(&mut client).await;
    assert_eq!(lines(&client, COLUMNS).await, columns);
    let topic = destinations::register(&mut client, "one", 2).await.expect("registers");
    client.batch_execute(&event(1, i32::from(topic.id), 1, 1, 1)).await.unwrap();
    assert_eq!(refused(&client, &event(2, i32::from(topic.id), 1, 1, 1)).await, "23514", "no part takes it");
}

#[tokio::test]
async fn a_reader_that_stays_makes_the_move_wait_and_loses_nothing() {
    let (harness, mut client) = before("upgrade_reader", 15).await;
    client.batch_execute("insert into throughline.topics (name, partitions) values ('one', 1)").await.unwrap();
    client.batch_execute(&event(0, 1, 1, 1, 1)).await.unwrap();
    let rows = lines(&client, ROWS).await;
    let reader = harness.client().await;
    reader.batch_execute("begin; select count(*) from throughline.events").await.unwrap();
    client.batch_execute("set lock_timeout = '200ms'").await.unwrap();
    let refusal = throughline::store::migrate::apply(&mut client).await.expect_err("it is in use");
    assert!(format!("{refusal:?}").contains("lock timeout"), "{refusal:?}");
    assert_eq!(lines(&client, ROWS).await, rows, "as before");
    reader.batch_execute("rollback").await.unwrap();
    migrated(&mut client).await;
    assert_eq!(lines(&client, ROWS).await, rows);
}
