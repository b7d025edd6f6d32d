//! One destination partition under a lease: its state, and where publishing starts. Pure.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::acknowledged::{Acknowledged, Beginning};
use super::lease::Lease;
use super::tail::Tail;
use crate::health::PartitionState;
use crate::kafka::TopicPartition;
use crate::kafka::shares::Shares;

/// See the picture in the module above.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    /// Acquired, or its producer ended: what Kafka holds must be learned first, from that time on.
    Unaligned {
        from: Instant,
    },
    /// Kafka's tail is being read.
    Aligning,
    Streaming,
    /// Stopped with an alarm; looked at again at that time.
    Halted {
        until: Instant,
    },
    /// PostgreSQL did not move its watermark: it is another's, as the keeper will find out, or, if the
    /// lease is renewed after that time, somebody else moved it.
    Lost {
        at: Instant,
    },
}

/// Of a partition that Kafka does not answer for.
const SILENCE_CURE: &str = "Look whether its leader runs (`kafka-topics --describe --unavailable-partitions`) and \
                            min.insync.replicas is met; it goes on by itself";

/// Records of the first batch of a search; an eighth after each refusal, down to one.
const SEARCH_ROWS: i64 = 512;
/// Records behind the refused one that are sent in small batches: as many as one batch of the client
/// holds.
const SEARCH_SPAN: i64 = 10_000;

/// A partition and how far it got.
#[derive(Debug)]
pub struct Partition {
    pub target: TopicPartition,
    pub epoch: i64,
    pub state: Phase,
    pub hand_back: bool,
    /// Where this producer began. Its first record goes alone: a broker that does not know the
    /// producer yet takes any sequence, so a second request would be appended although the first was
    /// refused. Once one is acknowledged, the broker itself refuses a gap.
    start: i64,
    /// Handed to the producer up to here.
    pub sent: i64,
    pub acknowledged: Arc<Acknowledged>,
    /// Marked in PostgreSQL up to here.
    pub marked: i64,
    /// Of a value, as far as pages told; what a page may come to is reckoned by it.
    mean_bytes: u64,
    /// The last page brought as much as was asked for: there is more.
    pub backlog: bool,
    /// Bytes of values that it may have on their way.
    pub bytes_allowed: u64,
    /// When Kafka was last heard of it, or was not waited for, and the last acknowledgement then.
    heard: (Instant, i64),
    /// Why its tail could not be read, and when it is read again.
    pub unread: Option<String>,
    pub tail_retry: Duration,
    /// The broker found a batch too large: the culprit is sought.
    pub search: Option<Search>,
    /// The alarm that was raised, and the record it is about.
    pub alarm: Option<Alarm>,
    /// The alarm is written down where operators look.
    pub alarm_noted: bool,
    /// What was told of it last; none while its alarm was.
    pub told: Option<PartitionState>,
}

/// The look for a record that is too large: batches alone on their way, smaller after each refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Search {
    /// Records of one batch.
    pub rows: i64,
    /// Over when this record is published.
    pub until: i64,
}

/// Why a partition stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alarm {
    /// For operators, with the next step.
    pub text: String,
    /// Over when this record is published; none: over when publishing can start.
    pub seq: Option<i64>,
}

impl Partition {
    pub fn new(partition: i32, lease: &Lease) -> Self {
        Self {
            target: TopicPartition { topic: lease.topic.clone(), partition },
            epoch: lease.epoch,
            state: Phase::Unaligned { from: Instant::now() },
            hand_back: lease.hand_back,
            start: lease.published,
            sent: lease.published,
            acknowledged: Acknowledged::new(Beginning { after: lease.published, missing: 0 }),
            marked: lease.published,
            mean_bytes: 1,
            backlog: false,
            bytes_allowed: 0,
            heard: (Instant::now(), lease.published),
            unread: None,
            tail_retry: Duration::ZERO,
            search: None,
            alarm: None,
            alarm_noted: false,
            told: None,
        }
    }

