//! The moving part of the publishing loop: read, hand over, mark, wait.
//!
//! Reading does not nibble: while rows keep coming, the next look waits for `relay.linger_ms` unless
//! a backlog filled the last one; an idle outbox is looked at when woken, or at a growing interval.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use futures_util::try_join;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::RelayError;
use super::lease::PartitionKey;
use super::partition::{Alarm, State};
use super::publisher::{Handed, Outgoing, Publisher};
use super::reader::{Mark, OutboxRow, ReadRequest, source_of};
use super::stream::{BACKOFF, Stream};

/// `published` moves at most this often while busy, in one statement for all partitions.
const MARK_INTERVAL: Duration = Duration::from_millis(50);
/// On shutdown, acknowledgements are waited for this long.
const DRAIN: Duration = Duration::from_secs(5);
/// A look for room in the producer when no report announced it.
const ROOM_RETRY: Duration = Duration::from_millis(5);
/// Records between two looks at the lease while a batch is handed over.
const LEASE_CHECK_ROWS: usize = 64;

impl Stream {
    /// One look at the outbox, if it is time, pipelined with the marks that are due.
    pub(super) async fn pump(&mut self) -> Result<(), RelayError> {
        let started = Instant::now();
        let requests = if started >= self.next_read { self.read_requests() } else { Vec::new() };
        let marks = self.due_marks();
        if requests.is_empty() && marks.is_empty() {
            if started >= self.next_read {
                self.next_read = started + ROOM_RETRY;
            }
            return Ok(());
        }
        if !marks.is_empty() {
            crate::crash_point!("relay.before_mark");
        }
        let Some(reader) = self.reader.as_ref() else { return Ok(()) };
        let patience = self.leases.duration;
        let both = async { try_join!(reader.read(&requests), reader.mark(&self.leases.owner, &marks)) };
        let Ok(answers) = tokio::time::timeout(patience, both).await else {
            self.lose_database(&format!("no answer within {patience:?}"));
            return Ok(());
        };
        let (rows, marked) = answers?;
        if !marks.is_empty() {
            crate::crash_point!("relay.after_mark");
            self.apply_marks(&marks, &marked).await?;
        }
        if requests.is_empty() {
            return Ok(());
        }
        if !rows.is_empty() {
            crate::crash_point!("relay.after_read");
        }
        metrics::histogram!("throughline_relay_batch_rows").record(rows.len() as f64);
        self.set_pace(started, &requests, &rows);
        self.hand_over(&rows).await
    }

    /// What to read of each partition: its share of the room that is left in the producer.
    fn read_requests(&self) -> Vec<ReadRequest> {
        let bounds = &self.settings.relay;
        let (rows, bytes) =
            self.publisher.as_ref().map_or((0, 0), |publisher| (publisher.in_flight(), publisher.in_flight_bytes()));
        // Half at once or nothing: a little room is not worth a query.
        if rows > bounds.in_flight_max / 2 || bytes > bounds.in_flight_bytes_max / 2 || !self.may_produce() {
            return Vec::new();
        }
        let reading: Vec<_> = self
            .partitions
            .iter()
            .filter(|(_, ours)| ours.state == State::Streaming && !ours.hand_back)
            .filter(|(_, ours)| ours.rows_wanted(1).is_some())
            .collect();
        let share = |room: usize| (room / reading.len().max(1)).max(1) as i64;
        let (rows, bytes) = (share(bounds.in_flight_max - rows), share(bounds.in_flight_bytes_max - bytes));
        reading
            .iter()
            .map(|(key, ours)| {
                let rows = ours.rows_wanted(rows.min(bounds.batch_rows_max)).unwrap_or(1);
                ReadRequest { key: **key, after: ours.sent, rows, bytes }
            })
            .collect()
    }

    /// When to look again.
    fn set_pace(&mut self, started: Instant, requests: &[ReadRequest], rows: &[OutboxRow]) {
        let bounds = &self.settings.relay;
        let poll_min = Duration::from_millis(bounds.poll_min_ms.max(1));
        self.idle = rows.is_empty();
        if self.idle {
            self.next_read = Instant::now() + self.poll;
            self.poll = (self.poll * 2).min(Duration::from_millis(bounds.poll_max_ms)).max(poll_min);
            return;
        }
        self.poll = poll_min;
        let mut counts: HashMap<PartitionKey, i64> = HashMap::new();
        for row in rows {
            *counts.entry(row.key()).or_default() += 1;
        }
        let backlog = requests.iter().any(|request| counts.get(&request.key).is_some_and(|n| *n >= request.rows));
        self.next_read = if backlog { Instant::now() } else { started + Duration::from_millis(bounds.linger_ms) };
    }

