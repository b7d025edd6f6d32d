//! Process managers in a report: how far each is behind what it reads, and how many of its instances are stuck.

use serde::Serialize;
use tokio_postgres::Client;

use super::{PAUSED, PartitionRow, StoreView, Subject, UNOWNED, judge};
use crate::health::PartitionState;
use crate::process::state::{self, PartitionLag};
use crate::store::StoreError;

/// A process manager of this program.
#[derive(Debug, Clone)]
pub struct Manager {
    pub name: String,
    /// What it reads.
    pub topics: Vec<String>,
}

/// A process manager, as the store has it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ManagerView {
    pub name: String,
    /// None when not installed.
    pub paused: Option<bool>,
    pub stuck: i64,
    pub lags: Vec<PartitionLag>,
}

/// One process manager.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ManagerRow {
    pub name: String,
    /// Records committed and not handled, of all that it reads.
    pub lag_events: i64,
    /// Of the oldest of these that is an event.
    pub lag_seconds: f64,
    /// Instances with something that could not be handled.
    pub stuck: i64,
    /// `running`, `paused`, `standing` (in part), `unowned`, `not installed`.
    pub state: String,
}

impl ManagerView {
    /// What waits in a partition, and since when it has not moved.
    pub(super) fn tell(&self, row: &mut PartitionRow) {
        if self.paused == Some(true) && row.owner.is_none() {
            row.state = PAUSED.to_owned();
        }
        let Some(lag) = self.lags.iter().find(|lag| lag.partition == row.partition && lag.topic == row.topic) else {
            return;
        };
        (row.waiting, row.idle_seconds) = (Some(lag.lag_events), lag.idle_seconds);
        row.oldest_seconds = lag.oldest_seconds.filter(|_| lag.lag_events > 0);
    }
}

/// Asks for all of them.
pub(super) async fn look(client: &Client, subject: &Subject) -> Result<Vec<ManagerView>, StoreError> {
    let mut views = Vec::new();
    for manager in &subject.managers {
        let found = client
            .query_one(
                "select (select paused from throughline.process_managers where name = $1),
                        (select count(*) from (
                             select instance from throughline.dead_letters
                             where consumer = $2 and status = 'parked' and instance is not null
                             union select instance from throughline.process_deadlines
                             where process = $1 and failed is not null) stuck)",
                &[&manager.name, &state::group(&subject.settings.topics, &manager.name)],
            )
            .await
            .map_err(StoreError::at("look at process managers"))?;
        views.push(ManagerView {
            name: manager.name.clone(),
            paused: found.get(0),
            stuck: found.get(1),
            lags: state::lags(client, &manager.name, &manager.topics).await?,
        });
    }
    Ok(views)
}

/// One row for each.
pub(super) fn rows(subject: &Subject, store: Option<&StoreView>, partitions: &[PartitionRow]) -> Vec<ManagerRow> {
    let Some(store) = store else { return Vec::new() };
    let row = |manager: &Manager| {
        let view = store.managers.iter().find(|view| view.name == manager.name)?;
        let rows = || partitions.iter().filter(|row| row.loop_name == judge::loop_of_manager(&manager.name));
        let state = match view.paused {
            None => "not installed",
            Some(true) => PAUSED,
            Some(false) if rows().any(|row| row.state == PartitionState::Standing.name()) => {
                PartitionState::Standing.name()
            }
            Some(false) if rows().all(|row| row.state == UNOWNED) => UNOWNED,
            Some(false) => PartitionState::Running.name(),
        };
        Some(ManagerRow {
            name: manager.name.clone(),
            lag_events: view.lags.iter().map(|lag| lag.lag_events).sum(),
            lag_seconds: rows().filter_map(|row| row.oldest_seconds).fold(0.0, f64::max),
            stuck: view.stuck,
            state: state.to_owned(),
        })
    };
    subject.managers.iter().filter_map(row).collect()
}
