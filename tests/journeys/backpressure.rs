//! The processor is stopped and a queue takes 1,000 commands: what each admission policy answers to a
//! load that goes on, how much memory the server takes meanwhile, and that what was accepted is decided
//! once a processor starts. `THROUGHLINE_LOAD_SECONDS` says for how long (10).

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use uuid::Uuid;

use crate::harness::flood::{Flood, Sent};
use crate::harness::{Harness, eventually, scale};
use crate::process::{Process, command};

const QUEUE: usize = 1_000;
const WAIT: Duration = Duration::from_millis(1_000);
/// The server may grow by this much under load, once it is warm.
const GROWTH_MAX_MB: f64 = 16.0;

/// A server of one policy, its load's answers, and its memory, MB by time.
struct Loaded {
    policy: &'static str,
    harness: Harness,
    api: Process,
    sent: Vec<Sent>,
    memory: Vec<f64>,
}

fn api(harness: &Harness, policy: &str) -> Process {
    let mut api = command(harness, &["run", "api"]);
    api.env("THROUGHLINE__HTTP__ADMISSION__POLICY", policy)
        .env("THROUGHLINE__HTTP__ADMISSION__QUEUE_COMMANDS_MAX", QUEUE.to_string())
        .env("THROUGHLINE__HTTP__ADMISSION__WAIT_MS", WAIT.as_millis().to_string());
    Process::start(api)
}

/// Resident memory of a process, MB.
fn resident(process: &Process) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.id())).expect("the process's status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its resident memory");
    line.trim().trim_end_matches(" kB").parse::<f64>().expect("a number") / 1024.0
}

impl Loaded {
    /// Starts a server and loads it for `span`.
    async fn new(policy: &'static str, connections: usize, span: Duration) -> Self {
        let harness = Harness::new(&format!("load_{policy}")).await;
        let api = api(&harness, policy);
        let base = api.http_url().await;
        let mut memory = vec![resident(&api)];
        let flood = Flood { base, path: "/api/orders", connections };
        let mut loading = tokio::spawn(async move { flood.span(span).await });
        let sent = loop {
            tokio::select! {
                sent = &mut loading => break sent.expect("the load ends well"),
                () = tokio::time::sleep(Duration::from_millis(250)) => memory.push(resident(&api)),
            }
        };
        let loaded = Self { policy, harness, api, sent, memory };
        loaded.report();
        loaded
    }

    fn report(&self) {
        let peak = self.memory.iter().copied().fold(0.0, f64::max);
        println!(
            "{}: {} requests, {} accepted, {} refused; resident memory at start {:.1} MB, warm {:.1}, peak {peak:.1}, end {:.1}",
            self.policy,
            self.sent.len(),
            self.accepted().len(),
            self.refused().count(),
            self.memory[0],
            self.warm(),
            self.memory.last().expect("samples"),
        );
    }

    /// Memory after a fifth of the load: every connection, buffer and thread has been used.
    fn warm(&self) -> f64 {
        self.memory[self.memory.len() / 5]
    }

    fn memory_is_flat(&self) {
        let later = self.memory[self.memory.len() / 5..].iter().copied().fold(0.0, f64::max);
        assert!(later - self.warm() < GROWTH_MAX_MB, "{}: memory grows: {:?}", self.policy, self.memory);
    }

    fn accepted(&self) -> BTreeSet<Uuid> {
        self.sent.iter().filter(|one| one.reply.status == 202).map(|one| one.order).collect()
    }

    fn refused(&self) -> impl Iterator<Item = &Sent> {
        self.sent.iter().filter(|one| one.reply.status != 202)
    }

    fn refusals_tell_when_to_come_again(&self) {
        for one in self.refused() {
            assert_eq!(one.reply.status, 503, "{one:?}");
            assert!(one.reply.retry_after.is_some_and(|wait| wait >= 1), "{one:?}");
        }
    }

    /// Starts a processor: what was accepted, and nothing else, is decided.
    async fn gets_decided(self) {
        let accepted = self.accepted();
        let client = self.harness.client().await;
        let counted = || async {
            let row = client.query_one("select count(*) from throughline.commands", &[]).await.expect("commands");
            usize::try_from(row.get::<_, i64>(0)).expect("a count")
        };
        assert_eq!(counted().await, 0, "no processor ran");
        let processor = Process::run(&self.harness, &["processor"]);
        let started = Instant::now();
        let mut most = 0;
        while most < accepted.len() {
            // Progress is what is waited for: how long it all takes depends on how much was accepted.
            let before = most;
            most =
                eventually("another command decided", || async { Some(counted().await).filter(|n| *n > before) }).await;
        }
        println!(
            "{}: {most} decided {:.1} s after the processor's start",
            self.policy,
            started.elapsed().as_secs_f64()
        );
        let rows = client.query("select stream_id from throughline.commands", &[]).await.expect("commands");
        let decided: BTreeSet<Uuid> = rows.iter().map(|row| row.get(0)).collect();
        assert!(rows.len() == accepted.len() && decided == accepted, "{}: one outcome an order", self.policy);
        assert_eq!(processor.terminate().await, 0);
        assert_eq!(self.api.terminate().await, 0);
    }
}

/// Refuses from the limit on, whoever filled the queue.
async fn reject(span: Duration) {
    let loaded = Loaded::new("reject", 16, span).await;
    loaded.refusals_tell_when_to_come_again();
    assert_eq!(loaded.accepted().len(), QUEUE, "exactly the limit");
    assert!(loaded.refused().count() > 0);
    loaded.memory_is_flat();
    // Another server sees the same queue by the group's lag: nothing more is accepted.
    let other = api(&loaded.harness, "reject");
    let flood = Flood { base: other.http_url().await, path: "/api/orders", connections: 4 };
    let refused = flood.count(50).await;
    assert!(refused.iter().all(|one| one.reply.status == 503 && one.reply.retry_after.is_some()), "{refused:?}");
    assert_eq!(other.terminate().await, 0);
    loaded.gets_decided().await;
}

/// Blocks for the configured wait, then refuses.
async fn wait(span: Duration) {
    let loaded = Loaded::new("wait", 64, span).await;
    loaded.refusals_tell_when_to_come_again();
    assert_eq!(loaded.accepted().len(), QUEUE, "exactly the limit");
    assert!(loaded.refused().count() > 0);
    let hasty = loaded.refused().find(|one| one.reply.took < WAIT);
    assert!(hasty.is_none(), "refused before the wait was over: {hasty:?}");
    loaded.memory_is_flat();
    loaded.gets_decided().await;
}

/// Accepts everything, far beyond the limit.
async fn overflow(span: Duration) {
    let loaded = Loaded::new("overflow", 16, span).await;
    assert_eq!(loaded.refused().count(), 0, "{:?}", loaded.refused().next());
    assert!(loaded.accepted().len() > QUEUE, "the load must go beyond the limit");
    loaded.memory_is_flat();
    loaded.gets_decided().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_policy_keeps_its_word_and_its_memory_while_the_processor_is_stopped() {
    let span = Duration::from_secs(scale("THROUGHLINE_LOAD_SECONDS", 10) as u64);
    futures_util::join!(reject(span), wait(span), overflow(span));
}
