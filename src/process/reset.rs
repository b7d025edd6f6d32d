//! Handling everything again: states from the inputs that are kept, then the topics from their first records.
//!
//! Each instance is folded anew from its inputs in the order in which it got them, by the program as it is now. That
//! sends nothing: whatever an input caused was sent when it was handled first. The topics are read again for what was
//! never handled, parked records among it; what was is known by its cause.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio_postgres::{Client, Transaction};
use uuid::Uuid;

use super::ledger::json;
use super::{Managed, ProcessError, park};
use crate::engine::{Action, Input, ProcessManager, ids};
use crate::panics;
use crate::store::{DatabaseRole, StoreError, connect};

/// What a reset did.
#[derive(Debug, Default, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ResetReport {
    /// Instances made anew.
    pub instances: usize,
    /// Instances left as they were, and why.
    pub failed: Vec<(Uuid, String)>,
    /// Partitions that are read again.
    pub partitions: u64,
    /// Parked inputs that come again.
    pub parked: u64,
}

/// Instances of one transaction.
const INSTANCES_MAX: i64 = 200;

/// Handles everything again. Safe beside loops that run.
pub(super) async fn reset<P: ProcessManager>(managed: &Managed<P>) -> Result<ResetReport, ProcessError> {
    let mut client = connect::connect(&managed.settings.database, &DatabaseRole::Owner).await?;
    let mut report = ResetReport::default();
    let mut after = Uuid::nil();
    loop {
        let instances = next_instances::<P>(&client, after).await?;
        let Some(last) = instances.last() else { break };
        after = *last;
        let tx = client.transaction().await.map_err(StoreError::at("begin a reset"))?;
        park::exclude(&tx, P::NAME).await?;
        for instance in instances {
            match fold_anew(managed, &tx, instance).await? {
                Ok(()) => report.instances += 1,
                Err(reason) => report.failed.push((instance, reason)),
            }
        }
        tx.commit().await.map_err(StoreError::at("commit a reset"))?;
    }
    let tx = client.transaction().await.map_err(StoreError::at("begin a reset"))?;
    park::exclude(&tx, P::NAME).await?;
    report.parked = tx
        .execute(
            "update throughline.dead_letters set status = 'superseded', superseded_by = 'reset', closed_at = now()
             where consumer = $1 and kind = 'event' and status = 'parked' and seq is not null",
            &[&managed.group],
        )
        .await
        .map_err(StoreError::at("close parked inputs that come again"))?;
    report.partitions = tx
        .execute(
            "update throughline.process_checkpoints set next_offset = 0, seq = 0, epoch = epoch + 1, updated_at = now()
             where process = $1",
            &[&P::NAME],
        )
        .await
        .map_err(StoreError::at("go back on the topics"))?;
    tx.commit().await.map_err(StoreError::at("commit a reset"))?;
    Ok(report)
}

async fn next_instances<P: ProcessManager>(client: &Client, after: Uuid) -> Result<Vec<Uuid>, StoreError> {
    let rows = client
        .query(
            "select instance from throughline.process_instances where process = $1 and instance > $2
             order by instance limit $3",
            &[&P::NAME, &after, &INSTANCES_MAX],
        )
        .await
        .map_err(StoreError::at("list the instances of a process"))?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// A deadline that is set after the fold: by what, for how long, of whose correlation.
struct Open {
    set_by: Uuid,
    after: Duration,
    correlation_id: String,
}

async fn fold_anew<P: ProcessManager>(
    managed: &Managed<P>,
    tx: &Transaction<'_>,
    instance: Uuid,
) -> Result<Result<(), String>, ProcessError> {
    let rows = tx
        .query(
            "select number, cause, correlation_id, input::text from throughline.process_inputs
             where process = $1 and instance = $2 order by number",
            &[&P::NAME, &instance],
        )
        .await
        .map_err(StoreError::at("read the inputs of an instance"))?;
    let mut state = P::State::default();
    let mut open: BTreeMap<&'static str, Open> = BTreeMap::new();
    for row in &rows {
        let (number, cause): (i64, Uuid) = (row.get(0), row.get(1));
        let input: Input<P::Event> = match serde_json::from_str(row.get(3)) {
            Ok(input) => input,
            Err(error) => return Ok(Err(format!("input {number} cannot be read: {error}"))),
        };
        // The deadline that it tells is set no longer.
        open.retain(|name, set| ids::deadline_id(P::NAME, instance, set.set_by, name) != cause);
        let handled = panics::contain(|| managed.process.handle(instance, &mut state, &input));
        let actions = match handled {
            Ok(actions) => actions,
            Err(panic) => return Ok(Err(format!("the handler panicked at input {number}: {panic}"))),
        };
        for action in actions {
            match action {
                Action::Send(_) => {}
                Action::ClearDeadline(name) => drop(open.remove(name)),
                Action::SetDeadline { name, after } => {
                    drop(open.insert(name, Open { set_by: cause, after, correlation_id: row.get(2) }));
                }
            }
        }
    }
    tx.execute(
        "update throughline.process_instances set state = $3::text::json, updated_at = now()
         where process = $1 and instance = $2",
        &[&P::NAME, &instance, &json(&state)?],
    )
    .await
    .map_err(StoreError::at("write an instance anew"))?;
    set::<P>(tx, instance, &open).await?;
    Ok(Ok(()))
}

/// Makes the deadlines of an instance those that are open. One that is set as it was keeps its time.
async fn set<P: ProcessManager>(
    tx: &Transaction<'_>,
    instance: Uuid,
    open: &BTreeMap<&'static str, Open>,
) -> Result<(), StoreError> {
    let names: Vec<&str> = open.keys().copied().collect();
    let causes: Vec<Uuid> = open.values().map(|one| one.set_by).collect();
    tx.execute(
        "delete from throughline.process_deadlines d where process = $1 and instance = $2
           and not exists (select from unnest($3::text[], $4::uuid[]) o (name, set_by)
                           where o.name = d.name and o.set_by = d.set_by)",
        &[&P::NAME, &instance, &names, &causes],
    )
    .await
    .map_err(StoreError::at("clear deadlines"))?;
    let seconds: Vec<f64> = open.values().map(|one| one.after.as_secs_f64()).collect();
    let correlations: Vec<&str> = open.values().map(|one| one.correlation_id.as_str()).collect();
    tx.execute(
        "insert into throughline.process_deadlines (process, instance, name, due, set_by, correlation_id)
         select $1, $2, o.name, k.elapsed + make_interval(secs => o.seconds), o.set_by, o.correlation_id
         from throughline.clock k,
              unnest($3::text[], $4::uuid[], $5::float8[], $6::text[]) o (name, set_by, seconds, correlation_id)
         on conflict do nothing",
        &[&P::NAME, &instance, &names, &causes, &seconds, &correlations],
    )
    .await
    .map_err(StoreError::at("set deadlines"))?;
    Ok(())
}
