//! `throughline projection list|pause|resume|reset|rebuild|rollback`.

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::bail;
use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::{FOUND_FALSE, INTERRUPTED, Output, Program};
use crate::app::install;
use crate::projection::{self, AnyProjector, Progress, RebuildMode, RebuildReport, ResetTarget, state};
use crate::settings::Settings;
use crate::store::{DatabaseRole, StoreError, connect};

/// Arguments of `projection`.
#[derive(Debug, Args)]
pub struct ProjectionArgs {
    #[command(subcommand)]
    verb: ProjectionVerb,
    #[arg(long, global = true, value_enum, default_value_t)]
    output: Output,
}

#[derive(Debug, Subcommand)]
enum ProjectionVerb {
    /// State, version and lag of every projection, in events and in seconds
    List {
        /// One row a partition
        #[arg(long)]
        partitions: bool,
    },
    /// Stop consuming; the group is empty then, so that Kafka's own tool may reset it
    Pause {
        #[command(flatten)]
        name: Name,
    },
    /// Go on
    Resume {
        #[command(flatten)]
        name: Name,
    },
    /// Go back or forward on the topic; rows are cleared and refilled, or skipped
    Reset(ResetArgs),
    /// Fill new tables beside the live ones from the event store, compare, and switch
    Rebuild {
        #[command(flatten)]
        name: Name,
        /// Switch although the tables differ without a known reason
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        consent: Consent,
    },
    /// Make the tables before the last rebuild live again
    Rollback {
        #[command(flatten)]
        name: Name,
        #[command(flatten)]
        consent: Consent,
    },
}

#[derive(Debug, Args)]
struct Name {
    /// The projection, as `projection list` names it
    #[arg(value_name = "NAME")]
    name: String,
}

#[derive(Debug, Args)]
pub(super) struct Consent {
    /// Tell what would happen, and change nothing
    #[arg(long)]
    pub(super) dry_run: bool,
    /// Do not ask
    #[arg(long)]
    pub(super) yes: bool,
}

#[derive(Debug, Args)]
struct ResetArgs {
    #[command(flatten)]
    name: Name,
    /// To the first record of every partition: the whole replay
    #[arg(long, conflicts_with = "to_offset", required_unless_present = "to_offset")]
    to_earliest: bool,
    /// One partition to one offset; may be given several times
    #[arg(long, value_name = "PARTITION:OFFSET", value_parser = parse_offset)]
    to_offset: Vec<(i32, i64)>,
    #[command(flatten)]
    consent: Consent,
}

fn parse_offset(text: &str) -> Result<(i32, i64), String> {
    let parse = || {
        let (partition, offset) = text.split_once(':')?;
        Some((partition.parse().ok()?, offset.parse().ok().filter(|offset| *offset >= 0)?))
    };
    parse().ok_or_else(|| "expected PARTITION:OFFSET, such as 3:1200".to_owned())
}

impl Consent {
    /// Asks on a terminal; elsewhere `--yes` is required. Whether to go on.
    pub(super) fn given(&self, what: &str) -> anyhow::Result<bool> {
        if self.yes || self.dry_run {
            return Ok(true);
        }
        if !std::io::stdin().is_terminal() {
            bail!("{what}; say --yes to do it, or --dry-run to see more");
        }
        eprint!("{what}. Go on? [y/N] ");
        std::io::stderr().flush()?;
        let mut answer = String::new();
        std::io::stdin().read_line(&mut answer)?;
        Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
    }
}

/// Every projection of the contexts that are meant. A context that this store does not have yet is left out, with a
/// word, as long as it has another.
pub(super) async fn projectors(program: &Program<'_>) -> anyhow::Result<Vec<Box<dyn AnyProjector>>> {
    let (mut projectors, mut missing) = (Vec::new(), Vec::new());
    for context in program.all()? {
        match install::with_stored_partitions(context, program.settings).await {
            Ok(settings) => {
                let settings = Arc::new(settings);
                projectors.extend(install::open(context, &settings).await?.projectors(&settings));
            }
            Err(error @ StoreError::UnknownTopic(_)) => missing.push((context.name(), error)),
            Err(error) => return Err(error.into()),
        }
    }
    if projectors.is_empty()
        && let Some((_, error)) = missing.pop()
    {
        return Err(error.into());
    }
    for (context, error) in missing {
        eprintln!("{context} is left out: {error}");
    }
    Ok(projectors)
}

