//! Where a process stands in each partition that it reads, moved by compare-and-set with what was handled.
//!
//! PostgreSQL is authoritative; Kafka's committed offsets follow for people.

use std::collections::HashSet;

use tokio_postgres::Transaction;
use tokio_postgres::types::Type;

use crate::kafka::TopicPartition;
use crate::store::StoreError;

/// One partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Checkpoint {
    /// Kafka offset of the next record.
    pub next_offset: i64,
    /// Last sequence number handled.
    pub seq: i64,
    /// Fencing token: whoever holds an older one changes nothing.
    pub epoch: i64,
}

/// A checkpoint about to move.
#[derive(Debug, Clone)]
pub(super) struct Move {
    pub source: TopicPartition,
    pub from: Checkpoint,
    pub next_offset: i64,
    pub seq: i64,
}

const ADVANCE: &str = "
    update throughline.process_checkpoints c set next_offset = m.next_offset, seq = m.seq, updated_at = now()
    from unnest($2::text[], $3::int[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[])
         as m (topic, partition, epoch, expected, next_offset, seq)
    where c.process = $1 and c.topic = m.topic and c.partition = m.partition
      and c.epoch = m.epoch and c.next_offset = m.expected
    returning c.topic, c.partition";

/// Moves every checkpoint of a batch. Returns the partitions that did not move: they are another's now, and the caller
/// must roll back.
pub(super) async fn advance(
    tx: &Transaction<'_>,
    process: &str,
    moves: &[Move],
) -> Result<HashSet<TopicPartition>, StoreError> {
    let topics: Vec<&str> = moves.iter().map(|one| &*one.source.topic).collect();
    let partitions: Vec<i32> = moves.iter().map(|one| one.source.partition).collect();
    let numbers = |of: fn(&Move) -> i64| moves.iter().map(of).collect::<Vec<i64>>();
    let (epochs, expected) = (numbers(|one| one.from.epoch), numbers(|one| one.from.next_offset));
    let (next, seqs) = (numbers(|one| one.next_offset), numbers(|one| one.seq));
    let rows = tx
        .query_typed(
            ADVANCE,
            &[
                (&process, Type::TEXT),
                (&topics, Type::TEXT_ARRAY),
                (&partitions, Type::INT4_ARRAY),
                (&epochs, Type::INT8_ARRAY),
                (&expected, Type::INT8_ARRAY),
                (&next, Type::INT8_ARRAY),
                (&seqs, Type::INT8_ARRAY),
            ],
        )
        .await
        .map_err(StoreError::at("move the checkpoints of a process"))?;
    let moved: HashSet<(&str, i32)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    let lost = moves.iter().filter(|one| !moved.contains(&(&*one.source.topic, one.source.partition)));
    Ok(lost.map(|one| one.source.clone()).collect())
}

const TAKE: &str = "
    insert into throughline.process_checkpoints as c (process, topic, partition, next_offset, epoch, topic_id)
    values ($1, $2, $3, $4, 1, $6)
    on conflict (process, topic, partition) do update
    set epoch = c.epoch + 1, topic_id = coalesce(excluded.topic_id, c.topic_id), updated_at = now(),
        next_offset = case when c.next_offset between $4 and $5 and coalesce(c.topic_id = $6, true)
                           then c.next_offset else $4 end
    returning next_offset, seq, epoch";

/// Takes a partition over, raising its epoch: every earlier owner is fenced off. An offset that means nothing on the
/// topic, which keeps those from `first` to `end`, gives way to the first one: what comes again is known by its number.
pub(super) async fn take(
    client: &tokio_postgres::Client,
    process: &str,
    source: &TopicPartition,
    (first, end): (i64, i64),
    topic_id: Option<&str>,
) -> Result<Checkpoint, StoreError> {
    let topic: &str = &source.topic;
    let row = client
        .query_one(TAKE, &[&process, &topic, &source.partition, &first, &end, &topic_id])
        .await
        .map_err(StoreError::at("claim a partition of a process"))?;
    Ok(Checkpoint { next_offset: row.get(0), seq: row.get(1), epoch: row.get(2) })
}