    pub fn has_in_flight(&self) -> bool {
        self.sent > self.acknowledged.seq()
    }

    /// Records on their way.
    pub fn in_flight(&self) -> u64 {
        u64::try_from(self.sent - self.acknowledged.seq()).unwrap_or(0)
    }

    /// Takes in a page of it. Up at once and down by halves: large values are not followed by a huge page.
    pub fn learn(&mut self, rows: u64, bytes: u64, backlog: bool) {
        self.backlog = backlog;
        if let Some(mean) = bytes.checked_div(rows) {
            self.mean_bytes = mean.max(self.mean_bytes / 2).max(1);
        }
    }

    /// Silence counts from now on.
    pub fn hear(&mut self, now: Instant) {
        self.heard = (now, self.acknowledged.seq());
    }

    /// For how long Kafka has not answered for it.
    pub fn silence(&mut self, now: Instant) -> Duration {
        let waits = match self.state {
            Phase::Unaligned { .. } | Phase::Aligning => true,
            Phase::Streaming => self.has_in_flight(),
            Phase::Halted { .. } | Phase::Lost { .. } => false,
        };
        if !waits || self.acknowledged.seq() != self.heard.1 {
            self.hear(now);
        }
        now.saturating_duration_since(self.heard.0)
    }

    /// The alarm of such a silence. Over when the next record is acknowledged, or the tail was read.
    pub fn silence_alarm(&self, longest: Duration) -> Alarm {
        let seconds = longest.as_secs_f64();
        let next = self.acknowledged.seq() + 1;
        if self.state == Phase::Streaming {
            let text = format!("seq {next} was not acknowledged for {seconds} s. {SILENCE_CURE}");
            return Alarm { text, seq: Some(next) };
        }
        let reason = self.unread.as_deref().unwrap_or("no answer so far");
        Alarm { text: format!("its end could not be read for {seconds} s ({reason}). {SILENCE_CURE}"), seq: None }
    }

    pub fn has_unmarked(&self) -> bool {
        !matches!(self.state, Phase::Lost { .. }) && self.acknowledged.seq() > self.marked
    }

    /// Whether the cause of the alarm is gone.
    pub fn is_alarm_over(&self) -> bool {
        self.alarm.as_ref().is_some_and(|alarm| {
            self.state == Phase::Streaming && alarm.seq.is_none_or(|seq| seq <= self.acknowledged.seq())
        })
    }

    /// Rows to read next, at most; none while a record or batch that goes alone is on its way.
    pub fn rows_wanted(&self, at_most: i64) -> Option<i64> {
        if self.acknowledged.seq() == self.start {
            return (self.sent == self.start).then_some(1);
        }
        match self.search {
            Some(search) if self.sent < search.until => (!self.has_in_flight()).then(|| at_most.min(search.rows)),
            _ => Some(at_most),
        }
    }

    /// Whether more of it may be asked for. Under an alarm only what is on its way tells more.
    pub fn is_read(&self) -> bool {
        self.state == Phase::Streaming && !self.hand_back && !(self.alarm.is_some() && self.has_in_flight())
    }

    /// Rows that its share of the room allows now, and the bytes that they may come to; none while that is
    /// too little for a query: half at once or nothing. Who has no backlog takes nothing of what is shared.
    pub fn share(&mut self, rows: &Shares, bytes: &Shares, takers: usize) -> Option<i64> {
        let (in_flight, on_their_way) = (self.in_flight(), self.acknowledged.in_flight_bytes());
        let room = |shares: &Shares, held: u64| match self.backlog {
            true => shares.left(held, takers),
            false => shares.reserved().saturating_sub(held),
        };
        let least = |shares: &Shares, held: u64| {
            let mut without = *shares;
            without.moved(held, 0);
            room(&without, 0) / 2
        };
        let bytes_left = room(bytes, on_their_way);
        let left = room(rows, in_flight).min(bytes_left / self.mean_bytes);
        let enough = least(rows, in_flight).min(least(bytes, on_their_way) / self.mean_bytes);
        if in_flight > 0 && left < enough.max(1) {
            return None;
        }
        self.bytes_allowed = on_their_way + bytes_left;
        // One alone is always asked for: a record may be larger than a share.
        Some(left.max(1) as i64)
    }

