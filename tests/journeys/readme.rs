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

/// The words that the runbook quotes are told by the program, its commands are taken, and the tests that hold the
/// guarantees are there.
#[tokio::test(flavor = "multi_thread")]
async fn the_runbook_and_the_guarantees_name_what_there_is() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let read = |path: &str| std::fs::read_to_string(root.join(path)).expect(path);
    let sources = sources(&root.join("src"));
    let runbook = read("deploy/RUNBOOK.md");
    let prose: String = runbook.split("```").step_by(2).collect();
    let prose = prose.replace('\n', " ");
    let quoted: Vec<&str> = prose.split('*').skip(1).step_by(2).collect();
    assert!(quoted.len() > 10, "{quoted:?}");
    for words in quoted {
        assert!(sources.contains(words), "nothing of the program says: {words}");
    }
    let commands =
        runbook.split("```sh\n").skip(1).flat_map(|rest| rest.split("```").next().unwrap_or_default().lines());
    let mut taken = 0;
    for line in commands {
        let arguments = line.strip_prefix("throughline ").expect("a command of ours");
        let asked = Command::new("bash")
            .args(["-c", &format!("\"$0\" {arguments} --help"), env!("CARGO_BIN_EXE_throughline")])
            .output()
            .await
            .expect("bash runs");
        assert!(asked.status.success(), "{line}: {}", String::from_utf8_lossy(&asked.stderr));
        taken += 1;
    }
    assert!(taken > 10);
    let guarantees = read("deploy/GUARANTEES.md");
    for named in guarantees.split('`').filter(|text| text.starts_with("tests/")) {
        assert!(root.join(named).exists(), "{named}");
    }
}

/// Every source below a folder, with texts that a line break divides put together.
fn sources(folder: &std::path::Path) -> String {
    let entries = std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
    let texts = entries.map(|path| match path.is_dir() {
        true => sources(&path),
        false => std::fs::read_to_string(&path).unwrap_or_default(),
    });
    let text: String = texts.collect();
    text.split("\\\n").map(str::trim_start).collect()
}
