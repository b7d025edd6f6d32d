//! Everybody who waits for a command's outcome, served by one poller and one query a look.
//!
//! A waiter waits for a command id in its stream: what became of the same id in another is no answer to it.
//! PostgreSQL decides; a waiter learns the outcome at the next look after its commit. Looks are 2 to
//! 20 ms apart while somebody waits, and there are none while nobody does.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::engine::destination_partition;
use crate::health::{Heartbeat, Told};
use crate::settings::Settings;
use crate::store::commands::StoredOutcome;
use crate::store::{Database, StoreError, commands};

/// A turn of a poller that nobody waits for.
pub(super) const IDLE_TURN: Duration = Duration::from_secs(1);

/// The waiters of one server.
pub struct Outcomes {
    waiting: Mutex<HashMap<Awaited, Waiters>>,
    arrived: Notify,
    waiters_max: usize,
    partitions: i32,
    poll_min: Duration,
    poll_max: Duration,
}

/// A command id, and the stream that it counts in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Awaited {
    stream_id: Uuid,
    command_id: Uuid,
}

struct Waiters {
    partition: i32,
    answers: Vec<oneshot::Sender<StoredOutcome>>,
}

/// One waiter; leaves when dropped.
pub struct Waiter {
    outcomes: Arc<Outcomes>,
    awaited: Awaited,
    answer: oneshot::Receiver<StoredOutcome>,
}

impl Outcomes {
    /// No waiters yet.
    pub fn new(settings: &Settings) -> Arc<Self> {
        Arc::new(Self {
            waiting: Mutex::default(),
            arrived: Notify::new(),
            waiters_max: settings.http.sync_waiters_max,
            partitions: settings.topics.event_partitions,
            poll_min: Duration::from_millis(settings.http.poll_min_ms.max(1)),
            poll_max: Duration::from_millis(settings.http.poll_max_ms.max(settings.http.poll_min_ms).max(1)),
        })
    }

    /// Waits for the outcome of a command in its stream; none where as many wait as may.
    pub fn register(self: &Arc<Self>, command_id: Uuid, stream_id: Uuid) -> Option<Waiter> {
        let (sender, answer) = oneshot::channel();
        let awaited = Awaited { stream_id, command_id };
        {
            let mut waiting = self.lock();
            if waiting.len() >= self.waiters_max && !waiting.contains_key(&awaited) {
                return None;
            }
            let partition = destination_partition(stream_id, self.partitions);
            let waiters = waiting.entry(awaited).or_insert(Waiters { partition, answers: Vec::new() });
            waiters.answers.push(sender);
        }
        self.arrived.notify_one();
        Some(Waiter { outcomes: self.clone(), awaited, answer })
    }

    /// Serves the waiters until cancelled. `events_topic` is the destination whose outcomes count.
    pub async fn run(
        self: Arc<Self>,
        database: Database,
        events_topic: String,
        heartbeat: Heartbeat,
        shutdown: CancellationToken,
    ) {
        let mut pause = self.poll_min;
        let told = Told::new("outcomes cannot be read, and waiting calls go on waiting");
        // Ready for good: whether the database answers, the admission's loop tells.
        heartbeat.ready();
        loop {
            heartbeat.beat();
            let asked = self.asked();
            metrics::gauge!("throughline_http_sync_waiters", "topic" => events_topic.clone())
                .set(asked.partitions.len() as f64);
            if asked.partitions.is_empty() {
                pause = self.poll_min;
                tokio::select! {
                    () = shutdown.cancelled() => return,
                    () = self.arrived.notified() => continue,
                    // Nobody waits: a look at the clock, for the heartbeat's sake.
                    () = tokio::time::sleep(IDLE_TURN) => continue,
                }
            }
            match decided(&database, &events_topic, &asked).await {
                Ok(found) => {
                    told.well();
                    pause = if found.is_empty() { self.poll_max.min(pause * 3 / 2) } else { self.poll_min };
                    self.answer(found);
                }
                Err(error) => {
                    told.failed(&error.to_string());
                    pause = self.poll_max;
                }
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
                // Somebody new may be answered soon: look again at the fast pace.
                () = self.arrived.notified() => {
                    pause = self.poll_min;
                    tokio::time::sleep(pause).await;
                }
            }
        }
    }

    fn asked(&self) -> Asked {
        let waiting = self.lock();
        Asked {
            partitions: waiting.values().map(|waiters| waiters.partition).collect(),
            streams: waiting.keys().map(|awaited| awaited.stream_id).collect(),
            commands: waiting.keys().map(|awaited| awaited.command_id).collect(),
        }
    }

