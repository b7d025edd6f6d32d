//! Pools and single connections, each in the database role of the loop that asked.

use std::sync::Arc;
use std::time::Duration;

use deadpool_postgres::{Hook, HookError, Manager, ManagerConfig, Object, Pool, RecyclingMethod, Runtime};
use tokio_postgres::config::{Host, SslMode};
use tokio_postgres::{Client, NoTls};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::StoreError;
use crate::settings::DatabaseSettings;

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
        }
    }
}

/// A pool of connections in one role. Cheap to clone.
#[derive(Clone)]
pub struct Database {
    pool: Pool,
    target: String,
}

impl std::fmt::Debug for Database {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Database").field("target", &self.target).finish_non_exhaustive()
    }
}

impl Database {
    /// Prepares a pool; nothing is connected before the first [`Database::client`].
    pub fn new(settings: &DatabaseSettings, role: &DatabaseRole) -> Result<Self, StoreError> {
        let config = parse(settings)?;
        let target = target(&config);
        let manager_config = ManagerConfig { recycling_method: RecyclingMethod::Fast };
        let manager = match tls(settings, &config)? {
            Some(tls) => Manager::from_config(config, tls, manager_config),
            None => Manager::from_config(config, NoTls, manager_config),
        };
        let wait = Some(Duration::from_millis(settings.pool_wait_ms));
        let setup = Arc::new(session_setup(settings, role));
        let pool = Pool::builder(manager)
            .max_size(settings.pool_connections_max)
            .runtime(Runtime::Tokio1)
            .wait_timeout(wait)
            .create_timeout(wait)
            .post_create(Hook::async_fn(move |client, _| {
                let setup = setup.clone();
                Box::pin(async move { client.batch_execute(&setup).await.map_err(HookError::Backend) })
            }))
            .build()
            .map_err(|error| StoreError::Settings(error.to_string()))?;
        Ok(Self { pool, target })
    }

    /// A pooled connection. It may have died since its last use: callers retry transient failures.
    pub async fn client(&self) -> Result<Object, StoreError> {
        self.pool.get().await.map_err(|error| connect_error(&self.target, &error.to_string(), &error))
    }

    /// `host:port/database`, for messages.
    pub fn target(&self) -> &str {
        &self.target
    }

    /// Connections in use and open, for metrics.
    pub fn status(&self) -> deadpool_postgres::Status {
        self.pool.status()
    }
}

/// One connection outside any pool, for a loop that keeps its own. Ends when the client is dropped.
pub async fn connect(settings: &DatabaseSettings, role: &DatabaseRole) -> Result<Client, StoreError> {
    let config = parse(settings)?;
    let target = target(&config);
    // A start, or a command, ends without a connection, and may wait. A loop tries again for ever, and
    // has a lease or a claim that runs out meanwhile.
    let patient = *role == DatabaseRole::Owner;
    let wait = Duration::from_millis(if patient { settings.connect_wait_ms } else { settings.pool_wait_ms });
    let error = |error: tokio_postgres::Error| connect_error(&target, &super::describe(&error), &error);
    let late = |_| connect_error(&target, "no answer in time", &std::fmt::Error);
    let client = match tls(settings, &config)? {
        Some(tls) => {
            let (client, connection) =
                tokio::time::timeout(wait, config.connect(tls)).await.map_err(late)?.map_err(error)?;
            tokio::spawn(connection);
            client
        }
        None => {
            let (client, connection) =
                tokio::time::timeout(wait, config.connect(NoTls)).await.map_err(late)?.map_err(error)?;
            tokio::spawn(connection);
            client
        }
    };
    client.batch_execute(&session_setup(settings, role)).await.map_err(|source| StoreError::Statement {
        step: "take the loop's database role (`throughline db apply` makes those that are missing)",
        source,
    })?;
    Ok(client)
}

