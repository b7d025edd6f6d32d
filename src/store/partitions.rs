//! Time partitions of `outbox` and `commands`: made ahead, dropped when no longer needed.
//!
//! Runs at start and then by timer; each turn is idempotent and safe beside another's. The outbox
//! partition is dropped only behind the relay's watermark, which PostgreSQL itself checks.

use std::sync::Arc;
use std::time::Duration;

use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use super::{DatabaseRole, StoreError, connect};
use crate::settings::{DatabaseSettings, Settings};

/// Time partitions kept ready beyond now.
const AHEAD: i32 = 3;

/// Time between two turns. The partitions kept ready cover many of them.
const TURN: Duration = Duration::from_secs(60);

/// A turn every minute, from a connection in the maintenance role, until `shutdown`.
///
/// # Errors
/// Only what time does not heal, such as a missing migration. A database that is away is tried again
/// at the next turn.
pub async fn run(settings: Arc<Settings>, shutdown: CancellationToken) -> Result<(), StoreError> {
    let mut failing = false;
    loop {
        let turn = async {
            // A connection a turn: an idle one would only be one more to lose.
            let client = connect::connect(&settings.database, &DatabaseRole::Maintenance).await?;
            maintain(&client, &settings.database).await
        };
        let turned = tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            turned = turn => turned,
        };
        match turned {
            Ok(turn) => {
                failing = false;
                metrics::counter!("throughline_time_partitions_total", "change" => "created")
                    .increment(u64::try_from(turn.created).unwrap_or_default());
                metrics::counter!("throughline_time_partitions_total", "change" => "dropped")
                    .increment(turn.dropped.len() as u64);
                if turn.created > 0 || !turn.dropped.is_empty() {
                    tracing::info!(created = turn.created, dropped = ?turn.dropped, "time partitions changed");
                }
            }
            Err(error) if error.is_transient() => {
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!(%error, "time partitions were not looked after; tried again every minute");
                }
            }
            Err(error) => return Err(error),
        }
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            () = tokio::time::sleep(TURN) => {}
        }
    }
}

/// What one turn did.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Turn {
    pub created: i32,
    pub dropped: Vec<String>,
}

/// Makes the partitions of the near future and drops those of the past.
pub async fn maintain(client: &Client, settings: &DatabaseSettings) -> Result<Turn, StoreError> {
    let outbox_width = i64::from(settings.outbox_partition_minutes);
    let commands_width = i64::from(settings.command_partition_days);
    let row = client
        .query_one(
            "select throughline.create_time_partitions('outbox', make_interval(mins => $1::int), $3)
                  + throughline.create_time_partitions('commands', make_interval(days => $2::int), $3)",
            &[&(outbox_width as i32), &(commands_width as i32), &AHEAD],
        )
        .await
        .map_err(StoreError::at("create time partitions"))?;
    let mut turn = Turn { created: row.get(0), dropped: Vec::new() };
    let keep = i32::try_from(settings.command_retention_days).unwrap_or(i32::MAX);
    for rows in [
        client.query("select throughline.drop_published_outbox()", &[]).await,
        client.query("select throughline.drop_old_commands(make_interval(days => $1))", &[&keep]).await,
    ] {
        let rows = rows.map_err(StoreError::at("drop old time partitions"))?;
        turn.dropped.extend(rows.iter().map(|row| row.get::<_, String>(0)));
    }
    Ok(turn)
}
