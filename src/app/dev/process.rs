//! Processes of the machine: started so that they die with us, named so that no recycled id is ever
//! killed. Knows nothing of Kafka or PostgreSQL.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::error::{DevError, last_lines};

/// How often a condition of another process is looked at.
pub(super) const POLL: Duration = Duration::from_millis(20);

/// Told in one line what a start is doing.
pub type Report = Arc<dyn Fn(&str) + Send + Sync>;

/// Set to stop a start that is under way.
#[derive(Debug, Clone, Default)]
pub struct CancelFlag(Arc<AtomicBool>);

impl CancelFlag {
    /// Asks for the stop.
    pub fn set(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    /// An error once the stop was asked for.
    pub(super) fn check(&self) -> Result<(), DevError> {
        if self.0.load(Ordering::SeqCst) { Err(DevError::Cancelled) } else { Ok(()) }
    }
}

/// One process for ever: its id together with what a later process of the same id would not share.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    pub pid: i32,
    /// Boot and tick at which it started.
    started: String,
    command: String,
}

impl Identity {
    /// The process that has this id now; none when there is no live one.
    pub fn of(pid: u32) -> Option<Self> {
        let pid = i32::try_from(pid).ok()?;
        let (started, command) = observe(pid)?;
        Some(Self { pid, started, command })
    }

    /// This process.
    pub fn own() -> Option<Self> {
        Self::of(std::process::id())
    }

    /// Whether this very process still runs. A zombie does not.
    pub fn is_alive(&self) -> bool {
        // On its way out a process has lost its command line, and is not gone yet.
        let same = |now: Self| now.started == self.started && (now.command == self.command || now.command.is_empty());
        u32::try_from(self.pid).ok().and_then(Self::of).is_some_and(same)
    }

    /// Signals this very process; nothing when it is gone.
    pub fn signal(&self, signal: Signal) {
        if self.is_alive() {
            // It may end between the look and the signal; then there is nobody to tell.
            let _ = kill(Pid::from_raw(self.pid), signal);
        }
    }

    /// Asks with `gentle`, kills after `bound`, and returns once it is gone.
    pub fn end(&self, gentle: Signal, bound: Duration) {
        self.signal(gentle);
        if !wait_until(bound, || !self.is_alive()) {
            self.signal(Signal::SIGKILL);
            wait_until(bound, || !self.is_alive());
        }
    }
}

#[cfg(target_os = "linux")]
fn observe(pid: i32) -> Option<(String, String)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything; the fields proper follow the last one.
    let mut fields = stat[stat.rfind(')')? + 2..].split(' ');
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    let tick = fields.nth(18)?;
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let command = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    Some((format!("{} {tick}", boot.trim()), String::from_utf8_lossy(&command).replace('\0', " ")))
}

#[cfg(not(target_os = "linux"))]
fn observe(pid: i32) -> Option<(String, String)> {
    let output = Command::new("ps").args(["-o", "state=,lstart=,command=", "-p", &pid.to_string()]).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.trim();
    if line.is_empty() || line.starts_with('Z') {
        return None;
    }
    let words: Vec<&str> = line.split_whitespace().collect();
    Some((words.get(1..6)?.join(" "), words.get(6..)?.join(" ")))
}

/// Polls `condition` until it holds (true) or `bound` has passed (false).
pub(super) fn wait_until(bound: Duration, condition: impl Fn() -> bool) -> bool {
    let end = Instant::now() + bound;
    while !condition() {
        if Instant::now() >= end {
            return false;
        }
        std::thread::sleep(POLL);
    }
    true
}

/// A child that gets `on_orphaned` when the thread that starts it ends, however it ends; out of the
/// terminal's process group, so that Ctrl-C reaches only the launcher. Output appends to `log`.
pub(super) fn bind_to_us(command: &mut Command, on_orphaned: Signal, log: &Path) -> Result<(), DevError> {
    let out =
        std::fs::OpenOptions::new().create(true).append(true).open(log).map_err(DevError::file("write to", log))?;
    let err = out.try_clone().map_err(DevError::file("write to", log))?;
    command.stdin(Stdio::null()).stdout(out).stderr(err).process_group(0);
    die_with_parent(command, on_orphaned);
    Ok(())
}

#[cfg(target_os = "linux")]
fn die_with_parent(command: &mut Command, on_orphaned: Signal) {
    let parent = nix::unistd::getpid();
    // SAFETY: between fork and exec only async-signal-safe calls are made: prctl, getppid.
    // The standard library changes the uid, which clears the setting, before it runs this.
    unsafe {
        command.pre_exec(move || {
            nix::sys::prctl::set_pdeathsig(on_orphaned)?;
            if nix::unistd::getppid() != parent {
                return Err(std::io::ErrorKind::NotConnected.into());
            }
            Ok(())
        });
    }
}

