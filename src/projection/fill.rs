//! Applies events straight from the store: the refill after a reset and the chunks of a rebuild.
//!
//! The store is authoritative for what happened; parked and discarded events are left out, so that
//! a filled partition equals what the live projection made of the same events.

use tokio_postgres::types::Type;
use tokio_postgres::{GenericClient, Row, Transaction};

use super::{ProjectionLoopError, Projector, park};
use crate::engine::{Position, ProjectionError, Recorded};
use crate::store::{StoreError, destinations};

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
    let last = events.last().map_or(after, |event| event.position.seq);
    let missing = events.len() as i64 != last - after || events.is_empty();
    if missing {
        return Err(ProjectionLoopError::refused(
            projector.name(),
            format!("the event store lacks events of partition {partition} between seq {after} and {upto}"),
        ));
    }
    let excluded = park::excluded(tx, &projector.group, partition, after, last).await?;
    let events: Vec<_> = if excluded.is_empty() {
        events
    } else {
        events.into_iter().filter(|event| !excluded.contains(&event.position.seq)).collect()
    };
    let count = events.len();
    apply(projector, tx, decode(projector, events)?).await?;
    Ok((last, count))
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

fn decode<E: Send + Sync>(
    projector: &Projector<E>,
    events: Vec<Recorded<Vec<u8>>>,
) -> Result<Vec<Recorded<E>>, ProjectionLoopError> {
    let one = |stored: Recorded<Vec<u8>>| {
        let event = projector.codec.decode(&stored.event).map_err(|error| ProjectionLoopError::Event {
            projection: projector.name(),
            position: stored.position,
            reason: error.to_string(),
        })?;
        Ok(Recorded {
            position: stored.position,
            stream_id: stored.stream_id,
            version: stored.version,
            event_id: stored.event_id,
            command_id: stored.command_id,
            correlation_id: stored.correlation_id,
            causation_id: stored.causation_id,
            recorded_at: stored.recorded_at,
            event,
        })
    };
    events.into_iter().map(one).collect()
}

async fn read<E: Send + Sync>(
    projector: &Projector<E>,
    client: &impl GenericClient,
    partition: i32,
    after: i64,
    upto: i64,
) -> Result<Vec<Recorded<Vec<u8>>>, StoreError> {
    let limit = projector.settings.projection.rebuild_chunk_events;
    let rows = client
        .query_typed(
            &format!("{SELECT} and e.seq > $3 and e.seq <= least($4, $3 + $5) order by e.seq"),
            &[
                (&partition, Type::INT4),
                (&projector.topic, Type::TEXT),
                (&after, Type::INT8),
                (&upto, Type::INT8),
                (&limit, Type::INT8),
            ],
        )
        .await
        .map_err(StoreError::at("read events of the store"))?;
    Ok(rows.iter().map(|row| stored(partition, row)).collect())
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
    decode(projector, rows.iter().map(|row| stored(partition, row)).collect())
}

const SELECT: &str = "
    select e.seq, e.stream_id, e.version, e.event_id, e.command_id, e.correlation_id, e.causation_id, e.recorded_at,
           e.payload
    from throughline.events e
    where e.partition = $1 and e.topic = (select id from throughline.topics where name = $2)";

fn stored(partition: i32, row: &Row) -> Recorded<Vec<u8>> {
    Recorded {
        position: Position { partition, seq: row.get(0) },
        stream_id: row.get(1),
        version: row.get(2),
        event_id: row.get(3),
        command_id: row.get(4),
        correlation_id: row.get(5),
        causation_id: row.get(6),
        recorded_at: row.get(7),
        event: row.get(8),
    }
}

/// Partitions of the events topic, from the store.
pub(super) async fn partitions<E: Send + Sync>(
    projector: &Projector<E>,
    client: &tokio_postgres::Client,
) -> Result<i32, StoreError> {
    Ok(destinations::find(client, &projector.topic).await?.partitions)
}
