//! The whole product on a stage of its own: every role of an application in this process, on a real Kafka and a real
//! PostgreSQL, with a database and topics that nobody else has.
//!
//! HTTP is spoken to it as by any client; what is in its tables is asked there.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::task::JoinHandle;
use tokio_postgres::Client;
use tokio_util::sync::DropGuard;

use super::services::{OwnDatabase, free_ports};
use crate::app::lifecycle::Lifecycle;
use crate::app::{App, install, roles};
use crate::settings::{LoadedSettings, Settings};

/// A start, and an answer that is expected, are waited for this long.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(50);
const TOKEN: &str = "consistency-token";

/// An application that runs, with HTTP to speak to it.
///
/// ```no_run
/// # async fn a_test(app: throughline::App) {
/// use serde_json::json;
/// use throughline::testing::Stage;
///
/// let stage = Stage::of(app).await;
/// let opened = stage.post("/api/accounts/sync", json!({"owner": "ann"})).await;
/// assert_eq!(opened.status, 201, "{opened:?}");
/// let account = stage.get(&format!("/api/accounts/{}", opened.text("accountId"))).await;
/// assert_eq!(account.body["owner"], "ann");
/// stage.close().await;
/// # }
/// ```
pub struct Stage {
    settings: Settings,
    database: OwnDatabase,
    http: reqwest::Client,
    /// Of the last write: reads see it.
    token: Mutex<Option<String>>,
    /// A test that fails stops it as well.
    shutdown: DropGuard,
    running: JoinHandle<anyhow::Result<()>>,
}

/// What was answered.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// The status of HTTP.
    pub status: u16,
    /// The body; null where it is no JSON.
    pub body: Value,
}

impl Answer {
    /// A member of the body that must be a text.
    #[track_caller]
    pub fn text(&self, name: &str) -> &str {
        self.body[name].as_str().unwrap_or_else(|| panic!("no text {name} in {self:?}"))
    }
}

impl Stage {
    /// Starts every role of `app` and waits until all of them are ready.
    ///
    /// # Panics
    /// Where the services or a role do not start.
    pub async fn of(app: App) -> Self {
        // Another provider may be installed already; ours is then not needed.
        drop(rustls::crypto::ring::default_provider().install_default());
        let loaded = LoadedSettings::load_for(None, &[], &app.sections()).unwrap_or_else(|error| panic!("{error}"));
        let database = OwnDatabase::create(&loaded.settings).await;
        let settings = on_stage(loaded.settings, &database);
        install::ready(&app, &settings).await.unwrap_or_else(|error| panic!("cannot install: {error:#}"));
        let lifecycle = Lifecycle::embedded();
        let all = roles::parse(&app, &[]).unwrap_or_else(|error| panic!("{error:#}"));
        roles::start(&app, &all, &settings, &lifecycle).await.unwrap_or_else(|error| panic!("cannot start: {error:#}"));
        let shutdown = lifecycle.shutdown().drop_guard();
        let stage = Self {
            http: reqwest::Client::new(),
            token: Mutex::default(),
            running: tokio::spawn(lifecycle.run()),
            database,
            shutdown,
            settings,
        };
        stage.is_ready().await;
        stage
    }

    /// Where a path of its API is.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.settings.http.listen)
    }

    /// The settings that it runs by: addresses, topics, database.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// A connection to its database, as its owner.
    pub async fn database(&self) -> Client {
        self.database.connect().await
    }

    /// Sends a command.
    pub async fn post(&self, path: &str, body: Value) -> Answer {
        self.ask(self.http.post(self.url(path)).json(&body)).await
    }

    /// Reads what is in the read tables, with the last write of this stage.
    pub async fn get(&self, path: &str) -> Answer {
        self.ask(self.http.get(self.url(path))).await
    }

    /// Stops every role and drops the database.
    ///
    /// # Panics
    /// Where a role had ended by itself.
    pub async fn close(self) {
        drop(self.shutdown);
        match self.running.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => panic!("a role ended by itself: {error:#}"),
            Err(error) => panic!("the roles ended badly: {error}"),
        }
        self.database.drop().await;
    }

    async fn ask(&self, request: reqwest::RequestBuilder) -> Answer {
        let token = || self.token.lock().unwrap_or_else(PoisonError::into_inner);
        let request = match token().clone() {
            Some(token) => request.header(TOKEN, token),
            None => request,
        };
        let answer = request.send().await.unwrap_or_else(|error| panic!("no answer: {error}"));
        if let Some(new) = answer.headers().get(TOKEN).and_then(|value| value.to_str().ok()) {
            *token() = Some(new.to_owned());
        }
        Answer { status: answer.status().as_u16(), body: answer.json().await.unwrap_or_default() }
    }

    async fn is_ready(&self) {
        let (asked, started) = (format!("http://{}/readyz?verbose", self.settings.http.admin_listen), Instant::now());
        loop {
            let told = match self.http.get(&asked).send().await {
                Ok(answer) if answer.status().is_success() => return,
                Ok(answer) => answer.text().await.unwrap_or_default(),
                Err(error) => error.to_string(),
            };
            assert!(started.elapsed() < PATIENCE, "not ready within {PATIENCE:?}: {told}");
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

/// The settings with names and ports that nobody else has.
fn on_stage(mut settings: Settings, database: &OwnDatabase) -> Settings {
    settings.kafka.brokers = database.brokers.clone();
    settings.database.url = database.url.as_str().into();
    settings.topics.prefix = database.prefix();
    settings.http.shutdown_notice_ms = 0;
    (settings.http.listen, settings.http.admin_listen) = free_ports();
    settings
}
