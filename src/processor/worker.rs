//! One worker: draws a batch, tries it in one transaction, follows up, and starts again.
//!
//! Only PostgreSQL's commit counts; what follows (cache, Kafka's offsets, the relay's wake-up) may be lost
//! without harm. What becomes of a try that fails is [`super::settle`]'s matter.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::crash_point;
use crate::engine::BoundedContext;
use crate::health::Heartbeat;
use crate::kafka::{Claim, Consumer, TopicPartition};
use crate::settings::Settings;
use crate::store::connect::PING_WAIT;
use crate::store::{self, StoreError, partitions};

use super::batch::{Batch, Source};
use super::cache::States;
use super::intake::Intake;
use super::lanes::Lanes;
use super::retry::BatchFailure;
use super::session::Session;
use super::{Payload, Scope, append, decide, load};

/// Claims that stood still are made known to Kafka this often, so that lag reads right.
const ANNOUNCE_INTERVAL: Duration = Duration::from_secs(1);

/// The state of one worker.
pub(super) struct Worker<C: BoundedContext> {
    pub settings: Arc<Settings>,
    pub scope: Arc<Scope<C>>,
    pub consumers: Arc<Vec<Consumer>>,
    pub lanes: Lanes,
    pub intake: Intake,
    pub states: States<C::Aggregate>,
    pub session: Option<Session>,
    pub heartbeat: Heartbeat,
    pub wake: Arc<Notify>,
    pub shutdown: CancellationToken,
    /// Epochs whose offset Kafka has been told.
    pub announced: HashMap<TopicPartition, i64>,
    /// The batch after the one at hand, drawn while that one was being written.
    pub drawn: Option<Batch<Payload<C>>>,
    /// Whether the batch at hand is the last before what is drawn next; a half is not.
    pub draws_ahead: bool,
}

impl<C: BoundedContext> Worker<C> {
    /// Works until the mailboxes are closed. The batch at hand is finished first.
    pub async fn run(mut self) {
        self.stay_connected().await;
        loop {
            self.heartbeat.beat();
            self.pass_gaps().await;
            if let Some(batch) = self.drawn.take().filter(|_| !self.shutdown.is_cancelled()) {
                self.settle(batch).await;
                continue;
            }
            match tokio::time::timeout(ANNOUNCE_INTERVAL, self.lanes.wait_filled()).await {
                Ok(true) => {
                    let batch = self.draw(None);
                    if !batch.commands.is_empty() {
                        crash_point!("processor.after_take");
                        self.settle(batch).await;
                    }
                }
                Ok(false) => return,
                Err(_) => {
                    self.announce();
                    self.stay_connected().await;
                }
            }
        }
    }

    /// An idle worker keeps its session too, and asks whether it is one: it is ready only as long as the next
    /// command would find it.
    async fn stay_connected(&mut self) {
        let (shutdown, heartbeat) = (self.shutdown.clone(), self.heartbeat.clone());
        let asked = async {
            let session = self.take_session().await?;
            store::ping(&session.client, PING_WAIT).await?;
            self.session = Some(session);
            Ok::<_, StoreError>(())
        };
        match shutdown.run_until_cancelled(heartbeat.while_waiting("a session", asked)).await {
            Some(Ok(())) => heartbeat.ready(),
            Some(Err(error)) => heartbeat.not_ready(error.to_string()),
            None => {}
        }
    }

    /// The session, or a new one. What one session has seen ends with it: the next may be with a server that was a
    /// standby then, and lacks what the standby had not received.
    async fn take_session(&mut self) -> Result<Session, StoreError> {
        match self.session.take().filter(|session| !session.client.is_closed()) {
            Some(session) => Ok(session),
            None => {
                self.states.clear();
                Session::open(&self.settings.database).await
            }
        }
    }

    /// Draws a batch and turns its records into commands, before any transaction opens. What is
    /// drawn while `before` is not committed yet counts only if that one does commit: it expects
    /// the offsets that `before` leaves.
    fn draw(&self, before: Option<&Batch<Payload<C>>>) -> Batch<Payload<C>> {
        let mut batch = Batch { sources: Vec::new(), commands: Vec::new() };
        for (lane, drawn) in self.lanes.draw().into_iter().enumerate() {
            let Some(drawn) = drawn else { continue };
            let mut indices: HashMap<TopicPartition, (usize, String)> = HashMap::new();
            for record in drawn.records {
                if !indices.contains_key(&record.source) {
                    let Some(claim) = drawn.claims.get(&record.source) else { continue };
                    let place = record.source.clone();
                    let namespace = self.scope.topic_ids.namespace(&place.topic);
                    indices.insert(place.clone(), (batch.sources.len(), namespace));
                    let epoch = claim.epoch;
                    let left = before.and_then(|before| before.left_at(lane, &place, epoch));
                    let expected = left.unwrap_or(claim.next_offset);
                    batch.sources.push(Source {
                        lane,
                        place,
                        epoch,
                        expected,
                        next: expected,
                        out: false,
                        lost: false,
                    });
                }
                let (index, namespace) = &indices[&record.source];
                let source = &mut batch.sources[*index];
                source.next = record.offset + 1;
                let command = self.intake.admit::<C>(record, *index, source, namespace);
                batch.commands.push(command);
            }
        }
        batch
    }