    fn answer(&self, found: Vec<StoredOutcome>) {
        let mut waiting = self.lock();
        for outcome in found {
            let awaited = Awaited { stream_id: outcome.stream_id, command_id: outcome.command_id };
            let Some(waiters) = waiting.remove(&awaited) else { continue };
            for answer in waiters.answers {
                // A waiter that left meanwhile needs no answer.
                drop(answer.send(outcome.clone()));
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Awaited, Waiters>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiter {
    /// The outcome, or none when `wait` runs out.
    pub async fn wait(mut self, wait: Duration) -> Option<StoredOutcome> {
        tokio::time::timeout(wait, &mut self.answer).await.ok()?.ok()
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.answer.close();
        let mut waiting = self.outcomes.lock();
        if let Some(waiters) = waiting.get_mut(&self.awaited) {
            waiters.answers.retain(|answer| !answer.is_closed());
            if waiters.answers.is_empty() {
                waiting.remove(&self.awaited);
            }
        }
    }
}

/// What is waited for, as columns.
struct Asked {
    partitions: Vec<i32>,
    streams: Vec<Uuid>,
    commands: Vec<Uuid>,
}

/// Outcomes decided lately. Who waits has handed the command over just now, and older outcomes were
/// looked up before; the bound keeps the look within the newest time partitions, and the lateral
/// within the key: a join would be planned for an empty table, and walk it once it is full.
async fn decided(database: &Database, events_topic: &str, asked: &Asked) -> Result<Vec<StoredOutcome>, StoreError> {
    let Asked { partitions, streams, commands: ids } = asked;
    let client = database.client().await?;
    let statement = client
        .prepare_cached(
            "select c.command_id, c.stream_id, c.payload_hash, c.accepted, c.code, c.reason, c.version,
                    c.partition, c.seq, c.correlation_id, c.decided_at
             from throughline.topics t
             cross join unnest($2::int[], $3::uuid[], $4::uuid[]) asked (partition, stream_id, command_id)
             cross join lateral (
                 select * from throughline.commands c
                 where c.partition = asked.partition and c.topic = t.id and c.command_id = asked.command_id
                   and c.stream_id = asked.stream_id
                   and c.decided_at > now() - interval '1 hour'
                 order by c.decided_at limit 1) c
             where t.name = $1",
        )
        .await
        .map_err(StoreError::at("prepare outcomes"))?;
    let rows = client
        .query(&statement, &[&events_topic, partitions, streams, ids])
        .await
        .map_err(StoreError::at("read outcomes"))?;
    Ok(rows.iter().map(commands::outcome).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(command_id: Uuid, stream_id: Uuid) -> StoredOutcome {
        StoredOutcome {
            command_id,
            stream_id,
            payload_hash: Vec::new(),
            accepted: true,
            code: None,
            reason: None,
            version: Some(1),
            partition: 0,
            seq: Some(1),
            correlation_id: String::new(),
            decided_at: jiff::Timestamp::UNIX_EPOCH,
        }
    }

    #[tokio::test]
    async fn every_waiter_of_a_command_is_answered_and_forgotten() {
        let outcomes = Outcomes::new(&Settings::default());
        let id = Uuid::from_u128(1);
        let waiters = [(); 2].map(|()| outcomes.register(id, id).unwrap());
        outcomes.answer(vec![outcome(id, id), outcome(Uuid::from_u128(2), id)]);
        for waiter in waiters {
            assert_eq!(waiter.wait(Duration::from_secs(1)).await.unwrap().command_id, id);
        }
        assert!(outcomes.lock().is_empty());
    }

    #[tokio::test]
    async fn an_outcome_in_another_stream_is_no_answer() {
        let outcomes = Outcomes::new(&Settings::default());
        let [id, mine, other] = [1, 2, 3].map(Uuid::from_u128);
        let (waits, answered) = (outcomes.register(id, mine).unwrap(), outcomes.register(id, other).unwrap());
        outcomes.answer(vec![outcome(id, other)]);
        assert_eq!(answered.wait(Duration::from_secs(1)).await.unwrap().stream_id, other);
        assert_eq!(outcomes.lock().len(), 1);
        outcomes.answer(vec![outcome(id, mine)]);
        assert_eq!(waits.wait(Duration::from_secs(1)).await.unwrap().stream_id, mine);
    }

    #[tokio::test]
    async fn a_waiter_that_gives_up_leaves() {
        let outcomes = Outcomes::new(&Settings::default());
        let id = Uuid::from_u128(1);
        let stays = outcomes.register(id, id).unwrap();
        assert!(outcomes.register(id, id).unwrap().wait(Duration::ZERO).await.is_none());
        assert_eq!(outcomes.lock().len(), 1);
        drop(stays);
        assert!(outcomes.lock().is_empty());
    }

    #[tokio::test]
    async fn waiters_are_bounded() {
        let mut settings = Settings::default();
        settings.http.sync_waiters_max = 1;
        let outcomes = Outcomes::new(&settings);
        let id = Uuid::from_u128(1);
        let _one = outcomes.register(id, id).unwrap();
        assert!(outcomes.register(Uuid::from_u128(2), id).is_none());
        assert!(outcomes.register(id, id).is_some(), "the same command costs no further look");
    }
}
