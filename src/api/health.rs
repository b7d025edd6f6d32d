//! Whether the loops of this process live and are ready. The loops tell; nobody is asked.
//!
//! Liveness is heartbeats alone and never a dependency: a database that is away must not make an
//! orchestrator restart us.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;

/// A component is taken for hung when its heartbeat is older than it promised.
#[derive(Debug)]
struct Component {
    ready: Result<(), String>,
    last_beat: Instant,
    silence_max: Option<Duration>,
}

/// The registry of one process.
#[derive(Debug, Default)]
pub struct Health {
    components: Mutex<BTreeMap<String, Component>>,
}

/// One component's handle.
#[derive(Debug, Clone)]
pub struct Heartbeat {
    health: Arc<Health>,
    name: String,
}

/// What `?verbose` prints of one component.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Check {
    pub name: String,
    pub ok: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl Health {
    /// An empty registry: nothing started, so not ready.
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// Registers a component, not ready. With `silence_max` it has to [`Heartbeat::beat`] at least
    /// that often, or the process counts as hung.
    pub fn register(self: &Arc<Self>, name: impl Into<String>, silence_max: Option<Duration>) -> Heartbeat {
        let name = name.into();
        let component = Component { ready: Err("starting".into()), last_beat: Instant::now(), silence_max };
        self.lock().insert(name.clone(), component);
        Heartbeat { health: self.clone(), name }
    }

    /// One check a component: whether it has been heard of lately.
    pub fn liveness(&self) -> Vec<Check> {
        let check = |(name, component): (&String, &Component)| {
            let silent = component.last_beat.elapsed();
            let hung = component.silence_max.is_some_and(|most| silent > most);
            let reason = hung.then(|| format!("no heartbeat for {} ms", silent.as_millis()));
            Check { name: name.clone(), ok: !hung, reason }
        };
        self.lock().iter().map(check).collect()
    }

    /// One check a component: whether it can do its work. Empty = nothing started yet.
    pub fn readiness(&self) -> Vec<Check> {
        let check = |(name, component): (&String, &Component)| Check {
            name: name.clone(),
            ok: component.ready.is_ok(),
            reason: component.ready.clone().err(),
        };
        self.lock().iter().map(check).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Component>> {
        self.components.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Heartbeat {
    /// Alive.
    pub fn beat(&self) {
        self.update(|component| component.last_beat = Instant::now());
    }

    /// Alive and able to work.
    pub fn ready(&self) {
        self.update(|component| {
            component.last_beat = Instant::now();
            component.ready = Ok(());
        });
    }

    /// Alive and unable to work, for this reason.
    pub fn not_ready(&self, reason: impl Into<String>) {
        self.update(|component| {
            component.last_beat = Instant::now();
            component.ready = Err(reason.into());
        });
    }

    fn update(&self, change: impl FnOnce(&mut Component)) {
        if let Some(component) = self.health.lock().get_mut(&self.name) {
            change(component);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_component_is_ready_once_it_says_so_and_no_longer_than_it_says_so() {
        let health = Health::new();
        let relay = health.register("relay", None);
        assert!(!health.readiness()[0].ok);
        relay.ready();
        assert!(health.readiness()[0].ok);
        relay.not_ready("PostgreSQL is away");
        assert_eq!(health.readiness()[0].reason.as_deref(), Some("PostgreSQL is away"));
        assert!(health.liveness()[0].ok, "a missing dependency is no reason to be restarted");
    }

    #[test]
    fn silence_beyond_the_promise_is_a_hang() {
        let health = Health::new();
        let beat = health.register("processor", Some(Duration::ZERO));
        health.lock().get_mut("processor").unwrap().last_beat = Instant::now() - Duration::from_secs(1);
        assert!(!health.liveness()[0].ok);
        health.lock().get_mut("processor").unwrap().silence_max = Some(Duration::from_secs(60));
        beat.beat();
        assert!(health.liveness()[0].ok);
    }
}
