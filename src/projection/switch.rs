//! Generations: which schema holds which tables, moved in one transaction with their checkpoints.
//!
//! A table that moves keeps its indexes, rights and rows; readers see the one or the other, never
//! none. The running projector loses its compare-and-set and claims anew.

use std::time::{Duration, Instant};

use tokio_postgres::{Client, GenericClient, Transaction};

use super::checkpoint;
use super::{LIVE, NEXT, PREVIOUS, ProjectionLoopError, Projector, park};
use crate::store::{DatabaseRole, StoreError};

/// A reader may hold up the switch this long; then the switch steps back, lets others pass, and
/// tries again.
const LOCK_WAIT: &str = "200ms";
const TRIES_MAX: u32 = 60;
const TRY_AGAIN: Duration = Duration::from_millis(250);

/// What `throughline.projections` says of the generations.
pub(super) struct Generations {
    pub version: i32,
    pub relations: Vec<String>,
    pub previous_version: Option<i32>,
    pub previous_relations: Vec<String>,
}

impl Generations {
    pub(super) async fn load(tx: &Transaction<'_>, projection: &str) -> Result<Option<Self>, StoreError> {
        let row = tx
            .query_opt(
                "select version, relations, previous_version, previous_relations
                 from throughline.projections where name = $1 for update",
                &[&projection],
            )
            .await
            .map_err(StoreError::at("look at the generations"))?;
        Ok(row.map(|row| Self {
            version: row.get(0),
            relations: row.get(1),
            previous_version: row.get(2),
            previous_relations: row.get(3),
        }))
    }
}

/// The advisory lock that rebuild, rollback and replay of one projection share.
pub(super) const LOCK: &str = "hashtext('throughline.rebuild'), hashtext($1)";

/// An owner's connection without the timeouts of the loops.
pub(super) async fn unhurried<E: Send + Sync>(projector: &Projector<E>) -> Result<Client, StoreError> {
    let owner = crate::store::connect::connect(&projector.settings.database, &DatabaseRole::Owner).await?;
    take_time(&owner).await?;
    Ok(owner)
}

/// Lifts the loops' timeouts from a connection that nobody waits for.
pub(super) async fn take_time(client: &Client) -> Result<(), StoreError> {
    client
        .batch_execute("set statement_timeout = 0; set lock_timeout = 0; set idle_in_transaction_session_timeout = 0")
        .await
        .map_err(StoreError::at("set the timeouts of a rebuild"))
}

/// The version of the live tables; none where the projection is not installed.
pub(super) async fn live_version(tx: &impl GenericClient, projection: &str) -> Result<Option<i32>, StoreError> {
    let row = tx
        .query_opt("select version from throughline.projections where name = $1", &[&projection])
        .await
        .map_err(StoreError::at("look at the generations"))?;
    Ok(row.map(|row| row.get(0)))
}

/// Of a process that was killed the server takes a moment to notice; for that long its lock is waited for.
const EXCLUSIVE_WAIT: Duration = Duration::from_secs(10);

/// An owner's connection that holds the projection's lock until it is dropped.
pub(super) async fn exclusive<E: Send + Sync>(projector: &Projector<E>) -> Result<Client, ProjectionLoopError> {
    let owner = unhurried(projector).await?;
    let (asked, statement) = (Instant::now(), format!("select pg_try_advisory_lock({LOCK})"));
    loop {
        let granted =
            owner.query_one(&statement, &[&projector.name()]).await.map_err(StoreError::at("lock the generations"))?;
        match granted.get(0) {
            true => return Ok(owner),
            false if asked.elapsed() < EXCLUSIVE_WAIT => tokio::time::sleep(TRY_AGAIN).await,
            false => {
                let reason = "a rebuild, rollback or replay of it is running; wait for it to end";
                return Err(ProjectionLoopError::refused(projector.name(), reason));
            }
        }
    }
}

/// Bounds how long the transaction may queue for table locks.
pub(super) async fn limit_lock_wait(tx: &Transaction<'_>) -> Result<(), StoreError> {
    tx.batch_execute(&format!("set local lock_timeout = '{LOCK_WAIT}'"))
        .await
        .map_err(StoreError::at("bound the wait for locks"))
}

/// Whether a switch that failed like this should be tried again; waits if so.
pub(super) async fn try_again(error: &ProjectionLoopError, tries: &mut u32) -> bool {
    let ProjectionLoopError::Store(error) = error else { return false };
    let StoreError::Statement { source, .. } = error else { return false };
    let blocked = source.code() == Some(&tokio_postgres::error::SqlState::LOCK_NOT_AVAILABLE)
        || source.code() == Some(&tokio_postgres::error::SqlState::T_R_DEADLOCK_DETECTED);
    *tries += 1;
    if !blocked || *tries >= TRIES_MAX {
        return false;
    }
    tracing::info!(tries = *tries, "a reader or writer holds the tables; the switch is tried again");
    tokio::time::sleep(TRY_AGAIN).await;
    true
}

/// Moves relations from one schema to another.
pub(super) async fn relocate(
    tx: &Transaction<'_>,
    relations: &[String],
    from: &str,
    to: &str,
) -> Result<(), StoreError> {
    let sql: String =
        relations.iter().map(|name| format!("alter table if exists {from}.{name} set schema {to};")).collect();
    tx.batch_execute(&sql).await.map_err(StoreError::at("move a generation"))
}