    /// One transaction. An error leaves nothing behind, save an unknown end of the commit.
    pub(super) async fn attempt(&mut self, batch: &mut Batch<Payload<C>>) -> Result<(), BatchFailure> {
        let session = self.take_session().await?;
        let outcome = self.transact(&session, batch).await;
        for source in batch.sources.iter_mut().filter(|source| source.lost) {
            tracing::info!(partition = %source.place, epoch = source.epoch,
                "another claim took this partition over, or an earlier try did commit; its commands leave the batch");
            metrics::counter!("throughline_processor_claims_lost_total").increment(1);
            self.consumers[source.lane].reclaim(&source.place, source.epoch);
            source.lost = false;
        }
        match outcome {
            Ok(()) => {
                self.session = Some(session);
                Ok(())
            }
            Err(failure) => {
                // Of any other failure the session may be a part: it is dropped, and the server rolls back.
                if failure.leaves_the_session() && session.roll_back().await {
                    if let BatchFailure::NoPartition(_) = failure {
                        // Whoever keeps house has not seen yet that the clock was set; the next try finds them.
                        let extended = partitions::extend(&session.client, &self.settings.database);
                        let limit = self.settings.database.round_trip();
                        store::bounded(limit, "make time partitions", extended).await?;
                    }
                    self.session = Some(session);
                }
                Err(failure)
            }
        }
    }

    async fn transact(&mut self, session: &Session, batch: &mut Batch<Payload<C>>) -> Result<(), BatchFailure> {
        let loaded = load::load(session, &self.scope, &mut self.states, batch).await?;
        crash_point!("processor.after_load");
        if batch.is_done() {
            let gone = || BatchFailure::World("the connection broke while a batch was rolled back".into());
            return if session.roll_back().await { Ok(()) } else { Err(gone()) };
        }
        let mut decided = decide::decide(&self.scope, batch, loaded)?;
        crash_point!("processor.after_decide");
        let every = self.settings.processor.snapshot_every_events;
        // A full batch more is waiting: it is read while PostgreSQL writes this one. Without a
        // backlog it is left to grow, so that batches are as large as they can be.
        let ahead = self.draws_ahead && self.drawn.is_none() && self.lanes.waiting() >= self.lanes.extent.now();
        let (appended, drawn) =
            futures_util::join!(append::append(session, &self.scope, batch, &mut decided, every), async {
                ahead.then(|| self.draw(Some(batch)))
            });
        self.drawn = self.drawn.take().or(drawn).filter(|drawn| !drawn.commands.is_empty());
        appended?;
        crash_point!("processor.after_commit");
        for (stream_id, state) in decided.streams {
            if state.version > 0 {
                self.states.put(stream_id, state);
            }
        }
        for (code, count) in decided.tally {
            metrics::counter!("throughline_commands_total", "context" => C::NAME, "code" => code).increment(count);
        }
        Ok(())
    }

    /// What follows a commit. Losing any of it does no harm.
    pub(super) fn follow_up(&mut self, batch: &Batch<Payload<C>>, started: Instant) {
        self.wake.notify_one();
        for source in batch.moving() {
            let claim = Claim { epoch: source.epoch, next_offset: source.next, seq: 0 };
            self.lanes.mailboxes[source.lane].advance(&source.place, &claim);
            crash_point!("processor.before_offset_commit");
            self.consumers[source.lane].commit(&source.place, source.next, metadata(source.epoch));
            self.announced.insert(source.place.clone(), source.epoch);
        }
        let latency = metrics::histogram!("throughline_command_decided_seconds", "context" => C::NAME);
        let now = Timestamp::now().as_millisecond();
        let mut count = 0u32;
        for (_, command) in batch.live() {
            count += 1;
            if command.record.timestamp_ms > 0 {
                latency.record((now - command.record.timestamp_ms).max(0) as f64 / 1_000.0);
            }
        }
        metrics::histogram!("throughline_processor_batch_commands").record(f64::from(count));
        metrics::histogram!("throughline_processor_batch_seconds").record(started.elapsed().as_secs_f64());
        metrics::gauge!("throughline_aggregate_cache_bytes", "context" => C::NAME).set(self.states.bytes() as f64);
        metrics::gauge!("throughline_processor_waiting_commands", "context" => C::NAME)
            .set(self.lanes.waiting() as f64);
    }

    /// After a takeover, an idle partition's offset in Kafka would stay behind for ever.
    fn announce(&mut self) {
        for (lane, mailbox) in self.lanes.mailboxes.iter().enumerate() {
            for (place, claim) in mailbox.claims() {
                if self.announced.get(&place) != Some(&claim.epoch) {
                    self.consumers[lane].commit(&place, claim.next_offset, metadata(claim.epoch));
                    self.announced.insert(place, claim.epoch);
                }
            }
        }
    }
}

/// Marks a Kafka offset as ours: Kafka's own reset tool leaves it empty.
fn metadata(epoch: i64) -> String {
    format!("e={epoch}")
}
