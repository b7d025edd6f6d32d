//! `throughline dev …`: Kafka and PostgreSQL for development. What they are is `app::dev`'s matter.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use clap::{Args, Subcommand, ValueEnum};
use tokio::signal::unix::{SignalKind, signal};

use super::{INTERRUPTED, Program, WRONG_USAGE, dev_run};
use crate::app::dev::{self, CancelFlag, Layout, Origin, Recorded, Report, Services, detach, shell_word};
use crate::settings::{DevRunner, DevSettings, Settings};

/// Services, all roles and the addresses to open, until Ctrl-C; or, with a word more, the services alone: a real Kafka
/// and a real PostgreSQL.
#[derive(Debug, Args)]
pub struct DevArgs {
    #[command(subcommand)]
    command: Option<DevCommand>,
}

#[derive(Debug, Subcommand)]
enum DevCommand {
    /// Start both, or find them; without --detach they stop with this command (Ctrl-C).
    Up {
        /// Leave them running in the background.
        #[arg(long)]
        detach: bool,
    },
    /// Print KEY=VALUE lines for: set -a; eval "$(throughline dev env)"; set +a
    Env,
    /// Show what runs; exit code 1 when nothing does.
    Status {
        /// Form of the answer.
        #[arg(long, value_enum, default_value_t = Form::Table)]
        output: Form,
    },
    /// Print the end of the services' logs.
    Logs {
        /// One of them; both when absent.
        #[arg(value_enum)]
        name: Option<LogName>,
        /// Lines of each, at most.
        #[arg(long, default_value_t = 200)]
        lines: usize,
    },
    /// Stop both; their data stays.
    Down,
    /// Stop both and delete their data; the fetched Kafka stays.
    Reset {
        /// Do not ask.
        #[arg(long)]
        yes: bool,
    },
    /// The background process of `up --detach`.
    #[command(hide = true)]
    Supervise {
        /// Development settings as JSON.
        settings: String,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Form {
    Table,
    Json,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum LogName {
    Kafka,
    Postgres,
    Supervisor,
}

impl LogName {
    fn name(self) -> &'static str {
        match self {
            Self::Kafka => "kafka",
            Self::Postgres => "postgres",
            Self::Supervisor => "supervisor",
        }
    }
}

/// Runs the subcommand. Exit codes: 0 done, 1 failed or nothing runs, 2 wrong usage, 130 interrupted.
pub async fn run(args: DevArgs, program: &Program<'_>) -> anyhow::Result<ExitCode> {
    let settings = program.settings;
    let Some(command) = args.command else { return dev_run::run(program).await };
    match command {
        DevCommand::Up { detach } => up(settings, detach).await,
        DevCommand::Env => env(settings),
        DevCommand::Status { output } => status(settings, output),
        DevCommand::Logs { name, lines } => logs(settings, name, lines).await,
        DevCommand::Down => {
            let stopped = dev::stop(&settings.dev).await?;
            eprintln!("{}", if stopped { "stopped Kafka and PostgreSQL" } else { "nothing was running" });
            Ok(ExitCode::SUCCESS)
        }
        DevCommand::Reset { yes } => reset(settings, yes).await,
        DevCommand::Supervise { settings } => {
            let settings: DevSettings = serde_json::from_str(&settings).context("settings of the supervisor")?;
            Ok(detach::supervise(settings).await)
        }
    }
}

fn report_to_stderr() -> Report {
    Arc::new(|line| eprintln!("{line}"))
}

async fn up(settings: &Settings, detach: bool) -> anyhow::Result<ExitCode> {
    if let Some(services) = Services::configured(settings).await? {
        eprintln!("using the configured services; nothing was started");
        print_addresses(&services);
        return Ok(ExitCode::SUCCESS);
    }
    if detach {
        let services = detach::start(&settings.dev, report_to_stderr()).await?;
        match services.origin {
            Origin::Found => eprintln!("already running in {}", settings.dev.directory.display()),
            _ => eprintln!("running in the background; stop with: throughline dev down"),
        }
        print_addresses(&services);
        services.leave_running();
        return Ok(ExitCode::SUCCESS);
    }
    stay_up(settings).await
}

/// Foreground: until a signal, or until a service ends by itself.
async fn stay_up(settings: &Settings) -> anyhow::Result<ExitCode> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut stopped = async || tokio::select! { _ = interrupt.recv() => INTERRUPTED, _ = terminate.recv() => 0 };

    let cancel = CancelFlag::default();
    let start = Services::start_reporting(&settings.dev, report_to_stderr(), cancel.clone());
    tokio::pin!(start);
    let services = tokio::select! {
        services = &mut start => services?,
        code = stopped() => {
            cancel.set();
            // What had started already stops before this returns.
            if let Ok(services) = start.await {
                services.stop().await?;
            }
            return Ok(ExitCode::from(code));
        }
    };
    print_addresses(&services);
    if services.origin == Origin::Found {
        eprintln!("already running in {}", settings.dev.directory.display());
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("running; Ctrl-C stops both");
    tokio::select! {
        code = stopped() => {
            eprintln!("stopping Kafka and PostgreSQL");
            services.stop().await?;
            Ok(ExitCode::from(code))
        }
        reason = services.failed() => {
            services.stop().await?;
            anyhow::bail!("{reason}; both were stopped")
        }
    }
}

fn print_addresses(services: &Services) {
    println!("KAFKA_BROKERS={}", shell_word(&services.kafka_brokers));
    println!("DATABASE_URL={}", shell_word(&services.database_url));
}

fn env(settings: &Settings) -> anyhow::Result<ExitCode> {
    let layout = Layout::of(&settings.dev)?;
    let configured = !settings.database.url.is_empty() && !dev::is_ours(settings)?;
    let mut lines = Vec::new();
    match layout.running() {
        _ if configured => {
            lines.push(("KAFKA_BROKERS", settings.kafka.brokers.clone()));
            lines.push(("DATABASE_URL", settings.database.url.expose().to_owned()));
        }
        Some(state) => {
            lines.push(("KAFKA_BROKERS", state.kafka_brokers.clone()));
            lines.push(("DATABASE_URL", state.database_url.clone()));
            if let Some(jars) = &state.kafka_jars {
                lines.push(("KAFKA_CLASSPATH", format!("{}/*", jars.display())));
                lines.push(("KAFKA_BIN", layout.bin().display().to_string()));
            }
        }
        None => return Err(dev::DevError::NotRunning(layout.root).into()),
    }
    let scheme = if settings.http.tls_certificate_file.is_some() { "https" } else { "http" };
    lines.push(("HTTP_URL", format!("{scheme}://{}", settings.http.listen)));
    for (key, value) in lines {
        println!("{key}={}", shell_word(&value));
    }
    Ok(ExitCode::SUCCESS)
}

fn status(settings: &Settings, form: Form) -> anyhow::Result<ExitCode> {
    let layout = Layout::of(&settings.dev)?;
    let state = layout.running();
    match form {
        Form::Json => println!("{}", status_json(&layout, state.as_ref())),
        Form::Table => match &state {
            Some(state) => print!("{}", status_table(&layout, state)),
            None => println!("nothing runs in {}", layout.root.display()),
        },
    }
    Ok(if state.is_some() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn status_json(layout: &Layout, state: Option<&Recorded>) -> serde_json::Value {
    let services = state.map_or_else(Vec::new, |state| {
        rows(state)
            .into_iter()
            .map(|(name, address, pid)| serde_json::json!({"name": name, "address": address, "pid": pid}))
            .collect()
    });
    serde_json::json!({
        "running": state.is_some(),
        "runner": state.map(|state| state.runner),
        "supervisorPid": state.and_then(|state| state.owner.as_ref()).map(|owner| owner.pid),
        "directory": layout.root,
        "services": services,
    })
}

fn status_table(layout: &Layout, state: &Recorded) -> String {
    let mut text = format!("{:<10} {:<22} {:>8}  log\n", "service", "address", "pid");
    for (name, address, pid) in rows(state) {
        let pid = pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string());
        let log = match state.runner {
            DevRunner::Compose => format!("throughline dev logs {name}"),
            _ => layout.log(name).display().to_string(),
        };
        text.push_str(&format!("{name:<10} {address:<22} {pid:>8}  {log}\n"));
    }
    text
}

/// Name, address without any password, process id.
fn rows(state: &Recorded) -> [(&'static str, String, Option<i32>); 2] {
    let database = state.database_url.split('@').next_back().unwrap_or_default();
    let pid = |identity: &Option<dev::Identity>| identity.as_ref().map(|identity| identity.pid);
    [("kafka", state.kafka_brokers.clone(), pid(&state.kafka)), ("postgres", database.to_owned(), pid(&state.postgres))]
}

async fn logs(settings: &Settings, name: Option<LogName>, lines: usize) -> anyhow::Result<ExitCode> {
    let names = match name {
        Some(name) => vec![name.name()],
        None => vec!["kafka", "postgres"],
    };
    let mut out = std::io::stdout().lock();
    for name in &names {
        let text = dev::log_text(&settings.dev, name, lines)?;
        if names.len() > 1 {
            writeln!(out, "==> {name}")?;
        }
        out.write_all(text.as_bytes())?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn reset(settings: &Settings, yes: bool) -> anyhow::Result<ExitCode> {
    let layout = Layout::of(&settings.dev)?;
    if layout.has_data() && !yes {
        if !std::io::stdin().is_terminal() {
            eprintln!("this deletes all data in {}; confirm with --yes", layout.root.display());
            return Ok(ExitCode::from(WRONG_USAGE));
        }
        eprint!("delete all data in {}? [y/N] ", layout.root.display());
        let mut answer = String::new();
        std::io::stdin().read_line(&mut answer)?;
        if !matches!(answer.trim(), "y" | "Y" | "yes") {
            eprintln!("nothing was deleted");
            return Ok(ExitCode::FAILURE);
        }
    }
    dev::reset(&settings.dev).await?;
    eprintln!("stopped, and deleted {}", layout.root.display());
    Ok(ExitCode::SUCCESS)
}
