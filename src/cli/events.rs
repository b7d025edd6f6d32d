//! `throughline events tail|republish`: the history of the event store, shown or sent to a topic.

use std::io::Write as _;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};
use tokio_postgres::Client;

use super::place::{Place, spans};
use super::{FOUND_FALSE, INTERRUPTED, Output, Program, event_json, republish};
use crate::app::{Hosted, Opened, install};
use crate::avro::Codec;
use crate::store::events::{History, StoredEvent, last_seqs};
use crate::store::{DatabaseRole, connect, destinations};

/// Arguments of `events`.
#[derive(Debug, Args)]
pub struct EventsArgs {
    #[command(subcommand)]
    verb: EventsVerb,
}

#[derive(Debug, Subcommand)]
enum EventsVerb {
    /// Print events of the store, merged over partitions by time; from the end, wait for new ones
    Tail(TailArgs),
    /// Send the history of the store to another topic, in the newest schema versions; can be repeated
    Republish(republish::RepublishArgs),
}

#[derive(Debug, Args)]
struct TailArgs {
    /// beginning, end, or PARTITION:SEQ (may be repeated; then only the partitions named)
    #[arg(long, default_value = "end", value_name = "WHERE")]
    from: Vec<Place>,
    #[arg(long, value_enum, default_value_t)]
    output: Output,
    /// The fields as they were written, in the version they were written in
    #[arg(long)]
    raw: bool,
    /// Wait for new events (as from the end)
    #[arg(long, conflicts_with = "no_follow")]
    follow: bool,
    /// Stop at the end of what is there (as from elsewhere)
    #[arg(long)]
    no_follow: bool,
    /// Stop after this many events
    #[arg(long, value_name = "N")]
    max: Option<u64>,
}

/// Shows or sends.
pub async fn run(args: EventsArgs, program: &Program<'_>) -> anyhow::Result<ExitCode> {
    match args.verb {
        EventsVerb::Tail(tail_args) => tail(tail_args, program).await,
        EventsVerb::Republish(republish_args) => republish::run(republish_args, program).await,
    }
}

/// Events of one partition read at a time, at most, and their bytes.
pub(super) const PAGE: (i64, usize) = (1_000, 8 * 1024 * 1024);
/// While following, the store is looked at this often.
const FOLLOW_EVERY: Duration = Duration::from_millis(200);

async fn tail(args: TailArgs, program: &Program<'_>) -> anyhow::Result<ExitCode> {
    let (context, settings) = (program.one()?, program.settings);
    let client = connect::connect(&settings.database, &DatabaseRole::Owner).await?;
    // Read without the start-up check: what cannot be read is exactly what one may want to see.
    let ids = install::schema_ids(context, settings, &client).await?;
    let destination = destinations::find(&client, &context.names(&settings.topics).events()).await?;
    let spans = spans(&args.from, &destination, &last_seqs(&client, &destination).await?, i64::MAX)?;
    let mut history = History::new(&destination, &spans, PAGE.0, PAGE.1);
    let follow = args.follow || (args.from == [Place::End] && !args.no_follow);
    let catalogue = context.catalogue(&settings.topics)?;
    let reader = match args.raw {
        true => Reader::Written(Box::new(Codec::new(catalogue, (context.schemas().upcasters)(), &ids)?)),
        false => Reader::Newest(context.open(&ids)?),
    };
    let mut printer = Printer::new(args.output, reader, context);
    // From here on Ctrl-C ends the following, and what was begun is ended as well.
    let mut interrupt = signal(SignalKind::interrupt())?;
    let read = tokio::select! {
        read = show(&client, &mut history, &mut printer, args.max.unwrap_or(u64::MAX), follow) => read?,
        _ = interrupt.recv() => {
            printer.end();
            return Ok(ExitCode::from(INTERRUPTED));
        }
    };
    if !read {
        return Ok(ExitCode::SUCCESS);
    }
    printer.end();
    Ok(if printer.unreadable > 0 {
        eprintln!("{} event(s) could not be read; run a newer version of the program", printer.unreadable);
        ExitCode::from(FOUND_FALSE)
    } else {
        ExitCode::SUCCESS
    })
}

/// Prints up to `left` events; false when nobody reads any more.
async fn show(
    client: &Client,
    history: &mut History,
    printer: &mut Printer,
    mut left: u64,
    follow: bool,
) -> anyhow::Result<bool> {
    while left > 0 {
        let events = history.next(client).await?;
        if events.is_empty() {
            if !follow {
                break;
            }
            tokio::time::sleep(FOLLOW_EVERY).await;
        }
        let shown = usize::try_from(left).unwrap_or(usize::MAX).min(events.len());
        left -= shown as u64;
        if !printer.print(&events[..shown]) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// How payloads are shown: as they were written, or in the newest shape.
enum Reader {
    Written(Box<Codec>),
    Newest(Arc<dyn Opened>),
}

/// Prints events as they come: a table of fixed columns, since its end is not known.
struct Printer {
    output: Output,
    reader: Reader,
    stream_id_field: &'static str,
    printed: u64,
    unreadable: u64,
}

impl Printer {
    fn new(output: Output, reader: Reader, context: &dyn Hosted) -> Self {
        Self { output, reader, stream_id_field: context.stream_id_field(), printed: 0, unreadable: 0 }
    }

    /// False when nobody reads any more.
    fn print(&mut self, events: &[StoredEvent]) -> bool {
        let mut text = String::new();
        for event in events {
            let row = self.row(event);
            match self.output {
                Output::Ndjson => text.push_str(&format!("{row}\n")),
                Output::Json => text.push_str(&format!("{}{row}", if self.printed == 0 { "[\n" } else { ",\n" })),
                Output::Table => {
                    if self.printed == 0 {
                        text.push_str(&line(
                            ["PARTITION", "SEQ", "RECORDED_AT", "TYPE", "VERSION", "STREAM"],
                            "PAYLOAD",
                        ));
                    }
                    text.push_str(&table_line(event, &row));
                }
            }
            self.printed += 1;
        }
        write(&text)
    }

    fn row(&mut self, event: &StoredEvent) -> Value {
        let payload = match &self.reader {
            Reader::Written(codec) => codec.written(&event.payload).map(|written| written.value),
            Reader::Newest(opened) => opened.describe(&event.payload),
        };
        match payload {
            Ok(payload) => event_json::row(event, self.stream_id_field, payload),
            Err(error) => {
                self.unreadable += 1;
                let mut row = event_json::row(event, self.stream_id_field, Value::Null);
                row["error"] = json!(error.to_string());
                row
            }
        }
    }

    fn end(&self) {
        if self.output == Output::Json {
            write(if self.printed == 0 { "[]\n" } else { "\n]\n" });
        }
    }
}

fn table_line(event: &StoredEvent, row: &Value) -> String {
    let payload = match &row["error"] {
        Value::String(reason) => format!("unreadable: {reason}"),
        _ => row["payload"].to_string(),
    };
    let (partition, seq) = (event.partition.to_string(), event.seq.to_string());
    let time = format!("{:.3}", event.recorded_at);
    let (version, stream) = (event.version.to_string(), event.stream_id.to_string());
    line([&partition, &seq, &time, &event.event_type, &version, &stream], &payload)
}

fn line([partition, seq, time, event_type, version, stream]: [&str; 6], payload: &str) -> String {
    format!("{partition:<9}  {seq:<10}  {time:<24}  {event_type:<16}  {version:<7}  {stream:<36}  {payload}\n")
}

/// False when the reader of stdout went away, as `head` does.
fn write(text: &str) -> bool {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_ok()
}
