//! One page: the rows that one look at the outbox brings, handed over as they arrive.
//!
//! PostgreSQL reads on while the producer takes what came, and waits where the producer is full: a page
//! is never in memory as a whole. Each partition has its share of the producer's room. Reading does not nibble: while rows keep coming, the next look waits
//! for `relay.linger_ms` unless a backlog filled the last one; an idle outbox is looked at when woken, or
//! at a growing interval. PostgreSQL is authoritative; what is left of a page is read again.

use std::pin::pin;
use std::time::{Duration, Instant};

use futures_util::{FutureExt as _, Stream as Rows, StreamExt as _};
use uuid::Uuid;

use super::RelayError;
use super::lease::PartitionKey;
use super::pace::ROOM_RETRY;
use super::partition::{Alarm, Partition, Phase};
use super::publisher::{Handed, Outgoing, Publisher};
use super::publishing_loop::PublishingLoop;
use super::reader::{OutboxRow, ReadRequest, source_of};
use crate::kafka::shares::Shares;
use crate::store::StoreError;

/// Records between two looks at the lease while a page is handed over.
const LEASE_CHECK_ROWS: usize = 64;
/// A page whose bytes were misjudged goes on for no longer than this: marks wait behind it.
const ROOM_WAIT: Duration = Duration::from_secs(1);

/// What came of a page.
#[derive(Default)]
struct Page {
    /// Rows that arrived and their bytes, by partition, in the order of the requests.
    counts: Vec<(PartitionKey, i64, u64)>,
    rows: usize,
    alarms: Vec<(PartitionKey, Alarm)>,
    /// When it first had to wait for room.
    full_since: Option<Instant>,
    /// The partition that there was no room for: it has more than it was asked for.
    cut: Option<PartitionKey>,
}

impl Page {
    fn count(&mut self, key: PartitionKey, row: &OutboxRow) {
        let bytes = row.value().len() as u64;
        match self.counts.last_mut() {
            Some((last, rows, sum)) if *last == key => (*rows, *sum) = (*rows + 1, *sum + bytes),
            _ => self.counts.push((key, 1, bytes)),
        }
        self.rows += 1;
    }

    /// Rows and bytes of a partition.
    fn of(&self, key: PartitionKey) -> (i64, u64) {
        let found = self.counts.iter().find(|(of, ..)| *of == key);
        found.map_or((0, 0), |(_, rows, bytes)| (*rows, *bytes))
    }
}

impl PublishingLoop {
    /// What to read of each partition: its share of the producer's room. What others hold cannot fill it.
    pub(super) fn read_requests(&mut self) -> Vec<ReadRequest> {
        if !self.may_produce() {
            return Vec::new();
        }
        let bounds = &self.settings.relay;
        let mut rows = Shares::new(bounds.in_flight_max as u64, self.partitions.len());
        let mut bytes = Shares::new(bounds.in_flight_bytes_max as u64, self.partitions.len());
        for ours in self.partitions.values() {
            rows.moved(0, ours.in_flight());
            bytes.moved(0, ours.acknowledged.in_flight_bytes());
        }
        let takers = self.partitions.values().filter(|ours| ours.backlog && ours.is_read()).count();
        let rows_max = self.extent.now() as i64;
        let request = |(key, ours): (&PartitionKey, &mut Partition)| {
            if !ours.is_read() {
                return None;
            }
            let rows = ours.share(&rows, &bytes, takers)?;
            let rows = ours.rows_wanted(rows.min(rows_max))?;
            Some(ReadRequest { key: *key, after: ours.sent, rows })
        };
        self.partitions.iter_mut().filter_map(request).collect()
    }

    /// Hands a page over and says when to look again.
    pub(super) async fn publish(
        &mut self,
        started: Instant,
        requests: &[ReadRequest],
        rows: impl Rows<Item = Result<OutboxRow, StoreError>>,
    ) -> Result<(), RelayError> {
        let mut page = Page::default();
        self.pace.read_at(started);
        let taken = self.hand_over(&mut page, rows).await;
        metrics::histogram!("throughline_relay_batch_rows").record(page.rows as f64);
        if page.rows > 0 {
            crate::crash_point!("relay.after_produce");
        }
        let mut backlog = false;
        for asked in requests {
            let (rows, bytes) = page.of(asked.key);
            backlog |= rows >= asked.rows;
            if let Some(ours) = self.partitions.get_mut(&asked.key) {
                ours.learn(rows as u64, bytes, rows >= asked.rows || page.cut == Some(asked.key));
            }
        }
        match taken {
            Ok(()) => self.extent.grow(page.counts.iter().map(|(_, rows, _)| *rows as usize).max().unwrap_or(0)),
            Err(RelayError::Store(error)) => return Err(self.narrow(error, requests)),
            Err(error) => return Err(error),
        }
        self.pace.after_page(&self.settings.relay, started, page.rows, backlog);
        for (key, alarm) in page.alarms {
            self.halt(key, alarm);
        }
        Ok(())
    }

