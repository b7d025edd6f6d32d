//! Development services: a real Kafka and a real PostgreSQL for a shell, the demo, tests and benches.
//! Configured addresses win, then Docker Compose where an engine answers, then local processes.
//! Not for production; knows no other room than the settings.

mod compose;
pub mod detach;
mod error;
mod fetch;
mod java;
mod kafka;
mod postgres;
mod probe;
mod process;
mod state;
mod supervisor;
mod wrappers;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub use error::DevError;
pub use postgres::PostgresStop;
pub use process::{CancelFlag, Identity, Report};
pub use state::{Layout, Recorded};
pub use wrappers::shell_word;

use compose::ComposeProject;
use supervisor::{Opened, Supervisor};

use crate::settings::{DevRunner, DevSettings, KafkaSettings, Settings};

/// Where the services came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The settings name them; the launcher started nothing.
    Configured,
    /// Another process, or a container, runs them.
    Found,
    /// Started here; they stop when the [`Services`] are dropped.
    Started,
}

/// A Kafka and a PostgreSQL that answered a real request.
#[derive(Debug)]
pub struct Services {
    /// `host:port`, comma separated.
    pub kafka_brokers: String,
    /// With the password of a superuser of the database `throughline`.
    pub database_url: String,
    pub origin: Origin,
    directory: PathBuf,
    guard: Option<Guard>,
}

#[derive(Debug)]
enum Guard {
    Local(Supervisor),
    Compose(ComposeProject),
}

/// A probe of configured or found services.
const PROBE_BOUND: Duration = Duration::from_secs(5);

impl Services {
    /// The services of this directory: those that run already, or new ones that stop when the value is
    /// dropped. Ignores configured addresses; see [`Services::open`].
    pub async fn start_or_find(settings: &DevSettings) -> Result<Self, DevError> {
        let report: Report = Arc::new(|line| tracing::info!("{line}"));
        Self::start_reporting(settings, report, CancelFlag::default()).await
    }

    /// The configured services if the settings name both, else as [`Services::start_or_find`].
    pub async fn open(settings: &Settings) -> Result<Self, DevError> {
        match Self::configured(settings).await? {
            Some(services) => Ok(services),
            None => Self::start_or_find(&settings.dev).await,
        }
    }

    /// As [`Services::open`], telling `report` what it does; setting `cancel` ends a start.
    pub async fn open_reporting(settings: &Settings, report: Report, cancel: CancelFlag) -> Result<Self, DevError> {
        match Self::configured(settings).await? {
            Some(services) => Ok(services),
            None => Self::start_reporting(&settings.dev, report, cancel).await,
        }
    }

    /// As [`Services::start_or_find`], telling `report` what it does; setting `cancel` ends a start.
    pub async fn start_reporting(settings: &DevSettings, report: Report, cancel: CancelFlag) -> Result<Self, DevError> {
        let directory = Layout::of(settings)?.root;
        if let Some(project) = compose_for(settings).await? {
            report("starting Kafka and PostgreSQL with Docker Compose");
            let known = Layout::of(settings)?.read_state().is_some();
            let (up, stop) = (project.clone(), cancel.clone());
            let state = blocking(move || up.up(&stop)).await?;
            let origin = if known { Origin::Found } else { Origin::Started };
            let guard = (origin == Origin::Started).then_some(Guard::Compose(project));
            let services = Self::of(state, origin, directory, guard);
            services.probe(&KafkaSettings::default(), PROBE_BOUND).await?;
            return Ok(services);
        }
        match supervisor::open(settings.clone(), report, cancel).await? {
            Opened::Started(state, supervisor) => {
                Ok(Self::of(state, Origin::Started, directory, Some(Guard::Local(supervisor))))
            }
            Opened::Found(state) => {
                let services = Self::of(state, Origin::Found, directory, None);
                services.probe(&KafkaSettings::default(), PROBE_BOUND).await?;
                Ok(services)
            }
        }
    }

