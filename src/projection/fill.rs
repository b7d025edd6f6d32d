//! Applies events straight from the store: the refill after a reset and the chunks of a rebuild.
//!
//! A chunk is a large batch: what inserts by [`crate::engine::Rows`] is written by COPY then. The store
//! is authoritative for what happened, the dead letters for what stays out of the rows: discarded events,
//! and parked ones with the later events of their keys. What is left out is noted with the rows (`gaps`).

use std::ops::Range;
use std::panic::AssertUnwindSafe;

use futures_util::FutureExt as _;
use tokio_postgres::types::Type;
use tokio_postgres::{Row, Transaction};

use super::park::{self, Barred, Parked};
use super::{LIVE, NEXT, ProjectionLoopError, Projector, gaps, handler, transact};
use crate::engine::{Position, ProjectionError, Recorded};
use crate::settings::FailurePolicy;
use crate::store::{self, Blame, StoreError, destinations};

/// Events fetched at a time, within a chunk.
const FETCH_EVENTS: i32 = 5_000;

/// Brings the live rows of a partition from `after` to `upto`, in chunks, within `tx`. What cannot be
/// applied is parked where that is the policy: there may be no record that the live projection could park.
pub(super) async fn fill_live<E: Send + Sync>(
    projector: &Projector<E>,
    tx: &Transaction<'_>,
    partition: i32,
    after: i64,
    upto: i64,
    by: &str,
) -> Result<(), ProjectionLoopError> {
    let mut reached = after;
    while reached < upto {
        let chunk = fill_chunk(projector, tx, LIVE, projector.policy(), (partition, reached, upto)).await?;
        park::park_stored(tx, projector, partition, &chunk.parked).await?;
        reached = chunk.last;
    }
    Ok(park::agree(tx, projector, Some(partition), by).await?)
}

/// Brings a generation that nobody reads yet from `after` to `upto`.
pub(super) async fn fill_next<E: Send + Sync>(
    projector: &Projector<E>,
    tx: &Transaction<'_>,
    partition: i32,
    after: i64,
    upto: i64,
) -> Result<(), ProjectionLoopError> {
    let mut reached = after;
    while reached < upto {
        reached = fill_chunk(projector, tx, NEXT, FailurePolicy::Halt, (partition, reached, upto)).await?.last;
    }
    Ok(())
}

/// What one chunk came to.
pub(super) struct Filled {
    /// The sequence number reached.
    pub last: i64,
    /// Events applied.
    pub applied: usize,
    /// Events that could not be, where the policy is to park them.
    pub parked: Vec<Parked>,
}

/// Applies one chunk of `(partition, after, upto)` to a generation, and notes what it leaves out.
pub(super) async fn fill_chunk<E: Send + Sync>(
    projector: &Projector<E>,
    tx: &Transaction<'_>,
    generation: &str,
    policy: FailurePolicy,
    (partition, after, upto): (i32, i64, i64),
) -> Result<Filled, ProjectionLoopError> {
    let upto = upto.min(after.saturating_add(projector.settings.projection.rebuild_chunk_events.max(1)));
    let barred = park::barred(tx, &projector.group, partition, after, upto).await?;
    let mut chunk = read(projector, tx, policy, barred, (partition, after, upto)).await?;
    let left = if policy == FailurePolicy::Park && !chunk.events.is_empty() {
        apply_or_park(projector, tx, &mut chunk).await?
    } else {
        apply_all(projector, tx, &chunk.events).await?;
        0
    };
    let out: Vec<(i32, i64)> = chunk.left_out.iter().map(|seq| (partition, *seq)).collect();
    gaps::leave_out(tx, projector.name(), generation, &out).await?;
    Ok(Filled { last: chunk.last, applied: chunk.events.len() - left, parked: chunk.parked })
}

/// As [`fill_chunk`], without the events that a generation leaves out, noting nothing: what its rows should be. Returns
/// the sequence number reached.
pub(super) async fn fold_chunk<E: Send + Sync>(
    projector: &Projector<E>,
    tx: &Transaction<'_>,
    gaps: &gaps::Gaps,
    (partition, after, upto): (i32, i64, i64),
) -> Result<i64, ProjectionLoopError> {
    let upto = upto.min(after.saturating_add(projector.settings.projection.rebuild_chunk_events.max(1)));
    let barred = Barred::of_gaps(gaps.get(&partition));
    let chunk = read(projector, tx, FailurePolicy::Halt, barred, (partition, after, upto)).await?;
    if !chunk.events.is_empty() {
        apply_all(projector, tx, &chunk.events).await?;
    }
    Ok(chunk.last)
}