    /// A batch was refused for its size: one of its records, or their sum. Smaller ones tell. False
    /// when it was a single record.
    pub fn search_for_culprit(&mut self, refused: i64) -> bool {
        if refused == self.start + 1 {
            return false;
        }
        let rows = match self.search {
            Some(Search { rows: 1, .. }) => return false,
            Some(Search { rows, until }) if refused <= until => rows / 8,
            _ => SEARCH_ROWS,
        };
        self.search = Some(Search { rows, until: refused + SEARCH_SPAN });
        true
    }

    /// Starts publishing.
    pub fn stream(&mut self, start: Beginning) {
        let Beginning { after, .. } = start;
        self.search = self.search.filter(|search| search.until > after);
        self.start = after;
        self.sent = after;
        self.acknowledged = Acknowledged::new(start);
        (self.unread, self.tail_retry) = (None, Duration::ZERO);
        self.state = Phase::Streaming;
    }

    /// Begins anew from what PostgreSQL has; what it did not take of ours, Kafka's tail tells.
    pub fn realign(&mut self) {
        self.sent = self.marked;
        self.acknowledged = Acknowledged::new(Beginning { after: self.marked, missing: 0 });
        self.state = Phase::Unaligned { from: Instant::now() };
    }

    /// How far it is published, by PostgreSQL's word and ours. A watermark that we cannot have written
    /// was moved by an operator, and counts.
    pub fn take_published(&mut self, written: i64) -> i64 {
        let acknowledged = self.acknowledged.seq();
        // The answer to our last mark may have been lost.
        let is_ours = (self.marked..=acknowledged).contains(&written);
        self.marked = written;
        if is_ours {
            return acknowledged;
        }
        tracing::warn!(target = %self.target, acknowledged, written, "the watermark was moved by hand");
        written
    }

    /// Whether everything that was handed over has been acknowledged and marked.
    pub fn is_drained(&self) -> bool {
        !self.has_in_flight() && !self.has_unmarked()
    }
}

/// Where publishing starts.
///
/// `published` is PostgreSQL's watermark, `last_seq` the last number committed, read after the tail.
/// `accept_loss`: the operator accepts that the topic holds less than was published.
///
/// # Errors
/// The topic and the store do not fit: the alarm to raise, with the next step.
pub fn start_after(published: i64, last_seq: i64, tail: Tail, accept_loss: bool) -> Result<Beginning, String> {
    // The next record goes to the offset `next` or behind it.
    let start = |after: i64, next: i64| Ok(Beginning { after, missing: (after - next).max(0) });
    match tail {
        Tail::Expired { next } => start(published, next),
        Tail::Untouched if published == 0 || accept_loss => start(published, 0),
        Tail::Untouched => Err(format!(
            "the partition is empty although {published} records were published: the topic was created anew. {RESTORE}"
        )),
        Tail::At { seq, .. } if seq > last_seq => Err(format!(
            "the partition holds seq {seq} but the store has committed only {last_seq}: the database was set back, \
             and the numbers in between would be used again for other events. Restore the database to a state that \
             holds them, or begin with new topics (another topics.prefix)."
        )),
        Tail::At { seq, .. } if seq < published && !accept_loss => Err(format!(
            "the partition ends with seq {seq} although {published} were published: records were lost, the topic was \
             created anew, or throughline.relay_leases.published was moved by hand. {RESTORE}"
        )),
        Tail::At { seq, offset } if seq > offset + 1 && !accept_loss => {
            Err(format!("seq {seq} stands at offset {offset}: records before it are missing from the topic. {RESTORE}"))
        }
        Tail::At { seq, offset } => start(published.max(seq), offset + 1),
        Tail::Foreign { .. } if accept_loss => start(published, 0),
        Tail::Foreign { records } => Err(format!(
            "the last {records} records carry no seq header: somebody else writes to this topic. Only the relay may \
             (see the ACLs in deploy/); stop that writer. {RESTORE}"
        )),
    }
}

