//! A partition of a consumer stands alone, is told, and goes on by itself: claims that hang, fail, panic or are
//! refused, a partition that a worker stops, and a worker that takes nothing.

mod harness;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use throughline::health::{Health, PartitionReport, PartitionState};
use throughline::kafka::consumer::{ClaimError, Committed, PartitionOwner};
use throughline::kafka::{Claim, Consumer, ConsumerOptions, TopicPartition, client};

use harness::{Harness, eventually};

const PARTITIONS: i32 = 6;

/// What the owner does with a claim; told by partition and by how often it was asked before.
type Answer = dyn Fn(i32, u32) -> Result<(), ClaimError> + Send + Sync;

struct Owner {
    answer: Box<Answer>,
    asked: Vec<AtomicU32>,
    /// Where each partition stands.
    offsets: Arc<Vec<AtomicU32>>,
}

impl PartitionOwner for Owner {
    fn claim(&self, source: &TopicPartition, _: Committed, _: (i64, i64)) -> Result<Claim, ClaimError> {
        let index = source.partition as usize;
        let before = self.asked[index].fetch_add(1, Ordering::SeqCst);
        (self.answer)(source.partition, before)?;
        let next_offset = i64::from(self.offsets[index].load(Ordering::SeqCst));
        Ok(Claim { epoch: i64::from(before) + 1, next_offset, seq: 0 })
    }
}

struct Bed {
    harness: Arc<Harness>,
    health: Arc<Health>,
    consumer: Consumer,
    topic: String,
    offsets: Arc<Vec<AtomicU32>>,
}

impl Bed {
    /// A consumer of `records` records a partition, for `workers` workers.
    async fn new(
        name: &str,
        (records, workers): (usize, usize),
        answer: impl Fn(i32, u32) -> Result<(), ClaimError> + Send + Sync + 'static,
    ) -> Self {
        let harness = Harness::new(name).await;
        produce(&harness, &harness.names().commands(), records);
        Self::on(&Arc::new(harness), name, workers, answer)
    }

    /// A consumer of the group `name` on a topic that is there.
    fn on(
        harness: &Arc<Harness>,
        name: &str,
        workers: usize,
        answer: impl Fn(i32, u32) -> Result<(), ClaimError> + Send + Sync + 'static,
    ) -> Self {
        let topic = harness.names().commands();
        let health = Health::new(Duration::from_secs(60));
        let group = format!("{}{name}", harness.settings.topics.prefix);
        let options = ConsumerOptions {
            config: client::consumer(&harness.settings.kafka, &group, ""),
            topics: vec![topic.clone()],
            workers,
            queue_records_max: 50,
            queue_bytes_max: 1 << 20,
            read_committed_offsets: false,
            partitions: health.partitions("test"),
            heartbeat: health.register("consumer"),
            halt_retry: Duration::from_secs(2),
        };
        let offsets: Arc<Vec<AtomicU32>> = Arc::new((0..PARTITIONS).map(|_| AtomicU32::new(0)).collect());
        let asked = (0..PARTITIONS).map(|_| AtomicU32::new(0)).collect();
        let owner = Owner { answer: Box::new(answer), asked, offsets: offsets.clone() };
        let consumer = Consumer::start(options, owner).expect("a consumer");
        Self { harness: harness.clone(), health, consumer, topic, offsets }
    }

    /// Takes what has gathered for `worker`, as a worker that commits would. Returns the partitions.
    fn work(&self, worker: usize) -> HashSet<i32> {
        let mailbox = &self.consumer.mailboxes()[worker];
        let Some(batch) = mailbox.try_take(100, 1 << 20) else { return HashSet::new() };
        for record in &batch.records {
            let index = record.source.partition as usize;
            let expected = self.offsets[index].load(Ordering::SeqCst);
            assert_eq!(record.offset, i64::from(expected), "partition {index}: in order, without a gap");
            self.offsets[index].store(expected + 1, Ordering::SeqCst);
            let claim = &batch.claims[&record.source];
            mailbox.advance(&record.source, &Claim { next_offset: record.offset + 1, ..claim.clone() });
        }
        batch.records.iter().map(|record| record.source.partition).collect()
    }

    fn offset(&self, partition: i32) -> u32 {
        self.offsets[partition as usize].load(Ordering::SeqCst)
    }

