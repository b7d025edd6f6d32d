//! Dead letters: what could not be handled, kept whole with its reason, whatever bytes it holds.

use jiff::Timestamp;
use tokio_postgres::{GenericClient, Row, Statement};
use uuid::Uuid;

use super::StoreError;

/// Name and value of a header, any bytes; the value may be null.
pub type Header<'a> = (&'a [u8], Option<&'a [u8]>);

/// A record to park. Bytes are as they were on the topic.
#[derive(Debug, Clone)]
pub struct DeadLetter {
    /// `command` or `event`.
    pub kind: &'static str,
    /// The consumer group that gave up on it.
    pub consumer: String,
    pub source_topic: String,
    /// Kafka's id of the topic; none where the broker tells none.
    pub topic_id: Option<String>,
    pub source_partition: i32,
    pub source_offset: Option<i64>,
    /// The event's sequence number; none for commands.
    pub seq: Option<i64>,
    pub key: Option<Vec<u8>>,
    /// In order; none where they could not be read.
    pub headers: Option<Headers>,
    pub value: Option<Vec<u8>>,
    /// Stable, upper snake case.
    pub reason_code: String,
    pub reason: String,
    /// Id and partition of the outcome that was recorded with it.
    pub command: Option<(Uuid, i32)>,
    /// Of a process manager, where it is known.
    pub instance: Option<Uuid>,
}

/// The headers of a dead letter, as two columns.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Headers {
    pub names: Vec<Vec<u8>>,
    pub values: Vec<Option<Vec<u8>>>,
}

impl<'a> FromIterator<Header<'a>> for Headers {
    fn from_iter<I: IntoIterator<Item = Header<'a>>>(headers: I) -> Self {
        let (names, values) =
            headers.into_iter().map(|(name, value)| (name.to_vec(), value.map(<[u8]>::to_vec))).unzip();
        Self { names, values }
    }
}

impl Headers {
    /// Name and value of each, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Header<'_>> {
        self.names.iter().zip(&self.values).map(|(name, value)| (name.as_slice(), value.as_deref()))
    }
}

/// Parks `letters`. A record already parked by the same consumer is left as it is.
///
/// The insert of last resort: nothing that a record can hold is refused. One statement a letter, since
/// arrays of arrays would have to be of one length.
pub async fn park(client: &impl GenericClient, letters: &[DeadLetter]) -> Result<(), StoreError> {
    if letters.is_empty() {
        return Ok(());
    }
    let error = || StoreError::at("park dead letters");
    let statement = client.prepare(PARK).await.map_err(error())?;
    // Sent together, answered in order.
    let inserts = letters.iter().map(|letter| insert(client, &statement, letter));
    futures_util::future::try_join_all(inserts).await.map_err(error())?;
    Ok(())
}

const PARK: &str = "
    insert into throughline.dead_letters
        (kind, consumer, source_topic, topic_id, source_partition, source_offset, seq, key, header_names, header_values,
         headers_unreadable, value, reason_code, reason, command_id, destination, instance)
    values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17)
    on conflict do nothing";

async fn insert(
    client: &impl GenericClient,
    statement: &Statement,
    letter: &DeadLetter,
) -> Result<u64, tokio_postgres::Error> {
    let headers = letter.headers.as_ref();
    let (command_id, destination) = letter.command.unzip();
    client
        .execute(
            statement,
            &[
                &letter.kind,
                &letter.consumer,
                &letter.source_topic,
                &letter.topic_id.as_deref().unwrap_or_default(),
                &letter.source_partition,
                &letter.source_offset,
                &letter.seq,
                &letter.key,
                &headers.map_or(&[][..], |headers| &headers.names),
                &headers.map_or(&[][..], |headers| &headers.values),
                &headers.is_none(),
                &letter.value,
                &letter.reason_code,
                &letter.reason.replace('\0', "\u{fffd}"),
                &command_id,
                &destination,
                &letter.instance,
            ],
        )
        .await
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
            "select id, status, parked_at, closed_at, kind = 'event', consumer, source_topic, nullif(topic_id, ''),
                    source_partition, source_offset, seq, key,
                    coalesce(header_names, array(select convert_to(key, 'UTF8') from jsonb_each_text(headers) order by key)),
                    coalesce(header_values,
                             array(select convert_to(value, 'UTF8') from jsonb_each_text(headers) order by key)),
                    headers_unreadable, value,
                    reason_code, reason, command_id, destination, instance
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
            topic_id: row.get(7),
            source_partition: row.get(8),
            source_offset: row.get(9),
            seq: row.get(10),
            key: row.get(11),
            headers: headers(row),
            value: row.get(15),
            reason_code: row.get(16),
            reason: row.get(17),
            command: row.get::<_, Option<Uuid>>(18).zip(row.get(19)),
            instance: row.get(20),
        },
    }
}

fn headers(row: &Row) -> Option<Headers> {
    let (names, values): (Option<Vec<Vec<u8>>>, Option<Vec<Option<Vec<u8>>>>) = (row.get(12), row.get(13));
    let readable = !row.get::<_, bool>(14);
    readable.then(|| Headers { names: names.unwrap_or_default(), values: values.unwrap_or_default() })
}

/// Closes open dead letters as `status` (`replayed` or `discarded`). Returns how many were open. One that is
/// discarded is not decided any more, should its record still be on its way.
pub async fn close(client: &impl GenericClient, ids: &[i64], status: &str) -> Result<u64, StoreError> {
    client
        .execute(
            "with withdrawn as (delete from throughline.replays where letter = any($1) and $2 = 'discarded')
             update throughline.dead_letters set status = $2, closed_at = now() where id = any($1) and status = 'parked'",
            &[&ids, &status],
        )
        .await
        .map_err(StoreError::at("close dead letters"))
}
