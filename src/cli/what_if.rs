//! `throughline whatif`: since when, how many changes are told, progress, and the printed answer.

use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use jiff::{Span, Timestamp};
use serde_json::{Value, json};

use super::{FOUND_FALSE, INTERRUPTED, Output, Program, verify};
use crate::app::install;
use crate::audit::{self, WhatIf};
use crate::store::Pace;

/// Arguments of `whatif`.
#[derive(Debug, Args)]
pub struct WhatIfArgs {
    /// Commands sent since then: RFC 3339, or how long ago, such as 7d or 36h (default: all that Kafka keeps)
    #[arg(long, value_name = "TIME", value_parser = moment)]
    since: Option<Timestamp>,
    /// Tell so many commands one by one, at most; all are counted
    #[arg(long, value_name = "N", default_value_t = 20)]
    max: usize,
    /// Decide so many commands a second, at most
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    rate: Option<u64>,
    /// table groups the changes; json tells all, ndjson one change a line
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

fn moment(text: &str) -> Result<Timestamp, String> {
    let wrong = || "a time is written as in 2026-03-31T14:05:00Z, or as 7d, 36h or 90m ago".to_owned();
    if let Ok(time) = text.parse() {
        return Ok(time);
    }
    let ago: Span = text.parse().map_err(|_| wrong())?;
    let hours = ago.total((jiff::Unit::Second, jiff::SpanRelativeTo::days_are_24_hours())).map_err(|_| wrong())?;
    Timestamp::now().checked_sub(jiff::SignedDuration::from_secs_f64(hours)).map_err(|_| wrong())
}

/// Decides again, prints, and answers with the exit code.
pub async fn run(args: WhatIfArgs, program: &Program<'_>) -> anyhow::Result<ExitCode> {
    let context = program.one()?;
    let settings = install::with_stored_partitions(context, program.settings).await?;
    let rules = install::open(context, &settings).await?.retrial(&settings);
    let pace = Arc::new(Pace::new(args.rate));
    let bar = tokio::spawn(verify::show(pace.clone()));
    let subject = context.audited(&settings.topics);
    let answer = tokio::select! {
        answer = audit::what_if(&settings, &subject, rules.as_ref(), args.since, (&pace, args.max)) => answer,
        _ = tokio::signal::ctrl_c() => {
            bar.abort();
            eprintln!("interrupted; nothing was changed");
            return Ok(ExitCode::from(INTERRUPTED));
        }
    };
    bar.abort();
    let answer = answer?;
    print(args.output, &answer);
    Ok(if answer.same { ExitCode::SUCCESS } else { ExitCode::from(FOUND_FALSE) })
}

fn print(output: Output, answer: &WhatIf) {
    match output {
        Output::Json => println!("{}", serde_json::to_string_pretty(answer).unwrap_or_default()),
        Output::Ndjson => answer.changes.iter().for_each(|change| println!("{}", json!(change))),
        Output::Table => {
            let groups: Vec<Value> = answer.groups.iter().map(|group| json!(group)).collect();
            output.print(&["was", "would", "commands"], &groups);
            for change in &answer.changes {
                eprintln!(
                    "stream {} command {} ({}/{} offset {}): was {}, would be {}{}",
                    change.stream_id,
                    change.command_id,
                    change.topic,
                    change.partition,
                    change.offset,
                    change.was.told(),
                    change.would.told(),
                    change.would.reason.as_deref().map(|reason| format!(" ({reason})")).unwrap_or_default(),
                );
            }
        }
    }
    for (why, commands) in &answer.skipped {
        eprintln!("{commands} commands not decided again: {why}");
    }
    let changed: u64 = answer.groups.iter().map(|group| group.commands).sum();
    eprintln!("{} commands decided again; {changed} would be decided otherwise", answer.checked);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_a_time_or_so_long_ago() {
        assert_eq!(moment("2026-03-31T14:05:00Z").unwrap().as_second(), 1_774_965_900);
        let ago = |text: &str| Timestamp::now().as_second() - moment(text).unwrap().as_second();
        assert!((604_799..=604_801).contains(&ago("7d")) && (5_399..=5_401).contains(&ago("90m")));
        for wrong in ["", "yesterday", "7", "3 moons"] {
            assert!(moment(wrong).is_err(), "{wrong}");
        }
    }
}
