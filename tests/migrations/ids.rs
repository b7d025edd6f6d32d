//! Outcomes of a release in which a command id counted in its whole partition.

use crate::{before, lines, migrated, refused};

const CONTENT: &str = "select c::text from throughline.commands c order by c";
const KEYS: &str = "
    select i.indrelid::regclass || ': ' || pg_get_indexdef(i.indexrelid) || ' ' || i.indisvalid
    from pg_index i join pg_class c on c.oid = i.indrelid
    where c.relname = 'commands' or c.oid in (select child from throughline.spans('commands')) order by 1";

fn outcome(stream: u32, decided_at: &str) -> String {
    format!(
        "insert into throughline.commands (partition, topic, command_id, stream_id, payload_hash, accepted, code,
                                           reason, version, seq, correlation_id, decided_at)
         values (1, 1, '00000000-0000-0000-0000-0000000000aa', '00000000-0000-0000-0000-0000000000{stream:02}', '\\x01',
                 true, null, null, 3, 7, 'c', {decided_at})"
    )
}

#[tokio::test]
async fn outcomes_stay_and_their_ids_count_in_their_streams() {
    let (_harness, mut client) = before("upgrade_ids", 12).await;
    let made = "select throughline.create_time_partitions('commands', interval '1 day', 2)";
    client.batch_execute(made).await.unwrap();
    let moment = "date_trunc('hour', now())";
    client.batch_execute(&outcome(1, moment)).await.unwrap();
    client.batch_execute(&outcome(2, &format!("{moment} - interval '1 day'"))).await.unwrap();
    assert_eq!(refused(&client, &outcome(3, moment)).await, "23505", "as it was");
    let (content, keys) = (lines(&client, CONTENT).await, lines(&client, KEYS).await);
    migrated(&mut client).await;
    assert_eq!(lines(&client, CONTENT).await, content);
    let expected: Vec<String> =
        keys.iter().map(|key| key.replace("command_id, decided_at", "command_id, stream_id, decided_at")).collect();
    assert_eq!(lines(&client, KEYS).await, expected, "every part has the new key");
    assert_eq!(expected.len(), 5);
    client.batch_execute(&format!("set role throughline_writer; {}", outcome(3, moment))).await.unwrap();
    assert_eq!(refused(&client, &outcome(1, moment)).await, "23505", "the writer meets what was decided before");
    client.batch_execute("reset role").await.unwrap();
    // One made later is like the others.
    client.batch_execute(&made.replace("2)", "9)")).await.unwrap();
    let with = lines(&client, KEYS).await;
    assert!(with.len() > 5 && with.iter().all(|key| key.contains("command_id, stream_id")), "{with:?}");
    // An older program finds its outcome by the id alone, within the key.
    let looked = "select count(*)::text from throughline.commands where partition = 1 and topic = 1
                  and command_id = '00000000-0000-0000-0000-0000000000aa'";
    assert_eq!(lines(&client, looked).await, ["3"]);
}
