//! A real Kafka and a real PostgreSQL for every test: a database and a topic prefix of its own.
//!
//! The services are those that the environment names (`make test` starts a pair), or a pair that the
//! launcher starts for this test program. Waiting is on conditions with deadlines, never on time.
#![allow(dead_code, reason = "each test program uses its own part of the harness")]

pub mod flood;
pub mod odd;
pub mod way;

use std::future::Future;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use throughline::App;
use throughline::app::dev::Services;
use throughline::app::install;
use throughline::kafka::client;
use throughline::kafka::topics::{self, TopicNames};
use throughline::settings::{LoadedSettings, Settings};
use throughline::store::{DatabaseRole, connect};
use tokio_postgres::Client;

static SERVICES: tokio::sync::OnceCell<(String, String, Option<Services>)> = tokio::sync::OnceCell::const_new();
static NUMBER: AtomicU32 = AtomicU32::new(0);

/// Longest wait for anything that is expected to happen.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// One test's own database and topics.
pub struct Harness {
    pub settings: Settings,
    admin_url: String,
    database: String,
}

/// Brokers and superuser URL of the services under test.
pub async fn services() -> (String, String) {
    let (brokers, url, _) = SERVICES
        .get_or_init(async || {
            let settings = LoadedSettings::load(None, &[]).expect("settings of the environment").settings;
            let services = Services::open(&settings).await.expect("services start");
            (services.kafka_brokers.clone(), services.database_url.clone(), Some(services))
        })
        .await;
    (brokers.clone(), url.clone())
}

impl Harness {
    /// Settings with a fresh database and a fresh prefix; nothing is installed yet.
    pub async fn bare(name: &str) -> Self {
        let (brokers, admin_url) = services().await;
        Self::on(name, brokers, admin_url).await
    }

    /// As [`Harness::bare`], on services that the test may hurt.
    pub async fn on(name: &str, brokers: String, admin_url: String) -> Self {
        // HTTP clients are built with TLS, which wants a provider even where none is used.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let moment = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970").as_millis();
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let database = format!("test_{name}_{moment}_{number}");
        let admin = client_of(&admin_url).await;
        admin.batch_execute(&format!("create database {database}")).await.expect("create a database");
        let mut settings = Settings::default();
        settings.kafka.brokers = brokers;
        settings.kafka.session_timeout_ms = 2_000;
        settings.database.url = on_database(&admin_url, &database).into();
        settings.topics.prefix = format!("{}-{moment}-{number}-", name.replace('_', "-"));
        settings.relay.lease_ms = 2_000;
        Self { settings, admin_url, database }
    }

    /// As [`Harness::bare`], with the schema and the topics installed.
    pub async fn new(name: &str) -> Self {
        let harness = Self::bare(name).await;
        harness.install().await;
        harness
    }

    /// Installs schema and topics.
    pub async fn install(&self) {
        install::apply_database(&orders(), &self.settings).await.expect("apply the database");
        let specs = topics::specs(&self.names(), &self.settings.topics);
        topics::apply(&self.settings.kafka, &specs).await.expect("apply the topics");
    }

    /// Names of the orders context under this test's prefix.
    pub fn names(&self) -> TopicNames {
        TopicNames::new("orders", &self.settings.topics)
    }

    /// A superuser connection to this test's database.
    pub async fn client(&self) -> Client {
        connect::connect(&self.settings.database, &DatabaseRole::Owner).await.expect("connect")
    }

    /// Sets one option of a topic, and drops the others that it was made with.
    pub async fn set_topic_option(&self, topic: &str, name: &str, value: &str) {
        let admin: AdminClient<DefaultClientContext> =
            client::base(&self.settings.kafka).create().expect("an admin client");
        let change = AlterConfig::new(ResourceSpecifier::Topic(topic)).set(name, value);
        let changed = admin.alter_configs([&change], &AdminOptions::new()).await.expect("an answer");
        changed.into_iter().for_each(|change| drop(change.expect("the option is set")));
    }

