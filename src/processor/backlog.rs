//! How many commands wait in each lane, for the gauge: all of the lane's, whoever owns its partitions.

use std::sync::Arc;
use std::time::Duration;

use rdkafka::Offset;

use crate::kafka::Lane;
use crate::kafka::client::Inquirer;
use crate::kafka::ends;
use crate::store::{Database, StoreError};

/// What is measured.
pub(super) struct Backlog {
    pub context: &'static str,
    pub kafka: Arc<Inquirer>,
    pub database: Database,
    /// Topic and consumer group of each lane.
    pub lanes: Vec<(String, String)>,
    pub partitions: i32,
    pub request_wait: Duration,
}

impl Backlog {
    /// Sets `throughline_commands_waiting{lane,context}`. Where somebody is away it keeps what it said: loops tell that.
    pub async fn measure(&self) {
        if let Err(reason) = self.try_measure().await {
            tracing::debug!(reason, "cannot count the commands that wait");
        }
    }

    async fn try_measure(&self) -> Result<(), String> {
        let (kafka, partitions, wait) = (self.kafka.clone(), self.partitions, self.request_wait);
        let topics: Vec<String> = self.lanes.iter().map(|(topic, _)| topic.clone()).collect();
        let ask = move || {
            let first = ends::offsets(&kafka, &topics, partitions, Offset::Beginning, wait)?;
            Ok((first, ends::offsets(&kafka, &topics, partitions, Offset::End, wait)?))
        };
        let asked: Result<_, crate::kafka::KafkaError> =
            tokio::task::spawn_blocking(ask).await.map_err(|error| error.to_string())?;
        let (first, end) = asked.map_err(|error| error.to_string())?;
        let decided = self.decided().await.map_err(|error| error.to_string())?;
        for (lane, (topic, _)) in Lane::ALL.into_iter().zip(&self.lanes) {
            let waiting = |((_, partition), end): (&(String, i32), &i64)| {
                let place = (topic.clone(), *partition);
                let first = first.get(&place).copied().unwrap_or(0);
                (end - decided.get(&place).copied().unwrap_or(first).max(first)).max(0)
            };
            let waiting: i64 = end.iter().filter(|((of, _), _)| of == topic).map(waiting).sum();
            let labels = [("lane", lane.name()), ("context", self.context)];
            metrics::gauge!("throughline_commands_waiting", &labels).set(waiting as f64);
        }
        Ok(())
    }

    async fn decided(&self) -> Result<ends::Offsets, StoreError> {
        let client = self.database.client().await?;
        let (topics, groups): (Vec<String>, Vec<String>) = self.lanes.iter().cloned().unzip();
        let rows = client
            .query(
                "select o.source_topic, o.partition, o.next_offset from throughline.offsets o
                 join unnest($1::text[], $2::text[]) as lane (topic, consumers)
                   on o.source_topic = lane.topic and o.group_id = lane.consumers",
                &[&topics, &groups],
            )
            .await
            .map_err(StoreError::at("read the processors' offsets"))?;
        Ok(rows.iter().map(|row| ((row.get(0), row.get(1)), row.get(2))).collect())
    }
}
