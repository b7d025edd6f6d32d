//! What can go wrong with the development services; each message names the next command.

use std::path::{Path, PathBuf};

/// A failed step of the launcher.
#[derive(Debug, thiserror::Error)]
pub enum DevError {
    /// Programs are missing.
    #[error("the development services need {what}, not found on this machine; install with: {command}")]
    Missing { what: String, command: String },
    /// A program is there, but of no use.
    #[error("{what}; {next}")]
    Unusable { what: String, next: String },
    /// A file or directory of ours.
    #[error("cannot {action} {path}: {source}; check its owner and the room on its disk")]
    File { action: &'static str, path: PathBuf, source: std::io::Error },
    /// A program of theirs said no.
    #[error("{step} failed: {reason}; {next}")]
    Step { step: &'static str, reason: String, next: String },
    /// Nothing runs in the directory.
    #[error("no development services run in {0}; start them with: throughline dev up --detach")]
    NotRunning(PathBuf),
    /// Said by the background process, a whole message already.
    #[error("{0}")]
    Background(String),
    /// Asked to stop while starting.
    #[error("stopped before the services were ready")]
    Cancelled,
    /// Fault injection on services that another process owns.
    #[error("the services in {0} belong to another process; only their owner can stop them singly")]
    NotOwned(PathBuf),
}

impl DevError {
    pub(super) fn file(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { action, path, source }
    }

    pub(super) fn step(step: &'static str, reason: impl std::fmt::Display, next: impl Into<String>) -> Self {
        // One paragraph, whatever the program printed.
        let reason = reason.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
        Self::Step { step, reason, next: next.into() }
    }
}

/// The end of a log, for an error message.
pub(super) fn last_lines(path: &Path, lines: usize) -> String {
    let text = std::fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let all: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty() && !line.starts_with("\tat ")).collect();
    all[all.len().saturating_sub(lines)..].join(" | ")
}

/// What a log says from a byte on.
pub(super) fn text_from(log: &Path, start: u64) -> String {
    let bytes = std::fs::read(log).unwrap_or_default();
    let start = usize::try_from(start).unwrap_or(0).min(bytes.len());
    String::from_utf8_lossy(&bytes[start..]).into_owned()
}
