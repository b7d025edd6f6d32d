//! What to do about a failure, by its kind, and how long to wait.
//!
//! Transient: again, for ever, visibly. Data: one command breaks the batch; it is found and parked.
//! Corrupt or unknown: guessing could lose something, so the partition halts and people are told.

use std::time::{Duration, Instant};

use uuid::Uuid;

use crate::settings::ProcessorSettings;
use crate::store::{self, StoreError};

/// Why a batch did not commit.
#[derive(Debug)]
pub(super) enum Failure {
    /// The database is away or asked to try again. The outcome of a commit may be unknown: the
    /// compare-and-set of the next try finds out.
    Transient(String),
    /// The batch's time has no partition to go to: the database's clock was set, or nobody keeps house.
    NoPartition(String),
    /// Some command of the batch carries what the database refuses.
    Data(String),
    /// The command at this index of the batch fails by itself.
    Command(usize, String),
    /// Streams whose stored events cannot be trusted.
    Corrupt(Vec<(Uuid, String)>),
    /// Nothing we know how to handle.
    Unknown(String),
}

impl Failure {
    /// Judges a driver error by its SQLSTATE, naming the step it happened in.
    pub fn at(step: &'static str) -> impl FnOnce(tokio_postgres::Error) -> Self {
        move |error| {
            let reason = format!("{step}: {}", store::describe(&error));
            match error.code() {
                _ if store::is_without_partition(&error) => Self::NoPartition(reason),
                _ if store::is_transient(&error) => Self::Transient(reason),
                // 22 data exception, 23 constraint, 54 program limit: about the values at hand.
                Some(code) if ["22", "23", "54"].iter().any(|class| code.code().starts_with(class)) => {
                    Self::Data(reason)
                }
                None => Self::Data(reason),
                Some(_) => Self::Unknown(reason),
            }
        }
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        if error.is_transient() { Self::Transient(error.to_string()) } else { Self::Unknown(error.to_string()) }
    }
}

/// Waits between tries of one batch: doubling, bounded, with jitter.
#[derive(Debug)]
pub(super) struct Backoff {
    first: Duration,
    most: Duration,
    tries: u32,
    since: Instant,
    logged: Option<Instant>,
}

/// A failure that goes on is logged again this often.
const LOG_INTERVAL: Duration = Duration::from_secs(5);

impl Backoff {
    pub fn new(settings: &ProcessorSettings) -> Self {
        Self {
            first: Duration::from_millis(settings.retry_wait_ms.max(1)),
            most: Duration::from_millis(settings.retry_wait_max_ms.max(1)),
            tries: 0,
            since: Instant::now(),
            logged: None,
        }
    }

    /// Notes a failed try, logs the first and then every few seconds, and tells how long to wait.
    pub fn failed(&mut self, reason: &str) -> Duration {
        self.tries += 1;
        metrics::counter!("throughline_processor_retries_total").increment(1);
        if self.logged.is_none_or(|at| at.elapsed() >= LOG_INTERVAL) {
            self.logged = Some(Instant::now());
            let seconds = self.since.elapsed().as_secs();
            tracing::warn!(tries = self.tries, seconds, reason, "the batch is tried again until it succeeds");
        }
        let full = self.first.saturating_mul(1 << self.tries.min(16)).min(self.most);
        full.mul_f64(rand::random_range(0.5..1.0))
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
