//! Token buckets, one a caller: so much a second, a second's worth at once.
//!
//! The map is bounded: a newcomer beyond the bound first takes the place of a caller who has been
//! quiet, else shares one bucket with the other newcomers.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// The limiter of one server.
#[derive(Debug)]
pub struct RateLimiter {
    per_second: f64,
    callers_max: usize,
    buckets: Mutex<HashMap<String, Bucket>>,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    tokens: f64,
    filled_at: Instant,
}

/// Bucket of the callers that found the map full. No caller's name is empty.
const SHARED: &str = "";

impl RateLimiter {
    /// A limiter of `per_second` commands a caller; 0 = no limit.
    pub fn new(per_second: u32, callers_max: usize) -> Self {
        Self { per_second: f64::from(per_second), callers_max, buckets: Mutex::default() }
    }

    /// Takes one token of `caller`'s, or tells after how many seconds there will be one.
    pub fn take(&self, caller: &str) -> Result<(), u64> {
        self.take_at(caller, Instant::now())
    }

    fn take_at(&self, caller: &str, now: Instant) -> Result<(), u64> {
        if self.per_second == 0.0 {
            return Ok(());
        }
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let mut name = caller;
        if !buckets.contains_key(caller) && buckets.len() >= self.callers_max {
            // A bucket that has filled up again tells nothing that a new one would not.
            buckets.retain(|_, bucket| bucket.refilled(now, self.per_second) < self.per_second);
            if buckets.len() >= self.callers_max {
                name = SHARED;
            }
        }
        let full = Bucket { tokens: self.per_second, filled_at: now };
        let bucket = match buckets.get_mut(name) {
            Some(bucket) => bucket,
            None => buckets.entry(name.to_owned()).or_insert(full),
        };
        bucket.tokens = bucket.refilled(now, self.per_second);
        bucket.filled_at = now;
        if bucket.tokens >= 1.0 {
            bucket.tokens -= 1.0;
            return Ok(());
        }
        Err((((1.0 - bucket.tokens) / self.per_second).ceil() as u64).max(1))
    }
}

impl Bucket {
    fn refilled(&self, now: Instant, per_second: f64) -> f64 {
        let seconds = now.saturating_duration_since(self.filled_at).as_secs_f64();
        (self.tokens + seconds * per_second).min(per_second)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_seconds_worth_at_once_then_one_by_one() {
        let limiter = RateLimiter::new(3, 10);
        let now = Instant::now();
        assert_eq!([(); 4].map(|()| limiter.take_at("a", now).is_ok()), [true, true, true, false]);
        assert_eq!(limiter.take_at("a", now), Err(1));
        assert!(limiter.take_at("b", now).is_ok(), "callers do not share");
        assert!(limiter.take_at("a", now + Duration::from_millis(400)).is_ok());
        assert!(limiter.take_at("a", now + Duration::from_millis(400)).is_err());
    }

    #[test]
    fn zero_is_no_limit() {
        let limiter = RateLimiter::new(0, 1);
        assert!((0..10_000).all(|_| limiter.take("a").is_ok()));
    }

    #[test]
    fn the_map_is_bounded() {
        let limiter = RateLimiter::new(1, 2);
        let now = Instant::now();
        for caller in ["a", "b", "c"] {
            assert!(limiter.take_at(caller, now).is_ok(), "{caller}");
        }
        assert!(limiter.take_at("d", now).is_err(), "c and d share a bucket");
        assert_eq!(limiter.buckets.lock().unwrap().len(), 3);
        // Once a and b were quiet for long enough, newcomers get their own again.
        assert!(limiter.take_at("e", now + Duration::from_secs(5)).is_ok());
        assert_eq!(limiter.buckets.lock().unwrap().len(), 1);
    }
}
