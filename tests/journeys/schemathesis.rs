//! Schemathesis takes the API at its word, `/openapi.json`, with all its checks and one of ours
//! (`tests/python/schemathesis_checks.py`). `THROUGHLINE_EXAMPLES` says how many requests it thinks up
//! for each operation (35), beside those at the schemas' bounds and those that follow from answers.

use std::path::Path;

use tokio::process::Command;

use crate::harness::{Harness, scale};
use crate::process::{Process, command};
use crate::python::{folder, programs};

/// Requests, at least, for a run to count.
const REQUESTS_MIN: usize = 2_000;

#[tokio::test(flavor = "multi_thread")]
async fn no_request_is_answered_but_as_the_document_says() {
    let harness = Harness::new("schemathesis").await;
    let mut roles = command(&harness, &["run"]);
    // A stream of events would be read to its end.
    roles.env("THROUGHLINE__HTTP__EVENT_STREAM_SECONDS_MAX", "1");
    let roles = Process::start(roles);
    let document = format!("{}/openapi.json", roles.http_url().await);
    let mut run = Command::new(programs("schemathesis.txt").await.join("st"));
    run.arg("--config-file")
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/schemathesis.toml"))
        .args(["run", &document, "--checks", "all", "--wait-for-schema", "30", "--seed", "1"])
        .args(["--max-examples", &scale("THROUGHLINE_EXAMPLES", 35).to_string()])
        .env("SCHEMATHESIS_HOOKS", "schemathesis_checks")
        .env("PYTHONPATH", folder())
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("NO_COLOR", "1")
        // What hypothesis remembers stays out of the sources.
        .current_dir(env!("CARGO_TARGET_TMPDIR"))
        .kill_on_drop(true);
    let output = run.output().await.expect("schemathesis runs");
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{printed}\n{}", String::from_utf8_lossy(&output.stderr));
    let count = |line: &str| line.trim().split_once(" generated").and_then(|(count, _)| count.parse::<usize>().ok());
    let requests = printed.lines().find_map(count).unwrap_or_default();
    println!("{requests} requests");
    assert!(requests >= REQUESTS_MIN, "{printed}");
    // Refusals alone would prove little: orders were placed, and changed. Which changes fit an order that
    // another request made is the seed's luck.
    let kinds = "select count(distinct type) from throughline.events";
    let kinds: i64 = harness.client().await.query_one(kinds, &[]).await.expect("events").get(0);
    assert!(kinds >= 2, "events of {kinds} types came of it");
    assert_eq!(roles.terminate().await, 0);
}
