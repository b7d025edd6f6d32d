//! Maintenance that cannot be done is told before anybody feels it, and so is its going on.

use std::sync::Arc;
use std::time::Duration;

use throughline::app::maintenance;
use throughline::health::Health;
use tokio_util::sync::CancellationToken;

use crate::floor::number;
use crate::harness::{Harness, eventually};

/// It beats; it is ready once it was done; it says so when the partitions run out, and when it fails again and again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_says_that_partitions_run_out() {
    let harness = Harness::new("time_telling").await;
    let _ = tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_test_writer()
        .try_init();
    let (client, blocker) = (harness.client().await, harness.client().await);
    let health = Health::new(Duration::from_secs(60));
    let stop = CancellationToken::new();
    let keeping = tokio::spawn(maintenance::run(Arc::new(harness.settings.clone()), health.clone(), stop.clone()));
    let reason =
        || health.readiness().into_iter().find(|check| check.name == "maintenance").and_then(|check| check.reason);
    eventually("it is ready", async || reason().is_none().then_some(())).await;

    // Somebody keeps a lock against new partitions, and those that there were are gone.
    blocker.batch_execute("set idle_in_transaction_session_timeout = 0").await.unwrap();
    eventually("no turn comes between", async || {
        blocker.batch_execute("rollback").await.unwrap();
        let children = client.query("select name::text from throughline.spans('outbox')", &[]).await.unwrap();
        for row in children {
            client.batch_execute(&format!("drop table throughline.\"{}\"", row.get::<_, &str>(0))).await.unwrap();
        }
        blocker.batch_execute("begin; lock table throughline.outbox in share update exclusive mode").await.unwrap();
        (number(&client, "select count(*) from throughline.spans('outbox')").await == 0).then_some(())
    })
    .await;
    eventually("it says so", async || {
        reason().is_some_and(|reason| reason.contains("throughline.outbox")).then_some(())
    })
    .await;
    assert!(health.liveness().iter().all(|check| check.ok), "told, and alive");
    blocker.batch_execute("rollback").await.unwrap();
    eventually("it is ready again", async || reason().is_none().then_some(())).await;

    // What it needs is taken from it: it fails, more than once, before it says so.
    client
        .batch_execute("revoke execute on function throughline.covered_until(text) from throughline_maintenance")
        .await
        .unwrap();
    eventually("it says so", async || reason().is_some_and(|reason| reason.contains("42501")).then_some(())).await;
    client
        .batch_execute("grant execute on function throughline.covered_until(text) to throughline_maintenance")
        .await
        .unwrap();
    eventually("it is ready again", async || reason().is_none().then_some(())).await;
    stop.cancel();
    keeping.await.unwrap().unwrap();
}
