//! A batch that was not applied: waited out, halved, or judged by the failure policy.
//!
//! What is the world's is tried again for as long as it takes. What fails because of its size or what it touches is
//! halved; alone, it makes its partition stand until that is claimed anew, and is never parked. Only what the
//! handler or the data is to blame for meets the policy. Order within a partition is never changed.

use std::ops::Range;
use std::time::Duration;

use super::apply::{Applier, Work};
use super::decode::{Body, Decoded};
use crate::settings::FailurePolicy;
use crate::store::StoreError;

impl<E: Send + Sync + 'static> Applier<E> {
    /// The world's: again, on a new connection. One line of log where it begins, and where it changes.
    pub(super) async fn wait_out(&self, work: &mut Work, range: Range<usize>, error: &StoreError) {
        work.tries += 1;
        self.tell(work, &error.to_string());
        self.wait(work.tries).await;
        work.ranges.push(range);
        self.drop_revoked(work);
    }

    /// Too much, or in the way of somebody: less at a time.
    pub(super) async fn narrow(
        &mut self,
        work: &mut Work,
        decoded: &Decoded<E>,
        range: Range<usize>,
        error: &StoreError,
    ) {
        self.extent.shrink(range.len());
        self.tell(work, &error.to_string());
        work.tries += 1;
        self.wait(work.tries).await;
        let again = work.tries <= self.projector.settings.projection.retries_max;
        // Fewer events would wait for a lock as long; those that do not need it are found by and by.
        if again && (range.len() == 1 || error.is_locked()) {
            work.ranges.push(range);
        } else if range.len() > 1 {
            push_halves(work, range);
        } else {
            work.tries = 0;
            let item = &decoded.items[range.start];
            let at =
                format!("seq {} (offset {}) cannot be applied at the moment: {error}", item.seq, item.record.offset);
            let cure = "None needed if it passes: it is tried again by itself. If it stays, look in pg_stat_activity for \
                        what holds locks on the read tables, and at the statement that the reason names.";
            self.stand(work, item.record.source.partition, &at, cure);
        }
        self.drop_revoked(work);
    }

    /// The handler's, or the data's.
    pub(super) async fn failed(
        &mut self,
        work: &mut Work,
        decoded: &mut Decoded<E>,
        range: Range<usize>,
        code: &'static str,
        reason: String,
    ) {
        if range.len() > 1 {
            if code == super::handler::TIMEOUT {
                self.extent.shrink(range.len());
            }
            push_halves(work, range);
            return;
        }
        work.tries += 1;
        let item = &mut decoded.items[range.start];
        let (partition, seq) = (item.record.source.partition, item.seq);
        let name = self.projector.name();
        if work.tries <= self.projector.settings.projection.retries_max {
            tracing::warn!(
                projection = name,
                partition,
                seq,
                code,
                reason,
                tries = work.tries,
                "event not applied; trying again"
            );
            self.wait(work.tries).await;
            work.ranges.push(range);
            return;
        }
        work.tries = 0;
        match self.projector.policy() {
            FailurePolicy::Halt => {
                let at = format!("seq {seq} (offset {}) cannot be applied ({code}): {reason}", item.record.offset);
                self.stand(work, partition, &at, &self.cure());
            }
            FailurePolicy::Park => {
                tracing::error!(projection = name, partition, seq, code, reason, "event parked with its key");
                item.body = Body::Poison { code, reason };
                work.ranges.push(range);
            }
        }
    }

    pub(super) fn cure(&self) -> String {
        format!(
            "Mend the cause and it goes on; or `throughline dlq list` and projection.on_failure=park for {}.",
            self.projector.name()
        )
    }

    /// The partition makes way for the others.
    fn stand(&self, work: &mut Work, partition: i32, reason: &str, cure: &str) {
        work.held.remove(&partition);
        self.consumer.halt(&work.sources[&partition], reason, cure);
    }

    fn tell(&self, work: &mut Work, reason: &str) {
        self.heartbeat.not_ready(reason);
        let (projection, tries) = (self.projector.name(), work.tries);
        if work.told != reason {
            tracing::warn!(projection, tries, reason, "batch not applied; tried again for as long as it takes");
            reason.clone_into(&mut work.told);
        }
    }

    /// Revoked meanwhile: whoever owns them now goes on from the checkpoint.
    fn drop_revoked(&self, work: &mut Work) {
        let (mailbox, sources) = (&self.mailbox, &work.sources);
        work.held.retain(|partition, held| mailbox.holds(&sources[partition], held.epoch));
    }

    async fn wait(&self, tries: u32) {
        let settings = &self.projector.settings.projection;
        let wait = settings.retry_wait_ms.saturating_mul(1 << tries.saturating_sub(1).min(16));
        let wait = Duration::from_millis(wait.min(settings.retry_wait_max_ms));
        tokio::select! {
            () = self.shutdown.cancelled() => {}
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// The first half is tried first: each partition keeps its order.
fn push_halves(work: &mut Work, range: Range<usize>) {
    let middle = range.start + range.len() / 2;
    work.ranges.push(middle..range.end);
    work.ranges.push(range.start..middle);
}