    /// Hands rows to the producer, in order, as far as lease, producer and sizes allow. What is left
    /// is read again.
    async fn hand_over(&mut self, rows: &[OutboxRow]) -> Result<(), RelayError> {
        if rows.is_empty() {
            return Ok(());
        }
        if self.publisher.is_none() {
            let bounds = &self.settings.relay;
            self.publisher = Some(Publisher::new(&self.settings.kafka, bounds.in_flight_max, self.progress.clone())?);
        }
        let mut alarms = Vec::new();
        for (index, row) in rows.iter().enumerate() {
            if index % LEASE_CHECK_ROWS == 0 && !self.may_produce() {
                break;
            }
            match self.hand_over_row(row) {
                Ok(Handed::Taken) => {}
                Ok(Handed::Full) => {
                    self.next_read = Instant::now() + ROOM_RETRY;
                    break;
                }
                Ok(Handed::Failed) => break,
                Ok(Handed::TooLarge) => alarms.push((row.key(), too_large(row, "the producer's message.max.bytes"))),
                Err(alarm) => alarms.push((row.key(), alarm)),
            }
        }
        crate::crash_point!("relay.after_produce");
        for (key, alarm) in alarms {
            self.halt(key, alarm).await?;
        }
        Ok(())
    }

    fn hand_over_row(&mut self, row: &OutboxRow) -> Result<Handed, Alarm> {
        let (Some(ours), Some(publisher)) = (self.partitions.get_mut(&row.key()), &self.publisher) else {
            return Ok(Handed::Failed);
        };
        if ours.state != State::Streaming {
            return Ok(Handed::Taken);
        }
        let seq = row.seq();
        let refused = if seq != ours.sent + 1 {
            Some(Alarm {
                text: format!(
                    "the outbox holds seq {seq} where {} is next: rows are missing. Compare with throughline.events; if \
                     they were published, move throughline.relay_leases.published up to {}",
                    ours.sent + 1,
                    seq - 1
                ),
                seq: None,
            })
        } else if row.value().len() > self.settings.relay.record_bytes_max {
            Some(too_large(row, "relay.record_bytes_max"))
        } else {
            None
        };
        if let Some(alarm) = refused {
            // Nothing behind it goes out, also of these rows.
            ours.state = State::Halted { until: Instant::now() };
            return Err(alarm);
        }
        let message_type = row.message_type();
        if !self.sources.contains_key(message_type) {
            self.sources.insert(message_type.to_owned(), source_of(message_type));
        }
        let mut key = Uuid::encode_buffer();
        let handed = publisher.hand_over(Outgoing {
            target: &ours.target,
            acknowledged: &ours.acknowledged,
            seq,
            key: row.record_key().hyphenated().encode_lower(&mut key),
            headers: row.envelope(&self.sources[message_type]).headers(),
            created_ms: row.created_at().as_millisecond(),
            value: row.value(),
        });
        match handed {
            Handed::Taken => ours.sent = seq,
            Handed::TooLarge => ours.state = State::Halted { until: Instant::now() },
            Handed::Full | Handed::Failed => {}
        }
        Ok(handed)
    }

    fn due_marks(&self) -> Vec<Mark> {
        if self.marked_at.elapsed() < MARK_INTERVAL { Vec::new() } else { self.marks() }
    }

    fn marks(&self) -> Vec<Mark> {
        self.partitions
            .iter()
            .filter(|(_, ours)| ours.has_unmarked())
            .map(|(key, ours)| Mark { key: *key, epoch: ours.epoch, published: ours.acknowledged.seq() })
            .collect()
    }

