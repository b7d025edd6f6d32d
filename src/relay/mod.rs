//! The relay: what is committed is published, per destination partition, in order, without a hole.
//!
//! # Why it is safe
//! The outbox is the staging log of the Kafka partitions. A row's `seq` is taken from a counter whose
//! row lock is held to commit, so commit order is `seq` order and a reader that has seen `n` will
//! never be surprised by a smaller number: reading `seq > n` skips nothing. The relay copies bytes;
//! it decodes nothing and knows no context.
//!
//! Each partition has one owner, by a lease with an epoch ([`lease`]). The owner reads rows, hands
//! them to an idempotent producer, and moves `published` over contiguous acknowledgements by
//! compare-and-set on the epoch. `published` may lag behind Kafka, never lead it. Before the first
//! record, and again after any failure of the producer, the owner reads the last record of the Kafka
//! partition ([`tail`]) and starts behind the larger of the two.
//!
//! # States of a partition
//! ```text
//!            lease acquired                  tail read, fits
//!  (others') ──────────────> Unaligned ─> Aligning ─> Streaming ──┐ producer failed,
//!      ^                         ^            │           │  ^    │ lease ran out here
//!      │ released, lost          │            v alarm     │  └────┼──────┐
//!      └──── drained <── hand back <───── Halted <────────┘       │      │ read the tail again
//!                               (looked at again after a while)   └──> Unaligned
//! ```
//!
//! # What can still happen on the wire
//! No hole and nothing out of order within what is new: records never time out in the producer, and
//! one that is refused for good stops the producer, while the broker refuses what was sent behind it
//! (`enable.gapless.guarantee`; the first record of a producer goes alone, since a broker that does
//! not know it yet takes any sequence). A time-out bounded by the lease would keep a resumed zombie from
//! sending late, but lets record `n` expire while `n + 1` leaves: a hole. So late it is:
//! - A relay that was stopped (SIGSTOP, a paused machine) past its lease and resumed sends what its
//!   client still holds, at most `relay.in_flight_max` records, before it notices. They repeat numbers
//!   that the new owner has published: the same bytes, in order among themselves.
//! - A request that was under way when its producer was given up may be appended after the tail was
//!   read. The same run of records appears twice.
//!
//! Both are repetitions. Readers keep the last `seq` they applied and drop `seq <= last`; what remains is 1, 2,
//! 3 … without a hole. A clean hand-over and a kill leave no repetition (see `tests/relay_kill.rs`).
//!
//! # When it stops a partition
//! Loudly (error log, `throughline_relay_halted`, `throughline outbox status`), never skipping, while
//! the others go on: a record too large for us or the broker, a hole in the outbox, a topic that lost
//! records or was created anew (also beneath us: then the offset of an acknowledgement is too low), a
//! store that was set back, a topic that refuses us, a watermark that was moved by hand beyond what Kafka
//! has. It looks again, also at the watermark, every `relay.halt_retry_ms`. Without a broker or a database
//! it waits and tries again for ever.
//!
//! A partition that Kafka does not answer for stands alone: what it may hold of the producer's room is
//! bounded so that the others always find some ([`crate::kafka::shares`]), its tail is read on its own
//! ([`align`]), and after `relay.silence_ms` it is told as standing until it is acknowledged again.

mod acknowledged;
mod align;
pub mod lease;
mod pace;
mod page;
mod partition;
mod publisher;
mod publishing_loop;
mod pump;
mod reader;
pub mod republish;
mod spell;
pub mod status;
pub mod tail;
mod telling;

pub use reader::source_of;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

use crate::health::Health;
use crate::kafka::KafkaError;
use crate::settings::Settings;
use crate::store::{self, StoreError};

/// What ends the relay: settings that cannot be used, at its start, and defects. Whatever comes later is tried
/// again instead.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    /// The database's settings do not fit.
    #[error("relay: {0}")]
    Store(#[from] StoreError),
    /// Kafka's settings do not fit.
    #[error("relay: {0}")]
    Kafka(#[from] KafkaError),
    /// The system has no room for the relay's thread.
    #[error("relay: {0}")]
    Thread(std::io::Error),
    /// A task of ours panicked: a defect.
    #[error("relay: {0}")]
    Defect(#[from] tokio::task::JoinError),
    /// The keeper of the leases ended without being told to: a defect.
    #[error("relay: its leases are kept no longer")]
    Ended,
}

/// Publishes every registered destination's outbox until `shutdown`; then waits for what is in
/// flight, marks it and hands its leases back. `wake` is notified after each append in this process.
pub async fn run(
    settings: Arc<Settings>,
    wake: Arc<Notify>,
    health: Arc<Health>,
    shutdown: CancellationToken,
) -> Result<(), RelayError> {
    store::connect::check(&settings.database)?;
    let leases = lease::Leases::new(owner_name(), Duration::from_millis(settings.relay.lease_ms.max(1)));
    let stop_keeping = CancellationToken::new();
    // Ends with this future, so that a relay that is gone renews nothing.
    let keep = leases.clone().keep(settings.clone(), health.register("relay leases"), stop_keeping.clone());
    let mut keeper = AbortOnDropHandle::new(tokio::spawn(keep));
    let looped = publishing_loop::PublishingLoop::new(
        settings,
        leases,
        wake,
        (health.register("relay"), health.partitions("relay")),
    );
    let stop = shutdown.child_token();
    let _ends_with_us = stop.clone().drop_guard();
    let mut publishing = tokio::task::spawn_blocking(move || on_this_thread(looped, stop));
    let published = tokio::select! {
        published = &mut publishing => published?,
        // It ends when it is told to, and not before.
        kept = &mut keeper => Err(kept.err().map_or(RelayError::Ended, RelayError::Defect)),
    };
    stop_keeping.cancel();
    if !keeper.is_finished() {
        (&mut keeper).await?;
    }
    published
}

/// Rows go from the connection's task to the loop's, a few at a time. With both on one thread no other
/// thread has to be woken for them.
fn on_this_thread(looped: publishing_loop::PublishingLoop, shutdown: CancellationToken) -> Result<(), RelayError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(RelayError::Thread)?;
    let published = runtime.block_on(looped.run(shutdown));
    // A read of Kafka's tails that nobody waits for any more.
    runtime.shutdown_background();
    published
}

/// Unique per run: host, process and a random part, for people and for the compare-and-set.
fn owner_name() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = if host.trim().is_empty() { "relay" } else { host.trim() };
    format!("{host}-{}-{:08x}", std::process::id(), Uuid::new_v4().as_fields().0)
}
