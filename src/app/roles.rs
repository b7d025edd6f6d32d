//! The roles of `throughline run`, and what each is made of.

use std::collections::BTreeSet;

use anyhow::bail;

use super::lifecycle::Lifecycle;
use crate::settings::Settings;

/// One loop of the pipeline.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    Processor,
    Relay,
    /// By the projection's name.
    Projection(String),
    Api,
}

/// Names of all projections.
pub fn projection_names() -> Vec<&'static str> {
    Vec::new()
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
pub async fn start(roles: &BTreeSet<Role>, settings: &Settings, lifecycle: &Lifecycle) -> anyhow::Result<()> {
    let _ = (roles, settings, lifecycle);
    Ok(())
}
