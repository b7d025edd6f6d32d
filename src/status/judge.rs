//! What needs a person, by rules that are written here and nowhere else. Pure.
//!
//! Lag that merely exists is no problem: it is what queues are for. Lag that cannot shrink is: nobody owns the
//! partition, it stands, or its oldest waits for longer than [`Subject::stalled_after`] while nothing moved for as
//! long. A paused projection does what it was told to. Dead letters are kept for whoever has the time.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Serialize;

use super::{KafkaView, PAUSED, PartitionRow, Report, StoreView, Subject, UNOWNED};
use crate::health::PartitionState;
use crate::kafka::topics::TopicNames;

/// The loop of the commands topics, as it names itself.
pub(super) const PROCESSOR: &str = "processor";
/// The loop of the destination topics.
pub(super) const RELAY: &str = "relay";
/// The loop that proves the events topics.
pub(super) const AUDIT: &str = "audit";
/// Partitions that one line names, at most.
const NAMED_MAX: usize = 6;
/// A claim that is not granted for longer than this needs somebody to look.
const PENDING_MAX_SECONDS: i64 = 10;

/// Something that needs a person, and what that person can do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    pub what: String,
    pub cure: String,
}

/// The loop of a process manager, as it names itself.
pub(super) fn loop_of_manager(name: &str) -> String {
    format!("process {name}")
}

/// The loop of a projection, as it names itself.
pub(super) fn loop_of(projection: &str) -> String {
    format!("projection {projection}")
}

/// What does not answer, for people.
pub(super) fn away(
    subject: &Subject,
    store_away: Option<&str>,
    store: Option<&StoreView>,
    cluster: &KafkaView,
) -> Vec<String> {
    let mut away = Vec::new();
    away.extend(store_away.map(|reason| format!("PostgreSQL: {reason}")));
    if store.is_some_and(|store| store.read_only) {
        away.push("PostgreSQL: it takes no writes (a standby, or default_transaction_read_only)".to_owned());
    }
    let brokers = &subject.settings.kafka.brokers;
    away.extend(cluster.away.iter().map(|reason| format!("Kafka: no broker of {brokers} answers: {reason}")));
    away.extend(
        cluster.silent.iter().map(|(broker, reason)| format!("Kafka: broker {broker} does not answer: {reason}")),
    );
    away
}

/// Everything that needs a person, the gravest first.
pub(super) fn problems(
    subject: &Subject,
    report: &Report,
    store: Option<&StoreView>,
    cluster: &KafkaView,
) -> Vec<Problem> {
    let mut problems: Vec<Problem> = report.away.iter().map(|what| missing(what)).collect();
    problems.extend(topics(cluster));
    // Without PostgreSQL, or where it takes no heartbeats, nobody knows who lives.
    if let Some(store) = store {
        if !store.read_only {
            problems.extend(roles(subject, report, store));
        }
        problems.extend(stopped(report));
        problems.extend(pending(report));
        problems.extend(unowned(report, store).filter(|_| !store.read_only));
        problems.extend(stalled(subject, report));
    }
    problems
}

fn problem(what: impl Into<String>, cure: impl Into<String>) -> Problem {
    Problem { what: what.into(), cure: cure.into() }
}

fn missing(what: &str) -> Problem {
    let cure = match what {
        _ if what.contains("run `throughline db apply`") => "run `throughline db apply`",
        _ if what.starts_with("PostgreSQL: it takes no writes") => {
            "point DATABASE_URL at the primary, or let it take writes again; everything goes on by itself then"
        }
        _ if what.starts_with("PostgreSQL") => {
            "start PostgreSQL, or check DATABASE_URL; everything goes on by itself then"
        }
        _ => "start the broker, or wake it, or check KAFKA_BROKERS; everything goes on by itself then",
    };
    problem(what, cure)
}

