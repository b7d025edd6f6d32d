//! What Kafka holds as committed for partitions that are about to be claimed, with the names that their owner
//! gives to the commits of others.
//!
//! A name is written to Kafka first: the broker takes it from members of the group's present generation only,
//! so what a later owner reads is already named. Guessing here could overlook an operator's reset, so a
//! question that fails makes the claim fail, and the claim is tried again.

use std::collections::HashMap;

use rdkafka::consumer::{CommitMode, Consumer as _};
use rdkafka::topic_partition_list::TopicPartitionListElem;
use rdkafka::{Offset, TopicPartitionList};

use super::claims::CLAIM_WAIT;
use super::membership::{Client, Membership};
use super::owner::Committed;
use super::record::TopicPartition;

/// The commits of `sources`, named.
///
/// # Errors
/// Why they are not known now.
pub(super) fn named(
    membership: &Membership,
    consumer: &Client,
    sources: &[TopicPartition],
) -> Result<HashMap<TopicPartition, Committed>, String> {
    // Before the commits: a name tells the epoch that the partition had when the commit was found.
    let epochs = membership.owner.epochs().map_err(|error| format!("cannot read epochs: {error}"))?;
    let mut list = TopicPartitionList::new();
    for source in sources {
        list.add_partition(&source.topic, source.partition);
    }
    let held = consumer
        .committed_offsets(list, CLAIM_WAIT)
        .map_err(|error| format!("cannot read committed offsets: {error}"))?;
    let pair = |element: &TopicPartitionListElem<'_>| {
        let offset = match element.offset() {
            Offset::Offset(offset) => Some((offset, element.metadata().to_owned())),
            _ => None,
        };
        (TopicPartition { topic: element.topic().into(), partition: element.partition() }, offset)
    };
    let committed = held.elements().iter().map(pair).collect();
    give_names(membership, consumer, committed, &epochs)
}

fn give_names(
    membership: &Membership,
    consumer: &Client,
    mut committed: HashMap<TopicPartition, Committed>,
    epochs: &HashMap<i32, i64>,
) -> Result<HashMap<TopicPartition, Committed>, String> {
    let mut renamed = TopicPartitionList::new();
    for (source, held) in &mut committed {
        let Some((offset, metadata)) = held else { continue };
        let epoch = epochs.get(&source.partition).copied().unwrap_or_default();
        let Some(name) = membership.owner.name_for(metadata, epoch) else { continue };
        let mut element = renamed.add_partition(&source.topic, source.partition);
        element.set_offset(Offset::Offset(*offset)).map_err(|error| error.to_string())?;
        element.set_metadata(name.as_str());
        *metadata = name;
    }
    crate::crash_point!("consumer.before_naming");
    if renamed.count() > 0 {
        // Also what a member hears that the group has given up: then nothing is claimed.
        consumer.commit(&renamed, CommitMode::Sync).map_err(|error| format!("cannot name a reset: {error}"))?;
        tracing::info!(group = membership.group, commits = ?renamed, "operators' resets named");
    }
    Ok(committed)
}