async fn apply_all<E: Send + Sync>(
    projector: &Projector<E>,
    tx: &Transaction<'_>,
    events: &[Recorded<E>],
) -> Result<(), ProjectionLoopError> {
    match attempt(projector, tx, events).await? {
        Ok(()) => Ok(()),
        Err((_, reason)) => Err(ProjectionLoopError::Event {
            projection: projector.name(),
            position: events[0].position,
            reason: format!("a chunk of {} events from there on failed: {reason}", events.len()),
        }),
    }
}

/// Applies what can be applied, halving what fails until the failing event stands alone; that one and the
/// later ones of its key are left out. Returns how many.
async fn apply_or_park<E: Send + Sync>(
    projector: &Projector<E>,
    tx: &Transaction<'_>,
    chunk: &mut Chunk<E>,
) -> Result<usize, ProjectionLoopError> {
    let run = |sql: &'static str| async move {
        tx.batch_execute(sql).await.map_err(StoreError::at("try events of the store"))
    };
    let mut left = 0;
    let mut ranges: Vec<Range<usize>> = std::iter::once(0..chunk.events.len()).collect();
    while let Some(range) = ranges.pop() {
        let (barred, ready): (Vec<usize>, Vec<usize>) = range.clone().partition(|&index| {
            let event = &chunk.events[index];
            chunk.barred.holds(event.stream_id, event.position.seq)
        });
        run("savepoint fill").await?;
        let mut failure = None;
        for events in transact::runs(ready.iter().copied()) {
            if let Err(found) = attempt(projector, tx, &chunk.events[events]).await? {
                failure = Some(found);
                break;
            }
        }
        match failure {
            None => {
                left += barred.len();
                chunk.left_out.extend(barred.iter().map(|&index| chunk.events[index].position.seq));
            }
            Some((code, reason)) if ready.len() == 1 => {
                run("rollback to savepoint fill").await?;
                let event = &chunk.events[ready[0]];
                let seq = event.position.seq;
                tracing::error!(
                    projection = projector.name(),
                    partition = event.position.partition,
                    seq,
                    code,
                    reason,
                    "event parked with its key"
                );
                chunk.barred.add(event.stream_id, seq);
                chunk.parked.push(Parked { seq, code, reason });
                ranges.push(range);
            }
            Some(_) => {
                run("rollback to savepoint fill").await?;
                let middle = ready[ready.len() / 2];
                ranges.push(middle..range.end);
                ranges.push(range.start..middle);
            }
        }
        run("release savepoint fill").await?;
    }
    Ok(left)
}

/// Whether the projection applies `events`; else the code and reason of its refusal.
async fn attempt<E: Send + Sync>(
    projector: &Projector<E>,
    tx: &Transaction<'_>,
    events: &[Recorded<E>],
) -> Result<Result<(), (&'static str, String)>, ProjectionLoopError> {
    if events.is_empty() {
        return Ok(Ok(()));
    }
    // The call itself may panic too, before there is a future.
    let handler = AssertUnwindSafe(async { projector.projection.apply(tx, events).await });
    match handler.catch_unwind().await {
        Ok(Ok(())) => Ok(Ok(())),
        Ok(Err(ProjectionError::Database(source))) if store::blame(&source) == Blame::Data => {
            Ok(Err((handler::REFUSED, store::describe(&source))))
        }
        Ok(Err(ProjectionError::Database(source))) => {
            Err(StoreError::Statement { step: "apply events of the store", source }.into())
        }
        Ok(Err(ProjectionError::Event(reason))) => Ok(Err(("HANDLER_REFUSED", reason))),
        Err(panic) => Ok(Err(("HANDLER_PANIC", handler::panic_text(panic.as_ref())))),
    }
}

/// Decodes a row of [`SELECT`].
fn decode<E: Send + Sync>(
    projector: &Projector<E>,
    partition: i32,
    row: &Row,
) -> Result<Recorded<E>, ProjectionLoopError> {
    let position = Position { partition, seq: row.get(0) };
    let event = projector.codec.decode(row.get(8)).map_err(|error| ProjectionLoopError::Event {
        projection: projector.name(),
        position,
        reason: error.to_string(),
    })?;
    Ok(Recorded {
        position,
        stream_id: row.get(1),
        version: row.get(2),
        event_id: row.get(3),
        command_id: row.get(4),
        correlation_id: row.get(5),
        causation_id: row.get(6),
        recorded_at: row.get(7),
        event,
    })
}

