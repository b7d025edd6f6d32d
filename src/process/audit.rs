//! Whether instances are the fold of their inputs, and what they sent and wait for is on its way.
//!
//! Reads only, each page of one snapshot, beside the loops that run.

use std::time::Duration;

use serde_json::Value;
use tokio_postgres::{Client, GenericClient, IsolationLevel, Row};
use uuid::Uuid;

use super::{Managed, ProcessError};
use crate::engine::{Input, ProcessManager};
use crate::panics;
use crate::store::{Pace, StoreError};

/// Instances of one page.
const INSTANCES_MAX: i64 = 200;
/// What is due, or not sent, for longer than this is told.
const LATE: Duration = Duration::from_secs(60);

/// What is wrong with a process: of which instance, where one is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    pub instance: Option<Uuid>,
    pub what: String,
}

/// Holds the `newest` instances, or all. Returns how many.
pub(super) async fn audit<P: ProcessManager>(
    managed: &Managed<P>,
    client: &mut Client,
    newest: Option<i64>,
    pace: &Pace,
    told: &(dyn Fn(Fault) + Send + Sync),
) -> Result<u64, ProcessError> {
    let (mut held, mut after) = (0, Uuid::nil());
    loop {
        let snapshot = client
            .build_transaction()
            .isolation_level(IsolationLevel::RepeatableRead)
            .read_only(true)
            .start()
            .await
            .map_err(StoreError::at("take a snapshot to audit"))?;
        let instances = page::<P>(&snapshot, after, newest).await?;
        for row in &instances {
            let (instance, faults) = (row.get(0), fold::<P>(managed, &snapshot, row).await?);
            faults.into_iter().for_each(|what| told(Fault { instance: Some(instance), what }));
        }
        held += instances.len() as u64;
        pace.took(instances.iter().map(|row| row.get::<_, i64>(2).unsigned_abs()).sum()).await;
        match instances.last() {
            Some(last) if newest.is_none() => after = last.get(0),
            _ => break,
        }
    }
    for fault in late::<P>(client).await? {
        told(fault);
    }
    Ok(held)
}

async fn page<P: ProcessManager>(
    client: &impl GenericClient,
    after: Uuid,
    newest: Option<i64>,
) -> Result<Vec<Row>, StoreError> {
    let order = if newest.is_some() { "updated_at desc" } else { "instance" };
    let statement = format!(
        "select instance, state::text, inputs from throughline.process_instances
         where process = $1 and instance > $2 order by {order} limit $3"
    );
    let limit = newest.unwrap_or(INSTANCES_MAX);
    client
        .query(&statement, &[&P::NAME, &after, &limit])
        .await
        .map_err(StoreError::at("list the instances of a process"))
}

/// What of an instance is not the fold of its inputs.
async fn fold<P: ProcessManager>(
    managed: &Managed<P>,
    client: &impl GenericClient,
    row: &Row,
) -> Result<Vec<String>, StoreError> {
    let (instance, stored, inputs): (Uuid, &str, i64) = (row.get(0), row.get(1), row.get(2));
    let rows = client
        .query(
            "select number, input::text from throughline.process_inputs
             where process = $1 and instance = $2 order by number",
            &[&P::NAME, &instance],
        )
        .await
        .map_err(StoreError::at("read the inputs of an instance"))?;
    let numbers = rows.iter().map(|row| row.get::<_, i64>(0));
    if !numbers.eq(1..=inputs) {
        return Ok(vec![format!("it counts {inputs} inputs, and {} are kept, or not one after the other", rows.len())]);
    }
    let mut state = P::State::default();
    for row in &rows {
        let number: i64 = row.get(0);
        let input: Input<P::Event> = match serde_json::from_str(row.get(1)) {
            Ok(input) => input,
            Err(error) => return Ok(vec![format!("its input {number} cannot be read: {error}")]),
        };
        if let Err(panic) = panics::contain(|| managed.process.handle(instance, &mut state, &input)) {
            return Ok(vec![format!("its input {number} makes the handler panic: {panic}")]);
        }
    }
    let folded = serde_json::to_value(&state).unwrap_or_default();
    let stored: Value = serde_json::from_str(stored).unwrap_or_default();
    let mut faults = Vec::new();
    if folded != stored {
        let cure = format!("where the program changed, `throughline process reset {}` makes it anew", P::NAME);
        faults.push(format!("its state is {stored}, and its inputs come to {folded}; {cure}"));
    }
    faults.extend(uncaused::<P>(client, instance).await?);
    Ok(faults)
}

/// Commands of an instance that none of its inputs caused.
async fn uncaused<P: ProcessManager>(client: &impl GenericClient, instance: Uuid) -> Result<Vec<String>, StoreError> {
    let rows = client
        .query(
            "select c.command_id, c.command from throughline.process_commands c
             where c.process = $1 and c.instance = $2
               and not exists (select from throughline.process_inputs i
                               where i.process = $1 and i.instance = $2 and i.cause = c.cause)",
            &[&P::NAME, &instance],
        )
        .await
        .map_err(StoreError::at("look for commands that nothing caused"))?;
    let told = |row: &Row| {
        format!("it sent {} as {}, which none of its inputs caused", row.get::<_, &str>(1), row.get::<_, Uuid>(0))
    };
    Ok(rows.iter().map(told).collect())
}

/// What should have been done a while ago.
async fn late<P: ProcessManager>(client: &Client) -> Result<Vec<Fault>, StoreError> {
    let rows = client
        .query(
            "(select d.instance, 'its deadline ' || d.name || ' is due and did not fire' from throughline.process_deadlines d,
                     throughline.clock k
              where d.process = $1 and d.failed is null and d.due < k.elapsed - make_interval(secs => $2) limit 20)
             union all
             (select c.instance, 'its command ' || c.command_id || ' is not sent' from throughline.process_commands c
              where c.process = $1 and c.sent_at is null and c.created_at < now() - make_interval(secs => $2) limit 20)",
            &[&P::NAME, &LATE.as_secs_f64()],
        )
        .await
        .map_err(StoreError::at("look for what a process should have done"))?;
    let since = format!(" for more than {} s; `throughline status` tells who should", LATE.as_secs());
    Ok(rows.iter().map(|row| Fault { instance: Some(row.get(0)), what: row.get::<_, String>(1) + &since }).collect())
}
