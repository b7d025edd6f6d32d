//! The roles of `throughline run`, and what each is made of.

use std::collections::BTreeSet;

use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use tokio::sync::Notify;

use super::lifecycle::Lifecycle;
use super::{install, maintenance};
use crate::api::{self, ContextApi};
use crate::avro;
use crate::health::Health;
use crate::orders::{self, OrdersContext};
use crate::settings::{HttpSettings, Settings};
use crate::store::{Database, DatabaseRole};
use crate::{processor, projection, relay};

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
    let names = install::orders_topics(&settings);
    let codec = install::orders_codec(&settings).await?;
    let wake = Arc::new(Notify::new());
    let health = Health::new(Duration::from_millis(settings.http.heartbeat_silence_max_ms));
    start_admin(&settings, &health, lifecycle)?;
    for role in roles {
        let (settings, shutdown) = (settings.clone(), lifecycle.shutdown());
        let health = health.clone();
        match role {
            Role::Processor => lifecycle.spawn(
                "processor",
                processor::run::<OrdersContext>(settings, codec.clone(), wake.clone(), health, shutdown),
            ),
            Role::Relay => {
                lifecycle.spawn("relay", relay::run(settings.clone(), wake.clone(), health, shutdown.clone()));
                lifecycle.spawn("maintenance", maintenance::run(settings, shutdown));
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
                lifecycle.spawn("api", api::run(settings, context, health, shutdown));
            }
        }
    }
    Ok(())
}

/// The admin listener of this process. Several processes of one machine share the default address
/// by giving way: the first has it, the others take a free port and say which.
fn start_admin(settings: &Arc<Settings>, health: &Arc<Health>, lifecycle: &Lifecycle) -> anyhow::Result<()> {
    let mut settings = settings.clone();
    let default = HttpSettings::default().admin_listen;
    if settings.http.admin_listen == default && std::net::TcpListener::bind(default).is_err() {
        Arc::make_mut(&mut settings).http.admin_listen.set_port(0);
    }
    let metrics = api::install_metrics()?;
    let (stopping, shutdown) = (lifecycle.stopping(), lifecycle.shutdown());
    lifecycle.spawn("admin", api::admin::run(settings, health.clone(), metrics, stopping, shutdown));
    Ok(())
}