async fn find(program: &Program<'_>, name: &Name) -> anyhow::Result<Box<dyn AnyProjector>> {
    let mut projectors = projectors(program).await?;
    match projectors.iter().position(|one| one.name() == name.name) {
        Some(index) => Ok(projectors.swap_remove(index)),
        None => {
            let names: Vec<_> = projectors.iter().map(|one| one.name()).collect();
            bail!("no projection is named `{}`: choose one of {}", name.name, names.join(", "))
        }
    }
}

/// Runs one verb.
pub async fn run(args: ProjectionArgs, program: &Program<'_>) -> anyhow::Result<ExitCode> {
    let output = args.output;
    match args.verb {
        ProjectionVerb::List { partitions } => list(output, partitions, program).await,
        ProjectionVerb::Pause { name } => pause(program, &name, true).await,
        ProjectionVerb::Resume { name } => pause(program, &name, false).await,
        ProjectionVerb::Reset(args) => reset(output, args, program).await,
        ProjectionVerb::Rebuild { name, force, consent } => rebuild(output, &name, force, &consent, program).await,
        ProjectionVerb::Rollback { name, consent } => rollback(output, &name, &consent, program).await,
    }
}

async fn list(output: Output, partitions: bool, program: &Program<'_>) -> anyhow::Result<ExitCode> {
    let client = connect::connect(&program.settings.database, &DatabaseRole::Owner).await?;
    let mut rows = Vec::new();
    for projector in projectors(program).await? {
        let status = projector.status(&client).await?;
        if partitions {
            rows.extend(status.partitions.iter().map(|lag| {
                json!({"name": status.name, "partition": lag.partition, "nextOffset": lag.next_offset, "seq": lag.seq,
                       "lagEvents": lag.events, "lagSeconds": tenths(lag.seconds)})
            }));
        } else {
            rows.push(json!({
                "name": status.name, "state": status.state, "version": status.version,
                "previousVersion": status.previous_version, "switchedAt": status.switched_at.map(|at| at.to_string()),
                "previousKeptUntil": kept_until(&status, program.settings).map(|until| until.to_string()),
                "lagEvents": status.lag_events, "lagSeconds": tenths(status.lag_seconds), "parked": status.parked,
                "group": projector.group(),
            }));
        }
    }
    let columns: &[&str] = if partitions {
        &["name", "partition", "nextOffset", "seq", "lagEvents", "lagSeconds"]
    } else {
        &["name", "state", "version", "previousVersion", "lagEvents", "lagSeconds", "parked", "group"]
    };
    output.print(columns, &rows);
    Ok(ExitCode::SUCCESS)
}

/// When the generation kept for rollback may be dropped.
fn kept_until(status: &state::Status, settings: &Settings) -> Option<Timestamp> {
    status.previous_version?;
    status.switched_at?.checked_add(SignedDuration::from_hours(settings.projection.keep_previous_hours.into())).ok()
}

fn tenths(seconds: f64) -> f64 {
    (seconds * 10.0).round() / 10.0
}

async fn pause(program: &Program<'_>, name: &Name, paused: bool) -> anyhow::Result<ExitCode> {
    let projector = find(program, name).await?;
    let client = connect::connect(&program.settings.database, &DatabaseRole::Owner).await?;
    let changed = state::set_paused(&client, projector.name(), paused).await?;
    let word = if paused { "paused" } else { "running" };
    eprintln!("projection {} {} {word}", projector.name(), if changed { "is now" } else { "was already" });
    Ok(ExitCode::SUCCESS)
}

async fn reset(output: Output, args: ResetArgs, program: &Program<'_>) -> anyhow::Result<ExitCode> {
    let projector = find(program, &args.name).await?;
    let target = if args.to_earliest { ResetTarget::Earliest } else { ResetTarget::Offsets(args.to_offset) };
    let planned = projector.reset(&target, true).await?;
    let row = |one: &projection::PlannedReset| -> Value {
        json!({"partition": one.partition, "fromOffset": one.from_offset, "toOffset": one.to_offset,
               "effect": one.effect()})
    };
    let rows: Vec<Value> = planned.iter().map(row).collect();
    output.print(&["partition", "fromOffset", "toOffset", "effect"], &rows);
    if args.consent.dry_run {
        return Ok(ExitCode::SUCCESS);
    }
    if !args.consent.given(&format!("this resets {} partition(s) of {}", planned.len(), projector.name()))? {
        return Ok(ExitCode::FAILURE);
    }
    projector.reset(&target, false).await?;
    eprintln!("reset; projection {} carries it out as soon as it claims its partitions", projector.name());
    Ok(ExitCode::SUCCESS)
}

