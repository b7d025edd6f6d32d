//! Latencies of each stage, from the process's own histograms.

use std::collections::BTreeMap;

/// The stages, and the histogram that tells of each.
const STAGES: [(&str, &str, &str); 3] = [
    ("decided", "throughline_command_decided_seconds", "from the command's timestamp to the commit"),
    ("published", "throughline_relay_publish_seconds", "from the commit to Kafka's acknowledgement"),
    ("projected", "throughline_projection_delay_seconds", "from the commit to the read table's commit"),
];

/// Prints a line a stage: median and 99th percentile. `metrics` is in Prometheus' text format.
pub fn print(metrics: &str) {
    println!("\nLatencies while the whole book was waiting in line (up to the bound of the histogram's bucket)");
    for (stage, histogram, meaning) in STAGES {
        let buckets = buckets(metrics, histogram);
        println!("  {stage:<10} p50 {:>9}   p99 {:>9}   {meaning}", quantile(&buckets, 0.5), quantile(&buckets, 0.99));
    }
}

/// Counts up to each bound, in microseconds, over all label sets.
fn buckets(metrics: &str, histogram: &str) -> BTreeMap<u64, u64> {
    let prefix = format!("{histogram}_bucket{{");
    let mut counts = BTreeMap::new();
    for line in metrics.lines().filter_map(|line| line.strip_prefix(&prefix)) {
        let Some((labels, count)) = line.rsplit_once(' ') else { continue };
        let bound = labels.split("le=\"").nth(1).and_then(|rest| rest.split('"').next()).unwrap_or_default();
        let microseconds = bound.parse::<f64>().map_or(u64::MAX, |seconds| (seconds * 1e6) as u64);
        *counts.entry(microseconds).or_default() += count.parse::<u64>().unwrap_or_default();
    }
    counts
}

/// The first bound that holds that share of all.
fn quantile(buckets: &BTreeMap<u64, u64>, share: f64) -> String {
    let all = buckets.values().last().copied().unwrap_or_default() as f64;
    match buckets.iter().find(|(_, count)| all > 0.0 && **count as f64 >= all * share) {
        None => "-".to_owned(),
        Some((&u64::MAX, _)) => "> 10 s".to_owned(),
        Some((bound, _)) => format!("{} ms", *bound as f64 / 1e3),
    }
}