fn parse(settings: &DatabaseSettings) -> Result<tokio_postgres::Config, StoreError> {
    if settings.url.is_empty() {
        return Err(StoreError::Settings(
            "no database is configured: set DATABASE_URL=postgres://user:password@host:port/name, \
             or run `throughline dev up --detach` and `eval \"$(throughline dev env)\"`"
                .into(),
        ));
    }
    let mut config: tokio_postgres::Config = settings.url.expose().parse().map_err(|_| {
        StoreError::Settings("DATABASE_URL is not of the form postgres://user:password@host:port/name".into())
    })?;
    config.application_name("throughline").connect_timeout(Duration::from_millis(settings.connect_wait_ms));
    Ok(config)
}

fn target(config: &tokio_postgres::Config) -> String {
    let host = match config.get_hosts().first() {
        Some(Host::Tcp(host)) => host.clone(),
        #[cfg(unix)]
        Some(Host::Unix(path)) => path.display().to_string(),
        None => "localhost".into(),
    };
    let port = config.get_ports().first().copied().unwrap_or(5432);
    format!("{host}:{port}/{}", config.get_dbname().unwrap_or_default())
}

/// TLS unless the URL says `sslmode=disable`, or names no mode and no authority is configured.
fn tls(settings: &DatabaseSettings, config: &tokio_postgres::Config) -> Result<Option<MakeRustlsConnect>, StoreError> {
    let Some(path) = &settings.ca_file else {
        return match config.get_ssl_mode() {
            SslMode::Require => Err(StoreError::Settings(
                "sslmode=require needs database.ca_file, a PEM file with the authorities to trust".into(),
            )),
            _ => Ok(None),
        };
    };
    let read = |error: std::io::Error| StoreError::Settings(format!("{}: {error}", path.display()));
    let mut roots = rustls::RootCertStore::empty();
    let mut reader = std::io::BufReader::new(std::fs::File::open(path).map_err(read)?);
    for certificate in rustls_pemfile::certs(&mut reader) {
        roots
            .add(certificate.map_err(read)?)
            .map_err(|error| StoreError::Settings(format!("{}: {error}", path.display())))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let client = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| StoreError::Settings(error.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Some(MakeRustlsConnect::new(client)))
}

/// What every session starts with. Role names are ours, never input. Statements run for milliseconds, and
/// what the planner thinks of a young table would have them compiled first, for hundreds of them.
fn session_setup(settings: &DatabaseSettings, role: &DatabaseRole) -> String {
    let mut setup = format!(
        "set statement_timeout = {}; set idle_in_transaction_session_timeout = {}; set timezone = 'UTC'; set jit = off;",
        settings.statement_timeout_ms, settings.idle_in_transaction_timeout_ms
    );
    if let Some(role) = role.name().filter(|_| settings.set_role) {
        setup.push_str(&format!("set role {role};"));
    }
    setup
}

fn connect_error(target: &str, reason: &str, error: &(dyn std::error::Error + 'static)) -> StoreError {
    let mut code = None;
    let mut chain: Option<&(dyn std::error::Error + 'static)> = Some(error);
    let mut deepest = reason.to_owned();
    while let Some(current) = chain {
        if let Some(postgres) = current.downcast_ref::<tokio_postgres::Error>() {
            code = postgres.code().map(|code| code.code().to_owned());
            deepest = super::describe(postgres);
        }
        chain = current.source();
    }
    let next_step = match code.as_deref() {
        Some("28P01" | "28000") => "Check user and password in DATABASE_URL.",
        Some("3D000") => "Create the database, then run `throughline db apply`.",
        Some("22023" | "42704") => "The loop's role is missing: run `throughline db apply`.",
        Some("42501") => "The user may not take the loop's role: run `throughline db apply` as the owner.",
        _ => "Check DATABASE_URL, or start one with `throughline dev up --detach`.",
    };
    StoreError::Connect { target: target.to_owned(), reason: deepest, next_step }
}
