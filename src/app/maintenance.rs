//! Keeps the time partitions of the store, made ahead, dropped when nobody needs them, and drops the
//! read tables that were kept for rollback once their time is over.
//!
//! Runs beside every relay; turns of several processes do no harm. A turn that fails is told and tried again
//! at the next: hours of partitions ahead leave time for that, and people are told long before they end.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::health::{Health, Heartbeat};
use crate::projection;
use crate::settings::Settings;
use crate::store::partitions::{self, Stopwatch, Turn};
use crate::store::{DatabaseRole, StoreError, bounded, connect};

const INTERVAL: Duration = Duration::from_secs(10);
/// What one turn may take.
const TURN: Duration = Duration::from_secs(60);
/// Turns that fail one after the other before the process says that it is not ready.
const FAILURES_MAX: u32 = 3;

/// Turns until cancelled, the first at once.
pub async fn run(settings: Arc<Settings>, health: Arc<Health>, shutdown: CancellationToken) -> Result<(), StoreError> {
    let mut keeper = Keeper {
        settings,
        heartbeat: health.register("maintenance"),
        stopwatch: Stopwatch::default(),
        failures: 0,
        told: None,
    };
    loop {
        // Waiting for PostgreSQL is no hang, however long.
        let heartbeat = keeper.heartbeat.clone();
        let turn = heartbeat.during(bounded(TURN, "maintain the store", keeper.turn()));
        let Some(turned) = shutdown.run_until_cancelled(turn).await else { return Ok(()) };
        keeper.tell(turned);
        let pause = keeper.heartbeat.during(tokio::time::sleep(INTERVAL));
        if shutdown.run_until_cancelled(pause).await.is_none() {
            return Ok(());
        }
    }
}

struct Keeper {
    settings: Arc<Settings>,
    heartbeat: Heartbeat,
    stopwatch: Stopwatch,
    failures: u32,
    /// What was last told to be wrong: a state that lasts is one line.
    told: Option<&'static str>,
}

impl Keeper {
    /// One turn. Says what is wrong though it succeeded, if anything is.
    async fn turn(&mut self) -> Result<Option<String>, StoreError> {
        let settings = &self.settings;
        let client = connect::connect_with(&settings.database, &DatabaseRole::Maintenance, "").await?;
        self.stopwatch.tell(&client).await?;
        self.heartbeat.beat();
        let turn = partitions::maintain(&client, &settings.database).await?;
        self.heartbeat.beat();
        if turn != Turn::default() {
            tracing::info!(
                created = turn.created,
                dropped = turn.dropped.join(" "),
                held = turn.held.join(" "),
                "time partitions maintained"
            );
        }
        for name in projection::drop_previous(&client, settings.projection.keep_previous_hours).await? {
            tracing::info!(projection = name, "the tables kept for rollback were dropped");
        }
        let mut short = None;
        for coverage in partitions::coverage(&client, &settings.database).await? {
            metrics::gauge!("throughline_time_partitions_ahead_seconds", "table" => coverage.table)
                .set(coverage.seconds);
            if coverage.is_short {
                short = Some(format!(
                    "rows can be written to throughline.{} for {:.0} s more: something keeps a lock on it against new \
                     partitions; find it in pg_locks and end it",
                    coverage.table, coverage.seconds
                ));
            }
        }
        Ok(short)
    }

    fn tell(&mut self, turned: Result<Option<String>, StoreError>) {
        let (wrong, reason) = match turned {
            Ok(None) => {
                self.failures = 0;
                self.heartbeat.ready();
                if self.told.take().is_some() {
                    tracing::info!("maintenance is done again");
                }
                return;
            }
            Ok(Some(short)) => {
                self.failures = FAILURES_MAX;
                ("time partitions run out", short)
            }
            Err(error) => {
                metrics::counter!("throughline_maintenance_failures_total").increment(1);
                self.failures += 1;
                ("maintenance could not be done; it is tried again", error.to_string())
            }
        };
        if self.failures >= FAILURES_MAX {
            self.heartbeat.not_ready(format!("{wrong}: {reason}"));
        } else {
            self.heartbeat.beat();
        }
        if self.told.replace(wrong) != Some(wrong) {
            tracing::warn!(reason, "{wrong}");
        }
    }
}
