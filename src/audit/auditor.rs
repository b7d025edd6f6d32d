//! The role `audit`: holds what is new, all the time, beside what runs, and keeps how far everything is proven.
//!
//! One process of many does it, whoever has the lock; the others wait. It reads no faster than `audit.events_per_second`
//! and takes part in no hot path. Where something is not as promised the partition stands, is told, and is looked at
//! again: what was mended goes on by itself. `throughline.audits` is authoritative for what is proven.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_postgres::{Client, GenericClient};
use tokio_util::sync::CancellationToken;

use super::outbox::{self, Mark};
use super::records::{self, From};
use super::topic::Along;
use super::{AuditError, Finding, Subject, span};
use crate::health::{Health, Heartbeat, Partitions, Told};
use crate::kafka::TopicPartition;
use crate::settings::Settings;
use crate::store::events::{self, Span};
use crate::store::{DatabaseRole, Destination, Line, Pace, StoreError, bounded, connect, destinations};

/// Before the next try after a failure.
const RETRY_WAIT: Duration = Duration::from_secs(2);
/// Between two looks of who waits for the lock.
const LOCK_WAIT: Duration = Duration::from_secs(5);
/// Findings that a standing partition tells.
const TOLD_MAX: usize = 3;
const CURE: &str = "Run `throughline verify --full`: it lists every difference with its place. Nothing was changed; once it \
                    is mended the audit goes on by itself";

/// How far a partition is proven.
#[derive(Debug, Clone, PartialEq)]
pub struct Proven {
    pub topic: String,
    pub partition: i32,
    /// Everything up to here is as promised.
    pub seq: i64,
    /// Since that was last found, seconds.
    pub age_seconds: f64,
}

/// What is proven.
///
/// # Errors
/// PostgreSQL does not answer.
pub async fn proven(client: &impl GenericClient) -> Result<Vec<Proven>, StoreError> {
    let rows = client
        .query(
            "select t.name, a.partition, a.seq, extract(epoch from clock_timestamp() - a.proven_at)::float8
             from throughline.audits a join throughline.topics t on t.id = a.topic order by 1, 2",
            &[],
        )
        .await
        .map_err(StoreError::at("read what is proven"))?;
    Ok(rows
        .iter()
        .map(|row| Proven { topic: row.get(0), partition: row.get(1), seq: row.get(2), age_seconds: row.get(3) })
        .collect())
}

/// Audits until the shutdown.
///
/// # Errors
/// None: what fails is told and tried again.
pub async fn run(
    settings: Arc<Settings>,
    subjects: Vec<Subject>,
    health: Arc<Health>,
    shutdown: CancellationToken,
) -> Result<(), AuditError> {
    let (heartbeat, partitions) = (health.register("audit"), health.partitions("audit"));
    // Nobody waits for an audit before traffic is taken.
    heartbeat.ready();
    let told = Told::new("the audit cannot go on");
    // One for all sessions: its end waits for a broker that may be away.
    let consumer = records::client_of(&settings.kafka)?;
    let auditor = Auditor { settings: &settings, subjects: &subjects, heartbeat: &heartbeat, partitions: &partitions };
    loop {
        let began = Instant::now();
        let turn = shutdown.run_until_cancelled(auditor.session(&consumer, &told));
        match turn.await {
            None => {
                partitions.all_gone();
                // Nobody waits for it.
                drop(tokio::task::spawn_blocking(move || drop(consumer)));
                return Ok(());
            }
            Some(Ok(())) => {}
            Some(Err(error)) => drop(told.ended_after(began.elapsed(), &error.to_string())),
        }
        heartbeat.beat();
        let pause = heartbeat.during(tokio::time::sleep(RETRY_WAIT));
        let _ = shutdown.run_until_cancelled(pause).await;
    }
}

struct Auditor<'a> {
    settings: &'a Settings,
    subjects: &'a [Subject],
    heartbeat: &'a Heartbeat,
    partitions: &'a Partitions,
}

