//! The roles of `throughline run`, and what each is made of.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use tokio::sync::Notify;

use super::lifecycle::Lifecycle;
use super::{App, Opened, install, maintenance};
use crate::api::{self, ContextApi, Listener};
use crate::avro;
use crate::health::{Health, Patience};
use crate::presence::Identity;
use crate::process::Codecs;
use crate::settings::Settings;
use crate::store::{Database, DatabaseRole};
use crate::{audit, kafka, presence, relay};

/// One loop of the pipeline.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Of one context, by its name.
    Processor(String),
    Relay,
    /// By the projection's name.
    Projection(String),
    /// By the process manager's name.
    Process(String),
    /// Holds what is promised, all the time.
    Audit,
    Api,
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Processor(context) => write!(f, "processor:{context}"),
            Self::Relay => f.write_str("relay"),
            Self::Projection(name) => write!(f, "projection:{name}"),
            Self::Process(name) => write!(f, "process:{name}"),
            Self::Audit => f.write_str("audit"),
            Self::Api => f.write_str("api"),
        }
    }
}

/// The roles that `names` ask for; none asks for all.
pub fn parse(app: &App, names: &[String]) -> anyhow::Result<BTreeSet<Role>> {
    let processors = || app.contexts().iter().map(|context| Role::Processor(context.name().to_owned()));
    let projections = || app.read_models().into_iter().map(|model| Role::Projection(model.name.to_owned()));
    let processes = || app.processes().iter().map(|process| Role::Process(process.name().to_owned()));
    let named = || processors().chain(projections()).chain(processes());
    let mut roles = BTreeSet::new();
    if names.is_empty() {
        roles.extend([Role::Relay, Role::Audit, Role::Api]);
        roles.extend(named());
    }
    for name in names {
        match name.as_str() {
            "processor" => roles.extend(processors()),
            "relay" => drop(roles.insert(Role::Relay)),
            "audit" => drop(roles.insert(Role::Audit)),
            "api" => drop(roles.insert(Role::Api)),
            "projections" => roles.extend(projections()),
            "processes" => roles.extend(processes()),
            other => match named().find(|role| role.to_string() == other) {
                Some(role) => drop(roles.insert(role)),
                None => {
                    let names: Vec<String> = named().map(|role| role.to_string()).collect();
                    bail!(
                        "no role is named `{other}`: choose processor, relay, audit, api, projections, processes, or one of {}",
                        names.join(", ")
                    )
                }
            },
        }
    }
    Ok(roles)
}

/// What the roles of a process are written as: `processor` where it decides the commands of every context.
fn told(app: &App, roles: &BTreeSet<Role>) -> Vec<String> {
    let is_all = app.contexts().iter().all(|one| roles.contains(&Role::Processor(one.name().to_owned())));
    let named = |role: &Role| match role {
        Role::Processor(_) if is_all => "processor".to_owned(),
        other => other.to_string(),
    };
    let mut told: Vec<String> = roles.iter().map(named).collect();
    told.dedup();
    told
}

/// One context in a process.
struct Site {
    name: &'static str,
    settings: Arc<Settings>,
    opened: Arc<dyn Opened>,
}

