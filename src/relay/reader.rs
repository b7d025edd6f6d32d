//! The relay's one connection for rows and watermarks: reads the outbox for all partitions at once,
//! and moves `published`.
//!
//! Bytes are never copied here: a record borrows its row. Knows nothing of Kafka's clients beyond
//! the shape of a record's headers.

use std::collections::HashMap;
use std::time::Duration;

use futures_util::{Stream, StreamExt as _};
use jiff::Timestamp;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Row, Statement};
use uuid::Uuid;

use super::lease::PartitionKey;
use crate::kafka::headers::Envelope;
use crate::settings::DatabaseSettings;
use crate::store::{DatabaseRole, Line, StoreError, bounded, connect};

/// What to read of one partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadRequest {
    pub key: PartitionKey,
    /// Rows behind this sequence number.
    pub after: i64,
    /// Rows, at most.
    pub rows: i64,
}

/// What to mark as published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    pub key: PartitionKey,
    pub epoch: i64,
    pub published: i64,
}

/// What PostgreSQL says of a partition.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Standing {
    /// The last sequence number committed.
    pub last_seq: i64,
    pub published: i64,
}

/// An outbox row; everything is borrowed from it.
pub struct OutboxRow(Row);

impl OutboxRow {
    pub fn key(&self) -> PartitionKey {
        PartitionKey { topic: self.0.get(1), partition: self.0.get(0) }
    }

    pub fn seq(&self) -> i64 {
        self.0.get(2)
    }

    /// Key of the record; its text form is the record's key.
    pub fn record_key(&self) -> Uuid {
        self.0.get(3)
    }

    /// With name space, such as `acme.bank.Opened`.
    pub fn message_type(&self) -> &str {
        self.0.get(4)
    }

    pub fn created_at(&self) -> Timestamp {
        self.0.get(13)
    }

    pub fn value(&self) -> &[u8] {
        self.0.get(14)
    }

    /// What the record says about itself. Nothing but the row goes in, so that a record published
    /// twice is the same record. `source` is [`source_of`] the row's type.
    pub fn envelope<'a>(&'a self, source: &'a str) -> Envelope<'a> {
        let schema_version: Option<i16> = self.0.get(7);
        Envelope {
            id: self.0.get(5),
            message_type: self.message_type(),
            source,
            time: self.created_at(),
            subject: self.0.get(6),
            // A row with a schema version is framed Avro; the others are results.
            content_type: if schema_version.is_some() { "application/avro" } else { "application/json" },
            schema_version,
            stream_version: self.0.get(8),
            seq: self.seq(),
            command_id: self.0.get(9),
            correlation_id: self.0.get(10),
            causation_id: self.0.get(11),
            traceparent: self.0.get(12),
            reply_to: self.0.get(15),
        }
    }
}

/// `acme.bank.Opened` comes from `/acme/bank`.
pub fn source_of(message_type: &str) -> String {
    let context = message_type.rsplit_once('.').map_or(message_type, |(context, _)| context);
    format!("/{}", context.replace('.', "/"))
}

/// Each partition's rows come from its index, in order, and are never sorted, counted or kept by the server
/// on their way: a running sum of their bytes alone cost as much as reading and sending them. How much of
/// an answer is taken, the reader of it decides.
const READ: &str = "
    select o.partition, o.topic, o.seq, o.key, o.type, o.message_id, o.subject, o.schema_version, o.stream_version,
           o.command_id, o.correlation_id, o.causation_id, o.traceparent, o.created_at, o.value, o.reply_to
    from unnest($1::int[], $2::smallint[], $3::bigint[], $4::bigint[]) as wanted (partition, topic, after, rows)
    cross join lateral (
        select * from throughline.outbox o
        where o.partition = wanted.partition and o.topic = wanted.topic and o.seq > wanted.after
        order by o.seq
        limit wanted.rows) o";

const MARK: &str = "
    update throughline.relay_leases l
    set published = m.published, updated_at = now()
    from unnest($2::int[], $3::smallint[], $4::bigint[], $5::bigint[]) as m (partition, topic, epoch, published)
    where l.partition = m.partition and l.topic = m.topic and l.epoch = m.epoch and l.owner = $1
      and l.published <= m.published
    returning l.partition, l.topic";

/// The connection with its statements.
pub struct Reader {
    client: Line,
    read: Statement,
    mark: Statement,
    /// Of a round trip: a lease has to outlast it.
    limit: Duration,
}

// The plan must be the index scan of a few rows, even while a time partition is so young that its
// statistics say it is empty. A watermark lost with the server's memory only costs a look at Kafka's tail.
const SETUP: &str = "set enable_seqscan = off; set enable_bitmapscan = off; set plan_cache_mode = force_generic_plan;
                     set max_parallel_workers_per_gather = 0; set synchronous_commit = off";

