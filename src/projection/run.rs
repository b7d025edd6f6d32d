//! The loop of one projection: wait until it may run, consume, apply, follow.
//!
//! Each projection has a thread and a runtime of its own, so that a handler that blocks stops its
//! own projection and nothing else. Trouble never ends the loop: it starts over, for ever.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::apply::Applier;
use super::claim::CheckpointOwner;
use super::state::{self, Readiness};
use super::{ProjectionLoopError, Projector, reset};
use crate::engine::{EventCodec, Projection};
use crate::health::{Health, Heartbeat, Partitions, Told};
use crate::kafka::topics::TopicNames;
use crate::kafka::{Consumer, ConsumerOptions, KafkaError, Mailbox, TopicPartition, client};
use crate::settings::Settings;
use crate::store;

/// How finely the linger looks whether the batch is full.
const LINGER_STEP: Duration = Duration::from_millis(5);

/// Runs `projection` until `shutdown`. Waits, without consuming, while it is paused, not installed
/// or of another version than its tables.
///
/// # Errors
/// Settings that no retry can cure.
pub async fn run<E: Send + Sync + 'static>(
    settings: Arc<Settings>,
    names: TopicNames,
    projection: Arc<dyn Projection<Event = E>>,
    codec: Arc<dyn EventCodec<Event = E>>,
    health: Arc<Health>,
    shutdown: CancellationToken,
) -> Result<(), ProjectionLoopError> {
    store::connect::check(&settings.database)?;
    let projector = Projector::new(settings, &names, projection, codec);
    let name = projector.name();
    let heartbeat = health.register(format!("projection {name}"));
    let partitions = health.partitions(format!("projection {name}"));
    let (done, outcome) = tokio::sync::oneshot::channel();
    let fatal = move |reason: String| KafkaError::Fatal(format!("projection {name}: {reason}"));
    std::thread::Builder::new()
        .name(format!("projection {name}"))
        .spawn(move || {
            let ended = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(|error| fatal(format!("cannot start a runtime: {error}")).into())
                .and_then(|runtime| runtime.block_on(supervise(&projector, &heartbeat, &partitions, &shutdown)));
            // Nobody listens any more only when the process is ending.
            let _ = done.send(ended);
        })
        .map_err(|error| fatal(format!("cannot start a thread: {error}")))?;
    outcome.await.unwrap_or_else(|_| Err(fatal("the loop's thread panicked".into()).into()))
}

async fn supervise<E: Send + Sync + 'static>(
    projector: &Projector<E>,
    heartbeat: &Heartbeat,
    partitions: &Partitions,
    shutdown: &CancellationToken,
) -> Result<(), ProjectionLoopError> {
    let name = projector.name();
    let waits = Told::new(format!("projection {name} does not consume"));
    let breaks = Told::new(format!("the loop of projection {name} starts over"));
    let limit = projector.settings.database.round_trip();
    // What worked once is no mistake in the settings: a file that they name is away, for a while.
    let mut begun = false;
    while !shutdown.is_cancelled() {
        let looked = store::bounded(limit, "look at the state", state::readiness(projector));
        let waiting = match heartbeat.while_waiting("the projection's state", looked).await {
            Ok(Readiness::Ready) => {
                waits.well();
                heartbeat.ready();
                let started = Instant::now();
                match session(projector, heartbeat, partitions, shutdown).await {
                    Ok(()) => {
                        begun = true;
                        continue;
                    }
                    Err(error @ ProjectionLoopError::Kafka(KafkaError::Settings(_))) if !begun => return Err(error),
                    Err(error) => {
                        begun = true;
                        heartbeat.not_ready(error.to_string());
                        breaks.ended_after(started.elapsed(), &error.to_string());
                        None
                    }
                }
            }
            Ok(Readiness::Waiting(reason)) => {
                // It does what it was told to, and a process must not lose its requests by that.
                heartbeat.ready();
                Some(reason)
            }
            Err(error) => {
                heartbeat.not_ready(error.to_string());
                Some(error.to_string())
            }
        };
        if let Some(reason) = waiting {
            waits.failed(&reason);
        }
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = tokio::time::sleep(poll_wait(projector)) => {}
        }
    }
    Ok(())
}

