//! A batch: commands in the order they are decided, and the offsets that their transaction moves.
//!
//! Knows no database and no context. Commands of one partition stand in offset order; a source that
//! lost its compare-and-set, or halted, is out, and its commands with it.

use crate::kafka::TopicPartition;

use super::intake::Incoming;

/// A commands partition that takes part in a batch.
#[derive(Debug, Clone)]
pub(super) struct Source {
    /// 0 priority, 1 normal, 2 bulk.
    pub lane: usize,
    pub place: TopicPartition,
    /// Of the claim its records were taken under.
    pub epoch: i64,
    /// Where PostgreSQL must stand for this batch to count.
    pub expected: i64,
    /// Where it stands afterwards.
    pub next: i64,
    /// Out of the batch: lost, halted or revoked.
    pub out: bool,
    /// Out because PostgreSQL says that another claim took over.
    pub lost: bool,
}

/// Commands that share one transaction.
#[derive(Debug)]
pub(super) struct Batch<P> {
    pub sources: Vec<Source>,
    pub commands: Vec<Incoming<P>>,
}

impl<P> Batch<P> {
    /// The commands that take part, with their index.
    pub fn live(&self) -> impl Iterator<Item = (usize, &Incoming<P>)> {
        self.commands.iter().enumerate().filter(|(_, command)| !self.sources[command.source].out)
    }

    /// The sources whose offset this batch moves.
    pub fn moving(&self) -> impl Iterator<Item = &Source> {
        self.sources.iter().filter(|source| !source.out && source.next > source.expected)
    }

    /// Whether nothing is left to do.
    pub fn is_done(&self) -> bool {
        self.moving().next().is_none()
    }

    /// The offset that this batch leaves behind for a claim, if it takes part.
    pub fn left_at(&self, lane: usize, place: &TopicPartition, epoch: i64) -> Option<i64> {
        let same = |source: &&Source| source.lane == lane && source.epoch == epoch && source.place == *place;
        self.sources.iter().find(same).map(|source| source.next)
    }

    /// Halves the batch: the first part keeps a prefix of every partition, the second goes on from
    /// there. Used to find a command that breaks its batch.
    pub fn split(mut self) -> (Self, Self) {
        let second = self.commands.split_off(self.commands.len() / 2);
        let mut rest = Self { sources: self.sources.clone(), commands: second };
        for (index, source) in self.sources.iter_mut().enumerate() {
            let last = self.commands.iter().rev().find(|command| command.source == index);
            // Without a command of its own, the first half leaves the offset where it is.
            source.next = last.map_or(source.expected, |command| command.record.offset + 1);
            rest.sources[index].expected = source.next;
        }
        (self, rest)
    }

    /// One batch a source that moves: what stands in the way of one partition stands in no other's.
    pub fn apart(mut self) -> Vec<Self> {
        let mut parts = Vec::new();
        for index in 0..self.sources.len() {
            if self.sources[index].out || self.sources[index].next <= self.sources[index].expected {
                continue;
            }
            let mut part = Self { sources: self.sources.clone(), commands: Vec::new() };
            for (_, source) in part.sources.iter_mut().enumerate().filter(|(other, _)| *other != index) {
                source.next = source.expected;
            }
            let (own, others) = self.commands.into_iter().partition(|command| command.source == index);
            (part.commands, self.commands) = (own, others);
            parts.push(part);
        }
        parts
    }
}

#[cfg(test)]
mod tests {
    use super::super::decide_tests::{batch_of, open};
    use uuid::Uuid;

    #[test]
    fn halves_move_the_offsets_one_after_the_other() {
        let id = Uuid::from_u128;
        // Partition 0 at offsets 0 to 2, partition 1 at offset 0.
        let batch = batch_of(&[
            (0, open(id(1), id(11))),
            (1, open(id(2), id(12))),
            (0, open(id(3), id(13))),
            (0, open(id(4), id(14))),
        ]);
        let span = |source: &super::Source| (source.expected, source.next);
        assert_eq!(batch.sources.iter().map(span).collect::<Vec<_>>(), [(0, 3), (0, 1)]);
        let (first, second) = batch.split();
        assert_eq!(first.sources.iter().map(span).collect::<Vec<_>>(), [(0, 1), (0, 1)]);
        assert_eq!(second.sources.iter().map(span).collect::<Vec<_>>(), [(1, 3), (1, 1)]);
        assert_eq!(second.moving().count(), 1);
        assert!(!second.is_done());
    }

    #[test]
    fn apart_each_source_moves_alone() {
        let id = Uuid::from_u128;
        let batch = batch_of(&[(0, open(id(1), id(11))), (1, open(id(2), id(12))), (0, open(id(3), id(13)))]);
        let parts = batch.apart();
        assert_eq!(parts.len(), 2);
        for (index, (part, commands)) in parts.iter().zip([2, 1]).enumerate() {
            assert!(part.moving().map(|source| &source.place).eq([&part.sources[index].place]));
            assert!(part.commands.len() == commands && part.commands.iter().all(|command| command.source == index));
        }
    }
}
