//! The first round trip of a batch: open, lock, fence, load.
//!
//! The lock on the counters is its own statement and comes first: the statements behind it in the
//! same round trip take their snapshots after it was granted, so they see everything that the
//! previous holder committed. That lock makes the look-up of command ids exact, and a cached state
//! plus the events after it complete.

use std::collections::{HashMap, HashSet};

use futures_util::join;
use jiff::Timestamp;
use tokio_postgres::{Error, Row};
use uuid::Uuid;

use crate::engine::{Aggregate, BoundedContext};

use super::batch::Batch;
use super::cache::{Cached, States};
use super::intake::Ask;
use super::outcome::{IdScope, Outcome};
use super::replays;
use super::restore;
use super::retry::BatchFailure;
use super::session::Session;
use super::{Payload, Scope};

/// Locks the counters of the batch's destination partitions, always in the same order, and reads
/// PostgreSQL's clock, which dates the batch, and whether dead commands were sent again. $1 partitions, $2 topics.
pub(super) const LOCK_COUNTERS: &str = "
    select partition, topic, last_seq, clock_timestamp(), exists (select from throughline.replays)
    from throughline.counters
    where partition = any($1::int[]) and topic = any($2::smallint[])
    order by partition, topic
    for update";

/// Moves the offsets of the batch's sources by compare-and-set: a claim that another process took
/// over, or a position that is not ours, does not match and leaves the batch. $1 partitions, $2 topics, $3 groups,
/// $4 epochs, $5 offsets expected, $6 offsets after the batch.
///
/// The statements of the round trip are sent without waiting for `begin` to succeed. Were it ever
/// cancelled on its own, this one would commit by itself and lose commands; but only the locks
/// before it, in the same transaction, have assigned an id by the time its filter is looked at.
pub(super) const MOVE_OFFSETS: &str = "
    update throughline.offsets o set next_offset = m.next_offset, updated_at = now()
    from unnest($1::int[], $2::text[], $3::text[], $4::bigint[], $5::bigint[], $6::bigint[])
         as m (partition, source_topic, group_id, epoch, expected, next_offset)
    where o.partition = m.partition and o.source_topic = m.source_topic and o.group_id = m.group_id
      and o.epoch = m.epoch and o.next_offset = m.expected
      and pg_current_xact_id_if_assigned() is not null
    returning o.partition, o.source_topic, o.group_id";

/// What the store holds of the batch's streams: the events after the version known, or the snapshot
/// and the events after it where none is. A row an event, or one for a snapshot that no event
/// follows; the state is on a stream's first row only. $1 topic, $2 partitions, $3 streams,
/// $4 versions known (null: none), $5 version of the snapshots' shape.
///
/// The order asked for is the point: on a young table without statistics two indexes cost the same
/// to the planner, and the primary key would be read from the start of the partition for each
/// stream. Only the index by stream and version gives the order without a sort.
pub(super) const LOAD_STREAMS: &str = "
    select w.place, s.version, case when e.version is null or e.version = s.version + 1 then s.state end,
           e.version, e.payload
    from unnest($2::int[], $3::uuid[], $4::bigint[]) with ordinality as w (partition, stream_id, known, place)
    left join lateral (
        select version, state from throughline.snapshots
        where w.known is null and partition = w.partition and topic = $1 and stream_id = w.stream_id
          and snapshot_version = $5
        limit 1) s on true
    left join lateral (
        select version, payload from throughline.events
        where partition = w.partition and topic = $1 and stream_id = w.stream_id
          and version > coalesce(w.known, s.version, 0)
        order by version) e on true
    where s.version is not null or e.version is not null";

/// Outcomes that the batch's command ids already have in their streams. $1 topic, $2 partitions, $3 streams,
/// $4 command ids.
///
/// A lateral with a limit, so that each of them is one probe: joined freely, a plan for a young table
/// goes through all outcomes and holds each against all ids. No bound on the time: an outcome counts
/// whatever the clock said when it was written, and a look into a partition made ahead, which is empty, is
/// one at a page in memory.
pub(super) const LOAD_OUTCOMES: &str = "
    select w.partition, w.stream_id, w.command_id, c.payload_hash, c.accepted, c.code, c.reason, c.version, c.seq,
           c.correlation_id, c.decided_at
    from unnest($2::int[], $3::uuid[], $4::uuid[]) as w (partition, stream_id, command_id)
    cross join lateral (
        select * from throughline.commands
        where partition = w.partition and topic = $1 and command_id = w.command_id and stream_id = w.stream_id
        order by decided_at limit 1) c";

