//! Partitions that are assigned and not claimed yet: whose turn it is, and what came of it.
//!
//! What was granted waits here until the consumer's thread takes it; a grant for an assignment that ended meanwhile
//! is dropped, and its epoch only makes the new owner claim once more. A partition that stands is wanted as well:
//! whatever stopped it, it is claimed anew after a while, and nobody has to restart anything. Asks nobody itself:
//! that is [`super::claiming`].

use std::collections::HashMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::mailbox::Claim;
use super::record::TopicPartition;

/// First and longest wait before a claim that failed is tried again.
const RETRY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(2));
/// First wait before a partition that stands is looked at again; doubles up to `ConsumerOptions::halt_retry`.
const HALT_RETRY: Duration = Duration::from_secs(1);
/// Rounds at a time, at most, in which claims that have failed are tried again.
const ROUNDS_MAX: usize = 2;
/// A claim that is not granted for this long is told in the log, once.
const TOLD_AFTER: Duration = Duration::from_secs(5);

/// What is known of one partition.
struct Wanted {
    /// Tells this wish from an earlier one for the same partition.
    number: u64,
    since: Instant,
    next_try: Instant,
    tries: u32,
    asked: bool,
    told: bool,
    granted: Option<Claim>,
}

#[derive(Default)]
struct State {
    wanted: HashMap<TopicPartition, Wanted>,
    /// How often each partition has stopped in a row.
    halts: HashMap<TopicPartition, u32>,
    number: u64,
    /// At work.
    rounds: usize,
}

/// All wishes of one consumer.
#[derive(Default)]
pub(super) struct Claims {
    state: Mutex<State>,
    answered: Condvar,
}

impl Claims {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wants `source`, at once.
    pub(super) fn want(&self, source: &TopicPartition) {
        self.want_after(source, Duration::ZERO);
    }

    /// Wants a partition that stopped, after a wait that grows each time, up to `most`.
    pub(super) fn want_halted(&self, source: &TopicPartition, most: Duration) {
        let halts = {
            let mut state = self.lock();
            let halts = state.halts.entry(source.clone()).or_default();
            *halts += 1;
            *halts
        };
        self.want_after(source, HALT_RETRY.saturating_mul(1 << (halts - 1).min(16)).min(most));
    }

    /// Wants `source` again, whose claim could not be used.
    pub(super) fn want_later(&self, source: &TopicPartition) {
        self.want_after(source, RETRY.0);
    }

    fn want_after(&self, source: &TopicPartition, wait: Duration) {
        let mut state = self.lock();
        state.number += 1;
        let (number, now) = (state.number, Instant::now());
        let wanted =
            Wanted { number, since: now, next_try: now + wait, tries: 0, asked: false, told: false, granted: None };
        state.wanted.insert(source.clone(), wanted);
    }

    /// No longer ours to claim.
    pub(super) fn forget(&self, source: &TopicPartition) {
        let mut state = self.lock();
        state.wanted.remove(source);
        state.halts.remove(source);
    }

    /// It goes on well: the next stop is a first one.
    pub(super) fn is_well(&self, source: &TopicPartition) {
        self.lock().halts.remove(source);
    }

    /// The partitions that are wanted.
    pub(super) fn all(&self) -> Vec<TopicPartition> {
        self.lock().wanted.keys().cloned().collect()
    }

    pub(super) fn wants(&self, source: &TopicPartition) -> bool {
        self.lock().wanted.contains_key(source)
    }

    /// Whether it has stopped, and has not been seen to go on since.
    pub(super) fn has_halted(&self, source: &TopicPartition) -> bool {
        self.lock().halts.contains_key(source)
    }

    /// What was granted of those that are `wanted` since the last look, ready to be consumed.
    pub(super) fn take_granted(&self, wanted: impl Fn(&TopicPartition) -> bool) -> Vec<(TopicPartition, Claim)> {
        let mut granted = Vec::new();
        self.lock().wanted.retain(|source, one| match one.granted.take_if(|_| wanted(source)) {
            Some(claim) => {
                granted.push((source.clone(), claim));
                false
            }
            None => true,
        });
        granted
    }

    /// Waits until each of `sources` has been answered once, whatever the answer, or `wait` is over.
    pub(super) fn wait_for(&self, sources: &[TopicPartition], wait: Duration) {
        let open = |state: &mut State| {
            let now = Instant::now();
            let is_open = |one: &Wanted| one.granted.is_none() && (one.asked || one.next_try <= now);
            sources.iter().any(|source| state.wanted.get(source).is_some_and(is_open))
        };
        let waited = self.answered.wait_timeout_while(self.lock(), wait, open);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }

    /// Waits until no round is at work, `wait` at most.
    pub(super) fn wait_idle(&self, wait: Duration) {
        let waited = self.answered.wait_timeout_while(self.lock(), wait, |state| state.rounds > 0);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }

