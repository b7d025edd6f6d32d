//! One worker's connection: in the writer's role, with its statements prepared.

use std::time::Duration;

use tokio_postgres::Statement;

use super::retry::BatchFailure;
use crate::crash::is_sabotaged;
use crate::settings::DatabaseSettings;
use crate::store::{self, DatabaseRole, Line, StoreError, connect};

use super::{append, load};

/// Every statement of the worker probes by key, in sets. Fresh tables have no statistics yet, and
/// a plan made for an empty table would scan a full one; so the planner is left no other choice,
/// and plans once.
const PLANNER: &str = "set plan_cache_mode = force_generic_plan; set enable_seqscan = off; \
                       set enable_hashjoin = off; set enable_mergejoin = off;";

/// The connection and its statements.
pub(super) struct Session {
    pub client: Line,
    /// What one round trip may take.
    limit: Duration,
    pub lock_counters: Statement,
    pub move_offsets: Statement,
    pub load_streams: Statement,
    pub load_outcomes: Statement,
    pub append_events: Statement,
    pub append_results: Statement,
    pub append_outcomes: Statement,
    pub set_counters: Statement,
    pub put_snapshots: Statement,
}

impl Session {
    /// Connects and prepares.
    pub async fn open(settings: &DatabaseSettings) -> Result<Self, StoreError> {
        let client = connect::connect_with(settings, &DatabaseRole::Writer, PLANNER).await?;
        let limit = settings.round_trip();
        store::bounded(limit, "prepare the processor's statements", Self::prepare(client, limit)).await
    }

    async fn prepare(client: Line, limit: Duration) -> Result<Self, StoreError> {
        let prepare = |statement: &'static str| client.prepare(statement);
        let (lock_counters, move_offsets, load_streams, load_outcomes) = futures_util::try_join!(
            prepare(load::LOCK_COUNTERS),
            prepare(load::MOVE_OFFSETS),
            prepare(load::LOAD_STREAMS),
            prepare(load::LOAD_OUTCOMES),
        )
        .map_err(StoreError::at("prepare the processor's reads"))?;
        let append_events = match is_sabotaged("outbox_row_dropped") {
            true => format!("{} where seq % 97 <> 0", append::APPEND_EVENTS),
            false => append::APPEND_EVENTS.to_owned(),
        };
        let (append_events, append_results, append_outcomes, set_counters, put_snapshots) = futures_util::try_join!(
            client.prepare(&append_events),
            prepare(append::APPEND_RESULTS),
            prepare(append::APPEND_OUTCOMES),
            prepare(append::SET_COUNTERS),
            prepare(append::PUT_SNAPSHOTS),
        )
        .map_err(StoreError::at("prepare the processor's writes"))?;
        Ok(Self {
            client,
            limit,
            lock_counters,
            move_offsets,
            load_streams,
            load_outcomes,
            append_events,
            append_results,
            append_outcomes,
            set_counters,
            put_snapshots,
        })
    }

    /// Waits for the answers to what was sent together. Without them in time the session is over.
    pub async fn round_trip<T>(
        &self,
        step: &'static str,
        work: impl Future<Output = Result<T, BatchFailure>>,
    ) -> Result<T, BatchFailure> {
        store::bounded(self.limit, step, work).await
    }

    /// Undoes the transaction that is open, if one is; whether the session is good for another.
    pub async fn roll_back(&self) -> bool {
        let undone = async { self.client.batch_execute("rollback").await.map_err(StoreError::at("roll back")) };
        store::bounded(self.limit, "roll back", undone).await.is_ok()
    }
}