    /// Works until each of `partitions` has been consumed to its end.
    async fn consumed(&self, partitions: &[i32], records: u32) {
        let workers = self.consumer.mailboxes().len();
        eventually("partitions are consumed", async || {
            (0..workers).for_each(|worker| drop(self.work(worker)));
            partitions.iter().all(|one| self.offset(*one) == records).then_some(())
        })
        .await;
    }

    fn report(&self, partition: i32) -> Option<PartitionReport> {
        self.health.partition_reports().into_iter().find(|report| report.partition == partition)
    }

    async fn is_told(&self, partition: i32, state: PartitionState) -> PartitionReport {
        eventually(&format!("partition {partition} is {}", state.name()), async || {
            self.report(partition).filter(|report| report.state == state)
        })
        .await
    }

    fn source(&self, partition: i32) -> TopicPartition {
        TopicPartition { topic: self.topic.as_str().into(), partition }
    }
}

fn produce(harness: &Harness, topic: &str, records: usize) {
    let producer: BaseProducer = client::producer(&harness.settings.kafka, 0).create().expect("a producer");
    for partition in 0..PARTITIONS {
        for _ in 0..records {
            producer.send(BaseRecord::<(), str>::to(topic).partition(partition).payload("x")).expect("queued");
        }
    }
    producer.flush(Duration::from_secs(30)).expect("acknowledged");
}

