//! Letters, resets and generations of a release in which a reset closed letters with the status of an operator's
//! discard, and no row told what a generation lacks.

use crate::{before, lines, migrated, refused};

/// Partition 0: `one` was rebuilt at 10 h; its generation before stands at seq 50, the live one at 90.
/// Partition 1: `two` was never rebuilt.
const OLD: &str = "
    insert into throughline.topics (name, partitions) values ('t', 2);
    insert into throughline.projections (name, version, previous_version, switched_at)
    values ('one', 2, 1, '2025-01-01 10:00Z'), ('two', 1, null, null);
    insert into throughline.checkpoints (partition, projection, generation, next_offset, seq, epoch)
    values (0, 'one', 'read', 90, 90, 7), (0, 'one', 'read_previous', 50, 50, 3), (0, 'one', 'read_next', 90, 90, 8),
           (1, 'two', 'read', 60, 60, 2);
    insert into throughline.projection_resets (projection, partition, direction, from_offset, from_seq, to_offset, to_seq, reset_at, epoch)
    values ('one', 0, 'backward', 90, 90, 20, 20, '2025-01-01 11:00Z', 5), -- 1
           ('one', 0, 'forward', 60, 60, 70, 70, '2025-01-01 12:00Z', 6),  -- 2
           ('one', 0, 'forward', 5, 5, 9, 9, '2025-01-01 09:00Z', 1),      -- 3: the rebuild filled it
           ('two', 1, 'forward', 10, 10, 15, 15, '2025-01-01 09:00Z', 0),  -- 4: taken back by the next
           ('two', 1, 'backward', 40, 40, 12, 12, '2025-01-01 11:00Z', 1), -- 5
           ('two', 1, 'forward', 50, 50, 55, 55, '2025-01-01 12:00Z', 1),  -- 6
           ('two', 1, 'current', 55, 55, 55, 55, '2025-01-01 12:30Z', 1)";

/// Projection, partition, seq, status, parked and closed at what hour.
const LETTERS: [(&str, i32, i64, &str, i32, Option<i32>); 11] = [
    ("one", 0, 10, "parked", 8, None),
    ("one", 0, 12, "discarded", 8, Some(9)),
    // Closed by the reset, of which 30 was parked before the switch.
    ("one", 0, 30, "discarded", 8, Some(11)),
    ("one", 0, 85, "discarded", 10, Some(11)),
    // Replayed before and after the switch.
    ("one", 0, 31, "replayed", 8, Some(9)),
    ("one", 0, 32, "replayed", 8, Some(13)),
    // Ahead of every checkpoint.
    ("one", 0, 95, "discarded", 8, Some(14)),
    // An operator's, in the hour of a reset of another projection.
    ("two", 1, 20, "discarded", 8, Some(10)),
    ("two", 1, 21, "discarded", 8, Some(11)),
    ("two", 1, 58, "parked", 13, None),
    ("two", 1, 11, "discarded", 8, Some(14)),
];

const SAID: &str = "
    select concat_ws(' ', substring(consumer from '[a-z]+$'), seq, status, superseded_by) from throughline.dead_letters
    order by consumer, seq";
const GAPS: &str = "
    select concat_ws(' ', projection, generation, partition, from_seq, to_seq, cause) from throughline.projection_gaps
    order by 1";

