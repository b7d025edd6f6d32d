//! What to do about a failure, by whose it is, and how long to wait.
//!
//! The world's: again, for ever, visibly, on a new session. Too much or in the way of another: with fewer commands,
//! and a command that fails alone makes its partition stand until it is claimed anew. Data: one command breaks the
//! batch; it is found and parked. Corrupt: guessing could lose something, so its partition stands. Only an error
//! that names the data is ever blamed on a command.

use std::time::{Duration, Instant};

use uuid::Uuid;

use crate::settings::ProcessorSettings;
use crate::store::{Blame, StoreError};

/// Why a batch did not commit.
#[derive(Debug)]
pub(super) enum BatchFailure {
    /// The database is away, or not as it has to be. The outcome of a commit may be unknown: the
    /// compare-and-set of the next try finds out.
    World(String),
    /// The batch's time has no partition to go to: the database's clock was set, or nobody keeps house.
    NoPartition(String),
    /// The world's too, but of how much was asked or what it touches: a time limit, a conflict.
    Extent(String),
    /// Somebody holds a lock that is needed. Fewer commands would wait as long.
    Locked(String),
    /// Some command of the batch carries what the database refuses.
    Data(String),
    /// The command at this index of the batch fails by itself.
    Command(usize, String),
    /// Streams whose stored events cannot be trusted.
    Corrupt(Vec<(Uuid, String)>),
}

impl BatchFailure {
    /// Judges a driver error, naming the step it happened in.
    pub fn at(step: &'static str) -> impl FnOnce(tokio_postgres::Error) -> Self {
        move |error| Self::from(StoreError::at(step)(error))
    }

    /// Whether the session knows nothing that could have become untrue.
    pub fn leaves_the_session(&self) -> bool {
        matches!(self, Self::Command(..) | Self::Corrupt(_) | Self::Data(_) | Self::NoPartition(_))
    }
}

impl From<StoreError> for BatchFailure {
    fn from(error: StoreError) -> Self {
        let reason = error.to_string();
        match error.blame() {
            _ if error.is_without_partition() => Self::NoPartition(reason),
            _ if error.is_locked() => Self::Locked(reason),
            Blame::Data => Self::Data(reason),
            Blame::Extent => Self::Extent(reason),
            Blame::World => Self::World(reason),
        }
    }
}

/// Waits between tries of one batch: doubling, bounded, with jitter.
#[derive(Debug)]
pub(super) struct Backoff {
    first: Duration,
    most: Duration,
    tries: u32,
    since: Instant,
    told: String,
}

impl Backoff {
    pub fn new(settings: &ProcessorSettings) -> Self {
        Self {
            first: Duration::from_millis(settings.retry_wait_ms.max(1)),
            most: Duration::from_millis(settings.retry_wait_max_ms.max(1)),
            tries: 0,
            since: Instant::now(),
            told: String::new(),
        }
    }

    /// Notes a failed try, and tells how long to wait. One line of log where it begins, and where the reason changes.
    pub fn failed(&mut self, reason: &str) -> Duration {
        self.tries += 1;
        metrics::counter!("throughline_processor_retries_total").increment(1);
        if self.told != reason {
            tracing::warn!(tries = self.tries, reason, "a batch is tried again for as long as it takes");
            reason.clone_into(&mut self.told);
        }
        let full = self.first.saturating_mul(1 << self.tries.min(16)).min(self.most);
        full.mul_f64(rand::random_range(0.5..1.0))
    }

    /// What waited goes on.
    pub fn over(&self) {
        if self.tries > 0 {
            let seconds = self.since.elapsed().as_secs();
            tracing::info!(tries = self.tries, seconds, "batches are decided again");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_and_stay_bounded() {
        let settings = ProcessorSettings { retry_wait_ms: 10, retry_wait_max_ms: 100, ..ProcessorSettings::default() };
        let mut backoff = Backoff::new(&settings);
        let waits: Vec<Duration> = (0..50).map(|_| backoff.failed("away")).collect();
        assert!(waits[0] >= Duration::from_millis(10) && waits[0] <= Duration::from_millis(20));
        assert!(waits[20..].iter().all(|wait| (50..=100).contains(&wait.as_millis())));
    }
}
