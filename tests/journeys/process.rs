//! Processes of the real binary, as an operator starts, stops and kills them.

use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

use crate::harness::{Harness, eventually};

/// A running process; killed when dropped.
pub struct Process {
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
    ended: Arc<AtomicBool>,
}

/// A command of ours with this test's environment.
pub fn command(harness: &Harness, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_throughline"));
    command
        .args(arguments)
        .envs(harness.environment())
        .env_remove("RUST_LOG")
        .env("NO_COLOR", "1")
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command
}

/// What a process that ended left behind.
pub struct Ended {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

/// Runs a command of ours to its end.
pub async fn ended(command: &mut Command) -> Ended {
    let output = tokio::time::timeout(Duration::from_secs(60), command.output())
        .await
        .expect("the command ends")
        .expect("the command starts");
    Ended {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

impl Process {
    /// Starts `throughline run ROLE…`.
    pub fn run(harness: &Harness, roles: &[&str]) -> Self {
        Self::start(command(harness, &[&["run"], roles].concat()))
    }

    /// Starts a command and gathers what it logs.
    pub fn start(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the process starts");
        let lines = Arc::new(Mutex::new(Vec::new()));
        let mut reader = BufReader::new(child.stderr.take().expect("stderr is piped")).lines();
        let ended = Arc::new(AtomicBool::new(false));
        let (gathered, ends) = (lines.clone(), ended.clone());
        tokio::spawn(async move {
            while let Ok(Some(line)) = reader.next_line().await {
                gathered.lock().unwrap().push(line);
            }
            ends.store(true, Ordering::Release);
        });
        Self { child, lines, ended }
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.id()).expect("a process id")), signal).expect("signal the process");
    }

    /// SIGKILL, and waits for the end.
    pub async fn kill(mut self) {
        self.signal(Signal::SIGKILL);
        self.child.wait().await.expect("the killed process ends");
    }

    /// SIGSTOP: a zombie in the making.
    pub fn pause(&self) {
        self.signal(Signal::SIGSTOP);
    }

    /// The process's id.
    pub fn id(&self) -> u32 {
        self.child.id().expect("the process still runs")
    }

    /// SIGTERM, without waiting for what follows.
    pub fn ask_to_stop(&self) {
        self.signal(Signal::SIGTERM);
    }

    /// SIGCONT.
    pub fn wake(&self) {
        self.signal(Signal::SIGCONT);
    }

    /// SIGTERM; the exit code.
    pub async fn terminate(self) -> i32 {
        self.ask_to_stop();
        self.ended().await
    }

    /// Waits for the end; the exit code.
    pub async fn ended(mut self) -> i32 {
        let status = tokio::time::timeout(Duration::from_secs(25), self.child.wait())
            .await
            .unwrap_or_else(|_| panic!("no end within 25 s; log:\n{}", self.lines.lock().unwrap().join("\n")));
        let code = status.expect("the process ends").code().unwrap_or(-1);
        if code != 0 {
            eprintln!("it ended with {code}; log:\n{}", self.lines.lock().unwrap().join("\n"));
        }
        code
    }

    /// Waits for a log line that contains `text`; the line.
    pub async fn logged(&self, text: &str) -> String {
        eventually(&format!("a log line with `{text}`"), || async {
            // In this order: what is logged before the end is in the lines then.
            let ended = self.ended.load(Ordering::Acquire);
            let lines = self.lines.lock().unwrap();
            let found = lines.iter().find(|line| line.contains(text)).cloned();
            assert!(found.is_some() || !ended, "the process ended before it logged `{text}`:\n{}", lines.join("\n"));
            found
        })
        .await
    }

    /// Log lines so far that contain `text`.
    pub fn count(&self, text: &str) -> usize {
        self.lines.lock().unwrap().iter().filter(|line| line.contains(text)).count()
    }

    /// Everything logged so far.
    pub fn log(&self) -> String {
        self.lines.lock().unwrap().join("\n")
    }

    /// The address that the API listens on.
    pub async fn http_url(&self) -> String {
        self.url_of("api").await
    }

    /// The address that the admin port listens on.
    pub async fn admin_url(&self) -> String {
        self.url_of("admin").await
    }

    async fn url_of(&self, listener: &str) -> String {
        let line = self.logged(&format!("{listener} listens")).await;
        let address = line.split("address=").nth(1).expect("the line names the address");
        format!("http://{}", address.split_whitespace().next().unwrap_or_default())
    }
}