/// A partition's place: proven up to `seq`, whose record stands before `offset`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Place {
    seq: i64,
    offset: i64,
}

impl Auditor<'_> {
    /// One connection's life, with the lock.
    async fn session(&self, consumer: &records::Shared, told: &Told) -> Result<(), AuditError> {
        let connected = connect::connect_with(&self.settings.database, &DatabaseRole::Auditor, "");
        let line = self.heartbeat.during(connected).await?;
        while !self.heartbeat.during(self.lock(&line)).await? {
            self.partitions.all_gone();
            self.heartbeat.beat();
            self.heartbeat.during(tokio::time::sleep(LOCK_WAIT)).await;
        }
        let pace = Pace::new(Some(self.settings.audit.events_per_second));
        loop {
            let mut moved = 0;
            for subject in self.subjects {
                let name = subject.names.events();
                let found = self.bounded("find a destination", destinations::find(&line, &name));
                let events = self.heartbeat.during(found).await?;
                let marks = self.bounded("read how far a destination is", outbox::marks(&*line, &events));
                for mark in self.heartbeat.during(marks).await? {
                    let work = self.partition(&line, consumer, &pace, (subject, &events, mark));
                    moved += self.heartbeat.during(work).await?;
                }
            }
            told.well();
            self.heartbeat.beat();
            if moved == 0 {
                self.heartbeat.during(tokio::time::sleep(Duration::from_millis(self.settings.audit.poll_ms))).await;
            }
        }
    }

    async fn bounded<T>(
        &self,
        step: &'static str,
        work: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        bounded(Duration::from_millis(self.settings.database.round_trip_timeout_ms), step, work).await
    }

    /// Whether this session is the one that audits this database.
    async fn lock(&self, line: &Line) -> Result<bool, StoreError> {
        let statement = "select pg_try_advisory_lock(hashtextextended('throughline audit', 0))";
        let ask = async { line.query_one(statement, &[]).await.map_err(StoreError::at("take the lock of the audit")) };
        Ok(self.bounded("take the lock of the audit", ask).await?.get(0))
    }

    /// Holds what is new in a partition. Returns how many events that was.
    async fn partition(
        &self,
        client: &Client,
        consumer: &records::Shared,
        pace: &Pace,
        (subject, events, mark): (&Subject, &Destination, Mark),
    ) -> Result<i64, AuditError> {
        let place = TopicPartition { topic: events.name.as_str().into(), partition: mark.partition };
        let mut at = self.bounded("read what is proven", read(client, events, mark.partition)).await?;
        let began = at.seq;
        if mark.published < at.seq || mark.last_seq < at.seq {
            let what = format!(
                "it was proven up to {}, and the store is at {} now, published up to {}: it was set back",
                at.seq, mark.last_seq, mark.published
            );
            self.tell(&place, &[finding(&place, Some(at.seq), what)]);
            return Ok(0);
        }
        if mark.published > at.seq {
            let from = From::Offset(at.offset);
            let mut stretches = records::stretches(consumer.clone(), &self.settings.kafka, place.clone(), from);
            let mut along = None;
            while let Some(stretch) = stretches.recv().await {
                let stretch = stretch?;
                // Behind what retention removed nothing can be compared: that is proven of the store alone.
                let along = along.get_or_insert_with(|| {
                    let is_whole = stretch.first_offset <= at.offset;
                    Along::new(place.clone(), subject.namespace, is_whole.then_some(at.seq))
                });
                let stored = self
                    .bounded("read events", events::at(client, events, mark.partition, &Along::seqs(&stretch.records)))
                    .await?;
                let mut found = along.compare(&stretch.records, &stored);
                let reached = along.reached().unwrap_or(at.seq);
                if stretch.next_offset >= stretch.end {
                    found.extend(along.ends_before(mark.published));
                }
                // Whatever the mark said: what is on the topic is committed. A number that nobody gave makes no range.
                if found.is_empty() {
                    found = self
                        .stored(client, events, Span { partition: mark.partition, after: at.seq, upto: reached })
                        .await?;
                }
                if !found.is_empty() {
                    self.tell(&place, &found);
                    return Ok(at.seq - began);
                }
                pace.took(stretch.records.len() as u64).await;
                let next = Place { seq: reached.max(at.seq), offset: stretch.next_offset };
                self.bounded("keep what is proven", keep(client, events, mark.partition, (at, next))).await?;
                at = next;
                self.heartbeat.beat();
                // What was committed since the mark was read is held in the next turn.
                if at.seq >= mark.last_seq {
                    break;
                }
            }
        } else {
            self.bounded("keep what is proven", keep(client, events, mark.partition, (at, at))).await?;
        }
        self.partitions.running(&events.name, mark.partition);
        measure(&place, at.seq);
        Ok(at.seq - began)
    }

    /// Holds a stretch of the store, in pieces that one statement can look at: retention may have made it long.
    async fn stored(&self, client: &Client, events: &Destination, span: Span) -> Result<Vec<Finding>, StoreError> {
        let mut after = span.after;
        while after < span.upto {
            let piece = Span { after, upto: span.upto.min(after + span::EVENTS_MAX), ..span };
            let found = self.bounded("hold a stretch", span::check(client, events, piece)).await?.all();
            if !found.is_empty() {
                return Ok(found);
            }
            after = piece.upto;
        }
        Ok(Vec::new())
    }

    /// Something is not as promised.
    fn tell(&self, place: &TopicPartition, found: &[Finding]) {
        let mut texts: Vec<String> = found.iter().take(TOLD_MAX).map(ToString::to_string).collect();
        if found.len() > TOLD_MAX {
            texts.push(format!("{} more", found.len() - TOLD_MAX));
        }
        let reason = texts.join("; ");
        tracing::error!(topic = &*place.topic, partition = place.partition, reason, "not as promised");
        self.partitions.standing(&place.topic, place.partition, &reason, Some(CURE));
    }
}