fn topics(cluster: &KafkaView) -> Vec<Problem> {
    let mut problems = Vec::new();
    if !cluster.missing_topics.is_empty() {
        let what = format!("topics are missing: {}", cluster.missing_topics.join(", "));
        problems.push(problem(what, "run `throughline topics apply`, or check topics.prefix"));
    }
    if !cluster.leaderless.is_empty() {
        let what = format!("partitions have no leader: {}", named(cluster.leaderless.iter()));
        problems.push(problem(what, "start the brokers that hold them; Kafka's kafka-topics --describe names them"));
    }
    problems.extend(cluster.unknown.iter().map(|reason| {
        let cure = "look at the brokers; `throughline topics check` asks for more";
        problem(format!("it is not known how many commands wait: {reason}"), cure)
    }));
    problems
}

fn roles(subject: &Subject, report: &Report, store: &StoreView) -> Vec<Problem> {
    if report.processes.is_empty() {
        return vec![problem(
            "no process lives: nothing is decided, published or projected",
            "run `throughline run`, or the roles as processes of their own",
        )];
    }
    let mut problems = Vec::new();
    let lives = |role: &str| report.processes.iter().any(|process| process.roles.iter().any(|one| one == role));
    for context in subject.contexts.iter().map(TopicNames::context) {
        let role = format!("processor:{context}");
        if !lives(PROCESSOR) && !lives(&role) {
            let what = format!("no process runs the {PROCESSOR} of {context}: no command of it is decided");
            problems.push(problem(what, format!("run `throughline run {role}`")));
        }
    }
    if !lives(RELAY) {
        let what = format!("no process runs the {RELAY}: nothing is published");
        problems.push(problem(what, format!("run `throughline run {RELAY}`")));
    }
    for view in &store.managers {
        let name = &view.name;
        match view.paused {
            None => problems.push(problem(format!("process {name} is not installed"), "run `throughline db apply`")),
            Some(false) if !lives(&format!("process:{name}")) => problems.push(problem(
                format!("no process runs process {name}: it sends nothing, and its deadlines do not fire"),
                format!(
                    "run `throughline run process:{name}`, or `throughline process pause {name}` where that is meant"
                ),
            )),
            Some(_) => {}
        }
    }
    for projection in &subject.projections {
        let Some(view) = store.projections.iter().find(|view| view.name == projection.name) else { continue };
        let name = &projection.name;
        match view.version {
            None => problems.push(problem(format!("projection {name} is not installed"), "run `throughline db apply`")),
            Some(version) if version != projection.version => problems.push(problem(
                format!("projection {name} waits: its tables are of version {version}, this program makes {}", projection.version),
                format!("run `throughline projection rebuild {name}`"),
            )),
            Some(_) if !view.paused && !lives(&format!("projection:{name}")) => problems.push(problem(
                format!("no process runs projection {name}: its tables stand still"),
                format!("run `throughline run projection:{name}`, or `throughline projection pause {name}` where that is meant"),
            )),
            Some(_) => {}
        }
    }
    problems
}

/// Partitions that stand, one problem a loop and reason.
fn stopped(report: &Report) -> Vec<Problem> {
    let mut groups: BTreeMap<(&str, &str), Vec<&PartitionRow>> = BTreeMap::new();
    for row in report.partitions.iter().filter(|row| row.state == PartitionState::Standing.name()) {
        groups.entry((&row.loop_name, row.reason.as_deref().unwrap_or_default())).or_default().push(row);
    }
    let told = |((loop_name, reason), rows): ((&str, &str), Vec<&PartitionRow>)| {
        let since =
            rows.iter().filter_map(|row| row.since).min().map(|at| format!(" since {at:.0}")).unwrap_or_default();
        let what = format!("{loop_name} stands at {}{since}: {reason}", places(&rows));
        problem(what, rows[0].cure.clone().unwrap_or_else(|| "none needed: it goes on by itself".into()))
    };
    groups.into_iter().map(told).collect()
}

