//! Looks at overflow that begin after the command which waits for them.
//!
//! What another server has put into overflow and acknowledged is there for every look that begins later. So
//! a look shared by all who came before it is enough, and no command of a stream overtakes an earlier one,
//! whichever server took that. No Kafka here: the sampler looks.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::{Notify, watch};
use tokio::time::Instant;

/// Tickets: each command takes one, and goes on once a look serves it.
#[derive(Debug)]
pub(super) struct Looks {
    asked: AtomicU64,
    wanted: Notify,
    served: watch::Sender<u64>,
}

impl Default for Looks {
    fn default() -> Self {
        Self { asked: AtomicU64::new(0), wanted: Notify::new(), served: watch::Sender::new(0) }
    }
}

impl Looks {
    /// Waits for a look that begins from now on; whether there was one in time.
    pub(super) async fn fresh(&self, deadline: Instant) -> bool {
        let ticket = self.asked.fetch_add(1, Ordering::AcqRel) + 1;
        self.wanted.notify_one();
        let mut served = self.served.subscribe();
        let is_served = served.wait_for(|served| *served >= ticket);
        matches!(tokio::time::timeout_at(deadline, is_served).await, Ok(Ok(_)))
    }

    /// Waits until a look is wanted. The answer goes to [`Looks::serve`] once the look is over.
    pub(super) async fn wanted(&self) -> u64 {
        loop {
            let asked = self.asked.load(Ordering::Acquire);
            if asked > *self.served.borrow() {
                return asked;
            }
            self.wanted.notified().await;
        }
    }

    /// A look that began after `ticket` was drawn is over.
    pub(super) fn serve(&self, ticket: u64) {
        self.served.send_replace(ticket);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn only_a_look_that_begins_later_serves() {
        let looks = Arc::new(Looks::default());
        let deadline = || Instant::now() + Duration::from_secs(5);
        let first = tokio::spawn({
            let looks = looks.clone();
            async move { looks.fresh(deadline()).await }
        });
        let begun = looks.wanted().await;
        // Comes while that look is under way.
        let second = tokio::spawn({
            let looks = looks.clone();
            async move { looks.fresh(deadline()).await }
        });
        tokio::task::yield_now().await;
        looks.serve(begun);
        assert!(first.await.unwrap());
        assert!(!second.is_finished());
        looks.serve(looks.wanted().await);
        assert!(second.await.unwrap());
        assert!(!looks.fresh(Instant::now() + Duration::from_millis(20)).await, "nobody looks");
    }
}