impl Reader {
    /// A connection whose every round trip takes `limit` at most.
    pub async fn connect(settings: &DatabaseSettings, limit: Duration) -> Result<Self, StoreError> {
        let client = connect::connect_with(settings, &DatabaseRole::Relay, SETUP).await?;
        let prepared = async {
            let read = client.prepare(READ).await.map_err(StoreError::at("prepare to read the outbox"))?;
            let mark = client.prepare(MARK).await.map_err(StoreError::at("prepare to mark what is published"))?;
            Ok::<_, StoreError>((read, mark))
        };
        let (read, mark) = bounded(limit, "prepare the relay's statements", prepared).await?;
        Ok(Self { client, read, mark, limit })
    }

    /// Committed rows of all `requests`, in one round trip: one partition after the other, each by seq. None
    /// without a request. They come as they are taken: until then the server waits, and so does every other
    /// answer on this connection. Dropping them takes the rest unseen.
    pub async fn read(
        &self,
        requests: &[ReadRequest],
    ) -> Result<Option<impl Stream<Item = Result<OutboxRow, StoreError>> + Send + use<>>, StoreError> {
        if requests.is_empty() {
            return Ok(None);
        }
        let partitions: Vec<i32> = requests.iter().map(|request| request.key.partition).collect();
        let topics: Vec<i16> = requests.iter().map(|request| request.key.topic).collect();
        let after: Vec<i64> = requests.iter().map(|request| request.after).collect();
        let rows: Vec<i64> = requests.iter().map(|request| request.rows).collect();
        let parameters: [&(dyn ToSql + Sync); 4] = [&partitions, &topics, &after, &rows];
        let step = "read the outbox";
        let begun = async { self.client.query_raw(&self.read, parameters).await.map_err(StoreError::at(step)) };
        let rows = bounded(self.limit, step, begun).await?;
        Ok(Some(rows.map(|row| row.map(OutboxRow).map_err(StoreError::at("read the outbox")))))
    }

    /// Moves `published` where the lease is still `owner`'s, by epoch. Returns the partitions moved:
    /// one that is missing was lost to another owner.
    pub async fn mark(&self, owner: &str, marks: &[Mark]) -> Result<Vec<PartitionKey>, StoreError> {
        if marks.is_empty() {
            return Ok(Vec::new());
        }
        let partitions: Vec<i32> = marks.iter().map(|mark| mark.key.partition).collect();
        let topics: Vec<i16> = marks.iter().map(|mark| mark.key.topic).collect();
        let epochs: Vec<i64> = marks.iter().map(|mark| mark.epoch).collect();
        let published: Vec<i64> = marks.iter().map(|mark| mark.published).collect();
        let step = "mark what is published";
        let parameters: [&(dyn ToSql + Sync); 5] = [&owner, &partitions, &topics, &epochs, &published];
        let marked = async { self.client.query(&self.mark, &parameters).await.map_err(StoreError::at(step)) };
        let rows = bounded(self.limit, step, marked).await?;
        Ok(rows.iter().map(|row| PartitionKey { topic: row.get(1), partition: row.get(0) }).collect())
    }

    /// How far the store got in `keys`.
    pub async fn standings(&self, keys: &[PartitionKey]) -> Result<HashMap<PartitionKey, Standing>, StoreError> {
        let partitions: Vec<i32> = keys.iter().map(|key| key.partition).collect();
        let topics: Vec<i16> = keys.iter().map(|key| key.topic).collect();
        let step = "read how far the store got";
        let statement = "select c.partition, c.topic, c.last_seq, l.published
                         from unnest($1::int[], $2::smallint[]) as wanted (partition, topic)
                         join throughline.counters c using (partition, topic)
                         join throughline.relay_leases l using (partition, topic)";
        let read = async { self.client.query(statement, &[&partitions, &topics]).await.map_err(StoreError::at(step)) };
        let rows = bounded(self.limit, step, read).await?;
        let standing = |row: &Row| {
            let key = PartitionKey { topic: row.get(1), partition: row.get(0) };
            (key, Standing { last_seq: row.get(2), published: row.get(3) })
        };
        Ok(rows.iter().map(standing).collect())
    }

    /// Writes down why `key` stopped, or that it goes on.
    pub async fn note_halt(&self, owner: &str, key: PartitionKey, why: Option<&str>) -> Result<(), StoreError> {
        let step = "note why a partition stopped";
        let statement = "update throughline.relay_leases set halted = $4
                         where partition = $1 and topic = $2 and owner = $3 and halted is distinct from $4";
        let parameters: [&(dyn ToSql + Sync); 4] = [&key.partition, &key.topic, &owner, &why];
        let noted = async { self.client.execute(statement, &parameters).await.map(drop).map_err(StoreError::at(step)) };
        bounded(self.limit, step, noted).await
    }

    /// Whether the server closed the connection.
    pub fn is_closed(&self) -> bool {
        self.client.is_closed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_source_is_the_context_of_the_type() {
        assert_eq!(source_of("acme.bank.Opened"), "/acme/bank");
        assert_eq!(source_of("plain"), "/plain");
    }
}
