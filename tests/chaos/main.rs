//! Everything fails under load, by a seeded plan, and an independent checker reads what is left.
//!
//! Real processes on a real Kafka and PostgreSQL of its own. The load writes a history of what it asked and was answered;
//! the fleet dies at named points, at random, stands still and is started again; the neighbours crash and are cut off.
//! Then everything is healed, has a deadline to drain, and is checked against the history, the topics and the tables.
//!
//! `CHAOS_SEED` repeats a plan, `CHAOS_SECONDS` and `CHAOS_COMMANDS` scale it.

#[path = "../harness/mod.rs"]
mod harness;
#[allow(dead_code, reason = "journeys use the rest of it")]
#[path = "../journeys/process.rs"]
mod process;

mod checker;
mod fleet;
mod history;
mod load;
mod model;
mod neighbours;
mod topics;

use std::time::{Duration, Instant};

use rand::SeedableRng as _;
use rand::rngs::StdRng;

use fleet::Fleet;
use harness::scale;
use load::Load;
use neighbours::Neighbours;

/// From healing to the last row.
const DRAIN_MAX: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_doubled_reordered_gapped_or_diverged() {
    let seed = scale("CHAOS_SEED", rand::random::<u32>() as usize) as u64;
    let span = Duration::from_secs(scale("CHAOS_SECONDS", 300) as u64);
    let commands = scale("CHAOS_COMMANDS", 50_000);
    println!("CHAOS_SEED={seed} CHAOS_SECONDS={} CHAOS_COMMANDS={commands}", span.as_secs());
    let mut random = StdRng::seed_from_u64(seed);

    let neighbours = Neighbours::begin().await;
    let fleet = Fleet::start(&neighbours, &mut random);
    let api = fleet.api().await;
    let load = Load::start(&neighbours, api, &mut random, commands, span);
    neighbours.trouble(&fleet, &mut random, span).await;
    let history = load.end().await;
    fleet.heal().await;
    neighbours.heal().await;

    let healed = Instant::now();
    checker::drained(&neighbours, DRAIN_MAX).await;
    let drained = healed.elapsed();
    let hit = fleet.hit();
    let mut verdict = checker::check(&neighbours, &history).await;
    verdict.extend(fleet.missed().into_iter().map(|site| format!("I14: nobody died at {site}")));
    for line in history.table().into_iter().chain(hit.table()).chain(neighbours.table()) {
        println!("{line}");
    }
    println!("drained {:.1} s after healing", drained.as_secs_f64());
    assert!(verdict.is_empty(), "CHAOS_SEED={seed}: {} broken:\n{}", verdict.len(), verdict.join("\n"));
    println!("nothing lost, doubled, reordered, gapped or diverged");
    fleet.end().await;
    neighbours.end().await;
}
