//! The moving part of the publishing loop: begin a page, mark, wait, and the end of it all.
//!
//! What is in a page is [`super::page`]'s matter. PostgreSQL is authoritative for what is published.

use std::time::{Duration, Instant};

use futures_util::try_join;
use tokio_util::sync::CancellationToken;

use super::RelayError;
use super::lease::PartitionKey;
use super::partition::Phase;
use super::publisher::Publisher;
use super::publishing_loop::PublishingLoop;
use super::reader::{Mark, ReadRequest};
use crate::crash::is_sabotaged;
use crate::kafka::KafkaError;
use crate::store::{Blame, StoreError};

/// On shutdown, acknowledgements are waited for this long.
const DRAIN: Duration = Duration::from_secs(5);

impl PublishingLoop {
    /// One look at the outbox, if it is time, pipelined with the marks that are due.
    pub(super) async fn pump(&mut self) -> Result<(), RelayError> {
        let started = Instant::now();
        let requests = if self.pace.may_read(started) { self.read_requests() } else { Vec::new() };
        let marks = self.due_marks();
        if requests.is_empty() && marks.is_empty() {
            if self.pace.may_read(started) {
                self.pace.read_soon();
            }
            return Ok(());
        }
        if !marks.is_empty() {
            crate::crash_point!("relay.before_mark");
        }
        let Some(reader) = self.reader.as_ref() else { return Ok(()) };
        // The marks go first: their answer must not wait behind rows that nobody takes yet.
        let answers = try_join!(reader.mark(&self.leases.owner, &marks), reader.read(&requests));
        let (marked, rows) = match answers {
            Ok(answers) => answers,
            Err(error) => return Err(self.narrow(error, &requests)),
        };
        if !marks.is_empty() {
            crate::crash_point!("relay.after_mark");
        }
        if self.apply_marks(&marks, &marked) {
            drop(rows);
            self.reset("a lease was lost with records in flight").await?;
        } else if let Some(rows) = rows {
            self.publish(started, &requests, rows).await?;
        }
        if marks.is_empty() { Ok(()) } else { self.clear_alarms().await }
    }

    fn due_marks(&self) -> Vec<Mark> {
        if self.pace.may_mark() { self.marks() } else { Vec::new() }
    }

    fn marks(&self) -> Vec<Mark> {
        self.partitions
            .iter()
            .filter(|(_, ours)| ours.has_unmarked())
            .map(|(key, ours)| {
                let acknowledged = ours.acknowledged.seq();
                let ahead = is_sabotaged("mark_before_acknowledgement");
                let published = if ahead { ours.sent + 1 } else { acknowledged };
                Mark { key: *key, epoch: ours.epoch, published }
            })
            .collect()
    }

    /// Takes over what was marked. Whether a partition was lost with records in flight.
    fn apply_marks(&mut self, marks: &[Mark], marked: &[PartitionKey]) -> bool {
        let mut lost_in_flight = false;
        for mark in marks {
            let Some(ours) = self.partitions.get_mut(&mark.key) else { continue };
            if marked.contains(&mark.key) {
                ours.marked = mark.published;
            } else {
                tracing::debug!(target = %ours.target, epoch = ours.epoch, "the watermark is another relay's now");
                ours.state = Phase::Lost { at: Instant::now() };
                lost_in_flight |= ours.has_in_flight();
            }
        }
        if !marks.is_empty() {
            self.pace.marked();
        }
        if !marked.is_empty() {
            self.spell.begin_anew();
        }
        lost_in_flight
    }

    /// Releases what is more than our share and drained.
    pub(super) fn hand_back(&mut self) {
        let (leases, told) = (self.leases.clone(), self.told.clone());
        self.partitions.retain(|key, ours| {
            let done = ours.hand_back && ours.is_drained();
            if done {
                leases.release(*key);
                told.gone(&ours.target.topic, key.partition);
            }
            !done
        });
    }

    /// Until something is due or happens.
    pub(super) async fn wait(&mut self, shutdown: &CancellationToken) {
        let now = Instant::now();
        let mut due = self.pace.next_read();
        if self.partitions.values().any(|ours| ours.has_unmarked()) {
            due = due.min(self.pace.next_mark());
        }
        due = due.max(self.spell.retry_at());
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
                    self.pace.has_room();
                }
            }
            () = self.wake.notified(), if self.pace.is_idle() => self.pace.read_at(Instant::now()),
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
            let reason = match marked {
                Ok(Ok(_)) => None,
                Ok(Err(error)) => Some(error.to_string()),
                Err(late) => Some(late.to_string()),
            };
            if let Some(reason) = reason {
                tracing::warn!(reason, "the last watermark was not written; the next owner reads Kafka's tail");
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
    pub(super) fn may_produce(&self) -> bool {
        !self.lease_left(2, 3).is_zero()
    }

    /// Time left of `numerator / denominator` of the lease, counted from before its last renewal.
    pub(super) fn lease_left(&self, numerator: u32, denominator: u32) -> Duration {
        let renewed_at = self.table.borrow().renewed_at;
        let end = renewed_at.map(|at| at + self.leases.duration * numerator / denominator);
        end.map_or(Duration::ZERO, |end| end.saturating_duration_since(Instant::now()))
    }

    /// A page that could not be read in time is asked for with fewer rows.
    pub(super) fn narrow(&mut self, error: StoreError, requests: &[ReadRequest]) -> RelayError {
        let rows = requests.iter().map(|request| request.rows).max().unwrap_or(0);
        if error.blame() == Blame::Extent && rows > 0 {
            self.extent.shrink(usize::try_from(rows).unwrap_or(usize::MAX));
        }
        error.into()
    }

    /// The connection is given up; a new one is made after a wait.
    pub(super) fn lose_database(&mut self, error: &StoreError) {
        self.reader = None;
        self.wait_out(format!("the outbox cannot be read: {error}"));
    }

    /// No client of Kafka's can be made, though one could at the start.
    pub(super) fn lose_kafka(&mut self, error: &KafkaError) {
        for ours in self.partitions.values_mut().filter(|ours| ours.state == Phase::Aligning) {
            ours.state = Phase::Unaligned { from: Instant::now() };
        }
        self.wait_out(error.to_string());
    }

    fn wait_out(&mut self, reason: String) {
        self.spell.back_off();
        self.pace.read_at(self.spell.retry_at());
        self.spell.note(reason);
    }
}