/// The events of one chunk.
struct Chunk<E> {
    last: i64,
    /// To be applied.
    events: Vec<Recorded<E>>,
    /// Not to be applied.
    left_out: Vec<i64>,
    barred: Barred,
    parked: Vec<Parked>,
}

/// Reads the events after `after`, up to `upto` or what a chunk's bytes may hold. Fetched and decoded some at
/// a time, so that only decoded events wait in memory.
async fn read<E: Send + Sync>(
    projector: &Projector<E>,
    tx: &Transaction<'_>,
    policy: FailurePolicy,
    barred: Barred,
    (partition, after, upto): (i32, i64, i64),
) -> Result<Chunk<E>, ProjectionLoopError> {
    let settings = &projector.settings.projection;
    let failed = || StoreError::at("read events of the store");
    let statement = tx
        .prepare_typed(
            &format!("{SELECT} and e.seq > $3 and e.seq <= $4 order by e.seq"),
            &[Type::INT4, Type::TEXT, Type::INT8, Type::INT8],
        )
        .await
        .map_err(failed())?;
    let portal = tx.bind(&statement, &[&partition, &projector.topic, &after, &upto]).await.map_err(failed())?;
    let mut chunk = Chunk { last: after, events: Vec::new(), left_out: Vec::new(), barred, parked: Vec::new() };
    let mut bytes = 0;
    while chunk.last < upto && bytes < settings.rebuild_chunk_bytes {
        let rows = tx.query_portal(&portal, FETCH_EVENTS).await.map_err(failed())?;
        for row in &rows {
            let seq: i64 = row.get(0);
            if seq != chunk.last + 1 {
                return Err(lacking(projector, partition, chunk.last, seq - 1));
            }
            chunk.last = seq;
            bytes += row.get::<_, &[u8]>(8).len();
            let stream = row.get(1);
            if chunk.barred.holds(stream, seq) {
                chunk.left_out.push(seq);
                continue;
            }
            match decode(projector, partition, row) {
                Ok(event) => chunk.events.push(event),
                Err(ProjectionLoopError::Event { reason, .. }) if policy == FailurePolicy::Park => {
                    chunk.barred.add(stream, seq);
                    chunk.left_out.push(seq);
                    chunk.parked.push(Parked { seq, code: "UNREADABLE_EVENT", reason });
                }
                Err(error) => return Err(error),
            }
        }
        if rows.is_empty() {
            return Err(lacking(projector, partition, chunk.last, upto));
        }
    }
    Ok(chunk)
}

fn lacking<E: Send + Sync>(projector: &Projector<E>, partition: i32, after: i64, upto: i64) -> ProjectionLoopError {
    ProjectionLoopError::refused(
        projector.name(),
        format!("the event store lacks events of partition {partition} between seq {after} and {upto}"),
    )
}

/// The events at `seqs` that the store holds, in order.
pub(super) async fn events_at<E: Send + Sync>(
    projector: &Projector<E>,
    tx: &Transaction<'_>,
    partition: i32,
    seqs: &[i64],
) -> Result<Vec<Recorded<E>>, ProjectionLoopError> {
    let statement = format!("{SELECT} and e.seq = any($3) order by e.seq");
    let rows = tx
        .query_typed(&statement, &[(&partition, Type::INT4), (&projector.topic, Type::TEXT), (&seqs, Type::INT8_ARRAY)])
        .await
        .map_err(StoreError::at("read events of the store"))?;
    rows.iter().map(|row| decode(projector, partition, row)).collect()
}

const SELECT: &str = "
    select e.seq, e.stream_id, e.version, e.event_id, e.command_id, e.correlation_id, e.causation_id, e.recorded_at,
           e.payload
    from throughline.events e
    where e.partition = $1 and e.topic = (select id from throughline.topics where name = $2)";

/// Partitions of the events topic, from the store.
pub(super) async fn partitions<E: Send + Sync>(
    projector: &Projector<E>,
    client: &tokio_postgres::Client,
) -> Result<i32, StoreError> {
    Ok(destinations::find(client, &projector.topic).await?.partitions)
}
