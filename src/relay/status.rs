//! Where the outbox stands: depth, age and owner of each destination partition.
//!
//! For `throughline outbox status` and the metrics. Reads only; PostgreSQL is authoritative.

use std::time::{Duration, Instant};

use serde::Serialize;
use tokio_postgres::Client;

use crate::store::StoreError;

/// How often depth and age are measured, for metrics.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(5);

/// The gauges of the partitions that one relay owns.
#[derive(Default)]
pub struct Gauges {
    sampled: Option<Instant>,
    measured: Vec<PartitionStatus>,
}

impl Gauges {
    /// Measures what `owner` owns, now and then. What it owned before and another owns now is that one's
    /// to measure: a gauge that stood still would raise alarms for ever.
    pub async fn sample(&mut self, client: &Client, owner: &str) -> Result<(), StoreError> {
        if self.sampled.is_some_and(|at| at.elapsed() < SAMPLE_INTERVAL) {
            return Ok(());
        }
        self.sampled = Some(Instant::now());
        let partitions = read(client).await?;
        let (ours, others): (Vec<_>, Vec<_>) =
            partitions.into_iter().partition(|one| one.owner.as_deref() == Some(owner));
        let is_gone = |before: &&PartitionStatus| {
            others.iter().any(|other| other.topic == before.topic && other.partition == before.partition)
        };
        self.measured.iter().filter(is_gone).for_each(PartitionStatus::forget);
        ours.iter().for_each(PartitionStatus::measure);
        self.measured = ours;
        Ok(())
    }
}

/// One destination partition.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PartitionStatus {
    pub topic: String,
    pub partition: i32,
    /// Rows committed and not yet marked as published.
    pub depth: i64,
    /// Age of the oldest of them, seconds; none without any.
    pub oldest_age_seconds: Option<f64>,
    /// Everything up to here is in Kafka.
    pub published: i64,
    /// The last sequence number committed.
    pub last_seq: i64,
    /// The relay whose lease is alive; none when nobody publishes.
    pub owner: Option<String>,
    pub epoch: i64,
    /// Why its owner stopped, with the next step.
    pub halted: Option<String>,
}

impl PartitionStatus {
    fn measure(&self) {
        self.set_gauges(self.depth as f64, self.oldest_age_seconds.unwrap_or(0.0), self.halted.is_some());
    }

    fn forget(&self) {
        self.set_gauges(0.0, 0.0, false);
    }

    fn set_gauges(&self, depth: f64, oldest_age_seconds: f64, halted: bool) {
        let labels = [("topic", self.topic.clone()), ("partition", self.partition.to_string())];
        metrics::gauge!("throughline_outbox_depth", &labels).set(depth);
        metrics::gauge!("throughline_outbox_oldest_age_seconds", &labels).set(oldest_age_seconds);
        metrics::gauge!("throughline_relay_halted", &labels).set(f64::from(u8::from(halted)));
    }
}

/// All destination partitions, by topic and partition.
pub async fn read(client: &Client) -> Result<Vec<PartitionStatus>, StoreError> {
    let rows = client
        .query(
            "select t.name, l.partition, greatest(c.last_seq - l.published, 0),
                    case when oldest.created_at is not null
                         then greatest(extract(epoch from now() - oldest.created_at), 0)::float8 end, l.published, c.last_seq,
                    case when l.owner <> '' and throughline.holds(l.renewed_at, l.expires_at) then l.owner end, l.epoch, l.halted
             from throughline.relay_leases l
             join throughline.topics t on t.id = l.topic
             join throughline.counters c on c.partition = l.partition and c.topic = l.topic
             left join lateral (
                 select o.created_at from throughline.outbox o
                 where o.partition = l.partition and o.topic = l.topic and o.seq > l.published
                 order by o.seq limit 1) oldest on c.last_seq > l.published
             order by t.name, l.partition",
            &[],
        )
        .await
        .map_err(StoreError::at("read the state of the outbox"))?;
    Ok(rows
        .iter()
        .map(|row| PartitionStatus {
            topic: row.get(0),
            partition: row.get(1),
            depth: row.get(2),
            oldest_age_seconds: row.get(3),
            published: row.get(4),
            last_seq: row.get(5),
            owner: row.get(6),
            epoch: row.get(7),
            halted: row.get(8),
        })
        .collect())
}