/// Starts the roles in `lifecycle`.
///
/// Processors and a relay of one process share a wake-up: what was appended is published without
/// waiting for a poll.
pub async fn start(
    app: &App,
    roles: &BTreeSet<Role>,
    settings: &Settings,
    lifecycle: &Lifecycle,
) -> anyhow::Result<()> {
    // Both ports before any loop: one that is taken ends the start while no group knows of us.
    let mut entrance = match roles.contains(&Role::Api) {
        true => Some(api::Entrance::open(&settings.http).await?),
        false => None,
    };
    let admin = Listener::admin(&settings.http, entrance.as_ref().map(api::Entrance::listener))?;
    let mut sites = Vec::new();
    for context in app.contexts() {
        let settings = Arc::new(install::with_stored_partitions(context.as_ref(), settings).await?);
        let opened = install::open(context.as_ref(), &settings).await?;
        sites.push(Site { name: context.name(), settings, opened });
    }
    let settings = Arc::new(settings.clone());
    let codecs = sites.iter().map(|site| (site.name, site.opened.codec())).collect();
    let wake = Arc::new(Notify::new());
    let health = Health::with_patience(Patience {
        silence_max: Duration::from_millis(settings.http.heartbeat_silence_max_ms),
        unready_after: Duration::from_millis(settings.http.unready_after_ms),
        pending_max: Duration::from_millis(settings.http.claim_pending_max_ms),
    });
    start_admin(admin, &health, lifecycle)?;
    let who = Identity::new(told(app, roles));
    lifecycle.spawn("presence", presence::run(settings.clone(), health.clone(), who, lifecycle.shutdown()));
    if let Some(context) = app.contexts().first() {
        let (beat, asked) = (health.register("kafka"), context.names(&settings.topics).events());
        lifecycle.spawn("kafka", kafka::probe::run(settings.kafka.clone(), asked, beat, lifecycle.shutdown()));
    }
    for role in roles {
        let (health, shutdown) = (health.clone(), lifecycle.shutdown());
        match role {
            Role::Processor(context) => {
                for site in sites.iter().filter(|site| site.name == context) {
                    let loop_ =
                        site.opened.processor(site.settings.clone(), wake.clone(), health.clone(), shutdown.clone());
                    lifecycle.spawn(role.to_string(), loop_);
                }
            }
            Role::Relay => {
                lifecycle.spawn("relay", relay::run(settings.clone(), wake.clone(), health.clone(), shutdown.clone()));
                lifecycle.spawn("maintenance", maintenance::run(settings.clone(), health, shutdown));
            }
            Role::Projection(name) => {
                let of =
                    |site: &Site| site.opened.projection(name, site.settings.clone(), health.clone(), shutdown.clone());
                if let Some(loop_) = sites.iter().find_map(of) {
                    lifecycle.spawn(format!("projection {name}"), loop_);
                }
            }
            Role::Audit => start_audit(app, &sites, &settings, health, lifecycle),
            Role::Process(name) => start_process(app, name, (&settings, &codecs), health, lifecycle)?,
            Role::Api => {
                // Only the API has callers who must look elsewhere first.
                lifecycle.give_notice(Duration::from_millis(settings.http.shutdown_notice_ms));
                if let Some(entrance) = entrance.take() {
                    lifecycle.spawn("api", api::run(served(app, &sites, &settings)?, entrance, health, shutdown));
                }
            }
        }
    }
    Ok(())
}

fn start_audit(app: &App, sites: &[Site], settings: &Arc<Settings>, health: Arc<Health>, lifecycle: &Lifecycle) {
    let subjects = app.contexts().iter().zip(sites).map(|(one, site)| one.audited(&site.settings.topics));
    let audit = audit::run(settings.clone(), subjects.collect(), health, lifecycle.shutdown());
    lifecycle.spawn("audit", async move { anyhow::Ok(audit.await?) });
}

fn start_process(
    app: &App,
    name: &str,
    (settings, codecs): (&Arc<Settings>, &Codecs),
    health: Arc<Health>,
    lifecycle: &Lifecycle,
) -> anyhow::Result<()> {
    if let Some(process) = app.processes().iter().find(|process| process.name() == name) {
        let opened = process.open(settings, codecs)?;
        let shutdown = lifecycle.shutdown();
        lifecycle.spawn(format!("process {name}"), async move { anyhow::Ok(opened.run(health, shutdown).await?) });
    }
    Ok(())
}

/// What the API serves.
fn served(app: &App, sites: &[Site], settings: &Settings) -> anyhow::Result<api::Served> {
    let contexts = app.contexts().iter().zip(sites).map(|(context, site)| ContextApi {
        name: context.name(),
        stream_id_field: context.stream_id_field(),
        names: context.names(&site.settings.topics),
        projections: context.read_models().iter().map(|model| model.name).collect(),
        settings: site.settings.clone(),
        routes: context.routes(),
        refusals: context.refusals(),
    });
    let reader = Database::new(&settings.database, &DatabaseRole::Reader)?;
    Ok(api::Served { title: app.name(), contexts: contexts.collect(), others: avro::registry_routes(reader) })
}

/// The admin port of this process, which tells of every loop.
fn start_admin(listener: Listener, health: &Arc<Health>, lifecycle: &Lifecycle) -> anyhow::Result<()> {
    let metrics = api::install_metrics()?;
    health.admin_listens(listener.address());
    let (stopping, shutdown) = (lifecycle.stopping(), lifecycle.shutdown());
    lifecycle.spawn("admin", api::admin::run(listener, health.clone(), metrics, stopping, shutdown));
    Ok(())
}
