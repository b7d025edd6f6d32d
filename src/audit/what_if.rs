//! The retained commands, decided again by the rules of this program: what it would decide otherwise.
//!
//! Reads only. One partition after the other, some records at a time, whatever else runs.

use std::collections::BTreeMap;
use std::sync::PoisonError;
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;
use tokio_postgres::Client;

use super::records::{self, From};
use super::{AuditError, Subject};
use crate::kafka::watermarks::Leaders;
use crate::kafka::{KafkaError, TopicPartition};
use crate::processor::{Change, Retrial};
use crate::settings::Settings;
use crate::store::{DatabaseRole, Pace, StoreError, connect, destinations};

/// Commands that were decided one way and would be another, together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Group {
    /// The code of a refusal, or the types of the events.
    pub was: String,
    pub would: String,
    pub commands: u64,
}

/// What would be decided otherwise.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct WhatIf {
    /// Nothing.
    pub same: bool,
    /// Decided again.
    pub checked: u64,
    /// Not decided again, by the reason.
    pub skipped: BTreeMap<&'static str, u64>,
    /// The most commands first.
    pub groups: Vec<Group>,
    /// The first of them, lane by lane and partition by partition.
    pub changes: Vec<Change>,
}

/// Decides the commands of a context again, of `since` or later where that is said; keeps `changes_max` changes.
///
/// # Errors
/// PostgreSQL or Kafka does not answer.
pub async fn what_if(
    settings: &Settings,
    subject: &Subject,
    rules: &dyn Retrial,
    since: Option<Timestamp>,
    (pace, changes_max): (&Pace, usize),
) -> Result<WhatIf, AuditError> {
    let client = connect::connect(&settings.database, &DatabaseRole::Owner).await?;
    let destination = destinations::find(&client, &subject.names.events()).await?;
    let consumer = records::client_of(&settings.kafka)?;
    let mut answer = WhatIf::default();
    let mut groups: BTreeMap<(String, String), u64> = BTreeMap::new();
    let from = since.map_or(From::Offset(0), From::Since);
    let lanes = subject.names.lanes();
    let places = places(&consumer, settings, lanes.clone(), from, pace).await?;
    for topic in lanes {
        let namespace = namespace(&client, &topic).await?;
        for place in places.iter().filter(|place| *place.topic == *topic).cloned() {
            let mut stretches = records::stretches(consumer.clone(), &settings.kafka, place, from);
            while let Some(stretch) = stretches.recv().await {
                let records = stretch?.records;
                let count = records.len() as u64;
                let retried = rules.retry(&client, &destination, records, &namespace).await?;
                answer.checked += retried.checked;
                retried.skipped.into_iter().for_each(|(why, count)| *answer.skipped.entry(why).or_default() += count);
                for change in retried.changes {
                    *groups.entry((change.was.told(), change.would.told())).or_default() += 1;
                    if answer.changes.len() < changes_max {
                        answer.changes.push(change);
                    }
                }
                pace.took(count).await;
            }
        }
    }
    answer.groups = groups.into_iter().map(|((was, would), commands)| Group { was, would, commands }).collect();
    answer.groups.sort_by_key(|group| std::cmp::Reverse(group.commands));
    answer.same = answer.groups.is_empty();
    Ok(answer)
}

/// As the processor calls a topic in the ids of commands that carry none.
async fn namespace(client: &Client, topic: &str) -> Result<String, StoreError> {
    let row = client
        .query_opt(
            "select topic_uuid from throughline.offsets
             where source_topic = $1 and topic_uuid is not null order by updated_at desc limit 1",
            &[&topic],
        )
        .await
        .map_err(StoreError::at("ask for the id of a topic"))?;
    Ok(row.map_or_else(|| topic.to_owned(), |row| format!("{topic}@{}", row.get::<_, &str>(0))))
}

/// The partitions of the lanes; what they hold is what is to come.
async fn places(
    consumer: &records::Shared,
    settings: &Settings,
    lanes: [String; 3],
    from: From,
    pace: &Pace,
) -> Result<Vec<TopicPartition>, AuditError> {
    let (consumer, kafka) = (consumer.clone(), settings.kafka.clone());
    let look = tokio::task::spawn_blocking(move || {
        let consumer = consumer.lock().unwrap_or_else(PoisonError::into_inner);
        let wait = Duration::from_millis(u64::from(kafka.request_timeout_ms));
        let names: Vec<&str> = lanes.iter().map(String::as_str).collect();
        let leaders = Leaders::look_up(&consumer, &names, wait)?;
        let (mut places, mut remaining) = (Vec::new(), 0);
        for topic in &lanes {
            for partition in 0..i32::try_from(leaders.count(topic)).unwrap_or(i32::MAX) {
                let place = TopicPartition { topic: topic.as_str().into(), partition };
                remaining += records::remaining(&consumer, &kafka, &place, from)?;
                places.push(place);
            }
        }
        Ok::<_, KafkaError>((places, remaining))
    });
    let (places, remaining) = look.await.map_err(|error| KafkaError::Fatal(error.to_string()))??;
    pace.expect(remaining);
    Ok(places)
}
