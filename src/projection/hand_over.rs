//! The end of a rebuild: the last events, the switch and the letters, in one transaction.
//!
//! The live checkpoints are held meanwhile, so both generations stand at exactly the same events.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio_postgres::{Client, Transaction};

use super::checkpoint::{self, Checkpoint};
use super::rebuild::Progress;
use super::switch::{self, Generations};
use super::{LIVE, NEXT, PREVIOUS, ProjectionLoopError, Projector, fill, install, park};
use crate::store::StoreError;

pub(super) fn owned(relations: &[&str]) -> Vec<String> {
    relations.iter().map(|&name| name.to_owned()).collect()
}

pub(super) fn seq_of(checkpoints: &[Checkpoint], partition: i32) -> i64 {
    checkpoints.iter().find(|row| row.partition == partition).map_or(0, |row| row.seq)
}

pub(super) fn was_reset<E: Send + Sync>(projector: &Projector<E>, partition: i32) -> ProjectionLoopError {
    let reason = format!("partition {partition} was reset during the rebuild; run it again");
    ProjectionLoopError::refused(projector.name(), reason)
}

/// The last reset on record that made rows anew.
pub(super) async fn last_reset(tx: &Transaction<'_>, projection: &str) -> Result<i64, StoreError> {
    let row = tx
        .query_one(
            "select coalesce(max(id), 0) from throughline.projection_resets
             where projection = $1 and direction in ('backward', 'refill')",
            &[&projection],
        )
        .await
        .map_err(StoreError::at("look for resets"))?;
    Ok(row.get(0))
}

/// Hands over; `resets` is the last reset before the rebuild. Returns the version that was live.
pub(super) async fn hand_over<E: Send + Sync + 'static>(
    projector: &Projector<E>,
    owner: &mut Client,
    resets: i64,
    progress: &Arc<Progress>,
) -> Result<Option<i32>, ProjectionLoopError> {
    let name = projector.name();
    let tx = owner.transaction().await.map_err(StoreError::at("begin the hand-over"))?;
    // From here on the live projector waits at its compare-and-set.
    let live = checkpoint::lock(&tx, name, LIVE).await?;
    let next = checkpoint::lock(&tx, name, NEXT).await?;
    // What was parked when the new rows were filled may have been applied since, and later events with it.
    if last_reset(&tx, name).await? > resets {
        return Err(ProjectionLoopError::refused(name, "it was reset during the rebuild; run it again"));
    }
    let generations = Generations::load(&tx, name).await?;
    tx.batch_execute(&format!("set local search_path = {NEXT}, pg_catalog"))
        .await
        .map_err(StoreError::at("choose the new generation"))?;
    let applied = catch_up_exactly(projector, &tx, &live, &next).await?;
    switch::limit_lock_wait(&tx).await?;
    crate::crash_point!("projection.rebuild.before_switch");
    let relations = owned(&install::relations(projector.projection.read_model()));
    if let Some(found) = &generations {
        switch::discard(&tx, &found.previous_relations, PREVIOUS).await?;
        switch::relocate(&tx, &found.relations, LIVE, PREVIOUS).await?;
    }
    switch::relocate(&tx, &relations, NEXT, LIVE).await?;
    move_checkpoints(&tx, name, &live).await?;
    park::agree(&tx, projector, None, "rebuild").await?;
    tx.execute(
        "update throughline.projections
         set previous_version = version, previous_relations = relations, version = $2, relations = $3,
             switched_at = now(), updated_at = now() where name = $1",
        &[&name, &projector.projection.read_model().version, &relations],
    )
    .await
    .map_err(StoreError::at("record a switch"))?;
    tx.commit().await.map_err(StoreError::at("commit the switch"))?;
    crate::crash_point!("projection.rebuild.after_switch");
    progress.done.fetch_add(applied, Ordering::Relaxed);
    Ok(generations.map(|found| found.version))
}

async fn catch_up_exactly<E: Send + Sync + 'static>(
    projector: &Projector<E>,
    tx: &Transaction<'_>,
    live: &[Checkpoint],
    next: &[Checkpoint],
) -> Result<u64, ProjectionLoopError> {
    let mut applied = 0;
    for row in next {
        let seq = seq_of(live, row.partition);
        if row.seq > seq {
            return Err(was_reset(projector, row.partition));
        }
        fill::fill_next(projector, tx, row.partition, row.seq, seq).await?;
        applied += (seq - row.seq).unsigned_abs();
    }
    Ok(applied)
}

/// The new generation takes the live checkpoints over as they are, under a new epoch; what it leaves out
/// moves along with them.
async fn move_checkpoints(tx: &Transaction<'_>, name: &str, live: &[Checkpoint]) -> Result<(), StoreError> {
    let error = || StoreError::at("move checkpoints with their generation");
    tx.execute("delete from throughline.checkpoints where projection = $1 and generation = 'read_previous'", &[&name])
        .await
        .map_err(error())?;
    tx.execute(
        "update throughline.checkpoints set generation = 'read_previous' where projection = $1 and generation = 'read'",
        &[&name],
    )
    .await
    .map_err(error())?;
    let epoch = live.iter().map(|row| row.epoch).max().unwrap_or_default() + 1;
    tx.execute(
        "update throughline.checkpoints n
         set generation = 'read', epoch = $2, next_offset = coalesce(c.next_offset, 0), seq = coalesce(c.seq, 0),
             last_event_at = c.last_event_at, topic_id = c.topic_id
         from throughline.checkpoints m
         left join throughline.checkpoints c
              on c.partition = m.partition and c.projection = m.projection and c.generation = 'read_previous'
         where m.projection = $1 and m.generation = 'read_next' and n.projection = m.projection
           and n.partition = m.partition and n.generation = m.generation",
        &[&name, &epoch],
    )
    .await
    .map_err(error())?;
    Ok(())
}