fn poll_wait<E: Send + Sync>(projector: &Projector<E>) -> Duration {
    Duration::from_millis(projector.settings.projection.state_poll_ms.max(10))
}

/// Consumes until shutdown, or until the projection may not run any more.
async fn session<E: Send + Sync + 'static>(
    projector: &Projector<E>,
    heartbeat: &Heartbeat,
    partitions: &Partitions,
    shutdown: &CancellationToken,
) -> Result<(), ProjectionLoopError> {
    let options = consumer_options(projector, heartbeat, partitions);
    let consumer = Arc::new(Consumer::start(options, CheckpointOwner { projector: projector.clone() })?);
    let mailbox = consumer.mailboxes()[0].clone();
    let applier =
        Applier::new(projector.clone(), consumer.clone(), mailbox.clone(), heartbeat.clone(), shutdown.clone());
    let looped = consume(applier, &consumer, &mailbox, shutdown).await;
    let stopped = consumer.stop().await;
    partitions.all_gone();
    looped?;
    Ok(stopped?)
}

pub(super) fn consumer_options<E: Send + Sync>(
    projector: &Projector<E>,
    heartbeat: &Heartbeat,
    partitions: &Partitions,
) -> ConsumerOptions {
    let settings = &projector.settings;
    ConsumerOptions {
        config: client::consumer(&settings.kafka, &projector.group, ""),
        topics: vec![projector.topic.clone()],
        workers: 1,
        queue_records_max: settings.projection.queue_events_max,
        queue_bytes_max: settings.projection.queue_bytes_max,
        read_committed_offsets: true,
        partitions: partitions.clone(),
        heartbeat: heartbeat.register_part("consumer"),
        halt_retry: Duration::from_millis(settings.kafka.halt_retry_ms),
    }
}

async fn consume<E: Send + Sync + 'static>(
    mut applier: Applier<E>,
    consumer: &Consumer,
    mailbox: &Mailbox,
    shutdown: &CancellationToken,
) -> Result<(), ProjectionLoopError> {
    let projector = applier.projector.clone();
    let limits = &projector.settings.projection;
    let mut announced: HashMap<TopicPartition, i64> = HashMap::new();
    let mut tick = tokio::time::interval(poll_wait(&projector));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let batch = tokio::select! {
            biased;
            () = shutdown.cancelled() => return Ok(()),
            _ = tick.tick() => {
                announce(&mut announced, consumer, mailbox);
                let heartbeat = applier.heartbeat.clone();
                let limit = projector.settings.database.round_trip();
                let sampled = store::bounded(limit, "look at the state", state::sample(&mut applier));
                match heartbeat.while_waiting("the projection's state", sampled).await {
                    Ok(Readiness::Ready) => applier.heartbeat.ready(),
                    Ok(Readiness::Waiting(_)) => return Ok(()),
                    // The batches notice as well, and keep trying.
                    Err(error) => {
                        tracing::debug!(projection = projector.name(), %error, "look at the state");
                        applier.heartbeat.not_ready(error.to_string());
                    }
                }
                continue;
            }
            batch = mailbox.take(applier.extent.now(), limits.batch_bytes_max) => batch,
        };
        let Some(batch) = batch else { return Ok(()) };
        applier.process(batch).await;
        linger(mailbox, applier.extent.now(), Duration::from_millis(limits.linger_ms)).await;
    }
}

/// While behind, lets a batch fill up; caught up (nothing waits), returns at once.
async fn linger(mailbox: &Mailbox, full: usize, limit: Duration) {
    let deadline = tokio::time::Instant::now() + limit;
    while !mailbox.is_empty() && mailbox.len() < full && tokio::time::Instant::now() < deadline {
        tokio::time::sleep(LINGER_STEP.min(limit)).await;
    }
}

/// Marks fresh claims as ours in Kafka, so that an operator's empty metadata is gone for good.
fn announce(announced: &mut HashMap<TopicPartition, i64>, consumer: &Consumer, mailbox: &Mailbox) {
    let claims = mailbox.claims();
    announced.retain(|source, _| claims.contains_key(source));
    for (source, claim) in claims {
        if announced.insert(source.clone(), claim.epoch) != Some(claim.epoch) {
            consumer.commit(&source, claim.next_offset, reset::metadata(claim.epoch));
        }
    }
}
