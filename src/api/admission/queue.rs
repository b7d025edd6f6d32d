//! The arithmetic of one lane's queue, by partition, and of one overflow partition. No locks, no clocks, no I/O.

use crate::kafka::shares::Shares;

/// What is on its way to one Kafka partition.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Held {
    pub(super) commands: u64,
    pub(super) bytes: u64,
}

/// The room of what is on its way, shared out so that a partition that acknowledges nothing leaves some.
#[derive(Debug, Clone, Copy)]
pub(super) struct Room {
    commands: Shares,
    bytes: Shares,
    held: Held,
    bytes_max: u64,
}

impl Room {
    /// Room for so many commands and bytes among `partitions`.
    pub(super) fn new(commands_max: u64, bytes_max: u64, partitions: usize) -> Self {
        let (commands, bytes) = (Shares::new(commands_max, partitions), Shares::new(bytes_max, partitions));
        Self { commands, bytes, held: Held::default(), bytes_max }
    }

    /// Whether a command of `bytes` fits; it is on its way then. One alone in its partition needs no share.
    pub(super) fn take(&mut self, held: &mut Held, bytes: u64) -> bool {
        let alone = held.commands == 0;
        let has_share = self.commands.left(held.commands, 1) > 0 && self.bytes.left(held.bytes, 1) >= bytes;
        if self.held.bytes + bytes > self.bytes_max || !(alone || has_share) {
            return false;
        }
        self.count(held, Held { commands: held.commands + 1, bytes: held.bytes + bytes });
        true
    }

    /// A command arrived, or was given up.
    pub(super) fn give(&mut self, held: &mut Held, bytes: u64) {
        self.count(held, Held { commands: held.commands - 1, bytes: held.bytes - bytes });
    }

    /// What a partition holds already, when the room is divided anew.
    pub(super) fn count(&mut self, held: &mut Held, now: Held) {
        self.commands.moved(held.commands, now.commands);
        self.bytes.moved(held.bytes, now.bytes);
        self.held.bytes = self.held.bytes + now.bytes - held.bytes;
        *held = now;
    }

    pub(super) fn bytes(&self) -> u64 {
        self.held.bytes
    }
}

/// What is known of one partition of a lane.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Part {
    /// Commands that the processors had not decided when last sampled.
    lag: u64,
    /// The processors' offset then.
    next: i64,
    /// Of this server's accepted commands, those that were so before the sample began.
    accepted_at_sample: u64,
    /// Commands that this server had acknowledged by Kafka.
    pub(super) accepted_total: u64,
    /// Commands handed to the producer and not acknowledged.
    pub(super) in_flight: Held,
    /// For how long it has been behind without moving, seconds.
    still_s: f64,
    /// Behind without moving, while others of the lane are not.
    stands: bool,
    /// No broker leads it.
    pub(super) is_leaderless: bool,
}

impl Part {
    /// Commands that wait to be decided, at least as many as there are.
    pub(super) fn depth(&self) -> u64 {
        self.lag + (self.accepted_total - self.accepted_at_sample) + self.in_flight.commands
    }

    fn sample(&mut self, lag: u64, next: i64, accepted_before: u64, seconds: f64) {
        let moved = lag == 0 || next != self.next;
        self.still_s = if moved { 0.0 } else { self.still_s + seconds };
        (self.lag, self.next, self.accepted_at_sample) = (lag, next, accepted_before);
    }
}

/// What is known of one lane.
#[derive(Debug, Clone, Default)]
pub(super) struct Queue {
    pub(super) parts: Vec<Part>,
    /// Moved here out of overflow, whatever the partition.
    pub(super) moved: Part,
    /// Commands decided a second, smoothed.
    pub(super) drained_per_second: f64,
    decided: Option<u64>,
}

/// What a sample found of one partition: the lag and the processors' offset.
pub(super) type Found = Option<(u64, i64)>;

/// Share of the newest measurement in the smoothed drain rate.
const NEWEST_SHARE: f64 = 0.3;
/// A partition that is behind and does not move for this long stands, if others do not.
const STANDS_AFTER_S: f64 = 5.0;

impl Queue {
    /// With nothing known of its partitions.
    pub(super) fn of(partitions: usize) -> Self {
        Self { parts: vec![Part::default(); partitions], ..Self::default() }
    }

    /// Commands that wait to be decided, at least as many as there are.
    pub(super) fn depth(&self) -> u64 {
        self.moved.depth() + self.parts.iter().map(Part::depth).sum::<u64>()
    }

    /// As [`Queue::depth`], as far as it concerns a command of `partition`: what stands elsewhere counts up to
    /// its fair part of the limit. Nobody decides it while others go on, so it holds up none of them.
    pub(super) fn depth_for(&self, partition: Option<usize>, limit: u64) -> u64 {
        let fair = (limit / self.parts.len().max(1) as u64).max(1);
        let concerns = |(at, part): (usize, &Part)| match part.stands && Some(at) != partition {
            true => part.depth().min(fair),
            false => part.depth(),
        };
        self.moved.depth() + self.parts.iter().enumerate().map(concerns).sum::<u64>()
    }

    /// Accepted commands by partition, and moved ones, for [`Queue::sample`].
    pub(super) fn accepted(&self) -> (Vec<u64>, u64) {
        (self.parts.iter().map(|part| part.accepted_total).collect(), self.moved.accepted_total)
    }

