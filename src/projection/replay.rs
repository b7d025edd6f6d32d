//! Replay of parked events: in order, key by key, through the projection's own handler.
//!
//! The event store is authoritative for the events; the dead letters only say which. While a key is
//! replayed its partition's checkpoint is held, so that no later event of the key slips in between.

use std::collections::HashSet;

use serde_json::Value;
use tokio_postgres::{Client, Transaction};

use super::handler::{self, ApplyFailure};
use super::{LIVE, ProjectionLoopError, Projector, fill, gaps, switch};
use crate::engine::Position;
use crate::store::StoreError;

/// One row as it was and as it is; none where it was not, or is no more.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct RowChange {
    pub table: String,
    pub before: Option<Value>,
    pub after: Option<Value>,
}

/// What became of one key.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct ReplayedKey {
    pub key: String,
    pub partition: i32,
    /// Sequence numbers, in the order applied.
    pub seqs: Vec<i64>,
    /// Why it failed: then nothing of this key was applied.
    pub failure: Option<String>,
    /// With `dry_run`: the rows removed (`before`) and written (`after`).
    pub changes: Vec<RowChange>,
}

/// Replays the open parked events of `keys`, or of every key. With `dry_run` each transaction is
/// rolled back, and the row changes are told.
pub async fn replay<E: Send + Sync + 'static>(
    projector: &Projector<E>,
    keys: Option<&[Vec<u8>]>,
    dry_run: bool,
) -> Result<Vec<ReplayedKey>, ProjectionLoopError> {
    let mut client = projector.connect(LIVE).await?;
    let outside = projector.connect(LIVE).await?;
    let rows = client
        .query(
            "select key, source_partition, min(seq) from throughline.dead_letters
             where consumer = $1 and kind = 'event' and status = 'parked' and seq is not null
               and ($2::bytea[] is null or key = any($2))
             group by 1, 2 order by 2, 3",
            &[&projector.group, &keys],
        )
        .await
        .map_err(StoreError::at("look for parked events"))?;
    let mut replayed = Vec::new();
    for row in rows {
        let (key, partition): (Vec<u8>, i32) = (row.get(0), row.get(1));
        let mut one = ReplayedKey {
            key: String::from_utf8_lossy(&key).into_owned(),
            partition,
            seqs: Vec::new(),
            failure: None,
            changes: Vec::new(),
        };
        match replay_key(projector, &mut client, &outside, &key, &mut one, dry_run).await {
            Ok(()) => {}
            Err(Refusal::Loop(error)) => return Err(error),
            Err(Refusal::Handler(reason)) => {
                one.failure = Some(reason);
                // The handler may have left the connection busy.
                client = projector.connect(LIVE).await?;
            }
        }
        replayed.push(one);
    }
    Ok(replayed)
}

enum Refusal {
    Handler(String),
    Loop(ProjectionLoopError),
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        Self::Loop(error.into())
    }
}

impl From<ProjectionLoopError> for Refusal {
    fn from(error: ProjectionLoopError) -> Self {
        match error {
            ProjectionLoopError::Event { reason, .. } => Self::Handler(reason),
            error => Self::Loop(error),
        }
    }
}

impl From<ApplyFailure> for Refusal {
    fn from(failure: ApplyFailure) -> Self {
        match failure {
            ApplyFailure::World(error) | ApplyFailure::Extent(error) => error.into(),
            ApplyFailure::Handler { code, reason } => Self::Handler(format!("{code}: {reason}")),
        }
    }
}

