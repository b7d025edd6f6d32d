//! The transaction of one batch: checkpoints, instances, what they send and wait for, what is parked.
//!
//! Knows no retries. Locks in this order, as everybody here does: the process (shared), checkpoints, instances.

use std::collections::{HashMap, HashSet};

use tokio_postgres::Transaction;
use uuid::Uuid;

use super::Managed;
use super::checkpoint::{self, Checkpoint, Move};
use super::ledger::{self, Ledger};
use super::park::{self, Barred};
use super::read::{Body, FOREIGN, Fault, Item, Told};
use crate::engine::{Input, ProcessManager};
use crate::kafka::TopicPartition;
use crate::store::{Line, StoreError, bounded};

/// What became of it.
pub(super) enum Attempt {
    Done(Done),
    /// Another owner holds these partitions.
    Lost(HashSet<TopicPartition>),
}

/// What was committed.
#[derive(Default)]
pub(super) struct Done {
    pub moves: Vec<Move>,
    pub inputs: usize,
    pub commands: usize,
    pub parked: usize,
}

/// How the checkpoints move when all of `items` are done.
pub(super) fn moves<E>(items: &[&Item<E>], held: &HashMap<TopicPartition, Checkpoint>) -> Vec<Move> {
    let mut moves: HashMap<&TopicPartition, Move> = HashMap::new();
    for item in items {
        let source = &item.record.source;
        let Some(from) = held.get(source) else { continue };
        let (next_offset, seq) = (from.next_offset, from.seq);
        let moved = moves.entry(source).or_insert_with(|| Move {
            source: source.clone(),
            from: from.clone(),
            next_offset,
            seq,
        });
        (moved.next_offset, moved.seq) = (item.record.offset + 1, item.seq);
    }
    let mut moves: Vec<Move> = moves.into_values().collect();
    moves.sort_by(|one, other| one.source.cmp(&other.source));
    moves
}

/// Handles `items`, all or none.
pub(super) async fn transact<P: ProcessManager>(
    managed: &Managed<P>,
    client: &mut Line,
    items: &[&Item<P::Event>],
    moves: Vec<Move>,
) -> Result<Attempt, StoreError> {
    let limit = managed.settings.database.round_trip();
    let begun = async { client.transaction().await.map_err(StoreError::at("begin a batch")) };
    let tx = bounded(limit, "begin a batch", begun).await?;
    let lost = bounded(limit, "move the checkpoints of a process", async {
        park::share(&tx, P::NAME).await?;
        checkpoint::advance(&tx, P::NAME, &moves).await
    });
    let lost = lost.await?;
    if !lost.is_empty() {
        return Ok(Attempt::Lost(lost));
    }
    crate::crash_point!("process.in_batch");
    let handled = bounded(limit, "handle a batch", handle(managed, &tx, items));
    let done = Done { moves, ..handled.await? };
    crate::crash_point!("process.before_commit");
    bounded(limit, "commit a batch", async { tx.commit().await.map_err(StoreError::at("commit a batch")) }).await?;
    crate::crash_point!("process.after_commit");
    Ok(Attempt::Done(done))
}

async fn handle<P: ProcessManager>(
    managed: &Managed<P>,
    tx: &Transaction<'_>,
    items: &[&Item<P::Event>],
) -> Result<Done, StoreError> {
    let told = addressed::<P>(tx, items.iter().map(|item| &item.body)).await?;
    let concerned: Vec<&Told<P::Event>> = told.iter().flatten().collect();
    let poisoned = items.iter().any(|item| matches!(item.body, Body::Poison(..)));
    if concerned.is_empty() && !poisoned {
        return Ok(Done::default());
    }
    let mut ledger = Ledger::open(managed, tx, &concerned).await?;
    // Asked under the instances' locks.
    let instances: Vec<Uuid> = concerned.iter().map(|one| one.instance).collect();
    let records =
        items.iter().zip(&told).filter(|(item, told)| told.is_some() || matches!(item.body, Body::Poison(..)));
    let mut barred = Barred::load(tx, &managed.group, records.map(|(item, _)| &item.record), &instances).await?;
    let (mut letters, mut inputs) = (Vec::new(), 0);
    for (item, told) in items.iter().zip(&told) {
        let fault = match (&item.body, told) {
            (Body::Poison(fault, instance), _) => Some((fault.clone(), *instance)),
            (_, Some(told)) if ledger.passes(told) || barred.is_discarded(item) => None,
            (_, Some(told)) if barred.holds(&item.record, told.instance) => Some((park::behind(), Some(told.instance))),
            (_, Some(told)) => {
                inputs += 1;
                ledger.handle(told).err().map(|fault| (fault, Some(told.instance)))
            }
            (_, None) => None,
        };
        if let Some((fault, instance)) = fault {
            if fault.code != FOREIGN {
                barred.add(&item.record, instance);
            }
            tell(P::NAME, item, &fault);
            letters.push(park::letter(&managed.group, &item.record, item.seq, &fault, instance));
        }
    }
    ledger.write(tx).await?;
    park::park(tx, P::NAME, &mut letters).await?;
    Ok(Done { moves: Vec::new(), inputs, commands: ledger.commands(), parked: letters.len() })
}

fn tell<E>(process: &str, item: &Item<E>, fault: &Fault) {
    let (source, offset, seq) = (&item.record.source, item.record.offset, item.seq);
    if fault.code == park::BEHIND {
        tracing::debug!(process, %source, offset, seq, "event parked behind another one");
    } else {
        tracing::error!(process, %source, offset, seq, code = fault.code, reason = fault.reason, "event parked");
    }
}

/// Whose each record is. Outcomes are of whoever sent the command; those of others concern nobody here.
pub(super) async fn addressed<P: ProcessManager>(
    tx: &Transaction<'_>,
    bodies: impl Iterator<Item = &Body<P::Event>> + Clone,
) -> Result<Vec<Option<Told<P::Event>>>, StoreError> {
    let decided = bodies.clone().filter_map(|body| match body {
        Body::Decided(decided) => Some(decided.command_id),
        _ => None,
    });
    let sent = ledger::sent(tx, P::NAME, &decided.collect::<Vec<_>>()).await?;
    let told = |body: &Body<P::Event>| match body {
        Body::Told(told) => Some(told.clone()),
        Body::Decided(decided) => {
            let (instance, context, command) = sent.get(&decided.command_id)?;
            // The same id in another context is another command.
            let mut outcome = decided.outcome.clone();
            if *context != outcome.context {
                return None;
            }
            outcome.command.clone_from(command);
            Some(Told {
                instance: *instance,
                begins: false,
                cause: decided.cause,
                correlation_id: decided.correlation_id.clone(),
                input: Input::Outcome(outcome),
            })
        }
        Body::Passed | Body::Poison(..) => None,
    };
    Ok(bodies.map(told).collect())
}
