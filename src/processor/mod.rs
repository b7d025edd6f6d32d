//! The command processor: commands topics -> decide -> one transaction.
//!
//! A batch spans the partitions and lanes of a worker and is one transaction of two round trips:
//! [`load`] locks, fences and loads; [`decide`] is pure; [`append`] writes by sets and commits. What
//! the transaction holds together: offsets by compare-and-set, outcomes by command id, events and
//! outbox rows with their dense sequence numbers. So whatever is killed, paused or redelivered, a
//! command has one effect. PostgreSQL is authoritative; Kafka's offsets follow for people and tools.

#[cfg(test)]
mod account;
mod append;
mod backlog;
mod batch;
mod cache;
mod decide;
#[cfg(test)]
mod decide_tests;
mod gaps;
mod intake;
mod lanes;
mod load;
mod offsets;
mod outcome;
mod replays;
mod restore;
mod retrial;
mod retry;
mod session;
mod settle;
mod skip;
mod watch;
mod worker;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::engine::{Aggregate, BoundedContext};
use crate::health::{Health, Heartbeat, Told};
use crate::kafka::topics::TopicNames;
use crate::kafka::{Consumer, ConsumerOptions, KafkaError, Peek, client};
use crate::settings::Settings;
use crate::store::{Database, DatabaseRole, Destination, Extent, StoreError, destinations};

pub use retrial::{Change, Retrial, Retried, Ruling, retrial};
pub use skip::{position, skip};

use backlog::Backlog;
use cache::States;
use intake::Intake;
use lanes::Lanes;
use offsets::{OffsetsOwner, TopicIds};
use watch::Watch;
use worker::Worker;

/// The last look for ends that hold no record takes this long at most.
const LAST_LOOK_MAX: Duration = Duration::from_secs(5);

/// What the aggregate of a context decides on.
type Payload<C> = <<C as BoundedContext>::Aggregate as Aggregate>::Command;