/// What a batch is decided on.
pub(super) struct Loaded<A: Aggregate> {
    /// PostgreSQL's clock, after the locks were granted.
    pub now: Timestamp,
    /// Last sequence numbers by (partition, topic id).
    pub last_seq: HashMap<(i32, i16), i64>,
    /// Every stream of the batch, up to date.
    pub streams: HashMap<Uuid, Cached<A>>,
    /// First outcomes, each where its id counts.
    pub outcomes: HashMap<IdScope, Outcome>,
}

/// The distinct streams of a batch, as columns, and what the cache held of each.
pub(super) struct Wanted<A> {
    pub partitions: Vec<i32>,
    pub streams: Vec<Uuid>,
    /// Version of the cached state; none where there is none.
    pub known: Vec<Option<i64>>,
    pub held: Vec<Option<Cached<A>>>,
}

/// Opens the transaction, takes the locks, moves the offsets and loads. Sources that lost their
/// compare-and-set are marked out; the transaction goes on for the others.
pub(super) async fn load<C: BoundedContext>(
    session: &Session,
    scope: &Scope<C>,
    states: &mut States<C::Aggregate>,
    batch: &mut Batch<Payload<C>>,
) -> Result<Loaded<C::Aggregate>, BatchFailure> {
    let wanted = Wanted::<C::Aggregate>::of(batch, states);
    let ids = Ids::of(batch);
    let mut partitions = ids.partitions.clone();
    partitions.sort_unstable();
    partitions.dedup();
    let topic = scope.events.id;
    let topics = vec![scope.events.id, scope.results.id];
    let shape = C::Aggregate::SNAPSHOT_VERSION;

    // Polled in this order, so sent in this order, in one go.
    let answers = async {
        Ok(join!(
            session.client.batch_execute("begin"),
            lock_counters(session, &partitions, &topics),
            move_offsets(session, scope, batch),
            load_streams(session, topic, &wanted, shape),
            load_outcomes(session, topic, &ids),
        ))
    };
    let (begun, counters, moved, stored, outcomes) = session.round_trip("load a batch", answers).await?;
    begun.map_err(BatchFailure::at("begin"))?;
    let counters = counters.map_err(BatchFailure::at("lock the counters"))?;
    let moved = moved.map_err(BatchFailure::at("move the offsets"))?;
    let stored = stored.map_err(BatchFailure::at("load streams"))?;
    let outcomes = outcomes.map_err(BatchFailure::at("load outcomes"))?;

    if counters.len() != partitions.len() * topics.len() {
        let reason = format!("topic {} lacks counters; run `throughline db apply`", scope.events.name);
        return Err(BatchFailure::World(reason));
    }
    mark_lost(batch, &moved, &scope.groups);
    let mut known = outcomes.iter().map(outcome).collect();
    if counters.first().is_some_and(|row| row.get(4)) {
        replays::honour(session, scope, batch, &mut known).await?;
    }
    let streams = restore::streams::<C>(session, scope, wanted, &stored).await?;
    Ok(Loaded {
        now: counters.first().map_or_else(Timestamp::now, |row| row.get(3)),
        last_seq: counters.iter().map(|row| ((row.get(0), row.get(1)), row.get(2))).collect(),
        streams,
        outcomes: known,
    })
}

impl<A: Aggregate> Wanted<A> {
    fn of<P>(batch: &Batch<P>, states: &mut States<A>) -> Self {
        let mut wanted = Self { partitions: Vec::new(), streams: Vec::new(), known: Vec::new(), held: Vec::new() };
        let mut seen = HashSet::with_capacity(batch.commands.len());
        let mut hits = 0;
        for (_, command) in batch.live() {
            if !matches!(command.ask, Ask::Decide { .. }) || !seen.insert(command.stream_id) {
                continue;
            }
            let held = states.take(&command.stream_id);
            hits += u64::from(held.is_some());
            wanted.partitions.push(command.destination);
            wanted.streams.push(command.stream_id);
            wanted.known.push(held.as_ref().map(|held| held.version));
            wanted.held.push(held);
        }
        metrics::counter!("throughline_aggregate_cache_hits_total").increment(hits);
        metrics::counter!("throughline_aggregate_cache_misses_total").increment(seen.len() as u64 - hits);
        wanted
    }
}

