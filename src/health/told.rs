//! A failure that lasts, told once a change: when it begins, when another reason joins it, and when it is over.
//!
//! Whoever tries again for hours says so once. What is said in between counts, and is seen at level debug.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Reasons of one spell that are told, at most; the rest only count.
const REASONS_MAX: usize = 8;
/// What ran for longer than this before it failed had been well.
const SETTLED: Duration = Duration::from_secs(30);

/// One thing that may fail for a while.
#[derive(Debug)]
pub struct Told {
    what: String,
    /// Whether there is a spell: what works, on a hot path perhaps, takes no lock.
    failing: AtomicBool,
    spell: Mutex<Option<Spell>>,
}

#[derive(Debug)]
struct Spell {
    since: Instant,
    failures: u64,
    /// Told, without their numbers: a duration or a port makes no new reason.
    reasons: BTreeSet<String>,
}

impl Told {
    /// `what` fails, as the log says it: `the command queue cannot be measured`.
    pub fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), failing: AtomicBool::new(false), spell: Mutex::default() }
    }

    /// It failed, again perhaps. Whether that was told at level warn.
    pub fn failed(&self, reason: &str) -> bool {
        let mut spell = self.spell.lock().unwrap_or_else(PoisonError::into_inner);
        let spell = spell.get_or_insert_with(|| Spell { since: Instant::now(), failures: 0, reasons: BTreeSet::new() });
        spell.failures += 1;
        self.failing.store(true, Ordering::Release);
        let kind: String = reason.chars().filter(|c| !c.is_ascii_digit()).collect();
        let news = spell.reasons.len() < REASONS_MAX && spell.reasons.insert(kind);
        let what = self.what.as_str();
        match news {
            true => tracing::warn!(reason, "{what}; tried again for as long as it takes"),
            false => tracing::debug!(reason, failures = spell.failures, "{what}"),
        }
        news
    }

    /// It ended after it had run for `lasted`, and is started anew: whoever starts and fails again and again is
    /// in one spell. Whether that was told at level warn.
    pub fn ended_after(&self, lasted: Duration, reason: &str) -> bool {
        if lasted >= SETTLED {
            self.well();
        }
        self.failed(reason)
    }

    /// It works. Whether that was news.
    pub fn well(&self) -> bool {
        if !self.failing.swap(false, Ordering::AcqRel) {
            return false;
        }
        let Some(spell) = self.spell.lock().unwrap_or_else(PoisonError::into_inner).take() else { return false };
        let seconds = spell.since.elapsed().as_secs();
        tracing::info!(failures = spell.failures, seconds, "over: {}", self.what);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spell_is_told_at_its_beginning_at_a_new_reason_and_at_its_end() {
        let told = Told::new("the outbox cannot be read");
        assert!(!told.well(), "nothing has failed");
        assert!(told.failed("refused after 3 ms"));
        assert!(!told.failed("refused after 5 ms"), "the same reason with another number");
        assert!(told.failed("the server shuts down"));
        assert!(!told.failed("refused after 6 ms"), "told before in this spell");
        assert!(told.well() && !told.well());
        assert!(told.failed("refused after 3 ms"), "a new spell");
        assert!(!told.ended_after(Duration::from_secs(1), "refused after 7 ms"), "it hardly began");
        assert!(told.ended_after(SETTLED, "refused after 8 ms"), "it had been well");
    }

    #[test]
    fn reasons_without_end_are_no_storm() {
        let told = Told::new("a batch is not applied");
        let said = (0..1_000).filter(|n| told.failed(&"x".repeat(*n))).count();
        assert_eq!(said, REASONS_MAX);
    }
}
