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

/// How much of it.
#[derive(Debug, Clone, Copy)]
struct Scale {
    seed: u64,
    span: Duration,
    commands: usize,
    /// A deliberate bug of ours.
    sabotage: Option<&'static str>,
}

/// One run; what is broken.
async fn run(Scale { seed, span, commands, sabotage }: Scale) -> Vec<String> {
    println!("CHAOS_SEED={seed} CHAOS_SECONDS={} CHAOS_COMMANDS={commands}", span.as_secs());
    let mut random = StdRng::seed_from_u64(seed);
    let neighbours = Neighbours::begin().await;
    let fleet = Fleet::start(&neighbours, &mut random, sabotage);
    let api = fleet.api().await;
    let load = Load::start(&neighbours, api, &mut random, commands, span);
    neighbours.trouble(&fleet, &mut random, span, sabotage.is_some()).await;
    let history = load.end().await;
    fleet.heal().await;
    neighbours.heal().await;

    let healed = Instant::now();
    let mut broken: Vec<String> = checker::drained(&neighbours, DRAIN_MAX).await.err().into_iter().collect();
    println!("drained {:.1} s after healing", healed.elapsed().as_secs_f64());
    broken.extend(checker::check(&neighbours, &history).await);
    let hit = fleet.hit();
    for line in history.table().into_iter().chain(hit.table()).chain(neighbours.table()) {
        println!("{line}");
    }
    if sabotage.is_none() {
        let sites = fleet.missed().into_iter().chain(neighbours.missed());
        broken.extend(sites.map(|site| format!("I14: nobody died at {site}")));
        broken.extend(fleet.fell());
    }
    fleet.end().await;
    neighbours.end().await;
    broken
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_doubled_reordered_gapped_or_diverged() {
    let seed = scale("CHAOS_SEED", rand::random::<u32>() as usize) as u64;
    let span = Duration::from_secs(scale("CHAOS_SECONDS", 300) as u64);
    let broken = run(Scale { seed, span, commands: scale("CHAOS_COMMANDS", 50_000), sabotage: None }).await;
    assert!(broken.is_empty(), "CHAOS_SEED={seed}: {} broken:\n{}", broken.len(), broken.join("\n"));
    println!("nothing lost, doubled, reordered, gapped or diverged");
}

/// Deliberate bugs, and what each does.
const SABOTAGE: [(&str, &str); 12] = [
    ("no_dedupe", "a command that comes again is decided again"),
    ("event_dropped", "a command in fifty is accepted, and nothing happens"),
    ("event_id_without_stream", "one command id in two orders makes two events of one id"),
    ("outbox_row_dropped", "an event in a hundred is committed without its outbox row"),
    ("outcome_dropped", "an outcome in fifty is not written"),
    ("poison_dropped", "what nobody can read is passed over and not kept"),
    ("mark_before_acknowledgement", "what is sent, and one more, counts as published"),
    ("checkpoint_apart", "rows and their checkpoint are two transactions"),
    ("event_passed_over", "an event in fifty is not applied to read tables"),
    ("acknowledged_before_kafka", "202 is answered before Kafka has the command"),
    ("token_ignored", "a read does not wait for its token, and says that it did"),
    ("deadline_twice", "a deadline that fired stays set"),
];

/// The checker is checked: each bug is caught, by the promises that the table names.
#[tokio::test(flavor = "multi_thread")]
async fn each_deliberate_bug_is_caught() {
    let span = Duration::from_secs(scale("SABOTAGE_SECONDS", 40) as u64);
    let only = std::env::var("SABOTAGE_ONLY").ok();
    let mut missed = Vec::new();
    let mut table = Vec::new();
    for (number, (name, what)) in SABOTAGE.into_iter().enumerate() {
        if only.as_ref().is_some_and(|only| only != name) {
            continue;
        }
        println!("sabotage: {name}");
        let seed = scale("CHAOS_SEED", 1_000) as u64 + number as u64;
        let broken = run(Scale { seed, span, commands: 4_000, sabotage: Some(name) }).await;
        broken.iter().take(8).for_each(|line| println!("  {}", line.chars().take(300).collect::<String>()));
        let promises: std::collections::BTreeSet<&str> =
            broken.iter().filter_map(|line| line.split(':').next()).collect();
        let promises = promises.into_iter().collect::<Vec<_>>().join(" ");
        if promises.is_empty() {
            missed.push(name);
        }
        table.push(format!("| {name} | {what} | {promises} |"));
    }
    println!("| bug | what it does | caught by |\n|---|---|---|");
    table.iter().for_each(|row| println!("{row}"));
    assert!(missed.is_empty(), "not caught: {missed:?}");
}
