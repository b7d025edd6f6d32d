//! `throughline events republish`: what to send, consent, progress. The sending is `relay::republish`'s.

use std::io::IsTerminal as _;
use std::process::ExitCode;

use anyhow::bail;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use super::place::{Place, spans};
use super::{Output, Program, WRONG_USAGE, WrongUsage};
use crate::app::install;
use crate::kafka::topics::{self, TopicSpec};
use crate::relay::republish;
use crate::settings::Settings;
use crate::store::events::{Span, last_seqs};
use crate::store::{DatabaseRole, connect, destinations};

/// Arguments of `events republish`.
#[derive(Debug, Args)]
pub(super) struct RepublishArgs {
    /// beginning, or PARTITION:SEQ (may be repeated; then only the partitions named)
    #[arg(long, default_value = "beginning", value_name = "WHERE")]
    from: Vec<Place>,
    /// The topic to write; made with as many partitions when it is not there. The pipeline's own events
    /// topic, made anew or cut short, gets back what was published on it, byte for byte
    #[arg(long, value_name = "NAME", value_parser = topics::checked_name)]
    to_topic: String,
    /// Print what would be sent, and send nothing
    #[arg(long)]
    dry_run: bool,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

/// Sends what is committed now. Run again, it goes on behind what the topic holds.
pub(super) async fn run(args: RepublishArgs, program: &Program<'_>) -> anyhow::Result<ExitCode> {
    let (context, settings) = (program.one()?, program.settings);
    let topic = args.to_topic.as_str();
    let ours = install::topic_specs(context, settings);
    let events_topic = context.names(&settings.topics).events();
    let restores = topic == events_topic;
    let all = program.app.contexts().iter().flat_map(|one| install::topic_specs(one.as_ref(), settings));
    check(&args, settings, restores, all.into_iter().any(|spec| spec.name == topic))?;
    let client = connect::connect(&settings.database, &DatabaseRole::Owner).await?;
    let destination = destinations::find(&client, &events_topic).await?;
    let (wanted, opened, cure) = if restores {
        let cure = format!("delete {topic} and run this again: it makes the topic and fills it");
        (republish::published(&client, &destination).await?, None, cure)
    } else {
        let opened = context.open(&install::schema_ids(context, settings, &client).await?)?;
        let last = last_seqs(&client, &destination).await?;
        let spans = spans(&args.from, &destination, &last, 0)?;
        let wanted = spans.into_iter().map(|span| Span { upto: last[span.partition as usize], ..span }).collect();
        (wanted, Some(opened), "name a new topic".to_owned())
    };
    let left = match topics::partition_count(&settings.kafka, topic).await? {
        None => wanted,
        Some(count) if count == destination.partitions => republish::plan(settings, topic, &wanted, &cure).await?,
        Some(count) => bail!(
            "{topic} has {count} partitions and {events_topic} {}: the same order would not be the same partition's",
            destination.partitions
        ),
    };
    let events: i64 = left.iter().map(|span| (span.upto - span.after).max(0)).sum();
    if args.dry_run {
        print_plan(topic, &left, args.output);
        return Ok(ExitCode::SUCCESS);
    }
    if events == 0 {
        eprintln!("nothing to send: the store has no event there that {topic} lacks");
        print_sent(topic, 0, left.len(), args.output);
        return Ok(ExitCode::SUCCESS);
    }
    if !args.yes && !consent(&format!("send {events} events to {topic}?"))? {
        return Ok(ExitCode::from(WRONG_USAGE));
    }
    let spec = ours.into_iter().find(|spec| spec.name == events_topic);
    let spec: Vec<TopicSpec> = spec.map(|spec| TopicSpec { name: topic.to_owned(), ..spec }).into_iter().collect();
    topics::apply(&settings.kafka, &spec).await?;
    let bar = progress_bar(events.unsigned_abs());
    let to = (&destination, topic);
    let renew = opened.map(|opened| move |payload: &[u8]| opened.renew(payload));
    let renew = renew.as_ref().map(|renew| renew as &republish::Renew);
    let progress = |done| bar.set_position(done);
    let sent = republish::run(settings, &client, to, context.namespace(), &left, renew, progress).await;
    bar.finish_and_clear();
    print_sent(topic, sent?, left.len(), args.output);
    Ok(ExitCode::SUCCESS)
}

/// What cannot be meant. `restores`: the topic is the pipeline's own events topic, which gets back what was
/// published on it; `is_ours`: it is one of the pipeline's.
fn check(args: &RepublishArgs, settings: &Settings, restores: bool, is_ours: bool) -> Result<(), WrongUsage> {
    let topic = &args.to_topic;
    if is_ours && !restores {
        let whose = "belongs to the pipeline and is written by it alone; name another topic with --to-topic";
        return Err(WrongUsage(format!("{topic} {whose}")));
    }
    if args.from.contains(&Place::End) {
        return Err(WrongUsage("--from end sends nothing: say beginning, or places PARTITION:SEQ".into()));
    }
    if restores && args.from != [Place::Beginning] {
        return Err(WrongUsage(format!(
            "{topic} is the pipeline's own and gets all that was published: leave --from out"
        )));
    }
    if restores && settings.relay.accept_lost_records_of.split(',').any(|name| name.trim() == topic) {
        let why = "the relay goes on without its history (relay.accept_lost_records_of); take that back first";
        return Err(WrongUsage(format!("{topic}: {why}")));
    }
    Ok(())
}

fn print_sent(topic: &str, sent: u64, partitions: usize, output: Output) {
    let row = json!({"topic": topic, "sent": sent, "partitions": partitions});
    output.print(&["topic", "sent", "partitions"], &[row]);
}

fn print_plan(topic: &str, spans: &[Span], output: Output) {
    let row = |span: &Span| {
        let events = (span.upto - span.after).max(0);
        json!({"topic": topic, "partition": span.partition, "fromSeq": span.after + 1, "toSeq": span.upto, "events": events})
    };
    let rows: Vec<_> = spans.iter().map(row).collect();
    output.print(&["topic", "partition", "fromSeq", "toSeq", "events"], &rows);
}

fn consent(question: &str) -> anyhow::Result<bool> {
    if !std::io::stdin().is_terminal() {
        eprintln!("{question} Confirm with --yes, or look first with --dry-run");
        return Ok(false);
    }
    eprint!("{question} [y/N] ");
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// Drawn on a terminal only.
fn progress_bar(events: u64) -> ProgressBar {
    let bar = ProgressBar::new(events);
    let template = "{bar:40} {human_pos}/{human_len} events, {per_sec}, {eta} left";
    bar.set_style(ProgressStyle::with_template(template).expect("the template is well formed"));
    bar
}
