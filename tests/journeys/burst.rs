//! A burst of 50,000 orders against small limits: what was accepted has one outcome, what was
//! refused has none and was told when to come again. `THROUGHLINE_BURST` scales it.

use std::collections::BTreeSet;
use std::time::Instant;

use uuid::Uuid;

use crate::api_kill::produced;
use crate::harness::flood::Flood;
use crate::harness::{Harness, eventually, scale};
use crate::process::{Process, command};

#[tokio::test(flavor = "multi_thread")]
async fn a_burst_loses_nothing_that_was_accepted_and_keeps_nothing_that_was_refused() {
    let harness = Harness::new("burst").await;
    let client = harness.client().await;
    let mut api = command(&harness, &["run", "api"]);
    api.env("THROUGHLINE__HTTP__ADMISSION__QUEUE_COMMANDS_MAX", "1000")
        .env("THROUGHLINE__HTTP__ADMISSION__CALLER_COMMANDS_PER_SECOND_MAX", "2500");
    let api = Process::start(api);
    let base = api.http_url().await;
    let requests = scale("THROUGHLINE_BURST", 50_000);
    let flood = Flood { base, path: "/api/orders", connections: 64 };
    let started = Instant::now();
    // The processor starts under the burst: the queue is full before, however slow the machine is.
    let mut sent = flood.count(requests / 10).await;
    let processor = Process::run(&harness, &["processor"]);
    sent.extend(flood.count(requests - requests / 10).await);
    let seconds = started.elapsed().as_secs_f64();
    assert_eq!(sent.len(), requests);
    let mut accepted = BTreeSet::new();
    let (mut full, mut limited) = (0, 0);
    for one in &sent {
        match one.reply.status {
            202 => assert!(accepted.insert(one.order)),
            503 => full += 1,
            429 => limited += 1,
            other => panic!("{other} was answered"),
        }
        assert_eq!(one.reply.retry_after.is_some_and(|wait| wait >= 1), one.reply.status != 202, "{one:?}");
    }
    println!(
        "{requests} requests in {seconds:.1} s ({:.0}/s): {} accepted, {full} times 503, {limited} times 429",
        requests as f64 / seconds,
        accepted.len()
    );
    assert!(full > 0 && !accepted.is_empty(), "the burst must meet the limit");

    let produced = produced(&harness);
    assert_eq!(usize::try_from(produced).expect("a count"), accepted.len(), "what was refused is on no topic");
    eventually("the whole topic consumed", || async {
        let statement = "select coalesce(sum(next_offset), 0)::bigint from throughline.offsets where source_topic = $1";
        let row = client.query_one(statement, &[&harness.names().commands()]).await.expect("offsets");
        (row.get::<_, i64>(0) == produced).then_some(())
    })
    .await;
    let rows = client.query("select stream_id, accepted from throughline.commands", &[]).await.expect("commands");
    assert!(rows.iter().all(|row| row.get::<_, bool>(1)), "a new order is refused by nothing");
    let decided: BTreeSet<Uuid> = rows.iter().map(|row| row.get(0)).collect();
    assert_eq!((rows.len(), decided == accepted), (accepted.len(), true), "one outcome for each order accepted");
    assert_eq!(api.terminate().await, 0);
    assert_eq!(processor.terminate().await, 0);
}
