//! The transaction of one batch: the compare-and-set of its checkpoints, the rows, what is parked.
//!
//! Knows neither retries nor policies: `apply` has sorted out what is to be parked.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use tokio_postgres::{Client, Transaction};

use super::checkpoint::{self, Checkpoint, Move};
use super::decode::{Body, Item};
use super::handler::{self, ApplyFailure};
use super::{LIVE, Projector, gaps, park};
use crate::crash::is_sabotaged;
use crate::engine::Recorded;
use crate::store::{DeadLetter, bounded};

/// What became of it.
pub(super) enum Attempt {
    Applied(Vec<Move>),
    /// Another owner holds these partitions.
    Lost(HashSet<i32>),
}

/// How the checkpoints move when all of `items` are done.
pub(super) fn moves<E>(items: &[&Item], events: &[Recorded<E>], held: &HashMap<i32, Checkpoint>) -> Vec<Move> {
    let mut moves: HashMap<i32, Move> = HashMap::new();
    for item in items {
        let from = held[&item.record.source.partition];
        let moved = moves.entry(from.partition).or_insert(Move {
            from,
            next_offset: from.next_offset,
            seq: from.seq,
            last_event_at: None,
        });
        moved.next_offset = item.record.offset + 1;
        moved.seq = item.seq;
        if let Body::Event(index) = item.body {
            moved.last_event_at = Some(events[index].recorded_at);
        }
    }
    let mut moves: Vec<Move> = moves.into_values().collect();
    moves.sort_by_key(|moved| moved.from.partition);
    moves
}

/// The transaction. Also tells whether something was found or left parked.
pub(super) async fn transact<E: Send + Sync>(
    projector: &Projector<E>,
    client: &mut Client,
    items: &[&Item],
    events: &[Recorded<E>],
    moves: &[Move],
    ask: bool,
) -> Result<(Attempt, bool), ApplyFailure> {
    let limit = projector.settings.database.round_trip();
    let begun = async { client.transaction().await.map_err(ApplyFailure::ours("begin a batch")) };
    let tx = bounded(limit, "begin a batch", begun).await?;
    let advance = bounded(limit, "move checkpoints", async {
        checkpoint::advance(&tx, projector.name(), moves).await.map_err(ApplyFailure::ours("move checkpoints"))
    });
    let (moved, applied, parked) = if ask {
        let moved = advance.await?;
        let mut split = bounded(limit, "look for parked keys", split_parked(projector, &tx, items)).await?;
        let applied = apply_runs(projector, &tx, events, &split.runs).await;
        let parked = async {
            park::park_found(projector, &tx, &mut split.letters).await?;
            gaps::leave_out(&tx, projector.name(), LIVE, &split.left_out).await
        };
        bounded(limit, "park events", parked).await?;
        metrics::counter!("throughline_projection_parked_total", "projection" => projector.name())
            .increment(split.letters.len() as u64);
        (moved, applied, !split.letters.is_empty())
    } else if is_sabotaged("checkpoint_apart") {
        drop(advance);
        let runs = runs(items.iter().filter_map(|item| event_of(item)));
        apply_runs(projector, &tx, events, &runs).await?;
        tx.commit().await.map_err(ApplyFailure::of_the_handler("commit a batch"))?;
        crate::crash_point!("projection.before_commit");
        let tx = client.transaction().await.map_err(ApplyFailure::ours("begin a batch"))?;
        checkpoint::advance(&tx, projector.name(), moves).await.map_err(ApplyFailure::ours("move checkpoints"))?;
        tx.commit().await.map_err(ApplyFailure::ours("move checkpoints"))?;
        return Ok((Attempt::Applied(moves.to_vec()), false));
    } else {
        // Sent together: the compare-and-set reaches the server first and costs no round trip.
        let passed_over = |index: &usize| is_sabotaged("event_passed_over") && events[*index].position.seq % 50 == 0;
        let runs = runs(items.iter().filter_map(|item| event_of(item)).filter(|index| !passed_over(index)));
        let (moved, applied) = futures_util::join!(advance, apply_runs(projector, &tx, events, &runs));
        (moved?, applied, false)
    };
    let lost: HashSet<i32> =
        moves.iter().map(|wanted| wanted.from.partition).filter(|partition| !moved.contains(partition)).collect();
    if !lost.is_empty() {
        return Ok((Attempt::Lost(lost), false));
    }
    applied?;
    crate::crash_point!("projection.before_commit");
    // Deferred constraints and triggers speak here, for the handler's rows.
    bounded(limit, "commit a batch", async {
        tx.commit().await.map_err(ApplyFailure::of_the_handler("commit a batch"))
    })
    .await?;
    crate::crash_point!("projection.after_commit");
    Ok((Attempt::Applied(moves.to_vec()), parked))
}

struct Split {
    runs: Vec<Range<usize>>,
    letters: Vec<DeadLetter>,
    /// Events that are not applied, by partition and seq.
    left_out: Vec<(i32, i64)>,
}

/// Sorts out what has to be parked: poison, and events behind parked ones of their key.
async fn split_parked<E: Send + Sync>(
    projector: &Projector<E>,
    tx: &Transaction<'_>,
    items: &[&Item],
) -> Result<Split, ApplyFailure> {
    let keys: Vec<&[u8]> = items.iter().filter_map(|item| item.record.key.as_deref()).collect();
    let mut parked =
        park::open_keys(tx, &projector.group, &keys).await.map_err(ApplyFailure::ours("look for parked keys"))?;
    let (mut letters, mut left_out, mut apply) = (Vec::new(), Vec::new(), Vec::new());
    for item in items {
        let key = item.record.key.as_ref();
        let place = (item.record.source.partition, item.seq);
        match &item.body {
            Body::Duplicate => {}
            Body::Discarded => left_out.push(place),
            Body::Poison { code, reason } => {
                let numbered = *code != "FOREIGN_RECORD";
                letters.push(park::letter(&projector.group, item, numbered, code, reason));
                left_out.extend(Some(place).filter(|_| numbered));
                parked.extend(key.filter(|_| numbered).cloned());
            }
            Body::Event(_) if key.is_some_and(|key| parked.contains(key)) => {
                letters.push(park::letter(&projector.group, item, true, park::BEHIND, park::BEHIND_REASON));
                left_out.push(place);
            }
            Body::Event(index) => apply.push(*index),
        }
    }
    Ok(Split { runs: runs(apply.into_iter()), letters, left_out })
}

fn event_of(item: &Item) -> Option<usize> {
    match item.body {
        Body::Event(index) => Some(index),
        _ => None,
    }
}

/// Ascending indices as ranges without gaps.
pub(super) fn runs(indices: impl Iterator<Item = usize>) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    for index in indices {
        match runs.last_mut() {
            Some(run) if run.end == index => run.end += 1,
            _ => runs.push(index..index + 1),
        }
    }
    runs
}

async fn apply_runs<E: Send + Sync>(
    projector: &Projector<E>,
    tx: &Transaction<'_>,
    events: &[Recorded<E>],
    runs: &[Range<usize>],
) -> Result<(), ApplyFailure> {
    for run in runs {
        handler::apply(projector, tx, &events[run.clone()]).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indices_gather_to_runs() {
        assert_eq!(runs([0, 1, 2, 5, 7, 8].into_iter()), vec![0..3, 5..6, 7..9]);
        assert!(runs(std::iter::empty()).is_empty());
    }
}