    /// Takes in a sample: what was found of each partition, the counts of accepted commands before the sample
    /// began, and the seconds since the sample before. A partition that could not be looked at keeps what is
    /// known of it; new ones are added.
    pub(super) fn sample(&mut self, found: &[Found], (accepted, moved): &(Vec<u64>, u64), seconds: f64) {
        self.parts.resize(found.len().max(self.parts.len()), Part::default());
        for (at, part) in self.parts.iter_mut().enumerate() {
            if let Some((lag, next)) = found.get(at).copied().flatten() {
                part.sample(lag, next, accepted.get(at).copied().unwrap_or(0), seconds);
            }
        }
        self.moved.accepted_at_sample = *moved;
        let is_still = |part: &Part| part.still_s >= STANDS_AFTER_S;
        let others_go_on = !self.parts.iter().all(is_still);
        self.parts.iter_mut().for_each(|part| part.stands = others_go_on && is_still(part));
        let decided = self.parts.iter().map(|part| u64::try_from(part.next).unwrap_or(0)).sum::<u64>();
        if let Some(last) = self.decided.filter(|_| seconds > 0.0) {
            let rate = decided.saturating_sub(last) as f64 / seconds;
            self.drained_per_second += NEWEST_SHARE * (rate - self.drained_per_second);
        }
        self.decided = Some(decided);
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
    pub(super) in_flight: Held,
    /// The last look found out how far it is.
    pub(super) is_known: bool,
}

impl Spill {
    /// Commands that are, or may be, in overflow.
    pub(super) fn pending(&self) -> u64 {
        self.in_flight.commands + u64::try_from(self.end - self.drained).unwrap_or(0)
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

    /// A queue of one partition.
    fn sampled(queue: &mut Queue, lag: u64, next: i64, accepted_before: u64, seconds: f64) {
        queue.sample(&[Some((lag, next))], &(vec![accepted_before], 0), seconds);
    }

    #[test]
    fn the_depth_never_forgets_what_the_sample_could_not_see() {
        let mut queue = Queue::of(1);
        queue.parts[0].in_flight.commands = 2;
        queue.parts[0].accepted_total = 5;
        assert_eq!(queue.depth(), 7);
        // Three were accepted before the sample began, two while it ran.
        sampled(&mut queue, 4, 100, 3, 0.0);
        assert_eq!(queue.depth(), 4 + 2 + 2);
        // Nobody could tell: what is accepted since only adds up.
        queue.parts[0].accepted_total += 1;
        queue.sample(&[None], &(vec![6], 0), 1.0);
        assert_eq!(queue.depth(), 4 + 2 + 3);
    }

    #[test]
    fn retry_after_follows_the_measured_drain_rate() {
        let mut queue = Queue::of(1);
        sampled(&mut queue, 1_000, 0, 0, 1.0);
        assert_eq!(queue.seconds_until(1_000, 60), 60, "nothing drains");
        for second in 1..50 {
            sampled(&mut queue, 1_000, second * 20, 0, 1.0);
        }
        assert!((queue.drained_per_second - 20.0).abs() < 0.1);
        // 100 above nine tenths of the limit, 20 a second.
        assert!((5..=6).contains(&queue.seconds_until(1_000, 60)));
        assert_eq!(queue.seconds_until(1_000, 3), 3);
        assert_eq!(queue.seconds_until(1_000_000, 60), 1);
    }

    /// Samples of three partitions, a second apart.
    fn seconds(queue: &mut Queue, count: i64, found: impl Fn(i64) -> [(u64, i64); 3]) {
        for second in 0..count {
            queue.sample(&found(second).map(Some), &(vec![0; 3], 0), 1.0);
        }
    }

    #[test]
    fn a_partition_that_stands_counts_for_others_up_to_its_fair_part() {
        let mut queue = Queue::of(3);
        // One halted; one that is worked on; one without commands.
        seconds(&mut queue, 10, |second| [(5_000, 7), (40, second), (0, 3)]);
        assert_eq!(queue.depth(), 5_040);
        assert_eq!(queue.depth_for(Some(1), 900), 300 + 40);
        assert_eq!(queue.depth_for(Some(2), 900), 340);
        assert_eq!(queue.depth_for(None, 900), 340);
        assert_eq!(queue.depth_for(Some(0), 900), 5_040, "its own commands meet all of it");
        seconds(&mut queue, 1, |_| [(4_999, 8), (40, 99), (0, 3)]);
        assert_eq!(queue.depth_for(Some(2), 900), 5_039, "it moves again");
    }

    #[test]
    fn where_nobody_decides_at_all_the_limit_is_that_of_all() {
        let mut queue = Queue::of(3);
        seconds(&mut queue, 60, |_| [(500, 7), (300, 7), (1, 0)]);
        for partition in 0..3 {
            assert_eq!(queue.depth_for(Some(partition), 300), 801);
        }
    }

    #[test]
    fn what_one_partition_has_on_its_way_leaves_room_for_others() {
        let mut room = Room::new(1_000, 1_000_000, 10);
        let (mut stuck, mut other) = (Held::default(), Held::default());
        while room.take(&mut stuck, 100) {}
        assert!((250..400).contains(&stuck.commands), "{stuck:?}");
        for _ in 0..50 {
            assert!(room.take(&mut other, 1_000));
        }
        room.give(&mut stuck, 100);
        assert!(room.take(&mut stuck, 100));
        let mut large = Held::default();
        assert!(room.take(&mut large, 500_000), "one alone needs no share");
        assert!(!room.take(&mut large, 500_000), "more than all room");
    }

    #[test]
    fn an_overflow_partition_is_pending_until_drained() {
        let mut spill = Spill { end: 10, drained: 10, ..Spill::default() };
        assert_eq!(spill.pending(), 0);
        spill.in_flight.commands = 1;
        assert_eq!(spill.pending(), 1);
        spill.end = 12;
        assert_eq!(spill.pending(), 3);
    }
}