#[tokio::test]
async fn what_resets_closed_is_told_from_what_operators_discarded() {
    let (_harness, mut client) = before("upgrade_letters", 11).await;
    client.batch_execute(OLD).await.unwrap();
    for (offset, (name, partition, seq, status, parked, closed)) in LETTERS.into_iter().enumerate() {
        let closed = closed.map_or("null".to_owned(), |hour| format!("'2025-01-01 {hour:02}:00Z'"));
        client
            .batch_execute(&format!(
                "insert into throughline.dead_letters (kind, consumer, source_topic, source_partition, source_offset, seq, key,
                                                       value, reason_code, reason, status, parked_at, closed_at)
                 values ('event', 'prefix-projection-{name}', 't', {partition}, {offset}, {seq}, 'k{seq}', 'v', 'C', 'r', '{status}',
                         '2025-01-01 {parked:02}:00Z', {closed})"
            ))
            .await
            .unwrap();
    }
    // A dead command is nobody's event, whatever it has in common.
    client
        .batch_execute(
            "insert into throughline.dead_letters (kind, consumer, source_topic, source_partition, source_offset, reason_code,
                                                   reason, status, closed_at)
             values ('command', 'prefix-projection-one', 'c', 0, 0, 'C', 'r', 'discarded', '2025-01-01 11:00Z')",
        )
        .await
        .unwrap();
    let kept = "select concat_ws(' ', id, key, value, parked_at, closed_at) from throughline.dead_letters order by id";
    let letters = lines(&client, kept).await;
    migrated(&mut client).await;
    assert_eq!(lines(&client, kept).await, letters);
    assert_eq!(
        lines(&client, SAID).await,
        [
            "one 10 parked",
            "one 12 discarded",
            "one 30 superseded reset 1",
            "one 31 replayed",
            "one 32 replayed",
            "one 85 superseded reset 1",
            "one 95 discarded",
            "one discarded",
            "two 11 discarded",
            "two 20 discarded",
            "two 21 superseded reset 5",
            "two 58 parked"
        ]
    );
    assert_eq!(
        lines(&client, GAPS).await,
        [
            "one read 0 10 10 parked",
            "one read 0 12 12 parked",
            "one read 0 61 70 skipped",
            "one read_previous 0 10 10 parked",
            "one read_previous 0 12 12 parked",
            // The live rows hold them again; those before the switch never did.
            "one read_previous 0 30 30 parked",
            "one read_previous 0 32 32 parked",
            "two read 1 11 11 parked",
            "two read 1 20 20 parked",
            "two read 1 51 55 skipped",
            "two read 1 58 58 parked",
        ]
    );
    assert_eq!(
        lines(&client, "select distinct topic_id from throughline.checkpoints").await,
        ["null"],
        "it is not known"
    );
}

/// Letters of one event, keys and rights, as the program finds them afterwards.
#[tokio::test]
async fn letters_and_gaps_are_kept_as_the_program_expects_them() {
    let (_harness, mut client) = before("upgrade_keys", 11).await;
    client.batch_execute(OLD).await.unwrap();
    let letter = |kind: &str, offset: &str, seq: &str| {
        format!(
            "insert into throughline.dead_letters (kind, consumer, source_topic, source_partition, source_offset, seq, reason_code, reason)
             values ('{kind}', 'prefix-projection-one', 't', 0, {offset}, {seq}, 'C', 'r')"
        )
    };
    client.batch_execute(&letter("event", "3", "30")).await.unwrap();
    client.batch_execute(&letter("command", "4", "null")).await.unwrap();
    assert_eq!(refused(&client, &letter("event", "3", "31")).await, "23505", "as it was: by the offset alone");
    migrated(&mut client).await;
    client.batch_execute(&letter("event", "3", "31")).await.unwrap();
    assert_eq!(refused(&client, &letter("command", "4", "null")).await, "23505");
    client.batch_execute(&letter("event", "5", "null")).await.unwrap();
    assert_eq!(refused(&client, &letter("event", "5", "null")).await, "23505", "an unnumbered record has one letter");
    assert_eq!(refused(&client, "update throughline.dead_letters set status = 'lost'").await, "23514");
    // Gaps move with their checkpoint, and go with it.
    client
        .batch_execute("update throughline.checkpoints set generation = 'read_previous' where projection = 'two'")
        .await
        .unwrap();
    let of_two =
        "select generation || from_seq from throughline.projection_gaps where projection = 'two' order by from_seq";
    assert_eq!(lines(&client, of_two).await, ["read_previous51"]);
    client.batch_execute("delete from throughline.checkpoints where projection = 'two'").await.unwrap();
    assert!(lines(&client, of_two).await.is_empty());
    // One projection's role sees its own; the API sees all, and changes none.
    client.batch_execute("set role throughline_projector").await.unwrap();
    assert!(lines(&client, GAPS).await.is_empty());
    client.batch_execute("reset role; set role throughline_reader").await.unwrap();
    assert_eq!(lines(&client, GAPS).await.len(), 3);
    assert_eq!(refused(&client, "delete from throughline.projection_gaps").await, "42501");
}
