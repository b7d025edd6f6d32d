//! Keeps the time partitions of the store: made ahead, dropped when nobody needs them.
//!
//! Runs beside every relay; turns of several processes do no harm. A turn that fails is told and
//! tried again at the next: three partitions ahead leave time for that.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::settings::Settings;
use crate::store::{DatabaseRole, StoreError, connect, partitions};

const INTERVAL: Duration = Duration::from_secs(60);

/// Turns until cancelled.
pub async fn run(settings: Arc<Settings>, shutdown: CancellationToken) -> Result<(), StoreError> {
    while shutdown.run_until_cancelled(tokio::time::sleep(INTERVAL)).await.is_some() {
        match turn(&settings).await {
            Ok(turn) if turn != partitions::Turn::default() => {
                tracing::info!(created = turn.created, dropped = turn.dropped.join(" "), "time partitions maintained");
            }
            Ok(_) => {}
            Err(error) => {
                metrics::counter!("throughline_maintenance_failures_total").increment(1);
                tracing::warn!(%error, "time partitions could not be maintained; next try in a minute");
            }
        }
    }
    Ok(())
}

async fn turn(settings: &Settings) -> Result<partitions::Turn, StoreError> {
    let client = connect::connect(&settings.database, &DatabaseRole::Maintenance).await?;
    partitions::maintain(&client, &settings.database).await
}
