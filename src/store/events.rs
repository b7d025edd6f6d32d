//! Reading the event store: whole history by (partition, seq), or one stream by version.
//!
//! The store is authoritative for what happened; bytes come as they were written. Decoding belongs
//! to the caller. Reading `seq > n` skips nothing: commit order is `seq` order.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::pin::pin;

use futures_util::TryStreamExt as _;
use jiff::Timestamp;
use tokio_postgres::types::ToSql;
use tokio_postgres::{GenericClient, Row};
use uuid::Uuid;

use super::{Blame, Destination, StoreError};

/// One event as the store holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredEvent {
    pub partition: i32,
    /// From 1, dense within the partition.
    pub seq: i64,
    pub stream_id: Uuid,
    /// From 1, dense within the stream.
    pub version: i64,
    pub event_id: Uuid,
    /// Type without name space.
    pub event_type: String,
    /// The version it was written in.
    pub schema_version: i16,
    pub command_id: Uuid,
    pub correlation_id: String,
    /// None in events of releases that kept only what the sender named; [`Self::cause`] tells it of all.
    pub causation_id: Option<String>,
    /// Who sent the command, where that was authenticated.
    pub principal: Option<String>,
    /// W3C trace context of the command.
    pub traceparent: Option<String>,
    /// Where the command's sender wants its outcome.
    pub reply_to: Option<String>,
    pub recorded_at: Timestamp,
    /// Framed bytes, as published.
    pub payload: Vec<u8>,
}

impl StoredEvent {
    /// What caused it: as the command's sender said, else the command.
    pub fn cause(&self) -> Cow<'_, str> {
        match &self.causation_id {
            Some(named) => Cow::Borrowed(named),
            None => Cow::Owned(self.command_id.to_string()),
        }
    }
}

const COLUMNS: &str = "e.partition, e.seq, e.stream_id, e.version, e.event_id, e.type, e.schema_version, e.command_id, \
                       e.correlation_id, e.causation_id, e.principal, e.traceparent, e.reply_to, e.recorded_at, e.payload";

fn stored(row: &Row) -> StoredEvent {
    StoredEvent {
        partition: row.get(0),
        seq: row.get(1),
        stream_id: row.get(2),
        version: row.get(3),
        event_id: row.get(4),
        event_type: row.get(5),
        schema_version: row.get(6),
        command_id: row.get(7),
        correlation_id: row.get(8),
        causation_id: row.get(9),
        principal: row.get(10),
        traceparent: row.get(11),
        reply_to: row.get(12),
        recorded_at: row.get(13),
        payload: row.get(14),
    }
}

/// The events of one stream, oldest first.
pub async fn of_stream(
    client: &impl GenericClient,
    destination: &Destination,
    partition: i32,
    stream_id: Uuid,
) -> Result<Vec<StoredEvent>, StoreError> {
    let statement = format!(
        "select {COLUMNS} from throughline.events e
         where e.partition = $1 and e.topic = $2 and e.stream_id = $3 order by e.version"
    );
    let rows = client
        .query(&statement, &[&partition, &destination.id, &stream_id])
        .await
        .map_err(StoreError::at("read the events of a stream"))?;
    Ok(rows.iter().map(stored).collect())
}

/// The events at `seqs` of a partition that the store has, in order.
pub async fn at(
    client: &impl GenericClient,
    destination: &Destination,
    partition: i32,
    seqs: &[i64],
) -> Result<Vec<StoredEvent>, StoreError> {
    let statement = format!(
        "select {COLUMNS} from throughline.events e
         where e.partition = $1 and e.topic = $2 and e.seq = any($3) order by e.seq"
    );
    let rows = client
        .query(&statement, &[&partition, &destination.id, &seqs])
        .await
        .map_err(StoreError::at("read events by their numbers"))?;
    Ok(rows.iter().map(stored).collect())
}

/// The last sequence number committed in each partition, by partition.
pub async fn last_seqs(client: &impl GenericClient, destination: &Destination) -> Result<Vec<i64>, StoreError> {
    let rows = client
        .query("select last_seq from throughline.counters where topic = $1 order by partition", &[&destination.id])
        .await
        .map_err(StoreError::at("read how far the store got"))?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Where one partition is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    pub partition: i32,
    /// Events behind this sequence number.
    pub after: i64,
    /// Up to and including this one.
    pub upto: i64,
}