fn finding(place: &TopicPartition, seq: Option<i64>, what: String) -> Finding {
    Finding { topic: place.topic.to_string(), partition: place.partition, seq, stream_id: None, what }
}

fn measure(place: &TopicPartition, seq: i64) {
    let labels = [("topic", place.topic.to_string()), ("partition", place.partition.to_string())];
    metrics::gauge!("throughline_verified_seq", &labels).set(seq as f64);
    let now = jiff::Timestamp::now().as_second();
    metrics::gauge!("throughline_verified_timestamp_seconds", &labels).set(now as f64);
}

async fn read(client: &impl GenericClient, events: &Destination, partition: i32) -> Result<Place, StoreError> {
    let row = client
        .query_opt(
            "select seq, next_offset from throughline.audits where topic = $1 and partition = $2",
            &[&events.id, &partition],
        )
        .await
        .map_err(StoreError::at("read what is proven"))?;
    Ok(row.map_or_else(Place::default, |row| Place { seq: row.get(0), offset: row.get(1) }))
}

/// Moves a place on; another auditor that moved it meanwhile wins.
async fn keep(
    client: &impl GenericClient,
    events: &Destination,
    partition: i32,
    (from, to): (Place, Place),
) -> Result<(), StoreError> {
    client
        .execute(
            "insert into throughline.audits as a (topic, partition, seq, next_offset) values ($1, $2, $3, $4)
             on conflict (topic, partition) do update
             set seq = excluded.seq, next_offset = excluded.next_offset, proven_at = now()
             where a.seq = $5",
            &[&events.id, &partition, &to.seq, &to.offset, &from.seq],
        )
        .await
        .map_err(StoreError::at("keep what is proven"))?;
    Ok(())
}
