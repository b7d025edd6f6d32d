//! Dead letters of a release that kept their headers as JSON.

use throughline::store::dead_letters::{self, Filter};

use crate::{before, migrated};

#[tokio::test]
async fn dead_letters_of_an_earlier_release_keep_their_headers() {
    let (_harness, mut client) = before("migrations", 8).await;
    let insert =
        "insert into throughline.dead_letters (kind, consumer, source_topic, source_partition, source_offset, key,
                      headers, value, reason_code, reason)
                  select 'command', 'g', 't', 0, n, 'key', headers, null, 'INVALID_COMMAND', 'r'
                  from (values (1, '{\"b\": \"2\", \"a\": \"\u{e4}\"}'::jsonb), (2, '{}')) as l (n, headers)";
    client.batch_execute(insert).await.unwrap();
    migrated(&mut client).await;
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
