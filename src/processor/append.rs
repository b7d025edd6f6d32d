//! The second round trip of a batch: everything it decided, by sets, and the commit.
//!
//! All statements and the commit are sent in one go and each answer is checked: PostgreSQL answers
//! the commit of a failed transaction with a rollback that looks like success, so only "every
//! statement succeeded, and the commit did" counts as committed.

use futures_util::join;
use tokio_postgres::Error;
use tokio_postgres::types::Json;

use crate::crash_point;
use crate::engine::{Aggregate, BoundedContext};
use crate::store::{DeadLetter, dead_letters};

use super::batch::Batch;
use super::decide::Decided;
use super::retry::BatchFailure;
use super::session::Session;
use super::{Payload, Scope};

/// Events, and their outbox rows, from one set of columns: payloads travel once. $1 topic, $2 time,
/// $3 prefix of the published type; then a column each.
pub(super) const APPEND_EVENTS: &str = "
    with appended as (
        select * from unnest($4::int[], $5::bigint[], $6::uuid[], $7::bigint[], $8::uuid[], $9::text[], $10::smallint[],
                             $11::uuid[], $12::text[], $13::text[], $14::text[], $15::text[], $16::text[], $17::bytea[])
            as a (partition, seq, stream_id, version, event_id, type, schema_version,
                  command_id, correlation_id, causation_id, principal, traceparent, reply_to, payload)
    ), stored as (
        insert into throughline.events
            (partition, topic, seq, stream_id, version, event_id, type, schema_version,
             command_id, correlation_id, causation_id, principal, traceparent, reply_to, recorded_at, payload)
        select partition, $1::smallint, seq, stream_id, version, event_id, type, schema_version,
               command_id, correlation_id, causation_id, principal, traceparent, reply_to, $2::timestamptz, payload
        from appended
    )
    insert into throughline.outbox
        (partition, topic, seq, key, type, message_id, subject, schema_version, stream_version,
         command_id, correlation_id, causation_id, traceparent, reply_to, created_at, value)
    select partition, $1::smallint, seq, stream_id, $3::text || type, event_id, stream_id, schema_version, version,
           command_id, correlation_id, causation_id, traceparent, reply_to, $2::timestamptz, payload
    from appended";

/// Outbox rows of the results topic. $1 topic, $2 time, $3 published type; then a column each.
pub(super) const APPEND_RESULTS: &str = "
    insert into throughline.outbox
        (partition, topic, seq, key, type, message_id, subject, command_id, correlation_id, causation_id,
         traceparent, reply_to, created_at, value)
    select partition, $1::smallint, seq, command_id, $3::text, message_id, stream_id, command_id, correlation_id,
           causation_id, traceparent, reply_to, $2::timestamptz, value
    from unnest($4::int[], $5::bigint[], $6::uuid[], $7::uuid[], $8::uuid[], $9::text[], $10::text[], $11::text[],
                $12::text[], $13::bytea[])
        as r (partition, seq, command_id, message_id, stream_id, correlation_id, causation_id, traceparent,
              reply_to, value)";

/// First outcomes of command ids in their streams. $1 topic, $2 time; then a column each.
pub(super) const APPEND_OUTCOMES: &str = "
    insert into throughline.commands
        (partition, topic, command_id, stream_id, payload_hash, accepted, code, reason, version, seq,
         correlation_id, decided_at)
    select partition, $1::smallint, command_id, stream_id, payload_hash, accepted, code, reason, version, seq,
           correlation_id, $2::timestamptz
    from unnest($3::int[], $4::uuid[], $5::uuid[], $6::bytea[], $7::bool[], $8::text[], $9::text[], $10::bigint[],
                $11::bigint[], $12::text[])
        as c (partition, command_id, stream_id, payload_hash, accepted, code, reason, version, seq, correlation_id)";

/// Moves the counters, whose locks are held. $1 partitions, $2 topics, $3 last sequence numbers.
pub(super) const SET_COUNTERS: &str = "
    update throughline.counters c set last_seq = m.last_seq
    from unnest($1::int[], $2::smallint[], $3::bigint[]) as m (partition, topic, last_seq)
    where c.partition = m.partition and c.topic = m.topic";

/// Keeps the newest snapshot of a stream. $1 topic, $2 version of the state's shape; then a column each.
pub(super) const PUT_SNAPSHOTS: &str = "
    insert into throughline.snapshots (partition, topic, stream_id, version, snapshot_version, state)
    select partition, $1::smallint, stream_id, version, $2::smallint, state
    from unnest($3::int[], $4::uuid[], $5::bigint[], $6::jsonb[]) as s (partition, stream_id, version, state)
    on conflict (partition, topic, stream_id) do update
        set version = excluded.version, snapshot_version = excluded.snapshot_version, state = excluded.state";