    /// Deletes a topic and waits until it is gone.
    pub async fn delete_topic(&self, topic: &str) {
        let admin: AdminClient<DefaultClientContext> =
            client::base(&self.settings.kafka).create().expect("an admin client");
        let deleted = admin.delete_topics(&[topic], &AdminOptions::new()).await.expect("an answer");
        deleted.into_iter().for_each(|topic| drop(topic.expect("the topic is deleted")));
        eventually("the topic is gone", async || {
            let partitions = topics::partition_count(&self.settings.kafka, topic).await.expect("an answer");
            partitions.is_none().then_some(())
        })
        .await;
    }

    /// Deletes a topic and makes it again, as it was and empty.
    pub async fn make_topic_anew(&self, topic: &str) {
        self.delete_topic(topic).await;
        let specs = topics::specs(&self.names(), &self.settings.topics);
        topics::apply(&self.settings.kafka, &specs).await.expect("apply the topics");
    }

    /// Environment that makes a process of ours use this test's database and topics.
    pub fn environment(&self) -> Vec<(String, String)> {
        let settings = &self.settings;
        [
            ("KAFKA_BROKERS", settings.kafka.brokers.clone()),
            ("DATABASE_URL", settings.database.url.expose().to_owned()),
            ("THROUGHLINE__TOPICS__PREFIX", settings.topics.prefix.clone()),
            ("THROUGHLINE__TOPICS__EVENT_PARTITIONS", settings.topics.event_partitions.to_string()),
            ("THROUGHLINE__TOPICS__COMMAND_PARTITIONS", settings.topics.command_partitions.to_string()),
            ("THROUGHLINE__KAFKA__SESSION_TIMEOUT_MS", settings.kafka.session_timeout_ms.to_string()),
            ("THROUGHLINE__RELAY__LEASE_MS", settings.relay.lease_ms.to_string()),
            ("HTTP_LISTEN", "127.0.0.1:0".to_owned()),
            ("ADMIN_LISTEN", "127.0.0.1:0".to_owned()),
            // Nobody routes requests to a test's process; tests of the notice set their own.
            ("THROUGHLINE__HTTP__SHUTDOWN_NOTICE_MS", "0".to_owned()),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
    }
}

impl Drop for Harness {
    fn drop(&mut self) {
        let (url, database) = (self.admin_url.clone(), self.database.clone());
        // On a thread of its own: the test's runtime may be on its way out.
        let dropped = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let drop = format!("drop database if exists {database} with (force)");
                client_of(&url).await.batch_execute(&drop).await
            })
        });
        if let Ok(Err(error)) = dropped.join() {
            eprintln!("test database {} stays behind: {error}", self.database);
        }
    }
}

async fn client_of(url: &str) -> Client {
    let mut settings = Settings::default().database;
    settings.url = url.into();
    connect::connect(&settings, &DatabaseRole::Owner).await.expect("connect to the services' database")
}

/// The application of most tests: orders alone.
pub fn orders() -> App {
    App::new("Throughline").context(reference::orders::context())
}

/// A number that the environment scales a test by.
pub fn scale(name: &str, default: usize) -> usize {
    std::env::var(name)
        .ok()
        .map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text}")))
}

/// `url` with another database name.
pub fn on_database(url: &str, database: &str) -> String {
    let (server, rest) = url.rsplit_once('/').expect("a URL with a database");
    let query = rest.split_once('?').map(|(_, query)| format!("?{query}")).unwrap_or_default();
    format!("{server}/{database}{query}")
}

/// Polls `condition` until it yields a value; panics with `what` when patience runs out.
#[track_caller]
pub fn eventually<T, F: Future<Output = Option<T>>>(
    what: &str,
    mut condition: impl FnMut() -> F,
) -> impl Future<Output = T> {
    let caller = std::panic::Location::caller();
    async move {
        let started = Instant::now();
        loop {
            if let Some(value) = condition().await {
                return value;
            }
            assert!(started.elapsed() < PATIENCE, "{caller}: still waiting after {PATIENCE:?}: {what}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}
