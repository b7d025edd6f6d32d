//! A batch until nothing of it is left to do, whatever stands in its way.
//!
//! A batch is settled when every source in it has moved on: committed, lost to another claim, or made to stand
//! until it is claimed anew. What is the world's is waited out; what is too much is halved, and so is a batch with
//! a command that breaks it. Only PostgreSQL's commit settles anything.

use std::time::Instant;

use uuid::Uuid;

use crate::engine::BoundedContext;

use super::Payload;
use super::batch::Batch;
use super::intake::{Ask, COMMAND_FAILED};
use super::retry::{Backoff, BatchFailure};
use super::worker::Worker;

/// Tries of what cannot be asked for in smaller parts, without being to blame; then its partition makes way for
/// the others.
const TRIES_AS_IT_IS: u32 = 2;

/// What it took so far.
struct Tries {
    backoff: Backoff,
    /// Of one batch as it is, in a row.
    as_it_is: u32,
}

impl<C: BoundedContext> Worker<C> {
    /// Tries a batch until nothing of it is left to do.
    pub(super) async fn settle(&mut self, batch: Batch<Payload<C>>) {
        let mut todo = vec![batch];
        let mut tries = Tries { backoff: Backoff::new(&self.settings.processor), as_it_is: 0 };
        while let Some(mut batch) = todo.pop() {
            self.drop_revoked(&mut batch);
            if batch.is_done() {
                continue;
            }
            let started = Instant::now();
            self.heartbeat.beat();
            self.draws_ahead = todo.is_empty();
            let heartbeat = self.heartbeat.clone();
            match heartbeat.while_waiting("a batch", self.attempt(&mut batch)).await {
                Ok(()) => {
                    self.heartbeat.ready();
                    self.lanes.extent.grow(batch.live().count());
                    self.follow_up(&batch, started);
                    tries.backoff.over();
                    tries = Tries { backoff: Backoff::new(&self.settings.processor), as_it_is: 0 };
                }
                Err(failure) => {
                    if !self.set_back(&mut todo, batch, failure, &mut tries).await {
                        return;
                    }
                }
            }
        }
    }

    /// What is to be done next about a batch that failed. False when the worker is to end.
    async fn set_back(
        &mut self,
        todo: &mut Vec<Batch<Payload<C>>>,
        mut batch: Batch<Payload<C>>,
        failure: BatchFailure,
        tries: &mut Tries,
    ) -> bool {
        let commands = batch.live().count();
        match failure {
            BatchFailure::World(reason) | BatchFailure::NoPartition(reason) => {
                todo.push(batch);
                return self.wait_out(&reason, tries).await;
            }
            BatchFailure::Extent(reason) => {
                self.lanes.extent.shrink(commands);
                if commands > 1 {
                    push_halves(todo, batch);
                } else {
                    self.try_as_it_is(todo, batch, &reason, tries);
                }
                return self.wait_out(&reason, tries).await;
            }
            BatchFailure::Locked(reason) => {
                self.try_as_it_is(todo, batch, &reason, tries);
                return self.wait_out(&reason, tries).await;
            }
            BatchFailure::Command(index, reason) => {
                batch.commands[index].fail(reason);
                todo.push(batch);
            }
            BatchFailure::Corrupt(streams) => {
                self.halt_streams(&batch, &streams);
                todo.push(batch);
            }
            BatchFailure::Data(reason) if commands > 1 => {
                tracing::debug!(commands, reason, "a batch failed; looking for the cause");
                push_halves(todo, batch);
            }
            BatchFailure::Data(reason) if !has_failed(&batch) => {
                let culprit = batch.live().next().map(|(index, _)| index);
                if let Some(index) = culprit {
                    batch.commands[index].fail(reason);
                }
                todo.push(batch);
            }
            BatchFailure::Data(reason) => {
                self.stand(&batch, &reason, "Mend what the reason names; it is tried again by itself.");
            }
        }
        true
    }

    /// Once more, then each partition by itself, then the others go on without it.
    fn try_as_it_is(
        &mut self,
        todo: &mut Vec<Batch<Payload<C>>>,
        batch: Batch<Payload<C>>,
        reason: &str,
        tries: &mut Tries,
    ) {
        tries.as_it_is += 1;
        if tries.as_it_is < TRIES_AS_IT_IS {
            return todo.push(batch);
        }
        *tries = Tries { backoff: Backoff::new(&self.settings.processor), as_it_is: 0 };
        if batch.moving().count() > 1 {
            return todo.extend(batch.apart());
        }
        let cure = "None needed if it passes: it is tried again by itself. If it stays, look in pg_stat_activity for what \
                    holds locks, and at the server's disk.";
        self.stand(&batch, reason, cure);
    }

    /// Waits before the next try. Nothing was committed: after a shutdown the next owner starts from the same
    /// offsets.
    async fn wait_out(&self, reason: &str, tries: &mut Tries) -> bool {
        let wait = tries.backoff.failed(reason);
        self.heartbeat.not_ready(reason);
        self.shutdown.run_until_cancelled(tokio::time::sleep(wait)).await.is_some()
    }

    /// The partitions of a batch make way for the others.
    fn stand(&self, batch: &Batch<Payload<C>>, reason: &str, cure: &str) {
        for source in batch.moving() {
            self.consumers[source.lane].halt(&source.place, reason, cure);
        }
    }

    /// Sources whose claim is gone leave before they cost a transaction.
    fn drop_revoked(&self, batch: &mut Batch<Payload<C>>) {
        for source in &mut batch.sources {
            source.out |= !self.lanes.mailboxes[source.lane].holds(&source.place, source.epoch);
        }
    }

    /// Every partition that asks for such a stream stops; guessing its state could break its order.
    fn halt_streams(&self, batch: &Batch<Payload<C>>, streams: &[(Uuid, String)]) {
        for (stream_id, reason) in streams {
            for (_, command) in batch.live().filter(|(_, command)| command.stream_id == *stream_id) {
                let source = &batch.sources[command.source];
                if self.lanes.mailboxes[source.lane].holds(&source.place, source.epoch) {
                    let reason = format!("stream {stream_id} cannot be loaded: {reason}");
                    let cure = format!(
                        "`throughline stream show {stream_id}` shows what the store holds of it; mend that, or run a \
                         version that can read it."
                    );
                    self.consumers[source.lane].halt(&source.place, &reason, &cure);
                }
            }
        }
    }
}

/// The first half is tried first: each partition keeps its order.
fn push_halves<P>(todo: &mut Vec<Batch<P>>, batch: Batch<P>) {
    let (first, second) = batch.split();
    todo.push(second);
    todo.push(first);
}

fn has_failed<P>(batch: &Batch<P>) -> bool {
    batch.live().any(|(_, command)| matches!(&command.ask, Ask::Refuse { code, .. } if *code == COMMAND_FAILED))
}