/// Writes and commits. On an error nothing of the batch is kept, save one case: the connection
/// broke during the commit, and the compare-and-set of the next try tells.
pub(super) async fn append<C: BoundedContext>(
    session: &Session,
    scope: &Scope<C>,
    batch: &Batch<Payload<C>>,
    decided: &mut Decided<C::Aggregate>,
    snapshot_every: i64,
) -> Result<(), BatchFailure> {
    park(session, scope, batch, decided).await?;
    let snapshots = Snapshots::due(scope, decided, snapshot_every);
    let decided = &*decided;
    crash_point!("processor.before_commit");
    // Polled in this order, so sent in this order, in one go.
    let answers = async {
        Ok(join!(
            append_events(session, scope, batch, decided),
            append_results(session, scope, batch, decided),
            append_outcomes(session, scope, decided),
            set_counters(session, decided),
            put_snapshots(session, scope, &snapshots, decided),
            session.client.batch_execute("commit"),
        ))
    };
    let (events, results, outcomes, counters, kept, committed) = session.round_trip("write a batch", answers).await?;
    let events = events.map_err(BatchFailure::at("append events"))?;
    let results = results.map_err(BatchFailure::at("append results"))?;
    let outcomes = outcomes.map_err(BatchFailure::at("record outcomes"))?;
    let counters = counters.map_err(BatchFailure::at("move the counters"))?;
    kept.map_err(BatchFailure::at("keep snapshots"))?;
    committed.map_err(BatchFailure::at("commit"))?;
    let wanted = [decided.events.len(), decided.results.len(), decided.outcomes.len(), decided.counters.len()];
    let written = [events, results, outcomes, counters];
    if wanted.map(|count| count as u64) != written {
        // Committed, and not what was meant: the store itself is not as we believe.
        return Err(BatchFailure::World(format!("a batch of {wanted:?} rows wrote {written:?}")));
    }
    Ok(())
}

/// Rare, so it takes round trips of its own.
async fn park<C: BoundedContext>(
    session: &Session,
    scope: &Scope<C>,
    batch: &Batch<Payload<C>>,
    decided: &Decided<C::Aggregate>,
) -> Result<(), BatchFailure> {
    let letter = |(index, code, reason): &(usize, &'static str, String)| {
        let command = &batch.commands[*index];
        let record = &command.record;
        DeadLetter {
            kind: "command",
            consumer: scope.groups[batch.sources[command.source].lane].clone(),
            source_topic: record.source.topic.to_string(),
            topic_id: scope.topic_ids.get(&record.source.topic),
            source_partition: record.source.partition,
            source_offset: Some(record.offset),
            seq: None,
            key: record.key.clone(),
            headers: record.headers().map(|headers| headers.iter().collect()),
            value: record.value.clone(),
            reason_code: (*code).to_owned(),
            reason: reason.clone(),
            command: Some((command.command_id, command.destination)),
            instance: None,
        }
    };
    let letters: Vec<DeadLetter> = decided.parked.iter().map(letter).collect();
    if letters.is_empty() {
        return Ok(());
    }
    let parked = async { dead_letters::park(&*session.client, &letters).await.map_err(BatchFailure::from) };
    session.round_trip("park dead letters", parked).await
}

/// One column of a statement, of as many rows as there are items.
fn column<'a, T, V>(items: &'a [T], pick: impl Fn(&'a T) -> V) -> Vec<V> {
    items.iter().map(pick).collect()
}

async fn append_events<C: BoundedContext>(
    session: &Session,
    scope: &Scope<C>,
    batch: &Batch<Payload<C>>,
    decided: &Decided<C::Aggregate>,
) -> Result<u64, Error> {
    if decided.events.is_empty() {
        return Ok(0);
    }
    let events = decided.events.as_slice();
    let commands: Vec<_> = events.iter().map(|event| &batch.commands[event.command]).collect();
    session
        .client
        .execute(
            &session.append_events,
            &[
                &scope.events.id,
                &decided.now,
                &scope.type_prefix,
                &column(&commands, |command| command.destination),
                &column(events, |event| event.seq),
                &column(&commands, |command| command.stream_id),
                &column(events, |event| event.version),
                &column(events, |event| event.event_id),
                &column(events, |event| event.encoded.event_type),
                &column(events, |event| event.encoded.schema_version),
                &column(&commands, |command| command.command_id),
                &column(&commands, |command| command.correlation_id.as_str()),
                &column(&commands, |command| command.causation_id.as_str()),
                &column(&commands, |command| command.principal.as_deref()),
                &column(&commands, |command| command.traceparent.as_deref()),
                &column(&commands, |command| command.reply_to.as_deref()),
                &column(events, |event| event.encoded.bytes.as_slice()),
            ],
        )
        .await
}

