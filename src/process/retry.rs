//! Parked inputs, handled again in their order: one transaction each, so that what a kill leaves still waits in order.
//!
//! No batch is handled meanwhile, so nothing comes between an instance's letters.

use std::collections::HashSet;

use tokio_postgres::{Client, Transaction};
use uuid::Uuid;

use super::ledger::Ledger;
use super::park;
use super::read::{self, Body, Fault};
use super::transact::addressed;
use super::{Managed, ProcessError};
use crate::engine::ProcessManager;
use crate::kafka::{Record, RecordHeaders, TopicPartition};
use crate::store::dead_letters::{self, Filter, Parked};
use crate::store::{DatabaseRole, StoreError, connect};

/// What a retry did.
#[derive(Debug, Default, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RetryReport {
    /// Parked inputs that were handled.
    pub handled: usize,
    /// Parked inputs that failed again.
    pub failed: usize,
    /// Parked inputs that wait behind those.
    pub behind: usize,
    /// Deadlines that had been put aside; they fire by themselves now.
    pub deadlines: u64,
}

/// Letters that one look finds.
const LETTERS_MAX: i64 = 1_000;

/// Handles again what is parked, and lets deadlines fire that were put aside.
pub(super) async fn retry<P: ProcessManager>(managed: &Managed<P>) -> Result<RetryReport, ProcessError> {
    let mut client = connect::connect(&managed.settings.database, &DatabaseRole::Owner).await?;
    let mut report = RetryReport::default();
    let mut seen = 0;
    let (mut keys, mut instances) = (HashSet::new(), HashSet::new());
    loop {
        let ids = open_letters(&client, &managed.group, seen).await?;
        if ids.is_empty() {
            break;
        }
        for id in ids {
            seen = id;
            let tx = client.transaction().await.map_err(StoreError::at("begin a retry"))?;
            park::exclude(&tx, P::NAME).await?;
            let filter = Filter { ids: Some(vec![id]), open_only: true, ..Filter::default() };
            let Some(parked) = dead_letters::find(&tx, &filter, 1).await?.pop() else { continue };
            let (key, instance) = (parked.letter.key.clone(), parked.letter.instance);
            if key.as_ref().is_some_and(|key| keys.contains(key))
                || instance.is_some_and(|one| instances.contains(&one))
            {
                report.behind += 1;
                continue;
            }
            match handle(managed, &tx, &parked).await? {
                Ok(()) => {
                    dead_letters::close(&tx, &[id], "replayed").await?;
                    report.handled += 1;
                }
                Err((fault, whose)) => {
                    note(&tx, id, &fault, whose).await?;
                    keys.extend(key);
                    instances.extend(instance.or(whose));
                    report.failed += 1;
                }
            }
            crate::crash_point!("process.retry.before_commit");
            tx.commit().await.map_err(StoreError::at("commit a retry"))?;
        }
    }
    report.deadlines = client
        .execute(
            "update throughline.process_deadlines set failed = null where process = $1 and failed is not null",
            &[&P::NAME],
        )
        .await
        .map_err(StoreError::at("take deadlines up again"))?;
    Ok(report)
}

/// Letters of records that the relay wrote; others can only be discarded.
async fn open_letters(client: &Client, group: &str, after: i64) -> Result<Vec<i64>, StoreError> {
    let rows = client
        .query(
            "select id from throughline.dead_letters
             where consumer = $1 and kind = 'event' and status = 'parked' and seq is not null and id > $2
             order by id limit $3",
            &[&group, &after, &LETTERS_MAX],
        )
        .await
        .map_err(StoreError::at("look for parked inputs"))?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Why not, and whose it is where that is known by now.
type Failed = (Fault, Option<Uuid>);

async fn handle<P: ProcessManager>(
    managed: &Managed<P>,
    tx: &Transaction<'_>,
    parked: &Parked,
) -> Result<Result<(), Failed>, StoreError> {
    let letter = &parked.letter;
    let Some(feed) = managed.feeds.get(&letter.source_topic) else {
        return Ok(Err((Fault::new("UNKNOWN_TOPIC", "the process does not read this topic any more"), None)));
    };
    let body = read::body(feed, &record(parked), letter.seq.unwrap_or_default());
    if let Body::Poison(fault, instance) = body {
        return Ok(Err((fault, instance)));
    }
    let Some(told) = addressed::<P>(tx, std::iter::once(&body)).await?.pop().flatten() else { return Ok(Ok(())) };
    let mut ledger = Ledger::open(managed, tx, &[&told]).await?;
    if let Err(fault) = ledger.handle(&told) {
        return Ok(Err((fault, Some(told.instance))));
    }
    ledger.write(tx).await?;
    Ok(Ok(()))
}

/// The record as it was on the topic.
fn record(parked: &Parked) -> Record {
    let letter = &parked.letter;
    let source = TopicPartition { topic: letter.source_topic.as_str().into(), partition: letter.source_partition };
    let headers = letter.headers.as_ref().map(|headers| {
        let mut all = RecordHeaders::default();
        headers.iter().for_each(|(name, value)| all.push(name, value));
        all
    });
    let offset = letter.source_offset.unwrap_or_default();
    Record::new(source, offset, letter.key.clone(), letter.value.clone()).with_headers(headers)
}

async fn note(tx: &Transaction<'_>, id: i64, fault: &Fault, instance: Option<Uuid>) -> Result<(), StoreError> {
    tx.execute(
        "update throughline.dead_letters set reason_code = $2, reason = $3, instance = coalesce(instance, $4) where id = $1",
        &[&id, &fault.code, &fault.reason.replace('\0', "\u{fffd}"), &instance],
    )
    .await
    .map(drop)
    .map_err(StoreError::at("note why a parked input failed again"))
}
