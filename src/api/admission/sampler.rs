//! Measures the queues: Kafka's end offsets against the processors' offsets in PostgreSQL.
//!
//! PostgreSQL is authoritative for what was decided, Kafka for what was accepted. A sample that
//! fails leaves the last one in place: what is accepted since only adds up, until the limit answers.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rdkafka::consumer::Consumer as _;
use rdkafka::topic_partition_list::TopicPartitionListElem;
use rdkafka::{Offset, TopicPartitionList};
use tokio_util::sync::CancellationToken;

use super::super::lane::Lane;
use super::Admission;
use crate::health::{Heartbeat, Told};
use crate::kafka::client::Inquirer;
use crate::kafka::ends::Offsets;
use crate::kafka::topics::TopicNames;
use crate::kafka::{KafkaError, client, ends};
use crate::settings::Settings;
use crate::store::{Database, StoreError};

/// A sample that could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum SamplerError {
    #[error(transparent)]
    Kafka(#[from] KafkaError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the sampling thread ended: {0}")]
    Thread(#[from] tokio::task::JoinError),
}

/// The loop that keeps [`Admission`] informed.
pub struct Sampler {
    admission: Arc<Admission>,
    names: TopicNames,
    database: Database,
    consumer: Arc<Inquirer>,
    partitions: i32,
    every: Duration,
    request_wait: Duration,
}

/// The overflow group's coordinator has this long to answer, once it has. A broker that restarts leaves groups without one
/// for a while, and commands are accepted all the same: what was known of overflow stays in use.
const COORDINATOR_WAIT: Duration = Duration::from_secs(1);

struct Watermarks {
    /// First offset kept.
    low: Offsets,
    /// Behind the newest record.
    high: Offsets,
    /// The drainer's committed offsets of the overflow topic.
    drained: HashMap<i32, i64>,
}

impl Sampler {
    /// A sampler with a Kafka client of its own, in the drainer's group (it joins nothing).
    pub fn new(
        settings: &Settings,
        names: &TopicNames,
        admission: Arc<Admission>,
        database: Database,
    ) -> Result<Self, KafkaError> {
        let config = client::consumer(&settings.kafka, &names.overflow_group(), "");
        let consumer = client::inquirer_of(&config)?;
        Ok(Self {
            admission,
            names: names.clone(),
            database,
            consumer: Arc::new(consumer),
            partitions: settings.topics.command_partitions,
            every: Duration::from_millis(settings.http.admission.sample_ms.max(1)),
            request_wait: Duration::from_millis(u64::from(settings.kafka.request_timeout_ms)),
        })
    }

    /// Samples until cancelled. `heartbeat` is ready while samples succeed.
    pub async fn run(self, heartbeat: Heartbeat, shutdown: CancellationToken) {
        let mut last = Instant::now();
        let told = Told::new("the command queue cannot be measured, and the last sample stays in use");
        while !shutdown.is_cancelled() {
            let sample = self.sample(last.elapsed().as_secs_f64(), &heartbeat);
            match heartbeat.while_waiting("the command queue", sample).await {
                Ok(()) => {
                    told.well();
                    last = Instant::now();
                    heartbeat.ready();
                }
                Err(error) => {
                    heartbeat.not_ready(format!("the queue cannot be measured: {error}"));
                    told.failed(&error.to_string());
                }
            }
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = tokio::time::sleep(self.every) => {}
            }
        }
    }

    async fn sample(&self, seconds: f64, heartbeat: &Heartbeat) -> Result<(), SamplerError> {
        let accepted_before = self.admission.lock().lanes.map(|queue| queue.accepted_total);
        let watermarks = self.watermarks().await?;
        heartbeat.beat();
        let decided = self.decided().await?;
        let lanes = self.names.lanes();
        {
            let mut state = self.admission.lock();
            for lane in Lane::ALL {
                let (mut lag, mut sum) = (0u64, 0u64);
                for partition in 0..self.partitions {
                    let place = (lanes[lane.index()].clone(), partition);
                    let high = watermarks.high.get(&place).copied().unwrap_or(0);
                    let low = watermarks.low.get(&place).copied().unwrap_or(0);
                    let next = decided.get(&place).copied().unwrap_or(0).max(low);
                    lag += u64::try_from(high - next).unwrap_or(0);
                    sum += u64::try_from(next).unwrap_or(0);
                }
                state.lanes[lane.index()].sample(lag, sum, accepted_before[lane.index()], seconds);
            }
            for (partition, spill) in state.spills.iter_mut().enumerate() {
                let place = (self.names.overflow(), partition as i32);
                let low = watermarks.low.get(&place).copied().unwrap_or(0);
                let drained = watermarks.drained.get(&place.1).copied().unwrap_or(0).max(low);
                spill.drained = spill.drained.max(drained);
                spill.end = spill.end.max(watermarks.high.get(&place).copied().unwrap_or(0));
            }
            state.sampled = true;
        }
        self.admission.room.notify_waiters();
        self.publish();
        Ok(())
    }

    /// The drainer's progress before the ends, so that a backlog is over- and never underestimated.
    async fn watermarks(&self) -> Result<Watermarks, SamplerError> {
        let (consumer, wait, partitions) = (self.consumer.clone(), self.request_wait, self.partitions);
        let known = self.admission.lock().sampled;
        let (overflow, mut topics) = (self.names.overflow(), self.names.lanes().to_vec());
        topics.push(overflow.clone());
        let read = move || -> Result<Watermarks, KafkaError> {
            let mut spilled = TopicPartitionList::new();
            (0..partitions).for_each(|partition| {
                spilled.add_partition(&overflow, partition);
            });
            let patience = if known { wait.min(COORDINATOR_WAIT) } else { wait };
            let committed = consumer.committed_offsets(spilled, patience);
            let committed = committed.map_err(KafkaError::at("read the overflow group's offsets"));
            let drained = match committed {
                Ok(committed) => {
                    let offset = |e: &TopicPartitionListElem<'_>| (e.partition(), e.offset().to_raw().unwrap_or(0));
                    committed.elements().iter().map(offset).collect()
                }
                Err(error) if !known => return Err(error),
                Err(error) => {
                    tracing::debug!(%error, "the overflow group has no coordinator now");
                    HashMap::new()
                }
            };
            let offsets = |which| ends::offsets(&consumer, &topics, partitions, which, wait);
            Ok(Watermarks { drained, low: offsets(Offset::Beginning)?, high: offsets(Offset::End)? })
        };
        Ok(tokio::task::spawn_blocking(read).await??)
    }

    /// Next offsets of the processors, by lane topic and partition.
    async fn decided(&self) -> Result<Offsets, StoreError> {
        let client = self.database.client().await?;
        let statement = client
            .prepare_cached(
                "select source_topic, partition, next_offset from throughline.offsets
                 where source_topic = any($1) and group_id = any($2)",
            )
            .await
            .map_err(StoreError::at("prepare the processors' offsets"))?;
        let groups: Vec<String> = Lane::ALL.iter().map(|lane| self.names.processor_group(lane.index())).collect();
        let rows = client
            .query(&statement, &[&self.names.lanes().to_vec(), &groups])
            .await
            .map_err(StoreError::at("read the processors' offsets"))?;
        Ok(rows.iter().map(|row| ((row.get(0), row.get(1)), row.get(2))).collect())
    }

    fn publish(&self) {
        let depths = self.admission.depths();
        for lane in Lane::ALL {
            let at = lane.index();
            // The processors tell the former, too, each of the whole lane: the largest counts.
            metrics::gauge!("throughline_commands_waiting", "lane" => lane.name()).set(depths.lanes[at] as f64);
            metrics::gauge!("throughline_admission_queue_commands", "lane" => lane.name()).set(depths.lanes[at] as f64);
            metrics::gauge!("throughline_admission_drained_commands_per_second", "lane" => lane.name())
                .set(depths.drained_per_second[at]);
        }
        metrics::gauge!("throughline_admission_overflow_commands").set(depths.overflow as f64);
        metrics::gauge!("throughline_admission_in_flight_bytes")
            .set(self.admission.bytes.load(Ordering::Relaxed) as f64);
    }
}
