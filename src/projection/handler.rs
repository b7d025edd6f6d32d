//! Runs a projection's own code, and tells what its failures mean.
//!
//! A handler may panic, hang, break a constraint or meet a database that is not as it should be: only what
//! names the data, and what the handler does by itself, is its own, and the failure policy's.

use std::panic::AssertUnwindSafe;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use tokio_postgres::Transaction;
use tokio_postgres::error::SqlState;

use super::Projector;
use crate::engine::{ProjectionError, Recorded};
use crate::store::connect::PING_WAIT;
use crate::store::{self, Blame, StoreError};

/// The code of a handler that is too slow.
pub(super) const TIMEOUT: &str = "HANDLER_TIMEOUT";

/// The code of what the database refuses for the data's sake.
pub(super) const REFUSED: &str = "DATABASE_REFUSED";

/// Why a batch was not applied.
#[derive(Debug)]
pub(super) enum ApplyFailure {
    /// The world's: try again, for ever.
    World(StoreError),
    /// The world's too, but of how much was asked or what that touches: try with less.
    Extent(StoreError),
    /// The handler's own, or the data's: retries, then the policy.
    Handler { code: &'static str, reason: String },
}

impl ApplyFailure {
    /// A failed statement of ours: never the handler's fault.
    pub(super) fn ours(step: &'static str) -> impl FnOnce(tokio_postgres::Error) -> Self {
        move |source| StoreError::Statement { step, source }.into()
    }

    /// A failed statement of the handler's, or on its behalf.
    pub(super) fn of_the_handler(step: &'static str) -> impl FnOnce(tokio_postgres::Error) -> Self {
        move |source| match store::blame(&source) {
            Blame::Data => Self::Handler { code: REFUSED, reason: store::describe(&source) },
            Blame::Extent | Blame::World => StoreError::Statement { step, source }.into(),
        }
    }
}

impl From<StoreError> for ApplyFailure {
    fn from(error: StoreError) -> Self {
        match error.blame() {
            Blame::World => Self::World(error),
            Blame::Extent | Blame::Data => Self::Extent(error),
        }
    }
}

/// Applies `events` in `tx`, within the time allowed.
pub(super) async fn apply<E: Send + Sync>(
    projector: &Projector<E>,
    tx: &Transaction<'_>,
    events: &[Recorded<E>],
) -> Result<(), ApplyFailure> {
    if events.is_empty() {
        return Ok(());
    }
    let started = Instant::now();
    let limit = Duration::from_millis(projector.settings.projection.apply_timeout_ms);
    let idle = Duration::from_millis(projector.settings.database.idle_in_transaction_timeout_ms);
    // The server ends a session whose transaction idles; the driver then only sees it closed.
    let idled = || !idle.is_zero() && started.elapsed() >= idle;
    // The call itself may panic too, before there is a future.
    let handler = AssertUnwindSafe(async { projector.projection.apply(tx, events).await });
    let outcome = match tokio::time::timeout(limit, handler.catch_unwind()).await {
        Err(_) => {
            // A statement of its own ends before that limit. So either the handler does something else, or
            // nobody is there to answer it.
            let asked = store::ping(tx.client(), PING_WAIT).await;
            if let Err(error @ (StoreError::Silent { .. } | StoreError::Statement { .. })) = asked
                && !(tx.client().is_closed() && idled())
            {
                return Err(error.into());
            }
            let reason = format!("the handler did not finish {} events within {limit:?}", events.len());
            return Err(ApplyFailure::Handler { code: TIMEOUT, reason });
        }
        Ok(Err(panic)) => {
            return Err(ApplyFailure::Handler { code: "HANDLER_PANIC", reason: panic_text(panic.as_ref()) });
        }
        Ok(Ok(outcome)) => outcome,
    };
    match outcome {
        Ok(()) => Ok(()),
        Err(ProjectionError::Event(reason)) => Err(ApplyFailure::Handler { code: "HANDLER_REFUSED", reason }),
        Err(ProjectionError::Database(source)) => {
            let too_slow = source.code() == Some(&SqlState::IDLE_IN_TRANSACTION_SESSION_TIMEOUT)
                || (source.is_closed() && idled());
            if too_slow {
                return Err(ApplyFailure::Handler { code: TIMEOUT, reason: store::describe(&source) });
            }
            Err(ApplyFailure::of_the_handler("apply a batch")(source))
        }
    }
}

pub(super) fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned());
    format!("the handler panicked: {text}")
}
