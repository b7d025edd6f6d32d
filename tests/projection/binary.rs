//! The real binary on a bed: started, killed, waited for.

use std::os::unix::process::ExitStatusExt as _;
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};

use super::bed::{Bed, PARTITIONS, expired};

/// Whatever is expected to end, ends within this time; a rebuild of a million events in a debug
/// build on a busy machine is the longest.
const PATIENCE: Duration = Duration::from_secs(900);

/// A command of ours on the bed's database and topics.
pub fn command(bed: &Bed, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_throughline"));
    let settings = &bed.settings;
    command
        .args(arguments)
        .env("KAFKA_BROKERS", &settings.kafka.brokers)
        .env("DATABASE_URL", settings.database.url.expose())
        .env("THROUGHLINE__TOPICS__PREFIX", &settings.topics.prefix)
        .env("THROUGHLINE__TOPICS__EVENT_PARTITIONS", PARTITIONS.to_string())
        .env("THROUGHLINE__TOPICS__COMMAND_PARTITIONS", PARTITIONS.to_string())
        .env("THROUGHLINE__KAFKA__SESSION_TIMEOUT_MS", settings.kafka.session_timeout_ms.to_string())
        .env("HTTP_LISTEN", "127.0.0.1:0")
        .env("ADMIN_LISTEN", "127.0.0.1:0")
        .env("NO_COLOR", "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

/// What a process left behind.
#[derive(Debug)]
pub struct Ended {
    /// None when a signal ended it.
    pub code: Option<i32>,
    pub killed: bool,
    pub stdout: String,
    pub stderr: String,
}

/// Waits for its end.
pub async fn ended(child: Child) -> Ended {
    let output = tokio::time::timeout(PATIENCE, child.wait_with_output()).await.expect("it ends").expect("it ran");
    Ended {
        code: output.status.code(),
        killed: output.status.signal() == Some(Signal::SIGKILL as i32),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Runs it until it dies at the crash point: as `kill -9` would, at that very line.
pub async fn dies_at(bed: &Bed, arguments: &[&str], point: &str) {
    let child = command(bed, arguments).env("THROUGHLINE_CRASH_AT", point).spawn().expect("it starts");
    let end = ended(child).await;
    assert!(end.killed, "{arguments:?} did not die at {point}: {end:?}");
}

fn id(child: &Child) -> Pid {
    Pid::from_raw(child.id().expect("it runs").cast_signed())
}

/// Waits until it stands still at the point named in `THROUGHLINE_STOP_AT`.
pub async fn until_stopped(child: &Child) {
    let since = Instant::now();
    let state = format!("/proc/{}/stat", id(child));
    while !std::fs::read_to_string(&state).expect("it runs").contains(") T ") {
        expired(since, "the process to stop");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// SIGCONT.
pub fn wake(child: &Child) {
    kill(id(child), Signal::SIGCONT).expect("signals");
}

/// SIGTERM, and a clean end.
pub async fn stops(child: Child) {
    kill(id(&child), Signal::SIGTERM).expect("signals");
    let end = ended(child).await;
    assert_eq!(end.code, Some(0), "{end:?}");
}
