//! `throughline verify`: scope, pace, progress and the printed answer. What is verified is `audit`'s matter.

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use super::projection::projectors;
use super::{FOUND_FALSE, INTERRUPTED, Output, Program};
use crate::app::install;
use crate::audit::{Check, Places, Report, Scope, Verification};
use crate::store::Pace;

/// Arguments of `verify`.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// Everything, instead of the newest events and one partition of each read table
    #[arg(long)]
    full: bool,
    /// Read so many events and records a second, at most
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    rate: Option<u64>,
    /// Keep in this file how far it came: run again after an interruption, it goes on from there
    #[arg(long, value_name = "FILE", requires = "full")]
    resume: Option<PathBuf>,
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

/// Verifies, prints, and answers with the exit code.
pub async fn run(args: VerifyArgs, program: &Program<'_>) -> anyhow::Result<ExitCode> {
    let mut subjects = Vec::new();
    for context in program.all()? {
        let settings = install::with_stored_partitions(context, program.settings).await?;
        subjects.push(context.audited(&settings.topics));
    }
    let projectors = projectors(program).await?;
    // A process manager reads several contexts: it is of none.
    let processes = match program.context {
        Some(_) => Vec::new(),
        None => install::processes(program.app, program.settings).await?,
    };
    let mut places = Places::open(args.resume.as_deref())?;
    let pace = Arc::new(Pace::new(args.rate));
    let scope = Scope { full: args.full, partition: rand::random() };
    let verification = Verification {
        settings: program.settings,
        subjects: &subjects,
        projectors: &projectors,
        processes: &processes,
        scope,
        pace: &pace,
    };
    pace.expect(verification.expected().await?);
    let bar = tokio::spawn(show(pace.clone()));
    let outcome = tokio::select! {
        outcome = verification.run(&mut places) => outcome,
        _ = tokio::signal::ctrl_c() => {
            bar.abort();
            let kept = args.resume.map(|path| format!("; run it again with --resume {} to go on", path.display()));
            eprintln!("interrupted{}", kept.unwrap_or_default());
            return Ok(ExitCode::from(INTERRUPTED));
        }
    };
    bar.abort();
    let report = outcome?;
    print(args.output, &report);
    Ok(if report.holds { ExitCode::SUCCESS } else { ExitCode::from(FOUND_FALSE) })
}

fn print(output: Output, report: &Report) {
    let row = |check: &Check| -> Value {
        json!({"check": check.name, "of": check.of, "holds": check.holds, "checked": check.checked,
               "differences": check.found, "note": check.notes.join("; ")})
    };
    match output {
        Output::Json => println!("{}", serde_json::to_string_pretty(report).unwrap_or_default()),
        Output::Ndjson => report.checks.iter().for_each(|check| println!("{}", json!(check))),
        Output::Table => {
            let rows: Vec<Value> = report.checks.iter().map(row).collect();
            output.print(&["check", "of", "holds", "checked", "differences", "note"], &rows);
        }
    }
    for check in report.checks.iter().filter(|check| !check.holds) {
        for finding in &check.differences {
            eprintln!("{} of {}: {finding}", check.name, check.of);
        }
        let more = check.found - check.differences.len() as u64;
        if more > 0 {
            eprintln!("{} of {}: {more} more", check.name, check.of);
        }
    }
    let scope = match report.full {
        true => "everything was looked at",
        false => "a sample was looked at; --full looks at everything",
    };
    let proven: i64 = report.proven_up_to.values().flat_map(|of| of.values()).sum();
    eprintln!(
        "{}; {scope}; proven up to now: {proven} events",
        if report.holds { "it holds" } else { "it does not hold" }
    );
}

/// A bar with rate and estimate, on a terminal only.
pub(super) async fn show(pace: Arc<Pace>) {
    if !std::io::stderr().is_terminal() {
        return;
    }
    let bar = ProgressBar::new(pace.expected());
    let style = "{bar:30} {human_pos}/{human_len} looked at, {per_sec}, {eta} left";
    bar.set_style(ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar()));
    loop {
        bar.set_length(pace.expected());
        bar.set_position(pace.done());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
