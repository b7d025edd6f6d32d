//! Keeps the time partitions of the store, made ahead, dropped when nobody needs them, and drops the
//! read tables that were kept for rollback once their time is over.
//!
//! Runs beside every relay; turns of several processes do no harm. A turn that fails is told and
//! tried again at the next: three partitions ahead leave time for that.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::health::{Heartbeat, Told};
use crate::projection;
use crate::settings::Settings;
use crate::store::{DatabaseRole, StoreError, connect, partitions};

const INTERVAL: Duration = Duration::from_secs(60);

/// Turns until cancelled. What a turn cannot do harms nobody for hours: it is told, and takes nobody out.
pub async fn run(settings: Arc<Settings>, heartbeat: Heartbeat, shutdown: CancellationToken) -> Result<(), StoreError> {
    heartbeat.ready();
    let told = Told::new("maintenance cannot be done");
    let pause = || heartbeat.during(tokio::time::sleep(INTERVAL));
    loop {
        if shutdown.run_until_cancelled(pause()).await.is_none() {
            return Ok(());
        }
        match heartbeat.during(turn(&settings)).await {
            Ok(()) => drop(told.well()),
            Err(error) => {
                metrics::counter!("throughline_maintenance_failures_total").increment(1);
                told.failed(&error.to_string());
            }
        }
    }
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
