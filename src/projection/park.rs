//! Parked events: what could not be applied, and what came after it for the same key.
//!
//! A key with an open parked row parks every later event of its own, so that its order is kept.
//! The rows are in `throughline.dead_letters`, under the projection's consumer group; an event has one,
//! told by its partition and seq, wherever it stands on the topic. They speak of the live generation:
//! what its rows lack, `gaps` knows, and where another one becomes live the letters are made to agree.

use std::collections::{BTreeSet, HashMap, HashSet};

use tokio_postgres::types::Type;
use tokio_postgres::{GenericClient, Transaction};
use uuid::Uuid;

use super::decode::Item;
use super::{LIVE, Projector};
use crate::store::dead_letters::{self, DeadLetter};
use crate::store::{DeadLetter as Letter, StoreError};

/// The code of an event that waits for an earlier one of its key.
pub(super) const BEHIND: &str = "BEHIND_PARKED";
pub(super) const BEHIND_REASON: &str = "an earlier event of the same key is parked";

/// The keys among `keys` that have open parked rows.
pub(super) async fn open_keys(
    tx: &Transaction<'_>,
    group: &str,
    keys: &[&[u8]],
) -> Result<HashSet<Vec<u8>>, tokio_postgres::Error> {
    let rows = tx
        .query_typed(
            "select distinct key from throughline.dead_letters
             where consumer = $1 and key = any($2) and status = 'parked' and kind = 'event' and seq is not null",
            &[(&group, Type::TEXT), (&keys, Type::BYTEA_ARRAY)],
        )
        .await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Whether the group has any open parked row in these partitions.
pub(super) async fn any_open(client: &impl GenericClient, group: &str, topic: &str) -> Result<bool, StoreError> {
    let row = client
        .query_one(
            "select exists (select from throughline.dead_letters
                            where consumer = $1 and source_topic = $2 and status = 'parked' and kind = 'event')",
            &[&group, &topic],
        )
        .await
        .map_err(StoreError::at("look for parked events"))?;
    Ok(row.get(0))
}

/// Parks records of the live projection. Those without a number of their own are told apart by their offset, and
/// by the topic that the claim found it in.
pub(super) async fn park_found<E: Send + Sync>(
    projector: &Projector<E>,
    tx: &Transaction<'_>,
    letters: &mut [DeadLetter],
) -> Result<(), StoreError> {
    if letters.iter().any(|letter| letter.seq.is_none()) {
        let rows = tx
            .query(
                "select partition, topic_id from throughline.checkpoints where projection = $1 and generation = $2",
                &[&projector.name(), &LIVE],
            )
            .await
            .map_err(StoreError::at("look for the topic's id"))?;
        let ids: HashMap<i32, Option<String>> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
        for letter in letters.iter_mut() {
            letter.topic_id = ids.get(&letter.source_partition).cloned().flatten();
        }
    }
    park(tx, letters).await
}

/// Parks records. An event that was parked before, and came again, opens its row again.
pub(super) async fn park(tx: &Transaction<'_>, letters: &[DeadLetter]) -> Result<(), StoreError> {
    let Some(first) = letters.first() else { return Ok(()) };
    let numbered: Vec<&DeadLetter> = letters.iter().filter(|letter| letter.seq.is_some()).collect();
    let partitions: Vec<i32> = numbered.iter().map(|letter| letter.source_partition).collect();
    let seqs: Vec<i64> = numbered.iter().filter_map(|letter| letter.seq).collect();
    let codes: Vec<&str> = numbered.iter().map(|letter| letter.reason_code.as_str()).collect();
    let reasons: Vec<&str> = numbered.iter().map(|letter| letter.reason.as_str()).collect();
    let known: HashSet<(i32, i64)> = tx
        .query(REOPEN, &[&first.consumer, &partitions, &seqs, &codes, &reasons])
        .await
        .map_err(StoreError::at("open parked rows again"))?
        .iter()
        .map(|row| (row.get(0), row.get(1)))
        .collect();
    let is_new = |letter: &&DeadLetter| letter.seq.is_none_or(|seq| !known.contains(&(letter.source_partition, seq)));
    let new: Vec<DeadLetter> = letters.iter().filter(is_new).cloned().collect();
    dead_letters::park(tx, &new).await
}

/// What an operator discarded stays so.
const REOPEN: &str = "
    update throughline.dead_letters d
    set status = 'parked', closed_at = null, superseded_by = null, parked_at = now(), reason_code = l.code,
        reason = l.reason
    from unnest($2::int[], $3::bigint[], $4::text[], $5::text[]) l (partition, seq, code, reason)
    where d.consumer = $1 and d.kind = 'event' and d.source_partition = l.partition and d.seq = l.seq
      and d.status <> 'discarded'
    returning d.source_partition, d.seq";

