//! When the publishing loop looks at the outbox again, and when it writes down how far it is.
//!
//! Knows times alone: what is looked at, and what was found, is told.

use std::time::{Duration, Instant};

use crate::settings::RelaySettings;

/// `published` moves at most this often while busy, in one statement for all partitions.
const MARK_INTERVAL: Duration = Duration::from_millis(50);
/// A look for room in the producer when no report announced it.
pub(super) const ROOM_RETRY: Duration = Duration::from_millis(5);

/// The loop's times.
pub(super) struct Pace {
    next_read: Instant,
    poll: Duration,
    /// The last look found nothing: a wake-up is followed at once, instead of after the linger.
    idle: bool,
    marked_at: Instant,
}

impl Pace {
    pub fn new(settings: &RelaySettings) -> Self {
        let now = Instant::now();
        Self { next_read: now, poll: poll_min(settings), idle: true, marked_at: now }
    }

    /// Whether it is time to look.
    pub fn may_read(&self, now: Instant) -> bool {
        now >= self.next_read
    }

    /// Whether a wake-up is worth a look.
    pub fn is_idle(&self) -> bool {
        self.idle
    }

    /// When to look.
    pub fn next_read(&self) -> Instant {
        self.next_read
    }

    /// Looks at `at`, whatever was planned.
    pub fn read_at(&mut self, at: Instant) {
        self.next_read = at;
    }

    /// Looks soon: the producer had no room.
    pub fn read_soon(&mut self) {
        self.next_read = Instant::now() + ROOM_RETRY;
    }

    /// Looks soon, or sooner: the producer has room again.
    pub fn has_room(&mut self) {
        self.next_read = self.next_read.min(Instant::now() + ROOM_RETRY);
    }

    /// When to look after a page of so many rows, of which more wait or not; not before a time that the page itself
    /// has set.
    pub fn after_page(&mut self, settings: &RelaySettings, started: Instant, rows: usize, backlog: bool) {
        let now = Instant::now();
        self.idle = rows == 0;
        let due = if self.idle {
            let poll = self.poll;
            let poll_max = Duration::from_millis(settings.poll_max_ms);
            self.poll = (poll * 2).min(poll_max).max(poll_min(settings));
            now + poll
        } else {
            self.poll = poll_min(settings);
            if backlog { now } else { started + Duration::from_millis(settings.linger_ms) }
        };
        self.next_read = self.next_read.max(due);
    }

    /// Whether it is time to write down how far each partition is.
    pub fn may_mark(&self) -> bool {
        self.marked_at.elapsed() >= MARK_INTERVAL
    }

    /// When that is.
    pub fn next_mark(&self) -> Instant {
        self.marked_at + MARK_INTERVAL
    }

    pub fn marked(&mut self) {
        self.marked_at = Instant::now();
    }
}

fn poll_min(settings: &RelaySettings) -> Duration {
    Duration::from_millis(settings.poll_min_ms.max(1))
}
