//! The commands of the README do what the README says.

use std::process::Stdio;

use tokio::process::Command;

use crate::harness::{Harness, eventually};
use crate::process::{Process, command};
use crate::status::until_ok;

/// The fenced `sh` block of the README that contains `marker`.
fn block(marker: &str) -> String {
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../README.md")).expect("README.md");
    let blocks: Vec<&str> = readme
        .split("```sh\n")
        .skip(1)
        .map(|rest| rest.split("```").next().expect("a closed block"))
        .filter(|block| block.contains(marker))
        .collect();
    assert_eq!(blocks.len(), 1, "one sh block of README.md holds `{marker}`");
    blocks[0].to_owned()
}

/// Runs a block as a reader would, with our binary on the path; everything it printed.
async fn run(harness: &Harness, http_url: &str, block: &str) -> String {
    let binary = std::path::Path::new(env!("CARGO_BIN_EXE_throughline")).parent().expect("a folder");
    let path = format!("{}:{}", binary.display(), std::env::var("PATH").expect("PATH"));
    let output = Command::new("bash")
        .arg("-c")
        .arg(format!("exec 2>&1\n{block}"))
        .envs(harness.environment())
        .env("PATH", path)
        .env("HTTP_URL", http_url)
        .stdin(Stdio::null())
        .output()
        .await
        .expect("bash runs");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_three_uses_work_as_written() {
    let mut harness = Harness::bare("readme").await;
    // The README speaks of the topics by their plain names.
    harness.settings.topics.prefix = String::new();
    harness.install().await;
    let roles = Process::run(&harness, &[]);
    let url = roles.http_url().await;

    let (kcat, curl) = (block("| kcat -b"), block("Idempotency-Key"));
    let printed = eventually("the order of use 1, by status, SQL and HTTP", || async {
        // Each try sends it again: a command id takes effect once.
        let printed = run(&harness, &url, &kcat).await;
        let arrived = printed.contains("accepted") && printed.matches("customer-42").count() >= 2;
        arrived.then_some(printed)
    })
    .await;
    assert!(printed.contains("39.98"), "{printed}");
    let events: i64 =
        harness.client().await.query_one("select count(*) from throughline.events", &[]).await.expect("events").get(0);
    assert_eq!(events, 1, "sent more than once, it happened once");
    let order = "export ORDER=7b0c3a52-11aa-4f0e-9d8e-0c6a4c5a3b01";
    // Whoever looks in the first seconds is told, rightly, that some partitions are nobody's yet.
    until_ok(&harness).await;
    let looked = run(&harness, &url, &format!("set -e\n{order}\n{}", block("throughline dlq list"))).await;
    for word in ["order-list", "OWNER", "OrderPlaced", "customer-42", "orders-commands-bulk"] {
        assert!(looked.contains(word), "`{word}` is not in: {looked}");
    }
    assert!(!looked.contains("error:"), "{looked}");
    let first = run(&harness, &url, &curl).await;
    assert!(first.starts_with("HTTP/1.1 202"), "{first}");
    let again = run(&harness, &url, &curl).await;
    assert_eq!(first.lines().last(), again.lines().last(), "the same key, the same answer");

    let client = harness.client().await;
    let both = async || {
        let row = client.query_one("select count(*) from read.order_list", &[]).await.expect("read.order_list");
        (row.get::<_, i64>(0) == 2).then_some(())
    };
    // Accepted is not yet published: what is not in Kafka, no reset brings back.
    eventually("both orders", &both).await;
    assert_eq!(roles.terminate().await, 0);
    let reset = run(&harness, &url, &block("--reset-offsets")).await;
    assert!(reset.contains("orders-projection-order-list"), "{reset}");
    assert!(!reset.contains("Error"), "{reset}");
    let mut projection = command(&harness, &["run", "projection:order-list"]);
    projection.env("RUST_LOG", "info");
    let projection = Process::start(projection);
    eventually("the reset is noticed", || async {
        let resets = client.query_one("select count(*) from throughline.projection_resets", &[]).await.expect("resets");
        (resets.get::<_, i64>(0) > 0).then_some(())
    })
    .await;
    eventually("both orders again", &both).await;
    assert_eq!(projection.terminate().await, 0);
}
