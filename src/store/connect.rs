//! Connections outside any pool, each in the database role of the loop that asked, and the bound on what a loop
//! waits for on them.

use std::ops::{Deref, DerefMut};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_postgres::Client;
use tokio_util::task::AbortOnDropHandle;

use super::StoreError;
use super::dial::Dialer;
use crate::settings::DatabaseSettings;

/// A question that waits for no lock and reads no table is answered by then, or nobody is there.
pub const PING_WAIT: Duration = Duration::from_secs(3);
/// People's commands, and what is installed, may take as many times the loops' statement timeout.
const OWNERS_PATIENCE: u64 = 6;

/// Group roles of the migrations; a connection takes one with `SET ROLE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DatabaseRole {
    /// The role that logs in: migrations and administration.
    Owner,
    /// Appends events, outbox rows and outcomes.
    Writer,
    /// Reads the outbox, moves the watermark.
    Relay,
    /// One projection's own role, by the projection's name.
    Projector(&'static str),
    /// Selects from read tables and outcomes.
    Reader,
    /// Creates and drops time partitions.
    Maintenance,
    /// Tells who lives and what it does.
    Presence,
    /// Moves process managers.
    Process,
    /// Holds what is stored against what is promised.
    Auditor,
}

impl DatabaseRole {
    /// The role's name in PostgreSQL, or none for the login role.
    pub fn name(&self) -> Option<String> {
        match self {
            Self::Owner => None,
            Self::Writer => Some("throughline_writer".into()),
            Self::Relay => Some("throughline_relay".into()),
            Self::Projector(name) => Some(format!("throughline_projection_{}", name.replace('-', "_"))),
            Self::Reader => Some("throughline_reader".into()),
            Self::Maintenance => Some("throughline_maintenance".into()),
            Self::Presence => Some("throughline_presence".into()),
            Self::Process => Some("throughline_process".into()),
            Self::Auditor => Some("throughline_auditor".into()),
        }
    }
}

/// A connection that a loop keeps. It ends when it is dropped, whatever it waits for: the driver alone would carry
/// on until the answer comes, with the locks that its transaction holds.
#[derive(Debug)]
pub struct Line {
    client: Client,
    _carried: AbortOnDropHandle<()>,
}

impl Deref for Line {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl DerefMut for Line {
    fn deref_mut(&mut self) -> &mut Client {
        &mut self.client
    }
}

/// One connection outside any pool, for commands. Ends after its last answer, once the client is dropped.
pub async fn connect(settings: &DatabaseSettings, role: &DatabaseRole) -> Result<Client, StoreError> {
    Ok(open(settings, role, "").await?.0)
}

/// One connection of a loop, with statements of its own in the same round trip as the session's.
pub async fn connect_with(settings: &DatabaseSettings, role: &DatabaseRole, setup: &str) -> Result<Line, StoreError> {
    let (client, carried) = open(settings, role, setup).await?;
    Ok(Line { client, _carried: AbortOnDropHandle::new(carried) })
}

async fn open(
    settings: &DatabaseSettings,
    role: &DatabaseRole,
    setup: &str,
) -> Result<(Client, JoinHandle<()>), StoreError> {
    // A start, or a command, ends without a connection, and may wait. A loop tries again for ever, and
    // has a lease or a claim that runs out meanwhile.
    let patient = *role == DatabaseRole::Owner;
    let wait = Duration::from_millis(if patient { settings.connect_wait_ms } else { settings.pool_wait_ms });
    let setup = format!("{}{setup}", session_setup(settings, role));
    Dialer::new(settings)?.session(&setup, wait).await
}

/// Fails where no retry could help: a URL or TLS material that cannot be used. For starts.
pub fn check(settings: &DatabaseSettings) -> Result<(), StoreError> {
    Dialer::new(settings).map(drop)
}

/// Waits for `work`, a round trip of a loop, for no longer than `limit`. Where that runs out its connection is
/// not to be used again: the answer may still come, or never.
pub async fn bounded<T, E: From<StoreError>>(
    limit: Duration,
    step: &'static str,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    match tokio::time::timeout(limit, work).await {
        Ok(outcome) => outcome,
        Err(_) => Err(StoreError::Silent { step, waited: limit }.into()),
    }
}

/// Waits for `work`, however long the server takes over it, on the session of backend `pid`. Every `limit` a session
/// that `connect` makes looks whether the server still has that one: it ends a session that idles in a transaction, and
/// where the network swallowed its answer nobody else would ever tell. While nobody can be asked it is waited for.
pub async fn while_served<T, E: From<StoreError>, C: Future<Output = Result<Line, StoreError>>>(
    limit: Duration,
    step: &'static str,
    pid: i32,
    connect: impl Fn() -> C,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    let look = "look whether the server has a session";
    let mut work = std::pin::pin!(work);
    loop {
        if let Ok(outcome) = tokio::time::timeout(limit, &mut work).await {
            return outcome;
        }
        let served = async {
            let query = "select exists (select from pg_stat_activity where pid = $1)";
            let row = connect().await?.query_one(query, &[&pid]).await.map_err(StoreError::at(look))?;
            Ok::<bool, StoreError>(row.get(0))
        };
        if let Ok(false) = bounded(limit, look, served).await {
            return Err(StoreError::Silent { step, waited: limit }.into());
        }
    }
}

/// Whether somebody answers at the other end.
pub async fn ping(client: &Client, limit: Duration) -> Result<(), StoreError> {
    let step = "ask whether the database is there";
    bounded(limit, step, async { client.batch_execute("").await.map_err(StoreError::at(step)) }).await
}

/// What every session starts with. Role names are ours, never input. Statements run for milliseconds, and
/// what the planner thinks of a young table would have them compiled first, for hundreds of them.
///
/// The server, too, is to notice that we are gone: a lost session that holds locks holds up its successor.
pub(super) fn session_setup(settings: &DatabaseSettings, role: &DatabaseRole) -> String {
    let patience = if *role == DatabaseRole::Owner { OWNERS_PATIENCE } else { 1 };
    let mut setup = format!(
        "set statement_timeout = {}; set lock_timeout = {}; set idle_in_transaction_session_timeout = {}; set timezone = 'UTC'; set jit = off;
         set tcp_keepalives_idle = 5; set tcp_keepalives_interval = 2; set tcp_keepalives_count = 3;
         set tcp_user_timeout = 10000;
         select set_config(name, '2s', false) from pg_settings where name = 'client_connection_check_interval';",
        settings.statement_timeout_ms.saturating_mul(patience),
        // Of the two limits the wait for a lock is reached first: it is told which of them it was.
        settings.statement_timeout_ms.saturating_mul(patience) / 2,
        settings.idle_in_transaction_timeout_ms
    );
    if let Some(role) = role.name().filter(|_| settings.set_role) {
        setup.push_str(&format!("set role {role};"));
    }
    setup
}