#[cfg(not(target_os = "linux"))]
fn die_with_parent(_command: &mut Command, _on_orphaned: Signal) {}

/// A running child with its lasting name.
#[derive(Debug)]
pub(super) struct Running {
    child: Child,
    pub(super) identity: Identity,
}

impl Running {
    pub(super) fn spawn(mut command: Command, step: &'static str) -> Result<Self, DevError> {
        let next = format!("check that {} can be run", command.get_program().to_string_lossy());
        let mut child = command.spawn().map_err(|error| DevError::step(step, error, next))?;
        match Identity::of(child.id()) {
            Some(identity) => Ok(Self { child, identity }),
            None => {
                let status = child.wait().map(|status| status.to_string()).unwrap_or_default();
                Err(DevError::step(step, format!("it ended at once ({status})"), "throughline dev logs"))
            }
        }
    }

    /// Its exit status, once it has ended.
    pub(super) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Asks with `gentle`, kills after `bound`, reaps.
    pub(super) fn stop(&mut self, gentle: Signal, bound: Duration) {
        if self.ended().is_some() {
            return;
        }
        // Not yet reaped, so the id is still this child's.
        let _ = kill(Pid::from_raw(self.identity.pid), gentle);
        let end = Instant::now() + bound;
        while self.ended().is_none() {
            if Instant::now() >= end {
                let _ = self.child.kill();
                let _ = self.child.wait();
                return;
            }
            std::thread::sleep(POLL);
        }
    }
}

/// Runs a short program to its end, its output in `log`; an error carries the end of that.
pub(super) fn run_to_end(
    mut command: Command,
    step: &'static str,
    log: &Path,
    bound: Duration,
    cancel: &CancelFlag,
) -> Result<(), DevError> {
    let _ = std::fs::remove_file(log);
    bind_to_us(&mut command, Signal::SIGKILL, log)?;
    let program = command.get_program().to_string_lossy().into_owned();
    let mut child =
        command.spawn().map_err(|error| DevError::step(step, error, format!("check that {program} can be run")))?;
    let end = Instant::now() + bound;
    let status = loop {
        if let Ok(Some(status)) = child.try_wait() {
            break status;
        }
        let stopped = cancel.check();
        if stopped.is_err() || Instant::now() >= end {
            let _ = child.kill();
            let _ = child.wait();
            stopped?;
            let reason = format!("no end after {} s: {}", bound.as_secs(), last_lines(log, 3));
            return Err(DevError::step(step, reason, format!("see {}", log.display())));
        }
        std::thread::sleep(POLL);
    };
    if status.success() {
        return Ok(());
    }
    Err(DevError::step(step, format!("{status}: {}", last_lines(log, 5)), format!("see {}", log.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_outlives_neither_its_process_nor_its_id() {
        let mut child = Command::new("sleep").arg("600").spawn().unwrap();
        let identity = Identity::of(child.id()).unwrap();
        assert!(identity.is_alive());
        let recycled = Identity { started: "another boot 1".into(), ..identity.clone() };
        assert!(!recycled.is_alive());
        recycled.signal(Signal::SIGKILL);
        assert!(identity.is_alive(), "a process of the same id but another start was signalled");
        child.kill().unwrap();
        // Not yet reaped: a zombie counts as gone.
        assert!(wait_until(Duration::from_secs(5), || !identity.is_alive()));
        child.wait().unwrap();
    }

    #[test]
    fn a_deaf_process_is_killed_after_the_bound() {
        let mut command = Command::new("sh");
        command.args(["-c", "trap '' TERM; echo deaf; sleep 600 & wait; wait"]).process_group(0);
        command.stdout(Stdio::piped());
        let mut running = Running::spawn(command, "deaf").unwrap();
        let mut line = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(running.child.stdout.take().unwrap()), &mut line)
            .unwrap();
        let group = Pid::from_raw(running.identity.pid);
        running.stop(Signal::SIGTERM, Duration::from_millis(100));
        assert!(!running.identity.is_alive());
        let _ = nix::sys::signal::killpg(group, Signal::SIGKILL);
    }

    #[test]
    fn a_failing_program_is_one_paragraph() {
        let log = std::env::temp_dir().join(format!("throughline-run-to-end-{}", std::process::id()));
        let mut command = Command::new("sh");
        command.args(["-c", "echo one; echo two >&2; exit 3"]);
        let error = run_to_end(command, "a step", &log, Duration::from_secs(10), &CancelFlag::default())
            .unwrap_err()
            .to_string();
        std::fs::remove_file(&log).unwrap();
        assert!(error.contains("one | two") && error.contains("3") && !error.contains('\n'), "{error}");
    }
}
