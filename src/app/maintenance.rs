//! Keeps the time partitions of the store, made ahead, dropped when nobody needs them, and drops the
//! read tables that were kept for rollback once their time is over.
//!
//! Runs beside every relay; turns of several processes do no harm. A turn that fails is told and
//! tried again at the next: three partitions ahead leave time for that.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::projection;
use crate::settings::Settings;
use crate::store::{DatabaseRole, StoreError, connect, partitions};

const INTERVAL: Duration = Duration::from_secs(60);

/// Turns until cancelled.
pub async fn run(settings: Arc<Settings>, shutdown: CancellationToken) -> Result<(), StoreError> {
    while shutdown.run_until_cancelled(tokio::time::sleep(INTERVAL)).await.is_some() {
        if let Err(error) = turn(&settings).await {
            metrics::counter!("throughline_maintenance_failures_total").increment(1);
            tracing::warn!(%error, "maintenance could not be done; next try in a minute");
        }
    }
    Ok(())
}

async fn turn(settings: &Settings) -> Result<(), StoreError> {
    let client = connect::connect(&settings.database, &DatabaseRole::Maintenance).await?;
    let turn = partitions::maintain(&client, &settings.database).await?;
    if turn != partitions::Turn::default() {
        tracing::info!(created = turn.created, dropped = turn.dropped.join(" "), "time partitions maintained");
    }
    for name in projection::drop_previous(&client, settings.projection.keep_previous_hours).await? {
        tracing::info!(projection = name, "the tables kept for rollback were dropped");
    }
    Ok(())
}
