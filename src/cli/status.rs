//! `throughline status`: one screen for the night. Exit code 3 when something needs a person.

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};

use super::{FOUND_FALSE, Output, Program};
use crate::app::App;
use crate::engine::ReadModel;
use crate::health::PartitionState;
use crate::process::AnyProcess;
use crate::settings::TopicSettings;
use crate::status::{self, Live, Manager, PAUSED, PartitionRow, Projected, Report, Subject, UNKNOWN};

/// Arguments of `status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Work that waits, and does not move for this long, has stalled
    #[arg(long, value_name = "SECONDS", default_value_t = 15)]
    stalled_after: u64,
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

/// Asks everybody, prints what they said, and tells by the exit code whether a person is needed.
pub async fn run(args: StatusArgs, program: &Program<'_>) -> anyhow::Result<ExitCode> {
    let (contexts, settings) = (program.all()?, program.settings);
    let projections = contexts.iter().flat_map(|context| {
        let topic = context.names(&settings.topics).events();
        let projected = move |model: ReadModel| Projected {
            name: model.name.to_owned(),
            topic: topic.clone(),
            version: model.version,
        };
        context.read_models().into_iter().map(projected)
    });
    let report = status::report(&Subject {
        settings: settings.clone(),
        projections: projections.collect(),
        contexts: contexts.iter().map(|context| context.names(&settings.topics)).collect(),
        managers: program.app.processes().iter().map(|one| manager(one.as_ref(), &settings.topics)).collect(),
        stalled_after: Duration::from_secs(args.stalled_after),
    })
    .await;
    let text = match args.output {
        Output::Table => screen(&report, program.app),
        Output::Json => format!("{}\n", serde_json::to_string_pretty(&report)?),
        Output::Ndjson => format!("{}\n", serde_json::to_string(&report)?),
    };
    // A reader that went away ends the printing without an error.
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
    Ok(if report.ok { ExitCode::SUCCESS } else { ExitCode::from(FOUND_FALSE) })
}

fn manager(process: &dyn AnyProcess, settings: &TopicSettings) -> Manager {
    Manager { name: process.name().to_owned(), topics: process.topics(settings).into_iter().collect() }
}

fn screen(report: &Report, app: &App) -> String {
    let mut text = String::new();
    let mut section = |columns: &[&str], rows: Vec<Value>| {
        if !rows.is_empty() {
            text.push_str(&super::output::table(columns, &rows));
            text.push('\n');
        }
    };
    let process = |live: &Live, seen: &str| {
        let owns: Vec<String> = live.owns.iter().map(|(name, count)| format!("{name} {count}")).collect();
        json!({"process": format!("{}:{}", live.host, live.pid), "seen": seen, "roles": roles(app, &live.roles),
               "owns": if owns.is_empty() { Value::Null } else { owns.join(", ").into() }, "admin": live.admin,
               "version": live.version})
    };
    let mut processes: Vec<Value> = report.processes.iter().map(|live| process(live, "lives")).collect();
    let lost = |live: &Live| process(live, &format!("lost since {:.0}", live.last_seen));
    processes.extend(report.lost.iter().map(lost));
    section(&["process", "seen", "roles", "owns", "admin", "version"], processes);
    let mut queues: Vec<Value> = report
        .waiting
        .iter()
        .map(|lane| json!({"waits": format!("commands, {} ({})", lane.lane, lane.topic), "records": lane.commands, "oldest": age(lane.oldest_seconds)}))
        .collect();
    queues.extend(
        report
            .outbox
            .iter()
            .map(|outbox| json!({"waits": "outbox", "records": outbox.records, "oldest": age(outbox.oldest_seconds)})),
    );
    queues.extend(report.projections.iter().map(|row| {
        let oldest = age((row.lag_events > 0).then_some(row.lag_seconds));
        json!({"waits": format!("projection {}", row.name), "records": row.lag_events, "oldest": oldest, "state": row.state})
    }));
    queues.extend(report.process_managers.iter().map(|row| {
        let oldest = age((row.lag_events > 0).then_some(row.lag_seconds));
        let state = if row.stuck > 0 { format!("{}, {} stuck", row.state, row.stuck) } else { row.state.clone() };
        json!({"waits": format!("process {}", row.name), "records": row.lag_events, "oldest": oldest, "state": state})
    }));
    queues.extend(report.dead_letters.map(|count| json!({"waits": "dead letters", "records": count})));
    section(&["waits", "records", "oldest", "state"], queues);
    section(&["loop", "partition", "state", "since", "owner", "waits"], notable(&report.partitions));
    if report.problems.is_empty() {
        text.push_str("nothing needs a person\n");
    }
    for (number, problem) in report.problems.iter().enumerate() {
        text.push_str(&format!("{}. {}\n   cure: {}\n", number + 1, problem.what, problem.cure));
    }
    text
}

/// Whatever is not simply running. Where a whole topic is alike, one line tells it.
fn notable(partitions: &[PartitionRow]) -> Vec<Value> {
    let running = PartitionState::Running.name();
    let mut rows = Vec::new();
    for alike in partitions.chunk_by(|a, b| (&a.loop_name, &a.topic, &a.state) == (&b.loop_name, &b.topic, &b.state)) {
        let first = &alike[0];
        if [running, PAUSED, UNKNOWN].contains(&first.state.as_str()) {
            continue;
        }
        let last = &alike[alike.len() - 1];
        let range = match alike.len() {
            1 => first.partition.to_string(),
            _ => format!("{}-{}", first.partition, last.partition),
        };
        let since = alike.iter().filter_map(|row| row.since).min().map(|at| format!("{at:.0}"));
        let waits: Option<i64> = alike.iter().map(|row| row.waiting).sum();
        rows.push(
            json!({"loop": first.loop_name, "partition": format!("{}/{range}", first.topic), "state": first.state,
                         "since": since, "owner": first.owner, "waits": waits}),
        );
    }
    rows
}

/// `projections` for all of them, as `throughline run` takes it.
fn roles(app: &App, roles: &[String]) -> String {
    let all: Vec<String> = app.read_models().iter().map(|model| format!("projection:{}", model.name)).collect();
    if !all.iter().all(|one| roles.contains(one)) {
        return roles.join(" ");
    }
    let others = roles.iter().filter(|role| !all.contains(role)).map(String::as_str);
    others.chain(["projections"]).collect::<Vec<_>>().join(" ")
}

fn age(seconds: Option<f64>) -> Value {
    seconds.map_or(Value::Null, |seconds| format!("{seconds:.1} s").into())
}
