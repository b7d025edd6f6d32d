//! The loop of one process manager: wait until it may run, consume, fire what is due, send.
//!
//! Trouble never ends the loop: it starts over, for ever.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::apply::Applier;
use super::claim::CheckpointOwner;
use super::state::{self, Readiness};
use super::{Managed, ProcessError, deadline, send};
use crate::engine::ProcessManager;
use crate::health::{Health, Heartbeat, Partitions, Told};
use crate::kafka::{Consumer, ConsumerOptions, KafkaError, Mailbox, Peek, client};
use crate::store::partitions::Stopwatch;
use crate::store::{self, Extent, Line, StoreError, bounded};

/// What was sent and is not acknowledged is waited for at a stop, and sent again otherwise.
const LAST_SENDS: Duration = Duration::from_secs(5);

/// Runs the process until `shutdown`. Waits, without consuming, while it is paused or not installed.
///
/// # Errors
/// Settings that no retry can cure.
pub(super) async fn run<P: ProcessManager>(
    managed: Arc<Managed<P>>,
    health: Arc<Health>,
    shutdown: CancellationToken,
) -> Result<(), ProcessError> {
    store::connect::check(&managed.settings.database)?;
    let heartbeat = health.register(format!("process {}", P::NAME));
    let partitions = health.partitions(format!("process {}", P::NAME));
    let waits = Told::new(format!("process {} does not run", P::NAME));
    let breaks = Told::new(format!("the loop of process {} starts over", P::NAME));
    // What worked once is no mistake in the settings: a file that they name is away, for a while.
    let mut begun = false;
    while !shutdown.is_cancelled() {
        let limit = managed.settings.database.round_trip();
        let looked = bounded(limit, "look at the state", state::readiness(&managed));
        let waiting = match heartbeat.while_waiting("the process's state", looked).await {
            Ok(Readiness::Ready) => {
                waits.well();
                heartbeat.ready();
                let started = Instant::now();
                match session(&managed, &heartbeat, &partitions, &shutdown).await {
                    Ok(()) => {
                        begun = true;
                        continue;
                    }
                    Err(error @ ProcessError::Kafka(KafkaError::Settings(_))) if !begun => return Err(error),
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
        let pause = heartbeat.during(tokio::time::sleep(poll_wait(&managed)));
        shutdown.run_until_cancelled(pause).await;
    }
    Ok(())
}

fn poll_wait<P: ProcessManager>(managed: &Managed<P>) -> Duration {
    Duration::from_millis(managed.settings.process.poll_ms)
}

/// Consumes, fires and sends until shutdown, or until the process may not run any more.
async fn session<P: ProcessManager>(
    managed: &Arc<Managed<P>>,
    heartbeat: &Heartbeat,
    partitions: &Partitions,
    shutdown: &CancellationToken,
) -> Result<(), ProcessError> {
    let settings = &managed.settings;
    let options = ConsumerOptions {
        config: client::consumer(&settings.kafka, &managed.group, ""),
        topics: managed.feeds.keys().cloned().collect(),
        workers: 1,
        queue_records_max: settings.process.queue_records_max,
        queue_bytes_max: settings.process.queue_bytes_max,
        read_committed_offsets: false,
        partitions: partitions.clone(),
        heartbeat: heartbeat.register_part("consumer"),
        halt_retry: Duration::from_millis(settings.kafka.halt_retry_ms),
    };
    let owner =
        CheckpointOwner { managed: managed.clone(), peek: Peek::new(&settings.kafka)?, runtime: Handle::current() };
    let consumer = Arc::new(Consumer::start(options, owner)?);
    let mailbox = consumer.mailboxes()[0].clone();
    let wake = Arc::new(Notify::new());
    let stop_sending = CancellationToken::new();
    let _ends_with_us = stop_sending.clone().drop_guard();
    let sending = send::run(managed.clone(), wake.clone(), heartbeat.register_part("sender"), stop_sending.clone());
    let sender = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(sending));
    let applier = Applier {
        managed: managed.clone(),
        consumer: consumer.clone(),
        mailbox: mailbox.clone(),
        heartbeat: heartbeat.clone(),
        shutdown: shutdown.clone(),
        wake,
        line: None,
        extent: Extent::new(settings.process.batch_records_max),
        breaks: Told::new(format!("process {} tries a batch again for as long as it takes", P::NAME)),
    };
    let looped = consume(applier, &mailbox, shutdown).await;
    let stopped = consumer.stop().await;
    partitions.all_gone();
    stop_sending.cancel();
    // Whatever is not acknowledged by then is sent again by whoever goes on.
    let _ = tokio::time::timeout(LAST_SENDS, sender).await;
    looped?;
    Ok(stopped?)
}

async fn consume<P: ProcessManager>(
    mut applier: Applier<P>,
    mailbox: &Mailbox,
    shutdown: &CancellationToken,
) -> Result<(), ProcessError> {
    let managed = applier.managed.clone();
    let limits = &managed.settings.process;
    let mut ticker = Ticker { stopwatch: Stopwatch::default(), line: None };
    let mut tick = tokio::time::interval(poll_wait(&managed));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let batch = tokio::select! {
            biased;
            () = shutdown.cancelled() => return Ok(()),
            _ = tick.tick() => {
                let heartbeat = applier.heartbeat.clone();
                match heartbeat.while_waiting("deadlines", ticker.turn(&applier)).await {
                    Ok(Readiness::Ready) => heartbeat.ready(),
                    Ok(Readiness::Waiting(_)) => return Ok(()),
                    // The batches notice as well, and keep trying.
                    Err(error) => {
                        tracing::debug!(process = P::NAME, %error, "look for deadlines");
                        heartbeat.not_ready(error.to_string());
                    }
                }
                continue;
            }
            batch = mailbox.take(applier.extent.now(), limits.batch_bytes_max) => batch,
        };
        let Some(batch) = batch else { return Ok(()) };
        applier.process(batch).await;
    }
}

/// What is looked at from time to time: how much time passed, what is due, whether to go on.
struct Ticker {
    stopwatch: Stopwatch,
    line: Option<Line>,
}

impl Ticker {
    async fn turn<P: ProcessManager>(&mut self, applier: &Applier<P>) -> Result<Readiness, StoreError> {
        let managed = &applier.managed;
        let mut line = match self.line.take().filter(|line| !line.is_closed()) {
            Some(line) => line,
            None => managed.connect().await?,
        };
        let limit = managed.settings.database.round_trip();
        bounded(limit, "tell the store how much time passed", self.stopwatch.tell(&line)).await?;
        if deadline::fire(managed, &mut line).await?.commands > 0 {
            applier.wake.notify_one();
        }
        let readiness = bounded(limit, "look at the state", state::sample(&*line, applier)).await?;
        self.line = Some(line);
        Ok(readiness)
    }
}
