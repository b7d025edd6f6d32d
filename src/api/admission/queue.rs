//! The arithmetic of one lane's queue and of one overflow partition. No locks, no clocks, no I/O.

/// What is known of one lane.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Queue {
    /// Commands that the processors had not decided when last sampled.
    lag: u64,
    /// Of this server's accepted commands, those that were so before the sample began.
    accepted_at_sample: u64,
    /// Commands that this server had acknowledged by Kafka.
    pub(super) accepted_total: u64,
    /// Commands handed to the producer and not acknowledged.
    pub(super) in_flight: u64,
    /// Commands decided a second, smoothed.
    pub(super) drained_per_second: f64,
    decided: Option<u64>,
}

/// Share of the newest measurement in the smoothed drain rate.
const NEWEST_SHARE: f64 = 0.3;

impl Queue {
    /// Commands that wait to be decided, at least as many as there are.
    pub(super) fn depth(&self) -> u64 {
        self.lag + (self.accepted_total - self.accepted_at_sample) + self.in_flight
    }

    /// Takes in a sample: the lag, the sum of the processors' offsets, the count of accepted
    /// commands before the sample began, and the seconds since the sample before.
    pub(super) fn sample(&mut self, lag: u64, decided: u64, accepted_before: u64, seconds: f64) {
        if let Some(last) = self.decided.filter(|_| seconds > 0.0) {
            let rate = decided.saturating_sub(last) as f64 / seconds;
            self.drained_per_second += NEWEST_SHARE * (rate - self.drained_per_second);
        }
        self.decided = Some(decided);
        self.lag = lag;
        self.accepted_at_sample = accepted_before;
    }

    /// Seconds until the queue is likely to have room, 1 to `most`: time to drain what is above
    /// nine tenths of the limit at the measured rate.
    pub(super) fn seconds_until(&self, limit: u64, most: u64) -> u64 {
        let excess = self.depth().saturating_sub(limit - limit / 10).max(1);
        let seconds = excess as f64 / self.drained_per_second;
        // Nothing drains: infinite, hence the most.
        if seconds.is_finite() { (seconds.ceil() as u64).clamp(1, most) } else { most }
    }
}

/// What is known of one partition of the overflow topic.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Spill {
    /// Offset behind the newest record known.
    pub(super) end: i64,
    /// Everything before this offset was moved to its lane.
    pub(super) drained: i64,
    /// Commands handed to the producer and not acknowledged.
    pub(super) in_flight: u64,
}

impl Spill {
    /// Commands that are, or may be, in overflow.
    pub(super) fn pending(&self) -> u64 {
        self.in_flight + u64::try_from(self.end - self.drained).unwrap_or(0)
    }
}

/// The queues at a moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Depths {
    /// Commands that wait, per lane: priority, normal, bulk.
    pub lanes: [u64; 3],
    /// Commands decided a second, per lane, smoothed.
    pub drained_per_second: [f64; 3],
    /// Commands in overflow.
    pub overflow: u64,
    /// Bytes handed to the producer and not acknowledged.
    pub in_flight_bytes: usize,
    /// Whether the queues were measured at least once.
    pub sampled: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_depth_never_forgets_what_the_sample_could_not_see() {
        let mut queue = Queue { in_flight: 2, accepted_total: 5, ..Queue::default() };
        assert_eq!(queue.depth(), 7);
        // Three were accepted before the sample began, two while it ran.
        queue.sample(4, 100, 3, 0.0);
        assert_eq!(queue.depth(), 4 + 2 + 2);
    }

    #[test]
    fn retry_after_follows_the_measured_drain_rate() {
        let mut queue = Queue::default();
        queue.sample(1_000, 0, 0, 1.0);
        assert_eq!(queue.seconds_until(1_000, 60), 60, "nothing drains");
        for second in 1..50 {
            queue.sample(1_000, second * 20, 0, 1.0);
        }
        assert!((queue.drained_per_second - 20.0).abs() < 0.1);
        // 100 above nine tenths of the limit, 20 a second.
        assert!((5..=6).contains(&queue.seconds_until(1_000, 60)));
        assert_eq!(queue.seconds_until(1_000, 3), 3);
        assert_eq!(queue.seconds_until(1_000_000, 60), 1);
    }

    #[test]
    fn an_overflow_partition_is_pending_until_drained() {
        let mut spill = Spill { end: 10, drained: 10, in_flight: 0 };
        assert_eq!(spill.pending(), 0);
        spill.in_flight = 1;
        assert_eq!(spill.pending(), 1);
        spill.end = 12;
        assert_eq!(spill.pending(), 3);
    }
}
