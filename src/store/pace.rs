//! How fast work in the background reads the store: no faster than it was told, and how far it is.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Counts rows, and waits where they came faster than they may. What was not used is not saved up.
#[derive(Debug)]
pub struct Pace {
    /// Rows a second; none is as fast as it goes.
    rate: Option<u64>,
    /// When the next rows may come.
    due: Mutex<Instant>,
    done: AtomicU64,
    expected: AtomicU64,
}

impl Pace {
    /// A pace of `rate` rows a second, at most.
    pub fn new(rate: Option<u64>) -> Self {
        Self { rate, due: Mutex::new(Instant::now()), done: AtomicU64::new(0), expected: AtomicU64::new(0) }
    }

    /// `rows` were read: returns once the next ones may be.
    pub async fn took(&self, rows: u64) {
        self.done.fetch_add(rows, Ordering::Relaxed);
        if let Some(rate) = self.rate {
            let wait = self.wait(rows, rate, Instant::now());
            tokio::time::sleep(wait).await;
        }
    }

    fn wait(&self, rows: u64, rate: u64, now: Instant) -> Duration {
        let mut due = self.due.lock().unwrap_or_else(PoisonError::into_inner);
        *due = (*due).max(now) + Duration::from_secs_f64(rows as f64 / rate.max(1) as f64);
        *due - now
    }

    /// So many rows more will come, about.
    pub fn expect(&self, rows: u64) {
        self.expected.fetch_add(rows, Ordering::Relaxed);
    }

    /// Rows that will come in all, about; at least those that came.
    pub fn expected(&self) -> u64 {
        self.expected.load(Ordering::Relaxed).max(self.done())
    }

    /// Rows so far.
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_no_faster_than_they_may() {
        let pace = Pace::new(Some(100));
        let now = Instant::now() + Duration::from_secs(60);
        let later = now + Duration::from_secs(30);
        assert_eq!(pace.wait(50, 100, now).as_millis(), 500, "the minute before is not saved up");
        assert_eq!(pace.wait(50, 100, now).as_millis(), 1_000, "two at once share the rate");
        assert_eq!(pace.wait(10, 100, later).as_millis(), 100);
    }
}
