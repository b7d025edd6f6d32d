//! Dead letters: what could not be handled, kept whole with its reason.

use jiff::Timestamp;
use tokio_postgres::{GenericClient, Row};

use super::StoreError;

/// A record to park. Byte values are as they were on the topic.
#[derive(Debug, Clone)]
pub struct DeadLetter {
    /// `command` or `event`.
    pub kind: &'static str,
    /// The consumer group that gave up on it.
    pub consumer: String,
    pub source_topic: String,
    pub source_partition: i32,
    pub source_offset: Option<i64>,
    /// The event's sequence number; none for commands.
    pub seq: Option<i64>,
    pub key: Option<Vec<u8>>,
    pub headers: serde_json::Value,
    pub value: Option<Vec<u8>>,
    /// Stable, upper snake case.
    pub reason_code: String,
    pub reason: String,
}

/// Parks `letters` in one statement. A record already parked by the same consumer is left as it is.
pub async fn park(client: &impl GenericClient, letters: &[DeadLetter]) -> Result<(), StoreError> {
    if letters.is_empty() {
        return Ok(());
    }
    fn column<'a, T>(letters: &'a [DeadLetter], pick: impl Fn(&'a DeadLetter) -> T) -> Vec<T> {
        letters.iter().map(pick).collect()
    }
    client
        .execute(
            "insert into throughline.dead_letters (kind, consumer, source_topic, source_partition, source_offset, seq,
                                                   key, headers, value, reason_code, reason)
             select * from unnest($1::text[], $2::text[], $3::text[], $4::int[], $5::bigint[], $6::bigint[],
                                  $7::bytea[], $8::jsonb[], $9::bytea[], $10::text[], $11::text[])
             on conflict do nothing",
            &[
                &column(letters, |l| l.kind),
                &column(letters, |l| l.consumer.as_str()),
                &column(letters, |l| l.source_topic.as_str()),
                &column(letters, |l| l.source_partition),
                &column(letters, |l| l.source_offset),
                &column(letters, |l| l.seq),
                &column(letters, |l| l.key.as_deref()),
                &column(letters, |l| &l.headers),
                &column(letters, |l| l.value.as_deref()),
                &column(letters, |l| l.reason_code.as_str()),
                &column(letters, |l| l.reason.as_str()),
            ],
        )
        .await
        .map_err(StoreError::at("park dead letters"))?;
    Ok(())
}

/// Which dead letters; an absent part means any.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    pub consumer: Option<String>,
    pub key: Option<Vec<u8>>,
    pub ids: Option<Vec<i64>>,
    pub open_only: bool,
}

/// A dead letter as it is kept.
#[derive(Debug, Clone)]
pub struct Parked {
    pub id: i64,
    /// `parked`, `replayed` or `discarded`.
    pub status: String,
    pub parked_at: Timestamp,
    pub closed_at: Option<Timestamp>,
    pub letter: DeadLetter,
}

/// The dead letters that `filter` names, oldest first, `rows_max` at most.
pub async fn find(client: &impl GenericClient, filter: &Filter, rows_max: i64) -> Result<Vec<Parked>, StoreError> {
    let rows = client
        .query(
            "select id, status, parked_at, closed_at, kind = 'event', consumer, source_topic, source_partition,
                    source_offset, seq, key, headers, value, reason_code, reason
             from throughline.dead_letters
             where ($1::text is null or consumer = $1) and ($2::bytea is null or key = $2)
               and ($3::bigint[] is null or id = any($3)) and (not $4 or status = 'parked')
             order by id limit $5",
            &[&filter.consumer, &filter.key, &filter.ids, &filter.open_only, &rows_max],
        )
        .await
        .map_err(StoreError::at("read dead letters"))?;
    Ok(rows.iter().map(parked).collect())
}

fn parked(row: &Row) -> Parked {
    Parked {
        id: row.get(0),
        status: row.get(1),
        parked_at: row.get(2),
        closed_at: row.get(3),
        letter: DeadLetter {
            kind: if row.get(4) { "event" } else { "command" },
            consumer: row.get(5),
            source_topic: row.get(6),
            source_partition: row.get(7),
            source_offset: row.get(8),
            seq: row.get(9),
            key: row.get(10),
            headers: row.get(11),
            value: row.get(12),
            reason_code: row.get(13),
            reason: row.get(14),
        },
    }
}

/// Closes open dead letters as `status` (`replayed` or `discarded`). Returns how many were open.
pub async fn close(client: &impl GenericClient, ids: &[i64], status: &str) -> Result<u64, StoreError> {
    client
        .execute(
            "update throughline.dead_letters set status = $2, closed_at = now() where id = any($1) and status = 'parked'",
            &[&ids, &status],
        )
        .await
        .map_err(StoreError::at("close dead letters"))
}
