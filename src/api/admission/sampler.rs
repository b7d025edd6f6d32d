//! Measures the queues: Kafka's end offsets against the processors' offsets in PostgreSQL.
//!
//! PostgreSQL is authoritative for what was decided, Kafka for what was accepted. A sample that
//! fails leaves the last one in place: what is accepted since only adds up, until the limit answers.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::TopicPartitionList;
use rdkafka::consumer::Consumer as _;
use tokio_util::sync::CancellationToken;

use super::Admission;
use super::queue::{Found, Spill};
use crate::health::{Heartbeat, Partitions, Told};
use crate::kafka::Lane;
use crate::kafka::client::{self, Inquirer};
use crate::kafka::ends::Offsets;
use crate::kafka::topics::TopicNames;
use crate::kafka::watermarks::{self, Leaders};
use crate::kafka::{KafkaError, TopicPartition};
use crate::settings::Settings;
use crate::store::{Database, StoreError};

/// Leaders, and with them the number of partitions, are looked up this often.
const LEADERS_EVERY: Duration = Duration::from_secs(1);
/// A leader that does not answer is left out of a sample after this long.
const LEADER_WAIT: Duration = Duration::from_secs(2);

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
#[derive(Clone)]
pub struct Sampler {
    admission: Arc<Admission>,
    names: TopicNames,
    database: Database,
    consumer: Arc<Inquirer>,
    every: Duration,
    request_wait: Duration,
    told: Partitions,
}

/// What Kafka has of some topics.
struct Watermarks {
    /// The first offset kept and the next one, of each partition whose leader answered.
    ends: HashMap<TopicPartition, (i64, i64)>,
    /// The drainer's committed offsets of the overflow topic; none where the group could not be asked.
    drained: Option<HashMap<i32, i64>>,
}

impl Sampler {
    /// A sampler with a Kafka client of its own, in the drainer's group (it joins nothing). `told` hears of
    /// partitions that have no leader.
    pub fn new(
        settings: &Settings,
        names: &TopicNames,
        admission: Arc<Admission>,
        database: Database,
        told: Partitions,
    ) -> Result<Self, KafkaError> {
        let config = client::consumer(&settings.kafka, &names.overflow_group(), "");
        let consumer = client::inquirer_of(&config)?;
        let request_wait = Duration::from_millis(u64::from(settings.kafka.request_timeout_ms));
        Ok(Self {
            admission,
            names: names.clone(),
            database,
            consumer: Arc::new(consumer),
            every: Duration::from_millis(settings.http.admission.sample_ms.max(1)),
            request_wait,
            told,
        })
    }