    async fn apply_marks(&mut self, marks: &[Mark], marked: &[PartitionKey]) -> Result<(), RelayError> {
        self.marked_at = Instant::now();
        let mut lost_in_flight = false;
        for mark in marks {
            let Some(ours) = self.partitions.get_mut(&mark.key) else { continue };
            if marked.contains(&mark.key) {
                ours.marked = mark.published;
            } else {
                tracing::debug!(target = %ours.target, epoch = ours.epoch, "the watermark is another relay's now");
                ours.state = State::Lost;
                lost_in_flight |= ours.has_in_flight();
            }
        }
        if !marked.is_empty() {
            self.backoff = BACKOFF.0;
        }
        if lost_in_flight {
            self.reset("a lease was lost with records in flight").await?;
        }
        self.clear_alarms().await
    }

    /// Releases what is more than our share and drained.
    pub(super) fn hand_back(&mut self) {
        let leases = self.leases.clone();
        self.partitions.retain(|key, ours| {
            let done = ours.hand_back && ours.is_drained();
            if done {
                leases.release(*key);
            }
            !done
        });
    }

    /// Until something is due or happens.
    pub(super) async fn wait(&mut self, shutdown: &CancellationToken) {
        let now = Instant::now();
        let mut due = self.next_read;
        if self.partitions.values().any(|ours| ours.has_unmarked()) {
            due = due.min(self.marked_at + MARK_INTERVAL);
        }
        due = due.max(self.retry_at);
        if self.in_flight() > 0 {
            // The moment the leases could run out is never slept through.
            due = due.min(now + self.lease_left(1, 1));
        }
        tokio::select! {
            biased;
            () = shutdown.cancelled() => {}
            _ = self.table.changed() => {}
            () = self.progress.notified() => {
                if self.has_room() {
                    self.next_read = self.next_read.min(Instant::now() + ROOM_RETRY);
                }
            }
            () = self.wake.notified(), if self.idle => self.next_read = Instant::now(),
            () = tokio::time::sleep_until(due.into()) => {}
        }
    }

    /// Shutdown: what was handed over is waited for and marked; nothing new is read.
    pub(super) async fn finish(mut self) {
        let deadline = Instant::now() + DRAIN.min(self.lease_left(1, 1));
        while self.in_flight() > 0 && Instant::now() < deadline {
            if self.publisher.as_ref().is_some_and(Publisher::has_failed) {
                break;
            }
            // The report of the last record notifies.
            let _ = tokio::time::timeout(deadline - Instant::now(), self.progress.notified()).await;
        }
        let left = self.in_flight();
        if left > 0 {
            tracing::warn!(left, "the relay ends with records in flight; the next owner reads what became of them");
        }
        let marks = self.marks();
        if let Some(reader) = &self.reader {
            let marked = tokio::time::timeout(self.leases.duration, reader.mark(&self.leases.owner, &marks)).await;
            if !matches!(marked, Ok(Ok(_))) {
                tracing::warn!(?marked, "the last watermark was not written; the next owner reads Kafka's tail");
            }
        }
        if let Some(publisher) = self.publisher.take() {
            let _ = tokio::task::spawn_blocking(move || publisher.end()).await;
        }
    }

    pub(super) fn in_flight(&self) -> usize {
        self.publisher.as_ref().map_or(0, Publisher::in_flight)
    }

    fn has_room(&self) -> bool {
        self.in_flight() <= self.settings.relay.in_flight_max / 2
    }

    /// New records go out only while the lease is young: there is time to notice before it runs out.
    fn may_produce(&self) -> bool {
        !self.lease_left(2, 3).is_zero()
    }

    /// Time left of `numerator / denominator` of the lease, counted from before its last renewal.
    pub(super) fn lease_left(&self, numerator: u32, denominator: u32) -> Duration {
        let renewed_at = self.table.borrow().renewed_at;
        let end = renewed_at.map(|at| at + self.leases.duration * numerator / denominator);
        end.map_or(Duration::ZERO, |end| end.saturating_duration_since(Instant::now()))
    }

    pub(super) fn back_off(&mut self) {
        self.retry_at = Instant::now() + self.backoff;
        self.backoff = (self.backoff * 2).min(BACKOFF.1);
    }

    /// The connection is given up; a new one is made after a wait.
    pub(super) fn lose_database(&mut self, reason: &str) {
        self.reader = None;
        self.back_off();
        self.next_read = self.retry_at;
        if !std::mem::replace(&mut self.database_away, true) {
            tracing::warn!(reason, "the outbox cannot be read; tried again for as long as it takes");
        }
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
