//! One verification: every promise held once, of everything or of a sample, with its place kept.
//!
//! Sampled, it looks at the newest events of each partition, one partition of each read table, and the newest
//! instances of each process manager. What is committed while it runs is left to the next one.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use tokio_postgres::Client;

use super::outbox::{self, Mark};
use super::places::Places;
use super::records::{self, From, Stretch};
use super::report::{Checks, Report};
use super::topic::Along;
use super::{AuditError, Finding, Subject, results, span};
use crate::kafka::TopicPartition;
use crate::process::OpenProcess;
use crate::projection::{AnyProjector, Audited};
use crate::settings::Settings;
use crate::store::events::{self, Span};
use crate::store::{DatabaseRole, Destination, Pace, connect, destinations};

/// Events of a partition that a sample looks at.
const NEWEST_EVENTS: i64 = 10_000;
/// Instances of a process manager that a sample looks at.
const NEWEST_INSTANCES: i64 = 1_000;

/// How much is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scope {
    /// Everything, instead of a sample.
    pub full: bool,
    /// Of each read table a sample looks at this partition, modulo how many there are.
    pub partition: u32,
}

/// What is verified, and with what.
pub struct Verification<'v> {
    pub settings: &'v Settings,
    pub subjects: &'v [Subject],
    pub projectors: &'v [Box<dyn AnyProjector>],
    pub processes: &'v [Box<dyn OpenProcess>],
    pub scope: Scope,
    /// Rows and records a second, and how many came.
    pub pace: &'v Pace,
}

impl Verification<'_> {
    /// Rows and records that it will look at, about.
    ///
    /// # Errors
    /// PostgreSQL does not tell.
    pub async fn expected(&self) -> Result<u64, AuditError> {
        let client = connect::connect(&self.settings.database, &DatabaseRole::Owner).await?;
        let (mut expected, mut of_topic) = (0, BTreeMap::new());
        for subject in self.subjects {
            for topic in [subject.names.events(), subject.names.results()] {
                let marks = outbox::marks(&client, &destinations::find(&client, &topic).await?).await?;
                let sampled =
                    |mark: &Mark| if self.scope.full { mark.last_seq } else { mark.last_seq.min(NEWEST_EVENTS) };
                // Events are looked at in the store and on the topic.
                let times = if topic == subject.names.events() { 2 } else { 1 };
                expected += times * marks.iter().map(|mark| sampled(mark).unsigned_abs()).sum::<u64>();
                of_topic.insert(topic, marks);
            }
        }
        for projector in self.projectors {
            let marks = of_topic.get(projector.topic()).map(Vec::as_slice).unwrap_or_default();
            let chosen = self.partitions(marks.len());
            expected += marks
                .iter()
                .filter(|mark| chosen.contains(&mark.partition))
                .map(|mark| mark.last_seq.unsigned_abs())
                .sum::<u64>();
        }
        Ok(expected)
    }

    /// Holds every promise.
    ///
    /// # Errors
    /// PostgreSQL or Kafka does not answer; the places are kept.
    pub async fn run(&self, places: &mut Places) -> Result<Report, AuditError> {
        let mut run = Run {
            of: self,
            client: connect::connect(&self.settings.database, &DatabaseRole::Owner).await?,
            consumer: records::client_of(&self.settings.kafka)?,
            checks: Checks(places.checks()),
            places,
        };
        let outcome = run.all().await;
        run.places.keep(&run.checks.0)?;
        let proven = outcome?;
        run.places.done()?;
        let checks = run.checks.0;
        let holds = checks.iter().all(|check| check.holds);
        Ok(Report { holds, full: self.scope.full, checks, proven_up_to: proven })
    }

    /// The partitions of a read table that are looked at.
    fn partitions(&self, count: usize) -> Vec<i32> {
        let all = 0..i32::try_from(count).unwrap_or(i32::MAX);
        match self.scope.full {
            true => all.collect(),
            false => all.filter(|one| count > 0 && *one as u32 == self.scope.partition % count as u32).collect(),
        }
    }
}

/// By topic and partition.
type Proven = BTreeMap<String, BTreeMap<i32, i64>>;

struct Run<'r> {
    of: &'r Verification<'r>,
    client: Client,
    consumer: records::Shared,
    checks: Checks,
    places: &'r mut Places,
}