    /// Samples until cancelled. `heartbeat` is ready while samples succeed.
    pub async fn run(self, heartbeat: Heartbeat, shutdown: CancellationToken) {
        let looking = tokio::spawn(self.clone().look_when_wanted(shutdown.clone()));
        let mut last = Instant::now();
        let told = Told::new("the command queue cannot be measured, and the last sample stays in use");
        let mut leaders = (Leaders::default(), None);
        while !shutdown.is_cancelled() {
            let sample = self.sample(last.elapsed().as_secs_f64(), &mut leaders, &heartbeat);
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
        drop(looking.await);
        self.told.all_gone();
    }

    /// Looks at overflow for commands that wait for it, as long as there are any.
    async fn look_when_wanted(self, shutdown: CancellationToken) {
        let mut leaders = (Leaders::default(), None);
        while let Some(ticket) = shutdown.run_until_cancelled(self.admission.looks.wanted()).await {
            let topics = vec![self.names.overflow()];
            let looked = match self.leaders(&mut leaders, &topics).await {
                Ok(()) => self.watermarks(&leaders.0).await,
                Err(error) => Err(error),
            };
            match looked {
                Ok(watermarks) => self.apply_spills(&watermarks, leaders.0.count(&self.names.overflow()), true),
                Err(error) => {
                    tracing::debug!(%error, "overflow cannot be looked at");
                    leaders.1 = None;
                    self.admission.lock().spills.iter_mut().for_each(|spill| spill.is_known = false);
                }
            }
            self.admission.looks.serve(ticket);
        }
    }

    /// Looks leaders up where that is due.
    async fn leaders(
        &self,
        (leaders, looked_at): &mut (Leaders, Option<Instant>),
        topics: &[String],
    ) -> Result<(), SamplerError> {
        if looked_at.is_some_and(|at| at.elapsed() < LEADERS_EVERY) {
            return Ok(());
        }
        let (consumer, wait, topics) = (self.consumer.clone(), self.request_wait, topics.to_vec());
        let look = move || {
            let topics: Vec<&str> = topics.iter().map(String::as_str).collect();
            Leaders::look_up(&consumer, &topics, wait)
        };
        *leaders = tokio::task::spawn_blocking(look).await??;
        *looked_at = Some(Instant::now());
        Ok(())
    }

    async fn sample(
        &self,
        seconds: f64,
        leaders: &mut (Leaders, Option<Instant>),
        heartbeat: &Heartbeat,
    ) -> Result<(), SamplerError> {
        let accepted_before = self.admission.lock().lanes.each_ref().map(super::Queue::accepted);
        let lanes = self.names.lanes();
        let topics: Vec<String> = lanes.iter().cloned().chain([self.names.overflow()]).collect();
        self.leaders(leaders, &topics).await?;
        let watermarks = match self.watermarks(&leaders.0).await {
            Ok(watermarks) => watermarks,
            Err(error) => {
                leaders.1 = None;
                return Err(error);
            }
        };
        if watermarks.ends.len() < topics.iter().map(|topic| leaders.0.count(topic)).sum() {
            leaders.1 = None;
        }
        heartbeat.beat();
        let decided = self.decided().await?;
        {
            let mut state = self.admission.lock();
            let parts_before: usize = state.lanes.iter().map(|queue| queue.parts.len()).sum();
            for lane in Lane::ALL {
                let name = &lanes[lane.index()];
                let place =
                    |partition: usize| TopicPartition { topic: name.as_str().into(), partition: partition as i32 };
                let find = |partition: usize| -> Found {
                    let (low, high) = *watermarks.ends.get(&place(partition))?;
                    let decided = decided.get(&(name.clone(), partition as i32)).copied().unwrap_or(0);
                    let next = decided.max(low);
                    Some((u64::try_from(high - next).unwrap_or(0), next))
                };
                let found: Vec<Found> = (0..leaders.0.count(name)).map(find).collect();
                let queue = &mut state.lanes[lane.index()];
                queue.sample(&found, &accepted_before[lane.index()], seconds);
                for (partition, part) in queue.parts.iter_mut().enumerate() {
                    part.is_leaderless = leaders.0.of(&place(partition)).is_err();
                }
            }
            if parts_before != state.lanes.iter().map(|queue| queue.parts.len()).sum::<usize>() {
                state.divide(self.admission.in_flight_max);
            }
            state.sampled = true;
        }
        self.apply_spills(&watermarks, leaders.0.count(&self.names.overflow()), false);
        self.admission.room.notify_waiters();
        self.tell_leaderless(&leaders.0);
        self.publish();
        Ok(())
    }

    /// Takes in what was found of the overflow topic's partitions.
    fn apply_spills(&self, watermarks: &Watermarks, count: usize, is_look: bool) {
        let mut state = self.admission.lock();
        if count > state.spills.len() {
            state.spills.resize(count, Spill::default());
            state.divide(self.admission.in_flight_max);
        }
        let topic: Arc<str> = self.names.overflow().into();
        for (partition, spill) in state.spills.iter_mut().enumerate() {
            let place = TopicPartition { topic: topic.clone(), partition: partition as i32 };
            let end = watermarks.ends.get(&place);
            if let Some((low, high)) = end {
                let drained = watermarks.drained.as_ref().and_then(|all| all.get(&place.partition)).copied();
                spill.drained = spill.drained.max(drained.unwrap_or(0)).max(*low);
                spill.end = spill.end.max(*high);
            }
            if is_look {
                spill.is_known = end.is_some();
            }
        }
    }

    fn tell_leaderless(&self, leaders: &Leaders) {
        for topic in self.names.lanes() {
            let name: Arc<str> = topic.as_str().into();
            for partition in 0..leaders.count(&topic) as i32 {
                match leaders.of(&TopicPartition { topic: name.clone(), partition }) {
                    Ok(_) => self.told.running(&topic, partition),
                    Err(_) => self.told.standing(
                        &topic,
                        partition,
                        "no broker leads it: commands of its streams are refused",
                        Some(
                            "Start its broker (kafka-topics --describe --unavailable-partitions); it goes on by itself",
                        ),
                    ),
                }
            }
        }
    }

    /// The drainer's progress before the ends, so that a backlog is over- and never underestimated.
    async fn watermarks(&self, leaders: &Leaders) -> Result<Watermarks, SamplerError> {
        let (consumer, wait) = (self.consumer.clone(), LEADER_WAIT.min(self.request_wait));
        let (overflow, groups) = (self.names.overflow(), leaders.by_leader());
        let count = leaders.count(&overflow);
        let read = move || -> Watermarks {
            let mut spilled = TopicPartitionList::new();
            for partition in 0..count as i32 {
                spilled.add_partition(&overflow, partition);
            }
            let committed = (count > 0).then(|| consumer.committed_offsets(spilled, wait));
            let drained = committed.and_then(Result::ok).map(|moved| {
                moved.elements().iter().map(|e| (e.partition(), e.offset().to_raw().unwrap_or(0))).collect()
            });
            let ask = |places: Vec<TopicPartition>| {
                let ends = watermarks::of_one_leader(&consumer, &places, wait).unwrap_or_default();
                let answered = places.into_iter().zip(ends).filter_map(|(place, end)| Some((place, end.ok()?)));
                answered.collect::<Vec<_>>()
            };
            let mut groups = groups.into_values();
            let first = groups.next().unwrap_or_default();
            // Each leader is waited for by itself.
            let ends = std::thread::scope(|scope| {
                let others: Vec<_> = groups.map(|places| scope.spawn(|| ask(places))).collect();
                let first = ask(first);
                others.into_iter().flat_map(|thread| thread.join().unwrap_or_default()).chain(first).collect()
            });
            Watermarks { ends, drained }
        };
        let found = tokio::task::spawn_blocking(read).await?;
        if found.ends.is_empty() {
            return Err(KafkaError::Fatal("no leader of a commands partition answers".into()).into());
        }
        Ok(found)
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
        let context = self.names.context().to_owned();
        for lane in Lane::ALL {
            let at = lane.index();
            // The processors tell the former, too, each of the whole lane: the largest counts.
            let labels = [("lane", lane.name().to_owned()), ("context", context.clone())];
            metrics::gauge!("throughline_commands_waiting", &labels).set(depths.lanes[at] as f64);
            metrics::gauge!("throughline_admission_queue_commands", &labels).set(depths.lanes[at] as f64);
            metrics::gauge!("throughline_admission_drained_commands_per_second", &labels)
                .set(depths.drained_per_second[at]);
        }
        let labels = [("context", context)];
        metrics::gauge!("throughline_admission_overflow_commands", &labels).set(depths.overflow as f64);
        metrics::gauge!("throughline_admission_in_flight_bytes", &labels).set(depths.in_flight_bytes as f64);
    }
}
