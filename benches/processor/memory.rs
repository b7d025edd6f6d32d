//! Memory of a processor process that meets very many distinct aggregates, once each.
//!
//! A process of its own, so that what the bench holds is not in the figure. Its bounds are settings:
//! the cache of states, the prefetch of each lane's consumer, the commands that wait, the batch.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::figures;
use crate::harness::Harness;
use crate::workload::Workload;

/// Commands made and sent at a time: the bench itself stays small.
const CHUNK: usize = 50_000;
const MEBIBYTE: u64 = 1024 * 1024;

/// Peak memory of the process, and what it got done.
pub async fn measure(aggregates: usize) {
    let harness = Harness::new("bench_memory").await;
    let mut produced = 0;
    while produced < aggregates {
        let chunk = CHUNK.min(aggregates - produced);
        Workload::new(chunk).produce(&harness);
        produced += chunk;
    }
    let mut process = Command::new(env!("CARGO_BIN_EXE_throughline"))
        .args(["run", "processor"])
        .envs(harness.environment())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the processor starts");
    let client = harness.client().await;
    let started = Instant::now();
    let done = "select coalesce(sum(next_offset), 0)::bigint from throughline.offsets";
    loop {
        assert!(process.try_wait().expect("its state").is_none(), "the processor ended early");
        let decided: i64 = client.query_one(done, &[]).await.expect("offsets").get(0);
        if decided >= aggregates as i64 {
            break;
        }
        assert!(started.elapsed() < Duration::from_secs(900), "{decided} of {aggregates} commands after 15 minutes");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let seconds = started.elapsed().as_secs_f64();
    let peak = figures::peak_megabytes(&process.id().to_string());
    process.kill().expect("ended");
    process.wait().expect("reaped");
    let (cache, prefetch) =
        (harness.settings.processor.cache_bytes_max, u64::from(harness.settings.kafka.prefetch_kbytes_max) * 1024);
    println!(
        "{aggregates} distinct aggregates through one processor process in {seconds:.0} s: peak resident memory \
         {peak:.0} MB\n  bounds: cache of states {} MiB a worker, prefetch {} MiB a lane, {} waiting commands a lane",
        cache / MEBIBYTE,
        prefetch / MEBIBYTE,
        harness.settings.processor.queue_commands_max,
    );
}