/// By which the first page is reckoned.
const PAYLOAD_BYTES_GUESS: usize = 4 * 1024;

/// Reads several partitions in pages, merged by the time of recording; within a partition always by
/// `seq`. Holds one page a partition in memory.
pub struct History {
    topic: i16,
    page_events: i64,
    page_bytes: usize,
    /// Of a payload, as far as pages told; what a page may come to is reckoned by it.
    mean_bytes: usize,
    lanes: Vec<Lane>,
}

struct Lane {
    span: Span,
    read: VecDeque<StoredEvent>,
    /// Of the payloads of the page that is being read.
    bytes: usize,
}

impl History {
    /// Reads `spans`, `page_events` of a partition at a time, or fewer when they come to `page_bytes`.
    pub fn new(destination: &Destination, spans: &[Span], page_events: i64, page_bytes: usize) -> Self {
        let lanes = spans.iter().map(|span| Lane { span: *span, read: VecDeque::new(), bytes: 0 }).collect();
        Self { topic: destination.id, page_events, page_bytes, mean_bytes: PAYLOAD_BYTES_GUESS, lanes }
    }

    /// The next events; none when everything committed so far was read. Later calls find what came since.
    pub async fn next(&mut self, client: &impl GenericClient) -> Result<Vec<StoredEvent>, StoreError> {
        while let Err(error) = self.refill(client).await {
            // A page that takes too long is asked for with fewer rows.
            if error.blame() != Blame::Extent || self.page_events == 1 {
                return Err(error);
            }
            self.page_events = (self.page_events / 2).max(1);
        }
        let mut ready = Vec::new();
        loop {
            let first = |lane: &Lane| lane.read.front().map(|event| (event.recorded_at, event.partition));
            let Some(lane) = self.lanes.iter_mut().filter(|lane| first(lane).is_some()).min_by_key(|lane| first(lane))
            else {
                return Ok(ready);
            };
            ready.extend(lane.read.pop_front());
            // What follows in the emptied lane may come before the heads of the others.
            if lane.read.is_empty() {
                return Ok(ready);
            }
        }
    }

    async fn refill(&mut self, client: &impl GenericClient) -> Result<(), StoreError> {
        let empty = || self.lanes.iter().filter(|lane| lane.read.is_empty() && lane.span.after < lane.span.upto);
        let partitions: Vec<i32> = empty().map(|lane| lane.span.partition).collect();
        if partitions.is_empty() {
            return Ok(());
        }
        let after: Vec<i64> = empty().map(|lane| lane.span.after).collect();
        let upto: Vec<i64> = empty().map(|lane| lane.span.upto).collect();
        // No running sum and no sort: both made the server keep every row on its way.
        let statement = format!(
            "select {COLUMNS}
             from unnest($1::int[], $2::bigint[], $3::bigint[]) as wanted (partition, after, upto)
             cross join lateral (
                 select * from throughline.events o
                 where o.partition = wanted.partition and o.topic = $4 and o.seq > wanted.after
                   and o.seq <= wanted.upto
                 order by o.seq limit $5) e"
        );
        let limit = self.page_events.min((self.page_bytes / self.mean_bytes).max(1) as i64);
        let parameters: [&(dyn ToSql + Sync); 5] = [&partitions, &after, &upto, &self.topic, &limit];
        let failed = StoreError::at("read a page of events");
        let mut rows = pin!(client.query_raw(&statement, parameters).await.map_err(failed)?);
        let (mut events, mut bytes) = (0, 0);
        for lane in &mut self.lanes {
            lane.bytes = 0;
        }
        while let Some(row) = rows.try_next().await.map_err(StoreError::at("read a page of events"))? {
            let (partition, payload): (i32, &[u8]) = (row.get(0), row.get(14));
            let lane = self.lanes.iter_mut().find(|lane| lane.span.partition == partition);
            let lane = lane.expect("only the partitions of lanes were asked for");
            events += 1;
            bytes += payload.len();
            // What is too much is read again, with the next page.
            if lane.bytes < self.page_bytes {
                lane.bytes += payload.len();
                let event = stored(&row);
                lane.span.after = event.seq;
                lane.read.push_back(event);
            }
        }
        self.mean_bytes = bytes.checked_div(events).unwrap_or(self.mean_bytes).max(1);
        Ok(())
    }
}
