//! The command line: one file a subcommand. Data goes to stdout, everything else to stderr.
//!
//! Exit codes: 0 done, 1 failed, 2 wrong usage, 3 found false (a check that does not hold),
//! 130 interrupted.

mod command;
mod config;
mod db;
mod dev;
mod dev_run;
mod dlq;
mod event_json;
mod events;
mod json_diff;
mod new;
mod outbox;
mod output;
mod place;
mod process;
mod projection;
mod replay;
mod republish;
mod run;
mod schema;
mod skip;
mod status;
mod stream;
mod topics;
mod verify;
mod what_if;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

pub use output::Output;

use crate::app::{App, Hosted, telemetry};
use crate::settings::{LoadedSettings, Settings};
use crate::store::describe;

/// A check that was answered with no.
pub const FOUND_FALSE: u8 = 3;

/// Arguments that cannot be meant.
const WRONG_USAGE: u8 = 2;
/// Ctrl-C, as a shell tells it.
const INTERRUPTED: u8 = 130;

/// Wrong usage that the parser of the arguments cannot see.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct WrongUsage(String);

/// Event-sourced CQRS on Kafka and PostgreSQL.
#[derive(Debug, Parser)]
#[command(name = "throughline", version, about, long_about = None, propagate_version = true)]
struct Cli {
    /// Settings file (default: throughline.toml, where there is one)
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Override one setting: section.key=value
    #[arg(long = "set", global = true, value_name = "KEY=VALUE")]
    overrides: Vec<String>,
    /// The bounded context meant, where the program has several; else the first, or all
    #[arg(long, global = true, value_name = "NAME")]
    context: Option<String>,
    #[command(subcommand)]
    command: CliCommand,
}

#[derive(Debug, Subcommand)]
enum CliCommand {
    /// Run roles in this process: processor, processor:CONTEXT, relay, projection:NAME, projections,
    /// process:NAME, processes, audit, api; none = all
    Run(run::RunArgs),
    /// Who lives, who owns what, what waits, what stands and why; exit code 3 when a person is needed
    Status(status::StatusArgs),
    /// Services, all roles and the addresses to open, until Ctrl-C; `dev up` and so on: the services alone
    Dev(dev::DevArgs),
    /// Create or check the topics
    Topics(topics::TopicsArgs),
    /// Create or check the database schema, roles and read tables
    Db(db::DbArgs),
    /// Send commands, or ask what became of one
    Command(command::CommandArgs),
    /// See, pause, reset, rebuild or roll back projections
    Projection(projection::ProjectionArgs),
    /// See, pause, reset or retry process managers
    Process(process::ProcessArgs),
    /// See, replay, skip or discard what could not be handled
    Dlq(dlq::DlqArgs),
    /// See where the outbox stands: depth, age, rate and owner of each destination partition
    Outbox(outbox::OutboxArgs),
    /// Show the event store's history, or send it to another topic
    Events(events::EventsArgs),
    /// Hold what is promised against what is stored and published; exit code 3 where something differs
    Verify(verify::VerifyArgs),
    /// Decide the retained commands again by the rules of this program: what would be decided otherwise; exit code 3
    /// where something would
    #[command(name = "whatif")]
    WhatIf(what_if::WhatIfArgs),
    /// Show one stream: its events, their causes, and the state at any version or time
    Stream(stream::StreamArgs),
    /// List, show, check and compare the event schemas; print the AsyncAPI document
    Schema(schema::SchemaArgs),
    /// Show the settings with their origins
    Config(config::ConfigArgs),
    /// Write a package of your own: a context with its tables, routes and tests
    New(new::NewArgs),
}

/// What every subcommand works with.
struct Program<'a> {
    app: &'a App,
    settings: &'a Settings,
    /// As `--context` names it.
    context: Option<&'a str>,
}

impl Program<'_> {
    /// The one context that is meant.
    fn one(&self) -> Result<&dyn Hosted, WrongUsage> {
        self.app.find(self.context).map(AsRef::as_ref).map_err(|error| WrongUsage(error.to_string()))
    }

    /// The contexts that are meant: all, where none is named.
    fn all(&self) -> Result<Vec<&dyn Hosted>, WrongUsage> {
        match self.context {
            Some(_) => Ok(vec![self.one()?]),
            None => Ok(self.app.contexts().iter().map(AsRef::as_ref).collect()),
        }
    }
}