fn others() -> Vec<i32> {
    (1..PARTITIONS).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_that_nobody_answers_holds_up_nobody_else() {
    let hang = Duration::from_secs(12);
    let bed = Bed::new("claim_hangs", (20, 1), move |partition, before| {
        if partition == 0 && before == 0 {
            std::thread::sleep(hang);
        }
        Ok(())
    })
    .await;
    let started = Instant::now();
    bed.consumed(&others(), 20).await;
    assert!(started.elapsed() < hang, "the others waited {:?}", started.elapsed());
    assert_eq!(bed.report(0).map(|report| report.state), Some(PartitionState::Pending));
    bed.consumed(&[0], 20).await;
    bed.is_told(0, PartitionState::Running).await;
    drop(bed.harness);
}

/// The client asks where a topic ends when it is told to begin there, and an answer that comes after a step to
/// another offset sends it to the end all the same. So the moment of the grant must not matter.
#[tokio::test(flavor = "multi_thread")]
async fn a_claim_that_is_granted_at_any_moment_passes_nothing_over() {
    let harness = Arc::new(Harness::new("claim_moment").await);
    produce(&harness, &harness.names().commands(), 20);
    // Later than an assignment waits, and spread over the questions that the client asks then.
    let beds: Vec<Bed> = (0..8)
        .map(|group| {
            Bed::on(&harness, &format!("moment-{group}"), 1, move |partition, _| {
                std::thread::sleep(Duration::from_millis(2_470 + 2 * (6 * group + partition as u64)));
                Ok(())
            })
        })
        .collect();
    for bed in &beds {
        bed.consumed(&(0..PARTITIONS).collect::<Vec<_>>(), 20).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_that_fails_or_panics_is_tried_again_until_it_is_granted() {
    let bed = Bed::new("claim_fails", (20, 2), |partition, before| match (partition, before) {
        (0, 0..3) => Err(ClaimError::Transient("the database is away".into())),
        (1, 0..2) => panic!("a defect"),
        _ => Ok(()),
    })
    .await;
    bed.consumed(&(0..PARTITIONS).collect::<Vec<_>>(), 20).await;
    for partition in 0..PARTITIONS {
        bed.is_told(partition, PartitionState::Running).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_that_is_refused_stands_until_its_cause_is_mended() {
    let mended = Arc::new(AtomicU32::new(0));
    let seen = mended.clone();
    let bed = Bed::new("claim_refused", (20, 1), move |partition, _| match partition {
        0 if seen.load(Ordering::SeqCst) == 0 => {
            Err(ClaimError::Halt { reason: "the offset is gone".into(), cure: "mend it".into() })
        }
        _ => Ok(()),
    })
    .await;
    bed.consumed(&others(), 20).await;
    let stands = bed.is_told(0, PartitionState::Standing).await;
    assert_eq!((stands.reason.as_deref(), stands.cure.as_deref()), (Some("the offset is gone"), Some("mend it")));
    mended.store(1, Ordering::SeqCst);
    bed.consumed(&[0], 20).await;
    let runs = bed.is_told(0, PartitionState::Running).await;
    assert!(runs.since >= stands.since && runs.reason.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_that_a_worker_stops_is_tried_again_and_stays_told_meanwhile() {
    let bed = Bed::new("halted", (20, 1), |_, _| Ok(())).await;
    bed.is_told(0, PartitionState::Running).await;
    let since = Instant::now();
    let (mut stops, mut first) = (0, None);
    // A worker that stops at the sixth record of partition 0, as often as it meets it, for six seconds.
    while since.elapsed() < Duration::from_secs(6) || bed.offset(0) < 5 {
        let mailbox = &bed.consumer.mailboxes()[0];
        let Some(batch) = mailbox.try_take(1, 1 << 20) else {
            tokio::time::sleep(Duration::from_millis(5)).await;
            continue;
        };
        let record = &batch.records[0];
        let index = record.source.partition as usize;
        if index == 0 && record.offset == 5 {
            bed.consumer.halt(&bed.source(0), "it cannot be applied", "mend it");
            stops += 1;
            let report = bed.report(0).expect("it is told");
            assert_eq!(report.state, PartitionState::Standing);
            assert_eq!(*first.get_or_insert(report.since), report.since, "it has stood since its first stop");
            continue;
        }
        assert_eq!(record.offset, i64::from(bed.offsets[index].load(Ordering::SeqCst)));
        bed.offsets[index].fetch_add(1, Ordering::SeqCst);
        let claim = Claim { next_offset: record.offset + 1, ..batch.claims[&record.source].clone() };
        mailbox.advance(&record.source, &claim);
    }
    assert!((3..=8).contains(&stops), "after 1, 2, 2 … s it is met again: {stops} times");
    assert!(others().iter().all(|one| bed.offset(*one) == 20), "the others go on");
    bed.consumed(&[0], 20).await;
    bed.is_told(0, PartitionState::Running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_takes_nothing_stops_its_own_partitions_only() {
    // Partitions 0, 2 and 4 go to the first worker, which takes nothing; its mailbox holds 50 records.
    let bed = Bed::new("full", (400, 2), |_, _| Ok(())).await;
    eventually("the second worker's partitions are consumed", async || {
        bed.work(1);
        [1, 3, 5].iter().all(|one| bed.offset(*one) == 400).then_some(())
    })
    .await;
    assert!(bed.consumer.mailboxes()[0].len() <= 50 + 500, "the first mailbox stays bounded");
    bed.consumed(&[0, 2, 4], 400).await;
}

/// Ends meet assignments, revocations and claims that wait: whatever they meet, they end.
#[tokio::test(flavor = "multi_thread")]
async fn consumers_that_come_and_go_end_whatever_their_group_does() {
    let harness = Arc::new(Harness::new("come_and_go").await);
    produce(&harness, &harness.names().commands(), 20);
    let mut ends = tokio::task::JoinSet::new();
    for round in 0..10 {
        // Some claims are granted, some wait for ever.
        let answer = move |partition: i32, _| match (partition + round) % 3 {
            0 => Err(ClaimError::Transient("the database is away".into())),
            _ => Ok(()),
        };
        let bed = Bed::on(&harness, "come-and-go", 2, answer);
        ends.spawn(async move {
            tokio::time::sleep(Duration::from_millis(2_500 + 370 * (round as u64 % 4))).await;
            let ended = tokio::time::timeout(Duration::from_secs(25), bed.consumer.stop()).await;
            ended.expect("it ends").expect("and ends well");
        });
        tokio::time::sleep(Duration::from_millis(900)).await;
    }
    while let Some(ended) = ends.join_next().await {
        ended.expect("each ended");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_that_ends_leaves_nothing_told() {
    let bed = Bed::new("ends", (5, 1), |partition, _| match partition {
        0 => Err(ClaimError::Halt { reason: "no".into(), cure: "none".into() }),
        1 => Err(ClaimError::Transient("away".into())),
        _ => Ok(()),
    })
    .await;
    bed.consumed(&[2, 3, 4, 5], 5).await;
    bed.is_told(0, PartitionState::Standing).await;
    bed.consumer.stop().await.expect("it ends well");
    assert_eq!(bed.health.partition_reports(), []);
    assert!(bed.health.liveness().is_empty(), "nobody waits for its beat");
}
