//! A random walk through what can happen to a projection: after each step the rows of every generation equal
//! an independent fold, and the letters say what they should.
//!
//! `WALK_SEED=n` walks one seed alone; `THROUGHLINE_WALK_STEPS=n` walks on, seed by seed, until that many steps
//! are done. A failure prints its seed and the steps that led there. No group joins and no topic is read:
//! claims and batches are the loop's own (`projection::Driver`), on a PostgreSQL that need not keep anything.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;

use super::scenario::Dice;
use super::walk_steps::Walk;

/// Seeds of a run without further wishes.
const SEEDS: u64 = 200;
/// Steps of one seed.
const STEPS: usize = 30;
/// Seeds walked at a time, each in a database of its own.
const WALKERS: usize = 3;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Walks one seed. Returns the steps taken, or what went wrong.
async fn walk(walk: &mut Walk, seed: u64) -> Result<usize, String> {
    let mut dice = Dice::new(seed);
    walk.begin(seed).await;
    for _ in 0..STEPS {
        let outcome = std::panic::AssertUnwindSafe(walk.step(&mut dice)).catch_unwind().await;
        let fault = match outcome {
            Ok(()) => walk.difference().await,
            Err(panic) => {
                let text = panic.downcast_ref::<String>().cloned();
                Some(text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string)).unwrap_or_default())
            }
        };
        if let Some(fault) = fault {
            return Err(format!("WALK_SEED={seed}\n{}\n{fault}", walk.taken.join("\n")));
        }
    }
    Ok(STEPS)
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_equal_the_fold_after_every_step_of_a_random_walk() {
    let started = Instant::now();
    let (only, wanted) = (number("WALK_SEED"), number("THROUGHLINE_WALK_STEPS"));
    let (first, end) = match (only, wanted) {
        (Some(seed), None) => (seed, seed + 1),
        (seed, Some(steps)) => (seed.unwrap_or(1), seed.unwrap_or(1) + steps.div_ceil(STEPS as u64)),
        (None, None) => (1, 1 + SEEDS),
    };
    let next = Arc::new(AtomicU64::new(first));
    let mut walkers = tokio::task::JoinSet::new();
    for _ in 0..WALKERS.min((end - first) as usize) {
        let next = next.clone();
        walkers.spawn(async move {
            let mut world = Walk::new().await;
            let mut steps = 0;
            loop {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed >= end {
                    return Ok::<_, String>((steps, world.kinds));
                }
                steps += walk(&mut world, seed).await?;
            }
        });
    }
    let (mut steps, mut kinds) = (0, BTreeSet::new());
    while let Some(outcome) = walkers.join_next().await {
        match outcome.expect("a walker does not panic") {
            Ok((taken, seen)) => {
                steps += taken;
                kinds.extend(seen);
            }
            Err(fault) => panic!("{fault}"),
        }
    }
    eprintln!("{steps} steps of {} seeds in {:?}: {kinds:?}", end - first, started.elapsed());
    if only.is_none() {
        assert!(kinds.len() >= super::walk_steps::KINDS, "some steps were never taken: {kinds:?}");
    }
    assert!(started.elapsed() < Duration::from_secs(3_600));
}
