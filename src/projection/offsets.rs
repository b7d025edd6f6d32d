//! Resets by our own command: the same commit with empty metadata that Kafka's tool makes.
//!
//! One path: what happens then is decided where the partition is claimed (`reset`). Kafka takes
//! such a commit only while the group is empty, so the projection is paused for that moment.

use std::time::{Duration, Instant};

use rdkafka::consumer::{CommitMode, Consumer as _};
use rdkafka::{Offset, TopicPartitionList};

use super::{LIVE, ProjectionLoopError, Projector, checkpoint, fill, state};
use crate::kafka::client::Inquirer;
use crate::kafka::{KafkaError, client};
use crate::store::{DatabaseRole, connect};

/// Where to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ResetTarget {
    /// The first offset kept, in every partition.
    Earliest,
    /// Some partitions to some offsets; the others stay.
    Offsets(Vec<(i32, i64)>),
}

/// One partition's part of a reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct PlannedReset {
    pub partition: i32,
    pub from_offset: i64,
    pub to_offset: i64,
}

impl PlannedReset {
    /// What it does to the rows.
    pub fn effect(&self) -> &'static str {
        match self.to_offset.cmp(&self.from_offset) {
            std::cmp::Ordering::Less => "rows cleared, refilled from the event store up to there, then replayed",
            std::cmp::Ordering::Equal => "nothing",
            std::cmp::Ordering::Greater => "rows stay; the events between are skipped",
        }
    }
}

/// The members of a group have this long to leave, beyond a session timeout.
const LEAVE_WAIT: Duration = Duration::from_secs(30);
const TRY_AGAIN: Duration = Duration::from_millis(200);

/// Resets the group of a projection. With `dry_run`, only tells what would happen.
pub async fn reset_offsets<E: Send + Sync + 'static>(
    projector: &Projector<E>,
    target: &ResetTarget,
    dry_run: bool,
) -> Result<Vec<PlannedReset>, ProjectionLoopError> {
    let owner = connect::connect(&projector.settings.database, &DatabaseRole::Owner).await?;
    let partitions = fill::partitions(projector, &owner).await?;
    let held = checkpoint::load(&owner, projector.name(), LIVE).await?;
    let consumer = client::inquirer_of(&client::consumer(&projector.settings.kafka, &projector.group, ""))?;
    let wait = Duration::from_millis(u64::from(projector.settings.kafka.request_timeout_ms));
    let targets = match target {
        ResetTarget::Earliest => (0..partitions).map(|partition| (partition, 0)).collect(),
        ResetTarget::Offsets(targets) => targets.clone(),
    };
    let mut planned = Vec::new();
    for (partition, offset) in targets {
        if !(0..partitions).contains(&partition) {
            let reason = format!("{} has partitions 0 to {}, not {partition}", projector.topic, partitions - 1);
            return Err(ProjectionLoopError::refused(projector.name(), reason));
        }
        let (first, end) = consumer
            .fetch_watermarks(&projector.topic, partition, wait)
            .map_err(KafkaError::at("read the offsets kept"))?;
        let from_offset = held.iter().find(|row| row.partition == partition).map_or(0, |row| row.next_offset);
        planned.push(PlannedReset { partition, from_offset, to_offset: offset.clamp(first, end) });
    }
    if dry_run {
        return Ok(planned);
    }
    let paused_by_us = state::set_paused(&owner, projector.name(), true).await?;
    let committed = commit(projector, &consumer, &planned).await;
    if paused_by_us {
        state::set_paused(&owner, projector.name(), false).await?;
    }
    committed.map(|()| planned)
}

async fn commit<E: Send + Sync>(
    projector: &Projector<E>,
    consumer: &Inquirer,
    planned: &[PlannedReset],
) -> Result<(), ProjectionLoopError> {
    let mut list = TopicPartitionList::new();
    for one in planned {
        list.add_partition_offset(&projector.topic, one.partition, Offset::Offset(one.to_offset))
            .map_err(KafkaError::at("prepare a reset"))?;
    }
    let limit = LEAVE_WAIT + Duration::from_millis(u64::from(projector.settings.kafka.session_timeout_ms));
    let started = Instant::now();
    loop {
        match consumer.commit(&list, CommitMode::Sync) {
            Ok(()) => return Ok(()),
            Err(error) if started.elapsed() > limit => {
                let reason = format!("the group {} still has members: {error}", projector.group);
                return Err(ProjectionLoopError::refused(projector.name(), reason));
            }
            // Members are leaving.
            Err(_) => tokio::time::sleep(TRY_AGAIN).await,
        }
    }
}
