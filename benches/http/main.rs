//! The HTTP API: requests a second, and how long each takes, held against the same server without Kafka.
//!
//! Interleaved in one run, since only ratios taken side by side mean anything: the reference
//! (`server.rs` says what it leaves out), 202 once Kafka has the command, the same with a processor
//! deciding beside, and 201 once it is decided. Each is measured under many connections, where
//! throughput is the question, and under few, where latency is. Client, servers and processor
//! share this process; Kafka and PostgreSQL the machine.
//!
//! `cargo bench --bench http`; needs KAFKA_BROKERS and DATABASE_URL, or starts services.
//! `THROUGHLINE_BENCH_REQUESTS` and `THROUGHLINE_BENCH_ROUNDS` scale it.

#[path = "../../tests/harness/mod.rs"]
mod harness;

mod server;

use std::time::Instant;

use harness::flood::Flood;
use harness::scale;
use server::Server;

/// Connections where throughput, and where latency is the question.
const MANY: usize = 64;
const FEW: usize = 4;

/// One round of one contestant.
#[derive(Clone, Copy)]
struct Figure {
    per_second: f64,
    p50_ms: f64,
    p99_ms: f64,
}

/// A contestant under so many connections.
struct Contestant {
    name: &'static str,
    connections: usize,
    figures: Vec<Figure>,
}

async fn measure(server: &Server, path: &'static str, status: u16, connections: usize, requests: usize) -> Figure {
    let flood = Flood { base: server.base.clone(), path, connections };
    let started = Instant::now();
    let sent = flood.count(requests).await;
    let seconds = started.elapsed().as_secs_f64();
    assert!(sent.iter().all(|one| one.reply.status == status), "an answer other than {status}");
    let mut took: Vec<f64> = sent.iter().map(|one| one.reply.took.as_secs_f64() * 1_000.0).collect();
    took.sort_by(f64::total_cmp);
    let at = |share: f64| took[((took.len() - 1) as f64 * share) as usize];
    Figure { per_second: requests as f64 / seconds, p50_ms: at(0.5), p99_ms: at(0.99) }
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let requests = scale("THROUGHLINE_BENCH_REQUESTS", 40_000);
    let rounds = scale("THROUGHLINE_BENCH_ROUNDS", 5);
    let (reference, alone, decided) =
        (Server::without_kafka().await, Server::alone().await, Server::with_processor().await);
    let calls: [(&str, &Server, &str, u16); 4] = [
        ("202, without Kafka", &reference, "/api/orders", 202),
        ("202, Kafka has it", &alone, "/api/orders", 202),
        ("202, decided beside", &decided, "/api/orders", 202),
        ("201, decided", &decided, "/api/orders/sync", 201),
    ];
    let mut contestants: Vec<Contestant> = [MANY, FEW]
        .into_iter()
        .flat_map(|connections| calls.map(|(name, ..)| Contestant { name, connections, figures: Vec::new() }))
        .collect();
    // The first round warms caches, connections and prepared statements, and is not counted.
    let mut sent_to_decided = 0;
    for round in 0..=rounds {
        eprintln!("round {round} of {rounds}: {requests} requests, a tenth where latency is the question");
        for (index, contestant) in contestants.iter_mut().enumerate() {
            let (name, server, path, status) = calls[index % calls.len()];
            let requests = if contestant.connections == MANY && status == 202 { requests } else { requests / 10 };
            let figure = measure(server, path, status, contestant.connections, requests).await;
            if std::ptr::eq(server, &decided) {
                // What is left to decide would disturb the next.
                sent_to_decided += requests;
                decided.decided(sent_to_decided).await;
            }
            eprintln!("  {:>2} connections, {name:<22}{:>8.0}/s", contestant.connections, figure.per_second);
            if round > 0 {
                contestant.figures.push(figure);
            }
        }
    }
    report(&contestants, calls.len());
}

fn report(contestants: &[Contestant], calls: usize) {
    let median = |contestant: &Contestant, pick: fn(&Figure) -> f64| {
        let mut values: Vec<f64> = contestant.figures.iter().map(pick).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    println!(
        "{:<14}{:<22}{:>12}{:>12}{:>10}{:>12}{:>10}{:>12}",
        "connections", "answer", "requests/s", "/ no Kafka", "p50 ms", "/ no Kafka", "p99 ms", "/ no Kafka"
    );
    for group in contestants.chunks(calls) {
        let picks: [fn(&Figure) -> f64; 3] =
            [|figure| figure.per_second, |figure| figure.p50_ms, |figure| figure.p99_ms];
        let reference = picks.map(|pick| median(&group[0], pick));
        for contestant in group {
            let [rate, p50, p99] = picks.map(|pick| median(contestant, pick));
            println!(
                "{:<14}{:<22}{rate:>12.0}{:>12.2}{p50:>10.2}{:>12.1}{p99:>10.2}{:>12.1}",
                contestant.connections,
                contestant.name,
                rate / reference[0],
                p50 / reference[1],
                p99 / reference[2]
            );
        }
    }
}