/// Parses the command line of `app`, runs, and answers with the exit code.
pub fn main(app: App) -> ExitCode {
    let cli = Cli::parse();
    let loaded = match LoadedSettings::load_for(cli.config.as_deref(), &cli.overrides, &app.sections()) {
        Ok(loaded) => loaded,
        Err(error) => return fail(&error.into()),
    };
    let filter = if matches!(cli.command, CliCommand::Run(_)) { telemetry::SERVING } else { telemetry::QUIET };
    telemetry::start(&loaded.settings.log, filter);
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&anyhow::Error::new(error).context("cannot start the async runtime")),
    };
    let outcome = runtime.block_on(dispatch(&app, cli.context.as_deref(), cli.command, loaded));
    // Kafka and PostgreSQL threads that are stuck must not keep a finished process alive.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    outcome.unwrap_or_else(|error| fail(&error))
}

async fn dispatch(
    app: &App,
    context: Option<&str>,
    command: CliCommand,
    loaded: LoadedSettings,
) -> anyhow::Result<ExitCode> {
    let settings = &loaded.settings;
    let program = &Program { app, settings, context };
    match command {
        CliCommand::Run(args) => run::run(args, program).await,
        CliCommand::Status(args) => status::run(args, program).await,
        CliCommand::Dev(args) => dev::run(args, program).await,
        CliCommand::Topics(args) => topics::run(args, program).await,
        CliCommand::Db(args) => db::run(args, program).await,
        CliCommand::Command(args) => command::run(args, program).await,
        CliCommand::Projection(args) => projection::run(args, program).await,
        CliCommand::Process(args) => process::run(args, program).await,
        CliCommand::Dlq(args) => dlq::run(args, program).await,
        CliCommand::Outbox(args) => outbox::run(args, settings).await,
        CliCommand::Events(args) => events::run(args, program).await,
        CliCommand::Verify(args) => verify::run(args, program).await,
        CliCommand::WhatIf(args) => what_if::run(args, program).await,
        CliCommand::Stream(args) => stream::run(args, program).await,
        CliCommand::Schema(args) => schema::run(args, program).await,
        CliCommand::Config(args) => config::run(args, &loaded),
        CliCommand::New(args) => new::run(args),
    }
}

/// One paragraph, the whole chain of causes, no trace.
fn fail(error: &anyhow::Error) -> ExitCode {
    eprintln!("error: {}", told(error));
    if error.is::<WrongUsage>() { ExitCode::from(WRONG_USAGE) } else { ExitCode::FAILURE }
}

/// The chain of causes, each told once: many an error's own text ends in that of its cause already.
fn told(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let postgres = cause.downcast_ref::<tokio_postgres::Error>().map(describe);
        // Below the driver's error stand its parts, which `describe` has put together better.
        let last = postgres.is_some();
        let said = postgres.unwrap_or_else(|| cause.to_string());
        if !text.contains(&said) {
            let separator = if text.is_empty() { "" } else { ": " };
            text = format!("{text}{separator}{said}");
        }
        if last {
            break;
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use crate::api::ApiError;

    #[test]
    fn the_command_line_is_well_formed() {
        super::Cli::command().debug_assert();
    }

    #[test]
    fn what_a_text_says_already_is_not_told_again() {
        let taken = || std::io::Error::other("Address already in use (os error 98)");
        let listen = "127.0.0.1:80".parse().expect("an address");
        let error = anyhow::Error::new(ApiError::Listen { listen, source: taken() }).context("cannot start");
        let told = super::told(&error);
        assert_eq!(told.matches("already in use").count(), 1, "{told}");
        assert!(told.starts_with("cannot start: cannot listen on 127.0.0.1:80: Address"), "{told}");
        // A relay that stops says what its store said, in words of its own before it.
        let store = anyhow::Error::new(taken()).context("read the outbox: Address already in use (os error 98)");
        let relay =
            store.context("relay: read the outbox: Address already in use (os error 98)").context("relay failed");
        let told = super::told(&relay);
        assert_eq!(told, "relay failed: relay: read the outbox: Address already in use (os error 98)");
        let plain = anyhow::Error::new(taken()).context("cannot read x");
        assert_eq!(super::told(&plain), "cannot read x: Address already in use (os error 98)");
    }
}
