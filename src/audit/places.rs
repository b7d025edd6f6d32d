//! How far a verification came, kept in a file so that one that was interrupted goes on.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::AuditError;
use super::report::Check;

/// The file is written this often, at most, but for the end of a part.
const KEPT_EVERY: Duration = Duration::from_secs(2);

/// What was done, by part, and what was found so far.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct State {
    places: BTreeMap<String, i64>,
    checks: Vec<Check>,
}

/// How far each part came.
#[derive(Debug, Default)]
pub struct Places {
    path: Option<PathBuf>,
    state: State,
    kept: Option<Instant>,
}

impl Places {
    /// Places that nobody keeps, or those of a file; one that is not there begins anew.
    ///
    /// # Errors
    /// The file is not one of these.
    pub fn open(path: Option<&Path>) -> Result<Self, AuditError> {
        let Some(path) = path else { return Ok(Self::default()) };
        let state = match std::fs::read(path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| failed("read", path, &error))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => State::default(),
            Err(error) => return Err(failed("read", path, &error)),
        };
        Ok(Self { path: Some(path.to_owned()), state, kept: None })
    }

    /// Where a part stands; none where it was not begun.
    pub(super) fn of(&self, part: &str) -> Option<i64> {
        self.state.places.get(part).copied()
    }

    /// What was found before.
    pub(super) fn checks(&self) -> Vec<Check> {
        self.state.checks.clone()
    }

    /// A part came so far.
    pub(super) fn reached(&mut self, part: &str, place: i64, checks: &[Check]) -> Result<(), AuditError> {
        self.state.places.insert(part.to_owned(), place);
        let is_due = self.kept.is_none_or(|kept| kept.elapsed() >= KEPT_EVERY);
        if is_due { self.keep(checks) } else { Ok(()) }
    }

    /// Writes the file.
    pub(super) fn keep(&mut self, checks: &[Check]) -> Result<(), AuditError> {
        let Some(path) = &self.path else { return Ok(()) };
        self.state.checks = checks.to_vec();
        self.kept = Some(Instant::now());
        let bytes = serde_json::to_vec(&self.state).map_err(|error| failed("write", path, &error))?;
        // Whoever is killed leaves the old file or the new one.
        let beside = path.with_extension("new");
        std::fs::write(&beside, bytes)
            .and_then(|()| std::fs::rename(&beside, path))
            .map_err(|error| failed("write", path, &error))
    }

    /// All is done: nothing is left to go on from.
    pub(super) fn done(&mut self) -> Result<(), AuditError> {
        match self.path.as_deref().map(|path| (path, std::fs::remove_file(path))) {
            Some((path, Err(error))) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(failed("remove", path, &error))
            }
            _ => Ok(()),
        }
    }
}

fn failed(action: &'static str, path: &Path, reason: &dyn std::fmt::Display) -> AuditError {
    AuditError::Places { action, path: path.display().to_string(), reason: reason.to_string() }
}
