//! What the rows of a generation lack of the events up to its checkpoint: parked or discarded events, and
//! ranges that a reset forward went over. The rows are the fold of everything else.
//!
//! `throughline.projection_gaps` is authoritative for the rows; the dead letters follow it where a
//! generation becomes live (`park`). A gap belongs to its checkpoint and moves with it.

use std::collections::{BTreeMap, BTreeSet};

use tokio_postgres::types::Type;
use tokio_postgres::{GenericClient, Transaction};

use crate::store::StoreError;

/// First and last seq of each gap, with its cause, by partition.
pub(super) type Gaps = BTreeMap<i32, BTreeSet<(i64, i64, String)>>;

/// Gaps told in one line, at most.
const TOLD_MAX: usize = 5;

/// Notes that single events, by partition and seq, are not in the rows.
pub(super) async fn leave_out(
    tx: &Transaction<'_>,
    projection: &str,
    generation: &str,
    events: &[(i32, i64)],
) -> Result<(), StoreError> {
    if events.is_empty() {
        return Ok(());
    }
    let (partitions, seqs): (Vec<i32>, Vec<i64>) = events.iter().copied().unzip();
    tx.execute(
        "insert into throughline.projection_gaps (projection, generation, partition, from_seq, to_seq, cause)
         select $1, $2, partition, seq, seq, 'parked' from unnest($3::int[], $4::bigint[]) e (partition, seq)
         on conflict do nothing",
        &[&projection, &generation, &partitions, &seqs],
    )
    .await
    .map_err(StoreError::at("note events that are left out"))?;
    Ok(())
}

/// Notes that the live rows go over the events after `after`, up to `upto`.
pub(super) async fn skip(
    tx: &Transaction<'_>,
    projection: &str,
    partition: i32,
    after: i64,
    upto: i64,
) -> Result<(), StoreError> {
    if upto > after {
        tx.execute(
            "insert into throughline.projection_gaps (projection, partition, from_seq, to_seq, cause)
             values ($1, $2, $3::bigint + 1, $4, 'skipped')",
            &[&projection, &partition, &after, &upto],
        )
        .await
        .map_err(StoreError::at("note events that are skipped"))?;
    }
    Ok(())
}

/// The live rows of a partition are made anew: nothing is left out yet.
pub(super) async fn forget(tx: &Transaction<'_>, projection: &str, partition: i32) -> Result<(), StoreError> {
    tx.execute(
        "delete from throughline.projection_gaps where projection = $1 and generation = 'read' and partition = $2",
        &[&projection, &partition],
    )
    .await
    .map_err(StoreError::at("forget what was left out"))?;
    Ok(())
}

/// Parked events came into the live rows after all.
pub(super) async fn close(
    tx: &Transaction<'_>,
    projection: &str,
    partition: i32,
    seqs: &[i64],
) -> Result<(), StoreError> {
    tx.execute(
        "delete from throughline.projection_gaps
         where projection = $1 and generation = 'read' and partition = $2 and from_seq = any($3) and cause = 'parked'",
        &[&projection, &partition, &seqs],
    )
    .await
    .map_err(StoreError::at("note that parked events are applied"))?;
    Ok(())
}

/// Whether the live rows hold an event of the partition that an operator discarded: a rollback brought
/// rows back that are older than the discard.
pub(super) async fn holds_discarded(
    tx: &Transaction<'_>,
    projection: &str,
    group: &str,
    partition: i32,
    upto: i64,
) -> Result<bool, StoreError> {
    let row = tx
        .query_typed(
            "select exists (
                 select from throughline.dead_letters d
                 where d.consumer = $2 and d.source_partition = $3 and d.seq <= $4 and d.kind = 'event'
                   and d.status = 'discarded'
                   and not exists (select from throughline.projection_gaps g
                                   where g.projection = $1 and g.generation = 'read' and g.partition = $3
                                     and d.seq between g.from_seq and g.to_seq))",
            &[(&projection, Type::TEXT), (&group, Type::TEXT), (&partition, Type::INT4), (&upto, Type::INT8)],
        )
        .await
        .map_err(StoreError::at("look for discarded events in the rows"))?;
    Ok(row.first().is_some_and(|row| row.get(0)))
}

/// The gaps of a generation.
pub(super) async fn load(client: &impl GenericClient, projection: &str, generation: &str) -> Result<Gaps, StoreError> {
    let rows = client
        .query(
            "select partition, from_seq, to_seq, cause from throughline.projection_gaps
             where projection = $1 and generation = $2",
            &[&projection, &generation],
        )
        .await
        .map_err(StoreError::at("read what a generation leaves out"))?;
    let mut gaps = Gaps::new();
    for row in &rows {
        gaps.entry(row.get(0)).or_default().insert((row.get(1), row.get(2), row.get(3)));
    }
    Ok(gaps)
}

/// Why the rows of a partition differ between two generations, as far as that is known: they leave out
/// different events.
pub(super) fn reason(live: &Gaps, next: &Gaps, partition: i32) -> Option<String> {
    let none = BTreeSet::new();
    let (old, new) = (live.get(&partition).unwrap_or(&none), next.get(&partition).unwrap_or(&none));
    let told = |only: &BTreeSet<(i64, i64, String)>, other: &BTreeSet<(i64, i64, String)>, who: &str| {
        let gaps: Vec<&(i64, i64, String)> = only.difference(other).collect();
        let mut texts: Vec<String> = gaps.iter().take(TOLD_MAX).map(|gap| text(gap)).collect();
        if gaps.len() > TOLD_MAX {
            texts.push(format!("{} more", gaps.len() - TOLD_MAX));
        }
        (!texts.is_empty()).then(|| format!("only the {who} rows leave out {}", texts.join(", ")))
    };
    let reasons: Vec<String> = [told(old, new, "live"), told(new, old, "rebuilt")].into_iter().flatten().collect();
    (!reasons.is_empty()).then(|| reasons.join("; "))
}

fn text((from, to, cause): &(i64, i64, String)) -> String {
    if from == to { format!("seq {from} ({cause})") } else { format!("seq {from} to {to} ({cause})") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_names_the_events_that_one_side_leaves_out() {
        let gaps = |seqs: &[i64]| {
            let set = seqs.iter().map(|&seq| (seq, seq, "parked".to_owned())).collect();
            Gaps::from([(1, set)])
        };
        assert_eq!(reason(&gaps(&[3, 5]), &gaps(&[3, 5]), 1), None);
        assert_eq!(reason(&gaps(&[3]), &gaps(&[3]), 2), None, "another partition");
        assert_eq!(
            reason(&gaps(&[3, 5]), &gaps(&[5]), 1).as_deref(),
            Some("only the live rows leave out seq 3 (parked)")
        );
        let many = reason(&Gaps::new(), &gaps(&[1, 2, 3, 4, 5, 6, 7]), 1).expect("a reason");
        assert!(many.starts_with("only the rebuilt rows leave out seq 1 (parked), ") && many.ends_with("2 more"));
        let skipped = Gaps::from([(1, BTreeSet::from([(4, 9, "skipped".to_owned())]))]);
        assert!(reason(&skipped, &Gaps::new(), 1).expect("a reason").ends_with("seq 4 to 9 (skipped)"));
    }
}