fn pending(report: &Report) -> Vec<Problem> {
    let now = Timestamp::now();
    let is_late = |row: &&PartitionRow| {
        row.state == PartitionState::Pending.name()
            && row.since.is_some_and(|since| since.duration_until(now).as_secs() > PENDING_MAX_SECONDS)
    };
    let told = |loop_name: &str, rows: &[&PartitionRow]| {
        let reason = rows[0].reason.as_deref().unwrap_or("no answer so far");
        let what = format!("{loop_name} waits for its claim of {}: {reason}", places(rows));
        problem(what, format!("look at the log of {}; it goes on by itself once it is granted", owners(rows)))
    };
    by_loop(report, is_late).into_iter().map(|(loop_name, rows)| told(loop_name, &rows)).collect()
}

/// Work that nobody has, of a loop that somebody runs.
fn unowned<'a>(report: &'a Report, store: &'a StoreView) -> impl Iterator<Item = Problem> + 'a {
    let waits = |row: &&PartitionRow| row.state == UNOWNED && row.waiting.is_some_and(|waiting| waiting > 0);
    by_loop(report, waits).into_iter().filter_map(|(loop_name, rows)| {
        let role = loop_name.replacen(' ', ":", 1);
        let runs = |one: &String| *one == role || one.strip_prefix(&role).is_some_and(|rest| rest.starts_with(':'));
        // Where nobody runs it at all, that was told.
        store.processes.iter().find(|process| process.lives && process.roles.iter().any(runs))?;
        let waiting: i64 = rows.iter().filter_map(|row| row.waiting).sum();
        let what = format!("{loop_name}: nobody has {}, where {waiting} wait", places(&rows));
        let cure = "another process takes them over within kafka.session_timeout_ms or relay.lease_ms; if it lasts, look \
                    at the `/readyz?verbose` of those that run it";
        Some(problem(what, cure))
    })
}

fn stalled(subject: &Subject, report: &Report) -> Vec<Problem> {
    let most = subject.stalled_after.as_secs_f64();
    let is_stalled = |row: &&PartitionRow| {
        let stands = [PartitionState::Standing.name(), UNOWNED, PAUSED].contains(&row.state.as_str());
        let late = |seconds: Option<f64>| seconds.is_some_and(|seconds| seconds > most);
        // Read from both clocks: a producer's, which dates a record, and PostgreSQL's.
        !stands && row.waiting.is_some_and(|waiting| waiting > 0) && late(row.oldest_seconds) && late(row.idle_seconds)
    };
    let told = |(loop_name, rows): (&str, Vec<&PartitionRow>)| {
        let waiting: i64 = rows.iter().filter_map(|row| row.waiting).sum();
        let what = format!("{loop_name} has not moved {} for {most:.0} s, where {waiting} wait", places(&rows));
        problem(what, format!("look at the log and the `/readyz?verbose` of {}", owners(&rows)))
    };
    by_loop(report, is_stalled).into_iter().map(told).collect()
}

fn by_loop(report: &Report, wanted: impl Fn(&&PartitionRow) -> bool) -> BTreeMap<&str, Vec<&PartitionRow>> {
    let mut groups: BTreeMap<&str, Vec<&PartitionRow>> = BTreeMap::new();
    for row in report.partitions.iter().filter(wanted) {
        groups.entry(&row.loop_name).or_default().push(row);
    }
    groups
}

fn places(rows: &[&PartitionRow]) -> String {
    let places: Vec<(String, i32)> = rows.iter().map(|row| (row.topic.clone(), row.partition)).collect();
    named(places.iter())
}

fn owners(rows: &[&PartitionRow]) -> String {
    let mut owners: Vec<&str> = rows.iter().filter_map(|row| row.owner.as_deref()).collect();
    owners.sort_unstable();
    owners.dedup();
    owners.join(", ")
}

fn named<'a>(places: impl ExactSizeIterator<Item = &'a (String, i32)>) -> String {
    let more = places.len().saturating_sub(NAMED_MAX);
    let named: Vec<String> = places.take(NAMED_MAX).map(|(topic, partition)| format!("{topic}/{partition}")).collect();
    match more {
        0 => named.join(", "),
        more => format!("{} and {more} more", named.join(", ")),
    }
}