    /// Takes rows, in order, as far as lease, producer and sizes allow.
    async fn hand_over(
        &mut self,
        page: &mut Page,
        rows: impl Rows<Item = Result<OutboxRow, StoreError>>,
    ) -> Result<(), RelayError> {
        let mut rows = pin!(rows);
        let patience = self.leases.duration;
        loop {
            // A row that is there costs no timer.
            let row = match rows.next().now_or_never() {
                Some(row) => row,
                None => match tokio::time::timeout(patience, rows.next()).await {
                    Ok(row) => row,
                    Err(_) => {
                        return Err(StoreError::Silent { step: "read a row of the outbox", waited: patience }.into());
                    }
                },
            };
            let Some(row) = row.transpose()? else { return Ok(()) };
            if page.rows == 0 {
                crate::crash_point!("relay.after_read");
                self.begin_producing()?;
            }
            let key = row.key();
            let look = page.rows.is_multiple_of(LEASE_CHECK_ROWS) || self.is_full(key, &row);
            if look && !self.has_room_for(key, &row, &mut page.full_since).await {
                page.cut = Some(key);
                return Ok(());
            }
            page.count(key, &row);
            match self.hand_over_row(key, &row) {
                Ok(Handed::Taken) => {}
                Ok(Handed::Full) => {
                    self.pace.read_soon();
                    return Ok(());
                }
                Ok(Handed::Failed) => return Ok(()),
                Ok(Handed::TooLarge) => {
                    page.alarms.push((key, too_large(&row, "the producer's message.max.bytes")));
                }
                Err(alarm) => page.alarms.push((key, alarm)),
            }
        }
    }

    /// Whether the partition would hold more than its share. A record alone always goes.
    fn is_full(&self, key: PartitionKey, row: &OutboxRow) -> bool {
        self.partitions.get(&key).filter(|ours| ours.state == Phase::Streaming).is_some_and(|ours| {
            let held = ours.acknowledged.in_flight_bytes();
            held > 0 && held + row.value().len() as u64 > ours.bytes_allowed
        })
    }

    pub(super) fn begin_producing(&mut self) -> Result<(), RelayError> {
        if self.publisher.is_none() {
            let in_flight_max = self.settings.relay.in_flight_max;
            self.publisher = Some(Publisher::new(&self.settings.kafka, in_flight_max, self.progress.clone())?);
        }
        Ok(())
    }

    /// Waits until the partition has room for the row. False when the rest of the page is to be left: the
    /// lease is old, or values are so much larger than before that waiting for them would hold up the
    /// marks and the others; then the connection is left with them.
    async fn has_room_for(&mut self, key: PartitionKey, row: &OutboxRow, full_since: &mut Option<Instant>) -> bool {
        loop {
            if !self.may_produce() || self.publisher.as_ref().is_some_and(Publisher::has_failed) {
                return false;
            }
            if !self.is_full(key, row) {
                return true;
            }
            if full_since.get_or_insert_with(Instant::now).elapsed() >= ROOM_WAIT {
                self.reader = None;
                return false;
            }
            let _ = tokio::time::timeout(ROOM_RETRY, self.progress.notified()).await;
        }
    }

    fn hand_over_row(&mut self, key: PartitionKey, row: &OutboxRow) -> Result<Handed, Alarm> {
        let (Some(ours), Some(publisher)) = (self.partitions.get_mut(&key), &self.publisher) else {
            return Ok(Handed::Failed);
        };
        if ours.state != Phase::Streaming {
            return Ok(Handed::Taken);
        }
        let seq = row.seq();
        let refused = if seq != ours.sent + 1 {
            Some(Alarm {
                text: format!(
                    "the outbox holds seq {seq} where {} is next: rows are missing. Put them back (events are in \
                     throughline.events under the same numbers). To leave them out, which every reader of the topic \
                     will take for a hole, set throughline.relay_leases.published to {} and name the topic in \
                     relay.accept_lost_records_of",
                    ours.sent + 1,
                    seq - 1
                ),
                seq: Some(seq),
            })
        } else if row.value().len() > self.settings.topics.event_bytes_max as usize {
            Some(too_large(row, "topics.event_bytes_max"))
        } else {
            None
        };
        if let Some(alarm) = refused {
            // Nothing behind it goes out, also of these rows.
            ours.state = Phase::Halted { until: Instant::now() };
            return Err(alarm);
        }
        let message_type = row.message_type();
        let source = match self.sources.get(message_type) {
            Some(source) => source,
            None => self.sources.entry(message_type.to_owned()).or_insert_with(|| source_of(message_type)),
        };
        let mut key = Uuid::encode_buffer();
        let handed = publisher.hand_over(Outgoing {
            target: &ours.target,
            acknowledged: &ours.acknowledged,
            seq,
            key: row.record_key().hyphenated().encode_lower(&mut key),
            headers: row.envelope(source).headers(),
            created_ms: row.created_at().as_millisecond(),
            value: row.value(),
        });
        match handed {
            Handed::Taken => ours.sent = seq,
            Handed::TooLarge => ours.state = Phase::Halted { until: Instant::now() },
            Handed::Full | Handed::Failed => {}
        }
        Ok(handed)
    }
}

fn too_large(row: &OutboxRow, bound: &str) -> Alarm {
    let (seq, bytes) = (row.seq(), row.value().len());
    Alarm {
        text: format!(
            "the record seq {seq} ({}, {bytes} bytes) is larger than {bound} allows. Raise it, and max.message.bytes of \
             the topic with it, and restart the relay",
            row.message_type()
        ),
        seq: Some(seq),
    }
}
