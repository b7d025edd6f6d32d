//! What PostgreSQL knows: who lives, how far each loop is and when it last moved, what is parked.

use std::collections::HashMap;

use tokio_postgres::Client;

use super::{ManagerView, Outbox, Subject, managers};
use crate::audit::{Proven, proven};
use crate::presence::{self, Process, Seen};
use crate::projection::state::{Lag, OPERATOR, lags};
use crate::relay::status::{self, PartitionStatus};
use crate::store::{StoreError, connect};

/// A topic's partition.
pub(super) type Place = (String, i32);

/// PostgreSQL's part of the answer.
#[derive(Debug, Clone, Default)]
pub struct StoreView {
    /// It answers and takes no writes.
    pub read_only: bool,
    pub processes: Vec<Process>,
    pub seen: Vec<Seen>,
    pub offsets: HashMap<Place, NextOffset>,
    pub published: Vec<PartitionStatus>,
    /// Seconds since the watermark of a destination partition moved.
    pub marked_seconds: HashMap<Place, f64>,
    pub projections: Vec<ProjectionView>,
    pub managers: Vec<ManagerView>,
    pub dead_letters: i64,
    /// What the audit has proven.
    pub proven: Vec<Proven>,
}

/// Where a commands partition stands.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NextOffset {
    pub offset: i64,
    /// Since it moved.
    pub idle_seconds: f64,
}

/// A projection, as the store has it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ProjectionView {
    pub name: String,
    /// Shape of the live tables; none when not installed.
    pub version: Option<i32>,
    pub paused: bool,
    pub lags: Vec<Lag>,
    /// Seconds since the checkpoint of a partition moved.
    pub idle_seconds: HashMap<i32, f64>,
}

impl StoreView {
    /// Who has the partition, and what it does with it. During a hand-over two may tell: the further one counts.
    pub fn owner_of(&self, loop_name: &str, topic: &str, partition: i32) -> Option<(&Seen, String)> {
        let told = |seen: &&Seen| seen.loop_name == loop_name && seen.topic == topic && seen.partition == partition;
        let rank = |seen: &&Seen| ["pending", "claimed", "standing", "running"].iter().position(|s| *s == seen.state);
        let seen = self.seen.iter().filter(told).max_by_key(rank)?;
        let owner = self.processes.iter().find(|process| process.id == seen.process)?;
        Some((seen, owner.owner()))
    }

    /// Where the commands partitions stand.
    pub fn next_offsets(&self) -> HashMap<Place, i64> {
        self.offsets.iter().map(|(place, next)| (place.clone(), next.offset)).collect()
    }

    /// All destination partitions together.
    pub fn outbox(&self) -> Outbox {
        let oldest_seconds = self.published.iter().filter_map(|one| one.oldest_age_seconds).reduce(f64::max);
        Outbox { records: self.published.iter().map(|one| one.depth).sum(), oldest_seconds }
    }
}

/// Asks everything, on one connection.
pub(super) async fn look(subject: &Subject) -> Result<StoreView, String> {
    ask(subject).await.map_err(|error| error.to_string())
}

async fn ask(subject: &Subject) -> Result<StoreView, StoreError> {
    let client = connect::connect(&subject.settings.database, &OPERATOR).await?;
    let read_only = client
        .query_one("select pg_is_in_recovery() or current_setting('default_transaction_read_only') = 'on'", &[])
        .await
        .map_err(StoreError::at("ask whether the server takes writes"))?
        .get(0);
    let (processes, seen) = presence::processes(&client).await?;
    let dead_letters = client
        .query_one("select count(*) from throughline.dead_letters where status = 'parked'", &[])
        .await
        .map_err(StoreError::at("count dead letters"))?
        .get(0);
    Ok(StoreView {
        read_only,
        processes,
        seen,
        offsets: offsets(&client, subject).await?,
        published: status::read(&client).await?,
        marked_seconds: marked(&client).await?,
        projections: projections(&client, subject).await?,
        managers: managers::look(&client, subject).await?,
        dead_letters,
        proven: proven(&client).await?,
    })
}

async fn offsets(client: &Client, subject: &Subject) -> Result<HashMap<Place, NextOffset>, StoreError> {
    let lanes = subject.contexts.iter().flat_map(|names| {
        names.lanes().into_iter().enumerate().map(|(lane, topic)| (topic, names.processor_group(lane)))
    });
    let (topics, groups): (Vec<String>, Vec<String>) = lanes.unzip();
    let rows = client
        .query(
            "select o.source_topic, o.partition, o.next_offset,
                    extract(epoch from clock_timestamp() - o.updated_at)::float8
             from throughline.offsets o
             join unnest($1::text[], $2::text[]) as lane (topic, consumers)
               on o.source_topic = lane.topic and o.group_id = lane.consumers",
            &[&topics, &groups],
        )
        .await
        .map_err(StoreError::at("read the processors' offsets"))?;
    let next = |row: &tokio_postgres::Row| {
        ((row.get(0), row.get(1)), NextOffset { offset: row.get(2), idle_seconds: row.get(3) })
    };
    Ok(rows.iter().map(next).collect())
}

async fn marked(client: &Client) -> Result<HashMap<Place, f64>, StoreError> {
    let rows = client
        .query(
            "select t.name, l.partition, extract(epoch from clock_timestamp() - l.updated_at)::float8
             from throughline.relay_leases l join throughline.topics t on t.id = l.topic",
            &[],
        )
        .await
        .map_err(StoreError::at("read the relay's watermarks"))?;
    Ok(rows.iter().map(|row| ((row.get(0), row.get(1)), row.get(2))).collect())
}

async fn projections(client: &Client, subject: &Subject) -> Result<Vec<ProjectionView>, StoreError> {
    let installed = client
        .query("select name, version, paused from throughline.projections", &[])
        .await
        .map_err(StoreError::at("look at the projections' state"))?;
    let moved = client
        .query(
            "select projection, partition, extract(epoch from clock_timestamp() - updated_at)::float8
             from throughline.checkpoints where generation = 'read'",
            &[],
        )
        .await
        .map_err(StoreError::at("read checkpoints"))?;
    let mut views = Vec::new();
    for projection in &subject.projections {
        let row = installed.iter().find(|row| row.get::<_, &str>(0) == projection.name);
        let moved = moved.iter().filter(|row| row.get::<_, &str>(0) == projection.name);
        views.push(ProjectionView {
            name: projection.name.clone(),
            version: row.map(|row| row.get(1)),
            paused: row.is_some_and(|row| row.get(2)),
            lags: lags(client, &projection.topic, &projection.name).await?,
            idle_seconds: moved.map(|row| (row.get(1), row.get(2))).collect(),
        });
    }
    Ok(views)
}
