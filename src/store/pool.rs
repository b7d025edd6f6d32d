//! Pooled connections in one database role, none of which stays with who hears nothing.
//!
//! A connection that rested is asked before it is handed out, so that nobody gets a dead one; one that is in use
//! for longer than a round trip may take is closed, and its user told. Both cost a busy pool nothing on the wire.

use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use deadpool::managed::{self, Metrics, PoolError, RecycleError, RecycleResult};
use deadpool_postgres::ClientWrapper;
use tokio::task::AbortHandle;
use tokio_util::task::AbortOnDropHandle;

use super::connect::{DatabaseRole, PING_WAIT, session_setup};
use super::dial::Dialer;
use super::{StoreError, ping};
use crate::settings::DatabaseSettings;

/// A connection that was used within this time is believed to be alive.
const FRESH: Duration = Duration::from_secs(1);
/// Whatever a session has learned that is not so any more (prepared statements of tables made anew, that the
/// server only reads) ends with it, and that is after this time at most.
const LIFE: Duration = Duration::from_secs(60);

/// A pool of connections in one role. Cheap to clone.
#[derive(Clone)]
pub struct Database {
    pool: managed::Pool<Sessions>,
    target: Arc<str>,
    round_trip: Duration,
}

/// A connection with the task that carries it.
struct Session {
    client: ClientWrapper,
    connection: AbortHandle,
}

/// Makes and checks the sessions of a pool.
struct Sessions {
    dialer: Dialer,
    setup: String,
    wait: Duration,
    /// A session did not answer: what was opened before shares its fate, and is not asked one by one.
    silent_since: Mutex<Option<Instant>>,
}

/// A connection taken from the pool; goes back when dropped.
pub struct Pooled {
    session: managed::Object<Sessions>,
    _watched: AbortOnDropHandle<()>,
}

impl std::fmt::Debug for Database {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Database").field("target", &self.target).finish_non_exhaustive()
    }
}

impl Database {
    /// Prepares a pool; nothing is connected before the first [`Database::client`].
    pub fn new(settings: &DatabaseSettings, role: &DatabaseRole) -> Result<Self, StoreError> {
        let dialer = Dialer::new(settings)?;
        let target = dialer.target().into();
        let wait = Duration::from_millis(settings.pool_wait_ms);
        let sessions = Sessions { dialer, setup: session_setup(settings, role), wait, silent_since: Mutex::default() };
        let pool = managed::Pool::builder(sessions)
            .max_size(settings.pool_connections_max)
            .runtime(deadpool::Runtime::Tokio1)
            .wait_timeout(Some(wait))
            .build()
            .map_err(|error| StoreError::Settings(error.to_string()))?;
        Ok(Self { pool, target, round_trip: settings.round_trip() })
    }

    /// A pooled connection, for round trips that take no longer than one may, all in all.
    pub async fn client(&self) -> Result<Pooled, StoreError> {
        let session = self.pool.get().await.map_err(|error| match error {
            PoolError::Backend(error) => error,
            other => StoreError::Connect {
                target: self.target.to_string(),
                reason: format!("no connection is free: {other}"),
                next_step: "Raise database.pool_connections_max, or look for what holds them.",
            },
        })?;
        let (connection, limit) = (session.connection.clone(), self.round_trip);
        let watched = tokio::spawn(async move {
            tokio::time::sleep(limit).await;
            tracing::warn!(waited = ?limit, "a database connection gives no answer and is closed");
            // Whoever waits on it is told that it is closed.
            connection.abort();
        });
        Ok(Pooled { session, _watched: AbortOnDropHandle::new(watched) })
    }

    /// `host:port/database`, for messages.
    pub fn target(&self) -> &str {
        &self.target
    }
}

impl Pooled {
    /// Ends the session instead of giving it back: what it answered may be of the session and not of the database.
    pub fn discard(self) {
        drop(managed::Object::take(self.session));
    }
}

impl Deref for Pooled {
    type Target = ClientWrapper;

    fn deref(&self) -> &ClientWrapper {
        &self.session.client
    }
}

impl managed::Manager for Sessions {
    type Type = Session;
    type Error = StoreError;

    async fn create(&self) -> Result<Session, StoreError> {
        let (client, connection) = self.dialer.session(&self.setup, self.wait).await?;
        let handle = connection.abort_handle();
        Ok(Session { client: ClientWrapper::new(client, connection), connection: handle })
    }

    async fn recycle(&self, session: &mut Session, metrics: &Metrics) -> RecycleResult<StoreError> {
        let silent_since = *self.silent_since.lock().unwrap_or_else(PoisonError::into_inner);
        let outlived = metrics.age() > LIFE || silent_since.is_some_and(|at| metrics.created < at);
        if session.client.is_closed() || outlived {
            return Err(RecycleError::message("the connection is over"));
        }
        if metrics.last_used() < FRESH {
            return Ok(());
        }
        let asked = ping(&session.client, PING_WAIT).await;
        if let Err(StoreError::Silent { .. }) = asked {
            *self.silent_since.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        }
        asked.map_err(RecycleError::Backend)
    }
}
