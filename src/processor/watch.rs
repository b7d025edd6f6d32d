//! Notices a commands topic that was deleted and created again under a running processor.
//!
//! A quick re-creation changes no assignment, and where the new topic already holds as many records
//! the old offsets even fit: nothing fails, and the first records would be passed over. So the ids
//! are compared now and then; a change claims the lane's partitions anew, and the claim explains.

use std::sync::Arc;
use std::time::Duration;

use rdkafka::consumer::Consumer as _;
use tokio_util::sync::CancellationToken;

use crate::kafka::client::Inquirer;
use crate::kafka::{Consumer, topic_id};

use super::backlog::Backlog;
use super::offsets::TopicIds;

/// Between two looks.
const INTERVAL: Duration = Duration::from_secs(5);

/// What is watched.
pub(super) struct Watch {
    pub kafka: Arc<Inquirer>,
    pub request_wait: Duration,
    /// One a lane.
    pub topics: Vec<String>,
    pub consumers: Arc<Vec<Consumer>>,
    pub topic_ids: Arc<TopicIds>,
    pub backlog: Backlog,
}

impl Watch {
    /// Looks until `stopped`.
    pub async fn run(self, stopped: CancellationToken) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(INTERVAL) => {}
                () = stopped.cancelled() => return,
            }
            self.backlog.measure().await;
            for (lane, topic) in self.topics.iter().enumerate() {
                if let Some(id) = self.changed(topic).await {
                    self.reclaim(lane, topic, &id);
                }
            }
        }
    }

    /// The topic's id, where it is not the one that the claims were made under.
    async fn changed(&self, topic: &str) -> Option<String> {
        let known = self.topic_ids.get(topic)?;
        let (kafka, wait, name) = (self.kafka.clone(), self.request_wait, topic.to_owned());
        let asked = tokio::task::spawn_blocking(move || topic_id::topic_id(kafka.client(), &name, wait)).await.ok()?;
        match asked {
            Ok(id) => id.filter(|id| *id != known),
            Err(error) => {
                // Kafka is away, or the topic is: consumers say so themselves.
                tracing::debug!(topic, %error, "cannot look at the topic's id");
                None
            }
        }
    }

    fn reclaim(&self, lane: usize, topic: &str, id: &str) {
        let consumer = &self.consumers[lane];
        let claims = consumer.mailboxes().iter().flat_map(|mailbox| mailbox.claims());
        for (partition, claim) in claims {
            tracing::warn!(topic, id, %partition, "the topic was created again; claiming the partition anew");
            consumer.reclaim(&partition, claim.epoch);
        }
    }
}
