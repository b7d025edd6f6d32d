//! Looks at the commands topics beside the consumers: for one that was deleted and created again under a
//! running processor, and for ends that hold no record (see [`super::gaps`]).
//!
//! A quick re-creation changes no assignment, and where the new topic already holds as many records
//! the old offsets even fit: nothing fails, and the first records would be passed over. So the ids
//! are compared now and then; a change claims the lane's partitions anew, and the claim explains.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::consumer::Consumer as _;
use tokio_util::sync::CancellationToken;

use crate::kafka::client::Inquirer;
use crate::kafka::{Consumer, Peek, topic_id};

use super::backlog::Backlog;
use super::gaps;
use super::offsets::TopicIds;

/// Between two looks at the topics' ids.
const INTERVAL: Duration = Duration::from_secs(5);
/// Between two looks at the ends of idle partitions.
const ENDS_INTERVAL: Duration = Duration::from_millis(250);

/// What is watched.
pub(super) struct Watch {
    pub kafka: Arc<Inquirer>,
    pub request_wait: Duration,
    /// One a lane.
    pub topics: Vec<String>,
    pub consumers: Arc<Vec<Consumer>>,
    pub topic_ids: Arc<TopicIds>,
    pub backlog: Backlog,
    pub peek: Arc<Peek>,
}

impl Watch {
    /// Looks until `stopped`.
    pub async fn run(self, stopped: CancellationToken) {
        let mut ids_at = Instant::now() + INTERVAL;
        while stopped.run_until_cancelled(tokio::time::sleep(ENDS_INTERVAL)).await.is_some() {
            if stopped.run_until_cancelled(self.look_at_ends()).await.is_none() {
                return;
            }
            if Instant::now() < ids_at {
                continue;
            }
            ids_at = Instant::now() + INTERVAL;
            self.backlog.measure().await;
            for (lane, topic) in self.topics.iter().enumerate() {
                if let Some(id) = self.changed(topic).await {
                    self.reclaim(lane, topic, &id);
                }
            }
        }
    }

    /// Has the workers pass what holds no record at the ends of idle partitions.
    async fn look_at_ends(&self) {
        let mut mailboxes = HashMap::new();
        let mut idle = HashMap::new();
        for mailbox in self.consumers.iter().flat_map(Consumer::mailboxes) {
            for (source, claim) in mailbox.idle_claims() {
                mailboxes.insert(source.clone(), mailbox);
                idle.insert(source, claim);
            }
        }
        let peek = self.peek.clone();
        match tokio::task::spawn_blocking(move || gaps::find(&peek, idle)).await {
            Ok(Ok(gaps)) => {
                for gap in gaps {
                    mailboxes[&gap.source].pass(gap.source, gap.claim, gap.end);
                }
            }
            // Kafka is away: consumers say so themselves.
            Ok(Err(error)) => tracing::debug!(%error, "cannot look at the ends of idle partitions"),
            Err(error) => tracing::debug!(%error, "the look at the ends of idle partitions ended badly"),
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
