//! A database of an earlier release, brought up to date with what it holds.

mod harness;

use harness::Harness;
use sha2::{Digest, Sha256};
use throughline::store::dead_letters::{self, Filter};
use throughline::store::migrate;

/// The steps before dead letters kept their headers as bytes.
const BEFORE: [(i32, &str); 7] = [
    (1, include_str!("../src/store/migrations/0001_store.sql")),
    (2, include_str!("../src/store/migrations/0002_roles.sql")),
    (3, include_str!("../src/store/migrations/0003_relay.sql")),
    (4, include_str!("../src/store/migrations/0004_projections.sql")),
    (5, include_str!("../src/store/migrations/0005_event_headers.sql")),
    (6, include_str!("../src/store/migrations/0006_generations.sql")),
    (7, include_str!("../src/store/migrations/0007_one_at_a_time.sql")),
];

#[tokio::test]
async fn dead_letters_of_an_earlier_release_keep_their_headers() {
    let harness = Harness::bare("migrations").await;
    let mut client = harness.client().await;
    client
        .batch_execute(
            "create schema throughline;
             create table throughline.migrations (
                 number int primary key, name text not null, sha256 text not null,
                 applied_at timestamptz not null default now())",
        )
        .await
        .unwrap();
    for (number, sql) in BEFORE {
        client.batch_execute(sql).await.unwrap();
        let sha256: String = Sha256::digest(sql).iter().map(|byte| format!("{byte:02x}")).collect();
        let done = "insert into throughline.migrations (number, name, sha256) values ($1, '', $2)";
        client.execute(done, &[&number, &sha256]).await.unwrap();
    }
    let insert =
        "insert into throughline.dead_letters (kind, consumer, source_topic, source_partition, source_offset, key,
                      headers, value, reason_code, reason)
                  select 'command', 'g', 't', 0, n, 'key', headers, null, 'INVALID_COMMAND', 'r'
                  from (values (1, '{\"b\": \"2\", \"a\": \"\u{e4}\"}'::jsonb), (2, '{}')) as l (n, headers)";
    client.batch_execute(insert).await.unwrap();
    migrate::apply(&mut client).await.unwrap();
    // A process of that release may still run for a while.
    client.batch_execute(&insert.replace("(1,", "(3,").replace("(2,", "(4,")).await.unwrap();
    let letters = dead_letters::find(&client, &Filter::default(), 10).await.unwrap();
    assert_eq!(letters.len(), 4);
    for pair in letters.chunks(2) {
        let headers: Vec<_> = pair[0].letter.headers.as_ref().unwrap().iter().collect();
        assert_eq!(headers, [(&b"a"[..], Some("\u{e4}".as_bytes())), (&b"b"[..], Some(&b"2"[..]))]);
        assert_eq!(pair[1].letter.headers.as_ref().unwrap().iter().len(), 0);
        assert_eq!(pair[1].letter.topic_id, None);
    }
    let readable = "select throughline.readable('\\xff00'::bytea) || throughline.readable('a'::bytea)";
    assert_eq!(client.query_one(readable, &[]).await.unwrap().get::<_, String>(0), "\\377\\000a");
}