async fn replay_key<E: Send + Sync + 'static>(
    projector: &Projector<E>,
    client: &mut Client,
    outside: &Client,
    key: &[u8],
    one: &mut ReplayedKey,
    dry_run: bool,
) -> Result<(), Refusal> {
    let tx = client.transaction().await.map_err(StoreError::at("begin a replay"))?;
    hold(projector, &tx, one.partition).await?;
    let rows = tx
        .query(
            "select id, seq from throughline.dead_letters
             where consumer = $1 and key = $2 and kind = 'event' and status = 'parked' and seq is not null order by seq",
            &[&projector.group, &key],
        )
        .await
        .map_err(StoreError::at("read parked events"))?;
    let ids: Vec<i64> = rows.iter().map(|row| row.get(0)).collect();
    one.seqs = rows.iter().map(|row| row.get(1)).collect();
    let events = fill::events_at(projector, &tx, one.partition, &one.seqs).await?;
    let found: HashSet<Position> = events.iter().map(|event| event.position).collect();
    if let Some(seq) = one.seqs.iter().find(|&&seq| !found.contains(&Position { partition: one.partition, seq })) {
        return Err(Refusal::Handler(format!(
            "seq {seq} is not in the event store: whoever wrote that record, it is no event. Discard it."
        )));
    }
    handler::apply(projector, &tx, &events).await?;
    tx.execute(
        "update throughline.dead_letters set status = 'replayed', closed_at = now() where id = any($1)",
        &[&ids],
    )
    .await
    .map_err(StoreError::at("close parked events"))?;
    gaps::close(&tx, projector.name(), one.partition, &one.seqs).await?;
    if dry_run {
        one.changes = changes(projector, &tx, outside).await?;
        tx.rollback().await.map_err(StoreError::at("roll a dry run back"))?;
    } else {
        tx.commit().await.map_err(StoreError::at("commit a replay"))?;
    }
    Ok(())
}

/// Keeps rebuilds out and the live projector of this partition waiting. Refuses tables of another version.
async fn hold<E: Send + Sync>(
    projector: &Projector<E>,
    tx: &Transaction<'_>,
    partition: i32,
) -> Result<(), ProjectionLoopError> {
    let granted: bool = tx
        .query_one(&format!("select pg_try_advisory_xact_lock_shared({})", switch::LOCK), &[&projector.name()])
        .await
        .map_err(StoreError::at("lock the projection's generations"))?
        .get(0);
    if !granted {
        return Err(ProjectionLoopError::refused(projector.name(), "a rebuild of it is running; replay afterwards"));
    }
    let (live, program) =
        (switch::live_version(tx, projector.name()).await?, projector.projection.read_model().version);
    if live != Some(program) {
        let live = live.map_or_else(|| "not installed".to_owned(), |live| format!("of version {live}"));
        let reason = format!(
            "its tables are {live}, and this program makes version {program}: replay with the program \
                              that made them, or after `throughline projection rebuild {}`",
            projector.name()
        );
        return Err(ProjectionLoopError::refused(projector.name(), reason));
    }
    tx.execute(
        "select from throughline.checkpoints
         where projection = $1 and partition = $2 and generation = 'read' for update",
        &[&projector.name(), &partition],
    )
    .await
    .map_err(StoreError::at("hold a checkpoint"))?;
    Ok(())
}

/// The rows that this transaction wrote, and those it replaced: the former carry its id as creator,
/// the latter, as others still see them, as remover.
async fn changes<E: Send + Sync>(
    projector: &Projector<E>,
    tx: &Transaction<'_>,
    outside: &Client,
) -> Result<Vec<RowChange>, StoreError> {
    let error = || StoreError::at("tell row changes");
    let id: String = tx.query_one("select pg_current_xact_id()::xid::text", &[]).await.map_err(error())?.get(0);
    let mut changes = Vec::new();
    for table in projector.projection.read_model().tables {
        let statement = format!("select to_jsonb(t) from {table} t where t.xmax = $1::text::xid");
        for row in outside.query(&statement, &[&id]).await.map_err(error())? {
            changes.push(RowChange { table: (*table).to_owned(), before: Some(row.get(0)), after: None });
        }
        let statement = format!("select to_jsonb(t) from {table} t where t.xmin = $1::text::xid");
        for row in tx.query(&statement, &[&id]).await.map_err(error())? {
            changes.push(RowChange { table: (*table).to_owned(), before: None, after: Some(row.get(0)) });
        }
    }
    Ok(changes)
}
