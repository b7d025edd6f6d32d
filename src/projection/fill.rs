//! Applies events straight from the store: the refill after a reset and the chunks of a rebuild.
//!
//! A chunk is a large batch: what inserts by [`crate::engine::Rows`] is written by COPY then. The store
//! is authoritative for what happened; parked and discarded events are left out, so that
//! a filled partition equals what the live projection made of the same events.

use tokio_postgres::types::Type;
use tokio_postgres::{Row, Transaction};

use super::{ProjectionLoopError, Projector, park};
use crate::engine::{Position, ProjectionError, Recorded};
use crate::store::{StoreError, destinations};

/// Events fetched at a time, within a chunk.
const FETCH_EVENTS: i32 = 5_000;

/// Applies the events after `after`, up to and including `upto`, in chunks, within `tx`.
pub(super) async fn fill<E: Send + Sync>(
    projector: &Projector<E>,
    tx: &Transaction<'_>,
    partition: i32,
    after: i64,
    upto: i64,
) -> Result<(), ProjectionLoopError> {
    let mut reached = after;
    while reached < upto {
        reached = fill_chunk(projector, tx, partition, reached, upto).await?.0;
    }
    Ok(())
}

/// Applies one chunk. Returns the sequence number reached and how many events were applied.
pub(super) async fn fill_chunk<E: Send + Sync>(
    projector: &Projector<E>,
    tx: &Transaction<'_>,
    partition: i32,
    after: i64,
    upto: i64,
) -> Result<(i64, usize), ProjectionLoopError> {
    let events = read(projector, tx, partition, after, upto).await?;
    let count = events.applied.len();
    apply(projector, tx, events.applied).await?;
    Ok((events.last, count))
}

async fn apply<E: Send + Sync>(
    projector: &Projector<E>,
    tx: &Transaction<'_>,
    events: Vec<Recorded<E>>,
) -> Result<(), ProjectionLoopError> {
    if events.is_empty() {
        return Ok(());
    }
    projector.projection.apply(tx, &events).await.map_err(|error| match error {
        ProjectionError::Database(source) if crate::store::is_transient(&source) => {
            StoreError::Statement { step: "apply events of the store", source }.into()
        }
        error => ProjectionLoopError::Event {
            projection: projector.name(),
            position: events[0].position,
            reason: format!("a chunk of {} events from there on failed: {error}", events.len()),
        },
    })
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
    /// Without those that the live generation did not apply either.
    applied: Vec<Recorded<E>>,
}

/// Reads the events after `after`, up to `upto` or what a chunk may hold. Fetched and decoded some at
/// a time, so that only decoded events wait in memory.
async fn read<E: Send + Sync>(
    projector: &Projector<E>,
    tx: &Transaction<'_>,
    partition: i32,
    after: i64,
    upto: i64,
) -> Result<Chunk<E>, ProjectionLoopError> {
    let settings = &projector.settings.projection;
    let upto = upto.min(after.saturating_add(settings.rebuild_chunk_events.max(1)));
    let excluded = park::excluded(tx, &projector.group, partition, after, upto).await?;
    let failed = || StoreError::at("read events of the store");
    let statement = tx
        .prepare_typed(
            &format!("{SELECT} and e.seq > $3 and e.seq <= $4 order by e.seq"),
            &[Type::INT4, Type::TEXT, Type::INT8, Type::INT8],
        )
        .await
        .map_err(failed())?;
    let portal = tx.bind(&statement, &[&partition, &projector.topic, &after, &upto]).await.map_err(failed())?;
    let mut chunk = Chunk { last: after, applied: Vec::new() };
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
            if !excluded.contains(&seq) {
                chunk.applied.push(decode(projector, partition, row)?);
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

/// The last number that the store has given out in a partition.
pub(super) async fn last_seq<E: Send + Sync>(
    projector: &Projector<E>,
    tx: &Transaction<'_>,
    partition: i32,
) -> Result<i64, StoreError> {
    let statement = "select last_seq from throughline.counters
                     where partition = $1 and topic = (select id from throughline.topics where name = $2)";
    let row = tx.query_opt(statement, &[&partition, &projector.topic]).await;
    Ok(row.map_err(StoreError::at("read the last number of a partition"))?.map_or(0, |row| row.get(0)))
}

/// Partitions of the events topic, from the store.
pub(super) async fn partitions<E: Send + Sync>(
    projector: &Projector<E>,
    client: &tokio_postgres::Client,
) -> Result<i32, StoreError> {
    Ok(destinations::find(client, &projector.topic).await?.partitions)
}