/// The distinct command ids of a batch, each where it counts, as columns.
pub(super) struct Ids {
    partitions: Vec<i32>,
    streams: Vec<Uuid>,
    commands: Vec<Uuid>,
}

impl Ids {
    fn of<P>(batch: &Batch<P>) -> Self {
        let mut seen = HashSet::with_capacity(batch.commands.len());
        Self::at(batch.live().map(|(_, command)| command.scope()).filter(|scope| seen.insert(*scope)))
    }

    /// The columns of `scopes`.
    pub(super) fn at(scopes: impl Iterator<Item = IdScope>) -> Self {
        let mut ids = Self { partitions: Vec::new(), streams: Vec::new(), commands: Vec::new() };
        for scope in scopes {
            ids.partitions.push(scope.partition);
            ids.streams.push(scope.stream_id);
            ids.commands.push(scope.command_id);
        }
        ids
    }
}

async fn lock_counters(session: &Session, partitions: &Vec<i32>, topics: &Vec<i16>) -> Result<Vec<Row>, Error> {
    session.client.query(&session.lock_counters, &[partitions, topics]).await
}

pub(super) async fn load_outcomes(session: &Session, topic: i16, ids: &Ids) -> Result<Vec<Row>, Error> {
    let Ids { partitions, streams, commands } = ids;
    session.client.query(&session.load_outcomes, &[&topic, partitions, streams, commands]).await
}

async fn move_offsets<C: BoundedContext, P>(
    session: &Session,
    scope: &Scope<C>,
    batch: &Batch<P>,
) -> Result<Vec<Row>, Error> {
    let moving: Vec<_> = batch.moving().collect();
    let partitions: Vec<i32> = moving.iter().map(|source| source.place.partition).collect();
    let topics: Vec<&str> = moving.iter().map(|source| &*source.place.topic).collect();
    let groups: Vec<&str> = moving.iter().map(|source| scope.groups[source.lane].as_str()).collect();
    let epochs: Vec<i64> = moving.iter().map(|source| source.epoch).collect();
    let expected: Vec<i64> = moving.iter().map(|source| source.expected).collect();
    let next: Vec<i64> = moving.iter().map(|source| source.next).collect();
    session.client.query(&session.move_offsets, &[&partitions, &topics, &groups, &epochs, &expected, &next]).await
}

async fn load_streams<A>(session: &Session, topic: i16, wanted: &Wanted<A>, shape: i16) -> Result<Vec<Row>, Error> {
    if wanted.streams.is_empty() {
        return Ok(Vec::new());
    }
    session
        .client
        .query(&session.load_streams, &[&topic, &wanted.partitions, &wanted.streams, &wanted.known, &shape])
        .await
}

/// Takes the sources that were not moved out of the batch.
fn mark_lost<P>(batch: &mut Batch<P>, moved: &[Row], groups: &[String]) {
    let moved: HashSet<(i32, &str, &str)> = moved.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect();
    for source in batch.sources.iter_mut().filter(|source| !source.out && source.next > source.expected) {
        let key = (source.place.partition, &*source.place.topic, groups[source.lane].as_str());
        source.out = !moved.contains(&key);
        source.lost = source.out;
    }
}

pub(super) fn outcome(row: &Row) -> (IdScope, Outcome) {
    let scope = IdScope { partition: row.get(0), stream_id: row.get(1), command_id: row.get(2) };
    let mut payload_hash = [0; 16];
    let stored: &[u8] = row.get(3);
    let length = stored.len().min(payload_hash.len());
    payload_hash[..length].copy_from_slice(&stored[..length]);
    let outcome = Outcome {
        command_id: scope.command_id,
        stream_id: scope.stream_id,
        payload_hash,
        accepted: row.get(4),
        code: row.get::<_, Option<String>>(5).map(Into::into),
        reason: row.get(6),
        version: row.get(7),
        partition: scope.partition,
        seq: row.get(8),
        correlation_id: row.get(9),
        decided_at: row.get(10),
    };
    (scope, outcome)
}