/// Drops whatever of `relations` is in the schema.
pub(super) async fn discard(tx: &Transaction<'_>, relations: &[String], generation: &str) -> Result<(), StoreError> {
    let rows = tx
        .query(
            "select c.relname::text, c.relkind = 'v' from pg_catalog.pg_class c
             where c.relnamespace = $1::text::regnamespace and c.relname = any($2::text[]) order by 2 desc",
            &[&generation, &relations],
        )
        .await
        .map_err(StoreError::at("look for a generation to drop"))?;
    let drop = |row: &tokio_postgres::Row| {
        let kind = if row.get(1) { "view" } else { "table" };
        format!("drop {kind} {generation}.{};", row.get::<_, String>(0))
    };
    let sql: String = rows.iter().map(drop).collect();
    tx.batch_execute(&sql).await.map_err(StoreError::at("drop a generation"))
}

/// Drops the previous generations older than `keep_hours`; the names of their projections. One that
/// is in use is left for a later turn. `client` has the maintenance role.
pub async fn drop_previous(client: &Client, keep_hours: u32) -> Result<Vec<String>, StoreError> {
    let keep = i32::try_from(keep_hours).unwrap_or(i32::MAX);
    let rows = client
        .query("select throughline.drop_previous_generations(make_interval(hours => $1))", &[&keep])
        .await
        .map_err(StoreError::at("drop generations kept for rollback"))?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// What a rollback did.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct RollbackReport {
    pub from_version: i32,
    pub to_version: i32,
    /// Events that the generation now live has to catch up with from Kafka.
    pub behind: i64,
}

/// Makes the previous generation live again, at its own checkpoints; the live one becomes the
/// previous. With `dry_run`, tells what would happen.
pub async fn rollback<E: Send + Sync + 'static>(
    projector: &Projector<E>,
    dry_run: bool,
) -> Result<RollbackReport, ProjectionLoopError> {
    let mut owner = exclusive(projector).await?;
    let mut tries = 0;
    loop {
        match swap(projector, &mut owner, dry_run).await {
            Err(error) if try_again(&error, &mut tries).await => {}
            outcome => return outcome,
        }
    }
}

async fn swap<E: Send + Sync + 'static>(
    projector: &Projector<E>,
    owner: &mut Client,
    dry_run: bool,
) -> Result<RollbackReport, ProjectionLoopError> {
    let name = projector.name();
    let tx = owner.transaction().await.map_err(StoreError::at("begin a rollback"))?;
    limit_lock_wait(&tx).await?;
    let live = checkpoint::lock(&tx, name, LIVE).await?;
    let previous = checkpoint::lock(&tx, name, PREVIOUS).await?;
    let generations = Generations::load(&tx, name).await?;
    let Some((generations, to_version)) = generations.and_then(|found| found.previous_version.map(|to| (found, to)))
    else {
        return Err(ProjectionLoopError::refused(
            name,
            format!(
                "no previous generation is kept, so there is nothing to go back to; one is made by a rebuild and \
                 dropped {} h later (projection.keep_previous_hours)",
                projector.settings.projection.keep_previous_hours
            ),
        ));
    };
    let seq = |rows: &[checkpoint::Checkpoint]| rows.iter().map(|row| row.seq).sum::<i64>();
    let report =
        RollbackReport { from_version: generations.version, to_version, behind: (seq(&live) - seq(&previous)).max(0) };
    if dry_run {
        return Ok(report);
    }
    // By way of the third schema: names may be the same on both sides.
    discard(&tx, &generations.relations, NEXT).await?;
    relocate(&tx, &generations.relations, LIVE, NEXT).await?;
    relocate(&tx, &generations.previous_relations, PREVIOUS, LIVE).await?;
    relocate(&tx, &generations.relations, NEXT, PREVIOUS).await?;
    let epoch = live.iter().chain(&previous).map(|row| row.epoch).max().unwrap_or_default() + 1;
    tx.execute("delete from throughline.checkpoints where projection = $1 and generation = 'read_next'", &[&name])
        .await
        .map_err(StoreError::at("swap checkpoints"))?;
    for (from, to) in [(LIVE, NEXT), (PREVIOUS, LIVE), (NEXT, PREVIOUS)] {
        tx.execute(
            "update throughline.checkpoints set generation = $3, epoch = $4 where projection = $1 and generation = $2",
            &[&name, &from, &to, &epoch],
        )
        .await
        .map_err(StoreError::at("swap checkpoints"))?;
    }
    // A generation that was rebuilt before anything was applied has no checkpoints. Epochs never begin anew: an
    // operator's reset, named with one that was used before, would be taken for carried out.
    tx.execute(
        "insert into throughline.checkpoints (partition, projection, generation, epoch)
         select partition, $1, $2, $4 from throughline.checkpoints where projection = $1 and generation = $3
         on conflict do nothing",
        &[&name, &LIVE, &PREVIOUS, &epoch],
    )
    .await
    .map_err(StoreError::at("swap checkpoints"))?;
    park::agree(&tx, projector, None, "rollback").await?;
    tx.execute(
        "update throughline.projections
         set version = previous_version, previous_version = version, relations = previous_relations,
             previous_relations = relations, switched_at = now(), updated_at = now() where name = $1",
        &[&name],
    )
    .await
    .map_err(StoreError::at("record a rollback"))?;
    tx.commit().await.map_err(StoreError::at("commit a rollback"))?;
    Ok(report)
}