/// What ends the processor. Trouble with one batch or partition does not.
#[derive(Debug, thiserror::Error)]
pub enum ProcessorError {
    /// PostgreSQL cannot be used as it is.
    #[error("processor: {0}")]
    Store(#[from] StoreError),
    /// A consumer could not be started, or cannot go on.
    #[error("processor: {0}")]
    Kafka(#[from] KafkaError),
    /// A worker panicked: a defect of ours.
    #[error("processor: a worker ended: {0}")]
    Worker(#[from] tokio::task::JoinError),
    /// A consumer ended without a shutdown.
    #[error("processor: a consumer ended by itself")]
    Ended,
}

/// Between the end of a processor whose clients could not go on, and its next start.
const START_OVER_WAIT: Duration = Duration::from_secs(1);

impl ProcessorError {
    /// Whether new clients and workers may do better.
    fn is_passing(&self) -> bool {
        match self {
            Self::Kafka(KafkaError::Settings(_)) | Self::Store(_) => false,
            Self::Kafka(_) | Self::Worker(_) | Self::Ended => true,
        }
    }
}

/// What every worker of one context shares.
struct Scope<C: BoundedContext> {
    events: Destination,
    results: Destination,
    /// Consumer groups by lane.
    groups: Vec<String>,
    codec: Arc<C::Codec>,
    /// Such as `acme.bank.`
    type_prefix: String,
    /// Of an event's value.
    event_bytes_max: usize,
    topic_ids: Arc<TopicIds>,
}

/// Handles the commands of a context until `shutdown`; `wake` is notified after each commit.
///
/// A client that cannot go on, or a worker that panicked, is replaced: the loop starts over.
///
/// # Errors
/// The database or Kafka cannot be used as they are configured.
pub async fn run<C: BoundedContext>(
    settings: Arc<Settings>,
    codec: Arc<C::Codec>,
    wake: Arc<Notify>,
    health: Arc<Health>,
    shutdown: CancellationToken,
) -> Result<(), ProcessorError> {
    let told = Told::new("the processor starts over");
    loop {
        let started = Instant::now();
        // Ends with this turn: workers that are left must not go on beside those of the next.
        let turn = shutdown.child_token();
        let _ends_with_turn = turn.clone().drop_guard();
        match serve::<C>(settings.clone(), codec.clone(), wake.clone(), health.clone(), turn).await {
            Err(error) if error.is_passing() && !shutdown.is_cancelled() => {
                metrics::counter!("throughline_loop_restarts_total", "loop" => "processor").increment(1);
                told.ended_after(started.elapsed(), &error.to_string());
                shutdown.run_until_cancelled(tokio::time::sleep(START_OVER_WAIT)).await;
            }
            ended => return ended,
        }
    }
}

async fn serve<C: BoundedContext>(
    settings: Arc<Settings>,
    codec: Arc<C::Codec>,
    wake: Arc<Notify>,
    health: Arc<Health>,
    shutdown: CancellationToken,
) -> Result<(), ProcessorError> {
    let heartbeats: Vec<Heartbeat> = (0..settings.processor.workers.max(1))
        .map(|index| health.register(format!("processor worker {} {index}", C::NAME)))
        .collect();
    let names = TopicNames::new(C::NAME, &settings.topics);
    let database = Database::new(&settings.database, &DatabaseRole::Writer)?;
    let Some((events, results)) = find_destinations(&settings, &database, &names, &heartbeats, &shutdown).await? else {
        return Ok(());
    };
    let scope = Arc::new(Scope::<C> {
        events,
        results,
        groups: (0..lanes::LANES).map(|lane| names.processor_group(lane)).collect(),
        codec,
        type_prefix: format!("{}.", C::NAMESPACE),
        event_bytes_max: settings.topics.event_bytes_max as usize,
        topic_ids: Arc::default(),
    });
    let consumers = Arc::new(start_consumers(&settings, &names, &scope, &database, &health)?);
    let mut workers = JoinSet::new();
    for (index, heartbeat) in heartbeats.into_iter().enumerate() {
        workers.spawn(worker(&settings, &scope, &consumers, (index, heartbeat), &wake, &shutdown).run());
    }
    let watched = CancellationToken::new();
    let peek = Arc::new(Peek::new(&settings.kafka)?);
    let watching = tokio::spawn(watch(&settings, &names, &scope, &consumers, (&database, &peek))?.run(watched.clone()));
    tracing::info!(context = C::NAME, workers = workers.len(), "processor runs");

    let mut outcome = Ok(());
    tokio::select! {
        () = shutdown.cancelled() => {}
        ended = workers.join_next() => {
            outcome = match ended {
                Some(Err(error)) => Err(error.into()),
                _ if shutdown.is_cancelled() => Ok(()),
                _ => Err(ProcessorError::Ended),
            };
        }
    }
    watched.cancel();
    for consumer in consumers.iter() {
        consumer.begin_stop();
    }
    while let Some(ended) = workers.join_next().await {
        outcome = outcome.and(ended.map_err(Into::into));
    }
    let passed = gaps::pass_before_the_end(&peek, &database, &consumers, &scope.groups);
    if !matches!(tokio::time::timeout(LAST_LOOK_MAX, passed).await, Ok(Ok(()))) {
        tracing::debug!("ends that hold no record were not looked at");
    }
    for consumer in consumers.iter() {
        // The consumer's own reason says more than that it ended.
        if let Err(error) = consumer.stop().await {
            outcome = Err(error.into());
        }
    }
    outcome = outcome.and(watching.await.map_err(Into::into));
    tracing::info!(context = C::NAME, "processor stopped");
    outcome
}

/// Reads the destinations, waiting for a database that is away; none when shut down meanwhile.
async fn find_destinations(
    settings: &Settings,
    database: &Database,
    names: &TopicNames,
    heartbeats: &[Heartbeat],
    shutdown: &CancellationToken,
) -> Result<Option<(Destination, Destination)>, ProcessorError> {
    let mut backoff = retry::Backoff::new(&settings.processor);
    loop {
        let found = async {
            let client = database.client().await?;
            let events = destinations::find(&client, &names.events()).await?;
            Ok::<_, StoreError>((events, destinations::find(&client, &names.results()).await?))
        };
        match found.await {
            Ok((events, results)) if events.partitions == results.partitions => return Ok(Some((events, results))),
            Ok((events, results)) => {
                return Err(ProcessorError::Store(StoreError::Schema(format!(
                    "topics {} and {} must have the same number of partitions; they have {} and {}",
                    events.name, results.name, events.partitions, results.partitions
                ))));
            }
            Err(error) if error.heals() => {
                let wait = backoff.failed(&error.to_string());
                heartbeats.iter().for_each(|heartbeat| heartbeat.not_ready(error.to_string()));
                tokio::select! {
                    () = tokio::time::sleep(wait) => {}
                    () = shutdown.cancelled() => return Ok(None),
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// One consumer a lane, each with a mailbox for every worker.
fn start_consumers<C: BoundedContext>(
    settings: &Settings,
    names: &TopicNames,
    scope: &Scope<C>,
    database: &Database,
    health: &Arc<Health>,
) -> Result<Vec<Consumer>, ProcessorError> {
    let processor = &settings.processor;
    let owner = match processor.instance_id.as_str() {
        "" => format!("pid {}", std::process::id()),
        instance => instance.to_owned(),
    };
    let mut consumers = Vec::new();
    for (group, topic) in scope.groups.iter().zip(names.lanes()) {
        let options = ConsumerOptions {
            config: client::consumer(&settings.kafka, group, &processor.instance_id),
            topics: vec![topic],
            workers: processor.workers,
            queue_records_max: processor.queue_commands_max,
            queue_bytes_max: processor.batch_bytes_max.saturating_mul(4),
            read_committed_offsets: false,
            partitions: health.partitions("processor"),
            heartbeat: health.register(format!("consumer {group}")),
            halt_retry: Duration::from_millis(settings.kafka.halt_retry_ms),
        };
        let owner = OffsetsOwner {
            database: database.clone(),
            runtime: Handle::current(),
            group: group.clone(),
            owner: owner.clone(),
            on_lost: processor.on_lost_offsets,
            topic_ids: scope.topic_ids.clone(),
            kafka: client::inquirer(&settings.kafka)?,
            request_wait: Duration::from_millis(u64::from(settings.kafka.request_timeout_ms)),
        };
        consumers.push(Consumer::start(options, owner)?);
    }
    Ok(consumers)
}

fn worker<C: BoundedContext>(
    settings: &Arc<Settings>,
    scope: &Arc<Scope<C>>,
    consumers: &Arc<Vec<Consumer>>,
    (index, heartbeat): (usize, Heartbeat),
    wake: &Arc<Notify>,
    shutdown: &CancellationToken,
) -> Worker<C> {
    let processor = &settings.processor;
    Worker {
        settings: settings.clone(),
        scope: scope.clone(),
        consumers: consumers.clone(),
        lanes: Lanes {
            mailboxes: std::array::from_fn(|lane| consumers[lane].mailboxes()[index].clone()),
            weights: processor.lane_weights,
            extent: Extent::new(processor.batch_commands_max),
            bytes_max: processor.batch_bytes_max,
        },
        intake: Intake { partitions: scope.events.partitions, command_bytes_max: processor.command_bytes_max },
        states: States::new(processor.cache_bytes_max),
        session: None,
        heartbeat,
        wake: wake.clone(),
        shutdown: shutdown.clone(),
        announced: HashMap::new(),
        drawn: None,
        draws_ahead: false,
    }
}

fn watch<C: BoundedContext>(
    settings: &Settings,
    names: &TopicNames,
    scope: &Scope<C>,
    consumers: &Arc<Vec<Consumer>>,
    (database, peek): (&Database, &Arc<Peek>),
) -> Result<Watch, ProcessorError> {
    let kafka = Arc::new(client::inquirer(&settings.kafka)?);
    let request_wait = Duration::from_millis(u64::from(settings.kafka.request_timeout_ms));
    Ok(Watch {
        backlog: Backlog {
            context: C::NAME,
            kafka: kafka.clone(),
            database: database.clone(),
            lanes: names.lanes().into_iter().zip(scope.groups.iter().cloned()).collect(),
            partitions: settings.topics.command_partitions,
            request_wait,
        },
        kafka,
        request_wait,
        topics: names.lanes().to_vec(),
        consumers: consumers.clone(),
        topic_ids: scope.topic_ids.clone(),
        peek: peek.clone(),
    })
}