const RESTORE: &str = "An events topic gets its history back: delete it unless it is empty or only its end is gone, and run \
                       `throughline events republish --to-topic TOPIC`; publishing goes on by itself then. To go on \
                       without what was lost, name the topic in relay.accept_lost_records_of";

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seq: i64) -> Tail {
        Tail::At { seq, offset: seq - 1 }
    }

    #[test]
    fn a_record_that_is_too_large_is_found_in_few_steps() {
        let lease = Lease { epoch: 1, published: 0, topic: "t".into(), hand_back: false };
        let mut partition = Partition::new(0, &lease);
        assert_eq!(partition.rows_wanted(4_000), Some(1), "a producer's first record goes alone");
        partition.sent = 1;
        assert_eq!(partition.rows_wanted(4_000), None);
        assert!(!partition.search_for_culprit(1), "the first record alone is the culprit");
        partition.acknowledged = Acknowledged::new(Beginning { after: 1, missing: 0 });
        assert_eq!(partition.rows_wanted(4_000), Some(4_000));
        for rows in [512, 64, 8, 1] {
            assert!(partition.search_for_culprit(7));
            assert_eq!(partition.rows_wanted(4_000), Some(rows));
        }
        assert!(!partition.search_for_culprit(7), "a single record is the culprit");
        partition.stream(Beginning { after: 7 + SEARCH_SPAN, missing: 0 });
        assert_eq!(partition.search, None);
    }

    fn start(after: i64, missing: i64) -> Result<Beginning, String> {
        Ok(Beginning { after, missing })
    }

    #[test]
    fn publishing_goes_on_behind_what_either_side_knows() {
        assert_eq!(start_after(0, 0, Tail::Untouched, false), start(0, 0));
        assert_eq!(start_after(5, 9, at(7), false), start(7, 0));
        assert_eq!(start_after(7, 9, at(7), false), start(7, 0));
        assert_eq!(start_after(5, 9, Tail::Expired { next: 5 }, false), start(5, 0));
    }

    #[test]
    fn a_topic_that_lost_records_is_refused_until_the_loss_is_accepted() {
        for (tail, missing) in [(Tail::Untouched, 5), (at(3), 2), (Tail::Foreign { records: 1 }, 5)] {
            let alarm = start_after(5, 9, tail, false).unwrap_err();
            assert!(alarm.contains("accept_lost_records_of"), "{alarm}");
            assert_eq!(start_after(5, 9, tail, true), start(5, missing));
        }
    }

    #[test]
    fn a_topic_with_a_hole_is_refused() {
        let hole = Tail::At { seq: 11, offset: 9 };
        let alarm = start_after(5, 12, hole, false).unwrap_err();
        assert!(alarm.contains("missing"), "{alarm}");
        assert_eq!(start_after(5, 12, hole, true), start(11, 1));
        assert_eq!(start_after(5, 12, Tail::At { seq: 11, offset: 14 }, false), start(11, 0));
    }

    #[test]
    fn a_watermark_that_was_moved_by_hand_counts() {
        let lease = Lease { epoch: 1, published: 5, topic: "t".into(), hand_back: false };
        let mut partition = Partition::new(0, &lease);
        partition.acknowledged = Acknowledged::new(Beginning { after: 8, missing: 0 });
        assert_eq!(partition.take_published(5), 8, "ours is only not marked yet");
        assert_eq!((partition.take_published(7), partition.marked), (8, 7), "the answer to a mark was lost");
        assert_eq!((partition.take_published(20), partition.marked), (20, 20));
    }

    #[test]
    fn a_store_that_was_set_back_is_refused_in_any_case() {
        for accepted in [false, true] {
            let alarm = start_after(5, 9, at(12), accepted).unwrap_err();
            assert!(alarm.contains("set back"), "{alarm}");
        }
    }
}
