//! A panic on any thread is told and counted, once; a consumer whose owner panics goes on.

mod harness;

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use harness::{Harness, eventually};
use metrics_exporter_prometheus::PrometheusBuilder;
use throughline::health::Health;
use throughline::kafka::consumer::{ClaimError, Committed};
use throughline::kafka::{Claim, Consumer, ConsumerOptions, PartitionOwner, TopicPartition, client};
use throughline::panics;
use tracing_subscriber::fmt::MakeWriter;

/// The log of this program.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

/// Panics when partition 1 is claimed for the first times.
struct Panicking(Arc<AtomicU32>);

impl PartitionOwner for Panicking {
    fn claim(&self, source: &TopicPartition, _: Committed, (first, _): (i64, i64)) -> Result<Claim, ClaimError> {
        assert!(source.partition != 1 || self.0.fetch_add(1, Ordering::Relaxed) >= 2, "a claim of {source} broke");
        Ok(Claim { epoch: 1, next_offset: first, seq: 0 })
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_is_told_and_counted_and_what_panicked_starts_over() {
    let harness = Harness::new("panics").await;
    let log = Log::default();
    tracing_subscriber::fmt().with_writer(log.clone()).with_ansi(false).init();
    let recorder = PrometheusBuilder::new().install_recorder().expect("a recorder");
    panics::tell();
    for said in ["first", "second"] {
        let thread = std::thread::Builder::new().name("somebody".into()).spawn(move || panic!("the {said} broke"));
        thread.expect("a thread").join().unwrap_err();
        assert_eq!(panics::contain(|| panic!("contained {said}")), Err::<(), _>(format!("contained {said}")));
    }
    let health = Health::new(Duration::MAX);
    let tries = Arc::new(AtomicU32::new(0));
    let options = ConsumerOptions {
        config: client::consumer(&harness.settings.kafka, "panicking", ""),
        topics: vec![harness.names().commands()],
        workers: 1,
        queue_records_max: 100,
        queue_bytes_max: 100_000,
        read_committed_offsets: false,
        partitions: health.partitions("panicking"),
        heartbeat: health.register("panicking"),
        halt_retry: Duration::from_millis(100),
    };
    let consumer = Consumer::start(options, Panicking(tries.clone())).expect("a consumer");
    let all = harness.settings.topics.command_partitions as usize;
    eventually("the partition that panicked is claimed as well", async || {
        (consumer.mailboxes()[0].claims().len() == all).then_some(())
    })
    .await;
    assert_eq!(tries.load(Ordering::Relaxed), 3);
    consumer.stop().await.expect("a clean end");
    let told = String::from_utf8(log.0.lock().unwrap().clone()).expect("text");
    for said in ["the first broke", "the second broke", "contained first", "a claim of"] {
        assert!(told.lines().any(|line| line.contains("panic: ") && line.contains(said)), "{said}: {told}");
    }
    assert_eq!(told.matches("the first broke").count(), 1, "{told}");
    let counted = recorder.render();
    assert!(counted.contains("throughline_panics_total{thread=\"somebody\"} 2"), "{counted}");
    assert!(counted.contains("throughline_panics_total{thread=\"claim panicking\"} 2"), "{counted}");
}
