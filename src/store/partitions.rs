//! Time partitions of `outbox` and `commands`: made ahead, dropped when no longer needed.
//!
//! Runs at start and then by timer; each turn is idempotent and safe beside another's. The outbox
//! partition is dropped only behind the relay's watermark, which PostgreSQL itself checks.

use tokio_postgres::Client;

use super::StoreError;
use crate::settings::DatabaseSettings;

/// Time partitions kept ready beyond now.
const AHEAD: i32 = 3;

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
