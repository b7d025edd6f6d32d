//! Commands a second of the processor, held against what the machine can do at all.
//!
//! Five ways to the same rows (events, outbox, outcomes, counters), interleaved in one run, since
//! only ratios taken side by side mean anything: appends by sets with nothing else, from one
//! connection and from as many as the processor has workers; one transaction a command; the path by
//! hand from Kafka (one connection, no fencing, no look-ups); and the processor.
//!
//! `cargo bench --bench processor`; needs KAFKA_BROKERS and DATABASE_URL, or starts services.
//! `THROUGHLINE_BENCH_COMMANDS` and `THROUGHLINE_BENCH_ROUNDS` scale it; then the memory of a processor
//! that meets `THROUGHLINE_BENCH_AGGREGATES` distinct aggregates.

#[path = "../../tests/harness/mod.rs"]
mod harness;

mod by_hand;
mod figures;
mod memory;
mod ours;
mod workload;

use figures::{Figure, Machine};
use harness::Harness;
use throughline::settings::ProcessorSettings;
use workload::Workload;

fn setting(name: &str, default: usize) -> usize {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// One contestant: its name, and the figures of its rounds.
struct Contestant {
    name: String,
    figures: Vec<Figure>,
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let commands = setting("THROUGHLINE_BENCH_COMMANDS", 60_000);
    let rounds = setting("THROUGHLINE_BENCH_ROUNDS", 3);
    let workers = setting("THROUGHLINE_BENCH_WORKERS", ProcessorSettings::default().workers);
    let names = [
        "sets, no Kafka, no domain".to_owned(),
        format!("the same, {workers} connections"),
        "one transaction a command".to_owned(),
        "by hand, from Kafka".to_owned(),
        format!("processor, {workers} workers"),
    ];
    let mut contestants = names.map(|name| Contestant { name, figures: Vec::new() });
    for round in 1..=rounds {
        eprintln!("round {round} of {rounds}: {commands} commands");
        let workload = Workload::new(commands);
        for (index, contestant) in contestants.iter_mut().enumerate() {
            let harness = Harness::new(&format!("bench_{index}")).await;
            let machine = Machine::new(&harness).await;
            let figure = match index {
                0 => by_hand::sets(&harness, &workload, &machine, 1).await,
                1 => by_hand::sets(&harness, &workload, &machine, workers).await,
                2 => by_hand::one_by_one(&harness, &workload, &machine).await,
                3 => by_hand::from_kafka(&harness, &workload, &machine).await,
                _ => ours::processor(&harness, &workload, &machine, workers).await,
            };
            eprintln!("  {:<28}{:>10.0} commands/s", contestant.name, figure.per_second);
            contestant.figures.push(figure);
        }
    }
    report(&contestants);
    memory::measure(setting("THROUGHLINE_BENCH_AGGREGATES", 1_000_000)).await;
}

fn report(contestants: &[Contestant; 5]) {
    let median = |contestant: &Contestant, pick: fn(&Figure) -> f64| {
        let mut values: Vec<f64> = contestant.figures.iter().map(pick).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    let ours = median(&contestants[4], |figure| figure.per_second);
    println!("{:<28}{:>12}{:>14}{:>18}", "", "commands/s", "ours / this", "CPU s / 100,000");
    for contestant in contestants {
        let rate = median(contestant, |figure| figure.per_second);
        let cpu = median(contestant, |figure| figure.cpu_per_100_000);
        println!("{:<28}{rate:>12.0}{:>14.2}{cpu:>18.1}", contestant.name, ours / rate);
    }
    println!("CPU: this process and its database sessions; Kafka's own is not in it.");
    println!("peak resident memory of this process: {:.0} MB", figures::peak_megabytes("self"));
}
