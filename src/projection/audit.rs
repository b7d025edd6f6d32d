//! Whether read tables are the fold of their events: an independent fold into temporary tables, compared row by row.
//!
//! Reads only, beside the running projection: rows, checkpoint and gaps are those of one snapshot. The store is
//! authoritative for what happened, the gaps for what the rows leave out.

use tokio_postgres::{Client, IsolationLevel, Transaction};

use super::{LIVE, ProjectionLoopError, Projector, checkpoint, digest, fill, gaps, hand_over, switch};
use crate::store::{Pace, StoreError};

/// Rows told of one table and side, at most.
const ROWS_TOLD_MAX: i64 = 3;
/// Characters of a row that are told, at most.
const ROW_CHARACTERS_MAX: usize = 400;
/// Where the fold goes.
const FOLD: &str = "pg_temp";

/// A partition of a read model, held against its events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Audited {
    pub partition: i32,
    /// Its checkpoint: events up to here were folded.
    pub upto: i64,
    /// What is wrong, one line each; empty where the rows are the fold.
    pub differences: Vec<String>,
}

/// Why nothing was compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unaudited {
    /// Its tables are not there.
    NotInstalled,
    /// They are of another version than this program makes.
    OtherVersion { live: i32, program: i32 },
}

impl std::fmt::Display for Unaudited {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotInstalled => f.write_str("its tables are not installed"),
            Self::OtherVersion { live, program } => {
                write!(f, "its tables are of version {live}, and this program makes version {program}")
            }
        }
    }
}

/// Holds `partitions` against their events; `told` hears of each.
pub(super) async fn audit<E: Send + Sync + 'static>(
    projector: &Projector<E>,
    partitions: &[i32],
    pace: &Pace,
    told: &(dyn Fn(Audited) + Send + Sync),
) -> Result<Result<(), Unaudited>, ProjectionLoopError> {
    let mut client = switch::unhurried(projector).await?;
    let (name, model) = (projector.name(), projector.projection.read_model());
    match switch::live_version(&client, name).await? {
        None => return Ok(Err(Unaudited::NotInstalled)),
        Some(live) if live != model.version => {
            return Ok(Err(Unaudited::OtherVersion { live, program: model.version }));
        }
        Some(_) => {}
    }
    let made = format!("set search_path = {FOLD}, pg_catalog;\n{};\n{};", model.ddl, model.indexes.join(";\n"));
    client.batch_execute(&made).await.map_err(StoreError::at("make temporary tables for a fold"))?;
    for partition in partitions {
        let audited = one(projector, &mut client, *partition, pace).await?;
        told(audited);
        let emptied = format!("truncate {}", model.tables.join(", "));
        client.batch_execute(&emptied).await.map_err(StoreError::at("empty temporary tables"))?;
    }
    Ok(Ok(()))
}

async fn one<E: Send + Sync + 'static>(
    projector: &Projector<E>,
    client: &mut Client,
    partition: i32,
    pace: &Pace,
) -> Result<Audited, ProjectionLoopError> {
    let name = projector.name();
    // Writes to temporary tables are none.
    let snapshot = client
        .build_transaction()
        .isolation_level(IsolationLevel::RepeatableRead)
        .read_only(true)
        .start()
        .await
        .map_err(StoreError::at("take a snapshot to audit"))?;
    let upto = hand_over::seq_of(&checkpoint::load(&snapshot, name, LIVE).await?, partition);
    let gaps = gaps::load(&snapshot, name, LIVE).await?;
    let mut reached = 0;
    while reached < upto {
        let last = match fill::fold_chunk(projector, &snapshot, &gaps, (partition, reached, upto)).await {
            Ok(last) => last,
            // The events themselves are at fault, which is what was asked.
            Err(error @ (ProjectionLoopError::Event { .. } | ProjectionLoopError::Refused { .. })) => {
                return Ok(Audited { partition, upto, differences: vec![error.to_string()] });
            }
            Err(error) => return Err(error),
        };
        pace.took((last - reached).unsigned_abs()).await;
        reached = last;
    }
    let mut differences = Vec::new();
    for table in projector.projection.read_model().tables {
        let live = digest::of_partition(&snapshot, table, LIVE, partition).await?;
        let folded = digest::of_partition(&snapshot, table, FOLD, partition).await?;
        if live != folded {
            differences.extend(rows(&snapshot, table, partition).await?);
        }
    }
    Ok(Audited { partition, upto, differences })
}

/// The first rows of a table that only one side has.
async fn rows(snapshot: &Transaction<'_>, table: &str, partition: i32) -> Result<Vec<String>, StoreError> {
    let statement = format!(
        "with live as (select to_jsonb(t) as row from {LIVE}.{table} t where partition = $1),
              folded as (select to_jsonb(t) as row from {FOLD}.{table} t where partition = $1)
         (select 'has, and its events do not come to,', row::text
          from (select row from live except all select row from folded) only_live order by 2 limit $2)
         union all
         (select 'lacks', row::text
          from (select row from folded except all select row from live) only_folded order by 2 limit $2)"
    );
    let rows = snapshot
        .query(&statement, &[&partition, &ROWS_TOLD_MAX])
        .await
        .map_err(StoreError::at("look for the rows that differ"))?;
    let told = |row: &tokio_postgres::Row| {
        let (side, text): (&str, String) = (row.get(0), row.get(1));
        let text: String = text.chars().take(ROW_CHARACTERS_MAX).collect();
        format!("{table} {side} {text}")
    };
    let mut told: Vec<String> = rows.iter().map(told).collect();
    if told.is_empty() {
        told.push(format!("{table}: rows that look the same have other hashes"));
    }
    Ok(told)
}
