//! `dev up --detach`: a background copy of this program owns the services; its starter waits until
//! they answer. The two talk by lines on the copy's standard output, until it is ready.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};
use std::sync::{Arc, Mutex};

use tokio::signal::unix::{SignalKind, signal};

use super::error::DevError;
use super::state::in_workspace;
use super::{CancelFlag, Layout, Origin, Report, Services, blocking, compose_for};
use crate::settings::DevSettings;

const READY: &str = "ready ";
const FAILED: &str = "failed ";
const DOING: &str = "doing ";

/// Starts the services in the background, or finds them. Containers need no background process.
pub async fn start(settings: &DevSettings, report: Report) -> Result<Services, DevError> {
    if compose_for(settings).await?.is_some() {
        return Services::start_reporting(settings, report, CancelFlag::default()).await;
    }
    let layout = Layout::of(settings)?;
    let absolute = DevSettings {
        directory: layout.root.clone(),
        kafka_cache: in_workspace(&settings.kafka_cache)?,
        ..settings.clone()
    };
    let origin = blocking(move || launch(&absolute, &layout, &report)).await?;
    let mut services = Services::start_or_find(settings).await?;
    services.origin = origin;
    Ok(services)
}

fn launch(settings: &DevSettings, layout: &Layout, report: &Report) -> Result<Origin, DevError> {
    layout.create()?;
    layout.rotate_log("supervisor");
    let log = layout.log("supervisor");
    let log_file = std::fs::File::create(&log).map_err(DevError::file("write to", &log))?;
    let program = std::env::current_exe()
        .map_err(|error| DevError::step("finding this program", error, "call it by its full path"))?;
    let text = serde_json::to_string(settings).expect("development settings have text keys only");
    let mut command = Command::new(program);
    command.args(["dev", "supervise", &text]).current_dir("/");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log_file);
    // SAFETY: setsid is async-signal-safe. A session of its own: the terminal's hang-up does not reach it.
    unsafe {
        command.pre_exec(|| nix::unistd::setsid().map(drop).map_err(Into::into));
    }
    let next = format!("see {}", log.display());
    let mut child = command.spawn().map_err(|error| DevError::step("starting the supervisor", error, next.clone()))?;
    let told = child.stdout.take().expect("standard output was asked for as a pipe");
    for line in BufReader::new(told).lines().map_while(Result::ok) {
        if let Some(doing) = line.strip_prefix(DOING) {
            report(doing);
        } else if let Some(origin) = line.strip_prefix(READY) {
            return Ok(if origin == "found" { Origin::Found } else { Origin::Started });
        } else if let Some(reason) = line.strip_prefix(FAILED) {
            let _ = child.wait();
            return Err(DevError::Background(reason.to_owned()));
        }
    }
    let status = child.wait().map(|status| status.to_string()).unwrap_or_default();
    let reason = format!("it ended ({status}): {}", super::error::last_lines(&log, 3));
    Err(DevError::step("starting the supervisor", reason, next))
}

/// Says lines to the starter until it stops listening.
#[derive(Clone)]
struct Starter(Arc<Mutex<Option<std::io::Stdout>>>);

impl Starter {
    fn say(&self, kind: &str, text: &str) {
        let mut out = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(stdout) = out.as_mut() {
            // A starter that was interrupted no longer reads.
            if writeln!(stdout, "{kind}{}", text.replace('\n', " ")).and_then(|()| stdout.flush()).is_err() {
                *out = None;
            }
        }
    }
}

/// The background process: starts the services, says so, and stops them on SIGTERM.
pub async fn supervise(settings: DevSettings) -> ExitCode {
    let starter = Starter(Arc::new(Mutex::new(Some(std::io::stdout()))));
    let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        starter.say(FAILED, "cannot listen for signals");
        return ExitCode::FAILURE;
    };
    let mut stopped = async || tokio::select! { _ = interrupt.recv() => (), _ = terminate.recv() => () };

    let cancel = CancelFlag::default();
    let doing = starter.clone();
    let report: Report = Arc::new(move |line| doing.say(DOING, line));
    let start = Services::start_reporting(&settings, report, cancel.clone());
    tokio::pin!(start);
    let started = tokio::select! {
        started = &mut start => started,
        () = stopped() => {
            cancel.set();
            start.await
        }
    };
    let services = match started {
        Ok(services) => services,
        Err(error) => {
            starter.say(FAILED, &error.to_string());
            return ExitCode::FAILURE;
        }
    };
    if services.origin == Origin::Found {
        starter.say(READY, "found");
        return ExitCode::SUCCESS;
    }
    starter.say(READY, "started");
    let code = tokio::select! {
        () = stopped() => ExitCode::SUCCESS,
        reason = services.failed() => {
            eprintln!("{reason}; both were stopped");
            ExitCode::FAILURE
        }
    };
    if let Err(error) = services.stop().await {
        eprintln!("{error}");
    }
    code
}
