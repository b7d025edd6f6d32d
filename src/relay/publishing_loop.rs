//! The publishing loop: which partitions are ours, what to read, what to mark, and when.
//!
//! One task owns all of it, so there is no lock and no order to get wrong. It never waits on anything
//! longer than the lease lasts. PostgreSQL is authoritative; what is kept here can be lost.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::RelayError;
use super::align::Alignment;
use super::lease::{LeaseTable, Leases, PartitionKey};
use super::pace::Pace;
use super::partition::{Alarm, Partition, Phase};
use super::publisher::{Publisher, SendFailure};
use super::reader::Reader;
use super::spell::Spell;
use super::telling::reason_and_cure;
use crate::health::{Heartbeat, Partitions};
use crate::settings::Settings;
use crate::store::Extent;

/// The loop's state.
pub struct PublishingLoop {
    pub(super) settings: Arc<Settings>,
    pub(super) leases: Arc<Leases>,
    pub(super) table: watch::Receiver<Arc<LeaseTable>>,
    pub(super) wake: Arc<Notify>,
    heartbeat: Heartbeat,
    pub(super) told: Partitions,
    pub(super) progress: Arc<Notify>,
    pub(super) partitions: BTreeMap<PartitionKey, Partition>,
    pub(super) reader: Option<Reader>,
    pub(super) publisher: Option<Publisher>,
    pub(super) alignment: Alignment,
    /// Types to sources.
    pub(super) sources: HashMap<String, String>,
    pub(super) pace: Pace,
    pub(super) spell: Spell,
    /// Rows of one partition in a page, at most: fewer while so many cannot be read in time.
    pub(super) extent: Extent,
}

impl PublishingLoop {
    pub fn new(
        settings: Arc<Settings>,
        leases: Arc<Leases>,
        wake: Arc<Notify>,
        (heartbeat, told): (Heartbeat, Partitions),
    ) -> Self {
        Self {
            pace: Pace::new(&settings.relay),
            spell: Spell::default(),
            extent: Extent::new(usize::try_from(settings.relay.batch_rows_max).unwrap_or(usize::MAX)),
            settings,
            table: leases.subscribe(),
            leases,
            wake,
            heartbeat,
            told,
            progress: Arc::new(Notify::new()),
            partitions: BTreeMap::new(),
            reader: None,
            publisher: None,
            alignment: Alignment::default(),
            sources: HashMap::new(),
        }
    }

    /// Publishes until `shutdown`, then drains.
    ///
    /// # Errors
    /// Kafka's options cannot be used, at the start. What comes later is waited out.
    pub async fn run(mut self, shutdown: CancellationToken) -> Result<(), RelayError> {
        self.begin_producing()?;
        while !shutdown.is_cancelled() {
            let heartbeat = self.heartbeat.clone();
            match heartbeat.while_waiting("the outbox", self.turn()).await {
                Ok(()) => {}
                Err(RelayError::Store(error)) => self.lose_database(&error),
                Err(RelayError::Kafka(error)) => self.lose_kafka(&error),
                Err(error) => return Err(error),
            }
            match self.spell.away() {
                None => self.heartbeat.ready(),
                Some(away) => self.heartbeat.not_ready(away.reason.as_str()),
            }
            self.tell();
            self.wait(&shutdown).await;
        }
        let told = self.told.clone();
        self.finish().await;
        told.all_gone();
        Ok(())
    }

    async fn turn(&mut self) -> Result<(), RelayError> {
        self.adopt().await?;
        if self.publisher.as_ref().is_some_and(Publisher::has_failed) {
            self.reset("a record failed").await?;
        } else if self.lease_left(1, 1).is_zero() && self.in_flight() > 0 {
            self.reset("the leases ran out before they could be renewed").await?;
        }
        if self.spell.is_waiting() {
            return Ok(());
        }
        if self.reader.as_ref().is_none_or(Reader::is_closed) {
            let limit = self.leases.duration.min(self.settings.database.round_trip());
            self.reader = Some(Reader::connect(&self.settings.database, limit).await?);
            if self.spell.away().is_some() {
                // What was not looked at meanwhile did not stand at Kafka.
                self.partitions.values_mut().for_each(|ours| ours.hear(Instant::now()));
            }
        }
        self.tell_silence();
        self.note_alarms().await?;
        self.align().await?;
        let pumped = self.pump().await;
        self.measure();
        pumped?;
        self.hand_back();
        self.spell.over();
        Ok(())
    }

    fn measure(&self) {
        let bytes = self.publisher.as_ref().map_or(0, Publisher::in_flight_bytes);
        metrics::gauge!("throughline_relay_in_flight_records").set(self.in_flight() as f64);
        metrics::gauge!("throughline_relay_in_flight_bytes").set(bytes as f64);
    }

    /// Takes over what the keeper holds and lets go what it lost.
    async fn adopt(&mut self) -> Result<(), RelayError> {
        let table = self.table.borrow_and_update().clone();
        let gone =
            |key: &PartitionKey, ours: &Partition| table.held.get(key).is_none_or(|lease| lease.epoch != ours.epoch);
        let lost_in_flight = self.partitions.iter().any(|(key, ours)| gone(key, ours) && ours.has_in_flight());
        for ours in self.partitions.values_mut() {
            // Renewed since: the lease is ours after all, and the watermark was moved by somebody else.
            if matches!(ours.state, Phase::Lost { at } if table.renewed_at.is_some_and(|renewed| renewed > at)) {
                ours.realign();
            }
        }
        for (key, ours) in self.partitions.extract_if(.., |key, ours| gone(key, ours)) {
            self.told.gone(&ours.target.topic, key.partition);
        }
        if lost_in_flight {
            self.reset("a lease was lost with records in flight").await?;
        }
        for (key, lease) in &table.held {
            match self.partitions.get_mut(key) {
                Some(ours) => ours.hand_back = lease.hand_back,
                None if lease.hand_back => {
                    // Never begun here: nothing to drain.
                    self.leases.release(*key);
                }
                None => {
                    self.partitions.insert(*key, Partition::new(key.partition, lease));
                }
            }
        }
        Ok(())
    }

