//! Services for tests, and databases on them that nobody else has.
//!
//! Those that the environment names, or a pair that the launcher starts once for this test program.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::OnceCell;
use tokio_postgres::Client;

use crate::app::dev::Services;
use crate::settings::{DatabaseSettings, Settings};
use crate::store::{DatabaseRole, connect};

static SERVICES: OnceCell<(String, String, Services)> = OnceCell::const_new();
static NUMBER: AtomicU32 = AtomicU32::new(0);

/// A database of one test's own; its name serves for topics as well. For tests that run a binary:
///
/// ```no_run
/// # async fn a_test() {
/// use throughline::settings::Settings;
/// use throughline::testing::OwnDatabase;
///
/// let own = OwnDatabase::create(&Settings::default()).await;
/// let run = std::process::Command::new("target/debug/bank").arg("run").envs(own.environment()).spawn();
/// # }
/// ```
pub struct OwnDatabase {
    pub(super) brokers: String,
    pub(super) name: String,
    pub(super) url: String,
    services_url: String,
}

impl OwnDatabase {
    /// Makes it, on the services that `settings` or the environment name, or on a pair that this test program starts
    /// once.
    ///
    /// # Panics
    /// Where there are no services to be had, or PostgreSQL makes no database.
    pub async fn create(settings: &Settings) -> Self {
        let (brokers, services_url, _) = SERVICES.get_or_init(|| open(settings)).await;
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let name = format!("stage_{since}_{}_{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let (server, rest) = services_url.rsplit_once('/').unwrap_or((services_url, ""));
        let options = rest.split_once('?').map(|(_, options)| format!("?{options}")).unwrap_or_default();
        execute(services_url, &format!("create database {name}")).await;
        Self {
            brokers: brokers.clone(),
            url: format!("{server}/{name}{options}"),
            services_url: services_url.clone(),
            name,
        }
    }

    /// A connection to it, as its owner.
    ///
    /// # Panics
    /// Where PostgreSQL takes none.
    pub async fn connect(&self) -> Client {
        connect(&self.url).await
    }

    /// What a binary is told by: services, database, a prefix for topics, ports that are free now, and no notice
    /// before it stops.
    ///
    /// # Panics
    /// Where no port is free.
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        let (listen, admin_listen) = free_ports();
        vec![
            ("KAFKA_BROKERS", self.brokers.clone()),
            ("DATABASE_URL", self.url.clone()),
            ("THROUGHLINE__TOPICS__PREFIX", self.prefix()),
            ("HTTP_LISTEN", listen.to_string()),
            ("ADMIN_LISTEN", admin_listen.to_string()),
            ("THROUGHLINE__HTTP__SHUTDOWN_NOTICE_MS", "0".to_owned()),
        ]
    }

    pub(super) fn prefix(&self) -> String {
        format!("{}-", self.name.replace('_', "-"))
    }

    /// Drops it, whoever is still connected.
    ///
    /// # Panics
    /// Where PostgreSQL does not.
    pub async fn drop(self) {
        execute(&self.services_url, &format!("drop database if exists {} with (force)", self.name)).await;
    }
}

/// Two at once: one given back could be given again.
pub(super) fn free_ports() -> (SocketAddr, SocketAddr) {
    let bound = || {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap_or_else(|error| panic!("no port: {error}"));
        (listener.local_addr().unwrap_or_else(|error| panic!("no port: {error}")), listener)
    };
    let (first, second) = (bound(), bound());
    (first.0, second.0)
}

async fn open(settings: &Settings) -> (String, String, Services) {
    let services = Services::open(settings).await.unwrap_or_else(|error| panic!("{error}"));
    (services.kafka_brokers.clone(), services.database_url.clone(), services)
}

async fn connect(url: &str) -> Client {
    let settings = DatabaseSettings { url: url.into(), ..Settings::default().database };
    connect::connect(&settings, &DatabaseRole::Owner).await.unwrap_or_else(|error| panic!("{error}"))
}

async fn execute(url: &str, statement: &str) {
    connect(url).await.batch_execute(statement).await.unwrap_or_else(|error| panic!("{statement}: {error}"));
}
