//! Start and stop of a process: every long task is spawned here, and a signal ends them in order.
//!
//! First SIGTERM or SIGINT: the process tells that it is stopping, and goes on for the notice that it
//! owes to those who send requests; then the token is cancelled, tasks finish what they hold and
//! return. A task that ends by itself, or fails, ends the process with its error. Past the deadline, or
//! on a second signal, the process ends at once: PostgreSQL holds every truth, so nothing is lost by that.

use std::future::Future;
use std::sync::Mutex;
use std::time::Duration;

use anyhow::Context as _;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Notice and stop take this long, at most; orchestrators commonly kill at 30 s.
const STOP_DEADLINE: Duration = Duration::from_secs(25);
/// Exit code of a forced stop.
const INTERRUPTED: i32 = 130;

/// The tasks of a process and the token that stops them.
pub struct Lifecycle {
    /// A child of `shutdown`, cancelled earlier where a notice is due.
    stopping: CancellationToken,
    shutdown: CancellationToken,
    notice: Mutex<Duration>,
    tasks: Mutex<JoinSet<(String, anyhow::Result<()>)>>,
    signals: Option<(Signal, Signal)>,
}

impl Lifecycle {
    /// A lifecycle that SIGTERM and SIGINT end.
    pub fn with_signals() -> anyhow::Result<Self> {
        let terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
        let interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
        Ok(Self { signals: Some((terminate, interrupt)), ..Self::embedded() })
    }

    /// A lifecycle that only its token ends, for programs that embed the roles.
    pub fn embedded() -> Self {
        let shutdown = CancellationToken::new();
        let (stopping, notice) = (shutdown.child_token(), Mutex::default());
        Self { stopping, shutdown, notice, tasks: Mutex::default(), signals: None }
    }

    /// Runs `start` unless a signal comes first: then there is nothing to finish, and `None` is
    /// answered.
    pub async fn unless_signalled<T>(&mut self, start: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            started = start => Some(started),
            () = any(&mut self.signals) => None,
        }
    }

    /// Cancelled when the process is to stop.
    pub fn shutdown(&self) -> CancellationToken {
        self.shutdown.clone()
    }

    /// Cancelled as soon as it is known that the process is to stop: the notice begins.
    pub fn stopping(&self) -> CancellationToken {
        self.stopping.clone()
    }

    /// A signal is followed by this notice before anything stops. None is due by default.
    pub fn give_notice(&self, notice: Duration) {
        *self.notice.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = notice;
    }

    /// Runs `task` until it returns. It has to return soon after the token is cancelled.
    pub fn spawn<E>(&self, name: impl Into<String>, task: impl Future<Output = Result<(), E>> + Send + 'static)
    where
        E: Into<anyhow::Error> + 'static,
    {
        let name = name.into();
        let mut tasks = self.tasks.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        tasks.spawn(async move { (name, task.await.map_err(Into::into)) });
    }

    /// Waits for a signal, the token, or the first task that ends; then stops the others.
    pub async fn run(mut self) -> anyhow::Result<()> {
        let mut tasks = std::mem::take(self.tasks.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner));
        let mut signals = self.signals.take();
        let mut outcome = Ok(());
        let mut notice = Duration::ZERO;
        tokio::select! {
            () = any(&mut signals) => {
                notice = *self.notice.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner);
                tracing::info!(notice_ms = notice.as_millis(), "signal received: finishing what is in hand");
            }
            () = self.shutdown.cancelled() => {}
            // Cancelled and ended may be seen in either order.
            Some(ended) = tasks.join_next() => outcome = explain(ended, self.shutdown.is_cancelled()),
        }
        let deadline = tokio::time::sleep(STOP_DEADLINE);
        tokio::pin!(deadline);
        self.stopping.cancel();
        tokio::select! {
            biased;
            () = any(&mut signals) => end_at_once(),
            () = self.shutdown.cancelled() => {}
            Some(ended) = tasks.join_next(), if !notice.is_zero() => outcome = explain(ended, false),
            () = tokio::time::sleep(notice) => {}
        }
        self.shutdown.cancel();
        loop {
            tokio::select! {
                ended = tasks.join_next() => match ended {
                    None => break,
                    Some(ended) => outcome = outcome.and(explain(ended, true)),
                },
                () = any(&mut signals) => end_at_once(),
                () = &mut deadline => {
                    outcome = outcome.and(Err(anyhow::anyhow!(
                        "{} task(s) did not stop within {} s and were left", tasks.len(), STOP_DEADLINE.as_secs()
                    )));
                    tasks.detach_all();
                    break;
                }
            }
        }
        outcome
    }
}

fn end_at_once() -> ! {
    eprintln!("second signal: ending at once");
    std::process::exit(INTERRUPTED);
}

fn explain(ended: Result<(String, anyhow::Result<()>), tokio::task::JoinError>, stopping: bool) -> anyhow::Result<()> {
    match ended {
        Ok((name, Ok(()))) if stopping => {
            tracing::info!(task = name, "stopped");
            Ok(())
        }
        Ok((name, Ok(()))) => Err(anyhow::anyhow!("{name} ended by itself")),
        Ok((name, Err(error))) => Err(error.context(format!("{name} failed"))),
        Err(error) => Err(anyhow::Error::new(error).context("a task panicked")),
    }
}

async fn any(signals: &mut Option<(Signal, Signal)>) {
    match signals {
        Some((terminate, interrupt)) => {
            tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        }
        None => std::future::pending().await,
    }
}
