//! What could not be handled, and what waits behind it: dead letters under the process's consumer group.
//!
//! Behind a parked record wait the later ones of its key and, where it is known whose it is, all later inputs of its
//! instance, whatever topic they come from.

use std::collections::{HashMap, HashSet};

use tokio_postgres::types::Type;
use tokio_postgres::{GenericClient, Transaction};
use uuid::Uuid;

use super::read::{FOREIGN, Fault, Item};
use crate::kafka::Record;
use crate::store::{DeadLetter, StoreError, dead_letters};

/// The code of an input that waits for an earlier one.
pub(super) const BEHIND: &str = "BEHIND_PARKED";

/// Why an input waits for an earlier one.
pub(super) fn behind() -> Fault {
    Fault::new(BEHIND, "an earlier input of the same instance or key is parked")
}

/// Goes on beside other batches, and not beside an operator's retry or reset.
pub(super) async fn share(tx: &Transaction<'_>, process: &str) -> Result<(), StoreError> {
    lock(tx, process, "pg_advisory_xact_lock_shared").await
}

/// Waits for all batches of the process, and holds up those that come.
pub(super) async fn exclude(tx: &Transaction<'_>, process: &str) -> Result<(), StoreError> {
    lock(tx, process, "pg_advisory_xact_lock").await
}

async fn lock(tx: &Transaction<'_>, process: &str, function: &str) -> Result<(), StoreError> {
    let statement = format!("select {function}(hashtext('throughline.process'), hashtext($1))");
    tx.execute(&statement, &[&process]).await.map(drop).map_err(StoreError::at("lock a process"))
}

/// What may not be handled now.
#[derive(Debug, Default)]
pub(super) struct Barred {
    keys: HashSet<Vec<u8>>,
    instances: HashSet<Uuid>,
    /// Discarded by operators, by topic, partition and seq.
    discarded: HashSet<(String, i32, i64)>,
}

impl Barred {
    /// What the letters bar of `records` and of `instances`.
    pub async fn load<'r>(
        client: &impl GenericClient,
        group: &str,
        records: impl Iterator<Item = &'r Record>,
        instances: &[Uuid],
    ) -> Result<Self, StoreError> {
        let (mut keys, mut topics, mut partitions) = (Vec::new(), HashSet::new(), HashSet::new());
        for record in records {
            keys.extend(record.key.as_deref());
            topics.insert(&*record.source.topic);
            partitions.insert(record.source.partition);
        }
        let (topics, partitions): (Vec<&str>, Vec<i32>) =
            (topics.into_iter().collect(), partitions.into_iter().collect());
        let rows = client
            .query_typed(
                "select key, instance, null, null, null from throughline.dead_letters
                 where consumer = $1 and status = 'parked' and seq is not null
                   and (key = any($2) or instance = any($3))
                 union all
                 select null, null, source_topic, source_partition, seq from throughline.dead_letters
                 where consumer = $1 and status = 'discarded' and kind = 'event' and seq is not null
                   and source_topic = any($4) and source_partition = any($5)",
                &[
                    (&group, Type::TEXT),
                    (&keys, Type::BYTEA_ARRAY),
                    (&instances, Type::UUID_ARRAY),
                    (&topics, Type::TEXT_ARRAY),
                    (&partitions, Type::INT4_ARRAY),
                ],
            )
            .await
            .map_err(StoreError::at("look for parked inputs"))?;
        let mut barred = Self::default();
        for row in &rows {
            if let (Some(topic), Some(partition), Some(seq)) = (row.get(2), row.get(3), row.get(4)) {
                barred.discarded.insert((topic, partition, seq));
                continue;
            }
            barred.keys.extend(row.get::<_, Option<Vec<u8>>>(0));
            barred.instances.extend(row.get::<_, Option<Uuid>>(1));
        }
        Ok(barred)
    }

    /// Whether an input has to wait.
    pub fn holds(&self, record: &Record, instance: Uuid) -> bool {
        self.instances.contains(&instance) || record.key.as_ref().is_some_and(|key| self.keys.contains(key))
    }

    /// Whether all that concerns an instance has to wait.
    pub fn holds_instance(&self, instance: Uuid) -> bool {
        self.instances.contains(&instance)
    }

    /// Whether an operator gave it up.
    pub fn is_discarded<E>(&self, item: &Item<E>) -> bool {
        let source = &item.record.source;
        !self.discarded.is_empty() && self.discarded.contains(&(source.topic.to_string(), source.partition, item.seq))
    }

    /// One more that others wait behind.
    pub fn add(&mut self, record: &Record, instance: Option<Uuid>) {
        self.keys.extend(record.key.clone());
        self.instances.extend(instance);
    }
}

/// The dead letter of a record.
pub(super) fn letter(group: &str, record: &Record, seq: i64, fault: &Fault, instance: Option<Uuid>) -> DeadLetter {
    DeadLetter {
        kind: "event",
        consumer: group.to_owned(),
        source_topic: record.source.topic.to_string(),
        topic_id: None,
        source_partition: record.source.partition,
        source_offset: Some(record.offset),
        seq: (fault.code != FOREIGN).then_some(seq),
        key: record.key.clone(),
        headers: record.headers().map(|headers| headers.iter().collect()),
        value: record.value.clone(),
        reason_code: fault.code.to_owned(),
        reason: fault.reason.clone(),
        command: None,
        instance,
    }
}

/// Parks `letters`; one that was parked before and comes again, after a reset, opens its letter again.
pub(super) async fn park(tx: &Transaction<'_>, process: &str, letters: &mut [DeadLetter]) -> Result<(), StoreError> {
    let Some(first) = letters.first() else { return Ok(()) };
    let rows = tx
        .query(
            "select topic, partition, topic_id from throughline.process_checkpoints
             where process = $1 and topic_id is not null",
            &[&process],
        )
        .await
        .map_err(StoreError::at("look for the topics' ids"))?;
    let ids: HashMap<(String, i32), String> = rows.iter().map(|row| ((row.get(0), row.get(1)), row.get(2))).collect();
    let topics: Vec<&str> = letters.iter().map(|one| one.source_topic.as_str()).collect();
    let partitions: Vec<i32> = letters.iter().map(|one| one.source_partition).collect();
    let seqs: Vec<Option<i64>> = letters.iter().map(|one| one.seq).collect();
    // What comes again is parked under its newest reason.
    tx.execute(
        "delete from throughline.dead_letters d using unnest($2::text[], $3::int[], $4::bigint[]) l (topic, partition, seq)
         where d.consumer = $1 and d.kind = 'event' and d.source_topic = l.topic and d.source_partition = l.partition
           and d.seq = l.seq and d.status = 'superseded'",
        &[&first.consumer, &topics, &partitions, &seqs],
    )
    .await
    .map_err(StoreError::at("forget letters that come again"))?;
    for letter in letters.iter_mut() {
        letter.topic_id = ids.get(&(letter.source_topic.clone(), letter.source_partition)).cloned();
    }
    dead_letters::park(tx, letters).await
}