async fn append_results<C: BoundedContext>(
    session: &Session,
    scope: &Scope<C>,
    batch: &Batch<Payload<C>>,
    decided: &Decided<C::Aggregate>,
) -> Result<u64, Error> {
    if decided.results.is_empty() {
        return Ok(0);
    }
    let commands: Vec<_> = decided.results.iter().map(|result| &batch.commands[result.command]).collect();
    let result_type = format!("{}CommandResult", scope.type_prefix);
    session
        .client
        .execute(
            &session.append_results,
            &[
                &scope.results.id,
                &decided.now,
                &result_type,
                &column(&commands, |command| command.destination),
                &column(&decided.results, |result| result.seq),
                &column(&commands, |command| command.command_id),
                &column(&decided.results, |result| result.message_id),
                &column(&commands, |command| command.stream_id),
                &column(&commands, |command| command.correlation_id.as_str()),
                &column(&commands, |command| command.causation_id.as_str()),
                &column(&commands, |command| command.traceparent.as_deref()),
                &column(&commands, |command| command.reply_to.as_deref()),
                &column(&decided.results, |result| result.value.as_slice()),
            ],
        )
        .await
}

async fn append_outcomes<C: BoundedContext>(
    session: &Session,
    scope: &Scope<C>,
    decided: &Decided<C::Aggregate>,
) -> Result<u64, Error> {
    let outcomes = &decided.outcomes;
    if outcomes.is_empty() {
        return Ok(0);
    }
    session
        .client
        .execute(
            &session.append_outcomes,
            &[
                &scope.events.id,
                &decided.now,
                &column(outcomes, |outcome| outcome.partition),
                &column(outcomes, |outcome| outcome.command_id),
                &column(outcomes, |outcome| outcome.stream_id),
                &column(outcomes, |outcome| outcome.payload_hash.as_slice()),
                &column(outcomes, |outcome| outcome.accepted),
                &column(outcomes, |outcome| outcome.code.as_deref()),
                &column(outcomes, |outcome| outcome.reason.as_deref()),
                &column(outcomes, |outcome| outcome.version),
                &column(outcomes, |outcome| outcome.seq),
                &column(outcomes, |outcome| outcome.correlation_id.as_str()),
            ],
        )
        .await
}

async fn set_counters<A>(session: &Session, decided: &Decided<A>) -> Result<u64, Error> {
    if decided.counters.is_empty() {
        return Ok(0);
    }
    let (places, last): (Vec<(i32, i16)>, Vec<i64>) =
        decided.counters.iter().map(|(place, seq)| (*place, *seq)).unzip();
    let (partitions, topics): (Vec<i32>, Vec<i16>) = places.into_iter().unzip();
    session.client.execute(&session.set_counters, &[&partitions, &topics, &last]).await
}

/// The streams whose snapshot is due.
struct Snapshots {
    partitions: Vec<i32>,
    streams: Vec<uuid::Uuid>,
    versions: Vec<i64>,
}

impl Snapshots {
    fn due<C: BoundedContext>(scope: &Scope<C>, decided: &mut Decided<C::Aggregate>, every: i64) -> Self {
        let mut due = Self { partitions: Vec::new(), streams: Vec::new(), versions: Vec::new() };
        for (stream_id, stream) in &mut decided.streams {
            if stream.version - stream.snapshot_version >= every.max(1) {
                stream.snapshot_version = stream.version;
                due.partitions.push(crate::engine::destination_partition(*stream_id, scope.events.partitions));
                due.streams.push(*stream_id);
                due.versions.push(stream.version);
            }
        }
        due
    }
}

async fn put_snapshots<C: BoundedContext>(
    session: &Session,
    scope: &Scope<C>,
    due: &Snapshots,
    decided: &Decided<C::Aggregate>,
) -> Result<u64, Error> {
    if due.streams.is_empty() {
        return Ok(0);
    }
    let states: Vec<Json<&C::Aggregate>> =
        due.streams.iter().map(|stream_id| Json(&decided.streams[stream_id].state)).collect();
    let shape = C::Aggregate::SNAPSHOT_VERSION;
    session
        .client
        .execute(
            &session.put_snapshots,
            &[&scope.events.id, &shape, &due.partitions, &due.streams, &due.versions, &states],
        )
        .await
}
