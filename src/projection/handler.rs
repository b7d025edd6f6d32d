//! Runs a projection's own code, and tells what its failures mean.
//!
//! A handler may panic, hang, break a constraint or meet a database that is away: only the last is
//! tried again for ever; the others are the handler's, and the failure policy's.

use std::panic::AssertUnwindSafe;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use tokio_postgres::Transaction;
use tokio_postgres::error::SqlState;

use super::Projector;
use crate::engine::{ProjectionError, Recorded};
use crate::store::{self, StoreError};

/// Why a batch was not applied.
#[derive(Debug)]
pub(super) enum Failure {
    /// The database is away or busy: try again, for ever.
    Transient(StoreError),
    /// The handler's own: retries, then the policy.
    Handler { code: &'static str, reason: String },
}

impl Failure {
    /// A failed statement of ours: never the handler's fault.
    pub(super) fn ours(step: &'static str) -> impl FnOnce(tokio_postgres::Error) -> Self {
        move |source| Self::Transient(StoreError::Statement { step, source })
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Transient(error)
    }
}

/// Applies `events` in `tx`, within the time allowed.
pub(super) async fn apply<E: Send + Sync>(
    projector: &Projector<E>,
    tx: &Transaction<'_>,
    events: &[Recorded<E>],
) -> Result<(), Failure> {
    if events.is_empty() {
        return Ok(());
    }
    let started = Instant::now();
    let limit = Duration::from_millis(projector.settings.projection.apply_timeout_ms);
    // The call itself may panic too, before there is a future.
    let handler = AssertUnwindSafe(async { projector.projection.apply(tx, events).await });
    let outcome = match tokio::time::timeout(limit, handler.catch_unwind()).await {
        Err(_) => {
            let reason = format!("the handler did not finish {} events within {limit:?}", events.len());
            return Err(Failure::Handler { code: "HANDLER_TIMEOUT", reason });
        }
        Ok(Err(panic)) => {
            return Err(Failure::Handler { code: "HANDLER_PANIC", reason: panic_text(panic.as_ref()) });
        }
        Ok(Ok(outcome)) => outcome,
    };
    let idle = Duration::from_millis(projector.settings.database.idle_in_transaction_timeout_ms);
    match outcome {
        Ok(()) => Ok(()),
        Err(ProjectionError::Event(reason)) => Err(Failure::Handler { code: "HANDLER_REFUSED", reason }),
        Err(ProjectionError::Database(source)) => {
            let too_slow = source.code() == Some(&SqlState::QUERY_CANCELED)
                || source.code() == Some(&SqlState::IDLE_IN_TRANSACTION_SESSION_TIMEOUT)
                // The server ends a session whose transaction idles; the driver then only sees it closed.
                || (source.is_closed() && idle > Duration::ZERO && started.elapsed() >= idle);
            if too_slow {
                Err(Failure::Handler { code: "HANDLER_TIMEOUT", reason: store::describe(&source) })
            } else if store::is_transient(&source) {
                Err(Failure::Transient(StoreError::Statement { step: "apply a batch", source }))
            } else {
                Err(Failure::Handler { code: "DATABASE_REFUSED", reason: store::describe(&source) })
            }
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