/// The dead letter of an item.
pub(super) fn letter(group: &str, item: &Item, numbered: bool, code: &str, reason: &str) -> Letter {
    let record = &item.record;
    Letter {
        kind: "event",
        consumer: group.to_owned(),
        source_topic: record.source.topic.to_string(),
        topic_id: None,
        source_partition: record.source.partition,
        source_offset: Some(record.offset),
        seq: numbered.then_some(item.seq),
        key: record.key.clone(),
        headers: record.headers().map(|headers| headers.iter().collect()),
        value: record.value.clone(),
        reason_code: code.to_owned(),
        reason: reason.replace('\0', "\u{fffd}"),
        command: None,
        instance: None,
    }
}

/// An event of the store that is parked, and why.
pub(super) struct Parked {
    pub seq: i64,
    pub code: &'static str,
    pub reason: String,
}

/// Parks events that no record brought: they come from the store.
pub(super) async fn park_stored<E: Send + Sync>(
    tx: &Transaction<'_>,
    projector: &Projector<E>,
    partition: i32,
    parked: &[Parked],
) -> Result<(), StoreError> {
    if parked.is_empty() {
        return Ok(());
    }
    let seqs: Vec<i64> = parked.iter().map(|one| one.seq).collect();
    let codes: Vec<&str> = parked.iter().map(|one| one.code).collect();
    let reasons: Vec<&str> = parked.iter().map(|one| one.reason.as_str()).collect();
    let partitions = vec![partition; seqs.len()];
    tx.query(REOPEN, &[&projector.group, &partitions, &seqs, &codes, &reasons])
        .await
        .map_err(StoreError::at("open parked rows again"))?;
    tx.execute(
        &format!(
            "{OF_STORE} select 'event', $1, $2, e.partition, e.seq, convert_to(e.stream_id::text, 'UTF8'), e.payload,
                    l.code, l.reason
             from unnest($4::bigint[], $5::text[], $6::text[]) l (seq, code, reason)
             join throughline.events e on e.partition = $3 and e.seq = l.seq
                  and e.topic = (select id from throughline.topics where name = $2)
             where not exists (select from throughline.dead_letters d
                               where d.consumer = $1 and d.kind = 'event' and d.source_partition = e.partition
                                 and d.seq = e.seq)"
        ),
        &[&projector.group, &projector.topic, &partition, &seqs, &codes, &reasons],
    )
    .await
    .map_err(StoreError::at("park events of the store"))?;
    Ok(())
}

const OF_STORE: &str = "
    insert into throughline.dead_letters (kind, consumer, source_topic, source_partition, seq, key, value, reason_code,
                                          reason)";

/// A partition is gone back to `seq`: later events come again, and are parked anew should they fail again.
pub(super) async fn supersede_after(
    tx: &Transaction<'_>,
    group: &str,
    partition: i32,
    seq: i64,
    by: &str,
) -> Result<(), StoreError> {
    tx.execute(
        "update throughline.dead_letters set status = 'superseded', superseded_by = $4, closed_at = now()
         where consumer = $1 and source_partition = $2 and seq > $3 and status = 'parked' and kind = 'event'",
        &[&group, &partition, &seq, &by],
    )
    .await
    .map_err(StoreError::at("close parked rows that come again"))?;
    Ok(())
}