    /// The partitions whose turn it is, for one round. Those that have not failed stand apart from those that
    /// have: a wait for nothing is not theirs.
    pub(super) fn due(&self) -> Vec<(TopicPartition, u64)> {
        let mut state = self.lock();
        let (now, failed_too) = (Instant::now(), state.rounds < ROUNDS_MAX);
        let is_due = |one: &Wanted| !one.asked && one.granted.is_none() && one.next_try <= now;
        let fresh = state.wanted.values().any(|one| is_due(one) && one.tries == 0);
        if !fresh && !failed_too {
            return Vec::new();
        }
        let mut round = Vec::new();
        for (source, one) in state.wanted.iter_mut().filter(|(_, one)| is_due(one) && (one.tries == 0) == fresh) {
            one.asked = true;
            round.push((source.clone(), one.number));
        }
        state.rounds += usize::from(!round.is_empty());
        round
    }

    pub(super) fn is_wanted(&self, source: &TopicPartition, number: u64) -> bool {
        self.lock().wanted.get(source).is_some_and(|one| one.number == number)
    }

    /// Nobody could be asked: the assignment is ending.
    pub(super) fn put_off(&self, source: &TopicPartition, number: u64) {
        let mut state = self.lock();
        if let Some(one) = state.wanted.get_mut(source).filter(|one| one.number == number) {
            (one.asked, one.next_try) = (false, Instant::now() + RETRY.0);
        }
    }

    pub(super) fn round_ends(&self) {
        self.lock().rounds -= 1;
        self.answered.notify_all();
    }

    /// Keeps a claim until it is taken. How many tries it took, and how long, where its lateness was told.
    pub(super) fn granted(&self, source: &TopicPartition, number: u64, claim: Claim) -> Option<(u32, Duration)> {
        let mut state = self.lock();
        let one = state.wanted.get_mut(source).filter(|one| one.number == number)?;
        (one.asked, one.granted) = (false, Some(claim));
        one.tries += 1;
        let late = one.told.then(|| (one.tries, one.since.elapsed()));
        self.answered.notify_all();
        late
    }

    /// Tries again later. None where nobody wants it any more.
    pub(super) fn failed(&self, source: &TopicPartition, number: u64) -> Option<Failed> {
        let mut state = self.lock();
        let halted = state.halts.contains_key(source);
        let one = state.wanted.get_mut(source).filter(|one| one.number == number)?;
        one.asked = false;
        one.tries += 1;
        one.next_try = Instant::now() + RETRY.0.saturating_mul(1 << (one.tries - 1).min(16)).min(RETRY.1);
        let is_late = one.since.elapsed() > TOLD_AFTER && !std::mem::replace(&mut one.told, true);
        let failed = Failed { tries: one.tries, is_late, halted };
        self.answered.notify_all();
        Some(failed)
    }

    /// Whoever waits looks again.
    pub(super) fn wake(&self) {
        self.answered.notify_all();
    }
}

/// A claim that was not granted.
pub(super) struct Failed {
    pub tries: u32,
    /// It is to be told now, once.
    pub is_late: bool,
    /// The partition stands already, for a reason of its own.
    pub halted: bool,
}

/// A question to the broker for a claim, at most: one without a leader is asked again later.
pub(super) const CLAIM_WAIT: Duration = Duration::from_secs(3);

#[cfg(test)]
mod tests {
    use super::*;

    fn source(partition: i32) -> TopicPartition {
        TopicPartition { topic: "t".into(), partition }
    }

    #[test]
    fn those_that_failed_are_asked_apart_from_those_that_did_not() {
        let claims = Claims::default();
        (0..6).for_each(|partition| claims.want(&source(partition)));
        claims.lock().wanted.get_mut(&source(3)).unwrap().tries = 2;
        assert_eq!(claims.due().len(), 5);
        assert_eq!(claims.due(), [(source(3), 4)]);
        assert!(claims.due().is_empty(), "each is asked once at a time");
        claims.want(&source(3));
        assert_eq!(claims.due().len(), 1, "a first try waits for no other round");
        claims.lock().wanted.get_mut(&source(2)).unwrap().asked = false;
        claims.lock().wanted.get_mut(&source(2)).unwrap().tries = 1;
        assert!(claims.due().is_empty(), "a further one does");
    }

    #[test]
    fn a_partition_that_stops_again_and_again_is_looked_at_less_often_up_to_a_bound() {
        let (claims, most) = (Claims::default(), Duration::from_secs(10));
        let wait = |claims: &Claims| {
            claims.want_halted(&source(0), most);
            claims.lock().wanted[&source(0)].next_try.saturating_duration_since(Instant::now()).as_secs_f64().ceil()
        };
        let waits: Vec<f64> = (0..6).map(|_| wait(&claims)).collect();
        assert_eq!(waits, [1.0, 2.0, 4.0, 8.0, 10.0, 10.0]);
        assert!(claims.has_halted(&source(0)) && claims.due().is_empty());
        claims.is_well(&source(0));
        assert_eq!(wait(&claims), 1.0);
    }

    #[test]
    fn a_partition_that_was_lost_is_not_granted() {
        let claims = Claims::default();
        claims.want(&source(0));
        let number = claims.due()[0].1;
        claims.forget(&source(0));
        claims.want(&source(0));
        assert!(!claims.is_wanted(&source(0), number), "an answer to the first wish is none to the second");
        assert!(claims.take_granted(|_| true).is_empty());
    }
}