    /// Ends this producer with all it holds. Every partition learns from Kafka what became of it.
    pub(super) async fn reset(&mut self, why: &str) -> Result<(), RelayError> {
        let failure = match self.publisher.take() {
            Some(publisher) => tokio::task::spawn_blocking(move || publisher.end()).await?,
            None => None,
        };
        metrics::counter!("throughline_relay_producer_resets_total").increment(1);
        let reason = failure.as_ref().map_or("", |failure| failure.reason.as_str());
        tracing::warn!(why, reason, "the relay's producer is replaced; Kafka's tails are read again");
        self.alignment = Alignment::default();
        for ours in self.partitions.values_mut() {
            let interrupted = match ours.state {
                Phase::Streaming | Phase::Aligning => true,
                // Stopped before a record, with those before it on their way.
                Phase::Halted { .. } => ours.has_in_flight(),
                Phase::Unaligned { .. } | Phase::Lost { .. } => false,
            };
            if interrupted {
                ours.state = Phase::Unaligned { from: Instant::now() };
                // What was sent is known when the tail has been read.
                ours.sent = ours.acknowledged.seq();
            }
        }
        self.spell.back_off();
        if let Some(failure) = failure {
            self.blame(&failure);
        }
        Ok(())
    }

    /// Stops the partition whose record cannot be published, or begins to look for that record.
    fn blame(&mut self, failure: &SendFailure) {
        let Some((target, seq)) = &failure.record else { return };
        let Some((key, ours)) = self.partitions.iter_mut().find(|(_, ours)| ours.target == *target) else { return };
        let key = *key;
        if failure.is_too_large() {
            if ours.search_for_culprit(*seq) {
                return;
            }
            let alarm = format!(
                "the broker refuses the record seq {seq} for its size ({}). Raise max.message.bytes of the topic",
                failure.reason
            );
            self.halt(key, Alarm { text: alarm, seq: Some(*seq) });
        } else if failure.is_lasting() {
            let alarm =
                format!("the broker refuses seq {seq}: {}. Check the topic and the relay's rights", failure.reason);
            self.halt(key, Alarm { text: alarm, seq: Some(*seq) });
        }
    }

    /// Stops one partition with an alarm. It is looked at again later; the next turn writes it down.
    pub(super) fn halt(&mut self, key: PartitionKey, alarm: Alarm) {
        let Some(ours) = self.partitions.get_mut(&key) else { return };
        let retry = Duration::from_millis(self.settings.relay.halt_retry_ms);
        ours.state = Phase::Halted { until: Instant::now() + retry };
        if ours.alarm.as_ref() != Some(&alarm) {
            self.raise(key, alarm);
        }
    }

    fn raise(&mut self, key: PartitionKey, alarm: Alarm) {
        let Some(ours) = self.partitions.get_mut(&key) else { return };
        let (reason, cure) = reason_and_cure(&alarm.text);
        self.told.standing(&ours.target.topic, key.partition, reason, cure);
        set_halted(ours, true);
        (ours.alarm, ours.alarm_noted) = (Some(alarm), false);
    }

    /// Names the partitions that Kafka has not answered for: whatever the cause is there, it stands.
    fn tell_silence(&mut self) {
        let (now, longest) = (Instant::now(), Duration::from_millis(self.settings.relay.silence_ms));
        let silent = |(key, ours): (&PartitionKey, &mut Partition)| {
            let is_silent = ours.silence(now) >= longest && ours.alarm.is_none();
            is_silent.then(|| (*key, ours.silence_alarm(longest)))
        };
        let silent: Vec<_> = self.partitions.iter_mut().filter_map(silent).collect();
        for (key, alarm) in silent {
            self.raise(key, alarm);
        }
    }

    /// Writes down the alarms that could not be so far: a partition may stop while PostgreSQL is away.
    async fn note_alarms(&mut self) -> Result<(), RelayError> {
        let Some(reader) = &self.reader else { return Ok(()) };
        for (key, ours) in self.partitions.iter_mut().filter(|(_, ours)| !ours.alarm_noted) {
            let Some(alarm) = &ours.alarm else { continue };
            reader.note_halt(&self.leases.owner, *key, Some(&alarm.text)).await?;
            ours.alarm_noted = true;
        }
        Ok(())
    }

    /// Takes back the alarms whose cause is gone.
    pub(super) async fn clear_alarms(&mut self) -> Result<(), RelayError> {
        let Some(reader) = &self.reader else { return Ok(()) };
        for (key, ours) in self.partitions.iter_mut().filter(|(_, ours)| ours.is_alarm_over()) {
            reader.note_halt(&self.leases.owner, *key, None).await?;
            ours.alarm = None;
            set_halted(ours, false);
        }
        Ok(())
    }
}

fn set_halted(ours: &Partition, halted: bool) {
    let labels = [("topic", ours.target.topic.to_string()), ("partition", ours.target.partition.to_string())];
    metrics::gauge!("throughline_relay_halted", &labels).set(if halted { 1.0 } else { 0.0 });
}
