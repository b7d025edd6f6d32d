//! Services for tests, and databases on them that nobody else has.
//!
//! Those that the environment names, or a pair that the launcher starts once for this test program.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::OnceCell;
use tokio_postgres::Client;

use crate::app::dev::Services;
use crate::settings::{DatabaseSettings, Settings};
use crate::store::{DatabaseRole, connect};

static SERVICES: OnceCell<(String, String, Services)> = OnceCell::const_new();
static NUMBER: AtomicU32 = AtomicU32::new(0);

/// A database of one test's own; its name serves for topics as well.
pub(super) struct OwnDatabase {
    pub(super) brokers: String,
    pub(super) name: String,
    pub(super) url: String,
    services_url: String,
}

impl OwnDatabase {
    pub(super) async fn create(settings: &Settings) -> Self {
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

    pub(super) async fn connect(&self) -> Client {
        connect(&self.url).await
    }

    pub(super) async fn drop(self) {
        execute(&self.services_url, &format!("drop database if exists {} with (force)", self.name)).await;
    }
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
