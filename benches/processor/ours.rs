//! The processor as it is, from Kafka to the commit.

use std::sync::Arc;
use std::time::Duration;

use reference::orders::OrdersCodec;
use reference::orders::OrdersContext;
use throughline::health::Health;
use throughline::processor;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::figures::{Figure, Machine};
use crate::harness::Harness;
use crate::workload::Workload;

const DONE: &str = "select coalesce(sum(next_offset), 0)::bigint from throughline.offsets";

/// Measured from the first commit seen to the last, so that joining the group is not in it.
pub async fn processor(harness: &Harness, workload: &Workload, machine: &Machine, workers: usize) -> Figure {
    workload.produce(harness);
    let mut settings = harness.settings.clone();
    settings.processor.workers = workers;
    let codec = OrdersCodec::installed(&settings).await.expect("codec");
    let shutdown = CancellationToken::new();
    let wake = Arc::new(Notify::new());
    let health = Health::new(Duration::MAX);
    let running = tokio::spawn(processor::run::<OrdersContext>(
        Arc::new(settings),
        codec,
        wake.clone(),
        health,
        shutdown.clone(),
    ));
    let total = workload.items.len();
    let mut from = None;
    let to = loop {
        let committed = tokio::time::timeout(Duration::from_secs(60), wake.notified()).await;
        committed.expect("the processor goes on");
        let done: i64 = machine.client.query_one(DONE, &[]).await.expect("offsets").get(0);
        let done = usize::try_from(done).expect("a count");
        if from.is_none() && done > 0 {
            from = Some((done, machine.moment().await));
        }
        if done == total {
            break machine.moment().await;
        }
    };
    shutdown.cancel();
    running.await.expect("no panic").expect("no error");
    let (first, from) = from.expect("a commit");
    Machine::figure(total - first, from, to)
}
