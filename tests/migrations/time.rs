//! A store of a release that believed clocks: its time partitions, leases and generations kept for rollback.

use crate::{before, lines, migrated, refused};

const SPANS: &str = "
    select count(*) || ' ' || bool_and(lower_bound < upper_bound) || ' '
           || (select count(*) from unnest(range_agg(tstzrange(lower_bound, upper_bound))))
    from throughline.spans('outbox')";
const KEPT: &str =
    "select partition || ' ' || seq || ' ' || convert_from(value, 'UTF8') from throughline.outbox order by 1";
const MAINTAINER: &str = "set role throughline_maintenance";

fn row(partition: i32, seq: i64, created_at: &str) -> String {
    format!(
        "insert into throughline.outbox (partition, topic, seq, key, type, message_id, subject, command_id,
                                         correlation_id, created_at, value)
         values ({partition}, 1, {seq}, md5('k')::uuid, 'T', md5('m')::uuid, md5('s')::uuid, md5('c')::uuid, 'c', {created_at},
                 'v{seq}')"
    )
}

/// What is in the outbox stays until it is published, by the old calls and the new ones; widths may change.
#[tokio::test]
async fn the_outbox_of_before_is_kept_until_it_is_published() {
    let (_harness, mut client) = before("upgrade_outbox", 8).await;
    client
        .batch_execute(
            "insert into throughline.topics (name, partitions) values ('one', 2);
             insert into throughline.relay_leases (partition, topic, published) values (0, 1, 2), (1, 1, 0);
             create table throughline.outbox_20200101T000000 partition of throughline.outbox for values
                 from ('2020-01-01 00:00:00+00') to ('2020-01-01 00:30:00+00');
             create table throughline.outbox_20200101T003000 partition of throughline.outbox for values
                 from ('2020-01-01 00:30:00+00') to ('2020-01-01 01:00:00+00');
             select throughline.create_time_partitions('outbox', interval '30 min', 3)",
        )
        .await
        .unwrap();
    for (partition, seq, at) in [(0, 1, "00:10"), (0, 2, "00:10"), (1, 1, "00:40"), (1, 2, "00:40")] {
        client.batch_execute(&row(partition, seq, &format!("'2020-01-01 {at}:00+00'"))).await.unwrap();
    }
    client.batch_execute(&row(1, 3, "now()")).await.unwrap();
    let rows = lines(&client, KEPT).await;
    migrated(&mut client).await;
    assert_eq!(lines(&client, KEPT).await, rows);
    client.batch_execute(MAINTAINER).await.unwrap();
    // A program of before drops what is published and no more; so does this one.
    assert_eq!(lines(&client, "select throughline.drop_published_outbox()").await, ["outbox_20200101t000000"]);
    let drop = "select throughline.drop_published_outbox('30 min')";
    assert!(lines(&client, drop).await.is_empty());
    for width in ["7 min", "30 min", "45 min"] {
        client
            .batch_execute(&format!("select throughline.create_time_partitions('outbox', '{width}', 3)"))
            .await
            .unwrap();
    }
    client.batch_execute("reset role").await.unwrap();
    assert_eq!(lines(&client, KEPT).await, rows[2..], "what waits is kept");
    let spans = lines(&client, SPANS).await;
    assert!(spans[0].ends_with(" true 2"), "one without a hole, and the one of the past: {spans:?}");
    client.batch_execute("set role throughline_writer").await.unwrap();
    client.batch_execute(&row(1, 4, "now()")).await.unwrap();
    client.batch_execute("reset role").await.unwrap();
    // It is published after all.
    client.batch_execute("update throughline.relay_leases set published = 9").await.unwrap();
    client.batch_execute(MAINTAINER).await.unwrap();
    assert!(lines(&client, drop).await.contains(&"outbox_20200101t003000".to_owned()));
}

/// Leases of a relay that still runs hold until they end; one that ended does not.
#[tokio::test]
async fn leases_of_before_hold_until_they_end() {
    let (_harness, mut client) = before("upgrade_leases", 8).await;
    client
        .batch_execute(
            "insert into throughline.topics (name, partitions) values ('one', 3);
             insert into throughline.relay_leases (partition, topic, owner, epoch, expires_at, published)
             values (0, 1, 'lives', 4, now() + interval '1 min', 7), (1, 1, 'dead', 5, now() - interval '1 s', 8),
                    (2, 1, '', 0, '-infinity', 0);
             insert into throughline.relay_members values ('lives', now() + interval '1 min')",
        )
        .await
        .unwrap();
    migrated(&mut client).await;
    client.batch_execute("set role throughline_relay").await.unwrap();
    let held = "select concat_ws(' ', partition, owner, epoch, published, throughline.holds(renewed_at, expires_at))
                from throughline.relay_leases order by partition";
    assert_eq!(lines(&client, held).await, ["0 lives 4 7 t", "1 dead 5 8 f", "2  0 0 f"]);
    let member = "select owner || throughline.holds(renewed_at, expires_at) from throughline.relay_members";
    assert_eq!(lines(&client, member).await, ["livestrue"]);
}

/// What is old by the clock alone stays until that time was seen to pass: outcomes, and the generation kept for
/// rollback. Who may do what is as before.
#[tokio::test]
async fn what_is_kept_for_a_time_begins_to_age_with_the_upgrade() {
    let (_harness, mut client) = before("upgrade_kept", 8).await;
    client
        .batch_execute(
            "create table throughline.commands_old partition of throughline.commands for values
                 from ('2020-01-01') to ('2020-02-01');
             insert into throughline.commands (partition, topic, command_id, stream_id, payload_hash, accepted,
                                               correlation_id, decided_at)
             values (0, 1, md5('c')::uuid, md5('s')::uuid, '\\x01', true, 'c', '2020-01-15');
             create table read_previous.old_rows (partition int);
             insert into throughline.projections (name, version, previous_version, switched_at, relations, previous_relations)
             values ('one', 2, 1, now() - interval '40 days', '{}', '{old_rows}')",
        )
        .await
        .unwrap();
    migrated(&mut client).await;
    client.batch_execute(MAINTAINER).await.unwrap();
    let outcomes = "select throughline.drop_old_commands('30 days')";
    let tables = "select throughline.drop_previous_generations('7 days')";
    for _ in 0..2 {
        assert!(lines(&client, outcomes).await.is_empty(), "they were seen for a moment only");
        assert!(lines(&client, tables).await.is_empty());
    }
    client.batch_execute("select throughline.pass_time('0', '8 days')").await.unwrap();
    assert_eq!(lines(&client, tables).await, ["one"]);
    assert!(lines(&client, outcomes).await.is_empty());
    client.batch_execute("select throughline.pass_time('8 days', '23 days')").await.unwrap();
    assert_eq!(lines(&client, outcomes).await, ["commands_old"]);
    for role in ["writer", "relay", "reader", "projector"] {
        client.batch_execute(&format!("reset role; set role throughline_{role}")).await.unwrap();
        for call in [
            outcomes,
            tables,
            "select throughline.drop_published_outbox()",
            "select throughline.pass_time('0', '1 day')",
        ] {
            assert_eq!(refused(&client, call).await, "42501", "{role}: {call}");
        }
    }
}