/// Makes the letters speak of the rows that are live now, in one partition or all: open is what they
/// lack and nobody discarded, nothing else.
pub(super) async fn agree<E: Send + Sync>(
    tx: &Transaction<'_>,
    projector: &Projector<E>,
    partition: Option<i32>,
    by: &str,
) -> Result<(), StoreError> {
    let error = || StoreError::at("make the dead letters agree with the rows");
    let lacking = "exists (select from throughline.projection_gaps g
                           where g.projection = $2 and g.generation = 'read' and g.partition = d.source_partition
                             and g.from_seq = d.seq and g.cause = 'parked')";
    let scope = "d.consumer = $1 and d.kind = 'event' and d.seq is not null
                 and ($3::int is null or d.source_partition = $3)";
    tx.execute(
        &format!(
            "update throughline.dead_letters d set status = 'superseded', superseded_by = $4, closed_at = now()
             where {scope} and d.status = 'parked' and not {lacking}"
        ),
        &[&projector.group, &projector.name(), &partition, &by],
    )
    .await
    .map_err(error())?;
    tx.execute(
        &format!(
            "update throughline.dead_letters d set status = 'parked', superseded_by = null, closed_at = null
             where {scope} and d.status in ('replayed', 'superseded') and {lacking}"
        ),
        &[&projector.group, &projector.name(), &partition],
    )
    .await
    .map_err(error())?;
    tx.execute(
        &format!(
            "{OF_STORE} select 'event', $1, $4, e.partition, e.seq, convert_to(e.stream_id::text, 'UTF8'), e.payload,
                    '{BEHIND}', '{BEHIND_REASON}'
             from throughline.projection_gaps g
             join throughline.events e on e.partition = g.partition and e.seq = g.from_seq
                  and e.topic = (select id from throughline.topics where name = $4)
             where g.projection = $2 and g.generation = 'read' and g.cause = 'parked'
               and ($3::int is null or g.partition = $3)
               and not exists (select from throughline.dead_letters d
                               where d.consumer = $1 and d.kind = 'event' and d.source_partition = g.partition
                                 and d.seq = g.from_seq)"
        ),
        &[&projector.group, &projector.name(), &partition, &projector.topic],
    )
    .await
    .map_err(error())?;
    Ok(())
}

/// What may not be applied from the store.
#[derive(Debug, Default)]
pub(super) struct Barred {
    /// Parked, or discarded by an operator.
    seqs: HashSet<i64>,
    /// The first parked event of each stream that has one: later ones wait for it.
    open: HashMap<Uuid, i64>,
    /// Ranges that rows lack: first and last.
    ranges: Vec<(i64, i64)>,
}

impl Barred {
    /// What the rows of a partition leave out.
    pub(super) fn of_gaps(gaps: Option<&BTreeSet<(i64, i64, String)>>) -> Self {
        let ranges = gaps.into_iter().flatten().map(|(from, to, _)| (*from, *to)).collect();
        Self { ranges, ..Self::default() }
    }

    /// Whether the event is to be left out.
    pub(super) fn holds(&self, stream: Uuid, seq: i64) -> bool {
        self.seqs.contains(&seq)
            || self.open.get(&stream).is_some_and(|&first| first < seq)
            || self.ranges.iter().any(|(from, to)| (*from..=*to).contains(&seq))
    }

    /// An event that is parked from now on.
    pub(super) fn add(&mut self, stream: Uuid, seq: i64) {
        self.seqs.insert(seq);
        let first = self.open.entry(stream).or_insert(seq);
        *first = seq.min(*first);
    }
}

/// What of the events up to `upto` may not be applied, by the letters.
pub(super) async fn barred(
    tx: &Transaction<'_>,
    group: &str,
    partition: i32,
    after: i64,
    upto: i64,
) -> Result<Barred, StoreError> {
    let rows = tx
        .query_typed(
            "select seq, key, status = 'parked' from throughline.dead_letters
             where consumer = $1 and source_partition = $2 and seq <= $4 and kind = 'event'
               and (status = 'parked' or (status = 'discarded' and seq > $3))",
            &[(&group, Type::TEXT), (&partition, Type::INT4), (&after, Type::INT8), (&upto, Type::INT8)],
        )
        .await
        .map_err(StoreError::at("look for parked events"))?;
    let mut barred = Barred::default();
    for row in &rows {
        let (seq, key, is_open): (i64, Option<&[u8]>, bool) = (row.get(0), row.get(1), row.get(2));
        match key.and_then(|key| Uuid::try_parse_ascii(key).ok()).filter(|_| is_open) {
            Some(stream) => barred.add(stream, seq),
            None => drop(barred.seqs.insert(seq)),
        }
    }
    Ok(barred)
}

/// What operators discarded and a partition has still before it, by partition.
pub(super) async fn discarded_ahead(
    client: &impl GenericClient,
    group: &str,
    partitions: &[i32],
    reached: &[i64],
) -> Result<HashMap<i32, HashSet<i64>>, StoreError> {
    let rows = client
        .query(
            "select d.source_partition, d.seq from throughline.dead_letters d
             join unnest($2::int[], $3::bigint[]) p (partition, seq) on d.source_partition = p.partition and d.seq > p.seq
             where d.consumer = $1 and d.kind = 'event' and d.status = 'discarded'",
            &[&group, &partitions, &reached],
        )
        .await
        .map_err(StoreError::at("look for discarded events"))?;
    let mut found: HashMap<i32, HashSet<i64>> = HashMap::new();
    for row in &rows {
        found.entry(row.get(0)).or_default().insert(row.get(1));
    }
    Ok(found)
}
