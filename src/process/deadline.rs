//! Deadlines: each fires once, by time that was seen to pass, late rather than never.
//!
//! Whoever runs the process fires what is due; the lock of the instance's row lets one of them. `throughline.clock` is
//! authoritative: no clock that is set fires anything early or holds it up. What waits behind a parked input waits.

use tokio_postgres::Transaction;
use uuid::Uuid;

use super::Managed;
use super::ledger::Ledger;
use super::park::{self, Barred};
use super::read::Told;
use crate::crash::is_sabotaged;
use crate::engine::{Input, ProcessManager, ids};
use crate::store::{Line, StoreError, bounded};

/// What one look fired.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fired {
    pub deadlines: usize,
    pub commands: usize,
}

/// Instances with something due. An instance with an open letter waits for it.
const DUE: &str = "
    select d.instance from throughline.process_deadlines d
    where d.process = $1 and d.failed is null and d.due <= (select elapsed from throughline.clock)
      and not exists (select from throughline.dead_letters l
                      where l.consumer = $2 and l.instance = d.instance and l.status = 'parked')
    order by d.due limit $3";

/// Fires what is due, up to `process.deadlines_max`.
pub(super) async fn fire<P: ProcessManager>(managed: &Managed<P>, line: &mut Line) -> Result<Fired, StoreError> {
    let limit = managed.settings.database.round_trip();
    let most = managed.settings.process.deadlines_max;
    let looked = async {
        line.query(DUE, &[&P::NAME, &managed.group, &most]).await.map_err(StoreError::at("look for deadlines"))
    };
    let rows = bounded(limit, "look for deadlines", looked).await?;
    if rows.is_empty() {
        return Ok(Fired::default());
    }
    let instances: Vec<Uuid> = rows.iter().map(|row| row.get(0)).collect();
    let begun = async { line.transaction().await.map_err(StoreError::at("begin to fire deadlines")) };
    let tx = bounded(limit, "begin to fire deadlines", begun).await?;
    let fired = bounded(limit, "fire deadlines", tell(managed, &tx, &instances)).await?;
    crate::crash_point!("process.deadline.before_commit");
    let committed = async { tx.commit().await.map_err(StoreError::at("commit deadlines")) };
    bounded(limit, "commit deadlines", committed).await?;
    crate::crash_point!("process.deadline.after_commit");
    metrics::counter!("throughline_process_deadlines_total", "process" => P::NAME).increment(fired.deadlines as u64);
    Ok(fired)
}

async fn tell<P: ProcessManager>(
    managed: &Managed<P>,
    tx: &Transaction<'_>,
    instances: &[Uuid],
) -> Result<Fired, StoreError> {
    park::share(tx, P::NAME).await?;
    let mut ledger = Ledger::lock(managed, tx, instances).await?;
    let barred = Barred::load(tx, &managed.group, std::iter::empty(), instances).await?;
    // Again, under the locks: another may have fired or cleared it, or set it anew.
    let rows = tx
        .query(
            "select instance, name, set_by, correlation_id from throughline.process_deadlines
             where process = $1 and instance = any($2) and failed is null
               and due <= (select elapsed from throughline.clock) order by due",
            &[&P::NAME, &instances],
        )
        .await
        .map_err(StoreError::at("read deadlines"))?;
    let due: Vec<(Uuid, String, Uuid)> = rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect();
    let cause = |(instance, name, set_by): &(Uuid, String, Uuid)| match is_sabotaged("deadline_twice") {
        true => Uuid::new_v4(),
        false => ids::deadline_id(P::NAME, *instance, *set_by, name),
    };
    ledger.learn(tx, &due.iter().map(|one| (one.0, cause(one))).collect::<Vec<_>>()).await?;
    let mut fired = Fired::default();
    for (row, due) in rows.iter().zip(due) {
        let cause = cause(&due);
        let (instance, name, _) = due;
        // What an earlier deadline of this look cleared or set anew is none.
        if barred.holds_instance(instance) || ledger.has_changed_deadline(instance, &name) {
            continue;
        }
        let told =
            Told { instance, begins: false, cause, correlation_id: row.get(3), input: Input::Deadline(name.clone()) };
        if !is_sabotaged("deadline_twice") {
            ledger.reached(instance, &name);
        }
        fired.deadlines += 1;
        if let Err(fault) = ledger.handle(&told) {
            ledger.not_reached(instance, &name);
            let (code, reason) = (fault.code, fault.reason.as_str());
            tracing::error!(process = P::NAME, %instance, deadline = name, code, reason, "deadline put aside");
            tx.execute(
                "update throughline.process_deadlines set failed = $4 where process = $1 and instance = $2 and name = $3",
                &[&P::NAME, &instance, &name, &format!("{code}: {reason}").replace('\0', "\u{fffd}")],
            )
            .await
            .map_err(StoreError::at("put a deadline aside"))?;
        }
    }
    ledger.write(tx).await?;
    Ok(Fired { commands: ledger.commands(), ..fired })
}