async fn rebuild(
    output: Output,
    name: &Name,
    force: bool,
    consent: &Consent,
    program: &Program<'_>,
) -> anyhow::Result<ExitCode> {
    let projector = find(program, name).await?;
    let progress = Arc::new(Progress::default());
    let plan = projector.rebuild(&progress, RebuildMode::DryRun).await?;
    if consent.dry_run {
        print_report(output, projector.name(), &plan);
        return Ok(ExitCode::SUCCESS);
    }
    let what = format!("this fills new tables of {} from {} events and switches to them", name.name, plan.events);
    if !consent.given(&what)? {
        return Ok(ExitCode::FAILURE);
    }
    let mode = if force { RebuildMode::Forced } else { RebuildMode::Checked };
    let bar = tokio::spawn(show(progress.clone()));
    let outcome = tokio::select! {
        outcome = projector.rebuild(&progress, mode) => outcome,
        _ = tokio::signal::ctrl_c() => {
            bar.abort();
            eprintln!("interrupted; the live tables are untouched, and the next rebuild discards what is left");
            return Ok(ExitCode::from(INTERRUPTED));
        }
    };
    bar.abort();
    let report = outcome?;
    print_report(output, projector.name(), &report);
    for difference in &report.differences {
        eprintln!("the tables differ: {difference}");
    }
    if report.switched {
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!(
        "not switched: {} difference(s) have no known reason. The live tables are untouched; the rebuilt ones are in the \
         schema {} until the next rebuild. To switch all the same: `throughline projection rebuild {} --force`",
        report.unexplained,
        projection::NEXT,
        projector.name()
    );
    Ok(ExitCode::from(FOUND_FALSE))
}

fn print_report(output: Output, name: &str, report: &RebuildReport) {
    let rate = if report.fill_seconds > 0.0 { (report.events as f64 / report.fill_seconds).round() } else { 0.0 };
    let same = match (report.compared, report.differences.is_empty()) {
        (false, _) => "not compared",
        (true, true) => "equal",
        (true, false) => "different",
    };
    let row = json!({
        "name": name, "events": report.events, "seconds": tenths(report.seconds), "eventsPerSecond": rate,
        "fromVersion": report.from_version, "toVersion": report.to_version, "digests": same,
        "differences": report.differences, "switched": report.switched,
    });
    let columns = ["name", "events", "seconds", "eventsPerSecond", "fromVersion", "toVersion", "digests", "switched"];
    output.print(&columns, &[row]);
}

/// A bar with rate and estimate, on a terminal only.
async fn show(progress: Arc<Progress>) {
    if !std::io::stderr().is_terminal() {
        return;
    }
    let bar = ProgressBar::new(progress.total.load(Ordering::Relaxed));
    let style = "{bar:30} {human_pos}/{human_len} events, {per_sec}, {eta} left";
    bar.set_style(ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar()));
    loop {
        bar.set_length(progress.total.load(Ordering::Relaxed));
        bar.set_position(progress.done.load(Ordering::Relaxed));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn rollback(output: Output, name: &Name, consent: &Consent, program: &Program<'_>) -> anyhow::Result<ExitCode> {
    let projector = find(program, name).await?;
    let plan = projector.rollback(true).await?;
    let what = format!(
        "this makes version {} of {} live again, which catches up with {} events",
        plan.to_version, name.name, plan.behind
    );
    if !consent.given(&what)? {
        return Ok(ExitCode::FAILURE);
    }
    let report = if consent.dry_run { plan } else { projector.rollback(false).await? };
    let row = json!({"name": projector.name(), "fromVersion": report.from_version, "toVersion": report.to_version,
                     "behind": report.behind});
    output.print(&["name", "fromVersion", "toVersion", "behind"], &[row]);
    Ok(ExitCode::SUCCESS)
}
