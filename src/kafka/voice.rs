//! What Kafka's clients complain of, told once a change. A process has a dozen clients, and each of them says
//! for each try that a broker refuses it: 159 lines a second were seen.
//!
//! One voice a process, as there is one log: what one client has told, another need not. The first of a kind is
//! a warning, what repeats it is seen at level debug, and when nobody has repeated it for [`QUIET_AFTER`] that
//! is one line more. Knows no client's purpose: whoever cannot work tells so itself.

use std::collections::BTreeMap;
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel as Level;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::KafkaError as ClientError;

/// A complaint that nobody repeats for this long is over: a client says the same every 30 s, at most.
pub const QUIET_AFTER: Duration = Duration::from_secs(45);
/// Kinds of complaints at a time, at most; those beyond only count.
const KINDS_MAX: usize = 64;

static VOICE: LazyLock<Voice> = LazyLock::new(Voice::default);

/// The callbacks of a client that has none of its own to add.
#[derive(Debug, Clone, Copy, Default)]
pub struct Quiet;

impl ClientContext for Quiet {
    fn log(&self, level: Level, facility: &str, message: &str) {
        log(level, facility, message);
    }

    fn error(&self, error: ClientError, reason: &str) {
        self::error(&error, reason);
    }
}

impl ConsumerContext for Quiet {}

/// A line of a client's log.
pub fn log(level: Level, facility: &str, message: &str) {
    match level {
        Level::Emerg | Level::Alert | Level::Critical | Level::Error => drop(VOICE.complain(message)),
        _ => tracing::debug!(facility, message, "kafka client"),
    }
}

/// An error that a client tells beside its answers.
pub fn error(error: &ClientError, reason: &str) {
    match reason {
        "" => VOICE.complain(&error.to_string()),
        reason => VOICE.complain(reason),
    };
}

/// Something else that a client cannot do now.
pub fn complain(message: &str) {
    VOICE.complain(message);
}

/// Tells what is over. Called now and then, while somebody answers, by whoever watches over Kafka for this process.
pub fn settle() {
    VOICE.settle(QUIET_AFTER);
}

#[derive(Debug, Default)]
struct Voice {
    said: Mutex<BTreeMap<String, Said>>,
}

#[derive(Debug)]
struct Said {
    since: Instant,
    last: Instant,
    repeats: u64,
}

impl Voice {
    /// Whether it was told.
    fn complain(&self, message: &str) -> bool {
        metrics::counter!("throughline_kafka_complaints_total").increment(1);
        let kind = kind(message);
        let now = Instant::now();
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(said) = said.get_mut(&kind) {
            (said.last, said.repeats) = (now, said.repeats + 1);
            tracing::debug!(message, "kafka client, again");
            return false;
        }
        if said.len() >= KINDS_MAX {
            return false;
        }
        said.insert(kind, Said { since: now, last: now, repeats: 0 });
        drop(said);
        tracing::warn!(message, "kafka client; said once until it is over");
        true
    }

    /// Forgets what nobody repeated for `quiet_after`; how many.
    fn settle(&self, quiet_after: Duration) -> usize {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        let over: Vec<(String, Said)> = said.extract_if(.., |_, said| said.last.elapsed() >= quiet_after).collect();
        drop(said);
        for (message, Said { since, last, repeats }) in &over {
            let seconds = last.duration_since(*since).as_secs();
            tracing::info!(message, repeats, seconds, "kafka client: over");
        }
        over.len()
    }
}

/// The message without what differs from try to try: its thread, its durations, its counts.
fn kind(message: &str) -> String {
    let message = match message.strip_prefix("[thrd:").and_then(|rest| rest.split_once("]: ")) {
        Some((_, message)) => message,
        None => message,
    };
    let message = message.split_once(" (").map_or(message, |(message, _)| message);
    let is_count = |word: &str| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_digit());
    let word = |word| if is_count(word) { "#" } else { word };
    message.split(' ').map(word).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broker_that_refuses_is_told_once_and_once_more_when_that_is_over() {
        let voice = Voice::default();
        let tries =
            |ms| format!("[thrd:h:9092/1]: h:9092/1: Connect to ipv4#1.2.3.4:9092 failed: refused (after {ms}ms)");
        assert!(voice.complain(&tries(0)));
        assert!((1..159).all(|ms| !voice.complain(&tries(ms))));
        assert!(!voice.complain("h:9092/1: Connect to ipv4#1.2.3.4:9092 failed: refused (after 3ms in state CONNECT)"));
        assert!(voice.complain("h:9093/2: Connect to ipv4#1.2.3.4:9093 failed: refused"), "another broker");
        assert!(voice.complain("3 request(s) timed out") && !voice.complain("14 request(s) timed out"));
        assert_eq!(voice.settle(Duration::from_secs(60)), 0, "it may be repeated yet");
        assert_eq!(voice.settle(Duration::ZERO), 3);
        assert!(voice.complain(&tries(0)), "a new spell");
    }

    #[test]
    fn kinds_without_end_are_no_storm() {
        let voice = Voice::default();
        assert_eq!((0..1_000).filter(|n| voice.complain(&"x".repeat(*n + 1))).count(), KINDS_MAX);
    }
}