    /// The services that the settings name, after a request to each; none when they name none, or when
    /// they name those that this launcher last ran (a shell that evaluated `dev env`).
    pub async fn configured(settings: &Settings) -> Result<Option<Self>, DevError> {
        let defaults = Settings::default();
        let kafka = settings.kafka.brokers != defaults.kafka.brokers;
        let database = !settings.database.url.is_empty();
        match (kafka, database) {
            (false, false) => return Ok(None),
            (true, true) => {}
            _ => {
                let (set, unset) =
                    if kafka { ("KAFKA_BROKERS", "DATABASE_URL") } else { ("DATABASE_URL", "KAFKA_BROKERS") };
                let what = format!("{set} is configured but {unset} is not");
                return Err(DevError::Unusable { what, next: format!("set both, or unset {set}") });
            }
        }
        if Layout::of(&settings.dev)?.is_ours(&settings.kafka.brokers, settings.database.url.expose()) {
            return Ok(None);
        }
        let services = Self {
            kafka_brokers: settings.kafka.brokers.clone(),
            database_url: settings.database.url.expose().to_owned(),
            origin: Origin::Configured,
            directory: settings.dev.directory.clone(),
            guard: None,
        };
        services.probe(&settings.kafka, PROBE_BOUND).await?;
        Ok(Some(services))
    }

    fn of(state: Recorded, origin: Origin, directory: PathBuf, guard: Option<Guard>) -> Self {
        Self { kafka_brokers: state.kafka_brokers, database_url: state.database_url, origin, directory, guard }
    }

    async fn probe(&self, kafka: &KafkaSettings, bound: Duration) -> Result<(), DevError> {
        let next = match self.origin {
            Origin::Configured => "start it, or unset KAFKA_BROKERS and DATABASE_URL to let the launcher start both",
            _ => "throughline dev down, then throughline dev up",
        };
        let (brokers, options) = (self.kafka_brokers.clone(), kafka.librdkafka.clone());
        let asked = brokers.clone();
        blocking(move || {
            probe::kafka_answers(&asked, options, bound)
                .map_err(|reason| DevError::step("asking Kafka", format!("{brokers}: {reason}"), next))
        })
        .await?;
        let url = self.database_url.clone();
        // A server that demands TLS is asked by the store's own pool, which knows the authorities.
        if url.contains("sslmode=require") {
            return Ok(());
        }
        blocking(move || {
            probe::postgres_answers(&url, "select 1", bound)
                .map_err(|reason| DevError::step("asking PostgreSQL", reason, next))
        })
        .await
    }

    /// Returns when a service that we started ended by itself, with what is known; never for others.
    pub async fn failed(&self) -> String {
        match &self.guard {
            Some(Guard::Local(supervisor)) => supervisor.failed().await,
            _ => std::future::pending().await,
        }
    }

    /// Stops what was started here and waits for it; leaves others' services alone.
    pub async fn stop(mut self) -> Result<(), DevError> {
        let guard = self.guard.take();
        blocking(move || {
            drop(guard);
            Ok(())
        })
        .await
    }

    /// Leaves containers running; local processes always stop with their launcher.
    pub fn leave_running(mut self) {
        if let Some(Guard::Compose(_)) = &self.guard {
            std::mem::forget(self.guard.take());
        }
    }

    fn supervisor(&self) -> Result<&Supervisor, DevError> {
        match &self.guard {
            Some(Guard::Local(supervisor)) => Ok(supervisor),
            _ => Err(DevError::NotOwned(self.directory.clone())),
        }
    }

    /// SIGKILL to the first broker started here; it stays down until [`Services::start_kafka`].
    pub async fn kill_kafka(&self) -> Result<(), DevError> {
        self.kill_broker(1).await
    }

    /// The first broker again on the same port; returns when it answers.
    pub async fn start_kafka(&self) -> Result<(), DevError> {
        self.start_broker(1).await
    }

    /// As [`Services::kill_kafka`], for any of the brokers, from 1 on.
    pub async fn kill_broker(&self, node: u16) -> Result<(), DevError> {
        self.supervisor()?.run(move |pair| pair.kill_broker(node)).await
    }

    /// As [`Services::start_kafka`], for any of the brokers.
    pub async fn start_broker(&self, node: u16) -> Result<(), DevError> {
        self.supervisor()?.run(move |pair| pair.start_broker(node)).await
    }

    /// Takes a PostgreSQL started here down; it stays down until [`Services::start_postgres`].
    pub async fn stop_postgres(&self, how: PostgresStop) -> Result<(), DevError> {
        self.supervisor()?.run(move |pair| pair.stop_postgres(how)).await
    }

    /// PostgreSQL again on the same port; returns when it answers.
    pub async fn start_postgres(&self) -> Result<(), DevError> {
        self.supervisor()?.run(supervisor::Pair::start_postgres).await
    }

