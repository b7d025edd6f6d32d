//! How a batch is drawn from the lanes: by weight, with a share that no other lane can take.
//!
//! A lane with work always gets its share of every batch; what idle lanes leave goes to the others,
//! higher priority first. Within a batch the priority lane stands first.

use std::sync::Arc;

use futures_util::future::select_all;

use crate::kafka::{Batch, Lane, Mailbox};
use crate::store::Extent;

/// How many there are.
pub(super) const LANES: usize = Lane::ALL.len();

/// One worker's mailboxes, a lane each.
#[derive(Debug, Clone)]
pub(super) struct Lanes {
    pub mailboxes: [Arc<Mailbox>; LANES],
    pub weights: [usize; LANES],
    /// Commands of one batch: fewer while so many cannot finish in time.
    pub extent: Extent,
    pub bytes_max: usize,
}

impl Lanes {
    /// Waits until some lane has work; false when all are closed.
    pub async fn wait_filled(&self) -> bool {
        let waits = self.mailboxes.iter().map(|mailbox| Box::pin(mailbox.wait_filled()));
        let (filled, _, others) = select_all(waits).await;
        if filled {
            return true;
        }
        // Closed mailboxes answer at once; all are closed together.
        drop(others);
        self.mailboxes.iter().any(|mailbox| !mailbox.is_empty())
    }

    /// Commands waiting, all lanes.
    pub fn waiting(&self) -> usize {
        self.mailboxes.iter().map(|mailbox| mailbox.len()).sum()
    }

    /// Draws one batch without waiting: per lane what was drawn.
    pub fn draw(&self) -> [Option<Batch>; LANES] {
        let waiting = std::array::from_fn(|lane| self.mailboxes[lane].len());
        let counts = shares(self.weights, waiting, self.extent.now());
        let total: usize = counts.iter().sum::<usize>().max(1);
        std::array::from_fn(|lane| {
            let count = counts[lane];
            if count == 0 {
                return None;
            }
            // Bytes are shared out like the commands, so that one lane's large ones starve nobody.
            self.mailboxes[lane].try_take(count, self.bytes_max / total * count)
        })
    }
}

/// How many to take of each lane out of `waiting`, `total` at most.
fn shares(weights: [usize; LANES], waiting: [usize; LANES], total: usize) -> [usize; LANES] {
    let sum: usize = weights.iter().map(|weight| (*weight).max(1)).sum();
    let mut taken: [usize; LANES] =
        std::array::from_fn(|lane| waiting[lane].min((total * weights[lane].max(1) / sum).max(1)));
    let mut left = total.saturating_sub(taken.iter().sum());
    for lane in 0..LANES {
        let more = left.min(waiting[lane] - taken[lane]);
        taken[lane] += more;
        left -= more;
    }
    taken
}

#[cfg(test)]
mod tests {
    use super::*;

    const WEIGHTS: [usize; 3] = [70, 25, 5];

    #[test]
    fn busy_lanes_share_by_weight() {
        assert_eq!(shares(WEIGHTS, [9_000, 9_000, 9_000], 1_000), [700, 250, 50]);
    }

    #[test]
    fn idle_shares_go_to_the_others_by_priority() {
        assert_eq!(shares(WEIGHTS, [0, 9_000, 9_000], 1_000), [0, 950, 50]);
        assert_eq!(shares(WEIGHTS, [10, 20, 9_000], 1_000), [10, 20, 970]);
        assert_eq!(shares(WEIGHTS, [3, 0, 0], 1_000), [3, 0, 0]);
    }

    #[test]
    fn no_lane_with_work_is_starved() {
        assert_eq!(shares([100, 1, 0], [9_000, 9_000, 9_000], 10)[2], 1);
        assert!(shares([1_000_000, 0, 0], [9_000, 1, 1], 2_000)[1..].iter().all(|taken| *taken == 1));
    }
}
