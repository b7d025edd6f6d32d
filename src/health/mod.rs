//! Whether the loops of this process live and are ready. The loops tell; nobody is asked. Knows no
//! other room.
//!
//! Alive means that a loop goes round: it beats at each turn, and each of its waits is bounded by a
//! setting of its own. A loop that tries again because PostgreSQL or Kafka is away goes round, and
//! is alive and not ready: a missing dependency must not make an orchestrator restart us. One that
//! blocks its thread, or waits for what never comes, falls silent, and a restart is what cures it. Waiting
//! for PostgreSQL is no hang, however long: [`Heartbeat::while_waiting`] beats as long as the task turns.
//!
//! Ready is hysteretic: one failed try does not take a process out, only what fails for
//! [`Patience::unready_after`] without a break.
//!
//! A partition that stands makes its loop neither dead nor unready: the others of the loop go on. It is told
//! in [`partitions`]. One whose claim is not granted for long does make the process unready.

pub mod partitions;
pub mod told;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;

pub use partitions::{PartitionReport, PartitionState, PartitionStates, Partitions};
pub use told::Told;

/// A loop that waits for an answer beats this often.
const BEAT_EVERY: Duration = Duration::from_secs(1);
/// An answer that takes longer than this counts as missing; what follows is hysteresis.
const ANSWER_WAIT: Duration = Duration::from_secs(5);

/// How long what is believed.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// A loop that is silent for longer than this is taken for hung.
    pub silence_max: Duration,
    /// A loop that was ready stays so until it has failed for this long without a break.
    pub unready_after: Duration,
    /// A partition whose claim is not granted for longer than this makes its process unready.
    pub pending_max: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            silence_max: Duration::from_secs(60),
            unready_after: Duration::from_secs(5),
            pending_max: Duration::from_secs(10),
        }
    }
}

#[derive(Debug)]
struct Component {
    state: State,
    last_beat: Instant,
}

#[derive(Debug)]
enum State {
    /// Has told nothing so far.
    Starting,
    Ready,
    Failing {
        reason: String,
        since: Instant,
        /// It was ready before: then patience applies.
        was_ready: bool,
    },
}

/// The registry of one process.
#[derive(Debug)]
pub struct Health {
    patience: Patience,
    components: Mutex<BTreeMap<String, Component>>,
    partitions: Arc<PartitionStates>,
    admin_address: OnceLock<SocketAddr>,
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
    /// As [`Health::with_patience`], for whoever only bounds silence.
    pub fn new(silence_max: Duration) -> Arc<Self> {
        Self::with_patience(Patience { silence_max, ..Patience::default() })
    }

    /// An empty registry: nothing started, so not ready.
    pub fn with_patience(patience: Patience) -> Arc<Self> {
        Arc::new(Self {
            patience,
            components: Mutex::default(),
            partitions: Arc::default(),
            admin_address: OnceLock::new(),
        })
    }

