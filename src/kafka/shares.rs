//! Shares of one producer's room among the partitions it sends to. Pure.
//!
//! A partition whose leader is away keeps what it was given until the leader is back. So half of the room is
//! reserved, the same part for each partition, and the rest is shared: what one takes of it leaves at least as
//! much for others as it holds itself. However many stand, the next one finds room; and who is alone has
//! half of what is shared.

/// The room as it is divided now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shares {
    /// Of each partition, whatever the others do.
    reserved: u64,
    /// For all together, beyond what is reserved.
    shared: u64,
    /// Taken of what is shared.
    taken: u64,
}

impl Shares {
    /// `room` among `partitions`, with nothing held.
    pub fn new(room: u64, partitions: usize) -> Self {
        let partitions = partitions.max(1) as u64;
        let reserved = room / 2 / partitions;
        Self { reserved, shared: room - reserved * partitions, taken: 0 }
    }

    /// A partition that held `before` holds `after` now.
    pub fn moved(&mut self, before: u64, after: u64) {
        self.taken = (self.taken + self.beyond(after)).saturating_sub(self.beyond(before));
    }

    /// What a partition that holds `held` may take now, where `takers` of them take at the same time.
    pub fn left(&self, held: u64, takers: usize) -> u64 {
        let free = self.shared.saturating_sub(self.taken).saturating_sub(self.beyond(held));
        self.reserved.saturating_sub(held) + free / (takers.max(1) as u64 + 1)
    }

    /// What each partition may hold, whatever the others do.
    pub fn reserved(&self) -> u64 {
        self.reserved
    }

    fn beyond(&self, held: u64) -> u64 {
        held.saturating_sub(self.reserved)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes all it may, again and again, as a partition does that is never acknowledged.
    fn fill(shares: &mut Shares, held: &mut u64) {
        loop {
            let more = shares.left(*held, 1);
            if more == 0 {
                return;
            }
            shares.moved(*held, *held + more);
            *held += more;
        }
    }

    #[test]
    fn however_many_stand_the_next_one_finds_room() {
        for partitions in [1, 2, 12, 100, 3_000] {
            let mut shares = Shares::new(20_000, partitions);
            let mut total = 0;
            for standing in 0..partitions {
                assert!(shares.left(0, 1) >= shares.reserved().max(1), "after {standing} of {partitions}");
                let mut held = 0;
                fill(&mut shares, &mut held);
                total += held;
                assert!(total <= 20_000, "{total} by {standing} of {partitions}");
            }
        }
    }

    #[test]
    fn who_is_alone_has_much_and_who_leaves_gives_all_back() {
        let fresh = Shares::new(20_000, 10);
        let (mut shares, mut held) = (fresh, 0);
        fill(&mut shares, &mut held);
        assert!((5_900..=6_000).contains(&held), "{held}");
        shares.moved(held, 0);
        assert_eq!(shares, fresh);
    }

    #[test]
    fn several_that_take_at_once_stay_within_the_room() {
        let mut shares = Shares::new(12_000, 12);
        let first: Vec<u64> = (0..12).map(|_| shares.left(0, 12)).collect();
        assert!(first.iter().sum::<u64>() <= 12_000 && first[0] > 500, "{first:?}");
        first.iter().for_each(|more| shares.moved(0, *more));
        assert!(shares.left(0, 1) >= 500);
    }
}
