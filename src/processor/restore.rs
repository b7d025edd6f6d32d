//! From a snapshot, or the cached state, and the events after it, to the state now.
//!
//! Everything is held against the stream's dense versions. An event that cannot be read is never
//! skipped: its stream's partitions halt. A snapshot that cannot be read is only an optimization lost.

use std::collections::HashMap;

use tokio_postgres::Row;
use tokio_postgres::types::{Json, ToSql};
use uuid::Uuid;

use crate::engine::{Aggregate, BoundedContext, EventCodec};

use super::Scope;
use super::cache::Cached;
use super::load::Wanted;
use super::retry::BatchFailure;
use super::session::Session;

/// A stored event: its version and its bytes, within a row.
type Stored<'a> = (i64, &'a [u8]);

/// The states of all wanted streams, by stream id, from the rows of `LOAD_STREAMS`.
pub(super) async fn streams<C: BoundedContext>(
    session: &Session,
    scope: &Scope<C>,
    wanted: Wanted<C::Aggregate>,
    rows: &[Row],
) -> Result<HashMap<Uuid, Cached<C::Aggregate>>, BatchFailure> {
    let mut held = wanted.held;
    let mut unreadable = Vec::new();
    let mut stored: HashMap<usize, Vec<Stored<'_>>> = HashMap::new();
    for row in rows {
        let place = ordinal(row);
        match row.try_get::<_, Option<Json<C::Aggregate>>>(2) {
            Ok(None) => {}
            Ok(Some(Json(state))) => {
                let version = row.get(1);
                held[place] = Some(Cached { state, version, snapshot_version: version });
            }
            Err(error) => {
                tracing::warn!(stream_id = %wanted.streams[place], %error, "a snapshot does not decode; it is ignored");
                unreadable.push(place);
            }
        }
        stored.entry(place).or_default().extend(event(row));
    }
    let again = from_the_start(session, scope, &wanted.partitions, &wanted.streams, &unreadable).await?;
    for place in &unreadable {
        stored.remove(place);
    }
    for row in &again {
        stored.entry(unreadable[ordinal(row)]).or_default().extend(event(row));
    }

    let mut streams = HashMap::with_capacity(wanted.streams.len());
    let mut corrupt = Vec::new();
    for (place, stream_id) in wanted.streams.into_iter().enumerate() {
        let start = held[place].take().unwrap_or_else(empty);
        match fold::<C>(scope, start, stored.remove(&place).unwrap_or_default()) {
            Ok(state) => {
                streams.insert(stream_id, state);
            }
            Err(reason) => corrupt.push((stream_id, reason)),
        }
    }
    if corrupt.is_empty() { Ok(streams) } else { Err(BatchFailure::Corrupt(corrupt)) }
}

fn empty<A: Aggregate>() -> Cached<A> {
    Cached { state: A::default(), version: 0, snapshot_version: 0 }
}

fn event(row: &Row) -> Option<Stored<'_>> {
    row.get::<_, Option<i64>>(3).map(|version| (version, row.get(4)))
}

/// `with ordinality` counts from 1.
fn ordinal(row: &Row) -> usize {
    usize::try_from(row.get::<_, i64>(0) - 1).unwrap_or_default()
}

async fn from_the_start<C: BoundedContext>(
    session: &Session,
    scope: &Scope<C>,
    partitions: &[i32],
    streams: &[Uuid],
    places: &[usize],
) -> Result<Vec<Row>, BatchFailure> {
    if places.is_empty() {
        return Ok(Vec::new());
    }
    let partitions: Vec<i32> = places.iter().map(|place| partitions[*place]).collect();
    let streams: Vec<Uuid> = places.iter().map(|place| streams[*place]).collect();
    let known = vec![Some(0i64); places.len()];
    let shape = C::Aggregate::SNAPSHOT_VERSION;
    let step = "load events from the start";
    let answer = async {
        let parameters: [&(dyn ToSql + Sync); 5] = [&scope.events.id, &partitions, &streams, &known, &shape];
        session.client.query(&session.load_streams, &parameters).await.map_err(BatchFailure::at(step))
    };
    session.round_trip(step, answer).await
}

fn fold<C: BoundedContext>(
    scope: &Scope<C>,
    mut state: Cached<C::Aggregate>,
    mut stored: Vec<Stored<'_>>,
) -> Result<Cached<C::Aggregate>, String> {
    // The index gives them in order; nothing promises it.
    stored.sort_unstable_by_key(|(version, _)| *version);
    for (version, payload) in stored {
        if version != state.version + 1 {
            return Err(format!("version {} is followed by version {version}", state.version));
        }
        let event =
            scope.codec.decode(payload).map_err(|reason| format!("version {version} cannot be read: {reason}"))?;
        state.state.evolve(&event);
        state.version = version;
    }
    Ok(state)
}