    /// Where the admin port listens, once it does.
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.admin_address.get().copied()
    }

    /// The admin port listens there.
    pub fn admin_listens(&self, address: SocketAddr) {
        // A second listener of one process would be a defect; the first is the one that was told.
        let _ = self.admin_address.set(address);
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
        let component = Component { state: State::Starting, last_beat: Instant::now() };
        self.lock().insert(name.clone(), component);
        Heartbeat { health: self.clone(), name: name.into() }
    }

    /// One check a loop: whether it has been heard of lately.
    pub fn liveness(&self) -> Vec<Check> {
        let most = self.patience.silence_max;
        self.checks(|component| {
            let silent = component.last_beat.elapsed();
            let hung = silent > most;
            (!hung, hung.then(|| format!("silent for {} ms, {} at most", silent.as_millis(), most.as_millis())))
        })
    }

    /// One check a loop: whether it can do its work, and one for claims that wait too long. A loop that fails
    /// since a moment ago is ready and tells why it may not be for long. Empty = nothing started yet.
    pub fn readiness(&self) -> Vec<Check> {
        let patience = self.patience.unready_after;
        let mut checks = self.checks(|component| match &component.state {
            State::Starting => (false, Some("starting".to_owned())),
            State::Ready => (true, None),
            State::Failing { reason, since, was_ready } => {
                (*was_ready && since.elapsed() < patience, Some(reason.clone()))
            }
        });
        let late = self.partitions.pending_longer_than(self.patience.pending_max);
        checks.extend(late.map(|reason| Check { name: "claims".into(), ok: false, reason: Some(reason) }));
        checks
    }

    /// One check a loop: whether it has come as far as to tell what it can do, whatever it told.
    pub fn startup(&self) -> Vec<Check> {
        self.checks(|component| match component.state {
            State::Starting => (false, Some("starting".to_owned())),
            State::Ready | State::Failing { .. } => (true, None),
        })
    }

    /// Sets the gauges that are measured when somebody looks: the age of each loop's last beat, and the
    /// partitions of each loop by state.
    pub fn publish(&self) {
        for (name, component) in self.lock().iter() {
            metrics::gauge!("throughline_loop_silence_seconds", "loop" => name.clone())
                .set(component.last_beat.elapsed().as_secs_f64());
        }
        self.partitions.publish();
    }

    /// A check a loop; `judge` tells whether it is well, and what there is to say.
    fn checks(&self, judge: impl Fn(&Component) -> (bool, Option<String>)) -> Vec<Check> {
        let check = |(name, component): (&String, &Component)| {
            let (ok, reason) = judge(component);
            Check { name: name.clone(), ok, reason }
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
        self.update(|component| component.state = State::Ready);
    }

    /// Alive and unable to work, for this reason; believed once it has lasted.
    pub fn not_ready(&self, reason: impl Into<String>) {
        let reason = reason.into();
        self.update(|component| {
            let (since, was_ready) = match component.state {
                State::Failing { since, was_ready, .. } => (since, was_ready),
                State::Ready => (Instant::now(), true),
                State::Starting => (Instant::now(), false),
            };
            component.state = State::Failing { reason, since, was_ready };
        });
    }

    /// Waits for `work`, which waits for others, and beats meanwhile: that this returns to its timer proves
    /// that the task and its thread turn, which is all that a restart could mend. `what` tells what has no
    /// answer when it takes long; whoever goes on after it says that it is ready.
    pub async fn while_waiting<T>(&self, what: &str, work: impl Future<Output = T>) -> T {
        let started = Instant::now();
        let turn = || match started.elapsed() {
            waited if waited < ANSWER_WAIT => self.beat(),
            waited => self.not_ready(format!("{what}: no answer for {} s", waited.as_secs())),
        };
        turning(work, turn).await
    }

    /// Beats while `work` is done, which nobody misses however long it takes.
    pub async fn during<T>(&self, work: impl Future<Output = T>) -> T {
        turning(work, || self.beat()).await
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

/// Waits for `work`, with a `turn` every second.
async fn turning<T>(work: impl Future<Output = T>, turn: impl Fn()) -> T {
    let mut work = pin!(work);
    loop {
        match tokio::time::timeout(BEAT_EVERY, &mut work).await {
            Ok(done) => return done,
            Err(_) => turn(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patient(unready_after: Duration) -> Arc<Health> {
        Health::with_patience(Patience { unready_after, ..Patience::default() })
    }

    #[test]
    fn a_loop_is_ready_once_it_says_so_and_no_longer_than_it_says_so() {
        let health = patient(Duration::ZERO);
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
    fn one_failed_try_is_told_and_changes_nothing() {
        let health = patient(Duration::from_secs(60));
        let api = health.register("api");
        api.not_ready("no broker");
        assert!(!health.readiness()[0].ok, "it was never ready: there is nothing to be patient about");
        api.ready();
        api.not_ready("NotCoordinator");
        let check = health.readiness().remove(0);
        assert_eq!((check.ok, check.reason.as_deref()), (true, Some("NotCoordinator")));
        let age = |seconds| {
            let mut components = health.lock();
            let State::Failing { since, .. } = &mut components.get_mut("api").unwrap().state else { panic!() };
            *since = Instant::now() - Duration::from_secs(seconds);
        };
        age(59);
        api.not_ready("another reason, the same spell");
        assert!(health.readiness()[0].ok);
        age(61);
        assert!(!health.readiness()[0].ok, "it has lasted");
        api.ready();
        api.not_ready("again");
        assert!(health.readiness()[0].ok, "a new spell");
    }

    #[test]
    fn silence_beyond_the_bound_is_a_hang_until_the_next_beat() {
        let health = patient(Duration::ZERO);
        let beat = health.register("processor");
        health.lock().get_mut("processor").unwrap().last_beat = Instant::now() - Duration::from_secs(61);
        assert!(!health.liveness()[0].ok);
        beat.beat();
        assert!(health.liveness()[0].ok);
    }

    #[tokio::test]
    async fn waiting_for_an_answer_is_no_hang_however_long() {
        let health = patient(Duration::ZERO);
        let worker = health.register("worker");
        assert_eq!(worker.while_waiting("commit", async { 7 }).await, 7);
        let looks = async {
            health.lock().get_mut("worker").unwrap().last_beat = Instant::now() - Duration::from_secs(61);
            assert!(!health.liveness()[0].ok);
            tokio::time::sleep(BEAT_EVERY * 2).await;
            health.liveness().remove(0)
        };
        tokio::select! {
            () = worker.while_waiting("commit", std::future::pending()) => panic!("nobody answers"),
            check = looks => assert!(check.ok, "its timer beats: {check:?}"),
        }
    }

    #[test]
    fn a_claim_that_waits_for_long_is_not_ready_and_one_that_stands_is() {
        let health = Health::with_patience(Patience { pending_max: Duration::ZERO, ..Patience::default() });
        health.register("processor").ready();
        let partitions = health.partitions("processor");
        partitions.standing("t", 0, "a hole", None);
        assert!(health.readiness().iter().all(|check| check.ok), "others go on");
        partitions.pending("t", 1, Some("PostgreSQL is away"));
        std::thread::sleep(Duration::from_millis(2));
        let told = health.readiness().into_iter().find(|check| !check.ok).expect("not ready");
        let reason = told.reason.expect("a reason");
        assert!(reason.contains("t/1") && reason.contains("PostgreSQL is away"), "{reason}");
        partitions.running("t", 1);
        assert!(health.readiness().iter().all(|check| check.ok));
    }
}
