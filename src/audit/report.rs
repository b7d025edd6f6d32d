//! What a verification answers: each check, whether it holds, and the first things that do not.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Finding;

/// Differences that one check tells, at most; all are counted.
const TOLD_MAX: usize = 20;

/// One promise and what became of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Check {
    /// Such as `topic`; stable.
    pub name: String,
    /// The context, projection or process manager that it is about.
    pub of: String,
    pub holds: bool,
    /// Rows, records or instances that were looked at.
    pub checked: u64,
    /// How many differences there are.
    pub found: u64,
    /// The first of them.
    pub differences: Vec<Finding>,
    /// What was not looked at, and why; or what is worth knowing.
    pub notes: Vec<String>,
}

/// All checks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Every check does.
    pub holds: bool,
    /// Whether everything was looked at.
    pub full: bool,
    pub checks: Vec<Check>,
    /// By topic and partition: up to there everything was proven, by this run or by the role `audit`.
    pub proven_up_to: BTreeMap<String, BTreeMap<i32, i64>>,
}

/// The checks of a run, in the order in which they were begun.
#[derive(Debug, Default)]
pub(super) struct Checks(pub Vec<Check>);

impl Checks {
    /// The check `name` of `of`, begun where it is not there.
    pub fn of(&mut self, name: &str, of: &str) -> &mut Check {
        let at = self.0.iter().position(|check| check.name == name && check.of == of).unwrap_or_else(|| {
            self.0.push(Check {
                name: name.to_owned(),
                of: of.to_owned(),
                holds: true,
                checked: 0,
                found: 0,
                differences: Vec::new(),
                notes: Vec::new(),
            });
            self.0.len() - 1
        });
        &mut self.0[at]
    }
}

impl Check {
    /// `checked` more were looked at, and `findings` are what is wrong.
    pub(super) fn add(&mut self, checked: u64, findings: Vec<Finding>) {
        self.checked += checked;
        self.found += findings.len() as u64;
        self.holds &= findings.is_empty();
        let room = TOLD_MAX.saturating_sub(self.differences.len());
        self.differences.extend(findings.into_iter().take(room));
    }

    /// Says something, once.
    pub(super) fn note(&mut self, note: String) {
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }
}
