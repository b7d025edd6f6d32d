//! The roles of `throughline run`, and what each is made of.

use std::collections::BTreeSet;

use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use tokio::sync::Notify;

use super::lifecycle::Lifecycle;
use super::{install, maintenance};
use crate::api::{self, ContextApi, Listener};
use crate::avro;
use crate::health::{Health, Patience};
use crate::orders::{self, OrdersContext};
use crate::presence::Identity;
use crate::settings::Settings;
use crate::store::{Database, DatabaseRole};
use crate::{kafka, presence, processor, projection, relay};

/// One loop of the pipeline.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    Processor,
    Relay,
    /// By the projection's name.
    Projection(String),
    Api,
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Processor => f.write_str("processor"),
            Self::Relay => f.write_str("relay"),
            Self::Projection(name) => write!(f, "projection:{name}"),
            Self::Api => f.write_str("api"),
        }
    }
}

/// Names of all projections.
pub fn projection_names() -> Vec<&'static str> {
    orders::projections::all().iter().map(|projection| projection.read_model().name).collect()
}

/// The roles that `names` ask for; none asks for all.
pub fn parse(names: &[String]) -> anyhow::Result<BTreeSet<Role>> {
    let projections = || projection_names().into_iter().map(|name| Role::Projection(name.to_owned()));
    let mut roles = BTreeSet::new();
    if names.is_empty() {
        roles.extend([Role::Processor, Role::Relay, Role::Api]);
        roles.extend(projections());
    }
    for name in names {
        match name.as_str() {
            "processor" => drop(roles.insert(Role::Processor)),
            "relay" => drop(roles.insert(Role::Relay)),
            "api" => drop(roles.insert(Role::Api)),
            "projections" => roles.extend(projections()),
            other => match other.strip_prefix("projection:").filter(|name| projection_names().contains(name)) {
                Some(name) => drop(roles.insert(Role::Projection(name.to_owned()))),
                None => bail!(
                    "no role is named `{other}`: choose processor, relay, api, projections, or projection:NAME with one of {}",
                    projection_names().join(", ")
                ),
            },
        }
    }
    Ok(roles)
}

/// Starts the roles in `lifecycle`.
///
/// A processor and a relay of one process share a wake-up: what was appended is published without
/// waiting for a poll.
pub async fn start(roles: &BTreeSet<Role>, settings: &Settings, lifecycle: &Lifecycle) -> anyhow::Result<()> {
    let settings = Arc::new(install::with_stored_partitions(settings).await?);
    // Both ports before any loop: one that is taken ends the start while no group knows of us.
    let mut entrance = match roles.contains(&Role::Api) {
        true => Some(api::Entrance::open(&settings.http).await?),
        false => None,
    };
    let admin = Listener::admin(&settings.http, entrance.as_ref().map(api::Entrance::listener))?;
    let names = install::orders_topics(&settings);
    let codec = install::orders_codec(&settings).await?;
    let wake = Arc::new(Notify::new());
    let health = Health::with_patience(Patience {
        silence_max: Duration::from_millis(settings.http.heartbeat_silence_max_ms),
        unready_after: Duration::from_millis(settings.http.unready_after_ms),
        pending_max: Duration::from_millis(settings.http.claim_pending_max_ms),
    });
    start_admin(admin, &health, lifecycle)?;
    let who = Identity::new(roles.iter().map(Role::to_string).collect());
    lifecycle.spawn("presence", presence::run(settings.clone(), health.clone(), who, lifecycle.shutdown()));
    let (beat, asked) = (health.register("kafka"), names.events());
    lifecycle.spawn("kafka", kafka::probe::run(settings.kafka.clone(), asked, beat, lifecycle.shutdown()));
    for role in roles {
        let (settings, shutdown) = (settings.clone(), lifecycle.shutdown());
        let health = health.clone();
        match role {
            Role::Processor => lifecycle.spawn(
                "processor",
                processor::run::<OrdersContext>(settings, codec.clone(), wake.clone(), health, shutdown),
            ),
            Role::Relay => {
                lifecycle.spawn("relay", relay::run(settings.clone(), wake.clone(), health.clone(), shutdown.clone()));
                lifecycle.spawn("maintenance", maintenance::run(settings, health, shutdown));
            }
            Role::Projection(name) => {
                for projection in orders::projections::all().into_iter().filter(|one| one.read_model().name == name) {
                    let (settings, names, codec) = (settings.clone(), names.clone(), codec.clone());
                    let loop_ = projection::run(settings, names, projection, codec, health.clone(), shutdown.clone());
                    lifecycle.spawn(format!("projection {name}"), loop_);
                }
            }
            Role::Api => {
                // Only the API has callers who must look elsewhere first.
                lifecycle.give_notice(Duration::from_millis(settings.http.shutdown_notice_ms));
                let reader = Database::new(&settings.database, &DatabaseRole::Reader)?;
                let context = ContextApi {
                    names: names.clone(),
                    routes: orders::routes::routes(),
                    refusals: orders::routes::REFUSALS,
                    others: avro::registry_routes(reader),
                };
                if let Some(entrance) = entrance.take() {
                    lifecycle.spawn("api", api::run(settings, context, entrance, health, shutdown));
                }
            }
        }
    }
    Ok(())
}

/// The admin port of this process, which tells of every loop.
fn start_admin(listener: Listener, health: &Arc<Health>, lifecycle: &Lifecycle) -> anyhow::Result<()> {
    let metrics = api::install_metrics()?;
    health.admin_listens(listener.address());
    let (stopping, shutdown) = (lifecycle.stopping(), lifecycle.shutdown());
    lifecycle.spawn("admin", api::admin::run(listener, health.clone(), metrics, stopping, shutdown));
    Ok(())
}
