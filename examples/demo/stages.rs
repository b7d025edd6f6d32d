//! How far each stage is, as PostgreSQL tells it: decided, published, projected.

use std::collections::BTreeMap;

use anyhow::Context as _;
use tokio_postgres::Client;

/// Counts since the store was created.
#[derive(Debug, Clone, Default)]
pub struct Stages {
    /// Commands whose outcome is recorded.
    pub decided: i64,
    /// Events in the store.
    pub recorded: i64,
    /// Events that Kafka acknowledged.
    pub published: i64,
    /// Events applied, by projection.
    pub projected: BTreeMap<String, i64>,
}

impl Stages {
    /// Reads all counts at once.
    pub async fn read(client: &Client, events_topic: &str) -> anyhow::Result<Self> {
        let row = client
            .query_one(
                "select (select coalesce(sum(next_offset), 0)::bigint from throughline.offsets),
                        (select coalesce(sum(last_seq), 0)::bigint from throughline.counters c
                         join throughline.topics t on t.id = c.topic where t.name = $1),
                        (select coalesce(sum(published), 0)::bigint from throughline.relay_leases l
                         join throughline.topics t on t.id = l.topic where t.name = $1)",
                &[&events_topic],
            )
            .await
            .context("cannot read how far the stages are")?;
        let app = reference::app();
        let orders = app.find(Some("orders"))?;
        let of_orders: Vec<&str> = orders.read_models().iter().map(|model| model.name).collect();
        let projections = client
            .query(
                "select projection, sum(seq)::bigint from throughline.checkpoints
                 where generation = 'read' and projection = any($1) group by 1",
                &[&of_orders],
            )
            .await
            .context("cannot read the checkpoints")?;
        Ok(Self {
            decided: row.get(0),
            recorded: row.get(1),
            published: row.get(2),
            projected: projections.iter().map(|row| (row.get(0), row.get(1))).collect(),
        })
    }

    /// The projection that is furthest behind.
    pub fn projected_min(&self) -> i64 {
        self.projected.values().copied().min().unwrap_or(0)
    }
}
