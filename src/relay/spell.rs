//! A spell in which nothing goes on: since when, why, and how long to wait before the next try.

use std::time::{Duration, Instant};

/// First and longest wait after a failure of the database or the producer.
const WAITS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// Whether something keeps the whole loop from going on.
pub(super) struct Spell {
    retry_at: Instant,
    wait: Duration,
    away: Option<Away>,
}

/// Why nothing goes on.
pub(super) struct Away {
    pub since: Instant,
    /// As it was told last.
    pub reason: String,
}

impl Default for Spell {
    fn default() -> Self {
        Self { retry_at: Instant::now(), wait: WAITS.0, away: None }
    }
}

impl Spell {
    /// When something may be tried again.
    pub fn retry_at(&self) -> Instant {
        self.retry_at
    }

    pub fn is_waiting(&self) -> bool {
        Instant::now() < self.retry_at
    }

    /// Why nothing goes on, if nothing does.
    pub fn away(&self) -> Option<&Away> {
        self.away.as_ref()
    }

    /// Waits before the next try, longer each time.
    pub fn back_off(&mut self) {
        self.retry_at = Instant::now() + self.wait;
        self.wait = (self.wait * 2).min(WAITS.1);
    }

    /// Something was written: the next failure is a first one.
    pub fn begin_anew(&mut self) {
        self.wait = WAITS.0;
    }

    /// Nothing goes on for this reason: one line of log where it begins, and where it changes.
    pub fn note(&mut self, reason: String) {
        if self.away.as_ref().is_none_or(|away| away.reason != reason) {
            tracing::warn!(reason, "the relay waits; tried again for as long as it takes");
        }
        let since = self.away.as_ref().map_or_else(Instant::now, |away| away.since);
        self.away = Some(Away { since, reason });
    }

    /// It goes on.
    pub fn over(&mut self) {
        if self.away.take().is_some() {
            tracing::info!("the relay goes on");
        }
    }
}