    /// Down and up again; returns when it answers.
    pub async fn restart_postgres(&self, how: PostgresStop) -> Result<(), DevError> {
        self.stop_postgres(how).await?;
        self.start_postgres().await
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Self::Compose(project) = self
            && let Err(error) = project.down(false)
        {
            tracing::error!(%error, "containers were left running");
        }
    }
}

/// Listens where the settings say if that is free, else at a port that is.
///
/// # Errors
/// There is none.
pub fn prefer_free_ports(settings: &mut Settings) -> std::io::Result<()> {
    for address in [&mut settings.http.listen, &mut settings.http.admin_listen] {
        if std::net::TcpListener::bind(*address).is_err() {
            *address = std::net::TcpListener::bind((address.ip(), 0))?.local_addr()?;
        }
    }
    Ok(())
}

/// Stops whatever runs in the directory, whoever owns it; true when something did.
pub async fn stop(settings: &DevSettings) -> Result<bool, DevError> {
    let settings = settings.clone();
    blocking(move || stop_all(&settings, false)).await
}

/// Stops whatever runs in the directory and deletes its data; the fetched Kafka stays.
pub async fn reset(settings: &DevSettings) -> Result<(), DevError> {
    let settings = settings.clone();
    blocking(move || {
        stop_all(&settings, true)?;
        let layout = Layout::of(&settings)?;
        for path in layout.postgres_homes().into_iter().chain([layout.root.clone()]) {
            match std::fs::remove_dir_all(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(DevError::file("delete", &path)(error));
                }
                _ => {}
            }
        }
        Ok(())
    })
    .await
}

/// Whether the configured addresses are those of this directory's own services, running or not.
pub fn is_ours(settings: &Settings) -> Result<bool, DevError> {
    Ok(Layout::of(&settings.dev)?.is_ours(&settings.kafka.brokers, settings.database.url.expose()))
}

/// The last `lines` of the log of `kafka`, `postgres` or `supervisor`.
pub fn log_text(settings: &DevSettings, name: &str, lines: usize) -> Result<String, DevError> {
    let layout = Layout::of(settings)?;
    if layout.read_state().is_some_and(|state| state.runner == DevRunner::Compose)
        && let Some(project) = ComposeProject::find(settings)?
    {
        return project.logs(name, lines);
    }
    let path = layout.log(name);
    let text = std::fs::read(&path).map_err(DevError::file("read", &path))?;
    let text = String::from_utf8_lossy(&text);
    let all: Vec<&str> = text.lines().collect();
    Ok(all[all.len().saturating_sub(lines)..].iter().map(|line| format!("{line}\n")).collect())
}

fn stop_all(settings: &DevSettings, volumes: bool) -> Result<bool, DevError> {
    let layout = Layout::of(settings)?;
    let Some(state) = layout.read_state() else { return Ok(false) };
    let bound = Duration::from_millis(settings.stop_timeout_ms);
    match state.runner {
        DevRunner::Compose => match ComposeProject::find(settings)? {
            Some(project) => project.down(volumes)?,
            None => {
                let what = "the services here run in containers, and no Docker engine answers".to_owned();
                return Err(DevError::Unusable { what, next: "start Docker, then: throughline dev down".into() });
            }
        },
        _ => {
            // The owner stops its services one after the other, each within the bound.
            state.end(bound * 3);
            layout.forget_state();
        }
    }
    Ok(true)
}

/// The containers' project when these settings and this machine want containers. A local pair that
/// runs already is kept.
async fn compose_for(settings: &DevSettings) -> Result<Option<ComposeProject>, DevError> {
    let running = Layout::of(settings)?.read_state().map(|state| state.runner);
    if settings.runner == DevRunner::Local || running == Some(DevRunner::Local) {
        return Ok(None);
    }
    let wanted = settings.runner;
    let settings = settings.clone();
    let found = blocking(move || ComposeProject::find(&settings)).await?;
    if found.is_none() && wanted == DevRunner::Compose {
        let what = "dev.runner is `compose`, and no Docker engine with its compose client answers".to_owned();
        return Err(DevError::Unusable { what, next: "start Docker, or set THROUGHLINE__DEV__RUNNER=local".into() });
    }
    Ok(found)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, DevError> + Send + 'static,
) -> Result<T, DevError> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(DevError::step("the launcher's work", error, "throughline dev logs")))
}
