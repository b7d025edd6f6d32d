//! Partitions that are claimed and of which nothing comes, though Kafka has more: claimed anew, and told.
//!
//! Nothing of ours makes one. The client has (see [`super::rebalance::begin`]), and whatever does so next must
//! not need a person. A partition is asked about only after it was quiet for long, by one request for all of
//! them; one that was claimed anew at an offset and stays quiet there has offsets behind it that are no record.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rdkafka::consumer::Consumer as _;
use rdkafka::{Offset, TopicPartitionList};

use super::claims::CLAIM_WAIT;
use super::membership::{Membership, lock};
use super::record::TopicPartition;

/// A partition is quiet after this long without a record. Longer than a full client's queue takes to be emptied.
const QUIET_AFTER: Duration = Duration::from_secs(30);
/// Between two questions.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// How far one partition was handed over, and since when nothing more was.
struct Handed {
    next: i64,
    since: Instant,
    /// Kafka had more at the last look, at this place.
    is_behind: bool,
}

/// The thread's memory of what it handed over.
pub(super) struct Stalls {
    handed: HashMap<TopicPartition, Handed>,
    /// Claimed anew at this offset already.
    tried: HashMap<TopicPartition, i64>,
    looked: Instant,
    answer: Arc<Mutex<Option<HashMap<TopicPartition, i64>>>>,
}

impl Stalls {
    pub(super) fn new() -> Self {
        Self { handed: HashMap::new(), tried: HashMap::new(), looked: Instant::now(), answer: Arc::default() }
    }

    /// `source` goes on with the offset `next`.
    pub(super) fn handed(&mut self, source: &TopicPartition, next: i64) {
        let now = Handed { next, since: Instant::now(), is_behind: false };
        match self.handed.get_mut(source) {
            Some(handed) => *handed = now,
            None => drop(self.handed.insert(source.clone(), now)),
        }
    }

    /// Lost, or claimed anew elsewhere.
    pub(super) fn forget(&mut self, sources: &HashSet<TopicPartition>) {
        self.handed.retain(|source, _| !sources.contains(source));
    }

    /// The partitions to ask about, of those that are claimed and have room.
    fn quiet(&mut self, can_go_on: impl Fn(&TopicPartition) -> bool, now: Instant) -> Vec<TopicPartition> {
        self.handed.retain(|source, handed| {
            let goes_on = can_go_on(source);
            if !goes_on {
                // Its time begins when nothing of ours is in the way any more.
                (handed.since, handed.is_behind) = (now, false);
            }
            true
        });
        let is_quiet = |handed: &Handed| now.saturating_duration_since(handed.since) >= QUIET_AFTER;
        self.handed.iter().filter(|(_, handed)| is_quiet(handed)).map(|(source, _)| source.clone()).collect()
    }

    /// Those that have stood still behind these ends for two looks, and were not helped at that place before.
    fn stalled(&mut self, ends: &HashMap<TopicPartition, i64>) -> Vec<(TopicPartition, i64, i64)> {
        let mut stalled = Vec::new();
        for (source, end) in ends {
            let Some(handed) = self.handed.get_mut(source) else { continue };
            let was_behind = std::mem::replace(&mut handed.is_behind, *end > handed.next);
            if was_behind && handed.is_behind && self.tried.get(source) != Some(&handed.next) {
                self.tried.insert(source.clone(), handed.next);
                stalled.push((source.clone(), handed.next, *end));
            }
        }
        stalled
    }

    /// Looks now and then; claims anew what stands still.
    pub(super) fn look(&mut self, membership: &Arc<Membership>) {
        let ends = lock(&self.answer).take();
        for (source, next, end) in ends.map(|ends| self.stalled(&ends)).unwrap_or_default() {
            tracing::warn!(group = membership.group, partition = %source, next, end,
                "Kafka has records that the client does not fetch; the partition is claimed anew");
            metrics::counter!("throughline_partitions_stalled_total", "group" => membership.group.clone()).increment(1);
            membership.mailbox(&source).revoke(&source);
            membership.want(&source);
        }
        if self.looked.elapsed() < LOOK_EVERY {
            return;
        }
        self.looked = Instant::now();
        self.handed.retain(|source, _| membership.mailbox(source).claims_partition(source));
        for (source, claim) in membership.mailboxes.iter().flat_map(|mailbox| mailbox.claims()) {
            if !self.handed.contains_key(&source) {
                self.handed(&source, claim.next_offset);
            }
        }
        let has_room = |source: &TopicPartition| membership.mailbox(source).wait_for_room(Duration::ZERO);
        let quiet = self.quiet(has_room, Instant::now());
        if !quiet.is_empty() {
            ask(membership, quiet, self.answer.clone());
        }
    }
}

/// Asks on a thread of its own: polling waits for nobody. What cannot be asked is asked again at the next look.
fn ask(
    membership: &Arc<Membership>,
    quiet: Vec<TopicPartition>,
    answer: Arc<Mutex<Option<HashMap<TopicPartition, i64>>>>,
) {
    let membership = membership.clone();
    let look = move || {
        let Some(consumer) = membership.client() else { return };
        let mut list = TopicPartitionList::new();
        for source in &quiet {
            // Of a partition without a place nothing is asked.
            let _ = list.add_partition_offset(&source.topic, source.partition, Offset::End);
        }
        let Ok(found) = consumer.offsets_for_times(list, CLAIM_WAIT) else { return };
        let end = |source: &TopicPartition| match found.find_partition(&source.topic, source.partition)?.offset() {
            Offset::Offset(end) => Some((source.clone(), end)),
            _ => None,
        };
        *lock(&answer) = Some(quiet.iter().filter_map(end).collect());
    };
    if let Err(error) = std::thread::Builder::new().name("stalls".into()).spawn(look) {
        tracing::debug!(%error, "no thread to look for partitions that stand still");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(partition: i32) -> TopicPartition {
        TopicPartition { topic: "t".into(), partition }
    }

    fn later(seconds: u64) -> Instant {
        Instant::now() + Duration::from_secs(seconds)
    }

    #[test]
    fn only_what_was_quiet_for_long_and_has_room_is_asked_about() {
        let mut stalls = Stalls::new();
        (0..2).for_each(|partition| stalls.handed(&source(partition), 5));
        assert!(stalls.quiet(|_| true, later(29)).is_empty());
        assert_eq!(stalls.quiet(|one| one.partition == 0, later(31)), [source(0)]);
        assert_eq!(stalls.quiet(|_| true, later(32)), [source(0)], "the other one's time began anew");
    }

    #[test]
    fn behind_at_two_looks_it_is_claimed_anew_once_a_place() {
        let (mut stalls, zero) = (Stalls::new(), source(0));
        stalls.handed(&zero, 5);
        let ends = |end| HashMap::from([(zero.clone(), end)]);
        assert!(stalls.stalled(&ends(5)).is_empty(), "at the end");
        assert!(stalls.stalled(&ends(6)).is_empty(), "it may be on its way");
        assert_eq!(stalls.stalled(&ends(6)), [(zero.clone(), 5, 6)]);
        stalls.handed(&zero, 5);
        stalls.stalled(&ends(6));
        assert!(stalls.stalled(&ends(7)).is_empty(), "what stands there is no record");
        stalls.handed(&zero, 7);
        stalls.stalled(&ends(9));
        assert_eq!(stalls.stalled(&ends(9)).len(), 1, "elsewhere it is another matter");
        stalls.stalled(&ends(9));
        assert!(stalls.stalled(&HashMap::from([(source(1), 9)])).is_empty(), "of another's nothing is known");
    }
}