impl Run<'_> {
    async fn all(&mut self) -> Result<Proven, AuditError> {
        let mut proven = Proven::new();
        for subject in self.of.subjects {
            let events = destinations::find(&self.client, &subject.names.events()).await?;
            let marks = outbox::marks(&self.client, &events).await?;
            for mark in &marks {
                self.store(subject, &events, *mark).await?;
                self.topic(subject, &events, *mark).await?;
            }
            self.outbox(subject, &events, true).await?;
            let published = destinations::find(&self.client, &subject.names.results()).await?;
            self.outbox(subject, &published, false).await?;
            self.results(subject, &published).await?;
            let held = self.checks.0.iter().filter(|check| check.of == subject.context).all(|check| check.holds);
            let of_topic = match self.of.scope.full {
                true if held => marks.iter().map(|mark| (mark.partition, mark.published)).collect(),
                true => BTreeMap::new(),
                false => super::proven(&self.client)
                    .await?
                    .into_iter()
                    .filter(|one| one.topic == events.name)
                    .map(|one| (one.partition, one.seq))
                    .collect(),
            };
            proven.insert(events.name, of_topic);
        }
        for projector in self.of.projectors {
            self.read_table(projector.as_ref()).await?;
        }
        for process in self.of.processes {
            self.process(process.as_ref()).await?;
        }
        Ok(proven)
    }

    /// What PostgreSQL alone can tell.
    async fn store(&mut self, subject: &Subject, events: &Destination, mark: Mark) -> Result<(), AuditError> {
        let part = format!("{}/{} store", events.name, mark.partition);
        let first = if self.of.scope.full { 0 } else { (mark.last_seq - NEWEST_EVENTS).max(0) };
        let mut after = self.places.of(&part).unwrap_or(first).max(first);
        for name in ["sequences", "versions", "outcomes"] {
            self.checks.of(name, subject.context);
        }
        while after < mark.last_seq {
            let upto = mark.last_seq.min(after + span::EVENTS_MAX);
            let span = Span { partition: mark.partition, after, upto };
            let found = span::check(&self.client, events, span).await?;
            let events = (upto - after).unsigned_abs();
            self.checks.of("sequences", subject.context).add(events, found.sequence);
            self.checks.of("versions", subject.context).add(events, found.versions);
            self.checks.of("outcomes", subject.context).add(events, found.outcomes);
            after = upto;
            self.places.reached(&part, after, &self.checks.0)?;
            self.of.pace.took(events).await;
        }
        let part = format!("{}/{} outcomes", events.name, mark.partition);
        if self.of.scope.full && self.places.of(&part).is_none() {
            let (checked, found) = results::without_event(&self.client, events, mark.partition, mark.last_seq).await?;
            self.checks.of("outcomes", subject.context).add(checked.unsigned_abs(), found);
            self.places.reached(&part, 1, &self.checks.0)?;
        }
        Ok(())
    }

    async fn outbox(
        &mut self,
        subject: &Subject,
        destination: &Destination,
        has_events: bool,
    ) -> Result<(), AuditError> {
        let snapshot = self
            .client
            .build_transaction()
            .isolation_level(tokio_postgres::IsolationLevel::RepeatableRead)
            .read_only(true)
            .start()
            .await
            .map_err(crate::store::StoreError::at("take a snapshot to audit"))?;
        for mark in outbox::marks(&snapshot, destination).await? {
            let (waiting, found) = outbox::check(&snapshot, destination, mark, has_events).await?;
            self.checks.of("outbox", subject.context).add(waiting.unsigned_abs(), found);
        }
        Ok(())
    }

    /// Every record of the events topic is its event.
    async fn topic(&mut self, subject: &Subject, events: &Destination, mark: Mark) -> Result<(), AuditError> {
        let place = TopicPartition { topic: events.name.as_str().into(), partition: mark.partition };
        let (part, at) = (format!("{place} topic"), format!("{place} topic offset"));
        self.checks.of("topic", subject.context);
        let from = match (self.places.of(&at), self.of.scope.full) {
            (Some(offset), _) => From::Offset(offset),
            (None, true) => From::Offset(0),
            (None, false) => From::Newest(NEWEST_EVENTS),
        };
        let mut along: Option<Along> = None;
        let mut stretches = records::stretches(self.consumer.clone(), &self.of.settings.kafka, place.clone(), from);
        while let Some(stretch) = stretches.recv().await {
            let stretch = stretch?;
            let whole = self.of.scope.full && stretch.first_offset == 0;
            let reached = self.places.of(&part).or(whole.then_some(0));
            let along = along.get_or_insert_with(|| Along::new(place.clone(), subject.namespace, reached));
            let seqs = Along::seqs(&stretch.records);
            let stored = events::at(&self.client, events, mark.partition, &seqs).await?;
            let mut found = along.compare(&stretch.records, &stored);
            if stretch.next_offset >= stretch.end {
                found.extend(along.ends_before(mark.published));
            }
            let records = stretch.records.len() as u64;
            self.checks.of("topic", subject.context).add(records, found);
            self.places.reached(&at, stretch.next_offset, &self.checks.0)?;
            if let Some(reached) = along.reached() {
                self.places.reached(&part, reached, &self.checks.0)?;
            }
            self.of.pace.took(records).await;
        }
        if let Some(repeated) = along.map(|along| along.repeated).filter(|repeated| *repeated > 0) {
            let note = format!("{place}: {repeated} records came again, whole");
            self.checks.of("topic", subject.context).note(note);
        }
        Ok(())
    }

    /// Every record of the results topic is its outcome.
    async fn results(&mut self, subject: &Subject, published: &Destination) -> Result<(), AuditError> {
        self.checks.of("results", subject.context);
        let Some(kept) = results::kept_since(&self.client).await? else { return Ok(()) };
        for mark in outbox::marks(&self.client, published).await? {
            let place = TopicPartition { topic: published.name.as_str().into(), partition: mark.partition };
            let (part, at) = (format!("{place} results"), format!("{place} results offset"));
            let from = match (self.places.of(&at), self.of.scope.full) {
                (Some(offset), _) => From::Offset(offset),
                (None, true) => From::Offset(0),
                (None, false) => From::Newest(NEWEST_EVENTS),
            };
            let mut reached = self.places.of(&part);
            let mut stretches = records::stretches(self.consumer.clone(), &self.of.settings.kafka, place.clone(), from);
            while let Some(stretch) = stretches.recv().await {
                let Stretch { records, next_offset, end, .. } = stretch?;
                let mut found = results::check(&self.client, subject, &place, &records, (&mut reached, kept)).await?;
                if next_offset >= end {
                    found.extend(ends_before(&place, reached, mark.published));
                }
                self.checks.of("results", subject.context).add(records.len() as u64, found);
                self.places.reached(&at, next_offset, &self.checks.0)?;
                if let Some(reached) = reached {
                    self.places.reached(&part, reached, &self.checks.0)?;
                }
                self.of.pace.took(records.len() as u64).await;
            }
        }
        Ok(())
    }

    /// A read table is the fold of its events.
    async fn read_table(&mut self, projector: &dyn AnyProjector) -> Result<(), AuditError> {
        let (name, topic) = (projector.name(), projector.topic().to_owned());
        self.checks.of("read-tables", name);
        let count = destinations::find(&self.client, &topic).await?.partitions;
        let part = |partition: i32| format!("read table {name}/{partition}");
        let mut left = self.of.partitions(usize::try_from(count).unwrap_or_default());
        left.retain(|partition| self.places.of(&part(*partition)).is_none());
        if !self.of.scope.full {
            let sampled = left.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            self.checks.of("read-tables", name).note(format!("partition {sampled} of {count}"));
        }
        // One at a time: its end is a place to go on from.
        for partition in left {
            let heard: Mutex<Vec<Audited>> = Mutex::default();
            let hear = |one| heard.lock().unwrap_or_else(PoisonError::into_inner).push(one);
            if let Err(why) = projector.audit(&[partition], self.of.pace, &hear).await? {
                self.checks.of("read-tables", name).note(format!("not looked at: {why}"));
                return Ok(());
            }
            for one in heard.into_inner().unwrap_or_else(PoisonError::into_inner) {
                let finding = |what| Finding { topic: topic.clone(), partition, seq: None, stream_id: None, what };
                let found = one.differences.into_iter().map(finding).collect();
                self.checks.of("read-tables", name).add(one.upto.unsigned_abs(), found);
            }
            self.places.reached(&part(partition), 1, &self.checks.0)?;
        }
        Ok(())
    }

    /// Instances are the folds of their inputs.
    async fn process(&mut self, process: &dyn OpenProcess) -> Result<(), AuditError> {
        let part = format!("process {}", process.name());
        self.checks.of("processes", process.name());
        if self.places.of(&part).is_some() {
            return Ok(());
        }
        let found: Mutex<Vec<Finding>> = Mutex::default();
        let hear = |fault: crate::process::Fault| {
            let finding = Finding {
                topic: process.group().to_owned(),
                partition: 0,
                seq: None,
                stream_id: fault.instance,
                what: fault.what,
            };
            found.lock().unwrap_or_else(PoisonError::into_inner).push(finding);
        };
        let newest = (!self.of.scope.full).then_some(NEWEST_INSTANCES);
        let held = process.audit(&mut self.client, newest, self.of.pace, &hear).await?;
        let found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
        self.checks.of("processes", process.name()).add(held, found);
        self.places.reached(&part, 1, &self.checks.0)
    }
}

/// A topic that ends before what is marked as published.
pub(super) fn ends_before(place: &TopicPartition, reached: Option<i64>, published: i64) -> Option<Finding> {
    let ends = reached.unwrap_or_default();
    // Where retention left nothing, nothing can be said.
    (reached.is_some() && ends < published).then(|| Finding {
        topic: place.topic.to_string(),
        partition: place.partition,
        seq: Some(ends + 1),
        stream_id: None,
        what: format!("{published} is marked as published, and the topic ends at {ends}"),
    })
}
