//! Whether the loops of this process live and are ready. The loops tell; nobody is asked. Knows no
//! other room.
//!
//! Alive means that a loop goes round: it beats at each turn, and each of its waits is bounded by a
//! setting of its own. A loop that tries again because PostgreSQL or Kafka is away goes round, and
//! is alive and not ready: a missing dependency must not make an orchestrator restart us. One that
//! blocks its thread, or waits for what never comes, falls silent, and a restart is what cures it.
//!
//! A partition that stands makes its loop neither dead nor unready: the others of the loop go on. It is told
//! in [`partitions`].

pub mod partitions;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;

pub use partitions::{PartitionReport, PartitionState, PartitionStates, Partitions};

#[derive(Debug)]
struct Component {
    /// None until it tells for the first time: then it has started.
    ready: Option<Result<(), String>>,
    last_beat: Instant,
}

/// The registry of one process.
#[derive(Debug)]
pub struct Health {
    /// A loop that is silent for longer than this is taken for hung.
    silence_max: Duration,
    components: Mutex<BTreeMap<String, Component>>,
    partitions: Arc<PartitionStates>,
}

/// One loop's handle.
#[derive(Debug, Clone)]
pub struct Heartbeat {
    health: Arc<Health>,
    name: Arc<str>,
}

/// What `?verbose` prints of one loop.
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
    pub fn new(silence_max: Duration) -> Arc<Self> {
        Arc::new(Self { silence_max, components: Mutex::default(), partitions: Arc::default() })
    }

    /// The handle by which a loop tells of its partitions.
    pub fn partitions(&self, loop_name: impl Into<Arc<str>>) -> Partitions {
        self.partitions.of_loop(loop_name)
    }

    /// Every partition that a loop of this process has told of.
    pub fn partition_reports(&self) -> Vec<PartitionReport> {
        self.partitions.reports()
    }

    /// Registers a loop: alive from now on, not started and not ready until it says so.
    pub fn register(self: &Arc<Self>, name: impl Into<String>) -> Heartbeat {
        let name = name.into();
        self.lock().insert(name.clone(), Component { ready: None, last_beat: Instant::now() });
        Heartbeat { health: self.clone(), name: name.into() }
    }

    /// One check a loop: whether it has been heard of lately.
    pub fn liveness(&self) -> Vec<Check> {
        self.checks(|component| {
            let silent = component.last_beat.elapsed();
            let hung = silent > self.silence_max;
            hung.then(|| format!("silent for {} ms, {} at most", silent.as_millis(), self.silence_max.as_millis()))
        })
    }

    /// One check a loop: whether it can do its work. Empty = nothing started yet.
    pub fn readiness(&self) -> Vec<Check> {
        self.checks(|component| match &component.ready {
            None => Some("starting".to_owned()),
            Some(Ok(())) => None,
            Some(Err(reason)) => Some(reason.clone()),
        })
    }

    /// One check a loop: whether it has come as far as to tell what it can do, whatever it told.
    pub fn startup(&self) -> Vec<Check> {
        self.checks(|component| component.ready.is_none().then(|| "starting".to_owned()))
    }

    /// Sets `throughline_loop_silence_seconds`, the age of each loop's last beat.
    pub fn publish(&self) {
        for (name, component) in self.lock().iter() {
            metrics::gauge!("throughline_loop_silence_seconds", "loop" => name.clone())
                .set(component.last_beat.elapsed().as_secs_f64());
        }
    }

    /// A check a loop; `fault` tells what is wrong with it.
    fn checks(&self, fault: impl Fn(&Component) -> Option<String>) -> Vec<Check> {
        let check = |(name, component): (&String, &Component)| {
            let reason = fault(component);
            Check { name: name.clone(), ok: reason.is_none(), reason }
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
        self.update(|_| {});
    }

    /// Alive and able to work.
    pub fn ready(&self) {
        self.update(|component| component.ready = Some(Ok(())));
    }

    /// Alive and unable to work, for this reason.
    pub fn not_ready(&self, reason: impl Into<String>) {
        self.update(|component| component.ready = Some(Err(reason.into())));
    }

    /// Registers a part of this loop that beats by itself, such as a thread of its own.
    pub fn register_part(&self, part: &str) -> Self {
        self.health.register(format!("{} {part}", self.name))
    }

    /// The loop has ended as it should: nobody waits for its next beat.
    pub fn retire(&self) {
        self.health.lock().remove(&*self.name);
    }

    fn update(&self, change: impl FnOnce(&mut Component)) {
        if let Some(component) = self.health.lock().get_mut(&*self.name) {
            component.last_beat = Instant::now();
            change(component);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_is_ready_once_it_says_so_and_no_longer_than_it_says_so() {
        let health = Health::new(Duration::from_secs(60));
        let relay = health.register("relay");
        assert!(!health.readiness()[0].ok && !health.startup()[0].ok);
        relay.beat();
        assert!(!health.startup()[0].ok, "alive is not started");
        relay.not_ready("PostgreSQL is away");
        assert_eq!(health.readiness()[0].reason.as_deref(), Some("PostgreSQL is away"));
        assert!(health.liveness()[0].ok, "a missing dependency is no reason to be restarted");
        assert!(health.startup()[0].ok, "nor to be taken for one that never started");
        relay.ready();
        assert!(health.readiness()[0].ok);
    }

    #[test]
    fn silence_beyond_the_bound_is_a_hang_until_the_next_beat() {
        let health = Health::new(Duration::from_secs(60));
        let beat = health.register("processor");
        health.lock().get_mut("processor").unwrap().last_beat = Instant::now() - Duration::from_secs(61);
        assert!(!health.liveness()[0].ok);
        beat.beat();
        assert!(health.liveness()[0].ok);
    }
}
