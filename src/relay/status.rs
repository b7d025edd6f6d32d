//! Where the outbox stands: depth, age and owner of each destination partition.
//!
//! For `throughline outbox status` and the metrics. Reads only; PostgreSQL is authoritative.

use serde::Serialize;
use tokio_postgres::Client;

use crate::store::StoreError;

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
    /// Sets the gauges of this partition.
    pub fn measure(&self) {
        let labels = [("topic", self.topic.clone()), ("partition", self.partition.to_string())];
        metrics::gauge!("throughline_outbox_depth", &labels).set(self.depth as f64);
        metrics::gauge!("throughline_outbox_oldest_age_seconds", &labels).set(self.oldest_age_seconds.unwrap_or(0.0));
        metrics::gauge!("throughline_relay_halted", &labels).set(f64::from(u8::from(self.halted.is_some())));
    }
}

/// All destination partitions, by topic and partition.
pub async fn read(client: &Client) -> Result<Vec<PartitionStatus>, StoreError> {
    let rows = client
        .query(
            "select t.name, l.partition, greatest(c.last_seq - l.published, 0),
                    case when oldest.created_at is not null
                         then greatest(extract(epoch from now() - oldest.created_at), 0)::float8 end, l.published, c.last_seq,
                    case when l.owner <> '' and l.expires_at > now() then l.owner end, l.epoch, l.halted
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
